"""Prometheus remote write 1.0 and 2.0 -> OTLP metrics.

https://prometheus.io/docs/specs/prw/remote_write_spec/ and .../remote_write_spec_2_0/. What becomes of what:

    label __name__                  the metric's name, as it is: a classic histogram stays its series NAME_bucket, NAME_sum and NAME_count
    labels job, instance            service.name and service.instance.id of the resource (OpenTelemetry's Prometheus compatibility)
    every other label               an attribute of the data point
    a counter, or a series of a histogram or summary that only grows    a cumulative monotonic sum
    any other series                a gauge
    a stale marker                  a data point without a value, flagged as such
    a native histogram              an exponential histogram; with custom buckets, a histogram
    an exemplar                     stands with the data point of its series in the same request, or is lost and counted

What a series is, 2.0 says with each; in 1.0 metadata comes apart from it, and is remembered (`Families`). Where neither says it, the name
does: NAME_total and NAME_bucket are counters. Samples go through a kernel (series.py); what is rare goes through protobuf's classes here.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from lockgate.wire import series
from lockgate.wire.protobuf import DecodeError, delimited, key_values
from lockgate.wire.series import REASONS, Scan, TooLarge

__all__ = ["Families", "TooLarge", "Translation", "translate"]

_SUFFIXES = (b"_total", b"_bucket", b"_count", b"_sum", b"_created", b"_info")
"""What a family's series have behind its name (OpenMetrics 1.0, "Suffixes")."""
_MOST_FAMILIES, _LONG = 16384, 1024
"""Families remembered, and bytes of a text that is: 16 MB in all at worst. Clusters have some thousands."""
_MOST_BUCKETS = 1 << 16
"""Of a native histogram, with the empty ones between: in the finest schema those of a range of 256 powers of two."""
_LATEST_MS = 9223372036854
_NO_SYMBOL = 1 << 30
_STALE = struct.pack("<Q", 0x7FF0000000000002)
_GAUGE_HISTOGRAM = 3
"""The reset hint that says so."""


class Translation(NamedTuple):
    """What a request became."""

    payload: bytes
    """An ExportMetricsServiceRequest of `samples` + `histograms` data points."""
    samples: int
    histograms: int
    exemplars: int
    refused: int
    """Samples and histograms that are not as the specification has them."""
    reason: str
    """Why; empty where nothing is refused."""
    lost_exemplars: int
    """Whose sample or histogram did not come with them."""


