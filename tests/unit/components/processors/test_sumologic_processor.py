"""The sumologic processor: each step's rules, their order, and where ours differs from the original."""

from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError
from support import batch, context

from lockgate.attributes.records import resources
from lockgate.attributes.values import decode, encode
from lockgate.batch import Batch, Signal, count_records
from lockgate.collector import components
from lockgate.components.processors.sumologic import MAX_DEPTH, SumologicProcessor, SumologicProcessorSettings
from lockgate.pipeline.contract import Kind

REQUESTS = {Signal.LOGS: ExportLogsServiceRequest, Signal.METRICS: ExportMetricsServiceRequest, Signal.TRACES: ExportTraceServiceRequest}
KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
OFF = {"add_cloud_namespace": False, "translate_attributes": False, "translate_telegraf_attributes": False}


def fill(attributes: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        attributes.add(key=key, value=encode(value))


def plain(attributes: Any) -> dict[str, Any]:
    found = {attribute.key: decode(attribute.value) for attribute in attributes}
    assert len(found) == len(attributes), "a key stands twice"
    return found


def process(given: Batch, **settings: Any) -> Batch:
    made = SumologicProcessor(SumologicProcessorSettings.model_validate(settings), context("sumologic", signal=given.signal))
    result = made.process(given)
    assert result.count == given.count == count_records(result.signal, result.payload)
    assert made.process(given).payload == result.payload
    return result


def a_batch(signal: Signal, resource: dict[str, Any], record: dict[str, Any] | None = None, name: str = "m") -> Batch:
    """One resource with one record: a log record, a metric with a point of each kind, or a span."""
    request = REQUESTS[signal]()
    entry = resources(signal, request).add()
    fill(entry.resource.attributes, resource)
    match signal:
        case Signal.LOGS:
            fill(entry.scope_logs.add().log_records.add().attributes, record or {})
        case Signal.TRACES:
            fill(entry.scope_spans.add().spans.add().attributes, record or {})
        case Signal.METRICS:
            scope = entry.scope_metrics.add()
            for kind in KINDS:
                fill(getattr(scope.metrics.add(name=name), kind).data_points.add().attributes, record or {})
    return batch(signal, request)


def resource_after(attributes: dict[str, Any], signal: Signal = Signal.LOGS, **settings: Any) -> dict[str, Any]:
    return plain(resources(signal, process(a_batch(signal, attributes), **settings).message)[0].resource.attributes)


def records_after(attributes: dict[str, Any], signal: Signal, **settings: Any) -> list[dict[str, Any]]:
    (entry,) = resources(signal, process(a_batch(signal, {}, attributes), **settings).message)
    match signal:
        case Signal.LOGS:
            return [plain(record.attributes) for record in entry.scope_logs[0].log_records]
        case Signal.TRACES:
            return [plain(span.attributes) for span in entry.scope_spans[0].spans]
    return [
        plain(getattr(metric, kind).data_points[0].attributes) for metric, kind in zip(entry.scope_metrics[0].metrics, KINDS, strict=True)
    ]


@pytest.mark.parametrize("signal", list(Signal))
@pytest.mark.parametrize(
    ("platform", "namespace"),
    [
        pytest.param("aws_ec2", "aws/ec2", id="ec2"),
        pytest.param("aws_ecs", "ecs", id="ecs"),
        pytest.param("aws_elastic_beanstalk", "ElasticBeanstalk", id="beanstalk"),
        pytest.param("aws_lambda", None, id="another"),
        pytest.param(7, None, id="no-string"),
        pytest.param(None, None, id="absent"),
    ],
)
def test_cloud_namespace_follows_from_the_platform(signal: Signal, platform: Any, namespace: str | None) -> None:
    given = {"cloud.platform": platform} if platform is not None else {"k": "v"}
    added = {"cloud.namespace": namespace} if namespace else {}
    assert resource_after(given, signal, translate_attributes=False) == given | added
    assert resource_after(given, signal, translate_attributes=False, add_cloud_namespace=False) == given


def test_cloud_namespace_replaces_one_that_is_there_and_is_found_before_the_platform_is_renamed() -> None:
    given = {"cloud.namespace": "x", "cloud.platform": "aws_ecs"}
    assert resource_after(given) == {"cloud.namespace": "ecs", "aws_service": "aws_ecs"}


TRANSLATED = {
    "cloud.account.id": "AccountId",
    "cloud.availability_zone": "AvailabilityZone",
    "cloud.platform": "aws_service",
    "cloud.region": "Region",
    "host.id": "InstanceId",
    "host.name": "host",
    "host.type": "InstanceType",
    "k8s.cluster.name": "Cluster",
    "k8s.container.name": "container",
    "k8s.daemonset.name": "daemonset",
    "k8s.deployment.name": "deployment",
    "k8s.namespace.name": "namespace",
    "k8s.node.name": "node",
    "k8s.service.name": "service",
    "k8s.pod.hostname": "host",
    "k8s.pod.name": "pod",
    "k8s.pod.uid": "pod_id",
    "k8s.replicaset.name": "replicaset",
    "k8s.statefulset.name": "statefulset",
    "service.name": "service",
    "log.file.path_resolved": "_sourceName",
}


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.METRICS])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *(pytest.param({old: "v", "other": 1}, {new: "v", "other": 1}, id=old) for old, new in TRANSLATED.items()),
        pytest.param({"k8s.pod.name": "p", "pod": "q"}, {"k8s.pod.name": "p", "pod": "q"}, id="the-new-name-is-there"),
        pytest.param({"pod": "q", "k8s.pod.name": "p"}, {"k8s.pod.name": "p", "pod": "q"}, id="the-new-name-is-there-before"),
        pytest.param({"host.name": "a", "k8s.pod.hostname": "b"}, {"host": "a"}, id="two-become-one-the-first-stays"),
        pytest.param({"k8s.pod.hostname": "b", "x": 1, "host.name": "a"}, {"host": "b", "x": 1}, id="first-in-the-resource-s-order"),
        pytest.param({"k8s.pod.uid": ["a", 1]}, {"pod_id": ["a", 1]}, id="whatever-the-value"),
    ],
)
def test_attributes_get_sumo_logics_names(signal: Signal, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resource_after(given, signal) == expected
    assert resource_after(given, signal, translate_attributes=False) == given


def test_attributes_of_traces_and_of_records_keep_their_names() -> None:
    assert resource_after({"k8s.pod.name": "p"}, Signal.TRACES) == {"k8s.pod.name": "p"}
    for signal in Signal:
        assert all(found == {"k8s.pod.name": "p"} for found in records_after({"k8s.pod.name": "p"}, signal))


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        pytest.param({}, "cpu_usage_System", "CPU_Sys", id="telegraf"),
        pytest.param({}, "netstat_tcp_close", "TCP_Close", id="telegraf-one-name-the-start-of-another"),
        pytest.param({}, "cpu_usage_idle_more", "cpu_usage_idle_more", id="whole-names-alone"),
        pytest.param({}, "container.cpu.percent", "container.cpu.percent", id="docker-off-by-default"),
        pytest.param({"translate_telegraf_attributes": False}, "cpu_usage_idle", "cpu_usage_idle", id="telegraf-off"),
        pytest.param({"translate_docker_metrics": True}, "container.cpu.percent", "cpu_percentage", id="docker"),
        pytest.param({"translate_docker_metrics": True}, "container.memory.usage.max", "max_usage", id="docker-memory"),
        pytest.param({"translate_docker_metrics": True}, "container.memory.total_rss", "stats.total_rss", id="docker-memory-stats"),
        pytest.param(
            {"translate_docker_metrics": True},
            "container.cpu.throttling_data.throttled_time",
            "throttling_data.throttled_time",
            id="docker-throttling",
        ),
        pytest.param(
            {"translate_docker_metrics": True}, "container.blockio.io_queued_recursive", "io_queue_recursive", id="docker-irregular"
        ),
        pytest.param(
            {"translate_docker_metrics": True}, "container.blockio.sectors_recursive", "sectors_recursive", id="docker-block-devices"
        ),
        pytest.param({"translate_docker_metrics": True}, "system_load15", "CPU_LoadAvg_15min", id="both"),
    ],
)
def test_metrics_get_sumo_logics_names(settings: dict[str, Any], name: str, expected: str) -> None:
    result = process(a_batch(Signal.METRICS, {"r": name}, {"k": name}, name), **settings).message
    assert [metric.name for metric in result.resource_metrics[0].scope_metrics[0].metrics] == [expected] * len(KINDS)
    assert plain(result.resource_metrics[0].resource.attributes) == {"r": name}


