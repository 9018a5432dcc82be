"""The files of a durable queue: what is appended comes back, damage costs what was damaged, and nothing else."""

import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.batch import Batch, Origin, Part, Signal
from lockgate.sending.segments import Journal, NewerFormat, Ref

LOG = logging.getLogger("test.segments")


def a_batch(number: int, size: int = 40) -> Batch:
    payload = (f"{number}:".encode() + os.urandom(size))[:size].ljust(size, b".")
    return Batch(Signal.LOGS, payload, number % 7 + 1, f"id-{number}", "10.0.0.1", (Origin("file", number, number + 1),))


def opened(directory: Path, **options: int) -> Journal:
    journal = Journal(directory / "queue", LOG, fsync=False, **options)
    journal.open()
    return journal


def drained(journal: Journal) -> list[tuple[Ref, Batch]]:
    entries: list[tuple[Ref, Batch]] = []
    while journal.unread.records:
        loaded = journal.load(100)
        assert loaded.error is None
        entries += loaded.entries
    return entries


def ids(entries: Sequence[tuple[Ref, Batch]]) -> list[str]:
    return [batch.id for _, batch in entries]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "queue").glob("*.segment"))


def test_a_batch_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = Batch(Signal.TRACES, b"abc" * 1000, 3, "x#1", "::1", (Origin("a", 1, 2), Origin("b", 0, 9)), (Part("p", 2000), Part("q", 1000)))
    journal = opened(tmp_path)
    journal.append([whole])
    journal.close()
    again = opened(tmp_path)
    assert (again.pending.records, again.pending.items, again.pending.payload_bytes) == (1, 3, 3000)
    assert [batch for _, batch in drained(again)] == [whole]


def test_what_is_marked_does_not_come_back_and_the_rest_does_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    refs = journal.append([a_batch(number) for number in range(6)])
    journal.mark([refs[0], refs[3]])
    journal.close()
    assert ids(drained(opened(tmp_path))) == ["id-1", "id-2", "id-4", "id-5"]


def test_a_segment_is_deleted_as_soon_as_all_of_it_is_delivered(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    refs = [ref for number in range(40) for ref in journal.append([a_batch(number, 200)])]
    files = segments(tmp_path)
    assert len(files) > 5 and journal.disk_bytes == sum(path.stat().st_size for path in files)
    first = [ref for ref in refs if ref.segment == refs[0].segment]
    journal.mark(first[1:])
    assert segments(tmp_path) == files
    journal.mark(first[:1])
    assert segments(tmp_path) == files[1:]
    journal.mark(refs[len(first) :])
    journal.close()
    assert segments(tmp_path) == [] and journal.disk_bytes == 0
    assert not list((tmp_path / "queue").glob("*.marks"))


def test_a_segment_of_a_newer_format_stops_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    opened(tmp_path).append([a_batch(1)])
    path = segments(tmp_path)[0]
    start = struct.pack("<4sH", b"LGQ\n", 2)
    path.write_bytes(start + struct.pack("<I", zlib.crc32(start)) + path.read_bytes()[10:])
    before = path.read_bytes()
    with pytest.raises(NewerFormat, match="format version 2, and this program knows 1; run the version that wrote it until"):
        opened(tmp_path)
    assert path.read_bytes() == before


def test_opening_reads_no_payload_but_that_of_the_newest_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path, segment_bytes=100_000)
    for number in range(20):
        journal.append([a_batch(number, 50_000)])
    journal.close()
    read, pread = 0, os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal read
        read += size
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert opened(tmp_path).pending.records == 20
    assert read < 110_000


