"""filelog on real files, through its real reading loop, into a sink."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import FakeHost, Sink, context, resource_attributes

from lockgate.batch import Batch, Origin, Signal
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.components.receivers.filelog import FilelogReceiver
from lockgate.components.receivers.filelog.parsers import pod_attributes
from lockgate.components.receivers.filelog.receiver import own_output, own_pod_patterns
from lockgate.components.receivers.filelog.settings import FilelogSettings
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Held, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Read
from lockgate.tail.tailer import Tailer

POD = "ns-1_pod-1_0a1b-2c"


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    (tmp_path / "pods" / POD / "app").mkdir(parents=True)
    return tmp_path / "pods"


def append(path: Path, content: str | bytes) -> None:
    with open(path, "ab") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cri(body: str, tag: str = "F", stream: str = "stdout") -> str:
    return f"2024-01-01T00:00:00.5Z {stream} {tag} {body}\n"


def make(sink: Any, host: FakeHost | None = None, **settings: Any) -> FilelogReceiver:
    settings = {"start_at": "beginning", "poll_interval": "10ms", "retry_on_failure": {"initial_interval": "1ms"}, **settings}
    receiver = FilelogReceiver(FilelogSettings.model_validate(settings), context("filelog", Kind.RECEIVER, host=host))
    receiver.outputs = {Signal.LOGS: sink}
    return receiver


@contextlib.asynccontextmanager
async def stored(directory: Path) -> AsyncIterator[FakeHost]:
    extension = FileStorageExtension(
        FileStorageSettings(directory=str(directory), create_directory=True), context("file_storage", Kind.EXTENSION)
    )
    async with extension:
        yield FakeHost({"file_storage": extension})


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def attributes(batch: Batch) -> list[dict[str, str]]:
    return [
        {attribute.key: attribute.value.string_value for attribute in record.attributes}
        for resource in batch.message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


async def test_container_lines_become_records_with_the_pods_name(pods: Path) -> None:
    path = pods / POD / "app" / "3.log"
    append(path, cri("one") + cri("two ", "P", "stderr") + cri("parts", "F", "stderr"))
    sink = Sink()
    async with make(
        sink, include=[f"{pods}/*/*/*.log"], include_file_path=True, operators=[{"type": "container"}], resource={"env": "test"}
    ):
        await sink.wait_for(2)
    assert sink.bodies() == ["one", "two parts"]
    assert resource_attributes(sink.batches[0]) == [
        {
            "env": "test",
            "k8s.namespace.name": "ns-1",
            "k8s.pod.name": "pod-1",
            "k8s.pod.uid": "0a1b-2c",
            "k8s.container.name": "app",
            "k8s.container.restart_count": "3",
        }
    ]
    first, second = attributes(sink.batches[0])
    assert first == {"log.iostream": "stdout", "logtag": "F", "log.file.name": "3.log", "log.file.path": str(path)}
    assert second["log.iostream"] == "stderr"
    assert sink.batches[0].origins[0].end == path.stat().st_size


async def test_docker_lines_behind_links_become_records_with_the_pods_name(pods: Path, tmp_path: Path) -> None:
    docker, containers = tmp_path / "docker", tmp_path / "containers"
    docker.mkdir()
    containers.mkdir()
    append(docker / "id-json.log", json.dumps({"log": "hello\n", "stream": "stdout", "time": "2024-01-01T00:00:00.5Z"}) + "\n")
    (pods / POD / "app" / "0.log").symlink_to(docker / "id-json.log")
    (containers / "pod-1_ns-1_app-id.log").symlink_to(pods / POD / "app" / "0.log")
    sink = Sink()
    async with make(
        sink,
        include=[f"{pods}/*/*/*.log"],
        symlink_roots=[str(docker)],
        include_file_path_resolved=True,
        include_file_name_resolved=True,
        operators=[{"type": "container", "format": "docker"}],
    ):
        await sink.wait_for(1)
    assert sink.bodies() == ["hello"]
    assert resource_attributes(sink.batches[0])[0]["k8s.pod.name"] == "pod-1"
    assert attributes(sink.batches[0])[0]["log.file.path_resolved"] == str(docker / "id-json.log")


async def test_plain_lines_carry_what_was_asked_for(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "  one  \n\ntwo\r\n")
    sink = Sink()
    async with make(
        sink, include=[f"{tmp_path}/*.log"], include_file_owner_name=True, include_file_owner_group_name=True, attributes={"k": "v"}
    ):
        await sink.wait_for(2)
    assert sink.bodies() == ["one", "two"]
    assert attributes(sink.batches[0])[0] == {
        "k": "v",
        "log.file.name": "a.log",
        "log.file.owner.name": (tmp_path / "a.log").owner(),
        "log.file.owner.group.name": (tmp_path / "a.log").group(),
    }


async def test_white_space_is_kept_where_asked(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "  one  \n")
    sink = Sink()
    async with make(sink, include=[f"{tmp_path}/*.log"], preserve_leading_whitespaces=True, preserve_trailing_whitespaces=True):
        await sink.wait_for(1)
    assert sink.bodies() == ["  one  "]


@pytest.mark.parametrize(
    ("multiline", "content", "expected"),
    [
        pytest.param({"line_start_pattern": r"^\d{4}-"}, "2024-a\n b\n c\n2025-d\n", ["2024-a\n b\n c", "2025-d"], id="start"),
        pytest.param({"line_start_pattern": r"^\d{4}-"}, "junk\n2024-a\n b\n", ["junk", "2024-a\n b"], id="before-the-first-start"),
        pytest.param({"line_start_pattern": r"^>> ", "omit_pattern": True}, ">> a\nb\n>> c\n", ["a\nb", "c"], id="start-omitted"),
        pytest.param({"line_end_pattern": r"END$"}, "a\nb END\nc END\n", ["a\nb END", "c END"], id="end"),
        pytest.param({"line_end_pattern": r";\n", "omit_pattern": True}, "a\nb;\nc;\n", ["a\nb", "c"], id="end-omitted"),
        pytest.param({"line_start_pattern": "^"}, "a\nb\n", ["a", "b"], id="empty-match"),
        pytest.param({"line_start_pattern": "START"}, "no start at all\n", ["no start at all"], id="no-match"),
    ],
)
async def test_records_of_several_lines(tmp_path: Path, multiline: dict[str, Any], content: str, expected: list[str]) -> None:
    sink = Sink()
    append(tmp_path / "a.log", "")
    async with make(sink, include=[f"{tmp_path}/*.log"], multiline=multiline, force_flush_period="100ms"):
        for character in content:  # torn at every byte
            append(tmp_path / "a.log", character)
        await sink.wait_for(len(expected))
    assert sink.bodies() == expected


async def test_many_records_of_several_lines_pass_the_rounds_bound(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "".join(f"# {number}\n more\n" for number in range(20_000)))
    sink = Sink()
    async with make(sink, include=[f"{tmp_path}/*.log"], multiline={"line_start_pattern": "^# "}, force_flush_period="50ms"):
        await sink.wait_for(20_000)
    assert sink.bodies() == [f"# {number}\n more" for number in range(20_000)]


async def test_a_clean_restart_repeats_and_loses_nothing(pods: Path, tmp_path: Path) -> None:
    path = pods / POD / "app" / "0.log"
    written: list[str] = []
    sink = Sink()
    for turn in range(6):
        for line in range(100):
            written.append(f"{turn}-{line}")
            append(path, cri(written[-1]))
        settings: dict[str, Any] = {"include": [f"{pods}/*/*/*.log"], "storage": "file_storage", "operators": [{"type": "container"}]}
        async with stored(tmp_path / "storage") as host, make(sink, host, **settings):
            if turn % 2:
                await sink.wait_for(len(written))
        if turn % 2:
            path.rename(path.with_name(f"0.log.20240101-00000{turn}"))
    assert sorted(sink.bodies()) == sorted(written)


async def test_what_was_refused_is_offered_again_and_in_full(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "one\ntwo\n")
    sink = Sink(Retryable("busy"), Retryable("busy", 0.01), Retryable("busy"))
    async with make(sink, include=[f"{tmp_path}/*.log"]) as receiver:
        await sink.wait_for(2)
        assert sink.calls == 4
        assert sink.bodies() == ["one", "two"]
        await until(lambda: not receiver.context.status.blocked)
        assert receiver.context.metrics.value("otelcol_receiver_refused_log_records") == 6


async def test_what_is_refused_for_good_is_counted_and_passed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(tmp_path / "a.log", "one\n")
    sink = Sink(Permanent("too old"))
    async with make(sink, include=[f"{tmp_path}/*.log"]) as receiver:
        await until(lambda: receiver.context.metrics.value("lockgate_filelog_dropped_records") == 1)
        append(tmp_path / "a.log", "two\n")
        await sink.wait_for(1)
    assert sink.bodies() == ["two"]
    assert "too old" in caplog.text


async def test_max_elapsed_time_gives_up_and_counts(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "one\n")
    sink = Sink(*[Retryable("busy")] * 1000)
    retry = {"initial_interval": "1ms", "max_interval": "2ms", "max_elapsed_time": "20ms"}
    async with make(sink, include=[f"{tmp_path}/*.log"], retry_on_failure=retry) as receiver:
        await until(lambda: receiver.context.metrics.value("lockgate_filelog_dropped_records") == 1)


async def test_a_pipeline_that_blocks_bounds_what_is_in_memory_and_loses_nothing(tmp_path: Path) -> None:
    line = "x" * 199 + "\n"
    append(tmp_path / "a.log", line * 400_000)  # 80 MB
    gate = asyncio.Event()

    class Gate(Sink):
        held = 0

        async def consume(self, batch: Batch) -> None:
            self.held += len(batch.payload)
            await gate.wait()
            self.calls += batch.count

    sink = Gate()
    async with make(sink, include=[f"{tmp_path}/*.log"]) as receiver:
        await until(lambda: receiver.context.metrics.value("lockgate_filelog_bytes_under_way") > 10 << 20)
        await asyncio.sleep(0.1)  # nothing tells that nothing more happens
        assert sink.held < 40 << 20
        gate.set()
        await until(lambda: sink.calls == 400_000)
        await until(lambda: receiver.context.metrics.value("lockgate_filelog_bytes_under_way") == 0)


async def test_a_stop_that_is_cut_short_saves_what_was_taken(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    append(tmp_path / "logs/a.log", "one\n")

    class Blocked(Sink):
        async def consume(self, batch: Batch) -> None:
            if self.batches:
                await asyncio.Event().wait()
            await super().consume(batch)

    settings: dict[str, Any] = {"include": [f"{tmp_path}/logs/*.log"], "storage": "file_storage"}
    blocked, sink = Blocked(), Sink()
    async with stored(tmp_path / "storage") as host:
        receiver = make(blocked, host, **settings)
        await receiver.__aenter__()
        await blocked.wait_for(1)
        append(tmp_path / "logs/a.log", "two\n")
        await until(lambda: receiver.context.metrics.value("lockgate_filelog_bytes_under_way") > 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await receiver.__aexit__(None, None, None)
        async with make(sink, host, **settings):
            await sink.wait_for(1)
    assert sink.bodies() == ["two"]


async def test_start_at_end_reads_what_comes_after(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "old\n")
    sink = Sink()
    async with make(sink, include=[f"{tmp_path}/*.log"], start_at="end"):
        append(tmp_path / "a.log", "new\n")
        await sink.wait_for(1)
    assert sink.bodies() == ["new"]


async def test_damaged_positions_mean_reading_again_not_skipping(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    append(tmp_path / "logs/a.log", "one\n")
    sink = Sink()
    async with stored(tmp_path / "storage") as host, make(sink, host, include=[f"{tmp_path}/logs/*.log"], storage="file_storage"):
        await sink.wait_for(1)
    for path in (tmp_path / "storage" / "receivers~002Ffilelog").iterdir():
        path.write_bytes(b"garbage")
    append(tmp_path / "logs/a.log", "two\n")
    async with (
        stored(tmp_path / "storage") as host,
        make(sink, host, include=[f"{tmp_path}/logs/*.log"], storage="file_storage", start_at="end"),
    ):
        await sink.wait_for(3)
    assert sink.bodies() == ["one", "one", "two"]


async def test_positions_that_cannot_be_saved_are_a_status_not_an_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    append(tmp_path / "logs/a.log", "one\n")
    sink = Sink()
    settings = {"include": [f"{tmp_path}/logs/*.log"], "storage": "file_storage"}
    async with stored(tmp_path / "storage") as host, make(sink, host, **settings) as receiver:
        owned = tmp_path / "storage" / "receivers~002Ffilelog"
        (owned / "state.tmp").mkdir()
        await until(lambda: "checkpoint" in receiver.context.status.blocked)
        append(tmp_path / "logs/a.log", "two\n")
        await sink.wait_for(2)
        (owned / "state.tmp").rmdir()
        await until(lambda: "checkpoint" not in receiver.context.status.blocked)


async def test_what_is_saved_is_told_to_queues_and_what_they_lost_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    append(tmp_path / "logs/a.log", "one\n\ntwo\n")
    sink = Sink()
    settings: dict[str, Any] = {"include": [f"{tmp_path}/logs/*.log"], "storage": "file_storage"}
    async with stored(tmp_path / "storage") as host, make(sink, host, **settings) as receiver:
        await sink.wait_for(2)
        (origin,) = sink.batches[0].origins
        assert origin.owner == "filelog"
        assert (origin.start, origin.end, origin.lines, origin.records) == (0, 9, 2, 2)  # an empty line is no line
        await until(lambda: host.positions["filelog"] == {origin.source: 9})
        receiver.give_back([Origin(origin.source, 5, 9)])
        await sink.wait_for(3)
        assert sink.bodies() == ["one", "two", "two"]
        assert [(each.source, each.start, each.end) for each in sink.batches[1].origins] == [(origin.source, 5, 9)]


async def test_what_queues_hold_is_not_read_again_without_any_positions_of_its_own(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "one\ntwo\nthree\n")
    sink, again = Sink(), Sink()
    async with make(sink, include=[f"{tmp_path}/*.log"]):
        await sink.wait_for(3)
    host = FakeHost()
    source = sink.batches[0].origins[0].source
    host.holds = Held({source: Ranges([(0, 4), (8, 14)])})
    async with make(again, host, include=[f"{tmp_path}/*.log"]):
        await again.wait_for(1)
        append(tmp_path / "a.log", "four\n")
        await again.wait_for(2)
        await until(lambda: host.positions["filelog"] == {source: 0})  # so that queues remember what they hold of it
    assert again.bodies() == ["two", "four"]


async def test_a_directory_that_does_not_exist_yet_is_in_the_status(tmp_path: Path) -> None:
    sink = Sink()
    async with make(sink, include=[f"{tmp_path}/later/*.log"]) as receiver:
        assert "waiting for" in receiver.context.status.blocked["missing"][0]
        (tmp_path / "later").mkdir()
        append(tmp_path / "later/a.log", "one\n")
        await sink.wait_for(1)
        await until(lambda: not receiver.context.status.blocked)


async def test_a_link_out_of_the_roots_is_refused_counted_and_in_the_status(pods: Path) -> None:
    link = pods / POD / "app" / "9.log"
    link.symlink_to("/etc/passwd")
    append(pods / POD / "app" / "0.log", cri("one"))
    sink = Sink()
    async with make(sink, include=[f"{pods}/*/*/*.log"], operators=[{"type": "container"}]) as receiver:
        await sink.wait_for(1)
        assert receiver.context.metrics.value("lockgate_filelog_refused_files") == 1
        assert "outside of" in receiver.context.status.blocked[str(link)][0]
    assert sink.bodies() == ["one"]


CHILD = """
import asyncio, os, sys
sys.path[:0] = {paths!r}
from support import FakeHost, context
from lockgate.batch import Signal
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.components.receivers.filelog import FilelogReceiver
from lockgate.components.receivers.filelog.settings import FilelogSettings
from lockgate.pipeline.contract import Kind

