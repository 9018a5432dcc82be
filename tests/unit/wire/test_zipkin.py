"""Zipkin v2 to OTLP: what becomes of each field; any bytes are spans or a reason. tests/peers holds it beside the Collector."""

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mutation import mutated
from support.zipkin import DB, MICRO, WEB, Object, body, full, protobuf, spans, v2

from lockgate.batch import Signal, count_records, message_type
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.zipkin import decode_json, decode_protobuf, needed_json_bytes, needed_protobuf_bytes, typed

TRACE, ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def made(payload: bytes) -> list[Object]:
    assert count_records(Signal.TRACES, payload) >= 0  # passes the check of all that comes in
    return spans(message_type(Signal.TRACES).FromString(payload))


def one(**fields: Any) -> Object:
    """What becomes of one JSON span, its attributes without what says that it has no time."""
    (span,) = made(decode_json(body(v2(**fields))))
    return span


FULL = {
    "resource": {"service.name": "web", "k8s.pod.name": "web-0"},
    "scope": ("lib", "1.2"),
    "ids": (TRACE, ID, "00f067aa0ba902b7"),
    "state": "a=b",
    "name": "get /",
    "kind": 3,
    "times": (MICRO * 1000, MICRO * 1000 + 1_500_000),
    "attributes": {
        "net.host.ip": "10.0.0.1",
        "net.host.port": 8080,
        "peer.service": "db",
        "net.peer.ip": "2001:db8::c001",
        "net.peer.port": 5432,
        "http.method": "GET",
        "http.path": "/é",
        "size": "17",
        "error": "no route",
    },
    "events": [
        ((MICRO + 5) * 1000, "retry", {}, 0),
        ((MICRO + 6) * 1000, "cached", {"hit": True, "n": 2, "x": 1.5, "s": "a|b"}, 3),
    ],
    "links": [
        ("0af7651916cd43dd8448eb211c80319d", "b7ad6b7169203332", "c=d", {"a": "b"}, 2),
        ("0af7651916cd43dd8448eb211c80319e", "b7ad6b7169203333", "", {}, 0),
    ],
    "status": (2, "broken"),
}


def test_every_field_of_a_json_span_has_its_place() -> None:
    assert made(decode_json(body(full()))) == [FULL]


