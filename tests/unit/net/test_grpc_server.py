"""Our gRPC server against the real grpcio client, and against clients that mean no good."""

import asyncio
import gc
import gzip
import logging
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from backports import zstd
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage
from h2.config import H2Configuration
from h2.events import ConnectionTerminated, PingAckReceived, ResponseReceived, StreamReset, TrailersReceived
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from pydantic import ValidationError
from support import FakeHost, context

from lockgate.net.grpc import _Http2
from lockgate.net.grpc_server import FAREWELL, Call, GrpcServer, Method, streaming, unary
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.pipeline.contract import Extension, Kind
from lockgate.pipeline.errors import Permanent, Retryable

METHOD = "/test.Service/Export"
HEADERS = [(":method", "POST"), (":path", METHOD), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]
Answer = Callable[[bytes, Call], Awaitable[bytes]]


async def echo(message: bytes, call: Call) -> bytes:
    return message


@asynccontextmanager
async def serving(
    handle: Answer | None = None, *, host: Any = None, method: Method | None = None, **settings: Any
) -> AsyncIterator[GrpcServer]:
    made = GrpcServerSettings.model_validate({"endpoint": "127.0.0.1:0", **settings})
    component = context("otlp", Kind.RECEIVER, host=host)
    async with GrpcServer(made, {METHOD: method or unary(handle or echo)}, component) as server:
        yield server


