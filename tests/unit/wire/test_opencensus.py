"""OpenCensus' requests as OTLP's: the kernel of spans, compiled and uncompiled, beside a plain twin; identities and metrics by tables."""

from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from support.opencensus import (
    FULL_SPAN,
    METRICS,
    NANO,
    NODE,
    RESOURCE,
    Span,
    Traces,
    attributes,
    metrics,
    pairs,
    span,
    text,
    timestamp,
    traces,
)

from lockgate.attributes.values import decode
from lockgate.batch import Signal, count_records
from lockgate.wire import opencensus
from lockgate.wire.protobuf import DecodeError, delimited, varint

from .conftest import both_forms

FORMS = [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in both_forms("opencensus_spans")]
EACH_FORM = pytest.mark.parametrize("kernel", FORMS)


def as_dict(message: Message) -> Any:
    return json_format.MessageToDict(message)


def resources(request: Any) -> list[dict[str, Any]]:
    """The attributes of each resource."""
    entries = request.resource_spans if isinstance(request, ExportTraceServiceRequest) else request.resource_metrics
    return [{each.key: decode(each.value) for each in entry.resource.attributes} for entry in entries]


def read(payload: bytes) -> Any:
    count_records(Signal.TRACES, payload)  # raises where it is none
    return ExportTraceServiceRequest.FromString(payload)


def read_metrics(payload: bytes) -> Any:
    count_records(Signal.METRICS, payload)
    return ExportMetricsServiceRequest.FromString(payload)


# The plain twin of the kernel.


def twin(given: Any) -> Any:
    """One span by upb, one line a field; as the kernel, but that of a field which comes twice upb merges the two."""
    made: Any = ScopeSpans().spans.add()
    if given.trace_id:
        made.trace_id = given.trace_id[:16].ljust(16, b"\0")
    if given.span_id:
        made.span_id = given.span_id[:8].ljust(8, b"\0")
    if given.parent_span_id:
        made.parent_span_id = given.parent_span_id[:8].ljust(8, b"\0")
    made.name = given.name.value
    made.trace_state = ",".join(f"{entry.key}={entry.value}" for entry in given.tracestate.entries)
    made.start_time_unix_nano, made.end_time_unix_nano = twin_time(given.start_time), twin_time(given.end_time)
    special = {entry.key: entry.value for entry in given.attributes.attribute_map}
    hidden = set()
    made.kind = {1: 2, 2: 3}.get(given.kind, 0)
    said = {"internal": 1, "producer": 4, "consumer": 5}.get(special["span.kind"].string_value.value) if "span.kind" in special else None
    if given.kind == 0 and said:
        made.kind = said
        hidden.add("span.kind")
    if given.HasField("status"):
        made.status.message, made.status.code = given.status.message, 2 if given.status.code else 0
        if "otel.status_code" in special:
            made.status.code = (special["otel.status_code"].int_value + 2**31) % 2**32 - 2**31
            hidden.add("otel.status_code")
    made.dropped_attributes_count = given.attributes.dropped_attributes_count % 2**32
    twin_attributes([each for each in given.attributes.attribute_map if each.key not in hidden], made.attributes)
    if given.HasField("same_process_as_parent_span"):
        made.attributes.add(key="opencensus.same_process_as_parent_span").value.bool_value = given.same_process_as_parent_span.value
    events = given.time_events
    made.dropped_events_count = (events.dropped_annotations_count + events.dropped_message_events_count) % 2**32
    for each in events.time_event:
        event = made.events.add(time_unix_nano=twin_time(each.time))
        match each.WhichOneof("kind"):
            case "annotation":
                event.name = each.annotation.description.value
                twin_attributes(each.annotation.attributes.attribute_map, event.attributes)
                event.dropped_attributes_count = each.annotation.attributes.dropped_attributes_count % 2**32
            case "message_event":
                event.name = "message"
                kind = {1: "SENT", 2: "RECEIVED"}.get(each.message_event.type, "TYPE_UNSPECIFIED")
                event.attributes.add(key="message.type").value.string_value = kind
                for key, number in (
                    ("messaging.message_id", each.message_event.id),
                    ("messaging.message_payload_size_bytes", each.message_event.uncompressed_size),
                    ("messaging.message_payload_compressed_size_bytes", each.message_event.compressed_size),
                ):
                    event.attributes.add(key=key).value.int_value = (number + 2**63) % 2**64 - 2**63
            case _:
                event.name = "An unknown OpenCensus TimeEvent type was detected when translating"
    made.dropped_links_count = given.links.dropped_links_count % 2**32
    for each in given.links.link:
        link = made.links.add(trace_state=",".join(f"{entry.key}={entry.value}" for entry in each.tracestate.entries))
        link.trace_id = each.trace_id[:16].ljust(16, b"\0") if each.trace_id else b""
        link.span_id = each.span_id[:8].ljust(8, b"\0") if each.span_id else b""
        twin_attributes(each.attributes.attribute_map, link.attributes)
        link.dropped_attributes_count = each.attributes.dropped_attributes_count % 2**32
    return made