class Families:
    """What the metadata of 1.0 said of each metric family. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, bytes, bytes]] = {}
        self._heads: dict[bytes, tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    def learn(self, metadata: bytes) -> None:
        """Notes one MetricMetadata; the one that was noted longest ago is forgotten. Raises DecodeError."""
        kind, name, texts = 0, b"", {4: b"", 5: b""}
        for tag, value in _fields(metadata):
            match tag, value:
                case 1, int():
                    kind = value
                case 2, bytes():
                    name = value
                case 4 | 5, bytes() if len(value) <= _LONG and _is_utf8(value):
                    texts[tag] = value
        if not name or len(name) > _LONG:
            return
        with self._lock:
            found = (kind, texts[4], texts[5])
            if self._known.pop(name, None) != found:
                self._heads.clear()
            self._known[name] = found
            if len(self._known) > _MOST_FAMILIES:
                del self._known[next(iter(self._known))]

    def head(self, name: bytes) -> tuple[bytes, int]:
        """As `_head`, for a series of this name."""
        if (head := self._heads.get(name)) is not None:
            return head
        with self._lock:
            head = _head(name, *self._of(name))
            if len(name) <= _LONG:
                if len(self._heads) >= _MOST_FAMILIES:
                    self._heads.clear()
                self._heads[name] = head
            return head

    def _of(self, name: bytes) -> tuple[int, bytes, bytes]:
        for suffix in (b"", *_SUFFIXES):
            if name.endswith(suffix) and (found := self._known.get(name.removesuffix(suffix))) is not None:
                return found
        return 0, b"", b""


def translate(body: bytes, version: int, families: Families, limit: int) -> Translation:
    """What a request of remote write 1.0 (`version` 1: a prometheus.WriteRequest) or 2.0 (2: io.prometheus.write.v2.Request) says.

    A series that is not as it should be is refused alone. Raises DecodeError where the request is malformed, and TooLarge where it would
    become more than `limit` bytes. Thread-safe.
    """
    scan = series.scan(body, version)
    for metadata in scan.metadata:
        families.learn(metadata)
    heads = [families.head(metric[0]) if version == 1 else _described(scan, *metric) for metric in scan.metrics]
    resources = [_resource(*texts) if sum(map(len, texts)) <= _LONG else _resource.__wrapped__(*texts) for texts in scan.resources]
    skip = bytearray(scan.series)
    rare = _Rare(body, scan, resources, heads, limit)
    if any(scan.rows[7::8]):
        rare.take(skip)
    rest = rare.encoded()
    payload = series.write(
        scan, resources, [head for head, _ in heads], bytes(is_sum for _, is_sum in heads), bytes(skip), max(0, limit - len(rest))
    )
    refused = sum(scan.refused) + sum(rare.refused.values())
    reason = ""
    if scan.first_refused >= 0:
        reason = f"{REASONS[scan.first_reason]}, in the series at byte {scan.first_refused}"
    elif rare.refused:
        reason = next(iter(rare.refused))
    lost = scan.lost_exemplars + rare.lost_exemplars
    return Translation(payload + rest, scan.accepted, rare.histograms, rare.exemplars, refused, reason, lost)


@lru_cache(4096)
def _resource(job: bytes, instance: bytes) -> bytes:
    """The resource field of a ResourceMetrics. The job stays whole, though contrib splits one with a slash into namespace and name: the
    Prometheus receiver and the processors behind it know the job by service.name."""
    named = (("service.name", job), ("service.instance.id", instance))
    return delimited(1, key_values(1, [(key, value.decode()) for key, value in named if value]))


def _head(name: bytes, kind: int, help_text: bytes, unit: bytes) -> tuple[bytes, int]:
    """The fields of a Metric but its data, and 1 where that is a sum, 0 where it is a gauge. `kind` is a MetricType, 0 if nobody said."""
    match kind:
        case 1:  # counter
            is_sum = not name.endswith(b"_created")
        case 3 | 5:  # histogram, summary
            is_sum = name.endswith((b"_bucket", b"_count", b"_sum"))
        case 0:
            is_sum = name.endswith((b"_total", b"_bucket"))
        case _:
            is_sum = False
    texts = ((1, name), (2, help_text), (3, unit))
    return b"".join(delimited(field, text) for field, text in texts if text), int(is_sum)


_cached_head = lru_cache(_MOST_FAMILIES)(_head)


def _described(scan: Scan, name: bytes, kind: int, help_symbol: int, unit_symbol: int) -> tuple[bytes, int]:
    help_text, unit = scan.text_of(help_symbol), scan.text_of(unit_symbol)
    make = _cached_head if len(name) + len(help_text) + len(unit) <= _LONG else _head
    return make(name, kind, help_text, unit)


class _Refused(Exception):
    """This histogram or exemplar cannot be taken; the text says why."""


class _Rare:
    """The series with native histograms or exemplars, and those that exemplars in the request belong to."""

    def __init__(self, body: bytes, scan: Scan, resources: Sequence[bytes], heads: Sequence[tuple[bytes, int]], limit: int) -> None:
        self._body, self._scan, self._resources, self._heads, self._room = body, scan, resources, heads, limit
        self._request: Any = None
        self._scopes: dict[int, Any] = {}
        self._metrics: dict[tuple[int, int, str], Any] = {}
        self.refused: Counter[str] = Counter()
        self.histograms = self.exemplars = self.lost_exemplars = 0

    def take(self, skip: bytearray) -> None:
        """Takes what is its, and notes it in `skip`."""
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest  # 8 MB that few need

        self._request = ExportMetricsServiceRequest()
        rows, body = self._scan.rows, self._body
        exemplars: dict[bytes, list[bytes]] = {}
        exemplar_tag, histogram_tag = (3, 4) if self._scan.version == 1 else (4, 3)
        mine: dict[int, list[tuple[int, int | bytes]]] = {}
        for number in range(self._scan.series):
            row = rows[8 * number : 8 * number + 8]
            if row[7] and row[4] >= 0:
                mine[number] = list(_fields(body[row[0] : row[1]]))
                exemplars.setdefault(_labels(body, row), []).extend(_delimited(mine[number], exemplar_tag))
        exemplars = {labels: found for labels, found in exemplars.items() if found}
        if exemplars:
            for number in range(self._scan.series):
                row = rows[8 * number : 8 * number + 8]
                if number not in mine and row[4] >= 0 and row[6] and _labels(body, row) in exemplars:
                    mine[number] = list(_fields(body[row[0] : row[1]]))
        points: dict[bytes, Any] = {}
        for number, fields in sorted(mine.items()):
            skip[number] = 1
            row = rows[8 * number : 8 * number + 8]
            created = next((value for tag, value in fields if tag == 6 and isinstance(value, int)), 0) if histogram_tag == 3 else 0
            point = None
            for raw in _delimited(fields, 2):
                point = self._sample(number, row, raw, created) or point
            for raw in _delimited(fields, histogram_tag):
                try:
                    point = self._histogram(number, row, _Histogram(raw, created))
                    self.histograms += 1
                except _Refused as refusal:
                    self.refused[f"{refusal}, in the series at byte {row[0]}"] += 1
            if point is not None:
                points[_labels(body, row)] = point
        for labels, found in exemplars.items():
            for raw in found:
                try:
                    if (point := points.get(labels)) is None:
                        raise _Refused("its sample did not come with it")
                    self._exemplar(point, raw)
                    self.exemplars += 1
                except _Refused:
                    self.lost_exemplars += 1

    def encoded(self) -> bytes:
        """What was taken, as an ExportMetricsServiceRequest. Raises TooLarge."""
        payload: bytes = self._request.SerializeToString() if self._request is not None else b""
        return payload

    def _hold(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise TooLarge

    def _points(self, row: Sequence[int], kind: str) -> Any:
        """The data points of the series' metric, of this kind: gauge, sum, exponential_histogram or histogram."""
        resource, metric = row[4], row[5]
        if (resource, metric, kind) not in self._metrics:
            self._hold(len(self._resources[resource]) + len(self._heads[metric][0]))
            if resource not in self._scopes:
                entry = self._request.resource_metrics.add()
                entry.MergeFromString(self._resources[resource])
                self._scopes[resource] = entry.scope_metrics.add()
            made = self._scopes[resource].metrics.add()
            made.MergeFromString(self._heads[metric][0])
            data = getattr(made, kind)
            data.SetInParent()
            if kind != "gauge":
                data.aggregation_temporality = 2
            if kind == "sum":
                data.is_monotonic = True
            self._metrics[resource, metric, kind] = data.data_points
        return self._metrics[resource, metric, kind]

    def _point(self, number: int, row: Sequence[int], kind: str, attributes_field: int, time_ms: int, start_ms: int) -> Any:
        attributes = self._scan.attributes(number, attributes_field, self._room)
        self._hold(len(attributes) + 40)
        point = self._points(row, kind).add(time_unix_nano=time_ms * 1_000_000, start_time_unix_nano=start_ms * 1_000_000)
        point.MergeFromString(attributes)
        return point

    def _sample(self, number: int, row: Sequence[int], raw: bytes, created: int) -> Any:
        """The sample's data point; None where the kernel has refused it."""
        value, time, start = bytes(8), 0, created
        for tag, content in _fields(raw):
            match tag, content:
                case 1, bytes():
                    value = content
                case 2, int():
                    time = content
                case 3, int() if content:
                    start = content
        if time > _LATEST_MS:
            return None
        point = self._point(number, row, "sum" if self._heads[row[5]][1] else "gauge", 7, time, start if start <= _LATEST_MS else 0)
        if value == _STALE:
            point.flags = 1
        else:
            point.as_double = struct.unpack("<d", value)[0]
        return point

    def _histogram(self, number: int, row: Sequence[int], it: _Histogram) -> Any:
        if it.time > _LATEST_MS:
            raise _Refused("a histogram's time is before 1970 or after 2262")
        if it.hint == _GAUGE_HISTOGRAM:
            raise _Refused("OTLP has no gauge histograms")
        is_custom = it.schema == -53  # the schema that means custom buckets (Prometheus' native histograms specification, "Schema")
        if not is_custom and not -4 <= it.schema <= 8:
            raise _Refused(f"a native histogram has the unknown schema {it.schema}")
        is_stale = it.sum == _STALE
        sides = [] if is_stale else [it.side(is_negative) for is_negative in (False, True)]
        count, zero_count = _whole(it.count), _whole(it.zero_count)
        if is_custom and sides:
            offset, counts = sides[0]
            most = len(it.bounds) + 1
            if offset < 0 or offset + len(counts) > most:
                raise _Refused("a native histogram has more buckets than custom values")
            sides = [(0, [0] * offset + counts + [0] * (most - offset - len(counts)))]
        self._hold(sum(10 * len(counts) for _, counts in sides) + 8 * len(it.bounds))
        kind, field = ("histogram", 9) if is_custom else ("exponential_histogram", 1)
        point = self._point(number, row, kind, field, it.time, it.start if it.start <= _LATEST_MS else 0)
        if is_stale:
            point.flags = 1
            return point
        point.count = count
        point.sum = struct.unpack("<d", it.sum)[0]
        if is_custom:
            point.explicit_bounds.extend(it.bounds)
            point.bucket_counts.extend(sides[0][1])
            return point
        point.scale, point.zero_count, point.zero_threshold = it.schema, zero_count, it.zero_threshold
        for buckets, (offset, counts) in zip((point.positive, point.negative), sides, strict=True):
            if counts:
                # Prometheus numbers a bucket by its upper bound, OTLP by its lower one.
                buckets.offset = offset - 1
                buckets.bucket_counts.extend(counts)
        return point

    def _exemplar(self, point: Any, raw: bytes) -> None:
        value, time = 0.0, 0
        texts: list[bytes] = []
        for tag, content in _fields(raw):
            match tag, content:
                case 1, bytes() if self._scan.version == 1:
                    fields = dict(_fields(content))
                    texts += [text if isinstance(text := fields.get(part), bytes) else b"" for part in (1, 2)]
                case 1, bytes():
                    texts += [self._scan.text_of(min(symbol, _NO_SYMBOL)) for symbol in _varints(content)]
                case 1, int():
                    texts.append(self._scan.text_of(min(content, _NO_SYMBOL)))
                case 2, bytes():
                    value = _double(content)
                case 3, int():
                    time = content
        labels = dict(zip(texts[::2], texts[1::2], strict=False))
        self._hold(sum(map(len, texts)) + 40)
        if time > _LATEST_MS or not all(map(_is_utf8, texts)):
            raise _Refused("an exemplar's time or labels are not valid")
        made = point.exemplars.add(time_unix_nano=time * 1_000_000, as_double=value)
        for name, size in ((b"trace_id", 32), (b"span_id", 16)):
            text = labels.get(name, b"")
            if len(text) == size and all(byte in b"0123456789abcdefABCDEF" for byte in text):
                setattr(made, name.decode(), bytes.fromhex(text.decode()))
                del labels[name]
        made.MergeFromString(key_values(7, [(name.decode(), text.decode()) for name, text in labels.items() if name]))