def test_metrics_without_such_names_are_not_parsed() -> None:
    given = a_batch(Signal.METRICS, {"k": "v"}, name="container_cpu_usage_seconds_total")
    assert process(given) is given


def test_attributes_of_docker_resources_are_renamed_for_metrics_alone_and_after_nesting() -> None:
    given = {"container.id": "1", "container.image.name": "2", "container.name": "3"}
    renamed = {"container.FullID": "1", "container.ImageName": "2", "container.Name": "3"}
    assert resource_after(given, Signal.METRICS, translate_docker_metrics=True) == renamed
    assert resource_after(given, Signal.METRICS) == resource_after(given, Signal.LOGS, translate_docker_metrics=True) == given
    nested = {"container": {"id": "1", "image": {"name": "2"}, "name": "3"}}
    assert resource_after(given, Signal.METRICS, translate_docker_metrics=True, nest_attributes={"enabled": True}) == nested


KUBERNETES = {
    "kubernetes.container_name": "xyz",
    "kubernetes.host.name": "the host",
    "kubernetes.host.address": "127.0.0.1",
    "another_attr": "42",
}
DEEP = ".".join("a" * MAX_DEPTH)
NESTED = [
    pytest.param({}, {"k.a": 1, "k.b.c": 2}, {"k": {"a": 1, "b": {"c": 2}}}, id="example"),
    pytest.param(
        {},
        KUBERNETES,
        {"kubernetes": {"container_name": "xyz", "host": {"name": "the host", "address": "127.0.0.1"}}, "another_attr": "42"},
        id="deeper",
    ),
    pytest.param({"separator": "_"}, {"a_b": 1, "a.b": 2}, {"a": {"b": 1}, "a.b": 2}, id="another-separator"),
    pytest.param({"separator": "::"}, {"a::b": 1, "a:b": 2}, {"a": {"b": 1}, "a:b": 2}, id="a-longer-separator"),
    pytest.param({}, {"a.": 1, ".b": 2}, {"a": {"": 1}, "": {"b": 2}}, id="empty-parts"),
    pytest.param({}, {"a": {"b": {"c": "d"}}, "a.b.e": "f"}, {"a": {"b": {"c": "d", "e": "f"}}}, id="into-a-map-that-is-there"),
    pytest.param({}, {"a.b": {"c": 1}, "a": {"b": {"e": 2}}}, {"a": {"b": {"c": 1, "e": 2}}}, id="maps-merge"),
    pytest.param({}, {"s.l": True, "s": False}, {"s": {"l": True, "": False}}, id="a-value-where-a-map-is"),
    pytest.param({}, {"s": False, "s.l": True}, {"s": {"": False, "l": True}}, id="a-map-where-a-value-is"),
    pytest.param({}, {"s": 1, "s.l": [1, None, b"x", 1.5]}, {"s": {"": 1, "l": [1, None, b"x", 1.5]}}, id="whatever-the-value"),
    pytest.param(
        {"include": ["kubernetes.container", "kubernetes.host.name"]},
        KUBERNETES,
        {
            "kubernetes": {"container_name": "xyz", "host": {"name": "the host"}},
            "kubernetes.host.address": "127.0.0.1",
            "another_attr": "42",
        },
        id="include",
    ),
    pytest.param(
        {"exclude": ["kubernetes.container", "kubernetes.host.a"]},
        KUBERNETES,
        {
            "kubernetes.container_name": "xyz",
            "kubernetes": {"host": {"name": "the host"}},
            "kubernetes.host.address": "127.0.0.1",
            "another_attr": "42",
        },
        id="exclude",
    ),
    pytest.param(
        {"include": ["kubernetes.host."], "exclude": ["kubernetes.host.a"]},
        KUBERNETES,
        {
            "kubernetes.container_name": "xyz",
            "kubernetes": {"host": {"name": "the host"}},
            "kubernetes.host.address": "127.0.0.1",
            "another_attr": "42",
        },
        id="exclude-goes-before-include",
    ),
    pytest.param({"exclude": ["a"]}, {"b.a": 1, "b": {"c": 2}, "a.b": 3}, {"b": {"a": 1, "c": 2}, "a.b": 3}, id="prefixes-of-keys"),
    pytest.param(
        {"squash_single_values": True},
        {"k8s.pods.a": "A", "k8s.pods.b": "B"},
        {"k8s.pods": {"a": "A", "b": "B"}},
        id="squash",
    ),
    pytest.param(
        {"squash_single_values": True},
        {"k8s.pods.a.b.c": "A", "k8s.pods.b": "B", "sumo.logic.schema": "processor"},
        {"k8s.pods": {"a.b.c": "A", "b": "B"}, "sumo.logic.schema": "processor"},
        id="squash-inside-maps",
    ),
    pytest.param({"squash_single_values": True}, {"a.b": 1}, {"a.b": 1}, id="squash-of-a-single-attribute-keeps-its-value"),
    pytest.param({"squash_single_values": True, "separator": "_"}, {"a": {"b": {}}}, {"a_b": {}}, id="squash-joins-with-the-separator"),
    pytest.param(
        {"squash_single_values": True, "exclude": ["a.b"]},
        {"a": {"b": 1}, "a.b": 2},
        {"a": {"b": 1}, "a.b": 2},
        id="squash-replaces-nothing",
    ),
    pytest.param({}, {DEEP + ".b": 1, "a.b": 2}, {DEEP + ".b": 1, "a": {"b": 2}}, id="what-would-be-too-deep-stays"),
    pytest.param({"enabled": False}, {"a.b": 1}, {"a.b": 1}, id="off"),
]


