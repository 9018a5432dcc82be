"""The tailer's matrix: 23 things that happen to log files, and what must become of every line.

On real files, with real renames and real gzip, through the real reading loop, before a queue on disk; "1x" is in the queue exactly once.
Where the agent is down it was either stopped or killed (SIGKILL).
"""

import contextlib
import gzip
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.agent import Agent, until

from lockgate.components.receivers.filelog import FilelogReceiver

POD = "ns_pod_0a-1b"


def cri(body: str, tag: str = "F", stream: str = "stdout") -> bytes:
    return f"2024-01-01T00:00:00.5Z {stream} {tag} {body}\n".encode()


class Container:
    """One container's log, as a runtime writes it and a kubelet rotates it."""

    def __init__(self, pods: Path, name: str = "app") -> None:
        self.folder = pods / POD / name
        self.folder.mkdir(parents=True)
        self.log = self.folder / "0.log"
        self.writer = open(self.log, "ab", 0)  # noqa: SIM115 - reopened at each rotation
        self.rotations = 0

    def write(self, *bodies: str, tag: str = "F", stream: str = "stdout") -> None:
        for body in bodies:
            self.writer.write(cri(body, tag, stream))

    def compress(self, raw: Path) -> Path:
        packed = raw.with_name(f"{raw.name}.gz")
        aside = raw.with_name(f"{raw.name}.tmp")
        aside.write_bytes(gzip.compress(raw.read_bytes(), 1))
        aside.rename(packed)
        raw.unlink()
        return packed

    def rotate(self, late: str = "") -> Path:
        """Compress what was rotated last time, rename, let the writer reopen; what it was renamed to."""
        for raw in [path for path in self.folder.iterdir() if path.name.startswith("0.log.") and path.suffix not in (".gz", ".tmp")]:
            self.compress(raw)
        self.rotations += 1
        raw = self.folder / f"0.log.20240101-{self.rotations:06d}"
        self.log.rename(raw)
        if late:
            self.write(late)
        self.reopen()
        return raw

    def reopen(self) -> None:
        self.writer.close()
        self.writer = open(self.log, "ab", 0)  # noqa: SIM115


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    return tmp_path / "pods"


@pytest.fixture
def container(pods: Path) -> Iterator[Container]:
    container = Container(pods)
    yield container
    container.writer.close()


@pytest.fixture
def agent(tmp_path: Path, pods: Path) -> Agent:
    return Agent(tmp_path / "state", include=[f"{pods}/*/*/*.log"], operators=[{"type": "container"}])


@contextlib.asynccontextmanager
async def up(agent: Agent, how: str) -> AsyncIterator[FilelogReceiver | None]:
    """A run that ends by a clean stop, or (then nothing of it can be asked) by SIGKILL."""
    if how == "killed":
        with agent.child():
            yield None
    else:
        async with agent.running() as receiver:
            yield receiver


ways_down = pytest.mark.parametrize("down", ["stopped", "killed"])


def value(receiver: FilelogReceiver, name: str) -> float:
    return float(receiver.context.metrics.value(f"lockgate_filelog_{name}"))


def reads_of(receiver: FilelogReceiver) -> int:
    assert receiver._tailer is not None
    return receiver._tailer.counts.reads


def no_loss(receiver: FilelogReceiver) -> bool:
    return not any(value(receiver, name) for name in ("gaps", "lost_bytes", "unknown_ends", "malformed_lines"))


