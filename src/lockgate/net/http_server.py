"""An HTTP server under the collector's `confighttp` server keys, with bounds on all that a client can make it hold.

    connections      max_connections              the connection is closed
    a request's head read_header_timeout          the connection is closed
    a body's time    read_timeout                 408
    a body's size    max_request_body_size        413
    what it inflates to  max_decompressed_size    413
    all of them together max_bytes_in_flight      503 with Retry-After, before the body is read

aiohttp serves; it neither inflates bodies by itself (it does so on the loop, with zlib) nor answers a handler's exception with 500
(which OTLP calls permanent): see `HttpServer._handle`.
"""

import asyncio
import fnmatch
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self, TypeVar

from aiohttp import hdrs

# Not aiohttp.web: its routes, files and websockets are 1.3 MB that nothing here uses.
from aiohttp.web_protocol import PayloadAccessError, RequestHandler, RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server
from pydantic import Field, field_validator, model_validator

from lockgate.kit.settings import Secret
from lockgate.kit.sometimes import Sometimes
from lockgate.kit.units import Duration, Size
from lockgate.net.address import split_endpoint
from lockgate.net.auth import AuthSettings
from lockgate.net.budget import ByteBudget, Share
from lockgate.net.compression import DECODABLE, OFFLOAD_BYTES, CorruptBody, TooLarge, decompress
from lockgate.net.listener import BACKLOG, Address, Listener
from lockgate.net.tls import TlsServerSettings
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.needs import ComponentSettings, Listen, Need

T = TypeVar("T")

_RETRY_SECONDS = 1
"""What a client is asked to wait when a bound is reached: long enough to not spin, short enough to not lose a beat."""
_FIRST_REQUEST_SECONDS = 0.5
"""How long a new connection's first request is waited for when the server stops: its client connected to send it."""
_UNKNOWN_LENGTH_STEP = 64 << 10
"""A body of unannounced length takes its share of the bytes in flight in steps of this."""


class CorsSettings(ComponentSettings):
    """Which web pages' scripts may send here (Fetch standard, "CORS protocol")."""

    allowed_origins: tuple[str, ...] = ()
    """Origins such as `https://*.example.com`; `*` is any. Empty: none."""
    allowed_headers: tuple[str, ...] = ()
    """Request headers that are allowed beside the always allowed ones; `*` is any."""
    exposed_headers: tuple[str, ...] = ()
    """Response headers that a script may read."""
    max_age: int = Field(0, ge=0)
    """Seconds for which a browser may remember the answer; 0 leaves it to the browser."""


