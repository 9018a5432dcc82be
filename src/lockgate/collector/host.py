"""The host: what the program offers to the components that it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lockgate.batch import Origin
from lockgate.kit.clock import Clock
from lockgate.pipeline.contract import NO_GROUPS, Component, Context, Extension, Held, Holder, Receiver, Status

T = TypeVar("T")

THREADS = 8
"""Threads for kernels, compression and disk. More than the cores of a usual pod, because some wait for a disk; a guess."""


@dataclass(slots=True)
class _Shared:
    manager: AbstractAsyncContextManager[Any]
    users: int = 0
    entered: asyncio.Lock = field(default_factory=asyncio.Lock)
    value: list[Any] = field(default_factory=list)


class ProgramHost:
    """Extensions by id, things shared by key, threads, and every component's status."""

    def __init__(self, clock: Clock, facts: Mapping[str, Callable[[], object]] | None = None) -> None:
        self.facts = facts or {}
        """What the program says of itself in `/status`, by name; asked anew each time."""
        self._executor = ThreadPoolExecutor(THREADS, "lockgate")
        self._shared: dict[object, _Shared] = {}
        self._components: dict[str, Component[Any]] = {}
        self.service = Status(clock)
        """Of the program itself."""
        self._behind: dict[str, list[Holder | None]] = {}
        self.keeps: Callable[[object], bool] = lambda _: False
        """Whether what is shared under this key stays although nobody uses it: listening sockets, while a reload goes on."""
        self.left: dict[str, Any] = {}

    def publish(self, components: Iterable[Component[Any]]) -> None:
        """Makes these components known by `kind/id` (processors: `kind/id@pipeline`), and no others."""
        self._components = {_key(component.context): component for component in components}

    def add_behind(self, receiver: str, queues: Sequence[Holder | None]) -> None:
        """Makes known where a receiver's batches go: the durable queues, and None where something takes them that keeps nothing."""
        self._behind[receiver] = list(queues)

    def held(self, owner: str) -> Held:
        return Held.by_all([Held() if queue is None else queue.held(owner) for queue in self._behind[owner]])

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        for queue in self._behind[owner]:
            if queue is not None:
                queue.saved(owner, positions, groups)

    def behind(self, owner: str) -> Sequence[Holder]:
        return [queue for queue in self._behind.get(owner, ()) if queue is not None]

    def give_back(self, origins: Sequence[Origin]) -> None:
        for owner in {origin.owner for origin in origins}:
            receiver = self._components.get(f"receivers/{owner}")
            if isinstance(receiver, Receiver) and receiver.running:  # one that is not asks for `held` when it starts
                receiver.give_back([origin for origin in origins if origin.owner == owner])

    @property
    def components(self) -> Mapping[str, Component[Any]]:
        return self._components

    @property
    def statuses(self) -> Mapping[str, Status]:
        return {"service": self.service} | {key: component.context.status for key, component in self._components.items()}

    @property
    def executor(self) -> Executor:
        return self._executor

    def extension(self, id: str) -> Extension[Any]:
        found = self._components.get(f"extensions/{id}")
        if not isinstance(found, Extension):
            started = ", ".join(key.partition("/")[2] for key in self._components if key.startswith("extensions/")) or "none"
            raise LookupError(f"extension {id} is not started (started: {started}); define it and add it to service.extensions")
        return found

    @asynccontextmanager
    async def shared(self, key: object, make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """One instance per key for all who ask: entered by the first, left by the last, whoever that is."""
        entry = self._shared.get(key)
        if entry is None:
            entry = self._shared[key] = _Shared(make())
        entry.users += 1
        try:
            async with entry.entered:
                if not entry.value:
                    entry.value.append(await entry.manager.__aenter__())
            yield entry.value[0]
        finally:
            entry.users -= 1
            if not entry.users and not self.keeps(key):
                await self._end(key, entry)

    async def end_unused(self) -> None:
        """Ends what is shared and was kept although nobody uses it."""
        for key, entry in list(self._shared.items()):
            if not entry.users:
                await self._end(key, entry)

    async def _end(self, key: object, entry: _Shared) -> None:
        self._shared.pop(key, None)
        if entry.value:
            await entry.manager.__aexit__(None, None, None)

    def close(self) -> None:
        """Ends the threads; work already begun in one is not waited for, because a hung disk must not hang the stop."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _key(context: Context) -> str:
    return f"{context.kind.value}/{context.id}" + (f"@{context.pipeline}" if context.pipeline else "")
