"""Fluent Forward, filter and groupbyattrs beside the real OpenTelemetry Collector: the same bytes in, the same records out, or what
docs/differences.md says."""

import gzip
import socket
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support.backend import Backend
from support.otelcol import needs_otelcol, running_otelcol
from support.otlp import set_attributes, set_value
from support.process import Role, free_port, wait_until

from lockgate.attributes.values import decode

pytestmark = [pytest.mark.peers, needs_otelcol]

Object = dict[str, Any]


@dataclass
class Side:
    """One of the two programs: where to send, and what came out."""

    port: int
    backend: Backend

    def got(self) -> list[Any]:
        return [message for _, _, message in list(self.backend.requests)]


@dataclass
class Case:
    """A pipeline of its own in both programs; `PORT` in the receiver's settings is replaced."""

    receiver: str
    settings: Object
    signal: str
    processor: tuple[str, Object] | None = None


@contextmanager
def both(directory: Path, cases: dict[str, Case]) -> Iterator[dict[str, list[Side]]]:
    """Ours and theirs, of each case. Without queues: what is acknowledged is delivered."""
    with ExitStack() as stack:
        sides: dict[str, list[Side]] = {name: [] for name in cases}
        for program in ("ours", "theirs"):
            config: Object = {"receivers": {}, "processors": {}, "exporters": {}, "service": {"pipelines": {}}}
            for name, case in cases.items():
                backend, port = stack.enter_context(Backend()), free_port()
                sides[name].append(Side(port, backend))
                receiver, exporter = f"{case.receiver}/{name}", f"otlphttp/{name}"
                config["receivers"][receiver] = yaml.safe_load(yaml.safe_dump(case.settings).replace("PORT", str(port)))
                config["exporters"][exporter] = {"endpoint": backend.url, "sending_queue": {"enabled": False}}
                pipeline = {"receivers": [receiver], "exporters": [exporter]}
                if case.processor is not None:
                    kind, settings = case.processor
                    config["processors"][f"{kind}/{name}"] = settings
                    pipeline["processors"] = [f"{kind}/{name}"]
                config["service"]["pipelines"][f"{case.signal}/{name}"] = pipeline
            if program == "ours":
                config["service"]["extensions"] = ["health_check"]
                stack.enter_context(Role(directory / program, yaml.safe_dump(config)))
            else:
                stack.enter_context(running_otelcol(directory / program, config))
        yield sides


# Fluent Forward.

NOW = 1_700_000_000
EVENT_TIME = msgpack.ExtType(0, struct.pack(">II", NOW, 5))
RECORD: Object = {
    "log": "x",
    "s": "é",
    "n": -5,
    "u": 2**64 - 1,
    "f": 1.5,
    "b": True,
    "m": {"k": [1, {"z": "y"}]},
    "nil": None,
    "raw": b"text",
}


def packed(*entries: Any) -> bytes:
    return b"".join(msgpack.packb(entry) for entry in entries)


FORWARD: dict[str, Any] = {
    "message": ["t", NOW, RECORD],
    "message-with-event-time": ["t", EVENT_TIME, RECORD, {"size": 1}],
    "message-key": ["t", NOW, {"message": "body", "a": "b"}],
    "body-of-a-map": ["t", NOW, {"log": {"a": 1}}],
    "no-body": ["t", NOW, {"a": "b"}],
    "forward": ["t", [[NOW, {"log": "one"}], [EVENT_TIME, {"log": "two"}]], {"chunk": "c"}],
    "packed": ["t", packed([NOW, {"log": "one"}], [EVENT_TIME, {"log": "two"}]), {"chunk": "c", "size": 2}],
    "compressed": ["t", gzip.compress(packed([NOW, {"log": "one"}], [NOW, {"log": "two"}])), {"chunk": "c", "compressed": "gzip"}],
    "compressed-in-two-members": ["t", b"".join(gzip.compress(packed([NOW, {"log": x}])) for x in "ab"), {"compressed": "gzip"}],
}


