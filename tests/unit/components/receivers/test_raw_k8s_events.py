"""The events receiver against the sample API server over HTTP, with a real file storage."""

import asyncio
import copy
import itertools
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import FakeHost, Sink
from support.events_contract import ago, attributes, event, names, records, said, stored, until
from support.events_contract import receiver as receiver_of
from support.kubernetes import Faults, apply, sample

from lockgate.batch import Batch, Origin
from lockgate.components.receivers.raw_k8s_events import RawK8sEventsReceiver, receiver
from lockgate.components.receivers.raw_k8s_events.settings import RawK8sEventsSettings
from lockgate.kit.clock import SystemClock
from lockgate.kit.ranges import Ranges
from lockgate.kube import feed, reflector
from lockgate.kube.access import Access
from lockgate.kube.resources import EVENTS
from lockgate.pipeline.contract import Held
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Connect, Kubernetes
from lockgate.sample.kubernetes_store import ObjectStore
from lockgate.wire import otlp

WATCHING = {"watch": "1"}
LISTING = {"limit": str(reflector.PAGE_LIMIT)}


def say(store: ObjectStore, *names: str, **more: Any) -> list[int]:
    """Creates events; their versions."""
    return [int(store.create(EVENTS, event(name, **more))["metadata"]["resourceVersion"]) for name in names]


def make(access: Access, sink: Any, host: FakeHost, **settings: Any) -> RawK8sEventsReceiver:
    return receiver_of(sink, host, {"auth_type": "none", "api_server": access.url, **settings})


def position(host: FakeHost) -> int:
    """Where the next start would begin, as the queues were told."""
    return dict(host.positions.get("raw_k8s_events", {})).get("raw_k8s_events:*", 0)


async def test_a_record_is_the_event_as_sumo_logics_receiver_gives_it() -> None:
    sink = Sink()
    async with sample() as (store, access):
        given = event("web-0.1", seen="2099-01-02T03:04:05Z", type="Warning", message="Back-off", count=7, related=None)
        given["source"] = {"component": "kubelet", "host": "node-1"}
        stored_event = store.create(EVENTS, given)
        async with make(access, sink, FakeHost()):
            await sink.wait_for(1)
    [record] = records(sink)
    assert attributes(sink) == [{"object": stored_event, "type": "ADDED"}]
    assert (stored_event["kind"], stored_event["apiVersion"]) == ("Event", "v1")
    assert (record.body.string_value, record.severity_number, record.severity_text) == ("Back-off", 13, "Warning")
    assert record.time_unix_nano == int(datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()) * 10**9
    assert abs(record.observed_time_unix_nano / 1e9 - datetime.now(UTC).timestamp()) < 60
    assert not sink.batches[0].message.resource_logs[0].resource.attributes
    assert otlp.validate(sink.batches[0].payload, 0) == 1


@pytest.mark.parametrize(
    ("more", "time", "severity"),
    [
        pytest.param({"eventTime": "2099-01-01T00:00:00.000123Z"}, "2099-01-01T00:00:00.000123", (9, "Normal"), id="event-time-is-first"),
        pytest.param({"lastTimestamp": None, "firstTimestamp": "2099-01-01T00:00:03Z"}, "2099-01-01T00:00:03", (9, "Normal"), id="first"),
        pytest.param({"type": "normal"}, "2099-01-01T00:00:01", (9, "normal"), id="case-of-type"),
        pytest.param({"type": "Odd"}, "2099-01-01T00:00:01", (0, ""), id="other-type"),
    ],
)
async def test_times_and_severities_are_taken_in_its_order(more: dict[str, Any], time: str, severity: tuple[int, str]) -> None:
    sink = Sink()
    async with sample() as (store, access):
        store.create(EVENTS, event("a", seen="2099-01-01T00:00:01Z") | more)
        async with make(access, sink, FakeHost()):
            await sink.wait_for(1)
    [record] = records(sink)
    since = datetime.fromisoformat(time).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    assert record.time_unix_nano == (since // timedelta(microseconds=1)) * 1000
    assert (record.severity_number, record.severity_text) == severity


async def test_changes_are_handed_on_in_order_and_deletions_are_not() -> None:
    sink, faults = Sink(), Faults()
    async with sample(faults=faults) as (store, access), make(access, sink, FakeHost()):
        await faults.asked(**WATCHING)
        say(store, "a", "b")
        store.merge(EVENTS, "default", "a", {"count": 2})
        store.delete(EVENTS, "default", "b")
        say(store, "c")
        await sink.wait_for(4)
    assert said(sink) == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("ADDED", "c")]


