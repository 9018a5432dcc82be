"""The caches against the sample API: convergence whatever breaks, and who owns an IP."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from support import VirtualClock, context
from support.kubernetes import Faults, Object, pod, put, sample

from lockgate.kit.clock import SystemClock
from lockgate.kube.access import Access
from lockgate.kube.cache import GRACE_SECONDS, MetaCache, PodCache, ServiceCache, WireEndpointSlice
from lockgate.kube.client import Client, Query
from lockgate.kube.resources import ENDPOINT_SLICES, NAMESPACES, PODS
from lockgate.pipeline.contract import Status
from lockgate.sample.kubernetes_store import ObjectStore, Selection


class Fast(SystemClock):
    """Real time, with naps in place of back-off."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Returns when the condition holds; the caches give no other signal."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def pods(access: Access, clock: Any = None, **options: Any) -> AsyncIterator[PodCache]:
    async with (
        Client(access, context(clock=clock or Fast())) as client,
        PodCache(client, Query(PODS), **options) as cache,
    ):
        async with asyncio.timeout(10):
            await cache.synced.wait()
        yield cache


def live(cache: PodCache) -> dict[str, tuple[str, str]]:
    return {each.uid: (each.name, each.labels.get("step", "")) for each in cache.pods() if not each.deleted}


def stored(store: ObjectStore) -> dict[str, tuple[str, str]]:
    metas = [item["metadata"] for resource, item in store if resource is PODS]
    return {meta["uid"]: (meta["name"], (meta.get("labels") or {}).get("step", "")) for meta in metas}


async def test_what_exists_is_known_once_synced_and_changes_follow() -> None:
    async with sample() as (store, access):
        made = put(store, PODS, pod("web-1", ip="10.0.0.1", labels={"app": "web"}))
        async with pods(access) as cache:
            found = cache.by_ip.get("10.0.0.1")
            assert found is not None and found is cache.by_uid(made["metadata"]["uid"]) is cache.by_name.get(("default", "web-1"))
            assert found is cache.by_container.get("default-web-1-0")
            assert (found.labels, found.node, found.containers[0].image) == ({"app": "web"}, "node-1", "r.io/app:1.2")
            store.merge(PODS, "default", "web-1", {"metadata": {"labels": {"app": "api"}}})
            await until(lambda: (now := cache.by_ip.get("10.0.0.1")) and now.labels == {"app": "api"})


async def test_a_change_of_what_is_not_kept_leaves_the_object_itself() -> None:
    async with sample() as (store, access):
        put(store, PODS, pod("web-1", ip="10.0.0.1"))
        async with pods(access) as cache:
            before = cache.by_ip.get("10.0.0.1")
            conditions = [{"type": "Ready", "status": "True"}]
            changed = store.merge(PODS, "default", "web-1", {"status": {"conditions": conditions}}, status=True)
            put(store, PODS, pod("marker"))
            await until(lambda: cache.by_name.get(("default", "marker")))
            assert changed["status"]["conditions"] and cache.by_ip.get("10.0.0.1") is before


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "paged-list"])
@pytest.mark.parametrize("seed", range(4))
async def test_the_cache_converges_under_changes_cuts_and_lost_history(seed: int, watch_list: bool) -> None:
    rng, faults = random.Random(seed), Faults()
    store = ObjectStore(SystemClock(), history=50)
    async with sample(store, faults, watch_list=watch_list, bookmark_seconds=0.02) as (_, access), pods(access) as cache:
        for step in range(400):
            names = [name for name, _ in stored(store).values()]
            match rng.choices(["create", "update", "delete", "compact", "cut", "refuse", "garble", "pause"], [8, 8, 4, 1, 1, 1, 1, 4])[0]:
                case "create":
                    store.create(PODS, pod(f"pod-{rng.randrange(60)}-{step}", labels={"step": str(step)}))
                case "update" if names:
                    store.merge(PODS, "default", rng.choice(names), {"metadata": {"labels": {"step": str(step)}}})
                case "delete" if names:
                    store.delete(PODS, "default", rng.choice(names), 0)
                case "compact":
                    store.compact()
                case "cut":
                    faults.cut()
                case "refuse":
                    faults.status(rng.choice([429, 500, 503, 410]), {"Retry-After": "0"})
                case "garble":
                    faults.answers.append(_half_an_event)
                case "pause":
                    await asyncio.sleep(rng.random() * 0.01)
        faults.answers.clear()
        await until(lambda: live(cache) == stored(store))
        by_name = {key[1] for key in cache.by_name._first if not cache.by_name._first[key].deleted}
        assert by_name == {name for name, _ in stored(store).values()}
        assert not cache.by_name._others


