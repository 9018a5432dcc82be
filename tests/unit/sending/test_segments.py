"""The files of a durable queue: what is appended comes back, damage costs what was damaged, and nothing else."""

import errno
import logging
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.batch import Batch, Origin, Part, Signal
from lockgate.kit.ranges import Ranges
from lockgate.sending.notes import Account, Outcome, Share
from lockgate.sending.segments import Amount, Journal, NewerFormat, Ref, Settlement

LOG = logging.getLogger("test.segments")


def a_batch(number: int, size: int = 40) -> Batch:
    payload = (f"{number}:".encode() + os.urandom(size))[:size].ljust(size, b".")
    return Batch(
        Signal.LOGS, payload, number % 7 + 1, f"id-{number}", "10.0.0.1", (Origin("tail:file", number, number + 1, 2, number % 7 + 1),)
    )


def opened(directory: Path, *readers: str, segment_bytes: int = 8 << 20, compression: tuple[str, int | None] = ("zstd", 1)) -> Journal:
    names = readers or ("out",)
    journal = Journal(
        directory / "queue", LOG, names, segment_bytes=segment_bytes, fsync=False, compression=compression, time_unix_nano=lambda: 0
    )
    journal.open()
    return journal


def drained(journal: Journal, reader: str = "out") -> list[tuple[Ref, Batch]]:
    entries: list[tuple[Ref, Batch]] = []
    while journal.readers[reader].unread.records:
        loaded = journal.load(reader, 100)
        assert loaded.error is None
        entries += loaded.entries
    return entries


def settle(journal: Journal, entries: Iterable[tuple[Ref, Batch]], reader: str = "out", outcome: Outcome | None = None) -> None:
    journal.settle(Settlement(reader, ref, batch, outcome or Outcome()) for ref, batch in entries)


def appended(journal: Journal, *batches: Batch) -> list[tuple[Ref, Batch]]:
    return list(zip(journal.append(batches), batches, strict=True))


def ids(entries: Sequence[tuple[Ref, Batch]]) -> list[str]:
    return [batch.id for _, batch in entries]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "queue").glob("*.segment"))


def test_a_batch_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = Batch(
        Signal.TRACES, b"abc" * 1000, 3, "x#1", "::1", (Origin("a:1", 1, 2, 1, 3), Origin("b:2", 0, 9)), (Part("p", 2000), Part("q", 1000))
    )
    journal = opened(tmp_path)
    journal.append([whole])
    journal.close()
    again = opened(tmp_path)
    assert again.readers["out"].unread == Amount(1, 3, 3000)
    assert [batch for _, batch in drained(again)] == [whole]


def test_what_is_marked_does_not_come_back_and_the_rest_does_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    entries = appended(journal, *(a_batch(number) for number in range(6)))
    settle(journal, [entries[0], entries[3]])
    journal.close()
    assert ids(drained(opened(tmp_path))) == ["id-1", "id-2", "id-4", "id-5"]


