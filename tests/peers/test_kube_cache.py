"""The client and the caches against the real API server: what the unit tests show on the sample one holds there, too."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import context
from support.kube_apiserver import ApiServer
from support.kubernetes import pod

from lockgate.kit.clock import SystemClock
from lockgate.kube.access import Access
from lockgate.kube.cache import MetaCache, PodCache
from lockgate.kube.client import ApiError, Client, Query
from lockgate.kube.resources import NAMESPACES, PODS
from lockgate.net.tls import TlsClientSettings
from lockgate.pipeline.contract import Status

pytestmark = pytest.mark.peers
READ_PODS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


def access(server: ApiServer, token: str = "") -> Access:
    return Access(server.base_url, token=token or server.token, tls=TlsClientSettings(ca_file=str(server.ca_file)))


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def namespace(api_server: ApiServer) -> str:
    name = f"cache-{uuid.uuid4().hex[:8]}"
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": {"team": "a"}}})
    return name


@asynccontextmanager
async def pods(server: ApiServer, namespace: str) -> AsyncIterator[PodCache]:
    async with Client(access(server), context()) as client, PodCache(client, Query(PODS, namespace)) as cache:
        async with asyncio.timeout(20):
            await cache.synced.wait()
        yield cache


async def test_a_pod_is_found_by_all_that_is_known_of_it_until_it_is_deleted(api_server: ApiServer, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = await api_server.create(path, pod("web-1", namespace, ip="10.1.0.1", labels={"app": "web"}, annotations={"a": "b"}))
    async with pods(api_server, namespace) as cache:
        found = cache.by_ip.get("10.1.0.1")
        assert found is not None and found is cache.by_uid(made["metadata"]["uid"]) is cache.by_name.get((namespace, "web-1"))
        assert cache.by_container.get(f"{namespace}-web-1-0") is found
        assert (found.labels, found.annotations, found.node) == ({"app": "web"}, {"a": "b"}, "node-1")
        await api_server.delete(f"{path}/web-1")
        await until(lambda: cache.by_ip.get("10.1.0.1") is None)
        gone = cache.by_uid(made["metadata"]["uid"])
        assert gone is not None and gone.deleted


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "paged-list"])
async def test_the_cache_converges_under_changes_and_a_forgotten_history(
    api_server: ApiServer, namespace: str, watch_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rng = f"/api/v1/namespaces/{namespace}/pods", random.Random(7)
    async with Client(access(api_server), context()) as client:
        cache = PodCache(client, Query(PODS, namespace))
        cache.reflector._watch_list, cache.reflector._page_limit = watch_list, 3
        expected: dict[str, str] = {}
        async with cache:
            for step in range(60):
                choice = rng.random()
                if choice < 0.5 or not expected:
                    await api_server.create(path, pod(f"pod-{step}", namespace, labels={"step": "0"}))
                    expected[f"pod-{step}"] = "0"
                elif choice < 0.8:
                    name = rng.choice(sorted(expected))
                    await api_server.change(f"{path}/{name}", {"metadata": {"labels": {"step": str(step)}}})
                    expected[name] = str(step)
                else:
                    name = rng.choice(sorted(expected))
                    await api_server.delete(f"{path}/{name}")
                    del expected[name]
                if step == 30:
                    # Restarts the server: every watch breaks, and the version to resume from is gone or not.
                    await api_server.forget_history()
            await until(lambda: {each.name: each.labels["step"] for each in cache.pods() if not each.deleted} == expected)
            assert cache.reflector._watch_list is watch_list


async def test_metadata_alone_is_asked_for_and_understood(api_server: ApiServer, namespace: str) -> None:
    query = Query(NAMESPACES, metadata_only=True)
    async with Client(access(api_server), context()) as client, MetaCache(client, query) as cache:
        await until(lambda: cache.by_name(namespace))
        found = cache.by_name(namespace)
        assert found is not None and found.labels == {"kubernetes.io/metadata.name": namespace, "team": "a"}


@pytest.mark.parametrize("missing", ["list", "watch"])
async def test_a_missing_permission_is_named(api_server: ApiServer, missing: str) -> None:
    verb = {"list": "watch", "watch": "list"}[missing]
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]
    token = await api_server.service_account(f"no-{missing}-{uuid.uuid4().hex[:6]}", rules)
    status = Status(SystemClock())
    async with Client(access(api_server, token), context()) as client:
        cache = PodCache(client, Query(PODS))
        cache.reflector._watch_list = False
        cache.report_to(status)
        async with cache:
            await until(lambda: status.blocked)
    (reason, _), *_ = status.blocked.values()
    assert "403" in reason and f'the verb "{missing}" on resource "pods" of API group "" in all namespaces' in reason


async def test_a_cache_with_list_and_watch_alone_follows_through_a_restart_that_forgets_history(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    token_file = tmp_path / "token"
    token_file.write_text(await api_server.service_account(f"reader-{namespace}", READ_PODS))
    reader = Access(api_server.base_url, token_file=str(token_file), tls=TlsClientSettings(ca_file=str(api_server.ca_file)))
    made = await api_server.create(pods, pod("web-1", namespace, ip="10.9.0.1", labels={"app": "web"}))
    gone = await api_server.create(pods, pod("web-2", namespace, ip="10.9.0.2"))
    async with Client(reader, context()) as client, PodCache(client, Query(PODS)) as cache:
        await asyncio.wait_for(cache.synced.wait(), 10)
        found = cache.by_uid(made["metadata"]["uid"])
        assert found is not None
        assert found is cache.by_ip.get("10.9.0.1") is cache.by_name.get((namespace, "web-1"))
        assert (found.labels, found.node, found.containers[0].image) == ({"app": "web"}, "node-1", "r.io/app:1.2")
        await api_server.change(f"{pods}/web-1", {"metadata": {"labels": {"app": "api"}}})
        await until(lambda: (now := cache.by_ip.get("10.9.0.1")) and now.labels == {"app": "api"})
        await api_server.delete(f"{pods}/web-2")
        await api_server.forget_history()
        late = await api_server.create(pods, pod("web-3", namespace, ip="10.9.0.3"))
        await until(lambda: cache.by_uid(late["metadata"]["uid"]))
        assert (left := cache.by_uid(gone["metadata"]["uid"])) is not None and left.deleted


async def test_a_refused_list_names_who_may_not_do_what(api_server: ApiServer, namespace: str) -> None:
    token = await api_server.service_account(f"nobody-{namespace}", [])
    async with Client(access(api_server, token), context()) as client:
        with pytest.raises(ApiError, match=r'serviceaccount:default:nobody-.* cannot list resource "pods"') as caught:
            async for _ in client.pages(Query(PODS), dict):
                pass
    assert caught.value.code == 403