async def _half_an_event(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"torn","uid":"torn","resourceVersion":"')
    assert request.transport is not None
    request.transport.abort()
    return response


async def test_a_relist_removes_what_vanished_unseen_and_doubles_nothing() -> None:
    faults = Faults()
    async with sample(faults=faults) as (store, access):
        for number in range(3):
            put(store, PODS, pod(f"web-{number}", ip=f"10.0.0.{number}"))
        async with pods(access) as cache:
            kept = cache.by_ip.get("10.0.0.1")
            faults.status(500)
            store.delete(PODS, "default", "web-0", 0)
            store.compact()
            faults.cut()
            await until(lambda: cache.reflector.relists > 1 and cache.by_ip.get("10.0.0.0") is None)
            await until(lambda: len(live(cache)) == 2)
            assert cache.by_ip.get("10.0.0.1") is kept


async def test_a_broken_watch_resumes_at_its_last_version_without_a_new_list() -> None:
    faults = Faults()
    async with sample(faults=faults) as (store, access), pods(access) as cache:
        put(store, PODS, pod("one"))
        await until(lambda: cache.by_name.get(("default", "one")))
        version = store.version
        await until(lambda: cache.reflector._version == str(version))
        faults.cut()
        resumed = await faults.asked(watch="1", resourceVersion=str(version))
        put(store, PODS, pod("two"))
        await until(lambda: cache.by_name.get(("default", "two")))
        assert cache.reflector.relists == 1 and "sendInitialEvents" not in resumed.query


async def test_a_list_that_is_longer_than_a_page_is_read_page_by_page() -> None:
    faults = Faults()
    async with sample(faults=faults, watch_list=False) as (store, access):
        for number in range(1200):
            store.create(PODS, pod(f"pod-{number}"))
        async with pods(access) as cache:
            assert len(cache) == 1200
            assert [bool(request.query.get("continue")) for request in faults.requests if "watch" not in request.query] == [
                False,
                True,
                True,
            ]


async def test_history_lost_between_two_pages_ends_in_one_whole_list() -> None:
    store, faults = ObjectStore(SystemClock()), Faults()

    async def first_page(request: web.Request) -> web.StreamResponse:
        page = store.list(Selection(PODS), 500)
        store.create(PODS, pod("late"))
        store.compact()
        return web.json_response({"metadata": {"resourceVersion": str(page.version), "continue": page.continue_}, "items": page.items})

    async with sample(store, faults, watch_list=False) as (_, access):
        for number in range(600):
            store.create(PODS, pod(f"pod-{number}"))
        faults.status(422)
        faults.answers.append(first_page)
        async with pods(access) as cache:
            assert len(live(cache)) == 601
            assert [request.query.get("limit") for request in faults.requests if "watch" not in request.query] == ["500", "500", None]


def started(minute: int) -> str:
    return f"2026-01-01T00:{minute:02}:00Z"


async def test_an_ip_goes_to_the_pod_that_started_last_whatever_the_order_of_arrival() -> None:
    async with sample() as (store, access):
        put(store, PODS, pod("new", ip="10.0.0.1", started=started(2)))
        async with pods(access) as cache:
            put(store, PODS, pod("old", ip="10.0.0.1", started=started(1)))
            await until(lambda: (old := cache.by_name.get(("default", "old"))) and old.ip)
            assert _name(cache.by_ip.get("10.0.0.1")) == "new"
            store.delete(PODS, "default", "new", 0)
            await until(lambda: _name(cache.by_ip.get("10.0.0.1")) == "old")


def _name(found: Any) -> str:
    return found.name if found else ""


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(pod("agent", ip="10.0.0.9", hostNetwork=True), id="host-network"),
        pytest.param(pod("job", ip="10.0.0.9", phase="Succeeded"), id="succeeded"),
        pytest.param(pod("job", ip="10.0.0.9", phase="Failed"), id="failed"),
    ],
)
async def test_a_pod_without_an_ip_of_its_own_is_not_found_by_ip(item: Object) -> None:
    async with sample() as (store, access):
        made = put(store, PODS, item)
        async with pods(access) as cache:
            assert cache.by_ip.get("10.0.0.9") is None
            assert cache.by_uid(made["metadata"]["uid"]) is not None


