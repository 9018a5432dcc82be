"""Rotated files that a kubelet left behind: which are read, from where, and what a broken one costs."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tail import Bench, bodies

from lockgate.kit.ranges import Ranges
from lockgate.pipeline.ledger import Place


@pytest.fixture(params=[True, False], ids=["inotify", "polling"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    logs = tmp_path / "logs"
    logs.mkdir()
    bench = Bench(logs, inotify=request.param, poll_seconds=0.001)
    yield bench
    bench.kill()


def rotated(number: int, suffix: str = ".gz") -> str:
    return f"0.log.20240101-{number:06d}{suffix}"


def test_rotated_files_from_before_the_first_start_are_left_alone_for_good(bench: Bench) -> None:
    bench.write(rotated(1), gzip.compress(b"old\n"))
    bench.write(rotated(2, ""), b"old too\n")
    bench.write("0.log", "new\n")
    assert bench.read() == ["new"]
    bench.stop()
    bench.write(rotated(2), gzip.compress(b"old too\n"))  # the kubelet goes on with them
    bench.unlink(rotated(2, ""))
    assert bench.read() == []
    assert (bench.tailer.counts.unknown, bench.tailer.counts.gaps) == (0, 0)


def test_without_positions_that_were_there_once_rotated_files_are_read(bench: Bench) -> None:
    bench.is_first_start = False
    bench.write(rotated(1), gzip.compress(b"one\n"))
    bench.write("0.log", "two\n")
    assert bench.read() == ["one", "two"]


def test_rotated_files_that_came_while_down_are_read_the_oldest_first(bench: Bench) -> None:
    bench.write("0.log", "first\n")
    assert bench.read() == ["first"]
    bench.stop()
    for number in range(40):
        bench.write(rotated(number), gzip.compress("".join(f"{number} {line}\n" for line in range(300)).encode()))
    bench.write(rotated(40, ""), "40\n")
    found = bench.read()
    assert found == [*(f"{number} {line}" for number in range(40) for line in range(300)), "40"]
    assert bench.tailer.counts.found == 41
    bench.stop()
    assert bench.read() == []


def test_many_logs_with_compressed_files_are_read_by_turns(bench: Bench) -> None:
    for log in range(40):
        bench.write(f"{log}.log", "first\n")
    bench.read()
    bench.stop()
    for log in range(40):
        for number in range(3):
            bench.write(f"{log}.log.20240101-{number:06d}.gz", gzip.compress((f"{log} {number}\n" * 5000).encode()))
    found = bench.read()
    assert len(found) == 40 * 3 * 5000
    assert found[0] == "0 0"
    for log in range(40):
        assert [line for line in found if line.startswith(f"{log} ")] == [f"{log} {number}" for number in range(3) for _ in range(5000)]


def test_a_file_excluded_or_too_old_is_not_read_when_it_is_compressed(bench: Bench) -> None:
    bench.options |= {"exclude": (f"{bench.directory}/*.gz",)}
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    bench.write(rotated(1), gzip.compress(b"excluded\n"))
    assert bench.read() == []
    bench.stop()
    bench.options |= {"exclude": (), "exclude_older_than_seconds": 3600.0}
    os.utime(bench.directory / rotated(1), (1, 1))
    assert bench.read() == []


def test_somebody_elses_archives_are_left_alone(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    bench.write("backup.20240101-000000.gz", gzip.compress(b"not a log\n"))
    bench.write("0.log.old.gz", gzip.compress(b"not a kubelet's\n"))
    assert bench.read(1) == []


@pytest.mark.parametrize(
    ("broken", "least"),
    [
        pytest.param(gzip.compress(b"one\n" * 5000)[:-4], 4990, id="without-its-end"),
        pytest.param(b"no gzip", 0, id="no-gzip"),
        pytest.param(b"", 0, id="empty"),
    ],
)
def test_of_a_broken_file_what_is_good_is_read_and_the_rest_is_a_gap_told_once(bench: Bench, broken: bytes, least: int) -> None:
    bench.write("0.log", "first\n")
    assert bench.read() == ["first"]
    bench.stop()
    bench.write(rotated(1), broken)
    bench.write("0.log", "last\n")
    found = bench.read() + bench.read(20)
    assert found[-1] == "last" or found.count("last") == 1
    assert found.count("one") >= least
    assert bench.tailer.counts.gaps == 1
    assert any(rotated(1) in text for text in bench.tailer.losses)
    bench.read(20)
    bench.stop()
    assert bench.read() == []
    assert bench.tailer.counts.gaps == 0


def test_what_a_queue_holds_is_not_read_again_whatever_the_positions_say(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\nthree\nfour\nfive\n")
    bench.stop()
    (range_,) = bench.look().ranges
    bench.kill()
    key = range_.life.key
    bench.durable = {key: Ranges([(0, 4), (8, 14), (19, 24)])}
    assert bench.read() == ["two", "four"]
    assert bench.tailer.snapshot()[0].position == 24


def test_what_a_queue_holds_of_a_file_is_known_inside_its_compressed_form(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\nthree\n")
    bench.look()
    bench.stop()  # knows the file, and nothing of it was taken
    bench.write("0.log", "four\n")
    (key,) = [entry.key for entry in bench.saved]
    bench.saved = []
    bench.write(rotated(1), gzip.compress((bench.directory / "0.log").read_bytes()))
    bench.unlink("0.log")
    bench.durable = {key: Ranges([(0, 8)])}
    round_ = bench.look()
    assert bodies(round_) == ["three", "four"]
    assert [range_.life.key for range_ in round_.ranges] == [key]


@pytest.mark.parametrize("where", ["open", "rotated", "compressed", "gone"])
@pytest.mark.parametrize("restarted", [True, False])
def test_what_a_queue_lost_is_read_again_wherever_it_stands(bench: Bench, where: str, restarted: bool) -> None:
    bench.write("0.log", "one\ntwo\nthree\n")
    bench.read()
    (entry,) = bench.tailer.snapshot()
    if restarted:
        bench.stop()
        bench.lost = {entry.key: Ranges([(4, 8)])}
    if where != "open":
        bench.rename("0.log", rotated(1, ""))
        bench.write("0.log", "new\n")
    if where == "compressed":
        bench.write(rotated(1), gzip.compress((bench.directory / rotated(1, "")).read_bytes()))
    if where in ("compressed", "gone"):
        bench.unlink(rotated(1, ""))
    found = bench.read(1)
    if not restarted:
        if where != "open":
            found += bench.read(30) + bench.read(30)  # closed by now
        bench.tailer.give_back([(entry.key, 4, 8)])
        found += bench.read(1)
    expected = ["two"] if where != "gone" else []
    assert sorted(found) == sorted([*expected, *([] if where == "open" else ["new"])])
    assert (bench.tailer.counts.gaps, bench.tailer.counts.lost_bytes) == ((1, 4) if where == "gone" else (0, 0))
    assert not any(entry.again for entry in bench.tailer.snapshot())


def test_what_was_empty_when_saved_and_was_read_and_compressed_since_is_not_perhaps_lost(bench: Bench) -> None:
    bench.write("0.log", "")
    bench.read()
    bench.saved = bench.tailer.snapshot()
    bench.write("0.log", "one\n")
    assert bench.read(1) == ["one"]
    (entry,) = bench.tailer.snapshot()
    bench.kill()
    bench.durable = {entry.key: Ranges([(0, 4)])}
    bench.write("0.log", "two\n")
    bench.rename("0.log", rotated(1, ""))
    bench.write("0.log", "new\n")
    bench.write(rotated(1), gzip.compress((bench.directory / rotated(1, "")).read_bytes()))
    bench.unlink(rotated(1, ""))
    assert sorted(bench.read() + bench.read(1)) == ["new", "two"]
    assert (bench.tailer.counts.unknown, bench.tailer.counts.gaps) == (0, 0)


def test_what_was_given_back_is_remembered_until_it_was_taken_again(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\n")
    bench.read()
    (entry,) = bench.tailer.snapshot()
    bench.tailer.give_back([(entry.key, 0, 4)])
    assert [source.unread_bytes for source in bench.tailer.look_at(lambda path, real: Place())] == [4]
    assert bodies(bench.look(1)) == ["one"]  # read, and not taken
    bench.stop()
    assert [(entry.position, entry.again) for entry in bench.saved] == [(8, ((0, 4),))]
    assert bench.read() == ["one"]
    bench.stop()
    assert [(entry.position, entry.again) for entry in bench.saved] == [(8, ())]
