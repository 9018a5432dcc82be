"""A journal's files of notes: each opens with a snapshot of all that is known, and goes on with what changed since.

    FIRST.EPOCH.notes    header, then entries; FIRST (20 digits) is the next sequence when it was begun, EPOCH (6 digits) counts the files

An entry is a head with the size and CRC of what follows, and zstd of MessagePack. The newest snapshot that can be read and what was
written behind it, in its file and in later ones, is what is known. Older files stay while a segment lives whose records they tell of: where
a record is damaged, they say what it was. Two generations stay in any case.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec
from backports import zstd

from lockgate.sending.notes import Change, Queued, Snapshot

Entry = Snapshot | Change

_HEAD = struct.Struct("<4sII")
"""Magic, size of the body, CRC of size and body."""
_MAGIC = b"\xf1LGN"
NOTES_MAGIC = b"LGN\n"
HEADER = struct.Struct("<4sHI")
SUFFIX = ".notes"
_NAME = re.compile(r"([0-9]{20})\.([0-9]{6})")

_decoder = msgspec.msgpack.Decoder(Entry)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    first: int
    epoch: int
    size: int


class Notebook:
    """One thread at a time uses it."""

    def __init__(self, directory: Path, log: logging.Logger, *, fsync: bool) -> None:
        self._directory, self._log, self._fsync = directory, log, fsync
        self._files: list[_File] = []
        """All but the one that is written to, oldest first."""
        self._active: _File | None = None
        self._descriptor = -1
        self._size = 0
        self._is_dirty = False
        self._epoch = 0
        """The last number that was used: one is not used twice, whether or not its file came to be."""
        self.snapshot_bytes = 0
        self.damaged_bytes = 0
        self.is_whole = True
        """Whether `read` found nothing but entries: damage, or a file that was cut short, may have cost some."""

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._active is not None

    @property
    def size(self) -> int:
        """Bytes of the file that is written to."""
        return self._size

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files."""
        return self._size + sum(file.size for file in self._files)

    def paths(self) -> list[Path]:
        """Every file of notes there is."""
        return [file.path for file in self._find()]

    def read(self) -> tuple[Snapshot | None, list[Change]]:
        """The newest snapshot, and what was written behind it; without one, all that is there. Raises OSError."""
        self._files = sorted(self._find(), key=lambda file: file.epoch)
        behind: list[Change] = []
        for file in reversed(self._files):
            entries = list(self._entries(file, count=True))
            behind = [entry for entry in entries if not isinstance(entry, Snapshot)] + behind
            if entries and isinstance(entries[0], Snapshot):
                return entries[0], behind
        return None, behind

    def begin(self, snapshot: Snapshot) -> None:
        """A new file that opens with this, durable when this returns. Raises OSError, with no file to write to."""
        self.end()
        self._epoch = epoch = max(self._epoch, *(file.epoch for file in self._files), 0) + 1
        path = self._directory / f"{snapshot.next:020d}.{epoch:06d}{SUFFIX}"
        content = header(NOTES_MAGIC) + _frame(epoch, snapshot)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write(descriptor, content, 0)
            if self._fsync:
                os.fdatasync(descriptor)
                sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._descriptor, self._size, self._is_dirty, self.snapshot_bytes = descriptor, len(content), False, len(content)
        self._active = _File(path, snapshot.next, epoch, 0)

    def write(self, entries: Iterable[Change]) -> None:
        """Appends these. Raises OSError, with no file to write to: what is known must be written anew, by `begin`."""
        assert self._active is not None
        content = b"".join(_frame(self._active.epoch, entry) for entry in entries)
        try:
            write(self._descriptor, content, self._size)
        except OSError:
            self.end()
            raise
        self._size += len(content)
        self._is_dirty = True

    def sync(self) -> None:
        """Returns when what was written is on disk. Raises OSError, with no file to write to."""
        if self._is_dirty and self._fsync and self._active is not None:
            try:
                os.fdatasync(self._descriptor)
            except OSError:
                self.end()
                raise
        self._is_dirty = False

    def end(self) -> None:
        """Closes the file that is written to."""
        if (active := self._active) is not None:
            self._active = None
            os.close(self._descriptor)
            self._files.append(_File(active.path, active.first, active.epoch, self._size))
            self._size = 0

    def forget(self, is_needed: Callable[[int, int], bool]) -> None:
        """Deletes all but two generations and those with sequences that `is_needed(first, end)`. Needs a file that is written to."""
        if self._active is None:
            return
        kept = []
        for file, following in zip_longest(self._files, self._files[1:]):
            try:
                if following is None or (file.first < following.first and is_needed(file.first, following.first)):
                    kept.append(file)
                else:
                    file.path.unlink(missing_ok=True)
            except OSError as error:
                self._log.warning("cannot delete %s: %s; it is tried again", file.path, error)
                kept.append(file)
        self._files = kept

    def queued(self, first: int, end: int) -> Iterator[Queued]:
        """What was noted of records with sequences in [first, end). Raises OSError."""
        files = self._files + ([self._active] if self._active is not None else [])
        for number, file in enumerate(files):
            until = files[number + 1].first if number + 1 < len(files) else end
            if file.first < end and until > first:
                yield from (entry for entry in self._entries(file, count=False) if isinstance(entry, Queued))

    def snapshots(self, sequence: int) -> tuple[Snapshot | None, Snapshot | None]:
        """The last snapshot before this sequence was written, and the first one after."""
        files = self._files + ([self._active] if self._active is not None else [])
        before = [file for file in files if file.first <= sequence]
        after = [file for file in files if file.first > sequence]
        return self._snapshot(before[-1:]), self._snapshot(after[:1])

    def _snapshot(self, files: list[_File]) -> Snapshot | None:
        return next((entry for file in files for entry in self._entries(file, count=False) if isinstance(entry, Snapshot)), None)

    def _find(self) -> Iterator[_File]:
        for path in self._directory.glob(f"*{SUFFIX}"):
            if (name := _NAME.fullmatch(path.stem)) is not None:
                yield _File(path, int(name[1]), int(name[2]), path.stat().st_size)

    def _entries(self, file: _File, *, count: bool) -> Iterator[Entry]:
        try:
            content = file.path.read_bytes()
        except FileNotFoundError:
            return
        position, good = HEADER.size, HEADER.size
        while position < len(content):
            found = _entry_at(content, position, file.epoch)
            if found is None:
                position = content.find(_MAGIC, position + 1)
                if position < 0:
                    break
                continue
            if position > good and count:
                self.is_whole = False
                self._damaged(file, position - good)
            entry, position = found
            good = position
            yield entry
        if count and good < len(content):
            self.is_whole = False
            if not _is_torn(content, good):
                self._damaged(file, len(content) - good)

    def _damaged(self, file: _File, size: int) -> None:
        self.damaged_bytes += size
        self._log.error("%s: %d bytes of notes are damaged; some records may be sent again", file.path, size)


