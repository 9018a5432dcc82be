"""A logs collector in small: the real receiver, its reading loop and its file_storage, before a queue that is a file of JSON lines.

In this process (`Agent.running`), or in a child that can be killed (`Agent.child`): both go on from what the files say.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the child
    sys.path.insert(0, str(Path(__file__).parents[1]))

from lockgate.batch import Batch, Signal
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings, FileStore
from lockgate.components.receivers.filelog import FilelogReceiver
from lockgate.components.receivers.filelog.settings import FilelogSettings
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import NO_GROUPS, Held, Kind
from lockgate.pipeline.errors import Retryable
from lockgate.tail.rounds import decode
from support import FakeHost, context


class Journal:
    """Batches as lines of a file, whole or not at all; a full disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = 0

    async def consume(self, batch: Batch) -> None:
        records = [record for resource in batch.message.resource_logs for scope in resource.scope_logs for record in scope.log_records]
        bodies = [record.body.string_value or record.body.bytes_value.decode("latin-1") for record in records]
        flags = [any(each.key == "log.record.truncated" for each in record.attributes) for record in records]
        origins = [[each.source, each.start, each.end, each.lines, each.records] for each in batch.origins]
        self.append({"origins": origins, "bodies": bodies, "flags": flags})

    def append(self, entry: Any) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size, line = os.fstat(file).st_size, json.dumps(entry).encode() + b"\n"
            try:
                if os.write(file, line) < len(line):
                    raise OSError("short")
            except OSError as error:
                os.ftruncate(file, size)
                self.refused += 1
                raise Retryable(f"the disk is full: {error}") from error
        finally:
            os.close(file)

    @property
    def entries(self) -> list[Any]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def bodies(self) -> list[str]:
        return [body for entry in self.entries for body in entry.get("bodies", ())]

    def flagged(self) -> list[str]:
        """The bodies of records that say that they are not whole."""
        return [body for entry in self.entries for body, flag in zip(entry.get("bodies", ()), entry.get("flags", ()), strict=True) if flag]

    def held(self) -> Held:
        durable: dict[str, Ranges] = {}
        for entry in self.entries:
            for source, start, end, _, _ in entry.get("origins", ()):
                durable.setdefault(source, Ranges()).add(start, end)
            if (saved := entry.get("saved")) is not None:
                durable = {source: ranges for source, ranges in durable.items() if source in saved}
                for source, ranges in durable.items():
                    ranges.remove(0, saved[source])
        return Held(durable)


class QueueHost(FakeHost):
    """A host whose only queue is the journal."""

    def __init__(self, extension: FileStorageExtension, journal: Journal) -> None:
        super().__init__({"file_storage": extension})
        self._journal = journal

    def held(self, owner: str) -> Held:
        return self._journal.held()

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> None:
        with contextlib.suppress(Retryable):
            self._journal.append({"saved": dict(positions)})


class Agent:
    """One agent on one directory of its own."""

    def __init__(self, state: Path, **settings: Any) -> None:
        state.mkdir(exist_ok=True)
        self.state, self.journal = state, Journal(state / "journal")
        self.settings = {
            "start_at": "beginning",
            "poll_interval": "10ms",
            "storage": "file_storage",
            "retry_on_failure": {"initial_interval": "1ms", "max_interval": "20ms"},
            **settings,
        }

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FilelogReceiver]:
        """In this process; leaving stops it cleanly."""
        storage = FileStorageSettings(directory=str(self.state / "storage"), create_directory=True)
        extension = FileStorageExtension(storage, context("file_storage", Kind.EXTENSION))
        async with extension:
            settings = FilelogSettings.model_validate(self.settings)
            receiver = FilelogReceiver(settings, context("filelog", Kind.RECEIVER, host=QueueHost(extension, self.journal)))
            receiver.outputs = {Signal.LOGS: self.journal}
            async with receiver:
                yield receiver

    @contextlib.contextmanager
    def child(self) -> Any:
        """In a process of its own, ended by SIGKILL."""
        arguments = [sys.executable, __file__, str(self.state), json.dumps(self.settings)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            process.stdout.close()

    def saved_sizes(self) -> list[int]:
        """How large the checkpoint knows files to be."""
        with tempfile.TemporaryDirectory() as copy:
            stored = self.state / "storage/receivers~002Ffilelog"
            for path in stored.glob("state.[01]"):
                (Path(copy) / path.name).write_bytes(path.read_bytes())
            try:
                return [entry.size for entry in decode(FileStore(Path(copy)).load()).files]
            except OSError:
                return []  # caught while it is written

    async def have(self, records: int, seconds: float = 30) -> None:
        """Until so many records are in the queue."""
        await until(lambda: len(self.journal.bodies()) >= records, seconds)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def _main(state: str, settings: str) -> None:
    async with Agent(Path(state), **json.loads(settings)).running():
        print("started", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