def test_a_segment_is_deleted_as_soon_as_all_of_it_is_delivered(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    entries = [entry for number in range(40) for entry in appended(journal, a_batch(number, 200))]
    files = segments(tmp_path)
    assert len(files) > 5
    assert journal.disk_bytes == sum(path.stat().st_size for path in (tmp_path / "queue").iterdir())
    first = [entry for entry in entries if entry[0].segment == entries[0][0].segment]
    settle(journal, first[1:])
    assert segments(tmp_path) == files
    settle(journal, first[:1])
    assert segments(tmp_path) == files[1:]
    settle(journal, entries[len(first) :])
    journal.close()
    assert segments(tmp_path) == []
    # What is known stays, in two generations.
    assert len(list((tmp_path / "queue").iterdir())) == 2
    assert journal.disk_bytes == sum(path.stat().st_size for path in (tmp_path / "queue").iterdir())


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
    assert opened(tmp_path).readers["out"].unread.records == 20
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
        refs = [ref for ref, _ in appended(journal, *(a_batch(number) for number in range(5)))]
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
        settle(again, entries)
        again.close()
        assert segments(directory) == []
    assert caplog.text.count("1 batches are lost to damage") == 2


Files = dict[str, bytes]


def files_of(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in (directory / "queue").iterdir() if path.is_file()}


def restore(directory: Path, files: Files) -> None:
    """The queue's directory with these files and no others."""
    shutil.rmtree(directory / "queue", ignore_errors=True)
    (directory / "queue").mkdir()
    for name, content in files.items():
        (directory / "queue" / name).write_bytes(content)


def written(directory: Path, count: int) -> tuple[Files, str, list[Ref]]:
    """The files of a queue of so many records, none delivered; which is the segment; where the records are."""
    journal = opened(directory)
    refs = journal.append([a_batch(number) for number in range(count)])
    journal.close()
    return files_of(directory), segments(directory)[0].name, refs


def lost(journal: Journal) -> list[tuple[int, int]]:
    return list(journal.knowledge.held("tail").lost.get("tail:file", ()))


def durable(journal: Journal) -> list[tuple[int, int]]:
    return list(journal.knowledge.held("tail").durable.get("tail:file", ()))


@pytest.mark.parametrize("are_notes_there", [pytest.param(True, id="with-notes"), pytest.param(False, id="power-loss")])
def test_truncated_at_any_byte_it_gives_the_whole_records_before_and_gives_back_what_was_acknowledged(
    tmp_path: Path, are_notes_there: bool
) -> None:
    files, name, refs = written(tmp_path, 3)
    if not are_notes_there:  # not synced, and gone: what is cut was never acknowledged, as far as anybody can tell
        files = {name: files[name]}
    for size in range(len(files[name])):
        restore(tmp_path, files | {name: files[name][:size]})
        journal = opened(tmp_path)
        count = sum(ref.end <= size for ref in refs)
        expected = [f"id-{number}" for number in range(count)]
        assert ids(drained(journal)) == expected, size
        whole = max([10, *(ref.end for ref in refs if ref.end <= size)])
        if are_notes_there:
            assert (journal.damaged_records, lost(journal)) == (3 - count, [(count, 3)]), size
        else:
            assert (journal.torn_bytes, journal.damaged_records, lost(journal)) == (max(0, size - whole), 0, []), size
        journal.append([a_batch(9)])  # and it goes on
        journal.close()
        again = opened(tmp_path)
        assert ids(drained(again)) == [*expected, "id-9"], size
        again.close()


def test_any_flipped_bit_costs_at_most_its_record_and_its_ranges_go_back(tmp_path: Path) -> None:
    files, name, refs = written(tmp_path, 3)
    ends = [10, *(ref.end for ref in refs)]
    for position in range(len(files[name])):
        damaged = bytearray(files[name])
        damaged[position] ^= 1 << position % 8
        restore(tmp_path, files | {name: bytes(damaged)})
        journal = opened(tmp_path)
        hit = next((number for number in range(3) if ends[number] <= position < ends[number + 1]), None)
        at_start = lost(journal)
        got = ids(drained(journal))
        assert got == [f"id-{number}" for number in range(3) if number != hit], position
        assert journal.damaged_records == (hit is not None), position
        assert lost(journal) == ([] if hit is None else [(hit, hit + 1)]), position
        given_back = [(origin.start, origin.end) for origin in journal.given_back()]
        assert [*at_start, *given_back] == lost(journal)  # told once: when it starts, or when it is found
        journal.close()


def test_what_is_damaged_and_delivered_is_not_lost(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    entries = appended(journal, *(a_batch(number) for number in range(3)))
    settle(journal, entries[1:2])
    journal.close()
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[entries[1][0].end - 2] ^= 1
    path.write_bytes(content)
    again = opened(tmp_path)
    assert ids(drained(again)) == ["id-0", "id-2"]
    assert (lost(again), again.damaged_records, durable(again)) == ([], 0, [(0, 3)])


def test_with_the_note_damaged_as_well_the_snapshots_tell_what_is_lost(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    for number in range(12):
        journal.append([a_batch(number, 200)])
    journal.close()
    path = segments(tmp_path)[1]
    ref = int(path.stem)
    content = bytearray(path.read_bytes())
    content[12] ^= 1  # the head of its first record
    path.write_bytes(content)
    (notes,) = (each for each in (tmp_path / "queue").glob("*.notes") if each.name.startswith(path.stem))
    content = bytearray(notes.read_bytes())
    at = content.index(b"\xf1LGN", content.index(b"\xf1LGN") + 1)
    content[at + 6] ^= 1  # the entry behind the snapshot
    notes.write_bytes(content)
    again = opened(tmp_path, segment_bytes=500)
    assert len(drained(again)) == 11
    assert lost(again) == [(ref - 1, ref)]
    # What the snapshots count more than there is, is given back as well: of twelve records of 1 to 7 items, the one.
    account, items = again.knowledge.accounts()["tail:file"], [number % 7 + 1 for number in range(12)]
    assert (account.lines, account.records) == (2 * 11, sum(items) - items[ref - 1])
    assert account.shares["out"] == Share(queued=sum(items), damaged=items[ref - 1])


def test_a_client_record_that_nobody_notes_any_more_is_lost_and_not_pending(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    for number in range(12):
        journal.append([replace(a_batch(number, 200), origins=())])
    journal.close()
    path = segments(tmp_path)[1]
    path.unlink()
    (notes,) = (each for each in (tmp_path / "queue").glob("*.notes") if each.name.startswith(path.stem))
    content = notes.read_bytes()
    notes.write_bytes(content[: content.index(b"\xf1LGN", content.index(b"\xf1LGN") + 1)])  # all that is behind the snapshot
    again = opened(tmp_path, segment_bytes=500)
    there = sum(batch.count for _, batch in drained(again))
    items = sum(number % 7 + 1 for number in range(12))
    assert again.knowledge.accounts()[""].shares["out"] == Share(queued=items, rejected={"damaged": items - there}) and there < items


def test_what_lies_before_a_position_and_nothing_tells_of_is_read_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    refs = journal.append([a_batch(number) for number in range(3)])
    journal.close()
    journal = opened(tmp_path)  # its notes begin with a snapshot of three
    refs += [ref for number in range(3, 6) for ref in journal.append([a_batch(number)])]
    journal.close()
    files = files_of(tmp_path)
    notes, segment = (max(name for name in files if name.endswith(suffix)) for suffix in (".notes", ".segment"))
    mark = files[notes].rindex(b"\xf1LGN")
    for restored, missing in (
        (files, []),
        (files | {notes: files[notes][: mark + 20]}, []),  # the record still tells
        (files | {notes: files[notes][: mark + 20], segment: files[segment][: refs[4].end + 30]}, [Origin("tail:file", 5, 6)]),
    ):
        restore(tmp_path, restored)
        again = opened(tmp_path)
        before = again.knowledge.accounts()["tail:file"].lines
        assert again.knowledge.saved("tail", {"tail:file": 6}) == missing
        assert again.knowledge.saved("tail", {"tail:file": 6}) == []
        again.sync()
        again.close()
        assert lost(opened(tmp_path)) == [(origin.start, origin.end) for origin in missing]
        assert before == 2 * (6 - len(missing))


def test_what_was_lost_is_lost_no_more_when_it_was_queued_again(tmp_path: Path) -> None:
    files, name, refs = written(tmp_path, 3)
    restore(tmp_path, files | {name: files[name][: refs[1].end]})
    journal = opened(tmp_path)
    assert lost(journal) == [(2, 3)]
    journal.close()
    again = opened(tmp_path)
    assert lost(again) == [(2, 3)]  # until then every start says so
    again.append([a_batch(2)])
    assert lost(again) == [] and durable(again) == [(0, 3)]
    account = again.knowledge.accounts()["tail:file"]
    # What was given back and read again counts once.
    assert (account.lines, account.records, account.shares["out"]) == (3 * 2, 1 + 2 + 3, Share(queued=1 + 2 + 3 + 3, damaged=3))


def test_what_is_given_back_counts_for_none_and_a_clients_damage_is_a_rejection(tmp_path: Path) -> None:
    journal = opened(tmp_path, "good", "dead")
    entries = appended(journal, a_batch(1), a_batch(2), replace(a_batch(3), origins=()), replace(a_batch(4), origins=()))
    settle(journal, entries[1:], "good")
    journal.close()
    files = files_of(tmp_path)
    (name,) = (name for name in files if name.endswith(".segment"))
    restore(tmp_path, files | {name: files[name][: entries[0][0].end] + b"x" * (len(files[name]) - entries[0][0].end)})
    again = opened(tmp_path, "good", "dead")
    accounts = again.knowledge.accounts()
    of_file, of_clients = accounts["tail:file"], accounts[""]
    # `good` has what it will get again; `dead` never got what the clients lost.
    assert (of_file.lines, of_file.records) == (2, 2)
    assert of_file.shares == {"good": Share(queued=2 + 3, delivered=3), "dead": Share(queued=2 + 3, damaged=3)}
    assert of_clients.shares == {"good": Share(queued=4 + 5, delivered=4 + 5), "dead": Share(queued=4 + 5, rejected={"damaged": 4 + 5})}
    again.append([a_batch(2)])
    of_file = again.knowledge.accounts()["tail:file"]
    assert (of_file.lines, of_file.records, of_file.shares["dead"].pending) == (2 * 2, 2 + 3, 2 + 3)


def test_a_block_of_notes_that_stands_at_another_place_as_well_counts_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    settle(journal, appended(journal, *(a_batch(number) for number in range(4)))[:2])
    told = journal.knowledge.accounts()
    journal.close()
    (notes,) = (path for path in (tmp_path / "queue").glob("*.notes") if path.name.endswith("2.notes"))
    content = notes.read_bytes()
    behind = content.index(b"\xf1LGN", content.index(b"\xf1LGN") + 1)
    notes.write_bytes(content + content[behind:])
    assert opened(tmp_path).knowledge.accounts() == told


def test_a_damaged_note_repeats_what_it_was_of_and_loses_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    entries = appended(journal, *(a_batch(number) for number in range(4)))
    for entry in entries[:3]:
        settle(journal, [entry])
    journal.close()
    files = files_of(tmp_path)
    (name,) = (name for name in files if name.endswith("2.notes"))
    for position in range(10, len(files[name])):
        damaged = bytearray(files[name])
        damaged[position] ^= 1 << position % 8
        restore(tmp_path, files | {name: bytes(damaged)})
        again = opened(tmp_path)
        got = ids(drained(again))
        assert got[-1] == "id-3" and got == sorted(got), position
        assert (again.damaged_records, lost(again), durable(again)) == (0, [], [(0, 4)]), position
        assert len(got) in (1, 2), position  # one mark at most is lost
        again.close()


def test_positions_outlive_their_segments_until_the_receiver_has_saved_them(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    for start in range(0, 30, 3):
        settle(journal, appended(journal, *(a_batch(number, 200) for number in range(start, start + 3))))
        journal.close()
        journal = opened(tmp_path, segment_bytes=500)
        assert durable(journal) == [(0, start + 3)]
    assert segments(tmp_path) == []
    journal.knowledge.saved("other", {})
    journal.knowledge.saved("tail", {"tail:file": 20})
    journal.append([a_batch(30)])
    journal.close()
    journal = opened(tmp_path, segment_bytes=500)
    assert durable(journal) == [(20, 31)]
    for _ in range(3):
        journal.knowledge.saved("tail", {})
    assert durable(journal) == []
    settle(journal, drained(journal))
    journal.knowledge.saved("tail", {})
    # What is left of the source is the owner's: bounded, whatever comes and goes.
    assert list(journal.knowledge.accounts()) == ["tail:"]


def test_a_source_that_came_while_its_receiver_saved_is_not_forgotten(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.knowledge.saved("tail", {})
    journal.append([a_batch(1)])  # after the receiver took stock, before it says that it saved
    journal.knowledge.saved("tail", {})
    assert durable(journal) == [(1, 2)]


def test_on_a_disk_that_takes_nothing_a_delivered_segment_gives_its_space_back_and_stays_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, segment_bytes=500)
    entries = [entry for number in range(6) for entry in appended(journal, a_batch(number, 200))]
    files = segments(tmp_path)

    def full(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        settle(journal, entries[:4])
        left = [path for path in files if path.exists()]
        assert len(left) < len(files)
        assert sum(path.stat().st_size for path in (tmp_path / "queue").glob("*.delivered")) == 0
    copy = tmp_path / "killed"
    copy.mkdir()
    restore(copy, files_of(tmp_path))  # killed here, it still knows
    for directory in (copy, tmp_path):
        again = opened(directory, segment_bytes=500)
        assert ids(drained(again)) == ["id-4", "id-5"]
        account = again.knowledge.accounts()["tail:file"]
        assert account.shares["out"].delivered == sum(batch.count for _, batch in entries[:4]), directory
        assert not list((directory / "queue").glob("*.delivered"))
        again.close()


def test_each_exporter_reads_all_of_it_at_its_own_pace(tmp_path: Path) -> None:
    journal = opened(tmp_path, "a", "b", segment_bytes=500)
    entries = [entry for number in range(12) for entry in appended(journal, a_batch(number, 200))]
    settle(journal, drained(journal, "a"), "a")
    assert len(segments(tmp_path)) > 3
    settle(journal, entries[:6], "b")
    journal.close()
    again = opened(tmp_path, "a", "b", segment_bytes=500)
    assert drained(again, "a") == []
    rest = drained(again, "b")
    assert ids(rest) == [f"id-{number}" for number in range(6, 12)]
    settle(again, rest, "b")
    again.close()
    assert segments(tmp_path) == []


def test_an_exporter_that_is_gone_holds_nothing_and_a_new_one_begins_with_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = opened(tmp_path, "a", "b")
    entries = appended(journal, *(a_batch(number) for number in range(3)))
    settle(journal, entries[:2], "a")
    journal.close()
    again = opened(tmp_path, "a", "c")
    assert again.abandoned_records == 3 and "the exporter b is no longer there; 3 batches" in caplog.text
    more = appended(again, a_batch(3))
    assert (ids(drained(again, "a")), ids(drained(again, "c"))) == (["id-2", "id-3"], ["id-3"])
    settle(again, [entries[2], *more], "a")
    again.close()
    last = opened(tmp_path, "a", "c")
    assert (ids(drained(last, "a")), ids(drained(last, "c"))) == ([], ["id-3"])
    settle(last, more, "c")
    last.close()
    assert segments(tmp_path) == []


def test_accounts_are_exact_over_kills_and_say_what_was_rejected_and_why(tmp_path: Path) -> None:
    def batch(number: int, *origins: Origin) -> Batch:
        return Batch(Signal.LOGS, b"x", sum(origin.records for origin in origins) or 5, f"id-{number}", origins=origins)

    one, other = Origin("tail:a", 0, 100, 12, 10), Origin("tail:b", 0, 50, 6, 6)
    journal = opened(tmp_path)
    entries = appended(journal, batch(0, one), batch(1, one, other), batch(2), batch(3, other), batch(4, one))
    settle(journal, entries[:1], outcome=Outcome(4, "partial"))
    settle(journal, entries[1:2], outcome=Outcome(3, "partial"))  # nobody says of which source
    settle(journal, entries[2:3], outcome=Outcome(5, "expired"))
    settle(journal, entries[3:4])
    restored = tmp_path / "killed"
    restored.mkdir()
    restore(restored, files_of(tmp_path))  # nothing was closed
    expected = {
        "tail:a": Account(36, 30, {"out": Share(30, 16, 0, {"partial": 4})}, end=100),
        "tail:b": Account(12, 12, {"out": Share(12, 12)}, end=50),
        "": Account(0, 5, {"out": Share(5, -3, 0, {"partial": 3, "expired": 5})}),
    }
    for each in (journal, opened(restored), opened(restored)):
        accounts = each.knowledge.accounts()
        assert accounts == expected
        assert sum(account.shares["out"].pending for account in accounts.values()) == 10


def test_what_processors_dropped_is_filtered_and_never_queued_also_where_nothing_is_left(tmp_path: Path) -> None:
    left, none = Origin("tail:a", 0, 100, 12, 7, 3), Origin("tail:a", 100, 200, 4, 0, 4)
    journal = opened(tmp_path)
    entries = appended(journal, Batch(Signal.LOGS, b"x", 7, "a", origins=(left,)), Batch(Signal.LOGS, b"", 0, "b", origins=(none,)))
    settle(journal, entries)
    journal.close()
    again = opened(tmp_path)
    (account,) = again.knowledge.accounts().values()
    assert (account.lines, account.records, account.filtered, account.joined) == (16, 7, 7, 2)
    assert account.shares == {"out": Share(7, 7)}
    assert list(again.knowledge.held("tail").durable["tail:a"]) == [(0, 200)]


def test_counts_of_files_that_are_gone_are_kept_for_their_container_while_it_has_one(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    knowledge = journal.knowledge
    batches = [Batch(Signal.LOGS, b"x", 2, f"id-{name}", origins=(Origin(f"tail:{name}", 0, 10, 3, 2),)) for name in ("old", "new", "odd")]
    entries = appended(journal, *batches)
    groups = {"tail:old": "/pods/shop_web_1:2/main", "tail:new": "/pods/shop_web_1:2/main"}
    settle(journal, entries[:2])
    for _ in range(3):
        knowledge.saved("tail", {"tail:new": 10}, groups)
    group = "tail:=/pods/shop_web_1%3A2/main"
    done, waiting = Account(3, 2, {"out": Share(2, 2)}, end=10), Account(3, 2, {"out": Share(2)}, end=10)
    assert knowledge.accounts() == {group: Account(3, 2, {"out": Share(2, 2)}), "tail:new": done, "tail:odd": waiting}
    settle(journal, entries[2:])
    for _ in range(4):
        knowledge.saved("tail", {}, {})
    assert knowledge.accounts() == {"tail:": Account(9, 6, {"out": Share(6, 6)})}
    assert knowledge.total("tail").joined == 3


def test_since_when_something_waits_is_known_after_a_restart(tmp_path: Path) -> None:
    times = iter((10, 20, 30))
    journal = Journal(tmp_path / "queue", LOG, ["out"], fsync=False, time_unix_nano=lambda: next(times))
    journal.open()
    appended(journal, a_batch(0))
    appended(journal, a_batch(1))
    assert journal.knowledge.share("out").since_unix_nano == 10
    journal.close()
    again = opened(tmp_path)
    assert again.knowledge.share("out").since_unix_nano == 10
    settle(again, drained(again))
    assert again.knowledge.share("out").since_unix_nano == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_over_any_history_of_crashes_and_damage_nothing_whole_is_lost_and_what_is_lost_is_given_back(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        journal = opened(directory, segment_bytes=400)
        waiting: dict[str, tuple[Ref, Batch]] = {}
        gone = Ranges()
        number = 0
        for step in data.draw(
            st.lists(st.sampled_from(["append", "append", "settle", "crash", "flip", "cut", "fill", "delete"]), max_size=25)
        ):
            if step == "append":
                count = data.draw(st.integers(1, 4))
                entries = appended(journal, *(a_batch(number + index, data.draw(st.integers(10, 300))) for index in range(count)))
                number += count
                waiting |= {batch.id: (ref, batch) for ref, batch in entries}
            elif step == "settle" and waiting:
                drained(journal)
                chosen = data.draw(st.lists(st.sampled_from(list(waiting)), unique=True))
                settle(journal, [waiting.pop(each) for each in chosen])
            elif step in ("crash", "flip", "cut", "fill", "delete"):
                journal.close()
                files = segments(directory)
                if files and step != "crash":
                    damage(data, step, data.draw(st.sampled_from(files)))
                journal = opened(directory, segment_bytes=400)
                found = {batch.id: (ref, batch) for ref, batch in drained(journal)}
                missing = [each for each in waiting if each not in found]
                # A flip costs one record; other damage what is behind it in its segment; each costs nothing elsewhere.
                assert list(found) == [each for each in waiting if each in found]
                assert len({waiting[each][0].segment for each in missing}) <= 1
                assert len(missing) <= {"crash": 0, "flip": 1}.get(step, 9)
                for each in missing:
                    gone.add(int(each[3:]), int(each[3:]) + 1)
                assert journal.damaged_records == len(missing)
                assert lost(journal) == list(gone)
                held = Ranges([*durable(journal), *gone])
                assert list(held) == ([(0, number)] if number else [])
                waiting = found
        settle(journal, waiting.values())
        journal.close()
        last = opened(directory)
        assert last.readers["out"].unread.records == 0
        assert all(account.shares["out"].pending == 0 for account in last.knowledge.accounts().values())


def damage(data: st.DataObject, step: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if step == "cut":
        del content[at:]
    elif step == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif step == "fill":
        content[at:] = data.draw(st.binary(max_size=100))
    path.unlink()
    if step != "delete":
        path.write_bytes(content)


class Faults:
    """Lets calls that write or sync fail, as they were drawn; after that none."""

    def __init__(self, data: st.DataObject, patch: pytest.MonkeyPatch) -> None:
        self.codes = data.draw(st.lists(st.sampled_from([0, 0, 0, errno.ENOSPC, errno.EIO]), max_size=60))
        self.seen = 0
        for name in ("pwrite", "fdatasync", "fsync", "ftruncate", "truncate", "unlink", "rename"):
            patch.setattr(os, name, self._flaky(getattr(os, name), is_short=name == "pwrite"))
        patch.setattr(os, "open", self._flaky(os.open, only=lambda *arguments: bool(arguments[1] & os.O_CREAT)))

    def _flaky(self, call: Any, *, is_short: bool = False, only: Any = None) -> Any:
        def called(*arguments: Any, **more: Any) -> Any:
            if self.codes and (only is None or only(*arguments)) and (code := self.codes.pop(0)):
                self.seen += 1
                if is_short and code == errno.ENOSPC and len(arguments[1]) > 1:
                    self.codes.insert(0, code)
                    return call(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                raise OSError(code, os.strerror(code))
            return call(*arguments, **more)

        return called


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whichever_write_or_sync_fails_what_was_acknowledged_is_there_and_it_goes_on(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory, number, is_open = Path(name), 0, True
        journal = Journal(directory / "queue", LOG, ("out",), segment_bytes=400)
        journal.open()
        faults = Faults(data, patch)
        acknowledged: dict[str, tuple[Ref, Batch]] = {}
        settled: set[str] = set()
        for step in data.draw(st.lists(st.sampled_from(["append", "append", "append", "settle", "sync", "probe", "kill"]), max_size=25)):
            try:
                if step == "append":
                    entries = appended(journal, *(a_batch(number + index, 100) for index in range(2)))
                    acknowledged |= {batch.id: (ref, batch) for ref, batch in entries}
                elif step == "settle" and acknowledged.keys() - settled:
                    chosen = data.draw(st.lists(st.sampled_from(sorted(acknowledged.keys() - settled)), unique=True))
                    settle(journal, [acknowledged[each] for each in chosen])
                    settled |= set(chosen)
                elif step == "sync":
                    journal.sync()
                elif step == "probe":
                    journal.probe(100)
                elif step == "kill":
                    journal = Journal(directory / "queue", LOG, ("out",), segment_bytes=400)
                    is_open = False
                    journal.open()
                    is_open = True
                    settled &= acknowledged.keys()
                    found = {batch.id: (ref, batch) for ref, batch in drained(journal)}
                    assert set(found) >= acknowledged.keys() - settled
                    acknowledged |= found
                    settled -= found.keys()  # not noted before it was killed: once more
            except OSError:
                assert step in ("append", "probe", "kill")
                if not is_open:
                    faults.codes.clear()
                    journal = Journal(directory / "queue", LOG, ("out",), segment_bytes=400)
                    journal.open()
                    is_open = True
                    found = {batch.id: (ref, batch) for ref, batch in drained(journal)}
                    assert set(found) >= acknowledged.keys() - settled
                    acknowledged |= found
                    settled -= found.keys()
            number += 2
        faults.codes.clear()
        journal.append([a_batch(999)])
        journal.close()
        last = Journal(directory / "queue", LOG, ("out",), segment_bytes=400)
        last.open()
        rest = drained(last)
        assert set(ids(rest)) >= {*(acknowledged.keys() - settled), "id-999"}
        assert last.damaged_records == 0
        settle(last, rest)
        last.close()
        assert segments(directory) == []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_befalls_its_files_it_opens_drains_and_keeps_what_was_not_touched(data: st.DataObject) -> None:
    """Flips, cuts, garbage, swapped and copied files, of segments and notes alike, several at once, in a queue of two exporters."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        journal = opened(directory, "a", "b", segment_bytes=400)
        entries = [entry for number in range(data.draw(st.integers(1, 12))) for entry in appended(journal, a_batch(number, 150))]
        settled = data.draw(st.lists(st.sampled_from(entries), unique_by=lambda entry: entry[0].sequence))
        settle(journal, settled, "a")
        journal.close()
        touched = set[str]()
        for _ in range(data.draw(st.integers(1, 4))):
            files = sorted(path for path in (directory / "queue").iterdir() if path.is_file())
            if not files:
                break
            one, other = data.draw(st.sampled_from(files)), data.draw(st.sampled_from(files))
            touched |= {one.name}
            match step := data.draw(st.sampled_from(["flip", "cut", "fill", "delete", "swap", "copy"])):
                case "swap":
                    touched |= {other.name}
                    first, second = one.read_bytes(), other.read_bytes()
                    one.write_bytes(second)
                    other.write_bytes(first)
                case "copy":
                    one.write_bytes(other.read_bytes())
                case _ if one.stat().st_size:
                    damage(data, step, one)
        whole = {batch.id: batch for ref, batch in entries if f"{ref.segment:020d}.segment" not in touched}
        again = opened(directory, "a", "b", segment_bytes=400)
        done = {batch.id for _, batch in settled}
        for reader in ("a", "b"):
            found = drained(again, reader)
            assert all(batch in [known for _, known in entries] for _, batch in found)  # nothing is made up
            assert set(ids(found)) >= whole.keys() - (done if reader == "a" else set())
            settle(again, found, reader)
        ranges = [*durable(again), *lost(again)]
        if not any(name.endswith(".notes") for name in touched):
            assert list(Ranges(ranges)) == [(0, len(entries))]
        again.append([a_batch(99)])
        again.close()
        last = opened(directory, "a", "b", segment_bytes=400)
        for reader in ("a", "b"):
            assert ids(drained(last, reader)) == ["id-99"]
        last.close()


def test_a_number_that_an_unfinished_write_left_is_given_again_and_not_taken_for_damaged(tmp_path: Path) -> None:
    """A power loss in the midst of a write of two: their heads are there, their bodies are not."""
    journal = opened(tmp_path)
    journal.append([a_batch(1)])
    (segment,), (notes,) = segments(tmp_path), sorted((tmp_path / "queue").glob("*.notes"))[-1:]
    noted = notes.read_bytes()
    first, second = journal.append([a_batch(2), a_batch(3)])
    journal.close()
    notes.write_bytes(noted)
    content = bytearray(segment.read_bytes())
    for ref in (first, second):
        content[ref.end - 10 : ref.end] = os.urandom(10)
    segment.write_bytes(content)
    journal = opened(tmp_path)
    assert ids(drained(journal)) == ["id-1"]
    journal.append([a_batch(4)])
    journal.close()
    assert ids(drained(opened(tmp_path))) == ["id-1", "id-4"]


def test_a_block_that_was_written_to_another_place_costs_what_stood_there_alone(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    ends = [ref.end for ref in journal.append([a_batch(number) for number in range(1, 11)])]
    journal.close()
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    later = content[ends[7] : ends[8]]
    content[ends[1] : ends[1] + len(later)] = later
    segment.write_bytes(content)
    found = ids(drained(opened(tmp_path)))
    assert {f"id-{number}" for number in (1, 2, 5, 6, 7, 8, 9, 10)} <= set(found)
    assert len(found) == len(set(found))
