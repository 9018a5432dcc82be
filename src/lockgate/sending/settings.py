"""The collector's `sending_queue`, `retry_on_failure` and `timeout` (exporterhelper), with defaults that keep our promise.

Where the collector gives up after five minutes and refuses what does not fit, Lockgate by default retries without end and lets the sender
wait: nothing is dropped. Whoever writes the collector's limits gets them. Delivery begins again within seconds after an outage, where the
collector's waits make it up to 45.
"""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from lockgate.kit.document import Path
from lockgate.kit.units import Duration, Size
from lockgate.pipeline.needs import ComponentSettings

Sizer = Literal["requests", "items", "bytes"]


class BatchSettings(ComponentSettings):
    """Merging of waiting batches into larger requests. A batch that comes while nothing is under way is sent at once."""

    min_size: int = Field(8192, ge=0)
    """Wait for this much while other requests are under way, at most for `flush_timeout`."""
    max_size: int = Field(0, ge=0)
    """Merge no further than this; 0 for no limit. A single batch that is larger is sent as it is: it is not cut."""
    flush_timeout: Duration = 0.2
    """The longest wait for `min_size`."""
    sizer: Literal["items", "bytes"] = "items"
    """What `min_size` and `max_size` count: records, or bytes of payload."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_size and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is smaller than min_size {self.min_size}")
        return self


class QueueSettings(ComponentSettings):
    """The queue between a pipeline and the wire."""

    enabled: bool = True
    """Without a queue each batch is sent by the pipeline that brings it, and there is no bound on how many are under way."""
    num_consumers: int = Field(10, gt=0)
    """Requests under way at the same time."""
    queue_size: int = Field(1000, gt=0)
    """How much may wait or be under way, counted by `sizer`. With `storage`, in each of the exporter's pipelines."""
    sizer: Sizer = "requests"
    """What `queue_size` counts: batches, records or bytes of payload."""
    max_bytes: Size = Field(128 << 20, gt=0)
    """Bytes of payload in memory that may wait or be under way, whatever `sizer` counts: a thousand batches can be a gigabyte. With
    `storage`, the most that is loaded at a time (never more than 16 MiB), shared by the exporter's pipelines."""
    max_disk_bytes: Size = Field(1 << 30, ge=1 << 20)
    """With `storage`: bytes that a pipeline's queue may take on disk; of several exporters in it the smallest counts. `queue_size` bounds
    it as well."""
    block_on_overflow: bool = True
    """A full queue makes the pipeline wait; `false` refuses the batch with "queue full", to be tried again by whoever sent it. With
    `storage`, for all exporters that share the queue."""
    wait_for_result: bool = True
    """A batch in a memory queue counts as acknowledged when it is delivered; this is always so, and `false` gives a warning."""
    storage: str = ""
    """A storage extension to keep the queue in. A batch is then acknowledged when it is on disk, and survives a restart. The exporters of a
    pipeline that name the same one share a queue."""
    batch: BatchSettings | None = None
    """Merge waiting batches of the same signal and client."""
    stalled_after: Duration = Field(300.0, gt=0)
    """When nothing has been delivered for so long although something waits, say so: in the log, and as not ready."""

    def extensions(self) -> Iterator[tuple[Path, str]]:
        yield from super().extensions()
        if self.storage:
            yield ("storage",), self.storage

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.storage and not self.enabled:
            yield "sending_queue.storage has no effect: the queue is not enabled"
        if not self.block_on_overflow:
            yield "sending_queue.block_on_overflow: false refuses what does not fit; it is lost where the sender does not try again"
        if self.storage and self.wait_for_result and "wait_for_result" in self.model_fields_set:
            yield "sending_queue.wait_for_result: true has no effect with storage; a batch is acknowledged when it is on disk"
        if not self.storage and not self.wait_for_result:
            yield "sending_queue.wait_for_result: false has no effect; a batch in memory is acknowledged when it is delivered"


class RetrySettings(ComponentSettings):
    """Trying again what may pass later."""

    enabled: bool = True
    """`false` gives a refusal back to the pipeline at once."""
    initial_interval: Duration = Field(1.0, gt=0)
    """The first wait. (The collector's is 5s: a peer that restarts is back sooner.)"""
    randomization_factor: float = Field(0.5, ge=0, lt=1)
    """Each wait is spread by ± this part of itself, so that many clients do not come back at once."""
    multiplier: float = Field(1.5, ge=1)
    """Each wait is this much longer than the one before."""
    max_interval: Duration = Field(5.0, gt=0)
    """The longest wait, before it is spread. (The collector's is 30s, for each of its senders. Here, while nothing is delivered, one
    sender's try is a try for all, and the first success wakes the others: the peer is asked no more often, and is back within this.)"""
    max_elapsed_time: Duration = Field(0.0, ge=0)
    """Give a batch back to the pipeline, as not delivered, after so long; 0 never does."""


class SendingSettings(ComponentSettings):
    """What every sending exporter takes."""

    timeout: Duration = Field(5.0, ge=0)
    """How long one attempt may take; 0 for no limit."""
    sending_queue: QueueSettings = QueueSettings()
    """The queue between the pipeline and the wire."""
    retry_on_failure: RetrySettings = RetrySettings()
    """Trying again what may pass later."""

    def queued_in(self) -> str:
        return self.sending_queue.storage if self.sending_queue.enabled else ""

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.sending_queue.storage and self.sending_queue.enabled:
            # Nobody else has it any more: what would be given back to its sender without storage is lost.
            if not self.retry_on_failure.enabled:
                yield "retry_on_failure.enabled: false loses what is not delivered at once, although the queue is on disk"
            elif self.retry_on_failure.max_elapsed_time:
                yield "retry_on_failure.max_elapsed_time loses what is not delivered by then, although the queue is on disk; 0 never does"
