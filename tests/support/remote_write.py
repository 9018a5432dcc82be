"""Remote write's messages, from definitions of our own, and what they mean, written as plainly as it can be: the kernel's twin."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "int64": Field.TYPE_INT64,
    "uint64": Field.TYPE_UINT64,
    "uint32": Field.TYPE_UINT32,
    "int32": Field.TYPE_INT32,
    "sint32": Field.TYPE_SINT32,
    "sint64": Field.TYPE_SINT64,
    "double": Field.TYPE_DOUBLE,
    # As bytes, so that tests can put what is not UTF-8 there; on the wire it is the same.
    "string": Field.TYPE_BYTES,
}
_HISTOGRAM = {
    "count_int": (1, "uint64"),
    "count_float": (2, "double"),
    "sum": (3, "double"),
    "schema": (4, "sint32"),
    "zero_threshold": (5, "double"),
    "zero_count_int": (6, "uint64"),
    "zero_count_float": (7, "double"),
    "negative_spans": (8, "*Span"),
    "negative_deltas": (9, "*sint64"),
    "negative_counts": (10, "*double"),
    "positive_spans": (11, "*Span"),
    "positive_deltas": (12, "*sint64"),
    "positive_counts": (13, "*double"),
    "reset_hint": (14, "int32"),
    "timestamp": (15, "int64"),
    "custom_values": (16, "*double"),
    "start_timestamp": (17, "int64"),
}
_SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "Span": {"offset": (1, "sint32"), "length": (2, "uint32")},
    "Histogram": _HISTOGRAM,
    "Label": {"name": (1, "string"), "value": (2, "string")},
    "Sample": {"value": (1, "double"), "timestamp": (2, "int64")},
    "Exemplar": {"labels": (1, "*Label"), "value": (2, "double"), "timestamp": (3, "int64")},
    "Metadata": {"type": (1, "int32"), "metric_family_name": (2, "string"), "help": (4, "string"), "unit": (5, "string")},
    "TimeSeries": {"labels": (1, "*Label"), "samples": (2, "*Sample"), "exemplars": (3, "*Exemplar"), "histograms": (4, "*Histogram")},
    "WriteRequest": {"timeseries": (1, "*TimeSeries"), "metadata": (3, "*Metadata")},
    "Sample2": {"value": (1, "double"), "timestamp": (2, "int64"), "start_timestamp": (3, "int64")},
    "Exemplar2": {"labels_refs": (1, "*uint32"), "value": (2, "double"), "timestamp": (3, "int64")},
    "Metadata2": {"type": (1, "int32"), "help_ref": (3, "uint32"), "unit_ref": (4, "uint32")},
    "TimeSeries2": {
        "labels_refs": (1, "*uint32"),
        "samples": (2, "*Sample2"),
        "histograms": (3, "*Histogram"),
        "exemplars": (4, "*Exemplar2"),
        "metadata": (5, "Metadata2"),
        "created_timestamp": (6, "int64"),
    },
    "Request": {"symbols": (4, "*string"), "timeseries": (5, "*TimeSeries2")},
}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="remote_write_of_tests.proto", package="remote_write_of_tests", syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            bare = kind.removeprefix("*")
            made = message.field.add(name=field, number=number, label=Field.LABEL_REPEATED if kind != bare else Field.LABEL_OPTIONAL)
            if bare in _KINDS:
                made.type = _KINDS[bare]
            else:
                made.type, made.type_name = Field.TYPE_MESSAGE, f".remote_write_of_tests.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    named = {name: pool.FindMessageTypeByName(f"remote_write_of_tests.{name}") for name in _SCHEMA}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in named.items()}


MESSAGES = _messages()
WriteRequest, Request = MESSAGES["WriteRequest"], MESSAGES["Request"]
STALE: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]

Labels = list[tuple[str, str]]


def labels(**pairs: str) -> Labels:
    """Sorted, with `name` as __name__."""
    return sorted(("__name__" if key == "name" else key, value) for key, value in pairs.items())


def add_series(request: Any, pairs: Labels, samples: list[tuple[float, int]] = [], **fields: Any) -> Any:  # noqa: B006  # read only
    """A series of either version's request; `fields` for its other fields, in 2.0 also kind, help and unit."""
    if isinstance(request, WriteRequest):
        made = request.timeseries.add(**fields)
        for name, value in pairs:
            made.labels.add(name=name.encode("utf-8", "surrogateescape"), value=value.encode("utf-8", "surrogateescape"))
    else:
        metadata = {"kind": fields.pop("kind", 0), "help": fields.pop("help", ""), "unit": fields.pop("unit", "")}
        made = request.timeseries.add(**fields)
        for pair in pairs:
            made.labels_refs.extend(reference(request, text) for text in pair)
        made.metadata.type = metadata["kind"]
        made.metadata.help_ref, made.metadata.unit_ref = reference(request, metadata["help"]), reference(request, metadata["unit"])
    for number, timestamp in samples:
        made.samples.add(value=number, timestamp=timestamp)
    return made


