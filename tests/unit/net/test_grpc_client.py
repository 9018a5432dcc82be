"""Our gRPC client against the real grpcio server, proxies, and servers that are none."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage
from grpclib.const import Status
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame
from pydantic import ValidationError
from support import FakeHost, context

from lockgate.net import grpc_client
from lockgate.net.grpc import GrpcError
from lockgate.net.grpc_client import GrpcClient, GrpcClientSettings, NotGrpc, parse_endpoint, refusal
from lockgate.net.grpc_server import GrpcServer, unary
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.pipeline.contract import Extension, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Connect

METHOD = "/test.Service/Export"
Answer = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


async def echo(message: bytes, call: Any) -> bytes:
    return message


@asynccontextmanager
async def serving(
    handle: Answer = echo, *, port: int = 0, tls: Any = None, options: Mapping[str, int] | None = None
) -> AsyncIterator[tuple[Any, int]]:
    """The real grpcio server."""
    defaults = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.so_reuseport": 0}
    server = grpc.aio.server(options=list((defaults | dict(options or {})).items()))
    handler = grpc.method_handlers_generic_handler("test.Service", {"Export": grpc.unary_unary_rpc_method_handler(handle)})
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(0)


@asynccontextmanager
async def client(port: int | str, *, host: Any = None, **settings: Any) -> AsyncIterator[GrpcClient]:
    endpoint = f"127.0.0.1:{port}" if isinstance(port, int) else port
    made = GrpcClientSettings.model_validate({"endpoint": endpoint, "tls": {"insecure": True}, **settings})
    async with GrpcClient(made, context("otlp", Kind.EXPORTER, host=host)) as ours:
        yield ours


async def failure(call: Awaitable[Any]) -> GrpcError:
    with pytest.raises(GrpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000, 12_000_000])
@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_a_message_of_any_size_arrives(size: int, compression: str) -> None:
    got: list[bytes] = []

    async def handle(message: bytes, call: Any) -> bytes:
        got.append(message)
        return message[:3_000_000]

    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with serving(handle) as (_, port), client(port, compression=compression) as ours:
        assert await ours.call(METHOD, message, 20) == message[:3_000_000]
    assert got == [message]


async def test_metadata_and_credentials_are_sent() -> None:
    seen: list[dict[str, str]] = []

    async def handle(message: bytes, call: Any) -> bytes:
        seen.append(dict(call.invocation_metadata()))
        return b""

    class Bearer(Extension[Any]):
        async def authorize_headers(self) -> Mapping[str, str]:
            return {"Authorization": "Bearer secret"}

    host = FakeHost({"bearertokenauth": Bearer(None, context("bearertokenauth", Kind.EXTENSION))})
    async with (
        serving(handle) as (_, port),
        client(port, host=host, headers={"X-Tenant": "a"}, auth={"authenticator": "bearertokenauth"}) as ours,
    ):
        await ours.call(METHOD, b"m", 10)
    assert (seen[0]["x-tenant"], seen[0]["authorization"]) == ("a", "Bearer secret")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_a_status_arrives_with_its_text_and_otlps_verdict(code: Any) -> None:
    async def handle(message: bytes, call: Any) -> bytes:
        await call.abort(code, "größer als 100%")
        return b""

    async with serving(handle) as (_, port), client(port) as ours:
        error = await failure(ours.call(METHOD, b"m" * 1000, 10))
    assert (error.status.value, error.message, error.retry_after) == (code.value[0], "größer als 100%", None)
    permanent = {"UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED", "INTERNAL"}
    assert isinstance(refusal(error), Permanent if code.name in permanent else Retryable)


async def test_retry_info_becomes_the_delay() -> None:
    async def handle(message: bytes, call: Any) -> bytes:
        info, detail = RetryInfo(), AnyMessage()
        info.retry_delay.FromMilliseconds(1500)
        detail.Pack(info)
        status = StatusMessage(code=8, message="busy", details=[detail])
        call.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return b""

    async with serving(handle) as (_, port), client(port) as ours:
        verdict = refusal(await failure(ours.call(METHOD, b"m", 10)))
    assert isinstance(verdict, Retryable)
    assert verdict.after == 1.5


@pytest.mark.parametrize("details", [b"\xff\xff", b"\n\x05ab", b""])
async def test_unreadable_details_of_an_error_do_not_hide_it(details: bytes) -> None:
    async def handle(message: bytes, call: Any) -> bytes:
        call.set_trailing_metadata((("grpc-status-details-bin", details),))
        await call.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return b""

    async with serving(handle) as (_, port), client(port) as ours:
        error = await failure(ours.call(METHOD, b"x", 10))
    assert (error.status, error.message, error.retry_after) == (Status.UNAVAILABLE, "busy", None)


async def test_a_message_too_large_for_the_server_is_permanent() -> None:
    async with serving(options={"grpc.max_receive_message_length": 1000}) as (_, port), client(port, compression="none") as ours:
        error = await failure(ours.call(METHOD, bytes(9_000_000), 10))
        assert await ours.call(METHOD, b"small", 10) == b"small"
    assert error.status is Status.RESOURCE_EXHAUSTED
    assert isinstance(refusal(error), Permanent)
    assert isinstance(refusal(GrpcError(Status.RESOURCE_EXHAUSTED, "too many requests")), Retryable)


async def test_a_message_too_large_for_our_own_server_is_permanent() -> None:
    settings = GrpcServerSettings(endpoint="127.0.0.1:0", max_recv_msg_size_mib=1)

    async def handle(message: bytes, call: Any) -> bytes:
        return message

    async with GrpcServer(settings, {METHOD: unary(handle)}, context()) as server:
        for compression in ("none", "gzip", "zstd", "snappy"):
            async with client(server.port, compression=compression) as ours:
                assert await ours.call(METHOD, b"m" * 100_000, 10) == b"m" * 100_000
                assert isinstance(refusal(await failure(ours.call(METHOD, bytes(9_000_000), 10))), Permanent)


async def test_no_answer_in_time_is_retryable_and_cancels_the_request() -> None:
    ended = asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serving(handle) as (_, port), client(port) as ours:
        error = await failure(ours.call(METHOD, b"m", 0.2))
        assert error.status is Status.DEADLINE_EXCEEDED
        assert isinstance(refusal(error), Retryable)
        await asyncio.wait_for(ended.wait(), 5)


async def test_cancelling_a_call_cancels_the_request_alone() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        if message == b"quick":
            return b"answer"
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serving(handle) as (_, port), client(port) as ours:
        call = asyncio.ensure_future(ours.call(METHOD, b"slow", 30))
        await asyncio.wait_for(started.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(ended.wait(), 5)
        assert await ours.call(METHOD, b"quick", 10) == b"answer"


async def test_a_server_that_dies_under_a_request_leaves_the_task_whole() -> None:
    started = asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    async with serving(handle) as (server, port), client(port) as ours:
        call = asyncio.ensure_future(failure(ours.call(METHOD, b"m", 30)))
        await asyncio.wait_for(started.wait(), 5)
        await server.stop(0)
        assert isinstance(refusal(await call), Retryable)
        assert isinstance(refusal(await failure(ours.call(METHOD, b"m", 30))), Retryable)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()


@asynccontextmanager
async def our_server(handle: Answer = echo, **settings: Any) -> AsyncIterator[GrpcServer]:
    made = GrpcServerSettings.model_validate({"endpoint": "127.0.0.1:0", **settings})
    async with GrpcServer(made, {METHOD: unary(handle)}, context("otlp", Kind.RECEIVER)) as server:
        yield server


def closing_what_is_chosen(ours: GrpcClient, times: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The first so many connections close between being chosen and being written to."""
    choose, chosen = ours._link, list[Any]()

    async def link() -> Any:
        chosen.append(await choose())
        if len(chosen) <= times:
            chosen[-1].protocol.processor.close("gone")
        return chosen[-1]

    monkeypatch.setattr(ours, "_link", link)
    return chosen


