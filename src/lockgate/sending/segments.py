"""A pipeline's queue on disk: append-only segments of records, read by several exporters, each from its own place. No asyncio, no threads.

Own files, not SQLite or LMDB: a delivered segment gives its space back by one unlink, which works on a full disk too; nothing is compacted
or repaired; and a damaged place costs the records in it alone.

    NUMBER.segment     header, then records; NUMBER (20 digits) is the sequence of its first record
    NUMBER.delivered   what is left of a delivered segment while nothing can be written: its name alone
    *.notes            what is known beside the records (notebook.py): positions, ids, who has delivered what, counts
    damaged/           copies of what could not be read, for a human

A header is magic, format version, CRC: these ten bytes stay where they are in every version. A program that finds a version it does not
know refuses to start and touches nothing. Going back: let the newer program empty the queue, or move the directory aside.

A record is a head with a CRC of its own, metadata (MessagePack), and the payload, compressed as the first exporter sends it, if it does so
with gzip or zstd: compression is most of what the queue costs, so it is done once. (zstd, level 1, otherwise.) A snapshot says how
much each older segment holds, so that opening reads the newest segment and those that some exporter is in the middle of, and no payload but
the newest's; a body's CRC is checked when it is loaded. Where a head is damaged, the next one whose head and body check out is looked for,
sequences tell how many records are missing, and the notes where they came from.

A record is acknowledged when it and the note of it are written; the record is synced, the note is not (the record has the same in its
metadata). A segment is deleted when every exporter is done with it and the notes that say so are synced: whatever happens, its positions,
ids and counts are known from the notes, which open with a snapshot for each new segment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import msgspec
from isal.isal_zlib import crc32

from lockgate.batch import Batch, Origin, Part, Signal
from lockgate.kit.ranges import Ranges
from lockgate.net.compression import CorruptBody, TooLarge, compress, decompress
from lockgate.sending.notebook import HEADER, NOTES_MAGIC, VERSION, Notebook, header, sync_directory, version_of, write
from lockgate.sending.notes import (
    Account,
    Change,
    Damaged,
    Knowledge,
    OriginFields,
    Outcome,
    Queued,
    QueuedRecord,
    SegmentNote,
    Settled,
    Snapshot,
    origin_fields,
    origins_of,
    queued_record,
    settled_record,
)

QUARANTINE_BYTES = 64 << 20
"""How much is copied aside at most; beyond it damage is counted and logged alone. A guess."""
EPOCH_BYTES = 4 << 20
"""Notes behind a snapshot before the next one is written (or as much as the snapshot itself, where that is larger)."""
MAX_IDS = 65_536
"""Ids that are remembered, at 8 bytes each in every snapshot; fewer where segments are small."""

_HEADER_MAGIC = b"LGQ\n"
_HEAD = struct.Struct("<4sIQIIIII")
"""Magic, CRC of what follows, sequence, body size, metadata size, records, payload size (not compressed), CRC of the body."""
_MAGIC = b"\xf1LGR"
_SEGMENT, _DELIVERED = ".segment", ".delivered"


class NewerFormat(OSError):
    """A file was written by a program that knows more than this one."""


class _Meta(msgspec.Struct, array_like=True):
    signal: Signal
    id: str
    peer: str
    origins: list[OriginFields]
    parts: list[tuple[str, int]]
    encoding: str


@dataclass(frozen=True, slots=True)
class Amount:
    """So much of a queue: its records here are batches, in which the items are log records, spans or data points."""

    records: int = 0
    items: int = 0
    payload_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.records + other.records, self.items + other.items, self.payload_bytes + other.payload_bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.records - other.records, self.items - other.items, self.payload_bytes - other.payload_bytes)


@dataclass(frozen=True, slots=True)
class Ref:
    """One record in the files."""

    segment: int
    sequence: int
    end: int
    """Where the next record begins."""
    amount: Amount


@dataclass(slots=True)
class Loaded:
    """What was read for an exporter, in order."""

    entries: list[tuple[Ref, Batch]] = field(default_factory=list)
    error: OSError | None = None
    """What kept it from reading on."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """An exporter is done with a record."""

    reader: str
    ref: Ref
    batch: Batch
    outcome: Outcome


@dataclass(slots=True, eq=False)
class Reader:
    """An exporter's place."""

    name: str
    unread: Amount = Amount()
    """Not delivered by it, and neither loaded nor passed over."""
    unread_in: dict[int, Amount] = field(default_factory=dict)
    """The same by segment, in order."""
    lost: Amount = Amount()
    """What it will not get, because it was damaged, since somebody asked."""
    segment: int = 0
    """Where it reads: the segment, the position there, and the sequence that is expected."""
    position: int = 0
    expected: int = 0

    def add(self, segment: int, amount: Amount) -> None:
        """So much more is unread, in this segment."""
        if amount.records:
            self.unread += amount
            self.unread_in[segment] = self.unread_in.get(segment, Amount()) + amount

    def take(self, segment: int, amount: Amount) -> None:
        """So much of this segment is not unread any more."""
        if (had := self.unread_in.get(segment)) is None:
            return
        left = had - amount
        if left.records > 0:
            self.unread_in[segment] = left
            self.unread -= amount
        else:
            del self.unread_in[segment]
            self.unread -= had

    def lose(self, segment: int) -> None:
        """The rest of this segment cannot be read."""
        if (rest := self.unread_in.get(segment)) is not None:
            self.take(segment, rest)
            self.lost += rest


