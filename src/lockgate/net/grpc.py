"""What gRPC's server and client share: statuses, the length-prefixed message, and HTTP/2 connections that stay bounded.

grpclib brings HTTP/2 over asyncio (its `protocol` module: streams, flow control, keepalive) and gRPC's metadata. Its Server and Channel are
not used: they compress nothing, limit no message, answer a bug with UNKNOWN (which OTLP calls permanent) and, at a GOAWAY, end the requests
that are under way. What is built upon its protocol classes here is done by subclassing; nothing is patched.
"""

import asyncio
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.metadata import decode_bin_value, encode_bin_value, encode_grpc_message
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from h2.exceptions import FrameTooLargeError, ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings

STREAM_WINDOW = 65_535
"""Bytes that may arrive on a stream before somebody asks for them (HTTP/2's own default): what a request costs before the byte budget
admits it."""

CONNECTION_WINDOW = 4 * 2**20
"""Bytes under way on a connection, all streams together: a matter of speed, not of memory."""

FRAME_SIZE = 64 * 1024
"""Largest DATA frame asked for: fewer frames are less work (HTTP/2's default is 16 KiB)."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, 3.4)."""

HEADER_BYTES = 16 * 1024
"""Largest header list accepted, uncompressed: bearer tokens fit, floods do not (grpc-go accepts 16 MiB, grpcio 8 KiB)."""

LINGER_SECONDS = 2.0
"""How long a connection that is being closed waits for its peer to read the rest."""

MAX_STATUS_MESSAGE = 1024
"""Characters of a reason that go on the wire; proxies refuse long header lists."""


class GrpcError(Exception):
    """A call's outcome that is not OK. `retry_after` is RetryInfo's delay in seconds, where there is one."""

    def __init__(self, status: Status, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message}"


def status_headers(status: Status, message: str = "", retry_after: float | None = None) -> list[tuple[str, str]]:
    """The headers that end a response (gRPC over HTTP2, "Responses"); RetryInfo as in OTLP 1.5, "OTLP/gRPC Throttling"."""
    headers = [("grpc-status", str(status.value))]
    if message:
        message = message[:MAX_STATUS_MESSAGE]
        headers.append(("grpc-message", encode_grpc_message(message)))
    if retry_after is not None:
        info = RetryInfo()
        info.retry_delay.FromNanoseconds(int(retry_after * 1e9))
        detail = AnyMessage()
        detail.Pack(info)
        body = StatusMessage(code=status.value, message=message, details=[detail]).SerializeToString()
        headers.append(("grpc-status-details-bin", encode_bin_value(body).decode("ascii")))
    return headers


def read_status(headers: Mapping[str, str]) -> GrpcError | None:
    """The error that these trailers tell, or None for OK. Malformed ones are an UNKNOWN error, never an exception."""
    from grpclib.metadata import decode_grpc_message

    text = headers.get("grpc-status")
    if text is None:
        return GrpcError(Status.UNKNOWN, "the server ended the response without a grpc-status")
    try:
        status = Status(int(text))
    except ValueError:
        return GrpcError(Status.UNKNOWN, f"the server sent grpc-status {text!r}, which is none")
    if status is Status.OK:
        return None
    return GrpcError(status, decode_grpc_message(headers.get("grpc-message", "")), _retry_after(headers.get("grpc-status-details-bin")))


def _retry_after(details: str | None) -> float | None:
    if details is None:
        return None
    try:
        message = StatusMessage.FromString(decode_bin_value(details.encode("ascii")))
        for detail in message.details:
            info = RetryInfo()
            if detail.Unpack(info):
                return max(0.0, float(info.retry_delay.ToNanoseconds()) / 1e9)
    except (ValueError, TypeError, DecodeError):
        return None
    return None


def frame(message: bytes, compressed: bool) -> bytes:
    """A length-prefixed message (gRPC over HTTP2, "Length-Prefixed-Message")."""
    return struct.pack(">?I", compressed, len(message)) + message


