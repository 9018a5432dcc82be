"""Zipkin v1 to OTLP, JSON and Thrift: what becomes of each field; any bytes are spans or a reason. tests/peers holds it beside the
Collector."""

import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mutation import mutated
from support.zipkin import DB, MICRO, WEB, Object, body, spans, thrift, v1

from lockgate.batch import Signal, count_records, message_type
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.zipkin import needed_json_bytes
from lockgate.wire.zipkin_v1 import decode_json, decode_thrift, needed_thrift_bytes

TRACE, ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOW = 1_800_000_000_000_000_000


def made(payload: bytes) -> list[Object]:
    assert count_records(Signal.TRACES, payload) >= 0  # passes the check of all that comes in
    return spans(message_type(Signal.TRACES).FromString(payload))


def at(value: str, endpoint: Object | None = None, timestamp: int = MICRO) -> Object:
    return {"timestamp": timestamp, "value": value} | ({"endpoint": endpoint} if endpoint else {})


def binary(**values: Any) -> list[Object]:
    return [{"key": key.replace("_", "."), "value": value} for key, value in values.items()]


FULL = v1(
    parentId="00f067aa0ba902b7",
    name="get /",
    debug=True,
    annotations=[at("sr", WEB), at("retry", None, MICRO + 5), at("ss", WEB, MICRO + 1500)],
    binaryAnnotations=[*binary(http_status="x", error="no route"), {"key": "lc", "value": "jdbc", "endpoint": DB}],
)
EXPECTED = {
    "resource": {"service.name": "web", "ipv4": "10.0.0.1", "port": "8080"},
    "scope": ("", ""),
    "ids": (TRACE, ID, "00f067aa0ba902b7"),
    "state": "",
    "name": "get /",
    "kind": 2,
    "times": (MICRO * 1000, MICRO * 1000 + 1_500_000),
    "attributes": {"http.status": "x", "error": "no route", "component": "jdbc"},
    "events": [((MICRO + 5) * 1000, "retry", {}, 0)],
    "links": [],
    "status": (2, ""),
}


def test_every_field_has_its_place_from_json_and_from_thrift() -> None:
    assert made(decode_json(body(FULL), NOW)) == [EXPECTED]
    assert made(decode_thrift(thrift(FULL), NOW)) == [EXPECTED]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(
            pytest.param({"annotations": [at(value)]}, {"kind": kind, "events": []}, id=value)
            for value, kind in {"cs": 3, "cr": 3, "ss": 2, "sr": 2, "ms": 4, "mr": 5}.items()
        ),
        pytest.param({"annotations": [at("ss"), at("cs", DB), at("cr", WEB)]}, {"kind": 2}, id="the-first-says-the-kind"),
        pytest.param(
            {"annotations": [at("x", WEB), at("ss"), at("cs", DB | {"ipv6": "2001:db8::c001"})]},
            {"resource": {"service.name": "db", "ipv6": "2001:db8::c001", "port": "5432"}},
            id="the-first-of-them-with-a-service-says-the-service",
        ),
        pytest.param({}, {"resource": {"service.name": "unknown-service"}}, id="no-service"),
        pytest.param({"binaryAnnotations": binary(lc="jdbc")}, {"resource": {"service.name": "jdbc"}}, id="local-component"),
        pytest.param(
            {"binaryAnnotations": [{"key": "a", "value": "b", "endpoint": WEB}, *binary(lc="jdbc")]},
            {"resource": {"service.name": "web"}},
            id="service-of-a-binary-annotation",
        ),
        pytest.param(
            {"timestamp": None, "annotations": [at("a", None, MICRO + 9), at("b", None, MICRO)]},
            {"times": (MICRO * 1000, (MICRO + 9) * 1000), "attributes": {}},
            id="times-of-annotations",
        ),
        pytest.param(
            {"timestamp": None, "name": "no time"},
            {"times": (NOW, NOW), "attributes": {"otel.zipkin.absentField.startTime": True}},
            id="no-time-is-now",
        ),
        pytest.param({"parentId": ID}, {"ids": (TRACE, ID, "")}, id="its-own-parent-is-none"),
        pytest.param({"annotations": [at('a|{"b":1}|0')]}, {"events": [(MICRO * 1000, 'a|{"b":1}|0', {}, 0)]}, id="text-stays-text"),
        pytest.param({"binaryAnnotations": binary(error="true")}, {"status": (2, ""), "attributes": {}}, id="error"),
        pytest.param({"binaryAnnotations": binary(sa=True, n=5, d=0.5)}, {"attributes": {"sa": True, "n": 5, "d": 0.5}}, id="types"),
        pytest.param(
            {"binaryAnnotations": [{"key": "http.status_code", "value": "404"}]},
            {"status": (2, ""), "attributes": {"http.status_code": "404"}},
            id="http-error",
        ),
        pytest.param(
            {"binaryAnnotations": [{"key": "http.status_code", "value": 200}]},
            {"status": (0, ""), "attributes": {"http.status_code": 200}},
            id="ok",
        ),
        pytest.param(
            {"binaryAnnotations": [{"key": "census.status_code", "value": "0"}, {"key": "census.status_description", "value": "m"}]},
            {"status": (1, "m"), "attributes": {}},
            id="census",
        ),
        pytest.param(
            {"binaryAnnotations": [{"key": "otel.status_code", "value": "1"}, {"key": "otel.status_description", "value": "m"}]},
            {"status": (1, "m"), "attributes": {}},
            id="status",
        ),
        pytest.param(
            {"binaryAnnotations": [{"key": "otel.status_code", "value": "what"}]},
            {"status": (0, ""), "attributes": {"otel.status_code": "what"}},
            id="unknown-status-stays",
        ),
    ],
)
def test_a_field_becomes_the_same_from_json_and_from_thrift(fields: Object, expected: Object) -> None:
    for payload in (decode_json(body(v1(**fields)), NOW), decode_thrift(thrift(v1(**fields)), NOW)):
        (span,) = made(payload)
        assert {key: span[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((True, True), (b"\x00\xff", "AP8="), (-5, -5), (1.5, 1.5), ("é", "é"), ((6, b"\xff"), "�"), ((0, b"\2"), False)),
        *(((2, b"\xff\xfe"), -2), ((3, b"\0\0\1\0"), 256), ((2, b"\0\1\2"), 1)),
        ((4, b"1"), "<not enough bytes representing the number>"),
        ((9, b"1"), "<unknown zipkin v1 binary annotation type (9)>"),
    ],
)
def test_a_binary_annotation_in_thrift_has_its_type(value: Any, expected: Any) -> None:
    (span,) = made(decode_thrift(thrift(v1(binaryAnnotations=binary(a=value))), NOW))
    assert span["attributes"] == {"a": expected}


