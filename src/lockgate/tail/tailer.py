"""The blocking half of following files: one call looks at what changed and reads a round of every file that has something.

Every method blocks on the disk and belongs in a thread; calls must not overlap. Acknowledgements (`Life.take`) may come from elsewhere
meanwhile. Here the parts are put together; each knows those that it is given, and no other:

    look > recognition > arrivals > lives > files > known > account        who calls whom, from left to right
    reading > lives, files        rereading > arrivals, lives, files
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from msgspec import structs

from lockgate.kit.ranges import Ranges
from lockgate.pipeline.ledger import Gap, Place, Source
from lockgate.tail.account import Account, Counts
from lockgate.tail.arrivals import Arrivals
from lockgate.tail.files import Files
from lockgate.tail.follow import Followed, MakeParser, Saved
from lockgate.tail.known import Known
from lockgate.tail.lives import Lives
from lockgate.tail.look import Look
from lockgate.tail.options import Options
from lockgate.tail.queued import Again, Queued
from lockgate.tail.reading import Reader, Round
from lockgate.tail.recognition import Recognition
from lockgate.tail.rereading import Rereader


class Tailer:
    """The files that the patterns mean, and what became of them. `saved` is None at the very first start, and nothing where it was lost."""

    def __init__(
        self,
        options: Options,
        make_parser: MakeParser,
        saved: Iterable[Saved] | None = None,
        *,
        durable: Mapping[str, Ranges] | None = None,
        lost: Mapping[str, Ranges] | None = None,
        gaps: Iterable[Gap] = (),
        monotonic: Callable[[], float] = time.monotonic,
        unix_nano: Callable[[], int] = time.time_ns,
    ) -> None:
        self.options = options
        is_new = saved is None and not durable and not lost
        saved, durable = list(saved or ()), durable or {}
        self._account = account = Account(gaps, unix_nano)
        self._again = again = Again()
        queued = Queued(durable, lost or {}, again)
        for entry in saved:
            for start, end in entry.again:
                again.add(entry.key, durable.get(entry.key, Ranges()).missing(start, end))
        self._known = known = Known(saved)
        self._files = files = Files(options.max_files, known, account, monotonic)
        self._lives = lives = Lives(options, files, known, account, queued, again)
        self._arrivals = arrivals = Arrivals(
            options, files, known, lives, account, make_parser, monotonic, unix_nano, from_start=not is_new or not options.start_at_end
        )
        recognition = Recognition(options, files, known, arrivals, queued, account, unix_nano, is_new=is_new)
        self._look = Look(options, files, known, arrivals, recognition, queued, account, monotonic)
        self._reader = Reader(options, files, lives, account, monotonic, unix_nano)
        self._rereader = Rereader(options, files, known, lives, arrivals, again, account, unix_nano)

    @property
    def counts(self) -> Counts:
        return self._account.counts

    @property
    def at(self) -> str:
        """The file that is being read; empty while directories are looked at."""
        return self._account.at

    @property
    def gaps(self) -> dict[tuple[str, str], Gap]:
        """What was gone before it was read, by path and reason."""
        return self._account.gaps

    @property
    def problems(self) -> dict[str, str]:
        """What cannot be read and why, by path; at most so many."""
        return self._account.problems

    @property
    def losses(self) -> deque[str]:
        """What was lost and where, in words; whoever tells of it takes it out."""
        return self._account.losses

    @property
    def descriptor(self) -> int:
        """Readable when something changed; -1 where files are polled."""
        return self._arrivals.discovery.descriptor

    @property
    def unwatched(self) -> str:
        return self._arrivals.discovery.unwatched

    @property
    def missing(self) -> set[str]:
        """Directories that do not exist yet."""
        return self._arrivals.discovery.missing

    @property
    def open_files(self) -> int:
        return len(self._files.opened)

    @property
    def waiting_files(self) -> int:
        return self._arrivals.waiting_files

    @property
    def ready_files(self) -> int:
        return len(self._files.ready)

    @property
    def pending_lines(self) -> int:
        """Lines read that wait to be joined with others."""
        return sum(file.pending_lines for file in list(self._files.unfinished))

    def next_look(self) -> float:
        """When (monotonic) the next call is due although nothing is reported."""
        return self._look.next()

    def snapshot(self) -> list[Saved]:
        """What a checkpoint should know: every file that is there."""
        entries = [file.saved() for file in self._files.opened.values()]
        entries += [*self._known.saved.values(), *self._known.orphans]
        if self._again.untaken or any(entry.again for entry in entries):
            entries = [structs.replace(entry, again=self._again.of(entry.key)) for entry in entries]
        return entries

    def look_at(self, place: Callable[[str, str], Place | None]) -> list[Source]:
        """Every content that `place` (path as matched, where it stands) does not answer None for, and how far it was read."""
        found = []
        for file in self._files.opened.values():
            if (where := place(file.path, file.real)) is None:
                continue
            entry = file.saved()
            size = file.size if file.unpacked is not None else os.fstat(file.descriptor).st_size
            read = file.life.read if file.life is not None else 0
            oldest = _oldest_unread(file, read, size) if size > read else 0
            found.append(
                Source(
                    entry.key,
                    file.name,
                    where,
                    os.path.dirname(file.real),
                    size,
                    entry.position,
                    read,
                    oldest,
                    file.pending_lines,
                    file.unpacked is not None,
                    self._again.bytes_of(entry.key),
                )
            )
        for entry in [*self._known.saved.values(), *self._known.orphans]:
            if (where := place(entry.path, entry.real)) is not None and (entry.key or entry.size):
                size = entry.position if entry.done else max(entry.size, entry.position)
                group = os.path.dirname(entry.real)
                source = Source(entry.key, entry.real, where, group, size, entry.position, entry.position, compressed=entry.packed)
                source.again_bytes = self._again.bytes_of(entry.key)
                found.append(source)
        return found

    def give_back(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """A queue lost these ranges (key, start, end): the next calls of `collect` read them again."""
        for key, start, end in ranges:
            self._again.add(key, [(start, end)])

    def look(self) -> None:
        """Look at what changed and read nothing, for while nobody takes what is read: what is rotated and deleted meanwhile is known."""
        self._look.look()
        for file in list(self._files.opened.values()):
            if file.life is None:  # else its compressed copy would be taken for another content
                self._lives.identify(file, os.fstat(file.descriptor).st_size)

    def collect(self, max_bytes: int, max_records: int) -> Round:
        """Look at what changed, and read every file that has something: fairly, up to these bounds (one record may pass `max_bytes`)."""
        self._account.at = ""
        self._look.look()
        round_ = Round()
        left_bytes, left_records = max_bytes, max_records
        if self._again.unread:
            left_bytes, left_records = self._rereader.read(left_bytes, left_records, round_)
        self._reader.read_ready(max_bytes, left_bytes, left_records, round_)
        round_.more = bool(self._files.ready) or bool(self._again.unread and round_.ranges)
        return round_

    def close(self) -> None:
        """Close every descriptor."""
        for file in self._files.opened.values():
            os.close(file.descriptor)
        self._files.opened.clear()
        self._arrivals.discovery.close()


def _oldest_unread(file: Followed, read: int, size: int) -> int:
    """When the first unread line was written: what it begins with, else when the file was written to last."""
    if file.unpacked is None and (written := _time_of(os.pread(file.descriptor, 64, read))):
        return written
    return os.fstat(file.descriptor).st_mtime_ns


def _time_of(line: bytes) -> int:
    """The time, in nanoseconds, that a line of a CRI log begins with; 0 where it begins otherwise."""
    try:
        written = datetime.fromisoformat(line.partition(b" ")[0].decode())
    except ValueError:
        return 0
    return int(written.timestamp() * 1e9) if written.tzinfo else 0