async def test_without_a_position_only_events_that_happened_lately_are_read() -> None:
    sink = Sink()
    async with sample() as (store, access):
        say(store, "old", seen=ago(minutes=10))
        say(store, "new", seen=ago(seconds=10))
        series = {"count": 3, "lastObservedTime": ago(seconds=10)}
        store.create(EVENTS, event("series", seen=ago(hours=1), series=series))
        async with make(access, sink, FakeHost(), max_event_age="5m"):
            await sink.wait_for(2)
            say(store, "late", seen=ago(hours=2))  # what happens from now on is new, whatever its times say
            await sink.wait_for(3)
    assert names(sink) == ["new", "series", "late"]


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["history-reaches-back", "history-is-gone"])
async def test_a_restart_goes_on_where_it_was_and_repeats_nothing(tmp_path: Path, is_forgotten: bool) -> None:
    first, second = Sink(), Sink()
    async with sample() as (store, access):
        async with stored(tmp_path) as host, make(access, first, host):
            say(store, "a", "b")
            await first.wait_for(2)
        say(store, "c", seen=ago(minutes=50))
        if is_forgotten:
            store.compact()
        async with stored(tmp_path) as host, make(access, second, host):
            await second.wait_for(1)
            say(store, "d")
            await second.wait_for(2)
    assert (names(first), names(second)) == (["a", "b"], ["c", "d"])


async def test_history_that_is_gone_while_it_watches_costs_and_repeats_nothing() -> None:
    sink, faults = Sink(), Faults()
    async with sample(faults=faults) as (store, access), make(access, sink, FakeHost()):
        await faults.asked(**WATCHING)
        say(store, "a")
        await sink.wait_for(1)
        faults.cut()
        say(store, "b", "c")
        store.compact()
        await faults.asked(**LISTING)
        await sink.wait_for(3)
        await faults.asked(**WATCHING)
        say(store, "d")
        await sink.wait_for(4)
    assert sorted(names(sink)) == ["a", "b", "c", "d"]


