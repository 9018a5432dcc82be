"""What remote write's series become: kinds, metadata, native histograms, exemplars, and the refusals of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from support.mutation import mutated
from support.remote_write import STALE, Request, WriteRequest, add_series, expected, labels, points_of

from lockgate.batch import Signal, count_records
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.remote_write import Families, TooLarge, Translation, translate

LIMIT = 1 << 24


def of(request: Any, families: Families | None = None, limit: int = LIMIT) -> Translation:
    version = 1 if isinstance(request, WriteRequest) else 2
    found = translate(request.SerializeToString(), version, families or Families(), limit)
    assert count_records(Signal.METRICS, found.payload) == found.samples + found.histograms
    return found


def metrics_of(found: Translation) -> dict[str, Any]:
    request = ExportMetricsServiceRequest.FromString(found.payload)
    return {metric.name: metric for entry in request.resource_metrics for metric in entry.scope_metrics[0].metrics}


def new(version: int) -> Any:
    return WriteRequest() if version == 1 else Request()


both = pytest.mark.parametrize("version", [1, 2])


@both
def test_a_series_becomes_points_of_its_name_with_job_and_instance_at_the_resource(version: int) -> None:
    request = new(version)
    add_series(request, labels(name="up", job="ns/monitor", instance="10.0.0.1:80", pod="p"), [(1.0, 1000), (0.5, 2000)])
    found = of(request)
    (entry,) = ExportMetricsServiceRequest.FromString(found.payload).resource_metrics
    assert {each.key: each.value.string_value for each in entry.resource.attributes} == {
        "service.name": "ns/monitor",  # whole: the chart's processors make it the job again
        "service.instance.id": "10.0.0.1:80",
    }
    points = entry.scope_metrics[0].metrics[0].gauge.data_points
    assert [(point.time_unix_nano, point.as_double) for point in points] == [(1_000_000_000, 1.0), (2_000_000_000, 0.5)]
    assert [[(each.key, each.value.string_value) for each in point.attributes] for point in points] == [[("pod", "p")]] * 2


KINDS = [
    # name, kind by metadata (0 nobody said), sum or gauge
    ("requests_total", 0, "sum"),
    ("latency_bucket", 0, "sum"),
    ("latency_count", 0, "gauge"),
    ("temperature", 0, "gauge"),
    ("requests", 1, "sum"),
    ("requests_created", 1, "gauge"),
    ("total_total", 2, "gauge"),
    ("latency_bucket", 3, "sum"),
    ("latency_sum", 3, "sum"),
    ("latency_count", 3, "sum"),
    ("latency_created", 3, "gauge"),
    ("queue_bucket", 4, "gauge"),
    ("quantiles", 5, "gauge"),
    ("quantiles_count", 5, "sum"),
    ("build_info", 6, "gauge"),
    ("state", 7, "gauge"),
]


@pytest.mark.parametrize(("name", "kind", "becomes"), KINDS)
def test_2_0_says_with_each_series_what_it_is(name: str, kind: int, becomes: str) -> None:
    request = Request()
    add_series(request, labels(name=name), [(1.0, 1)], kind=kind, help="What it is.", unit="seconds")
    metric = metrics_of(of(request))[name]
    assert (metric.WhichOneof("data"), metric.description, metric.unit) == (becomes, "What it is.", "seconds")


@pytest.mark.parametrize(("name", "kind", "becomes"), KINDS)
def test_1_0_says_it_by_family_in_requests_of_its_own(name: str, kind: int, becomes: str) -> None:
    families, metadata, request = Families(), WriteRequest(), WriteRequest()
    family = name.removesuffix("_created").removesuffix("_sum").removesuffix("_count").removesuffix("_bucket")
    if kind:
        metadata.metadata.add(type=kind, metric_family_name=family.encode(), help=b"What it is.", unit=b"seconds")
        assert of(metadata, families)[1:3] == (0, 0)
    add_series(request, labels(name=name), [(1.0, 1)])
    metric = metrics_of(of(request, families))[name]
    told = ("What it is.", "seconds") if kind else ("", "")
    assert (metric.WhichOneof("data"), metric.description, metric.unit) == (becomes, *told)


def test_metadata_that_changes_is_the_metadata_from_then_on() -> None:
    families, request = Families(), WriteRequest()
    add_series(request, labels(name="x"), [(1.0, 1)])
    for kind, becomes in ((1, "sum"), (2, "gauge")):
        request.ClearField("metadata")
        request.metadata.add(type=kind, metric_family_name=b"x")
        assert metrics_of(of(request, families))["x"].WhichOneof("data") == becomes


def test_families_without_end_are_forgotten() -> None:
    families = Families()
    request = WriteRequest()
    for number in range(40_000):
        request.metadata.add(type=1, metric_family_name=b"family%d" % number)
    of(request, families)
    last = WriteRequest()
    add_series(last, labels(name="family39999"), [(1.0, 1)])
    add_series(last, labels(name="family0"), [(1.0, 1)])
    metrics = metrics_of(of(last, families))
    assert metrics["family39999"].HasField("sum")
    assert metrics["family0"].HasField("gauge")


@both
def test_a_stale_marker_is_a_point_without_a_value(version: int) -> None:
    request = new(version)
    add_series(request, labels(name="up"), [(STALE, 5000), (float("nan"), 6000)])
    stale, nan = metrics_of(of(request))["up"].gauge.data_points
    assert (stale.flags, stale.WhichOneof("value"), stale.time_unix_nano) == (1, None, 5_000_000_000)
    assert (nan.flags, nan.WhichOneof("value")) == (0, "as_double")


@both
@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        pytest.param([("a", "b")], "no metric name", id="no-name"),
        pytest.param([("__name__", "")], "no metric name", id="empty-name"),
        pytest.param([("__name__", "x"), ("a", "1"), ("a", "2")], "is there twice", id="twice"),
        pytest.param([("a", "1"), ("__name__", "x"), ("a", "1")], "is there twice", id="twice-and-apart"),
        pytest.param([("__name__", "x"), ("", "1")], "has no name", id="nameless-label"),
        pytest.param([("__name__", "x"), ("a", "\udcff")], "not UTF-8", id="value-not-utf8"),
        pytest.param([("__name__", "x"), ("\udcc3(", "a")], "not UTF-8", id="name-not-utf8"),
    ],
)
def test_a_series_with_bad_labels_is_refused_alone_and_its_samples_counted(version: int, pairs: Any, reason: str) -> None:
    request = new(version)
    add_series(request, labels(name="good"), [(1.0, 1)])
    add_series(request, pairs, [(1.0, 1), (2.0, 2)])
    found = of(request)
    assert list(metrics_of(found)) == ["good"]
    assert (found.samples, found.refused) == (1, 2)
    assert reason in found.reason


@both
def test_labels_out_of_order_are_taken_for_vmagent_sends_them(version: int) -> None:
    request = new(version)
    add_series(request, [("z", "1"), ("__name__", "x"), ("a", "2")], [(1.0, 1)])
    found = of(request)
    assert points_of(found.payload) == expected(request)[0]
    assert found.refused == 0


@both
def test_a_sample_of_no_time_is_refused_and_the_others_of_its_series_are_not(version: int) -> None:
    request = new(version)
    add_series(request, labels(name="x"), [(1.0, -1), (2.0, 5), (3.0, 2**62)])
    found = of(request)
    assert (found.samples, found.refused) == (1, 2)
    assert "before 1970 or after 2262" in found.reason


def test_references_to_no_symbol_refuse_their_series() -> None:
    request = Request()
    add_series(request, labels(name="good"), [(1.0, 1)])
    for refs in ([1, 99], [1, 2, 3], [2**32 - 1, 1]):
        request.timeseries.add(labels_refs=refs).samples.add(value=1.0, timestamp=1)
    bad_help = add_series(request, labels(name="good"), [(1.0, 1)])
    bad_help.metadata.help_ref = 1000
    found = of(request)
    assert (found.samples, found.refused) == (1, 4)


# Native histograms.

SPANS = {"positive_spans": [{"offset": 1, "length": 2}, {"offset": 2, "length": 1}], "positive_deltas": [3, -1, 4]}
"""Buckets 1, 2 and 5 with 3, 2 and 6."""


def histogram(**fields: Any) -> dict[str, Any]:
    return {"schema": 3, "sum": 18.4, "count_int": 14, "zero_count_int": 3, "zero_threshold": 0.001, "timestamp": 1000, **SPANS} | fields


@both
def test_a_native_histogram_is_an_exponential_one(version: int) -> None:
    request = new(version)
    add_series(
        request, labels(name="latency", pod="p"), histograms=[histogram(negative_spans=[{"offset": -3, "length": 1}], negative_deltas=[2])]
    )
    found = of(request)
    assert (found.samples, found.histograms, found.refused) == (0, 1, 0)
    data = metrics_of(found)["latency"].exponential_histogram
    (point,) = data.data_points
    assert data.aggregation_temporality == 2
    # OTLP numbers a bucket by its lower bound, Prometheus by its upper one: bucket 1 of schema 3 is (2^0, 2^(1/8)].
    assert (point.positive.offset, list(point.positive.bucket_counts)) == (0, [3, 2, 0, 0, 6])
    assert (point.negative.offset, list(point.negative.bucket_counts)) == (-4, [2])
    assert (point.scale, point.count, point.sum, point.zero_count, point.zero_threshold) == (3, 14, 18.4, 3, 0.001)
    assert (point.time_unix_nano, [each.key for each in point.attributes]) == (1_000_000_000, ["pod"])


def test_a_float_histogram_has_its_counts_cut() -> None:
    request = WriteRequest()
    one = histogram(count_float=5.5, zero_count_float=0.5, positive_deltas=[], positive_counts=[1.5, 0.0, 3.5])
    del one["count_int"], one["zero_count_int"]
    add_series(request, labels(name="latency"), histograms=[one])
    (point,) = metrics_of(of(request))["latency"].exponential_histogram.data_points
    assert (point.count, point.zero_count, list(point.positive.bucket_counts)) == (5, 0, [1, 0, 0, 0, 3])


@both
def test_custom_buckets_are_a_histogram_with_bounds(version: int) -> None:
    request = new(version)
    one = {"schema": -53, "custom_values": [0.1, 1.0, 10.0], "positive_spans": [{"offset": 1, "length": 2}], "positive_deltas": [4, -3]}
    add_series(request, labels(name="latency"), histograms=[{**one, "count_int": 5, "sum": 3.0, "timestamp": 1}])
    (point,) = metrics_of(of(request))["latency"].histogram.data_points
    assert (list(point.explicit_bounds), list(point.bucket_counts), point.count, point.sum) == ([0.1, 1.0, 10.0], [0, 4, 1, 0], 5, 3.0)


@both
def test_a_stale_histogram_is_a_point_without_a_value(version: int) -> None:
    request = new(version)
    add_series(request, labels(name="latency"), histograms=[{"sum": STALE, "timestamp": 7}])
    (point,) = metrics_of(of(request))["latency"].exponential_histogram.data_points
    assert (point.flags, point.count, point.HasField("sum")) == (1, 0, False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"reset_hint": 3}, "no gauge histograms", id="gauge"),
        pytest.param({"schema": 9}, "unknown schema 9", id="schema"),
        pytest.param({"positive_deltas": [1, -2, 1]}, "below zero", id="negative-count"),
        pytest.param({"positive_deltas": [1]}, "not those of its buckets", id="too-few-buckets"),
        pytest.param({"positive_spans": [{"offset": 0, "length": 2}, {"offset": -5, "length": 1}]}, "not those of its", id="backwards"),
        pytest.param({"positive_spans": [{"offset": 0, "length": 2}, {"offset": 2**31 - 1, "length": 1}]}, "more than 65536", id="bomb"),
        pytest.param({"positive_spans": [{"offset": -(2**31), "length": 3}]}, "farther than OTLP", id="far"),
        pytest.param({"timestamp": -1}, "before 1970", id="time"),
        pytest.param({"schema": -53, "custom_values": [1.0]}, "more buckets than custom values", id="custom"),
    ],
)
def test_a_histogram_that_otlp_cannot_say_is_refused_alone(fields: dict[str, Any], reason: str) -> None:
    request = WriteRequest()
    add_series(request, labels(name="latency"), histograms=[histogram(**fields), histogram()])
    found = of(request)
    assert (found.histograms, found.refused) == (1, 1)
    assert reason in found.reason


def test_histograms_that_would_grow_beyond_the_limit_are_refused_before_they_do() -> None:
    request = WriteRequest()
    wide = histogram(positive_spans=[{"offset": 0, "length": 2}, {"offset": 60_000, "length": 1}])
    add_series(request, labels(name="latency"), histograms=[wide] * 1000)
    with pytest.raises(TooLarge):
        of(request, limit=8 << 20)


# Exemplars.


@both
def test_an_exemplar_stands_with_the_sample_of_its_series(version: int) -> None:
    request = new(version)
    pairs = labels(name="latency_bucket", le="1", job="j")
    add_series(request, labels(name="other"), [(1.0, 1)])
    add_series(request, pairs, [(7.0, 1000)])
    alone = add_series(request, pairs)  # as Prometheus sends it
    lost = add_series(request, labels(name="gone"))
    for made, trace in ((alone, "4bf92f3577b34da6a3ce929d0e0e4736"), (lost, "00")):
        exemplar = made.exemplars.add(value=0.7, timestamp=900)
        named = {"trace_id": trace, "span_id": "00f067aa0ba902b7", "user": "u"}
        if version == 1:
            for name, value in named.items():
                exemplar.labels.add(name=name.encode(), value=value.encode())
        else:
            from support.remote_write import reference

            exemplar.labels_refs.extend(reference(request, text) for pair in named.items() for text in pair)
    found = of(request)
    assert (found.samples, found.exemplars, found.lost_exemplars, found.refused) == (2, 1, 1, 0)
    (point,) = metrics_of(found)["latency_bucket"].sum.data_points
    (made,) = point.exemplars
    assert (made.trace_id.hex(), made.span_id.hex()) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert (made.as_double, made.time_unix_nano) == (0.7, 900_000_000)
    assert [(each.key, each.value.string_value) for each in made.filtered_attributes] == [("user", "u")]
    assert points_of(found.payload) == expected(request)[0]


@both
def test_a_request_of_nothing_is_no_error(version: int) -> None:
    assert translate(b"", version, Families(), LIMIT) == (b"", 0, 0, 0, 0, "", 0)


@pytest.mark.parametrize(
    ("version", "body"),
    [
        *((version, body) for version in (1, 2) for body in (b"\xff", b"\x0a\x05abc", b"\x0a", b"\x2a\x7f", b"\x0b")),
        (1, b"\x0a\x02\x12\x7f"),
        (2, b"\x2a\x02\x12\x7f"),
    ],
)
def test_what_is_no_protobuf_of_its_message_is_refused_as_a_whole(version: int, body: bytes) -> None:
    with pytest.raises(DecodeError, match="malformed at byte"):
        translate(body, version, Families(), LIMIT)


@pytest.mark.parametrize(("version", "body"), [(1, b"\x2a\x02\x12\x7f"), (2, b"\x0a\x02\x12\x7f")])
def test_a_field_of_the_other_version_is_an_unknown_one(version: int, body: bytes) -> None:
    assert translate(body, version, Families(), LIMIT).samples == 0


@st.composite
def rare(draw: st.DrawFn) -> tuple[int, bytes]:
    version = draw(st.sampled_from([1, 2]))
    request = new(version)
    pairs = labels(name="latency", pod="p")
    add_series(request, pairs, [(1.0, 1)])
    add_series(request, pairs, histograms=[histogram(reset_hint=draw(st.integers(0, 3)), schema=draw(st.sampled_from([3, -53, 8, -4])))])
    made = add_series(request, pairs)
    exemplar = made.exemplars.add(value=1.0, timestamp=1)
    if version == 1:
        exemplar.labels.add(name=b"trace_id", value=b"0" * 32)
    else:
        exemplar.labels_refs.extend([1, 2])
    if version == 1:
        request.metadata.add(type=1, metric_family_name=b"latency", help=b"h", unit=b"u")
    return version, request.SerializeToString()


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_damaged_histograms_exemplars_and_metadata_give_points_or_a_decode_error(data: st.DataObject) -> None:
    version, body = data.draw(rare())
    damaged = data.draw(mutated(st.just(body)))
    try:
        found = translate(damaged, version, Families(), 1 << 20)
    except (DecodeError, TooLarge):
        return
    assert count_records(Signal.METRICS, found.payload) == found.samples + found.histograms