def test_a_protobuf_span_becomes_the_same() -> None:
    assert made(decode_protobuf(protobuf(full()))) == [FULL]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"traceId": "1", "id": "a"}, {"ids": ("0" * 31 + "1", "0" * 15 + "a", "")}, id="short-ids-are-padded"),
        pytest.param({"parentId": ID}, {"ids": (TRACE, ID, "")}, id="its-own-parent-is-none"),
        pytest.param({"parentId": "0"}, {"ids": (TRACE, ID, "")}, id="parent-zero-is-none"),
        pytest.param({"kind": "PRODUCER"}, {"kind": 4}, id="kind"),
        pytest.param({"kind": "CONSUMER", "tags": {"span.kind": "x"}}, {"kind": 5, "attributes": {"span.kind": "x"}}, id="kind-over-tag"),
        pytest.param({"kind": "x"}, {"kind": 0}, id="unknown-kind"),
        pytest.param({"tags": {"span.kind": "internal"}}, {"kind": 1, "attributes": {}}, id="kind-as-tag"),
        pytest.param({"tags": {"span.kind": "x"}}, {"kind": 0, "attributes": {"span.kind": "x"}}, id="unknown-kind-as-tag"),
        pytest.param({"timestamp": 1.7e15}, {"times": (MICRO * 1000, MICRO * 1000 + 1_500_000)}, id="whole-float"),
        pytest.param({"duration": 0.25}, {"times": (MICRO * 1000, MICRO * 1000 + 250)}, id="fraction"),
        pytest.param(
            {"timestamp": None, "tags": {"otel.zipkin.absentField.startTime": "no"}},
            {"times": (0, 1_500_000), "attributes": {"otel.zipkin.absentField.startTime": True}},
            id="no-timestamp",
        ),
        pytest.param({"tags": {"error": "true"}}, {"status": (2, ""), "attributes": {}}, id="error"),
        pytest.param({"tags": {"error": ""}}, {"status": (2, ""), "attributes": {"error": ""}}, id="error-empty"),
        pytest.param({"tags": {"otel.status_code": "OK"}}, {"status": (1, ""), "attributes": {}}, id="ok-of-sdks"),
        pytest.param({"tags": {"otel.status_code": "Error"}}, {"status": (2, "")}, id="error-of-the-collector"),
        pytest.param({"tags": {"otel.status_code": "what"}}, {"status": (0, ""), "attributes": {}}, id="unknown-status"),
        pytest.param(
            {"tags": {"otel.status_description": "d"}},
            {"status": (0, ""), "attributes": {"otel.status_description": "d"}},
            id="description-without-status",
        ),
        pytest.param({"localEndpoint": {"serviceName": "OTLPResourceNoServiceName"}}, {"resource": {}}, id="no-service"),
        pytest.param(
            {"localEndpoint": WEB, "tags": {"otlp.service.name.source": "faas.name"}},
            {"resource": {"faas.name": "web"}},
            id="service-source",
        ),
        pytest.param({"localEndpoint": WEB, "tags": {"service.name": "x"}}, {"resource": {"service.name": "x"}}, id="service-tag-wins"),
        pytest.param({"localEndpoint": {"ipv6": "::FFFF:1.2.3.4"}}, {"attributes": {"net.host.ip": "1.2.3.4"}}, id="mapped-address"),
        pytest.param(
            {"remoteEndpoint": DB | {"ipv4": "1.2.3.4"}, "tags": {"peer.service": "x"}},
            {"attributes": {"peer.service": "db", "net.peer.ip": "2001:db8::c001", "net.peer.port": 5432}},
            id="endpoint-over-tag",
        ),
        pytest.param({"annotations": [{"timestamp": 1, "value": "a|b|c"}]}, {"events": [(1000, "a|b|c", {}, 0)]}, id="text-with-bars"),
        pytest.param({"annotations": [{"timestamp": 1, "value": "n|[1]|0"}]}, {"events": [(1000, "n|[1]|0", {}, 0)]}, id="no-map-is-text"),
        pytest.param(
            {"annotations": [{"timestamp": 1, "value": "n|{}|4294967296"}]},
            {"events": [(1000, "n|{}|4294967296", {}, 0)]},
            id="too-many-dropped",
        ),
        pytest.param(
            {"annotations": [{"timestamp": 1, "value": 'n|{"z":null,"i":2.0,"l":[1,{"a":null}]}|0'}]},
            {"events": [(1000, "n", {"i": 2, "l": [1, {"a": None}]}, 0)]},
            id="kinds-of-values",
        ),
        pytest.param(
            {"tags": {"otlp.link.0": "x|y|z|{}|0"}}, {"links": [], "attributes": {"otlp.link.0": "x|y|z|{}|0"}}, id="no-link-is-a-tag"
        ),
        pytest.param({"tags": {"otlp.link.1": "|||{}|0"}}, {"links": [], "attributes": {"otlp.link.1": "|||{}|0"}}, id="links-begin-at-0"),
        pytest.param({"tags": {"otlp.link.0": f'"{TRACE}"||s|null|0'}}, {"links": [(TRACE, "", "s", {}, 0)]}, id="quoted-id"),
        pytest.param(
            {"tags": {"k" * 300: "v" * 300, "é" * 60: "ü" * 60}}, {"attributes": {"k" * 300: "v" * 300, "é" * 60: "ü" * 60}}, id="long"
        ),
        pytest.param(
            {"tags": {"a": None, "host.name": None}}, {"resource": {"host.name": ""}, "attributes": {"a": ""}}, id="null-is-empty"
        ),
        pytest.param(dict.fromkeys(["name", "kind", "shared", "debug"]), {"name": ""}, id="absent"),
    ],
)
def test_a_field_becomes(fields: Object, expected: Object) -> None:
    span = one(**fields)
    assert {key: span[key] for key in expected} == expected