async def read_prefix(stream: Stream) -> tuple[bool, int] | None:
    """Whether the next message is compressed, and its length; None at the stream's end. Raises GrpcError."""
    prefix = await stream.recv_data(5)
    if not prefix:
        return None
    if prefix[0] > 1:
        raise GrpcError(Status.INTERNAL, f"a message begins with the byte {prefix[0]}, which is neither 0 nor 1")
    return bool(prefix[0]), int.from_bytes(prefix[1:], "big")


class _Frames(FrameBuffer):
    """h2's buffer, for which a frame is too large as soon as its head says so: h2 waits for all of it first, up to 16 MiB a connection."""

    def __init__(self, server: bool) -> None:
        super().__init__(server)
        self._until_head = len(PREFACE) if server else 0
        self._head = b""
        self._is_too_large = False

    def add_data(self, data: Any) -> None:
        super().add_data(data)
        position = 0
        while not self._is_too_large:
            position += self._until_head
            self._until_head = max(0, position - len(data))
            head = data[position : position + 9 - len(self._head)]
            self._head += head
            if len(self._head) < 9:
                return
            position += len(head)
            self._until_head = int.from_bytes(self._head[:3], "big")
            self._head = b""
            self._is_too_large = self._until_head > FRAME_SIZE

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            if self._is_too_large:
                raise FrameTooLargeError(f"a frame of {self._until_head} bytes; at most {FRAME_SIZE} are accepted") from None
            raise


class _Http2(H2Connection):
    """h2's connection, with `_Frames`; and a GOAWAY without an error does not end the streams that are under way.

    RFC 9113, 6.8: streams up to the GOAWAY's last one may finish. h2 closes its state machine instead, and then takes the answers to those
    streams for protocol errors. grpc-go sends such a GOAWAY at max_connection_age and when it stops. See
    test_requests_under_way_finish_when_the_server_says_goaway.
    """

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.incoming_buffer = _Frames(server=not config.client_side)

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Any]]:
        if frame.error_code != ErrorCodes.NO_ERROR:
            return super()._receive_goaway_frame(frame)
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id, event.additional_data = ErrorCodes.NO_ERROR, frame.last_stream_id, None
        return [], [event]


class _Buffer:
    """A stream's received bytes, in one piece; grpclib's keeps a tuple per frame, so that frames of one byte cost 200 times themselves.

    The stream's window is all that may arrive unasked. Reading more than that opens the window by what is missing, once: a reader that
    holds a budget for a message gets it whole, and nobody else's bytes come in before they are wanted.
    """

    def __init__(self, stream_id: int, connection: "_Connection") -> None:
        self._stream_id, self._connection = stream_id, connection
        self._bytes = bytearray()
        self._wanted = 0
        self.ended = False
        self._enough = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        self._connection.ack(self._stream_id, ack_size)
        self._bytes += data
        if len(self._bytes) >= self._wanted > 0:
            self._enough.set()

    def eof(self) -> None:
        self.ended = True
        self._enough.set()

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes; none at the end. Raises EOFError where the stream ends in between."""
        if len(self._bytes) < size and not self.ended:
            self._wanted = size
            self._enough.clear()
            self._connection.expect(self._stream_id, size - len(self._bytes))
            try:
                await self._enough.wait()
            finally:
                self._wanted = 0
        if len(self._bytes) < size:
            if not self._bytes:
                return b""
            raise EOFError(f"the stream ended after {len(self._bytes)} of {size} bytes")
        result = bytes(memoryview(self._bytes)[:size])
        del self._bytes[:size]
        return result

    def unacked_size(self) -> int:
        self._bytes.clear()
        return 0


def refuse(stream: Stream) -> None:
    """Says that the request has not been looked at, so that it may be tried elsewhere (RFC 9113, 8.7).

    A peer that has reset it since, in the same read, need not be told, and h2 raises for a reset of what is closed.
    """
    if stream.closable:
        stream.reset_nowait(ErrorCodes.REFUSED_STREAM)


class BoundedStream(Stream):
    """A stream that holds no more of what it receives than is asked for."""

    connection: "_Connection"
    unprocessed = False
    """The peer has not looked at it, and will not."""
    sent = False
    """A client's request has been sent to its end."""
    reads_on = False
    """Of a server: when the client goes, what has come is still read, and whoever reads is not cancelled."""

    def init_stream(self, stream_id: int, connection: Connection) -> None:
        super().init_stream(stream_id, connection)
        assert isinstance(connection, _Connection)
        self.buffer = _Buffer(stream_id, connection)  # type: ignore[assignment]  # what grpclib calls on it, it has

    was_cut = False
    """Its end is not the client's."""

    def cut(self) -> None:
        """What has come is all that will be read."""
        assert isinstance(self.buffer, _Buffer)
        self.was_cut = self.was_cut or not self.buffer.ended
        self.buffer.eof()

    def __terminated__(self, reason: str) -> None:
        # An answer that came whole, in one read with what ends the stream or its connection, is about to be read.
        if not self.sent or self.trailers is None:
            super().__terminated__(reason)