async def test_a_deleted_pod_is_found_by_uid_and_name_alone_and_only_for_the_grace_period() -> None:
    clock = VirtualClock()
    async with sample() as (store, access), pods(access, clock) as cache:
        uid = put(store, PODS, pod("web-0", ip="10.0.0.1"))["metadata"]["uid"]
        await until(lambda: cache.by_ip.get("10.0.0.1"))
        store.delete(PODS, "default", "web-0", 0)
        await until(lambda: cache.by_ip.get("10.0.0.1") is None)
        gone = cache.by_uid(uid)
        assert gone is not None and gone.deleted and cache.by_name.get(("default", "web-0")) is gone
        await clock.advance(GRACE_SECONDS - 1)
        assert cache.by_uid(uid) is gone
        await clock.advance(2)
        assert cache.by_uid(uid) is None and cache.by_name.get(("default", "web-0")) is None and len(cache) == 0


async def test_a_reused_ip_and_a_reused_name_belong_to_the_new_pod_at_once() -> None:
    async with sample() as (store, access), pods(access) as cache:
        old = put(store, PODS, pod("web-0", ip="10.0.0.1", started=started(5)))["metadata"]["uid"]
        await until(lambda: cache.by_ip.get("10.0.0.1"))
        store.delete(PODS, "default", "web-0", 0)
        # An earlier start: a clock that was set back must not give the name to the dead.
        new = put(store, PODS, pod("web-0", ip="10.0.0.1", started=started(1)))["metadata"]["uid"]
        await until(lambda: (found := cache.by_ip.get("10.0.0.1")) and found.uid == new)
        by_name, buried = cache.by_name.get(("default", "web-0")), cache.by_uid(old)
        assert by_name is not None and by_name.uid == new
        assert buried is not None and buried.deleted


async def test_metadata_of_a_namespace_is_found_by_name_and_follows() -> None:
    async with sample() as (store, access), Client(access, context(clock=Fast())) as client:
        query = Query(NAMESPACES, metadata_only=True)
        async with MetaCache(client, query) as cache:
            await cache.synced.wait()
            assert cache.by_name("default") is not None
            store.create(NAMESPACES, {"metadata": {"name": "shop", "labels": {"team": "a"}}})
            await until(lambda: cache.by_name("shop"))
            found = cache.by_name("shop")
            assert found is not None and found.labels == {"kubernetes.io/metadata.name": "shop", "team": "a"}
            store.delete(NAMESPACES, "", "shop")
            await until(lambda: cache.by_name("shop") is None)