async def test_a_connection_that_closes_after_it_was_chosen_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with our_server() as server, client(server.port) as ours:
        chosen = closing_what_is_chosen(ours, 2, monkeypatch)
        assert await ours.call(METHOD, b"m", 10) == b"m"
        assert len(set(chosen)) == 3


async def test_connections_that_all_close_before_they_are_used_are_retryable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with our_server() as server, client(server.port) as ours:
        closing_what_is_chosen(ours, 100, monkeypatch)
        error = await failure(ours.call(METHOD, b"m", 10))
    assert error.status is Status.UNAVAILABLE
    assert isinstance(refusal(error), Retryable)


async def test_a_connection_that_lingers_while_it_closes_is_not_chosen() -> None:
    async with our_server() as server, client(server.port) as ours:
        await ours.call(METHOD, b"m", 10)
        [link] = ours._all
        link.protocol.connection.close()  # as an unanswered PING does; the link is told when the socket is gone
        assert await ours.call(METHOD, b"m", 10) == b"m"


@pytest.mark.parametrize("end", ["closes", "goaway"])
@pytest.mark.parametrize("waits_for", ["a stream", "the socket"])
async def test_a_request_that_waits_to_be_sent_goes_elsewhere_when_its_connection_ends(end: str, waits_for: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        if message == b"first":
            started.set()
            await go.wait()
        return message

    async with our_server(handle, max_concurrent_streams=1) as server, client(server.port) as ours:
        first = asyncio.ensure_future(ours.call(METHOD, b"first", 20))
        await asyncio.wait_for(started.wait(), 5)
        [link], [connection] = ours._all, server.connections
        if waits_for == "the socket":
            link.protocol.pause_writing()
        second = asyncio.ensure_future(ours.call(METHOD, b"second", 20))
        async with asyncio.timeout(5):
            while len(link._open) < 2:
                await asyncio.sleep(0.005)
        if end == "closes":
            connection.protocol.connection.transport.abort()
            assert isinstance(refusal(await failure(first)), Retryable)
        else:
            connection.say_goaway()
        assert await asyncio.wait_for(second, 5) == b"second"
        go.set()
        if end == "goaway":
            link.protocol.resume_writing()
            assert await first == b"first"


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(GoAwayFrame(0, last_stream_id=0, error_code=0), id="goaway"),
        pytest.param(GoAwayFrame(0, last_stream_id=0, error_code=2), id="goaway-for-an-error"),
        pytest.param(RstStreamFrame(1, error_code=0), id="reset"),
    ],
)
async def test_an_answer_in_one_read_with_the_end_of_its_stream_counts(frame: Frame) -> None:
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        while data := await reader.read(65536):
            for event in h2.receive_data(data):
                if isinstance(event, StreamEnded):
                    requests += 1
                    h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                    h2.send_data(event.stream_id, b"\0\0\0\0\4done")
                    h2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                    writer.write(h2.data_to_send() + frame.serialize())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, client(server.sockets[0].getsockname()[1]) as ours:
        assert await ours.call(METHOD, b"m", 10) == b"done"
    assert requests == 1


