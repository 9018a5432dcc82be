"""Writes what passes to the program's log, or to standard output: for looking, never for keeping.

Output like the collector's debug exporter: `basic` one line a batch, `normal` one line a record, `detailed` everything.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lockgate.batch import Batch, Signal
from lockgate.pipeline.contract import Context, component
from lockgate.sending.exporter import QueuedExporter
from lockgate.sending.settings import QueueSettings, SendingSettings

_MAX_TEXT = 64 * 2**10
"""Characters of one batch's text; a batch that is shown in more is cut, and says so."""


class DebugSettings(SendingSettings):
    """How much to show."""

    verbosity: Literal["basic", "normal", "detailed"] = "basic"
    """`basic`: one line a batch. `normal`: one line a record. `detailed`: every field."""
    sampling_initial: int = Field(2, ge=0)
    """Batches shown in each second before sampling begins."""
    sampling_thereafter: int = Field(1, ge=0)
    """After those, each such-and-such batch of the second is shown: 1 shows all, 100 each hundredth, 0 none."""
    use_internal_logger: bool = True
    """Write through the program's log (level info); `false` writes plain text to `output_paths`."""
    output_paths: list[Literal["stdout", "stderr"]] = ["stdout"]
    """Where plain text goes."""
    sending_queue: QueueSettings = QueueSettings(enabled=False)
    """Off unless enabled: there is nothing to wait for."""

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.verbosity == "detailed" and self.sampling_thereafter == 1:
            yield "debug shows every record in full; telemetry may hold secrets, and the program's log is kept: use it for looking only"


