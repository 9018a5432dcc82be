"""The order in which components start and stop, and how one dead task ends all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from support import context

from lockgate.pipeline.contract import Component, Exporter, Kind
from lockgate.pipeline.graph import leave
from lockgate.pipeline.needs import ComponentSettings


class Part(Exporter[ComponentSettings]):
    """Writes down what happens to it."""

    def __init__(self, name: str, events: list[str], *, fails: str = "", hangs: bool = False) -> None:
        super().__init__(ComponentSettings(), context(name, Kind.EXPORTER))
        self.name, self.events, self.fails, self.hangs = name, events, fails, hangs
        self.dies = asyncio.Event()

    async def start(self) -> None:
        if self.fails == "start":
            raise OSError(f"{self.name} cannot start")
        self.events.append(f"+{self.name}")
        self.spawn(self.work(), "work")

    async def work(self) -> None:
        try:
            await self.dies.wait()
            raise ValueError(f"{self.name} died")
        except asyncio.CancelledError:
            self.events.append(f"cancelled {self.name}")
            raise

    async def stop(self) -> None:
        self.events.append(f"-{self.name}")
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails == "stop":
            raise OSError(f"{self.name} cannot stop")


@asynccontextmanager
async def running(components: Sequence[Part], drain_seconds: float) -> AsyncIterator[None]:
    try:
        for component in components:
            await component.__aenter__()
        yield
    finally:
        await leave(components, drain_seconds)


def leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in leaves(inner)]
    return [str(error)]


async def test_components_leave_in_the_opposite_order_and_their_tasks_outlive_their_stop() -> None:
    events: list[str] = []
    async with running([Part("exporter", events), Part("receiver", events)], 5):
        await asyncio.sleep(0)
        events.append("running")
    assert events == ["+exporter", "+receiver", "running", "-receiver", "cancelled receiver", "-exporter", "cancelled exporter"]


async def test_a_component_that_cannot_start_ends_the_start_with_its_error_after_the_others_are_stopped() -> None:
    events: list[str] = []
    with pytest.raises(OSError, match="b cannot start"):
        async with running([Part("a", events), Part("b", events, fails="start"), Part("c", events)], 5):
            pytest.fail("must not run")
    assert [event for event in events if "cancelled" not in event] == ["+a", "-a"]


async def test_one_dead_task_ends_everything_in_order_with_its_one_error() -> None:
    events: list[str] = []
    parts = [Part("a", events), Part("b", events), Part("c", events)]

    async def program() -> None:
        async with running(parts, 5):
            parts[1].dies.set()
            await asyncio.Event().wait()

    with pytest.raises(BaseException) as raised:
        async with asyncio.timeout(5):
            await program()
    assert leaves(raised.value) == ["b died"]
    assert events == ["+a", "+b", "+c", "-c", "cancelled c", "-b", "-a", "cancelled a"]


async def test_a_program_ended_by_a_dead_task_is_not_left_cancelled() -> None:
    part = Part("a", [])
    with pytest.raises(BaseException) as raised:
        async with running([part], 5):
            part.dies.set()
            await asyncio.Event().wait()
    assert leaves(raised.value) == ["a died"]
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_draining_is_bounded_for_all_together(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING):
        async with running([Part(name, events, hangs=True) for name in "abcd"], 0.2):
            started = loop.time()
    assert 0.15 < loop.time() - started < 2
    assert [record.name for record in caplog.records] == ["test.d", "test.c", "test.b", "test.a"]
    assert [event for event in events if event.startswith("-")] == ["-d", "-c", "-b", "-a"]


async def test_draining_is_bounded_after_a_dead_task_too(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    parts = [Part("a", events), Part("b", events, hangs=True)]
    with pytest.raises(BaseException) as raised, caplog.at_level(logging.WARNING):
        async with asyncio.timeout(5):
            async with running(parts, 0.2):
                parts[0].dies.set()
                await asyncio.Event().wait()
    assert leaves(raised.value) == ["a died"]
    assert [record.name for record in caplog.records] == ["test.b"]


async def test_a_failing_stop_does_not_keep_the_others_from_stopping() -> None:
    events: list[str] = []
    with pytest.raises(OSError, match="b cannot stop"):
        async with running([Part("a", events), Part("b", events, fails="stop")], 5):
            await asyncio.sleep(0)
    assert events[-2:] == ["-a", "cancelled a"]


async def test_cancelling_the_program_stops_in_order() -> None:
    events: list[str] = []

    async def program() -> None:
        async with running([Part("a", events), Part("b", events)], 5):
            await asyncio.Event().wait()

    task = asyncio.create_task(program())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event for event in events if "cancelled" not in event] == ["+a", "+b", "-b", "-a"]


async def test_a_task_can_only_be_spawned_while_its_component_runs() -> None:
    part: Component[ComponentSettings] = Part("a", [])
    with pytest.raises(RuntimeError, match="exporter a spawned a task while it is not running"):
        part.spawn(asyncio.sleep(0))
    await part.__aexit__(None, None, None)
