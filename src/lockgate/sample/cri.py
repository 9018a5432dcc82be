"""A container's log as a runtime writes it and a kubelet rotates it.

Format: containerd's (`pkg/cri/io/logger.go`): `TIME STREAM TAG MESSAGE`, lines longer than 16 KiB in pieces tagged P, the last one F.
Rotation: the kubelet's (`pkg/kubelet/logs/container_log_manager.go`), in its order: old files removed, every rotated file but the newest
gzipped to .tmp and renamed, the live file renamed, the runtime asked to reopen.
"""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from pathlib import Path

PIECE = 16 * 1024
"""Bytes of message in one CRI line at most (containerd's default max_container_log_line_size)."""


class ContainerLog:
    """The live file of one container, `N.log`, and its rotated predecessors."""

    def __init__(self, directory: Path, restart: int, max_bytes: int, max_files: int) -> None:
        self.path = directory / f"{restart}.log"
        self.max_bytes, self.max_files = max_bytes, max_files
        directory.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # held for the container's life
        self._open: dict[str, bytes] = {}
        self._reopening = threading.Lock()

    def write(self, stream: str, data: bytes) -> None:
        """What the container wrote to this stream; a line is written out when it is complete, or longer than a piece."""
        out = []
        *complete, rest = (self._open.pop(stream, b"") + data).split(b"\n")
        for line in complete:
            while len(line) > PIECE:
                out.append(_line(stream, b"P", line[:PIECE]))
                line = line[PIECE:]
            out.append(_line(stream, b"F", line))
        while len(rest) > PIECE:
            out.append(_line(stream, b"P", rest[:PIECE]))
            rest = rest[PIECE:]
        self._open[stream] = rest
        if out:
            with self._reopening:
                self._file.write(b"".join(out))

    def rotate_if_needed(self) -> bool:
        """One look of the kubelet; whether it rotated."""
        if self._file.tell() < self.max_bytes:
            return False
        rotated = sorted(path for path in self.path.parent.glob(f"{self.path.name}.*") if path.suffix != ".tmp")
        for stale in self.path.parent.glob(f"{self.path.name}.*.tmp"):
            stale.unlink()
        while len(rotated) > self.max_files - 2:
            rotated.pop(0).unlink()
        for path in rotated:
            if path.suffix != ".gz":
                temporary = path.with_name(path.name + ".tmp")
                with open(path, "rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
                    shutil.copyfileobj(source, target)
                temporary.rename(path.with_name(path.name + ".gz"))
                path.unlink()
        self.path.rename(self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        with self._reopening:
            self._file.close()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # held for the container's life
        return True

    def close(self) -> None:
        """The container ended: what it left without a newline is written out as it stands."""
        for stream, rest in self._open.items():
            if rest:
                self._file.write(_line(stream, b"F", rest))
        self._open.clear()
        self._file.close()


def _line(stream: str, tag: bytes, message: bytes) -> bytes:
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
    return b"%s.%09dZ %s %s %s\n" % (stamp.encode(), now % 10**9, stream.encode(), tag, message)
