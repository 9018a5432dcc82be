"""What a client of the Kubernetes API relies on, as tests over plain HTTP. They run against a real server and against our sample one.

A test file subclasses `KubernetesApiContract` as `Test...` and gives it a fixture `api`. The statements were observed on kube-apiserver
1.36.3 with etcd 3.6.8; the docstrings give what it sent. Sources: Kubernetes, "API Concepts"; KEP-3157 (WatchList).
"""

import asyncio
import json
import ssl
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

import pytest
from aiohttp import ClientSession, TCPConnector

Object = dict[str, Any]
Events = AsyncIterator[Object]

INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}
WATCH_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}


class Api(Protocol):
    """An API server whose cluster is ours alone."""

    @property
    def base_url(self) -> str: ...
    @property
    def ssl(self) -> ssl.SSLContext: ...
    @property
    def token(self) -> str: ...

    async def create(self, collection: str, manifest: Object) -> Object:
        """Adds an object to a collection's path (with its `status`, if it has one)."""

    async def change(self, path: str, merge_patch: Object) -> Object:
        """Applies a JSON merge patch to an object."""

    async def delete(self, path: str) -> None:
        """Removes an object at once."""

    async def forget_history(self) -> None:
        """Makes each resourceVersion and continue token up to now too old; may end watches."""


