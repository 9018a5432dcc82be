"""A pipeline's queue on disk: `consume` returns when the batch is in a segment; what is not delivered is sent after a restart, in order.

The exporters of a pipeline that keep their queues in the same storage share it: a batch is written once, and each exporter has a cursor.
One that does not deliver neither starves the others nor makes them repeat; but what it has not delivered stays, and where the queue is full
the pipeline waits: at least once for each of them.

One task writes, marks and loads, one job in a thread at a time: all that came while the last job ran is written by one sync (group
commit), and the files need no locks. While senders keep up, a batch goes from its caller to a sender in memory and is never read back;
otherwise records are loaded in order, for each exporter no more than a share of its `max_bytes`, however many wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockgate.batch import Batch, Signal, merge
from lockgate.pipeline.contract import NO_GROUPS, Component, ComponentSettings, Context, Custody, Held, Kind, Waiting
from lockgate.pipeline.errors import Retryable
from lockgate.sending.exporter import WEIGHTS, QueuedExporter, parts_of
from lockgate.sending.notes import Account, Books, Outcome, observe_lines, observe_records, queued_record
from lockgate.sending.queue import Entry, QueueFull, Room
from lockgate.sending.segments import Amount, Journal, Loaded, Ref, Settlement

COMMIT_BYTES = 16 << 20
"""Payload written by one job at most: more would delay settlements and loads behind it."""
LOADED_BYTES = 16 << 20
"""What an exporter's senders are given at a time: enough to keep ten busy with batches of a megabyte."""
PROBE_SECONDS = 1.0
"""How often a full disk is looked at, so that readiness returns without anybody's trying."""
DISK_SECONDS = 30.0
"""After so long a job on the disk is said to hang; one writes some MB. A guess."""
SYNC_SECONDS = 1.0
"""How long what is delivered may be noted and not synced: a power loss repeats that much."""

_Offer = tuple[Batch, "asyncio.Future[None]"]


@dataclass(slots=True, eq=False)
class _Stored(Entry):
    ref: Ref | None = None


class Cursor:
    """One exporter's place in a pipeline's queue: the feed of its inbox."""

    def __init__(self, queue: PipelineQueue, exporter: QueuedExporter[Any]) -> None:
        self._queue, self.exporter, self.inbox = queue, exporter, exporter.inbox
        self.name, self.settings = exporter.context.id, exporter.settings.sending_queue
        self.weigh = WEIGHTS[self.settings.sizer]
        self.size = 0
        self.loaded = 0
        """Payload bytes of what is ready or under way."""
        self.cannot_read = False
        """Waiting to try again."""
        self.inbox.feeds.append(self)

    @property
    def room(self) -> int:
        """Payload bytes that may be loaded."""
        return int(min(self.settings.max_bytes, LOADED_BYTES)) // len(self.inbox.feeds) - self.loaded

    def hunger(self) -> int:
        """Payload bytes to load now: a good piece at once, or one record where a sender waits for it."""
        if self.cannot_read:
            return 0
        return self.room if self.room >= self.loaded else int(self.inbox.is_hungry)

    def amount(self, amount: Amount) -> int:
        """So much in the queue's own measure."""
        return {"requests": amount.records, "items": amount.items, "bytes": amount.payload_bytes}[self.settings.sizer]

    def ready(self, ref: Ref, batch: Batch) -> None:
        """Hands a record to the senders. One that says only what became of its origins is delivered as it is."""
        if not batch.count:
            self.size -= self.weigh(batch)
            self._queue.settle(Settlement(self.name, ref, batch, Outcome()))
            return
        self.loaded += len(batch.payload)
        self.inbox.arrive(_Stored(batch, self, ref=ref))

    def wake(self) -> None:
        self._queue.wake()

    def settle(self, entry: Entry, refusal: Exception | None, outcome: Outcome) -> None:
        ref = self._let_go(entry)
        self.size -= self.weigh(entry.batch)
        self._queue.settle(Settlement(self.name, ref, entry.batch, outcome))

    def release(self, entry: Entry, refusal: Exception) -> None:
        """Stays on disk, for the next start."""
        self._let_go(entry)
        self.wake()

    def _let_go(self, entry: Entry) -> Ref:
        assert isinstance(entry, _Stored) and entry.ref is not None
        entry.settled.set_result(None)
        self.loaded -= len(entry.batch.payload)
        return entry.ref


