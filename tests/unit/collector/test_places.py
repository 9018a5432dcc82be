"""When a program ends in order to be started again: what it needs is there, and its sandbox keeps it closed."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import VirtualClock

from lockgate.collector import program as module
from lockgate.collector.config import load
from lockgate.collector.program import LOOK_SECONDS, SETTLED_SECONDS, Program
from lockgate.lockdown import landlock
from lockgate.lockdown.sandbox import Sandbox, plan


class Watching:
    """A program that watches its places as one that Landlock restricts does; nothing else of it runs."""

    def __init__(self, directory: Path, mode: str) -> None:
        self.logs, own = directory / "logs", directory / "own"  # the directory of a configuration is open
        own.mkdir()
        (own / "c.yaml").write_text(f"""
receivers: {{filelog: {{include: ["{self.logs}/*.log"]}}}}
exporters: {{debug: }}
service: {{pipelines: {{logs: {{receivers: [filelog], exporters: [debug]}}}}}}
""")
        configuration = load([str(own / "c.yaml")], environment={})
        found = plan(need for _, need in configuration.needs())
        sandbox = Sandbox("require", landlock.SCOPES, missing=tuple(need.path for need in found.missing), granted=found.granted)
        self.clock, self.stop = VirtualClock(), asyncio.Event()
        self.program = Program(configuration, self.clock, sandbox=sandbox if mode != "off" else None)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            before = len(self.clock.slept)
            await self.clock.advance(LOOK_SECONDS)
            async with asyncio.timeout(10):  # a look is done in a thread
                while len(self.clock.slept) == before and not self.stop.is_set():
                    await asyncio.sleep(0.001)

    def closed(self) -> object:
        facts = self.program.host.facts["sandbox"]()
        assert isinstance(facts, dict)
        return facts["closed_now"]


@asynccontextmanager
async def watching(directory: Path, mode: str = "require") -> AsyncIterator[Watching]:
    it = Watching(directory, mode)
    task = asyncio.create_task(it.program._watch_places(it.stop))
    await asyncio.sleep(0)
    try:
        yield it
    finally:
        task.cancel()
        it.program.host.close()


async def test_a_directory_that_was_missing_ends_it_once_two_looks_saw_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(tmp_path) as it:
        await it.look(3)
        it.logs.mkdir()
        await it.look()
        assert (it.closed(), it.stop.is_set()) == ([], False)
        await it.look()
        text = f"{it.logs} (log files) was not there at start and is now"
        assert (it.stop.is_set(), it.program.wants_restart, it.closed()) == (True, True, [text])
        assert f"{text}, where the sandbox keeps it closed: stopping, to be started again (exit status 75)" in caplog.text


async def test_a_directory_that_is_gone_again_ends_nothing(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        for _ in range(5):
            it.logs.mkdir()
            await it.look()
            it.logs.rmdir()
            await it.look()
        assert not it.stop.is_set()


async def test_a_directory_made_anew_ends_it_after_minutes_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").mkdir()
    async with watching(tmp_path) as it:
        await it.look()
        (tmp_path / "old").mkdir()
        it.logs.rename(tmp_path / "old" / "logs")
        it.logs.mkdir()
        await it.look(2)
        text = f"{it.logs} (log files) is another one than at start"
        assert (it.stop.is_set(), it.closed()) == (False, [text])
        await it.look(int(SETTLED_SECONDS / LOOK_SECONDS) - 4)
        assert not it.stop.is_set() and it.clock.now < SETTLED_SECONDS
        assert caplog.text.count(text) == 1, "it is said once"
        assert f"{text}, where the sandbox keeps it closed: a restart opens it, in 285 s" in caplog.text
        await it.look()
        assert it.program.wants_restart and it.stop.is_set() and it.clock.now == SETTLED_SECONDS


async def test_one_that_is_back_in_its_place_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    async with watching(tmp_path) as it:
        it.logs.rename(tmp_path / "old")
        it.logs.mkdir()
        await it.look(2)
        assert it.closed()
        shutil.rmtree(it.logs)
        (tmp_path / "old").rename(it.logs)
        await it.look(2)
        assert it.closed() == []
        await it.look(int(SETTLED_SECONDS / LOOK_SECONDS))
        assert not it.stop.is_set()


async def test_without_a_sandbox_nothing_is_closed(tmp_path: Path) -> None:
    async with watching(tmp_path, "off") as it:
        it.logs.mkdir()
        await it.look(4)
        assert (it.closed(), it.stop.is_set()) == ([], False)


def test_configurations_and_what_python_reads_are_not_watched(tmp_path: Path) -> None:
    it = Watching(tmp_path, "off")
    assert {need.reason for need in module._places(it.program.configuration)} == {"log files", "log files behind symbolic links"}
