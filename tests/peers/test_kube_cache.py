"""Our caches on a real API server: its TLS, its tokens and permissions, its restarts."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kube_apiserver import ApiServer
from support.kubernetes import pod

from lockgate.kit.clock import SystemClock
from lockgate.kit.metrics import Metrics
from lockgate.kube.access import Access
from lockgate.kube.cache import PodCache
from lockgate.kube.client import ApiError, Client, Query
from lockgate.kube.resources import PODS

pytestmark = pytest.mark.peers

LOG = logging.getLogger("test.peers")
READ_PODS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def pods(api_server: ApiServer) -> str:
    """The path of the pods of a namespace that no other test uses."""
    namespace = f"cache-{uuid.uuid4().hex[:12]}"
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    return f"/api/v1/namespaces/{namespace}/pods"


async def test_a_cache_with_list_and_watch_alone_follows_through_a_restart_that_forgets_history(
    api_server: ApiServer, pods: str, tmp_path: Path
) -> None:
    namespace = pods.split("/")[4]
    token_file = tmp_path / "token"
    token_file.write_text(await api_server.service_account(f"reader-{namespace}", READ_PODS))
    access = Access(api_server.base_url, token_file=str(token_file), ca_file=str(api_server.ca_file))
    made = await api_server.create(pods, pod("web-1", namespace, ip="10.9.0.1", labels={"app": "web"}))
    gone = await api_server.create(pods, pod("web-2", namespace, ip="10.9.0.2"))
    async with Client(access) as client, PodCache(client, Query(PODS), SystemClock(), LOG, Metrics()) as cache:
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


async def test_a_refused_list_names_who_may_not_do_what(api_server: ApiServer, pods: str) -> None:
    token = await api_server.service_account(f"nobody-{pods.split('/')[4]}", [])
    async with Client(Access(api_server.base_url, token=token, ca_file=str(api_server.ca_file))) as client:
        with pytest.raises(ApiError, match=r'serviceaccount:default:nobody-.* cannot list resource "pods"') as caught:
            async for _ in client.pages(Query(PODS), dict):
                pass
    assert caught.value.code == 403
