"""Join pipelines: what some hand over, others of the same signal receive, unchanged."""

from __future__ import annotations

from lockgate.pipeline.contract import Batch, ComponentSettings, Connector, Consumer, component
from lockgate.pipeline.fan_out import fan_out


class ForwardSettings(ComponentSettings):
    """There is nothing to set."""


@component("forward", ForwardSettings)
class ForwardConnector(Connector[ForwardSettings]):
    """Acknowledges when every pipeline of the batch's signal has; a pipeline's id begins with its signal."""

    async def start(self) -> None:
        by_signal: dict[str, list[Consumer]] = {}
        for pipeline, consumer in self.outputs.items():
            by_signal.setdefault(pipeline.partition("/")[0], []).append(consumer)
        self._next = {signal: fan_out(consumers, self.context.clock) for signal, consumers in by_signal.items()}

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        await self._next[batch.signal].consume(batch)
