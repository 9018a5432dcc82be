"""The blocking half of following files: one call looks at what changed and reads a round of every file that has something.

Every method blocks on the disk and belongs in a thread; calls must not overlap. Acknowledgements (`Life.take`) may come from elsewhere
meanwhile.
"""

import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import structs

from lockgate.kit.ranges import Ranges
from lockgate.tail.discovery import Discovery, rotated_from
from lockgate.tail.follow import (
    ANCHOR_BYTES,
    NOTHING_READ,
    Flush,
    Followed,
    Life,
    MakeParser,
    Saved,
    digest,
    identity_of,
    life_key,
    line_digest,
    parts_of,
)
from lockgate.tail.open import Refused, Roots
from lockgate.tail.packed import Unpacked
from lockgate.tail.patterns import Patterns
from lockgate.tail.queued import Again, Queued
from lockgate.wire.parsed import Left, Parsed

_LEAST_CHUNK = 64 << 10
_LEAST_READ = 4 << 10
_COMPRESSED = (".gz", ".tmp", ".zst", ".bz2", ".xz", ".zip")
_MAX_PROBLEMS = 1000
_MAX_UNPACKING = 16
"""Compressed files that are read at a time: each takes some 100 KB."""
_SWEEP_SECONDS = 10.0
"""How often everything is looked at although inotify works: the bound on what a lost event costs."""
_LEAVING_SECONDS = 1.0
_SCAN_SHARE = 0.01
"""The most of a core that looking at directories may take; polling a thousand directories costs some 30 ms."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to follow; seconds and bytes."""

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    link_roots: tuple[str, ...] = ()
    """Directories besides the patterns' own into which symbolic links may lead."""
    start_at_end: bool = False
    """Whether files found at the first look, without any checkpoint, are read from their end."""
    positions_lost: bool = False
    """Whether there was a checkpoint, and it cannot be read: then what was rotated before the first look is read too."""
    exclude_older_than_seconds: float = 0.0
    poll_seconds: float = 0.2
    fingerprint_bytes: int = 1000
    max_record_bytes: int = 1 << 20
    max_files: int = 1024
    max_deleted_bytes: int = 64 << 20
    """Of deleted files that are not read yet; beyond it the oldest are given up."""
    flush_seconds: float = 5.0
    """An unfinished record is given out after so long without a new byte; 0 is never."""
    linger_seconds: float = 10.0
    """A rotated or unlinked file is let go after so long without a new byte."""
    inotify: bool = True
    own: frozenset[tuple[int, int]] = frozenset()
    """(device, inode) of files that are never followed: the program's own output."""


@dataclass(slots=True)
class Counts:
    """What happened, for metrics; only rises. Written by the reading thread."""

    records: int = 0
    malformed: int = 0
    truncated: int = 0
    unfinished: int = 0
    rotations: int = 0
    truncations: int = 0
    lost_bytes: int = 0
    """Bytes known to have been written and gone before they were read: the least it can have been."""
    gaps: int = 0
    """How often that happened."""
    unknown: int = 0
    """Files that went while nobody looked, of which it is not known whether anything was left to read."""
    found: int = 0
    """Rotated files, compressed or not, that were not followed before they were rotated, or not by this process."""
    refused: int = 0
    overflows: int = 0
    scans: int = 0
    reads: int = 0


@dataclass(slots=True)
class Range:
    """What a round read of one file."""

    file: Followed
    life: Life
    start: int
    end: int
    skipping: bool
    anchor: bytes
    records: int
    lines: int = 0
    """Those in it that became records or parts of records; empty ones became nothing."""
    again: Again | None = None
    """Set where it was read once more: the position has passed it long ago."""

    def take(self) -> None:
        if self.again is not None:
            self.again.taken.append((self.life.key, self.start, self.end))
        else:
            self.life.take(self.start, self.end, self.skipping, self.anchor)


@dataclass(slots=True)
class Round:
    """What one call read."""

    payloads: list[bytes] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    records: int = 0
    more: bool = False
    """Whether files have more to give at once."""
    passed: list[Range] = field(default_factory=list)
    """What was passed over, because a queue holds it: to be taken at once."""


