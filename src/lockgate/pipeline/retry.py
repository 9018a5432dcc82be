"""The collector's `retry_on_failure` of receivers that read files (its consumerretry): kept, and tried again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator

from pydantic import Field

from lockgate.batch import Batch
from lockgate.kit.backoff import delays
from lockgate.kit.clock import Clock
from lockgate.kit.units import Duration
from lockgate.pipeline.contract import Status
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import ComponentSettings


class RetryOnFailure(ComponentSettings):
    """What happens when the pipeline cannot take records now. Lockgate keeps them and tries again, with or without this."""

    enabled: bool = True
    """False has no effect: nothing is dropped because a pipeline is busy."""
    initial_interval: Duration = Field(0.1, gt=0)
    """Seconds before the first new try."""
    max_interval: Duration = Field(5.0, gt=0)
    """The longest time between tries."""
    max_elapsed_time: Duration = Field(0.0, ge=0)
    """After so long records are given up and counted; 0, the default here, is never."""

    def warnings(self) -> Iterator[str]:
        if not self.enabled:
            yield "retry_on_failure.enabled: false has no effect: nothing is dropped because a pipeline is busy"
        if self.max_elapsed_time:
            yield "retry_on_failure.max_elapsed_time drops records when it is over; leave it out to keep them"


async def hand_on(
    batch: Batch, emit: Callable[[Batch], Awaitable[None]], retry: RetryOnFailure, *, clock: Clock, status: Status, log: logging.Logger
) -> bool:
    """Offer the batch until it is taken. False where its records are lost: refused for good, or given up; the log says which."""
    waits = delays(retry.initial_interval, retry.max_interval)
    began = clock.monotonic()
    while True:
        try:
            await emit(batch)
        except Retryable as refusal:
            elapsed = clock.monotonic() - began
            if not retry.max_elapsed_time or elapsed < retry.max_elapsed_time:
                status.block(f"the next owner cannot take records now: {refusal}", "delivery")
                await clock.sleep(max(next(waits), refusal.after or 0.0))
                continue
            log.error("gave up %d records after %.0f s, as retry_on_failure.max_elapsed_time says: %s", batch.count, elapsed, refusal)
            is_taken = False
        except Permanent as refusal:
            log.error("%d records were refused for good, and are lost: %s", batch.count, refusal)
            is_taken = False
        else:
            is_taken = True
        status.clear("delivery")
        return is_taken
