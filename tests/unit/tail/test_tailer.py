"""The matrix of rotation: each record exactly once, or its loss counted. Real files, real renames."""

import gzip
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.tail import Bench, bodies, container, plain


@pytest.fixture(params=[True, False], ids=["inotify", "polling"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    logs = tmp_path / "logs"
    logs.mkdir()
    bench = Bench(logs, inotify=request.param, poll_seconds=0.001)
    yield bench
    bench.kill()


LINE = "2024-01-01T00:00:00.5Z {} {} {}\n"


def cri_line(body: str, tag: str = "F", stream: str = "stdout") -> str:
    return LINE.format(stream, tag, body)


def test_a_torn_write_gives_its_record_once_at_its_newline(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("one") + cri_line("torn")[:30])
    assert bench.read() == ["one"]
    assert bench.read(20) == []
    bench.write("0.log", cri_line("torn")[30:])
    assert bench.read(1) == ["torn"]


def test_a_torn_first_line_is_no_identity_yet(bench: Bench) -> None:
    bench.write("0.log", "to")
    assert bench.read() == []
    bench.write("0.log", "rn\n")
    assert bench.read(1) == ["torn"]
    bench.stop()
    assert bench.read(1) == []


def test_a_file_renamed_while_its_writer_holds_it_is_drained_with_the_new_one(bench: Bench) -> None:
    with open(bench.directory / "0.log", "ab", 0) as writer:
        writer.write(b"one\n")
        assert bench.read() == ["one"]
        writer.write(b"two\n")
        bench.rename("0.log", "0.log.20240101-000000")
        writer.write(b"three\n")
        bench.write("0.log", "new one\n")
        assert sorted(bench.read(1)) == ["new one", "three", "two"]
        writer.write(b"four\n")
    assert bench.read(1) == ["four"]
    assert bench.tailer.counts.rotations == 1


def test_a_file_renamed_to_a_name_that_matches_is_not_read_twice(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.rename("0.log", "1.log")
    bench.write("0.log", "two\n")
    assert bench.read(1) == ["two"]
    bench.write("1.log", "late\n")
    assert bench.read(1) == ["late"]


def test_kubelet_rotation_over_and_over_loses_and_doubles_nothing(bench: Bench) -> None:
    written: list[str] = []
    found: list[str] = []
    raw = ""
    for turn in range(12):
        for line in range(3):
            written.append(f"{turn}-{line}")
            bench.write("0.log", written[-1] + "\n")
        if turn % 3 != 2:
            found += bench.read(1)
        if raw:  # the kubelet compresses what was rotated last time
            packed = bench.directory / f"{raw}.gz"
            with gzip.open(f"{packed}.tmp", "wb") as file:
                file.write((bench.directory / raw).read_bytes())
            Path(f"{packed}.tmp").rename(packed)
            if turn % 3 == 2:
                found += bench.read(1)
            bench.unlink(raw)
        raw = f"0.log.20240101-0000{turn:02d}"
        bench.rename("0.log", raw)
        written.append(f"{turn}-late")
        bench.write(raw, written[-1] + "\n")
    found += bench.read(1)
    assert found == written, "the older file of a log goes first"
    assert bench.tailer.counts.lost_bytes == 0
    bench.read(100)
    bench.read(100)
    assert bench.tailer.open_files == 0, "rotated files are let go"


def test_a_file_that_another_is_renamed_over_is_drained_and_then_let_go(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("one"))
    assert bench.read() == ["one"]
    for turn in range(5):
        bench.write("0.log", cri_line(f"late {turn}") + cri_line("begun, ", "P"))
        bench.write("0.log.tmp", cri_line(f"ended {turn}"))
        bench.rename("0.log.tmp", "0.log")
        assert bench.read(1) == [f"late {turn}", f"begun, ended {turn}"]
    bench.read(20)
    bench.read(20)
    assert bench.tailer.open_files == 1
    assert bench.tailer.counts.gaps == 0


def test_many_compressed_files_after_downtime_are_read_by_turns(bench: Bench) -> None:
    logs, files = range(3), range(20)  # more than are unpacked at a time, and the oldest of a log goes first
    # The oldest is unpacked to its end by a look at its beginning.
    lines = {log: [f"{log} 0 ".ljust(999, "x"), *(f"{log} {turn} {line}" for turn in files[1:] for line in range(200))] for log in logs}
    for log in logs:
        bench.write(f"{log}.log", "first\n")
    assert bench.read() == ["first"] * len(logs)
    bench.stop()
    for log in logs:
        for turn in files:
            content = "".join(f"{line}\n" for line in lines[log] if line.startswith(f"{log} {turn} "))
            bench.write(f"{log}.log.20240101-0000{turn:02d}.gz", gzip.compress(content.encode()))
    found = bench.read(1)
    assert {log: [line for line in found if line.startswith(f"{log} ")] for log in logs} == lines


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_deleted_while_nobody_reads_is_kept_up_to_a_bound_and_counted_beyond_it(tmp_path: Path, packed: bool) -> None:
    bench = Bench(tmp_path, max_deleted_bytes=15)
    bench.write("0.log", "first\n")
    assert bench.read() == ["first"]
    rotated = [f"0.log.20240101-00000{number}" for number in range(5)]
    for number, name in enumerate(rotated):
        bench.write("0.log", f"line {number}..\n")
        bench.now += 10
        bench.tailer.look()
        bench.rename("0.log", name)
        bench.tailer.look()
        if packed and number:
            bench.write(f"{rotated[number - 1]}.gz", gzip.compress((tmp_path / rotated[number - 1]).read_bytes()))
            bench.unlink(rotated[number - 1])
            bench.now += 10
            bench.tailer.look()
    bench.write("0.log", "last\n")
    for path in sorted(tmp_path.glob("0.log.*"))[:4]:
        path.unlink()
    bench.now += 10
    bench.tailer.look()
    found = bench.read(10)
    lost = {f"line {number}.." for number in range(5)} - set(found)
    assert found[-2:] == ["line 4..", "last"]
    assert bench.tailer.counts.lost_bytes == 9 * len(lost) > 0
    assert bench.tailer.counts.unknown == 0
    bench.kill()


def test_a_rotated_file_with_more_than_a_round_takes_goes_on_before_its_successor(bench: Bench) -> None:
    old, new = [f"old {number}" for number in range(3000)], [f"new {number}" for number in range(3000)]
    bench.write("0.log", old[0] + "\n")
    assert bench.read() == old[:1]
    bench.write("0.log", "".join(f"{line}\n" for line in old[1:]))
    bench.rename("0.log", "0.log.20240101-000000")
    bench.write("0.log", "".join(f"{line}\n" for line in new))
    bench.write("1.log", "another\n" * 3000)
    found = old[:1]
    while len(found) < 9000:
        round_ = bench.look(1, max_bytes=8192, max_records=500)
        for range_ in round_.ranges:
            range_.take()
        found += bodies(round_)
    assert [line for line in found if line != "another"] == old + new


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("rotations", [1, 2])
def test_a_record_over_a_rotation_is_one(bench: Bench, rotations: int, restarted: bool) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("whole") + cri_line("a", "P") + cri_line("between", stream="stderr") + cri_line("b", "P"))
    assert bench.read() == ["whole"]
    for turn in range(rotations):
        bench.rename("0.log", f"0.log.20240101-00000{turn}")
        bench.write("0.log", cri_line(f"c{turn}", "P"))
        assert bench.read(1) == []
    if restarted:
        bench.stop()
    bench.write("0.log", cri_line("end") + cri_line("next"))
    joined = "ab" + "".join(f"c{turn}" for turn in range(rotations)) + "end"
    assert sorted(bench.read(1)) == sorted([joined, "between", "next"])
    bench.stop()
    assert bench.read(30) == []
    assert (bench.tailer.counts.unfinished, bench.tailer.counts.gaps) == (0, 0)


def test_an_open_record_whose_end_never_comes_is_given_out_before_what_follows_a_while_later(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("open", "P"))
    bench.read()
    bench.rename("0.log", "0.log.20240101-000000")
    assert bench.read(1) == []
    assert bench.read(6) == ["open"]
    bench.write("0.log", cri_line("next"))
    assert bench.read(1) == ["next"]
    assert bench.tailer.counts.unfinished == 1


def test_a_plain_line_without_its_newline_is_not_glued_to_the_next_files_first(bench: Bench) -> None:
    bench.write("0.log", "one\ntorn")
    assert bench.read() == ["one"]
    bench.rename("0.log", "0.log.20240101-000000")
    bench.write("0.log", "two\n")
    assert bench.read(1) == ["two"]
    assert bench.read(10) == ["torn"]


def test_a_rotated_raw_file_is_found_by_identity_after_downtime(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    bench.write("0.log", "two\n")
    bench.rename("0.log", "0.log.20240101-000000")
    bench.write("0.log", "three\n")
    assert sorted(bench.read(1)) == ["three", "two"]
    assert bench.tailer.counts.gaps == 0


def test_a_file_truncated_and_rotated_while_down_is_read_from_its_beginning(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    os.truncate(bench.directory / "0.log", 0)
    bench.write("0.log", "two\n")
    bench.rename("0.log", "0.log.20240101-000000")
    assert bench.read(1) == ["two"]


def test_somebody_elses_file_on_an_inode_used_again_is_left_alone(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    os.truncate(bench.directory / "0.log", 0)
    bench.write("0.log", "not a log\n")
    bench.rename("0.log", "database")
    assert bench.read(1) == []
    bench.read(100)
    assert bench.tailer.open_files == 0


def test_a_rotated_file_keeps_the_path_that_says_whose_log_it_is(bench: Bench) -> None:
    seen: list[str] = []

    def parser(path: str, real: str, descriptor: int):  # type: ignore[no-untyped-def]
        seen.append(path)
        return plain(path, real, descriptor)

    bench.make_parser = parser
    bench.write("0.log", "one\n")
    bench.read()
    bench.stop()
    bench.write("0.log", "two\n")
    bench.rename("0.log", "0.log.old")
    assert bench.read(1) == ["two"]
    assert seen == [str(bench.directory / "0.log")] * 2


def test_an_unlinked_file_is_drained_and_then_let_go(bench: Bench) -> None:
    with open(bench.directory / "0.log", "ab", 0) as writer:
        writer.write(b"one\n")
        assert bench.read() == ["one"]
        bench.unlink("0.log")
        writer.write(b"two\n")
        assert bench.read(2) == ["two"]
        writer.write(b"three\n")
        assert bench.read(2) == ["three"]
        writer.write(b"unfinished")
    assert bench.read(2) == []
    assert bench.read(20) == ["unfinished"]
    bench.read(20)
    assert bench.tailer.open_files == 0
    assert bench.tailer.snapshot() == []


def test_a_removed_pod_directory_is_drained_from_the_descriptor(tmp_path: Path) -> None:
    bench = Bench(tmp_path, include=(f"{tmp_path}/*/*/*.log",))
    pod = tmp_path / "ns_pod_uid" / "c"
    pod.mkdir(parents=True)
    bench.write("ns_pod_uid/c/0.log", "one\n")
    assert bench.read() == ["one"]
    bench.write("ns_pod_uid/c/0.log", "two\n")
    (pod / "0.log").unlink()
    pod.rmdir()
    pod.parent.rmdir()
    assert bench.read(1) == ["two"]
    pod.mkdir(parents=True)
    bench.write("ns_pod_uid/c/0.log", "three\n")
    assert bench.read(1) == ["three"]
    bench.kill()


def test_what_was_deleted_unread_while_down_is_a_counted_gap(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\n")
    round_ = bench.look()
    assert bodies(round_) == ["one", "two"]  # read, and never taken
    bench.stop()
    bench.unlink("0.log")
    assert bench.read() == []
    assert (bench.tailer.counts.gaps, bench.tailer.counts.lost_bytes) == (1, 8)


def test_a_new_file_on_the_same_path_and_inode_is_another_file(bench: Bench) -> None:
    bench.write("0.log", "one one one\n")
    assert bench.read() == ["one one one"]
    bench.stop()
    inode = (bench.directory / "0.log").stat().st_ino
    with open(bench.directory / "0.log", "wb") as file:  # the same inode, certainly
        file.write(b"two two two\nthree\n")
    assert (bench.directory / "0.log").stat().st_ino == inode
    assert bench.read() == ["two two two", "three"]


def test_copytruncate_after_everything_was_read_starts_from_zero(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\n")
    assert bench.read() == ["one", "two"]
    os.truncate(bench.directory / "0.log", 0)
    assert bench.read(1) == []
    bench.write("0.log", "three\n")
    assert bench.read(1) == ["three"]
    counts = bench.tailer.counts
    assert (counts.truncations, counts.gaps, counts.lost_bytes) == (1, 0, 0)


def test_copytruncate_of_an_unread_tail_counts_what_was_lost(bench: Bench) -> None:
    bench.write("0.log", "one\n" + "torn")
    assert bench.read() == ["one"]
    os.truncate(bench.directory / "0.log", 0)
    bench.write("0.log", "2\n")
    assert bench.read(1) == ["2"]
    counts = bench.tailer.counts
    assert (counts.truncations, counts.gaps, counts.lost_bytes) == (1, 1, 4)


@pytest.mark.parametrize(
    "again", ["new one\nnew two\nnew three\n", "one\nTWO\nthree\n", "one\ntwO\n"], ids=["longer", "same-first-line", "same-size"]
)
def test_a_file_truncated_and_grown_past_the_position_is_noticed(bench: Bench, again: str) -> None:
    bench.write("0.log", "one\ntwo\n")
    assert bench.read() == ["one", "two"]
    keys = {entry.key for entry in bench.tailer.snapshot()}
    os.truncate(bench.directory / "0.log", 0)
    bench.write("0.log", again)
    assert bench.read(11) == again.splitlines()
    assert bench.tailer.counts.truncations == 1
    assert not keys & {entry.key for entry in bench.tailer.snapshot()}, "positions of two contents never share a key"


def test_a_file_truncated_and_grown_while_down_is_noticed(bench: Bench) -> None:
    bench.write("0.log", "header\n" + "x" * 2000 + "\nend\n")
    assert len(bench.read()) == 3
    bench.stop()
    os.truncate(bench.directory / "0.log", 0)
    bench.write("0.log", "header\n" + "x" * 2000 + "\nEND\nmore\n")
    assert [line[:6] for line in bench.read()] == ["header", "xxxxxx", "END", "more"]


def test_a_hole_left_by_a_writer_that_does_not_append_is_skipped(bench: Bench) -> None:
    with open(bench.directory / "0.log", "wb", 0) as writer:
        writer.write(b"x" * 100_000 + b"\n")
        assert len(bench.read()) == 1
        os.truncate(bench.directory / "0.log", 0)
        writer.write(b"after\n")  # at the old offset
    assert bench.read(1) == ["after"]


def test_partial_lines_join_for_each_stream(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("o1 ", "P") + cri_line("e1 ", "P", "stderr") + cri_line("o2", "F") + cri_line("e2", "F", "stderr"))
    assert sorted(bench.read()) == ["e1 e2", "o1 o2"]


def test_an_open_group_is_not_passed_by_the_position(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("one") + cri_line("first ", "P"))
    assert bench.read() == ["one"]
    bench.stop()
    bench.write("0.log", cri_line("second"))
    assert bench.read() == ["first second"]


def test_a_group_without_its_end_is_given_out_after_a_while(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", cri_line("first ", "P"))
    assert bench.read() == []
    assert bench.read(4) == []
    assert bench.read(2) == ["first "]
    assert bench.tailer.counts.unfinished == 1
    bench.write("0.log", cri_line("second"))
    assert bench.read(1) == ["second"]


def test_an_unfinished_plain_line_is_given_out_after_a_while(bench: Bench) -> None:
    bench.write("0.log", "no newline")
    assert bench.read() == []
    assert bench.read(6) == ["no newline"]


@pytest.mark.parametrize("size", [1500, 5_000, 300_000], ids=["over-limit", "over-twice-the-limit", "over-the-chunk"])
def test_a_line_over_the_limit_is_cut_and_the_next_is_intact(bench: Bench, size: int) -> None:
    bench.options["max_record_bytes"] = 1000
    bench.make_parser = partial(plain, limit=1000)
    bench.write("0.log", "before\n" + "x" * size + "\nafter\n")
    assert bench.read() == ["before", "x" * 1000, "after"]
    assert bench.tailer.counts.truncated == 1


def test_a_line_without_end_moves_on_in_bounded_memory_and_over_a_restart(bench: Bench) -> None:
    bench.options["max_record_bytes"] = 1000
    bench.make_parser = partial(plain, limit=1000)
    bench.write("0.log", "y" * 200_000)
    assert bench.read(1) == ["y" * 1000]
    bench.write("0.log", "y" * 200_000)
    assert bench.read(1) == []
    bench.stop()
    bench.write("0.log", "y" * 100 + "\nafter\n")
    assert bench.read(1) == ["after"]


def test_bytes_that_are_no_text_are_kept_and_counted(bench: Bench) -> None:
    bench.make_parser = container
    bench.write("0.log", b"2024-01-01T00:00:00Z stdout F \xff\xfe\x00\nno header at all\n")
    assert bench.read() == ["\xff\xfe\x00", "no header at all"]
    assert bench.tailer.counts.malformed == 1


def test_a_link_out_of_the_roots_is_refused_and_counted_once(bench: Bench) -> None:
    (bench.directory / "9.log").symlink_to("/etc/passwd")
    bench.write("0.log", "one\n")
    for _ in range(3):
        bench.read(20)
    assert bench.tailer.counts.refused == 1
    assert "outside of" in bench.tailer.problems[str(bench.directory / "9.log")]
    bench.unlink("9.log")
    bench.read(20)
    assert bench.tailer.problems == {}


def test_links_to_pods_follow_rotation(tmp_path: Path) -> None:
    pods, containers = tmp_path / "pods", tmp_path / "containers"
    (pods / "ns_p_u/c").mkdir(parents=True)
    containers.mkdir()
    bench = Bench(pods / "ns_p_u/c", include=(f"{containers}/*.log",), link_roots=(str(pods),))
    bench.write("0.log", "one\n")
    (containers / "p_ns_c-1.log").symlink_to(pods / "ns_p_u/c/0.log")
    assert bench.read() == ["one"]
    bench.write("0.log", "two\n")
    assert bench.read(1) == ["two"]
    bench.rename("0.log", "0.log.20240101-000000")
    bench.write("0.log.20240101-000000", "three\n")
    bench.write("0.log", "four\n")
    assert sorted(bench.read(1)) == ["four", "three"]
    bench.write("0.log", "five\n")
    assert bench.read(1) == ["five"]
    bench.kill()


def test_a_file_with_two_names_is_read_once(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    os.link(bench.directory / "0.log", bench.directory / "1.log")
    assert bench.read() == ["one"]
    bench.unlink("0.log")
    bench.write("1.log", "two\n")
    assert bench.read(20) == ["two"]


def test_a_file_made_and_rotated_between_two_looks_is_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read()
    bench.write("0.log", "one\n")
    bench.rename("0.log", "0.log.1")
    bench.write("0.log", "two\n")
    bench.rename("0.log", "0.log.2")
    bench.write("0.log", "three\n")
    assert sorted(bench.read(1)) == ["one", "three", "two"]
    bench.kill()


def test_an_overflow_of_the_event_queue_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"the queue holds {limit} events")
    bench = Bench(tmp_path)
    bench.write("0.log", "one\n")
    bench.write("1.log", "one\n")
    assert bench.read() == ["one", "one"]
    with open(tmp_path / "0.log", "ab", 0) as a, open(tmp_path / "1.log", "ab", 0) as b:
        for number in range(limit // 2 + 100):  # equal events in a row are one, so two files take turns
            a.write(b"%d\n" % number)
            b.write(b"%d\n" % number)
    bench.rename("0.log", "0.log.old")
    bench.write("0.log", "new\n")
    assert len(bench.read(1)) == 2 * (limit // 2 + 100) + 1
    assert bench.tailer.counts.overflows == 1
    bench.kill()


def test_start_at_end_skips_what_is_there_and_reads_what_comes(bench: Bench) -> None:
    bench.options["start_at_end"] = True
    bench.write("0.log", "old\nold and torn")
    assert bench.read() == []
    bench.write("0.log", " whole\nnew\n")
    bench.write("1.log", "appeared later\n")
    assert sorted(bench.read(1)) == ["appeared later", "new", "old and torn whole"]
    bench.stop()
    bench.write("0.log", "while down\n")
    bench.write("2.log", "appeared while down\n")
    assert sorted(bench.read()) == ["appeared while down", "while down"]


def test_start_at_end_is_about_the_very_first_start_although_that_found_no_file(bench: Bench) -> None:
    bench.options["start_at_end"] = True
    assert bench.read() == []
    bench.stop()
    bench.write("0.log", "appeared while down\n")
    assert bench.read() == ["appeared while down"]


def test_a_clean_restart_repeats_and_loses_nothing(bench: Bench) -> None:
    bench.write("0.log", "one\ntwo\n")
    assert bench.read() == ["one", "two"]
    bench.stop()
    assert bench.read() == []
    bench.write("0.log", "three\n")
    assert bench.read(1) == ["three"]


def test_what_was_read_and_not_taken_is_read_again_after_a_kill(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    assert bench.read() == ["one"]
    bench.stop()
    bench.write("0.log", "two\n")
    first = bench.look()
    bench.kill()
    second = bench.look()
    assert bodies(first) == bodies(second) == ["two"]
    assert [(r.life.key, r.start, r.end) for r in first.ranges] == [(r.life.key, r.start, r.end) for r in second.ranges]


def test_the_same_file_has_the_same_key_in_every_process_even_without_positions(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    (first,) = bench.look().ranges
    bench.kill()
    (second,) = bench.look().ranges
    assert first.life.key == second.life.key


def test_positions_advance_over_the_contiguous_prefix_alone(bench: Bench) -> None:
    bench.write("0.log", "one\n")
    (first,) = bench.look().ranges
    bench.write("0.log", "two\n")
    (second,) = bench.look(1).ranges
    second.take()
    assert bench.tailer.snapshot()[0].position == 0
    first.take()
    assert bench.tailer.snapshot()[0].position == 8


def test_no_file_starves_behind_a_large_one(bench: Bench) -> None:
    bench.write("0.log", "x" * 99 + "\n")
    for _ in range(200):
        bench.write("0.log", ("x" * 99 + "\n") * 100)
    for number in range(1, 6):
        bench.write(f"{number}.log", f"small {number}\n")
    round_ = bench.look(max_bytes=400_000)
    found = bodies(round_)
    assert {f"small {number}" for number in range(1, 6)} <= set(found)
    assert round_.more
    assert sum(range_.end - range_.start for range_ in round_.ranges) <= 400_000


def test_a_round_keeps_its_bound_of_records(bench: Bench) -> None:
    bench.write("0.log", "x\n" * 5000)
    sizes = []
    while True:
        round_ = bench.look(max_records=700)
        if not round_.records:
            break
        sizes.append(round_.records)
    assert sum(sizes) == 5000
    assert max(sizes) <= 700


def test_more_files_than_may_be_open_take_turns(bench: Bench) -> None:
    bench.options["max_files"] = 8
    for number in range(40):
        bench.write(f"{number}.log", f"{number}\n")
    found: list[str] = []
    for _ in range(30):
        found += bench.read(2)
        assert bench.tailer.open_files <= 8
    assert sorted(found, key=int) == [str(number) for number in range(40)]
    for number in (0, 13, 39):
        bench.write(f"{number}.log", f"again {number}\n")
    found = []
    for _ in range(5):
        found += bench.read(11)
    assert sorted(found) == ["again 0", "again 13", "again 39"]


def test_a_directory_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "later")
    assert bench.read() == []
    assert bench.tailer.missing == {str(tmp_path / "later")}
    (tmp_path / "later").mkdir()
    bench.write("0.log", "one\n")
    assert bench.read(2) == ["one"]
    assert bench.tailer.missing == set()
    bench.kill()


def test_old_files_are_left_out_until_they_are_written_to(bench: Bench) -> None:
    bench.options["exclude_older_than_seconds"] = 3600.0
    bench.write("0.log", "old\n")
    os.utime(bench.directory / "0.log", (1, 1))
    assert bench.read() == []
    bench.write("0.log", "new\n")
    assert bench.read(1) == ["old", "new"]


def test_excluded_files_and_the_programs_own_output_are_left_out(bench: Bench) -> None:
    bench.write("0.log", "wanted\n")
    bench.write("1.log", "excluded\n")
    bench.write("2.log", "own\n")
    status = (bench.directory / "2.log").stat()
    bench.options |= {"exclude": (f"{bench.directory}/1*",), "own": frozenset({(status.st_dev, status.st_ino)})}
    assert bench.read() == ["wanted"]


def test_a_compressed_file_that_matches_is_said_not_to_be_read(bench: Bench) -> None:
    bench.options["include"] = (f"{bench.directory}/*",)
    bench.write("0.log.gz", gzip.compress(b"one\n"))
    assert bench.read() == []
    assert "compressed" in bench.tailer.problems[str(bench.directory / "0.log.gz")]


def test_a_fifo_in_a_logs_place_holds_nobody_up(bench: Bench) -> None:
    os.mkfifo(bench.directory / "0.log")
    bench.write("1.log", "one\n")
    assert bench.read() == ["one"]
    assert "regular" in bench.tailer.problems[str(bench.directory / "0.log")]


def test_a_quiet_tailer_asks_for_no_look_before_its_time(bench: Bench) -> None:
    """Or the reading loop would spin on a torn line that no flush may take."""
    bench.make_parser = container
    bench.options["poll_seconds"] = 0.2
    bench.write("0.log", cri_line("one") + "2024-01-01T00")
    bench.read()
    bench.read(20)
    bench.read(20)
    reads = bench.tailer.counts.reads
    assert bench.tailer.next_look() >= bench.now + 0.1
    bench.read(0.01)
    assert bench.tailer.counts.reads == reads


def test_a_thousand_files_are_read_once_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path, include=(f"{tmp_path}/*/*/*.log",))
    for number in range(1000):
        (tmp_path / f"ns_pod{number}_uid" / "c").mkdir(parents=True)
        bench.write(f"ns_pod{number}_uid/c/0.log", f"{number}\n")
    assert sorted(map(int, bench.read())) == list(range(1000))
    bench.write("ns_pod7_uid/c/0.log", "again\n")
    reads = bench.tailer.counts.reads
    assert bench.read(1) == ["again"]
    assert bench.tailer.counts.reads - reads <= 2, "a line in one file looks at that file alone"
    bench.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_unreadable_file_is_an_error_that_names_file_uid_gid_and_mode(bench: Bench) -> None:
    bench.write("0.log", "secret\n")
    bench.write("1.log", "open\n")
    (bench.directory / "0.log").chmod(0o600)
    for parent in [bench.directory, *bench.directory.parents][:-1]:
        if parent.owner() == "root" and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        assert bench.read() == ["open"]
        problem = bench.tailer.problems[str(bench.directory / "0.log")]
        for word in (str(bench.directory / "0.log"), "uid 65534", "gid 0", "mode -rw-------", "owner uid 0"):
            assert word in problem
    finally:
        os.seteuid(0)
    (bench.directory / "0.log").chmod(0o644)
    assert bench.read(20) == ["secret"]
    assert bench.tailer.problems == {}


if sys.platform != "linux":
    pytest.skip("follows files as Linux does", allow_module_level=True)