class PipelineQueue(Component[ComponentSettings], Room):
    """See the module. Entered before its exporters and left after them."""

    custody = Custody.DURABLE

    kind = Kind.EXTENSION

    def __init__(self, context: Context, storage: str) -> None:
        Component.__init__(self, ComponentSettings(), context)
        Room.__init__(self)
        self._storage = storage
        self._cursors: list[Cursor] = []
        self._max_bytes, self._waits = 0, True
        self.journal: Journal | None = None
        self._offers: deque[_Offer] = deque()
        self._bytes = 0
        """Payload that waits to be written."""
        self._settlements: list[Settlement] = []
        self._work, self._idle = asyncio.Event(), asyncio.Event()
        self._busy = self._closed = self._ended = False
        text = "batches that came again under the same id, were acknowledged, and not written again"
        self._duplicates = context.metrics.counter("lockgate_queue_duplicate_batches", text, pipeline=context.pipeline)
        self._disk_since: float | None = None
        """Since when a thread has worked on the disk."""
        self._owners: set[str] = set()
        """Receivers that metrics tell of."""
        self._wanted = 0
        """Payload bytes of the write that failed last; 0 where the last one did not."""
        self._sync_at: float | None = None
        """When what is noted must be synced; None where it is."""

    def attach(self, exporter: QueuedExporter[Any]) -> None:
        """Feeds this exporter as well; before either is started."""
        self._cursors.append(Cursor(self, exporter))
        self._max_bytes = min(cursor.settings.max_disk_bytes for cursor in self._cursors)
        self._waits = all(cursor.settings.block_on_overflow for cursor in self._cursors)

    @property
    def exporters(self) -> list[QueuedExporter[Any]]:
        """Those that it feeds."""
        return [cursor.exporter for cursor in self._cursors]

    @property
    def is_on_disk(self) -> bool:
        """See `ledger.Bookkeeper`."""
        return True

    @property
    def keeps_accounts(self) -> bool:
        return True

    def accounts(self) -> Mapping[str, Account]:
        """The ledger's counts by source."""
        return self.books().accounts

    def books(self) -> Books:
        """See `ledger.Bookkeeper`."""
        return self.journal.knowledge.books() if self.journal is not None else Books()

    def waiting_bytes(self) -> dict[str, int]:
        """See `ledger.Bookkeeper`."""
        if self.journal is None:
            return {}
        return {it.name: self.journal.readers[it.name].unread.payload_bytes + it.loaded for it in self._cursors}

    def held(self, owner: str) -> Held:
        """See `Host.held`."""
        return self.journal.knowledge.held(owner) if self.journal is not None else Held()

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        """See `Host.saved`."""
        if self.journal is not None and (missing := self.journal.knowledge.saved(owner, positions, groups)):
            self.log.error("notes of the sending queue are damaged; %d ranges of files of %s are read again", len(missing), owner)
            self.context.host.give_back(missing)

    def waiting(self) -> Iterator[Waiting]:
        if self._disk_since is not None:
            yield Waiting(f"the disk: a call to {self._storage} does not return", self._disk_since, DISK_SECONDS)

    async def start(self) -> None:
        storage = await self.in_thread(self.context.host.extension(self._storage).storage, f"queue/{self.context.pipeline}")
        self.journal = journal = Journal(
            Path(storage.directory, "queue"),
            self.log,
            [cursor.name for cursor in self._cursors],
            segment_bytes=max(1 << 16, min(8 << 20, self._max_bytes // 8)),
            fsync=storage.fsync,
            time_unix_nano=self.context.clock.time_unix_nano,
            compression=next(
                (it for it in (exporter.compression for exporter in self.exporters) if it[0] in ("gzip", "zstd")), ("zstd", 1)
            ),
        )
        await self.in_thread(journal.open)
        for cursor in self._cursors:
            pending = journal.readers[cursor.name].unread
            cursor.size += cursor.amount(pending)
            if pending.records:
                text = "%d batches (%d records) of an earlier run wait for %s in %s"
                self.log.info(text, pending.records, pending.items, cursor.name, storage.directory)
                self._work.set()
        self._observe(journal)
        self.spawn(self._run(journal), "queue")

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        new = self._new_of(batch)
        if new is None:
            return
        batch = new
        try:
            await self._enter(batch, waits=self._waits)
        except QueueFull:
            for exporter in self.exporters:
                exporter.count("enqueue_failed", batch)
            raise
        offer = (batch, asyncio.get_running_loop().create_future())
        self._offers.append(offer)
        self._work.set()
        try:
            await asyncio.shield(offer[1])
        except asyncio.CancelledError:
            if offer in self._offers:
                self._offers.remove(offer)
                self._account(batch, -1)
                self._admit()
            else:  # being written: it will be sent, and again by whoever gave up, under the same id
                offer[1].add_done_callback(lambda written: written.cancelled() or written.exception())
            raise

    async def stop(self) -> None:
        """Writes what is offered, notes what is delivered, closes the files. What waits stays on disk."""
        self._closed = True
        if self.journal is None:
            return
        while self._room:
            _, turn = self._room.popleft()
            if not turn.done():
                turn.set_exception(Retryable("the sending queue is closed"))
        self._work.set()
        while (self._offers or self._settlements or self._busy) and not self._ended:
            self._idle.clear()
            await self._idle.wait()
        if not self._ended:  # else it was cancelled, and a thread may still use the files
            await self.in_thread(self.journal.close)

    def wake(self) -> None:
        """A sender waits, or there is room for more to be loaded."""
        if self.journal is not None and any(reader.unread.records for reader in self.journal.readers.values()):
            self._work.set()

    def settle(self, settlement: Settlement) -> None:
        """An exporter is done with a batch."""
        self._settlements.append(settlement)
        self._work.set()
        self._admit()

    def _observe_lines(self, owners: Iterable[str]) -> None:
        if self.journal is not None:
            for owner in set(owners) - self._owners - {""}:
                self._owners.add(owner)
                observe_lines(self.context.metrics, self.journal.knowledge, owner, pipeline=self.context.pipeline)

    def _observe(self, journal: Journal) -> None:
        self._observe_lines(journal.knowledge.owners())
        for cursor in self._cursors:
            observe_records(self.context.metrics, journal.knowledge, cursor.name, pipeline=self.context.pipeline)

        def observe(name: str, text: str, read: Callable[[], int], kind: str = "counter") -> None:
            self.context.metrics.observe(name, text, read, kind=kind, pipeline=self.context.pipeline)

        observe("lockgate_queue_disk_bytes", "bytes of the queue's files", lambda: journal.disk_bytes, "gauge")
        observe("lockgate_queue_damaged_records", "batches lost to damage of the queue's files", lambda: journal.damaged_records)
        observe("lockgate_queue_quarantined_bytes", "damaged bytes that were copied aside", lambda: journal.quarantined_bytes)
        observe("lockgate_queue_damaged_note_bytes", "damaged bytes of the queue's notes", lambda: journal.damaged_note_bytes)
        observe("lockgate_queue_torn_bytes", "bytes of an unfinished last write that were removed", lambda: journal.torn_bytes)
        text = "batches that an exporter had not delivered when it was removed from the pipeline"
        observe("lockgate_queue_abandoned_records", text, lambda: journal.abandoned_records)

    # Ids.

    def _new_of(self, batch: Batch) -> Batch | None:
        """What of this batch is not here, nor was: None for nothing. A merged one may be known in part."""
        if not (batch.count or batch.origins) or self._is_known(batch):
            return None
        parts = list(parts_of(batch)) if batch.parts and not batch.origins else []
        new = [part for part in parts if not self._is_known(part)]
        if len(new) == len(parts):
            return batch
        return replace(merge(new), origins=batch.origins)

    def _is_known(self, batch: Batch) -> bool:
        assert self.journal is not None
        if batch.origins or not all(self.journal.knowledge.is_known(queued_record(batch).ids)):
            return False
        self._duplicates.add()
        return True

    # Room.

    def _lacks(self, batch: Batch) -> str:
        if not any(cursor.size for cursor in self._cursors):
            return ""
        for cursor in self._cursors:
            if cursor.size and cursor.size + cursor.weigh(batch) > cursor.settings.queue_size:
                return f"the sending queue is full ({cursor.size} of {cursor.settings.queue_size} wait for {cursor.name})"
        used = (self.journal.disk_bytes if self.journal is not None else 0) + self._bytes
        if used + len(batch.payload) > self._max_bytes:
            return f"the sending queue is full ({used} of {self._max_bytes} bytes on disk)"
        return ""

    def _account(self, batch: Batch, sign: int) -> None:
        self._bytes += sign * len(batch.payload)
        for cursor in self._cursors:
            cursor.size += sign * cursor.weigh(batch)

    # Working.

    async def _run(self, journal: Journal) -> None:
        try:
            while True:
                await self._turn(journal)
        finally:
            self._ended = True
            self._idle.set()

    async def _turn(self, journal: Journal) -> None:
        now = asyncio.get_running_loop().time()
        probes = self._wanted or any(cursor.cannot_read for cursor in self._cursors)
        waits = [PROBE_SECONDS] if probes else []
        waits += [max(0.0, self._sync_at - now)] if self._sync_at is not None else []
        try:
            async with asyncio.timeout(min(waits, default=None)):
                await self._work.wait()
        except TimeoutError:
            if self._wanted:
                await self._probe(journal)
            for cursor in self._cursors:
                cursor.cannot_read = False
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

    def _next_offers(self) -> list[_Offer]:
        offers, ids, size = list[_Offer](), set[tuple[Signal, str]](), 0
        while self._offers and (not offers or size + len(self._offers[0][0].payload) <= COMMIT_BYTES):
            batch, written = self._offers[0]
            if (key := (batch.signal, batch.id)) in ids:
                break  # a repetition of one before it: what became of that is known when this is done
            self._offers.popleft()
            if self._is_known(batch):  # it came while its first copy was being written
                self._account(batch, -1)
                self._admit()
                if not written.done():
                    written.set_result(None)
                continue
            ids.add(key)
            offers.append((batch, written))
            size += len(batch.payload)
        return offers

    async def _do(self, journal: Journal, offers: list[_Offer]) -> None:
        loop = asyncio.get_running_loop()
        job = _Job([batch for batch, _ in offers], self._settlements)
        self._settlements = []
        caught_up = [cursor for cursor in self._cursors if not journal.readers[cursor.name].unread.records]
        job.rooms = {cursor.name: room for cursor in self._cursors if cursor not in caught_up and (room := cursor.hunger())}
        if job.settlements and self._sync_at is None:
            self._sync_at = loop.time() + SYNC_SECONDS
        job.syncs = self._sync_at is not None and self._sync_at <= loop.time()
        if not (job.batches or job.settlements or job.rooms or job.syncs):
            return
        self._disk_since = self.context.clock.monotonic()
        try:
            await self.in_thread(job.run, journal)
        finally:
            self._disk_since = None
        if job.syncs:
            self._sync_at = None
        self._has_loaded(journal, job)
        for ref, (batch, written) in zip(job.refs, offers, strict=False):
            self._bytes -= len(batch.payload)
            for cursor in list(caught_up):
                if cursor.room > 0:
                    journal.pass_over(cursor.name, ref)
                    cursor.ready(ref, batch)
                else:
                    caught_up.remove(cursor)
            if not written.done():
                written.set_result(None)
        if job.error is not None:
            self._refuse(offers, job.error)
        elif offers:
            self._writes_again()
            self._observe_lines(batch.origins[0].owner for batch, _ in offers if batch.origins)
        if origins := journal.given_back():
            self.context.host.give_back(origins)
        self._admit()
        if self._offers or self._settlements or any(journal.readers[it.name].unread.records and it.hunger() for it in self._cursors):
            self._work.set()

    def _has_loaded(self, journal: Journal, job: _Job) -> None:
        for cursor in self._cursors:
            if (loaded := job.loaded.get(cursor.name)) is not None:
                for ref, batch in loaded.entries:
                    cursor.ready(ref, batch)
                self._reads(cursor, loaded.error)
            reader = journal.readers[cursor.name]
            cursor.size -= cursor.amount(reader.lost)
            reader.lost = Amount()

    def _refuse(self, offers: list[_Offer], error: OSError) -> None:
        reason = f"cannot write to the sending queue: {error.strerror or error}; nothing is lost, and senders wait for space"
        if not self._wanted:
            self.log.error("%s", reason)
        self.context.status.block(reason, "queue")
        self._wanted = sum(len(batch.payload) for batch, _ in offers)
        for batch, written in offers:
            self._account(batch, -1)
            if not written.done():
                written.set_exception(Retryable(reason, PROBE_SECONDS))

    def _reads(self, cursor: Cursor, error: OSError | None) -> None:
        if error is None:
            self.context.status.clear(f"reading for {cursor.name}")
            return
        cursor.cannot_read = True
        self.context.status.block(f"cannot read the sending queue: {error}; it is tried again", f"reading for {cursor.name}")
        self.log.error("cannot read the sending queue for %s: %s; trying again", cursor.name, error)

    def _writes_again(self) -> None:
        if self._wanted:
            self._wanted = 0
            self.context.status.clear("queue")
            self.log.info("the sending queue can be written to again")

    async def _probe(self, journal: Journal) -> None:
        self._busy = True
        try:
            await self.in_thread(journal.probe, self._wanted)
        except OSError:
            return
        finally:
            self._busy = False
            self._idle.set()
        self._writes_again()


@dataclass(slots=True)
class _Job:
    """What a thread does at a time, and what came of it."""

    batches: list[Batch]
    settlements: list[Settlement]
    rooms: dict[str, int] = field(default_factory=dict)
    syncs: bool = False
    refs: list[Ref] = field(default_factory=list)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    error: OSError | None = None

    def run(self, journal: Journal) -> None:
        if self.settlements:  # first: it may give back the space that the others need
            journal.settle(self.settlements)
        if self.batches:
            try:
                self.refs = journal.append(self.batches)
            except OSError as error:
                self.error = error
        self.loaded = {name: journal.load(name, room) for name, room in self.rooms.items()}
        if self.syncs:
            journal.sync()
