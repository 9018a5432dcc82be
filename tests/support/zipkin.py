"""Zipkin requests for tests: spans with everything in them, in each of the forms."""

import json
import struct
from functools import cache
from ipaddress import ip_address
from typing import Any

from lockgate.attributes.values import decode

MICRO = 1_700_000_000_000_000
"""A time, in Zipkin's microseconds."""

Object = dict[str, Any]


def v2(**fields: Any) -> Object:
    """A v2 span; fields given as None are left out."""
    span: Object = {"traceId": "0af7651916cd43dd8448eb211c80319c", "id": "b7ad6b7169203331", "timestamp": MICRO, "duration": 1500} | fields
    return {key: value for key, value in span.items() if value is not None}


def v1(**fields: Any) -> Object:
    """A v1 span, with the endpoint of the service `web`."""
    span: Object = {"traceId": "0af7651916cd43dd8448eb211c80319c", "id": "b7ad6b7169203331", "timestamp": MICRO, "duration": 1500} | fields
    return {key: value for key, value in span.items() if value is not None}


WEB: Object = {"serviceName": "web", "ipv4": "10.0.0.1", "port": 8080}
DB: Object = {"serviceName": "db", "ipv6": "2001:db8::C001", "port": 5432}


def body(*spans: Object) -> bytes:
    return json.dumps(spans).encode()


def full() -> Object:
    """A v2 span with everything."""
    return v2(
        parentId="00f067aa0ba902b7",
        name="get /",
        kind="CLIENT",
        localEndpoint=WEB,
        remoteEndpoint=DB,
        shared=True,
        debug=True,
        annotations=[
            {"timestamp": MICRO + 5, "value": "retry"},
            {"timestamp": MICRO + 6, "value": 'cached|{"hit":true,"n":2,"x":1.5,"s":"a|b"}|3'},
        ],
        tags={
            "http.method": "GET",
            "http.path": "/é",
            "size": "17",
            "error": "no route",
            "otel.status_code": "STATUS_CODE_ERROR",
            "otel.status_description": "broken",
            "w3c.tracestate": "a=b",
            "otel.library.name": "lib",
            "otel.library.version": "1.2",
            "k8s.pod.name": "web-0",
            "otlp.link.0": '0af7651916cd43dd8448eb211c80319d|b7ad6b7169203332|c=d|{"a":"b"}|2',
            "otlp.link.1": "0af7651916cd43dd8448eb211c80319e|b7ad6b7169203333||{}|0",
        },
    )


# zipkin.proto, package zipkin.proto3. An enum is a varint, as an int32 is.
_MESSAGES: dict[str, str] = {
    "Endpoint": "service_name:string ipv4:bytes ipv6:bytes port:int32",
    "Annotation": "timestamp:fixed64 value:string",
    "Span": "trace_id:bytes parent_id:bytes id:bytes kind:int32 name:string timestamp:fixed64 duration:uint64 local_endpoint:Endpoint "
    "remote_endpoint:Endpoint annotations:*Annotation tags:*TagsEntry debug:bool shared:bool",
    "ListOfSpans": "spans:*Span",
}


