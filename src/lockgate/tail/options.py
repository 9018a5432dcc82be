"""How to follow: what a tailer is told once, by whoever makes it. Knows no file."""

import os
from collections.abc import Callable
from dataclasses import dataclass

LEAST_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Options:
    """How to follow; seconds and bytes."""

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    link_roots: tuple[str, ...] = ()
    """Directories besides the patterns' own into which symbolic links may lead."""
    start_at_end: bool = False
    """Whether files found at the first look of the very first start are read from their end."""
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

    def is_too_old(self, status: os.stat_result, unix_nano: Callable[[], int]) -> bool:
        """Whether a file of this status was written to last before what is to be read."""
        age = self.exclude_older_than_seconds
        return age > 0 and unix_nano() - status.st_mtime_ns > age * 1e9

    @property
    def max_chunk_bytes(self) -> int:
        """A record of twice the limit still fits: its whole line is seen, cut and flagged, and the next one is intact."""
        return 2 * self.max_record_bytes + LEAST_CHUNK_BYTES
