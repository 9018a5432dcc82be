"""OpenCensus' streams of traces and metrics as OTLP requests (opencensus-proto v0.4.1, agent/{trace,metrics}/v1).

The mapping is the collector's (contrib v0.133.0, pkg/translator/opencensus). Spans are a kernel's work (`opencensus_spans`), identities and
metrics are few and are read here. Text is copied as it is: whether it is UTF-8 is for `wire.otlp.validate` to say of the result.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from lockgate.wire import opencensus_spans
from lockgate.wire.protobuf import AttributeValue, DecodeError, any_value, delimited

MOST_GROWTH = 16
"""A message's OTLP form may be this many times its size (and 64 KiB): each point repeats its metric's label keys, each span with a resource
of its own the node's attributes. Usual is 1.3."""
MOST_IDENTITY = 64 << 10
"""Bytes of Node and of Resource: a stream keeps them for as long as it lives."""
_MOST_RESOURCES = 1 << 16
"""Spans with a resource of their own in one message: what there is a Python object for."""

_LANGUAGES = {
    1: "cpp",
    2: "dotnet",
    3: "erlang",
    4: "go",
    5: "java",
    6: "nodejs",
    7: "php",
    8: "python",
    9: "ruby",
    10: "webjs",
}  # OpenTelemetry's names for LibraryInfo.Language

_GAUGE, _SUM, _HISTOGRAM, _SUMMARY = 5, 7, 9, 11  # Metric's fields
_KINDS = {1: _GAUGE, 2: _GAUGE, 4: _SUM, 5: _SUM, 6: _HISTOGRAM, 7: _SUMMARY}
"""By MetricDescriptor.Type. There is nothing for GAUGE_DISTRIBUTION in the collector's mapping either."""
_AFTER_POINTS = {_GAUGE: b"", _SUM: b"\x10\x02\x18\x01", _HISTOGRAM: b"\x10\x02", _SUMMARY: b""}
"""Cumulative, and of sums that they are monotonic."""
_ATTRIBUTES = {_GAUGE: 7, _SUM: 7, _HISTOGRAM: 9, _SUMMARY: 7}
"""The field of a data point that holds its attributes."""


class Stream:
    """One call of an Export method: its first message says who sends, and those after it inherit what was said last."""

    def __init__(self) -> None:
        self._node: bytes | None = None
        self._resource: bytes | None = None
        self._encoded = b""
        """OTLP's Resource, of these two."""
        self.lost = 0
        """Data points of the message before that have no form in OTLP: of gauges of distributions, of metrics without a descriptor or type,
        and with a value of another type than their metric's."""

    def traces(self, message: bytes) -> bytes:
        """The ExportTraceServiceRequest of an OpenCensus one, to be validated. Raises DecodeError."""
        limit = _limit(message)
        found = opencensus_spans.translate(message, limit)
        self._identify(found.node, found.resource)
        entries = [(self._encoded, found.encoded)] if found.encoded else []
        if found.apart:
            if found.apart > _MOST_RESOURCES:
                raise DecodeError(f"more than {_MOST_RESOURCES} spans have a resource of their own")
            by_resource: dict[bytes, list[bytes]] = {}
            for tag, span in _fields(message):
                if tag == 0x12 and (resource := _message(span, 0x82)) is not None:
                    encoded = opencensus_spans.translate(delimited(2, span), limit, True).encoded
                    by_resource.setdefault(resource, []).append(encoded)
            entries += [(_resource(self._node, resource), b"".join(spans)) for resource, spans in by_resource.items()]
        return _request(entries, limit)

    def metrics(self, message: bytes) -> bytes:
        """The ExportMetricsServiceRequest of an OpenCensus one, to be validated, without what is `lost`. Raises DecodeError."""
        limit = _limit(message)
        node, resource, metrics = None, None, []
        for tag, value in _fields(message):
            match tag:
                case 0x0A:
                    node = value
                case 0x12:
                    metrics.append(value)
                case 0x1A:
                    resource = value
        self._identify(node, resource)
        by_resource: dict[bytes | None, list[bytes]] = {}
        self.lost = size = 0
        for metric in metrics:
            encoded, without = _metric(metric, limit)
            self.lost += without
            size += len(encoded)
            if encoded:
                by_resource.setdefault(_message(metric, 0x1A), []).append(encoded)
            _check(size, limit)
        entries = [
            (self._encoded if own is None else _resource(self._node, own), b"".join(encoded)) for own, encoded in by_resource.items()
        ]
        return _request(entries, limit)

    def _identify(self, node: bytes | None, resource: bytes | None) -> None:
        if node is None and self._node is None:
            raise DecodeError("protocol violation: Export's first message must have a Node")
        if len(node or b"") > MOST_IDENTITY or len(resource or b"") > MOST_IDENTITY:
            raise DecodeError(f"a Node, or a Resource, of more than {MOST_IDENTITY} bytes")
        if node is not None or resource is not None:
            self._node = self._node if node is None else node
            self._resource = self._resource if resource is None else resource
            self._encoded = _resource(self._node, self._resource)


