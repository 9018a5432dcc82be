"""The sample API keeps the contract that the real API server was observed to keep, and its own bounds."""

import io
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from support.events_contract import EventsContract
from support.kubernetes import Object, pod, put
from support.kubernetes_contract import KubernetesApiContract

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import EVENTS, KNOWN, NAMESPACES, PODS, Resource
from lockgate.sample.kubernetes_api import SampleApi
from lockgate.sample.kubernetes_store import WATCH_BUFFER, ObjectStore, Selection, StoreError


class Running:
    """The sample API as the contract wants it."""

    ssl = ssl.create_default_context()
    token = "admin"

    def __init__(self, store: ObjectStore, base_url: str) -> None:
        self.store, self.base_url = store, base_url

    async def create(self, collection: str, manifest: Object) -> Object:
        async with self._client() as client:
            async with client.post(collection, json=manifest) as response:
                created: Object = await response.json()
            if "status" in manifest:
                created = await self.change(f"{collection}/{created['metadata']['name']}/status", {"status": manifest["status"]})
        return created

    async def change(self, path: str, merge_patch: Object) -> Object:
        async with self._client() as client, client.patch(path, json=merge_patch, headers=MERGE) as response:
            changed: Object = await response.json()
        return changed

    async def delete(self, path: str) -> None:
        async with self._client() as client, client.delete(path, json={"gracePeriodSeconds": 0}) as response:
            assert response.status == 200

    async def forget_history(self) -> None:
        self.store.compact()

    def _client(self) -> ClientSession:
        return ClientSession(self.base_url, headers={"Authorization": f"Bearer {self.token}"}, raise_for_status=True)


MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
async def api() -> AsyncIterator[Running]:
    store = ObjectStore(SystemClock())
    async with SampleApi(store, {"admin": "admin"}).serve() as url:
        yield Running(store, url)


class TestSampleApi(KubernetesApiContract):
    """Every statement of the contract."""


class TestEvents(EventsContract):
    """And what the events receiver does at a real one."""