@component("debug", DebugSettings)
class DebugExporter(QueuedExporter[DebugSettings]):
    """Shows batches in the log. Sampled: what is not shown is still acknowledged, because nothing is kept here anyway."""

    def __init__(self, settings: DebugSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._second, self._seen = -1, 0

    async def send(self, batch: Batch) -> None:
        if not self._is_shown():
            return
        summary = {"resource " + batch.signal: _resources(batch), batch.signal.items.replace("_", " "): batch.count}
        if batch.signal is Signal.METRICS:
            summary = {
                "resource metrics": _resources(batch),
                "metrics": sum(len(s.metrics) for r in batch.message.resource_metrics for s in r.scope_metrics),
                "data points": batch.count,
            }
        elif batch.signal is Signal.TRACES:
            summary = {"resource spans": _resources(batch), "spans": batch.count}
        header = ", ".join(f"{name}: {count}" for name, count in summary.items())
        lines = [f"{batch.signal.value.capitalize()}: {header}"]
        if self.settings.verbosity != "basic":
            lines += _cut((_detailed if self.settings.verbosity == "detailed" else _normal)(batch))
        if self.settings.use_internal_logger:
            self.log.info("%s", "\n".join(lines))
            return
        for name in self.settings.output_paths:
            stream = sys.stdout if name == "stdout" else sys.stderr
            stream.write("\n".join(lines) + "\n")
            stream.flush()

    def _is_shown(self) -> bool:
        second = int(self.context.clock.monotonic())
        if second != self._second:
            self._second, self._seen = second, 0
        self._seen += 1
        over = self._seen - self.settings.sampling_initial
        return over <= 0 or (self.settings.sampling_thereafter > 0 and over % self.settings.sampling_thereafter == 0)


def _cut(lines: Iterator[str]) -> Iterator[str]:
    size = 0
    for line in lines:
        size += len(line)
        if size > _MAX_TEXT:
            yield f"... cut: more than {_MAX_TEXT} characters"
            return
        yield line


def _entries(batch: Batch) -> Any:
    return getattr(batch.message, {"logs": "resource_logs", "metrics": "resource_metrics", "traces": "resource_spans"}[batch.signal])


def _resources(batch: Batch) -> int:
    return len(_entries(batch))


def _scopes(batch: Batch, entry: Any) -> Any:
    return getattr(entry, {"logs": "scope_logs", "metrics": "scope_metrics", "traces": "scope_spans"}[batch.signal])


def _normal(batch: Batch) -> Iterator[str]:
    for number, entry in enumerate(_entries(batch)):
        yield _joined(f"Resource{batch.signal.value.capitalize()} #{number}", entry.schema_url, _pairs(entry.resource.attributes))
        for index, scope in enumerate(_scopes(batch, entry)):
            name = scope.scope.name + (f"@{scope.scope.version}" if scope.scope.version else "")
            yield _joined(f"Scope{batch.signal.value.capitalize()} #{index}", name, _pairs(scope.scope.attributes))
            match batch.signal:
                case Signal.LOGS:
                    for record in scope.log_records:
                        yield _joined(_shown(record.body), _pairs(record.attributes))
                case Signal.TRACES:
                    for span in scope.spans:
                        yield _joined(span.name, span.trace_id.hex(), span.span_id.hex(), _pairs(span.attributes))
                case Signal.METRICS:
                    for metric in scope.metrics:
                        for point in _points(metric):
                            label = f"{metric.name}{{{','.join(_pairs(point.attributes))}}}"
                            yield _joined(label, " ".join(f"{key}={value}" if key else value for key, value in _values(point)))


def _detailed(batch: Batch) -> Iterator[str]:
    kind = {"logs": "Log", "metrics": "Metric", "traces": "Span"}[batch.signal]
    for number, entry in enumerate(_entries(batch)):
        yield f"Resource{batch.signal.value.capitalize()} #{number}"
        yield f"Resource SchemaURL: {entry.schema_url}"
        yield from _attributes("Resource attributes", entry.resource.attributes)
        for index, scope in enumerate(_scopes(batch, entry)):
            yield f"Scope{batch.signal.value.capitalize()} #{index}"
            yield f"Scope{batch.signal.value.capitalize()} SchemaURL: {scope.schema_url}"
            yield f"InstrumentationScope {scope.scope.name} {scope.scope.version}".rstrip()
            records = {"logs": "log_records", "metrics": "metrics", "traces": "spans"}[batch.signal]
            for position, record in enumerate(getattr(scope, records)):
                yield f"{kind}{'Record' if kind == 'Log' else ''} #{position}"
                yield from {"Log": _log, "Metric": _metric, "Span": _span}[kind](record)


_KINDS = {0: "Unspecified", 1: "Internal", 2: "Server", 3: "Client", 4: "Producer", 5: "Consumer"}
_STATUS = {0: "Unset", 1: "Ok", 2: "Error"}
_TEMPORALITY = {0: "Unspecified", 1: "Delta", 2: "Cumulative"}


def _log(record: Any) -> Iterator[str]:
    yield f"ObservedTimestamp: {_time(record.observed_time_unix_nano)}"
    yield f"Timestamp: {_time(record.time_unix_nano)}"
    yield f"SeverityText: {record.severity_text}"
    yield f"SeverityNumber: {record.severity_number}"
    if record.event_name:
        yield f"EventName: {record.event_name}"
    yield f"Body: {_typed(record.body)}"
    yield from _attributes("Attributes", record.attributes)
    yield f"Trace ID: {record.trace_id.hex()}"
    yield f"Span ID: {record.span_id.hex()}"
    yield f"Flags: {record.flags}"


def _span(span: Any) -> Iterator[str]:
    yield f"    Trace ID       : {span.trace_id.hex()}"
    yield f"    Parent ID      : {span.parent_span_id.hex()}"
    yield f"    ID             : {span.span_id.hex()}"
    yield f"    Name           : {span.name}"
    yield f"    Kind           : {_KINDS.get(span.kind, span.kind)}"
    yield f"    Start time     : {_time(span.start_time_unix_nano)}"
    yield f"    End time       : {_time(span.end_time_unix_nano)}"
    yield f"    Status code    : {_STATUS.get(span.status.code, span.status.code)}"
    yield f"    Status message : {span.status.message}"
    yield from _attributes("Attributes", span.attributes)
    for number, event in enumerate(span.events):
        yield f"SpanEvent #{number}"
        yield f"     -> Name: {event.name}"
        yield f"     -> Timestamp: {_time(event.time_unix_nano)}"
        yield from _attributes("     -> Attributes", event.attributes)
    for number, link in enumerate(span.links):
        yield f"SpanLink #{number}"
        yield f"     -> Trace ID: {link.trace_id.hex()}"
        yield f"     -> ID: {link.span_id.hex()}"
        yield from _attributes("     -> Attributes", link.attributes)


def _metric(metric: Any) -> Iterator[str]:
    kind = metric.WhichOneof("data") or "empty"
    yield "Descriptor:"
    yield f"     -> Name: {metric.name}"
    yield f"     -> Description: {metric.description}"
    yield f"     -> Unit: {metric.unit}"
    yield f"     -> DataType: {kind.title().replace('_', '')}"
    if kind in ("sum", "histogram", "exponential_histogram"):
        value = getattr(metric, kind)
        if kind == "sum":
            yield f"     -> IsMonotonic: {str(value.is_monotonic).lower()}"
        yield f"     -> AggregationTemporality: {_TEMPORALITY.get(value.aggregation_temporality, value.aggregation_temporality)}"
    for number, point in enumerate(_points(metric)):
        yield f"DataPoints #{number}"
        yield from _attributes("Data point attributes", point.attributes)
        yield f"StartTimestamp: {_time(point.start_time_unix_nano)}"
        yield f"Timestamp: {_time(point.time_unix_nano)}"
        for key, value in _values(point):
            yield f"{key or 'Value'}: {value}"


def _points(metric: Any) -> Any:
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else []


def _values(point: Any) -> Iterator[tuple[str, str]]:
    if point.DESCRIPTOR.name == "NumberDataPoint":
        which = point.WhichOneof("value")
        yield "", _number(getattr(point, which)) if which else "none"
        return
    yield "count", str(point.count)
    for field in ("sum", "min", "max"):
        if field in point.DESCRIPTOR.fields_by_name and (point.DESCRIPTOR.name == "SummaryDataPoint" or point.HasField(field)):
            yield field, _number(getattr(point, field))
    match point.DESCRIPTOR.name:
        case "HistogramDataPoint":
            bounds = [*map(_number, point.explicit_bounds), "+Inf"]
            yield from ((f"le{bound}", str(count)) for bound, count in zip(bounds, point.bucket_counts, strict=False))
        case "SummaryDataPoint":
            yield from ((f"q{_number(q.quantile)}", _number(q.value)) for q in point.quantile_values)
        case _:
            yield "scale", str(point.scale)
            yield "zero_count", str(point.zero_count)
            for sign in ("positive", "negative"):
                buckets = getattr(point, sign)
                yield from ((f"{sign}[{buckets.offset + index}]", str(count)) for index, count in enumerate(buckets.bucket_counts))


def _number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value) if whole else value)


