"""Zipkin v1, JSON and Thrift -> an OTLP export request (https://zipkin.io/zipkin-api/zipkin-api.yaml, zipkinCore.thrift).

As the OpenTelemetry Collector does it (contrib's pkg/translator/zipkin, 0.145). A v1 span has neither kind nor service of its own: both are
those of its first annotation of `cs cr ss sr ms mr` (client, server or message queue: send and receive), which are no events.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address

import msgspec

from lockgate.wire import thrift, zipkin_spans
from lockgate.wire.protobuf import AttributeValue, DecodeError, key_values
from lockgate.wire.zipkin import START_TIME_ABSENT, Groups, address, id_of, nanoseconds, read_json, span_ids, status, typed


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """Null is as good as absent, as it is for the Collector."""


class _Endpoint(_Struct):
    service_name: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    port: int | None = None


class _Annotation(_Struct):
    timestamp: int | float | None = None
    value: str | None = None
    endpoint: _Endpoint | None = None


class _BinaryAnnotation(_Struct):
    key: str | None = None
    value: str | bool | int | float | None = None
    endpoint: _Endpoint | None = None


class _Span(_Struct):
    trace_id: str
    id: str
    parent_id: str | None = None
    name: str | None = None
    timestamp: int | float | None = None
    duration: int | float | None = None
    debug: bool | None = None
    annotations: list[_Annotation | None] | None = None
    binary_annotations: list[_BinaryAnnotation] | None = None


_decoder = msgspec.json.Decoder(list[_Span] | None)
_KINDS = {"cs": 3, "cr": 3, "ss": 2, "sr": 2, "ms": 4, "mr": 5}
_UNKNOWN_SERVICE = "unknown-service"
_CENSUS = {"census.status_description", "opencensus.status_description"}
_STATUS_KEYS = _CENSUS | {
    "census.status_code",
    "otel.status_code",
    "otel.status_description",
    "error",
    "http.status_code",
    "http.status_message",
}


def decode_json(body: bytes, now_unix_nano: int, parse_string_tags: bool = False) -> bytes:
    """The export request that a JSON list of v1 spans says. Raises DecodeError, which names the span and the field.

    A span without any time is of now.
    """
    groups = Groups()
    for number, span in enumerate(read_json(_decoder, body)):
        try:
            ids = id_of("traceId", span.trace_id, 16), id_of("id", span.id, 8), id_of("parentId", span.parent_id, 8)
            _add(groups, span, ids, now_unix_nano, parse_string_tags)
        except DecodeError as error:
            raise DecodeError(f"span {number}: {error}") from None
    return groups.request()


def _add(groups: Groups, span: _Span, ids: tuple[bytes, bytes, bytes], now_unix_nano: int, parse_string_tags: bool) -> None:
    annotations = [each for each in span.annotations or () if each is not None and each.value]
    kinds = [each for each in annotations if each.value in _KINDS]
    kind = _KINDS[kinds[0].value or ""] if kinds else 0
    endpoint = next((each.endpoint for each in kinds if each.endpoint and each.endpoint.service_name), None) or _Endpoint(_UNKNOWN_SERVICE)
    service = endpoint.service_name
    attributes: dict[str, AttributeValue] = {}
    binary = span.binary_annotations or []
    if service == _UNKNOWN_SERVICE:
        named = [each.endpoint.service_name for each in binary if each.endpoint and each.endpoint.service_name]
        components = [each.value for each in binary if each.key == "lc" and each.value and isinstance(each.value, str)]
        service = (named or components or [service])[-1]
    encoded_status = _take_binary(binary, attributes, parse_string_tags)
    times = [_time("an annotation's timestamp", each.timestamp) for each in annotations]
    start, end = (min(times), max(times)) if times else (0, 0)
    if span.timestamp:
        start = _time("timestamp", span.timestamp)
        end = _time("timestamp and duration", span.timestamp + (span.duration or 0))
    if not start:
        start = end = now_unix_nano
        attributes[START_TIME_ABSENT] = True
    texts: dict[str, str | None] = {key: value for key, value in attributes.items() if isinstance(value, str)}
    others = [(key, value) for key, value in attributes.items() if not isinstance(value, str)] if len(texts) < len(attributes) else []
    pieces: list[bytes | bytearray] = [encoded_status, key_values(9, others)]
    events = [each for each in annotations if each.value not in _KINDS]
    pieces += [zipkin_spans.event(_time("an annotation's timestamp", each.timestamp), each.value or "") for each in events]
    parts = service or "", endpoint.ipv4 or "", endpoint.ipv6 or "", endpoint.port
    resource = _short_resource(*parts) if sum(map(len, parts[:3])) < 200 else _resource(*parts)
    groups.add(resource, b"", zipkin_spans.span(span_ids(*ids), span.name or "", kind, start, end, texts, pieces))


def _resource(service: str, ipv4: str, ipv6: str, port: int | None) -> bytes:
    endpoint = {"ipv4": ipv4, "ipv6": ipv6, "port": str(port or "")}
    return key_values(1, [("service.name", service), *((key, value) for key, value in endpoint.items() if value)])


_short_resource = lru_cache(1024)(_resource)


def _time(field: str, microseconds: int | float | None) -> int:
    # The Collector takes negative times for none.
    return nanoseconds(field, max(microseconds or 0, 0))


def _take_binary(annotations: list[_BinaryAnnotation], attributes: dict[str, AttributeValue], parse_string_tags: bool) -> bytes:
    """Fills the attributes from the binary annotations; those that say the span's status give that, encoded."""
    census = own = http = None
    is_error, message, census_message, http_message = False, "", "", ""
    for each in annotations:
        key = "component" if each.key == "lc" else each.key or ""
        value: AttributeValue = "" if each.value is None else each.value
        if key not in _STATUS_KEYS and not parse_string_tags and isinstance(value, str):
            attributes[key] = value
            continue
        text = value if isinstance(value, str) else ""
        if parse_string_tags and text:
            value = typed(text)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = str(value)
        code = _number(value)
        match key:
            case "census.status_code" if code is not None:
                census = 2 if code else 1  # OpenCensus' 0 is OK, which is OTLP's 1
            case "otel.status_code" if code in (0, 1, 2):
                own = code
            case "otel.status_description" if text:
                message = text
            case _ if key in _CENSUS and text:
                census_message = text
            case "error" if value in (True, "true", ""):
                is_error = True
            case _:
                attributes[key] = value
                if key == "error":
                    is_error = True
                elif key == "http.status_code" and code is not None:
                    http = 0 if 100 <= code < 400 else 2
                elif key == "http.status_message":
                    http_message = text
    if census is not None:
        return status(census, census_message)
    if own is not None:
        return status(own, message)
    if is_error:
        return status(2, census_message or message)
    return status(http, http_message) if http is not None else b""