@asynccontextmanager
async def client(server: GrpcServer, **options: Any) -> AsyncIterator[Any]:
    """grpcio's call: `await call(message, ...)`."""
    pairs = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), *options.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=pairs) as channel:
        yield channel.unary_unary(METHOD)


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 1000, 65_535, 65_536, 1_000_000, 12_000_000])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "gzip"])
async def test_a_message_of_any_size_arrives_and_is_answered(size: int, compression: grpc.Compression) -> None:
    message = random.Random(size).randbytes(size // 4) * 4 + b"x" * (size % 4)
    async with serving() as server, client(server) as call:
        assert await call(message, compression=compression, timeout=20) == message
        await until(lambda: server.budget.used == 0)


async def test_the_handler_is_told_the_peer_and_the_metadata() -> None:
    seen: list[tuple[str, str, str]] = []

    async def handle(message: bytes, call: Call) -> bytes:
        seen.append((call.method, call.peer, call.headers["x-tenant"]))
        return b""

    async with serving(handle) as server, client(server) as call:
        await call(b"m", metadata=[("x-tenant", "a"), ("x-tenant", "b")], timeout=10)
    assert seen == [(METHOD, "127.0.0.1", "a,b")]


@pytest.mark.parametrize(
    ("error", "code", "text", "after"),
    [
        pytest.param(Retryable("queue is full"), grpc.StatusCode.UNAVAILABLE, "queue is full", None, id="retryable"),
        pytest.param(Retryable("later", 2.5), grpc.StatusCode.UNAVAILABLE, "later", 2.5, id="retryable-with-a-delay"),
        pytest.param(Permanent("ungültig: 100%"), grpc.StatusCode.INVALID_ARGUMENT, "ungültig: 100%", None, id="permanent"),
    ],
)
async def test_a_refusal_becomes_the_status_that_otlp_gives_it(error: Exception, code: Any, text: str, after: float | None) -> None:
    async def handle(message: bytes, call: Call) -> bytes:
        raise error

    async with serving(handle) as server, client(server) as call:
        failed = await failure(call(b"m", timeout=10))
    assert (failed.code(), failed.details()) == (code, text)
    details = dict(failed.trailing_metadata() or ()).get("grpc-status-details-bin")
    if after is None:
        assert details is None
    else:
        assert isinstance(details, bytes)
        info = RetryInfo()
        assert StatusMessage.FromString(details).details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() == after * 1e9


async def test_a_bug_is_logged_as_one_and_makes_no_client_drop_data(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(message: bytes, call: Call) -> bytes:
        raise KeyError("oops")

    async with serving(handle) as server, client(server) as call:
        failed = await failure(call(b"m", timeout=10))
    assert failed.code() == grpc.StatusCode.UNAVAILABLE
    assert "oops" not in (failed.details() or "")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "a bug" in caplog.text


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        failed = await failure(channel.unary_unary("/other.Service/Export")(b"m", timeout=10))
    assert failed.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_an_oversized_message_is_refused_before_it_is_read() -> None:
    async with serving(max_recv_msg_size_mib=1) as server, client(server) as call:
        failed = await failure(call(bytes(30_000_000), timeout=10))
        assert await call(b"still works", timeout=10) == b"still works"
    assert failed.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (30000000 vs. 1048576)" in (failed.details() or "")


async def test_a_bomb_is_cut_at_its_bound() -> None:
    async with serving(max_recv_msg_size_mib=1) as server, client(server) as call:
        failed = await failure(call(bytes(100_000_000), compression=grpc.Compression.Gzip, timeout=20))
        assert failed.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "after decompression larger than max" in (failed.details() or "")
        await until(lambda: server.budget.used == 0)


async def test_what_grows_much_but_fits_is_taken() -> None:
    async with serving() as server, client(server) as call:
        assert await call(bytes(10_000_000), compression=grpc.Compression.Gzip, timeout=20) == bytes(10_000_000)
        await until(lambda: server.budget.used == 0)


async def test_a_deadline_ends_the_handler() -> None:
    ended = asyncio.Event()

    async def handle(message: bytes, call: Call) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serving(handle) as server, client(server) as call:
        failed = await failure(call(b"m", timeout=0.2))
        assert failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(ended.wait(), 5)
        await until(lambda: server.budget.used == 0 and server.requests == 0)


async def test_a_cancelled_call_ends_the_handler() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Call) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serving(handle) as server, client(server) as call:
        request = call(b"m", timeout=20)
        waiting = asyncio.ensure_future(request)
        await asyncio.wait_for(started.wait(), 5)
        request.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        await until(lambda: server.budget.used == 0 and server.requests == 0)
        await asyncio.gather(waiting, return_exceptions=True)


class Authenticator(Extension[Any]):
    async def authenticate(self, headers: Mapping[str, str]) -> None:
        if headers.get("authorization") != "Bearer right":
            raise PermissionError("the bearer token is not known here")


async def test_only_authenticated_requests_are_read() -> None:
    seen: list[bytes] = []

    async def handle(message: bytes, call: Call) -> bytes:
        seen.append(message)
        return b""

    host = FakeHost({"bearertokenauth": Authenticator(None, context("bearertokenauth", Kind.EXTENSION))})
    async with serving(handle, host=host, auth={"authenticator": "bearertokenauth"}) as server, client(server) as call:
        for metadata in ([], [("authorization", "Bearer wrong")]):
            failed = await failure(call(b"bad", metadata=metadata, timeout=10))
            assert failed.code() == grpc.StatusCode.UNAUTHENTICATED
        await call(b"good", metadata=[("authorization", "Bearer right")], timeout=10)
    assert seen == [b"good"]


async def test_fifty_streams_share_the_budget_and_all_are_answered() -> None:
    most = 0

    async def handle(message: bytes, call: Call) -> bytes:
        nonlocal most
        most = max(most, server.budget.used)
        await asyncio.sleep(0)
        return len(message).to_bytes(4, "big")

    body = random.Random(1).randbytes(1_000_000)
    async with (
        serving(handle, max_bytes_in_flight=4 << 20, max_recv_msg_size_mib=2) as server,
        client(server) as call,
    ):
        answers = await asyncio.gather(*(call(body, timeout=30) for _ in range(50)))
        assert server.budget.used == 0
    assert answers == [(1_000_000).to_bytes(4, "big")] * 50
    assert 1_000_000 <= most <= 4 << 20


async def test_a_connection_beyond_the_limit_is_closed() -> None:
    async with serving(max_connections=1) as server, client(server) as call:
        assert await call(b"first", timeout=10) == b"first"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert await call(b"first again", timeout=10) == b"first again"


async def test_leaving_lets_requests_finish_and_sends_clients_elsewhere() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Call) -> bytes:
        started.set()
        await go.wait()
        return b"done"

    async with client_of(handle) as (server, call, leave):
        running = asyncio.ensure_future(call(b"m", timeout=20))
        await asyncio.wait_for(started.wait(), 5)
        leaving = asyncio.ensure_future(leave())
        await until(lambda: server.stopping)
        assert (await failure(call(b"late", timeout=5))).code() == grpc.StatusCode.UNAVAILABLE
        assert not leaving.done()
        go.set()
        assert await running == b"done"
        await asyncio.wait_for(leaving, 5)


