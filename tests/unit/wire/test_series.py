"""The kernel of remote write against its plain twin, in both forms, and against bytes that nobody should send."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mutation import mutated
from support.remote_write import STALE, Request, WriteRequest, add_series, expected, labels, points_of

from lockgate.wire import remote_write, series
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.remote_write import Families, TooLarge

NAMES = st.sampled_from(["__name__", "job", "instance", "a", "b", "le", "pod", "é", "x" * 130, "", "bad\udcff"])
TEXTS = st.sampled_from(["", "up", "http_requests_total", "h_bucket", "1", "ns/name", "日本", "y" * 200, "\udcc3("])
TIMES = st.sampled_from([0, 1, 1_700_000_000_123, 9223372036854, 9223372036855, -1, -(2**63), 2**63 - 1])
VALUES = st.sampled_from([0.0, 1.5, -0.0, float("inf"), float("nan"), STALE])


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """A request of either version: most of its series as they should be, some not."""
    is_first = draw(st.booleans())
    request = WriteRequest() if is_first else Request()
    for _ in range(draw(st.integers(0, 6))):
        pairs = draw(st.lists(st.tuples(NAMES, TEXTS), max_size=6))
        if draw(st.booleans()):
            pairs = sorted(dict([*((name, text) for name, text in pairs if name.isalpha()), ("__name__", "up_total")]).items())
        kinds = {} if is_first else {"kind": draw(st.integers(0, 7)), "help": draw(TEXTS), "unit": draw(st.sampled_from(["", "seconds"]))}
        made = add_series(request, pairs, draw(st.lists(st.tuples(VALUES, TIMES), max_size=3)), **kinds)
        if not is_first:
            made.created_timestamp = draw(TIMES)
            for sample in made.samples:
                sample.start_timestamp = draw(TIMES)
    return request


def translated(form: ModuleType, monkeypatch: pytest.MonkeyPatch, body: bytes, version: int, limit: int = 1 << 24) -> Any:
    """What `translate` makes of it with this form of the kernel: the translation, or why it is refused."""
    with monkeypatch.context() as patch:
        patch.setattr(remote_write, "series", form)
        patch.setattr(remote_write, "TooLarge", form.TooLarge)
        try:
            return remote_write.translate(body, version, Families(), limit)
        except (DecodeError, form.TooLarge) as error:
            return type(error).__name__, str(error)


def version_of(request: Any) -> int:
    return 1 if isinstance(request, WriteRequest) else 2


@settings(max_examples=400, deadline=None)
@given(messages())
def test_every_sample_becomes_the_data_point_that_the_twin_makes(series_forms: list[ModuleType], request_of: Any) -> None:
    points, refused = expected(request_of)
    for form in series_forms:
        with pytest.MonkeyPatch.context() as patch:
            found = translated(form, patch, request_of.SerializeToString(), version_of(request_of))
        assert points_of(found.payload) == points
        assert (found.samples, found.refused) == (len(points), refused)


@settings(max_examples=600, deadline=None)
@given(
    st.binary(max_size=200)
    | mutated(messages().map(lambda request: request.SerializeToString()), [b"\x0a", b"\x2a\x00", b"\xff\xff\xff\xff\x0f"]),
    st.sampled_from([1, 2]),
)
def test_damaged_requests_are_translated_or_refused_alike_in_both_forms(series_forms: list[ModuleType], body: bytes, version: int) -> None:
    outcomes = []
    for form in series_forms:
        with pytest.MonkeyPatch.context() as patch:
            outcomes.append(translated(form, patch, body, version, 1 << 16))
    assert outcomes[0] == outcomes[1]
    if isinstance(outcomes[0], remote_write.Translation):
        assert len(outcomes[0].payload) <= 1 << 16
        assert len(points_of(outcomes[0].payload)) == outcomes[0].samples


@pytest.mark.parametrize("version", [1, 2])
def test_metrics_of_one_resource_stand_together_once(series_forms: list[ModuleType], version: int) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = WriteRequest() if version == 1 else Request()
    for number in range(300):
        pairs = labels(name=f"m{number % 10}", job=f"j{number % 3}", instance="i", shard=str(number))
        add_series(request, pairs, [(float(number), 1000 + number)])
    for form in series_forms:
        with pytest.MonkeyPatch.context() as patch:
            found = translated(form, patch, request.SerializeToString(), version)
        entries = ExportMetricsServiceRequest.FromString(found.payload).resource_metrics
        assert len(entries) == 3
        assert all(len({metric.name for metric in entry.scope_metrics[0].metrics}) == 10 for entry in entries)
        assert all(len(entry.scope_metrics[0].metrics) == 10 for entry in entries)


def test_what_labels_repeated_for_many_samples_would_grow_to_is_refused_before_it_is_made(series_forms: list[ModuleType]) -> None:
    request = Request()
    add_series(request, [("__name__", "bomb"), *((f"l{number}", "x" * 1000) for number in range(100))], [(1.0, 1)] * 10_000)
    body = request.SerializeToString()
    assert len(body) < 300_000
    for form in series_forms[:1]:
        with pytest.raises(TooLarge):
            remote_write.translate(body, 2, Families(), 100 << 20)
        assert form.scan(body, 2).series == 1


def test_more_series_than_there_is_memory_for_are_refused(series_forms: list[ModuleType]) -> None:
    for form in series_forms:
        with pytest.raises(DecodeError, match="send smaller requests"):
            form.scan(b"\x0a\x00" * (series.MOST_SERIES + 1), 1)


def test_a_request_that_no_receiver_behind_would_take_is_refused(series_forms: list[ModuleType]) -> None:
    request = Request()
    series_of_one = add_series(request, labels(name="x", a="b", c="d"))
    for number in range(300_000):  # 7 messages each: more than OTLP's receivers take
        series_of_one.samples.add(value=1.0, timestamp=number)
    with pytest.raises(DecodeError, match="send smaller requests"):
        series_forms[0].scan(request.SerializeToString(), 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_series_of_too_many_labels_is_refused_alone(series_forms: list[ModuleType], version: int) -> None:
    request = WriteRequest() if version == 1 else Request()
    add_series(request, [("__name__", "many"), *((f"l{number}", "x") for number in range(series.MOST_LABELS))], [(1.0, 1)])
    add_series(request, [("__name__", "most"), *((f"l{number}", "x") for number in range(series.MOST_LABELS - 1))], [(1.0, 1)])
    for form in series_forms:
        with pytest.MonkeyPatch.context() as patch:
            found = translated(form, patch, request.SerializeToString(), version)
        assert [point[1] for point in points_of(found.payload)] == ["most"]
        assert (found.refused, found.reason.partition(",")[0]) == (1, f"it has more than {series.MOST_LABELS} labels")
