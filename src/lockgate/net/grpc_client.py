"""A gRPC client for raw messages, under the collector's `configgrpc` keys: resolves, connects, balances, reconnects, judges failures.

One attempt per call; retrying is the sender's. A call's failure becomes a Refusal in `refusal`, where the decisions are.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, cast

from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.metadata import encode_timeout
from grpclib.protocol import Stream
from grpclib.utils import Wrapper
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from pydantic import Field, field_validator, model_validator
from yarl import URL

from lockgate.kit.backoff import delays
from lockgate.kit.settings import Secret
from lockgate.kit.units import Duration
from lockgate.net.auth import AuthSettings
from lockgate.net.compression import compress_off_loop
from lockgate.net.grpc import BoundedStream, GrpcError, Handler, Protocol, frame, keepalive, plain_headers, read_prefix, read_status, refuse
from lockgate.net.proxy import proxy_credentials
from lockgate.net.tls import TlsClientSettings
from lockgate.pipeline.contract import ComponentSettings, Context
from lockgate.pipeline.errors import Permanent, Refusal, Retryable
from lockgate.pipeline.needs import Connect, Need, Unusable

MAX_ANSWER = 4 * 2**20
"""Largest answer taken, in bytes: grpc-go's and grpcio's default. OTLP's are a sentence."""

CONNECT_SECONDS = 20.0
"""For a connection with its TLS handshake: what grpc-go allows at least."""

RECONNECT_SECONDS = 10.0
"""While some of a balanced name's addresses answer, the others (and new ones) are looked for this often, and when a connection ends."""

REFUSED_WAITS = (0.001, 0.01, 0.05, 0.2)
"""Seconds before a request that the server has not looked at is sent again: it counts its streams a little later than we do."""

_USER_AGENT = "lockgate"
_TOO_LARGE = re.compile(r"larger than max|exceeds maximum size|message too large", re.IGNORECASE)
"""How grpc-go and grpcio, and Java's, word RESOURCE_EXHAUSTED where the message itself is too large."""

_RETRYABLE = {
    Status.CANCELLED,
    Status.DEADLINE_EXCEEDED,
    Status.RESOURCE_EXHAUSTED,
    Status.ABORTED,
    Status.OUT_OF_RANGE,
    Status.UNAVAILABLE,
    Status.DATA_LOSS,
}
BLOCKED = {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}
"""Retried too, but only a human ends it: the exporter says so in its status."""

_HTTP_STATUS = {
    "400": Status.INTERNAL,
    "401": Status.UNAUTHENTICATED,
    "403": Status.PERMISSION_DENIED,
    "404": Status.UNIMPLEMENTED,
    "429": Status.UNAVAILABLE,
    "502": Status.UNAVAILABLE,
    "503": Status.UNAVAILABLE,
    "504": Status.UNAVAILABLE,
}
"""gRPC's "HTTP to gRPC Status Code Mapping", for proxies that answer in the server's place; any other is UNKNOWN."""


def refusal(error: GrpcError) -> Refusal:
    """What to do with the data after this error (OTLP 1.5, "OTLP/gRPC Response", with three differences).

    RESOURCE_EXHAUSTED without RetryInfo is tried again, because gateways send it bare under load and dropping then is what users
    suffer from; unless it says that the message is too large, as a proxy's 413 does. UNAUTHENTICATED and PERMISSION_DENIED are tried
    again, because a token that has expired is no reason to lose data. UNKNOWN from a proxy that did not speak gRPC is tried again as well.
    """
    if error.status is Status.RESOURCE_EXHAUSTED and error.retry_after is None and _TOO_LARGE.search(error.message):
        return Permanent(f"{error}; send smaller batches, or raise the server's max_recv_msg_size_mib")
    if error.status in _RETRYABLE or error.status in BLOCKED or isinstance(error, NotGrpc):
        return Retryable(str(error), error.retry_after)
    return Permanent(str(error))


class NotGrpc(GrpcError):
    """Who answered does not speak gRPC: a proxy, or another server at this address."""


class _Unprocessed(GrpcError):
    """The server says that it has not looked at this request, so that sending it again repeats nothing (RFC 9113, 8.7)."""


