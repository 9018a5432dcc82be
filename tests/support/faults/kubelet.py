"""Pods that write numbered lines, and a kubelet that rotates their files: real renames, real gzip, in the kubelet's own order.

Every line says which pod wrote it and its number, and its length follows from the number: lost, repeated and altered lines are exact.
"""

from __future__ import annotations

import gzip
import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PART = 60
"""Bytes of message in one CRI line at most: real runtimes split at 8 or 16 KiB, and lines of that length would be all the test writes."""


def body(pod: str, number: int, noise: int = 0) -> str:
    """The line `number` of this pod; `noise` characters of it compress badly."""
    return f"{pod} {number:08d} " + "x" * (1 + number % 97) + random.Random(number).randbytes(noise // 2).hex()


def whole(noise: int = 0) -> str:
    """SQL: whether the column `body` is as it was written."""
    return f"length(body) = length(split_part(body, ' ', 1)) + 11 + split_part(body, ' ', 2)::BIGINT % 97 + {noise // 2 * 2}"


class PodLog:
    """The log files of one container, `0.log` and what was rotated; `keep` files, as containerLogMaxFiles."""

    def __init__(
        self, directory: Path, name: str, dice: random.Random, *, rotate_bytes: int, keep: int, writes_parts: bool, noise: int = 0
    ) -> None:
        directory.mkdir(parents=True)
        self.path, self.name = directory / "0.log", name
        self.lines = self.rotations = self.compressed = self.deleted = self.parts = 0
        self.deleted_numbers: list[tuple[int, int]] = []
        """[first, beyond) of the line numbers that were begun in each file that the kubelet deleted."""
        self.keep = keep
        self._dice, self._rotate_bytes, self._writes_parts = dice, rotate_bytes, writes_parts
        self._noise, self._born = noise, time.time() - 10 * 86400
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - as long as the container lives
        self._size = self._first = 0
        self._spans: dict[str, tuple[int, int]] = {}

    def write(self, count: int) -> None:
        """So many lines, some of them in parts, some torn over two writes; rotates where the file has become large enough."""
        while count > 0:
            some = min(count, 50)
            if self._dice.random() < 0.02:
                text = b"".join(self.line_bytes(self.lines + offset) for offset in range(some))
                cut = self._dice.randrange(len(text))
                self._file.write(text[:cut])
                time.sleep(self._dice.choice([0, 0, 0.02]))
                self._file.write(text[cut:])
            else:
                text = b"".join(self.line_bytes(self.lines + offset) for offset in range(some))
                self._file.write(text)
            self.lines += some
            count -= some
            self._size += len(text)
            if self._rotate_bytes and self._size >= self._rotate_bytes:
                self._rotate()

    def close(self) -> None:
        self._file.close()

    def line_bytes(self, number: int) -> bytes:
        """As it stands in the file; its time is now."""
        text = body(self.name, number, self._noise).encode()
        stamp = time.time_ns()
        head = b"%s.%09dZ " % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp // 10**9)).encode(), stamp % 10**9)
        stream = b"stderr " if number % 5 == 0 else b"stdout "
        if not self._writes_parts or number % 7:
            return head + stream + b"F " + text + b"\n"
        pieces = [text[start : start + PART] for start in range(0, len(text), PART)]
        self.parts += len(pieces) - 1
        return b"".join(
            head + stream + (b"F " if index == len(pieces) - 1 else b"P ") + piece + b"\n" for index, piece in enumerate(pieces)
        )

    def _rotate(self) -> None:
        """pkg/kubelet/logs/container_log_manager.go: clean up, remove the oldest, compress, rename, reopen."""
        directory = self.path.parent
        rotated = sorted(path for path in directory.glob("0.log.*") if path.suffix != ".tmp")
        while len(rotated) > self.keep - 2:
            oldest = rotated.pop(0)
            oldest.unlink()
            self.deleted += 1
            self.deleted_numbers.append(self._spans.pop(oldest.name.removesuffix(".gz")))
        for path in rotated:
            if path.suffix != ".gz":
                temporary = path.with_name(path.name + ".tmp")
                with open(path, "rb") as source, gzip.open(temporary, "wb", compresslevel=1) as target:
                    shutil.copyfileobj(source, target)
                temporary.rename(path.with_name(path.name + ".gz"))
                path.unlink()
                self.compressed += 1
        # A kubelet looks every ten seconds; here many rotations may happen in one.
        name = f"0.log.{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self._born + 10 * self.rotations))}"
        self.path.rename(directory / name)
        # Until the runtime reopens its file it writes into the renamed one.
        late = self._dice.randrange(0, 4)
        self._file.write(b"".join(self.line_bytes(self.lines + offset) for offset in range(late)))
        self.lines += late
        self._file.close()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._spans[name] = (self._first, self.lines)
        self._first, self._size = self.lines, 0
        self.rotations += 1


class Pods:
    """`with Pods(logs, rate):` writes to these at so many lines a second in all, until it is left or paused."""

    def __init__(self, logs: Sequence[PodLog], lines_per_second: float) -> None:
        self.logs, self.rate = list(logs), lines_per_second
        self.paused = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pods")
        self._error: BaseException | None = None

    @property
    def lines(self) -> int:
        return sum(log.lines for log in self.logs)

    def stop(self) -> None:
        """No more lines; again: nothing. Raises what kept a pod from writing."""
        self._stopping.set()
        self._thread.join()
        for log in self.logs:
            log.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            last, owed = time.monotonic(), 0.0
            while not self._stopping.wait(0.01):
                now = time.monotonic()
                owed += 0 if self.paused.is_set() else (now - last) * self.rate / len(self.logs)
                last = now
                if owed >= 1:
                    for log in self.logs:
                        log.write(int(owed))
                    owed -= int(owed)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