class _Connection(Connection):
    _credit = 0
    lingering: asyncio.TimerHandle | None = None

    def create_stream(self, *, stream_id: int | None = None, wrapper: Any = None) -> BoundedStream:
        return BoundedStream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)

    def ack(self, stream_id: int, size: int) -> None:
        """Opens the connection's window again by what has arrived, at once: the streams' own windows are the bound on memory.

        A connection's window that opens as data is read would let streams that wait for the byte budget starve those that have it.
        """
        self._credit += size
        if self._credit >= CONNECTION_WINDOW // 4 and not self.is_closing():
            self._connection.increment_flow_control_window(self._credit)
            self._credit = 0

    def expect(self, stream_id: int, size: int) -> None:
        """Lets the peer send this many bytes more on a stream."""
        if self.is_closing() or stream_id not in self._connection.streams:
            return
        window = self._connection.remote_flow_control_window(stream_id)
        if window < size:
            self._connection.increment_flow_control_window(size - window + STREAM_WINDOW, stream_id)
            self.flush()

    def flush(self) -> None:
        if not self.is_closing():
            super().flush()

    def close(self) -> None:
        """Closes when what is written has been read, or soon: a peer that does not read keeps no connection of ours."""
        if hasattr(self, "_transport"):
            self.lingering = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)
        super().close()

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport


class Handler(AbstractHandler):
    """What a connection's owner is told."""

    protocol: "Protocol"

    def lost(self) -> None:
        """The connection's socket is gone."""

    def made(self, transport: asyncio.Transport) -> bool:
        """A connection is there; False refuses it."""
        return True

    def ready(self) -> None:
        """The peer has shown that it speaks HTTP/2."""

    def pinged(self) -> None:
        """The peer sent a PING."""

    def answered(self, data: bytes) -> None:
        """The peer answered a PING with this data."""

    def reset(self) -> None:
        """The peer reset a stream."""

    def drain(self, last_stream_id: int) -> None:
        """The peer wants no new streams; those up to this one may finish."""

    def broken(self, reason: str) -> None:
        """The peer broke HTTP/2's rules, and the connection is closed for it."""


class _Events(EventsProcessor):
    handler: Handler

    def process(self, event: Any) -> None:
        # grpclib raises for events that it does not know, and an unknown frame is to be ignored (RFC 9113, 5.5).
        handle = getattr(self, "processors", {}).get(type(event))
        if handle is not None:
            handle(event)

    def process_data_received(self, event: Any) -> None:
        # An empty frame costs no window, so nothing would bound a queue of them.
        if event.flow_controlled_length:
            super().process_data_received(event)

    def process_remote_settings_changed(self, event: Any) -> None:
        super().process_remote_settings_changed(event)
        self.handler.ready()

    def process_ping_received(self, event: Any) -> None:
        self.handler.pinged()

    def process_ping_ack_received(self, event: Any) -> None:
        super().process_ping_ack_received(event)
        self.handler.answered(event.ping_data)

    def process_stream_reset(self, event: Any) -> None:
        stream = self.streams.get(event.stream_id)
        if isinstance(stream, BoundedStream):
            stream.unprocessed = event.error_code == ErrorCodes.REFUSED_STREAM
        super().process_stream_reset(event)
        self.handler.reset()

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        if event.error_code == ErrorCodes.NO_ERROR:
            self.handler.drain(event.last_stream_id or 0)
        else:
            super().process_connection_terminated(event)


