"""Between `consume` and the senders: the inbox that an exporter's senders take from, and the queue in memory that feeds it.

A queue decides when custody changes hands: `offer` returns when the batch is durable in it or, in a memory queue, delivered. A pipeline's
durable queue (durable.py) feeds the inboxes of several exporters, and an exporter in several pipelines is fed by several of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lockgate.batch import Batch
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.notes import Outcome

Weigh = Callable[[Batch], int]


class QueueFull(Retryable):
    """There is no room, and the queue does not wait for it."""


class Feed(Protocol):
    """A queue as an exporter sees it."""

    @property
    def size(self) -> int:
        """How much of this exporter's is waiting or under way, in the queue's own measure."""

    def wake(self) -> None:
        """A sender waits, and the inbox is empty."""

    def settle(self, entry: Entry, refusal: Exception | None, outcome: Outcome) -> None:
        """This entry is delivered (where there is no refusal), or refused for good, or given up: it leaves the queue."""

    def release(self, entry: Entry, refusal: Exception) -> None:
        """This entry is not delivered, and its sender ends: whoever has custody keeps it."""


@dataclass(slots=True, eq=False)
class Entry:
    """One batch in a queue. Whoever took it settles it or releases it, once; again does nothing."""

    batch: Batch
    feed: Feed
    settled: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    abandoned: bool = False
    """Whether nobody waits for it any more."""

    def settle(self, refusal: Exception | None = None, outcome: Outcome | None = None) -> None:
        """See `Feed.settle`."""
        if not self.settled.done():
            self.feed.settle(self, refusal, outcome or Outcome())

    def release(self, refusal: Exception) -> None:
        """See `Feed.release`."""
        if not self.settled.done():
            self.feed.release(self, refusal)


class Inbox:
    """What is ready to be sent by one exporter, in order of arrival."""

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self._waiting: deque[Entry] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._arrivals: list[asyncio.Future[None]] = []

    @property
    def is_hungry(self) -> bool:
        """Whether a sender waits for something."""
        return bool(self._takers) and not self._waiting

    async def take(self) -> Entry:
        """The entry that has waited longest; waits for one."""
        while not self._waiting:
            for feed in self.feeds:
                feed.wake()
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
        """The next waiting entry that is accepted, without waiting: for merging."""
        for entry in self._waiting:
            if accept(entry.batch):
                self._waiting.remove(entry)
                return entry
        return None

    async def arrival(self) -> None:
        """Returns when another entry has come."""
        future = asyncio.get_running_loop().create_future()
        self._arrivals.append(future)
        await future

    def arrive(self, entry: Entry) -> None:
        """Another entry waits."""
        self._waiting.append(entry)
        _wake_one(self._takers)
        for future in self._arrivals:
            if not future.done():
                future.set_result(None)
        self._arrivals.clear()

    def withdraw(self, entry: Entry) -> bool:
        """Takes out this entry; False where it is under way already."""
        if entry not in self._waiting:
            return False
        self._waiting.remove(entry)
        return True


class Room(ABC):
    """Room in a queue, first come first in: a small batch does not overtake a large one that waits."""

    def __init__(self) -> None:
        self._room: deque[tuple[Batch, asyncio.Future[None]]] = deque()

    async def _enter(self, batch: Batch, *, waits: bool) -> None:
        if full := ("others wait for room in the sending queue" if self._room else self._lacks(batch)):
            if not waits:
                raise QueueFull(full)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            place = (batch, turn)
            self._room.append(place)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._account(batch, -1)
                else:
                    with contextlib.suppress(ValueError):  # _admit may have passed over it already
                        self._room.remove(place)
                self._admit()
                raise
            return
        self._account(batch, 1)

    @abstractmethod
    def _lacks(self, batch: Batch) -> str:
        """Why this batch must wait; empty where it need not. One larger than the whole queue gets in alone: it would wait for ever."""

    @abstractmethod
    def _account(self, batch: Batch, sign: int) -> None:
        """It is in (1), or out (-1)."""

    def _admit(self) -> None:
        while self._room and (self._room[0][1].done() or not self._lacks(self._room[0][0])):
            batch, turn = self._room.popleft()
            if not turn.done():
                self._account(batch, 1)
                turn.set_result(None)


class MemoryQueue(Room):
    """A bounded queue in memory: custody stays with the caller until the batch is delivered.

    A caller that gives up waiting (a client's time-out) takes its batch out again, unless it is already under way: then that attempt goes
    on, and its outcome is nobody's to hear.
    """

    def __init__(
        self, inbox: Inbox, capacity: int, weigh: Weigh, max_bytes: int, *, waits_when_full: bool, note: Callable[[Batch, Outcome], None]
    ) -> None:
        super().__init__()
        self._note = note
        self._inbox, self._capacity, self._weigh, self._max_bytes, self._waits = inbox, capacity, weigh, max_bytes, waits_when_full
        self._size = self.bytes = 0
        inbox.feeds.append(self)

    @property
    def size(self) -> int:
        return self._size

    def wake(self) -> None:
        """What is here is in the inbox."""

    async def offer(self, batch: Batch) -> None:
        """Returns when the batch is delivered. Raises Refusal where it is not."""
        await self._enter(batch, waits=self._waits)
        entry = Entry(batch, self)
        self._inbox.arrive(entry)
        try:
            # The future is shared with the sender: a cancelled caller must not cancel what a sender will settle.
            await asyncio.shield(entry.settled)
        except asyncio.CancelledError:
            if self._inbox.withdraw(entry):
                self._leave(entry.batch)
            else:
                entry.abandoned = True
                entry.settled.add_done_callback(lambda settled: settled.exception())
            raise

    def settle(self, entry: Entry, refusal: Exception | None, outcome: Outcome) -> None:
        self._leave(entry.batch)
        if refusal is None or isinstance(refusal, Permanent):  # otherwise its sender still has it
            self._note(entry.batch, outcome)
        if refusal is None:
            entry.settled.set_result(None)
        else:
            entry.settled.set_exception(refusal)

    def release(self, entry: Entry, refusal: Exception) -> None:
        self.settle(entry, refusal, Outcome())

    def _lacks(self, batch: Batch) -> str:
        size, room = self._size + self._weigh(batch), self.bytes + len(batch.payload)
        if not self._size or (size <= self._capacity and room <= self._max_bytes):
            return ""
        return f"the sending queue is full ({self._size} of {self._capacity})"

    def _account(self, batch: Batch, sign: int) -> None:
        self._size += sign * self._weigh(batch)
        self.bytes += sign * len(batch.payload)

    def _leave(self, batch: Batch) -> None:
        self._account(batch, -1)
        self._admit()


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return