@pytest.mark.parametrize("signal", list(Signal))
@pytest.mark.parametrize(("settings", "given", "expected"), NESTED)
def test_nesting(signal: Signal, settings: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]) -> None:
    both = OFF | {"nest_attributes": {"enabled": True} | settings}
    assert resource_after(given, signal, **both) == expected
    assert all(found == expected for found in records_after(given, signal, **both))


def test_what_nests_deepest_can_still_be_read() -> None:
    settings = OFF | {"nest_attributes": {"enabled": True}, "aggregate_attributes": [{"attribute": "g", "prefixes": ["a", "g"]}] * 40}
    found: Any = records_after({DEEP: 1}, Signal.LOGS, **settings)[0]
    depth = 0
    while isinstance(found, dict):
        ((_, found),) = found.items()
        depth += 1
    assert found == 1 and depth <= MAX_DEPTH + 2


def test_a_key_of_a_megabyte_of_separators_is_left_alone() -> None:
    key = "." * (1 << 20)
    assert records_after({key: 1}, Signal.LOGS, nest_attributes={"enabled": True}) == [{key: 1}]


AGGREGATED = [
    pytest.param([("pods", "pod_")], {"pod_a": "x", "pod_b": "y", "c": 1}, {"pods": {"a": "x", "b": "y"}, "c": 1}, id="example"),
    pytest.param([("pods", "pod_")], {"c": 1}, {"c": 1}, id="nothing-to-gather-adds-nothing"),
    pytest.param([("a", "b_", "c_")], {"b_1": 1, "c_2": 2, "c_1": 3}, {"a": {"1": 3, "2": 2}}, id="several-prefixes-the-last-key-stays"),
    pytest.param([("a", "b_"), ("c", "a")], {"b_1": 1}, {"c": {"": {"1": 1}}}, id="later-ones-see-what-earlier-ones-did"),
    pytest.param([("a", "b_")], {"a": {"x": 1}, "b_y": 2}, {"a": {"x": 1, "y": 2}}, id="into-a-map-that-is-there"),
    pytest.param([("a", "b_")], {"a": "plain", "b_y": 2}, {"a": {"": "plain", "y": 2}}, id="a-plain-value-is-kept"),
    pytest.param([("a",)], {"b_y": 2}, {"b_y": 2}, id="no-prefix"),
]


