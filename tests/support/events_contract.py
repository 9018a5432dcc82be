"""What the events receiver does at an API server, as tests. They run against a real server and against our sample one.

A test file subclasses `EventsContract` as `Test...` and gives it a fixture `api`, as for `kubernetes_contract`.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lockgate.batch import Signal
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.components.receivers.raw_k8s_events import RawK8sEventsReceiver
from lockgate.components.receivers.raw_k8s_events.settings import RawK8sEventsSettings
from lockgate.pipeline.contract import Kind
from support import FakeHost, Sink, context
from support.kubernetes_contract import Api

Object = dict[str, Any]


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


def event(name: str, namespace: str = "default", seen: str = "", **more: Any) -> Object:
    """One that the recorder of a kubelet would write; `seen` is when it happened last."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "web-0", "apiVersion": "v1"},
        "reason": "Started",
        "message": f"said by {name}",
        "type": "Normal",
        "firstTimestamp": ago(days=1),
        "lastTimestamp": seen or ago(),
        "eventTime": None,
        "count": 1,
    } | more


def value_of(value: Any) -> Any:
    """What an AnyValue holds."""
    match value.WhichOneof("value"):
        case "kvlist_value":
            return {item.key: value_of(item.value) for item in value.kvlist_value.values}
        case "array_value":
            return [value_of(item) for item in value.array_value.values]
        case None:
            return None
        case kind:
            return getattr(value, kind)


def records(sink: Sink) -> list[Any]:
    resources = [resource for batch in sink.batches for resource in batch.message.resource_logs]
    return [record for resource in resources for scope in resource.scope_logs for record in scope.log_records]


def attributes(sink: Sink) -> list[Object]:
    return [{item.key: value_of(item.value) for item in record.attributes} for record in records(sink)]


def said(sink: Sink) -> list[tuple[str, str]]:
    """(type, name of the event) in order."""
    return [(each["type"], each["object"]["metadata"]["name"]) for each in attributes(sink)]


def names(sink: Sink) -> list[str]:
    return [name for _, name in said(sink)]


@asynccontextmanager
async def stored(directory: Path) -> AsyncIterator[FakeHost]:
    """A host that runs a storage extension."""
    settings = FileStorageSettings(directory=str(directory), create_directory=True)
    async with FileStorageExtension(settings, context("file_storage", Kind.EXTENSION)) as extension:
        host = FakeHost({"file_storage": extension})
        host.components["extensions/file_storage"] = extension
        yield host


def receiver(sink: Any, host: FakeHost, settings: Object) -> RawK8sEventsReceiver:
    parsed = RawK8sEventsSettings.model_validate({"consume_retry_delay": "1ms", **settings})
    made = RawK8sEventsReceiver(parsed, context("raw_k8s_events", Kind.RECEIVER, host=host))
    made.outputs = {Signal.LOGS: sink}
    return made


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class EventsContract:
    @pytest.fixture
    async def namespace(self, api: Api) -> str:
        """One that no other test uses."""
        name = f"events-{uuid.uuid4().hex[:12]}"
        await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    @pytest.fixture
    def settings(self, api: Api, namespace: str, tmp_path: Path, ca_file: str) -> Object:
        (tmp_path / "token").write_text(api.token)
        return {"api_server": api.base_url, "token_file": str(tmp_path / "token"), "ca_file": ca_file, "namespaces": [namespace]}

    @pytest.fixture
    def ca_file(self) -> str:
        return ""

    async def say(self, api: Api, namespace: str, *of: str, **more: Any) -> None:
        for name in of:
            await api.create(f"/api/v1/namespaces/{namespace}/events", event(name, namespace, **more))

    async def test_what_is_created_and_changed_is_handed_on_as_the_api_gives_it(self, api: Api, namespace: str, settings: Object) -> None:
        sink = Sink()
        async with receiver(sink, FakeHost(), settings):
            created = await api.create(f"/api/v1/namespaces/{namespace}/events", event("a", namespace))
            await sink.wait_for(1)
            changed = await api.change(f"/api/v1/namespaces/{namespace}/events/a", {"count": 2})
            await api.delete(f"/api/v1/namespaces/{namespace}/events/a")
            await self.say(api, namespace, "b")
            await sink.wait_for(3)
        assert attributes(sink)[:2] == [{"object": created, "type": "ADDED"}, {"object": changed, "type": "MODIFIED"}]
        assert said(sink)[2:] == [("ADDED", "b")]

    @pytest.mark.parametrize("is_forgotten", [False, True], ids=["history-reaches-back", "history-is-gone"])
    async def test_a_restart_repeats_nothing_and_loses_nothing(
        self, api: Api, namespace: str, settings: Object, tmp_path: Path, is_forgotten: bool
    ) -> None:
        first, second = Sink(), Sink()
        await self.say(api, namespace, "old", seen=ago(minutes=10))
        await self.say(api, namespace, "lately")
        async with stored(tmp_path / "storage") as host, receiver(first, host, settings):
            await first.wait_for(1)
            await self.say(api, namespace, "a")
            await first.wait_for(2)
        await self.say(api, namespace, "b", seen=ago(minutes=50))
        if is_forgotten:
            await api.forget_history()
        async with stored(tmp_path / "storage") as host, receiver(second, host, settings):
            await second.wait_for(1, 30)
            await self.say(api, namespace, "c")
            await second.wait_for(2)
        assert (names(first), names(second)) == (["lately", "a"], ["b", "c"])

    async def test_history_that_is_gone_while_it_watches_costs_nothing(self, api: Api, namespace: str, settings: Object) -> None:
        sink = Sink()
        async with receiver(sink, FakeHost(), settings):
            await self.say(api, namespace, "a")
            await sink.wait_for(1)
            await api.forget_history()
            await self.say(api, namespace, "b")
            await sink.wait_for(2, 60)
        assert names(sink) == ["a", "b"]

    async def test_the_whole_cluster_is_watched_by_default(self, api: Api, namespace: str, settings: Object) -> None:
        sink = Sink()
        async with receiver(sink, FakeHost(), settings | {"namespaces": []}):
            for where in (namespace, "default"):
                await self.say(api, where, f"in-{where}-{namespace}")
            await until(lambda: {f"in-{where}-{namespace}" for where in (namespace, "default")} <= set(names(sink)))