class KubernetesApiContract:
    @pytest.fixture
    async def client(self, api: Api) -> AsyncIterator[ClientSession]:
        headers = {"Authorization": f"Bearer {api.token}"}
        async with ClientSession(api.base_url, headers=headers, connector=TCPConnector(ssl=api.ssl), read_bufsize=2**20) as client:
            yield client

    @pytest.fixture
    async def pods(self, api: Api) -> str:
        """The path of the pods of a namespace that no other test uses."""
        namespace = f"contract-{uuid.uuid4().hex[:12]}"
        await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        return f"/api/v1/namespaces/{namespace}/pods"

    async def test_a_list_has_its_own_version_and_items_without_kind(self, api: Api, client: ClientSession, pods: str) -> None:
        """`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"207"},"items":[{"metadata":{...},"spec":{...},"status":{...}}]}`.

        The version counts changes of every kind of object, so that the list's may lie above each item's.
        """
        await create_pods(api, pods, "b", "a")
        answer = await listed(client, pods)
        assert (answer["kind"], answer["apiVersion"], set(answer["metadata"])) == ("PodList", "v1", {"resourceVersion"})
        assert names(answer) == ["a", "b"]
        assert all(set(item) == {"metadata", "spec", "status"} for item in answer["items"])
        assert int(answer["metadata"]["resourceVersion"]) >= max(version(item) for item in answer["items"])

    async def test_an_empty_list_has_items(self, client: ClientSession, pods: str) -> None:
        assert (await listed(client, pods))["items"] == []

    async def test_a_pod_has_what_the_server_and_the_kubelet_add(self, api: Api, client: ClientSession, pods: str) -> None:
        status = {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}],
            "hostIP": "10.1.0.1",
            "hostIPs": [{"ip": "10.1.0.1"}],
        }
        container = {"name": "main", "image": "registry/web:1", "imageID": "sha256:1", "ready": True, "restartCount": 2}
        containers = [container | {"containerID": "containerd://0123", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}]
        manifest = pod("a", status | {"containerStatuses": containers})
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": "web-1",
            "uid": "0-1",
            "controller": True,
            "blockOwnerDeletion": True,
        }
        manifest["metadata"] |= {"annotations": {"team": "x"}, "ownerReferences": [owner]}
        await api.create(pods, manifest)
        [item] = (await listed(client, pods))["items"]
        metadata = item["metadata"]
        assert {"uid", "resourceVersion", "creationTimestamp", "managedFields"} <= set(metadata)
        assert metadata["namespace"] == pods.split("/")[4]
        assert (metadata["labels"], metadata["annotations"], metadata["ownerReferences"]) == ({"app": "web"}, {"team": "x"}, [owner])
        assert metadata["managedFields"][0].keys() == {"manager", "operation", "apiVersion", "time", "fieldsType", "fieldsV1"}
        assert item["spec"]["nodeName"] == "node-1"
        assert item["status"].items() >= status.items()
        assert item["status"]["containerStatuses"] == [containers[0] | {"lastState": {}}]

    async def test_pages_have_one_version_and_together_each_item_once(self, api: Api, client: ClientSession, pods: str) -> None:
        """`"metadata":{"resourceVersion":"207","continue":"eyJ2Ij...","remainingItemCount":3}`; on the last page only the version."""
        await create_pods(api, pods, *"abcde")
        pages = [await listed(client, pods, limit="2")]
        while token := pages[-1]["metadata"].get("continue"):
            pages.append(await listed(client, pods, **{"limit": "2", "continue": token}))
        assert [names(page) for page in pages] == [["a", "b"], ["c", "d"], ["e"]]
        assert [page["metadata"].get("remainingItemCount") for page in pages] == [3, 1, None]
        assert len({page["metadata"]["resourceVersion"] for page in pages}) == 1
        assert set(pages[-1]["metadata"]) == {"resourceVersion"}

    async def test_a_later_page_shows_what_was_there_at_the_first(self, api: Api, client: ClientSession, pods: str) -> None:
        await create_pods(api, pods, *"abc")
        first = await listed(client, pods, limit="1")
        await api.delete(f"{pods}/b")
        await create_pods(api, pods, "d")
        rest = await listed(client, pods, **{"continue": first["metadata"]["continue"]})
        assert names(rest) == ["b", "c"]

    async def test_pages_by_selector_do_not_count_what_remains(self, api: Api, client: ClientSession, pods: str) -> None:
        await create_pods(api, pods, "a", "b")
        page = await listed(client, pods, limit="1", labelSelector="app=web")
        assert set(page["metadata"]) == {"resourceVersion", "continue"}

    async def test_a_list_at_version_zero_ignores_its_limit(self, api: Api, client: ClientSession, pods: str) -> None:
        await create_pods(api, pods, *"abc")
        await listed(client, pods)  # has what answers from memory catch up
        page = await listed(client, pods, limit="1", resourceVersion="0")
        assert names(page) == ["a", "b", "c"]
        assert "continue" not in page["metadata"]

    @pytest.mark.parametrize(
        ("parameter", "selector", "selected"),
        [
            pytest.param("labelSelector", "app=web", ["a"], id="equals"),
            pytest.param("labelSelector", "app!=web,tier", ["b"], id="differs-and-has"),
            pytest.param("labelSelector", "app in (web,db),!tier", ["a"], id="one-of-and-has-not"),
            pytest.param("fieldSelector", "spec.nodeName=node-2", ["b"], id="node"),
            pytest.param("fieldSelector", "metadata.name!=a", ["b"], id="not-name"),
            pytest.param("fieldSelector", "status.phase=Running,spec.nodeName=node-1", ["a"], id="both"),
        ],
    )
    async def test_selectors_select(
        self, api: Api, client: ClientSession, pods: str, parameter: str, selector: str, selected: list[str]
    ) -> None:
        await api.create(pods, pod("a", {"phase": "Running"}))
        await api.create(pods, pod("b", {"phase": "Running"}, node="node-2", labels={"app": "db", "tier": "back"}))
        assert names(await listed(client, pods, **{parameter: selector})) == selected

    async def test_a_watch_from_a_list_tells_each_later_change_once_in_order(self, api: Api, client: ClientSession, pods: str) -> None:
        """`{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{...},"spec":{...},"status":{...}}}` and a newline.

        DELETED shows the last state, at the version of the deletion. The real server precedes it with a MODIFIED that sets
        deletionTimestamp; one that changes nothing is not told.
        """
        await create_pods(api, pods, "a")
        start = (await listed(client, pods))["metadata"]["resourceVersion"]
        async with watching(client, pods, resourceVersion=start) as events:
            await create_pods(api, pods, "b")
            await api.change(f"{pods}/a", {"metadata": {"labels": {"app": "db"}}})
            await api.change(f"{pods}/a", {"metadata": {"labels": {"app": "db"}}})
            await api.delete(f"{pods}/a")
            seen = [await anext(events)]
            while seen[-1]["type"] != "DELETED":
                seen.append(await anext(events))
        told = [(event["type"], event["object"]["metadata"]["name"]) for event in seen]
        versions = [version(event["object"]) for event in seen]
        assert told[:2] == [("ADDED", "b"), ("MODIFIED", "a")]
        assert set(told[2:-1]) <= {("MODIFIED", "a")}
        assert all("deletionTimestamp" in event["object"]["metadata"] for event in seen[2:-1])
        assert told[-1] == ("DELETED", "a")
        assert seen[-1]["object"]["metadata"]["labels"] == {"app": "db"}
        assert all(set(event) == {"type", "object"} and event["object"]["kind"] == "Pod" for event in seen)
        assert versions == sorted(set(versions))
        assert versions[0] > int(start)

    @pytest.mark.parametrize("parameters", [{}, {"resourceVersion": "0"}], ids=["unset", "zero"])
    async def test_a_watch_from_nowhere_begins_with_what_is_there(
        self, api: Api, client: ClientSession, pods: str, parameters: dict[str, str]
    ) -> None:
        await create_pods(api, pods, "b", "a")
        await listed(client, pods)
        async with watching(client, pods, **parameters) as events:
            first = [await anext(events), await anext(events)]
        assert [(event["type"], event["object"]["metadata"]["name"]) for event in first] == [("ADDED", "a"), ("ADDED", "b")]

    async def test_a_watch_ends_cleanly_after_its_timeout(self, client: ClientSession, pods: str) -> None:
        start = (await listed(client, pods))["metadata"]["resourceVersion"]
        async with watching(client, pods, resourceVersion=start, timeoutSeconds="1") as events:
            assert [event async for event in events] == []

    async def test_a_bookmark_before_the_timeout_carries_a_version_alone(self, api: Api, client: ClientSession, pods: str) -> None:
        """`{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"238"},"spec":{"containers":null},"status":{}}}`.

        One comes about every minute, and one shortly before the end of a watch in which something happened.
        """
        start = (await listed(client, pods))["metadata"]["resourceVersion"]
        async with watching(client, pods, resourceVersion=start, timeoutSeconds="4", allowWatchBookmarks="true") as events:
            await create_pods(api, pods, "a")
            added, *bookmarks = [event async for event in events]
        assert added["type"] == "ADDED"
        assert [event["type"] for event in bookmarks] == ["BOOKMARK"] * len(bookmarks)
        assert set(bookmarks[-1]["object"]["metadata"]) == {"resourceVersion"}
        assert version(bookmarks[-1]["object"]) >= version(added["object"])

    async def test_without_allow_watch_bookmarks_none_comes(self, api: Api, client: ClientSession, pods: str) -> None:
        await create_pods(api, pods, "a")
        async with watching(client, pods, resourceVersion="0", timeoutSeconds="4") as events:
            assert {event["type"] async for event in events} == {"ADDED"}

    async def test_a_watch_list_marks_the_end_of_what_was_there_and_goes_on(self, api: Api, client: ClientSession, pods: str) -> None:
        """The mark is a bookmark with `"metadata":{"resourceVersion":"213","annotations":{"k8s.io/initial-events-end":"true"}}`."""
        await create_pods(api, pods, "b", "a")
        async with watching(client, pods, **WATCH_LIST) as events:
            *initial, mark = [await anext(events) for _ in range(3)]
            await create_pods(api, pods, "c")
            later = await anext(events)
        assert [(event["type"], event["object"]["metadata"]["name"]) for event in initial] == [("ADDED", "a"), ("ADDED", "b")]
        assert (mark["type"], mark["object"]["kind"], mark["object"]["metadata"]["annotations"]) == ("BOOKMARK", "Pod", INITIAL_EVENTS_END)
        assert version(mark["object"]) >= max(version(event["object"]) for event in initial)
        assert (later["type"], later["object"]["metadata"]["name"]) == ("ADDED", "c")
        assert version(later["object"]) > version(mark["object"])

    async def test_a_watch_list_of_nothing_is_its_mark(self, client: ClientSession, pods: str) -> None:
        async with watching(client, pods, **WATCH_LIST) as events:
            assert (await anext(events))["object"]["metadata"]["annotations"] == INITIAL_EVENTS_END

    async def test_a_watch_list_without_version_match_is_invalid(self, client: ClientSession, pods: str) -> None:
        async with client.get(pods, params={"watch": "1", "sendInitialEvents": "true"}) as response:
            assert (response.status, (await response.json())["reason"]) == (422, "Invalid")

    async def test_a_selecting_watch_deletes_what_stops_matching_and_adds_what_begins_to(
        self, api: Api, client: ClientSession, pods: str
    ) -> None:
        """The DELETED object has the labels that matched, at the version of the change."""
        await create_pods(api, pods, "a")
        start = (await listed(client, pods))["metadata"]["resourceVersion"]
        async with watching(client, pods, resourceVersion=start, labelSelector="app=web") as events:
            left = await api.change(f"{pods}/a", {"metadata": {"labels": {"app": "db"}}})
            back = await api.change(f"{pods}/a", {"metadata": {"labels": {"app": "web"}}})
            seen = [await anext(events), await anext(events)]
        assert [(event["type"], version(event["object"])) for event in seen] == [("DELETED", version(left)), ("ADDED", version(back))]
        assert [event["object"]["metadata"]["labels"] for event in seen] == [{"app": "web"}, {"app": "web"}]

    async def test_a_watch_from_a_forgotten_version_is_one_error_in_a_good_answer(self, api: Api, client: ClientSession, pods: str) -> None:
        """`{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
        "message":"too old resource version: 206 (211)","reason":"Expired","code":410}}`, and the answer ends.
        """
        await create_pods(api, pods, "a")
        old = (await listed(client, pods))["metadata"]["resourceVersion"]
        await create_pods(api, pods, "b")
        await api.forget_history()
        async with watching(client, pods, resourceVersion=old) as events:
            [error] = [event async for event in events]
        assert error["type"] == "ERROR"
        assert is_expired(error["object"])
        async with watching(client, pods, resourceVersion=old, **WATCH_LIST) as events:
            assert [(await anext(events))["type"] for _ in range(3)] == ["ADDED", "ADDED", "BOOKMARK"]
        assert names(await listed(client, pods, resourceVersion=old)) == ["a", "b"]  # not older than: today's will do

    async def test_a_forgotten_continue_token_is_gone_and_brings_one_that_goes_on_inconsistently(
        self, api: Api, client: ClientSession, pods: str
    ) -> None:
        """410 `{"kind":"Status","apiVersion":"v1","metadata":{"continue":"eyJ2Ij..."},"status":"Failure",
        "message":"The provided continue parameter is too old to display a consistent list result. ...","reason":"Expired","code":410}`.
        """
        await create_pods(api, pods, *"abc")
        first = await listed(client, pods, limit="1")
        await api.delete(f"{pods}/b")
        await api.forget_history()
        async with client.get(pods, params={"limit": "1", "continue": first["metadata"]["continue"]}) as response:
            status = await response.json()
        assert (response.status, is_expired(status)) == (410, True)
        rest = await listed(client, pods, **{"limit": "1", "continue": status["metadata"]["continue"]})
        assert names(rest) == ["c"]
        assert version(rest) > version(first)

    async def test_a_list_of_a_future_version_is_told_to_come_back(self, client: ClientSession, pods: str) -> None:
        """After three seconds: 504 `{"kind":"Status",...,"message":"Timeout: Too large resource version: 99999, current: 217",
        "reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge",...}],"retryAfterSeconds":1},"code":504}`.
        """
        async with client.get(pods, params={"resourceVersion": "1000000000"}) as response:
            status = await response.json()
        assert (response.status, status["reason"], status["details"]["retryAfterSeconds"]) == (504, "Timeout", 1)
        assert status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"

    @pytest.mark.parametrize(
        ("parameters", "code"),
        [
            pytest.param({"resourceVersion": "abc"}, 400, id="version"),
            pytest.param({"continue": "abc"}, 400, id="continue"),
            pytest.param({"fieldSelector": "spec.nothing=1"}, 400, id="field"),
            pytest.param({"labelSelector": "a=b=c"}, 400, id="label"),
        ],
    )
    async def test_what_it_cannot_read_is_a_bad_request(
        self, client: ClientSession, pods: str, parameters: dict[str, str], code: int
    ) -> None:
        async with client.get(pods, params=parameters) as response:
            status = await response.json()
        assert (response.status, status["kind"], status["reason"], status["code"]) == (code, "Status", "BadRequest", code)

    @pytest.mark.parametrize(
        ("authorization", "code", "reason"),
        [pytest.param("", 403, "Forbidden", id="anonymous"), pytest.param("Bearer nobody", 401, "Unauthorized", id="unknown-token")],
    )
    async def test_strangers_are_refused(self, client: ClientSession, pods: str, authorization: str, code: int, reason: str) -> None:
        async with client.get(pods, headers={"Authorization": authorization}) as response:
            status = await response.json()
        assert (response.status, status["kind"], status["reason"]) == (code, "Status", reason)

    async def test_what_is_not_there_is_not_found(self, client: ClientSession, pods: str) -> None:
        async with client.get(f"{pods}/none") as response:
            status = await response.json()
        assert (response.status, status["reason"], status["details"]) == (404, "NotFound", {"name": "none", "kind": "pods"})