class HttpServerSettings(ComponentSettings):
    """How to serve HTTP."""

    endpoint: str
    """`host:port` to listen on; without a host, on every address."""
    tls: TlsServerSettings | None = None
    """Speak TLS with this certificate; with `client_ca_file`, only to clients of that authority."""
    auth: AuthSettings | None = None
    """The extension that checks each request's credentials; without it everybody may send."""
    cors: CorsSettings = CorsSettings()
    """Cross-origin requests from web pages."""
    max_request_body_size: Size = Field(20 << 20, ge=0)
    """Bytes of a body as it is sent; larger ones get 413. 0 means the default."""
    max_decompressed_size: Size = Field(0, ge=0)
    """Bytes that a body may inflate to; larger ones get 413 as soon as they pass it. 0 means four times `max_request_body_size`."""
    max_bytes_in_flight: Size = Field(128 << 20, gt=0)
    """Bytes of all requests that are being read or wait for their acknowledgement; beyond it, requests get 503 before
    their body is read."""
    max_connections: int = Field(1024, gt=0)
    """Connections at the same time; further ones are closed."""
    include_metadata: bool = False
    """Keep requests' headers for processors. Nothing here reads them, so it gives a warning."""
    response_headers: dict[str, Secret] = Field(default_factory=dict)
    """Headers added to every answer."""
    compression_algorithms: tuple[str, ...] = ("", "gzip", "zstd", "zlib", "snappy", "deflate")
    """Accepted values of Content-Encoding; "" is for none."""
    read_header_timeout: Duration = 60.0
    """How long a client may take for a request's head (and the TLS handshake); 0 for no limit."""
    read_timeout: Duration = 60.0
    """How long a client may take for a request's body; 0 for no limit."""
    write_timeout: Duration = 30.0
    """How long a client may take to read an answer; 0 for no limit."""
    idle_timeout: Duration = 60.0
    """How long a connection is kept without a request; 0 for no limit."""
    keep_alives_enabled: bool = True
    """Keep connections for further requests."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_a_port(cls, value: str) -> str:
        split_endpoint(value)
        return value

    @field_validator("compression_algorithms")
    @classmethod
    def _algorithms_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in DECODABLE]:
            raise ValueError(f"{', '.join(unknown)} cannot be decoded; known: {', '.join(sorted(DECODABLE - {''}))}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_bytes_in_flight < self.body_limit:
            raise ValueError("max_bytes_in_flight is smaller than max_request_body_size: the largest request could never be read")
        return self

    @property
    def purpose(self) -> str:
        """What is served, for the table of needs."""
        return "requests"

    @property
    def body_limit(self) -> int:
        """Bytes that a body may have as it is sent."""
        return self.max_request_body_size or 20 << 20

    @property
    def inflated_limit(self) -> int:
        """Bytes that a body may inflate to."""
        return self.max_decompressed_size or 4 * self.body_limit

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        yield Listen(*split_endpoint(self.endpoint), f"{self.purpose} over {'HTTP' if self.tls is None else 'HTTPS'}")

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.include_metadata:
            yield "include_metadata has no effect: no processor reads request headers"


class HttpRefusal(Exception):
    """A request is refused with this status and reason; `retry_after` in seconds where it may be sent again."""

    def __init__(self, status: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the refusal."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer, Basic realm="lockgate"'
        return headers


def refusal_of(error: Exception) -> HttpRefusal:
    """The refusal that tells a client of this: of what may pass later 503, of whatever else is not one already 400."""
    match error:
        case HttpRefusal():
            return error
        case Retryable():
            return HttpRefusal(503, str(error), error.after or 1)
        case _:
            return HttpRefusal(400, str(error))


class Refusals:
    """Counts a receiver's refused requests by status, and logs them now and then."""

    def __init__(self, context: Context, transport: str = "http") -> None:
        self._context, self._transport, self._sometimes = context, transport, Sometimes(context.clock)

    def __call__(self, request: BaseRequest, refusal: HttpRefusal) -> None:
        self._context.metrics.counter(
            "lockgate_receiver_refused_requests",
            "requests answered with an error, by status",
            receiver=self._context.id,
            transport=self._transport,
            status=str(refusal.status),
        ).add()
        if refusal.status < 500 and (kept_back := self._sometimes.now(refusal.status)) is not None:
            more = f" ({kept_back} more like this were not logged)" if kept_back else ""
            self._context.logger.warning("refused a request of %s with %d: %s%s", request.remote, refusal.status, refusal.reason, more)

    def answer(self, request: BaseRequest, error: Exception) -> Response:
        """Counts, logs and answers as plain text what a receiver that takes POST alone cannot take."""
        refusal = refusal_of(error)
        self(request, refusal)
        response = refused(refusal)
        if refusal.status == 405:
            response.headers[hdrs.ALLOW] = hdrs.METH_POST
        return response


Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]
NoteRefused = Callable[[BaseRequest, HttpRefusal], object]