async def test_a_call_cancelled_as_its_connection_ends_is_cancelled() -> None:
    started = asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    async with our_server(handle) as server, client(server.port) as ours:
        call = asyncio.ensure_future(ours.call(METHOD, b"m", 30))
        await asyncio.wait_for(started.wait(), 5)
        call.cancel()
        next(iter(ours._all)).protocol.processor.close("gone")
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_an_address_that_hangs_withholds_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(grpc_client, "CONNECT_SECONDS", 0.2)
    async with (
        our_server() as server,
        await asyncio.start_server(hang, "127.0.0.2", server.port),
        client(f"localhost:{server.port}") as ours,
    ):
        monkeypatch.setattr(ours, "_resolve", lambda: _addresses(server.port))
        assert await ours.call(METHOD, b"m", 10) == b"m"
        async with asyncio.timeout(5):
            while len(ours._all) > 1:
                await asyncio.sleep(0.005)


async def test_a_client_that_is_closing_starts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)

    async with our_server() as server, client(server.port) as ours:
        await ours.call(METHOD, b"m", 10)
        monkeypatch.setattr(ours, "_resolve", resolve)
        ours._look_again = 0.0
        await ours.call(METHOD, b"m", 10)
        connecting = ours._connecting
        leaving = asyncio.ensure_future(ours.__aexit__(None, None, None))
        await asyncio.sleep(0)
        assert "closed" in (await failure(ours.call(METHOD, b"m", 10))).message
        await leaving
        assert ours._connecting is connecting