async def test_a_position_moves_only_when_the_events_are_taken(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Closed:
        async def consume(self, batch: Batch) -> None:
            gate.set()
            await asyncio.Event().wait()

    second = Sink()
    async with sample() as (store, access):
        async with stored(tmp_path) as host:
            made = make(access, Closed(), host)
            task = asyncio.create_task(made.__aenter__())
            await task
            say(store, "a")
            await asyncio.wait_for(gate.wait(), 10)
            for task in list(made._spawned):  # killed: it never hears what became of the batch
                task.cancel()
            await made.__aexit__(None, None, None)
        async with stored(tmp_path) as host, make(access, second, host):
            await second.wait_for(1)
    assert names(second) == ["a"]


async def test_what_cannot_be_taken_now_is_kept_and_what_is_refused_for_good_is_counted(tmp_path: Path) -> None:
    sink = Sink(Retryable("busy"), Retryable("busy"), Permanent("no"))
    async with sample() as (store, access), stored(tmp_path) as host:
        made = make(access, sink, host)
        async with made:
            [version] = say(store, "refused")
            await until(lambda: made.context.metrics.value("lockgate_k8s_events_dropped") == 1)
            say(store, "taken")
            await sink.wait_for(1)
            assert "delivery" not in made.context.status.blocked
        assert position(host) > version
    assert (names(sink), sink.calls) == (["taken"], 4)


async def test_after_so_many_tries_as_told_events_are_given_up() -> None:
    sink = Sink(*(Retryable("busy") for _ in range(4)))
    async with sample() as (store, access):
        made = make(access, sink, FakeHost(), consume_max_retries=3)
        async with made:
            say(store, "a")
            await until(lambda: made.context.metrics.value("lockgate_k8s_events_dropped") == 1)
            say(store, "b")
            await sink.wait_for(1)
    assert (names(sink), sink.calls) == (["b"], 5)


async def test_it_stops_although_nobody_takes_its_events_and_reads_them_again(tmp_path: Path) -> None:
    busy, second = Sink(*(Retryable("busy") for _ in range(10_000))), Sink()
    async with sample() as (store, access):
        async with stored(tmp_path) as host, asyncio.timeout(20), make(access, busy, host):
            say(store, "a")
            await until(lambda: busy.calls)
        async with stored(tmp_path) as host, make(access, second, host):
            await second.wait_for(1)
    assert names(second) == ["a"]


async def test_namespaces_are_watched_one_by_one_each_with_its_own_position(tmp_path: Path) -> None:
    first, second = Sink(), Sink()
    async with sample() as (store, access):
        for namespace in ("shop", "data"):
            apply(store, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        async with stored(tmp_path) as host, make(access, first, host, namespaces=["shop", "data", "shop"]):
            for namespace in ("shop", "default", "data"):
                say(store, f"in-{namespace}", namespace=namespace)
            await first.wait_for(2)
        say(store, "later", namespace="data")
        async with stored(tmp_path) as host, make(access, second, host, namespaces=["shop", "data"]):
            await second.wait_for(1)
    assert (sorted(names(first)), names(second)) == (["in-data", "in-shop"], ["later"])


async def test_a_server_that_was_restored_to_an_older_state_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = Sink(), Sink(), Sink()
    async with sample() as (store, access), stored(tmp_path) as host, make(access, first, host):
        say(store, *(f"e{number}" for number in range(50)))
        await first.wait_for(50)
    restored = ObjectStore(SystemClock())
    say(restored, "lately")
    say(restored, "old", seen=ago(hours=1))
    caplog.set_level(logging.ERROR)
    async with sample(restored) as (store, access):
        async with stored(tmp_path) as host, make(access, second, host):
            await second.wait_for(1)
            say(store, "next")
            await second.wait_for(2)
        say(store, "after")
        async with stored(tmp_path) as host:
            # A queue on disk still knows the versions of the history that is no more.
            host.holds = Held({"raw_k8s_events:*": Ranges([(0, 60)])})
            async with make(access, third, host):
                await third.wait_for(1)
    assert (names(second), names(third)) == (["lately", "next"], ["after"])
    assert "restored from a backup" in caplog.text


async def test_what_waits_is_bounded_however_slow_the_pipeline_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "_WAITING_BYTES", 20_000)
    monkeypatch.setattr(receiver, "_BATCH_BYTES", 5_000)
    go, got = asyncio.Event(), Sink()

    class Slow:
        async def consume(self, batch: Batch) -> None:
            await go.wait()
            await got.consume(batch)

    async with sample() as (store, access):
        made = make(access, Slow(), FakeHost())
        async with made:
            say(store, *(f"e{number:03}" for number in range(200)))
            await until(lambda: made.context.metrics.value("lockgate_k8s_events_waiting_bytes") >= 20_000)
            assert made.context.metrics.value("lockgate_k8s_events_waiting_bytes") < 30_000
            go.set()
            await got.wait_for(200)
    assert sorted(names(got)) == [f"e{number:03}" for number in range(200)] and len(got.batches) > 10


async def test_a_list_that_was_broken_off_is_not_read_twice_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGE_LIMIT", 2)
    monkeypatch.setattr(receiver, "_SAVE_SECONDS", 0.0)
    first, second, faults = Sink(), Sink(), Faults()
    async with sample(faults=faults) as (store, access):
        say(store, *"abcde")

        async def broken(request: Any) -> Any:
            await first.wait_for(2)
            request.transport.abort()
            await asyncio.Event().wait()

        async with stored(tmp_path) as host, make(access, first, host):
            await faults.asked(limit="2")
            faults.answers.append(broken)
            await first.wait_for(2)
            await until(lambda: not faults.answers)
        taken = names(first)
        faults.answers.clear()
        async with stored(tmp_path) as host, make(access, second, host):
            await second.wait_for(5 - len(taken))
            say(store, "f")
            await second.wait_for(6 - len(taken))
    assert sorted(taken + names(second)) == list("abcdef")


async def test_what_a_queue_on_disk_holds_is_not_read_again_although_the_position_was_not_saved(tmp_path: Path) -> None:
    sink = Sink()
    async with sample() as (store, access), stored(tmp_path) as host:
        versions = say(store, "a", "b", "c")
        host.holds = Held({"raw_k8s_events:*": Ranges([(versions[0], versions[0] + 1), (versions[2], versions[2] + 1)])})
        async with make(access, sink, host):
            await sink.wait_for(1)
            say(store, "d")
            await sink.wait_for(2)
    assert names(sink) == ["b", "d"]
    assert [origin.source for batch in sink.batches for origin in batch.origins] == ["raw_k8s_events:*"] * 2


async def test_origins_cover_the_history_without_gaps_or_overlaps() -> None:
    sink, faults = Sink(), Faults()
    async with sample(faults=faults) as (store, access), make(access, sink, FakeHost()):
        await faults.asked(**WATCHING)
        for number, name in enumerate("abc", 1):
            apply(store, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"other-{name}"}})
            say(store, name)
            await sink.wait_for(number)
    origins = [origin for batch in sink.batches for origin in batch.origins]
    assert [(origin.lines, origin.records) for origin in origins] == [(1, 1)] * 3
    assert all(one.end == other.start for one, other in itertools.pairwise(origins))
    assert len({batch.id for batch in sink.batches}) == 3