class Out:
    async def consume(self, batch):
        for resource in batch.message.resource_logs:
            for scope in resource.scope_logs:
                os.write(1, b"".join(record.body.string_value.encode() + b"\\n" for record in scope.log_records))

async def main():
    uid = {uid}
    storage = FileStorageSettings(directory={storage!r}, create_directory=True)
    extension = FileStorageExtension(storage, context("file_storage", Kind.EXTENSION))
    async with extension:
        if uid:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        settings = FilelogSettings(include=[{include!r}], start_at="beginning", poll_interval="10ms", storage="file_storage")
        receiver = FilelogReceiver(settings, context("filelog", Kind.RECEIVER, host=FakeHost({{"file_storage": extension}})))
        receiver.outputs = {{Signal.LOGS: Out()}}
        async with receiver:
            for reason, _ in receiver.context.status.blocked.values():
                print("blocked:", reason, flush=True)
            print("started", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""


def child(tmp_path: Path, include: str, uid: int = 0) -> subprocess.Popen[str]:
    program = CHILD.format(paths=[str(Path(__file__).parents[3])], storage=str(tmp_path / "storage"), include=include, uid=uid)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_killed_over_and_over_every_line_arrives(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs/a.log"
    seen: list[str] = []
    written = kills = 0
    for turn in range(5):
        running = child(tmp_path, f"{tmp_path}/logs/*.log")
        assert running.stdout is not None
        try:
            for _ in range(300):
                written += 1
                append(path, f"line {written}\n")
            for text in running.stdout:
                seen.append(text.strip())
                if text == f"line {written - 100 * (turn % 3)}\n":
                    break
        finally:
            running.send_signal(signal.SIGKILL)
            seen += [text.strip() for text in running.stdout]
            running.wait()
            running.stdout.close()
            kills += 1
        if turn == 2:
            path.rename(tmp_path / "logs/a.log.old")
    assert {f"line {number}" for number in range(1, written + 1)} <= set(seen)
    assert kills == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_unreadable_directory_is_told_at_start_by_file_uid_gid_and_mode(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o700)
    append(logs / "a.log", "secret\n")
    for parent in [tmp_path, *tmp_path.parents][:-1]:
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "storage").mkdir()
    os.chown(tmp_path / "storage", 65534, 65534)
    running = child(tmp_path, f"{logs}/*.log", uid=65534)
    assert running.stdout is not None
    try:
        told = running.stdout.readline()
        for word in ("blocked:", f"cannot read {logs}", "uid 65534", "gid 65534", "mode drwx------", "owner uid 0", "Permission denied"):
            assert word in told
        assert running.stdout.readline() == "started\n"
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"include": []}, "at least 1"),
        ({"include": ["logs/*.log"]}, "absolute"),
        ({"include": ["/x"], "operators": [{"type": "regex_parser"}]}, "supported: container"),
        ({"include": ["/x"], "operators": [{"type": "container", "format": "podman"}]}, "containerd"),
        ({"include": ["/x"], "encoding": "utf-16"}, "supported: ascii"),
        ({"include": ["/x"], "multiline": {}}, "exactly one"),
        ({"include": ["/x"], "multiline": {"line_start_pattern": "a", "line_end_pattern": "b"}}, "exactly one"),
        ({"include": ["/x"], "multiline": {"line_start_pattern": "("}}, "RE2"),
        ({"include": ["/x"], "multiline": {"line_start_pattern": "(?!a)"}}, "RE2"),
        ({"include": ["/x"], "multiline": {"line_start_pattern": "a"}, "operators": [{"type": "container"}]}, "remove one"),
        ({"include": ["/x"], "delete_after_read": True}, "never deletes"),
        ({"include": ["/x"], "ordering_criteria": {"top_n": 1}}, "not supported"),
        ({"include": ["/x"], "attributes": {"a": "EXPR(1)"}}, "expressions"),
        ({"include": ["/x"], "start_at": "middle"}, "beginning"),
        ({"include": ["/x"], "symlink_roots": ["pods"]}, "absolute"),
    ],
)
def test_settings_that_cannot_be_honoured_are_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FilelogSettings.model_validate(settings)


