"""The journald receiver on real journal files, held against journalctl on the same files."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import ValidationError
from support import FakeHost, Sink, context
from support.journal import journalctl, needs_journal, options, write

from lockgate.batch import Signal
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.components.receivers.journald import JournaldReceiver
from lockgate.components.receivers.journald.journal import Journal
from lockgate.components.receivers.journald.records import Records
from lockgate.components.receivers.journald.settings import JournaldSettings, priorities
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.wire import otlp

KUBELET = {"_SYSTEMD_UNIT": "kubelet.service", "_HOSTNAME": "node", "_TRANSPORT": "stdout"}


def make(sink: Any, host: FakeHost | None = None, **settings: Any) -> JournaldReceiver:
    settings = {"start_at": "beginning", "retry_on_failure": {"initial_interval": "1ms"}, **settings}
    receiver = JournaldReceiver(JournaldSettings.model_validate(settings), context("journald", Kind.RECEIVER, host=host))
    receiver.outputs = {Signal.LOGS: sink}
    return receiver


@asynccontextmanager
async def stored(directory: Path) -> AsyncIterator[FakeHost]:
    settings = FileStorageSettings(directory=str(directory), create_directory=True)
    async with FileStorageExtension(settings, context("file_storage", Kind.EXTENSION)) as extension:
        yield FakeHost({"file_storage": extension})


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextmanager
def another_user() -> Iterator[None]:
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def value_of(value: Any) -> Any:
    match value.WhichOneof("value"):
        case "kvlist_value":
            return {item.key: value_of(item.value) for item in value.kvlist_value.values}
        case "array_value":
            return [value_of(item) for item in value.array_value.values]
        case kind:
            return getattr(value, kind)


def records(sink: Sink) -> list[Any]:
    resources = [resource for batch in sink.batches for resource in batch.message.resource_logs]
    return [record for resource in resources for scope in resource.scope_logs for record in scope.log_records]


def messages(sink: Sink) -> list[str]:
    return [value_of(record.body)["MESSAGE"] for record in records(sink)]


def said(*texts: str, **more: Any) -> list[dict[str, Any]]:
    return [{"MESSAGE": text, "PRIORITY": "6", **KUBELET, **more} for text in texts]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.components.receivers.journald.receiver._LOOK_SECONDS", 0.02)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


MIXED: list[dict[str, Any]] = [
    *({"MESSAGE": f"priority {number}", "PRIORITY": str(number), **KUBELET} for number in range(8)),
    {"MESSAGE": "no priority", **KUBELET},
    {"MESSAGE": "Docker says ERROR", "PRIORITY": "6", "_SYSTEMD_UNIT": "docker.service", "SYSLOG_IDENTIFIER": "dockerd"},
    {"MESSAGE": "Started docker", "PRIORITY": "6", "_PID": "1", "UNIT": "docker.service", "SYSLOG_IDENTIFIER": "systemd"},
    {"MESSAGE": "forged", "PRIORITY": "6", "_PID": "77", "UNIT": "docker.service"},
    {"MESSAGE": "core", "PRIORITY": "2", "MESSAGE_ID": "fc2e22bc6ee647b6b90729ab34a250b1", "_UID": "0", "COREDUMP_UNIT": "docker.service"},
    {"MESSAGE": "about", "PRIORITY": "5", "_UID": "0", "OBJECT_SYSTEMD_UNIT": "docker.service"},
    {"MESSAGE": "sliced", "PRIORITY": "6", "_SYSTEMD_SLICE": "system.slice", "_SYSTEMD_UNIT": "cron.service"},
    {"MESSAGE": "kernel", "PRIORITY": "4", "_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel"},
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"priority": "debug"},
    {"priority": "err"},
    {"priority": "3"},
    {"priority": "warning..crit"},
    {"units": ["docker.service"]},
    {"units": ["docker", "kubelet.service"]},
    {"units": ["system.slice"]},
    {"units": ["nothing.service"]},
    {"units": ["docker", "kubelet"], "priority": "notice"},
    {"identifiers": ["dockerd", "kernel"]},
    {"matches": [{"_TRANSPORT": "kernel"}, {"_SYSTEMD_UNIT": "docker.service", "PRIORITY": "6"}]},
    {"matches": [{"_SYSTEMD_UNIT": "docker.service", "PRIORITY": "5"}]},
    {"units": ["docker"], "matches": [{"_PID": "1"}, {"_UID": "0"}], "identifiers": ["systemd"]},
    {"grep": "docker", "priority": "debug"},
    {"grep": "Docker"},
    {"grep": "priority [0-3]$"},
]


@needs_journal
@pytest.mark.parametrize("settings", FILTERS, ids=str)
async def test_filters_choose_what_journalctl_chooses(settings: dict[str, Any], journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(journal / "a.journal", MIXED)
    expected = journalctl(journal, *options(settings))
    sink = Sink()
    receiver = make(sink, directory=str(journal), **settings)
    rounds: list[bool] = []
    collect = receiver._collect

    def watched(of: Journal) -> Any:
        rounds.append(True)
        return collect(of)

    monkeypatch.setattr(receiver, "_collect", watched)
    async with receiver:
        await until(lambda: len(rounds) > 1)  # the second begins when all of the first is delivered
    assert messages(sink) == [entry["MESSAGE"] for entry in expected]


@needs_journal
async def test_the_kernels_entries_are_those_of_every_boot(journal: Path) -> None:
    write(journal / "a.journal", MIXED)
    sink = Sink()
    async with make(sink, directory=str(journal), dmesg=True):
        await sink.wait_for(1)
    assert messages(sink) == ["kernel"]


@needs_journal
async def test_an_entry_is_the_map_that_journalctl_shows(journal: Path) -> None:
    write(journal / "a.journal", [{"MESSAGE": "tab\there", "PRIORITY": "6", "X": ["a", "b", "a"], "E": "", "UNICODE": "grüß", **KUBELET}])
    (expected,) = journalctl(journal)
    sink = Sink()
    async with make(sink, directory=str(journal), attributes={"a": "1"}, resource={"r": "2"}):
        await sink.wait_for(1)
    (record,) = records(sink)
    assert record.time_unix_nano == int(expected.pop("__REALTIME_TIMESTAMP")) * 1000
    found = value_of(record.body)
    # journalctl shows repeated values in the order that the file has them in.
    assert {**found, "X": sorted(found["X"])} == {**expected, "X": sorted(expected["X"])}
    assert [(a.key, a.value.string_value) for a in record.attributes] == [("a", "1")]
    (resource,) = sink.batches[0].message.resource_logs
    assert [(a.key, a.value.string_value) for a in resource.resource.attributes] == [("r", "2")]
    assert record.observed_time_unix_nano > record.time_unix_nano


@needs_journal
async def test_bytes_stay_bytes_and_long_fields_are_cut_and_counted(journal: Path) -> None:
    write(journal / "a.journal", [{"MESSAGE": b"\xff\x00", "LONG": "x" * (2 << 20), "NEXT": "y" * 100_000, **KUBELET, "PRIORITY": "6"}])
    sink = Sink()
    async with make(sink, directory=str(journal)) as receiver:
        await sink.wait_for(1)
        assert receiver.context.metrics.value("lockgate_journald_truncated_fields") == 1
    body = value_of(records(sink)[0].body)
    assert body["MESSAGE"] == b"\xff\x00" and len(body["NEXT"]) == 100_000 and (1 << 20) - 5 <= len(body["LONG"]) <= 1 << 20


@needs_journal
async def test_what_is_written_later_arrives_also_in_files_that_are_new(journal: Path) -> None:
    machine = journal / "0123456789abcdef0123456789abcdef"
    machine.mkdir()
    write(machine / "system.journal", said("one"))
    sink = Sink()
    async with make(sink, directory=str(journal)):
        await sink.wait_for(1)
        await asyncio.to_thread(write, machine / "system.journal", said("two"), 1_700_000_100)
        await sink.wait_for(2)
        (machine / "system.journal").rename(machine / "system@0001.journal")
        await asyncio.to_thread(write, machine / "system.journal", said("three"), 1_700_000_200)
        await sink.wait_for(3)
    assert messages(sink) == ["one", "two", "three"]


@needs_journal
async def test_a_restart_goes_on_behind_what_was_taken(journal: Path, tmp_path: Path) -> None:
    write(journal / "a.journal", said("one", "two"))
    sink = Sink(Retryable("busy"), Retryable("busy"))
    async with stored(tmp_path / "storage") as host:
        async with make(sink, host, directory=str(journal), storage="file_storage"):
            await sink.wait_for(2)
        await asyncio.to_thread(write, journal / "a.journal", said("three"), 1_700_000_100)
        async with make(sink, host, directory=str(journal), storage="file_storage", start_at="end"):
            await sink.wait_for(3)
        (journal / "a.journal").unlink()
        await asyncio.to_thread(write, journal / "b.journal", said("four"), 1_700_000_200)
        async with make(sink, host, directory=str(journal), storage="file_storage") as receiver:
            await sink.wait_for(4)
            assert receiver.context.metrics.value("lockgate_journald_gaps") == 1
    assert messages(sink) == ["one", "two", "three", "four"]
    assert sink.calls == 5


@needs_journal
async def test_what_nobody_took_is_read_again_after_a_restart(journal: Path, tmp_path: Path) -> None:
    write(journal / "a.journal", said("one"))
    busy, sink = Sink(*[Retryable("busy")] * 10_000), Sink()
    async with stored(tmp_path / "storage") as host:
        receiver = make(busy, host, directory=str(journal), storage="file_storage")
        async with receiver:
            await until(lambda: busy.calls > 3)
            assert "delivery" in receiver.context.status.blocked
            assert receiver._reading is not None
            receiver._reading.cancel()
        async with make(sink, host, directory=str(journal), storage="file_storage"):
            await sink.wait_for(1)
    assert messages(sink) == ["one"]


@needs_journal
async def test_from_the_end_only_what_is_new_is_read_even_after_a_restart(journal: Path, tmp_path: Path) -> None:
    write(journal / "a.journal", said("old"))
    sink = Sink()
    async with stored(tmp_path / "storage") as host:
        async with make(sink, host, directory=str(journal), storage="file_storage", start_at="end"):
            pass
        await asyncio.to_thread(write, journal / "a.journal", said("while away"), 1_700_000_100)
        async with make(sink, host, directory=str(journal), storage="file_storage", start_at="end"):
            await sink.wait_for(1)
    assert messages(sink) == ["while away"]


@needs_journal
async def test_what_is_refused_for_good_is_counted_and_passed(journal: Path) -> None:
    write(journal / "a.journal", said("one"))
    sink = Sink(Permanent("never"))
    async with make(sink, directory=str(journal)) as receiver:
        await until(lambda: receiver.context.metrics.value("lockgate_journald_dropped_records") == 1)
        await asyncio.to_thread(write, journal / "a.journal", said("two"), 1_700_000_100)
        await sink.wait_for(1)
    assert messages(sink) == ["two"]


@needs_journal
async def test_a_directory_may_come_later_go_and_come_again(journal: Path, tmp_path: Path) -> None:
    sink = Sink()
    directory = tmp_path / "later"
    async with make(sink, directory=str(directory), start_at="end") as receiver:
        assert "waiting for" in receiver.context.status.blocked["journal"][0]
        write(journal / "a.journal", said("one"))
        journal.rename(directory)
        await sink.wait_for(1)
        assert "journal" not in receiver.context.status.blocked
        shutil.rmtree(directory)
        await until(lambda: "journal" in receiver.context.status.blocked)
        journal.mkdir()
        write(journal / "a.journal", said("two"), 1_700_000_100)
        journal.rename(directory)
        await sink.wait_for(2)
    assert messages(sink) == ["one", "two"]


@needs_journal
async def test_a_rotated_file_is_read_to_its_end_and_never_again(journal: Path, tmp_path: Path) -> None:
    write(journal / "system.journal", said("one"))
    sink = Sink()
    async with stored(tmp_path / "storage") as host:
        async with make(sink, host, directory=str(journal), storage="file_storage"):
            await sink.wait_for(1)
            await asyncio.to_thread(write, journal / "system.journal", said("two"), 1_700_000_100)
            (journal / "system.journal").rename(journal / f"system@{1:032x}-{1:016x}-{1:016x}.journal")
            await asyncio.to_thread(write, journal / "system.journal", said("three"), 1_700_000_200)
            await sink.wait_for(3)
        (journal / "system.journal").rename(journal / f"system@{1:032x}-{3:016x}-{3:016x}.journal")  # while nobody reads
        await asyncio.to_thread(write, journal / "system.journal", said("four"), 1_700_000_300)
        async with make(sink, host, directory=str(journal), storage="file_storage") as receiver:
            await sink.wait_for(4)
            assert receiver.context.metrics.value("lockgate_journald_gaps") == 0
    assert messages(sink) == ["one", "two", "three", "four"]


@needs_journal
async def test_files_may_be_named(journal: Path) -> None:
    write(journal / "a.journal", said("one"))
    write(journal / "b.journal", said("other"))
    sink = Sink()
    async with make(sink, files=[str(journal / "a.journal")]):
        await sink.wait_for(1)
    assert messages(sink) == ["one"]


@needs_journal
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: no other user to become")
async def test_what_may_not_be_read_is_named_with_whose_it_is() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        Path(name).chmod(0o755)
        journal = Path(name, "journal")
        journal.mkdir(0o755)
        write(journal / "a.journal", said("one"))
        with another_user():
            async with make(Sink(), directory=str(journal)) as receiver:
                await until(lambda: "unreadable" in receiver.context.status.blocked)
                reason = receiver.context.status.blocked["unreadable"][0]
        assert "a.journal" in reason and "uid 65534" in reason and "-rw-r-----" in reason and "owner uid 0" in reason
        journal.chmod(0o700)
        sink = Sink()
        with another_user():
            async with make(sink, directory=str(journal)) as receiver:
                reason = receiver.context.status.blocked["journal"][0]
                os.seteuid(0)
                await sink.wait_for(1)
                assert "journal" not in receiver.context.status.blocked
        assert f"cannot read {journal}: Permission denied" in reason and "drwx------" in reason


def test_what_is_tried_at_start_are_the_directories_and_the_journals_files(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    for name in ("machine/system.journal", "machine/user.journal~", "machine/notes.txt", "alone"):
        (tmp_path / name).touch()

    def tried(**settings: Any) -> set[tuple[str, bool, type | None]]:
        found = JournaldSettings.model_validate(settings).try_reading()
        return {(os.path.relpath(each.path, tmp_path), each.is_directory, type(each.error) if each.error else None) for each in found}

    assert tried(directory=str(tmp_path)) == {
        (".", True, None),
        ("machine", True, None),
        ("machine/system.journal", False, None),
        ("machine/user.journal~", False, None),
    }
    assert tried(files=[f"{tmp_path}/alone", f"{tmp_path}/gone"]) == {("alone", False, None), ("gone", False, FileNotFoundError)}
    assert tried(directory=f"{tmp_path}/gone") == {("gone", True, FileNotFoundError)}


@needs_journal
async def test_a_damaged_file_takes_nothing_from_the_others(journal: Path) -> None:
    write(journal / "a.journal", said(*(f"line {number}" for number in range(200))))
    write(journal / "b.journal", said("good"), 1_700_001_000)
    (journal / "c.journal").write_bytes(b"LPKSHHRH" + b"\xff" * 5000)
    raw = bytearray((journal / "a.journal").read_bytes())
    raw[20_000:60_000] = os.urandom(40_000)
    (journal / "a.journal").write_bytes(raw)
    sink = Sink()
    async with make(sink, directory=str(journal)) as receiver:
        await until(lambda: "good" in [value_of(r.body).get("MESSAGE") for r in records(sink)])
        await until(lambda: "unreadable" in receiver.context.status.blocked)
        reason = receiver.context.status.blocked["unreadable"][0]
        assert reason.startswith(f"cannot read {journal}/c.journal: ") and "it is damaged" in reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"directory": "relative"},
        {"directory": "/j", "files": ["/j/a"]},
        {"files": ["/j/*.journal"]},
        {"units": ["kube*"]},
        {"priority": "urgent"},
        {"priority": "8"},
        {"priority": "1..2..3"},
        {"matches": [{"lower": "x"}]},
        {"matches": [{}]},
        {"grep": "(?=x)"},
        {"operators": [{"type": "move"}]},
        {"namespace": "x"},
        {"attributes": {"a": "EXPR(1)"}},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JournaldSettings.model_validate(wrong)


def test_without_libsystemd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"lockgate\[journald\]"):
        JournaldSettings()


def test_priorities_are_ranges_either_way() -> None:
    assert [priorities(text) for text in ("info", "0", "err..warning", "4..3")] == [range(7), range(1), range(3, 5), range(3, 5)]


@given(st.lists(st.binary(max_size=30), max_size=6), st.text(max_size=5), st.integers(0, 2**64 - 1))
def test_any_fields_give_a_valid_record(fields: list[bytes], cursor: str, time: int) -> None:
    made = Records({}, {})
    for _ in range(2):
        request = made.request([made.record(fields, cursor, time, time, 1)])
        assert otlp.validate(request, 0) == 1
        ExportLogsServiceRequest.FromString(request)
