"""The server's bounds, against clients that mean no good: raw sockets, real time-outs of some tens of milliseconds."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from support import FakeHost, context

from lockgate.net.http_server import HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Context, Extension, Kind
from lockgate.pipeline.needs import ComponentSettings, Listen


class Sluice:
    """A handler that takes the body, and answers with its length when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.opened.set()
        self.holding = asyncio.Semaphore(0)
        self.server: HttpServer

    async def handle(self, request: web.BaseRequest) -> web.Response:
        async with self.server.body(request, bytes) as body:
            self.holding.release()
            await self.opened.wait()
            return web.Response(text=str(len(body)))


@asynccontextmanager
async def serving(host: Any = None, **settings: Any) -> AsyncIterator[tuple[Sluice, Context]]:
    sluice, of = Sluice(), context("server", Kind.RECEIVER, host=host)
    sluice.server = HttpServer(HttpServerSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), of, sluice.handle)
    await sluice.server.start()
    try:
        yield sluice, of
    finally:
        await sluice.server.stop(0.2)


async def talk(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def post(port: int, body: Any, headers: dict[str, str] | None = None, ssl: Any = True) -> tuple[int, dict[str, str]]:
    scheme = "http" if ssl is True else "https"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{scheme}://localhost:{port}/", data=body, headers=headers, ssl=ssl) as answer,
    ):
        await answer.read()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((), id="nothing"),
        pytest.param((b"POST / HT",), id="half-a-line"),
        pytest.param((HEAD, b"A: b\r\n", b"C: d\r\n", b"E: f\r\n", b"G: h\r\n"), id="a-header-at-a-time"),
    ],
)
async def test_a_head_that_does_not_come_in_time_ends_the_connection(pieces: tuple[bytes, ...]) -> None:
    async with serving(read_header_timeout="80ms") as (sluice, _):
        async with asyncio.timeout(2):
            assert await talk(sluice.server.port, *pieces, pause=0.03) == b""