class _Histogram:
    """A native histogram as it came. Raises _Refused or DecodeError."""

    def __init__(self, raw: bytes, created: int) -> None:
        self.count: int | float = 0
        self.zero_count: int | float = 0
        self.sum = bytes(8)
        self.schema = self.time = self.hint = 0
        self.zero_threshold, self.start = 0.0, created
        self.bounds: list[float] = []
        self._spans: dict[int, list[tuple[int, int]]] = {8: [], 11: []}
        self._deltas: dict[int, list[int]] = {9: [], 12: []}
        self._counts: dict[int, list[float]] = {10: [], 13: []}
        for tag, value in _fields(raw):
            match tag, value:
                case 1, int():
                    self.count = value
                case 2, bytes():
                    self.count = _double(value)
                case 3, bytes() if len(value) == 8:
                    self.sum = value
                case 4, int():
                    self.schema = _signed(value)
                case 5, bytes():
                    self.zero_threshold = _double(value)
                case 6, int():
                    self.zero_count = value
                case 7, bytes():
                    self.zero_count = _double(value)
                case 8 | 11, bytes():
                    span = {tag: number for tag, number in _fields(value) if isinstance(number, int)}
                    self._spans[tag].append((_signed(span.get(1, 0)), span.get(2, 0)))
                case 9 | 12, bytes():
                    self._deltas[tag] += map(_signed, _varints(value))
                case 9 | 12, int():
                    self._deltas[tag].append(_signed(value))
                case 10 | 13, bytes():
                    self._counts[tag] += _doubles(value)
                case 14, int():
                    self.hint = value
                case 15, int():
                    self.time = value
                case 16, bytes():
                    self.bounds += _doubles(value)
                case 17, int() if value:
                    self.start = value

    def side(self, is_negative: bool) -> tuple[int, list[int]]:
        """The first bucket's number and all buckets from there on, with the empty ones."""
        first = 8 if is_negative else 11
        spans, deltas, floats = self._spans[first], self._deltas[first + 1], self._counts[first + 2]
        counts = [_whole(count) for count in (floats or accumulate(deltas))]
        gaps = [offset for offset, _ in spans[1:]]
        if sum(length for _, length in spans) != len(counts) or min(gaps, default=0) < 0:
            raise _Refused("a native histogram's spans are not those of its buckets")
        if spans and not -(2**31) < spans[0][0] < 2**31:
            raise _Refused("a native histogram's first bucket is farther than OTLP counts")
        if sum(gaps) + len(counts) > _MOST_BUCKETS:
            raise _Refused(f"a native histogram has more than {_MOST_BUCKETS} buckets")
        dense: list[int] = []
        at = 0
        for number, (offset, length) in enumerate(spans):
            dense += [0] * (offset if number else 0) + counts[at : at + length]
            at += length
        return (spans[0][0] if spans else 0), dense