async def test_01_a_torn_write_is_1x_at_its_newline(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        container.writer.write(cri("torn")[:30])
        await until(lambda: reads_of(receiver) > 1)
        container.writer.write(cri("torn")[30:])
        await agent.have(2)
        assert no_loss(receiver)
    assert agent.journal.bodies() == ["one", "torn"]


async def test_02_rename_while_the_writer_holds_the_old_file_both_1x(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        container.rotate(late="late")
        container.write("new")
        await agent.have(3)
        assert no_loss(receiver)
        assert value(receiver, "rotations") == 1
    assert sorted(agent.journal.bodies()) == ["late", "new", "one"]


@ways_down
async def test_03_down_over_a_rename_resumes_the_raw_rotated_file(agent: Agent, container: Container, down: str) -> None:
    container.write("one", "two")
    async with up(agent, down):
        await agent.have(2)
    container.write("three")
    container.rotate(late="four")
    container.write("five")
    async with agent.running() as receiver:
        await agent.have(5)
        assert no_loss(receiver)
    assert agent.journal.bodies() == ["one", "two", "three", "four", "five"]


@ways_down
async def test_04_down_over_gzip_resumes_inside_it_at_the_decompressed_offset(agent: Agent, container: Container, down: str) -> None:
    container.write("one", "two")
    async with up(agent, down):
        await agent.have(2)
    container.write(*(f"after {number}" for number in range(20_000)))
    first = container.rotate()
    container.write("second file")
    container.rotate()
    container.write("third file")
    assert not first.exists()
    async with agent.running() as receiver:
        await agent.have(20_004)
        assert no_loss(receiver)
    expected = ["one", "two", *(f"after {number}" for number in range(20_000)), "second file", "third file"]
    assert agent.journal.bodies() == expected
    origins = [origin for entry in agent.journal.entries for origin in entry.get("origins", ())]
    assert len({origin[0] for origin in origins}) == 3, "the source is the same in its file and in the .gz"
    assert sum(origin[3] for origin in origins) == sum(origin[4] for origin in origins) == 20_004
    async with agent.running():
        container.write("fourth")
        await agent.have(20_005)
    assert agent.journal.bodies() == [*expected, "fourth"]


async def test_05_gzip_while_reading_finishes_on_the_descriptor_and_recognises_the_gz(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("x" * 1000)  # as long as what a file is known by
        await agent.have(1)
        raw = container.rotate()
        with open(raw, "ab", 0) as late:
            container.compress(raw)
            late.write(cri("after gzip"))
        container.write("new")
        await agent.have(3)
        assert no_loss(receiver)
        assert value(receiver, "rotated_files_found") == 0
    async with agent.running():  # and so does the next process
        container.write("newer")
        await agent.have(4)
    assert sorted(agent.journal.bodies()) == ["after gzip", "new", "newer", "x" * 1000]


async def test_06_a_stale_tmp_is_ignored(agent: Agent, container: Container) -> None:
    container.write("one")
    async with agent.running() as receiver:
        await agent.have(1)
        raw = container.rotate()
        raw.with_name(f"{raw.name}.tmp").write_bytes(gzip.compress(raw.read_bytes())[:20])
        container.write("two")
        await agent.have(2)
        assert no_loss(receiver)
    async with agent.running() as receiver:
        container.write("three")
        await agent.have(3)
        assert no_loss(receiver)
        assert not receiver.context.status.blocked
    assert agent.journal.bodies() == ["one", "two", "three"]


async def test_07_unlinked_while_open_is_drained(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        container.log.unlink()
        container.write("two")
        await agent.have(2)
        assert no_loss(receiver)
    assert agent.journal.bodies() == ["one", "two"]


@ways_down
@pytest.mark.parametrize("rotated", [True, False])
async def test_08_deleted_while_down_is_a_gap_counted_in_files_and_bytes_where_known(
    agent: Agent, container: Container, pods: Path, down: str, rotated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    container.write("one")
    async with up(agent, down) as receiver:
        await agent.have(1)
        container.write("half a record, and not its end", tag="P")  # seen, and never taken
        if receiver is None:
            await until(lambda: container.log.stat().st_size in agent.saved_sizes())
        else:
            await until(lambda: value(receiver, "pending_lines") == 1)
    container.write("nobody saw this")
    if rotated:
        container.rotate().unlink()
    else:
        container.log.unlink()
        container.reopen()
    container.write("new")
    async with agent.running() as receiver:
        await agent.have(2)
        assert (value(receiver, "gaps"), value(receiver, "lost_bytes")) == (1, len(cri("half a record, and not its end", "P")))
    assert agent.journal.bodies() == ["one", "new"]
    assert f"bytes of {container.log}" in caplog.text


@ways_down
async def test_09_the_same_path_and_inode_with_another_content_is_another_file(agent: Agent, container: Container, down: str) -> None:
    container.write("one")
    async with up(agent, down):
        await agent.have(1)
    inode = container.log.stat().st_ino
    container.writer.close()
    container.log.write_bytes(cri("two") + cri("three"))
    assert container.log.stat().st_ino == inode
    async with agent.running():
        await agent.have(3)
    assert agent.journal.bodies() == ["one", "two", "three"]


async def test_10_copytruncate_of_what_was_read_goes_on_from_0(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one", "two")
        await agent.have(2)
        os.truncate(container.log, 0)
        container.write("three")
        await agent.have(3)
        assert no_loss(receiver)
    assert agent.journal.bodies() == ["one", "two", "three"]


async def test_11_copytruncate_with_an_unread_tail_is_a_counted_loss(
    agent: Agent, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        reads = reads_of(receiver)
        container.writer.write(cri("torn")[:-1])
        await until(lambda: reads_of(receiver) > reads)
        os.truncate(container.log, 0)
        container.write("two")
        await agent.have(2)
        assert (value(receiver, "gaps"), value(receiver, "lost_bytes")) == (1, len(cri("torn")) - 1)
    assert agent.journal.bodies() == ["one", "two"]
    assert f"bytes of {container.log}" in caplog.text


@pytest.mark.parametrize("equal", [True, False], ids=["lines-of-equal-length", "other-lines"])
async def test_12_truncated_and_grown_past_the_offset_is_noticed(agent: Agent, container: Container, equal: bool) -> None:
    after = ["three", "other", "same."] if equal else ["three, and longer", "four", "five", "six"]
    async with agent.running() as receiver:
        container.write("one..", "same.")
        await agent.have(2)
        container.writer.close()
        container.log.write_bytes(b"".join(cri(body) for body in after))  # truncates, and writes before anybody looks
        await agent.have(2 + len(after))
        assert value(receiver, "truncations") == 1
    assert agent.journal.bodies() == ["one..", "same.", *after]


async def test_13_a_restarted_container_goes_on_in_the_next_file_both_1x(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one")
        container.writer.write(cri("last"))
        container.writer.close()
        (container.folder / "1.log").write_bytes(cri("restarted"))
        await agent.have(3)
        assert no_loss(receiver)
    assert sorted(agent.journal.bodies()) == ["last", "one", "restarted"]


async def test_14_a_removed_pod_directory_is_drained_from_the_descriptor(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        container.write("two")
        container.log.unlink()
        container.folder.rmdir()
        container.folder.parent.rmdir()
        container.write("three")
        await agent.have(3)
        assert no_loss(receiver)
    assert agent.journal.bodies() == ["one", "two", "three"]


@pytest.mark.parametrize("down", ["", "stopped", "killed"])
@pytest.mark.parametrize("rotations", [0, 1, 2])
async def test_15_parts_over_a_rotation_or_a_kill_are_one_record(agent: Agent, container: Container, down: str, rotations: int) -> None:
    async def first() -> None:
        container.write("whole")
        container.write("a", tag="P")
        await agent.have(1)

    async def rest() -> None:
        for turn in range(rotations):
            container.rotate()
            container.write(f"b{turn}", tag="P")
        container.write("end")
        container.write("next")
        await agent.have(3)

    if down:
        async with up(agent, down):
            await first()
        async with agent.running() as receiver:
            await rest()
    else:
        async with agent.running() as receiver:
            await first()
            await rest()
    assert value(receiver, "unfinished_records") == 0
    assert sorted(agent.journal.bodies()) == sorted(["whole", "a" + "".join(f"b{turn}" for turn in range(rotations)) + "end", "next"])
    origins = [origin for entry in agent.journal.entries for origin in entry.get("origins", ())]
    assert (sum(origin[3] for origin in origins), sum(origin[4] for origin in origins)) == (4 + rotations, 3)


async def test_16_interleaved_parts_join_in_their_streams(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("out 1, ", tag="P")
        container.write("err 1, ", tag="P", stream="stderr")
        container.write("out 2, ", tag="P")
        await until(lambda: value(receiver, "pending_lines") == 3)
        container.write("err 2", stream="stderr")
        container.write("out 3")
        await agent.have(2)
        assert no_loss(receiver)
        assert value(receiver, "pending_lines") == 0
    assert sorted(agent.journal.bodies()) == ["err 1, err 2", "out 1, out 2, out 3"]


async def test_17_a_part_without_its_end_is_given_out_after_a_while_and_flagged(agent: Agent, container: Container) -> None:
    agent.settings["force_flush_period"] = "200ms"  # 5s where it is not set
    async with agent.running() as receiver:
        assert receiver.settings.model_copy(update={"force_flush_period": 5.0}).flush_seconds == 5.0
        container.write("no end", tag="P")
        await agent.have(1)
        container.write("next")
        await agent.have(2)
        assert value(receiver, "unfinished_records") == 1
    assert agent.journal.bodies() == ["no end", "next"]
    assert agent.journal.flagged() == ["no end"]


async def test_18_a_line_over_the_limit_is_cut_and_flagged_and_the_next_is_intact(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.write("before", "x" * (3 << 20), "after")
        await agent.have(3)
        assert value(receiver, "truncated_records") == 1
    assert [len(body) for body in agent.journal.bodies()] == [6, 1 << 20, 5]
    assert [len(body) for body in agent.journal.flagged()] == [1 << 20]


async def test_19_bytes_that_are_no_text_and_lines_without_a_header_are_kept_and_counted(agent: Agent, container: Container) -> None:
    async with agent.running() as receiver:
        container.writer.write(b"2024-01-01T00:00:00Z stdout F \xff\xfe\x00 end\nno header\n\x00\n")
        container.write("next")
        await agent.have(4)
        assert value(receiver, "malformed_lines") == 2
    assert agent.journal.bodies() == ["\xff\xfe\x00 end", "no header", "\x00", "next"]


async def test_20_a_link_out_of_the_log_root_is_refused(agent: Agent, container: Container, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(cri("secret"))
    (container.folder / "9.log").symlink_to(tmp_path / "secret")
    container.write("one")
    async with agent.running() as receiver:
        await agent.have(1)
        assert value(receiver, "refused_files") == 1
        assert "outside of" in receiver.context.status.blocked[str(container.folder / "9.log")][0]
    assert agent.journal.bodies() == ["one"]


async def test_21_an_overflow_of_inotify_looks_at_everything_and_each_line_is_1x(agent: Agent, container: Container, pods: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"the queue holds {limit} events")
    other = Container(pods, "other")
    expected = 2
    async with agent.running() as receiver:
        container.write("one")
        other.write("one")
        await agent.have(2)
        # Nobody reads events while this thread of the loop is busy; equal events in a row are one, so two files take turns.
        for number in range(limit // 2 + 100):
            container.write(str(number))
            other.write(str(number))
        expected += 2 * (limit // 2 + 100)
        container.rotate(late="late")
        container.rotate()
        container.write("new")
        await agent.have(expected + 2, seconds=60)
        assert value(receiver, "inotify_overflows") >= 1
        assert no_loss(receiver)
    other.writer.close()
    found = agent.journal.bodies()
    assert len(found) == expected + 2
    assert found.count("late") == found.count("new") == 1


@pytest.mark.parametrize("damaged", [1, 2], ids=["newest", "both"])
async def test_22_a_corrupt_checkpoint_means_the_one_before_and_no_loss(agent: Agent, container: Container, damaged: int) -> None:
    written = []
    for turn in range(3):
        container.write(f"turn {turn}")
        written.append(f"turn {turn}")
        async with agent.running():
            await agent.have(turn + 1)
        if turn == 1:
            container.rotate()
    states = sorted((agent.state / "storage/receivers~002Ffilelog").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in states[-damaged:]:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    container.write("after")
    async with agent.running() as receiver:
        await until(lambda: "after" in agent.journal.bodies())
        assert no_loss(receiver)
    assert set(agent.journal.bodies()) == {*written, "after"}
    assert len(agent.journal.bodies()) <= len(written) * 2 + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "lockgate-test", str(directory)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def test_23_a_full_queue_disk_freezes_the_offsets_and_then_each_line_is_1x(
    small_disk: Path, pods: Path, container: Container
) -> None:
    agent = Agent(small_disk / "state", include=[f"{pods}/*/*/*.log"], operators=[{"type": "container"}])
    async with agent.running() as receiver:
        container.write("one")
        await agent.have(1)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", 0) as file:
            while True:
                file.write(bytes(4096))
        container.write("x" * 5000)
        await until(lambda: agent.journal.refused > 3)
        assert receiver._tailer is not None
        (before,) = receiver._tailer.snapshot()
        assert before.position == len(cri("one"))
        container.rotate(late="late")
        container.write("new")
        await until(lambda: "delivery" in receiver.context.status.blocked)
        filler.unlink()
        await agent.have(4)
        await until(lambda: not receiver.context.status.blocked)
        assert no_loss(receiver)
    async with agent.running():
        container.write("newest")
        await agent.have(5)
    assert sorted(agent.journal.bodies()) == ["late", "new", "newest", "one", "x" * 5000]
