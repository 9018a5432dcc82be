"""A gRPC server for handlers of raw messages, bounded in everything that a client decides: connections, streams, bytes, time.

What a handler raises becomes the status that makes a client do the right thing with its data (OTLP 1.5, "OTLP/gRPC Response"):

    Retryable           UNAVAILABLE, with RetryInfo where a delay is known    the client keeps the data and tries again
    Permanent           INVALID_ARGUMENT, with the reason                      the client drops them, and says why
    GrpcError           as it says
    PermissionError     UNAUTHENTICATED, by an authenticating extension
    anything else       UNAVAILABLE: a bug of ours is logged as one, and is no reason for a client to drop data (UNKNOWN and INTERNAL are)
"""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from grpclib.const import Status
from grpclib.metadata import decode_timeout
from grpclib.protocol import Stream
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame, PingFrame

from lockgate.kit.sometimes import Sometimes
from lockgate.net.budget import ByteBudget, Share
from lockgate.net.compression import CorruptBody, TooLarge, compress_off_loop, decompress
from lockgate.net.grpc import (
    BoundedStream,
    GrpcError,
    Handler,
    Protocol,
    frame,
    keepalive,
    plain_headers,
    read_prefix,
    refuse,
    status_headers,
)
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.net.listener import BACKLOG, Address, Listener
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Permanent, Retryable

ENCODINGS = {"identity": "", "gzip": "gzip", "zstd": "zstd", "snappy": "x-snappy-framed"}
"""gRPC's names for compressions, and ours."""

MAX_REQUESTS = 1024
"""Open requests of all clients together; each costs up to a stream's window before the byte budget is asked."""

MAX_RESETS = 200
"""Requests that a client may reset, beyond as many as it completes, before its connection is closed (CVE-2023-44487)."""

USUAL_RATIO = 16
"""Telemetry shrinks to a tenth or so; a message that grows by more is inflated only when the budget for the worst case is free."""

INFLATE_INLINE_BYTES = 8192
"""Compressed messages up to this are inflated on the loop: at the usual ratio (0.1 ms) that costs less than handing them to a thread."""

REPLY_COMPRESSION_BYTES = 1024
"""Answers up to this are sent as they are: OTLP's are empty, or one sentence."""
PREFACE_SECONDS = 20.0
HANDSHAKE_SECONDS = 10.0
FAREWELL = b"farewell"
FAREWELL_SECONDS = 1.0
"""How long a client may take to answer that it knows that the connection ends."""