class Protocol(H2Protocol):
    """One HTTP/2 connection of either side. Whatever a peer sends, the worst is that this connection ends."""

    connection: _Connection
    handler: Handler

    def __init__(self, handler: Handler, *, client_side: bool, keepalive: Configuration, streams: int, paced: bool = False) -> None:
        config = H2Configuration(
            client_side=client_side,
            header_encoding="ascii",
            validate_inbound_headers=not client_side,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(handler, keepalive, config)
        handler.protocol = self
        self._streams = streams  # of a server: how many requests a client may have open
        self._paced = paced  # read nothing while the peer does not read: PINGs and SETTINGS are answered into the write buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        h2 = _Http2(config=self.h2_config)
        wishes: dict[SettingCodes, int] = {SettingCodes.MAX_FRAME_SIZE: FRAME_SIZE, SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_BYTES}
        if self.h2_config.client_side:
            wishes[SettingCodes.ENABLE_PUSH] = 0
        else:
            wishes[SettingCodes.MAX_CONCURRENT_STREAMS] = self._streams
        # In force at once, not at the peer's acknowledgement: h2 takes a larger frame that comes in the same read for an error.
        h2.local_settings = Settings(client=self.h2_config.client_side, initial_values=wishes)
        h2.max_inbound_frame_size = FRAME_SIZE
        h2.decoder.max_header_list_size = HEADER_BYTES
        h2.initiate_connection()
        h2.increment_flow_control_window(CONNECTION_WINDOW - STREAM_WINDOW)
        self.connection = _Connection(h2, transport, config=self.config)
        self.processor = _Events(self.handler, self.connection)
        if not self.handler.made(transport):
            self.connection.close()
            return
        self.connection.flush()
        self.connection.initialize()

    def data_received(self, data: bytes) -> None:
        if self.connection.is_closing():
            return
        try:
            events = self.connection.feed(data)
        except ProtocolError as error:
            self._break(str(error) or type(error).__name__)
            return
        except Exception as error:
            # h2 and hpack promise ProtocolError for bad input; should one of them not keep it, it is this connection's end alone.
            self._break(f"{type(error).__name__}: {error}")
            return
        self.connection.flush()
        for event in events:
            self.processor.process(event)
        self.connection.flush()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._paced and not self.connection.is_closing():
            self.connection.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._paced and not self.connection.is_closing():
            self.connection.transport.resume_reading()

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        if self.connection.lingering is not None:
            self.connection.lingering.cancel()
        self.handler.lost()

    def _break(self, reason: str) -> None:
        self.connection.flush()  # h2's GOAWAY, which says what was wrong
        self.handler.broken(reason)
        self.processor.close(reason)


def keepalive(seconds: float | None, timeout_seconds: float, without_streams: bool) -> Configuration:
    """grpclib's configuration for a PING every so many seconds (None for never) that closes the connection when unanswered for so long."""
    return Configuration(
        _keepalive_time=seconds,
        _keepalive_timeout=timeout_seconds,
        _keepalive_permit_without_calls=without_streams,
        _http2_max_pings_without_data=0,
        _http2_min_sent_ping_interval_without_data=0.001,
    )


def plain_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by name; of a repeated one, the values joined by commas (gRPC over HTTP2, "Custom-Metadata")."""
    result: dict[str, str] = {}
    for name, value in headers:
        result[name] = f"{result[name]},{value}" if name in result else value
    return result
