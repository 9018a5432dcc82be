"""A durable queue's files: append-only segments of records, and beside each a file of delivery marks. No asyncio, no threads.

Own files, not SQLite or LMDB: a delivered segment gives its space back by one unlink, which works on a full disk too; nothing is compacted
or repaired; and a damaged place costs the records in it alone.

    NUMBER.segment   header, then records; NUMBER (20 digits) is the sequence of its first record
    NUMBER.marks     8 bytes for each delivered record; lost or damaged marks mean a repetition, never a loss
    damaged/         copies of what could not be read, for a human

A segment's header is magic, format version, CRC: these ten bytes stay where they are in every version. A program that finds a version it
does not know refuses to start and touches nothing. Going back: let the newer program empty the queue, or move the directory aside.

A record is a head with a CRC of its own, metadata (MessagePack), and the payload (zstd, level 1: measured on log lines 2.1 GB/s to 4% of
the size; gzip by isal 2.6 GB/s to 9%). Exporters compress again: they may merge, re-encode, or use another encoding. Heads are enough to
know what a queue holds, so that opening it reads no payload but the newest segment's; a body's CRC is checked when it is loaded. Where a
head is damaged, the next one whose head and body check out is looked for, and sequences tell how many records are missing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from backports import zstd

from lockgate.batch import Batch, Origin, Part, Signal

VERSION = 1
QUARANTINE_BYTES = 64 << 20
"""How much is copied aside at most; beyond it damage is counted and logged alone. A guess."""
LINGER_BYTES = 1 << 20
"""A segment that is written to and wholly delivered is deleted from this size on: below it, a file per batch would cost more."""

_HEADER = struct.Struct("<4sHI")
_HEADER_MAGIC = b"LGQ\n"
_HEAD = struct.Struct("<4sIQIIIII")
"""Magic, CRC of what follows, sequence, body size, metadata size, records, payload size (not compressed), CRC of the body."""
_MAGIC = b"\xf1LGR"
_MARK = struct.Struct("<II")
_SEGMENT, _MARKS = ".segment", ".marks"


class NewerFormat(OSError):
    """A segment was written by a program that knows more than this one."""


class _Meta(msgspec.Struct, array_like=True):
    signal: Signal
    id: str
    peer: str
    origins: list[tuple[str, int, int]]
    parts: list[tuple[str, int]]


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
    """What was read, in order, and what could not be."""

    entries: list[tuple[Ref, Batch]] = field(default_factory=list)
    lost: Amount = Amount()
    error: OSError | None = None
    """What kept it from reading on."""


@dataclass(slots=True, eq=False)
class _Segment:
    number: int
    path: Path
    size: int
    pending: int = 0
    """Records that are not delivered."""
    unread: Amount = Amount()
    """Pending, and neither loaded nor passed over."""
    cursor: int = _HEADER.size
    delivered: frozenset[int] = frozenset()
    """Marks of earlier processes, known while it is read."""
    marks: int = -1
    """Descriptor."""
    unmarked: list[int] = field(default_factory=list)
    """Delivered, not yet in the file of marks."""

    @property
    def marks_path(self) -> Path:
        return self.path.with_suffix(_MARKS)


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
    """The records of one queue. One thread at a time uses it; every method but `pass_over` blocks on the disk."""

    def __init__(self, directory: Path, log: logging.Logger, *, segment_bytes: int = 8 << 20, fsync: bool = True) -> None:
        self._directory, self._log, self._segment_bytes, self._fsync = directory, log, segment_bytes, fsync
        self._segments: dict[int, _Segment] = {}
        self._active: _Segment | None = None
        self._descriptor = -1
        self._next = 1
        self._quarantined: set[str] = set()
        self.pending = Amount()
        """Not delivered, as it was found by `open`."""
        self.unread = Amount()
        """Not yet loaded or passed over."""
        self.disk_bytes = self.damaged_records = self.quarantined_bytes = self.torn_bytes = 0

    def open(self) -> None:
        """Finds what earlier processes left. Raises NewerFormat, or OSError where the directory cannot be used."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if self._fsync:
            _sync_directory(self._directory.parent)
        paths = sorted(path for path in self._directory.glob(f"*{_SEGMENT}") if re.fullmatch("[0-9]{20}", path.stem))
        for path in paths:
            self._check_version(path)
        for path in paths:
            self._recover(path, is_newest=path is paths[-1])
        for path in self._directory.glob(f"*{_MARKS}"):
            if not path.with_suffix(_SEGMENT).exists():
                path.unlink()
        self.pending = self.unread

    def append(self, batches: Sequence[Batch]) -> list[Ref]:
        """Writes these and returns when they are on disk. Raises OSError, having written none of them."""
        segment = self._active
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._roll()
        refs, frames, position, sequence = list[Ref](), list[bytes](), segment.size, self._next
        for batch in batches:
            amount = Amount(1, batch.count, len(batch.payload))
            frame = _frame(segment.number, sequence, batch)
            position += len(frame)
            frames.append(frame)
            refs.append(Ref(segment.number, sequence, position, amount))
            sequence += 1
        try:
            _write(self._descriptor, b"".join(frames), segment.size)
            if self._fsync:
                os.fdatasync(self._descriptor)
        except OSError:
            # After a failed sync nobody knows which pages are on disk: what is written next goes to another file.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, segment.size)
            self._seal()
            raise
        self.disk_bytes += position - segment.size
        segment.size, self._next = position, sequence
        segment.pending += len(refs)
        added = sum((ref.amount for ref in refs), Amount())
        segment.unread += added
        self.unread += added
        return refs

    def pass_over(self, ref: Ref) -> None:
        """The next record that `load` would read is known to the caller."""
        segment = self._segments[ref.segment]
        segment.cursor = ref.end
        self._passed(segment, ref.amount)

    def load(self, payload_bytes: int) -> Loaded:
        """The next records, until they hold so many bytes of payload; at least one where there is one."""
        loaded = Loaded()
        try:
            while payload_bytes > 0 and (segment := next((each for each in self._segments.values() if each.unread.records), None)):
                payload_bytes -= self._load_from(segment, payload_bytes, loaded)
        except OSError as error:
            loaded.error = error
        return loaded

    def _load_from(self, segment: _Segment, payload_bytes: int, loaded: Loaded) -> int:
        size = 0
        with open(segment.path, "rb", buffering=0) as file:
            for found in _walk(file.fileno(), segment.number, segment.cursor, segment.size):
                if isinstance(found, _Gap):
                    self._quarantine(file.fileno(), segment, found.start, found.end, 0)
                elif found.sequence not in segment.delivered:
                    ref = Ref(segment.number, found.sequence, found.end, found.amount)
                    batch = _read(file.fileno(), found)
                    self._passed(segment, found.amount)
                    if batch is not None:
                        loaded.entries.append((ref, batch))
                        size += found.amount.payload_bytes
                    else:
                        self._quarantine(file.fileno(), segment, found.start, found.end, 1)
                        loaded.lost += found.amount
                        self.mark([ref])
                segment.cursor = found.end
                if size >= payload_bytes:
                    return size
        # Damaged since the queue was opened: whatever should have been there and was not.
        lost = segment.unread
        self._passed(segment, lost)
        self.damaged_records += lost.records
        loaded.lost += lost
        segment.pending -= lost.records
        segment.delivered = frozenset()
        self._drop_if_done(segment)
        return size

    def _passed(self, segment: _Segment, amount: Amount) -> None:
        segment.unread -= amount
        self.unread -= amount

    def mark(self, refs: Iterable[Ref]) -> None:
        """These are delivered. A mark that cannot be written now is written with a later one; meanwhile a crash would repeat its record."""
        touched: dict[int, _Segment] = {}
        for ref in refs:
            segment = touched[ref.segment] = self._segments[ref.segment]
            segment.pending -= 1
            segment.unmarked.append(ref.sequence)
        for segment in touched.values():
            if self._drop_if_done(segment):
                continue
            marks = b"".join(_mark(segment.number, sequence) for sequence in segment.unmarked)
            try:
                if segment.marks < 0:
                    segment.marks = os.open(segment.marks_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                end = os.lseek(segment.marks, 0, os.SEEK_END)
                _write(segment.marks, marks, end - end % _MARK.size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    self._log.error("cannot mark records of %s as delivered: %s; a restart would send them again", segment.path, error)
            else:
                segment.unmarked.clear()

    def probe(self, payload_bytes: int) -> None:
        """Raises OSError while so much cannot be written."""
        free = os.statvfs(self._directory)
        if free.f_bavail * free.f_frsize < payload_bytes + 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._active is None:
            self._roll()

    def close(self) -> None:
        """Lets go of the files. What is not marked stays for the next process."""
        self._seal()
        for segment in self._segments.values():
            if segment.marks >= 0:
                os.close(segment.marks)
                segment.marks = -1

    # Opening.

    def _check_version(self, path: Path) -> None:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        magic, version, crc = _HEADER.unpack(header)
        if magic == _HEADER_MAGIC and crc == zlib.crc32(header[:6]) and version != VERSION:
            raise NewerFormat(
                f"cannot read the queue in {self._directory}: {path.name} has format version {version}, and this program knows {VERSION}; "
                "run the version that wrote it until the queue is empty, or move the directory aside"
            )

    def _recover(self, path: Path, *, is_newest: bool) -> None:
        segment = _Segment(int(path.stem), path, path.stat().st_size)
        self._segments[segment.number] = segment
        self.disk_bytes += segment.size
        segment.delivered = _marked(segment)
        expected = segment.number
        with open(path, "r+b", buffering=0) as file:
            descriptor = file.fileno()
            header = os.pread(descriptor, _HEADER.size, 0)
            if header != _header() and not (is_newest and segment.size <= _HEADER.size):
                self._quarantine(descriptor, segment, 0, len(header), 0)
            gap: _Gap | None = None
            last: _Head | None = None
            for found in _walk(descriptor, segment.number, _HEADER.size, segment.size):
                if isinstance(found, _Gap):
                    gap = found
                    continue
                missing = sum(number not in segment.delivered for number in range(expected, found.sequence))
                if gap is not None:
                    self._quarantine(descriptor, segment, gap.start, gap.end, missing)
                gap, last, expected = None, found, found.sequence + 1
                if found.sequence not in segment.delivered:
                    segment.unread += found.amount
            if is_newest and gap is None and last is not None and not _is_whole(descriptor, last):
                # The one place where a write can have been under way: heads are enough everywhere else.
                gap = _Gap(last.start, last.end)
                if last.sequence in segment.delivered:
                    gap = None
                else:
                    segment.unread -= last.amount
                    segment.delivered |= {last.sequence}
            if gap is not None:
                if is_newest and _is_torn(descriptor, segment.number, gap):
                    self._cut(descriptor, segment, gap)
                else:
                    # At least one: the sequences end here.
                    self._quarantine(descriptor, segment, gap.start, gap.end, int(expected not in segment.delivered))
        segment.pending = segment.unread.records
        self.unread += segment.unread
        self._next = max(self._next, expected, segment.number + 1)
        self._drop_if_done(segment)

    def _cut(self, descriptor: int, segment: _Segment, gap: _Gap) -> None:
        self._log.warning(
            "%s: the last write was cut short; %d bytes that nobody was told of are removed", segment.path, gap.end - gap.start
        )
        self.torn_bytes += gap.end - gap.start
        os.ftruncate(descriptor, gap.start)
        self.disk_bytes -= segment.size - gap.start
        segment.size = gap.start

    # Writing.

    def _roll(self) -> _Segment:
        self._seal()
        path = self._directory / f"{self._next:020d}{_SEGMENT}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, _header(), 0)
            if self._fsync:
                os.fdatasync(descriptor)
                _sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        self._descriptor = descriptor
        self._active = self._segments[self._next] = _Segment(self._next, path, _HEADER.size)
        self.disk_bytes += _HEADER.size
        return self._active

    def _seal(self) -> None:
        segment, self._active = self._active, None
        if segment is not None:
            os.close(self._descriptor)
            self._drop_if_done(segment)

    def _drop_if_done(self, segment: _Segment) -> bool:
        if segment.pending or segment.number not in self._segments:
            return False
        if segment is self._active:
            if segment.size < LINGER_BYTES:
                return False
            self._active = None
            os.close(self._descriptor)
        if segment.marks >= 0:
            os.close(segment.marks)
            segment.marks = -1
        del self._segments[segment.number]
        self._next = max(self._next, segment.number + 1)  # a name is not used twice: marks of the other one may still be there
        self.disk_bytes -= segment.size
        for path in (segment.path, segment.marks_path):  # in this order: a segment without its marks would be sent again
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._log.error("cannot delete %s, which is delivered: %s; a restart would send it again", path, error)
        return True

    # Damage.

    def _quarantine(self, descriptor: int, segment: _Segment, start: int, end: int, records: int) -> None:
        """Counts and copies damaged bytes, once: a segment may be opened several times before it is delivered."""
        content = os.pread(descriptor, end - start, start)
        name = f"{segment.path.stem}-{start}-{zlib.crc32(content):08x}"
        directory = self._directory / "damaged"
        copy = directory / name
        if name in self._quarantined or copy.exists():
            return
        self._quarantined.add(name)
        self.damaged_records += records
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
        self._log.error(
            "%s: %d bytes at %d are damaged, at least %d batches are lost; copied to %s", segment.path, end - start, start, records, where
        )


def _header() -> bytes:
    start = struct.pack("<4sH", _HEADER_MAGIC, VERSION)
    return start + struct.pack("<I", zlib.crc32(start))


def _frame(segment: int, sequence: int, batch: Batch) -> bytes:
    meta = msgspec.msgpack.encode(
        _Meta(
            batch.signal,
            batch.id,
            batch.peer,
            [(origin.source, origin.start, origin.end) for origin in batch.origins],
            [(part.id, part.size) for part in batch.parts],
        )
    )
    payload = zstd.compress(batch.payload, 1)
    crc = zlib.crc32(payload, zlib.crc32(meta))
    rest = struct.pack("<QIIIII", sequence, len(meta) + len(payload), len(meta), batch.count, len(batch.payload), crc)
    return b"".join((_MAGIC, struct.pack("<I", zlib.crc32(rest, segment & 0xFFFFFFFF)), rest, meta, payload))


def _head_at(descriptor: int, segment: int, position: int, end: int) -> _Head | None:
    """A record's head, where it checks out and its body lies before `end`."""
    if position + _HEAD.size > end:
        return None
    raw = os.pread(descriptor, _HEAD.size, position)
    if len(raw) < _HEAD.size:
        return None
    magic, head_crc, sequence, body, meta, items, payload_bytes, crc = _HEAD.unpack(raw)
    start = position + _HEAD.size
    # Seeded with the segment's number: a block that a file system puts into the wrong file is not taken for one of this file.
    if magic != _MAGIC or head_crc != zlib.crc32(raw[8:], segment & 0xFFFFFFFF) or meta > body or start + body > end:
        return None
    return _Head(sequence, position, start, start + meta, start + body, Amount(1, items, payload_bytes), crc)


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
    return zlib.crc32(os.pread(descriptor, head.end - head.body, head.body)) == head.crc


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
    if zlib.crc32(body) != head.crc:
        return None
    try:
        meta = msgspec.msgpack.decode(body[: head.payload - head.body], type=_Meta)
        payload = zstd.decompress(body[head.payload - head.body :])
    except (msgspec.DecodeError, zstd.ZstdError):
        return None
    return Batch(
        meta.signal,
        payload,
        head.amount.items,
        meta.id,
        meta.peer,
        tuple(Origin(*origin) for origin in meta.origins),
        tuple(Part(*part) for part in meta.parts),
    )


def _mark(segment: int, sequence: int) -> bytes:
    index = sequence - segment
    return _MARK.pack(index, zlib.crc32(struct.pack("<QI", segment, index)))


def _marked(segment: _Segment) -> frozenset[int]:
    try:
        content = segment.marks_path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    whole = len(content) - len(content) % _MARK.size
    return frozenset(
        segment.number + index
        for index, crc in _MARK.iter_unpack(content[:whole])
        if crc == zlib.crc32(struct.pack("<QI", segment.number, index))
    )


def _write(descriptor: int, content: bytes, position: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