@pytest.mark.parametrize("is_at_start", [True, False], ids=["lost-before-the-start", "lost-while-it-runs"])
async def test_what_a_queue_lost_is_read_again_as_far_as_the_server_shows_it_and_the_queue_is_told(is_at_start: bool) -> None:
    sink, faults, host = Sink(), Faults(), FakeHost()
    async with sample(faults=faults) as (store, access):
        versions = say(store, "a", "b", "c")
        lost = Origin("raw_k8s_events:*", versions[0], versions[2])
        if is_at_start:
            host.holds = Held(
                {"raw_k8s_events:*": Ranges([(0, versions[0]), (versions[2], versions[2] + 1)])},
                {lost.source: Ranges([(lost.start, lost.end)])},
            )
        made = make(access, sink, host)
        async with made:
            await faults.asked(**WATCHING)
            if not is_at_start:
                await sink.wait_for(3)
                sink.batches.clear()
                store.delete(EVENTS, "default", "b")
                faults.requests.clear()
                made.give_back([lost])
                await faults.asked(**WATCHING)
            say(store, "d")
            await until(lambda: "d" in names(sink))
    assert sorted(names(sink)) == (["a", "b", "d"] if is_at_start else ["a", "d"])
    told = Ranges((origin.start, origin.end) for batch in sink.batches for origin in batch.origins)
    assert not told.missing(lost.start, lost.end)


async def test_a_reload_goes_on_without_a_storage() -> None:
    first, second, host = Sink(), Sink(), FakeHost()
    async with sample() as (store, access):
        async with make(access, first, host):
            say(store, "a")
            await first.wait_for(1)
        say(store, "b", seen=ago(hours=1))
        async with make(access, second, host):
            await second.wait_for(1)
    assert (names(first), names(second)) == (["a"], ["b"])


async def test_a_storage_that_a_reload_puts_in_the_place_of_another_gets_the_position(tmp_path: Path) -> None:
    sink = Sink()
    async with sample() as (store, access), stored(tmp_path / "new") as new:
        async with stored(tmp_path / "old") as host:
            made = make(access, sink, host)
            await made.__aenter__()
            say(store, "a")
            await sink.wait_for(1)
        host.components["extensions/file_storage"] = new.components["extensions/file_storage"]
        say(store, "b")
        await sink.wait_for(2)
        await made.__aexit__(None, None, None)
        new.left.clear()
        say(store, "c", seen=ago(hours=1))
        async with make(access, sink, new):
            await sink.wait_for(3)
    assert names(sink) == ["a", "b", "c"]