async def test_a_server_that_comes_back_is_found_again() -> None:
    async with serving() as (_, port):
        pass
    async with client(port) as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
        assert error.status is Status.UNAVAILABLE
        assert "cannot connect" in error.message
        async with serving(port=port):
            assert await ours.call(METHOD, b"m", 10) == b"m"
        assert (await failure(ours.call(METHOD, b"m", 10))).status is Status.UNAVAILABLE
        async with serving(port=port):
            assert await ours.call(METHOD, b"m", 10) == b"m"


async def test_wait_for_ready_waits_for_the_server() -> None:
    async with serving() as (_, port):
        pass
    async with client(port, wait_for_ready=True) as ours:
        call = asyncio.ensure_future(ours.call(METHOD, b"m", 20))
        await asyncio.sleep(0.1)
        async with serving(port=port):
            assert await call == b"m"


async def test_requests_under_way_finish_when_the_server_says_goaway() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Any) -> bytes:
        started.set()
        await go.wait()
        return b"done"

    async with serving(handle) as (server, port), client(port) as ours:
        call = asyncio.ensure_future(ours.call(METHOD, b"m", 20))
        await asyncio.wait_for(started.wait(), 5)
        stopping = asyncio.ensure_future(server.stop(10))
        async with asyncio.timeout(5):
            while ours._links:
                await asyncio.sleep(0.005)
        go.set()
        assert await call == b"done"
        await stopping


async def test_calls_beyond_the_servers_stream_limit_wait_for_their_turn() -> None:
    open_now = most = 0

    async def handle(message: bytes, call: Any) -> bytes:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return message

    async with serving(handle, options={"grpc.max_concurrent_streams": 5}) as (_, port), client(port) as ours:
        await ours.call(METHOD, b"first", 10)
        answers = await asyncio.gather(*(ours.call(METHOD, bytes([n]) * 50_000, 20) for n in range(100)))
    assert answers == [bytes([n]) * 50_000 for n in range(100)]
    assert most <= 5


async def test_a_name_that_does_not_resolve_is_retryable() -> None:
    async with client("no-such-host.invalid:4317") as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
    assert "does not resolve" in error.message
    assert isinstance(refusal(error), Retryable)


@pytest.mark.parametrize("speech", [b"HTTP/1.1 200 OK\r\n\r\n", b"", b"SSH-2.0-x\r\n"], ids=["http1", "closes", "ssh"])
async def test_a_listener_that_is_no_grpc_server_is_retryable_and_named(speech: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(speech)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, client(server.sockets[0].getsockname()[1]) as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
    assert "HTTP/2" in error.message
    assert isinstance(refusal(error), Retryable)


def test_a_proxys_http_error_is_retryable() -> None:
    assert isinstance(refusal(NotGrpc(Status.UNKNOWN, "HTTP status 500")), Retryable)
    assert isinstance(refusal(NotGrpc(Status.UNIMPLEMENTED, "HTTP status 404")), Retryable)


class Authority:
    def __init__(self, directory: Path, name: str = "localhost") -> None:
        self.ca = trustme.CA()
        self.ca_file = str(directory / "ca.pem")
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.cert_file, self.key_file = str(directory / "client.pem"), str(directory / "client.key")
        client_cert = self.ca.issue_cert("client")
        client_cert.private_key_pem.write_to_path(self.key_file)
        client_cert.cert_chain_pems[0].write_to_path(self.cert_file)
        leaf = self.ca.issue_cert(name, "127.0.0.1")
        self.server_pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())

    def credentials(self, mutual: bool = False) -> Any:
        return grpc.ssl_server_credentials([self.server_pair], self.ca.cert_pem.bytes() if mutual else None, mutual)


