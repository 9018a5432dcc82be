"""Jaeger's messages, written by its own Python client's classes (Thrift) and by protobuf with the descriptors of its model.proto."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.duration_pb2 import DESCRIPTOR as DURATION
from jaeger_client.thrift_gen.agent import Agent
from jaeger_client.thrift_gen.jaeger.ttypes import Batch, Log, Process, Span, SpanRef, Tag
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TMessageType
from thrift.transport.TTransport import TMemoryBuffer

CHILD_OF, FOLLOWS_FROM = 0, 1
TRACE_LOW, TRACE_HIGH = 0x0123456789ABCDEF, 0x0FEDCBA987654321
START = 1_700_000_000_123_456
"""Microseconds."""

Value = str | bool | int | float | bytes


def tag(key: str, value: Value) -> Tag:
    match value:
        case bool():
            return Tag(key, 2, vBool=value)
        case str():
            return Tag(key, 0, vStr=value)
        case int():
            return Tag(key, 3, vLong=value)
        case float():
            return Tag(key, 1, vDouble=value)
        case bytes():
            return Tag(key, 4, vBinary=value)


def tags(**values: Value) -> list[Tag]:
    """Keys with `__` for a dot."""
    return [tag(key.replace("__", "."), value) for key, value in values.items()]


def span(name: str = "work", *given: Tag, **fields: Any) -> Span:
    """A span of 1.5 ms; its id is 7."""
    usual = {
        "traceIdLow": TRACE_LOW,
        "traceIdHigh": TRACE_HIGH,
        "spanId": 7,
        "parentSpanId": 0,
        "flags": 1,
        "startTime": START,
        "duration": 1500,
    }
    return Span(operationName=name, tags=list(given) or None, **{**usual, **fields})


def batch(*spans: Span, service: str = "shop", given: list[Tag] | None = None) -> Batch:
    return Batch(Process(service, given), list(spans))


class _Writing:
    """The client's classes write a tag's bytes as if they were text."""

    def writeString(self, value: str | bytes) -> None:
        self.writeBinary(value if isinstance(value, bytes) else value.encode())  # type: ignore[attr-defined]


class _Binary(_Writing, TBinaryProtocol): ...  # type: ignore[misc]


class _Compact(_Writing, TCompactProtocol): ...  # type: ignore[misc]


def posted(message: Batch) -> bytes:
    """As it is posted to /api/traces."""
    buffer = TMemoryBuffer()
    message.write(_Binary(buffer))
    return bytes(buffer.getvalue())


def datagram(message: Batch, compact: bool) -> bytes:
    """As it is sent to an agent."""
    buffer = TMemoryBuffer()
    protocol = (_Compact if compact else _Binary)(buffer)
    protocol.writeMessageBegin("emitBatch", TMessageType.ONEWAY, 1)
    Agent.emitBatch_args(message).write(protocol)
    protocol.writeMessageEnd()
    return bytes(buffer.getvalue())


def _model() -> Any:
    """jaeger-idl, proto/api_v2/model.proto and collector.proto, as far as they are sent."""
    message_fields = {
        "KeyValue": "string key, ValueType v_type, string v_str, bool v_bool, int64 v_int64, double v_float64, bytes v_binary",
        "Log": ".google.protobuf.Timestamp timestamp, KeyValue* fields",
        "SpanRef": "bytes trace_id, bytes span_id, SpanRefType ref_type",
        "Process": "string service_name, KeyValue* tags",
        "Span": (
            "bytes trace_id, bytes span_id, string operation_name, SpanRef* references, uint32 flags, "
            ".google.protobuf.Timestamp start_time, .google.protobuf.Duration duration, KeyValue* tags, Log* logs, "
            "Process process, string process_id, string* warnings"
        ),
        "Batch": "Span* spans, Process process",
        "PostSpansRequest": "Batch batch",
    }
    enums = {"ValueType": ["STRING", "BOOL", "INT64", "FLOAT64", "BINARY"], "SpanRefType": ["CHILD_OF", "FOLLOWS_FROM"]}
    file = descriptor_pb2.FileDescriptorProto(name="jaeger.proto", package="jaeger.api_v2", syntax="proto3")
    file.dependency[:] = ["google/protobuf/timestamp.proto", "google/protobuf/duration.proto"]
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in message_fields.items():
        message = file.message_type.add(name=name)
        for number, described in enumerate(fields.split(", "), 1):
            kind, field_name = described.split()
            field = message.field.add(name=field_name, number=number, label=kinds.LABEL_REPEATED if "*" in kind else kinds.LABEL_OPTIONAL)
            kind = kind.rstrip("*")
            if hasattr(kinds, f"TYPE_{kind.upper()}"):
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            else:
                field.type = kinds.TYPE_ENUM if kind in enums else kinds.TYPE_MESSAGE
                field.type_name = kind if kind.startswith(".") else f".jaeger.api_v2.{kind}"
    pool = descriptor_pool.DescriptorPool()
    for known in (timestamp_pb2.DESCRIPTOR, DURATION):
        pool.AddSerializedFile(known.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("jaeger.api_v2.PostSpansRequest"))


PostSpansRequest = _model()


def _fill(target: Any, given: list[Tag] | None) -> None:
    for each in given or ():
        target.add(
            key=each.key,
            v_type=(0, 3, 1, 2, 4)[each.vType] if each.vType < 5 else each.vType,
            v_str=each.vStr or "",
            v_bool=each.vBool or False,
            v_int64=each.vLong or 0,
            v_float64=each.vDouble or 0.0,
            v_binary=each.vBinary or b"",
        )


def _trace_id(high: int, low: int) -> bytes:
    return (high % 2**64).to_bytes(8, "big") + (low % 2**64).to_bytes(8, "big")


def post_spans(message: Batch) -> Any:
    """The same batch for gRPC. Protobuf's spans have no parent: it is a reference there."""
    request = PostSpansRequest()
    request.batch.process.service_name = message.process.serviceName
    _fill(request.batch.process.tags, message.process.tags)
    for each in message.spans:
        made = request.batch.spans.add(
            trace_id=_trace_id(each.traceIdHigh, each.traceIdLow),
            span_id=_trace_id(0, each.spanId)[8:],
            operation_name=each.operationName,
            flags=each.flags,
        )
        made.start_time.FromMicroseconds(each.startTime)
        made.duration.FromMicroseconds(each.duration)
        if each.parentSpanId:
            made.references.add(trace_id=made.trace_id, span_id=_trace_id(0, each.parentSpanId)[8:], ref_type=CHILD_OF)
        for reference in each.references or ():
            made.references.add(
                trace_id=_trace_id(reference.traceIdHigh, reference.traceIdLow),
                span_id=_trace_id(0, reference.spanId)[8:],
                ref_type=reference.refType,
            )
        _fill(made.tags, each.tags)
        for log in each.logs or ():
            entry = made.logs.add()
            entry.timestamp.FromMicroseconds(log.timestamp)
            _fill(entry.fields, log.fields)
    return request