class Call:
    """One request: who sent it, its metadata, its messages as bytes."""

    def __init__(self, server: "GrpcServer", stream: BoundedStream, headers: dict[str, str], peer: str) -> None:
        self.method = headers.get(":path", "")
        self.peer = peer
        """The client's address, without its port."""
        self.headers: Mapping[str, str] = headers
        """Request headers by lower-case name; repeated ones are joined by commas."""
        self._server, self._stream = server, stream
        self._share = Share(server.budget)
        self._encoding = headers.get("grpc-encoding", "identity")
        self._answering = ""
        self._is_between = False

    async def receive(self, within: float | None = None) -> bytes | None:
        """The next message, inflated, which must begin within so many seconds; None at the stream's end.

        The budget holds it until the next one is asked for, or the call ends.

        Raises GrpcError for a message that is too large, or not what its headers say, or slow.
        """
        self.release()
        self._is_between = True
        try:
            async with asyncio.timeout(within):
                prefix = await self._next_prefix()
        except TimeoutError:
            raise GrpcError(Status.UNAVAILABLE, f"no message came within {within:g} s") from None
        self._is_between = False
        if prefix is None:
            return None
        compressed, size = prefix
        limit = self._server.limit
        if size > limit:
            raise _too_large(f"received message larger than max ({size} vs. {limit})")
        encoding = ENCODINGS.get(self._encoding, "")
        if compressed and not encoding:
            raise GrpcError(Status.INTERNAL, f"the message is compressed, and grpc-encoding is {self._encoding}")
        usual = min(size * USUAL_RATIO, limit) if compressed else 0
        await self._share.wait_for(size + usual)
        try:
            async with asyncio.timeout(self._server.read_timeout):
                body = await self._stream.recv_data(size) if size else b""
        except EOFError as error:
            raise GrpcError(Status.INTERNAL, str(error)) from None
        except TimeoutError:
            raise GrpcError(Status.UNAVAILABLE, f"the message took longer than {self._server.read_timeout:g} s to arrive") from None
        if len(body) < size:
            raise GrpcError(Status.INTERNAL, "the stream ended before the message")
        if not compressed:
            return body
        try:
            try:
                inflated = await self._inflate(body, encoding, usual)
            except TooLarge:
                if usual == limit:
                    raise
                # Nothing is held while the worst case is waited for, so that several of these never wait for each other.
                await self._share.wait_for(size + limit)
                inflated = await self._inflate(body, encoding, limit)
        except TooLarge:
            raise _too_large(f"received message after decompression larger than max ({limit})") from None
        except CorruptBody as error:
            raise GrpcError(Status.INVALID_ARGUMENT, f"cannot inflate the message: {error}") from None
        self._share.resize(len(inflated))  # never more than was reserved
        return inflated

    async def each(self, handle: Callable[[bytes], Awaitable[None]]) -> None:
        """Hands every message of the stream to `handle`, one after the other: nothing is read while one is handled.

        What a client had sent when it went away, or when this server stops, is still handled, as far as it is here; at a stop the client is
        then asked to connect again (UNAVAILABLE). The first message must begin within the read time-out; after it a stream may be silent
        for as long as its client answers PINGs.
        """
        server, stream = self._server, self._stream
        task = asyncio.current_task()
        assert task is not None
        server.streams[self] = task
        stream.reads_on = True
        try:
            message = await self.receive(server.read_timeout)
            while message is not None:
                await handle(message)
                if server.stopping:
                    stream.cut()
                message = await self.receive()
        except GrpcError:
            if not (stream.was_cut and server.stopping):
                raise
        finally:
            stream.reads_on = False
            del server.streams[self]
        if stream.was_cut and server.stopping:
            raise GrpcError(Status.UNAVAILABLE, "this server stops; connect again")

    def wait_no_longer(self) -> None:
        """Ends `each` where it waits for a message that has not begun."""
        if self._is_between:
            self._stream.cut()

    async def send(self, message: bytes) -> None:
        """Answers with this message, compressed as the request was where that is worth it."""
        if not self._answering:
            accepted = self.headers.get("grpc-accept-encoding", self._encoding).replace(" ", "").split(",")
            worth_it = len(message) > REPLY_COMPRESSION_BYTES and self._encoding in accepted
            self._answering = self._encoding if worth_it else "identity"
            await self._stream.send_headers([*_RESPONSE, ("grpc-encoding", self._answering)])
        encoding = ENCODINGS[self._answering]
        if encoding:
            message = await compress_off_loop(self._server.executor, message, encoding.removeprefix("x-").removesuffix("-framed"))
        await self._stream.send_data(frame(message, bool(encoding)))

    async def finish(self, error: GrpcError | None) -> None:
        """Ends the response; `serve` calls it."""
        trailers = status_headers(error.status, error.message, error.retry_after) if error else status_headers(Status.OK)
        await self._stream.send_headers(trailers if self._answering else [*_RESPONSE, *trailers], end_stream=True)
        if self._stream.closable:
            # The client is still sending what nobody reads: tell it to stop (RFC 9113, 8.1).
            self._stream.reset_nowait(ErrorCodes.NO_ERROR)

    def release(self) -> None:
        """Gives back what is held of the budget."""
        self._share.release()

    async def _inflate(self, body: bytes, encoding: str, limit: int) -> bytes:
        if limit <= INFLATE_INLINE_BYTES * USUAL_RATIO:
            return decompress(body, encoding, limit)
        return await asyncio.get_running_loop().run_in_executor(self._server.executor, decompress, body, encoding, limit)

    async def _next_prefix(self) -> tuple[bool, int] | None:
        try:
            return await read_prefix(self._stream)
        except EOFError as error:
            raise GrpcError(Status.INTERNAL, str(error)) from None


