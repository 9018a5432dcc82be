"""The sending queue on disk: `offer` returns when the batch is in a segment, and what is not delivered is sent after a restart, in order.

One task writes, marks and loads, one job in a thread at a time: all that came while the last job ran is written by one sync (group
commit), and the files need no locks. While senders keep up, a batch goes from its caller to a sender in memory and is never read back;
otherwise records are loaded in order, no more than `max_loaded_bytes` of them, however many wait.

Each exporter has a queue of its own: a pipeline with two durable exporters writes a batch twice. One journal with a cursor per exporter
would write it once; that is a later step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lockgate.batch import Batch
from lockgate.pipeline.contract import Status
from lockgate.pipeline.errors import Retryable
from lockgate.sending.queue import BoundedQueue, Entry, Weigh
from lockgate.sending.segments import Amount, Journal, Loaded, Ref

COMMIT_BYTES = 16 << 20
"""Payload written by one job at most: more would delay marks and loads behind it."""
PROBE_SECONDS = 1.0
"""How often a full disk is looked at, so that readiness returns without anybody's trying."""


@dataclass(slots=True, eq=False)
class _Stored(Entry):
    ref: Ref | None = None


@dataclass(slots=True)
class _Done:
    """What one job did."""

    refs: list[Ref]
    loaded: Loaded
    error: OSError | None = None


