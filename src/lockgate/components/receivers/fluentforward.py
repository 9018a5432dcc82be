"""Receives Fluent Forward (version 1) from Fluentd, Fluent Bit and their libraries, over TCP, TLS or a Unix socket.

The collector's `fluentforward`, with three differences. A chunk is acknowledged when its records are delivered, or durable, and not when
they are read. What cannot be handed on now is not read further, so that senders feel it. And a client is bounded in all that it can make
this program hold:

    connections          max_connections       the connection is closed
    a message's size     max_message_size      the connection is closed
    a message's time     read_timeout          the connection is closed
    what it inflates to  max_decompressed_size the connection is closed
    all of them together max_bytes_in_flight   nothing more is read until there is room

A connection that sends what is no message is closed too: in a stream of msgpack nothing tells where the next message begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from lockgate.batch import Batch, Signal, derived_id
from lockgate.kit.backoff import delays
from lockgate.kit.units import Duration, Size
from lockgate.net.address import split_endpoint
from lockgate.net.budget import ByteBudget, Share
from lockgate.net.compression import OFFLOAD_BYTES, CorruptBody, TooLarge, decompress
from lockgate.net.intake import Intake, StreamRefusals
from lockgate.net.listener import BACKLOG, UNIX, Address, Listener
from lockgate.net.otlp_http import client_address
from lockgate.net.tls import TlsServerSettings
from lockgate.pipeline.contract import Context, Receiver, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Write
from lockgate.wire import fluent
from lockgate.wire.protobuf import DecodeError

_READ_BYTES = 64 << 10
"""What a connection may hold without a share of the bytes in flight."""
_REQUEST_BYTES = 2 << 20
"""A long message is handed on in pieces of about this."""
_HELD_PER_BYTE = 4
"""A byte of a message is held as itself, cut, decoded and in a request."""


class FluentForwardSettings(ComponentSettings):
    """Where to receive Fluent Forward. Without the protocol's handshake, as the collector's: leave `shared_key` out of the client's
    configuration, and where clients must show who they are use `tls` with `client_ca_file`."""

    endpoint: str = "0.0.0.0:8006"
    """`host:port` to listen on (TCP, and UDP for heartbeats); or `unix:///path` or a path, for a Unix socket."""
    tls: TlsServerSettings | None = None
    """Speak TLS with this certificate; with `client_ca_file`, only to clients of that authority. Not one of the collector's keys."""
    shutdown_delay: Duration = Field(0.0, ge=0)
    """How long to go on serving when told to stop: time for a load balancer to notice."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A message that is not handed on after so long is broken off: a client that waits for its acknowledgement is disconnected, so that it
    sends again; for one that does not, it is tried again here. Not one of the collector's keys."""
    max_message_size: Size = Field(16 << 20, ge=1024)
    """Bytes of one message (a chunk) as it is sent. Not one of the collector's keys."""
    max_decompressed_size: Size = Field(0, ge=0)
    """Bytes that a message's entries may inflate to; 0 is four times `max_message_size`. Not one of the collector's keys."""
    max_bytes_in_flight: Size = Field(128 << 20, gt=0)
    """Bytes of all messages that are being read or wait to be handed on. Not one of the collector's keys."""
    max_connections: int = Field(1024, gt=0)
    """Connections at the same time; further ones are closed. Not one of the collector's keys."""
    read_timeout: Duration = Field(60.0, gt=0)
    """How long a message may take to arrive once it has begun, and a client to read its acknowledgement.
    Not one of the collector's keys."""
    idle_timeout: Duration = Field(3600.0, ge=0)
    """How long a connection is kept without a message; 0 is for ever. Long, because libraries keep one open and lose the record that they
    write into a closed one. Not one of the collector's keys."""

    @property
    def unix_path(self) -> str:
        """The Unix socket's path; empty for TCP."""
        path = self.endpoint.removeprefix("unix://")
        return path if path != self.endpoint or path.startswith("/") else ""

    @property
    def inflated_limit(self) -> int:
        """Bytes that entries may inflate to."""
        return self.max_decompressed_size or 4 * self.max_message_size

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value.startswith(("unix://", "/")):
            if not value.removeprefix("unix://").startswith("/"):
                raise ValueError(f"{value!r} is no absolute path; write it like unix:///run/lockgate/fluent.sock")
        else:
            split_endpoint(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_bytes_in_flight < self.max_message_size:
            raise ValueError("max_bytes_in_flight is smaller than max_message_size: the largest message could never be read")
        if self.tls is not None and self.unix_path:
            raise ValueError("tls does not go with a Unix socket, which stays on this machine; remove one of them")
        return self

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        if self.unix_path:
            yield Write(str(Path(self.unix_path).parent), "the Unix socket for Fluent Forward")
            return
        host, port = split_endpoint(self.endpoint)
        yield Listen(host, port, f"Fluent Forward{' over TLS' if self.tls else ''}")
        yield Listen(host, port, "Fluent Forward heartbeats", "udp")


@component("fluentforward", FluentForwardSettings, signals={Signal.LOGS})
class FluentForwardReceiver(Receiver[FluentForwardSettings]):
    """Receives Fluent Forward. A chunk is acknowledged when its records are delivered, or durable."""

    transport = "http"  # what the collector's says, though it is none

    def __init__(self, settings: FluentForwardSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._intake = Intake(self, self._count_unfinished, settings.ack_timeout)
        self._budget = ByteBudget(settings.max_bytes_in_flight)
        self._listener = Listener()
        self._heartbeats: list[asyncio.DatagramTransport] = []
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._refuse = StreamRefusals(context, "Fluent Forward")
        self._stopping = False
        counter, label = context.metrics.counter, {"receiver": context.id}
        self._opened = counter("otelcol_fluent_opened_connections", "connections opened", **label)
        self._closed = counter("otelcol_fluent_closed_connections", "connections closed", **label)
        self._parsed = counter("otelcol_fluent_events_parsed", "messages read", **label)
        self._failed = counter("otelcol_fluent_parse_failures", "messages that could not be read", **label)
        self._generated = counter("otelcol_fluent_records_generated", "log records made of messages", **label)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port

    async def start(self) -> None:
        settings = self.settings
        self.context.metrics.observe(
            "lockgate_fluentforward_bytes_in_flight", "bytes held for messages", lambda: self._budget.used, receiver=self.context.id
        )
        context = settings.tls.follow(self.context).server_context() if settings.tls else None
        handshake: dict[str, Any] = {"ssl_handshake_timeout": settings.read_timeout} if context else {}

        async def serve(listening: socket.socket) -> asyncio.Server:
            return await asyncio.start_server(self._connected, sock=listening, limit=_READ_BYTES, backlog=BACKLOG, ssl=context, **handshake)

        address = (
            Address(settings.unix_path, UNIX) if settings.unix_path else Address(*split_endpoint(settings.endpoint), has_datagrams=True)
        )
        await self._listener.open(self.context, address, serve)
        for datagrams in self._listener.datagrams:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Heartbeat, sock=datagrams)
            self._heartbeats.append(transport)

    async def stop(self) -> None:
        if self.settings.shutdown_delay and self._connections:
            await self.context.clock.sleep(self.settings.shutdown_delay)
        self._stopping = True
        await self._listener.close()
        for heartbeat in self._heartbeats:
            heartbeat.close()
        for reader, writer in self._connections.values():
            # Who waits for a message waits no longer; who hands one on finishes that, and acknowledges it.
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a Transport, which the stub does not say
            reader.feed_eof()
        if self._connections:
            await asyncio.wait(list(self._connections))

    # Connections.

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self.settings.max_connections or self._stopping:
            self._refuse("connections", f"more than the {self.settings.max_connections} connections of max_connections", "")
            writer.transport.abort()
            return
        if (peer := writer.get_extra_info("socket")) is not None and not self.settings.unix_path:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        task = self.spawn(self._serve(reader, writer), "connection")
        self._connections[task] = (reader, writer)
        self._opened.add()
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        _, writer = self._connections.pop(task)
        writer.close()
        self._closed.add()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")
        peer = client_address(name[0]) if isinstance(name, tuple) else ""
        try:
            async with contextlib.aclosing(self._groups(reader, peer)) as groups:
                async for messages, share in groups:
                    await self._take(messages, peer, share)
                    if chunk := messages[0].chunk:
                        writer.write(fluent.acknowledgement(chunk))
                        async with asyncio.timeout(self.settings.read_timeout):
                            await writer.drain()
        except DecodeError as error:
            self._failed.add()
            self._refuse("malformed", str(error), peer)
        except TimeoutError:
            self._refuse("slow", f"not finished within {self.settings.read_timeout:g} s", peer)
        except Retryable as refusal:
            self._refuse("unavailable", f"the next owner cannot take records now: {refusal}", peer)
        except OSError:
            pass  # the client is gone; what it was not told it sends again
        except Exception:
            self.log.exception("a connection failed for a fault of our own; please report it")
            self._refuse("internal", "a fault of our own", peer)

    async def _groups(self, reader: asyncio.StreamReader, peer: str) -> AsyncGenerator[tuple[list[fluent.Message], Share]]:
        """Messages as they come: one with a chunk (or compressed) by itself, others together, as far as they are there."""
        framer = fluent.Framer(self.settings.max_message_size)
        share = Share(self._budget)
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        """Set while a message is unfinished."""
        try:
            while not self._stopping:
                try:
                    async with asyncio.timeout_at(deadline) if deadline else asyncio.timeout(self.settings.idle_timeout or None):
                        data = await reader.read(_READ_BYTES)
                except TimeoutError:
                    if deadline is None:
                        return
                    raise
                if not data:
                    if framer.unfinished and not self._stopping:
                        self._refuse("truncated", f"the connection ended inside a message, after {framer.unfinished} bytes", peer)
                    return
                group: list[fluent.Message] = []
                fault: DecodeError | None = None
                try:
                    for raw in framer.feed(data):
                        message = fluent.read_message(raw)
                        stands_alone = bool(message.chunk) or message.compressed
                        if stands_alone and group:
                            yield group, share
                            group = []
                        group.append(message)
                        if stands_alone:
                            yield group, share
                            group = []
                        deadline = None
                except DecodeError as error:
                    fault = error
                if group:
                    yield group, share  # what came before the fault is whole
                if fault is not None:
                    raise fault
                if deadline is None:
                    share.release()
                if framer.unfinished:
                    deadline = deadline or loop.time() + self.settings.read_timeout
                    if not share.size and framer.unfinished >= _READ_BYTES:
                        # How long it will be is not said in front; waiting costs the client no time of its own.
                        await share.wait_for(self.settings.max_message_size)
                        deadline = loop.time() + self.settings.read_timeout
        finally:
            share.release()

    # Messages.

    async def _take(self, messages: list[fluent.Message], peer: str, share: Share) -> None:
        """Returns when these messages are acknowledged. Raises DecodeError, and Retryable where the client will send again."""
        size = sum(len(message.entries) for message in messages)
        await share.wait_for(_HELD_PER_BYTE * size)
        messages = [await self._inflated(message, share) for message in messages]
        self._parsed.add(len(messages))
        id = uuid.uuid4().hex
        if chunk := messages[0].chunk:
            # Sent again it has the same id. The chunk alone would not do: a client may count them from one.
            id = derived_id(peer, chunk.hex(), hashlib.sha256(messages[0].entries).hexdigest())
        size = sum(len(message.entries) for message in messages)
        requests = fluent.requests(messages, self.context.clock.time_unix_nano(), _REQUEST_BYTES)
        number = 0
        while True:
            following = await self.in_thread(next, requests, None) if size > OFFLOAD_BYTES else next(requests, None)
            if following is None:
                return
            await self._hand_on(following, f"{id}.{number}", peer, is_sent_again=bool(chunk))
            number += 1

    async def _inflated(self, message: fluent.Message, share: Share) -> fluent.Message:
        if not message.compressed:
            return message
        # Usually logs shrink to a tenth; who claims more waits for room for all that is allowed.
        limit = min(self.settings.inflated_limit, 16 * len(message.entries))
        while True:
            await share.wait_for(_HELD_PER_BYTE * limit)
            try:
                entries = await self.in_thread(decompress, message.entries, "gzip", limit)
            except TooLarge:
                if limit == self.settings.inflated_limit:
                    raise DecodeError(f"the entries inflate to more than the {limit} bytes that are accepted") from None
                limit = self.settings.inflated_limit
            except CorruptBody as error:
                raise DecodeError(f"the entries are {error}") from error
            else:
                return replace(message, entries=entries, compressed=False)

    async def _hand_on(self, request: bytes, id: str, peer: str, is_sent_again: bool) -> None:
        waits = delays(0.1, 5.0)
        while True:
            try:
                await self._intake.take(Signal.LOGS, request, peer=peer, transport=self.transport, batch_id=id)
            except Retryable as refusal:
                if is_sent_again:
                    raise
                # Who asks for no acknowledgement believes that we have it: it is tried again until somebody takes it.
                self.context.status.block(f"the next owner cannot take records now: {refusal}", "delivery")
                await self.context.clock.sleep(max(next(waits), refusal.after or 0.0))
            except Permanent as refusal:
                self._refuse("permanent", f"records were refused for good, and are lost: {refusal}", peer)
                return
            else:
                self.context.status.clear("delivery")
                return

    async def emit(self, batch: Batch, transport: str = "") -> None:
        await super().emit(batch, transport)
        self._generated.add(batch.count)

    def _count_unfinished(self, batch: Batch, transport: str) -> None:
        self._count(batch.signal, "refused", transport).add(batch.count)


class _Heartbeat(asyncio.DatagramProtocol):
    """Answers a heartbeat with its first byte, as the collector does (Forward Protocol, "Heartbeat Message")."""

    _transport: asyncio.DatagramTransport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if data:
            with contextlib.suppress(OSError):
                self._transport.sendto(data[:1], address)
