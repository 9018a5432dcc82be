"""Jaeger's Thrift in datagrams: one-way calls of Agent.emitBatch.

Nobody waits for an answer, so custody is taken at once, in memory, and everything that is not kept is counted, by its reason:

    queue_size      as many datagrams are held as may be
    bytes           as many bytes are held as may be
    packet_size     the datagram is longer than max_packet_size
    malformed       it is no such call
    socket_buffer   the kernel dropped it, because it was not read in time
    refused         its spans were refused for good
    fault           a fault of our own; it is in the log
    stopped         it was held when this receiver had to end

A datagram is held until its spans are delivered, or durable. What cannot be handed on now is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import uuid
from collections import deque
from typing import Any

from lockgate.batch import Batch, Signal, count_records
from lockgate.components.receivers.jaeger.settings import ThriftUdpSettings
from lockgate.kit.backoff import delays
from lockgate.kit.sometimes import Sometimes
from lockgate.net.address import split_endpoint
from lockgate.net.listener import Address, Listener
from lockgate.net.otlp_http import client_address
from lockgate.pipeline.contract import Receiver
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.wire import jaeger
from lockgate.wire.protobuf import DecodeError

_TURN_DATAGRAMS = 256
"""Read in one turn of the loop."""
_TURN_BYTES = 128 << 10
"""Decoded in one turn of the loop (some 2 ms), so that the socket is read in between: its buffer has 200 KB where nobody says otherwise."""
_LARGEST = 65535
_SO_MEMINFO, _DROPS = 55, 8
"""Linux, sock_diag(7): SK_MEMINFO_DROPS."""


class ThriftUdp:
    """Serves one port."""

    def __init__(self, settings: ThriftUdpSettings, compact: bool, receiver: Receiver[Any]) -> None:
        self._settings, self._compact, self._receiver = settings, compact, receiver
        self._context = receiver.context
        self._transport = f"udp_thrift_{'compact' if compact else 'binary'}"
        self._place = f"receivers/{self._context.id} {settings.endpoint} UDP"
        self._listener = Listener()
        self._sockets: list[socket.socket] = []
        self._kernel_drops: dict[int, int] = {}
        self._waiting: deque[tuple[bytes, str]] = deque()
        """Datagrams that were not decoded yet, and of whom they are."""
        self._held = self._held_bytes = 0
        self._decoding: asyncio.Task[None] | None = None
        self._handing_on: set[asyncio.Task[None]] = set()
        self._sometimes = Sometimes(self._context.clock)
        labels = {"receiver": self._context.id, "transport": self._transport}
        observe = self._context.metrics.observe
        observe("lockgate_receiver_held_datagrams", "datagrams whose spans nobody else has yet", lambda: self._held, **labels)
        observe(
            "lockgate_receiver_bytes_at_risk", "bytes that are nowhere but in this process's memory", lambda: self._held_bytes, **labels
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port

    async def __aenter__(self) -> ThriftUdp:
        endpoint = self._settings.endpoint
        try:
            await self._listener.open(self._context, Address(*split_endpoint(endpoint), has_datagrams=True, has_streams=False))
        except OSError as error:
            cause = os.strerror(error.errno).lower() if error.errno else str(error)
            raise OSError(
                error.errno, f"cannot listen on {endpoint} (UDP) for {self._context.id}: {cause}; set another endpoint"
            ) from error
        self._sockets = self._listener.datagrams
        known: list[int] = self._context.host.left.pop(self._place, [])
        for number, each in enumerate(self._sockets):
            self._size_buffer(each)
            # A socket that was kept over a reload goes on counting; a new one begins with 0.
            self._kernel_drops[each.fileno()] = min(known[number], _drops(each)) if number < len(known) else 0
            asyncio.get_running_loop().add_reader(each.fileno(), self._read, each)
        return self

    async def __aexit__(self, *_: Any) -> None:
        for each in self._sockets:
            self._read(each, self._settings.queue_size)  # what is there already is nobody's if this process ends
            asyncio.get_running_loop().remove_reader(each.fileno())
            each.close()
        self._context.host.left[self._place] = list(self._kernel_drops.values())
        self._sockets = []
        await self._listener.close()
        try:
            while tasks := self._handing_on | ({self._decoding} if self._decoding else set()):
                await asyncio.wait(tasks)
        finally:
            if self._held:
                self._drop("stopped", self._held, f"{self._held} datagrams with spans are lost: they could not be handed on before the end")

    # Reading.

    def _size_buffer(self, each: socket.socket) -> None:
        if wanted := self._settings.socket_buffer_size:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(wanted, 2**31 - 1))
            # Linux doubles it, for its own book-keeping.
            if (granted := each.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2) < wanted:
                text = "socket_buffer_size is %d, and the kernel grants %d for %s; raise net.core.rmem_max"
                self._context.logger.warning(text, wanted, granted, self._settings.endpoint)

    def _read(self, each: socket.socket, datagrams: int = _TURN_DATAGRAMS) -> None:
        most = self._settings.max_packet_size
        for _ in range(datagrams):
            try:
                datagram, address = each.recvfrom(min(most + 1, _LARGEST))
            except OSError:
                break  # nothing is there
            if len(datagram) > most:
                self._drop("packet_size", 1, f"a datagram of more than the {most} bytes of max_packet_size", address[0])
            elif self._held >= self._settings.queue_size:
                self._drop("queue_size", 1, f"as many datagrams are held as queue_size allows, {self._held}", address[0])
            elif self._held_bytes + len(datagram) > self._settings.max_bytes_in_flight:
                self._drop("bytes", 1, f"as many bytes are held as max_bytes_in_flight allows, {self._held_bytes}", address[0])
            else:
                self._held += 1
                self._held_bytes += len(datagram)
                self._waiting.append((datagram, client_address(address[0])))
        if (drops := _drops(each)) != self._kernel_drops[each.fileno()]:
            lost = drops - self._kernel_drops[each.fileno()] & 0xFFFFFFFF
            self._kernel_drops[each.fileno()] = drops
            self._drop("socket_buffer", lost, f"{lost} datagrams came faster than they were read; raise socket_buffer_size")
        if self._waiting and self._decoding is None:
            self._decoding = self._receiver.spawn(self._decode(), f"{self._transport}: decoding")

    # Handing on.

    async def _decode(self) -> None:
        while self._waiting:
            by_peer: dict[str, list[tuple[bytes, bytes]]] = {}
            size = 0
            while self._waiting and size < _TURN_BYTES:
                datagram, peer = self._waiting.popleft()
                size += len(datagram)
                try:
                    by_peer.setdefault(peer, []).append((datagram, jaeger.from_agent(datagram, self._compact)))
                except DecodeError as error:
                    self._release([datagram])
                    self._drop("malformed", 1, f"no call of emitBatch: {error}", peer)
            for peer, decoded in by_peer.items():
                if decoded:
                    task = self._receiver.spawn(self._hand_on(peer, *zip(*decoded, strict=True)), f"{self._transport}: handing on")
                    self._handing_on.add(task)
                    task.add_done_callback(self._handing_on.discard)
            await asyncio.sleep(0)
        self._decoding = None

    async def _hand_on(self, peer: str, datagrams: tuple[bytes, ...], requests: tuple[bytes, ...]) -> None:
        payload = b"".join(requests)
        batch = Batch(Signal.TRACES, payload, count_records(Signal.TRACES, payload), uuid.uuid4().hex, peer)
        waits = delays(0.1, 5.0)
        status = self._context.status
        while batch.count:
            try:
                await self._receiver.emit(batch, self._transport)
            except Retryable as refusal:
                status.block(f"the next owner cannot take spans now: {refusal}", self._transport)
                await self._context.clock.sleep(max(next(waits), refusal.after or 0.0))
            except Permanent as refusal:
                self._drop("refused", len(datagrams), f"{batch.count} spans were refused for good, and are lost: {refusal}", peer)
                break
            except Exception:
                self._context.logger.exception("a datagram's spans failed for a fault of our own; please report it")
                self._drop("fault", len(datagrams), f"{batch.count} spans are lost", peer)
                break
            else:
                status.clear(self._transport)
                break
        self._release(datagrams)

    def _release(self, datagrams: tuple[bytes, ...] | list[bytes]) -> None:
        self._held -= len(datagrams)
        self._held_bytes -= sum(map(len, datagrams))

    def _drop(self, reason: str, count: int, text: str, peer: str = "") -> None:
        self._context.metrics.counter(
            "lockgate_receiver_dropped_datagrams",
            "datagrams that were lost here, by reason",
            receiver=self._context.id,
            transport=self._transport,
            reason=reason,
        ).add(count)
        if (kept_back := self._sometimes.now(reason)) is not None:
            more = f" ({kept_back} more like this were not logged)" if kept_back else ""
            sender = f" of {client_address(peer)}" if peer else ""
            self._context.logger.error("dropped%s at %s: %s%s", sender, self._settings.endpoint, text, more)


def _drops(each: socket.socket) -> int:
    """How many datagrams the kernel has dropped of this socket's; 0 where it does not say."""
    with contextlib.suppress(OSError, struct.error):
        return int(struct.unpack_from("I", each.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1)), 4 * _DROPS)[0])
    return 0
