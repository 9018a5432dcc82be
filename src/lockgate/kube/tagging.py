"""What processors that find the pod behind each resource have in common: caches entered and left, edits kept, misses counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterable
from contextlib import AsyncExitStack
from typing import TypeVar

from lockgate.kit import regex
from lockgate.kube.association import Ask, EditsByLookUp, Look
from lockgate.kube.cache import MetaCache, Pod, PodCache
from lockgate.kube.following import Following, FollowSettings
from lockgate.kube.selection import ExcludedPod
from lockgate.pipeline.contract import Batch, Context, Processor

S = TypeVar("S", bound=FollowSettings)


class PodProcessor(Processor[S]):
    """Keeps order and counts; a resource that came before costs a look-up (`kube/association.py`)."""

    def __init__(self, settings: S, context: Context, *, uses_peer: bool, excluded: Iterable[ExcludedPod]) -> None:
        super().__init__(settings, context)
        self._uses_peer = uses_peer
        self._excluded = [regex.compile(pod.name) for pod in excluded]
        self._stack = AsyncExitStack()
        self._pods: PodCache | None = None
        self._metas: dict[str, MetaCache] = {}
        self._edits = EditsByLookUp(self._edit)
        self._misses = context.metrics.counter(
            "otelcol_otelsvc_k8s_ip_lookup_miss", "look-ups of a pod that found none", processor=context.id
        )

    async def start(self) -> None:
        await self._stack.__aenter__()
        try:
            await self._follow(Following(self.settings, self.context, self._stack))
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        await self._stack.aclose()

    def process(self, batch: Batch) -> Batch:
        return batch.map_resources(self._edits.bound(batch.peer if self._uses_peer else ""))

    @abstractmethod
    async def _follow(self, following: Following) -> None:
        """Opens what the settings ask for, and waits for it where they say so."""

    @abstractmethod
    def _edit(self, raw: bytes, peer: str, ask: Ask) -> bytes:
        """The resource with what is known of its pod. Every look-up goes through `ask`."""

    def _pod(self, ways: Iterable[tuple[Look, Hashable]], ask: Ask) -> Pod | None:
        """The pod that the first of these ways finds, unless it is to be left alone; one that is not found is counted."""
        for look, key in ways:
            pod: Pod | None = ask(look, key)
            if pod is not None:
                return None if pod.ignored or any(name.search(pod.name) for name in self._excluded) else pod
        self._misses.add()
        return None