def records(side: Side) -> list[Object]:
    return [
        {
            "time": record.time_unix_nano,
            "body": decode(record.body),
            "attributes": {each.key: decode(each.value) for each in record.attributes},
        }
        for message in side.got()
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def send(side: Side, *messages: Any, wait: float = 1.0) -> bytes:
    """Sends these over one connection; what was answered within so many seconds of silence, or until it was closed."""
    with socket.create_connection(("127.0.0.1", side.port), timeout=10) as connection:
        connection.sendall(b"".join(message if isinstance(message, bytes) else msgpack.packb(message) for message in messages))
        connection.settimeout(wait)
        answer = b""
        try:
            while part := connection.recv(4096):
                answer += part
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


@pytest.fixture(scope="module")
def fluent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    case = Case("fluentforward", {"endpoint": "127.0.0.1:PORT"}, "logs")
    with both(tmp_path_factory.mktemp("fluent"), {"fluent": case}) as sides:
        yield sides["fluent"]


@pytest.mark.parametrize("name", FORWARD)
def test_fluent_forward_gives_the_collectors_records_and_acknowledgements(fluent: list[Side], name: str) -> None:
    answers, found = [], []
    for side in fluent:
        side.backend.requests.clear()
        answers.append(send(side, FORWARD[name], wait=0.5))
        wait_until(lambda side=side: records(side), 10, "records")
        found.append(records(side))
    assert found[0] == found[1]
    assert answers[0] == answers[1] == (msgpack.packb({"ack": "c"}) if "chunk" in str(FORWARD[name]) else b"")


def test_of_a_records_two_bodies_both_are_kept_and_not_the_last_alone(fluent: list[Side]) -> None:
    found = []
    for side in fluent:
        side.backend.requests.clear()
        send(side, ["t", NOW, {"log": "first", "message": "second"}], wait=0.5)
        wait_until(lambda side=side: records(side), 10, "records")
        found += [(record["body"], record["attributes"].get("log")) for record in records(side)]
    assert found == [("second", "first"), ("second", None)]


def test_a_heartbeat_is_answered_as_the_collector_does(fluent: list[Side]) -> None:
    for side in fluent:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(5)
            probe.sendto(b"\x00", ("127.0.0.1", side.port))
            assert probe.recv(10) == b"\x00"


GOOD = ["t", NOW, {"log": "good"}]
OTHERWISE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    # what is sent, with GOOD after it on a connection of its own; what we make of it; what the collector makes
    "extension-values": (["t", NOW, {"log": msgpack.ExtType(5, b"ab")}], [b"ab", "good"], ["good"]),
    "times-that-are-floats": (["t", 1.5, {"log": "x"}], ["x", "good"], ["good"]),
    "fluent-bits-metadata": (["t", [[[NOW, {"a": 1}], {"log": "x"}]]], ["x", "good"], ["good"]),
    "an-entry-that-ends-early": (["t", packed([NOW, {"log": "x"}]) + b"\x92\x01"], ["good"], ["x", "good"]),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_fluent_forward_differs_as_the_documentation_says(fluent: list[Side], name: str) -> None:
    message, *expected = OTHERWISE[name]
    for side, bodies in zip(fluent, expected, strict=True):
        side.backend.requests.clear()
        send(side, message, wait=0.5)
        send(side, GOOD, wait=0.5)
        wait_until(lambda side=side: [r["body"] for r in records(side)][-1:] == ["good"], 10, "the good record")
        assert [record["body"] for record in records(side)] == bodies


def test_a_forged_tag_is_not_believed(fluent: list[Side]) -> None:
    for side, tag in zip(fluent, ("t", "forged"), strict=True):
        side.backend.requests.clear()
        send(side, ["t", NOW, {"log": "x", "fluent.tag": "forged"}], wait=0.2)
        wait_until(lambda side=side: records(side), 10, "records")
        tags = [decode(a.value) for m in side.got() for a in m.resource_logs[0].scope_logs[0].log_records[0].attributes]
        assert tags[-1] == tag


def test_a_chunk_is_acknowledged_when_it_is_delivered_and_not_when_it_is_read(fluent: list[Side]) -> None:
    answers = []
    for side in fluent:
        side.backend.status = 503
        answers.append(send(side, ["t", [[NOW, {"log": "late"}]], {"chunk": "c"}], wait=2))
        side.backend.status = 200
    wait_until(lambda: [record["body"] for record in records(fluent[1])][-1:] == ["late"], 30, "the collector's own retry")
    assert answers == [b"", msgpack.packb({"ack": "c"})]


def test_text_that_is_not_utf8_arrives_as_bytes_and_from_the_collector_in_no_valid_request(fluent: list[Side]) -> None:
    for side in fluent:
        side.backend.requests.clear()
        seen = side.backend.seen
        send(side, ["t", NOW, {"log": b"\xff"}], wait=0.2)
        wait_until(lambda side=side, seen=seen: side.backend.seen > seen, 10, "a request")
    ours, theirs = fluent
    wait_until(lambda: records(ours), 10, "our record")
    assert [record["body"] for record in records(ours)] == [b"\xff"]
    assert records(theirs) == []


# Processors: OTLP in, OTLP out.


def logs_request() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    units = ["kubelet.service", "docker.service", "", None, 7, True, 1.5, ["a"], {"a": "b"}, b"ab"]
    for host in ("h1", "h2"):
        entry = request.resource_logs.add(schema_url="https://a")
        set_attributes(entry.resource.attributes, {"host": host, "n": 1})
        for scope_name in ("s", "t"):
            scope = entry.scope_logs.add()
            scope.scope.name, scope.scope.version = scope_name, "1"
            for number, unit in enumerate(units):
                record = scope.log_records.add(severity_number=number * 2, severity_text=f"S{number}")
                set_value(record.body, unit if unit is not None else "no unit")
                set_attributes(record.attributes, {"number": number} | ({} if unit is None else {"unit": unit}))
    return request


def metrics_request() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    for job in "ab":
        entry = request.resource_metrics.add()
        set_attributes(entry.resource.attributes, {"job": job})
        scope = entry.scope_metrics.add()
        for name in ("up", "down"):
            for number, pod in enumerate(("p", "q", "p")):
                point = scope.metrics.add(name=name, unit="1").gauge.data_points.add(as_int=number, time_unix_nano=1)
                set_attributes(point.attributes, {"pod": pod})
        sum_ = scope.metrics.add(name="total").sum
        sum_.aggregation_temporality, sum_.is_monotonic = 2, True  # type: ignore[assignment]
        set_attributes(sum_.data_points.add(as_int=1).attributes, {"pod": "p"})
    return request


def traces_request() -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for service in ("a", None):
        entry = request.resource_spans.add()
        set_attributes(entry.resource.attributes, {"service.name": service} if service else {"x": 1})
        for scope_name in ("s", "t"):
            scope = entry.scope_spans.add()
            scope.scope.name, scope.scope.version = scope_name, "1"
            for number, name in enumerate(("one", "two", "three")):
                span = scope.spans.add(name=name, trace_id=b"1" * 16, span_id=b"2" * 8, kind=number + 1)
                set_attributes(span.attributes, {"number": number})
    return request


def attribute(key: str, *value: Any) -> Object:
    return {"key": key} | ({"value": value[0]} if value else {})


def strict(**properties: Any) -> Object:
    return {"match_type": "strict", **properties}


def regexp(**properties: Any) -> Object:
    return {"match_type": "regexp", **properties}


FILTERS: dict[str, tuple[str, Object]] = {
    **{
        f"logs-{index}": ("logs", {"logs": logs})
        for index, logs in enumerate(
            (
                {"include": strict(record_attributes=[attribute("unit", "kubelet.service")])},
                {"exclude": strict(record_attributes=[attribute("unit", "docker.service")])},
                {"exclude": strict(record_attributes=[attribute("unit", 7)])},
                {"exclude": strict(record_attributes=[attribute("unit", 1.5)])},
                {"exclude": strict(record_attributes=[attribute("unit", True)])},
                {"exclude": strict(record_attributes=[attribute("unit", ["a"])])},
                {"exclude": strict(record_attributes=[attribute("unit", {"a": "b"})])},
                {"exclude": strict(record_attributes=[attribute("unit")])},
                {"exclude": regexp(record_attributes=[attribute("unit", "$^")])},
                {"include": regexp(record_attributes=[attribute("unit", ".+")])},
                {"include": regexp(record_attributes=[attribute("unit", "^(7|true|1.5)$")])},
                {"include": regexp(record_attributes=[attribute("unit", "service"), attribute("number", "0")])},
                {"include": strict(resource_attributes=[attribute("host", "h1"), attribute("n", 1)])},
                {"exclude": regexp(resource_attributes=[attribute("host", "2$")], record_attributes=[attribute("unit", "kube")])},
                {"include": strict(severity_number={"min": "info"})},
                {"include": strict(severity_number={"min": "WARN2", "match_undefined": True})},
                {"include": strict(severity_texts=["S1", "S2"])},
                {"include": regexp(severity_texts=["^S[12]$"])},
                {"include": strict(bodies=["no unit", "7", "true", "1.5", '["a"]', '{"a":"b"}', "YWI="])},
                {"include": regexp(bodies=["^.+s"]), "exclude": regexp(record_attributes=[attribute("unit", "docker")])},
                {"include": strict(bodies=["nothing"])},
                {"include": {"match_type": "strict"}},
            )
        )
    },
    **{
        f"metrics-{index}": ("metrics", {"metrics": metrics})
        for index, metrics in enumerate(
            (
                {"include": strict(metric_names=["up"])},
                {"exclude": regexp(metric_names=["^d", "tot"])},
                {"include": strict(metric_names=["up"], resource_attributes=[attribute("job", "a")])},
                {"exclude": strict(metric_names=["up"], resource_attributes=[attribute("job", "a")])},
                {"include": regexp(resource_attributes=[attribute("job", "a|b")]), "exclude": strict(metric_names=["down"])},
                {"exclude": regexp(resource_attributes=[attribute("job")])},
                {"exclude": regexp(metric_names=["up"], regexp={"cacheenabled": True, "cachemaxnumentries": 10})},
            )
        )
    },
    **{
        f"spans-{index}": ("traces", {"spans": spans})
        for index, spans in enumerate(
            (
                {"include": strict(services=["a"])},
                {"exclude": regexp(services=["nil"])},
                {"include": strict(span_names=["one", "three"])},
                {"include": strict(span_kinds=["SPAN_KIND_SERVER"])},
                {"exclude": regexp(span_names=["o"], attributes=[attribute("number", "1")])},
                {"include": strict(libraries=[{"name": "s", "version": "1"}])},
                {"exclude": strict(libraries=[{"name": "s"}], resources=[attribute("service.name", "a")])},
            )
        )
    },
}
GROUPS: dict[str, tuple[str, Object]] = {
    "logs-grouped": ("logs", {"keys": ["unit", "absent"]}),
    "logs-two-keys": ("logs", {"keys": ["unit", "number", "unit", ""]}),
    "logs-over-the-resource": ("logs", {"keys": ["host"]}),
    "logs-gathered": ("logs", {}),
    "metrics-grouped": ("metrics", {"keys": ["pod"]}),
    "metrics-gathered": ("metrics", {}),
    "traces-grouped": ("traces", {"keys": ["number"]}),
}
REQUESTS: dict[str, Any] = {"logs": logs_request, "metrics": metrics_request, "traces": traces_request}
OTLP: Object = {"protocols": {"http": {"endpoint": "127.0.0.1:PORT"}}}
TWO_LIBRARIES: Object = {"spans": {"include": strict(libraries=[{"name": "s"}, {"name": "t"}])}}


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Side]]]:
    cases = {name: Case("otlp", OTLP, signal, ("filter", settings)) for name, (signal, settings) in FILTERS.items()}
    cases |= {name: Case("otlp", OTLP, signal, ("groupbyattrs", settings)) for name, (signal, settings) in GROUPS.items()}
    cases["two-libraries"] = Case("otlp", OTLP, "traces", ("filter", TWO_LIBRARIES))
    with both(tmp_path_factory.mktemp("processors"), cases) as sides:
        yield sides


