"""Grouping by attributes loses no record and moves what it is told to move."""

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from support import batch, context

from lockgate.attributes.values import decode
from lockgate.batch import Signal, count_records
from lockgate.components.processors.groupbyattrs import GroupByAttrsProcessor, GroupByAttrsSettings


def plain(attributes: Any) -> dict[str, Any]:
    return {attribute.key: decode(attribute.value) for attribute in attributes}


def group(signal: Signal, request: Any, *keys: str) -> Any:
    result = GroupByAttrsProcessor(GroupByAttrsSettings(keys=list(keys)), context("groupbyattrs", signal=signal)).process(
        batch(signal, request)
    )
    assert result.count == count_records(signal, result.payload)
    return result.message


def test_records_move_under_the_resource_that_their_attributes_make() -> None:
    request = ExportLogsServiceRequest()
    for host in ("h1", "h2"):
        entry = request.resource_logs.add()
        entry.resource.attributes.add(key="host").value.string_value = host
        scope = entry.scope_logs.add()
        scope.scope.name = "lib"
        for pod in ("p1", "p2", "p1", None):
            record = scope.log_records.add()
            record.body.string_value = f"{host}/{pod}"
            record.attributes.add(key="level").value.int_value = 1
            if pod:
                record.attributes.add(key="pod").value.string_value = pod
    found = [
        (
            plain(entry.resource.attributes),
            [(record.body.string_value, plain(record.attributes)) for record in entry.scope_logs[0].log_records],
        )
        for entry in group(Signal.LOGS, request, "pod", "absent").resource_logs
    ]
    rest = {"level": 1}
    assert found == [
        ({"host": "h1", "pod": "p1"}, [("h1/p1", rest), ("h1/p1", rest)]),
        ({"host": "h1", "pod": "p2"}, [("h1/p2", rest)]),
        ({"host": "h1"}, [("h1/None", rest)]),
        ({"host": "h2", "pod": "p1"}, [("h2/p1", rest), ("h2/p1", rest)]),
        ({"host": "h2", "pod": "p2"}, [("h2/p2", rest)]),
        ({"host": "h2"}, [("h2/None", rest)]),
    ]


def test_the_records_attribute_overwrites_the_resources() -> None:
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    entry.resource.attributes.add(key="pod").value.string_value = "old"
    entry.scope_logs.add().log_records.add().attributes.add(key="pod").value.string_value = "new"
    assert [plain(found.resource.attributes) for found in group(Signal.LOGS, request, "pod").resource_logs] == [{"pod": "new"}]


def test_without_keys_equal_resources_and_scopes_are_gathered_whatever_the_order_of_their_attributes() -> None:
    request = ExportLogsServiceRequest()
    for keys, scope_name in (("ab", "s"), ("ba", "s"), ("ab", "t")):
        entry = request.resource_logs.add()
        for key in keys:
            entry.resource.attributes.add(key=key).value.string_value = key
        scope = entry.scope_logs.add()
        scope.scope.name = scope_name
        scope.log_records.add()
    (entry,) = group(Signal.LOGS, request).resource_logs
    assert [(scope.scope.name, len(scope.log_records)) for scope in entry.scope_logs] == [("s", 2), ("t", 1)]


def test_data_points_move_with_a_copy_of_what_their_metric_is() -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m", unit="s", description="d")
    metric.sum.is_monotonic = True
    metric.sum.aggregation_temporality = 2  # type: ignore[assignment]
    for number, pod in enumerate(("a", "b", "a")):
        metric.sum.data_points.add(as_int=number).attributes.add(key="pod").value.string_value = pod
    found = group(Signal.METRICS, request, "pod").resource_metrics
    assert [plain(entry.resource.attributes) for entry in found] == [{"pod": "a"}, {"pod": "b"}]
    for entry, values in zip(found, ([0, 2], [1]), strict=True):
        (moved,) = entry.scope_metrics[0].metrics
        assert (moved.name, moved.unit, moved.description) == ("m", "s", "d")
        assert (moved.sum.is_monotonic, moved.sum.aggregation_temporality) == (True, 2)
        assert [point.as_int for point in moved.sum.data_points] == values
        assert not any(point.attributes for point in moved.sum.data_points)


def test_empty_keys_and_repeated_ones_count_for_nothing() -> None:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    for key in ("", "a"):
        record.attributes.add(key=key).value.string_value = "x"
    (entry,) = group(Signal.LOGS, request, "", "a", "a").resource_logs
    assert (plain(entry.resource.attributes), plain(entry.scope_logs[0].log_records[0].attributes)) == ({"a": "x"}, {"": "x"})