def test_settings_say_what_they_need() -> None:
    settings = FilelogSettings.model_validate(
        {"include": ["/logs/pods/*/*/*.log"], "symlink_roots": ["/docker"], "storage": "file_storage"}
    )
    assert [need.path for need in settings.needs() if isinstance(need, Read)] == ["/logs/pods", "/docker"]
    assert list(settings.extensions()) == [(("storage",), "file_storage")]
    assert list(settings.warnings()) == []
    assert len(list(FilelogSettings.model_validate({"include": ["/x"], "max_batches": 1, "initial_buffer_size": "1KiB"}).warnings())) == 3


@pytest.mark.parametrize(
    ("path", "pod"),
    [
        ("/var/log/pods/ns_pod_49cc7c1f-d3/kube-controller/1.log", "pod"),
        ("/ns_pod_0a/c/10.log", "pod"),
        ("/var/log/pods/ns_pod_XYZ/c/1.log", None),
        ("/var/log/pods/ns_pod_0a/c.d/1.log", None),
        ("/var/log/app.log", None),
    ],
)
def test_pod_attributes_come_from_paths_of_the_kubelets_shape_alone(path: str, pod: str | None) -> None:
    assert pod_attributes(path).get("k8s.pod.name") == pod


def test_the_agent_knows_its_own_log(tmp_path: Path) -> None:
    with open(tmp_path / "own.log", "wb") as own:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from lockgate.components.receivers.filelog.receiver import own_output; sys.stderr.write(repr(own_output()))",
            ],
            stdout=own,
            stderr=subprocess.PIPE,
            check=True,
            text=True,
        )
    status = (tmp_path / "own.log").stat()
    assert f"({status.st_dev}, {status.st_ino})" in done.stderr
    assert isinstance(own_output(), frozenset)
    in_pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert own_pod_patterns({}, "laptop") == ()
    assert own_pod_patterns(in_pod, "agent-x2x") == ("/**/*_agent-x2x_*/**", "/**/agent-x2x_*_*-*.log")
    assert own_pod_patterns({**in_pod, "LOCKGATE_POD_UID": "0a-1b"}, "node*")[0] == "/**/*_0a-1b/**"


