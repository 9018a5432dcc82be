"""Merge small batches into larger ones, and split too large ones.

Unlike the collector's, this processor takes no custody: whoever hands it a batch waits until that batch is delivered, so nothing is lost
with the process. Waiting for a time-out would then only add latency (and deadlock a sender that waits for its answer), so a batch goes on
at once while nothing of its peer is under way behind this processor; what arrives meanwhile is merged and follows when that is delivered,
when enough has come together, or at the time-out, whichever is first. Retrying is left to the caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from pydantic import Field, model_validator

from lockgate.batch import merge, split
from lockgate.kit.metrics import Series
from lockgate.kit.units import Duration
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Permanent, Processor, Refusal, Retryable, component


class BatchSettings(ComponentSettings):
    """Sizes are in records: log records, spans or data points."""

    send_batch_size: int = Field(8192, ge=0)
    """A batch of this many waiting records goes on without waiting any longer; 0 lets every batch go on at once."""
    send_batch_max_size: int = Field(0, ge=0)
    """No batch that goes on is larger than this: larger ones are split. 0 is no limit."""
    timeout: Duration = 0.2
    """How long a batch waits for others at most, while earlier ones are under way; 0 lets every batch go on at once."""
    metadata_keys: list[str] = []
    """Must be empty: batches carry no client metadata. Batches of different peers are never merged."""
    metadata_cardinality_limit: int = Field(1000, ge=1)
    """Batches of at most this many peers wait at the same time; those of further peers go on unmerged."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 0 < self.send_batch_max_size < self.send_batch_size:
            raise ValueError("send_batch_max_size must be at least send_batch_size, or 0")
        if self.metadata_keys:
            raise ValueError("metadata_keys must be empty: batches carry no client metadata, and different peers are never merged anyway")
        return self


class _Entry:
    """A caller's batch and what becomes of it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: BaseException | None) -> None:
        if self.outcome.done():  # its caller has been cancelled
            return
        if error is None:
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)


class _Shard:
    """What waits of one peer, and how much of that peer is under way."""

    def __init__(self) -> None:
        self.waiting: deque[_Entry] = deque()
        self.count = 0
        """Records that wait."""
        self.flights = 0
        self.timer: asyncio.Task[None] | None = None


@component("batch", BatchSettings)
class BatchProcessor(Processor[BatchSettings]):
    """Callers wait until their part is delivered; Retryable goes to all callers of a merged batch, Permanent to those it is about."""

    def __init__(self, settings: BatchSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._shards: dict[str, _Shard] = {}
        self._flights: set[asyncio.Task[None]] = set()
        metrics = context.metrics
        self._by_size = metrics.counter("otelcol_processor_batch_batch_size_trigger_send", "batches sent for size", processor=context.id)
        self._by_timeout = metrics.counter(
            "otelcol_processor_batch_timeout_trigger_send", "batches sent for time-out", processor=context.id
        )

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        self._incoming.add(batch.count)
        if batch.count:
            await self._enqueue(_Entry(batch))
        elif batch.origins:
            await self.next.consume(batch)
        self._outgoing.add(batch.count)

    async def stop(self) -> None:
        for shard in list(self._shards.values()):
            self._flush(shard)
        while self._flights:
            await asyncio.wait(self._flights)

    async def _enqueue(self, entry: _Entry) -> None:
        peer = entry.batch.peer
        shard = self._shards.get(peer)
        if shard is None:
            shard = _Shard()
            if len(self._shards) < self.settings.metadata_cardinality_limit:
                self._shards[peer] = shard
        shard.waiting.append(entry)
        shard.count += entry.batch.count
        settings = self.settings
        if shard.count >= settings.send_batch_size:
            self._flush(shard, self._by_size)
        elif not shard.flights or not settings.timeout:
            self._flush(shard)
        elif shard.timer is None:
            shard.timer = self.spawn(self._time_out(shard), "time-out")
        try:
            await entry.outcome
        finally:
            if entry in shard.waiting:  # cancelled before it was sent
                shard.waiting.remove(entry)
                shard.count -= entry.batch.count

    async def _time_out(self, shard: _Shard) -> None:
        await self.context.clock.sleep(self.settings.timeout)
        shard.timer = None
        self._flush(shard, self._by_timeout)

    def _flush(self, shard: _Shard, trigger: Series | None = None) -> None:
        if shard.timer is not None:
            shard.timer.cancel()
            shard.timer = None
        entries, shard.waiting, shard.count = shard.waiting, deque(), 0
        limit = self.settings.send_batch_max_size
        while entries:
            group = [entries.popleft()]
            count = group[0].batch.count
            while entries and (not limit or count + entries[0].batch.count <= limit):
                count += entries[0].batch.count
                group.append(entries.popleft())
            if trigger is not None:
                trigger.add()
            self._launch(shard, group)

    def _launch(self, shard: _Shard, group: list[_Entry]) -> None:
        flight = self.spawn(self._deliver(group), "delivery")
        shard.flights += 1
        self._flights.add(flight)
        # A callback, not a `finally` in the task: a task that is cancelled before its first step runs no `finally`.
        flight.add_done_callback(lambda flight: self._land(shard, group, flight))
        for entry in group:
            entry.outcome.add_done_callback(lambda _: _abandon(group, flight))

    def _land(self, shard: _Shard, group: list[_Entry], flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        for entry in group:
            entry.settle(Retryable(f"processor {self.context.id} was stopped before the batch was delivered"))
        shard.flights -= 1
        if not shard.flights and self._tasks is not None:
            self._flush(shard)
        peer = group[0].batch.peer
        if not shard.flights and self._shards.get(peer) is shard:
            del self._shards[peer]

    async def _deliver(self, group: list[_Entry]) -> None:
        group = [entry for entry in group if not entry.outcome.done()]
        if not group:
            return
        try:
            await self._send(merge(entry.batch for entry in group))
        except Permanent as refusal:
            if len(group) == 1:
                group[0].settle(refusal)
                return
            for entry in group:  # one bad part does not condemn the rest
                await self._deliver([entry])
        except Exception as error:
            for entry in group:
                entry.settle(error)
        else:
            for entry in group:
                entry.settle(None)

    async def _send(self, batch: Batch) -> None:
        limit = self.settings.send_batch_max_size
        pieces = split(batch, limit) if limit else [batch]
        refused: list[Refusal] = []
        for piece in pieces:
            try:
                await self.next.consume(piece)
            except Permanent as refusal:
                refused.append(refusal)
        if refused:
            raise refused[0] if len(pieces) == 1 else Permanent(f"{len(refused)} of {len(pieces)} pieces: {refused[0]}")


def _abandon(group: list[_Entry], flight: asyncio.Task[None]) -> None:
    """Nobody waits for a flight any more whose callers have all been cancelled."""
    if all(entry.outcome.cancelled() for entry in group):
        flight.cancel()