def reference(request: Any, text: str) -> int:
    """The number of this symbol, which is there from now on."""
    if not request.symbols:
        request.symbols.append(b"")
    raw = text.encode("utf-8", "surrogateescape")
    known: Mapping[bytes, int] = {symbol: number for number, symbol in reversed(list(enumerate(request.symbols)))}
    if raw not in known:
        request.symbols.append(raw)
        return len(request.symbols) - 1
    return known[raw]


Point = tuple[Any, ...]
"""(resource, metric, unit, kind, attributes, start in ms, time in ms, value, is stale): see `points_of`."""


def points_of(payload: bytes) -> list[Point]:
    """Every number data point of an export request, flat, sorted; a value as its bits, so that NaN equals itself."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    found = []
    for entry in ExportMetricsServiceRequest.FromString(payload).resource_metrics:
        resource = tuple(sorted((each.key, each.value.string_value) for each in entry.resource.attributes))
        for metric in entry.scope_metrics[0].metrics:
            kind = metric.WhichOneof("data")
            if kind not in ("gauge", "sum"):
                continue
            data = getattr(metric, kind)
            assert kind == "gauge" or (data.is_monotonic and data.aggregation_temporality == 2)
            for point in data.data_points:
                attributes = tuple((each.key, each.value.string_value) for each in point.attributes)
                times = (point.start_time_unix_nano // 10**6, point.time_unix_nano // 10**6)
                value = struct.pack("<d", point.as_double) if point.HasField("as_double") else b""
                found.append((resource, metric.name, metric.unit, kind, attributes, *times, value, bool(point.flags & 1)))
    return sorted(found)


def expected(request: Any, kinds: Mapping[str, int] | None = None) -> tuple[list[Point], int]:
    """What `points_of` should give for this request, and how many samples and histograms are refused. `kinds`: metadata, by family."""
    found: list[Point] = []
    refused = 0
    for one in request.timeseries:
        pairs = list(_pairs(request, one))
        names = [name for name, _ in pairs]
        texts = [text for pair in pairs for text in pair]
        present = {name: value for name, value in pairs if value}
        is_good = "" not in names and len(set(names)) == len(names) and "__name__" in present
        if not is_good or any("\udc80" <= letter <= "\udcff" for text in texts for letter in text):
            refused += len(one.samples) + len(one.histograms)
            continue
        name = present.pop("__name__")
        resource = {"service.name": present.pop("job", ""), "service.instance.id": present.pop("instance", "")}
        is_first = isinstance(request, WriteRequest)
        kind = (kinds or {}).get(name, 0) if is_first else one.metadata.type
        unit = "" if is_first else request.symbols[one.metadata.unit_ref].decode() if one.metadata.unit_ref else ""
        is_sum = name.endswith(
            {0: ("_total", "_bucket"), 3: ("_bucket", "_count", "_sum"), 5: ("_bucket", "_count", "_sum")}.get(kind, ()) or ()
        ) or (kind == 1 and not name.endswith("_created"))
        for sample in one.samples:
            if not 0 <= sample.timestamp <= 9223372036854:
                refused += 1
                continue
            start = 0 if is_first else sample.start_timestamp or one.created_timestamp
            raw = struct.pack("<d", sample.value)
            is_stale = math.isnan(sample.value) and raw == struct.pack("<d", STALE)
            found.append(
                (
                    tuple(sorted((key, value) for key, value in resource.items() if value)),
                    name,
                    unit,
                    "sum" if is_sum else "gauge",
                    tuple((key, value) for key, value in pairs if key in present and value),
                    start if 0 <= start <= 9223372036854 else 0,
                    sample.timestamp,
                    b"" if is_stale else raw,
                    is_stale,
                )
            )
    return sorted(found), refused


def _pairs(request: Any, one: Any) -> Iterator[tuple[str, str]]:
    if isinstance(request, WriteRequest):
        for label in one.labels:
            yield label.name.decode("utf-8", "surrogateescape"), label.value.decode("utf-8", "surrogateescape")
    else:
        texts = [request.symbols[number].decode("utf-8", "surrogateescape") for number in one.labels_refs]
        yield from zip(texts[::2], texts[1::2], strict=True)
