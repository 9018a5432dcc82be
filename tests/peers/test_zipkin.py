"""The zipkin receiver beside the real OpenTelemetry Collector's: the same bodies in, the same spans out, or what docs/differences.md
says."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from support.backend import Backend
from support.otelcol import TRACES, needs_otelcol_traces, running_otelcol
from support.process import Role, free_port
from support.zipkin import DB, MICRO, WEB, Object, body, full, protobuf, spans, thrift, v1, v2

pytestmark = [pytest.mark.peers, needs_otelcol_traces]

JSON, PROTOBUF, THRIFT = "application/json", "application/x-protobuf", "application/x-thrift"


@dataclass
class Side:
    """One of the two programs: where to send, and what came out."""

    port: int
    backend: Backend

    def post(self, path: str, content_type: str, sent: bytes) -> tuple[int, list[Object]]:
        """The status, and the spans that came out."""
        before = len(self.backend.requests)
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", sent, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        # Without queues, what is acknowledged is delivered.
        return status, [span for _, _, message in self.backend.requests[before:] for span in spans(message)]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, tuple[Side, Side]]]:
    """Ours and theirs, with and without parse_string_tags."""
    directory = tmp_path_factory.mktemp("zipkin")
    with ExitStack() as stack:
        made: dict[bool, list[Side]] = {False: [], True: []}
        for program in ("ours", "theirs"):
            config: Object = {"receivers": {}, "exporters": {}, "service": {"pipelines": {}}}
            for parse in made:
                side = Side(free_port(), stack.enter_context(Backend()))
                made[parse].append(side)
                config["receivers"][f"zipkin/{parse}"] = {"endpoint": f"127.0.0.1:{side.port}", "parse_string_tags": parse}
                config["exporters"][f"otlphttp/{parse}"] = {
                    "endpoint": side.backend.url,
                    "sending_queue": {"enabled": False},
                    "retry_on_failure": {"enabled": False},
                }
                config["service"]["pipelines"][f"traces/{parse}"] = {"receivers": [f"zipkin/{parse}"], "exporters": [f"otlphttp/{parse}"]}
            if program == "ours":
                config["service"]["extensions"] = ["health_check"]
                stack.enter_context(Role(directory / program, yaml.safe_dump(config)))
            else:
                stack.enter_context(running_otelcol(directory / program, config, binary=TRACES))
        yield {parse: (ours, theirs) for parse, (ours, theirs) in made.items()}


def core(value: str, endpoint: Object | None = WEB, **more: Any) -> Object:
    return {"timestamp": MICRO + 10, "value": value, "endpoint": endpoint} | more


TAGS = {"i": "-12", "d": "1.50", "t": "true", "f": "false", "e": "", "m": '{"a":1}', "l": "[1]", "s": "1e5", "p": "+1", "z": "007"}
V2: dict[str, list[Object]] = {
    "full": [full()],
    "least": [{"traceId": "1", "id": "2"}],
    "no-spans": [],
    "64-bit": [v2(traceId="8448eb211c80319c", id="abc", parentId="DEF")],
    "upper-case": [v2(traceId="0AF7651916CD43DD8448EB211C80319C")],
    "own-parent": [v2(parentId="b7ad6b7169203331")],
    "empty-parent": [v2(parentId="")],
    "kinds": [v2(kind=kind) for kind in ("CLIENT", "SERVER", "PRODUCER", "CONSUMER", "OTHER")],
    "internal": [v2(tags={"span.kind": "internal"}), v2(kind="SERVER", tags={"span.kind": "internal"})],
    "no-timestamp": [v2(timestamp=None)],
    "no-duration": [v2(duration=None)],
    "far-future": [v2(timestamp=18_000_000_000_000_000)],
    "both-addresses": [v2(localEndpoint=WEB | DB, remoteEndpoint=WEB | DB)],
    "mapped-address": [v2(localEndpoint={"ipv6": "::ffff:10.0.0.2"}, remoteEndpoint={"ipv6": "::10.0.0.2", "ipv4": "::1"})],
    "empty-endpoint": [v2(localEndpoint={}, remoteEndpoint={"serviceName": ""})],
    "endpoint-over-tag": [v2(localEndpoint=WEB, remoteEndpoint=DB, tags={"net.host.ip": "x", "peer.service": "y", "net.peer.port": "z"})],
    "nulls": [v2(parentId="1") | dict.fromkeys(["parentId", "name", "kind", "shared", "localEndpoint", "annotations", "tags"])],
    "null-tag": [v2(localEndpoint=WEB, tags={"a": None, "k8s.pod.name": None})],
    "unknown-field": [v2(something={"a": [1, 2]})],
    "service-tag": [v2(localEndpoint=WEB, tags={"service.name": "other"})],
    "service-source": [v2(localEndpoint=WEB, tags={"otlp.service.name.source": "faas.name", "a": "b"})],
    "no-service": [v2(localEndpoint={"serviceName": "OTLPResourceNoServiceName"}, tags={"a": "b"})],
    "resources": [v2(id=f"{n}", localEndpoint={"serviceName": f"s{n % 3}"}, tags={"host.name": f"h{n % 3}"}) for n in range(1, 30)],
    "scopes": [v2(id=f"{n}", localEndpoint=WEB, tags={"otel.library.name": f"l{n % 3}"}) for n in range(1, 30)],
    "error-true": [v2(tags={"error": "true"})],
    "error-text": [v2(tags={"error": ""}), v2(tags={"error": "false", "otel.status_code": "Ok", "otel.status_description": "fine"})],
    "status": [v2(tags={"otel.status_code": code}) for code in ("STATUS_CODE_OK", "Error", "Unset", "STATUS_CODE_UNSET", "nonsense")],
    "description-alone": [v2(tags={"otel.status_description": "x"})],
    "annotations": [v2(annotations=[{"timestamp": MICRO, "value": "a"}, {"timestamp": 1}, {"timestamp": 2, "value": "b|null|0"}])],
    "event-attributes": [v2(annotations=[{"timestamp": 1, "value": 'n|{"i":1.0,"f":0.5,"t":"x","z":null,"b":false}|7'}])],
    "many-links": [v2(tags={f"otlp.link.{n}": f"{'1' * 32}|{'2' * 16}||{{}}|{n}" for n in range(130)})],
    "links-with-a-gap": [v2(tags={f"otlp.link.{n}": f"{'1' * 32}|{'2' * 16}|s|null|{n}" for n in (0, 1, 3)})],
    "link-without-ids": [v2(tags={"otlp.link.0": "|||{}|0"})],
    "tags": [v2(tags=TAGS)],
}
V1: dict[str, list[Object]] = {
    "least": [v1(name="now", timestamp=None, duration=None)],
    "no-spans": [],
    "64-bit": [v1(traceId="8448eb211c80319c", parentId="00000000000000ff")],
    **{f"core-{value}": [v1(annotations=[core("first", None), core(value)])] for value in ("cs", "cr", "ss", "sr", "ms", "mr")},
    "two-cores": [v1(annotations=[core("ss", None), core("cs", DB), core("cr", WEB)])],
    "times-of-annotations": [
        v1(timestamp=None, duration=None, annotations=[core("x", timestamp=MICRO + 9), core("sr", timestamp=MICRO - 9)])
    ],
    "negative-time": [v1(name="now", timestamp=-5, annotations=[core("x", timestamp=-3)])],
    "empty-annotation": [v1(annotations=[core(""), None, core("y")])],
    "endpoint": [v1(annotations=[core("sr", DB | {"ipv4": "not checked", "port": -1})])],
    "local-component": [v1(binaryAnnotations=[{"key": "lc", "value": "jdbc"}])],
    "local-endpoint": [v1(binaryAnnotations=[{"key": "lc", "value": "jdbc", "endpoint": WEB}, {"key": "a", "value": "b", "endpoint": DB}])],
    "attributes": [v1(annotations=[core("cs")], binaryAnnotations=[{"key": key, "value": value} for key, value in TAGS.items()])],
    "twice": [v1(binaryAnnotations=[{"key": "a", "value": "1"}, {"key": "a", "value": "2"}])],
    "status": [
        v1(binaryAnnotations=[{"key": key, "value": value} for key, value in tags.items()])
        for tags in (
            {"error": "true"},
            {"error": ""},
            {"census.status_code": "0", "census.status_description": "m"},
            {"census.status_code": "5", "opencensus.status_description": "m", "otel.status_code": "1"},
            {"otel.status_code": "1", "otel.status_description": "m", "error": "true"},
            {"error": "true", "otel.status_description": "m", "http.status_code": "200"},
            {"http.status_code": "200", "http.status_message": "m"},
            {"http.status_code": "404", "http.status_message": "m"},
            {"http.status_code": "many"},
        )
    ],
    "resources": [v1(id=f"{n:016x}", annotations=[core("cs", {"serviceName": f"s{n % 3}", "port": n % 2})]) for n in range(1, 30)],
}
REFUSED: dict[str, tuple[str, bytes]] = {
    "no-json": ("2", b"nothing"),
    "cut-off": ("2", body(full())[:-9]),
    "more-behind": ("2", b"[] []"),
    "an-object": ("2", b'{"traceId":"1","id":"2"}'),
    "empty": ("2", b""),
    "no-id": ("2", body(v2(id=None))),
    "zero-id": ("2", body(v2(id="0"))),
    "empty-trace-id": ("2", body(v2(traceId=""))),
    "id-not-hex": ("2", body(v2(id="xyz"))),
    "id-too-long": ("2", body(v2(id="1" * 17))),
    "trace-id-too-long": ("2", body(v2(traceId="1" * 33))),
    "a-bad-span-after-a-good": ("2", body(v2(), v2(id="-1"))),
    "tag-no-text": ("2", body(v2(tags={"a": 1}))),
    "kind-no-text": ("2", body(v2(kind=1))),
    "shared-no-boolean": ("2", body(v2(shared="yes"))),
    "time-as-text": ("2", body(v2(timestamp="1"))),
    "negative-time": ("2", body(v2(timestamp=-1))),
    "negative-duration": ("2", body(v2(duration=-1))),
    "port-too-large": ("2", body(v2(localEndpoint={"port": 65536}))),
    "no-address": ("2", body(v2(localEndpoint={"ipv4": "10.0.0"}))),
    "address-with-zone": ("2", body(v2(localEndpoint={"ipv6": "fe80::1%eth0"}))),
    "annotations-no-list": ("2", body(v2(annotations={}))),
    "v1-no-json": ("1", b"nothing"),
    "v1-no-id": ("1", body(v1(id=None))),
    "v1-zero-trace-id": ("1", body(v1(traceId="0" * 32))),
    "v1-name-no-text": ("1", body(v1(name=3))),
}


def both(sides: dict[bool, tuple[Side, Side]], path: str, content_type: str, sent: bytes, parse: bool = False) -> tuple[Any, Any]:
    ours, theirs = (side.post(path, content_type, sent) for side in sides[parse])
    return ours, theirs


@pytest.mark.parametrize("parse", [False, True], ids=["text", "parsed"])
@pytest.mark.parametrize("name", V2)
def test_v2_json_becomes_the_same_spans(sides: dict[bool, tuple[Side, Side]], name: str, parse: bool) -> None:
    ours, theirs = both(sides, "/api/v2/spans", JSON, body(*V2[name]), parse)
    assert ours[0] == 202 and len(ours[1]) == len(V2[name])
    assert ours == theirs


IN_PROTOBUF = sorted(
    set(V2) - {"least", "64-bit", "nulls", "null-tag", "unknown-field", "no-timestamp", "kinds", "annotations", "mapped-address"}
)


@pytest.mark.parametrize("name", IN_PROTOBUF)
def test_v2_protobuf_becomes_the_same_spans(sides: dict[bool, tuple[Side, Side]], name: str) -> None:
    padded = [span | {key: span[key].rjust(16, "0") for key in ("id",)} for span in V2[name]]
    ours, theirs = both(sides, "/api/v2/spans", PROTOBUF, protobuf(*padded), True)
    assert ours[0] == 202 and len(ours[1]) == len(V2[name])
    assert ours == theirs


@pytest.mark.parametrize("parse", [False, True], ids=["text", "parsed"])
@pytest.mark.parametrize("name", V1)
def test_v1_json_becomes_the_same_spans(sides: dict[bool, tuple[Side, Side]], name: str, parse: bool) -> None:
    ours, theirs = both(sides, "/api/v1/spans", JSON, body(*V1[name]), parse)
    assert ours[0] == 202 and len(ours[1]) == len(V1[name])
    assert ours == theirs


OF_TYPES = {"t": True, "f": False, "x": b"\x00\xff", "i": -5, "d": 1.5, "s": "\u00e9", "i16": (2, b"\0\7"), "i32": (3, b"\0\0\1\0")}
WRONG: dict[str, Any] = {"short": (4, b"1"), "unknown": (9, b"1"), "true": (0, b"\2"), "longer": (2, b"\0\1\2")}
THRIFTS: dict[str, list[Object]] = {name: V1[name] for name in set(V1) - {"least", "negative-time", "empty-annotation", "endpoint"}} | {
    "types": [v1(binaryAnnotations=[{"key": key, "value": value} for key, value in (OF_TYPES | WRONG).items()])],
    "error": [v1(binaryAnnotations=[{"key": "error", "value": True}, {"key": "http.status_code", "value": 500}])],
    "endpoint": [v1(annotations=[core("sr", DB | {"ipv4": "10.0.0.1"})])],
    "mapped-address": [v1(annotations=[core("sr", {"serviceName": "s", "ipv6": "::ffff:10.0.0.2"})])],
}


@pytest.mark.parametrize("name", THRIFTS)
def test_v1_thrift_becomes_the_same_spans(sides: dict[bool, tuple[Side, Side]], name: str) -> None:
    ours, theirs = both(sides, "/api/v1/spans", THRIFT, thrift(*THRIFTS[name]))
    assert ours[0] == 202 and len(ours[1]) == len(THRIFTS[name])
    assert ours == theirs


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse_the_same(sides: dict[bool, tuple[Side, Side]], name: str) -> None:
    version, sent = REFUSED[name]
    assert both(sides, f"/api/v{version}/spans", JSON, sent) == ((400, []), (400, []))


def status_of(outcome: tuple[int, list[Object]]) -> Any:
    return outcome[0]


def each(field: str, key: str = "") -> Callable[[tuple[int, list[Object]]], Any]:
    """This field of every span that came out, or what it has under this key; the status, where none did."""
    return lambda outcome: (outcome[1] and [span[field].get(key) if key else span[field] for span in outcome[1]]) or outcome[0]


ENVOY = json.dumps([v2()]).replace(str(MICRO), "1.7e+15").encode()
DIFFERENT: dict[str, tuple[str, str, bytes, Callable[[tuple[int, list[Object]]], Any], Any, Any]] = {
    "times-as-floats": ("2", JSON, ENVOY, each("times"), [(MICRO * 1000, MICRO * 1000 + 1_500_000)], 400),
    "v1-times-as-floats": ("1", JSON, ENVOY, each("times"), [(MICRO * 1000, MICRO * 1000 + 1_500_000)], 400),
    "no-trace-id": ("2", JSON, b'[{"traceId":"00","id":"1"}]', status_of, 400, 202),
    "time-past-2554": ("2", JSON, body(v2(timestamp=2**63)), status_of, 400, 202),
    "annotation-with-bars": (
        "2",
        JSON,
        body(v2(annotations=[{"timestamp": 1, "value": "a|b|c"}])),
        each("events"),
        [[(1000, "a|b|c", {}, 0)]],
        400,
    ),
    "annotation-with-a-bar": (
        *("2", JSON, body(v2(annotations=[{"timestamp": 1, "value": "a|b"}])), each("events")),
        *([[(1000, "a|b", {}, 0)]], [[(1000, "a", {}, 0)]]),
    ),
    "annotation-without-time": (
        "2",
        JSON,
        body(v2(annotations=[{"timestamp": 0, "value": "a"}])),
        each("events"),
        [[(0, "a", {}, 0)]],
        400,
    ),
    "event-with-lists": (
        *("2", JSON, body(v2(annotations=[{"timestamp": 1, "value": f'n|{{"l":[1],"i":{2**53 + 1}}}|0'}])), each("events")),
        *([[(1000, "n", {"l": [1], "i": 2**53 + 1}, 0)]], [[(1000, "n", {"i": 2**53}, 0)]]),
    ),
    "link-of-another-shape": (
        "2",
        JSON,
        body(v2(tags={"otlp.link.0": "a|b|c|d|e"})),
        each("attributes", "otlp.link.0"),
        ["a|b|c|d|e"],
        400,
    ),
    "link-of-few-parts": ("2", JSON, body(v2(tags={"otlp.link.0": "a"})), each("attributes", "otlp.link.0"), ["a"], [None]),
    "status-of-sdks": ("2", JSON, body(v2(tags={"otel.status_code": "OK"})), each("status"), [(1, "")], [(0, "")]),
    "kind-as-tag": ("2", JSON, body(v2(tags={"span.kind": "client"})), each("kind"), [3], [0]),
    "resources-of-a-service": (
        *(
            "2",
            JSON,
            body(*(v2(id=f"{n}", localEndpoint=WEB, tags={"k8s.pod.name": f"p{n}"}) for n in (1, 2))),
            each("resource", "k8s.pod.name"),
        ),
        *(["p1", "p2"], ["p2", "p2"]),
    ),
    "resource-without-service": ("2", JSON, body(v2(tags={"k8s.pod.name": "p"})), each("resource"), [{"k8s.pod.name": "p"}], [{}]),
    "versions-of-a-scope": (
        *(
            "2",
            JSON,
            body(*(v2(id=f"{n}", tags={"otel.library.name": "l", "otel.library.version": f"{n}"}) for n in (1, 2))),
            each("scope"),
        ),
        *([("l", "1"), ("l", "2")], [("l", "2"), ("l", "2")]),
    ),
    "64-bit-in-protobuf": (
        "2",
        PROTOBUF,
        protobuf(v2(traceId=bytes(7) + b"\1")),
        each("ids"),
        [("0" * 31 + "1", "b7ad6b7169203331", "")],
        400,
    ),
    "no-timestamp-in-protobuf": (
        *("2", PROTOBUF, protobuf(v2(timestamp=0)), each("attributes", "otel.zipkin.absentField.startTime")),
        *([True], [None]),
    ),
    "bad-address-in-protobuf": ("2", PROTOBUF, protobuf(v2(localEndpoint={"ipv4": b"123"})), status_of, 400, 202),
    "v1-short-id": ("1", JSON, body(v1(id="1")), each("ids"), [("0af7651916cd43dd8448eb211c80319c", "0000000000000001", "")], 400),
    "v1-own-parent": (
        *("1", JSON, body(v1(parentId="b7ad6b7169203331")), each("ids")),
        *(
            [("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "")],
            [("0af7651916cd43dd8448eb211c80319c",) + 2 * ("b7ad6b7169203331",)],
        ),
    ),
    "v1-address": (
        "1",
        JSON,
        body(v1(binaryAnnotations=[{"key": "sa", "value": True, "endpoint": DB}])),
        each("attributes", "sa"),
        [True],
        400,
    ),
    "v1-error-text": ("1", JSON, body(v1(binaryAnnotations=[{"key": "error", "value": "x"}])), each("attributes", "error"), ["x"], [None]),
    "thrift-without-time": (
        *("1", THRIFT, thrift(v1(timestamp=None)), each("attributes", "otel.zipkin.absentField.startTime")),
        *([True], [None]),
    ),
    "thrift-negative-numbers": (
        *("1", THRIFT, thrift(v1(binaryAnnotations=[{"key": "a", "value": (2, b"\xff\xff")}])), each("attributes", "a")),
        *([-1], [65535]),
    ),
    "thrift-high-ports": (
        *("1", THRIFT, thrift(v1(annotations=[core("cs", {"serviceName": "s", "port": 40000})])), each("resource", "port")),
        *(["40000"], ["-25536"]),
    ),
    "thrift-zero-id": ("1", THRIFT, thrift(v1(id="0")), status_of, 400, 202),
    "keys-in-another-case": ("2", JSON, b'[{"TraceID":"1","ID":"1"}]', status_of, 400, 202),
    "no-utf-8": ("2", JSON, body(v2(name="X")).replace(b"X", b"\xff"), status_of, 400, 202),
    "thrift-no-address": (
        *("1", THRIFT, thrift(v1(annotations=[core("cs", {"serviceName": "s", "ipv6": b"1"})])), status_of),
        *(400, 202),
    ),
    "scope-version-alone": ("2", JSON, body(v2(tags={"otel.library.version": "1"})), each("scope"), [("", "1")], [("", "")]),
    "wrong-path": ("3", JSON, b"[]", status_of, 404, 202),
    "thrift-at-v2": ("2", THRIFT, b"[]", status_of, 415, 202),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_does_so_as_documented(sides: dict[bool, tuple[Side, Side]], name: str) -> None:
    version, content_type, sent, what, ours, theirs = DIFFERENT[name]
    assert tuple(map(what, both(sides, f"/api/v{version}/spans", content_type, sent))) == (ours, theirs)


def test_numbers_too_large_for_their_type_stay_text(sides: dict[bool, tuple[Side, Side]]) -> None:
    sent = body(v2(tags={"i": "9" * 30, "d": "9" * 400 + ".0"}))
    ours, theirs = both(sides, "/api/v2/spans", JSON, sent, True)
    assert ours[1][0]["attributes"] == {"i": "9" * 30, "d": "9" * 400 + ".0"}
    assert theirs[1][0]["attributes"] == {"i": 2**63 - 1, "d": float("inf")}


@pytest.mark.parametrize(("status", "ours", "theirs"), [pytest.param(503, 503, 500, id="not-now"), pytest.param(400, 400, 400, id="never")])
def test_what_is_not_delivered_is_not_accepted(sides: dict[bool, tuple[Side, Side]], status: int, ours: int, theirs: int) -> None:
    for side in sides[False]:
        side.backend.status = status
    try:
        assert both(sides, "/api/v2/spans", JSON, body(full())) == ((ours, []), (theirs, []))
    finally:
        for side in sides[False]:
            side.backend.status = 200
