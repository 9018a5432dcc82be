"""What tests share: a consumer that keeps what it gets, a virtual clock, a host, contexts. Small fakes of our own contract alone."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from lockgate.batch import Batch, Origin, Signal, count_records, derived_id
from lockgate.kit.metrics import Metrics
from lockgate.pipeline.contract import NO_GROUPS, Component, Context, Extension, Held, Holder, Kind, Status


class Sink:
    """A consumer that keeps each batch; raises the errors in `refusals` first, one per call."""

    def __init__(self, *refusals: Exception) -> None:
        self.batches: list[Batch] = []
        self.refusals = list(refusals)
        self.calls = 0
        self.arrived = asyncio.Condition()

    async def consume(self, batch: Batch) -> None:
        self.calls += 1
        if self.refusals:
            raise self.refusals.pop(0)
        async with self.arrived:
            self.batches.append(batch)
            self.arrived.notify_all()

    @property
    def count(self) -> int:
        return sum(batch.count for batch in self.batches)

    async def wait_for(self, records: int, seconds: float = 10) -> None:
        """Returns when this many records have arrived; fails after so many seconds."""
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: self.count >= records)

    def bodies(self) -> list[str]:
        """The string bodies of all log records, in order of arrival."""
        return [
            record.body.string_value
            for batch in self.batches
            for resource in batch.message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class VirtualClock:
    """Time that moves only when everybody sleeps: `await clock.advance(seconds)` wakes sleepers in order."""

    def __init__(self, unix_seconds: float = 1_700_000_000.0) -> None:
        self.now, self._epoch = 0.0, unix_seconds
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time_unix_nano(self) -> int:
        return int((self._epoch + self.now) * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, wake))
        await wake

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await self._settle()
        while due := [entry for entry in self._sleepers if entry[0] <= end]:
            entry = min(due, key=lambda sleeper: sleeper[0])
            self._sleepers.remove(entry)
            self.now = max(self.now, entry[0])
            if not entry[1].done():
                entry[1].set_result(None)
            await self._settle()
        self.now = end

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class FakeHost:
    """A host with the extensions that it is given, real threads and real sharing."""

    def __init__(self, extensions: Mapping[str, Extension[Any]] | None = None) -> None:
        self._extensions = dict(extensions or {})
        self._executor = ThreadPoolExecutor(4)
        self._shared: dict[object, tuple[Any, AbstractAsyncContextManager[Any], list[int]]] = {}
        self.components: dict[str, Component[Any]] = {}
        self.left: dict[str, Any] = {}
        self.reload: dict[str, Any] = {}
        self.statuses: dict[str, Status] = {}
        self.facts: dict[str, Callable[[], object]] = {}
        self.holds = Held()
        self.positions: dict[str, Mapping[str, int]] = {}
        """What receivers said that they saved, by owner."""
        self.given_back: list[Origin] = []

    def held(self, owner: str) -> Held:
        return self.holds

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        self.positions[owner] = dict(positions)

    def behind(self, owner: str) -> Sequence[Holder]:
        return []

    def give_back(self, origins: Sequence[Origin]) -> None:
        self.given_back.extend(origins)

    def extension(self, id: str) -> Extension[Any]:
        try:
            return self._extensions[id]
        except KeyError:
            raise LookupError(f"no extension {id}") from None

    @asynccontextmanager
    async def shared(self, key: object, make: Callable[[], AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
        if key not in self._shared:
            manager = make()
            self._shared[key] = (await manager.__aenter__(), manager, [0])
        value, manager, users = self._shared[key]
        users[0] += 1
        try:
            yield value
        finally:
            users[0] -= 1
            if not users[0]:
                del self._shared[key]
                await manager.__aexit__(None, None, None)

    @property
    def executor(self) -> Executor:
        return self._executor


def context(id: str = "test", kind: Kind = Kind.PROCESSOR, *, clock: Any = None, host: Any = None, signal: Signal | None = None) -> Context:
    """A context for one component under test."""
    from lockgate.kit.clock import SystemClock

    clock = clock or SystemClock()
    return Context(id, kind, host or FakeHost(), logging.getLogger(f"test.{id}"), Metrics(), clock, Status(clock), signal, "test")


def logs(*bodies: str, peer: str = "", **resource: str) -> Batch:
    """One batch of log records with these bodies under one resource with these attributes (`k8s_pod_name` reads as `k8s.pod.name`)."""
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    for key, value in resource.items():
        resource_logs.resource.attributes.add(key=key.replace("_", ".") if not key.startswith("_") else key).value.string_value = value
    scope = resource_logs.scope_logs.add()
    for body in bodies:
        scope.log_records.add(time_unix_nano=1).body.string_value = body
    return batch(Signal.LOGS, request, peer)


def batch(signal: Signal, request: Any, peer: str = "") -> Batch:
    """A batch of this export request."""
    payload = request.SerializeToString()
    return Batch(signal, payload, count_records(signal, payload), derived_id(payload.hex()), peer)


def resource_attributes(batch: Batch) -> list[dict[str, Any]]:
    """The attributes of each resource, as plain dicts, scalars only."""
    field = {"logs": "resource_logs", "metrics": "resource_metrics", "traces": "resource_spans"}[batch.signal]
    return [
        {
            attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")
            for attribute in entry.resource.attributes
        }
        for entry in getattr(batch.message, field)
    ]
