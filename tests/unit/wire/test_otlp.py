"""The validator against upb, and its table against the generated classes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError as UpbError
from hypothesis import given, settings
from hypothesis import strategies as st
from support.otlp_requests import requests

from lockgate.batch import Signal, message_type
from lockgate.wire import otlp
from lockgate.wire.protobuf import DecodeError, delimited, varint

SIGNALS = list(Signal)
DELIBERATE = ("another wire type", "groups", "trace id", "span id")


def count(signal: Signal, message: Any) -> int:
    match signal:
        case Signal.LOGS:
            return sum(len(scope.log_records) for part in message.resource_logs for scope in part.scope_logs)
        case Signal.TRACES:
            return sum(len(scope.spans) for part in message.resource_spans for scope in part.scope_spans)
    metrics = [metric for part in message.resource_metrics for scope in part.scope_metrics for metric in scope.metrics]
    return sum(len(getattr(metric, kind).data_points) for metric in metrics if (kind := metric.WhichOneof("data")))


def upb_accepts(signal: Signal, payload: bytes) -> bool:
    try:
        message_type(signal).FromString(payload)
    except UpbError:
        return False
    return True


def outcome(form: ModuleType, signal: Signal, payload: bytes) -> int | str:
    try:
        records: int = form.validate(payload, SIGNALS.index(signal))
    except DecodeError as error:
        return str(error)
    return records


@settings(max_examples=300, deadline=None)
@given(requests())
def test_every_valid_request_is_accepted_and_counted(otlp_forms: list[ModuleType], request_of: tuple[Signal, Any]) -> None:
    signal, message = request_of
    for form in otlp_forms:
        assert outcome(form, signal, message.SerializeToString()) == count(signal, message)


def log(*attributes: bytes) -> bytes:
    return delimited(2, b"".join(delimited(6, attribute) for attribute in attributes))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(delimited(1, b"key") + delimited(2, delimited(1, b"val\xff")), id="not-utf8"),
        pytest.param(delimited(1, b"key") + delimited(2, delimited(1, b"value")[:-1]), id="cut"),
        pytest.param(delimited(1, b"ke\xff") + delimited(2, delimited(1, b"valu")), id="key-not-utf8"),
    ],
)
def test_an_attribute_is_valid_for_its_own_bytes_not_for_those_before_it(otlp_forms: list[ModuleType], bad: bytes) -> None:
    good = delimited(1, b"key") + delimited(2, delimited(1, b"valu"))
    request = [delimited(1, delimited(2, b"".join(logs))) for logs in ([log(good)] * 3, [log(good, good), log(bad)])]
    for form in otlp_forms:
        assert form.validate(request[0], otlp.LOGS) == 3
        with pytest.raises(DecodeError):
            form.validate(request[0] + request[1], otlp.LOGS)


edits = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3)


@settings(max_examples=1500, deadline=None)
@given(requests(), edits)
def test_mutated_requests_are_accepted_where_upb_accepts_them(
    otlp_forms: list[ModuleType], request_of: tuple[Signal, Any], changes: list[tuple[int, int, bytes]]
) -> None:
    signal, message = request_of
    payload = message.SerializeToString()
    for at, cut, new in changes:
        at %= len(payload) + 1
        payload = payload[:at] + new + payload[at + cut :]
    outcomes = [outcome(form, signal, payload) for form in otlp_forms]
    assert outcomes[0] == outcomes[1]
    verdict = outcomes[0]
    if isinstance(verdict, int):
        assert upb_accepts(signal, payload)
    elif upb_accepts(signal, payload):
        assert any(reason in verdict for reason in DELIBERATE), verdict


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SIGNALS), st.binary(max_size=60))
def test_any_bytes_give_a_count_or_a_decode_error(otlp_forms: list[ModuleType], signal: Signal, payload: bytes) -> None:
    outcomes = [outcome(form, signal, payload) for form in otlp_forms]
    assert outcomes[0] == outcomes[1]
    if isinstance(outcomes[0], int):
        assert upb_accepts(signal, payload)


def any_value(levels: int) -> bytes:
    value = b""
    for _ in range(levels):
        value = delimited(5, delimited(1, value))
    return value


def log_record(record: bytes) -> bytes:
    return delimited(1, delimited(2, delimited(2, record)))


REFUSED = [
    pytest.param(b"\x0a\x05", "runs past the end of the message", id="truncated"),
    pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff", "longer than ten bytes", id="endless-length"),
    pytest.param(b"\x00\x00", "field number 0", id="field-number-0"),
    pytest.param(b"\xf8\xff\xff\xff\x1f\x01", "field number 0, or a tag", id="tag-over-32-bits"),
    pytest.param(b"\x0b\x0c", "groups", id="group"),
    pytest.param(b"\x9e\x01", "does not exist", id="wire-type-6"),
    pytest.param(b"\x08\x01", "another wire type", id="wrong-wire-type"),
    pytest.param(log_record(b"\x1a\x01\xff"), "not UTF-8, in LogRecord at byte 6", id="not-utf8"),
    pytest.param(log_record(b"\x1a\x03\xed\xa0\x80"), "not UTF-8", id="surrogate"),
    pytest.param(log_record(delimited(9, b"x")), "trace id", id="trace-id"),
    pytest.param(log_record(delimited(10, b"x" * 16)), "span id", id="span-id"),
    pytest.param(log_record(b"\x10" + b"\xff" * 10 + b"\x01"), "longer than ten bytes", id="varint-of-11-bytes"),
    pytest.param(log_record(delimited(5, any_value(49))), "deeper than 100", id="too-deep"),
    pytest.param(delimited(1, delimited(2, b"\x12\x00" * (1 << 21))), "more than 2097152 records", id="too-many-messages"),
    # An attribute that was valid before is only compared, and counts all the same.
    pytest.param(
        delimited(1, delimited(2, delimited(2, b"\x32\x00" * (1 << 21)))), "more than 2097152 records", id="too-many-equal-attributes"
    ),
]


@pytest.mark.parametrize(("payload", "reason"), REFUSED)
def test_a_refusal_says_what_is_wrong(otlp_forms: list[ModuleType], payload: bytes, reason: str) -> None:
    for form in otlp_forms:
        with pytest.raises(DecodeError, match=reason):
            form.validate(payload, otlp.LOGS)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(log_record(delimited(5, any_value(48))), id="as-deep-as-allowed"),
        pytest.param(log_record(b"\x10" + b"\xff" * 9 + b"\x7f"), id="varint-of-ten-bytes"),
        pytest.param(log_record(delimited(9, b"")), id="empty-trace-id"),
        pytest.param(
            log_record(varint(900 << 3 | 5) + b"1234" + varint(901 << 3 | 1) + b"12345678" + delimited(902, b"\xff")), id="unknown-fields"
        ),
        pytest.param(log_record(b"\x90\x80\x80\x80\x00\x01"), id="overlong-tag"),
    ],
)
def test_these_are_accepted_as_upb_accepts_them(otlp_forms: list[ModuleType], payload: bytes) -> None:
    assert upb_accepts(Signal.LOGS, payload)
    for form in otlp_forms:
        assert form.validate(payload, otlp.LOGS) == 1


def test_unpacked_repeated_numbers_are_accepted(otlp_forms: list[ModuleType]) -> None:
    point = b"\x31" + b"\0" * 8 + delimited(6, b"\0" * 16)
    payload = delimited(1, delimited(2, delimited(2, delimited(9, delimited(1, point)))))
    assert upb_accepts(Signal.METRICS, payload)
    for form in otlp_forms:
        assert form.validate(payload, otlp.METRICS) == 1
        with pytest.raises(DecodeError, match="whole numbers"):
            form.validate(delimited(1, delimited(2, delimited(2, delimited(9, delimited(1, delimited(6, b"123")))))), otlp.METRICS)


def test_an_unknown_signal_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no such signal"):
        otlp.validate(b"", 3)


VARINTS = {
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT32,
}
FIXED64 = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64}


def kind(field: Any) -> int | str:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        name: str = field.message_type.name
        return name
    if field.type == FieldDescriptor.TYPE_STRING:
        return 2
    if field.type == FieldDescriptor.TYPE_BYTES:
        return 18 if field.name == "trace_id" else 26 if field.name.endswith("span_id") else 10
    if field.is_repeated:
        return 34 if field.type in FIXED64 else 42
    return 0 if field.type in VARINTS else 1 if field.type in FIXED64 else 5


def test_the_table_is_the_schema_of_opentelemetry_proto() -> None:
    found: dict[str, dict[int, int | str]] = {}

    def visit(descriptor: Descriptor) -> None:
        if descriptor.name not in found:
            found[descriptor.name] = {field.number: kind(field) for field in descriptor.fields}
            for field in descriptor.fields:
                if field.message_type:
                    visit(field.message_type)

    for signal in SIGNALS:
        visit(message_type(signal).DESCRIPTOR)
    assert found == otlp.SCHEMA
