"""The contract of a component: how it is named, made, started, fed and stopped.

Life. A component is made (no I/O), entered with `async with` (opens, starts its tasks) and left (stops what it reads, flushes, ends its
tasks). The graph enters exporters first and receivers last, and leaves in the opposite order. Entering is allowed once; leaving twice, or
without having entered, does nothing; after that `consume` raises Retryable.

A reload stops and starts what changed, and no more (`collector/assembly.py`). A receiver that goes on may find other consumers in
`outputs`, for the same signals. A processor or connector that is replaced runs beside the one that takes its place until its last batch
has left it; anything else stops before.

Custody. `await consumer.consume(batch)` returns when the next owner has custody: the batch is delivered, or durable in its queue. Until
then it is the caller's. `Retryable` and `Permanent` travel back up the same call. A receiver answers its client, or advances its
checkpoint, only after that. Back-pressure is the same await.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from lockgate.batch import ALL_SIGNALS, Batch, Origin, Signal
from lockgate.kit.clock import Clock
from lockgate.kit.metrics import Metrics, Series
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.errors import Permanent, Refusal, Retryable
from lockgate.pipeline.ledger import MAX_CLIENTS, Chosen, Sources
from lockgate.pipeline.needs import ComponentSettings


class Kind(enum.StrEnum):
    """The five kinds of component, in the collector's words; the value is the configuration's section."""

    RECEIVER = "receivers"
    PROCESSOR = "processors"
    CONNECTOR = "connectors"
    EXPORTER = "exporters"
    EXTENSION = "extensions"

    @property
    def singular(self) -> str:
        return self.value[:-1]


class Custody(enum.Enum):
    """What a component's `consume` returning means for the batch."""

    PASSES = "passes"
    """The next owner has it: most processors, and exporters without a queue."""
    MEMORY = "memory"
    """It is held here in memory; acknowledged only when delivered, except by samplers and UDP receivers, which say so."""
    DURABLE = "durable"
    """It is on disk, and survives the end of this process."""


class Consumer(Protocol):
    """Whoever can be handed a batch."""

    async def consume(self, batch: Batch) -> None:
        """Returns when the next owner has custody; raises Retryable or Permanent where it has not."""


class Storage(Protocol):
    """A component's own small durable store (checkpoints, cursors), lent by a storage extension."""

    def load(self) -> bytes | None:
        """What was saved last, from the previous generation where the newest is damaged; None where there is nothing."""

    def save(self, content: bytes) -> None:
        """Replaces the content, durably, before it returns. Blocking: call it in a thread. Raises OSError."""

    @property
    def directory(self) -> str:
        """A directory of this component's own, created, for what needs more than one blob (a queue's segments)."""

    @property
    def fsync(self) -> bool:
        """Whether what is written there must be on disk before it counts."""


NO_GROUPS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Held:
    """What the durable queues behind a receiver know of its sources, by `Origin.source`."""

    durable: Mapping[str, Ranges] = field(default_factory=dict)
    """In every one of those queues, or delivered by it, and not yet `saved`."""
    lost: Mapping[str, Ranges] = field(default_factory=dict)
    """Was durable once and cannot be read any more in one of them: to be read from the source again, whatever its own positions say."""

    @classmethod
    def by_all(cls, several: Sequence[Held]) -> Held:
        """Durable where all of these say so, lost where one does."""
        durable = (
            {
                source: reduce(and_, (held.durable[source] for held in several))
                for source in set.intersection(*(set(held.durable) for held in several))
            }
            if several
            else {}
        )
        lost: dict[str, Ranges] = {}
        for source, ranges in ((source, ranges) for held in several for source, ranges in held.lost.items()):
            lost[source] = Ranges([*lost.get(source, ()), *ranges])
        return cls(durable, lost)


class Holder(Protocol):
    """A durable queue, as the receivers in front of it see it."""

    def held(self, owner: str) -> Held:
        """See `Host.held`; of this queue alone."""

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        """See `Host.saved`."""


