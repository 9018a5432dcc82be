"""One address in front of several HTTP servers, as a Service is: round robin over those that accept, with faults on the way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from lockgate.batch import Part, Signal, count_records
from lockgate.net.batch_ids import parts_in
from lockgate.net.compression import decompress
from support.served import LIMIT, Served

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n"


@dataclass
class Chances:
    """How often, of 1, a request meets which fault."""

    refused: float = 0.0
    """Answered 503, and not forwarded."""
    answer_lost: float = 0.0
    """Forwarded and answered; the client's connection is closed instead of telling it."""
    cut: float = 0.0
    """The server gets half of the body, then both connections are closed."""


class Balancer(Served):
    """`with Balancer(ports, dice) as balancer:` listens on `balancer.port` in a thread; during an `outage` it closes every connection."""

    def __init__(self, targets: Sequence[int], dice: random.Random, chances: Chances | None = None) -> None:
        super().__init__()
        self.targets, self.chances = list(targets), chances or Chances()
        self.outage = False
        self.seen: Counter[str] = Counter()
        """Of requests: forwarded, refused, answer_lost, cut, unreachable, outage; and `answered STATUS`."""
        self.taken: Counter[str] = Counter()
        """How often each batch id reached a server whole and was answered 200, whether or not its client heard of it."""
        self.given: dict[int, dict[str, int]] = {port: {} for port in targets}
        """By target, the records of each batch that it answered 200; and (below) of each that it got whole, whatever it answered."""
        self.offered: dict[int, dict[str, int]] = {port: {} for port in targets}
        self._dice = dice
        self._turn = 0

    @property
    def repeated(self) -> int:
        """Requests that a server had already taken, and took again: duplicates at the wire."""
        return sum(count - 1 for count in self.taken.values())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while (answer := await self._exchange(reader)) is not None:
                writer.write(answer)
                await writer.drain()
        writer.transport.abort()  # with a reset, as a killed peer does

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes | None:
        """The answer to the next request; None where the client is to hear nothing."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = head + await reader.readexactly(_length(head))
        if self.outage:
            self.seen["outage"] += 1
            return None
        chance = self._dice.random()
        if chance < self.chances.refused:
            self.seen["refused"] += 1
            return _REFUSAL
        is_cut = chance < self.chances.refused + self.chances.cut
        if (connected := await self._connect()) is None:
            self.seen["unreachable"] += 1
            return None
        port, server, upstream = connected
        try:
            if is_cut:
                self.seen["cut"] += 1
                upstream.write(request[: len(request) - _length(head) // 2 - 1])
                await upstream.drain()
                return None
            self.seen["forwarded"] += 1
            records = _records(head, request[-_length(head) :])
            self.offered[port] |= records
            upstream.write(request)
            await upstream.drain()
            answer = await server.readuntil(b"\r\n\r\n")
            answer += await server.readexactly(_length(answer))
        finally:
            upstream.transport.abort()
        status = answer.split(b" ", 2)[1].decode()
        self.seen[f"answered {status}"] += 1
        if status == "200":
            self.taken[_header(head, b"x-lockgate-batch-id")] += 1
            self.given[port] |= records
        if self._dice.random() < self.chances.answer_lost:
            self.seen["answer_lost"] += 1
            return None
        return answer

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.targets:
            self._turn += 1
            port = self.targets[self._turn % len(self.targets)]
            with suppress(OSError):
                return port, *await asyncio.open_connection("127.0.0.1", port, limit=LIMIT)
        return None


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode()
    return ""


def _length(head: bytes) -> int:
    return int(_header(head, b"content-length") or 0)


def _records(head: bytes, body: bytes) -> dict[str, int]:
    """How many records are in this request, by the id of the batch, or of each batch that was merged into it."""
    payload = decompress(body, _header(head, b"content-encoding"), 1 << 28)
    parts = parts_in(_header(head, b"x-lockgate-batch-parts"), len(payload))
    counts, at = dict[str, int](), 0
    for part in parts or [Part(_header(head, b"x-lockgate-batch-id"), len(payload))]:
        counts[part.id] = count_records(Signal.LOGS, payload[at : at + part.size])
        at += part.size
    return counts
