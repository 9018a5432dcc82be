"""The host: what the program offers to the components that it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lockgate.batch import Origin
from lockgate.pipeline.contract import Component, Extension, Held, Holder, Receiver, Status

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

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "lockgate")
        self._shared: dict[object, _Shared] = {}
        self._components: dict[str, Component[Any]] = {}
        self._statuses: dict[str, Status] = {}
        self._behind: dict[str, list[Holder | None]] = {}

    def add(self, key: str, component: Component[Any]) -> None:
        """Makes a component known by `kind/id` (processors: `kind/id@pipeline`)."""
        self._components[key] = component

    def add_status(self, key: str, status: Status) -> None:
        """Makes a status known, of a component or of the program itself (`service`)."""
        self._statuses[key] = status

    def add_behind(self, receiver: str, queues: Sequence[Holder | None]) -> None:
        """Makes known where a receiver's batches go: the durable queues, and None where something takes them that keeps nothing."""
        self._behind[receiver] = list(queues)

    def held(self, owner: str) -> Held:
        return Held.by_all([Held() if queue is None else queue.held(owner) for queue in self._behind[owner]])

    def saved(self, owner: str, positions: Mapping[str, int]) -> None:
        for queue in self._behind[owner]:
            if queue is not None:
                queue.saved(owner, positions)

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
        return self._statuses

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
            if not entry.users:
                self._shared.pop(key, None)
                if entry.value:
                    await entry.manager.__aexit__(None, None, None)

    def close(self) -> None:
        """Ends the threads; work already begun in one is not waited for, because a hung disk must not hang the stop."""
        self._executor.shutdown(wait=False, cancel_futures=True)
