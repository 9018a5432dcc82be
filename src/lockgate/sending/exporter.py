"""QueuedExporter: a subclass writes one attempt, `send(batch)`; queue, merging, retry, counting and status are here.

A batch's way: `consume` -> queue (bounded; a full one makes the pipeline wait) -> one of `num_consumers` senders, which merges what
waits -> attempts with back-off until it is delivered. A merged batch that is refused for good is sent again in its parts, so that one
bad part does not condemn the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from lockgate.batch import Batch, Signal, count_records, merge
from lockgate.kit.backoff import delays
from lockgate.kit.metrics import Series
from lockgate.kit.sometimes import Sometimes
from lockgate.pipeline.contract import Context, Custody, Exporter
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.durable import DurableQueue
from lockgate.sending.queue import Entry, MemoryQueue, Queue, QueueFull, Weigh
from lockgate.sending.segments import Journal
from lockgate.sending.settings import SendingSettings

S = TypeVar("S", bound=SendingSettings)

_WEIGHTS: dict[str, Weigh] = {"requests": lambda _: 1, "items": lambda batch: batch.count, "bytes": lambda batch: len(batch.payload)}

_LOADED_BYTES = 16 << 20
"""What a durable queue keeps in memory: enough to keep ten senders busy with batches of a megabyte."""

_EVENTS = {"sent": "delivered", "send_failed": "refused for good, or given back undelivered", "enqueue_failed": "refused by a full queue"}


@dataclass(frozen=True, slots=True)
class Rejected:
    """The server took a batch, but so many of its records it did not (OTLP 1.5, "Partial Success"); it wants none of them again."""

    records: int
    reason: str


class QueuedExporter(Exporter[S]):
    """An exporter with a sending queue. `client` is held open from before the first attempt until after the last."""

    def __init__(self, settings: S, context: Context, client: AbstractAsyncContextManager[Any] | None = None) -> None:
        super().__init__(settings, context)
        self._held = client or nullcontext()
        queue = settings.sending_queue
        weigh, waits = _WEIGHTS[queue.sizer], queue.block_on_overflow
        self._queue: Queue
        self._durable: DurableQueue | None = None
        if queue.enabled and queue.storage:
            self.custody = Custody.DURABLE
            self._queue = self._durable = DurableQueue(
                queue.queue_size,
                queue.sizer,
                weigh,
                queue.max_disk_bytes,
                waits_when_full=waits,
                max_loaded_bytes=min(queue.max_bytes, _LOADED_BYTES),
                status=context.status,
                log=self.log,
            )
        else:
            self._queue = MemoryQueue(queue.queue_size, weigh, queue.max_bytes, waits_when_full=waits)
        self._busy = 0
        """Senders that hold something; without a queue, callers."""
        self._sending = 0
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._gave_up: Retryable | None = None
        self._failing_since: float | None = None
        self._sometimes = Sometimes(context.clock)
        self._stalls = Sometimes(context.clock, queue.stalled_after)
        self._counters: dict[tuple[str, Signal], Series] = {}
        if queue.enabled:
            metrics, id = context.metrics, context.id
            unit = f"in {queue.sizer}"
            metrics.observe("otelcol_exporter_queue_size", f"what waits or is under way, {unit}", lambda: self._queue.size, exporter=id)
            metrics.observe("otelcol_exporter_queue_capacity", f"what the queue takes, {unit}", lambda: self._queue.capacity, exporter=id)
            if self._durable is not None:
                self._observe(self._durable)

    async def send(self, batch: Batch) -> Rejected | None:
        """One attempt. Returns when the batch is delivered; raises Retryable or Permanent. Bounded by `timeout`; may be cancelled."""
        raise TypeError(f"{type(self).__name__} must define send")

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        if not batch.count:
            return
        if not self.settings.sending_queue.enabled:
            self._busy += 1
            try:
                await self._deliver(batch)
            finally:
                self._busy -= 1
                self._changed.set()
            return
        try:
            await self._queue.offer(batch)
        except QueueFull:
            self._count("enqueue_failed", batch)
            raise

    async def start(self) -> None:
        if self._durable is not None:
            extension = self.context.host.extension(self.settings.sending_queue.storage)
            storage = await self.in_thread(extension.storage, f"{self.context.kind}/{self.context.id}")
            await self._durable.start(storage.directory, fsync=storage.fsync, in_thread=self.in_thread, spawn=self.spawn)
        await self._held.__aenter__()
        if self.settings.sending_queue.enabled:
            for number in range(self.settings.sending_queue.num_consumers):
                self.spawn(self._work(), f"sender {number}")

    async def stop(self) -> None:
        """Sends what waits, each batch once: what cannot be delivered now goes back to its sender. From a queue on disk, only what is
        under way is sent: the rest is there at the next start."""
        self._stopping.set()
        self._changed.set()
        try:
            while self._busy or (self._durable is None and self._queue.size):
                self._changed.clear()
                await self._changed.wait()
        finally:
            try:
                while (entry := self._queue.take_more(lambda _: True)) is not None:
                    self._release(entry, Retryable(f"{self.context.id} was stopped before this was sent"))
                if self._durable is not None:
                    await self._durable.close()
            finally:
                await self._held.__aexit__(None, None, None)

    async def _work(self) -> None:
        while self._durable is None or not self._stopping.is_set():
            # In a frame of its own: a sender that waits must not keep alive what it sent last.
            await self._serve([await self._queue.take()])

    async def _serve(self, entries: list[Entry]) -> None:
        self._busy += 1
        try:
            if self._durable is not None and self._stopping.is_set():
                return  # came while this ended; it stays where it is
            await self._gather(entries)
            self._sending += 1
            try:
                await self._deliver_entries(entries)
            finally:
                self._sending -= 1
        finally:
            for entry in entries:  # only what a cancellation left: settling twice does nothing
                self._release(entry, Retryable(f"{self.context.id} was stopped before this was delivered"))
            self._busy -= 1
            self._changed.set()

    async def _gather(self, entries: list[Entry]) -> None:
        """Adds to the first entry what may be merged with it, waiting for more only while something else is under way."""
        batching = self.settings.sending_queue.batch
        if batching is None:
            return
        weigh, first = _WEIGHTS[batching.sizer], entries[0].batch
        total = weigh(first)

        def accept(batch: Batch) -> bool:
            is_alike = batch.signal is first.signal and batch.peer == first.peer
            return is_alike and (not batching.max_size or total + weigh(batch) <= batching.max_size)

        clock = self.context.clock
        deadline = clock.monotonic() + batching.flush_timeout
        while True:
            while (more := self._queue.take_more(accept)) is not None:
                entries.append(more)
                total += weigh(more.batch)
            rest = deadline - clock.monotonic()
            if total >= batching.min_size or not self._sending or self._stopping.is_set() or rest <= 0:
                return
            self._changed.clear()
            await _first_of(self._queue.arrival(), self._changed.wait(), clock.sleep(rest))

    async def _deliver_entries(self, entries: list[Entry]) -> None:
        try:
            await self._deliver(merge(entry.batch for entry in entries), entries, split=len(entries) == 1)
        except Permanent as refusal:
            if len(entries) == 1:
                self._settle(entries[0], refusal)
                return
            for entry in entries:
                await self._deliver_entries([entry])
        except Retryable as error:
            for entry in entries:
                if self._stopping.is_set():
                    self._release(entry, error)
                else:
                    self._settle(entry, error)
            if self._durable is not None and not self._stopping.is_set():
                count = sum(entry.batch.count for entry in entries)
                self.log.error("%d records were given up, as retry_on_failure says, and are lost: %s", count, error)
        except Exception as error:  # a bug of ours: the one who waits must hear of it
            if self._durable is not None:
                self.log.exception("a fault of lockgate's own kept a batch from being sent; it stays on disk until the next start")
            for entry in entries:
                self._release(entry, error)
        else:
            for entry in entries:
                self._settle(entry)

    def _settle(self, entry: Entry, error: Exception | None = None) -> None:
        if not entry.settled.done():
            self._queue.settle(entry, error)

    def _release(self, entry: Entry, error: Exception) -> None:
        if not entry.settled.done():
            self._queue.release(entry, error)

    def _observe(self, queue: DurableQueue) -> None:
        def observe(name: str, text: str, read: Callable[[Journal], int], kind: str = "counter") -> None:
            def value() -> float:
                return read(queue.journal) if queue.journal is not None else 0

            self.context.metrics.observe(name, text, value, kind=kind, exporter=self.context.id)

        observe("lockgate_queue_disk_bytes", "bytes of the queue's segments on disk", lambda it: it.disk_bytes, "gauge")
        observe("lockgate_queue_damaged_records", "batches lost to damage of the queue's files", lambda it: it.damaged_records)
        observe("lockgate_queue_quarantined_bytes", "damaged bytes that were copied aside", lambda it: it.quarantined_bytes)
        observe("lockgate_queue_torn_bytes", "bytes of an unfinished last write that were removed", lambda it: it.torn_bytes)

    async def _deliver(self, batch: Batch, entries: Sequence[Entry] = (), *, split: bool = True) -> None:
        """Returns when the batch, or some part of it, is delivered and the rest is counted; raises Permanent where all was refused."""
        try:
            rejected = await self._attempts(batch, entries)
        except Permanent as refusal:
            if not split:
                raise
            parts = list(parts_of(batch))
            if not parts:
                self._moves_on()
                self._lost(batch, str(refusal), batch.count)
                raise
            refused = 0
            for part in parts:
                try:
                    await self._deliver(part, entries)
                except Permanent:
                    refused += 1
            if refused == len(parts):
                raise
        except Retryable:
            self._count("send_failed", batch)
            raise
        else:
            lost = 0
            if rejected is not None and (lost := min(rejected.records, batch.count)):
                self._lost(batch, rejected.reason, lost)
            elif rejected is not None and (kept_back := self._sometimes.now(("remark", batch.signal))) is not None:
                self.log.warning("%s%s", rejected.reason, _kept_back(kept_back))
            self._count("sent", batch, batch.count - lost)

    async def _attempts(self, batch: Batch, entries: Sequence[Entry]) -> Rejected | None:
        retry, clock = self.settings.retry_on_failure, self.context.clock
        waits = delays(retry.initial_interval, retry.max_interval, retry.multiplier, retry.randomization_factor)
        started = clock.monotonic()
        while True:
            if self._gave_up is not None:
                # A new one each time: raised again and again, one instance would gather the traceback of every batch.
                raise Retryable(str(self._gave_up), self._gave_up.after)
            if entries and all(entry.abandoned for entry in entries):
                raise Retryable("nobody waits for this any more")  # whoever has it sends it again
            try:
                rejected = await self._attempt(batch)
            except Retryable as refusal:
                wait = max(next(waits), refusal.after or 0.0)
                self._held_up(refusal, wait)
                if self._stopping.is_set():
                    # The rest of the queue would meet the same, one time-out after the other.
                    self._gave_up = refusal
                is_over = retry.max_elapsed_time and clock.monotonic() - started + wait > retry.max_elapsed_time
                if not retry.enabled or self._gave_up is not None or is_over:
                    raise
                await _first_of(clock.sleep(wait), self._stopping.wait())
            else:
                self._moves_on()
                return rejected

    async def _attempt(self, batch: Batch) -> Rejected | None:
        try:
            async with asyncio.timeout(self.settings.timeout or None):
                return await self.send(batch)
        except TimeoutError as error:
            raise Retryable(f"no answer in {self.settings.timeout:g} s; raise timeout or look at the network policy") from error

    def _held_up(self, refusal: Retryable, wait: float) -> None:
        now = self.context.clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self.context.status.block(f"delivery: {refusal}", "sending")
        if (kept_back := self._sometimes.now("retry")) is not None:
            self.log.warning("not delivered: %s; next try in %.1f s%s", refusal, wait, _kept_back(kept_back))
        failing = now - self._failing_since
        if failing >= self.settings.sending_queue.stalled_after and self._stalls.now("stalled") is not None:
            self.log.error("nothing was delivered for %.0f s, and %d wait: %s", failing, self._queue.size, refusal)

    def _moves_on(self) -> None:
        if self._failing_since is not None:
            self.log.info("delivering again after %.1f s", self.context.clock.monotonic() - self._failing_since)
            self._failing_since = None
        self.context.status.clear("sending")

    def _lost(self, batch: Batch, reason: str, records: int) -> None:
        self._count("send_failed", batch, records)
        if (kept_back := self._sometimes.now(("lost", batch.signal))) is not None:
            self.log.error("%d %s were refused for good: %s%s", records, batch.signal.items, reason, _kept_back(kept_back))

    def _count(self, event: str, batch: Batch, amount: int | None = None) -> None:
        key = (event, batch.signal)
        if key not in self._counters:
            name = f"otelcol_exporter_{event}_{batch.signal.items}"
            text = {
                "sent": "delivered",
                "send_failed": "not delivered: refused for good, or given back",
                "enqueue_failed": "refused by a full queue",
            }
            self._counters[key] = self.context.metrics.counter(name, f"{batch.signal.items} {text[event]}", exporter=self.context.id)
        self._counters[key].add(batch.count if amount is None else amount)


def parts_of(batch: Batch) -> Iterator[Batch]:
    """The batches that a merged one was made of; none where it was not merged, or has changed since."""
    if len(batch.parts) < 2 or sum(part.size for part in batch.parts) != len(batch.payload):
        return
    position = 0
    for part in batch.parts:
        payload = batch.payload[position : position + part.size]
        position += part.size
        yield Batch(batch.signal, payload, count_records(batch.signal, payload), part.id, batch.peer)


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _kept_back(count: int) -> str:
    return f" ({count} more like this were not logged)" if count else ""
