"""OpenCensus' messages (opencensus-proto v0.4.1) as protobuf classes, and what to send of them."""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

NANO = 1_700_000_000_000_000_000

# Message: "number name type", with * behind the type for repeated, and ? for a member of the message's oneof. A map is its entries.
_SCHEMA = """
Timestamp: 1 seconds int64, 2 nanos int32
Pair: 1 key string, 2 value string
Bool: 1 value bool
UInt32: 1 value uint32
Int64: 1 value int64
Double: 1 value double
Text: 1 value string, 2 truncated_byte_count int32
Node: 1 identifier ProcessIdentifier, 2 library_info LibraryInfo, 3 service_info ServiceInfo, 4 attributes Pair*
ProcessIdentifier: 1 host_name string, 2 pid uint32, 3 start_timestamp Timestamp
LibraryInfo: 1 language int32, 2 exporter_version string, 3 core_library_version string
ServiceInfo: 1 name string
Resource: 1 type string, 2 labels Pair*
Traces: 1 node Node, 2 spans Span*, 3 resource Resource
Span: 1 trace_id bytes, 2 span_id bytes, 3 parent_span_id bytes, 4 name Text, 5 start_time Timestamp, 6 end_time Timestamp, \
7 attributes Attributes, 8 stack_trace StackTrace, 9 time_events TimeEvents, 10 links Links, 11 status Status, \
12 same_process_as_parent_span Bool, 13 child_span_count UInt32, 14 kind int32, 15 tracestate Tracestate, 16 resource Resource
Tracestate: 1 entries Pair*
Attributes: 1 attribute_map Attribute*, 2 dropped_attributes_count int32
Attribute: 1 key string, 2 value Value
Value: 1 string_value Text?, 2 int_value int64?, 3 bool_value bool?, 4 double_value double?
StackTrace: 1 stack_frames Frames, 2 stack_trace_hash_id uint64
Frames: 1 frame Frame*, 2 dropped_frames_count int32
Frame: 1 function_name Text, 4 line_number int64
TimeEvents: 1 time_event TimeEvent*, 2 dropped_annotations_count int32, 3 dropped_message_events_count int32
TimeEvent: 1 time Timestamp, 2 annotation Annotation?, 3 message_event MessageEvent?
Annotation: 1 description Text, 2 attributes Attributes
MessageEvent: 1 type int32, 2 id uint64, 3 uncompressed_size uint64, 4 compressed_size uint64
Links: 1 link Link*, 2 dropped_links_count int32
Link: 1 trace_id bytes, 2 span_id bytes, 3 type int32, 4 attributes Attributes, 5 tracestate Tracestate
Status: 1 code int32, 2 message string
Metrics: 1 node Node, 2 metrics Metric*, 3 resource Resource
Metric: 1 metric_descriptor Descriptor, 2 timeseries TimeSeries*, 3 resource Resource
Descriptor: 1 name string, 2 description string, 3 unit string, 4 type int32, 5 label_keys LabelKey*
LabelKey: 1 key string, 2 description string
TimeSeries: 1 start_timestamp Timestamp, 2 label_values LabelValue*, 3 points Point*
LabelValue: 1 value string, 2 has_value bool
Point: 1 timestamp Timestamp, 2 int64_value int64?, 3 double_value double?, 4 distribution_value Distribution?, 5 summary_value Summary?
Distribution: 1 count int64, 2 sum double, 3 sum_of_squared_deviation double, 4 bucket_options BucketOptions, 5 buckets Bucket*
BucketOptions: 1 explicit Explicit
Explicit: 1 bounds double*
Bucket: 1 count int64, 2 exemplar Exemplar
Exemplar: 1 value double, 2 timestamp Timestamp, 3 attachments Pair*
Summary: 1 count Int64, 2 sum Double, 3 snapshot Snapshot
Snapshot: 1 count Int64, 2 sum Double, 3 percentile_values AtPercentile*
AtPercentile: 1 percentile double, 2 value double
"""


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="opencensus_for_tests.proto", package="oc", syntax="proto3")
    for line in _SCHEMA.strip().splitlines():
        name, _, fields = line.partition(": ")
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            number, field_name, kind = field.split()
            added = message.field.add(name=field_name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
            if kind.endswith("*"):
                added.label = FieldDescriptorProto.LABEL_REPEATED
            elif kind.endswith("?"):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="kind")
                added.oneof_index = 0
            kind = kind.rstrip("*?")
            if kind[0].isupper():
                added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".oc.{kind}"
            else:
                added.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def message(name: str) -> Any:
    """The class of this message."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"oc.{name}"))


Traces, Metrics, Span, Node, Resource, Metric = map(message, ("Traces", "Metrics", "Span", "Node", "Resource", "Metric"))


def text(value: str) -> dict[str, str]:
    return {"value": value}


def timestamp(time_unix_nano: int) -> dict[str, int]:
    return {"seconds": time_unix_nano // 10**9, "nanos": time_unix_nano % 10**9}


def attributes(values: dict[str, Any], dropped: int = 0) -> dict[str, Any]:
    """The kind of value follows the Python type."""
    found = []
    for key, value in values.items():
        match value:
            case bool():
                one: dict[str, Any] = {"bool_value": value}
            case int():
                one = {"int_value": value}
            case float():
                one = {"double_value": value}
            case str():
                one = {"string_value": text(value)}
            case None:
                one = {}
        found.append({"key": key, "value": one})
    return {"attribute_map": found, "dropped_attributes_count": dropped}


def pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


NODE = {
    "identifier": {"host_name": "h1", "pid": 42, "start_timestamp": timestamp(NANO + 120_000_000)},
    "library_info": {"language": 8, "exporter_version": "0.7.1", "core_library_version": "0.11"},
    "service_info": {"name": "shop"},
    "attributes": pairs({"team": "a", "cloud.zone": "of-the-node"}),
}
RESOURCE = {"type": "k8s", "labels": pairs({"k8s.pod.name": "web-0", "cloud.zone": "z1", "team": "of-the-resource"})}


def span(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A plain span of 5 ms."""
    return {
        "trace_id": number.to_bytes(16, "big"),
        "span_id": (number + 1).to_bytes(8, "big"),
        "name": text(f"span {number}"),
        "start_time": timestamp(NANO),
        "end_time": timestamp(NANO + 5_000_000),
        "kind": 1,
        **fields,
    }


