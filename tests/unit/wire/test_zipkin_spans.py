"""Zipkin's protobuf as protobuf's own library reads it, and OTLP spans as it writes them, in both forms of the kernel."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.message import DecodeError as ProtobufError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from support.mutation import mutated
from support.otlp import set_attributes
from support.zipkin import full, list_of_spans, protobuf
from unit.wire.conftest import both_forms

from lockgate.wire.protobuf import DecodeError

FORMS = both_forms("zipkin_spans")
EACH_FORM = pytest.mark.parametrize("kernel", [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in FORMS])

U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=20) | st.text(min_size=120, max_size=140)


def endpoints() -> st.SearchStrategy[dict[str, Any]]:
    raw = st.binary(max_size=17)
    return st.fixed_dictionaries({}, optional={"service_name": TEXT, "ipv4": raw, "ipv6": raw, "port": st.integers(0, 2**31 - 1)})


def messages() -> st.SearchStrategy[Any]:
    ids = st.binary(max_size=17)
    span = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("trace_id", "id", "parent_id"), ids),
            "kind": st.integers(0, 2**31 - 1),
            "name": TEXT,
            **dict.fromkeys(("timestamp", "duration"), U64),
            **dict.fromkeys(("local_endpoint", "remote_endpoint"), endpoints()),
            "annotations": st.lists(st.fixed_dictionaries({}, optional={"timestamp": U64, "value": TEXT}), max_size=3),
            "tags": st.dictionaries(TEXT, TEXT, max_size=4),
            **dict.fromkeys(("debug", "shared"), st.booleans()),
        },
    )
    return st.lists(span, max_size=3).map(lambda spans: list_of_spans()(spans=spans))


def read(kernel: ModuleType, body: bytes) -> list[Any]:
    reader, found = kernel.Reader(body), []
    while (span := reader.span()) is not None:
        found.append(tuple(span))
    return found


def expected(message: Any) -> list[Any]:
    def endpoint(span: Any, name: str) -> list[Any] | None:
        each = getattr(span, name)
        return [each.service_name, each.ipv4, each.ipv6, each.port & (1 << 64) - 1] if span.HasField(name) else None

    return [
        (
            *(each.trace_id, each.parent_id, each.id, each.kind & (1 << 64) - 1, each.name, each.timestamp, each.duration),
            *(endpoint(each, "local_endpoint"), endpoint(each, "remote_endpoint")),
            *([(annotation.timestamp, annotation.value) for annotation in each.annotations], dict(each.tags)),
        )
        for each in message.spans
    ]


@EACH_FORM
@given(message=messages())
def test_it_reads_what_protobuf_writes(kernel: ModuleType, message: Any) -> None:
    assert read(kernel, message.SerializeToString()) == expected(message)


@EACH_FORM
@given(one=messages(), other=messages())
def test_messages_one_behind_the_other_are_one(kernel: ModuleType, one: Any, other: Any) -> None:
    assert read(kernel, one.SerializeToString() + other.SerializeToString()) == expected(one) + expected(other)


@given(
    body=mutated(
        messages().map(lambda message: message.SerializeToString()) | st.just(protobuf(full())), [b"\x0a\x00", b"\x5a\x02\x0a\x00"]
    )
)
def test_damaged_bytes_are_read_alike_by_both_forms_and_as_protobuf_does_where_both_take_them(body: bytes) -> None:
    outcomes: list[Any] = []
    for kernel in FORMS:
        try:
            outcomes.append(read(kernel, body))
        except (DecodeError, UnicodeDecodeError) as error:
            outcomes.append(type(error))
    assert outcomes[1:] == outcomes[:-1]
    with suppress(ProtobufError):
        message = list_of_spans().FromString(body)
        # Numbers of 32 bits that are written with more are cut by protobuf, and refused later by us.
        found = outcomes[0] if isinstance(outcomes[0], list) else []
        numbers = [each for span in found for each in (span[3], *(end[3] for end in span[7:9] if end))]
        if found and max(numbers) < 2**31:
            # Tags with fields that are not known are none for protobuf's library in C, and are for its others.
            assert [span[:-1] for span in found] == [span[:-1] for span in expected(message)]


@EACH_FORM
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a", id="no-length"),
        pytest.param(b"\x0a\x02\x0a", id="length-past-the-end"),
        pytest.param(b"\x0a\x02\x0a\x01", id="inner-length-past-the-end"),
        pytest.param(b"\x0a\x05\x31" + bytes(4), id="fixed64-past-the-end"),
        pytest.param(b"\x0b\x0c", id="group"),
        pytest.param(b"\x00", id="field-0"),
        pytest.param(b"\x0a" + b"\xff" * 10, id="varint-of-eleven-bytes"),
        pytest.param(b"\xff\xff\xff\xff\xff\x01\x00", id="tag-too-large"),
    ],
)
def test_what_is_no_protobuf_is_refused(kernel: ModuleType, body: bytes) -> None:
    with pytest.raises(DecodeError):
        read(kernel, body)


@EACH_FORM
@given(
    trace_id=st.binary(min_size=16, max_size=16),
    id=st.binary(min_size=8, max_size=8),
    parent_id=st.sampled_from([b"", b"12345678"]),
    name=TEXT,
    kind=st.integers(0, 5),
    times=st.tuples(U64, U64),
    tags=st.dictionaries(TEXT, TEXT, max_size=5),
    event=st.tuples(U64, TEXT),
)
def test_it_writes_what_protobuf_reads(
    kernel: ModuleType,
    *,
    trace_id: bytes,
    id: bytes,
    parent_id: bytes,
    name: str,
    kind: int,
    times: tuple[int, int],
    tags: dict[str, str],
    event: tuple[int, str],
) -> None:
    message = ScopeSpans()
    span = message.spans.add(trace_id=trace_id, span_id=id, parent_span_id=parent_id, name=name, kind=kind)
    span.start_time_unix_nano, span.end_time_unix_nano = times
    set_attributes(span.attributes, tags)
    span.events.add(time_unix_nano=event[0], name=event[1])
    span.trace_state = "s"
    pieces = [kernel.event(*event), b"\x1a\x01s"]
    assert ScopeSpans.FromString(bytes(kernel.span((trace_id, id, parent_id), name, kind, *times, tags, pieces))) == message


@EACH_FORM
def test_a_tag_without_a_value_is_empty_text(kernel: ModuleType) -> None:
    with_none, with_text = (kernel.span((b"", b"", b""), "", 0, 0, 0, {"a": value}, []) for value in (None, ""))
    assert with_none == with_text
