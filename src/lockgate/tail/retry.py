"""The collector's `retry_on_failure` of receivers that read files (its consumerretry): kept, and tried again."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from lockgate.kit.units import Duration
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