class KeepaliveClientSettings(ComponentSettings):
    """How dead servers are found."""

    time: Duration = 10.0
    """Ask the server whether it is still there after this long. Servers may refuse to be asked more often than every 5 minutes."""
    timeout: Duration = 20.0
    """Connect anew when it has not answered that for so long."""
    permit_without_stream: bool = False
    """Ask also while no request is open."""


class GrpcClientSettings(ComponentSettings):
    """A gRPC server to send to, under the collector's `configgrpc` keys."""

    endpoint: str
    """host:port, [IPv6]:port or dns:///host:port. `https://` asks for TLS even where `tls.insecure` is set; `http://` is plain text."""
    tls: TlsClientSettings = TlsClientSettings()
    """Whom to trust, and what to present. `insecure: true` is plain text."""
    compression: Literal["gzip", "zstd", "snappy", "none", ""] = "gzip"
    """How messages are compressed."""
    headers: dict[str, Secret] = Field(default_factory=dict)
    """Metadata sent with every request."""
    auth: AuthSettings | None = None
    """An extension that gives the credentials of each request."""
    keepalive: KeepaliveClientSettings | None = None
    """PINGs that find a dead server; without it TCP alone does."""
    balancer_name: Literal["round_robin", "pick_first", ""] = "round_robin"
    """`round_robin` sends to every address of the name in turn; `pick_first` to the first that answers. Empty is `round_robin`."""
    wait_for_ready: bool = False
    """Wait for a connection until the time-out, instead of refusing at once while there is none."""
    authority: str = ""
    """The :authority to send instead of the endpoint's host."""
    read_buffer_size: int = Field(0, ge=0)
    """Accepted for the collector's sake: connections have no read buffer of their own here."""
    write_buffer_size: int = Field(0, ge=0)
    """Bytes to hold for a server that does not read before senders wait; 0 is 64 KiB."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        parse_endpoint(value)
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, Secret]) -> dict[str, Secret]:
        for name in value:
            if not re.fullmatch(r"[0-9a-z_.-]+", name.lower()) or name.lower().startswith("grpc-") or name.lower().endswith("-bin"):
                raise ValueError(f"{name!r} cannot be a metadata key; use letters, digits, '-', '_' and '.', no grpc-... and no ...-bin")
            if not re.fullmatch(r"[ -~]*", value[name].get_secret_value()):
                raise ValueError(f"the value of {name} is not printable ASCII")
        return value

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if parse_endpoint(self.endpoint)[0] == "http" and (self.tls.ca_file or self.tls.ca_pem or self.tls.cert_file or self.tls.cert_pem):
            raise ValueError("endpoint says http://, which is plain text, and tls has certificates; write https://, or take them away")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """The server's host and port."""
        return parse_endpoint(self.endpoint)[1:]

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken: as in the collector, certificate authorities outvote `insecure`."""
        scheme = parse_endpoint(self.endpoint)[0]
        return scheme == "https" or (scheme != "http" and (not self.tls.insecure or bool(self.tls.ca_file or self.tls.ca_pem)))

    @property
    def proxy(self) -> URL | None:
        """The proxy to go through, the service's or else HTTPS_PROXY, with or without TLS as in grpc-go. Raises ValueError where the
        environment's is none."""
        host, port = self.address
        return self.tls.service.proxy_for(URL.build(scheme="https", host=host, port=port))

    def unusable(self) -> Iterator[Unusable]:
        for found in super().unusable():
            if found.where[0] != "tls" or self.secure:
                yield found

    def needs(self) -> Iterator[Need]:
        yield from self.tls.needs() if self.secure else ()
        try:
            proxy = self.proxy
        except ValueError:
            proxy = None
        host, port = self.address
        if proxy is not None:
            reason = f"gRPC requests to {host}:{port} through this proxy"
            yield Connect(proxy.host or "", proxy.port or 0, reason, is_proxy=True)
        else:
            yield Connect(host, port, "gRPC requests")

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.read_buffer_size:
            yield "read_buffer_size has no effect: connections have no read buffer of their own here"


