"""One batch to several consumers: pipelines that share a receiver or a connector, exporters that share a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lockgate.batch import Batch
from lockgate.kit.backoff import delays
from lockgate.kit.clock import Clock
from lockgate.pipeline.contract import Consumer
from lockgate.pipeline.errors import Gone, Permanent, Retryable


class FanOut:
    """One batch to several consumers; acknowledged when each of them has custody.

    A consumer that says Retryable is asked again here, so that the caller's retry does not repeat the batch to the others. One that says
    Permanent has refused for itself; the caller hears of it only where nobody took the batch. One that is Gone is asked no more. (The
    durable queue's shared journal with a cursor per exporter replaces the waiting, not this meaning.)
    """

    def __init__(self, consumers: Sequence[Consumer], clock: Clock) -> None:
        self._consumers, self._clock = consumers, clock

    async def consume(self, batch: Batch) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._deliver(consumer, batch)) for consumer in self._consumers]
        except BaseExceptionGroup as bugs:
            # Not waited for: another consumer may be down, and asked again for hours.
            raise bugs.exceptions[0] from None
        refusals = [refusal for task in tasks if (refusal := task.result()) is not None]
        if refusals and len(refusals) == len(tasks):
            raise next((refusal for refusal in refusals if isinstance(refusal, Gone)), refusals[0])

    async def _deliver(self, consumer: Consumer, batch: Batch) -> Permanent | Gone | None:
        waits = delays(0.1, 5.0)
        while True:
            try:
                await consumer.consume(batch)
            except (Permanent, Gone) as refusal:
                return refusal
            except Retryable as refusal:
                # One consumer alone gives its refusal back at once: nothing would be repeated by the caller's own retry.
                if len(self._consumers) == 1:
                    raise
                await self._clock.sleep(max(next(waits), refusal.after or 0.0))
            else:
                return None


class Fork:
    """The way from a pipeline into a connector, where another way leads to the same place: gives batches ids of this way."""

    def __init__(self, name: str, consumer: Consumer) -> None:
        self._name, self._consumer = name, consumer

    async def consume(self, batch: Batch) -> None:
        await self._consumer.consume(batch.through(self._name))


def fan_out(consumers: Sequence[Consumer], clock: Clock) -> Consumer:
    """These consumers as one; a single one is itself."""
    return consumers[0] if len(consumers) == 1 else FanOut(consumers, clock)