def test_spans_of_a_service_keep_their_own_resource_and_scope() -> None:
    sent = [
        v2(id=f"{number}", localEndpoint=WEB, tags={"k8s.pod.name": pod, "otel.library.name": "l", "otel.library.version": version})
        for number, (pod, version) in enumerate([("p", "1"), ("q", "1"), ("p", "2"), ("p", "1")], 1)
    ]
    payload = decode_json(body(*sent))
    message = message_type(Signal.TRACES).FromString(payload)
    assert [len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans] == [2, 1, 1]
    assert [(span["resource"]["k8s.pod.name"], span["scope"][1]) for span in made(payload)] == [
        ("p", "1"),
        ("q", "1"),
        ("p", "2"),
        ("p", "1"),
    ]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"\xff", "JSON", id="no-text"),
        pytest.param(b'[{"x":' * 100_000, "nests", id="deep"),
        pytest.param(b"{}", "array", id="object"),
        pytest.param(body(v2(), v2(id=None)), "`id` - at `$[1]`", id="no-id"),
        pytest.param(body(v2(), v2(id="0" * 16)), "span 1: id is zero", id="zero-id"),
        pytest.param(body(v2(traceId="")), "span 0: traceId is empty", id="empty-trace-id"),
        pytest.param(body(v2(parentId="+1")), "span 0: parentId is not 1 to 16 hex digits: '+1'", id="no-hex"),
        pytest.param(body(v2(traceId="1" * 33)), "traceId is not 1 to 32 hex digits", id="too-long"),
        pytest.param(body(v2(timestamp=-1)), "span 0: timestamp is not between", id="negative"),
        pytest.param(b'[{"traceId":"1","id":"1","timestamp":1' + b"0" * 4000 + b"}]", "span 0: timestamp is not between", id="huge"),
        pytest.param(body(v2(timestamp=18_446_744_073_709_551)), "timestamp and duration end after", id="end-past-2554"),
        pytest.param(body(v2(annotations=[{"timestamp": -1}])), "an annotation's timestamp is not", id="annotation"),
        pytest.param(body(v2(tags={"a": 1})), "$[0].tags", id="tag"),
        pytest.param(body(v2(localEndpoint={"port": 70000})), "$[0].localEndpoint.port", id="port"),
        pytest.param(body(v2(remoteEndpoint={"ipv4": "x"})), "span 0: remoteEndpoint.ipv4 is no IP address: 'x'", id="address"),
        pytest.param(body(v2(remoteEndpoint={"ipv6": "fe80::1%" + "e" * 9999})), "remoteEndpoint.ipv6", id="zone"),
    ],
)
def test_a_refusal_names_the_span_and_the_field(sent: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_json(sent)
    assert reason in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"\x0a\xff", "span 0: a number runs past", id="cut-off"),
        pytest.param(protobuf(v2(traceId=b"\1" * 9)), "span 0: trace_id has 9 bytes instead of 8 or 16", id="trace-id"),
        pytest.param(protobuf(v2(), v2(id=b"")), "span 1: id has 0 bytes instead of 8", id="id"),
        pytest.param(protobuf(v2(parentId=b"1")), "parent_id has 1 bytes", id="parent-id"),
        pytest.param(protobuf(v2(localEndpoint={"port": -1})), "local_endpoint.port", id="port"),
        pytest.param(protobuf(v2(remoteEndpoint={"ipv4": b"1"})), "remote_endpoint.ipv4 is no IP address", id="address"),
        pytest.param(protobuf(v2(timestamp=2**63)), "timestamp is not between", id="time"),
    ],
)
def test_a_refusal_of_protobuf_names_the_span_and_the_field(sent: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_protobuf(sent)


def test_no_spans_are_an_empty_request() -> None:
    assert decode_json(b"[]") == decode_json(b"null") == decode_json(b"[null]") == decode_protobuf(b"") == b""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("-7", -7),
            ("007", 7),
            ("9223372036854775807", 2**63 - 1),
            ("9223372036854775808", "9223372036854775808"),
            ("1" * 999, "1" * 999),
        ),
        *(("1.50", 1.5), ("-0.5", -0.5), ("9" * 400 + ".0", "9" * 400 + ".0"), ("1e5", "1e5"), (".5", ".5"), ("1.", "1."), ("+1", "+1")),
        *(("true", True), ("false", False), ("True", "True"), ("", ""), ("١", "١"), ("1\n", "1\n"), ("[1]", "[1]")),
    ],
)
def test_parse_string_tags_finds(text: str, value: str | int | float | bool) -> None:
    found = typed(text)
    assert (found, type(found)) == (value, type(value))
    assert made(decode_json(body(v2(tags={"a": text})), True))[0]["attributes"] == {"a": value}