async def test_a_second_request_whose_head_stalls_ends_the_connection() -> None:
    async with serving(read_header_timeout="80ms") as (sluice, _):
        async with asyncio.timeout(2):
            answer = await talk(sluice.server.port, HEAD + b"Content-Length: 1\r\n\r\nx", HEAD, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_body_that_does_not_come_in_time_is_408_and_gives_its_bytes_back() -> None:
    async with serving(read_timeout="50ms") as (sluice, _):
        answer = await talk(sluice.server.port, HEAD + b"Content-Length: 100\r\n\r\nab")
        assert answer.startswith(b"HTTP/1.1 408")
        assert sluice.server.budget.used == 0


async def test_a_client_that_is_gone_in_mid_body_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (sluice, _):
        _, writer = await asyncio.open_connection("127.0.0.1", sluice.server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        async with asyncio.timeout(5):
            while sluice.server.budget.used != 1000:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while sluice.server.budget.used:
                await asyncio.sleep(0.01)
    assert "fault" not in caplog.text


async def test_an_idle_connection_is_closed() -> None:
    async with serving(idle_timeout="50ms") as (sluice, _):
        async with asyncio.timeout(2):
            answer = await talk(sluice.server.port, HEAD + b"Content-Length: 1\r\n\r\nx")
    assert answer.startswith(b"HTTP/1.1 200")


async def test_what_is_no_http_is_400_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (sluice, _):
        assert b" 400 Bad Request" in await talk(sluice.server.port, b"\x16\x03\x01\x02\x00\r\n\r\n")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_announced_body_that_is_too_large_is_413_before_it_is_sent() -> None:
    async with serving(max_request_body_size=1000) as (sluice, _):
        assert (await talk(sluice.server.port, HEAD + b"Content-Length: 1001\r\n\r\n")).startswith(b"HTTP/1.1 413")


async def test_an_unannounced_body_is_413_as_soon_as_it_is_too_large() -> None:
    async with serving(max_request_body_size=1000) as (sluice, _):
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        assert (await talk(sluice.server.port, head, b"400\r\n" + b"x" * 1024 + b"\r\n")).startswith(b"HTTP/1.1 413")


async def test_a_bomb_is_413_and_its_memory_is_bounded() -> None:
    import tracemalloc

    bomb = gzip.compress(bytes(200 << 20))
    async with serving(max_decompressed_size="1MiB") as (sluice, _):
        tracemalloc.start()
        try:
            assert (await post(sluice.server.port, bomb, {"Content-Encoding": "gzip"}))[0] == 413
            assert tracemalloc.get_traced_memory()[1] < 20 << 20
        finally:
            tracemalloc.stop()


async def test_requests_beyond_the_bytes_in_flight_are_503_before_their_body_is_read() -> None:
    async with serving(max_request_body_size=1000, max_bytes_in_flight=1500) as (sluice, _):
        sluice.opened.clear()
        first = asyncio.create_task(post(sluice.server.port, b"x" * 1000))
        await sluice.holding.acquire()
        unannounced = (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"258\r\n" + b"x" * 600 + b"\r\n")
        for pieces in ((HEAD + b"Content-Length: 1000\r\n\r\n",), unannounced):
            refused = await talk(sluice.server.port, *pieces)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1" in refused
        sluice.opened.set()
        assert (await first)[0] == 200
        assert (await post(sluice.server.port, b"x" * 1000))[0] == 200
        assert sluice.server.budget.used == 0


async def test_what_a_body_inflates_to_counts_as_in_flight() -> None:
    async with serving(max_request_body_size=1000, max_bytes_in_flight=3000) as (sluice, _):
        sluice.opened.clear()
        first = asyncio.create_task(post(sluice.server.port, gzip.compress(b"x" * 2900), {"Content-Encoding": "gzip"}))
        await sluice.holding.acquire()
        assert (await post(sluice.server.port, b"x" * 500))[0] == 503
        sluice.opened.set()
        assert (await first)[0] == 200


async def test_connections_beyond_the_bound_are_closed_and_counted() -> None:
    async with serving(max_connections=1) as (sluice, of):
        _, writer = await asyncio.open_connection("127.0.0.1", sluice.server.port)
        await asyncio.sleep(0)
        try:
            assert await talk(sluice.server.port, HEAD + b"\r\n") == b""
            assert of.metrics.value("lockgate_server_refused_connections") == 1
        finally:
            writer.transport.abort()
        # The server hears of the end of the first one a moment later.
        for _ in range(500):
            if (await talk(sluice.server.port, HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                break
        else:
            pytest.fail("the place of a closed connection was not given back")


async def test_stopping_lets_requests_end_and_answers_what_is_left_with_503() -> None:
    async with serving() as (sluice, _):
        sluice.opened.clear()
        port = sluice.server.port
        asked = asyncio.create_task(post(port, b"x"))
        await sluice.holding.acquire()
        stopping = asyncio.create_task(sluice.server.stop(5))
        await asyncio.sleep(0)
        with pytest.raises(OSError):
            await post(port, b"x")
        sluice.opened.set()
        assert (await asked)[0] == 200
        await stopping
    async with serving() as (sluice, _):
        sluice.opened.clear()
        asked = asyncio.create_task(post(sluice.server.port, b"x"))
        await sluice.holding.acquire()
        await sluice.server.stop(0.05)
        status, headers = await asked
        assert (status, "retry-after" in headers) == (503, True)
        assert sluice.server.budget.used == 0


class Guard(Extension[ComponentSettings]):
    async def authenticate(self, headers: Any) -> None:
        if headers.get("x-key") != "right":
            raise PermissionError("wrong key")


async def test_a_request_that_the_authenticator_refuses_is_401_and_its_body_unread() -> None:
    host = FakeHost({"guard": Guard(ComponentSettings(), context("guard", Kind.EXTENSION))})
    async with serving(host, auth={"authenticator": "guard"}) as (sluice, _):
        status, headers = await post(sluice.server.port, b"x")
        assert (status, "www-authenticate" in headers) == (401, True)
        assert sluice.holding.locked()
        assert (await post(sluice.server.port, b"x", {"X-Key": "right"}))[0] == 200


async def test_tls_and_mutual_tls_serve_whom_they_should(tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    both = str(tmp_path / "both.pem")
    async with serving(tls={"cert_file": both, "key_file": both, "client_ca_file": str(tmp_path / "ca.pem")}) as (sluice, _):
        import ssl

        knows = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await post(sluice.server.port, b"x", ssl=knows)
        knows.load_cert_chain(both)
        assert (await post(sluice.server.port, b"x", ssl=knows))[0] == 200


async def test_a_web_page_may_send_from_allowed_origins_only() -> None:
    cors = {"allowed_origins": ["https://*.example.com"], "allowed_headers": ["X-Tenant"], "max_age": 600}
    async with serving(cors=cors) as (sluice, _), aiohttp.ClientSession() as session:
        ask = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
        async with session.options(f"http://127.0.0.1:{sluice.server.port}/", headers=ask) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
            assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type, X-Tenant"
            assert answer.headers["Access-Control-Max-Age"] == "600"
        _, headers = await post(sluice.server.port, b"x", {"Origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in headers


async def test_response_headers_are_added_and_keep_alive_can_be_off() -> None:
    async with serving(response_headers={"X-Served-By": "lockgate"}, keep_alives_enabled=False) as (sluice, _):
        answer = await talk(sluice.server.port, HEAD + b"Content-Length: 1\r\n\r\nx")
    assert b"X-Served-By: lockgate" in answer
    assert b"Connection: close" in answer


async def test_a_port_that_is_taken_is_named() -> None:
    async with serving() as (sluice, _):
        with pytest.raises(OSError) as caught:
            async with serving(endpoint=f"127.0.0.1:{sluice.server.port}"):
                pass
    assert "cannot listen on 127.0.0.1" in str(caught.value)


def test_needs_name_the_port() -> None:
    assert list(HttpServerSettings(endpoint=":4318").needs()) == [Listen("", 4318, "requests over HTTP")]


async def test_a_client_that_has_just_connected_when_the_server_stops_is_answered_and_an_idle_one_does_not_hold_it_up() -> None:
    async with serving() as (sluice, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", sluice.server.port)
        answered = await post(sluice.server.port, b"over another connection")
        assert answered[0] == 200
        stopping = asyncio.ensure_future(sluice.server.stop())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        writer.write(HEAD + b"Content-Length: 1\r\n\r\nx")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
        await asyncio.wait_for(stopping, 5)
        writer.close()
    async with serving() as (sluice, _):
        _, silent = await asyncio.open_connection("127.0.0.1", sluice.server.port)
        await asyncio.wait_for(sluice.server.stop(), 5)
        silent.close()