FULL_SPAN = span(
    7,
    parent_span_id=b"\1" * 8,
    kind=2,
    attributes=attributes({"s": "é", "i": -5, "b": True, "f": 1.5, "none": None, "http.status_code": 500}, dropped=3),
    stack_trace={"stack_frames": {"frame": [{"function_name": text("main"), "line_number": 3}]}, "stack_trace_hash_id": 9},
    time_events={
        "time_event": [
            {"time": timestamp(NANO + 1), "annotation": {"description": text("note"), "attributes": attributes({"a": 1}, dropped=1)}},
            {"time": timestamp(NANO + 2), "message_event": {"type": 1, "id": 3, "uncompressed_size": 10, "compressed_size": 5}},
            {"time": timestamp(NANO + 3), "message_event": {"type": 2, "id": 2**63}},
            {"time": timestamp(NANO + 4)},
        ],
        "dropped_annotations_count": 2,
        "dropped_message_events_count": 3,
    },
    links={
        "link": [
            {
                "trace_id": b"\2" * 16,
                "span_id": b"\3" * 8,
                "type": 2,
                "attributes": attributes({"l": "m"}, dropped=4),
                "tracestate": {"entries": pairs({"k": "v"})},
            }
        ],
        "dropped_links_count": 6,
    },
    status={"code": 5, "message": "not found"},
    same_process_as_parent_span={"value": True},
    child_span_count={"value": 2},
    tracestate={"entries": pairs({"a": "1", "b": "2"})},
)

_VALUES: list[tuple[int, dict[str, Any]]] = [
    (1, {"int64_value": -3}),
    (2, {"double_value": 2.5}),
    (4, {"int64_value": 7}),
    (5, {"double_value": 0.5}),
    (
        6,
        {
            "distribution_value": {
                "count": 6,
                "sum": 12.5,
                "sum_of_squared_deviation": 3.0,
                "bucket_options": {"explicit": {"bounds": [1.0, 10.0]}},
                "buckets": [
                    {"count": 1},
                    {
                        "count": 2,
                        "exemplar": {"value": 3.5, "timestamp": timestamp(NANO + 9), "attachments": pairs({"trace": "t"})},
                    },
                    {"count": 3},
                ],
            }
        },
    ),
    (
        7,
        {
            "summary_value": {
                "count": {"value": 4},
                "sum": {"value": 8.0},
                "snapshot": {"percentile_values": [{"percentile": 50.0, "value": 1.0}, {"percentile": 99.0, "value": 3.0}]},
            }
        },
    ),
]

METRICS: list[dict[str, Any]] = [
    {
        "metric_descriptor": {
            "name": f"m{kind}",
            "description": "d",
            "unit": "By",
            "type": kind,
            "label_keys": [{"key": "a"}, {"key": "b"}],
        },
        "timeseries": [
            {
                "start_timestamp": timestamp(NANO) if kind > 3 else None,
                "label_values": [{"value": "x", "has_value": True}, {"value": "y", "has_value": number > 0}],
                "points": [{"timestamp": timestamp(NANO + number), **value}],
            }
            for number in range(2)
        ],
    }
    for kind, value in _VALUES
]


def traces(*spans: dict[str, Any], **fields: Any) -> bytes:
    """An encoded ExportTraceServiceRequest."""
    return bytes(Traces(spans=spans, **fields).SerializeToString())


def metrics(*given: dict[str, Any], **fields: Any) -> bytes:
    """An encoded ExportMetricsServiceRequest."""
    return bytes(Metrics(metrics=given, **fields).SerializeToString())
