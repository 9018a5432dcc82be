"""Opens log files beneath declared roots and nowhere else.

A pod that can write to the node's log directory can point `N.log` at /etc/shadow. Plain RESOLVE_BENEATH would refuse the usual layout
too (/var/log/containers links to /var/log/pods, Docker's links are absolute), so links are taken one at a time: each target must again
stand under a declared root, and between links every component is opened without following any (O_NOFOLLOW relative to the directory
before it, so nothing can be swapped underneath). What is not a regular file is refused. A root itself is the operator's word: links in
its own path are followed.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAX_LINKS = 8
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
# Not blocking, so that a FIFO put in a log's place cannot hold a thread.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refused(Exception):
    """The path leads out of the declared roots, or to something that is no regular file; the text says which."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories beneath which files may be opened; absolute, normalised."""

    paths: tuple[str, ...]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Roots":
        return cls(tuple(sorted({os.path.normpath(path) for path in paths}, key=lambda path: (-len(path), path))))

    def open(self, path: str) -> tuple[int, str]:
        """A descriptor of the regular file at this absolute path, and its path with links resolved. Raises Refused or OSError."""
        parent, real, name = self._walk(path)
        try:
            file = os.open(name, _FILE, dir_fd=parent)
        finally:
            os.close(parent)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise Refused(f"{path} is no regular file")
        return file, real

    def resolve(self, path: str) -> str:
        """The path with links resolved, all of them under the roots. Raises Refused or OSError."""
        parent, real, _ = self._walk(path)
        os.close(parent)
        return real

    def _walk(self, path: str) -> tuple[int, str, str]:
        """An O_PATH descriptor of the real parent directory, the real path, its last component (which is no link)."""
        current = os.path.normpath(path)
        for _ in range(_MAX_LINKS + 1):
            root = self._root_of(current, path)
            parts = current[len(root) :].strip("/").split("/")
            directory, real = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), root
            try:
                for index, part in enumerate(parts):
                    mode = os.stat(part or ".", dir_fd=directory, follow_symlinks=False).st_mode
                    if stat.S_ISLNK(mode):
                        target = os.readlink(part, dir_fd=directory)
                        current = os.path.normpath(os.path.join(real, target, *parts[index + 1 :]))
                        break
                    if index == len(parts) - 1:
                        result, directory = directory, -1
                        return result, f"{real}/{part}" if part else real, part or "."
                    deeper = os.open(part, _DIRECTORY, dir_fd=directory)
                    os.close(directory)
                    directory, real = deeper, f"{real}/{part}"
            finally:
                if directory >= 0:
                    os.close(directory)
        raise Refused(f"{path} goes through more than {_MAX_LINKS} symbolic links")

    def _root_of(self, current: str, path: str) -> str:
        for root in self.paths:
            if current == root or current.startswith(root.rstrip("/") + "/"):
                return root
        raise Refused(f"{path} leads to {current}, outside of {', '.join(sorted(self.paths))}")


def status_of(path: str, identity: tuple[int, int]) -> os.stat_result | None:
    """The status of this path, where it (still) is this file: (device, inode)."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if (status.st_dev, status.st_ino) == identity else None


def name_in(directory: str, inode: int) -> str | None:
    """The name in this directory that has this inode number."""
    try:
        with os.scandir(directory) as entries:
            return next((entry.name for entry in entries if entry.inode() == inode), None)
    except OSError:
        return None
