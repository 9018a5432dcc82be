"""The watchdog on a virtual clock: what stands still is told with what it waits for and since when, and cleared when it goes on."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import FakeHost, VirtualClock, context, logs

from lockgate.collector.watchdog import Watchdog, watching
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.components.receivers.filelog import FilelogReceiver
from lockgate.components.receivers.filelog.settings import FilelogSettings
from lockgate.pipeline.contract import STALLED_SECONDS, Batch, Component, ComponentSettings, Kind, Processor, Receiver, Signal
from lockgate.sending.durable import DISK_SECONDS, PipelineQueue
from lockgate.sending.exporter import QueuedExporter
from lockgate.sending.segments import Journal
from lockgate.sending.settings import SendingSettings
from lockgate.tail.reading import Reader
from lockgate.tail.rounds import READ_SECONDS


class NeverAnswers(QueuedExporter[SendingSettings]):
    """A peer that accepts and does not answer, until it is told to."""

    answers: asyncio.Event

    async def send(self, batch: Batch) -> None:
        await self.answers.wait()
        if self.is_slow:
            self.answers.clear()

    is_slow = False
    """Whether it answers one at a time."""


def never_answering(clock: VirtualClock, **settings: Any) -> NeverAnswers:
    own = SendingSettings.model_validate({"timeout": 0, "sending_queue": {"stalled_after": "60s"}} | settings)
    exporter = NeverAnswers(own, context("out", Kind.EXPORTER, clock=clock))
    exporter.answers = asyncio.Event()
    return exporter


def dog(clock: VirtualClock, **components: Component[Any]) -> Watchdog:
    metrics = next(iter(components.values())).context.metrics
    return Watchdog(lambda: components, metrics, clock, logging.getLogger("test.watchdog"))


def told(component: Component[Any], clock: VirtualClock) -> tuple[str, float] | None:
    """The reason, and for how long."""
    blocked: Mapping[str, tuple[str, float]] = component.context.status.blocked
    return (blocked["watchdog"][0], clock.now - blocked["watchdog"][1]) if "watchdog" in blocked else None


async def eventually(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("queue", [{"stalled_after": "60s"}, {"enabled": False, "stalled_after": "60s"}], ids=["queue", "no-queue"])
async def test_a_peer_that_accepts_and_never_answers_is_told_until_it_does(queue: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    exporter = never_answering(clock, sending_queue=queue)
    watchdog = dog(clock, out=exporter)
    caplog.set_level(logging.INFO)
    async with exporter, watching(watchdog, clock):
        await clock.advance(1000)  # nothing waits, so nothing stands still
        sending = asyncio.create_task(exporter.consume(logs("a")))
        await clock.advance(59)
        assert told(exporter, clock) is None
        assert exporter.context.metrics.value("lockgate_stalled_seconds", component="out") == 59
        await clock.advance(2)
        reason, seconds = told(exporter, clock) or ("", 0)
        assert reason.startswith("no progress, waits for delivery: 1 requests are not answered") and seconds == 61
        assert "out has made no progress for 60 s" in caplog.text
        exporter.answers.set()
        await sending
        await clock.advance(1)
        assert told(exporter, clock) is None and "out goes on after 6" in caplog.text
        assert exporter.context.metrics.value("lockgate_stalled_seconds") == 0


async def test_a_queue_that_drains_slowly_makes_progress() -> None:
    clock = VirtualClock()
    exporter = never_answering(clock, sending_queue={"stalled_after": "60s", "num_consumers": 1})
    exporter.is_slow = True
    async with exporter, watching(dog(clock, out=exporter), clock):
        waiting = [asyncio.create_task(exporter.consume(logs(str(number)))) for number in range(5)]
        for number in range(4):
            await clock.advance(50)
            assert told(exporter, clock) is None
            exporter.answers.set()
            await eventually(lambda: waiting[number].done())  # noqa: B023 - awaited at once
        await clock.advance(62)
        assert told(exporter, clock) is not None
        exporter.answers.set()
        await asyncio.gather(*waiting)


async def test_a_disk_call_that_never_returns_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, hangs = VirtualClock(), threading.Event()
    append = Journal.append

    def hanging(self: Journal, batches: Any) -> Any:
        hangs.wait(20)
        return append(self, batches)

    monkeypatch.setattr(Journal, "append", hanging)
    storage = FileStorageExtension(FileStorageSettings(directory=str(tmp_path)), context("file_storage"))
    async with storage:
        of = context("out", Kind.EXPORTER, clock=clock, host=FakeHost({"file_storage": storage}))
        exporter = NeverAnswers(SendingSettings.model_validate({"sending_queue": {"storage": "file_storage"}}), of)
        exporter.answers = asyncio.Event()
        exporter.answers.set()
        queue = PipelineQueue(of, "file_storage")
        queue.attach(exporter)
        async with queue, exporter, watching(dog(clock, queue=queue), clock):
            writing = asyncio.create_task(queue.consume(logs("a")))
            await eventually(lambda: list(queue.waiting()))
            await clock.advance(DISK_SECONDS + 1)
            reason, seconds = told(queue, clock) or ("", 0)
            assert "the disk: a call to file_storage does not return" in reason and seconds >= DISK_SECONDS
            hangs.set()
            await writing
            await eventually(lambda: not list(queue.waiting()))
            await clock.advance(1)
            assert told(queue, clock) is None


async def test_a_read_that_never_returns_is_told_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, hangs, reading = VirtualClock(), threading.Event(), threading.Event()
    read = Reader._advance

    def hanging(self: Reader, *arguments: Any) -> Any:
        reading.set()
        hangs.wait(20)
        return read(self, *arguments)

    monkeypatch.setattr(Reader, "_advance", hanging)
    (tmp_path / "a.log").write_text("a line\n")
    receiver = FilelogReceiver(
        FilelogSettings.model_validate({"include": [f"{tmp_path}/*.log"], "start_at": "beginning"}),
        context("filelog", Kind.RECEIVER, clock=clock),
    )

    class Takes:
        async def consume(self, batch: Batch) -> None:
            pass

    receiver.outputs[Signal.LOGS] = Takes()
    async with watching(dog(clock, filelog=receiver), clock):
        starting = asyncio.create_task(receiver.__aenter__())
        await eventually(reading.is_set)
        await clock.advance(READ_SECONDS + 1)
        reason, _ = told(receiver, clock) or ("", 0)
        assert f"the disk: reading {tmp_path}/a.log does not return" in reason
        hangs.set()
        await starting
        await clock.advance(1)
        assert told(receiver, clock) is None
        await receiver.__aexit__(None, None, None)


async def test_a_processor_that_never_returns_is_named() -> None:
    clock = VirtualClock()
    keeps = asyncio.Event()

    class Keeps(Processor[ComponentSettings]):
        async def consume(self, batch: Batch) -> None:
            await keeps.wait()

    receiver = Receiver(ComponentSettings(), context("in", Kind.RECEIVER, clock=clock))
    processor = Keeps(ComponentSettings(), context("keeps", clock=clock))
    receiver.outputs[Signal.LOGS] = processor
    async with processor, receiver, watching(dog(clock, receiver=receiver), clock):
        handing_on = asyncio.create_task(receiver.emit(logs("a")))
        await clock.advance(STALLED_SECONDS - 1)
        assert told(receiver, clock) is None
        await clock.advance(2)
        reason, _ = told(receiver, clock) or ("", 0)
        assert "an acknowledgement of what it handed on; 1 batches wait, the first in test.keeps" in reason
        keeps.set()
        await handing_on
        await clock.advance(1)
        assert told(receiver, clock) is None
