"""An HTTP client under the collector's `confighttp` keys: TLS that follows its files, proxies, compression, credentials.

One attempt per call and a verdict in the pipeline's words: what never reached a server, or was not answered, is Retryable. What an
answer's status means is the caller's to say. URLs are never shown whole: an HTTP source's path is its secret.
"""

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import Field, field_validator, model_validator
from yarl import URL

from lockgate.kit.settings import Secret, Settings
from lockgate.kit.units import Duration, Size
from lockgate.net.auth import AuthSettings
from lockgate.net.compression import Encoding, compress_off_loop
from lockgate.net.proxy import parse_proxy, proxy_credentials
from lockgate.net.tls import TlsClientSettings
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.needs import ComponentSettings, Connect, Need, Unusable

_CONNECT_SECONDS = 10.0
"""For a connection, TLS included. TCP asks again after 1, 3, 7, 15 and 31 s: another try finds sooner that a path was opened meanwhile."""
_ANSWER_BYTES = 64 << 10
"""How much of an answer's body is read: OTLP's answers are a status and a message."""


class CompressionParameters(Settings):
    """How hard to compress."""

    level: int | None = Field(None, ge=-7, le=22)
    """gzip and deflate: 0 to 9, of which up to 3 are done by isal; zstd: -7 to 22. Without it, the fastest useful level (1)."""


class CookieSettings(Settings):
    """Whether the client keeps cookies."""

    enabled: bool = False
    """Keep the server's cookies and send them back: what load balancers with sticky sessions ask for."""


