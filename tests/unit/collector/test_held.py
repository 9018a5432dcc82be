"""What the queues behind a receiver hold, through pipelines, connectors and several exporters."""

from pathlib import Path
from typing import Any

import pytest

from lockgate.batch import Origin
from lockgate.collector.config import load
from lockgate.collector.program import Program
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Exporter, Held, Receiver

CONFIGURATION = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:0"}}}, otlp/other: {protocols: {http: {endpoint: "127.0.0.1:0"}}}}
connectors: {forward: }
exporters: {debug/a: , debug/b: , debug/c: }
service:
  pipelines:
    logs/in: {receivers: [otlp], exporters: [debug/a, forward]}
    logs/out: {receivers: [forward], exporters: [debug/b]}
    logs/other: {receivers: [otlp/other], exporters: [debug/c]}
"""


def program(tmp_path: Path, holds: dict[str, Held], monkeypatch: pytest.MonkeyPatch) -> Program:
    (tmp_path / "c.yaml").write_text(CONFIGURATION)
    made = Program(load([str(tmp_path / "c.yaml")], environment={}))
    for id, held in holds.items():
        monkeypatch.setattr(made.host.components[f"exporters/{id}"], "held", lambda owner, held=held: held)
    return made


def test_what_a_receiver_need_not_read_again_is_what_every_exporter_that_it_reaches_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Held({"otlp:f": Ranges([(0, 10), (20, 30)]), "otlp:g": Ranges([(0, 5)])}, {"otlp:f": Ranges([(10, 12)])})
    b = Held({"otlp:f": Ranges([(5, 25)])}, {"otlp:f": Ranges([(2, 4)])})
    made = program(tmp_path, {"debug/a": a, "debug/b": b, "debug/c": Held()}, monkeypatch)
    assert made.host.held("otlp") == Held({"otlp:f": Ranges([(5, 10), (20, 25)])}, {"otlp:f": Ranges([(2, 4), (10, 12)])})
    assert made.host.held("otlp/other") == Held()


def test_saved_positions_reach_the_exporters_behind_the_receiver_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = program(tmp_path, {}, monkeypatch), []
    for key, component in made.host.components.items():
        if isinstance(component, Exporter):
            monkeypatch.setattr(component, "saved", lambda owner, positions, key=key: told.append((key, owner, dict(positions))))
    made.host.saved("otlp", {"otlp:f": 7})
    assert sorted(told) == [("exporters/debug/a", "otlp", {"otlp:f": 7}), ("exporters/debug/b", "otlp", {"otlp:f": 7})]


def test_damaged_ranges_go_back_to_the_receiver_that_they_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = program(tmp_path, {}, monkeypatch), list[Any]()
    for key, component in made.host.components.items():
        if isinstance(component, Receiver):
            component.running = True
            monkeypatch.setattr(component, "give_back", lambda origins, key=key: told.append((key, list(origins))))
    mine, theirs = Origin("otlp:f", 0, 5), Origin("otlp/other:x", 5, 9)
    made.host.give_back([mine, theirs, Origin("gone:f", 0, 1)])
    assert sorted(told) == [("receivers/otlp", [mine]), ("receivers/otlp/other", [theirs])]
