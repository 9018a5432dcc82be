"""What the debug exporter shows, how much of it, and where."""

import logging
from typing import Any

import pytest
from support import VirtualClock, context
from support.otlp import NANO, log_batch, made, metric_request, set_attributes, span_batch

from lockgate.batch import Batch, Signal
from lockgate.components.exporters.debug import DebugExporter, DebugSettings
from lockgate.pipeline.contract import Kind


def exporter(clock: Any = None, **settings: Any) -> DebugExporter:
    return DebugExporter(DebugSettings.model_validate(settings), context("debug", Kind.EXPORTER, clock=clock))


def metrics() -> Batch:
    request, scope = metric_request({"pod": "p"})
    set_attributes(scope.metrics.add(name="g", unit="By").gauge.data_points.add(time_unix_nano=NANO, as_double=1.5).attributes, {"a": 1})
    histogram = scope.metrics.add(name="h").histogram
    histogram.aggregation_temporality = 7  # a value from the future
    histogram.data_points.add(time_unix_nano=NANO, count=3, sum=2, explicit_bounds=[1], bucket_counts=[1, 2])
    scope.metrics.add(name="s").summary.data_points.add(count=1, sum=1).quantile_values.add(quantile=0.5, value=1)
    scope.metrics.add(name="e").exponential_histogram.data_points.add(count=1).positive.bucket_counts.append(1)
    return made(Signal.METRICS, request, 4)


BATCHES = [log_batch(("a line", {"n": 1}), {"k": [True, b"x"]}, None, resource={"pod": "p"}), metrics(), span_batch("GET /")]


async def shown(caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    caplog.set_level(logging.INFO)
    async with exporter(**settings) as it:
        for batch in BATCHES:
            await it.consume(batch)
    return [record.getMessage() for record in caplog.records]


async def test_basic_is_one_line_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    assert await shown(caplog) == [
        "Logs: resource logs: 1, log records: 3",
        "Metrics: resource metrics: 1, metrics: 4, data points: 4",
        "Traces: resource spans: 1, spans: 1",
    ]


async def test_normal_is_one_line_a_record(caplog: pytest.LogCaptureFixture) -> None:
    logs, metrics, traces = await shown(caplog, verbosity="normal")
    assert logs.split("\n")[1:] == ["ResourceLogs #0 pod=p", "ScopeLogs #0", "a line n=1", "{k:[true,78]}", ""]
    assert metrics.splitlines()[3:] == [
        "g{a=1} 1.5",
        "h{} count=3 sum=2 le1=1 le+Inf=2",
        "s{} count=1 sum=1 q0.5=1",
        "e{} count=1 scale=0 zero_count=0 positive[0]=1",
    ]
    assert traces.splitlines()[-1] == f"GET / {'0' * 32} {'0' * 16}"


async def test_detailed_shows_every_field(caplog: pytest.LogCaptureFixture) -> None:
    logs, metrics, traces = await shown(caplog, verbosity="detailed")
    stamp = "Timestamp: 2023-11-14 22:13:20.000000000 +0000 UTC"
    assert {stamp, "Body: Str(a line)", "     -> n: Int(1)", "Body: Map({k:[true,78]})"} <= set(logs.splitlines())
    assert {"     -> DataType: Histogram", "     -> AggregationTemporality: 7", "le1: 1", "Value: 1.5"} <= set(metrics.splitlines())
    assert {"    Kind           : Server", "    Status code    : Error", "     -> Name: retry"} <= set(traces.splitlines())


async def test_a_huge_batch_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with exporter(verbosity="detailed") as it:
        await it.consume(log_batch(*(f"{n} " + "x" * 1000 for n in range(1000))))
    (record,) = caplog.records
    assert len(record.getMessage()) < 70_000 and record.getMessage().endswith("characters")


@pytest.mark.parametrize(
    ("initial", "thereafter", "expected"),
    [(2, 1, 10), (2, 3, 2 + 2), (3, 0, 3), (0, 5, 2), (0, 0, 0)],
)
async def test_sampling_counts_anew_each_second(caplog: pytest.LogCaptureFixture, initial: int, thereafter: int, expected: int) -> None:
    caplog.set_level(logging.INFO)
    clock = VirtualClock()
    async with exporter(clock, sampling_initial=initial, sampling_thereafter=thereafter) as it:
        for second in range(2):
            for _ in range(10):
                await it.consume(BATCHES[0])
            assert len(caplog.records) == expected * (second + 1)
            await clock.advance(1)


async def test_plain_text_goes_to_standard_output(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert await shown(caplog, use_internal_logger=False) == []
    assert capsys.readouterr().out.startswith("Logs: resource logs: 1, log records: 3\n")