def twin_time(given: Any) -> int:
    return given.seconds * 10**9 + (given.nanos if 0 <= given.nanos < 10**9 else 0) if 0 <= given.seconds <= 18_446_744_072 else 0


def twin_attributes(given: Any, made: Any) -> None:
    for entry in given:
        value, kind = made.add(key=entry.key).value, entry.value.WhichOneof("kind")
        match kind:
            case "string_value":
                value.string_value = entry.value.string_value.value
            case None:
                value.string_value = "<Unknown OpenCensus attribute value type>"
            case _:
                setattr(value, kind, getattr(entry.value, kind))


int32, int64, uint64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
texts = st.text(max_size=12)
times = st.fixed_dictionaries({}, optional={"seconds": st.sampled_from([0, 5, -1, 1_700_000_000, 2**62]), "nanos": int32})
keys = st.sampled_from(["span.kind", "otel.status_code", "span.kinds", "", "a", "é"])
values = st.one_of(
    st.builds(
        lambda value: {"string_value": text(value)}, st.one_of(texts, st.sampled_from(["internal", "producer", "consumer", "server"]))
    ),
    st.builds(lambda value: {"int_value": value}, int64),
    st.builds(lambda value: {"bool_value": value}, st.booleans()),
    st.builds(lambda value: {"double_value": value}, st.floats()),
    st.just({}),
)
several = st.fixed_dictionaries(
    {},
    optional={
        "attribute_map": st.dictionaries(keys, values, max_size=4).map(lambda d: [{"key": k, "value": v} for k, v in d.items()]),
        "dropped_attributes_count": int32,
    },
)
states = st.fixed_dictionaries({"entries": st.lists(st.builds(lambda k, v: {"key": k, "value": v}, texts, texts), max_size=3)})
events = st.one_of(
    st.fixed_dictionaries(
        {"annotation": st.fixed_dictionaries({}, optional={"description": st.builds(text, texts), "attributes": several})},
        optional={"time": times},
    ),
    st.fixed_dictionaries(
        {
            "message_event": st.fixed_dictionaries(
                {}, optional={"type": st.integers(-1, 3), "id": uint64, "uncompressed_size": uint64, "compressed_size": uint64}
            )
        },
        optional={"time": times},
    ),
    st.fixed_dictionaries({}, optional={"time": times}),
)
links = st.fixed_dictionaries(
    {}, optional={"trace_id": st.binary(max_size=20), "span_id": st.binary(max_size=10), "attributes": several, "tracestate": states}
)
spans = st.fixed_dictionaries(
    {},
    optional={
        "trace_id": st.binary(max_size=20),
        "span_id": st.binary(max_size=10),
        "parent_span_id": st.binary(max_size=10),
        "name": st.builds(text, st.text(max_size=200)),
        "kind": st.integers(-1, 3),
        "start_time": times,
        "end_time": times,
        "attributes": several,
        "stack_trace": st.just({"stack_trace_hash_id": 1}),
        "time_events": st.fixed_dictionaries(
            {"time_event": st.lists(events, max_size=3)},
            optional={"dropped_annotations_count": int32, "dropped_message_events_count": int32},
        ),
        "links": st.fixed_dictionaries({"link": st.lists(links, max_size=2)}, optional={"dropped_links_count": int32}),
        "status": st.fixed_dictionaries({}, optional={"code": int32, "message": texts}),
        "same_process_as_parent_span": st.fixed_dictionaries({}, optional={"value": st.booleans()}),
        "child_span_count": st.just({"value": 1}),
        "tracestate": states,
    },
)