def _labels(body: bytes, row: Sequence[int]) -> bytes:
    """A series' labels as they came; where they stand apart, what is of no other series."""
    return body[row[2] : row[3]] if row[2] >= 0 else b"%d" % row[0]


def _delimited(fields: list[tuple[int, int | bytes]], wanted: int) -> list[bytes]:
    return [value for tag, value in fields if tag == wanted and isinstance(value, bytes)]


def _whole(count: int | float) -> int:
    """A count as OTLP has it: a float histogram's is cut. Raises _Refused."""
    if not 0 <= count < 2**64:
        raise _Refused("a native histogram has a count below zero, or none that OTLP could say")
    return int(count)


def _signed(number: int) -> int:
    """What a zigzag varint means."""
    return number >> 1 ^ -(number & 1)


def _double(raw: bytes) -> float:
    if len(raw) != 8:
        raise DecodeError("a number of another wire type than double")
    value: float = struct.unpack("<d", raw)[0]
    return value


def _doubles(raw: bytes) -> Sequence[float]:
    if len(raw) % 8:
        raise DecodeError("packed doubles that do not hold whole numbers")
    return struct.unpack(f"<{len(raw) // 8}d", raw)


def _varints(raw: bytes) -> Iterator[int]:
    at = 0
    while at < len(raw):
        value, at = _varint(raw, at)
        yield value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise DecodeError("a varint that is longer than ten bytes, or runs past the end")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: a varint's number, the bytes of any other. Raises DecodeError."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        if tag & 7 == 0:
            number, at = _varint(raw, at)
            yield tag >> 3, number
            continue
        match tag & 7:
            case 1:
                size = 8
            case 2:
                size, at = _varint(raw, at)
            case 5:
                size = 4
            case kind:
                raise DecodeError(f"wire type {kind} is not used by remote write")
        if size > len(raw) - at:
            raise DecodeError("a field runs past the end of its message")
        yield tag >> 3, raw[at : at + size]
        at += size


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