async def test_the_agent_does_not_follow_its_own_pod(pods: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKGATE_POD_UID", "ffff-1")
    (pods / "ns_agent_ffff-1/c").mkdir(parents=True)
    append(pods / "ns_agent_ffff-1/c/0.log", "own\n")
    append(pods / POD / "app" / "0.log", "other\n")
    sink = Sink()
    async with make(sink, include=[f"{pods}/*/*/*.log"]) as receiver:
        await sink.wait_for(1)
        assert receiver.context.metrics.value("otelcol_fileconsumer_open_files") == 1
    assert sink.bodies() == ["other"]


@pytest.mark.parametrize("poll_interval", ["10ms", "300ms"], ids=["prompt", "too-slow-to-see-each-file"])
async def test_live_rotation_as_the_kubelet_does_it_gives_each_record_exactly_once(pods: Path, poll_interval: str) -> None:
    """Four writers at full speed, each rotated as the kubelet does, all while being read: often enough a file comes, and is compressed and
    unlinked, between two looks."""
    written: dict[str, int] = {}
    rotated = 0

    def kubelet(name: str) -> None:
        nonlocal rotated
        folder = pods / POD / name
        folder.mkdir()
        path, raw = folder / "0.log", folder / "none"
        writer = open(path, "ab", 0)  # noqa: SIM115 - reopened at each rotation
        for turn in range(25):
            for number in range(400):
                writer.write(cri(f"{name} {turn} {number}").encode())
                written[f"{name} {turn} {number}"] = 1
                if number % 50 == 0:
                    time.sleep(0.001)
            if raw.exists():
                with gzip.open(f"{raw}.tmp", "wb", 1) as packed:
                    packed.write(raw.read_bytes())
                Path(f"{raw}.tmp").rename(f"{raw}.gz")
                raw.unlink()
            raw = folder / f"0.log.20240101-0000{turn:02d}"
            path.rename(raw)
            writer.write(cri(f"{name} {turn} late").encode())
            written[f"{name} {turn} late"] = 1
            writer.close()
            writer = open(path, "ab", 0)  # noqa: SIM115
            rotated += 1
        writer.close()

    sink = Sink()
    settings: dict[str, Any] = {"include": [f"{pods}/*/*/*.log"], "operators": [{"type": "container"}], "poll_interval": poll_interval}
    async with make(sink, **settings) as receiver:
        await asyncio.gather(*(asyncio.to_thread(kubelet, f"app{number}") for number in range(4)))
        await sink.wait_for(len(written), seconds=60)
        metrics = receiver.context.metrics
        assert metrics.value("lockgate_filelog_lost_bytes") == 0
        seen, found = metrics.value("lockgate_filelog_rotations"), metrics.value("lockgate_filelog_rotated_files_found")
        assert found > 0 or poll_interval == "10ms"
        # A file is renamed while it is followed, found when it was rotated already, or drained from its descriptor alone.
        assert seen + found <= rotated == 100
    assert sorted(sink.bodies()) == sorted(written)


async def test_a_start_that_fails_leaves_nothing_open(pods: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pods / "a.log").write_text("a line\n")

    def fails(self: Tailer, *arguments: Any) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Tailer, "collect", fails)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="the disk is gone"):
        async with make(Sink(), include=[f"{pods}/*.log"]):
            pass
    assert set(Path("/proc/self/fd").iterdir()) <= before