class Tailer:
    """The files that the patterns mean, and what became of them."""

    def __init__(
        self,
        options: Options,
        make_parser: MakeParser,
        saved: Iterable[Saved] = (),
        *,
        durable: Mapping[str, Ranges] | None = None,
        lost: Mapping[str, Ranges] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        unix_nano: Callable[[], int] = time.time_ns,
    ) -> None:
        self.options, self._make_parser, self._monotonic, self._unix_nano = options, make_parser, monotonic, unix_nano
        self._patterns = patterns = Patterns(options.include, options.exclude)
        self._roots = Roots.of([*patterns.roots, *options.link_roots])
        self._discovery = Discovery(patterns, self._roots, self, inotify=options.inotify)
        self._files: dict[tuple[int, int], Followed] = {}
        self._by_name: dict[str, Followed] = {}
        self._saved: dict[tuple[int, int], Saved] = {}
        """Files known and not open: from the checkpoint, or closed to make room."""
        self._inodes: dict[int, int] = {}
        """How many known files, open or saved, have this inode number: what a listing alone can tell."""
        self._orphans: list[Saved] = []
        """Known contents whose file is gone, or holds another: perhaps they stand compressed under another name."""
        self._packed_keys: set[str] = set()
        """Lives that stand compressed: their inode numbers may name other files by now."""
        self._strangers: dict[str, str] = {}
        """Rotated files to look at, and the logs that they belong to."""
        self._copies: dict[Followed, tuple[str, os.stat_result]] = {}
        """Where the compressed content of an open file stands."""
        self._queued = Queued(durable or {}, lost or {})
        self._islands: dict[Life, list[tuple[int, int]]] = {}
        """Ranges ahead that a queue holds already."""
        self._again = Again()
        for entry in saved:
            self._remember(entry)
            for start, end in entry.again:
                self._again.add(entry.key, (durable or {}).get(entry.key, Ranges()).missing(start, end))
        self._is_new = not self._saved and not self._queued.keys
        """Whether nothing is known of any process before this one."""
        self._from_start = not self._is_new or not options.start_at_end
        self._ready: dict[Followed, None] = {}
        self._unfinished: dict[Followed, None] = {}
        """Files whose last bytes make no whole record yet."""
        self._leaving: dict[Followed, None] = {}
        """Files that no pattern means any more: rotated or unlinked."""
        self._waiting = 0
        """Files that could not be opened because too many are."""
        self._next_scan = self._next_sweep = self._next_leaving = 0.0
        self._looked = False
        self.counts = Counts()
        self._old_problems: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        """What cannot be read and why, by path; at most so many."""
        self.losses: deque[str] = deque(maxlen=_MAX_PROBLEMS)
        """What was lost and where, in words; whoever tells of it takes it out."""

    # What the asynchronous half asks.

    @property
    def descriptor(self) -> int:
        """Readable when something changed; -1 where files are polled."""
        return self._discovery.descriptor if not self._discovery.unwatched else -1

    @property
    def unwatched(self) -> str:
        return self._discovery.unwatched

    @property
    def missing(self) -> set[str]:
        """Directories that do not exist yet."""
        return self._discovery.missing

    @property
    def open_files(self) -> int:
        return len(self._files)

    @property
    def waiting_files(self) -> int:
        return self._waiting + len(self._strangers)

    @property
    def ready_files(self) -> int:
        return len(self._ready)

    def next_look(self) -> float:
        """When (monotonic) the next call is due although nothing is reported."""
        due = [self._next_sweep, self._next_scan]
        if self._unfinished and self.options.flush_seconds:
            due.append(min(file.quiet_since for file in self._unfinished) + self.options.flush_seconds)
        if self._leaving:
            due.append(self._next_leaving)
        return min(due)

    @property
    def pending_lines(self) -> int:
        """Lines read that wait to be joined with others."""
        return sum(file.pending_lines for file in list(self._unfinished))

    def snapshot(self) -> list[Saved]:
        """What a checkpoint should know: every file that is there."""
        entries = [file.saved() for file in self._files.values()]
        entries += [*self._saved.values(), *self._orphans]
        if self._again.untaken or any(entry.again for entry in entries):
            entries = [structs.replace(entry, again=self._again.of(entry.key)) for entry in entries]
        return entries

    def give_back(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """A queue lost these ranges (key, start, end): the next calls of `collect` read them again."""
        for key, start, end in ranges:
            self._again.add(key, [(start, end)])

    def close(self) -> None:
        """Close every descriptor."""
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()
        self._discovery.close()

    def look(self) -> None:
        """Look at what changed and read nothing, for while nobody takes what is read: what is rotated and deleted meanwhile is known."""
        self._look()
        for file in list(self._files.values()):
            if file.life is None:  # else its compressed copy would be taken for another content
                self._identify(file, os.fstat(file.descriptor).st_size)

    def collect(self, max_bytes: int, max_records: int) -> Round:
        """Look at what changed, and read every file that has something: fairly, up to these bounds (one record may pass `max_bytes`)."""
        self._look()
        round_ = Round()
        left_bytes, left_records = max_bytes, max_records
        if self._again.unread:
            left_bytes, left_records = self._read_again(left_bytes, left_records, round_)
        # What was rotated away goes before what took its place, the oldest first: a log keeps its order over its files.
        todo = [*(file for file in self._leaving if file in self._ready), *(file for file in self._ready if file not in self._leaving)]
        share = max(_LEAST_CHUNK, max_bytes // max(1, len(todo)))
        while todo and left_bytes > _LEAST_READ and left_records > 0:
            unread: list[Followed] = []
            behind: set[str] = set()
            unpacking = 0
            for file in todo:
                if file.path in behind or (file.unpacked is not None and unpacking >= _MAX_UNPACKING):
                    unread.append(file)
                    behind.add(file.path)
                    continue
                unpacking += file.unpacked is not None
                if left_bytes <= _LEAST_READ or left_records <= 0:
                    break
                # To the end of the line, so that nobody starves.
                self._ready.pop(file, None)
                size = min(share, left_bytes, int(left_records * file.bytes_per_record * 1.2) + _LEAST_READ)
                used, records, more = self._read(file, max(size, file.chunk_bytes), left_records, round_)
                left_bytes -= used
                left_records -= records
                if more and file.identity in self._files:
                    self._ready[file] = None
                    unread.append(file)
                    behind.add(file.path)
            todo = unread
        round_.more = bool(self._ready) or bool(self._again.unread and round_.ranges)
        return round_

    # Looking.

    def _look(self) -> None:
        now = self._monotonic()
        changes = self._discovery.drain()
        everything = changes.overflow or now >= self._next_sweep
        if changes.overflow:
            self.counts.overflows += 1
        for directory, name in changes.modified:
            if (file := self._by_name.get(f"{directory.rstrip('/')}/{name}")) is not None:
                self._ready[file] = None
            else:
                changes.directories.add(directory)
        if now >= self._next_scan or changes.overflow:
            self._scan(now)
        elif changes.directories:
            self._discovery.rescan(changes.directories)
        for old, new in changes.moved:
            self._moved(old, new)
        if everything:
            self._check_sizes(self._files.values())
            self._next_sweep = now + _SWEEP_SECONDS
        elif self.descriptor < 0:
            # The size alone costs a third of the whole status.
            for file in self._files.values():
                if file.unpacked is None and os.lseek(file.descriptor, 0, os.SEEK_END) != file.size:
                    self._ready[file] = None
        if self._strangers or self._orphans:
            self._meet_strangers()
        if not self._looked:
            self._looked = True
            self._in_order()
            for key, ranges in self._queued.take_lost().items():
                self._again.add(key, ranges)
        if everything and not self.waiting_files and not self.missing and self._queued.keys:
            self._forget_queued()
        if self._leaving and now >= self._next_leaving:
            self._next_leaving = now + min(_LEAVING_SECONDS, self.options.linger_seconds)
            self._check_leaving(now)
            self._let_go_of_deleted()
        if self._unfinished and self.options.flush_seconds:
            for file in self._unfinished:
                if now - file.quiet_since >= self.options.flush_seconds:
                    self._ready[file] = None

    def _scan(self, now: float) -> None:
        self.counts.scans += 1
        self._waiting = 0
        self._old_problems, self.problems = self.problems, {}
        self._discovery.scan()
        if not self._looked:
            self._from_start = True
            for directory in sorted({os.path.dirname(path) for entry in self._saved.values() for path in (entry.real, entry.path)}):
                self._discovery.look_in(directory)
        self._check_saved()
        pause = self.options.poll_seconds if self.descriptor < 0 else _SWEEP_SECONDS
        if self.missing or self.waiting_files:
            pause = min(pause, 1.0)
        # The first look opens everything, which says nothing of the cost of the next.
        cost = self._monotonic() - now if self.counts.scans > 1 else 0.0
        self._next_scan = now + max(pause, min(cost / _SCAN_SHARE, _SWEEP_SECONDS))

    def _check_sizes(self, files: Iterable[Followed]) -> None:
        for file in files:
            if file.unpacked is not None:
                continue  # it does not change
            status = os.fstat(file.descriptor)
            if status.st_size != file.size or status.st_mtime_ns != file.changed_nano:
                file.changed_nano = status.st_mtime_ns
                self._ready[file] = None

    def _check_leaving(self, now: float) -> None:
        """Rotated files are drained, and let go when nothing more came for a while."""
        for file in list(self._leaving):
            self._check_sizes([file])
            if file in self._ready or now - file.quiet_since < self.options.linger_seconds:
                continue
            if file.unread and (file.life is not None or file.size):
                self._ready[file] = None  # `_read` sees that it is leaving, and gives everything out
            elif file.life is None or file.life.settled:
                keep = os.fstat(file.descriptor).st_nlink > 0
                if not keep and file not in self._copies:
                    # It may have been compressed just behind our look.
                    self._discovery.rescan([os.path.dirname(file.real)])
                    self._meet_strangers()
                self._close(file, keep=keep)

    def _let_go_of_deleted(self) -> None:
        """Deleted files that wait to be read take space that their owner thinks free: beyond a bound the oldest are a gap."""
        kept = 0
        for file in reversed(list(self._leaving)):
            status = os.fstat(file.descriptor)
            if status.st_nlink or file.life is None or not file.life.settled:
                continue
            size = status.st_size if file.unpacked is None else _unpacked_size(file.descriptor, status.st_size)
            unread = max(0, size - file.life.read)
            kept += unread
            if kept <= self.options.max_deleted_bytes or not unread:
                continue
            path, copy = self._copies.pop(file, ("", None))
            entry = structs.replace(file.saved(), size=size)
            self._let_go(file)
            if copy is not None and _status(path, (copy.st_dev, copy.st_ino)) is not None:
                self._remember(_moved_to(entry, path, copy))  # its content is still there, compressed
            else:
                self._lose(unread, file.path, "it was deleted, and more than max_deleted_size of deleted files waited to be read")

    def _check_saved(self) -> None:
        """Files known and not open (rotated while nobody looked, closed to make room): grown, moved, or gone, which is a gap."""
        for entry in list(self._saved.values()):
            identity = entry.device, entry.inode
            if not entry.packed and (status := _status(entry.path, identity)) is not None:
                path, matched = entry.path, True
            elif (status := _status(entry.real, identity)) is not None:
                path, matched = entry.real, False
            else:
                directory = os.path.dirname(entry.real)
                path, matched = f"{directory}/{_name_of(directory, entry.inode)}", False
                status = _status(path, identity)
            # Otherwise it is an inode used again.
            if status is None or not (path.endswith(".gz") if entry.packed else not path.endswith(_COMPRESSED)):
                self._forget(entry)
                self._orphans.append(entry)
                continue
            if entry.packed:
                if not entry.done or path != entry.real:
                    self._strangers[path] = entry.path
                continue
            if status.st_size != entry.position:
                self.appeared(path, entry.inode, matched)
            if path not in (entry.path, entry.real) and identity in self._saved:
                self._saved[identity] = structs.replace(entry, real=path)

    def _moved(self, old: str, new: str) -> None:
        """A file that was made and rotated between two looks: known by its rename alone, where its name does not tell."""
        if rotated_from(os.path.basename(new)) is not None:
            return
        try:
            status = os.stat(new)
            identity = status.st_dev, status.st_ino
            if identity in self._files or identity in self._saved or identity in self.options.own or not self._make_room():
                return
            descriptor, real = self._roots.open(new)
        except FileNotFoundError:
            return
        except (OSError, Refused) as error:
            self.unreadable(new, error)
            return
        self.counts.found += 1
        self._adopt(new, real, descriptor, False, log=old)

    # Told by the discovery.

    def appeared(self, path: str, inode: int, matched: bool) -> bool:
        if path.endswith(_COMPRESSED):
            if matched:
                self.unreadable(path, Refused(f"{path} is compressed, and not read; exclude it"))
            return not matched
        if not matched and inode not in self._inodes:
            return True
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            known = self._files.get(identity)
            if known is not None:
                self._rename(known, path, matched)
                return True
            if identity in self.options.own:
                return True
            entry = self._saved.get(identity)
            if not matched and entry is None:
                return True
            age = self.options.exclude_older_than_seconds
            if entry is None and age and stat.S_ISREG(status.st_mode) and self._unix_nano() - status.st_mtime_ns > age * 1e9:
                return False
            full = len(self._files) >= self.options.max_files
            if entry is not None and entry.position == status.st_size and (full or (self._looked and not matched)):
                return True  # nothing to read
            if not self._make_room():
                self._waiting += 1
                return False
            descriptor, real = self._roots.open(path)
        except FileNotFoundError:
            return False
        except (OSError, Refused) as error:
            if isinstance(error, Refused):
                self.counts.refused += path not in self.problems and path not in self._old_problems
            self.unreadable(path, error)
            return False
        self.readable(path)
        if self._patterns.excluded(real):
            os.close(descriptor)
            return True
        self._adopt(path, real, descriptor, matched)
        return True

    def vanished(self, path: str) -> None:
        self.readable(path)
        self._strangers.pop(path, None)
        file = self._by_name.get(path)
        if file is not None and file.name == path:
            del self._by_name[path]
            self._leave(file)

    def rotated(self, path: str, inode: int, log: str) -> bool:
        # Whether it is news is known when everything else was looked at.
        self._strangers[path] = log
        return True

    def unreadable(self, path: str, error: OSError | Refused) -> None:
        if path in self.problems or len(self.problems) < _MAX_PROBLEMS:
            self.problems[path] = str(error) if isinstance(error, Refused) else describe_unreadable(path, error)

    def readable(self, path: str) -> None:
        self.problems.pop(path, None)

    # Files come and go.

    def _adopt(
        self,
        path: str,
        real: str,
        descriptor: int,
        matched: bool,
        *,
        log: str = "",
        entry: Saved | None = None,
        unpacked: Unpacked | None = None,
    ) -> None:
        """Follow this open file. `log`: whose rotated file it is; `entry`: what is known of this content, whatever file it stood in."""
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino
        real = path if real == path else real  # one string for both
        if identity in self._files or identity in self.options.own:
            os.close(descriptor)
            return
        known = entry or self._saved.get(identity)
        # A rotated file is still the log of the container whose path it had.
        known_as, known_real = (known.path, known.real) if known is not None and not matched else (log or path, real)
        parse = self._make_parser(known_as, known_real, descriptor)
        file = Followed(known_as, known_real, descriptor, *identity, parse, path, matched, quiet_since=self._monotonic(), unpacked=unpacked)
        self._files[identity] = file
        self._inodes[status.st_ino] = self._inodes.get(status.st_ino, 0) + 1
        replaced = self._by_name.get(path)
        self._by_name[path] = self._by_name[real] = file
        if replaced is not None and replaced.name == path:
            # Renamed over, as conmon does at its own maximum size, or about to be found under another name.
            self._leave(replaced)
        if real != path:
            self._discovery.follow_link(path, real)
        if not matched:
            self._leave(file)
        at_end = not self._from_start and known is None and not log
        self._identify(file, status.st_size, force=at_end or unpacked is not None, entry=entry)
        if at_end and file.life is not None:
            position, anchor = _line_start(descriptor, status.st_size)
            file.life.start_at(position, False, anchor)
            file.size = position
        if identity in self._files and (file.life is None or file.life.read != status.st_size):
            self._ready[file] = None

    def _rename(self, file: Followed, path: str, matched: bool) -> None:
        # A file may have several names (links): as long as one that the patterns mean stands, it is not rotated.
        if file.name != path and not (file.matched and _status(file.name, file.identity)):
            if self._by_name.get(file.name) is file:
                del self._by_name[file.name]
            self.counts.rotations += 1
            file.name, file.matched = path, matched
            if matched:
                self._leaving.pop(file, None)
            else:
                self._leave(file)
        self._by_name[path] = file

    def _leave(self, file: Followed) -> None:
        file.matched = False
        if file not in self._leaving:
            self._leaving[file] = None
            file.quiet_since = self._monotonic()
        self._ready[file] = None

    def _close(self, file: Followed, keep: bool) -> None:
        """Let go of a file; `keep` what is known of it, should it grow again."""
        entry: Saved | None = file.saved()
        if entry is not None and not file.matched:
            entry = structs.replace(entry, real=file.name, done=True)
        path, status = self._copies.pop(file, ("", None))
        if entry is not None and status is not None and not file.matched and _status(path, (status.st_dev, status.st_ino)) is not None:
            entry = _moved_to(entry, path, status)  # the file goes, or has gone, and its content is known in the next process
        elif not keep:
            entry = None
            if file.name == file.path and self._is_rotated(file.path):
                self._lose(0, file.path, "it was deleted, and so may others of this log that were rotated after it")
        self._let_go(file)
        if entry is not None:
            self._remember(entry)

    def _let_go(self, file: Followed) -> None:
        os.close(file.descriptor)
        del self._files[file.identity]
        for name in {file.name, file.path, file.real}:
            if self._by_name.get(name) is file:
                del self._by_name[name]
        for group in (self._ready, self._unfinished, self._leaving):
            group.pop(file, None)
        if file.life is not None:
            self._islands.pop(file.life, None)
        self._uncount(file.inode)

    def _is_rotated(self, log: str) -> bool:
        """Whether rotated files of this log are known: then it is a kubelet's."""
        names = [file.name for file in self._files.values() if file.path == log] + [e.real for e in self._saved.values() if e.path == log]
        return any(rotated_from(os.path.basename(name)) is not None for name in names)

    def _remember(self, entry: Saved) -> None:
        identity = entry.device, entry.inode
        if (older := self._saved.get(identity)) is not None:
            self._forget(older)  # its file went, and its inode number was used again
            self._orphans.append(older)
        self._saved[identity] = entry
        self._inodes[entry.inode] = self._inodes.get(entry.inode, 0) + 1
        if entry.packed:
            self._packed_keys.add(entry.key)

    def _forget(self, entry: Saved) -> None:
        if self._saved.pop((entry.device, entry.inode), None) is not None:
            self._uncount(entry.inode)
            self._packed_keys.discard(entry.key)

    def _uncount(self, inode: int) -> None:
        self._inodes[inode] -= 1
        if not self._inodes[inode]:
            del self._inodes[inode]

    def _make_room(self) -> bool:
        """Whether one more file may be opened, after closing the one that has been quiet for longest if need be."""
        if len(self._files) < self.options.max_files:
            return True
        idle = [
            file
            for file in self._files.values()
            if file not in self._ready and not file.unread and file.life is not None and file.life.settled
        ]
        if not idle:
            return False
        self._close(min(idle, key=lambda file: file.quiet_since), keep=True)
        return True

    # Rotated files that were not seen before, and known contents whose file is not there any more: often they are the same.

    def _meet_strangers(self) -> None:
        # What went may have been compressed since its directory was listed.
        self._discovery.rescan({os.path.dirname(entry.real) for entry in self._orphans})
        strangers, self._strangers = sorted(self._strangers.items(), key=lambda item: (item[1], item[0])), {}
        adopted = len(self._files)
        for path, log in strangers:
            if not self._meet(path, log):
                self._strangers[path] = log
                self._next_scan = min(self._next_scan, self._monotonic() + 1.0)
        if len(self._files) != adopted:
            self._in_order()
        waiting = {os.path.dirname(path) for path in self._strangers}
        orphans, self._orphans = self._orphans, []
        for entry in orphans:
            if os.path.dirname(entry.real) in waiting:
                self._orphans.append(entry)
                continue
            for start, end in self._queued.take(entry.key)[1]:
                self._again.add(entry.key, [(start, end)])
            if entry.size > entry.position and not entry.done:
                self._lose(entry.size - entry.position, entry.path, "it was deleted or truncated before it was read to its end")
            elif not entry.done:
                self._lose(0, entry.path, "it was deleted or truncated while nobody looked; what was written to it meanwhile is lost")

    def _meet(self, path: str, log: str) -> bool:
        """Find out what this rotated file is, and follow it if there is something to read; false where that must wait."""
        is_packed = path.endswith(".gz")
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            if (file := self._files.get(identity)) is not None:
                self._rename(file, path, False)
                return True
            entry = self._saved.get(identity)
            if identity in self.options.own:
                return True
            # Under another name it may be another file, on an inode used again.
            is_done = entry is not None and entry.packed == is_packed and entry.real == path and entry.done and not entry.again
            if is_done and entry is not None and (is_packed or entry.position == status.st_size):
                return True
            if not self._make_room():
                return False
            descriptor, real = self._roots.open(path)
        except FileNotFoundError:
            return True  # renamed again, or compressed: the other name tells
        except (OSError, Refused) as error:
            self.unreadable(path, error)
            return True
        self.readable(path)
        unpacked = Unpacked(descriptor) if is_packed else None
        if not self._recognise(path, real, log, descriptor, unpacked):
            os.close(descriptor)
        return True

    def _recognise(self, path: str, real: str, log: str, descriptor: int, unpacked: Unpacked | None) -> bool:
        """Whether the open rotated file was adopted."""
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino

        def pread(size: int, position: int) -> bytes:
            return os.pread(descriptor, size, position) if unpacked is None else unpacked.pread(size, position)

        head = pread(self.options.fingerprint_bytes, 0)
        entry = self._saved.get(identity)
        if entry is not None and (entry.packed != (unpacked is not None) or not _is_content_of(entry, head, pread)):
            self._forget(entry)
            self._orphans.append(entry)
            entry = None
        if entry is not None and entry.done and not entry.again and (unpacked is not None or entry.position == status.st_size):
            self._saved[identity] = structs.replace(entry, real=path)
            return False
        if entry is None and self._is_new and not self._looked and not self.options.positions_lost:
            # Nobody followed this log when it was rotated, and no pattern means what was.
            self._remember(self._left_out(path, log, head, status, descriptor, unpacked))
            return False
        if entry is None and head:
            directory = os.path.dirname(path) + "/"
            for file in self._files.values():
                if file.real.startswith(directory) and file.pread_head(len(head)) == head:
                    self._copies[file] = path, status
                    return False
            entry = self._content_elsewhere(directory, head, pread)
            if entry is not None and unpacked is None and _status(entry.real, (entry.device, entry.inode)) is not None:
                return False  # a copy of what stands elsewhere
            if entry is not None:
                if entry in self._orphans:
                    self._orphans.remove(entry)
                else:
                    self._forget(entry)
                more, shorter = bool(pread(1, entry.position)), not pread(1, entry.position - 1) if entry.position else False
                entry = structs.replace(_moved_to(entry, path, status), done=shorter or (entry.done and (entry.packed or not more)))
                if entry.done and not entry.again:
                    self._remember(entry)
                    return False
        if (
            (entry is None or not entry.key)
            and unpacked is not None
            and (key := self._queued.key_of(line_digest(head.partition(b"\n")[0]))) is not None
        ):
            entry = Saved(key, *identity, log, path, 0, False, b"", identity_of(head), 0, parts_of(key)[2], True)
        if entry is None:
            age = self.options.exclude_older_than_seconds
            if age and self._unix_nano() - status.st_mtime_ns > age * 1e9:
                self._remember(self._left_out(path, log, head, status, descriptor, unpacked))
                return False
            self.counts.found += 1
        self._adopt(path, real, descriptor, False, log=log, entry=entry, unpacked=unpacked)
        if unpacked is not None:
            unpacked.pause()
        return True

    def _forget_queued(self) -> None:
        """Lives that a queue holds something of, and that nothing else is known of: read by a process that was killed, and gone."""
        known = {entry.key for entry in self._saved.values()}
        for key in sorted(self._queued.keys - known):
            self._lose(0, key, "it was read by the process before this one, and is gone")
        self._queued.forget()

    def _content_elsewhere(self, directory: str, head: bytes, pread: Callable[[int, int], bytes]) -> Saved | None:
        """What is known of this content under another identity."""
        known = [
            entry
            for entry in [*self._orphans, *self._saved.values()]
            if entry.key and entry.first[0] and entry.real.startswith(directory) and _begins_as(entry, head)
        ]
        exact = next((entry for entry in known if pread(len(entry.anchor), entry.position - len(entry.anchor)) == entry.anchor), None)
        # Lines that its last writer wrote after it was compressed were read from the descriptor (test_05).
        return exact or next((entry for entry in known if not pread(1, entry.position - 1)), None)

    def _left_out(self, path: str, log: str, head: bytes, status: os.stat_result, descriptor: int, unpacked: Unpacked | None) -> Saved:
        """An entry that says of a file that there is nothing to read."""
        size = 0 if unpacked is not None else status.st_size
        anchor = os.pread(descriptor, min(ANCHOR_BYTES, size), max(0, size - ANCHOR_BYTES))
        key = life_key(status.st_dev, status.st_ino, head.partition(b"\n")[0], 0)
        first = identity_of(head)
        return Saved(key, status.st_dev, status.st_ino, log, path, size, False, anchor, first, size, 0, unpacked is not None, True)

    def _in_order(self) -> None:
        """Files that were rotated away are read the oldest first; they were found by listing, in no order."""

        def age(file: Followed) -> tuple[str, str, int]:
            name = os.path.basename(file.name).removesuffix(".gz")
            return file.path, name if rotated_from(name) is not None else "", os.fstat(file.descriptor).st_mtime_ns

        self._leaving = dict.fromkeys(sorted(self._leaving, key=age))

    # Reading.

    def _identify(self, file: Followed, size: int, force: bool = False, entry: Saved | None = None) -> None:
        """Give the file its life, as soon as its first line, or enough of it, is there."""
        content = file.pread(self.options.fingerprint_bytes, 0)
        if not _begins(file.first, content):
            self._truncated(file, size)
            file.size = size
        line, newline, _ = content.partition(b"\n")
        is_whole = bool(newline) or force or len(content) == self.options.fingerprint_bytes
        known, least = self._saved.get(file.identity), ""
        if known is not None and (is_whole or (file.unpacked is None and size < max(known.position, known.first[0]))):
            self._forget(known)
            entry = entry or (known if _is_content_of(known, content, file.pread) else None)
            if entry is None:
                file.number, least = known.lives + bool(known.key), known.key
                self._orphans.append(known)
                if not file.matched and not file.name.startswith((known.path, known.real)):
                    self._close(file, keep=False)  # somebody else's file, on an inode used again; not a rotated one of this log
                    return
        if not is_whole or (not content and file.unpacked is None):
            file.first = identity_of(content)
            return
        if entry is not None and entry.key:
            file.life = Life(entry.key, entry.lives)
            file.first = entry.first if file.unpacked is None else identity_of(content)
            file.size = max(entry.position, min(entry.size, size)) if file.unpacked is None else entry.position
        else:
            file.life = self._new_life(file, line if newline or len(content) == self.options.fingerprint_bytes else b"", least)
            file.first = identity_of(content)
        if file.unpacked is not None:
            self._packed_keys.add(file.life.key)
        self._resume(file, entry if entry is not None and entry.key else None)

    def _new_life(self, file: Followed, line: bytes, least: str) -> Life:
        """A life of this file, whose first line is known or does not end; `least`: the key of what stood there before, if anything did."""
        for first in (line, b""):  # perhaps the line had not ended when a process before this one gave it out
            base = life_key(file.device, file.inode, first, 0)
            at_least = file.number if base == parts_of(least)[0] else 0
            number = self._queued.number(base, at_least, lambda end: not end or bool(file.pread(1, end - 1)))
            if number is not None:
                return Life(life_key(file.device, file.inode, first, number), number)
        # Two contents never share a key, whatever they begin with.
        number = file.number
        while (key := life_key(file.device, file.inode, line, number)) in self._packed_keys:
            number += 1
        return Life(key, number)

    def _resume(self, file: Followed, entry: Saved | None) -> None:
        """Begin where the checkpoint and the queues say."""
        life = file.life
        assert life is not None
        position, skipping, anchor = (entry.position, entry.skipping, entry.anchor) if entry is not None else (0, False, b"")
        durable, lost = self._queued.take(life.key)
        if durable and not file.pread(1, self._end(durable) - 1):
            durable = Ranges()  # the content that a queue holds of it is not this one, or not any more
        if (reach := durable.reach(position)) > position:
            position, anchor = reach, self._anchor(file, reach)
            skipping = self._is_in_cut_line(file, reach, anchor)
            file.size = max(file.size, position)
        life.start_at(position, skipping, anchor)
        if islands := [(start, end) for start, end in durable if start > position]:
            self._islands[life] = islands
        self._again.add(life.key, lost)
        self._again.drop(life.key, position, sys.maxsize)  # what is ahead is read anyway

    @staticmethod
    def _end(ranges: Ranges) -> int:
        return max((end for _, end in ranges), default=0)

    def _anchor(self, file: Followed, position: int) -> bytes:
        return file.pread(min(ANCHOR_BYTES, position), max(0, position - ANCHOR_BYTES))

    def _is_in_cut_line(self, file: Followed, position: int, anchor: bytes) -> bool:
        """Whether the position is inside a line that was cut at its limit; what follows of it is dropped."""
        if anchor[-1:] == b"\n" or position < self.options.max_record_bytes:
            return False
        size = min(position, self._max_chunk)
        return b"\n" not in file.pread(size, position - size)

    def _cross(self, file: Followed, life: Life) -> Range:
        """Pass over what a queue holds already."""
        islands = self._islands[life]
        start, end = islands.pop(0)
        if not islands:
            del self._islands[life]
        life.anchor = self._anchor(file, end)
        life.read, life.skipping = end, self._is_in_cut_line(file, end, life.anchor)
        file.size = max(file.size, end)
        return Range(file, life, start, end, life.skipping, life.anchor, 0)

    def _read_again(self, left_bytes: int, left_records: int, into: Round) -> tuple[int, int]:
        """Read what queues lost once more; gives what is left of the round."""
        by_key = {file.life.key: file for file in self._files.values() if file.life is not None}
        for key in list(self._again.unread):
            file = by_key.get(key) or self._reopen(key)
            if file is not None and file.unpacked is None and not _begins(file.first, file.pread_head(file.first[0])):
                self._truncated(file, os.fstat(file.descriptor).st_size)
                file = None
            if file is None:
                if not self.waiting_files and not self.missing:
                    for start, end in list(self._again.unread[key]):
                        self._again.drop(key, start, end)
                        self._lose(end - start, key, "a queue lost it, and its file is gone")
                continue
            while key in self._again.unread and left_bytes > _LEAST_READ and left_records > 0:
                start, end = next(iter(self._again.unread[key]))
                used, records = self._read_range(file, start, end, min(left_bytes, end - start), left_records, into)
                self._again.read(key, start, start + used)
                left_bytes -= used
                left_records -= records
        return left_bytes, left_records

    def _read_range(self, file: Followed, start: int, end: int, size: int, max_records: int, into: Round) -> tuple[int, int]:
        """Read the beginning of this range, which holds whole records: bytes used, records."""
        life = file.life
        assert life is not None
        anchor = self._anchor(file, start)
        in_line = self._is_in_cut_line(file, start, anchor)
        while True:
            chunk = file.pread(size, start)
            if len(chunk) < size:
                self._lose(end - start - len(chunk), file.path, "a queue lost it, and it is not in its file any more")
                self._again.drop(life.key, start + len(chunk), end)
                end = start + len(chunk)
            whole = start + len(chunk) == end
            if in_line:
                used = chunk.find(b"\n") + 1 or len(chunk)
                parsed = Parsed(b"", 0, 0, 0, 0, 0, 0, 0, used, Left.NOTHING)
            else:
                flush = Flush.END if whole or size >= self._max_chunk else Flush.NOTHING
                parsed = file.parse(chunk, max_records, flush, self._unix_nano())
            if parsed.consumed or whole:
                break
            size = min(end - start, 2 * size, self._max_chunk)
        if not chunk:
            return 0, 0
        used = parsed.consumed or len(chunk)
        into.ranges.append(Range(file, life, start, start + used, False, b"", parsed.records, parsed.lines - parsed.empty, self._again))
        if parsed.records:
            into.payloads.append(parsed.payload)
            into.records += parsed.records
            self.counts.records += parsed.records
        return used, parsed.records

    def _reopen(self, key: str) -> Followed | None:
        """The file of a known content that is not open."""
        for entry in [entry for entry in self._saved.values() if entry.key == key]:
            identity = entry.device, entry.inode
            path = next((path for path in (entry.real, entry.path) if _status(path, identity) is not None), None)
            if path is None or not self._make_room():
                return None
            try:
                descriptor, real = self._roots.open(path)
            except (OSError, Refused) as error:
                self.unreadable(path, error)
                return None
            self._adopt(path, real, descriptor, path == entry.path, log=entry.path, unpacked=Unpacked(descriptor) if entry.packed else None)
            if (file := self._files.get(identity)) is not None and file.life is not None and file.life.key == key:
                return file
        return None

    def _lose(self, lost_bytes: int, path: str, how: str) -> None:
        """Count what is gone; without bytes, that it is not known whether anything is."""
        if lost_bytes:
            self.counts.gaps += 1
            self.counts.lost_bytes += lost_bytes
            self.losses.append(f"lost at least {lost_bytes} bytes of {path}: {how}")
        else:
            self.counts.unknown += 1
            self.losses.append(f"lost perhaps the end of {path}: {how}")

    def _truncated(self, file: Followed, size: int) -> None:
        """The file was cut under us (copytruncate): what was not read is lost, and counted; what stands there now is another life."""
        life = file.life
        self.counts.truncations += 1
        read = life.read if life is not None else 0
        if file.size > read:
            self._lose(file.size - read, file.path, "it was truncated before it was read to its end")
        if life is not None:
            self._islands.pop(life, None)
        file.size, file.unread, file.chunk_bytes = 0, False, 0
        file.first = NOTHING_READ
        self._unfinished.pop(file, None)
        if life is None:
            return
        # A writer without O_APPEND leaves a hole where its old bytes were.
        try:
            start = os.lseek(file.descriptor, 0, os.SEEK_DATA)
        except OSError:
            start = 0
        line, newline, _ = os.pread(file.descriptor, self.options.fingerprint_bytes, start).lstrip(b"\0").partition(b"\n")
        file.number = life.number + 1
        self._ready[file] = None
        if not newline and not start:
            file.life = None  # until its first line is there
            return
        file.life = Life(life_key(file.device, file.inode, line, life.number + 1), life.number + 1)
        if 0 < start < size:
            head = os.pread(file.descriptor, 1 << 16, start)
            file.life.start_at(start + len(head) - len(head.lstrip(b"\0")), False, b"")
        file.first = identity_of(os.pread(file.descriptor, self.options.fingerprint_bytes, 0))

    def _read(self, file: Followed, size: int, max_records: int, into: Round) -> tuple[int, int, bool]:
        """Read up to `size` bytes into the round: bytes used, records, whether there is more."""
        self.counts.reads += 1
        now = self._monotonic()
        quiet = now - file.quiet_since
        if file.life is None:
            length = os.fstat(file.descriptor).st_size
            if length < file.size:
                self._truncated(file, length)
            if length != file.size:
                file.size, file.quiet_since, quiet = length, now, 0.0
            file.unread = length > 0
            due = self.options.flush_seconds and quiet >= self.options.flush_seconds
            ending = file in self._leaving and quiet >= self.options.linger_seconds
            self._identify(file, length, force=bool(due or ending))
            if file.life is None:
                if file.unread and file.identity in self._files:
                    self._unfinished[file] = None
                return 0, 0, False
        life = file.life
        position, stop = life.read, 0
        if self._islands and (islands := self._islands.get(life)):
            stop = islands[0][0]
            if position >= stop:
                into.passed.append(self._cross(file, life))
                return 0, 0, True
            size = min(size, stop - position)
        content = file.pread(len(life.anchor) + size, position - len(life.anchor))
        end = position - len(life.anchor) + len(content)
        # The bytes before the position do not suffice: equal lines make equal anchors.
        head = content if not position and size >= file.first[0] else file.pread_head(file.first[0])
        is_same = content.startswith(life.anchor) and (file.unpacked is not None or _begins(file.first, head))
        if not is_same or end < min(file.size, position + size):
            if file.unpacked is not None:
                self._lose(max(1, file.size - end), file.name, "it was changed under us")
                self._close(file, keep=True)
                return 0, 0, False
            self._truncated(file, os.fstat(file.descriptor).st_size)
            return 0, 0, True
        chunk = content[len(life.anchor) :]
        if end > file.size:
            file.size, file.quiet_since, quiet = end, now, 0.0
        if file.unpacked is not None and len(chunk) < size and file.unpacked.error:
            self._broken(file, file.unpacked)
        if not chunk:
            self._left(file, False)
            return 0, 0, False
        if life.skipping:
            return self._skip(file, chunk, len(chunk) == size, into)
        at_end = len(chunk) < size
        before = self._before(file) if position == 0 else []
        pieces = [*before, (file, chunk)]
        chunk = b"".join(piece for _, piece in pieces)
        flush = Flush.NOTHING
        if (at_end and file in self._leaving and quiet >= self.options.linger_seconds) or (stop and position + size >= stop):
            flush = Flush.END
        elif at_end and self.options.flush_seconds and quiet >= self.options.flush_seconds:
            flush = Flush.QUIET
        parsed = file.parse(chunk, max_records, flush, self._unix_nano())
        skipping = False
        if not parsed.consumed and (not at_end or len(chunk) >= self._max_chunk):
            # One record does not fit. At the bound it is cut: what then follows of its line is dropped.
            if len(chunk) < self._max_chunk:
                file.chunk_bytes = min(size * 2, self._max_chunk)
                return 0, 0, True
            flush = Flush.QUIET if parsed.left is Left.GROUP else Flush.END
            parsed = file.parse(chunk, max_records, flush, self._unix_nano())
            skipping = parsed.consumed == len(chunk) and chunk[-1:] != b"\n"
        file.chunk_bytes = 0
        if parsed.consumed:
            self._advance_all(pieces, parsed, skipping, into)
            self.counts.malformed += parsed.malformed
            self.counts.truncated += parsed.truncated
            self.counts.unfinished += parsed.partial
            if parsed.records:
                file.bytes_per_record = parsed.consumed / parsed.records
        limited = parsed.left is Left.LIMIT and parsed.consumed > 0
        more = not at_end or limited
        file.open_group = parsed.left is Left.GROUP and chunk[-1:] == b"\n"
        file.pending_lines = parsed.pending
        if file.unpacked is not None and not more:
            file.unpacked.forget(life.read - ANCHOR_BYTES)
        self._left(file, not more and parsed.consumed < len(chunk), flush)
        return parsed.consumed, parsed.records, more

    @property
    def _max_chunk(self) -> int:
        """A record of twice the limit still fits: its whole line is seen, cut and flagged, and the next one is intact."""
        return 2 * self.options.max_record_bytes + _LEAST_CHUNK

    def _broken(self, file: Followed, unpacked: Unpacked) -> None:
        """What is good of a compressed file was read; the rest is a gap, told once."""
        rest = max(file.size - unpacked.end, os.fstat(file.descriptor).st_size - unpacked.read_bytes)
        self._lose(max(rest, 1), file.name, f"it cannot be unpacked any further ({unpacked.error})")
        unpacked.error = ""

    def _skip(self, file: Followed, chunk: bytes, full: bool, into: Round) -> tuple[int, int, bool]:
        """Drop the rest of a line that was cut at its limit."""
        newline = chunk.find(b"\n")
        used = newline + 1 or len(chunk)
        self._advance(file, chunk, used, newline < 0, b"", 0, into)
        self._left(file, False)
        return used, 0, full or used < len(chunk)

    def _before(self, file: Followed) -> list[tuple[Followed, bytes]]:
        """The open record that a file's beginning goes on with: what the files of this log that were rotated before it left unread.

        A runtime's reopening may come between the parts of a line (test_a_record_over_a_rotation_is_one).
        """
        found: list[tuple[Followed, bytes]] = []
        older: list[Followed] = []
        for each in self._leaving:
            if each is file:
                break
            if each.path == file.path:
                older.append(each)
        for each in reversed(older):
            if each.life is None or not (each.unread and each.open_group):
                break
            found.insert(0, (each, each.pread(each.size - each.life.read, each.life.read)))
            if each.life.read:
                break
        return found

    def _advance_all(self, pieces: list[tuple[Followed, bytes]], parsed: Parsed, skipping: bool, into: Round) -> None:
        """What was parsed of several files as of one: the records count as the last one's that they reach into."""
        left, lines = parsed.consumed, parsed.lines - parsed.empty
        for file, piece in pieces:
            used = min(left, len(piece))
            left -= used
            if not left:
                self._advance(file, piece, used, skipping, parsed.payload, parsed.records, into, lines)
                return
            mine = piece.count(b"\n")  # parts of an open record, so none is empty
            lines -= mine
            self._advance(file, piece, used, False, b"", 0, into, mine)
            self._left(file, False)

    def _advance(
        self, file: Followed, chunk: bytes, used: int, skipping: bool, payload: bytes, records: int, into: Round, lines: int = 0
    ) -> None:
        life = file.life
        assert life is not None
        start = life.read
        life.read = start + used
        life.skipping = skipping
        tail = chunk[max(0, used - ANCHOR_BYTES) : used]
        life.anchor = tail if len(tail) == ANCHOR_BYTES else (life.anchor + tail)[-ANCHOR_BYTES:]
        into.ranges.append(Range(file, life, start, life.read, skipping, life.anchor, records, lines))
        if records:
            into.payloads.append(payload)
            into.records += records
            self.counts.records += records
        most = self.options.fingerprint_bytes
        if file.first[0] < most and file.unpacked is None and life.read >= min(2 * file.first[0], most):
            file.first = identity_of(os.pread(file.descriptor, most, 0))

    def _left(self, file: Followed, unread: bool, flush: Flush = Flush.NOTHING) -> None:
        file.unread = unread
        if not unread:
            file.pending_lines = 0
        if unread and flush is Flush.NOTHING:  # what was left in spite of a flush waits for more bytes
            self._unfinished[file] = None
        else:
            self._unfinished.pop(file, None)


def _line_start(descriptor: int, size: int) -> tuple[int, bytes]:
    """Where the last, perhaps unfinished line begins, and the bytes before it."""
    begin = max(0, size - _LEAST_CHUNK)
    tail = os.pread(descriptor, size - begin, begin)
    position = begin + tail.rfind(b"\n") + 1 if b"\n" in tail else (size if begin else 0)
    start = max(0, position - ANCHOR_BYTES)
    return position, os.pread(descriptor, position - start, start)


def _begins_as(entry: Saved, head: bytes) -> bool:
    return _begins(entry.first, head) if entry.first[0] or not entry.packed else not head


def _begins(first: tuple[int, bytes], content: bytes) -> bool:
    length, known = first
    return len(content) >= length and digest(content[:length]) == known


def _is_content_of(entry: Saved, head: bytes, pread: Callable[[int, int], bytes]) -> bool:
    """Whether what is known of a content fits this one: by its first bytes, and by those before the position."""
    if not _begins_as(entry, head) or pread(len(entry.anchor), entry.position - len(entry.anchor)) != entry.anchor:
        return False
    return not entry.position or bool(pread(1, entry.position - 1))


def _moved_to(entry: Saved, path: str, status: os.stat_result) -> Saved:
    """The entry of a content that stands in another file now."""
    return structs.replace(entry, device=status.st_dev, inode=status.st_ino, real=path, packed=path.endswith(".gz"))


def _name_of(directory: str, inode: int) -> str | None:
    try:
        with os.scandir(directory) as entries:
            return next((entry.name for entry in entries if entry.inode() == inode), None)
    except OSError:
        return None


def _status(path: str, identity: tuple[int, int]) -> os.stat_result | None:
    """The status of this path, where it (still) is this file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if (status.st_dev, status.st_ino) == identity else None


def describe_unreadable(path: str, error: OSError) -> str:
    """What cannot be read, by whom, and whose it is: everything that is needed to mend it."""
    who = f"this process is uid {os.geteuid()}, gid {os.getegid()}, groups {sorted(os.getgroups())}"
    try:
        status = os.stat(path)
        whose = f"it is mode {stat.filemode(status.st_mode)}, owner uid {status.st_uid}, gid {status.st_gid}"
    except OSError:
        parent = path
        while (parent := os.path.dirname(parent)) not in ("/", ""):
            try:
                status = os.stat(parent)
            except OSError:
                continue
            break
        else:
            status = os.stat("/")
        whose = f"{parent} is mode {stat.filemode(status.st_mode)}, owner uid {status.st_uid}, gid {status.st_gid}"
    mend = "give it that group (supplementalGroups), or run as the owner"
    return f"cannot read {path}: {error.strerror or error}; {who}; {whose}; {mend}"


def _unpacked_size(descriptor: int, size: int) -> int:
    """How much a gzip file of one member (a kubelet's) says that it holds: RFC 1952, ISIZE."""
    return int.from_bytes(os.pread(descriptor, 4, max(0, size - 4)), "little")