async def test_a_request_that_was_on_its_way_when_the_server_stops_is_answered() -> None:
    async def handle(message: bytes, call: Call) -> bytes:
        return b"done"

    async with serving(handle) as server, raw(server) as peer:
        while not server.connections:
            await asyncio.sleep(0)
        stopping = asyncio.ensure_future(server.__aexit__())
        while not stopping.done() and not server.stopping:
            await asyncio.sleep(0)
        stream = peer.request()
        peer.data(stream, b"\0\0\0\0\1x", end=True)
        assert (await peer.headers(stream))["grpc-status"] == "0"
        while await peer.read():
            pass
        await stopping


async def test_a_request_reset_in_one_read_while_leaving_ends_no_other() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(message: bytes, call: Call) -> bytes:
        if message == b"first":
            started.set()
            await go.wait()
        return b"done"

    async with serving(handle) as server, raw(server) as peer:
        first, second = peer.request(), peer.request()
        peer.data(first, b"\0\0\0\0\5first", end=True)
        await asyncio.wait_for(started.wait(), 5)
        peer.data(second, b"\0\0\0\0\1x", end=True)
        assert (await peer.headers(second))["grpc-status"] == "0"
        [connection] = server.connections
        connection.say_goaway()
        connection.answered(FAREWELL)
        late = HeadersFrame(5, data=peer.h2.encoder.encode(HEADERS), flags=["END_HEADERS"])
        peer.writer.write(late.serialize() + RstStreamFrame(5, error_code=8).serialize())
        pinged = PingFrame(0, opaque_data=b"12345678")
        peer.write(pinged)
        while not any(isinstance(event, PingAckReceived) for event in peer.events):
            assert await peer.read()
        go.set()
        assert (await peer.headers(first))["grpc-status"] == "0"
        # What was answered is not to be sent elsewhere, though it is not under way any more.
        said = [event.last_stream_id for event in peer.events if isinstance(event, ConnectionTerminated)]
        assert said == [2**31 - 1, second]


async def test_leaving_that_is_cancelled_at_once_closes_all_the_same() -> None:
    server = GrpcServer(GrpcServerSettings(endpoint="127.0.0.1:0"), {METHOD: unary(echo)}, context("otlp", Kind.RECEIVER))
    await server.__aenter__()
    async with raw(server) as peer:
        peer.request()
        await until(lambda: server.requests == 1)
        leaving = asyncio.ensure_future(server.__aexit__())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not server.connections
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


@asynccontextmanager
async def client_of(handle: Answer) -> AsyncIterator[tuple[GrpcServer, Any, Callable[[], Awaitable[None]]]]:
    server = GrpcServer(GrpcServerSettings(endpoint="127.0.0.1:0"), {METHOD: unary(handle)}, context("otlp", Kind.RECEIVER))
    await server.__aenter__()
    async with client(server) as call:
        yield server, call, server.__aexit__
    await server.__aexit__()


async def test_a_connection_that_reached_its_age_is_replaced_without_a_lost_request() -> None:
    peers: set[int] = set()

    async def handle(message: bytes, call: Call) -> bytes:
        peers.add(call._stream._transport.get_extra_info("peername")[1])
        await asyncio.sleep(0.01)
        return message

    times = {"max_connection_age": "150ms", "max_connection_age_grace": "5s"}
    async with serving(handle, keepalive={"server_parameters": times}) as server, client(server) as call:
        end = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < end:
            assert await call(b"m", timeout=5) == b"m"
    assert len(peers) >= 3


