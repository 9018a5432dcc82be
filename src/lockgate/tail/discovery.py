"""Where the files are: a tree of the directories that the patterns reach, kept up to date by inotify or by looking again.

Events are drained at the reader's pace, not the writers': 10,000 lines/s are 10,000 events/s, and parsing each costs more than reading
the lines. Equal events are skipped by their bytes. An overflow of the kernel's queue means only that everything is looked at again.
"""

import ctypes
import errno
import os
import re
import stat
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import inotify_simple
from inotify_simple import INotify, flags

from lockgate.tail.open import Refused, Roots
from lockgate.tail.patterns import Patterns, State

# The library would look for libc by starting ldconfig, in a process that may start none (tests/e2e/test_needs.py sees it).
inotify_simple._libc = ctypes.CDLL(None, use_errno=True)

_STRUCTURE = flags.CREATE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
_WATCHED = _STRUCTURE | flags.MODIFY | flags.ATTRIB | flags.ONLYDIR
_LENGTH = struct.Struct("=12xI")
_HEAD = struct.Struct("=iII")
_READ_BYTES = 256 << 10
_MAX_DIRECTORIES = 100_000
_ROTATED = re.compile(r"(.+)\.\d{8}-\d{6}(?:\.gz)?")
"""What a kubelet names a container's rotated log (pkg/kubelet/logs, container_log_manager); with .gz from the next rotation on."""


def rotated_from(name: str) -> str | None:
    """The name of the log that a file with this name was rotated from; None for any other name."""
    found = _ROTATED.fullmatch(name)
    return found[1] if found else None


class Report(Protocol):
    """Who is told. Called in the thread that scans."""

    def appeared(self, path: str, inode: int, matched: bool) -> bool:
        """A name that was not there, or now stands for another file; false where it should be told again at the next look."""

    def rotated(self, path: str, inode: int, log: str) -> bool:
        """As `appeared`, of a rotated file of the log whose path as matched is `log`."""

    def vanished(self, path: str) -> None:
        """A name that is no longer there."""

    def unreadable(self, path: str, error: OSError | Refused) -> None:
        """A directory that cannot be listed."""

    def readable(self, path: str) -> None:
        """A directory that could be listed."""


@dataclass(slots=True)
class _Directory:
    state: State
    watch: int = -1
    # Thousands of these are kept: tuples, and what is rare in one place for all, are a third of the size.
    children: tuple[str, ...] = ()
    names: dict[str, int] = field(default_factory=dict)
    """Inode numbers by name, as listed."""


@dataclass(slots=True)
class Changes:
    """What inotify told since it was asked last."""

    modified: set[tuple[str, str]] = field(default_factory=set)
    """(directory, name) of files written to or truncated."""
    directories: set[str] = field(default_factory=set)
    """Directories whose names changed."""
    moved: list[tuple[str, str]] = field(default_factory=list)
    """(old path, new path) of files that had a name which the patterns mean, and were renamed in their directory."""
    moves: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Halves of renames: watch and old name by the kernel's cookie."""
    overflow: bool = False