@cache
def list_of_spans() -> Any:
    """The message class ListOfSpans."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="tests/zipkin.proto", package="tests.zipkin", syntax="proto3")

    def fill(message: Any, fields: str) -> None:
        for number, (name, _, kind) in enumerate((field.partition(":") for field in fields.split()), 1):
            label = descriptor_pb2.FieldDescriptorProto.Label.Value("LABEL_REPEATED" if kind.startswith("*") else "LABEL_OPTIONAL")
            field = message.field.add(name=name, number=number, label=label)
            kind = kind.removeprefix("*")
            if kind == "TagsEntry":
                field.type_name = ".tests.zipkin.Span.TagsEntry"
            elif kind in _MESSAGES:
                field.type_name = f".tests.zipkin.{kind}"
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")

    for name, fields in _MESSAGES.items():
        fill(file.message_type.add(name=name), fields)
    entry = next(message for message in file.message_type if message.name == "Span").nested_type.add(name="TagsEntry")
    entry.options.map_entry = True
    fill(entry, "key:string value:string")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.zipkin.ListOfSpans"))


def protobuf(*spans: Object) -> bytes:
    """These v2 spans as an encoded ListOfSpans; ids, and addresses, as bytes or as in JSON."""

    message = list_of_spans()()
    for span in spans:
        added = message.spans.add()
        for name, key in ("trace_id", "traceId"), ("id", "id"), ("parent_id", "parentId"):
            value = span.get(key, b"")
            setattr(added, name, value if isinstance(value, bytes) else bytes.fromhex(value))
        added.kind = ["", "CLIENT", "SERVER", "PRODUCER", "CONSUMER"].index(span.get("kind", ""))
        added.name, added.timestamp, added.duration = span.get("name", ""), span.get("timestamp", 0), span.get("duration", 0)
        for name, key in ("local_endpoint", "localEndpoint"), ("remote_endpoint", "remoteEndpoint"):
            if (endpoint := span.get(key)) is not None:
                target = getattr(added, name)
                target.SetInParent()
                target.service_name, target.port = endpoint.get("serviceName", ""), endpoint.get("port", 0)
                for field in ("ipv4", "ipv6"):
                    if value := endpoint.get(field):
                        setattr(target, field, value if isinstance(value, bytes) else ip_address(value).packed)
        for annotation in span.get("annotations", ()):
            added.annotations.add(timestamp=annotation["timestamp"], value=annotation["value"])
        added.tags.update(span.get("tags", {}))
    result: bytes = message.SerializeToString()
    return result


def thrift(*spans: Object) -> bytes:
    """These v1 spans as Thrift's list of zipkinCore.thrift. A binary annotation's value is of its Python type, or (type, bytes)."""
    return b"\x0c" + struct.pack(">i", len(spans)) + b"".join(map(_thrift_span, spans))


def _field(kind: int, id: int, value: bytes) -> bytes:
    return struct.pack(">bh", kind, id) + value


def _string(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">i", len(raw)) + raw


def _structs(id: int, items: list[bytes]) -> bytes:
    return _field(15, id, b"\x0c" + struct.pack(">i", len(items)) + b"".join(items))


def _thrift_span(span: Object) -> bytes:
    trace_id = span["traceId"].rjust(32, "0")
    out = _field(10, 12, bytes.fromhex(trace_id[:16])) + _field(10, 1, bytes.fromhex(trace_id[16:]))
    out += _field(11, 3, _string(span.get("name", ""))) + _field(10, 4, bytes.fromhex(span["id"].rjust(16, "0")))
    if "parentId" in span:
        out += _field(10, 5, bytes.fromhex(span["parentId"].rjust(16, "0")))
    out += _structs(6, [_thrift_annotation(each) for each in span.get("annotations", ())])
    out += _structs(8, [_thrift_binary(each) for each in span.get("binaryAnnotations", ())])
    out += _field(2, 9, b"\1")
    for id, key in (10, "timestamp"), (11, "duration"):
        if key in span:
            out += _field(10, id, struct.pack(">q", span[key]))
    return out + b"\0"


def _thrift_annotation(annotation: Object) -> bytes:
    out = _field(10, 1, struct.pack(">q", annotation["timestamp"])) + _field(11, 2, _string(annotation["value"]))
    return out + _thrift_endpoint(3, annotation.get("endpoint")) + b"\0"


def _thrift_binary(annotation: Object) -> bytes:
    match annotation["value"]:
        case (int() as type, bytes() as raw):
            pass
        case bool() as value:
            type, raw = 0, bytes([value])
        case bytes() as raw:
            type = 1
        case int() as value:
            type, raw = 4, struct.pack(">q", value)
        case float() as value:
            type, raw = 5, struct.pack(">d", value)
        case value:
            type, raw = 6, value.encode()
    out = _field(11, 1, _string(annotation["key"])) + _field(11, 2, _string(raw)) + _field(8, 3, struct.pack(">i", type))
    return out + _thrift_endpoint(4, annotation.get("endpoint")) + b"\0"


def _thrift_endpoint(id: int, endpoint: Object | None) -> bytes:
    if endpoint is None:
        return b""
    out = _field(6, 2, struct.pack(">H", endpoint.get("port", 0))) + _field(11, 3, _string(endpoint.get("serviceName", "")))
    if "ipv4" in endpoint:
        out += _field(8, 1, ip_address(endpoint["ipv4"]).packed)
    if "ipv6" in endpoint:
        raw = endpoint["ipv6"]
        out += _field(11, 4, _string(raw if isinstance(raw, bytes) else ip_address(raw).packed))
    return _field(12, id, out + b"\0")


def spans(message: Any) -> list[Object]:
    """What an export request holds, span by span, in an order that follows from it. A span of the name `now` has no times."""

    def values(attributes: Any) -> Object:
        return {each.key: decode(each.value) for each in sorted(attributes, key=lambda each: each.key)}

    found = [
        {
            "resource": values(resource.resource.attributes),
            "scope": (scope.scope.name, scope.scope.version),
            "ids": (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()),
            "state": span.trace_state,
            "name": span.name,
            "kind": span.kind,
            "times": (span.start_time_unix_nano, span.end_time_unix_nano),
            "attributes": values(span.attributes),
            "events": [(each.time_unix_nano, each.name, values(each.attributes), each.dropped_attributes_count) for each in span.events],
            "links": [
                (each.trace_id.hex(), each.span_id.hex(), each.trace_state, values(each.attributes), each.dropped_attributes_count)
                for each in span.links
            ],
            "status": (span.status.code, span.status.message),
        }
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    for span in found:
        if span["name"] == "now":
            assert span["times"][0] == span["times"][1] > 10**18
            span["times"] = "now"
    return sorted(found, key=lambda span: (span["ids"], repr(span)))
