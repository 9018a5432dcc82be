"""The filter processor, as the chart's configurations use it."""

from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from pydantic import ValidationError
from support import Sink, batch, context, resource_attributes

from lockgate.batch import Batch, Origin, Signal, count_records, merge
from lockgate.components.processors.filter import FilterProcessor, FilterSettings


def processor(signal: Signal, settings: dict[str, Any]) -> FilterProcessor:
    return FilterProcessor(FilterSettings.model_validate(settings), context("filter", signal=signal))


def units(*names: str) -> Batch:
    request = ExportLogsServiceRequest()
    for name in names:
        entry = request.resource_logs.add()
        entry.resource.attributes.add(key="r").value.string_value = name
        record = entry.scope_logs.add().log_records.add()
        record.body.string_value = name
        record.attributes.add(key="_SYSTEMD_UNIT").value.string_value = name
    return batch(Signal.LOGS, request)


def by_unit(match_type: str, value: str) -> dict[str, Any]:
    return {"match_type": match_type, "record_attributes": [{"key": "_SYSTEMD_UNIT", "value": value}]}


LOGS = [
    pytest.param({"include": by_unit("strict", "kubelet.service")}, ["kubelet.service"], id="include"),
    pytest.param({"exclude": by_unit("strict", "kubelet.service")}, ["docker.service", ""], id="exclude"),
    pytest.param({"include": by_unit("regexp", "service$"), "exclude": by_unit("regexp", "^d")}, ["kubelet.service"], id="both"),
    pytest.param({"exclude": by_unit("regexp", "$^")}, ["kubelet.service", "docker.service"], id="nothing-excludes-empty-values"),
    pytest.param({"include": {"match_type": "strict"}}, ["kubelet.service", "docker.service", ""], id="no-property-is-no-condition"),
    pytest.param({}, ["kubelet.service", "docker.service", ""], id="no-condition"),
    pytest.param({"include": {"match_type": "strict", "bodies": ["x"]}}, [], id="nothing-left"),
]


@pytest.mark.parametrize(("logs", "left"), LOGS)
def test_log_records(logs: dict[str, Any], left: list[str]) -> None:
    tested = processor(Signal.LOGS, {"logs": logs})
    result = tested.process(units("kubelet.service", "docker.service", ""))
    assert [found["r"] for found in resource_attributes(result)] == left
    assert result.count == len(left) == count_records(Signal.LOGS, result.payload)
    assert tested.context.metrics.value("otelcol_processor_filter_logs_filtered") == 3 - len(left)


async def test_a_batch_of_which_nothing_is_left_is_acknowledged_and_goes_nowhere() -> None:
    tested, sink = processor(Signal.LOGS, {"logs": {"exclude": by_unit("regexp", "")}}), Sink()
    tested.next = sink
    async with tested:
        await tested.consume(units("a"))
    assert sink.calls == 0


async def test_a_batch_of_which_nothing_is_left_goes_on_where_it_has_origins() -> None:
    given = replace(units("a", "b"), origins=(Origin("tail:1", 0, 10, 1, 1), Origin("tail:2", 0, 10, 1, 1)))
    tested = processor(Signal.LOGS, {"logs": {"include": {"match_type": "strict", "bodies": ["x"]}}})
    after = processor(Signal.LOGS, {"logs": {"include": by_unit("strict", "x")}})
    tested.next, after.next = after, (sink := Sink())
    async with after, tested:
        await tested.consume(given)
    assert [(it.count, [origin.filtered for origin in it.origins]) for it in sink.batches] == [(0, [1, 1])]


@pytest.mark.parametrize("match", [by_unit("strict", "b"), {"match_type": "strict", "bodies": ["b"]}], ids=["by-group", "by-record"])
def test_each_origin_is_told_what_of_it_was_dropped(match: dict[str, Any]) -> None:
    several = (units("a"), units("b"), units("b"), units("a"))
    given = replace(merge(several), origins=tuple(Origin(f"tail:{number}", 0, 10, 1, 1) for number in range(4)))
    first = processor(Signal.LOGS, {"logs": {"exclude": match}}).process(given)
    assert [(it.records, it.filtered) for it in first.origins] == [(1, 0), (0, 1), (0, 1), (1, 0)]
    second = processor(Signal.LOGS, {"logs": {"include": match}}).process(first)
    assert [(it.records, it.filtered) for it in second.origins] == [(0, 1)] * 4


def test_metrics_are_counted_by_data_points() -> None:
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    for name in ("up", "scrape_duration"):
        points = metrics.add(name=name).gauge.data_points
        points.add(), points.add()
    tested = processor(Signal.METRICS, {"metrics": {"exclude": {"match_type": "regexp", "metric_names": ["^scrape_"]}}})
    result = tested.process(batch(Signal.METRICS, request))
    assert [metric.name for metric in result.message.resource_metrics[0].scope_metrics[0].metrics] == ["up"]
    assert (result.count, tested.context.metrics.value("otelcol_processor_filter_datapoints_filtered")) == (2, 2)


METRICS = [
    pytest.param({"include": {"metric_names": ["up"], "resource_attributes": [{"key": "job", "value": "a"}]}}, ["a/up"], id="include-all"),
    pytest.param(
        {"exclude": {"metric_names": ["up"], "resource_attributes": [{"key": "job", "value": "a"}]}}, ["b/down"], id="exclude-any"
    ),
    pytest.param({"include": {"metric_names": ["up"]}, "exclude": {"resource_attributes": [{"key": "job"}]}}, [], id="both"),
    pytest.param({"exclude": {"regexp": {"cacheenabled": True}}, "regexp": {}}, ["a/up", "a/down", "b/up", "b/down"], id="none"),
]


@pytest.mark.parametrize(("metrics", "left"), METRICS)
def test_metrics(metrics: dict[str, Any], left: list[str]) -> None:
    request = ExportMetricsServiceRequest()
    for job in "ab":
        entry = request.resource_metrics.add()
        entry.resource.attributes.add(key="job").value.string_value = job
        scope = entry.scope_metrics.add()
        for name in ("up", "down"):
            scope.metrics.add(name=name).gauge.data_points.add()
    strict = {key: value | {"match_type": "strict"} if key != "regexp" else value for key, value in metrics.items()}
    result = processor(Signal.METRICS, {"metrics": strict}).process(batch(Signal.METRICS, request))
    assert [
        f"{entry.resource.attributes[0].value.string_value}/{metric.name}"
        for entry in result.message.resource_metrics
        for metric in entry.scope_metrics[0].metrics
    ] == left


def test_conditions_of_other_signals_have_no_effect() -> None:
    given = units("a")
    assert processor(Signal.LOGS, {"spans": {"include": {"match_type": "strict", "span_names": ["x"]}}}).process(given) is given


OTTL = [
    {"metrics": {"metric": ['IsMatch(name, "a")']}},
    {"metrics": {"datapoint": ["flags == 1"]}},
    {"logs": {"log_record": ["true"]}},
    {"logs": {"resource": ["true"]}},
    {"traces": {"span": ["true"]}},
    {"log_conditions": ["true"]},
]


@pytest.mark.parametrize("settings", OTTL)
def test_ottl_is_refused_as_such(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="OTTL conditions are not supported yet"):
        FilterSettings.model_validate({"error_mode": "ignore"} | settings)