class HttpServer:
    """Serves `handler` at the endpoint between `start` and `stop`."""

    def __init__(
        self,
        settings: HttpServerSettings,
        context: Context,
        handler: Handler,
        note_refused: NoteRefused = lambda request, refusal: None,
    ) -> None:
        """`note_refused` is told of each request that is refused before `handler` sees it."""
        self.settings, self._context, self._handler, self._note_refused = settings, context, handler, note_refused
        self.budget = ByteBudget(settings.max_bytes_in_flight)
        self._encodings = frozenset(settings.compression_algorithms) | ({"identity"} if "" in settings.compression_algorithms else set())
        self._headers = {name: value.get_secret_value() for name, value in settings.response_headers.items()}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._server: _Server | None = None
        self._listener = Listener()
        self._tls = settings.tls.follow(context, ("http/1.1",)) if settings.tls else None
        context.metrics.observe(
            "lockgate_server_bytes_in_flight",
            "bytes of requests being read or not yet acknowledged",
            lambda: self.budget.used,
            component=context.id,
        )
        self._refused = context.metrics.counter(
            "lockgate_server_refused_connections", "connections closed because max_connections was reached", component=context.id
        )

    @property
    def port(self) -> int:
        """The port that is listened on, which differs from the endpoint's where that is 0."""
        return self._listener.port

    async def start(self) -> None:
        """Listens. Raises OSError naming the endpoint."""
        server = self._server = _Server(self._handle, self.settings, self._refused.add, self._note_refused)
        timeout = self.settings.read_header_timeout or None
        tls = self._tls.server_context() if self._tls else None

        async def serve(listening: socket.socket) -> asyncio.Server:
            return await asyncio.get_running_loop().create_server(
                server, sock=listening, ssl=tls, ssl_handshake_timeout=timeout if tls else None, backlog=BACKLOG
            )

        try:
            await self._listener.open(self._context, Address(*split_endpoint(self.settings.endpoint)), serve)
        except OSError as error:
            who = f"{self._context.kind.singular} {self._context.id}"
            cause = os.strerror(error.errno).lower() if error.errno else str(error)
            raise OSError(error.errno, f"cannot listen on {self.settings.endpoint} for {who}: {cause}; set another endpoint") from error

    async def stop(self, drain_seconds: float = 3.0) -> None:
        """Stops listening. Requests under way may end, for so long; what is left then is answered with 503: its sender still has it."""
        await self._listener.close()
        if self._server is not None:
            self._server.pre_shutdown()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_FIRST_REQUEST_SECONDS, drain_seconds)):
                    await self._server.all_used.wait()
            if self._under_way:
                await asyncio.wait(set(self._under_way), timeout=drain_seconds)
            self._stopping = True
            for task in (left := set(self._under_way)):
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=drain_seconds)
            await self._server.shutdown(0.1)
        self._server = None

    @asynccontextmanager
    async def body(self, request: BaseRequest, make: Callable[[bytes], T]) -> AsyncIterator[T]:
        """What `make` makes of the request's body, inflated (by one job in a thread, where it is not small). The inflated bytes count as in
        flight until the block is left. Raises HttpRefusal, and what `make` raises."""
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
        if encoding not in self._encodings:
            accepted = ", ".join(sorted(self._encodings - {""}))
            raise HttpRefusal(415, f"Content-Encoding {encoding or 'identity'} is not accepted; accepted: {accepted}")
        share = Share(self.budget)
        try:
            raw = await self._read(request, share)
            made, size = await self._inflate(raw, encoding, make)
            del raw
            _hold(share, size)
            yield made
        finally:
            share.release()

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """So many bytes more count as in flight inside: what it takes to decode a body. Raises HttpRefusal."""
        if size > self.budget.size:
            raise HttpRefusal(413, f"decoding the body takes some {size} bytes; max_bytes_in_flight is {self.budget.size}")
        share = Share(self.budget)
        try:
            _hold(share, size)
            yield
        finally:
            share.release()

    async def _read(self, request: BaseRequest, share: Share) -> bytes:
        limit, length = self.settings.body_limit, request.content_length
        if length is not None and length > limit:
            raise HttpRefusal(413, f"the body has {length} bytes; at most {limit} are accepted")
        if length:
            _hold(share, length)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.read_timeout or None):
                while piece := await request.content.readany():
                    size += len(piece)
                    if size > limit:
                        raise HttpRefusal(413, f"the body has more than the {limit} bytes that are accepted")
                    if size > share.size:
                        _hold(share, size + _UNKNOWN_LENGTH_STEP)
                    pieces.append(piece)
        except TimeoutError:
            raise HttpRefusal(408, f"the body did not arrive within {self.settings.read_timeout:g} s") from None
        except (PayloadAccessError, RequestPayloadError, ConnectionError) as error:
            raise HttpRefusal(400, f"the body is broken off or malformed: {error}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _inflate(self, raw: bytes, encoding: str, make: Callable[[bytes], T]) -> tuple[T, int]:
        limit = self.settings.inflated_limit
        is_plain = encoding in ("", "identity") or not raw  # a body of no bytes holds nothing, however it is labelled
        if is_plain:
            encoding, limit = "", len(raw)
        try:
            if len(raw) <= (OFFLOAD_BYTES if is_plain else OFFLOAD_BYTES // 4):
                return _inflated(raw, encoding, limit, make)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._context.host.executor, _inflated, raw, encoding, limit, make)
        except TooLarge:
            raise HttpRefusal(413, f"the body inflates to more than the {limit} bytes that are accepted") from None
        except CorruptBody as error:
            raise HttpRefusal(400, f"the body is not what its Content-Encoding says: {error}") from error

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        if self._server is not None and isinstance(request.protocol, _Connection):
            self._server.used(request.protocol)
        try:
            response = await self._answer(request)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            response = refused(HttpRefusal(503, "the server is stopping; try again", _RETRY_SECONDS))
            response.force_close()
        except HttpRefusal as refusal:
            response = refused(refusal)
        except Exception:
            # Not 500, which OTLP's clients take for "never": the data is good, the fault is ours, and a retry may pass.
            self._context.logger.exception("a request failed for a fault of our own; please report it")
            response = refused(HttpRefusal(503, "internal error", _RETRY_SECONDS))
        if not request.content.is_eof() or not self.settings.keep_alives_enabled:
            # Whatever of the body is still to come would be read for nothing, or taken for the next request.
            response.force_close()
        response.headers.update({"Server": "lockgate"} | self._headers)
        self._add_cors(request, response)
        try:
            async with asyncio.timeout(self.settings.write_timeout or None):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            request.protocol.force_close()
        return response

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers and self._origin(request):
            return Response(status=204)
        if self.settings.auth is not None:
            try:
                headers = {name.lower(): value for name, value in request.headers.items()}
                await self._context.host.extension(self.settings.auth.authenticator).authenticate(headers)
            except PermissionError as error:
                refusal = HttpRefusal(401, f"not authenticated: {error}")
                self._note_refused(request, refusal)
                raise refusal from None
        return await self._handler(request)

    def _origin(self, request: BaseRequest) -> str | None:
        origin = request.headers.get(hdrs.ORIGIN, "")
        return origin if origin and any(fnmatch.fnmatchcase(origin, pattern) for pattern in self.settings.cors.allowed_origins) else None

    def _add_cors(self, request: BaseRequest, response: StreamResponse) -> None:
        cors, origin = self.settings.cors, self._origin(request)
        if origin is None:
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        if cors.exposed_headers:
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(cors.exposed_headers)
        if request.method == hdrs.METH_OPTIONS:
            asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            allowed = asked if "*" in cors.allowed_headers else ", ".join((hdrs.CONTENT_TYPE, *cors.allowed_headers))
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "POST"
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = allowed
            if cors.max_age:
                response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(cors.max_age)


def _inflated(raw: bytes, encoding: str, limit: int, make: Callable[[bytes], T]) -> tuple[T, int]:
    payload = decompress(raw, encoding, limit)
    return make(payload), len(payload)


def refused(refusal: HttpRefusal) -> Response:
    """The refusal as plain text; protocols with an error format of their own catch HttpRefusal themselves."""
    return Response(status=refusal.status, text=refusal.reason + "\n", headers=refusal.headers)


def _hold(share: Share, size: int) -> None:
    if not share.resize(size):
        raise HttpRefusal(503, "as many bytes are in flight as are accepted; try again", _RETRY_SECONDS)


class _Server(Server):
    """aiohttp's server, with our connections: bounded in number and in the time that a request's head may take."""

    def __init__(self, handler: Handler, settings: HttpServerSettings, refuse: Callable[[], Any], note_refused: NoteRefused) -> None:
        super().__init__(handler)
        self.settings, self.refuse, self.note_refused = settings, refuse, note_refused
        self.all_used = asyncio.Event()
        self.all_used.set()
        self._unused: set[_Connection] = set()
        """Had no request yet."""
        self._ending = False

    def made(self, connection: "_Connection") -> None:
        """This connection waits for its first request."""
        self._unused.add(connection)
        self.all_used.clear()

    def used(self, connection: "_Connection") -> None:
        """This connection has a request, or is gone."""
        self._unused.discard(connection)
        if not self._unused:
            self.all_used.set()
        if self._ending:
            connection.close()

    def pre_shutdown(self) -> None:
        """Ends connections that wait for their next request; those that wait for their first one end after it."""
        self._ending = True
        for connection in self.connections:
            if connection not in self._unused:
                connection.close()

    def __call__(self) -> RequestHandler:
        return _Connection(self)


class _Connection(RequestHandler):
    __slots__ = ("_deadline", "_owner")

    def __init__(self, owner: _Server) -> None:
        super().__init__(
            owner,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=owner.settings.idle_timeout or 10 * 365 * 86400.0,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # None turns it off; the annotation forgot that
            lingering_time=1.0,
            read_bufsize=256 << 10,
        )
        self._owner = owner
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._owner.connections) >= self._owner.settings.max_connections:
            self._owner.refuse()
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        super().connection_made(transport)
        self._owner.made(self)
        self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._owner.used(self)
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Between requests, bytes that do not complete a head start its clock (slowloris); a complete head stops it.
        is_waiting = self._waiter is not None and not self._waiter.done()
        if not is_waiting:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def log_exception(self, *arguments: Any, **keywords: Any) -> None:
        # What reaches this is a client's malformed request, answered with 400: no error of ours, and no traceback in our log.
        self.logger.debug(*arguments, **keywords)

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        self._owner.note_refused(request, HttpRefusal(status, f"not HTTP as it should be: {(message or repr(exc)).partition(chr(10))[0]}"))
        response = super().handle_error(request, status, exc, message)
        response.headers["Server"] = "lockgate"
        return response

    def _arm(self) -> None:
        if seconds := self._owner.settings.read_header_timeout:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        self.force_close()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
