"""One batch to several consumers: pipelines that share a receiver or a connector, exporters that share a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lockgate.batch import Batch
from lockgate.kit.backoff import delays
from lockgate.kit.clock import Clock
from lockgate.pipeline.contract import Consumer
from lockgate.pipeline.errors import Permanent, Retryable


class FanOut:
    """One batch to several consumers; acknowledged when each of them has custody.

    A consumer that says Retryable is asked again here, so that the caller's retry does not repeat the batch to the others. One that says
    Permanent has refused for itself; the caller hears of it only where nobody took the batch. (The durable queue's shared journal with a
    cursor per exporter replaces the waiting, not this meaning.)
    """

    def __init__(self, consumers: Sequence[Consumer], clock: Clock) -> None:
        self._consumers, self._clock = consumers, clock

    async def consume(self, batch: Batch) -> None:
        results = await asyncio.gather(*(self._deliver(consumer, batch) for consumer in self._consumers), return_exceptions=True)
        bugs = [result for result in results if isinstance(result, BaseException) and not isinstance(result, Permanent)]
        if bugs:
            raise bugs[0]
        refusals = [result for result in results if isinstance(result, Permanent)]
        if refusals and len(refusals) == len(results):
            raise refusals[0]

    async def _deliver(self, consumer: Consumer, batch: Batch) -> None:
        waits = delays(0.1, 5.0)
        while True:
            try:
                return await consumer.consume(batch)
            except Retryable as refusal:
                # One consumer alone gives its refusal back at once: nothing would be repeated by the caller's own retry.
                if len(self._consumers) == 1:
                    raise
                await self._clock.sleep(max(next(waits), refusal.after or 0.0))


def fan_out(consumers: Sequence[Consumer], clock: Clock) -> Consumer:
    """These consumers as one; a single one is itself."""
    return consumers[0] if len(consumers) == 1 else FanOut(consumers, clock)