class Host(Protocol):
    """What the program offers to components: extensions, shared things, threads."""

    def extension(self, id: str) -> Extension[Any]:
        """The running extension with this id; raises LookupError with the reason."""

    @asynccontextmanager
    def shared(self, key: object, make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """One instance per key for all who ask (a watch cache), entered by the first and left by the last."""

    def held(self, owner: str) -> Held:
        """What the queues behind the receiver `owner` hold: where it goes on after a kill. Asked at its start, when all queues are open."""

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        """The receiver `owner` has saved, durably, that it goes on from these positions of these sources, and knows no others.

        Queues then need not remember what lies before them, nor anything of its other sources. `groups` says what sources belong to (a
        container's directory), also sources that have just gone: their counts are kept for it, as long as some source belongs to it.
        """

    def give_back(self, origins: Sequence[Origin]) -> None:
        """What a queue had made durable from these origins is damaged: their receivers read it again, where it can still be had."""

    def behind(self, owner: str) -> Sequence[Holder]:
        """The queues that the receiver `owner` reaches."""

    @property
    def left(self) -> dict[str, Any]:
        """What a component leaves, when it stops, to the one that takes its place at a reload; by `kind/id`."""

    @property
    def executor(self) -> Executor:
        """Threads for work that blocks or that runs without the interpreter lock."""

    @property
    def components(self) -> Mapping[str, Component[Any]]:
        """Every running component by `kind/id`, for extensions that report on them."""

    @property
    def statuses(self) -> Mapping[str, Status]:
        """The status of every running component by `kind/id`."""

    @property
    def facts(self) -> Mapping[str, Callable[[], object]]:
        """What the program says of itself, by name; for extensions that report."""


class Status:
    """What holds a component up, for `/ready` and `/status`: nothing, or reasons by key. A reason's first words say what is waited for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.blocked: dict[str, tuple[str, float]] = {}
        """Reason and since when (monotonic seconds), by key."""

    def block(self, reason: str, key: str = "", since: float | None = None) -> None:
        """This component cannot go on as it should, and why; said again with the same key it keeps its first time, if none is given."""
        if since is None:
            since = self.blocked.get(key, ("", self._clock.monotonic()))[1]
        self.blocked[key] = (reason, since)

    def clear(self, key: str = "") -> None:
        """What `block` said under this key is over."""
        self.blocked.pop(key, None)


@dataclass(frozen=True, slots=True)
class Context:
    """What a component is given when it is made."""

    id: str
    """`type` or `type/name`, as written in the configuration."""
    kind: Kind
    host: Host
    logger: logging.Logger
    metrics: Metrics
    clock: Clock
    status: Status
    signal: Signal | None = None
    """Set for processors, which exist once per pipeline."""
    pipeline: str = ""
    """Likewise: the pipeline's id."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that a component waits for, for the watchdog."""

    what: str
    """What for, as it follows `waits for`."""
    since: float
    """The last progress, or when it began (monotonic seconds)."""
    limit: float
    """Seconds from which on this is a fault."""


STALLED_SECONDS = 300.0
"""After so long without an acknowledgement somebody should look. A guess: longer than a restart of a peer."""


T = TypeVar("T")
S = TypeVar("S", bound=ComponentSettings)


class Component(Generic[S]):
    """What all kinds share: settings, context, life, tasks."""

    type_name: ClassVar[str] = ""
    """`type` of a configuration's `type/name`."""
    aliases: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[Kind]
    signals: ClassVar[frozenset[Signal]] = ALL_SIGNALS
    settings_type: ClassVar[type[ComponentSettings]] = ComponentSettings
    custody: Custody = Custody.PASSES

    def __init__(self, settings: S, context: Context) -> None:
        self.settings = settings
        self.context = context
        self.log = context.logger
        self.running = False
        self._tasks: asyncio.TaskGroup | None = None
        self._spawned: set[asyncio.Task[Any]] = set()

    @property
    def keeps_accounts(self) -> bool:
        """Whether it is a queue of `lockgate.sending`, and so tells the ledger what became of what it took."""
        return False

    def waiting(self) -> Iterator[Waiting]:
        """What it waits for now and should not wait for long. Asked once a second and for metrics, from the event loop."""
        return iter(())

    async def start(self) -> None:
        """Open what is needed; may raise, which ends the program's start with that error."""

    async def stop(self) -> None:
        """Stop reading, flush; tasks are still running. The caller bounds how long this may take."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this component: cancelled when it is left; its failure ends the program in order, with this one error."""
        if self._tasks is None:
            coroutine.close()
            raise RuntimeError(f"{self.context.kind.singular} {self.context.id} spawned a task while it is not running")
        task = self._tasks.create_task(coroutine, name=f"{self.context.id}: {name}")
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)` in the program's threads: for what blocks, and for kernels that release the interpreter lock."""
        return await asyncio.get_running_loop().run_in_executor(self.context.host.executor, work, *arguments)

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.running = True
        try:
            await self.start()
        except BaseException:
            self.running = False
            await self._end_tasks()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._tasks is None:
            return
        self.running = False
        try:
            await self.stop()
        finally:
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, None
        for task in list(self._spawned):
            task.cancel()
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    def refuse_if_stopped(self) -> None:
        """Raises Retryable once this component has been left, or before it was entered."""
        if not self.running:
            raise Retryable(f"{self.context.kind.singular} {self.context.id} is not running")


class Receiver(Component[S]):
    """Takes telemetry in. `outputs` holds a consumer for each signal that a pipeline reads from it, and only for those."""

    kind = Kind.RECEIVER
    transport: ClassVar[str] = ""
    """The `transport` label of the receiver's metrics, as the collector sets it."""

    def __init__(self, settings: S, context: Context) -> None:
        super().__init__(settings, context)
        self.outputs: dict[Signal, Consumer] = {}
        self._counts: dict[tuple[Signal, str, str], Series] = {}
        self._clients: dict[str, int] = {}
        self._handed_on: dict[asyncio.Task[Any], float] = {}
        """Since when each task has waited for an acknowledgement."""

    def waiting(self) -> Iterator[Waiting]:
        if self._handed_on:
            task, since = next(iter(self._handed_on.items()))
            text = f"an acknowledgement of what it handed on; {len(self._handed_on)} batches wait, the first in {_innermost(task)}"
            yield Waiting(text, since, STALLED_SECONDS)

    def give_back(self, origins: Sequence[Origin]) -> None:
        """These bytes of its sources were durable behind it and are damaged. One that can read them again does."""

    async def sources(self, chosen: Chosen) -> Sources | None:
        """What the ledger asks: where the lines of these containers are that no queue has, and what clients sent.

        None where there is nothing to tell. Raises Retryable where files cannot be looked at now.
        """
        return Sources(clients=dict(self._clients)) if self._clients and chosen.is_all else None

    async def emit(self, batch: Batch, transport: str = "") -> None:
        """Hand this batch on and count what became of it: the one way out of a receiver."""
        task = asyncio.current_task()
        assert task is not None
        self._handed_on[task] = self.context.clock.monotonic()
        try:
            await self.outputs[batch.signal].consume(batch)
        except Refusal:
            self._count(batch.signal, "refused", transport).add(batch.count)
            raise
        finally:
            del self._handed_on[task]
        self._count(batch.signal, "accepted", transport).add(batch.count)
        if batch.peer:
            self._clients[batch.peer] = self._clients.pop(batch.peer, 0) + batch.count  # the last comes last
            if len(self._clients) > MAX_CLIENTS:
                del self._clients[next(iter(self._clients))]

    def _count(self, signal: Signal, outcome: str, transport: str) -> Series:
        key = (signal, outcome, transport or self.transport)
        if key not in self._counts:
            self._counts[key] = self.context.metrics.counter(
                f"otelcol_receiver_{outcome}_{signal.items}",
                f"{signal.items} {outcome} by this receiver",
                receiver=self.context.id,
                transport=key[2],
            )
        return self._counts[key]


def _innermost(task: asyncio.Task[Any]) -> str:
    """The last component that this task has entered and not left: who has the batch, as far as this task knows."""
    found = "the pipeline"
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        if frame is not None and isinstance(owner := frame.f_locals.get("self"), Component):
            found = owner.log.name.removeprefix("lockgate.")
        inner = getattr(inner, "cr_await", None)
    return found


class Processor(Component[S]):
    """Changes batches on their way. Most write `process`; one that holds batches back overrides `consume`."""

    kind = Kind.PROCESSOR
    next: Consumer

    def __init__(self, settings: S, context: Context) -> None:
        super().__init__(settings, context)
        labels = {"processor": context.id, "otel_signal": str(context.signal), "pipeline": context.pipeline}
        self._incoming = context.metrics.counter("otelcol_processor_incoming_items", "items handed to this processor", **labels)
        self._outgoing = context.metrics.counter("otelcol_processor_outgoing_items", "items handed on by this processor", **labels)

    def process(self, batch: Batch) -> Batch:
        """The batch as it goes on. Must not block, and must not keep the batch.

        One with count 0 does not go on, unless it has origins: a queue on disk notes that these were read, and what became of them.
        """
        raise TypeError(f"{type(self).__name__} must define process or consume")

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        self._incoming.add(batch.count)
        result = self.process(batch) if batch.count else batch
        if result.count or result.origins:
            await self.next.consume(result)
        self._outgoing.add(result.count)


class Connector(Component[S]):
    """An exporter of some pipelines and a receiver of others: decides which of `outputs` (by pipeline id) get a batch."""

    kind = Kind.CONNECTOR

    def __init__(self, settings: S, context: Context) -> None:
        super().__init__(settings, context)
        self.outputs: dict[str, Consumer] = {}

    async def consume(self, batch: Batch) -> None:
        raise TypeError(f"{type(self).__name__} must define consume")


class Exporter(Component[S]):
    """Delivers. `consume` returns when the batch is delivered, or durable."""

    kind = Kind.EXPORTER

    async def consume(self, batch: Batch) -> None:
        raise TypeError(f"{type(self).__name__} must define consume")


class Extension(Component[S]):
    """A part beside the pipelines: health, storage, authentication, queries."""

    kind = Kind.EXTENSION

    def storage(self, owner: str) -> Storage:
        """Storage for the component `owner` (`kind/id`); only storage extensions have it."""
        raise LookupError(f"extension {self.context.id} is no storage extension; name a file_storage")

    async def authorize_headers(self) -> Mapping[str, str]:
        """Headers that a client adds to each request; only client authentication extensions have them."""
        raise LookupError(f"extension {self.context.id} gives no credentials; name a bearertokenauth or basicauth")

    async def authenticate(self, headers: Mapping[str, str]) -> None:
        """Returns where a server's request with these headers (lower-case names) may pass; raises PermissionError with the reason."""
        raise LookupError(f"extension {self.context.id} cannot authenticate clients; name a bearertokenauth")


C = TypeVar("C", bound=type[Component[Any]])


def component(
    type_name: str,
    settings: type[ComponentSettings] = ComponentSettings,
    *,
    signals: frozenset[Signal] | set[Signal] = ALL_SIGNALS,
    aliases: tuple[str, ...] = (),
) -> Callable[[C], C]:
    """Names a component class as users write it, with its settings and the signals it takes."""

    def name(cls: C) -> C:
        cls.type_name, cls.settings_type, cls.signals, cls.aliases = type_name, settings, frozenset(signals), aliases
        return cls

    return name


__all__ = [
    "ALL_SIGNALS",
    "Batch",
    "Component",
    "ComponentSettings",
    "Connector",
    "Consumer",
    "Context",
    "Custody",
    "Exporter",
    "Extension",
    "Held",
    "Holder",
    "Host",
    "Kind",
    "Permanent",
    "Processor",
    "Receiver",
    "Refusal",
    "Retryable",
    "Signal",
    "Status",
    "Storage",
    "Waiting",
    "component",
]