def test_a_write_that_fails_leaves_nothing_behind_and_the_next_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    journal.append([a_batch(0)])
    pwrite = os.pwrite
    calls = 0

    def full(descriptor: int, content: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, content[: len(content) // 2], offset)  # a short write, then none

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            journal.append([a_batch(1), a_batch(2)])
    assert calls == 2
    journal.append([a_batch(3)])
    journal.close()
    again = opened(tmp_path)
    assert ids(drained(again)) == ["id-0", "id-3"]
    assert again.damaged_records == again.torn_bytes == 0


def test_a_damaged_record_between_good_ones_is_put_aside_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for where, expected in ((2, "head"), (-3, "body")):
        directory = tmp_path / expected
        directory.mkdir()
        journal = opened(directory)
        refs = journal.append([a_batch(number) for number in range(5)])
        journal.close()
        path = segments(directory)[0]
        content = bytearray(path.read_bytes())
        content[(refs[1].end if where > 0 else refs[2].end) + where] ^= 0x10
        path.write_bytes(content)
        again = opened(directory)
        entries = drained(again)
        assert ids(entries) == ["id-0", "id-1", "id-3", "id-4"]
        assert (again.damaged_records, again.quarantined_bytes) == (1, refs[2].end - refs[1].end)
        assert [copy.read_bytes() for copy in (directory / "queue" / "damaged").iterdir()] == [content[refs[1].end : refs[2].end]]
        again.mark(ref for ref, _ in entries)
        again.close()
        assert segments(directory) == []
    assert caplog.text.count("at least 1 batches are lost") == 2


def written(directory: Path, count: int) -> tuple[Path, bytes, list[Ref]]:
    journal = opened(directory)
    refs = journal.append([a_batch(number) for number in range(count)])
    journal.close()
    path = segments(directory)[0]
    return path, path.read_bytes(), refs


def test_truncated_at_any_byte_it_gives_the_whole_records_before(tmp_path: Path) -> None:
    path, content, refs = written(tmp_path, 3)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        journal = opened(tmp_path)
        expected = [f"id-{number}" for number, ref in enumerate(refs) if ref.end <= size]
        assert ids(drained(journal)) == expected, size
        whole = max([10, *(ref.end for ref in refs if ref.end <= size)])
        assert journal.torn_bytes == max(0, size - whole), size
        journal.append([a_batch(9)])  # and it goes on
        journal.close()
        again = opened(tmp_path)
        assert ids(drained(again)) == [*expected, "id-9"], size
        again.close()
        for each in segments(tmp_path):
            each.unlink()


def test_any_flipped_bit_costs_at_most_its_record(tmp_path: Path) -> None:
    path, content, refs = written(tmp_path, 3)
    ends = [10, *(ref.end for ref in refs)]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        path.with_suffix(".marks").unlink(missing_ok=True)
        journal = opened(tmp_path)
        hit = next((number for number in range(3) if ends[number] <= position < ends[number + 1]), None)
        got = ids(drained(journal))
        assert got == [f"id-{number}" for number in range(3) if number != hit], position
        assert journal.damaged_records + bool(journal.torn_bytes) == (hit is not None), position
        journal.close()


def test_a_damaged_mark_repeats_its_record_and_no_other(tmp_path: Path) -> None:
    path, _, refs = written(tmp_path, 4)
    journal = opened(tmp_path)
    drained(journal)
    journal.mark(refs[:3])
    journal.close()
    marks = path.with_suffix(".marks")
    content = bytearray(marks.read_bytes())
    content[8] ^= 1
    marks.write_bytes(content + b"\x01\x02\x03")
    again = opened(tmp_path)
    entries = drained(again)
    assert ids(entries) == ["id-1", "id-3"]
    again.mark([entries[0][0]])
    again.close()
    assert ids(drained(opened(tmp_path))) == ["id-3"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_over_any_history_of_crashes_and_damage_nothing_whole_is_lost_and_order_stays(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        journal = opened(directory, segment_bytes=400)
        refs: dict[str, Ref] = {}
        waiting: list[str] = []
        touched: set[tuple[str, int]] = set()
        number = 0
        for step in data.draw(st.lists(st.sampled_from(["append", "append", "mark", "crash", "flip", "cut"]), max_size=25)):
            if step == "append":
                count = data.draw(st.integers(1, 4))
                batches = [a_batch(number + index, data.draw(st.integers(10, 300))) for index in range(count)]
                number += count
                for batch, ref in zip(batches, journal.append(batches), strict=True):
                    refs[batch.id] = ref
                    waiting.append(batch.id)
            elif step == "mark" and waiting:
                chosen = data.draw(st.lists(st.sampled_from(waiting), unique=True))
                entries = dict(zip(ids(found := drained(journal)), found, strict=True))
                assert list(entries) == [each for each in waiting if each in entries]
                journal.mark(refs[each] for each in chosen)
                waiting = [each for each in waiting if each not in chosen]
            elif step in ("crash", "flip", "cut"):
                journal.close()
                files, is_noticed = segments(directory), True
                if files and step != "crash":
                    path = data.draw(st.sampled_from(files))
                    content = bytearray(path.read_bytes())
                    at = data.draw(st.integers(0, len(content) - 1))
                    if step == "cut":
                        # A file that ends where a record does, or has none, is one that nobody can tell from a whole one.
                        is_noticed = at > 10 and all((ref.segment, ref.end) != (int(path.stem), at) for ref in refs.values())
                        del content[at:]
                    elif (path.name, at) not in touched:  # a second flip of the same bits would mend it
                        touched.add((path.name, at))
                        content[at] ^= data.draw(st.integers(1, 255))
                    path.write_bytes(content)
                journal = opened(directory, segment_bytes=400)
                found = drained(journal)
                got = ids(found)
                missing = [each for each in waiting if each not in got]
                # A flip costs one record; a cut costs those behind it in its segment; each costs nothing elsewhere.
                assert got == [each for each in waiting if each not in missing]
                assert len({refs[each].segment for each in missing}) <= 1
                if step == "crash":
                    assert not missing
                elif step == "flip":
                    assert len(missing) <= 1
                if missing and is_noticed:
                    assert journal.damaged_records or journal.torn_bytes or journal.quarantined_bytes
                refs = {batch.id: ref for ref, batch in found}
                waiting = got
        journal.mark(refs[each] for each in waiting)
        journal.close()
        assert opened(directory).pending.records == 0