async def test_an_idle_connection_is_closed() -> None:
    times = {"max_connection_idle": "100ms"}
    async with serving(keepalive={"server_parameters": times}) as server, client(server) as call:
        await call(b"m", timeout=5)
        assert server.connections
        await until(lambda: not server.connections)


async def test_a_client_that_pings_too_often_is_disconnected() -> None:
    async with serving(keepalive={"enforcement_policy": {"min_time": "1m"}}) as server, raw(server) as peer:
        for _ in range(5):
            peer.write(PingFrame(0, opaque_data=b"12345678"))
        assert await peer.goaway() == 11  # ENHANCE_YOUR_CALM


# Methods of many messages.


@asynccontextmanager
async def stream(server: GrpcServer, **options: Any) -> AsyncIterator[Any]:
    """grpcio's call, to write to."""
    pairs = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=pairs) as channel, asyncio.timeout(30):
        yield channel.stream_stream(METHOD)(**options)


class Taker:
    """Keeps the messages; a message `wait` is held until it is let go."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    def begin(self, call: Call) -> Callable[[bytes], Awaitable[None]]:
        return self.take

    async def take(self, message: bytes) -> None:
        if message == b"wait":
            self.waiting.set()
            await self.go.wait()
        self.messages.append(message)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "gzip"])
async def test_a_streams_messages_are_handled_in_order_and_its_end_is_answered(compression: grpc.Compression) -> None:
    taker = Taker()
    sent = [b"", b"a", bytes(100_000), b"b" * 1_000_000]
    async with serving(method=streaming(taker.begin)) as server, stream(server, compression=compression) as call:
        for message in sent:
            await call.write(message)
        await call.done_writing()
        assert [answer async for answer in call] == [] and await call.code() is grpc.StatusCode.OK
        await until(lambda: server.budget.used == 0 and server.requests == 0)
    assert taker.messages == sent and not server.streams


async def test_the_budget_holds_one_message_of_a_stream_at_a_time() -> None:
    taker = Taker()
    async with serving(method=streaming(taker.begin)) as server, stream(server) as call:
        for message in (b"wait", b"x" * 1000, b"y" * 1000):
            await call.write(message)
        await taker.waiting.wait()
        assert server.budget.used == 4 and taker.messages == []
        taker.go.set()
        await until(lambda: len(taker.messages) == 3 and server.budget.used == 0)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_a_message_of_a_stream_that_is_too_large_ends_it_after_those_before() -> None:
    taker = Taker()
    async with serving(method=streaming(taker.begin), max_recv_msg_size_mib=1) as server, stream(server) as call:
        await call.write(b"small")
        await call.write(bytes(2_000_000))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max (2000000 vs. 1048576)" in await call.details()
    assert taker.messages == [b"small"]


async def test_a_streams_first_message_must_come_in_time_and_later_ones_need_not() -> None:
    taker = Taker()
    async with serving(method=streaming(taker.begin), read_timeout="200ms") as server:
        async with stream(server) as silent:
            assert await silent.code() is grpc.StatusCode.UNAVAILABLE
            assert await silent.details() == "no message came within 0.2 s"
        async with raw(server) as peer:  # which sends the first message with the headers, however slow this machine is
            number = peer.request()
            peer.data(number, b"\0\0\0\0\5first")
            await asyncio.sleep(0.5)
            peer.data(number, b"\0\0\0\0\6second", end=True)
            assert (await peer.headers(number))["grpc-status"] == "0"
    assert taker.messages == [b"first", b"second"]


async def test_what_a_stream_had_sent_when_its_client_went_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    taker = Taker()
    async with asyncio.timeout(20), serving(method=streaming(taker.begin)) as server:
        async with stream(server) as call:
            for message in (b"wait", b"x", b"y"):
                await call.write(message)
            await taker.waiting.wait()
        await until(lambda: all(call._stream.was_cut for call in server.streams))
        assert server.requests == 1 and server.budget.used == 4
        taker.go.set()
        await until(lambda: server.requests == 0)
        assert server.budget.used == 0 and not server.streams
    assert taker.messages == [b"wait", b"x", b"y"] and not caplog.records


async def test_leaving_waits_for_what_a_stream_hands_on_though_its_connection_is_gone() -> None:
    taker = Taker()
    async with asyncio.timeout(20), serving(method=streaming(taker.begin)) as server, raw(server) as peer:
        peer.data(peer.request(), b"\0\0\0\0\4wait\0\0\0\0\1x\0\0\0")
        await taker.waiting.wait()
        peer.writer.close()
        await until(lambda: not server.connections)
        leaving = asyncio.create_task(server.__aexit__())
        await asyncio.sleep(0.01)
        assert not leaving.done()
        taker.go.set()
        await leaving
    assert taker.messages == [b"wait", b"x"]  # and of the third one only a part had come


class Raw:
    """A client of frames, for what no honest client sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        # Ours, since h2's own takes nothing more after a GOAWAY.
        self.h2 = _Http2(H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False))
        self.h2.initiate_connection()
        self.flush()
        self.events: list[Any] = []

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def write(self, frame: Any) -> None:
        self.writer.write(frame.serialize())

    def request(self, *more: tuple[str, str], path: str = METHOD, method: str = "POST", kind: str = "application/grpc") -> int:
        stream: int = self.h2.get_next_available_stream_id()
        headers = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", kind),
        ]
        self.h2.send_headers(stream, headers + list(more))
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    async def read(self) -> bool:
        data = await asyncio.wait_for(self.reader.read(65536), 10)
        if data:
            self.events += self.h2.receive_data(data)
            self.flush()
        return bool(data)

    async def goaway(self) -> int:
        while await self.read():
            for event in self.events:
                if isinstance(event, ConnectionTerminated):
                    return int(event.error_code or 0)
        raise AssertionError("closed without a GOAWAY")

    async def headers(self, stream: int) -> dict[str, str]:
        """All headers and trailers of the response to this request, once it has ended."""
        while True:
            mine = [event for event in self.events if getattr(event, "stream_id", None) == stream]
            found: dict[str, str] = {
                str(k): str(v) for event in mine if isinstance(event, ResponseReceived | TrailersReceived) for k, v in event.headers or ()
            }
            if any(getattr(event, "stream_ended", None) for event in mine) or any(isinstance(event, StreamReset) for event in mine):
                return found
            assert await self.read(), "closed without an answer"