async def test_replace_and_conflict_and_status_keep_to_their_parts(api: Running) -> None:
    made = put(api.store, PODS, pod("a"))
    async with ClientSession(api.base_url, headers={"Authorization": "Bearer admin"}) as client:
        path = "/api/v1/namespaces/default/pods/a"
        stale = made | {"metadata": made["metadata"] | {"resourceVersion": "1"}}
        async with client.put(path, json=stale) as response:
            assert (response.status, (await response.json())["reason"]) == (409, "Conflict")
        async with client.put(path, json=made | {"status": {"phase": "Failed"}}) as response:
            assert (await response.json())["status"]["phase"] == "Running"
        async with client.put(f"{path}/status", json=made | {"status": {"phase": "Failed"}, "spec": {}}) as response:
            changed = await response.json()
            assert (changed["status"]["phase"], changed["spec"]) == ("Failed", made["spec"])
        async with client.post("/api/v1/namespaces/default/pods", json=pod("a")) as response:
            assert (response.status, (await response.json())["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        pytest.param("POST", "/api/v1/namespaces/none/pods", b"{}", 404, "NotFound", id="no-namespace-or-name"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b'{"metadata":{"name":"x"}}', 422, "Invalid", id="no-containers"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b'{"metadata":{"name":"UPPER"}}', 422, "Invalid", id="name"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b"[]", 400, "BadRequest", id="no-object"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b"{", 400, "BadRequest", id="no-json"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b'{"kind":"Node"}', 400, "BadRequest", id="other-kind"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b'{"metadata":1}', 400, "BadRequest", id="metadata"),
        pytest.param("POST", "/api/v1/namespaces/default/pods", b" " * (3 << 20) + b"{}", 413, "RequestEntityTooLarge", id="size"),
        pytest.param("DELETE", "/api/v1/pods", b"", 405, "MethodNotAllowed", id="delete-all"),
        pytest.param("GET", "/apis/none/v1/things", b"", 404, "NotFound", id="group"),
        pytest.param("GET", "/api/v1/pods?limit=x", b"", 400, "BadRequest", id="limit"),
        pytest.param("GET", "/api/v1/pods?sendInitialEvents=true", b"", 422, "Invalid", id="initial-events-of-a-list"),
    ],
)
async def test_a_bad_request_is_a_status(api: Running, method: str, path: str, body: bytes, status: int, reason: str) -> None:
    if reason == "NotFound" and method == "POST":
        body = b'{"metadata":{"name":"x"},"spec":{"containers":[{"name":"x"}]}}'
    headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
    async with ClientSession(api.base_url, headers=headers) as client, client.request(method, path, data=io.BytesIO(body)) as response:
        answer = await response.json()
    assert (response.status, answer["kind"], answer["reason"]) == (status, "Status", reason)


async def test_partial_metadata_has_no_spec(api: Running) -> None:
    put(api.store, PODS, pod("a"))
    headers = {"Authorization": "Bearer admin", "Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
    async with ClientSession(api.base_url, headers=headers) as client, client.get("/api/v1/pods") as response:
        answer = await response.json()
    assert answer["kind"] == "PartialObjectMetadataList"
    assert [(item["kind"], set(item)) for item in answer["items"]] == [("PartialObjectMetadata", {"kind", "apiVersion", "metadata"})]


async def test_discovery_lists_what_is_served(api: Running) -> None:
    async with ClientSession(api.base_url, headers={"Authorization": "Bearer admin"}) as client:
        async with client.get("/apis/apps/v1") as response:
            served = {each["name"] for each in (await response.json())["resources"]}
        async with client.get("/apis") as response:
            groups = {each["name"] for each in (await response.json())["groups"]}
    assert served == {each.plural for each in KNOWN if each.group == "apps"}
    assert groups == {each.group for each in KNOWN if each.group}


def _store(history: int = 100) -> ObjectStore:
    return ObjectStore(SystemClock(), history)


async def test_a_pod_on_a_node_ends_in_two_steps() -> None:
    store = _store()
    put(store, PODS, pod("a"))
    watcher = store.watch(Selection(PODS), store.version)
    assert "deletionTimestamp" in store.delete(PODS, "default", "a")["metadata"]
    store.delete(PODS, "default", "a", 0)
    assert [kind for kind, _ in watcher.queue] == ["MODIFIED", "MODIFIED", "DELETED"]


async def test_a_watcher_that_is_too_slow_is_sent_away() -> None:
    store = _store()
    watcher = store.watch(Selection(PODS), store.version)
    for number in range(WATCH_BUFFER + 1):
        store.create(PODS, pod(f"pod-{number}"))
    assert watcher.overflowed and len(watcher.queue) == WATCH_BUFFER


async def test_the_history_is_bounded_and_what_left_it_is_gone() -> None:
    store = _store(history=10)
    start = store.version
    for number in range(11):
        store.create(PODS, pod(f"pod-{number}"))
    with pytest.raises(StoreError, match="too old resource version") as refusal:
        store.watch(Selection(PODS), start)
    assert refusal.value.code == 410
    assert len(store.watch(Selection(PODS), start + 1).queue) == 10


@pytest.mark.parametrize("resource", [PODS, NAMESPACES], ids=lambda each: each.plural)
async def test_a_namespace_takes_its_objects_along(resource: Resource) -> None:
    store = _store()
    store.create(NAMESPACES, {"metadata": {"name": "shop"}})
    store.create(PODS, pod("a", "shop"))
    store.delete(NAMESPACES, "", "shop")
    assert not [
        item for each, item in store if each is resource and "shop" in (item["metadata"].get("namespace"), item["metadata"]["name"])
    ]


async def test_old_events_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.sample.kubernetes_store.MAX_EVENTS", 3)
    store = _store()
    for number in range(5):
        store.create(EVENTS, {"metadata": {"name": f"event-{number}"}, "reason": "Started"})
    assert [item["metadata"]["name"] for item in store.list(Selection(EVENTS)).items] == ["event-2", "event-3", "event-4"]
