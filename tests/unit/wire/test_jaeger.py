"""Jaeger's spans as OTLP, in both forms of the kernel and all encodings. tests/peers/test_jaeger.py holds them against the collector's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaeger_client.thrift_gen.jaeger.ttypes import Log, Span, SpanRef
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support.jaeger import (
    CHILD_OF,
    FOLLOWS_FROM,
    START,
    PostSpansRequest,
    batch,
    datagram,
    post_spans,
    posted,
    span,
    tag,
    tags,
    varied_batch,
)
from support.mutation import mutated
from unit.wire.conftest import both_forms

from lockgate.batch import Signal, count_records
from lockgate.wire.protobuf import DecodeError, delimited, varint

FORMS = both_forms("jaeger")
EACH_FORM = pytest.mark.parametrize("kernel", [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in FORMS])

ENCODINGS: dict[str, tuple[Callable[[Any], bytes], Callable[[ModuleType, bytes], bytes]]] = {
    "http": (posted, lambda kernel, raw: kernel.from_thrift(raw)),
    "compact": (lambda message: datagram(message, True), lambda kernel, raw: kernel.from_agent(raw, True)),
    "binary": (lambda message: datagram(message, False), lambda kernel, raw: kernel.from_agent(raw, False)),
    "grpc": (lambda message: bytes(post_spans(message).SerializeToString()), lambda kernel, raw: kernel.from_protobuf(raw)),
}
EACH_ENCODING = pytest.mark.parametrize("encoding", ENCODINGS)


def translated(kernel: ModuleType, message: Any, encoding: str = "http") -> Any:
    write, read = ENCODINGS[encoding]
    payload = read(kernel, write(message))
    request = ExportTraceServiceRequest.FromString(payload)
    spans = [each for resource in request.resource_spans for scope in resource.scope_spans for each in scope.spans]
    assert count_records(Signal.TRACES, payload) == len(spans)
    return request


def one(kernel: ModuleType, message: Any, encoding: str = "http") -> Any:
    (resource,) = translated(kernel, message, encoding).resource_spans
    (scope,) = resource.scope_spans
    (found,) = scope.spans
    return found


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@EACH_FORM
@EACH_ENCODING
def test_a_span_is_what_was_sent(kernel: ModuleType, encoding: str) -> None:
    sent = span(
        "GET /",
        *tags(span__kind="server", text="x", yes=True, number=-5, real=1.5, raw=b"\0\xff"),
        references=[SpanRef(CHILD_OF, 0x0123456789ABCDEF, 0x0FEDCBA987654321, 9), SpanRef(FOLLOWS_FROM, 5, 0, 3)],
        logs=[Log(START + 5, tags(event="fetched", rows=3))],
    )
    request = translated(kernel, batch(sent, given=tags(hostname="node-1", jaeger__version="Go-2")), encoding)
    (resource,) = request.resource_spans
    expected = {"service.name": "shop", "host.name": "node-1", "opencensus.exporterversion": "Jaeger-Go-2"}
    assert values(resource.resource.attributes) == expected
    (found,) = resource.scope_spans[0].spans
    assert found.trace_id.hex() == "0fedcba9876543210123456789abcdef"
    assert (found.span_id.hex(), found.parent_span_id.hex()) == (f"{7:016x}", f"{9:016x}")
    assert (found.name, found.kind) == ("GET /", found.SPAN_KIND_SERVER)
    assert found.start_time_unix_nano == START * 1000
    assert found.end_time_unix_nano == START * 1000 + 1_500_000
    assert values(found.attributes) == {"text": "x", "yes": True, "number": -5, "real": 1.5, "raw": b"\0\xff"}
    (event,) = found.events
    assert (event.name, event.time_unix_nano, values(event.attributes)) == ("fetched", (START + 5) * 1000, {"rows": 3})
    (link,) = found.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (f"{5:032x}", f"{3:016x}")
    assert values(link.attributes) == {"opentracing.ref_type": "follows_from"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_forms_say_the_same_of_all_kinds_of_spans(encoding: str) -> None:
    write, read = ENCODINGS[encoding]
    raw = write(varied_batch())
    compiled, plain = (read(form, raw) for form in FORMS)
    assert compiled == plain
    assert count_records(Signal.TRACES, compiled) == len(varied_batch().spans)


@EACH_FORM
def test_the_encodings_of_thrift_say_the_same(kernel: ModuleType) -> None:
    sent = varied_batch()
    assert len({read(kernel, write(sent)) for name, (write, read) in ENCODINGS.items() if name != "grpc"}) == 1


@EACH_FORM
@pytest.mark.parametrize(
    ("given_tags", "status", "left"),
    [
        pytest.param(tags(error=True), (2, ""), {}, id="error"),
        pytest.param(tags(error=True, otel__status_description="why", otel__status_code="OK"), (2, "why"), {}, id="error-wins"),
        pytest.param(tags(otel__status_code="OK"), (1, ""), {}, id="ok"),
        pytest.param(tags(error=False, http__status_code=503), (2, ""), {"error": False, "http.status_code": 503}, id="http"),
        pytest.param(tags(http__status_code=404, span__kind="server"), (0, ""), {"http.status_code": 404}, id="a-servers-404"),
    ],
)
def test_the_status_is_what_the_tags_say(kernel: ModuleType, given_tags: Any, status: tuple[int, str], left: dict[str, Any]) -> None:
    found = one(kernel, batch(span("a", *given_tags)))
    assert (found.status.code, found.status.message) == status
    assert values(found.attributes) == left


@EACH_FORM
def test_protobufs_tags_name_scope_and_trace_state(kernel: ModuleType) -> None:
    named = tags(otel__scope__name="lib", otel__scope__version="1.2", w3c__tracestate="a=1")
    (resource,) = translated(kernel, batch(span("a", *named), span("b"), span("c", *named)), "grpc").resource_spans
    assert [(scope.scope.name, scope.scope.version, [each.name for each in scope.spans]) for scope in resource.scope_spans] == [
        ("lib", "1.2", ["a", "c"]),
        ("", "", ["b"]),
    ]
    assert resource.scope_spans[0].spans[0].trace_state == "a=1"
    assert not resource.scope_spans[0].spans[0].attributes


@EACH_FORM
def test_spans_of_several_processes_have_each_its_own_resource(kernel: ModuleType) -> None:
    request = post_spans(batch(span("a"), span("b"), span("c")))
    request.batch.spans[1].process.service_name = "other"
    request.batch.spans[2].process.CopyFrom(request.batch.process)
    found = ExportTraceServiceRequest.FromString(kernel.from_protobuf(request.SerializeToString())).resource_spans
    names = {values(each.resource.attributes)["service.name"]: [it.name for it in each.scope_spans[0].spans] for each in found}
    assert {key: sorted(spans) for key, spans in names.items()} == {"shop": ["a", "c"], "other": ["b"]}


@EACH_FORM
@EACH_ENCODING
def test_text_that_is_not_utf8_becomes_bytes_and_names_are_mended(kernel: ModuleType, encoding: str) -> None:
    write, read = ENCODINGS[encoding]
    raw = write(batch(span("NAME", tag("KEYS", "TEXT"), tag("span.kind", "KIND"))))
    for word in (b"NAME", b"KEYS", b"TEXT", b"KIND"):
        raw = raw.replace(word, b"a\xff\xfeb")
    request = ExportTraceServiceRequest.FromString(read(kernel, raw))
    (found,) = request.resource_spans[0].scope_spans[0].spans
    assert found.name == "a��b"
    assert values(found.attributes) == {"a��b": b"a\xff\xfeb"}
    assert found.kind == 0


@EACH_FORM
@pytest.mark.parametrize(
    "missing", ["traceIdLow", "traceIdHigh", "spanId", "parentSpanId", "operationName", "flags", "startTime", "duration"]
)
def test_a_span_without_a_required_field_is_refused_with_its_name(kernel: ModuleType, missing: str) -> None:
    incomplete = span("a")
    setattr(incomplete, missing, None)
    with pytest.raises(DecodeError, match=f"a span without {missing}"):
        kernel.from_thrift(posted(batch(incomplete)))


@EACH_FORM
@pytest.mark.parametrize(
    ("message", "words"),
    [
        pytest.param(posted(batch(span("a")))[:-20], "missing|runs past|where .* left", id="cut"),
        pytest.param(b"\0", "a batch without process and spans", id="empty"),
        pytest.param(b"\x0f\0\2\x08\0\0\0\1\0\0\0\1\0", "where structs belong", id="spans-that-are-numbers"),
    ],
)
def test_what_is_no_batch_is_refused(kernel: ModuleType, message: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        kernel.from_thrift(message)


@EACH_FORM
def test_other_calls_to_an_agent_are_refused(kernel: ModuleType) -> None:
    for name, words in ((b"emitZipkinBatch", "zipkin receiver"), (b"ping", "emitBatch belongs")):
        message = b"\x82\x81\x00" + bytes([len(name)]) + name + b"\0"
        with pytest.raises(DecodeError, match=words):
            kernel.from_agent(message, True)


@EACH_FORM
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda each: setattr(each, "trace_id", b"1" * 15), "a trace id of 15 bytes", id="trace-id"),
        pytest.param(lambda each: setattr(each, "span_id", b"1" * 7), "a span id of 7 bytes", id="span-id"),
        pytest.param(lambda each: setattr(each.start_time, "seconds", 1 << 62), "out of range", id="start"),
        pytest.param(lambda each: setattr(each.start_time, "nanos", 10**9), "out of range", id="nanoseconds"),
        pytest.param(lambda each: setattr(each.duration, "seconds", 1 << 40), "out of range", id="duration"),
    ],
)
def test_a_span_of_protobuf_that_cannot_be_is_refused(kernel: ModuleType, change: Any, words: str) -> None:
    request = post_spans(batch(span("a")))
    change(request.batch.spans[0])
    with pytest.raises(DecodeError, match=words):
        kernel.from_protobuf(request.SerializeToString())


WORDS = [b"\0", b"\xff" * 4, b"\x0c", b"\x1c", b"\x0f", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x07", b"\x0a", b"\x42", b"event", b"error"]


def some_batches(encoding: str) -> st.SearchStrategy[bytes]:
    every = varied_batch()
    write = ENCODINGS[encoding][0]
    return st.lists(st.sampled_from(every.spans), min_size=1, max_size=4).map(lambda spans: write(batch(*spans)))


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(st.data())
def test_damaged_bytes_give_spans_or_a_decode_error_and_both_forms_agree(encoding: str, data: st.DataObject) -> None:
    raw = data.draw(st.one_of(mutated(some_batches(encoding), WORDS), st.binary(max_size=200)))
    read = ENCODINGS[encoding][1]
    outcomes = []
    for form in FORMS:
        try:
            payload = read(form, raw)
            count_records(Signal.TRACES, payload)
            assert len(payload) <= 20 * len(raw) + 400
            outcomes.append(payload)
        except DecodeError as error:
            outcomes.append(str(error).encode())
    assert outcomes[0] == outcomes[1]


@given(st.data())
@settings(max_examples=20)
def test_any_list_of_spans_keeps_its_order_and_number(data: st.DataObject) -> None:
    text = st.text(max_size=10)
    spans: list[Span] = [
        span(name, *(tag(key, value) for key, value in given_tags.items()))
        for name, given_tags in data.draw(st.lists(st.tuples(text, st.dictionaries(text, text, max_size=3)), max_size=5))
    ]
    for encoding in ENCODINGS:
        for form in FORMS:
            (resource, *_) = translated(form, batch(*spans), encoding).resource_spans or [None]
            found = [] if resource is None else [each.name for scope in resource.scope_spans for each in scope.spans]
            assert sorted(found) == sorted(each.operationName for each in spans)


@EACH_FORM
def test_short_messages_cannot_take_much_memory(kernel: ModuleType) -> None:
    tags_of_a_span = b"\x0f\0\x0a\x0c" + (100_000).to_bytes(4, "big") + b"\x0b\0\1\0\0\0\0\x08\0\2\0\0\0\0\0" * 100_000
    message = b"\x0f\0\2\x0c\0\0\0\1" + tags_of_a_span
    many_values = delimited(1, b"".join(delimited(1, b"") for _ in range(1 << 10)) * ((1 << 10) + 1))
    references = delimited(1, delimited(1, delimited(4, b"") * 65_537))
    processes = delimited(1, b"".join(delimited(1, delimited(10, delimited(1, b"%d" % number))) for number in range(65_537)))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="100000 tags in one list; at most 65536"):
            kernel.from_thrift(message)
        if kernel.compiled:  # the other takes seconds
            with pytest.raises(DecodeError, match="more than 1048576 spans"):
                kernel.from_protobuf(many_values)
            with pytest.raises(DecodeError, match="more than 65536 references"):
                kernel.from_protobuf(references)
            with pytest.raises(DecodeError, match="more than 65536 processes and scopes"):
                kernel.from_protobuf(processes)
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


@EACH_FORM
def test_unknown_fields_are_skipped(kernel: ModuleType) -> None:
    unknown = varint(50 << 3) + b"\x05" + varint(51 << 3 | 1) + b"\0" * 8 + varint(52 << 3 | 2) + b"\2ab" + varint(53 << 3 | 5) + b"\0" * 4
    request = post_spans(batch(span("a")))
    grown = PostSpansRequest.FromString(request.SerializeToString()).batch.spans[0].SerializeToString() + unknown
    payload = kernel.from_protobuf(delimited(1, unknown + delimited(1, grown)) + unknown)
    assert count_records(Signal.TRACES, payload) == 1
