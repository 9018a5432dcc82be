"""The client through real proxies, over TLS that changes under it, and against every way a server can fail to answer."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from support import FakeHost, VirtualClock, context
from support.proxy import Proxy

from lockgate.components.extensions.bearertokenauth import BearerTokenAuthExtension, BearerTokenAuthSettings
from lockgate.net import http_client
from lockgate.net.http_client import Answer, HttpClient, HttpClientSettings
from lockgate.net.http_server import HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.needs import Connect


@asynccontextmanager
async def echoing(**settings: Any) -> AsyncIterator[tuple[int, list[web.BaseRequest]]]:
    """A server that answers with the body it got; gives its port and its requests."""
    requests: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        async with server.body(request, bytes) as body:
            return web.Response(body=body)

    of = context("server", Kind.RECEIVER, clock=settings.pop("clock", None))
    server = HttpServer(HttpServerSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), of, handle)
    await server.start()
    try:
        yield server.port, requests
    finally:
        await server.stop(0.2)


async def post(url: str, body: bytes = b"x" * 10_000, *, clock: Any = None, host: Any = None, **settings: Any) -> Answer:
    of = context("client", Kind.EXPORTER, clock=clock, host=host)
    async with HttpClient(HttpClientSettings.model_validate({"endpoint": url, **settings}), of) as client:
        return await client.post(url, body, {"Content-Type": "text/plain"})


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A TCP server; leaving it waits for what it serves, so that nothing outlives the test."""
    serving: set[asyncio.Task[Any]] = set()

    async def track(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()
            serving.discard(task)

    server = await asyncio.start_server(track, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    ca = trustme.CA(organization_name="Corporate Proxy")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("localhost", "backend.test").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    return {"ca": str(tmp_path / "ca.pem"), "both": str(tmp_path / "both.pem")}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "deflate", "snappy"])
async def test_a_body_arrives_however_it_is_compressed(compression: str) -> None:
    async with echoing() as (port, requests):
        assert (await post(f"http://localhost:{port}/", compression=compression)).body == b"x" * 10_000
    assert requests[0].headers.get("Content-Encoding", "none") == compression


async def test_plain_requests_go_through_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    async with echoing() as (port, _), raw_server(proxy.serve) as proxy_port:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:word@127.0.0.1:{proxy_port}")
        answer = await post(f"http://backend.test:{port}/v1/logs")
    assert answer.status == 200
    assert proxy.asked == [f"POST http://backend.test:{port}/v1/logs HTTP/1.1"]
    assert proxy.credentials == [f"Basic {base64.b64encode(b'user:word').decode()}"]


async def test_tls_goes_through_a_tunnel_and_is_verified_behind_it(monkeypatch: pytest.MonkeyPatch, tls: dict[str, str]) -> None:
    proxy = Proxy()
    async with echoing(tls={"cert_file": tls["both"], "key_file": tls["both"]}) as (port, _), raw_server(proxy.serve) as proxy_port:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy_port}")
        assert (await post(f"https://backend.test:{port}/", tls={"ca_file": tls["ca"]})).status == 200
        with pytest.raises(
            Retryable, match=f"behind the proxy 127.0.0.1:{proxy_port} was not accepted: .*O=Corporate Proxy.*set tls.ca_file"
        ):
            await post(f"https://backend.test:{port}/")
        monkeypatch.setenv("https_proxy", "ftp://127.0.0.1:1")
        with pytest.raises(Retryable, match="proxy scheme ftp is not supported"):
            await post(f"https://backend.test:{port}/")
    assert proxy.asked == [f"CONNECT backend.test:{port} HTTP/1.1"] * 3  # the third to see whose certificate it was