class HttpClientSettings(ComponentSettings):
    """How to reach a server over HTTP."""

    endpoint: str = ""
    """The server's URL: `https://host:4318`. The scheme says whether TLS is spoken."""
    tls: TlsClientSettings = TlsClientSettings()
    """Whom to trust, and what to present."""
    timeout: Duration = 30.0
    """How long one attempt may take, from connecting to the end of the answer."""
    headers: dict[str, Secret] = Field(default_factory=dict)
    """Headers added to each request; their values are treated as secrets and never print."""
    compression: Encoding = "none"
    """How bodies are compressed: gzip, zstd, deflate, zlib, snappy or none."""
    compression_params: CompressionParameters = CompressionParameters()
    """The compression's level."""
    auth: AuthSettings | None = None
    """The extension whose credentials are added to each request."""
    proxy_url: str = ""
    """The proxy for every request, instead of that of `service.trust`, and of HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the environment."""
    cookies: CookieSettings = CookieSettings()
    """Whether cookies are kept."""
    read_buffer_size: Size = 0
    """Bytes of an answer that are buffered before the connection is paused; 0 for the library's choice (64 KiB)."""
    write_buffer_size: Size = 0
    """Accepted for the collector's sake: bodies are written whole, so there is no buffer to size."""
    max_conns_per_host: int = Field(0, ge=0)
    """Connections to the server at the same time; further requests wait for one. 0 for no limit of their own."""
    max_idle_conns: int | None = Field(None, ge=0)
    """Accepted for the collector's sake: connections kept idle are never more than requests were under way, and
    `idle_conn_timeout` ends them."""
    max_idle_conns_per_host: int | None = Field(None, ge=0)
    """As `max_idle_conns`."""
    idle_conn_timeout: Duration = 90.0
    """How long a connection that is not in use is kept for the next request."""
    disable_keep_alives: bool = False
    """Use each connection for one request."""
    http2_read_idle_timeout: Duration = 0.0
    """Accepted for the collector's sake: HTTP/1.1 is spoken."""
    http2_ping_timeout: Duration = 0.0
    """As `http2_read_idle_timeout`."""
    force_attempt_http2: bool | None = None
    """As `http2_read_idle_timeout`."""

    @field_validator("endpoint", check_fields=False)
    @classmethod
    def _endpoint_is_a_url(cls, value: str) -> str:
        if value:
            check_url(value)
        return value

    @field_validator("proxy_url")
    @classmethod
    def _proxy_is_a_url(cls, value: str) -> str:
        if value:
            parse_proxy(value)
        return value

    @model_validator(mode="after")
    def _level_exists(self) -> Self:
        level, is_zstd = self.compression_params.level, self.compression == "zstd"
        if level is not None and not is_zstd and not 0 <= level <= 9:
            raise ValueError(f"compression_params.level {level} does not exist for {self.compression}; use 0 to 9")
        return self

    def urls(self) -> list[str]:
        """Every URL that requests go to; a client with more than one adds them here."""
        return [self.endpoint] if self.endpoint else []

    def proxy(self, url: URL) -> URL | None:
        """The proxy for this URL, or None. Raises ValueError for an unusable one in the environment."""
        return parse_proxy(self.proxy_url) if self.proxy_url else self.tls.service.proxy_for(url)

    def speaks_tls(self, text: str) -> bool:
        """Whether requests to this URL go to a server, or through a proxy, that speaks TLS."""
        try:
            proxy = self.proxy(url := URL(text))
        except ValueError:
            proxy = None
        return "https" in (url.scheme, proxy.scheme if proxy else "")

    def needs(self) -> Iterator[Need]:
        if any(map(self.speaks_tls, self.urls())):
            yield from super().needs()
        else:  # over plain HTTP no certificate is read, nor looked for
            plain = self.model_copy()
            plain.__dict__["tls"] = None
            yield from super(HttpClientSettings, plain).needs()
        seen: set[tuple[str, int]] = set()
        for text in self.urls():
            url = URL(text)
            try:
                proxy = self.proxy(url)
            except ValueError:
                proxy = None
            peer = proxy or url
            key = (peer.host or "", peer.port or 0)
            if key not in seen:
                seen.add(key)
                yield Connect(*key, f"requests to {safe_url(url)}" + (" through this proxy" if proxy else ""), is_proxy=proxy is not None)

    def unusable(self) -> Iterator[Unusable]:
        for found in super().unusable():
            if found.where[0] != "tls" or any(map(self.speaks_tls, self.urls())):
                yield found

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.max_idle_conns is not None or self.max_idle_conns_per_host is not None:
            yield "max_idle_conns and max_idle_conns_per_host have no effect; idle_conn_timeout ends idle connections"
        if self.http2_read_idle_timeout or self.http2_ping_timeout or self.force_attempt_http2:
            yield "HTTP/2 settings have no effect: HTTP/1.1 is spoken"
        if self.write_buffer_size:
            yield "write_buffer_size has no effect: bodies are written whole"
        for text in self.urls():
            if not self.speaks_tls(text) and self.tls.model_fields_set and not self.tls.insecure:
                yield f"tls has no effect on {safe_url(URL(text))}, which is plain HTTP; write https://"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    """At most the first 64 KiB."""

    @property
    def text(self) -> str:
        """The body for a log: one line, printable, bounded."""
        return " ".join(self.body[:500].decode("utf-8", "replace").split())

    def retry_after(self, now_unix_seconds: float) -> float | None:
        """Seconds that Retry-After asks to wait, given as seconds or as a date (RFC 9110, 10.2.3); None without a usable one."""
        text = self.headers.get("Retry-After", "").strip()
        if text.isdigit():
            return float(min(int(text[:9]), _MAX_RETRY_AFTER_SECONDS))
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_unix_seconds
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


_MAX_RETRY_AFTER_SECONDS = 600.0
"""What a server may ask to wait; a clock in another century must not stop delivery for ever. A guess."""