def varied_batch() -> Batch:
    """A span for each thing that a translation decides."""
    same = {"traceIdLow": TRACE_LOW, "traceIdHigh": TRACE_HIGH}
    other = {"traceIdLow": 5, "traceIdHigh": 0}
    child, follows = SpanRef(CHILD_OF, **same, spanId=9), SpanRef(FOLLOWS_FROM, **same, spanId=11)
    statuses: list[list[Tag]] = [
        tags(error=True),
        tags(error=False),
        tags(error="true"),
        tags(error=True, otel__status_description="why", http__status_message="no"),
        tags(error=True, http__status_message="no"),
        tags(error=True, otel__status_code="OK"),
        tags(otel__status_code="OK"),
        tags(otel__status_code="error", otel__status_description="why"),
        tags(otel__status_code="else", otel__status_description="why"),
        tags(otel__status_code=1),
        tags(otel__status_description="alone"),
        *(
            tags(http__status_code=code, span__kind=kind)
            for code in (0, 99, 100, 200, 398, 399, 404, 503, -1, 2**40)
            for kind in ("client", "server")
        ),
        tags(http__status_code="500", http__status_message="oops"),
        tags(http__status_code="+404"),
        tags(http__status_code="4o4"),
        tags(http__status_code=""),
        tags(http__status_code="99999999999999999999"),
        tags(http__status_code=500.0),
        tags(http__status_code=200, http__status_message="fine"),
    ]
    return batch(
        span("plain"),
        span("kinds", *tags(text="x", yes=True, no=False, number=-5, big=2**63 - 1, real=-1.5, raw=b"\0\xff", empty="", none=b"")),
        *(span(f"kind {kind}", *tags(span__kind=kind)) for kind in ("client", "server", "producer", "consumer", "internal", "other", "")),
        span("kind of no text", tag("span.kind", 3)),
        *(span(f"status {number}", *given) for number, given in enumerate(statuses)),
        span("twice", tag("a", "1"), tag("b", 2), tag("a", 3)),
        span("unknown type", Tag("a", 9, vStr="x")),
        span("scope", *tags(otel__scope__name="lib", otel__scope__version="1.2")),
        span("scope without a version", *tags(otel__scope__name="lib")),
        span("version without a scope", *tags(otel__scope__version="1.2")),
        span("state", *tags(w3c__tracestate="a=1,b=2")),
        span("64 bits", traceIdHigh=0),
        span("high bits", traceIdHigh=-1, traceIdLow=-2, spanId=-3),
        span("parent", parentSpanId=9),
        span("parent and its reference", parentSpanId=9, references=[child]),
        span("child", references=[child]),
        span("child behind another", references=[follows, child]),
        span("follows", references=[follows]),
        span("elsewhere", references=[SpanRef(CHILD_OF, **other, spanId=3), SpanRef(FOLLOWS_FROM, **other, spanId=4)]),
        span("unknown reference", references=[SpanRef(7, **same, spanId=3)]),
        span(
            "logs",
            logs=[
                Log(START, tags(event="fetched", message="m", rows=3)),
                Log(START + 1, tags(message="no event")),
                Log(START + 2, []),
                Log(START + 3, tags(event=5)),
            ],
        ),
        span("no duration", duration=0),
        span("é世界", *tags(größe="ß")),
        span(""),
        span("long" * 100, *(tag(f"key {number} " + "k" * 130, "v" * 300) for number in range(20))),
        service="shop",
        given=tags(hostname="node-1", ip="10.2.3.4", jaeger__version="Go-2.30.0", pid=7),
    )