async def test_a_damaged_position_is_told_and_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    async with sample() as (store, access), stored(tmp_path) as host:
        host.extension("file_storage").storage("receivers/raw_k8s_events").save(b"no json")
        say(store, "old", seen=ago(hours=1))
        say(store, "new")
        async with make(access, sink, host):
            await sink.wait_for(1)
    assert names(sink) == ["new"] and "the position cannot be used" in caplog.text


async def test_the_storage_that_runs_is_used_and_of_several_one_must_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with sample() as (store, access), stored(tmp_path / "a") as host, stored(tmp_path / "b") as other:
        host.components["extensions/other"] = other.extension("file_storage")
        with pytest.raises(LookupError, match="several storage extensions run"):
            async with make(access, Sink(), host):
                pass
        sink = Sink()
        async with make(access, sink, host, storage="file_storage"):
            say(store, "a")
            await sink.wait_for(1)
        assert (tmp_path / "a" / "receivers~002Fraw_k8s_events" / "state.1").exists()
        async with make(access, Sink(), FakeHost()):
            pass
    assert "no storage: after a restart" in caplog.text


async def test_a_permission_that_lacks_is_named_and_blocks_until_it_is_given() -> None:
    sink, store, allowed = Sink(), ObjectStore(SystemClock()), ["list"]
    async with sample(store, may=lambda user, verb, resource, namespace: verb in allowed) as (_, access):
        made = make(access, sink, FakeHost(), namespaces=["default"])
        async with made:
            await until(lambda: "events of default" in made.context.status.blocked)
            [(reason, _)] = made.context.status.blocked.values()
            assert 'grant this service account the verb "watch" on resource "events"' in reason and "namespace default" in reason
            say(store, "a")
            allowed.append("watch")
            await sink.wait_for(1)
            assert not made.context.status.blocked
    assert names(sink) == ["a"]


async def test_it_begins_at_the_version_that_it_is_told_where_it_knows_none() -> None:
    sink = Sink()
    async with sample() as (store, access):
        versions = say(store, "a", "b", "c", seen=ago(hours=1))
        async with make(access, sink, FakeHost(), resource_version=versions[0]):
            await sink.wait_for(2)
    assert names(sink) == ["b", "c"]


async def test_an_event_that_nests_without_end_is_text_from_some_depth_on() -> None:
    sink, deep = Sink(), dict[str, Any]()
    inner = deep
    for _ in range(100):
        inner["f"] = inner = {}
    async with sample() as (store, access):
        store.create(EVENTS, event("deep") | {"extra": copy.deepcopy(deep)})
        async with make(access, sink, FakeHost()):
            await sink.wait_for(1)
    assert names(sink) == ["deep"] and otlp.validate(sink.batches[0].payload, 0) == 1


def test_it_needs_to_list_and_watch_events_where_it_reads_them_and_nothing_else() -> None:
    def asked(**settings: Any) -> list[tuple[Any, ...]]:
        parsed = RawK8sEventsSettings.model_validate({"auth_type": "none", "api_server": "http://127.0.0.1:6443", **settings})
        assert [need.port for need in parsed.needs() if isinstance(need, Connect)] == [6443]
        return [(it.verbs, it.group, it.resource, it.namespace) for it in parsed.needs() if isinstance(it, Kubernetes)]

    assert asked() == [(("list", "watch"), "", "events", "")]
    assert asked(namespaces=["a", "b"]) == [(("list", "watch"), "", "events", "a"), (("list", "watch"), "", "events", "b")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"namespaces": ["kube-*"]}, "no namespace's name", id="pattern"),
        pytest.param({"max_event_age": "-1s"}, "greater than or equal", id="age"),
        pytest.param({"consume_retry_delay": "0s"}, "greater than 0", id="delay"),
        pytest.param({"consume_max_retries": -1}, "greater than or equal", id="retries"),
        pytest.param({"auth_type": "tls"}, "kubeConfig", id="auth"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RawK8sEventsSettings.model_validate(settings)


def test_giving_up_is_warned_of() -> None:
    assert ["consume_max_retries" in text for text in RawK8sEventsSettings(consume_max_retries=20).warnings()] == [True]
    assert not list(RawK8sEventsSettings().warnings())