@asynccontextmanager
async def raw(server: GrpcServer) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    peer = Raw(reader, writer)
    try:
        yield peer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("request_is", "data", "expected"),
    [
        pytest.param({"method": "GET"}, b"", {":status": "405"}, id="get"),
        pytest.param({"kind": "text/plain"}, b"", {":status": "415"}, id="content-type"),
        pytest.param({"path": "/x"}, b"", {"grpc-status": "12"}, id="method"),
        pytest.param({"more": ("grpc-encoding", "br")}, b"\1\0\0\0\1x", {"grpc-status": "12"}, id="unknown-encoding"),
        pytest.param({"more": ("grpc-timeout", "soon")}, b"\0\0\0\0\0", {"grpc-status": "3"}, id="timeout"),
        pytest.param({}, b"\1\0\0\0\1x", {"grpc-status": "13"}, id="compressed-without-encoding"),
        pytest.param({}, b"\7\0\0\0\1x", {"grpc-status": "13"}, id="flag"),
        pytest.param({}, b"\0\0\0\0\5x", {"grpc-status": "13"}, id="short-message"),
        pytest.param({}, b"\0\0", {"grpc-status": "13"}, id="short-prefix"),
        pytest.param({}, b"", {"grpc-status": "13"}, id="no-message"),
        pytest.param({"more": ("grpc-encoding", "gzip")}, b"\1\0\0\0\5xxxxx", {"grpc-status": "3"}, id="not-gzip"),
        pytest.param({"more": ("grpc-encoding", "gzip")}, b"\1\0\0\0\0", {"grpc-status": "3"}, id="empty-gzip"),
    ],
)
async def test_a_malformed_request_gets_its_status(request_is: dict[str, Any], data: bytes, expected: dict[str, str]) -> None:
    more = request_is.pop("more", None)
    async with serving() as server, raw(server) as peer:
        stream = peer.request(*([more] if more else []), **request_is)
        peer.data(stream, data, end=True)
        headers = await peer.headers(stream)
        assert expected.items() <= headers.items(), headers
        await until(lambda: server.budget.used == 0 and server.requests == 0)