class Discovery:
    """The directories under the patterns' roots. Not safe for two threads at once."""

    def __init__(self, patterns: Patterns, roots: Roots, report: Report, *, inotify: bool = True) -> None:
        self._patterns, self._roots, self._report = patterns, roots, report
        self._directories: dict[str, _Directory] = {}
        self._links: dict[str, dict[str, set[str]]] = {}
        """Paths of symbolic links that lead to a name in a directory, by directory and name."""
        self._by_watch: dict[int, tuple[str, ...]] = {}
        # One directory may be reached by several paths, and has one watch.
        self.missing: set[str] = set()
        """Roots that do not exist yet, or cannot be seen."""
        self.unwatched = ""
        """Why inotify does not (fully) work here; empty where it does."""
        self._inotify: INotify | None = None
        if inotify:
            try:
                self._inotify = INotify(nonblocking=True)
            except OSError as error:
                self.unwatched = f"inotify is not available ({error.strerror}); files are polled; raise fs.inotify.max_user_instances"

    @property
    def descriptor(self) -> int:
        """Readable when something changed; -1 where files are polled."""
        return self._inotify.fileno() if self._inotify is not None and not self.unwatched else -1

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def scan(self) -> None:
        """Look at everything."""
        for root in self._patterns.roots:
            if root not in self._directories and not self._is_there(root):
                continue
            self.missing.discard(root)
            if root not in self._directories:
                self._enter(root, self._patterns.start(root))
        for path in list(self._directories):
            self._list(path)

    def _is_there(self, root: str) -> bool:
        """Whether this root is a directory, and tells why it is not."""
        try:
            if stat.S_ISDIR(os.stat(root).st_mode):
                return True
        except PermissionError as error:  # hidden by a directory in the way
            self._report.unreadable(root, error)
        except OSError:
            pass
        self.missing.add(root)
        return False

    def rescan(self, paths: Iterable[str]) -> None:
        """Look at these directories again."""
        for path in paths:
            self._list(path)

    def look_in(self, path: str) -> None:
        """Tell of the names of a directory that no pattern reaches, once."""
        if path not in self._directories:
            self._enter(path, frozenset())
            self._list(path)

    def follow_link(self, link: str, target: str) -> None:
        """The file behind this link lives in a directory that must be watched too."""
        directory, _, name = target.rpartition("/")
        entered = directory not in self._directories
        if entered:
            self._enter(directory, frozenset())
        known = self._directories.get(directory)
        if known is None or link in (links := self._links.setdefault(directory, {}).setdefault(name, set())):
            return
        links.add(link)
        rotated = [each for each in known.names if rotated_from(each) == name]
        for each in rotated:
            del known.names[each]  # now it is known whose they are
        if entered or rotated:
            self._list(directory)

    def drain(self) -> Changes:
        """Everything that inotify has to say now."""
        changes = Changes()
        if self._inotify is None:
            return changes
        seen: set[bytes] = set()
        while True:
            try:
                events = os.read(self._inotify.fileno(), _READ_BYTES)
            except BlockingIOError:
                return changes
            position, size = 0, len(events)
            while position < size:
                end = position + 16 + _LENGTH.unpack_from(events, position)[0]
                event = events[position:end]
                position = end
                if event not in seen:
                    seen.add(event)
                    self._event(event, changes)

    def _event(self, event: bytes, changes: Changes) -> None:
        watch, mask, cookie = _HEAD.unpack_from(event)
        if mask & flags.Q_OVERFLOW:
            changes.overflow = True
            return
        paths = self._by_watch.get(watch, ())
        name = os.fsdecode(event[16:].rstrip(b"\0"))
        if mask & flags.MODIFY:
            changes.modified.update((path, name) for path in paths)
            return
        changes.directories.update(paths)
        if mask & flags.MOVED_FROM:
            changes.moves[cookie] = watch, name
        elif mask & flags.MOVED_TO and (origin := changes.moves.pop(cookie, None)) is not None and origin[0] == watch:
            for path in paths:
                old = f"{path.rstrip('/')}/{origin[1]}"
                directory = self._directories.get(path)
                if directory is not None and self._patterns.step(directory.state, origin[1])[1] and not self._patterns.excluded(old):
                    changes.moved.append((old, f"{path.rstrip('/')}/{name}"))
        if mask & flags.IGNORED:
            for path in self._by_watch.pop(watch, ()):
                if path in self._directories:
                    self._directories[path].watch = -1

    def _enter(self, path: str, state: State) -> None:
        if len(self._directories) >= _MAX_DIRECTORIES:
            self._report.unreadable(
                path, OSError(errno.EMFILE, f"more than {_MAX_DIRECTORIES} directories match; narrow the include patterns")
            )
            return
        self._directories[path] = _Directory(state)

    def _watch(self, path: str, directory: _Directory) -> None:
        if self._inotify is None or directory.watch >= 0:
            return
        try:
            directory.watch = self._inotify.add_watch(path, _WATCHED)
            paths = self._by_watch.get(directory.watch, ())
            self._by_watch[directory.watch] = paths if path in paths else (*paths, path)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.unwatched = "inotify has no watches left; the rest is polled; raise fs.inotify.max_user_watches"

    def _list(self, path: str) -> None:
        directory = self._directories.get(path)
        if directory is None:
            return
        self._watch(path, directory)
        try:
            with os.scandir(path) as entries:
                listed = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            self._leave(path)
            if path in self._patterns.roots:
                self.missing.add(path)
            return
        except OSError as error:
            self._report.unreadable(path, error)
            return
        self._report.readable(path)
        names: dict[str, int] = {}
        children: list[str] = []
        for entry in listed:
            after, matched = self._patterns.step(directory.state, entry.name)
            if after and self._is_directory(entry, directory.state):
                children.append(entry.path)
                if entry.path not in self._directories:
                    self._enter(entry.path, after)
                    self._list(entry.path)
                continue
            if entry.is_dir(follow_symlinks=False):
                continue
            matched = matched and not self._patterns.excluded(entry.path)
            name, inode = sys.intern(entry.name), entry.inode()  # every container's log is 0.log
            # What a link leads to may change while the link stays.
            if directory.names.get(name) == inode and not (matched and entry.is_symlink()) and name not in self._links.get(path, ()):
                names[name] = inode
                continue
            log = self._log_of(path, directory, entry) if not matched or name.endswith(".gz") else ""
            told = self._report.rotated(entry.path, inode, log) if log else self._report.appeared(entry.path, inode, matched)
            for link in self._links.get(path, {}).get(name, ()):
                told &= self._report.appeared(link, inode, True)
            if told:
                names[name] = inode
        for name in directory.names.keys() - names.keys():
            self._report.vanished(f"{path.rstrip('/')}/{name}")
        for gone in set(directory.children).difference(children):
            self._leave(gone)
        directory.names, directory.children = names, tuple(children)

    def _log_of(self, path: str, directory: _Directory, entry: "os.DirEntry[str]") -> str:
        """The path, as matched, of the log that this file was rotated from; empty where it is none, or none that is meant."""
        name = rotated_from(entry.name)
        if name is None or self._patterns.excluded(entry.path):
            return ""
        log = f"{path.rstrip('/')}/{name}"
        if self._patterns.step(directory.state, name)[1] and not self._patterns.excluded(log):
            return log
        return min(self._links.get(path, {}).get(name, ()), default="")

    def _is_directory(self, entry: "os.DirEntry[str]", state: State) -> bool:
        if not entry.is_symlink():
            return entry.is_dir(follow_symlinks=False)
        if self._patterns.spans(state) or not entry.is_dir():
            return False  # `**` does not follow links: they may lead in circles
        try:
            self._roots.resolve(entry.path)
        except (Refused, OSError) as error:
            self._report.unreadable(entry.path, error)
            return False
        return True

    def _leave(self, path: str) -> None:
        directory = self._directories.pop(path, None)
        if directory is None:
            return
        self._links.pop(path, None)
        users = tuple(user for user in self._by_watch.pop(directory.watch, ()) if user != path)
        if users:
            self._by_watch[directory.watch] = users
        elif directory.watch >= 0 and self._inotify is not None:
            try:
                self._inotify.rm_watch(directory.watch)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the kernel removed it with the directory
                    raise
        self._report.readable(path)  # there is nothing left to complain of
        for name in directory.names:
            self._report.vanished(f"{path.rstrip('/')}/{name}")
        for child in directory.children:
            self._leave(child)
