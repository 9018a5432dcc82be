"""The attributes processor on records of the three signals."""

from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import batch, context, logs

from lockgate.batch import Signal
from lockgate.components.processors.attributes import AttributesProcessor, AttributesSettings

INSERT = {"action": "insert", "key": "a", "value": "x"}


def processor(signal: Signal, **settings: Any) -> AttributesProcessor:
    return AttributesProcessor(AttributesSettings.model_validate({"actions": [INSERT]} | settings), context("attributes", signal=signal))


def test_log_records_change_where_selected_and_the_batch_given_does_not() -> None:
    given = logs("one", "two", "three")
    before = given.payload
    tested = processor(
        Signal.LOGS,
        include={"match_type": "regexp", "log_bodies": ["^t"]},
        exclude={"match_type": "strict", "log_bodies": ["three"]},
    )
    result = tested.process(given)
    records = result.message.resource_logs[0].scope_logs[0].log_records
    assert [len(record.attributes) for record in records] == [0, 1, 0]
    assert (result.count, result.id, given.payload) == (3, given.id, before)
    assert all(not record.attributes for record in given.message.resource_logs[0].scope_logs[0].log_records)


def test_spans() -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="s")
    result = processor(Signal.TRACES).process(batch(Signal.TRACES, request))
    assert result.message.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.string_value == "x"


def test_data_points_of_every_kind() -> None:
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    kinds = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
    for kind in kinds:
        points = getattr(metrics.add(name=kind), kind).data_points
        points.add()
        points.add()
    metrics.add(name="empty")
    result = processor(Signal.METRICS, exclude={"match_type": "strict", "metric_names": ["sum"]}).process(batch(Signal.METRICS, request))
    assert result.count == 10
    for kind, metric in zip(kinds, result.message.resource_metrics[0].scope_metrics[0].metrics, strict=False):
        assert [len(point.attributes) for point in getattr(metric, kind).data_points] == ([0, 0] if kind == "sum" else [1, 1])


def test_a_property_of_another_signal_is_refused_when_the_component_is_made() -> None:
    with pytest.raises(ValueError, match="metrics have no such property"):
        processor(Signal.METRICS, include={"match_type": "strict", "log_bodies": ["x"]})