@EACH_FORM
@given(given_spans=st.lists(spans, max_size=3))
def test_spans_are_those_of_the_plain_twin(kernel: ModuleType, given_spans: list[dict[str, Any]]) -> None:
    expected = ScopeSpans(spans=[twin(Span(**each)) for each in given_spans])
    found = kernel.translate(traces(*given_spans), 1 << 20)
    assert (found.apart, found.node, found.resource) == (0, None, None)
    got = ScopeSpans.FromString(found.encoded)
    assert got.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)  # which says equal of NaN


@EACH_FORM
def test_a_spans_fields_may_stand_in_any_order(kernel: ModuleType) -> None:
    encoded = Span(**FULL_SPAN).SerializeToString()
    fields = []
    at = 0
    while at < len(encoded):
        start = at
        tag, at = opencensus._varint(encoded, at)
        size, at = opencensus._varint(encoded, at)
        at += size if tag & 7 == 2 else 0
        fields.append(encoded[start:at])
    expected = ScopeSpans.FromString(kernel.translate(delimited(2, encoded), 1 << 20).encoded)
    turned = ScopeSpans.FromString(kernel.translate(delimited(2, b"".join(reversed(fields))), 1 << 20).encoded)
    assert turned == expected and len(fields) > 12


@EACH_FORM
def test_spans_that_take_more_room_than_was_guessed_are_whole_and_those_beyond_the_limit_are_refused(kernel: ModuleType) -> None:
    message = traces(*[span(time_events={"time_event": [{}] * 400})] * 5)
    whole = kernel.translate(message, 1 << 20).encoded
    assert len(whole) > 20 * len(message)
    assert len(ScopeSpans.FromString(whole).spans[4].events) == 400
    assert kernel.translate(message, len(whole) + 200).encoded == whole
    with pytest.raises(DecodeError, match="more than 9000 bytes"):
        kernel.translate(message, 9000)


MALFORMED = {
    "ends-in-a-tag": b"\x92",
    "ends-in-a-length": b"\x12\x80",
    "runs-past-the-end": b"\x12\x05\x0a",
    "an-inner-field-runs-past": b"\x12\x02\x0a\x05",
    "an-attribute-runs-past": delimited(2, delimited(7, delimited(1, b"\x0a\x09a"))),
    "field-number-zero": b"\x02\x00",
    "a-group": b"\x0b\x0c",
    "wire-type-seven": b"\x0f",
    "a-varint-of-eleven-bytes": b"\x12\x0c\x70" + b"\xff" * 10 + b"\x01",
}


@EACH_FORM
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_refused_with_its_place(kernel: ModuleType, name: str) -> None:
    with pytest.raises(DecodeError, match=r"not an OpenCensus request: .* at byte \d+ of \d+"):
        kernel.translate(MALFORMED[name], 1 << 20)


@pytest.mark.parametrize("name", [name for name in MALFORMED if not name.startswith("an-")])
def test_what_is_no_request_for_metrics_is_refused_as_well(name: str) -> None:
    with pytest.raises(DecodeError, match=r"not an OpenCensus request: .*at byte \d+ of \d+"):
        opencensus.Stream().metrics(b"\x0a\x00" + MALFORMED[name])