def _limit(message: bytes) -> int:
    return MOST_GROWTH * len(message) + MOST_IDENTITY


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise DecodeError(f"the request would take more than {limit} bytes in OTLP")


def _request(entries: list[tuple[bytes, bytes]], limit: int) -> bytes:
    """Of resources, each with the spans or metrics that are its one scope's."""
    _check(sum(len(resource) + len(records) for resource, records in entries), limit)
    return b"".join(delimited(1, delimited(1, resource) + delimited(2, records)) for resource, records in entries)


# Reading. Of a singular field that comes twice the last one counts.


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Each field's number and wire type, as they are encoded, and its value: a number for varints, else bytes. Raises DecodeError."""
    at, size = 0, len(message)
    while at < size:
        start = at
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case wire:
                raise DecodeError(f"not an OpenCensus request: wire type {wire}, at byte {start} of {size}")
        if length > size - at or tag < 8:
            raise DecodeError(f"not an OpenCensus request: a field runs past the end of the message around it, at byte {start} of {size}")
        yield tag, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + 10, len(message))):
        byte = message[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, place + 1
        shift += 7
    raise DecodeError(f"not an OpenCensus request: a number is too long or runs past the end, at byte {at} of {len(message)}")


def _message(message: bytes, tag: int) -> Any:
    """The value of its field with this tag; None without one."""
    found = None
    for field, value in _fields(message):
        if field == tag:
            found = value
    return found


def _pairs(message: bytes, tag: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a map<string, string>."""
    for field, entry in _fields(message):
        if field == tag:
            pair = dict(_fields(entry))
            yield pair.get(0x0A, b""), pair.get(0x12, b"")


def _time(message: bytes) -> int:
    """A Timestamp in nanoseconds since 1970; 0 where it is earlier, or later than OTLP can say."""
    fields = dict(_fields(message))
    seconds, nanos = fields.get(0x08, 0), fields.get(0x10, 0)
    return seconds * 1_000_000_000 + (nanos if nanos < 1_000_000_000 else 0) if seconds <= 18_446_744_072 else 0


# Writing.


def _resource(node: bytes | None, resource: bytes | None) -> bytes:
    """OTLP's Resource. What the Node says goes before what the Resource says, and fields of their own before both's attributes."""
    attributes: dict[bytes, AttributeValue | bytes] = {}
    kind = b""
    for tag, value in _fields(resource or b""):
        if tag == 0x0A:
            kind = value
    for key, label in _pairs(resource or b"", 0x12):
        attributes[b"cloud.availability_zone" if key == b"cloud.zone" else key] = label
    for key, label in _pairs(node or b"", 0x22):
        attributes[key] = label
    parts = dict(_fields(node or b""))
    identifier, library, service = (dict(_fields(parts.get(tag, b""))) for tag in (0x0A, 0x12, 0x1A))
    special: dict[bytes, Any] = {
        b"service.name": service.get(0x0A),
        b"opencensus.starttime": _rfc3339(_time(identifier[0x1A])) if 0x1A in identifier else None,
        b"host.name": identifier.get(0x0A),
        b"process.pid": identifier.get(0x10, 0) & 0xFFFFFFFF,
        b"telemetry.sdk.version": library.get(0x1A),
        b"opencensus.exporterversion": library.get(0x12),
        b"telemetry.sdk.language": _LANGUAGES.get(library.get(0x08, 0)),
        b"opencensus.resourcetype": kind,
    }
    attributes.update({key: value for key, value in special.items() if value})
    return b"".join(_attribute(1, key, value) for key, value in attributes.items())


def _rfc3339(time_unix_nano: int) -> str:
    """As Go's RFC3339Nano: without the zeros at a fraction's end."""
    seconds, nanos = divmod(time_unix_nano, 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _attribute(field: int, key: bytes, value: AttributeValue) -> bytes:
    """A KeyValue; bytes are text as it came."""
    encoded = delimited(1, value) if isinstance(value, bytes) else any_value(value)
    return delimited(field, delimited(1, key) + delimited(2, encoded))


def _metric(metric: bytes, limit: int) -> tuple[bytes, int]:
    """A ScopeMetrics.metrics, empty where nothing of it is left, and how many points that or the metric lost."""
    descriptor: dict[int, Any] = {}
    keys, series = [], []
    for tag, value in _fields(metric):
        if tag == 0x0A:
            descriptor = dict(_fields(value))
            keys = [_message(key, 0x0A) or b"" for tag, key in _fields(value) if tag == 0x2A]
        elif tag == 0x12:
            series.append(value)
    kind = _KINDS.get(descriptor.get(0x20, 0) & 0xFFFFFFFF)
    points, lost, size = [], 0, 0
    for one in series:
        start, labels, values = 0, [], []
        for tag, value in _fields(one):
            match tag:
                case 0x0A:
                    start = _time(value)
                case 0x12:
                    labels.append(dict(_fields(value)))
                case 0x1A:
                    values.append(value)
        if kind is None:
            lost += len(values)
            continue
        same = _fixed(0x11, start) + b"".join(
            _attribute(_ATTRIBUTES[kind], key, label.get(0x0A, b"")) for key, label in zip(keys, labels, strict=False) if label.get(0x10)
        )
        for each in values:
            if (point := _point(each, kind)) is None:
                lost += 1
            else:
                points.append(delimited(1, same + point))
                size += len(points[-1])
                _check(size, limit)
    if kind is None or not points:
        return b"", lost
    named = b"".join(delimited(field, descriptor[field << 3 | 2]) for field in (1, 2, 3) if descriptor.get(field << 3 | 2))
    return delimited(2, named + delimited(kind, b"".join(points) + _AFTER_POINTS[kind])), lost


def _point(point: bytes, kind: int) -> bytes | None:
    """A data point without its labels and start; None where its value is of another kind than the metric's."""
    time, tag, value = b"", 0, None
    for field, content in _fields(point):
        if field == 0x0A:
            time = _fixed(0x19, _time(content))
        elif field in (0x10, 0x19, 0x22, 0x2A):
            tag, value = field, content
    match tag, value:
        case 0x10, int() if kind in (_GAUGE, _SUM):
            return time + struct.pack("<BQ", 0x31, value)
        case 0x19, bytes() if kind in (_GAUGE, _SUM):
            return time + b"\x21" + value
        case 0x22, bytes() if kind == _HISTOGRAM:
            return time + _distribution(value)
        case 0x2A, bytes() if kind == _SUMMARY:
            return time + _summary(value)
    return None


def _distribution(value: bytes) -> bytes:
    count, total, bounds, counts, exemplars = 0, bytes(8), bytearray(), [], bytearray()
    for tag, content in _fields(value):
        match tag:
            case 0x08:
                count = content
            case 0x11:
                total = content
            case 0x22:
                for inner, part in _fields(_message(content, 0x0A) or b""):
                    bounds += part if inner in (0x09, 0x0A) else b""
            case 0x2A:
                bucket = dict(_fields(content))
                counts.append(bucket.get(0x08, 0))
                if 0x12 in bucket:
                    exemplars += delimited(8, _exemplar(bucket[0x12]))
    if len(bounds) % 8:
        raise DecodeError("not an OpenCensus request: a distribution's bounds are no whole numbers of doubles")
    body = struct.pack("<BQ", 0x21, count) + b"\x29" + total
    body += delimited(6, struct.pack(f"<{len(counts)}Q", *counts)) if counts else b""
    return body + (delimited(7, bytes(bounds)) if bounds else b"") + exemplars


def _exemplar(exemplar: bytes) -> bytes:
    fields = dict(_fields(exemplar))
    attachments = dict(_pairs(exemplar, 0x1A))
    time = _fixed(0x11, _time(fields[0x12])) if 0x12 in fields else b""
    return time + b"\x19" + fields.get(0x09, bytes(8)) + b"".join(_attribute(7, key, value) for key, value in attachments.items())


def _summary(value: bytes) -> bytes:
    fields = dict(_fields(value))
    count = dict(_fields(fields.get(0x0A, b""))).get(0x08, 0)
    body = bytearray(struct.pack("<BQ", 0x21, count) + b"\x29" + dict(_fields(fields.get(0x12, b""))).get(0x09, bytes(8)))
    for tag, content in _fields(fields.get(0x1A, b"")):
        if tag == 0x1A:
            quantile = dict(_fields(content))
            (percentile,) = struct.unpack("<d", quantile.get(0x09, bytes(8)))
            body += delimited(6, struct.pack("<Bd", 0x09, percentile / 100) + b"\x11" + quantile.get(0x11, bytes(8)))
    return bytes(body)


def _fixed(tag: int, time_unix_nano: int) -> bytes:
    return struct.pack("<BQ", tag, time_unix_nano) if time_unix_nano else b""