Method = Callable[[Call], Awaitable[None]]
"""Handles one request: receives its messages and sends its answers. Returning is status OK."""

_RESPONSE = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", ",".join(ENCODINGS))]


def unary(handle: Callable[[bytes, Call], Awaitable[bytes]]) -> Method:
    """A method of one message in and one out."""

    async def method(call: Call) -> None:
        message = await call.receive()
        if message is None:
            raise GrpcError(Status.INTERNAL, "the request has no message")
        await call.send(await handle(message, call))

    return method


def streaming(begin: Callable[[Call], Callable[[bytes], Awaitable[None]]]) -> Method:
    """A method of many messages in and none out; `begin` gives, for each call, what is to be done with a message. See `Call.each`."""

    async def method(call: Call) -> None:
        await call.each(begin(call))

    return method


def _too_large(what: str) -> GrpcError:
    # Without RetryInfo, which for OTLP says that trying again is of no use; in grpc-go's words, which clients know.
    return GrpcError(Status.RESOURCE_EXHAUSTED, f"grpc: {what}; raise max_recv_msg_size_mib, or send smaller batches")


class GrpcServer:
    """Listens while it is entered. Leaving sends every client a GOAWAY, lets the requests under way finish, and then closes.

    Cancel the leaving to end what still runs. The methods are keyed by path: "/package.Service/Method".
    """

    def __init__(self, settings: GrpcServerSettings, methods: Mapping[str, Method], context: Context) -> None:
        self.settings, self.context = settings, context
        self.budget = ByteBudget(settings.max_bytes_in_flight)
        self.methods = methods
        self.limit = settings.max_recv_msg_size_mib * 2**20
        self.read_timeout = settings.read_timeout or None
        self.executor = context.host.executor
        self.stopping = False
        self.requests = 0
        self.connections: set[_Connection] = set()
        self.streams: dict[Call, asyncio.Task[Any]] = {}
        """Those that hand on many messages, and who does: they may outlive their connection."""
        self.port = 0
        """The port listened at, once entered: the configured one, or the system's choice where that is 0."""
        self._listener = Listener()
        self._entered = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._warned = Sometimes(context.clock, 60.0)
        metrics, labels = context.metrics, {"receiver": context.id}
        self.refused = {
            reason: metrics.counter("lockgate_grpc_refused", "connections and requests refused before a handler", reason=reason, **labels)
            for reason in ("connections", "requests", "protocol", "authentication")
        }
        metrics.observe("lockgate_grpc_connections", "open connections of clients", lambda: len(self.connections), **labels)

    async def __aenter__(self) -> "GrpcServer":
        family = {"tcp": socket.AF_UNSPEC, "tcp4": socket.AF_INET, "tcp6": socket.AF_INET6}[self.settings.transport]
        tls = self.settings.tls.follow(self.context, ["h2"]).server_context() if self.settings.tls else None
        extra: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS} if tls else {}

        async def serve(listening: socket.socket) -> asyncio.Server:
            return await asyncio.get_running_loop().create_server(self._accept, sock=listening, backlog=BACKLOG, **extra)

        try:
            await self._listener.open(self.context, Address(*self.settings.address, family), serve)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen for gRPC at {self.settings.endpoint}: {error.strerror or error}; choose another endpoint"
            ) from error
        self.port = self._listener.port
        self._entered = True
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._entered:
            return
        self._entered = False
        try:
            await self._listener.close()
            self.stopping = True
            for connection in list(self.connections):
                connection.say_goaway()
            for call in self.streams:
                call.wait_no_longer()
            await self._empty.wait()
            await self._end_streams()
        finally:
            self.stopping = True
            for connection in list(self.connections):
                connection.protocol.processor.close("the server stops")
            for task in self.streams.values():
                task.cancel()
            await self._empty.wait()  # as long as closing lingers, at most
            await self._end_streams()

    async def _end_streams(self) -> None:
        if self.streams:
            await asyncio.wait(list(self.streams.values()))

    def _accept(self) -> Protocol:
        times = self.settings.keepalive.server_parameters
        config = keepalive(times.time or None, times.timeout or 20.0, without_streams=True)
        streams = self.settings.max_concurrent_streams or 100
        return Protocol(_Connection(self), client_side=False, keepalive=config, streams=streams, paced=True)

    def warn(self, reason: str, text: str) -> None:
        """One line a minute for each reason: a port scanner writes no log of ours full."""
        if (kept_back := self._warned.now(reason)) is not None:
            more = f" ({kept_back} more of these since the last line)" if kept_back else ""
            self.context.logger.warning("%s%s", text, more)

    def count(self, call: Call, error: GrpcError) -> None:
        """Counts a request that is answered with an error; what the client must change is logged, now and then."""
        self.context.metrics.counter(
            "lockgate_receiver_refused_requests",
            "requests answered with an error, by status",
            receiver=self.context.id,
            transport="grpc",
            status=error.status.name,
        ).add()
        if error.status in (Status.INVALID_ARGUMENT, Status.RESOURCE_EXHAUSTED, Status.UNIMPLEMENTED):
            self.warn(f"{error.status}", f"refused {call.method} of {call.peer}: {error}")

    def added(self, connection: "_Connection") -> None:
        self.connections.add(connection)
        self._empty.clear()

    def removed(self, connection: "_Connection") -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def serve(self, call: Call) -> GrpcError | None:
        """Runs the method that the call asks for, and gives the error to answer with."""
        try:
            method = self.methods.get(call.method)
            if method is None:
                return GrpcError(Status.UNIMPLEMENTED, f"unknown method {call.method}; this listener has {', '.join(self.methods)}")
            if (encoding := call.headers.get("grpc-encoding", "identity")) not in ENCODINGS:
                return GrpcError(Status.UNIMPLEMENTED, f"grpc-encoding {encoding} is not supported; {', '.join(ENCODINGS)} are")
            deadline = call.headers.get("grpc-timeout")
            async with asyncio.timeout(decode_timeout(deadline) if deadline else None) as timer:
                await self._authenticate(call)
                await method(call)
        except GrpcError as error:
            return error
        except Retryable as error:
            return GrpcError(Status.UNAVAILABLE, str(error), error.after)
        except Permanent as error:
            return GrpcError(Status.INVALID_ARGUMENT, str(error))
        except ProtocolError:
            raise  # the stream is gone: nobody is there to answer
        except Exception as error:
            if isinstance(error, TimeoutError) and timer.expired():
                return GrpcError(Status.DEADLINE_EXCEEDED, f"not done within the client's {deadline}")
            if isinstance(error, ValueError) and "Invalid timeout" in str(error):
                return GrpcError(Status.INVALID_ARGUMENT, f"grpc-timeout {deadline!r} is no time-out")
            self.context.logger.exception("a bug: cannot handle %s from %s; the client is asked to try again", call.method, call.peer)
            return GrpcError(Status.UNAVAILABLE, "internal error; it is in the server's log")
        return None

    async def _authenticate(self, call: Call) -> None:
        if self.settings.auth is None:
            return
        try:
            await self.context.host.extension(self.settings.auth.authenticator).authenticate(call.headers)
        except PermissionError as error:
            self.refused["authentication"].add()
            self.warn("authentication", f"refused {call.method} from {call.peer}: {error}")
            raise GrpcError(Status.UNAUTHENTICATED, str(error)) from None


