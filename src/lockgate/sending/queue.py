"""The queue between `consume` and the senders: its interface, and the one in memory.

A queue decides when custody changes hands: `offer` returns when the batch is durable in it or, in a memory queue, delivered. A durable
queue (durable.py) implements the same interface: its `offer` returns after the write, and its `take` also gives what an earlier process
left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lockgate.batch import Batch
from lockgate.pipeline.errors import Retryable

Weigh = Callable[[Batch], int]


class QueueFull(Retryable):
    """There is no room, and the queue does not wait for it."""


@dataclass(slots=True, eq=False)
class Entry:
    """One batch in a queue. Whoever took it settles it."""

    batch: Batch
    settled: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    abandoned: bool = False
    """Whether nobody waits for it any more."""


class Queue(Protocol):
    """Batches on their way to the senders, in order of arrival."""

    @property
    def size(self) -> int:
        """How much is waiting or under way, in the queue's own measure."""

    @property
    def capacity(self) -> int:
        """What `size` may reach."""

    async def offer(self, batch: Batch) -> None:
        """Returns when this queue has custody, or the batch is delivered. Raises Refusal where neither comes."""

    async def take(self) -> Entry:
        """The entry that has waited longest; waits for one."""

    def take_more(self, accept: Callable[[Batch], bool]) -> Entry | None:
        """The next waiting entry that is accepted, without waiting: for merging."""

    async def arrival(self) -> None:
        """Returns when another entry has come."""

    def settle(self, entry: Entry, refusal: Exception | None = None) -> None:
        """This entry is delivered, or refused for good, or given up: it leaves the queue."""

    def release(self, entry: Entry, refusal: Exception) -> None:
        """This entry is not delivered, and its sender ends: whoever has custody keeps it."""


class BoundedQueue:
    """What both queues share: room by weight and bytes, first come first in; and what is ready to be taken."""

    def __init__(self, capacity: int, weigh: Weigh, max_bytes: int, *, waits_when_full: bool) -> None:
        self._capacity, self._weigh, self._max_bytes, self._waits = capacity, weigh, max_bytes, waits_when_full
        self._size = self._bytes = 0
        self._waiting: deque[Entry] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._room: deque[tuple[Batch, asyncio.Future[None]]] = deque()
        self._arrivals: list[asyncio.Future[None]] = []

    @property
    def size(self) -> int:
        return self._size

    @property
    def capacity(self) -> int:
        return self._capacity

    async def take(self) -> Entry:
        while not self._waiting:
            turn = asyncio.get_running_loop().create_future()
            self._takers.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    _wake_one(self._takers)  # the turn was given to a taker who is gone; the next one gets it
                raise
        return self._waiting.popleft()

    def take_more(self, accept: Callable[[Batch], bool]) -> Entry | None:
        for entry in self._waiting:
            if accept(entry.batch):
                self._waiting.remove(entry)
                return entry
        return None

    async def arrival(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._arrivals.append(future)
        await future

    def _arrive(self, entry: Entry) -> None:
        self._waiting.append(entry)
        _wake_one(self._takers)
        for future in self._arrivals:
            if not future.done():
                future.set_result(None)
        self._arrivals.clear()

    async def _enter(self, batch: Batch) -> None:
        # First come, first in: a small batch does not overtake a large one that waits for room.
        if self._room or not self._fits(batch):
            if not self._waits:
                raise QueueFull(f"the sending queue is full ({self._size} of {self._capacity})")
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            place = (batch, turn)
            self._room.append(place)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._size -= self._weigh(batch)
                    self._bytes -= len(batch.payload)
                else:
                    with contextlib.suppress(ValueError):  # _admit may have passed over it already
                        self._room.remove(place)
                self._admit()
                raise
            return
        self._account(batch)

    def _fits(self, batch: Batch) -> bool:
        # One that is larger than the whole queue gets in alone: it would wait for ever otherwise.
        return not self._size or (self._size + self._weigh(batch) <= self._capacity and self._bytes + len(batch.payload) <= self._max_bytes)

    def _account(self, batch: Batch) -> None:
        self._size += self._weigh(batch)
        self._bytes += len(batch.payload)

    def _leave(self, batch: Batch) -> None:
        self._size -= self._weigh(batch)
        self._bytes -= len(batch.payload)
        self._admit()

    def _admit(self) -> None:
        while self._room and (self._room[0][1].done() or self._fits(self._room[0][0])):
            batch, turn = self._room.popleft()
            if not turn.done():
                self._account(batch)
                turn.set_result(None)


class MemoryQueue(BoundedQueue):
    """A bounded queue in memory: custody stays with the caller until the batch is delivered.

    A caller that gives up waiting (a client's time-out) takes its batch out again, unless it is already under way: then that attempt goes
    on, and its outcome is nobody's to hear.
    """

    async def offer(self, batch: Batch) -> None:
        await self._enter(batch)
        entry = Entry(batch)
        self._arrive(entry)
        try:
            # The future is shared with the sender: a cancelled caller must not cancel what a sender will settle.
            await asyncio.shield(entry.settled)
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._leave(entry.batch)
            else:
                entry.abandoned = True
                entry.settled.add_done_callback(lambda settled: settled.exception())
            raise

    def settle(self, entry: Entry, refusal: Exception | None = None) -> None:
        self._leave(entry.batch)
        if entry.settled.done():
            return
        if refusal is None:
            entry.settled.set_result(None)
        else:
            entry.settled.set_exception(refusal)

    release = settle


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return