async def test_a_proxy_that_speaks_tls_is_verified_before_it_is_sent_a_plain_request(tls: dict[str, str]) -> None:
    proxy, certificate = Proxy(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.load_cert_chain(tls["both"])
    async with echoing() as (port, _), raw_server(proxy.serve, certificate) as proxy_port:
        url, proxy_url = f"http://localhost:{port}/", f"https://localhost:{proxy_port}"
        assert (await post(url, proxy_url=proxy_url, tls={"ca_file": tls["ca"]})).status == 200
        with pytest.raises(Retryable):
            await post(url, proxy_url=proxy_url)
    assert proxy.asked == [f"POST {url} HTTP/1.1"]


async def test_no_proxy_and_loopback_go_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    async with echoing() as (port, _):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        assert (await post(f"http://localhost:{port}/")).status == 200
        with pytest.raises(Retryable, match=r"backend\.test"):
            await post(f"http://backend.test:{port}/")


async def test_proxy_url_is_for_every_request() -> None:
    proxy = Proxy()
    async with echoing() as (port, _), raw_server(proxy.serve) as proxy_port:
        assert (await post(f"http://localhost:{port}/", proxy_url=f"http://127.0.0.1:{proxy_port}")).status == 200
    assert len(proxy.asked) == 1


def test_needs_name_the_proxy_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = HttpClientSettings(endpoint="https://backend.test")
    assert [need for need in settings.needs() if isinstance(need, Connect)] == [
        Connect("backend.test", 443, "requests to https://backend.test")
    ]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    assert [need for need in settings.needs() if isinstance(need, Connect)] == [
        Connect("proxy.test", 3128, "requests to https://backend.test through this proxy", is_proxy=True)
    ]


async def test_a_certificate_that_is_not_accepted_is_retried_and_names_its_issuer(tls: dict[str, str]) -> None:
    async with echoing(tls={"cert_file": tls["both"], "key_file": tls["both"]}) as (port, _):
        with pytest.raises(Retryable, match=r"issued by 'O=Corporate Proxy.*set tls\.ca_file"):
            await post(f"https://localhost:{port}/")
        with pytest.raises(Retryable, match="server_name_override"):
            await post(f"https://127.0.0.1:{port}/", tls={"ca_file": tls["ca"]})
        override = {"ca_file": tls["ca"], "server_name_override": "backend.test"}
        assert (await post(f"https://127.0.0.1:{port}/", tls=override)).status == 200


async def test_a_running_client_trusts_an_authority_that_is_written_into_its_file_later(tls: dict[str, str]) -> None:
    clock, trusted = VirtualClock(), Path(tls["ca"]).read_bytes()
    Path(tls["ca"]).write_bytes(trustme.CA().cert_pem.bytes())
    async with echoing(tls={"cert_file": tls["both"], "key_file": tls["both"]}) as (port, _):
        url = f"https://localhost:{port}/"
        settings = HttpClientSettings.model_validate({"endpoint": url, "tls": {"ca_file": tls["ca"]}})
        async with HttpClient(settings, context("client", Kind.EXPORTER, clock=clock)) as client:
            with pytest.raises(Retryable, match="certificate"):
                await client.post(url, b"x", {})
            Path(tls["ca"]).write_bytes(trusted)
            await clock.advance(2)
            assert (await client.post(url, b"x", {})).status == 200


async def test_a_name_that_does_not_resolve_is_retried() -> None:
    with pytest.raises(Retryable, match="does not resolve"):
        await post("http://no-such-name.invalid:4318/")


async def test_a_refused_connection_is_retried() -> None:
    with pytest.raises(Retryable, match="connection refused"):
        await post("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    "said", [pytest.param(b"", id="nothing"), pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", id="half")]
)
async def test_a_connection_closed_early_is_retried(said: bytes) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(said)
        await writer.drain()

    async with raw_server(close) as port:
        with pytest.raises(Retryable, match="cannot POST"):
            await post(f"http://127.0.0.1:{port}/")


async def test_a_server_that_does_not_answer_is_retried_after_the_timeout() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(hang) as port:
        with pytest.raises(Retryable, match=r"no answer in 0\.05 s"):
            await post(f"http://127.0.0.1:{port}/", timeout="50ms")


async def test_a_connection_that_is_not_made_is_given_up_long_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_CONNECT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        refusing = pytest.raises(Retryable, match=r"no connection in 0\.2 s; look at the network policy")
        with socket.create_connection(silent.getsockname()), refusing:  # its queue is full now, and what asks it hears nothing
            await post(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout="300s")


async def test_only_the_beginning_of_a_long_answer_is_kept() -> None:
    async with echoing() as (port, _):
        assert len((await post(f"http://localhost:{port}/", b"x" * 300_000)).body) == 64 << 10


async def test_headers_and_credentials_are_sent_and_never_printed() -> None:
    settings = BearerTokenAuthSettings.model_validate({"token": "s3cret"})
    host = FakeHost({"bearertokenauth": BearerTokenAuthExtension(settings, context("bearertokenauth", Kind.EXTENSION))})
    async with echoing() as (port, requests):
        await post(f"http://localhost:{port}/", host=host, headers={"X-Tenant": "t1"}, auth={"authenticator": "bearertokenauth"})
    assert requests[0].headers["Authorization"] == "Bearer s3cret"
    assert requests[0].headers["X-Tenant"] == "t1"
    assert "t1" not in repr(HttpClientSettings.model_validate({"headers": {"X-Tenant": "t1"}}))


async def test_a_urls_path_and_user_never_show_in_an_error() -> None:
    with pytest.raises(Retryable) as caught:
        await post("http://user:pass@127.0.0.1:1/receiver/token")
    assert "token" not in str(caught.value)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("99999999", 600.0),
        ("soon", None),
        ("", None),
        ("-1", None),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_a_date(header: str, seconds: float | None) -> None:
    assert Answer(503, {"Retry-After": header}, b"").retry_after(1_700_000_000.0) == seconds


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        pytest.param({"endpoint": "localhost:4318"}, "https://host:4318", id="no-scheme"),
        pytest.param({"proxy_url": "socks5://x:1"}, "not supported", id="socks"),
        pytest.param({"compression": "gzip", "compression_params": {"level": 12}}, "does not exist for gzip", id="level"),
        pytest.param({"compression": "brotli"}, "compression", id="unknown-compression"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HttpClientSettings.model_validate(settings)