# Who sends.


def test_a_node_and_a_resource_become_the_resources_attributes() -> None:
    request = read(opencensus.Stream().traces(traces(span(), node=NODE, resource=RESOURCE)))
    assert resources(request) == [
        {
            "k8s.pod.name": "web-0",
            "cloud.availability_zone": "z1",
            "team": "a",
            "cloud.zone": "of-the-node",
            "service.name": "shop",
            "opencensus.starttime": "2023-11-14T22:13:20.12Z",
            "host.name": "h1",
            "process.pid": 42,
            "telemetry.sdk.version": "0.11",
            "opencensus.exporterversion": "0.7.1",
            "telemetry.sdk.language": "python",
            "opencensus.resourcetype": "k8s",
        }
    ]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param({}, {}, id="empty"),
        pytest.param({"identifier": {}, "library_info": {}, "service_info": {}}, {}, id="nothing-in-its-parts"),
        pytest.param({"library_info": {"language": 4}}, {"telemetry.sdk.language": "go"}, id="language"),
        pytest.param({"library_info": {"language": 77}}, {}, id="unknown-language"),
        pytest.param(
            {"identifier": {"start_timestamp": timestamp(NANO)}}, {"opencensus.starttime": "2023-11-14T22:13:20Z"}, id="whole-second"
        ),
        pytest.param(
            {"attributes": pairs({"service.name": "of-the-map"}), "service_info": {"name": "own"}},
            {"service.name": "own"},
            id="own-fields-win",
        ),
        pytest.param({"attributes": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}, {"a": "2"}, id="a-key-twice"),
    ],
)
def test_a_nodes_fields(node: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resources(read(opencensus.Stream().traces(traces(span(), node=node)))) == [expected]


def test_later_messages_inherit_what_was_said_last() -> None:
    stream = opencensus.Stream()
    said = [
        stream.traces(traces(span(), node={"service_info": {"name": "a"}})),
        stream.traces(traces(span(), resource={"type": "r1"})),
        stream.traces(traces(span())),
        stream.traces(traces(node={"service_info": {"name": "b"}})),
        stream.traces(traces(span())),
        stream.traces(traces(span(), resource={})),
    ]
    assert [resources(read(each)) for each in said] == [
        [{"service.name": "a"}],
        [{"service.name": "a", "opencensus.resourcetype": "r1"}],
        [{"service.name": "a", "opencensus.resourcetype": "r1"}],
        [],
        [{"service.name": "b", "opencensus.resourcetype": "r1"}],
        [{"service.name": "b"}],
    ]


def test_without_a_node_in_the_first_message_the_protocol_is_violated() -> None:
    with pytest.raises(DecodeError, match="first message must have a Node"):
        opencensus.Stream().traces(traces(span()))
    with pytest.raises(DecodeError, match="first message must have a Node"):
        opencensus.Stream().metrics(metrics(*METRICS))


def test_an_identity_that_a_stream_would_have_to_keep_is_bounded() -> None:
    big = {"attributes": pairs({"a": "x" * opencensus.MOST_IDENTITY})}
    with pytest.raises(DecodeError, match="more than 65536 bytes"):
        opencensus.Stream().traces(traces(span(), node=big))


def test_spans_with_a_resource_of_their_own_stand_under_it_and_under_the_node() -> None:
    own = {"type": "own", "labels": pairs({"a": "b"})}
    message = traces(span(1), span(2, resource=own), span(3), span(4, resource={}), span(5, resource=own), node={}, resource=RESOURCE)
    request = read(opencensus.Stream().traces(message))
    names = [[each.name for each in entry.scope_spans[0].spans] for entry in request.resource_spans]
    assert names == [["span 1", "span 3"], ["span 2", "span 5"], ["span 4"]]
    assert resources(request)[1:] == [{"a": "b", "opencensus.resourcetype": "own"}, {}]


def test_what_would_grow_beyond_all_bounds_is_refused() -> None:
    node = {"attributes": pairs({"a": "x" * 60_000})}
    with pytest.raises(DecodeError, match="would take more than"):
        opencensus.Stream().traces(traces(*(span(n, resource={"type": str(n)}) for n in range(100)), node=node))
    labels = [{"key": "k" * 1000} for _ in range(100)]
    points = {"label_values": [{"has_value": True}] * 100, "points": [{"int64_value": 1}] * 100}
    with pytest.raises(DecodeError, match="would take more than"):
        opencensus.Stream().metrics(metrics({"metric_descriptor": {"type": 1, "label_keys": labels}, "timeseries": [points]}, node={}))


def test_text_that_is_not_utf8_is_found_when_the_result_is_validated() -> None:
    payload = opencensus.Stream().traces(b"\x0a\x00" + delimited(2, delimited(4, delimited(1, b"\xff"))))
    with pytest.raises(DecodeError, match="UTF-8"):
        count_records(Signal.TRACES, payload)


# Metrics.


def number_points(field: str, values: list[Any], started: bool) -> list[dict[str, Any]]:
    points = []
    for number, value in enumerate(values):
        point = {"timeUnixNano": str(NANO + number), field: value}
        if started:
            point["startTimeUnixNano"] = str(NANO)
        labels = [("a", "x"), ("b", "y")][: number + 1]
        point["attributes"] = [{"key": key, "value": {"stringValue": label}} for key, label in labels]
        points.append(point)
    return points


def test_metrics_of_each_kind() -> None:
    stream = opencensus.Stream()
    request = read_metrics(stream.metrics(metrics(*METRICS, node={"service_info": {"name": "shop"}})))
    assert resources(request) == [{"service.name": "shop"}] and stream.lost == 0
    found = as_dict(request.resource_metrics[0].scope_metrics[0])["metrics"]
    head = {"description": "d", "unit": "By"}
    cumulative = {"aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE"}
    histogram = {
        "count": "6",
        "sum": 12.5,
        "bucketCounts": ["1", "2", "3"],
        "explicitBounds": [1.0, 10.0],
        "exemplars": [
            {
                "timeUnixNano": str(NANO + 9),
                "asDouble": 3.5,
                "filteredAttributes": [{"key": "trace", "value": {"stringValue": "t"}}],
            }
        ],
    }
    summary = {"count": "4", "sum": 8.0, "quantileValues": [{"quantile": 0.5, "value": 1.0}, {"quantile": 0.99, "value": 3.0}]}

    def points(value: dict[str, Any]) -> list[dict[str, Any]]:
        return [{key: item for key, item in point.items() if key != "x"} | value for point in number_points("x", [0, 0], True)]

    assert found == [
        {"name": "m1", **head, "gauge": {"dataPoints": number_points("asInt", ["-3", "-3"], False)}},
        {"name": "m2", **head, "gauge": {"dataPoints": number_points("asDouble", [2.5, 2.5], False)}},
        {"name": "m4", **head, "sum": {"dataPoints": number_points("asInt", ["7", "7"], True), **cumulative, "isMonotonic": True}},
        {"name": "m5", **head, "sum": {"dataPoints": number_points("asDouble", [0.5, 0.5], True), **cumulative, "isMonotonic": True}},
        {"name": "m6", **head, "histogram": {"dataPoints": points(histogram), **cumulative}},
        {"name": "m7", **head, "summary": {"dataPoints": points(summary)}},
    ]


def test_metrics_with_a_resource_of_their_own_stand_under_it() -> None:
    own = METRICS[0] | {"resource": {"type": "own"}}
    request = read_metrics(opencensus.Stream().metrics(metrics(METRICS[0], own, METRICS[1], node={}, resource=RESOURCE)))
    names = [[each.name for each in entry.scope_metrics[0].metrics] for entry in request.resource_metrics]
    assert names == [["m1", "m2"], ["m1"]]
    assert resources(request)[1] == {"opencensus.resourcetype": "own"}


POINTS = [{"points": [{"timestamp": timestamp(NANO), "int64_value": 1}] * 2}, {"points": [{"int64_value": 2}]}]


@pytest.mark.parametrize(
    ("metric", "points", "lost"),
    [
        pytest.param({"timeseries": POINTS}, 0, 3, id="no-descriptor"),
        pytest.param({"metric_descriptor": {"type": 0}, "timeseries": POINTS}, 0, 3, id="no-type"),
        pytest.param({"metric_descriptor": {"type": 3}, "timeseries": POINTS}, 0, 3, id="a-gauge-of-distributions"),
        pytest.param({"metric_descriptor": {"type": 6}, "timeseries": POINTS}, 0, 3, id="numbers-in-a-distribution"),
        pytest.param({"metric_descriptor": {"type": 7}, "timeseries": POINTS}, 0, 3, id="numbers-in-a-summary"),
        pytest.param({"metric_descriptor": {"type": 1}, "timeseries": [*POINTS, {"points": [{}]}]}, 3, 1, id="a-point-without-a-value"),
        pytest.param({"metric_descriptor": {"type": 2}, "timeseries": POINTS}, 3, 0, id="whole-numbers-in-a-gauge-of-doubles"),
        pytest.param({"metric_descriptor": {"type": 1}}, 0, 0, id="no-points"),
    ],
)
def test_points_that_have_no_form_in_otlp_are_counted(metric: dict[str, Any], points: int, lost: int) -> None:
    stream = opencensus.Stream()
    assert count_records(Signal.METRICS, stream.metrics(metrics(metric, node={}))) == points
    assert stream.lost == lost


def test_labels_without_a_value_and_without_a_key_are_left_out() -> None:
    labels = [{"value": "", "has_value": True}, {"value": "not set"}, {"value": "v", "has_value": True}, {"value": "w", "has_value": True}]
    metric = {
        "metric_descriptor": {"type": 1, "label_keys": [{"key": "empty"}, {"key": "unset"}, {"key": "set"}]},
        "timeseries": [{"label_values": labels, "points": [{"int64_value": 0}]}],
    }
    (point,) = (
        read_metrics(opencensus.Stream().metrics(metrics(metric, node={})))
        .resource_metrics[0]
        .scope_metrics[0]
        .metrics[0]
        .gauge.data_points
    )
    assert {each.key: decode(each.value) for each in point.attributes} == {"empty": "", "set": "v"}
    assert point.WhichOneof("value") == "as_int"


def test_bounds_that_are_not_packed_are_read_too() -> None:
    bounds = b"\x09" + bytes(7) + b"\x40" + b"\x09" + bytes(7) + b"\x41"
    point = delimited(4, delimited(4, delimited(1, bounds)))
    metric = delimited(1, b"\x20" + varint(6)) + delimited(2, delimited(3, point))
    request = read_metrics(opencensus.Stream().metrics(b"\x0a\x00" + delimited(2, metric)))
    assert len(request.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points[0].explicit_bounds) == 2
    half = delimited(4, delimited(4, delimited(1, delimited(1, bytes(5)))))
    with pytest.raises(DecodeError, match="no whole numbers of doubles"):
        opencensus.Stream().metrics(b"\x0a\x00" + delimited(2, delimited(1, b"\x20\x06") + delimited(2, delimited(3, half))))


def test_the_definitions_used_here_hold_what_a_whole_request_says() -> None:
    # Of the tests' own schema: what is written by name is read by name.
    request = Traces.FromString(traces(FULL_SPAN, node=NODE))
    assert request.spans[0].links.link[0].tracestate.entries[0].value == "v"
    assert request.node.library_info.exporter_version == "0.7.1"
    assert attributes({"a": 1})["attribute_map"][0]["value"] == {"int_value": 1}
