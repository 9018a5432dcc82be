"""What a cluster is made of, kept current in memory: pods, found by what telemetry knows of them, and the metadata of everything else.

One cache per (API server, query) is shared by all components that ask (`Host.shared`). Its objects are immutable and replaced when
something that is kept has changed, never otherwise: a result derived from an object is good for as long as a look-up gives that very
object. That identity is the version that caches of edited resources are keyed by.

A deleted pod stays for a grace period, because its last lines arrive after it is gone. In that time it is found by what is never given to
another pod (UID, container id) and by its name, until another pod of that name exists; never by its IP.
"""

from __future__ import annotations

import abc
import asyncio
import heapq
import sys
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Self, TypeVar

import msgspec

from lockgate.kube.client import Client, Query
from lockgate.kube.reflector import Reflector
from lockgate.pipeline.contract import Status

GRACE_SECONDS = 120.0
"""The collector's k8sattributes processor keeps deleted pods as long."""
MAX_DELETED = 20_000
"""Deleted pods kept at most; a cluster that deletes more in the grace period loses the oldest first."""
TERMINATED = ("Succeeded", "Failed")
SERVICE_LABEL = "kubernetes.io/service-name"
"""Of an EndpointSlice: the service that it is of."""
IGNORE_ANNOTATION = "opentelemetry.io/k8s-processor/ignore"


class Owner(msgspec.Struct, frozen=True, gc=False):
    """One entry of metadata.ownerReferences."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Container(msgspec.Struct, frozen=True, gc=False):
    """A container (init containers too) of a pod, with the run that the pod's status tells of."""

    name: str
    image: str = ""
    id: str = ""
    """Without the runtime's prefix (`containerd://`); "" before the first run."""
    image_id: str = ""
    restart_count: int = 0
    runtime: str = ""
    """What stands before the id in the API: `containerd://`."""


