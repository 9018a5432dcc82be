"""What a change of the configuration stops and starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.collector.config import Configuration, load
from lockgate.collector.plan import Plan, places

BASE = """
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:4318"}}}
  filelog: {include: [/var/log/pods/*.log], storage: file_storage}
processors: {resource: {attributes: [{action: insert, key: a, value: 1}]}, batch: }
connectors: {forward: }
exporters: {debug: , otlphttp: {endpoint: "http://127.0.0.1:1"}}
extensions: {file_storage: {directory: /tmp}, health_check: }
service:
  extensions: [file_storage, health_check]
  pipelines:
    logs: {receivers: [filelog, otlp], processors: [batch, resource], exporters: [forward, debug]}
    logs/out: {receivers: [forward], exporters: [otlphttp]}
    traces: {receivers: [otlp], exporters: [otlphttp]}
"""


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    (tmp_path / "c.yaml").write_text(BASE)

    def make(overrides: dict[str, Any]) -> Configuration:
        (tmp_path / "more.yaml").write_text(yaml.safe_dump(overrides))
        return load([str(tmp_path / "c.yaml"), str(tmp_path / "more.yaml")], environment={})

    return make


def test_places_are_entered_against_the_flow(configured: Any) -> None:
    assert list(places(configured({}))) == [
        "service/telemetry",
        "extensions/file_storage",
        "extensions/health_check",
        "exporters/debug",
        "exporters/otlphttp",
        "pipelines/logs/out",
        "pipelines/traces",
        "connectors/forward",
        "pipelines/logs",
        "receivers/filelog",
        "receivers/otlp",
    ]


LOGS: dict[str, Any] = {"receivers": ["filelog", "otlp"], "processors": ["batch", "resource"], "exporters": ["forward", "debug"]}


@pytest.mark.parametrize(
    ("change", "stops", "starts"),
    [
        ({}, [], []),
        ({"processors": {"batch": {"timeout": "5s"}}}, ["pipelines/logs"], ["pipelines/logs"]),
        ({"exporters": {"otlphttp": {"timeout": "7s"}}}, ["exporters/otlphttp"], ["exporters/otlphttp"]),
        ({"receivers": {"filelog": {"poll_interval": "1s"}}}, ["receivers/filelog"], ["receivers/filelog"]),
        (
            {"extensions": {"file_storage": {"timeout": "7s"}}},
            ["extensions/file_storage", "receivers/filelog"],
            ["extensions/file_storage", "receivers/filelog"],
        ),
        ({"service": {"pipelines": {"logs": LOGS | {"receivers": ["filelog"]}}}}, ["receivers/otlp"], ["receivers/otlp"]),
        ({"service": {"pipelines": {"logs": LOGS | {"processors": ["resource"]}}}}, ["pipelines/logs"], ["pipelines/logs"]),
        (
            {"service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}}}},
            ["pipelines/traces"],
            ["pipelines/traces"],
        ),
        ({"service": {"pipelines": {"traces/2": {"receivers": ["otlp"], "exporters": ["otlphttp"]}}}}, [], ["pipelines/traces/2"]),
        (
            # By two ways to one place: what crosses `logs` gets ids of its own.
            {"service": {"pipelines": {"logs/out": {"receivers": ["forward", "filelog"], "exporters": ["otlphttp"]}}}},
            ["pipelines/logs"],
            ["pipelines/logs"],
        ),
        (
            # A queue on disk starts and stops with its exporter; pipelines hand over to it.
            {"exporters": {"otlphttp": {"sending_queue": {"storage": "file_storage"}}}},
            ["exporters/otlphttp", "pipelines/logs/out", "pipelines/traces"],
            [
                "exporters/otlphttp",
                "pipelines/logs/out",
                "pipelines/traces",
                "queues/logs/out@file_storage",
                "queues/traces@file_storage",
            ],
        ),
        (
            {"service": {"pipelines": {"logs/more": {"receivers": ["forward"], "exporters": ["debug"]}}}},
            ["connectors/forward"],
            ["connectors/forward", "pipelines/logs/more"],
        ),
        ({"service": {"telemetry": {"metrics": {"level": "none"}}}}, ["service/telemetry"], []),
        ({"service": {"telemetry": {"logs": {"level": "debug"}}, "shutdown_timeout": "1s"}}, [], []),
        ({"processors": {"source": {}}}, [], []),
    ],
)
def test_only_what_changed_or_names_what_stops_is_stopped(configured: Any, change: Any, stops: list[str], starts: list[str]) -> None:
    plan = Plan.of(configured({}), configured(change))
    assert (sorted(plan.stops), sorted(plan.starts)) == (stops, starts)


def test_the_way_back_is_planned_as_well(configured: Any) -> None:
    old, new = (
        configured({}),
        configured(
            {"service": {"extensions": ["file_storage"], "pipelines": {"metrics": {"receivers": ["otlp"], "exporters": ["debug"]}}}}
        ),
    )
    assert Plan.of(old, new).stops == ("extensions/health_check", "receivers/otlp")
    assert Plan.of(new, old).stops == ("pipelines/metrics", "receivers/otlp")