@pytest.mark.parametrize(("name", "body"), [("zstd", zstd.compress(b"hello" * 100)), ("gzip", gzip.compress(b"hello" * 100))])
async def test_the_answer_is_compressed_as_the_request_was(name: str, body: bytes) -> None:
    async def handle(message: bytes, call: Call) -> bytes:
        return message * 10

    async with serving(handle) as server, raw(server) as peer:
        stream = peer.request(("grpc-encoding", name))
        peer.data(stream, b"\1" + struct.pack(">I", len(body)) + body, end=True)
        headers = await peer.headers(stream)
        assert (headers["grpc-encoding"], headers["grpc-status"]) == (name, "0")
        data = b"".join(event.data for event in peer.events if hasattr(event, "data"))
        assert data[0] == 1
        inflate = zstd.decompress if name == "zstd" else gzip.decompress
        assert inflate(data[5:]) == b"hello" * 1000


async def test_a_message_that_never_comes_gives_its_budget_back() -> None:
    async with serving(read_timeout="100ms") as server, raw(server) as peer:
        stream = peer.request()
        peer.data(stream, b"\0" + struct.pack(">I", 1_000_000) + b"x")
        assert (await peer.headers(stream))["grpc-status"] == "14"
        await until(lambda: server.budget.used == 0)


@pytest.mark.parametrize("method", [unary(echo), streaming(lambda call: Taker().take)], ids=["unary", "streaming"])
async def test_a_client_that_resets_as_fast_as_it_asks_is_disconnected(method: Method) -> None:
    async with serving(method=method) as server, raw(server) as peer:
        for number in range(300):
            stream = 1 + 2 * number
            frame = HeadersFrame(stream, flags=["END_HEADERS"])
            frame.data = peer.h2.encoder.encode(HEADERS)
            peer.write(frame)
            peer.write(RstStreamFrame(stream, error_code=8))
        # The GOAWAY may be lost: closing a socket with unread bytes resets it.
        await until(lambda: not server.connections and server.requests == 0)
        assert server.refused["protocol"].value == 1


async def test_a_client_that_reads_nothing_is_not_read_from_either() -> None:
    async with serving() as server, raw(server) as peer:
        ping = PingFrame(0, opaque_data=b"12345678").serialize() * 1000
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                while True:  # ends when our own write buffer does not empty any more, since the server reads nothing more
                    peer.writer.write(ping)
                    await asyncio.wait_for(peer.writer.drain(), 0.5)
        [connection] = server.connections
        assert connection.protocol.connection.transport.get_write_buffer_size() < 1 << 20


async def test_a_message_may_come_in_frames_of_one_byte_and_empty_ones() -> None:
    async with serving() as server, raw(server) as peer:
        stream = peer.request()
        for byte in b"\0" + struct.pack(">I", 20_000) + b"x" * 20_000:
            peer.h2.send_data(stream, bytes([byte]))
            peer.h2.send_data(stream, b"")
        peer.flush()
        assert (await peer.headers(stream))["grpc-status"] == "0"


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_garbage_on_the_port_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(7)
    async with serving() as server, client(server) as call:
        for number in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" if number % 2 else source.randbytes(500))
            assert await asyncio.wait_for(reader.read(), 5) is not None
            writer.close()
        assert await call(b"still here", timeout=10) == b"still here"
        assert server.context.metrics.value("lockgate_grpc_refused", reason="protocol") == 60
    assert len(caplog.records) == 1