async def test_tls_and_mtls_reach_a_real_server(tmp_path: Path) -> None:
    files = Authority(tmp_path)
    tls = {"ca_file": files.ca_file}
    async with serving(tls=files.credentials()) as (_, port), client(f"https://localhost:{port}", tls=tls) as ours:
        assert await ours.call(METHOD, b"m", 10) == b"m"
    async with serving(tls=files.credentials(mutual=True)) as (_, port):
        async with client(port, tls={**tls, "cert_file": files.cert_file, "key_file": files.key_file}) as ours:
            assert await ours.call(METHOD, b"m", 10) == b"m"
        async with client(port, tls=tls) as ours:
            assert isinstance(refusal(await failure(ours.call(METHOD, b"m", 10))), Retryable)


async def test_a_certificate_that_is_not_trusted_is_explained(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files, other = Authority(tmp_path), Authority(tmp_path / "other")
    async with serving(tls=files.credentials()) as (_, port), client(port, tls={"ca_file": other.ca_file}) as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
    assert error.status is Status.UNAVAILABLE
    assert "was not accepted" in error.message


async def test_a_tls_server_without_http2_is_named(tmp_path: Path) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    files = Authority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.ca.issue_cert("localhost", "127.0.0.1").configure_cert(tls)
    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=tls)
    async with server, client(server.sockets[0].getsockname()[1], tls={"ca_file": files.ca_file}) as ours:
        verdict = refusal(await failure(ours.call(METHOD, b"m", 10)))
    assert isinstance(verdict, Retryable)
    assert "ALPN h2" in str(verdict)


async def test_round_robin_uses_every_address_and_pick_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # "localhost" with two loopback addresses: two servers at the same port of each.
    counts = [0, 0]

    def counting(number: int) -> Answer:
        async def handle(message: bytes, call: Any) -> bytes:
            counts[number] += 1
            return b""

        return handle

    async def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", 0)) for n in (1, 2, 3)]

    async with serving(counting(0)) as (_, port):
        second = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(counting(1))
        second.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Export": handler}),))
        second.add_insecure_port(f"127.0.0.2:{port}")
        await second.start()
        for policy, expected in (("round_robin", [10, 10]), ("pick_first", [20, 0])):
            counts[:] = [0, 0]
            async with client(f"dns:///localhost:{port}", balancer_name=policy) as ours:
                monkeypatch.setattr(ours, "_resolve", lambda: _addresses(port))
                for _ in range(20):
                    await ours.call(METHOD, b"m", 10)
            assert counts == expected
        await second.stop(0)


