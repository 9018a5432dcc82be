"""What the queues behind a receiver hold, through pipelines, connectors and several exporters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import logs

from lockgate.batch import Origin
from lockgate.collector.config import load
from lockgate.collector.program import Program
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Held, Receiver
from lockgate.sending.durable import PipelineQueue

CONFIGURATION = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:0"}}}, otlp/other: {protocols: {http: {endpoint: "127.0.0.1:0"}}}}
connectors: {forward: }
extensions: {file_storage: {directory: "{state}", create_directory: true}}
exporters:
  otlphttp/a: &to {endpoint: "http://127.0.0.1:9", sending_queue: {storage: file_storage}}
  otlphttp/b: *to
  otlphttp/c: *to
  otlphttp/memory: {endpoint: "http://127.0.0.1:9"}
service:
  extensions: [file_storage]
  pipelines:
    logs/in: {receivers: [otlp], exporters: [otlphttp/a, forward, otlphttp/c]}
    logs/out: {receivers: [forward], exporters: [otlphttp/b]}
    logs/other: {receivers: [otlp/other], exporters: [otlphttp/c, otlphttp/memory]}
"""


def program(tmp_path: Path) -> Program:
    (tmp_path / "c.yaml").write_text(CONFIGURATION.replace("{state}", str(tmp_path / "state")))
    return Program(load([str(tmp_path / "c.yaml")], environment={}))


def queues(made: Program) -> dict[str, PipelineQueue]:
    return {it.context.pipeline: it for it in made.assembly.components if isinstance(it, PipelineQueue)}


def test_the_exporters_of_a_pipeline_share_a_queue_and_each_pipeline_has_its_own(tmp_path: Path) -> None:
    made = program(tmp_path)
    exporters = {name: [exporter.context.id for exporter in queue.exporters] for name, queue in queues(made).items()}
    assert exporters == {"logs/in": ["otlphttp/a", "otlphttp/c"], "logs/out": ["otlphttp/b"], "logs/other": ["otlphttp/c"]}
    kinds = [type(component).__name__ for component in made.assembly.components]
    assert kinds[1:9] == ["FileStorageExtension", *["PipelineQueue"] * 3, *["OtlpHttpExporter"] * 4]


def test_what_a_receiver_need_not_read_again_is_what_every_queue_that_it_reaches_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = program(tmp_path)
    a = Held({"otlp:f": Ranges([(0, 10), (20, 30)]), "otlp:g": Ranges([(0, 5)])}, {"otlp:f": Ranges([(10, 12)])})
    b = Held({"otlp:f": Ranges([(5, 25)])}, {"otlp:f": Ranges([(2, 4)])})
    c = Held({"otlp/other:f": Ranges([(0, 5)])}, {"otlp/other:f": Ranges([(5, 6)])})
    for name, held in {"logs/in": a, "logs/out": b, "logs/other": c}.items():
        monkeypatch.setattr(queues(made)[name], "held", lambda owner, held=held: held)
    assert made.host.held("otlp") == Held({"otlp:f": Ranges([(5, 10), (20, 25)])}, {"otlp:f": Ranges([(2, 4), (10, 12)])})
    # One of its exporters keeps nothing.
    assert made.host.held("otlp/other") == Held({}, {"otlp/other:f": Ranges([(5, 6)])})


def test_saved_positions_reach_the_queues_behind_the_receiver_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = program(tmp_path), []
    for name, queue in queues(made).items():
        monkeypatch.setattr(queue, "saved", lambda owner, positions, groups, name=name: told.append((name, owner, dict(positions))))
    made.host.saved("otlp", {"otlp:f": 7})
    assert sorted(told) == [("logs/in", "otlp", {"otlp:f": 7}), ("logs/out", "otlp", {"otlp:f": 7})]


def test_damaged_ranges_go_back_to_the_receiver_that_they_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = program(tmp_path), list[Any]()
    for key, component in made.host.components.items():
        if isinstance(component, Receiver):
            component.running = True
            monkeypatch.setattr(component, "give_back", lambda origins, key=key: told.append((key, list(origins))))
    mine, theirs = Origin("otlp:f", 0, 5), Origin("otlp/other:x", 5, 9)
    made.host.give_back([mine, theirs, Origin("gone:f", 0, 1)])
    assert sorted(told) == [("receivers/otlp", [mine]), ("receivers/otlp/other", [theirs])]


FORKED = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:0"}}}}
connectors: {forward: }
extensions: {file_storage: {directory: "{state}", create_directory: true}}
exporters: {otlphttp: {endpoint: "http://127.0.0.1:9", sending_queue: {storage: file_storage}}}
service:
  extensions: [file_storage]
  pipelines:
    logs/a: {receivers: [otlp], exporters: [forward]}
    logs/b: {receivers: [otlp], exporters: [forward]}
    logs/out: {receivers: [forward], exporters: [otlphttp]}
"""


async def test_a_batch_that_takes_two_ways_to_one_queue_is_no_repetition_of_itself(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FORKED.replace("{state}", str(tmp_path / "state")))
    made = Program(load([str(tmp_path / "c.yaml")], environment={}))
    (queue,) = queues(made).values()
    batch = replace(logs("x"), origins=(Origin("otlp:f", 0, 5, 1, 1),))
    await made.assembly.start()
    try:
        for each in (batch, logs("y"), logs("y")):
            await made.host.components["receivers/otlp"].emit(each)  # type: ignore[attr-defined]  # a receiver's
        assert queue.journal is not None and queue.journal.readers["otlphttp"].unread.records == 0
        assert made.metrics.value("otelcol_exporter_queue_size") == 4  # two of each, and of the repeated one no more
        assert made.metrics.value("lockgate_queue_duplicate_batches") == 2
        assert made.host.held("otlp") == Held()  # whether both ways have brought it nobody knows
    finally:
        await made.assembly.leave(5)
