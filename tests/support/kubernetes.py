"""Objects of a cluster as the API takes them, and the sample API server with faults."""

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

from lockgate.kit.clock import SystemClock
from lockgate.kube.access import Access
from lockgate.kube.resources import KNOWN
from lockgate.sample.kubernetes_api import SampleApi
from lockgate.sample.kubernetes_store import ObjectStore

Object = dict[str, Any]


def pod(
    name: str, namespace: str = "default", *, ip: str = "", started: str = "2026-01-01T00:00:00Z", phase: str = "Running", **spec: Any
) -> Object:
    """A pod with one container `main`; takes `labels`, `annotations`, `owner` (kind, name, uid) and `container_id`, the rest is spec."""
    meta: Object = {"name": name, "namespace": namespace}
    for key in ("labels", "annotations"):
        if key in spec:
            meta[key] = spec.pop(key)
    if "owner" in spec:
        kind, owner, uid = spec.pop("owner")
        api = "v1" if kind == "Node" else "batch/v1" if kind == "Job" else "apps/v1"
        meta["ownerReferences"] = [{"apiVersion": api, "kind": kind, "name": owner, "uid": uid, "controller": True}]
    status: Object = {"phase": phase, "startTime": started}
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    container_id = spec.pop("container_id", f"containerd://{namespace}-{name}-0")
    status["containerStatuses"] = [
        {"name": "main", "image": "r.io/app:1.2", "imageID": "r.io/app@sha256:" + "0" * 64, "containerID": container_id, "restartCount": 0}
        | {"ready": True}
    ]
    return {
        "metadata": meta,
        "spec": {"containers": [{"name": "main", "image": "r.io/app:1.2"}], "nodeName": "node-1"} | spec,
        "status": status,
    }


def meta(api: str, kind: str, name: str, uid: str, namespace: str = "", owner: tuple[str, str, str] | None = None, **more: Any) -> Object:
    """An object of any other kind, without spec; `owner` is (kind, name, uid), `more` is metadata."""
    item: Object = {"apiVersion": api, "kind": kind, "metadata": {"name": name, "uid": uid} | more}
    if namespace:
        item["metadata"]["namespace"] = namespace
    if owner:
        item["metadata"]["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "uid": owner[2], "controller": True, "apiVersion": "x"}]
    return item


def put(store: ObjectStore, resource: Any, item: Object) -> Object:
    """Creates an object together with its status, which the API takes in two steps."""
    made = store.create(resource, item)
    if "status" in item:
        made = store.update(resource, made | {"status": item["status"]}, status=True)
    return made


def apply(store: ObjectStore, item: Object) -> Object:
    """Puts an object into the store as given, its status and even its uid, so that a test can name what it expects."""
    resource = next(each for each in KNOWN if (each.api_version, each.kind) == (item["apiVersion"], item["kind"]))
    new = copy.deepcopy(item)
    new["metadata"] = {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z"} | new["metadata"]
    key = "/".join(filter(None, (new["metadata"].get("namespace"), new["metadata"]["name"])))
    return store._put(resource, key, None, new)


class Faults:
    """What goes wrong between a client and the sample API: `next` answers once instead of it, `cut` breaks every open connection."""

    def __init__(self) -> None:
        self.answers: list[Callable[[web.Request], Awaitable[web.StreamResponse]]] = []
        self.requests: list[web.Request] = []
        self._changed = asyncio.Condition()

    def status(self, code: int, headers: dict[str, str] | None = None, body: str = "") -> None:
        """The next request gets this status."""

        async def answer(request: web.Request) -> web.Response:
            return web.Response(status=code, headers=headers, text=body)

        self.answers.append(answer)

    def cut(self) -> None:
        """Breaks every connection, in the middle of whatever it was doing."""
        for request in self.requests:
            if request.transport is not None:
                request.transport.abort()
        self.requests.clear()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if self.answers:
            return await self.answers.pop(0)(request)
        return await handler(request)

    async def asked(self, **query: str) -> web.Request:
        """The next request that has these query parameters."""
        async with asyncio.timeout(10), self._changed:
            while True:
                for request in self.requests:
                    if query.items() <= request.query.items():
                        return request
                await self._changed.wait()


@asynccontextmanager
async def sample(
    store: ObjectStore | None = None, faults: Faults | None = None, **options: Any
) -> AsyncIterator[tuple[ObjectStore, Access]]:
    """A running sample API."""
    store = store or ObjectStore(SystemClock())
    api = SampleApi(store, middlewares=(faults.middleware,) if faults else (), **options)
    async with api.serve() as url:
        yield store, Access(url, token=next(iter(api.tokens), ""))


@contextmanager
def sample_in_thread(
    store: ObjectStore, enter: Callable[[], None] = lambda: None, host: str = "127.0.0.1", port: int = 0, tls: Any = None, **options: Any
) -> Iterator[str]:
    """A running sample API in a thread, for tests that block; gives its URL. The store is not to be touched meanwhile.

    The thread begins with `enter`; `options` are SampleApi's.
    """
    loop, ending = asyncio.new_event_loop(), asyncio.Event()
    started: Future[str] = Future()

    async def serve() -> None:
        async with SampleApi(store, **options).serve(host, port, tls) as url:
            started.set_result(url)
            await ending.wait()

    with ThreadPoolExecutor(1, initializer=enter) as pool:
        served = pool.submit(loop.run_until_complete, serve())
        try:
            yield started.result(10)
        finally:
            loop.call_soon_threadsafe(ending.set)
            served.result(10)
            loop.close()
