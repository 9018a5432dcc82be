"""Log records as columns, in both forms of the kernel, against what upb's messages say."""

from __future__ import annotations

from array import array
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from support.otlp import set_attributes, set_value
from support.otlp_requests import requests
from unit.wire.conftest import both_forms

from lockgate.batch import Signal
from lockgate.store.rows import _log_row as described
from lockgate.wire.columns import LogColumns, Row
from lockgate.wire.protobuf import DecodeError, delimited, key_values

EACH_FORM = pytest.mark.parametrize("form", [pytest.param(f, id="compiled" if f.compiled else "uncompiled") for f in both_forms("columns")])
VALUES: list[Any] = [
    "",
    "plain",
    'a "quoted" \\ path',
    "".join(map(chr, range(32))) + "\x7f\u2028é🦆",
    0,
    7,
    -1,
    2**63 - 1,
    -(2**63),
    True,
    False,
    None,
    [],
    {},
    [1, "two", [None, {"three": False}]],
    {"a": 1, "b": {"c": ["\n", {}]}, "": ""},
]
ODD: list[Any] = [1.5, float("nan"), b"\xff", [0.1], {"a": b""}]


def table(columns: LogColumns) -> list[tuple[Any, ...]]:
    """Rows of (time, severity number, texts...), as a reader of Arrow sees them."""

    def has(valid: bytes | None, row: int) -> bool:
        return valid is None or bool(valid[row >> 3] >> (row & 7) & 1)

    out = []
    for row in range(columns.records):
        number = columns.severity_number[row] if has(columns.severity_number_valid, row) else None
        texts = [bytes(text.data[text.ends[row] : text.ends[row + 1]]) if has(text.valid, row) else None for text in columns.texts]
        out.append((columns.time_unix_nano[row], number, *texts))
    return out


def by_upb(message: Any) -> list[tuple[Any, ...]]:
    out = []
    for entry in message.resource_logs:
        for scope in entry.scope_logs:
            for record in scope.log_records:
                row = described(record.SerializeToString())
                out.append((row.time_unix_nano, row.severity_number, *row.texts, scope.scope.name.encode() or None))
    return out


def refuses(encoded: bytes) -> Row:
    raise AssertionError(f"left to the caller: {LogRecord.FromString(encoded)}")


@st.composite
def log_requests(draw: st.DrawFn, values: list[Any]) -> Any:
    request = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        entry = request.resource_logs.add(schema_url=draw(st.sampled_from(["", "u"])))
        if draw(st.booleans()):
            set_attributes(entry.resource.attributes, {"r": draw(st.sampled_from(values))})
        for _ in range(draw(st.integers(0, 2))):
            scope = entry.scope_logs.add()
            scope.scope.name = draw(st.sampled_from(["", "lib"]))
            for _ in range(draw(st.integers(0, 10))):
                record = scope.log_records.add(
                    time_unix_nano=draw(st.sampled_from([0, 5, 2**63, 2**64 - 1])),
                    observed_time_unix_nano=draw(st.sampled_from([0, 6])),
                    severity_number=draw(st.integers(0, 30)),
                    severity_text=draw(st.sampled_from(["", "odd"])),
                    trace_id=draw(st.sampled_from([b"", bytes(range(240, 256))])),
                    span_id=draw(st.sampled_from([b"", bytes(range(8))])),
                    event_name=draw(st.sampled_from(["", "e"])),
                    flags=draw(st.integers(0, 1)),
                    dropped_attributes_count=draw(st.integers(0, 1)),
                )
                if (body := draw(st.sampled_from([*values, "long" * 900]))) is not None:
                    set_value(record.body, body)
                keys = draw(st.lists(st.sampled_from(["a", "b", "key", "", "ключ"]), unique=True))
                set_attributes(record.attributes, {key: draw(st.sampled_from(values)) for key in keys})
    return request


@EACH_FORM
@settings(deadline=None)
@given(request=log_requests(VALUES))
def test_plain_records_are_written_as_upb_reads_them_without_asking(form: ModuleType, request: Any) -> None:
    columns = form.log_columns(request.SerializeToString(), refuses)
    assert table(columns) == by_upb(request)
    entries = [(entry.resource.SerializeToString(), sum(len(s.log_records) for s in entry.scope_logs)) for entry in request.resource_logs]
    assert columns.resources == entries