class DurableQueue(BoundedQueue):
    """A bounded queue in a journal. `max_bytes` bounds the segments on disk, and what is about to be written to them."""

    def __init__(
        self,
        capacity: int,
        sizer: Literal["requests", "items", "bytes"],
        weigh: Weigh,
        max_bytes: int,
        *,
        waits_when_full: bool,
        max_loaded_bytes: int,
        status: Status,
        log: logging.Logger,
    ) -> None:
        super().__init__(capacity, weigh, max_bytes, waits_when_full=waits_when_full)
        self._sizer, self._max_loaded, self._status, self._log = sizer, max_loaded_bytes, status, log
        self.journal: Journal | None = None
        self._in_thread: Callable[..., Awaitable[Any]]
        self._offers: deque[tuple[Batch, asyncio.Future[None]]] = deque()
        self._marks: list[Ref] = []
        self._loaded = 0
        """Payload bytes of what is ready or under way."""
        self._work, self._idle = asyncio.Event(), asyncio.Event()
        self._busy = self._closed = self._ended = False
        self._cannot_read = False
        """Waiting to try again."""
        self._wanted = 0
        """Payload bytes of the write that failed last; 0 where the last one did not."""

    async def start(
        self,
        directory: str,
        *,
        fsync: bool,
        in_thread: Callable[..., Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
    ) -> None:
        """Opens `directory`/queue; raises OSError where that cannot be."""
        segment_bytes = max(1 << 16, min(8 << 20, self._max_bytes // 8))
        self.journal = Journal(Path(directory, "queue"), self._log, segment_bytes=segment_bytes, fsync=fsync)
        self._in_thread = in_thread
        await in_thread(self.journal.open)
        pending = self.journal.pending
        self._size += self._amount(pending)
        if pending.records:
            self._log.info("%d batches (%d records) of an earlier run wait in %s", pending.records, pending.items, directory)
            self._work.set()
        spawn(self._run(self.journal), "queue")

    async def offer(self, batch: Batch) -> None:
        if self._closed:
            raise Retryable("the sending queue is closed")
        await self._enter(batch)
        offer = (batch, asyncio.get_running_loop().create_future())
        self._offers.append(offer)
        self._work.set()
        try:
            await asyncio.shield(offer[1])
        except asyncio.CancelledError:
            if offer in self._offers:
                self._offers.remove(offer)
                self._leave(batch)
            else:  # being written: it will be sent, and again by whoever gave up, under the same id
                offer[1].add_done_callback(lambda written: written.cancelled() or written.exception())
            raise

    async def take(self) -> Entry:
        if not self._waiting and self.journal is not None and self.journal.unread.records:
            self._work.set()
        return await super().take()

    def settle(self, entry: Entry, refusal: Exception | None = None) -> None:
        if (ref := self._let_go(entry)) is not None:
            self._marks.append(ref)
            self._size -= self._weigh(entry.batch)
            self._admit()

    def release(self, entry: Entry, refusal: Exception) -> None:
        """Stays on disk, for the next start."""
        self._let_go(entry)

    async def close(self) -> None:
        """Writes what is offered, marks what is delivered, closes the files. What waits stays on disk."""
        self._closed = True
        if self.journal is None:
            return
        while self._room:
            _, turn = self._room.popleft()
            if not turn.done():
                turn.set_exception(Retryable("the sending queue is closed"))
        while (self._offers or self._marks or self._busy) and not self._ended:
            self._idle.clear()
            await self._idle.wait()
        if not self._ended:  # else it was cancelled, and a thread may still use the files
            await self._in_thread(self.journal.close)

    def _let_go(self, entry: Entry) -> Ref | None:
        if entry.settled.done():
            return None
        assert isinstance(entry, _Stored) and entry.ref is not None
        entry.settled.set_result(None)
        self._loaded -= len(entry.batch.payload)
        self._work.set()
        return entry.ref

    def _amount(self, amount: Amount) -> int:
        return {"requests": amount.records, "items": amount.items, "bytes": amount.payload_bytes}[self._sizer]

    def _fits(self, batch: Batch) -> bool:
        on_disk = self.journal.disk_bytes if self.journal is not None else 0
        fits = self._size + self._weigh(batch) <= self._capacity and on_disk + self._bytes + len(batch.payload) <= self._max_bytes
        return not self._size or fits

    async def _run(self, journal: Journal) -> None:
        try:
            while True:
                await self._turn(journal)
        finally:
            self._ended = True
            self._idle.set()

    async def _turn(self, journal: Journal) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS if self._wanted or self._cannot_read else None):
                await self._work.wait()
        except TimeoutError:
            if self._wanted:
                await self._probe(journal)
            if self._cannot_read:
                self._cannot_read = False
                self._work.set()
            return
        self._work.clear()
        self._busy = True
        offers = self._next_offers()
        try:
            await self._do(journal, offers)
        finally:
            self._busy = False
            for _, written in offers:  # only what a cancellation left: perhaps written, and then sent
                if not written.done():
                    written.set_exception(Retryable("stopped before this was written"))
            self._idle.set()

    def _next_offers(self) -> list[tuple[Batch, asyncio.Future[None]]]:
        offers, size = list[tuple[Batch, "asyncio.Future[None]"]](), 0
        while self._offers and (not offers or size + len(self._offers[0][0].payload) <= COMMIT_BYTES):
            offers.append(self._offers.popleft())
            size += len(offers[-1][0].payload)
        return offers

    async def _do(self, journal: Journal, offers: list[tuple[Batch, asyncio.Future[None]]]) -> None:
        marks, self._marks = self._marks, []
        is_caught_up = not journal.unread.records
        room = 0 if is_caught_up or self._cannot_read else self._hunger()
        if not (offers or marks or room):
            return
        done: _Done = await self._in_thread(_work, journal, [batch for batch, _ in offers], marks, room)
        for ref, batch in done.loaded.entries:
            self._ready(ref, batch)
        self._size -= self._amount(done.loaded.lost)
        for ref, (batch, written) in zip(done.refs, offers, strict=False):
            self._bytes -= len(batch.payload)
            if is_caught_up and self._loaded < self._max_loaded:
                journal.pass_over(ref)
                self._ready(ref, batch)
            else:
                is_caught_up = False
            if not written.done():
                written.set_result(None)
        if done.error is not None:
            self._refuse(offers, done.error)
        elif offers:
            self._writes_again()
        if room:
            self._reads(done.loaded.error)
        self._admit()
        if self._offers or self._marks or (journal.unread.records and not self._cannot_read and self._hunger()):
            self._work.set()

    def _hunger(self) -> int:
        """Payload bytes to load now: a good piece at once, or one record where a sender waits for it."""
        room = self._max_loaded - self._loaded
        return room if room >= self._max_loaded // 2 else int(not self._waiting and bool(self._takers))

    def _ready(self, ref: Ref, batch: Batch) -> None:
        self._loaded += len(batch.payload)
        self._arrive(_Stored(batch, ref=ref))

    def _refuse(self, offers: list[tuple[Batch, asyncio.Future[None]]], error: OSError) -> None:
        assert self.journal is not None
        reason = f"cannot write to the sending queue: {error.strerror or error}; nothing is lost, and senders wait for space"
        if not self._wanted:
            self._log.error("%s", reason)
        self._status.block(reason, "queue")
        self._wanted = sum(len(batch.payload) for batch, _ in offers)
        for batch, written in offers:
            self._size -= self._weigh(batch)
            self._bytes -= len(batch.payload)
            if not written.done():
                written.set_exception(Retryable(reason, PROBE_SECONDS))

    def _reads(self, error: OSError | None) -> None:
        if error is None:
            self._status.clear("reading")
            return
        self._cannot_read = True
        self._status.block(f"cannot read the sending queue: {error}; it is tried again", "reading")
        self._log.error("cannot read the sending queue: %s; trying again", error)

    def _writes_again(self) -> None:
        if self._wanted:
            self._wanted = 0
            self._status.clear("queue")
            self._log.info("the sending queue can be written to again")

    async def _probe(self, journal: Journal) -> None:
        self._busy = True
        try:
            await self._in_thread(journal.probe, self._wanted)
        except OSError:
            return
        finally:
            self._busy = False
            self._idle.set()
        self._writes_again()


def _work(journal: Journal, batches: list[Batch], marks: list[Ref], room: int) -> _Done:
    done = _Done([], Loaded())
    if marks:  # first: it may give back the space that the others need
        journal.mark(marks)
    if batches:
        try:
            done.refs = journal.append(batches)
        except OSError as error:
            done.error = error
    if room:
        done.loaded = journal.load(room)
    return done
