"""QueuedExporter: a subclass writes one attempt, `send(batch)`; queue, merging, retry, counting and status are here.

A batch's way: `consume` -> queue (bounded; a full one makes the pipeline wait) -> one of `num_consumers` senders, which merges what
waits -> attempts with back-off until it is delivered. A merged batch that is refused for good is sent again in its parts, so that one
bad part does not condemn the rest. Where the queue is on disk, the pipeline hands its batches to a `PipelineQueue` (durable.py) instead,
which feeds the senders of all its exporters.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from lockgate.batch import Batch, Signal, count_records, merge
from lockgate.kit.backoff import delays
from lockgate.kit.metrics import Series
from lockgate.kit.sometimes import Sometimes
from lockgate.pipeline.contract import NO_GROUPS, Context, Custody, Exporter, Held, Waiting
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.notes import Books, Knowledge, Outcome, Queued, Settled, observe_records, queued_record, settled_record
from lockgate.sending.queue import Entry, Inbox, MemoryQueue, QueueFull, Weigh
from lockgate.sending.settings import SendingSettings

S = TypeVar("S", bound=SendingSettings)

WEIGHTS: dict[str, Weigh] = {"requests": lambda _: 1, "items": lambda batch: batch.count, "bytes": lambda batch: len(batch.payload)}


_KINDS = 16
"""Kinds of losses told within ten seconds; a guess: servers have two or three."""
_VARIABLE = re.compile(r"(?<!\S)(?![45]\d\d\b)\S*\d\S*")
"""What of a reason may differ each time (a time, an id, a count), and not which status it was."""

MAX_MERGED = 180
"""Batches merged into a request: so many ids fit into one header."""


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
        self.inbox = Inbox()
        """What its senders take from: fed by the queue in memory, or by those of its pipelines."""
        self._memory: MemoryQueue | None = None
        if settings.queued_in():
            self.custody = Custody.DURABLE
        elif queue.enabled:
            waits = queue.block_on_overflow
            weigh = WEIGHTS[queue.sizer]
            self._memory = MemoryQueue(self.inbox, queue.queue_size, weigh, queue.max_bytes, waits_when_full=waits, note=self._keep_account)
        self._knowledge = Knowledge([context.id], 0)
        """The ledger of a queue in memory."""
        self._accounted = 0
        if self._memory is not None:
            observe_records(context.metrics, self._knowledge, context.id, pipeline="")
        self._busy = 0
        """Senders that hold something; without a queue, callers."""
        self._sending = 0
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._is_broken_off = False
        """Whether the stop ran out of time: an attempt that fails from here on failed because of that."""
        self._gave_up: Retryable | None = None
        self._failing_since: float | None = None
        self._tried = float("-inf")
        """When an attempt last failed, of whichever sender."""
        self._recoveries = 0
        self._recovered = asyncio.Event()
        """Set, and counted, when something is delivered after nothing was for longer than `initial_interval`."""
        self._refusal = ""
        """Why the last attempt failed, as long as none has succeeded."""
        self._attempting = 0
        self._progress = context.clock.monotonic()
        """When something was settled, or nothing waited."""
        self._sometimes = Sometimes(context.clock)
        self._losses = Sometimes(context.clock, keys=_KINDS)
        self._counters: dict[tuple[str, Signal], Series] = {}
        if queue.enabled:
            metrics, id = context.metrics, context.id
            unit = f"in {queue.sizer}"
            metrics.observe("otelcol_exporter_queue_size", f"what waits or is under way, {unit}", self._queue_size, exporter=id)
            metrics.observe("otelcol_exporter_queue_capacity", f"what the queue takes, {unit}", self._queue_capacity, exporter=id)

    @property
    def compression(self) -> tuple[str, int | None]:
        """The content encoding, and its level, of what it sends where that is a batch's payload: a queue on disk keeps it so."""
        return "none", None

    def _queue_size(self) -> int:
        return sum(feed.size for feed in self.inbox.feeds)

    def _queue_capacity(self) -> int:
        return len(self.inbox.feeds) * self.settings.sending_queue.queue_size

    # The ledger of a queue in memory. Custody stays with the sender, so nothing counts as queued before it is delivered or rejected.

    @property
    def keeps_accounts(self) -> bool:
        return self._memory is not None

    @property
    def is_on_disk(self) -> bool:
        """See `ledger.Bookkeeper`."""
        return False

    def _keep_account(self, batch: Batch, outcome: Outcome) -> None:
        self._accounted += 1
        self._knowledge.apply(Queued(self._accounted, [queued_record(batch)]))
        self._knowledge.apply(Settled(self.context.id, [settled_record(self._accounted, batch, outcome)]))

    def books(self) -> Books:
        """See `ledger.Bookkeeper`."""
        return self._knowledge.books()

    def waiting_bytes(self) -> dict[str, int]:
        """See `ledger.Bookkeeper`."""
        return {self.context.id: self._memory.bytes} if self._memory is not None else {}

    def held(self, owner: str) -> Held:
        """See `Host.held`: nothing that would survive this process."""
        return Held()

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        """See `Host.saved`."""
        self._knowledge.saved(owner, positions, groups)

    def waiting(self) -> Iterator[Waiting]:
        size = self._queue_size()
        if not (size or self._busy or self._attempting):
            self._progress = self.context.clock.monotonic()
            return
        if self._refusal:
            what = f"delivery: {self._refusal}"
        elif self._attempting:
            what = f"delivery: {self._attempting} requests are not answered"
        else:
            what = "the sending queue, which gives out nothing"
        wait = f"; {size} are in the queue" if size else ""
        yield Waiting(what + wait, self._progress, self.settings.sending_queue.stalled_after)

    async def send(self, batch: Batch) -> Rejected | None:
        """One attempt. Returns when the batch is delivered; raises Retryable or Permanent. Bounded by `timeout`; may be cancelled."""
        raise TypeError(f"{type(self).__name__} must define send")

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        if not batch.count:
            if batch.origins and self._memory is not None:
                self._keep_account(batch, Outcome())
            return
        if self._memory is None:
            self._busy += 1
            try:
                await self._deliver(batch)
            finally:
                self._busy -= 1
                self._changed.set()
            return
        try:
            await self._memory.offer(batch)
        except QueueFull:
            self.count("enqueue_failed", batch)
            raise

    async def start(self) -> None:
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
            while self._busy or (self._memory is not None and self._memory.size):
                self._changed.clear()
                await self._changed.wait()
        except asyncio.CancelledError:
            self._is_broken_off = True
            self._tell_broken_off()
            raise
        finally:
            try:
                while (entry := self.inbox.take_more(lambda _: True)) is not None:
                    entry.release(Retryable(f"{self.context.id} was stopped before this was sent"))
            finally:
                await self._held.__aexit__(None, None, None)

    def _tell_broken_off(self) -> None:
        what = f"{self._busy} request{'s' if self._busy != 1 else ''}"
        if self.custody is Custody.DURABLE:
            self.log.warning("stopping broke off what was under way (%s): it stays on disk, and is sent after the next start", what)
        else:
            self.log.error(
                "stopping broke off what was under way (%s): it was not acknowledged, and is lost where its sender cannot send it again; "
                "raise service.shutdown_timeout, or give the sending_queue a storage",
                what,
            )

    async def _work(self) -> None:
        while self._memory is not None or not self._stopping.is_set():
            # In a frame of its own: a sender that waits must not keep alive what it sent last.
            await self._serve([await self.inbox.take()])

    async def _serve(self, entries: list[Entry]) -> None:
        if not self._busy and self._queue_size() <= len(entries):
            self._progress = self.context.clock.monotonic()
        self._busy += 1
        try:
            if self._memory is None and self._stopping.is_set():
                return  # came while this ended; it stays where it is
            await self._gather(entries)
            self._sending += 1
            try:
                await self._deliver_entries(entries)
            finally:
                self._sending -= 1
        finally:
            if any(entry.settled.done() for entry in entries):
                self._progress = self.context.clock.monotonic()
            for entry in entries:  # only what a cancellation left: settling twice does nothing
                entry.release(Retryable(f"{self.context.id} was stopped before this was delivered"))
            self._busy -= 1
            self._changed.set()

    async def _gather(self, entries: list[Entry]) -> None:
        """Adds to the first entry what may be merged with it, waiting for more only while something else is under way."""
        batching = self.settings.sending_queue.batch
        if batching is None:
            return
        weigh, first = WEIGHTS[batching.sizer], entries[0].batch
        total = weigh(first)

        def accept(batch: Batch) -> bool:
            is_alike = batch.signal is first.signal and batch.peer == first.peer and len(entries) < MAX_MERGED
            return is_alike and (not batching.max_size or total + weigh(batch) <= batching.max_size)

        clock = self.context.clock
        deadline = clock.monotonic() + batching.flush_timeout
        while True:
            while (more := self.inbox.take_more(accept)) is not None:
                entries.append(more)
                total += weigh(more.batch)
            rest = deadline - clock.monotonic()
            if total >= batching.min_size or not self._sending or self._stopping.is_set() or rest <= 0:
                return
            self._changed.clear()
            await _first_of(self.inbox.arrival(), self._changed.wait(), clock.sleep(rest))

    async def _deliver_entries(self, entries: list[Entry]) -> None:
        is_durable = self._memory is None
        try:
            rejected = await self._deliver(merge(entry.batch for entry in entries), entries, split=len(entries) == 1)
        except Permanent as refusal:
            if len(entries) == 1:
                entries[0].settle(refusal, Outcome(entries[0].batch.count, "refused"))
                return
            for entry in entries:
                await self._deliver_entries([entry])
        except Retryable as error:
            reason = "expired" if self.settings.retry_on_failure.enabled else "not retried"
            for entry in entries:
                if self._stopping.is_set():
                    entry.release(error)
                else:
                    entry.settle(error, Outcome(entry.batch.count, reason))
            if is_durable and not self._stopping.is_set() and (kept_back := self._sometimes.now("given up")) is not None:
                count, more = sum(entry.batch.count for entry in entries), _kept_back(kept_back)
                self.log.error("%d records were given up, as retry_on_failure says, and are lost: %s%s", count, error, more)
        except Exception as error:  # a bug of ours: the one who waits must hear of it
            if is_durable:
                self.log.exception("a fault of lockgate's own kept a batch from being sent; it stays on disk until the next start")
            for entry in entries:
                entry.release(error)
        else:
            for entry in entries:
                share = min(rejected, entry.batch.count)
                rejected -= share
                entry.settle(None, Outcome(share, "partial", is_of_this_batch=len(entries) == 1))

    async def _deliver(self, batch: Batch, entries: Sequence[Entry] = (), *, split: bool = True) -> int:
        """Returns when the batch, or some part of it, is delivered and the rest (so many records) is counted; Permanent where none was."""
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
            refused = lost = 0
            for part in parts:
                try:
                    lost += await self._deliver(part, entries)
                except Permanent:
                    refused += 1
                    lost += part.count
            if refused == len(parts):
                raise
            return lost
        except Retryable:
            self.count("send_failed", batch)
            raise
        lost = 0
        if rejected is not None and (lost := min(rejected.records, batch.count)):
            self._lost(batch, rejected.reason, lost)
        elif rejected is not None and (kept_back := self._sometimes.now(("remark", batch.signal))) is not None:
            self.log.warning("%s%s", rejected.reason, _kept_back(kept_back))
        self.count("sent", batch, batch.count - lost)
        return lost

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
                if self._is_broken_off:
                    raise Retryable(f"stopping {self.context.id} broke off the request") from refusal
                wait = max(next(waits), refusal.after or 0.0)
                self._held_up(refusal, wait)
                if self._stopping.is_set():
                    # The rest of the queue would meet the same, one time-out after the other.
                    self._gave_up = refusal
                is_over = retry.max_elapsed_time and clock.monotonic() - started + wait > retry.max_elapsed_time
                if not retry.enabled or self._gave_up is not None or is_over:
                    raise
                await self._pause(wait, refusal.after or 0.0)
            else:
                self._moves_on()
                return rejected

    async def _pause(self, wait: float, least: float) -> None:
        """Until this sender's next try: after `wait`, or `least` where another one has delivered something after an outage.

        During an outage a try of one is a try for all, or ten senders would ask ten times as often as the intervals say. Without
        this, a short `max_interval` is a burden for the peer, and with a long one its recovery goes unnoticed for as long.
        """
        retry, clock = self.settings.retry_on_failure, self.context.clock
        recoveries, began = self._recoveries, clock.monotonic()
        until = began + wait
        while (rest := until - clock.monotonic()) > 0 and not self._stopping.is_set():
            await _first_of(clock.sleep(rest), self._stopping.wait(), *([self._recovered.wait()] if recoveries == self._recoveries else []))
            if recoveries != self._recoveries:
                until = began + least
            elif self._is_out() and not retry.max_elapsed_time:  # which must not wait for others
                until = max(until, self._tried + wait)

    def _is_out(self) -> bool:
        """Whether nothing was delivered for longer than a hiccup lasts."""
        since = self._failing_since
        return since is not None and self.context.clock.monotonic() - since > self.settings.retry_on_failure.initial_interval

    async def _attempt(self, batch: Batch) -> Rejected | None:
        if not (self._busy or self._attempting):  # without a queue
            self._progress = self.context.clock.monotonic()
        self._attempting += 1
        try:
            async with asyncio.timeout(self.settings.timeout or None):
                return await self.send(batch)
        except TimeoutError as error:
            raise Retryable(f"no answer in {self.settings.timeout:g} s; raise timeout or look at the network policy") from error
        finally:
            self._attempting -= 1

    def _held_up(self, refusal: Retryable, wait: float) -> None:
        self._tried = self.context.clock.monotonic()
        if self._failing_since is None:
            self._failing_since = self._tried
        self._recovered.clear()
        self.context.status.block(f"delivery: {refusal}", "sending")
        if (kept_back := self._sometimes.now("retry")) is not None:
            self.log.warning("not delivered: %s; next try in %.1f s%s", refusal, wait, _kept_back(kept_back))
        self._refusal = str(refusal)

    def _moves_on(self) -> None:
        if self._failing_since is not None:
            self.log.info("delivering again after %.1f s", self.context.clock.monotonic() - self._failing_since)
            if self._is_out():
                self._recoveries += 1
                self._recovered.set()
            self._failing_since = None
        self._refusal = ""
        self.context.status.clear("sending")

    def _lost(self, batch: Batch, reason: str, records: int) -> None:
        self.count("send_failed", batch, records)
        # A new kind of loss is told at once, whatever was told before.
        if (kept_back := self._losses.now((batch.signal, _VARIABLE.sub("", reason[:500])))) is not None:
            self.log.error("%d %s were refused for good: %s%s", records, batch.signal.items, reason, _kept_back(kept_back))

    def count(self, event: str, batch: Batch, amount: int | None = None) -> None:
        """Counts these records, or so many, as `sent`, `send_failed` or `enqueue_failed`."""
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