def _attributes(title: str, pairs: Any) -> Iterator[str]:
    if pairs:
        yield f"{title}:"
        yield from (f"     -> {pair.key}: {_typed(pair.value)}" for pair in pairs)


def _pairs(pairs: Any) -> list[str]:
    return [f"{pair.key}={_shown(pair.value)}" for pair in pairs]


_TYPES = {
    "string_value": "Str",
    "bool_value": "Bool",
    "int_value": "Int",
    "double_value": "Double",
    "array_value": "Slice",
    "kvlist_value": "Map",
    "bytes_value": "Bytes",
}


def _typed(value: Any) -> str:
    return f"{_TYPES.get(value.WhichOneof('value') or '', 'Empty')}({_shown(value)})"


def _shown(value: Any) -> str:
    match value.WhichOneof("value"):
        case None:
            return ""
        case "kvlist_value":
            return "{" + ",".join(f"{pair.key}:{_shown(pair.value)}" for pair in value.kvlist_value.values) + "}"
        case "array_value":
            return "[" + ",".join(map(_shown, value.array_value.values)) + "]"
        case "bool_value":
            return str(value.bool_value).lower()
        case "bytes_value":
            return str(value.bytes_value.hex())
        case kind:
            return str(getattr(value, kind))


def _time(nano: int) -> str:
    """RFC 3339 in UTC with nanoseconds."""
    from datetime import UTC, datetime

    if nano >= 2**63:
        return str(nano)
    return f"{datetime.fromtimestamp(nano // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{nano % 10**9:09d} +0000 UTC"


def _joined(*pieces: str | list[str]) -> str:
    return " ".join(part for piece in pieces for part in (piece if isinstance(piece, list) else [piece]) if part)
