"""A running program's change from one configuration to another, seen from within."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support import logs

from lockgate.batch import Signal
from lockgate.collector.config import load
from lockgate.collector.program import Program
from lockgate.pipeline.contract import Component

CONFIGURATION = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:0"}}}}
processors: {resource: {attributes: [{action: insert, key: a, value: VALUE}]}}
exporters: {otlphttp: {endpoint: "http://127.0.0.1:1"}, debug: }
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], processors: [resource], exporters: [otlphttp, debug]}
"""


class Running:
    """A program, and the file that it reads again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(CONFIGURATION)
        self.program = Program(load([str(path)], environment={}), load=self.load)
        self.fails: Exception | None = None

    def write(self, text: str, value: int = 0) -> None:
        self.path.write_text(text.replace("VALUE", str(value)))

    def load(self) -> Any:
        if self.fails:
            raise self.fails
        return load([str(self.path)], environment={})

    async def reload(self) -> dict[str, Any]:
        before = self.program.last_reload
        self.program.reload()
        async with asyncio.timeout(10):
            while self.program.last_reload is before:
                await asyncio.sleep(0.01)
        return self.program.last_reload

    def components(self) -> dict[str, Component[Any]]:
        return dict(self.program.host.components)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with run(Running(tmp_path / "c.yaml")) as it:
        yield it


@asynccontextmanager
async def run(it: Running) -> AsyncIterator[Running]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(it.program.run(stop, ready.set))
    await asyncio.wait_for(ready.wait(), 10)
    try:
        yield it
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def test_what_did_not_change_is_the_same_component_and_still_runs(running: Running) -> None:
    before = running.components()
    running.write(CONFIGURATION, 1)
    assert (await running.reload())["outcome"] == "applied"
    after = running.components()
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] is not before[key]} == {"processors/resource@logs"}
    assert all(component.running for component in after.values())
    assert not before["processors/resource@logs"].running


async def test_a_replaced_processor_runs_until_its_last_batch_has_left_it(running: Running) -> None:
    components = running.components()
    receiver, old = components["receivers/otlp"], components["processors/resource@logs"]
    task = asyncio.create_task(receiver.outputs[Signal.LOGS].consume(logs("one")))  # type: ignore[attr-defined]  # a receiver
    await asyncio.sleep(0)
    running.write(CONFIGURATION, 1)
    assert (await running.reload())["outcome"] == "applied"
    assert old.running
    task.cancel()
    async with asyncio.timeout(10):
        while old.running:
            await asyncio.sleep(0.01)


async def test_an_exporter_that_is_taken_out_takes_its_metrics_and_its_share_of_batches_with_it(running: Running) -> None:
    metrics, receiver = running.program.metrics, running.components()["receivers/otlp"]
    assert any(labels.get("exporter") == "otlphttp" for _, labels, _ in metrics.collect())
    task = asyncio.create_task(receiver.outputs[Signal.LOGS].consume(logs("one")))  # type: ignore[attr-defined]  # a receiver
    await asyncio.sleep(0.05)
    assert not task.done(), "nobody answers otlphttp"
    running.write(CONFIGURATION.replace("[otlphttp, debug]", "[debug]"))
    assert (await running.reload())["outcome"] == "applied"
    await asyncio.wait_for(task, 5)
    assert not any(labels.get("exporter") == "otlphttp" for _, labels, _ in metrics.collect())
    assert any(labels.get("receiver") == "otlp" or labels.get("component") == "otlp" for _, labels, _ in metrics.collect())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("service: {pipelines: {}}", "nothing would be started"),
        ("{", "c.yaml:1"),
    ],
)
async def test_what_is_wrong_leaves_everything_as_it_is(running: Running, text: str, reason: str) -> None:
    before = running.components()
    running.write(text)
    told = await running.reload()
    assert told["outcome"] == "wrong"
    assert reason in told["reasons"][0]
    assert running.components() == before


async def test_a_fault_while_reading_is_told_and_does_not_end_the_program(running: Running) -> None:
    running.fails = RuntimeError("a bug")
    assert await running.reload() | {"time": ""} == {"outcome": "wrong", "time": "", "reasons": ["a bug"]}
    running.fails = None
    assert (await running.reload())["outcome"] == "unchanged"


async def test_wider_needs_are_each_named_and_what_was_given_up_may_be_taken_again(running: Running) -> None:
    more = CONFIGURATION.replace("http://127.0.0.1:1", "http://127.0.0.1:2")
    running.write(more)
    told = await running.reload()
    assert told["outcome"] == "refused"
    what = "exporters/otlphttp needs connect 127.0.0.1:2/tcp (requests to http://127.0.0.1:2)"
    assert told["reasons"] == [f"restart required: {what}, which this process started without"]
    running.write(CONFIGURATION.replace("[otlphttp, debug]", "[debug]"))
    assert (await running.reload())["outcome"] == "applied"
    running.write(CONFIGURATION)
    assert (await running.reload())["outcome"] == "applied"


async def test_pipelines_and_connectors_come_and_go(running: Running) -> None:
    text = CONFIGURATION + "    logs/more: {receivers: [forward], exporters: [debug]}\nconnectors: {forward: }\n"
    running.write(text.replace("[otlphttp, debug]", "[forward]"))
    assert (await running.reload())["outcome"] == "applied"
    receiver = running.components()["receivers/otlp"]
    assert set(running.components()) == {"receivers/otlp", "processors/resource@logs", "connectors/forward", "exporters/debug"}
    await asyncio.wait_for(receiver.outputs[Signal.LOGS].consume(logs("one")), 5)  # type: ignore[attr-defined]  # a receiver
    running.write(CONFIGURATION.replace("[otlphttp, debug]", "[debug]"))
    assert (await running.reload())["outcome"] == "applied"
    assert running.components()["receivers/otlp"] is receiver
    await asyncio.wait_for(receiver.outputs[Signal.LOGS].consume(logs("two")), 5)  # type: ignore[attr-defined]  # a receiver
    assert running.program.metrics.value("otelcol_exporter_sent_log_records", exporter="debug") == 2
