"""Batches as rows, and the resources that the rows name.

Log records are columns, written by a kernel. Points and spans are one JSON array per batch, whose objects are named as the table's columns.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from google.protobuf.message import DecodeError as ProtobufError

from lockgate.batch import Signal, message_type
from lockgate.store.schema import PROMOTED
from lockgate.wire.columns import LogColumns, Row, log_columns
from lockgate.wire.otlp import LOGS, validate
from lockgate.wire.protobuf import DecodeError

_encode = msgspec.json.Encoder().encode
_MAX_NANO = 2**63 - 1


@dataclass(slots=True)
class Rows:
    """What one payload adds to its signal's table."""

    count: int
    resources: dict[int, bytes] = field(default_factory=dict)
    """The raw Resource message by its id."""
    json: bytes = b""
    """Points and spans: the array without its brackets, so that several can be joined."""
    columns: tuple[LogColumns, list[int]] | None = None
    """Log records, and the id of each of their resources."""


def rows(signal: Signal, payload: bytes) -> Rows:
    """The rows of an export request; raises DecodeError where it is not one."""
    if signal is Signal.LOGS:
        return _log_rows(payload)
    message = _parsed(signal, payload)
    resources: dict[int, bytes] = {}
    out: list[dict[str, Any]] = []
    if signal is Signal.METRICS:
        for entry in message.resource_metrics:
            _metric_rows(entry, _resource_id(entry.resource.SerializeToString(), resources), out)
    else:
        for entry in message.resource_spans:
            _span_rows(entry, _resource_id(entry.resource.SerializeToString(), resources), out)
    return Rows(len(out), resources, json=_encode(out)[1:-1])


def _parsed(signal: Signal, payload: bytes) -> Any:
    try:
        return message_type(signal).FromString(payload)
    except (ProtobufError, ValueError) as error:  # upb raises ValueError for text that is not UTF-8
        raise DecodeError(f"not a {signal} export request: {error}") from None


def resource_row(id: int, raw: bytes) -> dict[str, Any]:
    """The row of `resources` for this raw Resource message."""
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

    attributes = _attributes(Resource.FromString(raw).attributes)
    row: dict[str, Any] = {"id": id, "attributes": attributes}
    for column, names in PROMOTED.items():
        if (value := next((attributes[name] for name in names if attributes.get(name) not in (None, "")), None)) is not None:
            row[column] = _text(value)
    return row


def _resource_id(raw: bytes, resources: dict[int, bytes]) -> int:
    id = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest())
    resources[id] = raw
    return id


def _log_rows(payload: bytes) -> Rows:
    try:
        validate(payload, LOGS)
        columns = log_columns(payload, _log_row)
    except DecodeError as error:
        raise DecodeError(f"not a logs export request: {error}") from None
    if columns is None:  # not in the plain form: as upb writes it, it is
        message = _parsed(Signal.LOGS, payload)
        message.DiscardUnknownFields()
        if (columns := log_columns(message.SerializeToString(), _log_row)) is None:
            raise DecodeError(f"a logs export request of {len(payload)} bytes is too large for the store")
    resources: dict[int, bytes] = {}
    ids = [_resource_id(raw, resources) for raw, _ in columns.resources]
    return Rows(columns.records, resources, columns=(columns, ids))


_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")