def post(side: Side, signal: str, request: Any) -> list[Any]:
    """What comes out when this goes in."""
    side.backend.requests.clear()
    url = f"http://127.0.0.1:{side.port}/v1/{signal}"
    headers = {"Content-Type": "application/x-protobuf"}
    with urllib.request.urlopen(urllib.request.Request(url, request.SerializeToString(), headers), timeout=10) as answer:
        assert answer.status == 200
    return side.got()


def comparable(message: Any, without_schema: bool) -> Object:
    """A request as a dict in which the order of attributes says nothing."""
    document = json_format.MessageToDict(message)

    def sort(value: Any) -> Any:
        if isinstance(value, list):
            items = [sort(item) for item in value]
            keyed = all(isinstance(item, dict) and "key" in item for item in items)
            return sorted(items, key=lambda item: str(item["key"])) if keyed else items
        if isinstance(value, dict):
            return {key: sort(item) for key, item in value.items() if item not in ({}, []) and not (without_schema and key == "schemaUrl")}
        return value

    return dict(sort(document))


@pytest.mark.parametrize("name", FILTERS)
def test_filter_keeps_what_the_collector_keeps(processors: dict[str, list[Side]], name: str) -> None:
    signal, _ = FILTERS[name]
    ours, theirs = ([comparable(message, False) for message in post(side, signal, REQUESTS[signal]())] for side in processors[name])
    assert ours == theirs