def _number(value: AttributeValue) -> int | None:
    """A code of 32 bits, as a number or as text."""
    if isinstance(value, str) and re.fullmatch("[+-]?[0-9]{1,10}", value):
        value = int(value)
    return value if type(value) is int and -(2**31) <= value < 2**31 else None


# zipkinCore.thrift, in Thrift's binary encoding without a message around it: a list of spans.

_ANNOTATION_TYPES = {2: ">h", 3: ">i", 4: ">q", 5: ">d"}
_BOOL, _BYTES, _STRING = 0, 1, 6
_I32, _I64, _STRING_KIND, _STRUCT = thrift.I32, thrift.I64, thrift.STRING, thrift.STRUCT


def needed_thrift_bytes(body: bytes) -> int:
    """Memory that decoding Thrift takes, as measured and rounded up."""
    return 12 * len(body)


def decode_thrift(body: bytes, now_unix_nano: int) -> bytes:
    """The export request that an encoded list of v1 spans says. Raises DecodeError, which names the span and the field.

    A span without any time is of now.
    """
    reader = thrift.Reader(body, False)
    groups = Groups()
    for number in range(reader.structs()):
        try:
            _add(groups, *_thrift_span(reader), now_unix_nano, False)
        except DecodeError as error:
            raise DecodeError(f"span {number}: {error}") from None
    return groups.request()


def _fields(reader: thrift.Reader) -> Iterator[tuple[int, int]]:
    """(id, kind) of a struct's fields; whoever asks reads or skips each."""
    last = 0
    while kind := reader.field(last):
        last = reader.id
        yield last, kind