class Pod(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a pod."""

    uid: str
    name: str
    namespace: str
    ip: str = ""
    ips: tuple[str, ...] = ()
    """Addresses by which this pod alone can be found: none with the host's network, none once it has ended."""
    node: str = ""
    hostname: str = ""
    created: str = ""
    """RFC 3339, as the API gives it; so is `started`."""
    started: str = ""
    ignored: bool = False
    """Its annotation asks to be left alone."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owners: tuple[Owner, ...] = ()
    containers: tuple[Container, ...] = ()
    deleted: bool = False


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What is kept of any other object: its metadata."""

    uid: str
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owners: tuple[Owner, ...] = ()


# The shapes of the wire: only what is wanted is named, the decoder skips the rest.


class _WireMeta(msgspec.Struct, gc=False):
    name: str
    uid: str = ""
    namespace: str = ""
    creationTimestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    ownerReferences: tuple[Owner, ...] | None = None


class _WireContainer(msgspec.Struct, gc=False):
    name: str
    image: str = ""


class _WireSpec(msgspec.Struct, gc=False):
    nodeName: str = ""
    hostname: str = ""
    hostNetwork: bool = False
    containers: list[_WireContainer] | None = None
    initContainers: list[_WireContainer] | None = None


class _WireContainerStatus(msgspec.Struct, gc=False):
    name: str
    containerID: str = ""
    imageID: str = ""
    restartCount: int = 0


class _WireIP(msgspec.Struct, gc=False):
    ip: str = ""


class _WirePodStatus(msgspec.Struct, gc=False):
    phase: str = ""
    podIP: str = ""
    podIPs: list[_WireIP] | None = None
    startTime: str | None = None
    containerStatuses: list[_WireContainerStatus] | None = None
    initContainerStatuses: list[_WireContainerStatus] | None = None


class WirePod(msgspec.Struct, gc=False):
    """A pod as the API sends it."""

    metadata: _WireMeta
    spec: _WireSpec = msgspec.field(default_factory=_WireSpec)
    status: _WirePodStatus = msgspec.field(default_factory=_WirePodStatus)


class WireMeta(msgspec.Struct, gc=False):
    """Any object as PartialObjectMetadata."""

    metadata: _WireMeta


class _WireReference(msgspec.Struct, gc=False):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class _WireEndpoint(msgspec.Struct, gc=False):
    targetRef: _WireReference | None = None


class WireEndpointSlice(msgspec.Struct, gc=False):
    """An EndpointSlice (discovery.k8s.io/v1) as the API sends it."""

    metadata: _WireMeta
    endpoints: list[_WireEndpoint] | None = None


K = TypeVar("K", bound=Hashable)
W = TypeVar("W", WirePod, WireMeta, WireEndpointSlice)


class PodIndex(Generic[K]):
    """Pods by one kind of key. Where several claim a key, a live one has it before a deleted one, then the one that started last."""

    def __init__(self, keys: Callable[[Pod], Iterable[K]]) -> None:
        self._keys = keys
        self._first: dict[K, Pod] = {}
        self._others: dict[K, list[Pod]] = {}
        """Claims that lost, of the few keys that have several."""

    def get(self, key: K) -> Pod | None:
        return self._first.get(key)

    def add(self, pod: Pod) -> None:
        for key in self._keys(pod):
            holder = self._first.get(key)
            if holder is None:
                self._first[key] = pod
                continue
            loser = pod
            if _rank(pod) >= _rank(holder):
                self._first[key], loser = pod, holder
            self._others.setdefault(key, []).append(loser)

    def discard(self, pod: Pod) -> None:
        """Takes back what `add` of this very object did."""
        for key in self._keys(pod):
            others = self._others.get(key)
            if self._first.get(key) is pod:
                if others:
                    heir = max(others, key=_rank)
                    self._first[key] = heir
                    others.remove(heir)
                else:
                    del self._first[key]
            elif others:
                others[:] = [other for other in others if other is not pod]
            if others is not None and not others:
                del self._others[key]

    def __len__(self) -> int:
        return len(self._first)


def _rank(pod: Pod) -> tuple[bool, str, str, str]:
    return not pod.deleted, pod.started or pod.created, pod.created, pod.uid


class Cache(abc.ABC, Generic[W]):
    """A query's objects, followed from entering to leaving. The base of PodCache and MetaCache, which say how an object is kept."""

    def __init__(self, client: Client, query: Query, wire: type[W]) -> None:
        self.query, self.clock = query, client.context.clock
        self.synced = asyncio.Event()
        """Set once everything that existed has been seen."""
        self._statuses: list[Status] = []
        self._reason = ""
        self._tasks: asyncio.TaskGroup | None = None
        self._spawned: list[asyncio.Task[Any]] = []
        self._seen: set[str] | None = None
        self.reflector: Reflector[W] = Reflector(client, query, wire, self, self._blocked)
        labels = {"resource": query.resource.qualified}
        self._events = {
            kind: client.context.metrics.counter(
                f"otelcol_otelsvc_k8s_{query.resource.kind.lower()}_{kind}", f"{kind} events received", **labels
            )
            for kind in ("added", "updated", "deleted")
        }

    def report_to(self, status: Status) -> Callable[[], None]:
        """Blocks this status while the cluster cannot be followed; what it returns ends that."""
        self._statuses.append(status)
        if self._reason:
            status.block(self._reason, self._key)

        def leave() -> None:
            self._statuses.remove(status)
            status.clear(self._key)

        return leave

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._spawn()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks, self._tasks = self._tasks, None
        for task in self._spawned:
            task.cancel()
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    def _spawn(self) -> None:
        assert self._tasks is not None
        self._spawned.append(self._tasks.create_task(self.reflector.run(), name=f"follow {self.query.resource.qualified}"))

    @property
    def _key(self) -> str:
        return f"kubernetes {self.query.resource.qualified}"

    def _blocked(self, reason: str) -> None:
        self._reason = reason
        for status in self._statuses:
            if reason:
                status.block(reason, self._key)
            else:
                status.clear(self._key)

    # What the reflector says.

    def begin(self) -> None:
        self._seen = set()

    def put(self, item: W) -> None:
        uid = item.metadata.uid
        if self._seen is not None:
            self._seen.add(uid)
        self._events["updated" if self._keep(item) else "added"].add()

    def remove(self, item: W) -> None:
        if self._seen is not None:
            self._seen.discard(item.metadata.uid)
        if self._forget(item.metadata.uid):
            self._events["deleted"].add()

    def end(self) -> None:
        seen, self._seen = self._seen, None
        if seen is not None:
            for uid in [uid for uid in self._uids() if uid not in seen]:
                if self._forget(uid):
                    self._events["deleted"].add()
        self.synced.set()

    @abc.abstractmethod
    def _keep(self, item: W) -> bool:
        """Takes an object in; whether it was known before."""

    @abc.abstractmethod
    def _forget(self, uid: str) -> bool:
        """An object is gone; whether it was known."""

    @abc.abstractmethod
    def _uids(self) -> Iterable[str]:
        """Of all objects that exist, as far as is known."""


class PodCache(Cache[WirePod]):
    """The pods of a query. `keep_labels` and `keep_annotations` say whether these are kept at all: they are most of a pod's size."""

    def __init__(
        self,
        client: Client,
        query: Query,
        *,
        keep_labels: bool = True,
        keep_annotations: bool = True,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        super().__init__(client, query, WirePod)
        self._keep_labels, self._keep_annotations, self._grace_seconds = keep_labels, keep_annotations, grace_seconds
        self._pods: dict[str, Pod] = {}
        self._graves: list[tuple[float, str]] = []
        """Heap of (end of grace, uid)."""
        self._buried = asyncio.Event()
        self.by_ip: PodIndex[str] = PodIndex(lambda pod: () if pod.deleted else pod.ips)
        self.by_name: PodIndex[tuple[str, str]] = PodIndex(lambda pod: ((pod.namespace, pod.name),))
        self.by_container: PodIndex[str] = PodIndex(lambda pod: {container.id for container in pod.containers if container.id})
        self._indexes: list[PodIndex[Any]] = [self.by_ip, self.by_name, self.by_container]
        size = "otelcol_otelsvc_k8s_pod_table_size"
        client.context.metrics.observe(size, "pods known, the deleted ones included", self.__len__)

    def by_uid(self, uid: str) -> Pod | None:
        return self._pods.get(uid)

    def index(self, keys: Callable[[Pod], Iterable[K]]) -> PodIndex[K]:
        """A further index over these pods, kept current from here on; `unindex` ends that. `keys` must follow from the pod alone."""
        added = PodIndex(keys)
        for pod in self._pods.values():
            added.add(pod)
        self._indexes.append(added)
        return added

    def unindex(self, index: PodIndex[Any]) -> None:
        self._indexes.remove(index)

    def __len__(self) -> int:
        return len(self._pods)

    def pods(self) -> Iterable[Pod]:
        """All that are known, the deleted ones included."""
        return self._pods.values()

    def _spawn(self) -> None:
        super()._spawn()
        assert self._tasks is not None
        self._spawned.append(self._tasks.create_task(self._sweep(), name="forget deleted pods"))

    def _keep(self, item: WirePod) -> bool:
        pod = self._pod(item)
        known = self._pods.get(pod.uid)
        # The kubelet's heartbeats change what is not kept; the object stays, and with it everything derived from it.
        if known != pod:
            self._replace(known, pod)
        return known is not None

    def _forget(self, uid: str) -> bool:
        known = self._pods.get(uid)
        if known is None or known.deleted:
            return False
        self._replace(known, msgspec.structs.replace(known, deleted=True))
        heapq.heappush(self._graves, (self.clock.monotonic() + self._grace_seconds, uid))
        if len(self._graves) > MAX_DELETED:
            self._drop(heapq.heappop(self._graves)[1])
        self._buried.set()
        return True

    def _uids(self) -> Iterable[str]:
        return (uid for uid, pod in self._pods.items() if not pod.deleted)

    def _replace(self, old: Pod | None, new: Pod | None) -> None:
        for index in self._indexes:
            if old is not None:
                index.discard(old)
            if new is not None:
                index.add(new)
        if new is not None:
            self._pods[new.uid] = new
        elif old is not None:
            del self._pods[old.uid]

    def _drop(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is not None and pod.deleted:
            self._replace(pod, None)

    async def _sweep(self) -> None:
        while True:
            while self._graves:
                await self.clock.sleep(max(0.0, self._graves[0][0] - self.clock.monotonic()))
                now = self.clock.monotonic()
                while self._graves and self._graves[0][0] <= now:
                    self._drop(heapq.heappop(self._graves)[1])
            self._buried.clear()
            await self._buried.wait()

    def _pod(self, item: WirePod) -> Pod:
        meta, spec, status = item.metadata, item.spec, item.status
        ips = tuple(dict.fromkeys(filter(None, (status.podIP, *(entry.ip for entry in status.podIPs or ())))))
        states = {state.name: state for state in (*(status.initContainerStatuses or ()), *(status.containerStatuses or ()))}
        return Pod(
            uid=meta.uid,
            name=meta.name,
            namespace=sys.intern(meta.namespace),
            ip=status.podIP,
            ips=() if spec.hostNetwork or status.phase in TERMINATED else ips,
            node=sys.intern(spec.nodeName),
            hostname=spec.hostname,
            created=meta.creationTimestamp or "",
            started=status.startTime or "",
            ignored=(meta.annotations or {}).get(IGNORE_ANNOTATION, "").strip().lower() == "true",
            labels=_interned(meta.labels) if self._keep_labels else {},
            annotations=_interned(meta.annotations) if self._keep_annotations else {},
            owners=meta.ownerReferences or (),
            containers=tuple(_container(each, states.get(each.name)) for each in (*(spec.containers or ()), *(spec.initContainers or ()))),
        )


class MetaCache(Cache[WireMeta]):
    """The metadata of a query's objects, by name (`namespace/name` where they have namespaces) and by UID."""

    def __init__(self, client: Client, query: Query) -> None:
        super().__init__(client, query, WireMeta)
        self._by_uid: dict[str, Meta] = {}
        self._by_name: dict[str, Meta] = {}

    def by_name(self, name: str) -> Meta | None:
        return self._by_name.get(name)

    def by_uid(self, uid: str) -> Meta | None:
        return self._by_uid.get(uid)

    def __len__(self) -> int:
        return len(self._by_uid)

    def _keep(self, item: WireMeta) -> bool:
        wire = item.metadata
        meta = Meta(wire.uid, wire.name, wire.namespace, _interned(wire.labels), _interned(wire.annotations), wire.ownerReferences or ())
        known = self._by_uid.get(meta.uid)
        if known != meta:
            self._by_uid[meta.uid] = self._by_name[_full_name(meta)] = meta
        return known is not None

    def _forget(self, uid: str) -> bool:
        known = self._by_uid.pop(uid, None)
        if known is None:
            return False
        # Another object of this name may have come before the end of the old one was seen.
        if self._by_name.get(_full_name(known)) is known:
            del self._by_name[_full_name(known)]
        return True

    def _uids(self) -> Iterable[str]:
        return self._by_uid


class ServiceCache(Cache[WireEndpointSlice]):
    """The services of pods, from a query's EndpointSlices."""

    def __init__(self, client: Client, query: Query) -> None:
        super().__init__(client, query, WireEndpointSlice)
        self._slices: dict[str, tuple[str, frozenset[tuple[str, str]]]] = {}
        """By UID: the service, and (namespace, name) of its pods."""
        self._claims: dict[tuple[str, str], list[str]] = {}
        """A pod's services, once for each slice."""
        self._names: dict[tuple[str, str], tuple[str, ...]] = {}

    def of_pod(self, pod: tuple[str, str]) -> tuple[str, ...] | None:
        """The names of the services of the pod (namespace, name), sorted; None where it has none."""
        return self._names.get(pod)

    def _keep(self, item: WireEndpointSlice) -> bool:
        namespace, service = item.metadata.namespace, (item.metadata.labels or {}).get(SERVICE_LABEL, "")
        references = [endpoint.targetRef for endpoint in item.endpoints or () if endpoint.targetRef]
        # Whoever may write EndpointSlices in one namespace has no say about the pods of another.
        pods = frozenset(
            (namespace, each.name) for each in references if service and each.kind == "Pod" and each.namespace in ("", namespace)
        )
        uid = item.metadata.uid
        known = uid in self._slices
        self._replace(uid, (service, pods))
        return known

    def _forget(self, uid: str) -> bool:
        known = uid in self._slices
        self._replace(uid, None)
        return known

    def _replace(self, uid: str, new: tuple[str, frozenset[tuple[str, str]]] | None) -> None:
        before, after = self._slices.pop(uid, ("", frozenset[tuple[str, str]]())), new or ("", frozenset())
        if new is not None:
            self._slices[uid] = new
        if before == after:
            return
        for pod in before[1]:
            self._claims[pod].remove(before[0])
        for pod in after[1]:
            self._claims.setdefault(pod, []).append(after[0])
        for pod in before[1] | after[1]:
            names = tuple(sorted(set(self._claims[pod])))
            if not names:
                del self._claims[pod]
                self._names.pop(pod, None)
            elif names != self._names.get(pod):
                self._names[pod] = names

    def _uids(self) -> Iterable[str]:
        return self._slices


def cache_key(client: Client, query: Query, **kept: bool) -> tuple[Hashable, ...]:
    """The key under which a cache is shared (`Host.shared`): equal access, query and kept parts, one cache."""
    return ("kubernetes cache", client.access, query, *sorted(kept.items()))


def _full_name(meta: Meta) -> str:
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name


def _container(spec: _WireContainer, state: _WireContainerStatus | None) -> Container:
    image = sys.intern(spec.image)
    if state is None:
        return Container(sys.intern(spec.name), image)
    runtime, separator, id = state.containerID.rpartition("://")
    return Container(sys.intern(spec.name), image, id, sys.intern(state.imageID), state.restartCount, sys.intern(runtime + separator))


_EMPTY: dict[str, str] = {}


def _interned(values: dict[str, str] | None) -> dict[str, str]:
    """Keys and short values repeat from pod to pod; keep each once."""
    if not values:
        return _EMPTY
    return {sys.intern(key): sys.intern(value) if len(value) < 64 else value for key, value in values.items()}