@pytest.mark.parametrize("name", GROUPS)
def test_groupbyattrs_groups_as_the_collector_does(processors: dict[str, list[Side]], name: str) -> None:
    signal, _ = GROUPS[name]
    ours, theirs = ([comparable(message, True) for message in post(side, signal, REQUESTS[signal]())] for side in processors[name])
    assert ours == theirs


def test_of_several_libraries_one_must_match_where_the_collector_asks_for_all(processors: dict[str, list[Side]]) -> None:
    counts = [
        sum(
            len(scope.spans)
            for message in post(side, "traces", traces_request())
            for e in message.resource_spans
            for scope in e.scope_spans
        )
        for side in processors["two-libraries"]
    ]
    assert counts == [12, 0]


def test_groupbyattrs_keeps_schema_urls_and_different_metrics_of_one_name_apart(processors: dict[str, list[Side]]) -> None:
    kept = [{entry.schema_url for entry in post(side, "logs", logs_request())[0].resource_logs} for side in processors["logs-gathered"]]
    assert kept == [{"https://a"}, {""}]
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for temporality in (1, 2):
        sum_ = scope.metrics.add(name="m").sum
        sum_.aggregation_temporality = temporality  # type: ignore[assignment]
        sum_.data_points.add(as_int=temporality)
    found = [
        [
            (m.sum.aggregation_temporality, [p.as_int for p in m.sum.data_points])
            for m in got[0].resource_metrics[0].scope_metrics[0].metrics
        ]
        for got in (post(side, "metrics", request) for side in processors["metrics-gathered"])
    ]
    assert found == [[(1, [1]), (2, [2])], [(1, [1, 2])]]