WORDS = [
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"1e400",
    b"-1",
    b"1.5",
    b'"\\ud800"',
    b'"\\u0000"',
    b"|",
    b"otlp.link.0",
    b"\x0a\x00",
    b"\x52\x00",
    b"\x5a\x00",
]
SENT = [body(full()), body(full(), v2(), full()), body(v2(annotations=[{"timestamp": 1, "value": 'a|{"a":[1]}|0'}]))]


@given(mutated(st.sampled_from(SENT), WORDS), st.booleans())
def test_damaged_json_is_spans_or_a_reason(sent: bytes, parse: bool) -> None:
    with suppress(DecodeError):
        made(decode_json(sent, parse))


@given(mutated(st.sampled_from([protobuf(full()), protobuf(full(), v2())]), WORDS), st.booleans())
def test_damaged_protobuf_is_spans_or_a_reason(sent: bytes, parse: bool) -> None:
    with suppress(DecodeError):
        made(decode_protobuf(sent, parse))


@given(st.binary(max_size=100))
def test_any_bytes_are_spans_or_a_reason(sent: bytes) -> None:
    for decode in (decode_json, decode_protobuf):
        with suppress(DecodeError):
            made(decode(sent))


MANY = json.dumps({f"{n}": [] for n in range(10_000)})
_IDS = b'{"traceId":"1","id":"1"'


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"[" + b",".join([_IDS + b"}"] * 5000) + b"]", id="least-spans"),
        pytest.param(b"[" + _IDS + b',"annotations":[' + b",".join([b'{"timestamp":1}'] * 10_000) + b"]}]", id="annotations"),
        pytest.param(b"[" + _IDS + b',"tags":{' + b",".join(b'"%x":""' % n for n in range(20_000)) + b"}}]", id="tags"),
        pytest.param(b"[" + b",".join([_IDS + b',"tags":{},"localEndpoint":{},"remoteEndpoint":{}}'] * 3000) + b"]", id="empty-parts"),
        pytest.param(b"[" + b"null," * 20_000 + b"null]", id="nulls"),
        pytest.param(b"[" + _IDS + b',"x":' + b"[" * 500 + b"]" * 500 + b"}]", id="unknown"),
        pytest.param(body(v2(annotations=[{"timestamp": 1, "value": f"n|{MANY}|0"}])), id="event"),
        pytest.param(body(*[full()] * 500), id="usual"),
    ],
)
def test_decoding_json_takes_no_more_memory_than_it_says(sent: bytes) -> None:
    decode_json(sent)  # fills what is kept, which has a bound of its own: see below
    tracemalloc.start()
    try:
        decode_json(sent)
        assert tracemalloc.get_traced_memory()[1] < needed_json_bytes(sent) + 100_000
    finally:
        tracemalloc.stop()


def test_what_is_kept_of_text_that_came_is_bounded() -> None:
    def send(numbers: range) -> None:
        for n in numbers:
            name = f"{n:x}" * 18
            endpoint = {"serviceName": name, "port": n % 65536}
            decode_json(body(v2(localEndpoint=endpoint, remoteEndpoint=endpoint, tags={name: name, "long" * 100: f"{n}" * 1000})))

    send(range(9000))  # fills what is kept
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        send(range(9000, 18_000))
        assert tracemalloc.get_traced_memory()[0] - before < 8_000_000
    finally:
        tracemalloc.stop()


def test_the_usual_needs_leave_room_for_large_bodies() -> None:
    sent = body(*[full()] * 100)
    assert needed_json_bytes(sent) < 12 * len(sent)
    assert needed_protobuf_bytes(protobuf(*[full()] * 100)) < 20 * len(protobuf(*[full()] * 100))