def _log_row(encoded: bytes) -> Row:
    """Any LogRecord, as the kernel would write it."""
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    record = LogRecord.FromString(encoded)
    number = record.severity_number
    level = _LEVELS[(number - 1) // 4] if 0 < number < 25 else ""
    texts = (record.severity_text or level, _body(record.body), record.trace_id.hex(), record.span_id.hex(), record.event_name)
    severity, body, trace_id, span_id, event_name = (text.encode() if text is not None else None for text in texts)
    attributes = _encode(_attributes(record.attributes)) if record.attributes else None
    return Row(
        min(record.time_unix_nano or record.observed_time_unix_nano, _MAX_NANO),
        min(max(number, 0), 255) if number else None,
        (severity or None, body, attributes, trace_id or None, span_id or None, event_name or None),
    )


_TEMPORALITY = {1: "delta", 2: "cumulative"}


def _metric_rows(resource: Any, id: int, out: list[dict[str, Any]]) -> None:
    for scope_metrics in resource.scope_metrics:
        scope = scope_metrics.scope.name
        for metric in scope_metrics.metrics:
            kind = metric.WhichOneof("data")
            if kind is None:
                continue
            value = getattr(metric, kind)
            common: dict[str, Any] = {"resource": id, "name": metric.name, "kind": kind}
            if metric.unit:
                common["unit"] = metric.unit
            if scope:
                common["scope"] = scope
            if kind in ("sum", "histogram", "exponential_histogram"):
                common["temporality"] = _TEMPORALITY.get(value.aggregation_temporality)
            if kind == "sum":
                common["monotonic"] = value.is_monotonic
            for point in value.data_points:
                row = common | {"time_unix_nano": min(point.time_unix_nano, _MAX_NANO)}
                if point.start_time_unix_nano:
                    row["start_unix_nano"] = min(point.start_time_unix_nano, _MAX_NANO)
                if point.attributes:
                    row["attributes"] = _attributes(point.attributes)
                if kind in ("gauge", "sum"):
                    # A stale marker ("no recorded value") has no value: NULL.
                    if (which := point.WhichOneof("value")) is not None and not point.flags & 1:
                        row["value"] = _number(getattr(point, which))
                else:
                    row |= _distribution(kind, point)
                out.append(row)


def _distribution(kind: str, point: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"count": point.count}
    if kind == "summary" or point.HasField("sum"):
        row["sum"] = _number(point.sum)
    match kind:
        case "histogram":
            row["detail"] = {"bounds": list(point.explicit_bounds), "counts": list(point.bucket_counts)}
        case "summary":
            row["detail"] = {"quantiles": [[q.quantile, _number(q.value)] for q in point.quantile_values]}
        case _:
            row["detail"] = {
                "scale": point.scale,
                "zero_count": point.zero_count,
                "positive": {"offset": point.positive.offset, "counts": list(point.positive.bucket_counts)},
                "negative": {"offset": point.negative.offset, "counts": list(point.negative.bucket_counts)},
            }
    return row


_KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUS = {1: "ok", 2: "error"}


def _span_rows(resource: Any, id: int, out: list[dict[str, Any]]) -> None:
    for scope_spans in resource.scope_spans:
        scope = scope_spans.scope.name
        for span in scope_spans.spans:
            start = min(span.start_time_unix_nano, _MAX_NANO)
            row: dict[str, Any] = {
                "resource": id,
                "time_unix_nano": start,
                "name": span.name,
                "duration_nano": max(min(span.end_time_unix_nano, _MAX_NANO) - start, 0),
                "trace_id": span.trace_id.hex(),
                "span_id": span.span_id.hex(),
                "kind": _KINDS.get(span.kind),
                "status": _STATUS.get(span.status.code, "unset"),
            }
            if span.parent_span_id:
                row["parent_span_id"] = span.parent_span_id.hex()
            if span.status.message:
                row["status_message"] = span.status.message
            if span.attributes:
                row["attributes"] = _attributes(span.attributes)
            if span.events:
                row["events"] = [
                    {"time_unix_nano": e.time_unix_nano, "name": e.name, "attributes": _attributes(e.attributes)} for e in span.events
                ]
            if span.links:
                row["links"] = [
                    {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex(), "attributes": _attributes(link.attributes)}
                    for link in span.links
                ]
            if scope:
                row["scope"] = scope
            out.append(row)


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """The AnyValue as what JSON has; bytes as base64 (OTLP's JSON mapping), a number that JSON has not as text."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "bool_value":
            return value.bool_value
        case "double_value":
            return _number(value.double_value)
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "bytes_value":
            return b64encode(value.bytes_value).decode()
        case _:
            return None


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _body(value: Any) -> str | None:
    """A text as it is; anything else as JSON text."""
    if text := value.string_value:
        return str(text)
    return _text(plain) if (plain := _value(value)) is not None else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def join(several: Iterable[Rows]) -> Iterator[bytes]:
    """The parts of one JSON array of all these rows."""
    yield b"["
    for index, part in enumerate(part for part in several if part.count):
        if index:
            yield b","
        yield part.json
    yield b"]"
