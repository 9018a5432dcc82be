"""Reads again what queues lost, wherever it stands by now. The ranges themselves are kept by `queued.Again`."""

import os
from collections.abc import Callable

from lockgate.tail.account import Account
from lockgate.tail.arrivals import Arrivals
from lockgate.tail.files import Files
from lockgate.tail.follow import Flush, Followed, begins
from lockgate.tail.known import Known
from lockgate.tail.lives import Lives
from lockgate.tail.open import Refused, status_of
from lockgate.tail.options import Options
from lockgate.tail.packed import Unpacked
from lockgate.tail.queued import Again
from lockgate.tail.reading import LEAST_READ_BYTES, Range, Round
from lockgate.wire.parsed import Left, Parsed


class Rereader:
    """Opens the file of a range again, if need be."""

    def __init__(
        self,
        options: Options,
        files: Files,
        known: Known,
        lives: Lives,
        arrivals: Arrivals,
        again: Again,
        account: Account,
        unix_nano: Callable[[], int],
    ) -> None:
        self._options, self._files, self._known, self._lives = options, files, known, lives
        self._arrivals, self._again, self._account, self._unix_nano = arrivals, again, account, unix_nano

    def read(self, left_bytes: int, left_records: int, into: Round) -> tuple[int, int]:
        """Read what queues lost once more; gives what is left of the round."""
        by_key = {file.life.key: file for file in self._files.opened.values() if file.life is not None}
        for key in list(self._again.unread):
            file = by_key.get(key) or self._reopen(key)
            if file is not None and file.unpacked is None and not begins(file.first, file.pread_head(file.first[0])):
                self._lives.truncated(file, os.fstat(file.descriptor).st_size)
                file = None
            if file is None:
                if self._arrivals.has_seen_all:
                    for start, end in list(self._again.unread[key]):
                        self._again.drop(key, start, end)
                        self._account.lose(end - start, key, "a queue lost it, and its file is gone")
                continue
            while key in self._again.unread and left_bytes > LEAST_READ_BYTES and left_records > 0:
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
        anchor = file.anchor(start)
        in_line = self._lives.is_in_cut_line(file, start, anchor)
        while True:
            chunk = file.pread(size, start)
            if len(chunk) < size:
                self._account.lose(end - start - len(chunk), file.path, "a queue lost it, and it is not in its file any more")
                self._again.drop(life.key, start + len(chunk), end)
                end = start + len(chunk)
            whole = start + len(chunk) == end
            if in_line:
                used = chunk.find(b"\n") + 1 or len(chunk)
                parsed = Parsed(b"", 0, 0, 0, 0, 0, 0, 0, used, Left.NOTHING)
            else:
                flush = Flush.END if whole or size >= self._options.max_chunk_bytes else Flush.NOTHING
                parsed = file.parse(chunk, max_records, flush, self._unix_nano())
            if parsed.consumed or whole:
                break
            size = min(end - start, 2 * size, self._options.max_chunk_bytes)
        if not chunk:
            return 0, 0
        used = parsed.consumed or len(chunk)
        lines = parsed.lines - parsed.empty
        into.add(Range(file, life, start, start + used, False, b"", parsed.records, lines, self._again), parsed.payload)
        self._account.counts.records += parsed.records
        return used, parsed.records

    def _reopen(self, key: str) -> Followed | None:
        """The file of a known content that is not open."""
        for entry in [entry for entry in self._known.saved.values() if entry.key == key]:
            identity = entry.device, entry.inode
            path = next((path for path in (entry.real, entry.path) if status_of(path, identity) is not None), None)
            if path is None or not self._files.make_room():
                return None
            try:
                descriptor, real = self._arrivals.roots.open(path)
            except (OSError, Refused) as error:
                self._account.unreadable(path, error)
                return None
            self._arrivals.adopt(
                path, real, descriptor, path == entry.path, log=entry.path, unpacked=Unpacked(descriptor) if entry.packed else None
            )
            if (file := self._files.opened.get(identity)) is not None and file.life is not None and file.life.key == key:
                return file
        return None