class HttpClient:
    """A connection pool to a server. Enter it before use; leaving closes its connections."""

    def __init__(self, settings: HttpClientSettings, context: Context) -> None:
        self._settings, self._context = settings, context
        self._tls = settings.tls.follow(context) if any(map(settings.speaks_tls, settings.urls())) else None
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=settings.max_conns_per_host,
            force_close=settings.disable_keep_alives,
            keepalive_timeout=None if settings.disable_keep_alives else settings.idle_conn_timeout,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.CookieJar() if settings.cookies.enabled else aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout or None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=True,
            headers={"User-Agent": "lockgate"},
            read_bufsize=settings.read_buffer_size or 64 << 10,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], encoded: Mapping[str, bytes] | None = None) -> Answer:
        """One POST of this body, compressed as configured, unless `encoded` has it so. Raises Retryable where no answer came."""
        assert self._session is not None, "the client is used before it was entered"
        settings, target = self._settings, URL(url)
        sent = encoded.get(settings.compression) if encoded else None
        if sent is None:
            sent = await compress_off_loop(self._context.host.executor, body, settings.compression, settings.compression_params.level)
        encoding = {} if settings.compression in ("", "none") else {"Content-Encoding": settings.compression}
        try:
            credentials = await self._credentials()
            proxy = settings.proxy(target)
            to_proxy = proxy_credentials(proxy)
            async with self._session.post(
                target,
                data=sent,
                # A tunnel's credentials go into its CONNECT, those of a forwarded request into the request.
                headers={**headers, **encoding, **self._headers, **credentials, **(to_proxy if target.scheme == "http" else {})},
                allow_redirects=False,
                proxy=proxy.with_user(None) if proxy else None,
                proxy_headers=to_proxy if target.scheme == "https" else None,
                server_hostname=settings.tls.server_name_override or None,
                ssl=self._tls.context() if self._tls else True,
            ) as response:
                return Answer(response.status, response.headers, await _bounded(response.content))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError) as error:
            raise Retryable(f"cannot POST to {safe_url(target)}: {await self._cause(error, target)}") from error

    async def _credentials(self) -> Mapping[str, str]:
        if self._settings.auth is None:
            return {}
        return await self._context.host.extension(self._settings.auth.authenticator).authorize_headers()

    async def _cause(self, error: Exception, url: URL) -> str:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return f"no connection in {_CONNECT_SECONDS:g} s; look at the network policy"
        if isinstance(error, TimeoutError):
            return f"no answer in {self._settings.timeout:g} s; raise timeout or look at the network policy"
        try:
            proxy = self._settings.proxy(url)
        except ValueError:
            return str(error)  # which says that it is no proxy
        if text := await self._settings.tls.explain(error, url.host or "", url.port or 443, proxy):
            return text
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return (
                f"the name {error.host} does not resolve ({error.os_error.strerror or error.os_error}); look at the name and at DNS egress"
            )
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return f"the proxy refused with status {error.status}"
        if isinstance(error, aiohttp.ClientConnectorError):
            if error.os_error.errno == errno.ECONNREFUSED:
                return "connection refused; nobody listens there (yet)"
            return str(error.os_error.strerror or error.os_error)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the server closed the connection without an answer"
        return f"{type(error).__name__}: {error}"


async def _bounded(stream: aiohttp.StreamReader) -> bytes:
    """The first bytes of a body; the rest of an oversized one is read off, within a bound, so that the connection can be used again."""
    kept, size = bytearray(), 0
    async for chunk in stream.iter_any():
        size += len(chunk)
        if len(kept) < _ANSWER_BYTES:
            kept += chunk[: _ANSWER_BYTES - len(kept)]
        if size > 16 * _ANSWER_BYTES:
            break
    return bytes(kept)


def check_url(text: str) -> None:
    """Raises ValueError where this is no URL that a request can go to."""
    try:
        url = URL(text)
        port = url.port
    except ValueError as error:
        raise ValueError(f"is no URL ({error}); write it like https://host:4318") from None
    if url.scheme not in ("http", "https") or not url.host or not port:
        raise ValueError(f"{text!r} is no URL with a scheme; write it like https://host:4318")


def safe_url(url: URL) -> str:
    """Scheme, host and port alone: user information, paths and queries may be secrets."""
    return str(url.origin()) if url.host else str(url)
