"""Following the API from a component: one client and one cache for all that ask for the same, and waiting for them at start."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar, cast

from lockgate.kit.units import Duration
from lockgate.kube.access import Access, KubernetesClientSettings
from lockgate.kube.cache import Cache, cache_key
from lockgate.kube.client import Client, Query
from lockgate.pipeline.contract import Context

C = TypeVar("C", bound=Cache[Any])


def shared_client(access: Access, context: Context) -> AbstractAsyncContextManager[Client]:
    """The program's one client for this access."""
    return context.host.shared(("kubernetes client", access), lambda: Client(access, context))


class FollowSettings(KubernetesClientSettings):
    """How a component reaches the Kubernetes API and whether it waits for it."""

    wait_for_metadata: bool = False
    """Wait at start until all pods are known, so that the first telemetry is not passed on bare."""
    wait_for_metadata_timeout: Duration = 10.0
    """Wait no longer than this. Then the processor goes on with what it knows, says so in the log, and its status stays blocked until
    everything is known. (The collector ends instead, which turns an outage of the API server into a restart loop.)"""


class Following:
    """The caches that one component follows; they are left with its exit stack."""

    def __init__(self, settings: FollowSettings, context: Context, stack: AsyncExitStack) -> None:
        self._settings, self._context, self._stack = settings, context, stack
        self._client: Client | None = None
        self._caches: list[Cache[Any]] = []

    async def open(self, cls: Callable[..., C], query: Query, **kept: bool) -> C:
        """The cache of this query, shared with whoever has the same access, query and kept parts."""
        host, context = self._context.host, self._context
        if self._client is None:
            access = self._settings.access()
            self._client = await self._stack.enter_async_context(shared_client(access, context))
        make: Callable[[], Cache[Any]] = functools.partial(cls, self._client, query, **kept)
        cache: Cache[Any] = await self._stack.enter_async_context(host.shared(cache_key(self._client, query, **kept), make))
        self._stack.callback(cache.report_to(context.status))
        self._caches.append(cache)
        return cast(C, cache)  # the key says which class it is of

    async def wait(self, spawn: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        """Where the settings say so: until everything that existed is known, or their time is up. `spawn` is the component's."""
        if not self._settings.wait_for_metadata:
            return
        limit = self._settings.wait_for_metadata_timeout
        waiting = asyncio.ensure_future(self._all_synced())
        timer = asyncio.ensure_future(self._context.clock.sleep(limit))
        try:
            await asyncio.wait((waiting, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            if not waiting.done():
                waiting.cancel()
        if waiting.done() and not waiting.cancelled():
            return
        missing = ", ".join(cache.query.resource.qualified for cache in self._caches if not cache.synced.is_set())
        reason = f"waits for Kubernetes metadata ({missing}); until then telemetry goes on without it"
        self._context.logger.warning("no complete Kubernetes metadata after %g s, going on without: %s not known yet", limit, missing)
        self._context.status.block(reason, "metadata")
        spawn(self._unblock(), "wait for metadata")

    async def _all_synced(self) -> None:
        for cache in self._caches:
            await cache.synced.wait()

    async def _unblock(self) -> None:
        await self._all_synced()
        self._context.status.clear("metadata")
        self._context.logger.info("Kubernetes metadata is complete")
