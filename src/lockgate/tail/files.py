"""The open files: under which names they stand, which have something to read, which are on their way out. Opens and reads nothing."""

import os
from collections.abc import Callable, Iterable

from msgspec import structs

from lockgate.tail.account import Account
from lockgate.tail.discovery import rotated_from
from lockgate.tail.follow import Flush, Followed
from lockgate.tail.known import Known
from lockgate.tail.open import status_of


class Files:
    """At most `max_files`; what is closed is handed to `known`."""

    def __init__(self, max_files: int, known: Known, account: Account, monotonic: Callable[[], float]) -> None:
        self._max_files, self._known, self._account, self._monotonic = max_files, known, account, monotonic
        self.opened: dict[tuple[int, int], Followed] = {}
        """By identity."""
        self.by_name: dict[str, Followed] = {}
        self.ready: dict[Followed, None] = {}
        """Files that have, or may have, something to read."""
        self.unfinished: dict[Followed, None] = {}
        """Files whose last bytes make no whole record yet."""
        self.leaving: dict[Followed, None] = {}
        """Files that no pattern means any more: rotated or unlinked."""

    @property
    def is_full(self) -> bool:
        return len(self.opened) >= self._max_files

    def add(self, file: Followed, real: str) -> None:
        """An open file, under the path that it was found by, which leads to `real`."""
        self.opened[file.identity] = file
        self._known.count_inode(file.inode)
        replaced = self.by_name.get(file.name)
        self.by_name[file.name] = self.by_name[real] = file
        if replaced is not None and replaced.name == file.name:
            # Renamed over, as conmon does at its own maximum size, or about to be found under another name.
            self.leave(replaced)

    def rename(self, file: Followed, path: str, matched: bool) -> None:
        """It stands at this path (too); `matched`: whether the patterns mean that."""
        # A file may have several names (links): as long as one that the patterns mean stands, it is not rotated.
        if file.name != path and not (file.matched and status_of(file.name, file.identity)):
            if self.by_name.get(file.name) is file:
                del self.by_name[file.name]
            self._account.counts.rotations += 1
            file.name, file.matched = path, matched
            if matched:
                self.leaving.pop(file, None)
            else:
                self.leave(file)
        self.by_name[path] = file

    def leave(self, file: Followed) -> None:
        """No pattern means it any more: it is drained, and let go."""
        file.matched = False
        if file not in self.leaving:
            self.leaving[file] = None
            file.quiet_since = self._monotonic()
        self.ready[file] = None

    def close(self, file: Followed, keep: bool) -> None:
        """Let go of a file; `keep` what is known of it, should it grow again."""
        entry = file.saved()
        if not file.matched:
            entry = structs.replace(entry, real=file.name, done=True)
        copy, status = file.copy or ("", None)
        if status is not None and not file.matched and status_of(copy, (status.st_dev, status.st_ino)) is not None:
            entry, keep = entry.moved_to(copy, status), True  # the file goes, or has gone, and its content is known in the next process
        elif not keep and file.name == file.path and self._is_rotated(file.path):
            self._account.lose(0, file.path, "it was deleted, and so may others of this log that were rotated after it")
        self.let_go(file)
        if keep:
            self._known.remember(entry)

    def let_go(self, file: Followed) -> None:
        """Close it, and keep nothing of it."""
        os.close(file.descriptor)
        del self.opened[file.identity]
        for name in {file.name, file.path, file.real}:
            if self.by_name.get(name) is file:
                del self.by_name[name]
        for group in (self.ready, self.unfinished, self.leaving):
            group.pop(file, None)
        self._known.uncount_inode(file.inode)

    def _is_rotated(self, log: str) -> bool:
        """Whether rotated files of this log are known: then it is a kubelet's."""
        names = [file.name for file in self.opened.values() if file.path == log]
        names += [entry.real for entry in self._known.saved.values() if entry.path == log]
        return any(rotated_from(os.path.basename(name)) is not None for name in names)

    def make_room(self) -> bool:
        """Whether one more file may be opened, after closing the one that has been quiet for longest if need be."""
        if not self.is_full:
            return True
        idle = [
            file
            for file in self.opened.values()
            if file not in self.ready and not file.unread and file.life is not None and file.life.settled
        ]
        if not idle:
            return False
        self.close(min(idle, key=lambda file: file.quiet_since), keep=True)
        return True

    def check_sizes(self, files: Iterable[Followed]) -> None:
        """Those that changed become ready."""
        for file in files:
            if file.unpacked is not None:
                continue  # it does not change
            status = os.fstat(file.descriptor)
            if status.st_size != file.size or status.st_mtime_ns != file.changed_nano:
                file.changed_nano = status.st_mtime_ns
                self.ready[file] = None

    def poll_sizes(self) -> None:
        """As `check_sizes` of all; the size alone costs a third of the whole status."""
        for file in self.opened.values():
            if file.unpacked is None and os.lseek(file.descriptor, 0, os.SEEK_END) != file.size:
                self.ready[file] = None

    def left(self, file: Followed, unread: bool, flush: Flush = Flush.NOTHING) -> None:
        """Whether a read that flushed so left bytes unread behind it."""
        file.unread = unread
        if not unread:
            file.pending_lines = 0
        if unread and flush is Flush.NOTHING:  # what was left in spite of a flush waits for more bytes
            self.unfinished[file] = None
        else:
            self.unfinished.pop(file, None)

    def in_order(self) -> None:
        """Files that were rotated away are read the oldest first; they were found by listing, in no order."""

        def age(file: Followed) -> tuple[str, str, int]:
            name = os.path.basename(file.name).removesuffix(".gz")
            return file.path, name if rotated_from(name) is not None else "", os.fstat(file.descriptor).st_mtime_ns

        self.leaving = dict.fromkeys(sorted(self.leaving, key=age))