async def _addresses(port: int) -> list[tuple[str, int]]:
    return [("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port)]  # nobody listens at the third


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("secure_proxy", [False, True], ids=["http-proxy", "https-proxy"])
async def test_the_environments_proxy_is_used(secure: bool, secure_proxy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Authority(tmp_path)
    heads: list[str] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        there, back = await asyncio.open_connection("127.0.0.1", int(head.split()[1].rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
            to.close()

        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    context = None
    if secure_proxy:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files.ca.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        monkeypatch.setenv("SSL_CERT_FILE", files.ca_file)
    proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0, ssl=context)
    address = f"http{'s' if secure_proxy else ''}://user:pass@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", address)
    async with proxy, serving(tls=files.credentials() if secure else None) as (_, port):
        tls = {"ca_file": files.ca_file, "server_name_override": "localhost"} if secure else {"insecure": True}
        async with client(f"collector.example:{port}", tls=tls) as ours:
            for size in (10, 500_000, 11):
                assert await ours.call(METHOD, b"m" * size, 10) == b"m" * size
                ours._look_again = 0.0  # a tunnel that stands is not dug again
            assert ours._connecting is not None
            await ours._connecting
        monkeypatch.setenv("NO_PROXY", ".example")
        assert GrpcClientSettings(endpoint="collector.example:1").proxy is None
    assert [head.split("\r\n")[0] for head in heads] == [f"CONNECT collector.example:{port} HTTP/1.1"]
    assert "Proxy-Authorization: Basic dXNlcjpwYXNz" in heads[0]


async def test_a_proxy_that_refuses_is_retryable_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    async with proxy, client("collector.example:4317") as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
    assert "refused the tunnel with status 407" in error.message
    assert isinstance(refusal(error), Retryable)


async def test_garbage_behind_a_proxys_answer_is_retryable_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n" + b"x" * 100)
        await reader.read()
        writer.close()

    proxy = await asyncio.start_server(answer, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    async with proxy, client("collector.example:4317", write_buffer_size=1000) as ours:
        error = await failure(ours.call(METHOD, b"m", 10))
    assert "HTTP/2" in error.message
    assert isinstance(refusal(error), Retryable)


async def test_keepalive_finds_a_server_that_is_gone() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS, and then nothing more
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    times = {"time": "50ms", "timeout": "100ms"}
    async with server, client(server.sockets[0].getsockname()[1], keepalive=times) as ours:
        error = await failure(ours.call(METHOD, b"m", 20))
    assert error.status is Status.UNAVAILABLE


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("host:4317", ("", "host", 4317)),
        ("http://host:4317", ("http", "host", 4317)),
        ("https://host:4317/", ("https", "host", 4317)),
        ("dns:///host:4317", ("", "host", 4317)),
        ("dns:host:4317", ("", "host", 4317)),
        ("passthrough:///host:4317", ("", "host", 4317)),
        ("[::1]:4317", ("", "::1", 4317)),
        ("https://[fe80::1%eth0]:4317", ("https", "fe80::1%eth0", 4317)),
        ("host", ("", "host", 443)),
        ("https://dns:///host:1", ("https", "host", 1)),
    ],
)
def test_an_endpoint_may_be_written_in_many_ways(endpoint: str, expected: tuple[str, str, int]) -> None:
    assert parse_endpoint(endpoint) == expected


@pytest.mark.parametrize(
    "endpoint", ["", "host:99999", "::1:4317", "unix:///tmp/x", "xds:///a", "dns://8.8.8.8/host:1", "host:1/path", "a b:1"]
)
def test_an_endpoint_that_cannot_be_used_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        GrpcClientSettings(endpoint=endpoint)


@pytest.mark.parametrize(
    ("settings", "secure"),
    [
        pytest.param({"endpoint": "h:1"}, True, id="default"),
        pytest.param({"endpoint": "h:1", "tls": {"insecure": True}}, False, id="insecure"),
        pytest.param({"endpoint": "https://h:1", "tls": {"insecure": True}}, True, id="https-outvotes-insecure"),
        pytest.param({"endpoint": "http://h:1"}, False, id="http"),
    ],
)
def test_whether_tls_is_spoken(settings: dict[str, Any], secure: bool) -> None:
    assert GrpcClientSettings.model_validate(settings).secure is secure


def test_the_need_is_the_server_or_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GrpcClientSettings.model_validate({"endpoint": "collector:4317", "tls": {"insecure": True}})
    assert [(need.host, need.port) for need in settings.needs() if isinstance(need, Connect)] == [("collector", 4317)]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert [(need.host, need.port) for need in settings.needs() if isinstance(need, Connect)] == [("proxy", 3128)]
