"""The blocking half of following files: one call looks at what changed and reads a round of every file that has something.

Every method blocks on the disk and belongs in a thread; calls must not overlap. Acknowledgements (`Life.take`) may come from elsewhere
meanwhile.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec import structs

from lockgate.tail.discovery import Discovery
from lockgate.tail.follow import ANCHOR_BYTES, Flush, Followed, Life, MakeParser, Saved, digest, first_bytes, life_key
from lockgate.tail.open import Refused, Roots
from lockgate.tail.patterns import Patterns
from lockgate.wire.parsed import Left, Parsed

_LEAST_CHUNK = 64 << 10
_LEAST_READ = 4 << 10
_COMPRESSED = (".gz", ".tmp", ".zst", ".bz2", ".xz", ".zip")
_MAX_PROBLEMS = 1000
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
    exclude_older_than_seconds: float = 0.0
    poll_seconds: float = 0.2
    fingerprint_bytes: int = 1000
    max_record_bytes: int = 1 << 20
    max_files: int = 1024
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

    def take(self) -> None:
        self.life.take(self.start, self.end, self.skipping, self.anchor)


@dataclass(slots=True)
class Round:
    """What one call read."""

    payloads: list[bytes] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    records: int = 0
    more: bool = False
    """Whether files have more to give at once."""


class Tailer:
    """The files that the patterns mean, and what became of them."""

    def __init__(
        self,
        options: Options,
        make_parser: MakeParser,
        saved: Iterable[Saved] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
        unix_nano: Callable[[], int] = time.time_ns,
    ) -> None:
        self.options, self._make_parser, self._monotonic, self._unix_nano = options, make_parser, monotonic, unix_nano
        self._patterns = patterns = Patterns(options.include, options.exclude)
        self._roots = Roots.of([*patterns.roots, *options.link_roots])
        self._discovery = Discovery(patterns, self._roots, self, inotify=options.inotify)
        self._files: dict[tuple[int, int], Followed] = {}
        self._by_name: dict[str, Followed] = {}
        self._saved = {(entry.device, entry.inode): entry for entry in saved}
        """Files known and not open: from the checkpoint, or closed to make room."""
        self._inodes: dict[int, int] = {}
        """How many known files, open or saved, have this inode number: what a listing alone can tell."""
        for _, inode in self._saved:
            self._inodes[inode] = self._inodes.get(inode, 0) + 1
        self._from_start = bool(self._saved) or not options.start_at_end
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
        return self._waiting

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

    def snapshot(self) -> list[Saved]:
        """What a checkpoint should know: every file that is there."""
        return [entry for file in self._files.values() if (entry := file.saved()) is not None] + list(self._saved.values())

    def close(self) -> None:
        """Close every descriptor."""
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()
        self._discovery.close()

    def collect(self, max_bytes: int, max_records: int) -> Round:
        """Look at what changed, and read every file that has something: fairly, up to these bounds (one record may pass `max_bytes`)."""
        self._look()
        round_ = Round()
        left_bytes, left_records = max_bytes, max_records
        # What was rotated away goes before what took its place, the oldest first: a log keeps its order over its files.
        todo = [*(file for file in self._leaving if file in self._ready), *(file for file in self._ready if file not in self._leaving)]
        share = max(_LEAST_CHUNK, max_bytes // max(1, len(todo)))
        while todo and left_bytes > _LEAST_READ and left_records > 0:
            unread: list[Followed] = []
            behind: set[str] = set()
            for file in todo:
                if file.path in behind:
                    unread.append(file)
                    continue
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
        round_.more = bool(self._ready)
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
                if os.lseek(file.descriptor, 0, os.SEEK_END) != file.size:
                    self._ready[file] = None
        if self._leaving and now >= self._next_leaving:
            self._next_leaving = now + min(_LEAVING_SECONDS, self.options.linger_seconds)
            self._check_leaving(now)
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
        if not self._looked:
            self._looked = True
            # Found by listing, in no order.
            self._leaving = dict.fromkeys(sorted(self._leaving, key=lambda file: os.fstat(file.descriptor).st_mtime_ns))
        pause = self.options.poll_seconds if self.descriptor < 0 else _SWEEP_SECONDS
        if self.missing or self._waiting:
            pause = min(pause, 1.0)
        # The first look opens everything, which says nothing of the cost of the next.
        cost = self._monotonic() - now if self.counts.scans > 1 else 0.0
        self._next_scan = now + max(pause, min(cost / _SCAN_SHARE, _SWEEP_SECONDS))

    def _check_sizes(self, files: Iterable[Followed]) -> None:
        for file in files:
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
                self._close(file, keep=keep)

    def _check_saved(self) -> None:
        """Files known and not open (rotated while nobody looked, closed to make room): grown, moved, or gone, which is a gap."""
        for entry in list(self._saved.values()):
            identity = entry.device, entry.inode
            if (status := _status(entry.path, identity)) is not None:
                path, matched = entry.path, True
            elif (status := _status(entry.real, identity)) is not None:
                path, matched = entry.real, False
            else:
                directory = os.path.dirname(entry.real)
                path, matched = f"{directory}/{_name_of(directory, entry.inode)}", False
                status = _status(path, identity)
            if status is None:
                if entry.size > entry.position:
                    self._gap(entry.size - entry.position)
                self._forget(entry)
                continue
            if status.st_size != entry.position:
                self.appeared(path, entry.inode, matched)
            if path not in (entry.path, entry.real) and identity in self._saved:
                self._saved[identity] = structs.replace(entry, real=path)

    def _moved(self, old: str, new: str) -> None:
        """A file that was made and rotated between two looks: known by its rename alone."""
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
        self.counts.rotations += 1
        self._adopt(new, real, descriptor, False, old)

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
        file = self._by_name.get(path)
        if file is not None and file.name == path:
            del self._by_name[path]
            self._leave(file)

    def unreadable(self, path: str, error: OSError | Refused) -> None:
        if path in self.problems or len(self.problems) < _MAX_PROBLEMS:
            self.problems[path] = str(error) if isinstance(error, Refused) else describe_unreadable(path, error)

    def readable(self, path: str) -> None:
        self.problems.pop(path, None)

    # Files come and go.

    def _adopt(self, path: str, real: str, descriptor: int, matched: bool, rotated_from: str = "") -> None:
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino
        real = path if real == path else real  # one string for both
        if identity in self._files or identity in self.options.own:
            os.close(descriptor)
            return
        entry = self._saved.get(identity)
        # A rotated file is still the log of the container whose path it had.
        known_as, known_real = (entry.path, entry.real) if entry is not None and not matched else (rotated_from or path, real)
        parse = self._make_parser(known_as, known_real, descriptor)
        file = Followed(known_as, known_real, descriptor, *identity, parse, path, matched, quiet_since=self._monotonic())
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
        at_end = not self._from_start and entry is None
        self._identify(file, status.st_size, force=at_end)
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
        entry = file.saved() if keep else None
        os.close(file.descriptor)
        del self._files[file.identity]
        for name in {file.name, file.path, file.real}:
            if self._by_name.get(name) is file:
                del self._by_name[name]
        for group in (self._ready, self._unfinished, self._leaving):
            group.pop(file, None)
        if entry is not None:
            self._saved[file.identity] = entry if file.matched else structs.replace(entry, real=file.name)
        else:
            self._uncount(file.inode)

    def _forget(self, entry: Saved) -> None:
        if self._saved.pop((entry.device, entry.inode), None) is not None:
            self._uncount(entry.inode)

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

    # Reading.

    def _identify(self, file: Followed, size: int, force: bool = False) -> None:
        """Give the file its life, as soon as its first line, or enough of it, is there."""
        content = os.pread(file.descriptor, self.options.fingerprint_bytes, 0)
        line, newline, _ = content.partition(b"\n")
        if not content or not (newline or force or len(content) == self.options.fingerprint_bytes):
            return
        entry = self._saved.get(file.identity)
        number = 0
        if entry is not None:
            self._forget(entry)
            length, known = entry.first
            before = os.pread(file.descriptor, len(entry.anchor), entry.position - len(entry.anchor))
            if len(content[:length]) == length and digest(content[:length]) == known and before == entry.anchor and size >= entry.position:
                file.life = Life(entry.key, entry.lives)
                file.life.start_at(entry.position, entry.skipping, entry.anchor)
                file.first = entry.first
                file.size = max(entry.position, min(entry.size, size))
                return
            number = entry.lives + 1  # so that two contents never share a key, whatever they begin with
            if entry.size > entry.position:
                self._gap(entry.size - entry.position)
            if not file.matched and not file.name.startswith((entry.path, entry.real)):
                self._close(file, keep=False)  # somebody else's file, on an inode used again; not a rotated one of this log
                return
        file.life = Life(life_key(file.device, file.inode, line, number), number)
        file.first = len(content), digest(content)

    def _gap(self, lost_bytes: int) -> None:
        self.counts.gaps += 1
        self.counts.lost_bytes += lost_bytes

    def _truncated(self, file: Followed, size: int) -> None:
        """The file was cut under us (copytruncate): what was not read is lost, and counted; what stands there now is another life."""
        life = file.life
        self.counts.truncations += 1
        read = life.read if life is not None else 0
        if file.size > read:
            self._gap(file.size - read)
        file.size, file.unread, file.chunk_bytes = 0, False, 0
        self._unfinished.pop(file, None)
        if life is None:
            return
        # A writer without O_APPEND leaves a hole where its old bytes were.
        try:
            start = os.lseek(file.descriptor, 0, os.SEEK_DATA)
        except OSError:
            start = 0
        line = os.pread(file.descriptor, self.options.fingerprint_bytes, start).lstrip(b"\0").partition(b"\n")[0]
        file.life = Life(life_key(file.device, file.inode, line, life.number + 1), life.number + 1)
        if 0 < start < size:
            head = os.pread(file.descriptor, 1 << 16, start)
            file.life.start_at(start + len(head) - len(head.lstrip(b"\0")), False, b"")
        file.first = first_bytes(file.descriptor, self.options.fingerprint_bytes)
        self._ready[file] = None

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
        position = life.read
        content = os.pread(file.descriptor, len(life.anchor) + size, position - len(life.anchor))
        end = position - len(life.anchor) + len(content)
        if not content.startswith(life.anchor) or end < min(file.size, position + size):
            self._truncated(file, os.fstat(file.descriptor).st_size)
            return 0, 0, True
        chunk = content[len(life.anchor) :]
        if end > file.size:
            file.size, file.quiet_since, quiet = end, now, 0.0
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
        if at_end and file in self._leaving and quiet >= self.options.linger_seconds:
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
        self._left(file, not more and parsed.consumed < len(chunk), flush)
        return parsed.consumed, parsed.records, more

    @property
    def _max_chunk(self) -> int:
        """A record of twice the limit still fits: its whole line is seen, cut and flagged, and the next one is intact."""
        return 2 * self.options.max_record_bytes + _LEAST_CHUNK

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
            found.insert(0, (each, os.pread(each.descriptor, each.size - each.life.read, each.life.read)))
            if each.life.read:
                break
        return found

    def _advance_all(self, pieces: list[tuple[Followed, bytes]], parsed: Parsed, skipping: bool, into: Round) -> None:
        """What was parsed of several files as of one: the records count as the last one's that they reach into."""
        left = parsed.consumed
        for file, piece in pieces:
            used = min(left, len(piece))
            left -= used
            if not left:
                self._advance(file, piece, used, skipping, parsed.payload, parsed.records, into)
                return
            self._advance(file, piece, used, False, b"", 0, into)
            self._left(file, False)

    def _advance(self, file: Followed, chunk: bytes, used: int, skipping: bool, payload: bytes, records: int, into: Round) -> None:
        life = file.life
        assert life is not None
        start = life.read
        life.read = start + used
        life.skipping = skipping
        tail = chunk[max(0, used - ANCHOR_BYTES) : used]
        life.anchor = tail if len(tail) == ANCHOR_BYTES else (life.anchor + tail)[-ANCHOR_BYTES:]
        into.ranges.append(Range(file, life, start, life.read, skipping, life.anchor, records))
        if records:
            into.payloads.append(payload)
            into.records += records
            self.counts.records += records
        if file.first[0] < self.options.fingerprint_bytes and life.read >= min(2 * file.first[0], self.options.fingerprint_bytes):
            file.first = first_bytes(file.descriptor, self.options.fingerprint_bytes)

    def _left(self, file: Followed, unread: bool, flush: Flush = Flush.NOTHING) -> None:
        file.unread = unread
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
