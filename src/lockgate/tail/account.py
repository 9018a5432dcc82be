"""What happened, for metrics, status and the log: counts, losses in words, paths that cannot be read. Knows no file, decides nothing."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lockgate.kit.unreadable import describe_unreadable
from lockgate.pipeline.ledger import Gap
from lockgate.tail.open import Refused

_MAX_PROBLEMS = 1000


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


class Account:
    """Written by the reading thread, read by any."""

    def __init__(self, gaps: Iterable[Gap], unix_nano: Callable[[], int]) -> None:
        self._unix_nano = unix_nano
        self.counts = Counts()
        self.at = ""
        """The file that is being read; empty while directories are looked at."""
        self.gaps: dict[tuple[str, str], Gap] = {(gap.path, gap.reason): gap for gap in gaps}
        """What was gone before it was read, by path and reason; of at most so many, the others under the empty path."""
        self.problems: dict[str, str] = {}
        """What cannot be read and why, by path; at most so many."""
        self._old_problems: dict[str, str] = {}
        self.losses: deque[str] = deque(maxlen=_MAX_PROBLEMS)
        """What was lost and where, in words; whoever tells of it takes it out."""

    def begin_look(self) -> None:
        """Everything is looked at now: a problem that is still there is told again."""
        self._old_problems, self.problems = self.problems, {}

    def lose(self, lost_bytes: int, path: str, how: str) -> None:
        """Count what is gone; without bytes, that it is not known whether anything is."""
        named = (path, how) if (path, how) in self.gaps or len(self.gaps) < _MAX_PROBLEMS else ("", how)
        gap = self.gaps.setdefault(named, Gap(*named))
        gap.bytes += lost_bytes
        gap.times += 1 if lost_bytes else 0
        gap.unknown += 0 if lost_bytes else 1
        gap.time_unix_nano = self._unix_nano()
        if lost_bytes:
            self.counts.gaps += 1
            self.counts.lost_bytes += lost_bytes
            self.losses.append(f"lost at least {lost_bytes} bytes of {path}: {how}")
        else:
            self.counts.unknown += 1
            self.losses.append(f"lost perhaps the end of {path}: {how}")

    def unreadable(self, path: str, error: OSError | Refused) -> None:
        """This path cannot be read, and why."""
        if path in self.problems or len(self.problems) < _MAX_PROBLEMS:
            self.problems[path] = str(error) if isinstance(error, Refused) else describe_unreadable(path, error)

    def refused(self, path: str, error: Refused) -> None:
        """This path may not be read; counted once as long as it lasts."""
        self.counts.refused += path not in self.problems and path not in self._old_problems
        self.unreadable(path, error)

    def readable(self, path: str) -> None:
        """This path can be read, or is gone."""
        self.problems.pop(path, None)
