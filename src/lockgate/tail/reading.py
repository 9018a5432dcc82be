"""A round: what is read of files that have something, one after the other. Finds no file, and knows of no look."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from lockgate.tail.account import Account
from lockgate.tail.files import Files
from lockgate.tail.follow import ANCHOR_BYTES, Flush, Followed, Life, begins, identity_of
from lockgate.tail.lives import Lives
from lockgate.tail.options import LEAST_CHUNK_BYTES, Options
from lockgate.tail.packed import Unpacked
from lockgate.tail.queued import Again
from lockgate.wire.parsed import Left, Parsed

LEAST_READ_BYTES = 4 << 10
_MAX_UNPACKING = 16
"""Compressed files that are read at a time: each takes some 100 KB."""


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

    def add(self, range_: Range, payload: bytes) -> None:
        self.ranges.append(range_)
        if range_.records:
            self.payloads.append(payload)
            self.records += range_.records


class Reader:
    """Reads on where each file's life says."""

    def __init__(
        self,
        options: Options,
        files: Files,
        lives: Lives,
        account: Account,
        monotonic: Callable[[], float],
        unix_nano: Callable[[], int],
    ) -> None:
        self._options, self._files, self._lives, self._account = options, files, lives, account
        self._monotonic, self._unix_nano = monotonic, unix_nano

    def read_ready(self, share_of: int, left_bytes: int, left_records: int, into: Round) -> None:
        """Read every file that has something, up to these bounds (one record may pass them), in equal shares of `share_of` bytes."""
        # What was rotated away goes before what took its place, the oldest first: a log keeps its order over its files.
        ready, leaving = self._files.ready, self._files.leaving
        todo = [*(file for file in leaving if file in ready), *(file for file in ready if file not in leaving)]
        share = max(LEAST_CHUNK_BYTES, share_of // max(1, len(todo)))
        while todo and left_bytes > LEAST_READ_BYTES and left_records > 0:
            unread: list[Followed] = []
            behind: set[str] = set()
            unpacking = 0
            for file in todo:
                if file.path in behind or (file.unpacked is not None and unpacking >= _MAX_UNPACKING):
                    unread.append(file)
                    behind.add(file.path)
                    continue
                unpacking += file.unpacked is not None
                if left_bytes <= LEAST_READ_BYTES or left_records <= 0:
                    break
                # To the end of the line, so that nobody starves.
                ready.pop(file, None)
                size = min(share, left_bytes, int(left_records * file.bytes_per_record * 1.2) + LEAST_READ_BYTES)
                used, records, more = self._read(file, max(size, file.chunk_bytes), left_records, into)
                left_bytes -= used
                left_records -= records
                if more and file.identity in self._files.opened:
                    ready[file] = None
                    unread.append(file)
                    behind.add(file.path)
            todo = unread

    def _read(self, file: Followed, size: int, max_records: int, into: Round) -> tuple[int, int, bool]:
        """Read up to `size` bytes into the round: bytes used, records, whether there is more."""
        self._account.counts.reads += 1
        self._account.at = file.name
        now = self._monotonic()
        life = file.life or self._begin(file, now)
        if life is None:
            return 0, 0, False
        position, stop = life.read, 0
        if life.islands:
            stop = life.islands[0][0]
            if position >= stop:
                into.passed.append(Range(file, life, *self._lives.cross(file, life), life.skipping, life.anchor, 0))
                return 0, 0, True
            size = min(size, stop - position)
        content = file.pread(len(life.anchor) + size, position - len(life.anchor))
        end = position - len(life.anchor) + len(content)
        # The bytes before the position do not suffice: equal lines make equal anchors.
        head = content if not position and size >= file.first[0] else file.pread_head(file.first[0])
        is_same = content.startswith(life.anchor) and (file.unpacked is not None or begins(file.first, head))
        if not is_same or end < min(file.size, position + size):
            return 0, 0, self._changed(file, end)
        chunk = content[len(life.anchor) :]
        if end > file.size:
            file.size, file.quiet_since = end, now
        if file.unpacked is not None and len(chunk) < size and file.unpacked.error:
            self._broken(file, file.unpacked)
        if not chunk:
            self._files.left(file, False)
            return 0, 0, False
        if life.skipping:
            return self._skip(file, chunk, len(chunk) == size, into)
        at_end = len(chunk) < size
        before = self._before(file) if position == 0 else []
        pieces = [*before, (file, chunk)]
        chunk = b"".join(piece for _, piece in pieces)
        flush = self._due(file, now) if at_end else Flush.NOTHING
        if stop and position + size >= stop:
            flush = Flush.END
        parsed = file.parse(chunk, max_records, flush, self._unix_nano())
        skipping = False
        if not parsed.consumed and (not at_end or len(chunk) >= self._options.max_chunk_bytes):
            # One record does not fit. At the bound it is cut: what then follows of its line is dropped.
            if len(chunk) < self._options.max_chunk_bytes:
                file.chunk_bytes = min(size * 2, self._options.max_chunk_bytes)
                return 0, 0, True
            flush = Flush.QUIET if parsed.left is Left.GROUP else Flush.END
            parsed = file.parse(chunk, max_records, flush, self._unix_nano())
            skipping = parsed.consumed == len(chunk) and chunk[-1:] != b"\n"
        file.chunk_bytes = 0
        if parsed.consumed:
            self._advance_all(pieces, parsed, skipping, into)
            self._account.counts.malformed += parsed.malformed
            self._account.counts.truncated += parsed.truncated
            self._account.counts.unfinished += parsed.partial
            if parsed.records:
                file.bytes_per_record = parsed.consumed / parsed.records
        more = not at_end or (parsed.left is Left.LIMIT and parsed.consumed > 0)
        file.open_group = parsed.left is Left.GROUP and chunk[-1:] == b"\n"
        file.pending_lines = parsed.pending
        if file.unpacked is not None and not more:
            file.unpacked.forget(life.read - ANCHOR_BYTES)
        self._files.left(file, not more and parsed.consumed < len(chunk), flush)
        return parsed.consumed, parsed.records, more

    def _begin(self, file: Followed, now: float) -> Life | None:
        """The life of a file that had none: None where its first line is not there yet."""
        length = os.fstat(file.descriptor).st_size
        if length < file.size:
            self._lives.truncated(file, length)
        if length != file.size:
            file.size, file.quiet_since = length, now
        file.unread = length > 0
        self._lives.identify(file, length, force=self._due(file, now) is not Flush.NOTHING)
        if file.life is None and file.unread and file.identity in self._files.opened:
            self._files.unfinished[file] = None
        return file.life

    def _due(self, file: Followed, now: float) -> Flush:
        """What to do with an unfinished record at the file's end."""
        quiet = now - file.quiet_since
        if file in self._files.leaving and quiet >= self._options.linger_seconds:
            return Flush.END
        return Flush.QUIET if self._options.flush_seconds and quiet >= self._options.flush_seconds else Flush.NOTHING

    def _changed(self, file: Followed, end: int) -> bool:
        """What was read is not there any more, or ends before it did; whether something else is to be read."""
        if file.unpacked is not None:
            self._account.lose(max(1, file.size - end), file.name, "it was changed under us")
            self._files.close(file, keep=True)
            return False
        self._lives.truncated(file, os.fstat(file.descriptor).st_size)
        return True

    def _broken(self, file: Followed, unpacked: Unpacked) -> None:
        """What is good of a compressed file was read; the rest is a gap, told once."""
        rest = max(file.size - unpacked.end, os.fstat(file.descriptor).st_size - unpacked.read_bytes)
        self._account.lose(max(rest, 1), file.name, f"it cannot be unpacked any further ({unpacked.error})")
        unpacked.error = ""

    def _skip(self, file: Followed, chunk: bytes, full: bool, into: Round) -> tuple[int, int, bool]:
        """Drop the rest of a line that was cut at its limit."""
        newline = chunk.find(b"\n")
        used = newline + 1 or len(chunk)
        self._advance(file, chunk, used, newline < 0, b"", 0, into)
        self._files.left(file, False)
        return used, 0, full or used < len(chunk)

    def _before(self, file: Followed) -> list[tuple[Followed, bytes]]:
        """The open record that a file's beginning goes on with: what the files of this log that were rotated before it left unread.

        A runtime's reopening may come between the parts of a line (test_a_record_over_a_rotation_is_one).
        """
        found: list[tuple[Followed, bytes]] = []
        older: list[Followed] = []
        for each in self._files.leaving:
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
            self._files.left(file, False)

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
        into.add(Range(file, life, start, life.read, skipping, life.anchor, records, lines), payload)
        self._account.counts.records += records
        most = self._options.fingerprint_bytes
        if file.first[0] < most and file.unpacked is None and life.read >= min(2 * file.first[0], most):
            file.first = identity_of(os.pread(file.descriptor, most, 0))