@pytest.mark.parametrize("signal", list(Signal))
@pytest.mark.parametrize(("aggregations", "given", "expected"), AGGREGATED)
def test_aggregation(signal: Signal, aggregations: list[tuple[str, ...]], given: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = OFF | {"aggregate_attributes": [{"attribute": name, "prefixes": prefixes} for name, *prefixes in aggregations]}
    assert resource_after(given, signal, **settings) == expected
    assert all(found == expected for found in records_after(given, signal, **settings))


def test_steps_are_taken_in_order_translation_nesting_aggregation_fields() -> None:
    settings: dict[str, Any] = {
        "nest_attributes": {"enabled": True},
        "aggregate_attributes": [{"attribute": "pods", "prefixes": ["pod"]}],
        "field_attributes": {"severity_text": {"enabled": True, "name": "pod.level"}},
    }
    given = {"k8s.pod.name": "p", "k8s.pod.uid": "u", "k8s.x.y": 1, "k8s.x.z": 2}
    assert resource_after(given, **settings) == {"pods": {"": "p", "_id": "u"}, "k8s": {"x": {"y": 1, "z": 2}}}
    assert records_after({"pod.a": 1}, Signal.LOGS, **settings) == [{"pods": {"": {"a": 1}}, "pod.level": ""}]


ALL_FIELDS = {name: {"enabled": True} for name in ("severity_number", "severity_text", "span_id", "trace_id")}
FIELDS = [
    pytest.param({}, {"severity_number": 9, "severity_text": "info"}, {}, {}, id="off"),
    pytest.param(
        ALL_FIELDS,
        {"severity_number": 14, "severity_text": "warn", "span_id": b"\1" * 8, "trace_id": b"\xab" * 16},
        {"k": 1},
        {"k": 1, "loglevel": "WARN2", "severitytext": "warn", "spanid": "01" * 8, "traceid": "ab" * 16},
        id="all",
    ),
    pytest.param(ALL_FIELDS, {"span_id": bytes(8)}, {}, {"severitytext": "", "spanid": "", "traceid": ""}, id="unset-fields"),
    pytest.param({"severity_number": {"enabled": True}}, {"severity_number": 99}, {}, {}, id="a-severity-that-does-not-exist"),
    pytest.param({"severity_number": {"enabled": True, "name": "l"}}, {"severity_number": 24}, {}, {"l": "FATAL4"}, id="another-name"),
    pytest.param({"severity_text": {"enabled": True, "name": "l"}}, {"severity_text": "x"}, {"l": 1}, {"l": 1}, id="what-is-there-stays"),
]


@pytest.mark.parametrize(("fields", "record", "given", "expected"), FIELDS)
def test_field_attributes(fields: dict[str, Any], record: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]) -> None:
    request = ExportLogsServiceRequest()
    fill(request.resource_logs.add().scope_logs.add().log_records.add(**record).attributes, given)
    result = process(batch(Signal.LOGS, request), field_attributes=fields).message
    assert plain(result.resource_logs[0].scope_logs[0].log_records[0].attributes) == expected


def test_a_resource_that_nothing_applies_to_leaves_the_batch_as_it_is() -> None:
    given = a_batch(Signal.LOGS, {"pod": "web-0"}, {"k8s.pod.name": "web-0"})
    assert process(given, add_cloud_namespace=False) is given


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"nest_attributes": {"enabled": True, "separator": ""}}, id="empty-separator"),
        pytest.param({"aggregate_attributes": [{"prefixes": ["a"]}]}, id="aggregation-without-attribute"),
        pytest.param({"field_attributes": {"level": {"enabled": True}}}, id="unknown-field"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SumologicProcessorSettings.model_validate(wrong)


def test_it_is_found_under_its_older_name_too() -> None:
    assert components.find(Kind.PROCESSOR, "sumologic_schema") is SumologicProcessor
