"""A batch as the requests that a Sumo Logic source takes: text and JSON lines, Prometheus text, OTLP with decomposed metrics.

Behaviour of the collector's sumologic exporter (opentelemetry-collector-contrib), except that what is not delivered keeps its scopes.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from lockgate.attributes.values import float_text, text
from lockgate.batch import Batch

Headers = tuple[tuple[str, str], ...]

_encode = msgspec.json.Encoder().encode
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SOURCE = {"_sourceHost": "X-Sumo-Host", "_sourceName": "X-Sumo-Name", "_sourceCategory": "X-Sumo-Category"}
_NOT_IN_A_NAME = re.compile(r"[^0-9a-zA-Z./_:\-]")
_FIELD = str.maketrans({",": "_", "=": ":", "\n": "_"})
_LABEL = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Request:
    """One body of `count` records, and the headers that its resource asks for."""

    body: bytes
    count: int
    headers: Headers = ()


def log_requests(batch: Batch, format: str, max_bytes: int) -> Iterator[Request]:
    """Lines of text or JSON. Records whose resources ask for different headers never share a request."""
    line = _json_line if format == "json" else _text_line
    groups: dict[Headers, list[bytes]] = {}
    for resource in batch.message.resource_logs:
        lines = groups.setdefault(_log_headers(texts(resource.resource.attributes)), [])
        lines += [line(record) for scope in resource.scope_logs for record in scope.log_records]
    for headers, lines in groups.items():
        yield from _packed(([line] for line in lines), headers, max_bytes)


def prometheus_requests(batch: Batch, max_bytes: int) -> Iterator[Request]:
    """Prometheus text with millisecond timestamps; exponential histograms have no form in it and are left out.

    Metrics of several resources share a request while their source headers are equal: labels carry the rest.
    """
    groups: dict[Headers, list[list[bytes]]] = {}
    for resource in batch.message.resource_metrics:
        own = texts(resource.resource.attributes)
        points = groups.setdefault(_source_headers(own), [])
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points += ([line.encode() for line in lines] for lines in _prometheus_points(metric, own))
    for headers, several in groups.items():
        yield from _packed(several, headers, max_bytes)


def _packed(records: Iterable[list[bytes]], headers: Headers, max_bytes: int) -> Iterator[Request]:
    """Lines joined to bodies below the bound; the lines of one record stay together, and a longer one goes alone."""
    lines: list[bytes] = []
    size = count = 0
    for record in records:
        more = sum(map(len, record)) + len(record)
        if lines and size + more > max_bytes:
            yield Request(b"\n".join(lines), count, headers)
            lines, size, count = [], 0, 0
        lines += record
        size += more
        count += 1
    if lines:
        yield Request(b"\n".join(lines), count, headers)


def _source_headers(own: dict[str, str]) -> Headers:
    return tuple((header, _CONTROL.sub("_", own[key])) for key, header in _SOURCE.items() if own.get(key))


def _log_headers(own: dict[str, str]) -> Headers:
    fields = ", ".join(sorted(f"{_field(key)}={_field(value)}" for key, value in own.items() if key not in _SOURCE and value))
    return (*_source_headers(own), *((("X-Sumo-Fields", fields),) if fields else ()))


def _field(text: str) -> str:
    # Line feeds become `_`; other control characters as well, because no HTTP client sends them in a header.
    return _CONTROL.sub("_", text.translate(_FIELD))


def _text_line(record: Any) -> bytes:
    return text(record.body).encode()


def _json_line(record: Any) -> bytes:
    line = attributes(record.attributes)
    # Absent, "", [], {} and no bytes are no body; 0 and false are one.
    if (body := plain(record.body)) not in (None, "", [], {}):
        line["log"] = body
    return _encode(line)


def texts(pairs: Iterable[Any]) -> dict[str, str]:
    """KeyValues as a dict of text."""
    return {pair.key: text(pair.value) for pair in pairs}


def attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """KeyValues as a dict of plain values."""
    return {pair.key: plain(pair.value) for pair in pairs}


def plain(value: Any) -> Any:
    """The AnyValue as JSON has it; bytes in base64."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "kvlist_value":
            return attributes(value.kvlist_value.values)
        case "array_value":
            return [plain(item) for item in value.array_value.values]
        case "bytes_value":
            return b64encode(value.bytes_value).decode()
        case None:
            return None
        case kind:
            return getattr(value, kind)