class _Connection(Handler):
    """A client's connection: its requests, its age."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._tasks: dict[Stream, asyncio.Task[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._peer = ""
        self._draining = False
        self._last_stream_id = 0  # of those that were accepted: what a GOAWAY leaves out is tried elsewhere
        self._leaving = False
        self._resets = 0
        self._last_ping = 0.0
        self._strikes = 0

    def made(self, transport: asyncio.Transport) -> bool:
        # An IPv4 client of a dual-stack socket; pods are known by the plain address.
        self._peer = str((transport.get_extra_info("peername") or ("",))[0]).removeprefix("::ffff:")
        server, times = self._server, self._server.settings.keepalive.server_parameters
        server.added(self)
        if server.stopping or len(server.connections) > server.settings.max_connections:
            server.refused["connections"].add()
            server.warn(
                "connections", f"refused a connection from {self._peer}: {server.settings.max_connections} are open; see max_connections"
            )
            return False
        if server.settings.write_buffer_size:
            transport.set_write_buffer_limits(server.settings.write_buffer_size)
        self._later("preface", PREFACE_SECONDS, self._abort)
        if times.max_connection_age:
            self._later("age", times.max_connection_age * random.uniform(0.9, 1.1), self.say_goaway)
        self._idle()
        return True

    def ready(self) -> None:
        self._cancel("preface")

    def accept(self, stream: Stream, headers: list[tuple[str, str]], release_stream: Callable[[], None]) -> None:
        server = self._server
        if self._draining:
            refuse(stream)
            release_stream()
            return
        self._last_stream_id = stream.id or 0
        self._cancel("idle")
        server.requests += 1
        task = asyncio.get_running_loop().create_task(self._handle(stream, plain_headers(headers), release_stream))
        self._tasks[stream] = task
        task.add_done_callback(lambda _: self._done(stream))

    def cancel(self, stream: Stream) -> None:
        assert isinstance(stream, BoundedStream)
        if stream.reads_on:
            stream.cut()
        elif stream in self._tasks:
            self._tasks[stream].cancel()

    def reset(self) -> None:
        self._resets += 1
        if self._resets > MAX_RESETS:
            self._server.refused["protocol"].add()
            self._server.warn("resets", f"closed the connection of {self._peer}: it resets requests as fast as it opens them")
            self._close(ErrorCodes.ENHANCE_YOUR_CALM)

    def pinged(self) -> None:
        policy = self._server.settings.keepalive.enforcement_policy
        if policy is None:
            return
        now = time.monotonic()
        allowed = policy.permit_without_stream or self._tasks
        self._strikes += 1 if now - self._last_ping < policy.min_time or not allowed else 0
        self._last_ping = now
        if self._strikes > 2:
            self._server.refused["protocol"].add()
            self._close(ErrorCodes.ENHANCE_YOUR_CALM, b"too_many_pings")

    def drain(self, last_stream_id: int) -> None:
        """The client wants nothing more of this connection; it closes it itself once its requests are answered."""

    def broken(self, reason: str) -> None:
        self._server.refused["protocol"].add()
        self._server.warn("protocol", f"closed the connection of {self._peer}, which does not speak HTTP/2 as it should: {reason}")

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for stream in self._tasks:
            self.cancel(stream)

    def lost(self) -> None:
        self._server.removed(self)

    def say_goaway(self) -> None:
        """Asks the client to go elsewhere with new requests, and closes when those under way are done."""
        if self._leaving or self.protocol.connection.is_closing():
            return
        self._leaving = True
        # What the client sends before it knows is served (RFC 9113, 6.8): the first GOAWAY refuses nothing, and the answer to the PING
        # comes after whatever the client had sent.
        self._write_goaway(2**31 - 1)
        self.protocol.connection.transport.write(PingFrame(0, FAREWELL).serialize())
        self._later("farewell", FAREWELL_SECONDS, self._drain)

    def answered(self, data: bytes) -> None:
        if data == FAREWELL:
            self._drain()

    def _write_goaway(self, last_stream_id: int) -> None:
        # Not through h2, for which a GOAWAY sent is a connection closed, and the answers under way could not be sent any more.
        goaway = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=ErrorCodes.NO_ERROR)
        self.protocol.connection.transport.write(goaway.serialize())

    def _drain(self) -> None:
        if self._draining or self.protocol.connection.is_closing():
            return
        self._draining = True
        self._cancel("farewell")
        self._write_goaway(self._last_stream_id)
        if grace := self._server.settings.keepalive.server_parameters.max_connection_age_grace:
            self._later("grace", grace, lambda: self.protocol.processor.close("the connection's time is over"))
        self._close_when_done()

    async def _handle(self, stream: Stream, headers: dict[str, str], release_stream: Callable[[], None]) -> None:
        assert isinstance(stream, BoundedStream)
        call = Call(self._server, stream, headers, self._peer)
        try:
            if refusal := _not_grpc(headers):
                await stream.send_headers([(":status", refusal), ("grpc-accept-encoding", "identity")], end_stream=True)
                if stream.closable:
                    stream.reset_nowait(ErrorCodes.NO_ERROR)
            elif self._server.requests > MAX_REQUESTS:
                self._server.refused["requests"].add()
                await call.finish(GrpcError(Status.UNAVAILABLE, f"more than {MAX_REQUESTS} requests are open here", 1.0))
            else:
                error = await self._server.serve(call)
                if error is not None:
                    self._server.count(call, error)
                if not self.protocol.connection.is_closing():  # it may have outlived it
                    await call.finish(error)
        except (ProtocolError, OSError, AttributeError) as error:
            # The client, or its stream, went while it was answered. (AttributeError: grpclib takes a closed connection's transport away.)
            if isinstance(error, AttributeError) and not self.protocol.connection.is_closing():
                raise
        finally:
            call.release()
            release_stream()

    def _done(self, stream: Stream) -> None:
        self._server.requests -= 1
        task = self._tasks.pop(stream)
        if not task.cancelled():
            if not (isinstance(stream, BoundedStream) and stream.was_cut):
                self._resets = max(0, self._resets - 1)
            if (error := task.exception()) is not None:
                self._server.context.logger.error("a bug: cannot answer %s", self._peer, exc_info=error)
        self._idle()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._draining and not self._tasks:
            self.protocol.processor.close("the connection has been drained")

    def _idle(self) -> None:
        seconds = self._server.settings.keepalive.server_parameters.max_connection_idle
        if seconds and not self._tasks and not self._draining:
            self._later("idle", seconds, self.say_goaway)

    def _close(self, code: ErrorCodes, text: bytes = b"") -> None:
        connection = self.protocol.connection
        if not connection.is_closing():
            goaway = GoAwayFrame(0, last_stream_id=self._last_stream_id, error_code=code, additional_data=text)
            connection.transport.write(goaway.serialize())
            self.protocol.processor.close("the client broke the rules")

    def _abort(self) -> None:
        self.broken(f"no HTTP/2 preface within {PREFACE_SECONDS:g} s")
        self.protocol.processor.close("no preface")

    def _later(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, action)

    def _cancel(self, name: str) -> None:
        with suppress(KeyError):
            self._timers.pop(name).cancel()


def _not_grpc(headers: Mapping[str, str]) -> str:
    """The HTTP status for a request that is none of gRPC's; empty for one that is (gRPC over HTTP2, "Requests")."""
    if headers.get(":method") != "POST":
        return "405"
    kind = headers.get("content-type", "").partition(";")[0]
    if kind not in ("application/grpc", "application/grpc+proto"):
        return "415"
    return ""
