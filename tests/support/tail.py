"""A tailer on real files, driven by hand, with time by argument."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from lockgate.kit.ranges import Ranges
from lockgate.tail.follow import Flush, Parser, Saved
from lockgate.tail.options import Options
from lockgate.tail.reading import Round
from lockgate.tail.tailer import Tailer
from lockgate.wire import cri, lines
from lockgate.wire.parsed import Parsed


def plain(path: str, real: str, descriptor: int, limit: int = 1 << 20) -> Parser:
    def parse(chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        return lines.parse(chunk, b"", b"", observed_unix_nano, max_records, limit, lines.FLUSH_LINE if flush else 0)

    return parse


def container(path: str, real: str, descriptor: int, limit: int = 1 << 20) -> Parser:
    flags = {Flush.NOTHING: 0, Flush.QUIET: cri.FLUSH_GROUPS, Flush.END: cri.FLUSH_GROUPS | cri.FLUSH_LINE}

    def parse(chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        return cri.parse(chunk, b"", (b"", b"", b""), observed_unix_nano, max_records, limit, cri.AUTO, flags[flush])

    return parse


def bodies(round_: Round) -> list[str]:
    request = ExportLogsServiceRequest.FromString(b"".join(round_.payloads))
    return [
        record.body.string_value or record.body.bytes_value.decode("latin-1")
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


class Bench:
    """One directory, one tailer at a time."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.options = {"include": (f"{directory}/*.log",), "flush_seconds": 5.0, "linger_seconds": 10.0, **options}
        self.now = 1000.0
        self.saved: list[Saved] = []
        self.is_first_start = True
        self.durable: dict[str, Ranges] = {}
        """What the queue behind says that it holds, and what it lost; by life."""
        self.lost: dict[str, Ranges] = {}
        self.make_parser: Callable[[str, str, int], Parser] = plain
        self._tailer: Tailer | None = None

    @property
    def tailer(self) -> Tailer:
        if self._tailer is None:
            self._tailer = Tailer(
                Options(**self.options),
                self.make_parser,
                None if self.is_first_start and not self.saved else self.saved,
                durable={key: Ranges(ranges) for key, ranges in self.durable.items()},
                lost={key: Ranges(ranges) for key, ranges in self.lost.items()},
                monotonic=lambda: self.now,
            )
        return self._tailer

    def write(self, name: str, content: str | bytes) -> None:
        with open(self.directory / name, "ab") as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def rename(self, old: str, new: str) -> None:
        (self.directory / old).rename(self.directory / new)

    def unlink(self, name: str) -> None:
        (self.directory / name).unlink()

    def look(self, seconds: float = 0.0, max_bytes: int = 1 << 20, max_records: int = 10_000) -> Round:
        """One round, after so long."""
        self.now += seconds
        found = self.tailer.collect(max_bytes, max_records)
        for range_ in found.passed:
            range_.take()
        return found

    def read(self, seconds: float = 0.0) -> list[str]:
        """Everything there is to read, taken."""
        found: list[str] = []
        while True:
            round_ = self.look(seconds)
            for range_ in round_.ranges:
                range_.take()
            found += bodies(round_)
            seconds = 0.0
            if not round_.more:
                return found

    def stop(self) -> None:
        """As a clean stop: what was taken is saved."""
        if self._tailer is not None:
            self.saved, self.is_first_start = self._tailer.snapshot(), False
        self.kill()

    def kill(self) -> None:
        """As kill -9: what was saved before is what there is."""
        if self._tailer is not None:
            self._tailer.close()
            self._tailer = None