def go_number(value: float) -> str:
    """A float as Go's %g writes it: the fewest digits that read back, an exponent below -4 and from 6 on."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).rstrip("0")
    exponent += len(digits) - 1
    minus = "-" if sign else ""
    if -4 <= exponent < 6:
        if exponent < 0:
            return f"{minus}0.{'0' * (-exponent - 1)}{text}"
        whole, fraction = text[: exponent + 1].ljust(exponent + 1, "0"), text[exponent + 1 :]
        return f"{minus}{whole}{'.' + fraction if fraction else ''}"
    return f"{minus}{text[0]}{'.' + text[1:] if text[1:] else ''}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _prometheus_points(metric: Any, resource: dict[str, str]) -> Iterator[list[str]]:
    """The lines of each data point."""
    kind = metric.WhichOneof("data")
    if kind not in ("gauge", "sum", "histogram", "summary"):
        return
    name = _NOT_IN_A_NAME.sub("_", metric.name)
    for point in getattr(metric, kind).data_points:
        labels = resource | texts(point.attributes)
        stamp = point.time_unix_nano // 1_000_000

        def line(suffix: str, value: float, labels: dict[str, str] = labels, stamp: int = stamp) -> str:
            return f"{name}{suffix}{_labels(labels)} {_number(value)} {stamp}"

        if kind in ("gauge", "sum"):
            which = point.WhichOneof("value")
            yield [line("", getattr(point, which) if which else 0)]
            continue
        lines = []
        if kind == "histogram":
            for bound, count in cumulative(point):
                lines.append(line("_bucket", count, labels | {"le": float_text(bound)}))
        else:
            for quantile in point.quantile_values:
                lines.append(line("", quantile.value, labels | {"quantile": float_text(quantile.quantile)}))
        if kind == "summary" or point.HasField("sum"):
            lines.append(line("_sum", point.sum))
        yield [*lines, line("_count", point.count)]


def cumulative(point: Any) -> Iterator[tuple[float, int]]:
    """(upper bound, observations up to it) for each bucket of a histogram's point, the last bound +Inf."""
    total = 0
    for index, count in enumerate(point.bucket_counts):
        total += count
        yield (point.explicit_bounds[index] if index < len(point.explicit_bounds) else math.inf), total


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{_NOT_IN_A_NAME.sub("_", key)}="{value.translate(_LABEL)}"' for key, value in labels.items()) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else go_number(value)


def decomposed(batch: Batch, *, histograms: bool, summaries: bool) -> Batch:
    """The batch with its histograms and summaries as gauges and sums, which Sumo Logic's OTLP source can query; unchanged without any."""
    kinds = {"histogram": histograms, "summary": summaries}
    if not any(_metrics(batch.message, kinds)):
        return batch
    message = batch.copy_message()
    count = batch.count
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            old = [metric for metric in scope.metrics if kinds.get(metric.WhichOneof("data") or "")]
            new: list[Any] = []
            for metric in old:
                new += (_histogram_parts if metric.HasField("histogram") else _summary_parts)(metric)
                count -= len(getattr(metric, metric.WhichOneof("data")).data_points)
            count += sum(len(getattr(metric, metric.WhichOneof("data")).data_points) for metric in new)
            kept = [metric for metric in scope.metrics if not kinds.get(metric.WhichOneof("data") or "")]
            del scope.metrics[:]
            scope.metrics.extend(kept + new)
    return batch.with_message(message, count)


def _metrics(message: Any, kinds: dict[str, bool]) -> Iterator[bool]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield kinds.get(metric.WhichOneof("data") or "", False)


def _histogram_parts(metric: Any) -> Iterator[Any]:
    yield _part(metric, "_sum", lambda p: [(p.sum, {})] if p.HasField("sum") else [])
    yield _part(metric, "_count", lambda p: [(p.count, {})])
    yield _part(metric, "_bucket", lambda p: [(count, {"le": bound}) for bound, count in cumulative(p)])


def _summary_parts(metric: Any) -> Iterator[Any]:
    yield _part(metric, "", lambda p: [(q.value, {"quantile": q.quantile}) for q in p.quantile_values])
    yield _part(metric, "_count", lambda p: [(p.count, {})], unit="1", is_counter=True)
    yield _part(metric, "_sum", lambda p: [(p.sum, {})], is_counter=True)


def _part(
    metric: Any,
    suffix: str,
    values: Callable[[Any], list[tuple[float, dict[str, float]]]],
    *,
    unit: str | None = None,
    is_counter: bool = False,
) -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

    part = Metric(name=metric.name + suffix, description=metric.description, unit=metric.unit if unit is None else unit)
    target = part.sum if is_counter else part.gauge
    target.SetInParent()
    if is_counter:
        part.sum.is_monotonic, part.sum.aggregation_temporality = True, AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for point in getattr(metric, metric.WhichOneof("data")).data_points:
        for value, more in values(point):
            new = target.data_points.add(time_unix_nano=point.time_unix_nano, start_time_unix_nano=point.start_time_unix_nano)
            new.attributes.extend(attribute for attribute in point.attributes if attribute.key not in more)
            for key, number in more.items():
                new.attributes.add(key=key).value.double_value = number
            if isinstance(value, int):
                new.as_int = min(value, 2**63 - 1)
            else:
                new.as_double = value
    return part