@EACH_FORM
@settings(deadline=None)
@given(request=log_requests([*VALUES, *ODD]))
def test_odd_records_among_plain_ones_are_as_the_caller_describes_them(form: ModuleType, request: Any) -> None:
    assert table(form.log_columns(request.SerializeToString(), described)) == by_upb(request)


@EACH_FORM
@settings(deadline=None)
@given(drawn=requests().filter(lambda drawn: drawn[0] is Signal.LOGS))
def test_any_request_is_written_as_upb_reads_it(form: ModuleType, drawn: tuple[Signal, Any]) -> None:
    assert table(form.log_columns(drawn[1].SerializeToString(), described)) == by_upb(drawn[1])


PAIR = key_values(6, [("k", "v")])


@EACH_FORM
@pytest.mark.parametrize(
    "record",
    [
        pytest.param(PAIR + key_values(6, [("k", "w")]), id="a-key-twice"),
        pytest.param(PAIR + b"\x10\x09" + PAIR.replace(b"k", b"l"), id="attributes-apart"),
        pytest.param(delimited(5, b"\x0a\x01x") + delimited(5, b"\x0a\x01y"), id="two-bodies"),
        pytest.param(b"\x10" + b"\xff" * 9 + b"\x01", id="negative-severity"),
        pytest.param(delimited(200, b"unknown"), id="an-unknown-field-of-a-long-tag"),
        pytest.param(delimited(6, b"\x12\x03\x0a\x01v\x0a\x01k"), id="value-before-key"),
        pytest.param(key_values(6, [(str(n), n) for n in range(100)]), id="many-attributes"),
        pytest.param(delimited(5, b"\x0a\x01x\x10\x01"), id="a-value-of-two-kinds"),
    ],
)
def test_what_is_not_written_is_left_to_the_caller_once_and_comes_in_its_place(form: ModuleType, record: bytes) -> None:
    asked = []

    def describe(encoded: bytes) -> Row:
        asked.append(encoded)
        return described(encoded)

    plain = delimited(2, b"\x09" + bytes(8) + delimited(5, b"\x0a\x05plain") + PAIR)
    payload = delimited(1, delimited(2, delimited(1, b"\x0a\x03lib") + plain * 2 + delimited(2, record) + plain))
    message = ExportLogsServiceRequest.FromString(payload)
    assert table(form.log_columns(payload, describe)) == by_upb(message)
    assert asked == [record]


@EACH_FORM
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(delimited(1, delimited(1, b"") + delimited(2, b"") + delimited(1, b"")), id="two-resources"),
        pytest.param(delimited(1, delimited(2, delimited(2, b"") + delimited(3, b"u") + delimited(2, b""))), id="records-apart"),
        pytest.param(delimited(1, delimited(2, delimited(1, b"") * 2)), id="two-scopes"),
        pytest.param(delimited(200, b""), id="a-long-tag"),
    ],
)
def test_a_request_that_is_not_plain_has_no_columns(form: ModuleType, payload: bytes) -> None:
    assert form.log_columns(payload, refuses) is None


@EACH_FORM
@settings(deadline=None, max_examples=200)
@given(payload=st.binary(max_size=200), at=st.integers(0, 150), size=st.integers(0, 8), junk=st.binary(max_size=4))
def test_what_is_no_otlp_gives_columns_or_none_or_is_the_callers_to_refuse(
    form: ModuleType, payload: bytes, at: int, size: int, junk: bytes
) -> None:
    good = delimited(
        1, delimited(1, key_values(1, [("service.name", "x")])) + delimited(2, delimited(2, PAIR + delimited(5, b"\x0a\x01x")) * 3)
    )

    def describe(encoded: bytes) -> Row:
        raise DecodeError("not this")

    for broken in (payload, good[:at] + junk + good[at + size :]):
        try:
            columns = form.log_columns(broken, describe)
        except DecodeError:
            continue
        assert columns is None or isinstance(columns.time_unix_nano, array)