def header(magic: bytes) -> bytes:
    """How a file of this program begins, in every version: magic, format version, CRC."""
    start = struct.pack("<4sH", magic, VERSION)
    return start + struct.pack("<I", zlib.crc32(start))


VERSION = 1


def version_of(path: Path, magic: bytes) -> int | None:
    """The format version in this file's header; None where there is none to read."""
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
    if len(content) < HEADER.size:
        return None
    found, version, crc = HEADER.unpack(content)
    return int(version) if found == magic and crc == zlib.crc32(content[:6]) else None


def write(descriptor: int, content: bytes, position: int) -> None:
    """All of it, at this position. Raises OSError."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def sync_directory(directory: Path) -> None:
    """Returns when the directory's names are on disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _frame(epoch: int, entry: Entry) -> bytes:
    body = zstd.compress(msgspec.msgpack.encode(entry), 1)
    return _HEAD.pack(_MAGIC, len(body), _crc(epoch, body)) + body


def _crc(epoch: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<QI", epoch, len(body))))


def _entry_at(content: bytes, position: int, epoch: int) -> tuple[Entry, int] | None:
    start = position + _HEAD.size
    if start > len(content):
        return None
    magic, size, crc = _HEAD.unpack_from(content, position)
    body = content[start : start + size]
    if magic != _MAGIC or len(body) < size or crc != _crc(epoch, body):
        return None
    try:
        entry: Entry = _decoder.decode(zstd.decompress(body))
    except (msgspec.DecodeError, zstd.ZstdError):
        return None
    return entry, start + size


def _is_torn(content: bytes, position: int) -> bool:
    """Whether an unfinished write left what is there from `position` on: a beginning, or blocks that were never written."""
    rest = content[position:]
    if len(rest) < _HEAD.size:
        return True
    magic, size, _ = _HEAD.unpack_from(rest)
    return (magic == _MAGIC and len(rest) < _HEAD.size + size) or not any(rest)