def parse_endpoint(endpoint: str) -> tuple[str, str, int]:
    """(scheme, host, port): scheme is "http", "https" or "". Raises ValueError for what cannot be connected to."""
    rest, scheme = endpoint.strip(), ""
    for prefix in ("https", "http"):
        if rest.startswith(f"{prefix}://"):
            scheme, rest = prefix, rest.removeprefix(f"{prefix}://").rstrip("/")
    if "://" in rest:
        resolver, _, name = rest.partition("://")
        authority, slash, rest = name.partition("/")
        if resolver not in ("dns", "passthrough", "ipv4", "ipv6") or authority or not slash:
            raise ValueError(f"{endpoint!r}: the resolver {resolver}://{authority} is not supported; write host:port or dns:///host:port")
    elif (match := re.match(r"(dns|ipv4|ipv6):", rest)) and rest.count(":") > 1:
        rest = rest[match.end() :]
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\s:/\[\],]+))(?::(?P<port>\d{1,5}))?", rest)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ValueError(f"{endpoint!r} is no endpoint; write host:port, or [address]:port for IPv6")
    # Without a port, grpc's resolver takes that of HTTPS.
    return scheme, match["v6"] or match["name"], int(match["port"] or 443)


class GrpcClient:
    """Connections to one server's addresses. Enter it before use; leaving closes its connections."""

    def __init__(self, settings: GrpcClientSettings, context: Context) -> None:
        self._settings, self._context = settings, context
        self._tls = settings.tls.follow(context, ["h2"]) if settings.secure else None
        host, port = settings.address
        self._place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._authority = settings.authority or settings.tls.server_name_override or self._place
        self._headers = [(name.lower(), value.get_secret_value()) for name, value in settings.headers.items()]
        self._links: dict[object, _Link] = {}  # that new requests may take, by address
        self._all: dict[_Link, asyncio.Transport] = {}
        self._turn = 0
        self._connecting: asyncio.Task[None] | None = None
        self._look_again = 0.0
        self._closed = True

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for link, transport in list(self._all.items()):
            link.protocol.processor.close("the client closes")
            transport.abort()  # nobody waits for anything on it, and TLS would wait for the server's goodbye
        while self._all:
            await next(iter(self._all)).gone.wait()  # as long as closing lingers, at most

    async def call(self, method: str, message: bytes, timeout_seconds: float | None, metadata: Mapping[str, str] | None = None) -> bytes:
        """The answer to one request of one message; `method` is its path, `metadata` goes beside the configured headers.

        Raises GrpcError. Cancelling it cancels the request.
        """
        compression = self._settings.compression
        body = await compress_off_loop(self._context.host.executor, message, compression)
        headers = [*self._headers, *(metadata or {}).items(), *(await self._credentials()), ("grpc-accept-encoding", "identity")]
        compressed = compression not in ("", "none")
        if compressed:
            headers.append(("grpc-encoding", compression))
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(timeout_seconds) as timer:
                for wait in (*REFUSED_WAITS, None):
                    link = await self._link()
                    left = [] if (end := timer.when()) is None else [("grpc-timeout", _timeout(end - asyncio.get_running_loop().time()))]
                    # In a task of its own: grpclib wakes who waits on a dead stream by cancelling his task, and never takes that back,
                    # which would leave this one half cancelled (asyncio's TaskGroup and timeout would then misread it).
                    exchange = link.exchange([*self._request(method), *left, *headers], frame(body, compressed))
                    try:
                        return await asyncio.create_task(exchange)
                    except GrpcError as error:
                        if task.cancelling() > cancelled:
                            # In the same turn of the loop as the stream's end, which is what the exchange then told.
                            raise asyncio.CancelledError from error
                        if wait is None or not isinstance(error, _Unprocessed):
                            raise
                        await asyncio.sleep(wait)
        except TimeoutError:
            raise GrpcError(Status.DEADLINE_EXCEEDED, f"{self._place} did not answer in {timeout_seconds:g} s; raise timeout") from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _request(self, method: str) -> list[tuple[str, str]]:
        return [
            (":method", "POST"),
            (":scheme", "https" if self._tls else "http"),
            (":path", method),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", _USER_AGENT),
        ]

    async def _credentials(self) -> list[tuple[str, str]]:
        if self._settings.auth is None:
            return []
        try:
            given = await self._context.host.extension(self._settings.auth.authenticator).authorize_headers()
        except (OSError, LookupError, ValueError) as error:
            raise GrpcError(Status.UNAUTHENTICATED, f"no credentials from {self._settings.auth.authenticator}: {error}") from error
        return [(name.lower(), value) for name, value in given.items()]

    async def _link(self) -> "_Link":
        waits = delays(0.2, 5.0)
        while True:
            if self._closed:
                raise GrpcError(Status.UNAVAILABLE, f"the client of {self._place} is closed")
            if links := self._usable():
                if self._settings.balancer_name != "pick_first" and asyncio.get_running_loop().time() >= self._look_again:
                    self._start_connecting()
                self._turn += 1
                return links[self._turn % len(links)]
            try:
                # Shared by all who call now, and not cancelled with any one of them.
                await asyncio.shield(self._start_connecting())
            except GrpcError:
                if not self._settings.wait_for_ready:
                    raise
                await asyncio.sleep(next(waits))

    def _usable(self) -> "list[_Link]":
        return [link for link in self._links.values() if link.usable]

    def _start_connecting(self) -> "asyncio.Task[None]":
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name=f"connect to {self._place}")
            # One that nobody awaits (a balanced name's further addresses) has nobody to tell.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._connecting

    async def _connect(self) -> None:
        """Connects to those of the name's addresses that have no connection; raises GrpcError where then there is none at all."""
        loop = asyncio.get_running_loop()
        self._look_again = loop.time() + RECONNECT_SECONDS
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if (proxy := self._proxy()) is not None:
                    if not self._usable():
                        await self._through(proxy)
                    return
                addresses = await self._resolve()
                if self._settings.balancer_name == "pick_first":
                    await self._first(addresses)
                    return
                for gone in [link for address, link in self._links.items() if address not in addresses]:
                    gone.drain(2**31 - 1)
                missing = [address for address in addresses if address not in self._links or not self._links[address].usable]
                results = await asyncio.gather(*map(self._open, missing), return_exceptions=True)
                errors = [result for result in results if isinstance(result, Exception)]
                if errors and not self._usable():
                    raise errors[0]
        except TimeoutError as error:
            if self._usable():
                return
            raise self._unavailable(f"no connection in {CONNECT_SECONDS:g} s; look at the network policy") from error
        except socket.gaierror as error:
            reason = error.strerror or str(error)
            raise self._unavailable(f"the name does not resolve ({reason}); look at the name and at DNS egress") from error
        except (OSError, ProtocolError, ValueError) as error:
            met = None
            with suppress(ValueError):  # an unusable proxy is what `error` tells
                met = await self._settings.tls.explain(error, *self._settings.address, self._proxy())
            raise self._unavailable(met or str(error) or type(error).__name__) from error

    def _unavailable(self, why: str) -> GrpcError:
        return GrpcError(Status.UNAVAILABLE, f"cannot connect to {self._place}: {why}")

    async def _resolve(self) -> list[tuple[str, int]]:
        host, port = self._settings.address
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((cast(str, entry[4][0]), port) for entry in found))

    async def _first(self, addresses: list[tuple[str, int]]) -> None:
        for address in addresses:
            try:
                await self._open(address)
                return
            except OSError:
                if address == addresses[-1]:
                    raise

    def _protocol(self) -> Protocol:
        times = self._settings.keepalive
        config = (
            keepalive(times.time or None, times.timeout or 20.0, times.permit_without_stream) if times else keepalive(None, 20.0, False)
        )
        return Protocol(_Link(self), client_side=True, keepalive=config, streams=0)

    def _tls_arguments(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        name = self._settings.tls.server_name_override or self._settings.address[0]
        return {"ssl": self._tls.context(), "server_hostname": name, "ssl_handshake_timeout": CONNECT_SECONDS}

    async def _open(self, address: tuple[str, int]) -> None:
        transport, protocol = await asyncio.get_running_loop().create_connection(self._protocol, *address, **self._tls_arguments())
        await self._opened(address, transport, protocol)

    async def _opened(self, address: object, transport: asyncio.Transport, protocol: Protocol) -> None:
        """Takes a new connection into use. The protocol may have closed it already, for what the server has said so far."""
        link = cast(_Link, protocol.handler)
        tls = transport.get_extra_info("ssl_object")
        if self._tls is not None and tls is not None and tls.selected_alpn_protocol() != "h2":
            protocol.processor.close("no HTTP/2")
            raise ConnectionError("it speaks TLS but does not offer HTTP/2 (ALPN h2), so it is no gRPC server")
        if self._settings.write_buffer_size:
            transport.set_write_buffer_limits(self._settings.write_buffer_size)
        try:
            await link.speaks
        except asyncio.CancelledError:
            protocol.processor.close("gave up")
            raise
        self._links[address] = link  # here, so that one address's time-out or cancelling leaves no other's connection to nobody

    def _proxy(self) -> URL | None:
        return self._settings.proxy

    async def _through(self, proxy: URL) -> None:
        """A connection through an HTTP proxy's tunnel (RFC 9110, CONNECT); `https` proxies are spoken to in TLS themselves."""
        loop = asyncio.get_running_loop()
        shown = f"proxy {proxy.host}:{proxy.port}"
        secure: dict[str, Any] = {"ssl": ssl.create_default_context(), "server_hostname": proxy.host} if proxy.scheme == "https" else {}
        try:
            transport, tunnel = await loop.create_connection(_Tunnel, proxy.host or "", proxy.port or 0, **secure)
        except OSError as error:
            raise ConnectionError(f"{shown}: {error.strerror or error}") from error
        try:
            host, port = self._settings.address
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: {_USER_AGENT}"]
            lines += [f"{name}: {value}" for name, value in proxy_credentials(proxy).items()]
            transport.write("\r\n".join([*lines, "", ""]).encode())
            status = await tunnel.answer
            if not 200 <= status < 300:
                raise ConnectionError(f"{shown} refused the tunnel with status {status}")
            protocol = self._protocol()
            if self._tls is not None:
                arguments = self._tls_arguments()
                secured = await loop.start_tls(
                    transport,
                    protocol,
                    arguments.pop("ssl"),
                    server_hostname=arguments["server_hostname"],
                    ssl_handshake_timeout=CONNECT_SECONDS,
                )
                if secured is None:
                    raise ConnectionError(f"{shown} closed the tunnel")
                transport = secured
                protocol.connection_made(transport)
            else:
                transport.set_protocol(protocol)
                protocol.connection_made(transport)
                protocol.data_received(tunnel.rest)
                transport.resume_reading()
            await self._opened(proxy, transport, protocol)
        except BaseException:
            transport.abort()
            raise

    def forget(self, link: "_Link") -> None:
        """A connection ended, or is to be used no more."""
        self._look_again = 0.0
        for address in [address for address, known in self._links.items() if known is link]:
            del self._links[address]


class _Tunnel(asyncio.Protocol):
    """Reads a proxy's answer to CONNECT, and not one byte of what follows it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.rest = b""
        """What came behind the proxy's answer: in plain text, a server's HTTP/2 settings may come in the same read."""
        self._head = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self.answer.done() or (b"\r\n\r\n" not in self._head and len(self._head) < 16384):
            return
        assert self._transport is not None
        self._transport.pause_reading()  # until the next protocol has it
        head, _, self.rest = self._head.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        if match is None:
            self.answer.set_exception(ConnectionError("the proxy's answer to CONNECT is not HTTP"))
        else:
            self.answer.set_result(int(match[1]))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError("the proxy closed the connection"))


class _Link(Handler):
    """One connection to one address."""

    def __init__(self, client: GrpcClient) -> None:
        self._client = client
        self._closed = self._draining = False
        self.gone = asyncio.Event()
        self._open: set[BoundedStream] = set()
        self.speaks: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has sent its settings: a listener that is none of HTTP/2 is not counted as connected."""
        # Who connected may have given up by then, and nobody asks.
        self.speaks.add_done_callback(lambda speaks: speaks.cancelled() or speaks.exception())

    @property
    def usable(self) -> bool:
        return not self._closed and not self._draining and not self.protocol.connection.is_closing()

    def ready(self) -> None:
        if not self.speaks.done():
            self.speaks.set_result(None)

    def accept(self, stream: Stream, headers: Any, release_stream: Any) -> None:
        refuse(stream)
        release_stream()

    def cancel(self, stream: Stream) -> None:
        """Whoever waits on the stream is woken by its wrapper."""

    def broken(self, reason: str) -> None:
        if not self.speaks.done():
            self.speaks.set_exception(ConnectionError(f"who listens there does not speak HTTP/2 in this way: {reason}"))

    def close(self) -> None:
        self._closed = True
        if not self.speaks.done():
            self.speaks.set_exception(ConnectionError("the server closed the connection before it spoke HTTP/2"))
        self._client.forget(self)
        self._turn_away(2**31 - 1)

    def made(self, transport: asyncio.Transport) -> bool:
        self._client._all[self] = transport
        return True

    def lost(self) -> None:
        self._client._all.pop(self, None)
        self.gone.set()

    def drain(self, last_stream_id: int) -> None:
        """A GOAWAY: nothing new on this connection, what the server has seen may finish, the rest is tried elsewhere."""
        self._draining = True
        self._client.forget(self)
        self._turn_away(last_stream_id)
        self._close_when_done()

    def _turn_away(self, last_stream_id: int) -> None:
        """Sends elsewhere what the server will not look at. Requests that wait for room to be sent are known to nobody but us."""
        for stream in self._open:
            if stream.id is None or stream.id > last_stream_id:
                stream.unprocessed = True
                stream.__terminated__("the server takes no more requests on this connection")

    def _close_when_done(self) -> None:
        if self._draining and not self._open and not self._closed:
            self.protocol.processor.close("drained")

    async def exchange(self, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """Sends one framed message and gives the answer's message. Raises GrpcError."""
        if not self.usable:
            raise _Unprocessed(Status.UNAVAILABLE, "the connection closed before the request was sent")
        wrapper = Wrapper()
        stream = self.protocol.connection.create_stream(wrapper=wrapper)
        self._open.add(stream)
        release = None
        try:
            with wrapper:
                release = await stream.send_request(headers, _processor=self.protocol.processor)
                await stream.send_data(body, end_stream=True)
                stream.sent = True
                return await _answer(stream)
        except (StreamTerminatedError, ProtocolError, EOFError, OSError, AttributeError) as error:
            # A server may answer before it has read everything, and then reset the stream: what it said counts.
            if (said := _said(stream)) is not None:
                raise said from error
            if isinstance(error, AttributeError) and not self.protocol.connection.is_closing():
                raise
            kind = _Unprocessed if stream.unprocessed else GrpcError
            raise kind(Status.UNAVAILABLE, f"the connection or its stream ended without an answer: {error}") from error
        finally:
            self._open.discard(stream)
            if release is not None:
                if stream.closable:
                    stream.reset_nowait(ErrorCodes.CANCEL)
                    self.protocol.connection.flush()
                release()
            self._close_when_done()


def _timeout(seconds: float) -> str:
    return encode_timeout(max(0.001, seconds))


async def _answer(stream: Stream) -> bytes:
    headers = plain_headers(await stream.recv_headers())
    _check(headers)
    if "grpc-status" in headers:
        raise read_status(headers) or GrpcError(Status.INTERNAL, "the answer is OK but has no message")
    prefix = await read_prefix(stream)
    message = b""
    if prefix is not None:
        compressed, size = prefix
        if compressed:
            raise GrpcError(Status.INTERNAL, "the answer is compressed, which was not asked for")
        if size > MAX_ANSWER:
            raise GrpcError(Status.INTERNAL, f"the answer has {size} bytes; {MAX_ANSWER} are taken")
        message = await stream.recv_data(size) if size else b""
    if error := read_status(plain_headers(await stream.recv_trailers())):
        raise error
    if prefix is None:
        raise GrpcError(Status.INTERNAL, "the answer is OK but has no message")
    return message


def _check(headers: Mapping[str, str]) -> None:
    status, kind = headers.get(":status", ""), headers.get("content-type", "")
    who = "from a proxy or a server that is none of gRPC's"
    if status == "413":
        raise NotGrpc(Status.RESOURCE_EXHAUSTED, f"message too large: HTTP status 413, {who} (nginx: client_max_body_size)")
    if status != "200":
        raise NotGrpc(_HTTP_STATUS.get(status, Status.UNKNOWN), f"HTTP status {status}, {who}")
    if not kind.startswith("application/grpc"):
        raise NotGrpc(Status.UNKNOWN, f"an answer of type {kind!r}, {who}")


def _said(stream: Stream) -> GrpcError | None:
    for headers in (stream.trailers, stream.headers):
        if headers is not None and "grpc-status" in (known := plain_headers(headers)):
            return read_status(known)
    if stream.headers is not None:
        try:
            _check(plain_headers(stream.headers))
        except NotGrpc as error:
            return error
    return None
