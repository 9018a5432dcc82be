"""The components of a configuration, made, wired, started and stopped; and changed into those of another while telemetry passes.

Everything that takes batches stands at a joint: exporters, queues on disk, connectors, the head of each pipeline. A change goes

    1  receivers that change or go are stopped; what they have under way drains through what stands there still
    2  exporters, their queues on disk and extensions that change or go are stopped; batches wait at the closed joint of an exporter or a
       queue, and so does what a queue in memory could not deliver
    3  the new ones are started: extensions, queues, exporters, pipelines, receivers; each joint is opened as soon as somebody stands there
    4  replaced processors stop when the last batch has left them, be it hours later, where an exporter is down

so that nobody's batch is dropped, or handed on twice. A start that fails in 3 is taken back: what was stopped is made and started anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from lockgate.batch import Signal
from lockgate.collector.config import Configuration, Configured, Pipeline
from lockgate.collector.host import ProgramHost
from lockgate.collector.plan import TELEMETRY, Plan, ahead, fed_by, places, queues
from lockgate.collector.telemetry import MetricsServer
from lockgate.kit.clock import Clock
from lockgate.kit.metrics import Metrics
from lockgate.net.listener import UNIX, Address
from lockgate.pipeline.contract import Component, Connector, Consumer, Context, Exporter, Holder, Kind, Processor, Receiver, Status
from lockgate.pipeline.fan_out import Fork, fan_out
from lockgate.pipeline.graph import leave
from lockgate.pipeline.joint import Joint
from lockgate.pipeline.needs import Listen

START_SECONDS = 60.0
"""How long what is new may take to start, in all, before the change is taken back."""


class TakenBack(Exception):
    """A change could not be made, for its cause; all is as it was before."""


@dataclass(slots=True, eq=False)
class _Unit:
    """What stands at a place."""

    components: list[Component[Any]] = field(default_factory=list)
    """In the order of entering."""
    head: Consumer | None = None
    """Who takes batches; None for extensions and receivers."""


class Assembly:
    """One configuration's components, wired. All of it is entered and left in one task: task groups demand that."""

    def __init__(
        self, configuration: Configuration, host: ProgramHost, metrics: Metrics, clock: Clock, on_idle: Callable[[], None]
    ) -> None:
        self.configuration = configuration
        self._host, self._metrics, self._clock, self._on_idle = host, metrics, clock, on_idle
        self._units: dict[str, _Unit] = {}
        self._joints: dict[str, Joint] = {}
        self._retired: list[tuple[Joint, _Unit]] = []
        """Replaced, and perhaps still passed through."""
        self._make_all(configuration, places(configuration))

    @property
    def components(self) -> list[Component[Any]]:
        """All that run, in the order of entering."""
        places_ = list(places(self.configuration))
        ranks = {"service": 0, "extensions": 1, "queues": 2, "exporters": 3, "pipelines": 4, "connectors": 4, "receivers": 6}
        units = [
            (ranks[key.partition("/")[0]], places_.index(key) if key in places_ else -1, unit.components)
            for key, unit in self._units.items()
        ]
        units += [(5, position, unit.components) for position, (_, unit) in enumerate(self._retired)]
        return [component for *_, components in sorted(units, key=lambda it: it[:2]) for component in components]

    async def start(self) -> None:
        """Starts everything."""
        await self._enter(places(self.configuration))

    async def leave(self, drain_seconds: float) -> None:
        """Stops everything, receivers first, within so long in all."""
        await leave(self.components, drain_seconds)

    async def retire(self) -> None:
        """Leaves what was replaced and has nothing under way any more."""
        idle = [(joint, unit) for joint, unit in self._retired if unit.head is None or joint.is_idle(unit.head)]
        self._retired = [each for each in self._retired if each not in idle]
        await leave([component for _, unit in idle for component in unit.components], self.configuration.service.shutdown_timeout)

    async def change(self, new: Configuration, stop: asyncio.Event) -> None:
        """Becomes the new configuration's. Raises TakenBack where something new did not start; anything else is the end.

        Returns half-way where `stop` is set meanwhile: then all that is left to do is to leave.
        """
        plan = Plan.of(self.configuration, new)
        async with self._keeping_sockets(new):
            if await self._stop(plan, stop):
                return
            replaced = {key: self._units.pop(key) for key in plan.stops}
            passed = {key: unit for key, unit in replaced.items() if _is_passed(key)}
            self._retired += [(self._joints[key], unit) for key, unit in passed.items()]
            try:
                async with asyncio.timeout(START_SECONDS):
                    self._make_all(new, plan.starts)
                    await self._enter(plan.starts)
            except Exception as error:
                await self._take_back(plan, passed)
                raise TakenBack from error
        self.configuration = new
        self._forget(replaced.values())
        await self.retire()

    # Making.

    def _make_all(self, configuration: Configuration, keys: Iterable[str]) -> None:
        for key in keys:
            self._units[key] = self._make(configuration, key)
        self._publish()
        self._feed(configuration)

    def _make(self, configuration: Configuration, key: str) -> _Unit:
        section, _, id = key.partition("/")
        if section == "pipelines":
            return self._make_pipeline(configuration, next(pipeline for pipeline in configuration.pipelines if pipeline.id == id))
        if key == TELEMETRY:
            settings = configuration.service.telemetry.metrics.prometheus()
            assert settings is not None
            return _Unit([MetricsServer(settings, self._context("telemetry", Kind.EXTENSION, key))])
        if section == "queues":
            name, _, storage = id.rpartition("@")
            return self._make_queue(next(pipeline for pipeline in configuration.pipelines if pipeline.id == name), storage)
        component = self._make_component(configuration.components[Kind(section), id])
        for queue in self._queues_of(configuration, component):
            queue.attach(component)
        if isinstance(component, Connector):
            component.outputs = {pipeline: self._joint(f"pipelines/{pipeline}") for pipeline in fed_by(configuration, id)}
        return _Unit([component], component if isinstance(component, Exporter | Connector) else None)

    def _make_pipeline(self, configuration: Configuration, pipeline: Pipeline) -> _Unit:
        _, crossed = configuration.forks()
        is_fork, unit = pipeline.id in crossed, _Unit()
        joints = [(key, self._joint(key)) for key in ahead(configuration, pipeline)]
        head = fan_out(
            [Fork(pipeline.id, joint) if is_fork and key.startswith("connectors/") else joint for key, joint in joints], self._clock
        )
        for id in reversed(pipeline.processors):
            processor = self._make_component(configuration.components[Kind.PROCESSOR, id], pipeline)
            assert isinstance(processor, Processor)
            processor.next = head
            head = processor
            unit.components.append(processor)
        unit.head = head
        return unit

    def _queues_of(self, configuration: Configuration, component: Component[Any]) -> Iterator[Any]:
        """The queues on disk that feed this exporter, of its pipelines; nothing else has any."""
        for pipeline in configuration.pipelines if isinstance(component, Exporter) else ():
            for key, exporters in queues(configuration, pipeline).items():
                if any(exporter.id == component.context.id for exporter in exporters):
                    yield self._units[key].components[0]

    def _make_queue(self, pipeline: Pipeline, storage: str) -> _Unit:
        from lockgate.sending.durable import PipelineQueue  # what only a queue on disk needs

        queue = PipelineQueue(self._context(f"queue/{storage}", Kind.EXTENSION, f"queue/{pipeline.id}", pipeline), storage)
        return _Unit([queue], queue)

    def _make_component(self, configured: Configured, pipeline: Pipeline | None = None) -> Component[Any]:
        key = configured.key + (f"@{pipeline.id}" if pipeline else "")
        context = self._context(configured.id, configured.kind, key, pipeline)
        with _naming(key):
            return configured.component(configured.settings, context)

    def _context(self, id: str, kind: Kind, key: str, pipeline: Pipeline | None = None) -> Context:
        return Context(
            id,
            kind,
            self._host,
            logging.getLogger(f"lockgate.{key}"),
            self._metrics,
            self._clock,
            Status(self._clock),
            pipeline.signal if pipeline else None,
            pipeline.id if pipeline else "",
        )

    def _joint(self, key: str) -> Joint:
        if key not in self._joints:
            self._joints[key] = Joint(key, self._on_idle)
        return self._joints[key]

    # Starting and stopping.

    async def _enter(self, keys: Iterable[str]) -> None:
        for key in keys:
            unit = self._units[key]
            for component in unit.components:
                with _naming(component.context.logger.name.removeprefix("lockgate.")):
                    await component.__aenter__()
            if unit.head is not None:
                self._joint(key).open(unit.head)

    def _feed(self, configuration: Configuration) -> None:
        """Gives every receiver its outputs."""
        for key in places(configuration):
            if not key.startswith("receivers/"):
                continue
            (receiver,) = self._units[key].components
            assert isinstance(receiver, Receiver)
            id = receiver.context.id
            for kind in Signal:
                fed = [pipeline.id for pipeline in configuration.pipelines if pipeline.signal is kind and id in pipeline.receivers]
                if fed:
                    receiver.outputs[kind] = fan_out([self._joint(f"pipelines/{name}") for name in fed], self._clock)
            self._host.add_behind(id, self._behind(configuration, id))

    def _behind(self, configuration: Configuration, receiver: str) -> list[Holder | None]:
        joined, _ = configuration.forks()
        holders = dict[Holder | None, None]()
        for pipeline, id in configuration.behind(receiver):
            queue = next((key for key, its in queues(configuration, pipeline).items() if any(it.id == id for it in its)), None)
            taker = self._units[queue if queue is not None else f"exporters/{id}"].components[0]
            holders[cast(Holder, taker) if taker.keeps_accounts else None] = None
            if pipeline.id in joined:
                # What one way has brought is no sign of what the other has: nothing counts as durable there, and may come twice.
                holders[None] = None
        return list(holders)

    async def _stop(self, plan: Plan, stop: asyncio.Event) -> bool:
        """Whether the program is to stop altogether."""
        await self._leave([key for key in plan.stops if key.startswith("receivers/")])
        if stop.is_set():
            return True
        rest = [key for key in plan.stops if not _is_passed(key) and not key.startswith("receivers/")]
        for key in rest:
            if self._units[key].head is not None:
                self._joints[key].close()
        await self._leave(rest)
        return False

    async def _leave(self, keys: Iterable[str]) -> None:
        components = [component for key in keys for component in self._units[key].components]
        await leave(components, self.configuration.service.shutdown_timeout)

    async def _take_back(self, plan: Plan, passed: dict[str, _Unit]) -> None:
        """What is new ends, what it replaced goes on, what was stopped is made and started anew."""
        for key, unit in passed.items():
            self._retired.remove((self._joints[key], unit))
            assert unit.head is not None
            self._joints[key].open(unit.head)
        made = {key: self._units[key] for key in plan.starts if key in self._units}
        await self._leave(key for key in made if not _is_passed(key))
        self._retired += [(self._joint(key), unit) for key, unit in made.items() if _is_passed(key)]
        for key in made:
            del self._units[key]
        self._units |= passed
        stopped = [key for key in plan.stops if not _is_passed(key)]
        self._make_all(self.configuration, stopped)
        await self._enter(stopped)
        self._forget(made.values())
        await self.retire()

    def _publish(self) -> None:
        self._host.publish([component for key, unit in self._units.items() if key != TELEMETRY for component in unit.components])

    def _forget(self, units: Iterable[_Unit]) -> None:
        """What is not there any more, of these, has no joint and no metrics."""
        for key in [key for key in self._joints if key not in self._units]:
            self._joints.pop(key).remove()
        there = {(component.kind, component.context.id) for component in self._host.components.values()}
        for component in (component for unit in units for component in unit.components):
            if (component.kind, component.context.id) not in there:
                self._metrics.forget(**{component.kind.singular: component.context.id})

    @asynccontextmanager
    async def _keeping_sockets(self, new: Configuration) -> AsyncIterator[None]:
        """What somebody will listen at again stays bound, and connections wait at it."""
        addresses = {(need.host, need.port) for _, need in new.needs() if isinstance(need, Listen)}
        self._host.keeps = lambda key: isinstance(key, Address) and (key.port == UNIX or (key.host, key.port) in addresses)
        try:
            yield
        finally:
            self._host.keeps = lambda _: False
            await self._host.end_unused()
            self._host.left.clear()


def _is_passed(key: str) -> bool:
    """Whether it may still be passed through while another stands in its place already: anything else may meet it at a port or a file."""
    return key.startswith(("pipelines/", "connectors/"))


@contextmanager
def _naming(component: str) -> Iterator[None]:
    """Whose start it was that failed: what is said of a file or a port is the same for all."""
    try:
        yield
    except Exception as error:
        error.add_note(component)
        raise