async def test_an_index_of_ones_own_follows_and_ends() -> None:
    async with sample() as (store, access), pods(access) as cache:
        put(store, PODS, pod("web-0", labels={"app": "web"}))
        await until(lambda: cache.by_name.get(("default", "web-0")))
        index = cache.index(lambda pod: filter(None, [pod.labels.get("app")]))
        assert _name(index.get("web")) == "web-0"
        store.merge(PODS, "default", "web-0", {"metadata": {"labels": {"app": "api"}}})
        await until(lambda: index.get("api"))
        assert index.get("web") is None
        cache.unindex(index)


async def test_a_forbidden_list_blocks_the_status_by_name_until_it_is_granted() -> None:
    granted: list[bool] = []
    async with (
        sample(may=lambda user, verb, resource, namespace: bool(granted)) as (_, access),
        Client(access, context(clock=Fast())) as client,
    ):
        status = Status(SystemClock())
        async with PodCache(client, Query(PODS, "shop")) as cache:
            leave = cache.report_to(status)
            await until(lambda: status.blocked)
            (reason, _), *_ = status.blocked.values()
            assert 'the verb "watch" on resource "pods" of API group "" in namespace shop' in reason
            granted.append(True)
            await until(lambda: not status.blocked)
            assert cache.synced.is_set()
            leave()


async def test_the_graves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.kube.cache.MAX_DELETED", 3)
    async with sample() as (store, access), pods(access, VirtualClock()) as cache:
        for number in range(6):
            store.create(PODS, pod(f"job-{number}"))
        await until(lambda: len(cache) == 6)
        for number in range(6):
            store.delete(PODS, "default", f"job-{number}", 0)
        await until(lambda: not live(cache))
        assert len(cache) == 3


def endpoint_slice(number: int, namespace: str, service: str, pods: list[str]) -> WireEndpointSlice:
    item = {
        "metadata": {"name": f"s{number}", "uid": f"u{number}", "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"targetRef": {"kind": "Pod", "name": name, "namespace": namespace}} for name in pods] or None,
    }
    return msgspec.convert(item, WireEndpointSlice)


async def test_a_pod_has_the_services_whose_slices_name_it_whatever_came_and_went() -> None:
    rng, names = random.Random(7), ["web-0", "web-1", "db-0"]
    async with sample() as (_, access), Client(access, context(clock=Fast())) as client:
        cache = ServiceCache(client, Query(ENDPOINT_SLICES))
        exist: dict[int, WireEndpointSlice] = {}
        for _ in range(2_000):
            number = rng.randrange(8)
            before = {pod: cache.of_pod(("a", pod)) for pod in names}
            if rng.random() < 0.3:
                cache.remove(exist.pop(number, endpoint_slice(number, "a", "x", [])))
            else:
                exist[number] = endpoint_slice(number, rng.choice("ab"), rng.choice(["s", "t", ""]), rng.choices(names, k=rng.randrange(3)))
                cache.put(exist[number])
            for namespace in "ab":
                for pod in names:
                    services = {
                        (each.metadata.labels or {})["kubernetes.io/service-name"]
                        for each in exist.values()
                        if each.metadata.namespace == namespace
                        and any(endpoint.targetRef and endpoint.targetRef.name == pod for endpoint in each.endpoints or ())
                    } - {""}
                    assert cache.of_pod((namespace, pod)) == (tuple(sorted(services)) or None)
            # What has not changed is the very same object: results that hang on it still hold.
            for pod, had in before.items():
                if cache.of_pod(("a", pod)) == had:
                    assert cache.of_pod(("a", pod)) is had
        for item in exist.values():
            cache.remove(item)
        assert not cache._claims and not cache._names and not cache._slices


async def test_an_endpoint_slice_says_nothing_about_pods_of_another_namespace() -> None:
    async with sample() as (_, access), Client(access, context(clock=Fast())) as client:
        cache = ServiceCache(client, Query(ENDPOINT_SLICES))
        theft = endpoint_slice(1, "shop", "stolen", ["db-0"])
        theft.metadata.namespace = "other"
        cache.put(theft)
        assert cache.of_pod(("shop", "db-0")) is cache.of_pod(("other", "db-0")) is None