def pod(name: str, status: Object | None = None, node: str = "node-1", labels: dict[str, str] | None = None) -> Object:
    """A pod's manifest; app=web unless other labels are given."""
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "registry/web:1"}]}
    manifest: Object = {"metadata": {"name": name, "labels": labels or {"app": "web"}}, "spec": spec}
    return manifest | ({"status": status} if status else {})


async def create_pods(api: Api, pods: str, *of: str) -> None:
    for name in of:
        await api.create(pods, pod(name))


def names(answer: Object) -> list[str]:
    return [item["metadata"]["name"] for item in answer["items"]]


def version(of: Object) -> int:
    return int(of["metadata"]["resourceVersion"])


def is_expired(status: Object) -> bool:
    return (status["kind"], status["status"], status["reason"], status["code"]) == ("Status", "Failure", "Expired", 410)


async def listed(client: ClientSession, path: str, **parameters: str) -> Object:
    async with client.get(path, params=parameters) as response:
        assert response.status == 200, await response.text()
        answer: Object = await response.json()
    return answer


@asynccontextmanager
async def watching(client: ClientSession, path: str, **parameters: str) -> AsyncIterator[Events]:
    """The events of a watch; each must come within ten seconds."""
    async with client.get(path, params={"watch": "1"} | parameters) as response:
        assert response.status == 200, await response.text()

        async def events() -> AsyncGenerator[Object, None]:
            while True:
                async with asyncio.timeout(10):
                    line = await response.content.readline()
                if not line:
                    return
                yield json.loads(line)

        async with aclosing(events()) as stream:
            yield stream