@dataclass(slots=True, eq=False)
class _Segment:
    number: int
    path: Path
    size: int
    end: int
    """The sequence behind its last record."""
    total: Amount = Amount()


@dataclass(frozen=True, slots=True)
class _Head:
    sequence: int
    start: int
    body: int
    payload: int
    end: int
    amount: Amount
    crc: int


@dataclass(frozen=True, slots=True)
class _Gap:
    start: int
    end: int


class Journal:
    """The records of one queue. One thread at a time uses it, but `knowledge` may be asked from any; what writes or reads blocks."""

    def __init__(
        self,
        directory: Path,
        log: logging.Logger,
        readers: Sequence[str],
        *,
        segment_bytes: int = 8 << 20,
        fsync: bool = True,
        compression: tuple[str, int | None] = ("zstd", 1),
        time_unix_nano: Callable[[], int] = time.time_ns,
    ) -> None:
        self._time_unix_nano = time_unix_nano
        self._compression = compression
        self._directory, self._log, self._segment_bytes, self._fsync = directory, log, segment_bytes, fsync
        self.readers = {name: Reader(name) for name in readers}
        self.knowledge = Knowledge(readers, min(MAX_IDS, segment_bytes // 128))
        self._notebook = Notebook(directory, log, fsync=fsync)
        self._segments: dict[int, _Segment] = {}
        self._active: _Segment | None = None
        self._descriptor = -1
        self._next = 1
        self._outbox: list[Change] = []
        """Known, and not yet in the notes."""
        self._hollow: list[Path] = []
        """Left of delivered segments; to be deleted when the notes that say so are on disk."""
        self._quarantined: set[str] = set()
        self._given_back: list[Origin] = []
        self._segment_disk_bytes = 0
        self.damaged_records = self.quarantined_bytes = self.torn_bytes = self.abandoned_records = 0

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files but the damaged copies."""
        return self._segment_disk_bytes + self._notebook.disk_bytes

    @property
    def damaged_note_bytes(self) -> int:
        """Bytes of notes that could not be read."""
        return self._notebook.damaged_bytes

    def given_back(self) -> list[Origin]:
        """What was found to be lost, after `open`, since this was asked last: to be read again by whoever can."""
        origins, self._given_back = self._given_back, []
        return origins

    # Opening.

    def open(self) -> None:
        """Finds what earlier processes left. Raises NewerFormat, or OSError where the directory cannot be used."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if self._fsync:
            sync_directory(self._directory.parent)
        paths = {int(path.stem): path for path in sorted(self._directory.glob(f"*{_SEGMENT}")) if re.fullmatch("[0-9]{20}", path.stem)}
        for path, magic in [*((path, _HEADER_MAGIC) for path in paths.values()), *((path, NOTES_MAGIC) for path in self._notebook.paths())]:
            self._check_version(path, magic)
        snapshot, entries = self._notebook.read()
        if snapshot is not None:
            self.knowledge.restore(snapshot)
        for entry in entries:
            self.knowledge.apply(entry)
        self._next = max([1, *(end for _, end in self.knowledge.noted), *(number + 1 for number in paths)])
        for path in self._directory.glob(f"*{_DELIVERED}"):
            self._recall_delivered(path, min((number for number in paths if number > int(path.stem)), default=self._next))
        for name, batches in self.knowledge.retire(list(self.readers)).items():
            self.abandoned_records += batches
            text = "%s: the exporter %s is no longer there; %d batches that it had not delivered are not kept for it"
            self._log.warning(text, self._directory, name, batches)
        present, damaged = Ranges(), Ranges()
        sealed = {note.number: note for note in snapshot.segments} if snapshot is not None else {}
        for number, following in zip_longest(paths, list(paths)[1:]):
            self._recover(paths[number], sealed.get(number), following, present, damaged)
        absent = [span for waiting in self.knowledge.pending(1, self._next) for span in present.missing(*waiting)]
        self._damage(Ranges(absent), Ranges([*damaged, *self.knowledge.noted]))
        if self._notebook.is_whole and not (self.damaged_records or self.quarantined_bytes or self.torn_bytes):
            self.knowledge.trust()
        else:
            self.knowledge.doubt()
        self.knowledge.enrol(list(self.readers), self._next)
        with contextlib.suppress(OSError):  # a full disk: it is tried again before anything else is written
            self._begin_epoch()
        for segment in list(self._segments.values()):
            self._drop_if_done(segment)
        self._given_back.clear()  # who asks what is held hears of it; told twice, it would be read twice

    def _check_version(self, path: Path, magic: bytes) -> None:
        version = version_of(path, magic)
        if version is not None and version != VERSION:
            raise NewerFormat(
                f"cannot read the queue in {self._directory}: {path.name} has format version {version}, and this program knows {VERSION}; "
                "run the version that wrote it until the queue is empty, or move the directory aside"
            )

    def _recall_delivered(self, path: Path, end: int) -> None:
        for queued in self._notebook.queued(int(path.stem), end):
            for sequence, record in enumerate(queued.records, queued.first):
                if int(path.stem) <= sequence < end:
                    told = [(origin[0], origin[4], "") for origin in record.origins] or [("", record.items, "")]
                    for name in self.knowledge.done:
                        self.knowledge.apply(Settled(name, [(sequence, told)]))
        self.knowledge.apply(Damaged([(int(path.stem), end)], []))  # what is not noted
        self._hollow.append(path)

    def _recover(self, path: Path, note: SegmentNote | None, following: int | None, present: Ranges, damaged: Ranges) -> None:
        """Adds the segment; to `present` the sequences that are in it, to `damaged` those that certainly were."""
        number, size = int(path.stem), path.stat().st_size
        segment = self._segments[number] = _Segment(number, path, size, number)
        self._segment_disk_bytes += size
        if note is not None and note.size == size:
            left = {name: ranges.missing(number, note.end) for name, ranges in self.knowledge.done.items()}
            if all(spans in ([], [(number, note.end)]) for spans in left.values()):
                segment.end, segment.total = note.end, Amount(note.records, note.items, note.payload_bytes)
                present.add(number, note.end)
                for name in (name for name, spans in left.items() if spans):
                    self.readers[name].add(number, segment.total)
                return
        with open(path, "r+b", buffering=0) as file:
            begins = os.pread(file.fileno(), HEADER.size, 0)
            if begins != header(_HEADER_MAGIC) and not (following is None and size <= HEADER.size):
                self._quarantine(file.fileno(), segment, 0, len(begins))
            gap = self._survey(file.fileno(), segment, following if note is None else note.end, present, damaged)
            if gap is None:
                return
            is_noted = self.knowledge.noted.reach(segment.end) > segment.end
            if following is None and not is_noted and _is_torn(file.fileno(), number, gap):
                self._cut(file.fileno(), segment, gap)
                return
            self._quarantine(file.fileno(), segment, gap.start, gap.end)
            if note is None or segment.end < note.end:
                damaged.add(segment.end, segment.end + 1)  # at least one: the sequences end here
                self._next = max(self._next, segment.end + 1)

    def _survey(self, descriptor: int, segment: _Segment, limit: int | None, present: Ranges, damaged: Ranges) -> _Gap | None:
        """Looks at every head; what is behind the last good one. Sequences from `limit` on were never acknowledged."""
        gap: _Gap | None = None
        for found in _walk(descriptor, segment.number, HEADER.size, segment.size):
            if isinstance(found, _Gap) or not self._is_noted(descriptor, found):
                gap = _Gap(found.start if gap is None else gap.start, found.end)
                continue
            if limit is not None and found.sequence >= limit:
                return None
            if found.sequence < segment.end:  # a copy
                continue
            damaged.add(segment.end, found.sequence)
            if gap is not None:
                self._quarantine(descriptor, segment, gap.start, gap.end)
                gap = None
            present.add(found.sequence, found.sequence + 1)
            segment.end = found.sequence + 1
            segment.total += found.amount
            for name, reader in self.readers.items():
                if name in self.knowledge.done and not self.knowledge.is_done(name, found.sequence):
                    reader.add(segment.number, found.amount)
        self._next = max(self._next, segment.end)
        return gap

    def _is_noted(self, descriptor: int, head: _Head) -> bool:
        """Notes what a crash kept from the notes; False where the record, never noted, is not whole."""
        if self.knowledge.noted.reach(head.sequence) > head.sequence:
            return True
        batch = _read(descriptor, head)
        if batch is not None:
            self.knowledge.apply(Queued(head.sequence, [queued_record(batch)]))
        return batch is not None

    def _cut(self, descriptor: int, segment: _Segment, gap: _Gap) -> None:
        self._log.warning(
            "%s: the last write was cut short; %d bytes that nobody was told of are removed", segment.path, gap.end - gap.start
        )
        self.torn_bytes += gap.end - gap.start
        os.ftruncate(descriptor, gap.start)
        self._segment_disk_bytes -= segment.size - gap.start
        segment.size = gap.start

    # Writing.

    def append(self, batches: Sequence[Batch]) -> list[Ref]:
        """Writes these and returns when they are on disk. Raises OSError, having written none of them."""
        segment = self._active
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._roll()
        refs, frames, position, sequence = list[Ref](), list[bytes](), segment.size, self._next
        for batch in batches:
            frame = _frame(segment.number, position, sequence, batch, self._compression)
            position += len(frame)
            frames.append(frame)
            refs.append(Ref(segment.number, sequence, position, Amount(1, batch.count, len(batch.payload))))
            sequence += 1
        queued = Queued(self._next, [queued_record(batch) for batch in batches], self._time_unix_nano())
        try:
            write(self._descriptor, b"".join(frames), segment.size)
            if self._fsync:
                os.fdatasync(self._descriptor)
            if not self._notebook.is_open:
                self._begin_epoch()
            self._notebook.write([queued])
        except OSError:
            # After a failed sync nobody knows which pages are on disk: what is written next goes to another file.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, segment.size)
            self._seal()
            raise
        self._segment_disk_bytes += position - segment.size
        segment.size, segment.end, self._next = position, sequence, sequence
        self.knowledge.apply(queued)
        added = sum((ref.amount for ref in refs), Amount())
        segment.total += added
        for reader in self.readers.values():
            reader.add(segment.number, added)
        return refs

    def settle(self, settlements: Iterable[Settlement]) -> None:
        """Exporters are done with these. Where that cannot be noted now it is later; meanwhile a crash would repeat the records."""
        told: dict[str, list[tuple[int, list[tuple[str, int, str]]]]] = {}
        touched = dict[int, None]()
        for each in settlements:
            told.setdefault(each.reader, []).append(settled_record(each.ref.sequence, each.batch, each.outcome))
            touched[each.ref.segment] = None
        for name, records in told.items():
            self._outbox.append(settled := Settled(name, records))
            self.knowledge.apply(settled)
        self._flush_if_possible()
        for number in touched:
            if (segment := self._segments.get(number)) is not None:
                self._drop_if_done(segment)
        if self._notebook.size > self._notebook.snapshot_bytes + max(EPOCH_BYTES, self._notebook.snapshot_bytes):
            with contextlib.suppress(OSError):
                self._begin_epoch()

    def sync(self) -> None:
        """What is noted is on disk: a power loss repeats what was settled since this was called last."""
        if self._flush_if_possible(sync=True):
            self._tidy()

    def probe(self, payload_bytes: int) -> None:
        """Raises OSError while so much cannot be written."""
        free = os.statvfs(self._directory)
        if free.f_bavail * free.f_frsize < payload_bytes + 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._active is None:
            self._roll()

    def close(self) -> None:
        """Lets go of the files. What is not delivered stays for the next process."""
        self._seal()
        self._flush_if_possible(sync=True)
        self._notebook.end()

    def _roll(self) -> _Segment:
        self._seal()
        path = self._directory / f"{self._next:020d}{_SEGMENT}"
        # Nothing that was acknowledged can have this name; what an earlier attempt could not delete may.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write(descriptor, header(_HEADER_MAGIC), 0)
            if self._fsync:
                os.fdatasync(descriptor)
            self._begin_epoch()  # syncs the directory, too
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._descriptor = descriptor
        self._active = self._segments[self._next] = _Segment(self._next, path, HEADER.size, self._next)
        self._segment_disk_bytes += HEADER.size
        return self._active

    def _seal(self) -> None:
        segment, self._active = self._active, None
        if segment is not None:
            os.close(self._descriptor)
            self._drop_if_done(segment)

    def _drop_if_done(self, segment: _Segment) -> None:
        """Deletes a segment that every exporter is done with: first the notes say so, durably; on a full disk its space comes first."""
        if segment.number not in self._segments or self.knowledge.pending(segment.number, segment.end):
            return
        if segment is self._active:
            if segment.size < self._segment_bytes // 2:
                return  # a file for each batch would cost more
            self._active = None
            os.close(self._descriptor)
        del self._segments[segment.number]
        for reader in self.readers.values():
            reader.lose(segment.number)
        self._segment_disk_bytes -= segment.size
        if self._flush_if_possible(sync=True):
            self._delete(segment.path)
            self._tidy()
            return
        try:
            hollow = segment.path.rename(segment.path.with_suffix(_DELIVERED))
            self._hollow.append(hollow)
            os.truncate(hollow, 0)
        except OSError as error:
            self._log.error("cannot delete %s, which is delivered: %s; a restart may send it again", segment.path, error)
        if self._flush_if_possible(sync=True):
            self._tidy()

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._log.error("cannot delete %s, which is delivered: %s", path, error)

    # Notes.

    def _begin_epoch(self) -> None:
        """Notes go to a new file, which opens with all that is known. Raises OSError."""
        sealed = [segment for segment in self._segments.values() if segment is not self._active]
        table = [SegmentNote(it.number, it.end, it.size, it.total.records, it.total.items, it.total.payload_bytes) for it in sealed]
        self._notebook.begin(self.knowledge.snapshot(self._next, table))
        self._outbox.clear()
        self._tidy()

    def _tidy(self) -> None:
        """Deletes what nobody needs any more, now that what is known is on disk."""
        for path in self._hollow:
            self._delete(path)
        self._hollow.clear()
        self._notebook.forget(lambda first, end: any(it.number < end and it.end > first for it in self._segments.values()))

    def _flush_if_possible(self, *, sync: bool = False) -> bool:
        try:
            self._outbox += self.knowledge.found()
            if not self._notebook.is_open:
                self._begin_epoch()
            elif self._outbox:
                self._notebook.write(self._outbox)
                self._outbox.clear()
            if sync:
                self._notebook.sync()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self._log.error("cannot note in %s what is delivered: %s; a restart would send it again", self._directory, error)
            return False
        return True

    # Reading.

    def pass_over(self, name: str, ref: Ref) -> None:
        """The next record that `load` would read for this exporter is known to the caller."""
        reader = self.readers[name]
        reader.take(ref.segment, ref.amount)
        reader.segment, reader.position, reader.expected = ref.segment, ref.end, ref.sequence + 1

    def load(self, name: str, payload_bytes: int) -> Loaded:
        """An exporter's next records, until they hold so many bytes of payload; at least one where there is one."""
        reader, loaded = self.readers[name], Loaded()
        try:
            while payload_bytes > 0 and reader.unread_in:
                payload_bytes -= self._load_from(reader, self._segments[next(iter(reader.unread_in))], payload_bytes, loaded)
        except OSError as error:
            loaded.error = error
        return loaded

    def _load_from(self, reader: Reader, segment: _Segment, payload_bytes: int, loaded: Loaded) -> int:
        if reader.segment != segment.number:
            reader.segment, reader.position, reader.expected = segment.number, HEADER.size, segment.number
        size, gap = 0, None
        try:
            descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._miss(reader, segment)
            return 0
        try:
            for found in _walk(descriptor, segment.number, reader.position, segment.size):
                if isinstance(found, _Gap):
                    gap = found
                    continue
                if found.sequence < reader.expected or found.sequence >= segment.end:
                    continue  # a copy; or of a write that nobody was told of: its number is given again
                self._pass_gap(descriptor, segment, gap, Ranges([(reader.expected, found.sequence)]))
                gap = None
                if not self.knowledge.is_done(reader.name, found.sequence):
                    reader.take(segment.number, found.amount)
                    batch = _read(descriptor, found)
                    if batch is not None:
                        loaded.entries.append((Ref(segment.number, found.sequence, found.end, found.amount), batch))
                        size += found.amount.payload_bytes
                    else:
                        reader.lost += found.amount
                        lost = Ranges([(found.sequence, found.sequence + 1)])
                        self._pass_gap(descriptor, segment, _Gap(found.start, found.end), lost)
                reader.position, reader.expected = found.end, found.sequence + 1
                if size >= payload_bytes:
                    return size
            self._pass_gap(descriptor, segment, gap, Ranges())
        finally:
            os.close(descriptor)
        self._miss(reader, segment)
        return size

    def _miss(self, reader: Reader, segment: _Segment) -> None:
        """What should have been in the rest of the segment is damaged."""
        rest = Ranges([(reader.expected, segment.end)])
        self._damage(rest, rest)
        reader.lose(segment.number)
        self._drop_if_done(segment)

    # Damage.

    def _pass_gap(self, descriptor: int, segment: _Segment, gap: _Gap | None, sequences: Ranges) -> None:
        if gap is not None:
            self._quarantine(descriptor, segment, gap.start, gap.end)
        self._damage(sequences, sequences)

    def _damage(self, sequences: Ranges, counted: Ranges) -> None:
        """These are gone. What some exporter still had to deliver of them goes back to where it came from, if that is known."""
        waiting = Ranges(span for each in sequences for span in self.knowledge.pending(*each))
        if not waiting:
            return
        damaged = self._damage_of(waiting, counted)
        self._outbox.append(damaged)
        self.knowledge.apply(damaged)
        self._given_back += origins_of([*(record for _, record in damaged.records), QueuedRecord(damaged.unnoted, b"", 0)])
        records = sum(end - start for start, end in waiting & counted)
        self.damaged_records += records
        if records:
            self._log.error("%s: %d batches are lost to damage, and given back where they came from files", self._directory, records)
        self._flush_if_possible()

    def _damage_of(self, waiting: Ranges, counted: Ranges) -> Damaged:
        """What is known of these. Adds to both what else is found to be gone."""
        spans = list(waiting)
        noted = self._noted(spans[0][0], spans[-1][1])
        known = [(sequence, record) for sequence, record in noted.items() if waiting.reach(sequence) > sequence]
        unknown = Ranges(waiting)
        for sequence, _ in known:
            unknown.remove(sequence, sequence + 1)
        if not unknown:
            return Damaged(spans, known)
        # The notes are damaged as well. Of what they do not tell, that is lost which cannot be read: now, so that it is given back once.
        there = self._noted(1, self._next)
        missing = Ranges([(1, self._next)])
        for sequence in there:
            missing.remove(sequence, sequence + 1)
        there |= (read := self._read_all(missing))
        for sequence in read:
            missing.remove(sequence, sequence + 1)
        for more in [each for span in self.knowledge.pending(1, self._next) & missing for each in waiting.missing(*span)]:
            waiting.add(*more)
            counted.add(*more)
        between = dict[int, tuple[Snapshot, Snapshot]]()
        for start, end in waiting & missing:
            while start < end:
                before, after = self._notebook.snapshots(start)
                if before is not None and after is not None:
                    between[before.next] = before, after
                start = after.next if after is not None else end
        unnoted = [origin for snapshots in between.values() for origin in _unnoted(*snapshots, there)]
        return Damaged(list(waiting), known, unnoted, self.knowledge.stranded(there))

    def _noted(self, first: int, end: int) -> dict[int, QueuedRecord]:
        """By sequence, what was noted of records in [first, end), and of some besides."""
        return {
            sequence: record for queued in self._notebook.queued(first, end) for sequence, record in enumerate(queued.records, queued.first)
        }

    def _read_all(self, sequences: Ranges) -> dict[int, QueuedRecord]:
        """By sequence, those of these records that are in segments and whole."""
        found = dict[int, QueuedRecord]()
        for segment in self._segments.values():
            if not Ranges([(segment.number, segment.end)]) & sequences:
                continue
            with contextlib.suppress(FileNotFoundError), open(segment.path, "rb", buffering=0) as file:
                for head in _walk(file.fileno(), segment.number, HEADER.size, segment.size):
                    if not isinstance(head, _Head) or sequences.reach(head.sequence) <= head.sequence:
                        continue
                    if (batch := _read(file.fileno(), head)) is not None:
                        found[head.sequence] = queued_record(batch)
        return found

    def _quarantine(self, descriptor: int, segment: _Segment, start: int, end: int) -> None:
        """Copies damaged bytes, once: a segment may be opened several times before it is delivered."""
        content = os.pread(descriptor, end - start, start)
        name = f"{segment.path.stem}-{start}-{crc32(content):08x}"
        directory = self._directory / "damaged"
        copy = directory / name
        if name in self._quarantined or copy.exists():
            return
        self._quarantined.add(name)
        where = "nowhere: enough was kept already"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            if sum(path.stat().st_size for path in directory.iterdir()) + end - start <= QUARANTINE_BYTES:
                copy.write_bytes(content)
                self.quarantined_bytes += len(content)
                where = str(copy)
        except OSError as error:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)
            where = f"nowhere: {error}"
        self._log.error("%s: %d bytes at %d are damaged; copied to %s", segment.path, end - start, start, where)


def _unnoted(before: Snapshot, after: Snapshot, there: Mapping[int, QueuedRecord]) -> Iterator[OriginFields]:
    """What sources gave between two snapshots, and what of it is in no record that can still be known of: ranges, then counts."""
    ranges = {source: Ranges(spans) for source, spans in after.durable.items()}
    for source in ranges:
        for span in before.durable.get(source, ()):
            ranges[source].remove(*span)
    counts = {source: Account(account.lines, account.records, {}, account.filtered) for source, account in after.accounts.items() if source}
    given = [origin for sequence, record in there.items() if before.next <= sequence < after.next for origin in record.origins]
    known = {source: before.accounts[source].end for source in counts if source in before.accounts}
    for source, start, *_ in given:
        if source not in before.accounts:
            known[source] = min(start, known.get(source, start))
    for source, end in known.items():  # also what its receiver saved meanwhile, and is durable in neither
        if source in counts:
            ranges.setdefault(source, Ranges()).add(end, after.accounts[source].end)
    for source, account in before.accounts.items():
        if source in counts:
            counts[source].add(Account(-account.lines, -account.records, {}, -account.filtered))
    for source, start, end, lines, records, filtered in given:
        if source in ranges:
            ranges[source].remove(start, end)
        if source in counts:
            counts[source].add(Account(-lines, -records, {}, -filtered))
    for source, spans in ranges.items():
        yield from ((source, start, end, 0, 0, 0) for start, end in spans)
        if spans and source in counts:
            yield source, 0, 0, counts[source].lines, counts[source].records, counts[source].filtered


def _frame(segment: int, position: int, sequence: int, batch: Batch, compression: tuple[str, int | None]) -> bytes:
    encoding, level = compression
    meta = msgspec.msgpack.encode(
        _Meta(
            batch.signal,
            batch.id,
            batch.peer,
            origin_fields(batch),
            [(part.id, part.size) for part in batch.parts],
            encoding,
        )
    )
    if (payload := batch.encoded.get(encoding)) is None:
        payload = batch.encoded[encoding] = compress(batch.payload, encoding, level)
    crc = crc32(payload, crc32(meta))
    rest = struct.pack("<QIIIII", sequence, len(meta) + len(payload), len(meta), batch.count, len(batch.payload), crc)
    return b"".join((_MAGIC, struct.pack("<I", _head_crc(segment, position, rest)), rest, meta, payload))


def _head_at(descriptor: int, segment: int, position: int, end: int) -> _Head | None:
    """A record's head, where it checks out and its body lies before `end`."""
    if position + _HEAD.size > end:
        return None
    raw = os.pread(descriptor, _HEAD.size, position)
    if len(raw) < _HEAD.size:
        return None
    magic, head_crc, sequence, body, meta, items, payload_bytes, crc = _HEAD.unpack(raw)
    start = position + _HEAD.size
    if magic != _MAGIC or head_crc != _head_crc(segment, position, raw[8:]) or meta > body or start + body > end:
        return None
    return _Head(sequence, position, start, start + meta, start + body, Amount(1, items, payload_bytes), crc)


def _head_crc(segment: int, position: int, rest: bytes) -> int:
    """A block that a file system puts into the wrong file, or to the wrong place, is not taken for one that belongs there."""
    return crc32(rest, crc32(struct.pack("<QQ", segment, position)))


def _walk(descriptor: int, segment: int, position: int, end: int) -> Iterator[_Head | _Gap]:
    while position < end:
        head = _head_at(descriptor, segment, position, end)
        if head is None:
            gap = _Gap(position, _resynchronise(descriptor, segment, position + 1, end))
            yield gap
            position = gap.end
        else:
            yield head
            position = head.end


def _resynchronise(descriptor: int, segment: int, position: int, end: int) -> int:
    """Where the next whole record begins."""
    content = os.pread(descriptor, end - position, position)
    at = content.find(_MAGIC)
    while at >= 0:
        head = _head_at(descriptor, segment, position + at, end)
        if head is not None and _is_whole(descriptor, head):
            return position + at
        at = content.find(_MAGIC, at + 1)
    return end


def _is_whole(descriptor: int, head: _Head) -> bool:
    return crc32(os.pread(descriptor, head.end - head.body, head.body)) == head.crc


def _is_torn(descriptor: int, segment: int, gap: _Gap) -> bool:
    """Whether a write that was cut short left this at the end: too little, a beginning, or blocks that were never written (zeros)."""
    content = os.pread(descriptor, gap.end - gap.start, gap.start)
    if len(content) < _HEAD.size:
        return True
    head = _head_at(descriptor, segment, gap.start, 1 << 62)
    if head is not None and head.end > gap.end:
        return True
    return not any(content[-512:])


def _read(descriptor: int, head: _Head) -> Batch | None:
    """None where the body is not what was written."""
    body = os.pread(descriptor, head.end - head.body, head.body)
    if crc32(body) != head.crc:
        return None
    try:
        meta = msgspec.msgpack.decode(body[: head.payload - head.body], type=_Meta)
        encoded = body[head.payload - head.body :]
        payload = decompress(encoded, meta.encoding, head.amount.payload_bytes)
    except (msgspec.DecodeError, CorruptBody, TooLarge, ValueError):
        return None
    return Batch(
        meta.signal,
        payload,
        head.amount.items,
        meta.id,
        meta.peer,
        tuple(Origin(*origin) for origin in meta.origins),
        tuple(Part(*part) for part in meta.parts),
        {meta.encoding: encoded},
    )