@pytest.mark.parametrize("piece", [1, 7, 10_000])
async def test_a_frame_that_is_too_large_ends_the_connection_at_its_head(piece: int) -> None:
    """Not when all of it is there: that would be 16 MiB of memory for each connection."""
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SettingsFrame(0).serialize()
    for length, is_accepted in ((65_536, True), (65_537, False)):
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            sent = preface + settings + PingFrame(0, b"12345678").serialize() + length.to_bytes(3, "big") + b"\xee" + bytes(5)
            for start in range(0, len(sent), piece):
                writer.write(sent[start : start + piece])
                await asyncio.sleep(0)
            if is_accepted:
                writer.write(bytes(length) + PingFrame(0, b"abcdefgh").serialize())
                await asyncio.wait_for(reader.readuntil(b"abcdefgh"), 5)
            else:
                goaway = GoAwayFrame(0, error_code=6).serialize()[9 + 4 : 9 + 8]  # FRAME_SIZE_ERROR
                assert goaway in await asyncio.wait_for(reader.read(), 5)
            writer.close()


@pytest.mark.parametrize("seed", range(40))
async def test_no_sequence_of_frames_ends_the_server(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(seed)

    def frame(peer: Raw) -> bytes:
        stream = source.choice([0, 1, 3, 5, 2, source.randrange(2**31)])
        made: Any
        match source.randrange(10):
            case 0:
                made = DataFrame(
                    stream or 1, data=source.randbytes(source.choice([0, 1, 5, 5000])), flags=source.choice([[], ["END_STREAM"]])
                )
            case 1:
                made = HeadersFrame(stream or 1, flags=source.choice([["END_HEADERS"], [], ["END_HEADERS", "END_STREAM"]]))
                headers = [
                    (":method", "POST"),
                    (":path", source.choice([METHOD, "/", ""])),
                    (":authority", "x"),
                    ("content-type", "application/grpc"),
                ]
                made.data = source.choice([peer.h2.encoder.encode(headers), source.randbytes(30)])
            case 2:
                made = RstStreamFrame(stream or 1, error_code=source.randrange(20))
            case 3:
                made = PingFrame(0, opaque_data=source.randbytes(8))
            case 4:
                made = WindowUpdateFrame(stream, window_increment=source.choice([1, 2**31 - 1]))
            case 5:
                made = SettingsFrame(0, settings={source.randrange(8): source.choice([0, 1, 100, 65_535, 2**31, 2**32 - 1])})
            case 6:
                made = GoAwayFrame(0, last_stream_id=source.randrange(9), error_code=source.randrange(3))
            case 7:
                return (
                    struct.pack(">I", 5)[1:] + bytes([source.randrange(256), source.randrange(256)]) + struct.pack(">I", stream) + b"12345"
                )
            case _:
                made = DataFrame(1, data=source.choice([b"\0\0\0\0\1x", b"\0\0\1\0\0" + b"y" * 500, b"\1\0\0\0\0"]))
        data: bytes = made.serialize()
        if source.random() < 0.1:
            spoiled = bytearray(data)
            spoiled[source.randrange(len(spoiled))] = source.randrange(256)
            data = bytes(spoiled)
        return data

    async with serving() as server, client(server) as call:
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            peer = Raw(reader, writer)
            if source.random() < 0.8:
                peer.request()
            for _ in range(source.randrange(1, 60)):
                writer.write(frame(peer))
            writer.write_eof() if source.random() < 0.3 else None
            try:
                async with asyncio.timeout(0.05):
                    while await reader.read(65536):
                        pass
            except (TimeoutError, ConnectionError):
                pass
            writer.transport.abort()
        assert await call(b"alive", timeout=10) == b"alive"
        await until(lambda: len(server.connections) <= 1 and server.requests == 0 and server.budget.used == 0)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"endpoint": "localhost"}, "no host:port", id="no-port"),
        pytest.param({"max_bytes_in_flight": "1MiB"}, "max_recv_msg_size_mib", id="budget-below-a-message"),
        pytest.param({"transport": "unix"}, "tcp", id="unix"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GrpcServerSettings.model_validate({"endpoint": "localhost:4317"} | settings)
