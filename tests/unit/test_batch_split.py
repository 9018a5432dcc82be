"""Splitting a batch loses and doubles nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from support import batch, logs

from lockgate.attributes.records import data_points, groups
from lockgate.batch import Batch, Origin, Signal, count_records, split
from lockgate.wire.protobuf import DecodeError

shapes = st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=4)


def log_batch(shape: list[list[int]]) -> Batch:
    request, number = ExportLogsServiceRequest(), 0
    for at, inner in enumerate(shape):
        entry = request.resource_logs.add(schema_url=f"r{at}")
        entry.resource.attributes.add(key="r").value.int_value = at
        for position, count in enumerate(inner):
            scope = entry.scope_logs.add(schema_url=f"s{position}")
            scope.scope.name = f"{at}/{position}"
            for _ in range(count):
                scope.log_records.add(time_unix_nano=number).body.int_value = number
                number += 1
    return batch(Signal.LOGS, request)


def metric_batch(shape: list[list[int]]) -> Batch:
    request, number = ExportMetricsServiceRequest(), 0
    for at, inner in enumerate(shape):
        entry = request.resource_metrics.add()
        entry.resource.attributes.add(key="r").value.int_value = at
        scope = entry.scope_metrics.add()
        for position, count in enumerate(inner):
            metric = scope.metrics.add(name=f"{at}/{position}", unit="s")
            if position % 2:
                metric.sum.is_monotonic = True
                metric.sum.aggregation_temporality = 2  # type: ignore[assignment]
            points = metric.sum.data_points if position % 2 else metric.gauge.data_points
            for _ in range(count):
                points.add(as_int=number)
                number += 1
    return batch(Signal.METRICS, request)


def seen(found: Batch) -> list[Any]:
    """Each record with all that it stands under."""
    rows: list[Any] = []
    for entry, scope, records in groups(found.signal, found.message):
        for record in records:
            under = (entry.resource.SerializeToString(), entry.schema_url, scope.scope.SerializeToString(), scope.schema_url)
            if found.signal is Signal.LOGS:
                rows.append((under, record.SerializeToString()))
            else:
                kind = (record.name, record.unit, record.sum.is_monotonic, record.sum.aggregation_temporality, record.WhichOneof("data"))
                rows += [(under, kind, point.SerializeToString()) for point in data_points(record)]
    return rows


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 9), st.sampled_from([log_batch, metric_batch]))
def test_pieces_hold_the_same_records_under_the_same_things_in_the_same_order(shape: list[list[int]], size: int, make: Any) -> None:
    whole = make(shape)
    pieces = split(whole, size)
    assert [row for piece in pieces for row in seen(piece)] == seen(whole)
    counts = [piece.count for piece in pieces]
    assert counts == [count_records(piece.signal, piece.payload) for piece in pieces]
    if whole.count > size:
        assert all(count == size for count in counts[:-1]) and 0 < counts[-1] <= size


def test_ids_follow_from_the_batch_and_origins_go_with_the_last_piece() -> None:
    origins = (Origin("f", 0, 10),)
    given_ = logs("1", "2", "3")
    whole = Batch(given_.signal, given_.payload, given_.count, "id", "10.0.0.1", origins)
    pieces = split(whole, 2)
    assert [(piece.id, piece.count, piece.peer, piece.origins) for piece in pieces] == [
        ("id#0", 2, "10.0.0.1", ()),
        ("id#1", 1, "10.0.0.1", (*origins, Origin("", 0, 0, 0, -2))),  # so that the ledger counts three records, and not five
    ]
    assert split(whole, 3) == [whole]


def test_a_damaged_payload_is_a_decode_error() -> None:
    whole = logs("1", "2", "3")
    with pytest.raises(DecodeError):
        split(Batch(Signal.LOGS, whole.payload[:-1], 3, "id"), 1)
