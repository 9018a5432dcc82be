"""OpenCensus' requests, damaged: an OTLP request, or a DecodeError. No crash, no hang, bounded memory; as in test_doors.py."""

import tracemalloc
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.mutation import mutated
from support.opencensus import FULL_SPAN, METRICS, NODE, RESOURCE, metrics, span, traces

from lockgate.batch import Signal, count_records
from lockgate.wire.opencensus import MOST_GROWTH, MOST_IDENTITY, Stream
from lockgate.wire.protobuf import DecodeError, delimited

assert settings.default is not None
CHEAP = settings(max_examples=3 * settings.default.max_examples)

WORDS = [b"\x12\x00", b"\x3a\x04\x0a\x02\x0a\x00", b"\x4a\x02\x0a\x00", b"\x82\x01\x00", b"\x2a\x02\x08\x01", b"\x0a\x09span.kind"]
trace_requests = st.sampled_from(
    [
        traces(FULL_SPAN, span(1, resource={"type": "own"}), node=NODE, resource=RESOURCE),
        traces(*(span(n) for n in range(5)), node=NODE),
        b"\x0a\x00",
    ]
)
metric_requests = st.sampled_from([metrics(*METRICS, node=NODE, resource=RESOURCE), metrics(METRICS[4], METRICS[5], node={})])


def check(signal: Signal, message: bytes) -> None:
    stream = Stream()
    try:
        payload = stream.traces(message) if signal is Signal.TRACES else stream.metrics(message)
        assert len(payload) <= MOST_GROWTH * len(message) + MOST_IDENTITY + 100
        count_records(signal, payload)
    except DecodeError as error:
        # What the result's validation refuses is what was copied from the request: text and nothing else.
        assert "not an Export" not in str(error) or "UTF-8" in str(error)


@CHEAP
@given(mutated(trace_requests, WORDS))
@example(b"\x0a\x00\x12\x02\x7a\x00")
@example(b"\x0a\x00\x12\x03\x82\x01\x00")
def test_a_damaged_request_of_traces_gives_a_request_or_a_decode_error(message: bytes) -> None:
    check(Signal.TRACES, message)


@CHEAP
@given(mutated(metric_requests, WORDS))
@example(b"\x0a\x00\x12\x00")
def test_a_damaged_request_of_metrics_gives_a_request_or_a_decode_error(message: bytes) -> None:
    check(Signal.METRICS, message)


@given(st.binary(max_size=200), st.sampled_from([Signal.TRACES, Signal.METRICS]))
def test_any_bytes_give_a_request_or_a_decode_error(message: bytes, signal: Signal) -> None:
    check(signal, b"\x0a\x00" + message)


@CHEAP
@given(mutated(trace_requests, WORDS), st.sampled_from([200, 1 << 20]))
def test_both_forms_of_the_kernel_say_the_same(forms: tuple[ModuleType, ModuleType], message: bytes, limit: int) -> None:
    said: list[object] = []
    for form in forms:
        try:
            said.append((tuple(form.translate(message, limit, True)), list(form.fields(message))))
        except DecodeError as error:
            said.append((str(error), []))
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def forms() -> tuple[ModuleType, ...]:
    from unit.wire.conftest import both_forms

    return tuple(both_forms("opencensus_spans"))


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b"\x12\x00", id="empty-spans"),
        pytest.param(b"\x12\x03\x82\x01\x00", id="empty-spans-with-a-resource"),
        pytest.param(b"\x12\x04\x4a\x02\x0a\x00", id="empty-events"),
    ],
)
def test_a_request_of_many_small_things_takes_memory_within_bounds(piece: bytes) -> None:
    message = b"\x0a\x00" + piece * (200_000 // len(piece))
    tracemalloc.start()
    try:
        check(Signal.TRACES, message)
        assert tracemalloc.get_traced_memory()[1] < 60 * len(message)
    finally:
        tracemalloc.stop()


def test_a_distribution_of_many_buckets_takes_time_in_proportion() -> None:
    buckets = delimited(5, b"\x12\x00") * 100_000  # each with an exemplar
    metric = delimited(1, b"\x20\x06") + delimited(2, delimited(3, delimited(4, buckets)))
    check(Signal.METRICS, b"\x0a\x00" + delimited(2, metric))