def _thrift_span(reader: thrift.Reader) -> tuple[_Span, tuple[bytes, bytes, bytes]]:
    trace_high = trace_low = id = parent_id = 0
    span = _Span("", "", annotations=[], binary_annotations=[])
    assert span.annotations is not None and span.binary_annotations is not None
    for field, kind in _fields(reader):
        match field, kind:
            case 1, thrift.I64:
                trace_low = reader.integer(kind)
            case 12, thrift.I64:
                trace_high = reader.integer(kind)
            case 3, thrift.STRING:
                span.name = _text(reader)
            case 4, thrift.I64:
                id = reader.integer(kind)
            case 5, thrift.I64:
                parent_id = reader.integer(kind)
            case 6, thrift.LIST:
                for _ in range(reader.structs()):
                    if (annotation := _thrift_annotation(reader)).value:
                        span.annotations.append(annotation)
            case 8, thrift.LIST:
                for _ in range(reader.structs()):
                    if (binary := _thrift_binary(reader)) is not None:
                        span.binary_annotations.append(binary)
            case 10, thrift.I64:
                span.timestamp = _signed(reader.integer(kind))
            case 11, thrift.I64:
                span.duration = _signed(reader.integer(kind))
            case _:
                reader.skip(kind)
    return span, (trace_high.to_bytes(8, "big") + trace_low.to_bytes(8, "big"), id.to_bytes(8, "big"), parent_id.to_bytes(8, "big"))


def _thrift_annotation(reader: thrift.Reader) -> _Annotation:
    annotation, last = _Annotation(), 0
    while kind := reader.field(last):
        last = reader.id
        if last == 1 and kind == _I64:
            annotation.timestamp = _signed(reader.integer(kind))
        elif last == 2 and kind == _STRING_KIND:
            annotation.value = _text(reader)
        elif last == 3 and kind == _STRUCT:
            annotation.endpoint = _thrift_endpoint(reader)
        else:
            reader.skip(kind)
    return annotation


def _thrift_binary(reader: thrift.Reader) -> _BinaryAnnotation | None:
    key, raw, type, endpoint, last = None, b"", _BOOL, None, 0
    while kind := reader.field(last):
        last = reader.id
        if last == 1 and kind == _STRING_KIND:
            key = _text(reader)
        elif last == 2 and kind == _STRING_KIND:
            raw = reader.text()
        elif last == 3 and kind == _I32:
            type = _signed(reader.integer(kind))
        elif last == 4 and kind == _STRUCT:
            endpoint = _thrift_endpoint(reader)
        else:
            reader.skip(kind)
    return None if key is None else _BinaryAnnotation(key, _thrift_value(type, raw), endpoint)


def _thrift_value(type: int, raw: bytes) -> str | bool | int | float:
    """The value of a binary annotation; where that is none, the Collector's words for it."""
    if type == _BOOL:
        return raw == b"\x01"
    if type == _BYTES:
        return base64.b64encode(raw).decode()
    if type == _STRING:
        return raw.decode("utf-8", "replace")
    if (format := _ANNOTATION_TYPES.get(type)) is None:
        return f"<unknown zipkin v1 binary annotation type ({type})>"
    if len(raw) < struct.calcsize(format):
        return "<not enough bytes representing the number>"
    number: int | float = struct.unpack_from(format, raw)[0]
    return number


def _thrift_endpoint(reader: thrift.Reader) -> _Endpoint:
    # Every annotation of a span has the same one.
    start = reader.at
    reader.skip(_STRUCT)
    raw = reader.data[start : reader.at]
    return _known_endpoint(raw) if len(raw) < 100 else _endpoint(raw)


def _endpoint(raw: bytes) -> _Endpoint:
    reader, endpoint = thrift.Reader(raw, False), _Endpoint()
    for field, kind in _fields(reader):
        match field, kind:
            case 1, thrift.I32:
                if number := reader.integer(kind) & 0xFFFFFFFF:
                    endpoint.ipv4 = str(IPv4Address(number))
            case 2, thrift.I16:
                endpoint.port = reader.integer(kind) & 0xFFFF
            case 3, thrift.STRING:
                endpoint.service_name = _text(reader)
            case 4, thrift.STRING:
                if ip := reader.text():
                    endpoint.ipv6 = address("ipv6", ip)
            case _:
                reader.skip(kind)
    return endpoint


_known_endpoint = lru_cache(1024)(_endpoint)
"""Nobody changes what it gives."""


def _text(reader: thrift.Reader) -> str:
    return reader.text().decode("utf-8", "replace")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