def test_json_numbers_and_booleans_are_parsed_where_wanted() -> None:
    sent = body(v1(binaryAnnotations=binary(i="7", t="true", s="x", huge=10**30)))
    assert made(decode_json(sent, NOW, True))[0]["attributes"] == {"i": 7, "t": True, "s": "x", "huge": "1" + "0" * 30}
    assert made(decode_json(sent, NOW))[0]["attributes"] == {"i": "7", "t": "true", "s": "x", "huge": "1" + "0" * 30}


def test_spans_of_an_endpoint_have_one_resource() -> None:
    sent = body(*(v1(id=f"{n}", annotations=[at("cs", {"serviceName": "s", "port": n % 2 + 1})]) for n in range(1, 5)))
    message = message_type(Signal.TRACES).FromString(decode_json(sent, NOW))
    assert [len(resource.scope_spans[0].spans) for resource in message.resource_spans] == [2, 2]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"nothing", "not Zipkin JSON", id="no-json"),
        pytest.param(body(v1(), v1(id="0")), "span 1: id is zero", id="zero-id"),
        pytest.param(body(v1(traceId="x")), "span 0: traceId is not 1 to 32 hex digits", id="no-hex"),
        pytest.param(body(v1(name=1)), r"\$\[0\].name", id="name"),
        pytest.param(body(v1(timestamp=2**63)), "span 0: timestamp is not between", id="time"),
    ],
)
def test_a_refusal_names_the_span_and_the_field(sent: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_json(sent, NOW)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"", "missing", id="empty"),
        pytest.param(b"\x0c" + struct.pack(">i", 2**31 - 1), "elements", id="more-than-there-can-be"),
        pytest.param(thrift(v1())[:-1], "span 0: ", id="cut-off"),
        pytest.param(thrift(v1(), v1(id="0")), "span 1: id is zero", id="zero-id"),
    ],
)
def test_a_refusal_of_thrift_names_the_span(sent: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_thrift(sent, NOW)


def test_no_spans_are_an_empty_request() -> None:
    assert decode_json(b"[]", NOW) == decode_thrift(thrift(), NOW) == b""


@given(mutated(st.sampled_from([body(FULL), body(FULL, v1())]), [b"null", b"[]", b"{}", b"1e400", b"-1", b'"lc"']), st.booleans())
def test_damaged_json_is_spans_or_a_reason(sent: bytes, parse: bool) -> None:
    with suppress(DecodeError):
        made(decode_json(sent, NOW, parse))


@given(mutated(st.sampled_from([thrift(FULL), thrift(FULL, v1())]), [b"\x0c", b"\x0f\x00\x06\x0c", b"\x7f\xff\xff\xff"]))
def test_damaged_thrift_is_spans_or_a_reason(sent: bytes) -> None:
    with suppress(DecodeError):
        made(decode_thrift(sent, NOW))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(thrift(*[FULL] * 300), id="usual"),
        pytest.param(thrift(v1(annotations=[at("a")] * 5000)), id="annotations"),
        pytest.param(thrift(v1(binaryAnnotations=[{"key": f"{n:x}", "value": ""} for n in range(5000)])), id="binary-annotations"),
        pytest.param(b"\x0c\0\0\0\1\x0f\0\6\x0c\0\0\x27\x10" + bytes(10_000) + b"\0", id="empty-annotations"),
        pytest.param(b"\x0c\0\0\0\1\x0f\0\x08\x0c\0\0\x27\x10" + bytes(10_000) + b"\0", id="empty-binary-annotations"),
    ],
)
def test_decoding_thrift_takes_no_more_memory_than_it_says(sent: bytes) -> None:
    held(lambda: decode_thrift(sent, NOW), needed_thrift_bytes(sent))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(body(*[FULL] * 300), id="usual"),
        pytest.param(b'[{"traceId":"1","id":"1","annotations":[' + b"{}," * 9000 + b'{}],"binaryAnnotations":[{}]}]', id="annotations"),
        pytest.param(b'[{"traceId":"1","id":"1","binaryAnnotations":[' + b"{}," * 9000 + b"{}]}]", id="binary-annotations"),
        pytest.param(body(v1(binaryAnnotations=[{"key": f"{n}", "value": 2**62 + n} for n in range(9000)])), id="numbers"),
    ],
)
def test_decoding_json_takes_no_more_memory_than_it_says(sent: bytes) -> None:
    held(lambda: decode_json(sent, NOW), needed_json_bytes(sent))


def held(decode: Any, limit: int) -> None:
    with suppress(DecodeError):
        decode()
    tracemalloc.start()
    try:
        with suppress(DecodeError):
            decode()
        assert tracemalloc.get_traced_memory()[1] < limit + 100_000
    finally:
        tracemalloc.stop()
