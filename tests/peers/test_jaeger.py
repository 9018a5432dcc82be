"""The jaeger receiver beside the real OpenTelemetry Collector's: the same bytes in on every transport, the same spans out, or what
docs/differences.md says."""

import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format
from support.backend import Backend
from support.jaeger import batch, datagram, post_spans, posted, span, tag, tags, varied_batch
from support.otelcol import TRACES, needs_otelcol_traces, running_otelcol
from support.process import Role, free_port, wait_until

pytestmark = [pytest.mark.peers, needs_otelcol_traces]

TRANSPORTS = ("grpc", "thrift_http", "thrift_compact", "thrift_binary")


@dataclass
class Side:
    """One of the two programs: where to send, and what came out."""

    ports: dict[str, int]
    backend: Backend

    def send(self, transport: str, message: bytes) -> Any:
        """The answer: a status, or None where there is none."""
        port = self.ports[transport]
        match transport:
            case "grpc":
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    try:
                        channel.unary_unary("/jaeger.api_v2.CollectorService/PostSpans")(message, timeout=20)
                    except grpc.RpcError as error:
                        return error.code()
                    return grpc.StatusCode.OK
            case "thrift_http":
                return self.post(message)
            case _:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(message, ("127.0.0.1", port))
                return None

    def post(self, body: bytes, path: str = "/api/traces", method: str = "POST", content_type: str = "application/x-thrift") -> int:
        url, headers = f"http://127.0.0.1:{self.ports['thrift_http']}{path}", {"Content-Type": content_type}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def spans(self) -> list[dict[str, Any]]:
        """Each with its resource and scope, in order of names; what is not there and what is empty is the same."""
        found = []
        for _, _, message in list(self.backend.requests):
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    for each in scope.spans:
                        if each.status.ByteSize() == 0:
                            each.ClearField("status")
                        entry = json_format.MessageToDict(each, preserving_proto_field_name=True)
                        entry["attributes"] = by_key(each.attributes)
                        for event, described in zip(each.events, entry.get("events", ()), strict=True):
                            described["attributes"] = by_key(event.attributes)
                        entry["resource"] = by_key(resource.resource.attributes)
                        entry["scope"] = scope.scope.name, scope.scope.version
                        found.append(entry)
        return sorted(found, key=lambda entry: str(entry.get("name", "")))


def by_key(attributes: Any) -> dict[str, Any]:
    found = {each.key: json_format.MessageToDict(each.value) for each in attributes}
    assert len(found) == len(attributes)
    return found


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    """Ours and theirs. Without queues: what is acknowledged is delivered."""
    directory = tmp_path_factory.mktemp("jaeger")
    with ExitStack() as stack:
        made = []
        for program in ("ours", "theirs"):
            side = Side({transport: free_port() for transport in TRANSPORTS}, stack.enter_context(Backend()))
            made.append(side)
            config: dict[str, Any] = {
                "receivers": {"jaeger": {"protocols": {key: {"endpoint": f"127.0.0.1:{port}"} for key, port in side.ports.items()}}},
                "exporters": {"otlphttp": {"endpoint": side.backend.url, "sending_queue": {"enabled": False}}},
                "service": {"pipelines": {"traces": {"receivers": ["jaeger"], "exporters": ["otlphttp"]}}},
            }
            if program == "ours":
                config["service"]["extensions"] = ["health_check"]
                stack.enter_context(Role(directory / program, yaml.safe_dump(config)))
            else:
                stack.enter_context(running_otelcol(directory / program, config, binary=TRACES))
        yield made


ENCODED: dict[str, Callable[[Any], bytes]] = {
    "grpc": lambda message: bytes(post_spans(message).SerializeToString()),
    "thrift_http": posted,
    "thrift_compact": lambda message: datagram(message, compact=True),
    "thrift_binary": lambda message: datagram(message, compact=False),
}


def through(side: Side, transport: str, message: bytes, spans: int) -> list[dict[str, Any]]:
    side.backend.requests.clear()
    side.send(transport, message)
    wait_until(lambda: len(side.spans()) >= spans, 20, "spans")
    return side.spans()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_transport_gives_the_collectors_spans(sides: list[Side], transport: str) -> None:
    sent = varied_batch()
    ours, theirs = (through(side, transport, ENCODED[transport](sent), len(sent.spans)) for side in sides)
    assert len(ours) == len(sent.spans)
    assert ours == theirs


def test_spans_of_grpc_that_name_a_process_have_its_resource(sides: list[Side]) -> None:
    request = post_spans(batch(span("a"), span("b"), span("c"), span("d"), given=tags(ip="1")))
    own = request.batch.spans[1].process
    own.service_name = "other"
    own.tags.add(key="hostname", v_str="n")
    request.batch.spans[2].process.CopyFrom(request.batch.process)
    request.batch.spans[3].process.service_name = "OTLPResourceNoServiceName"
    ours, theirs = (through(side, "grpc", request.SerializeToString(), 4) for side in sides)
    assert ours == theirs
    assert [each["resource"].get("service.name", {}).get("stringValue") for each in ours] == ["shop", "other", "shop", None]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda process: process.ClearField("service_name"), id="no-service"),
        pytest.param(lambda process: process.tags.add(key="service.name", v_str="tag"), id="a-tag-names-the-service"),
        pytest.param(lambda process: process.tags.add(key="host.name", v_str="h"), id="both-names-of-the-host"),
        pytest.param(lambda process: process.tags.add(key="opencensus.exporterversion", v_str="o"), id="both-versions"),
        pytest.param(lambda process: process.Clear(), id="empty"),
    ],
)
def test_a_process_gives_the_collectors_resource(sides: list[Side], change: Any) -> None:
    request = post_spans(batch(span(), given=tags(hostname="n", jaeger__version="Go-2")))
    change(request.batch.process)
    ours, theirs = (through(side, "grpc", request.SerializeToString(), 1) for side in sides)
    assert ours == theirs


def test_blank_spans_are_left_out_as_the_collector_does(sides: list[Side]) -> None:
    blank = span("", traceIdLow=0, traceIdHigh=0, spanId=0, flags=0, startTime=0, duration=0)
    request = post_spans(batch(span("a")))
    request.batch.spans.add()
    for transport, message in (("thrift_http", posted(batch(blank, span("a"), blank))), ("grpc", request.SerializeToString())):
        ours, theirs = (through(side, transport, message, 1) for side in sides)
        assert ours == theirs
        assert [each["name"] for each in ours] == ["a"]


def test_refusals_over_http_have_the_collectors_status(sides: list[Side]) -> None:
    body = posted(batch(span()))
    requests: list[dict[str, Any]] = [
        {"body": body},
        {"body": body, "content_type": "application/vnd.apache.thrift.binary; charset=utf-8"},
        {"body": body, "content_type": "application/json"},
        {"body": body[:-9]},
        {"body": b""},
        {"body": body, "path": "/api/else"},
        {"body": body, "method": "PUT"},
        {"body": posted(batch())},
    ]
    ours, theirs = ([side.post(**request) for request in requests] for side in sides)
    assert ours == theirs == [202, 202, 400, 400, 400, 404, 405, 202]


def test_messages_over_grpc_are_taken_and_refused_as_by_the_collector(sides: list[Side]) -> None:
    good = post_spans(batch(span("a")))
    for message, taken in ((b"", True), (good.SerializeToString(), True), (b"\xff\xff", False), (good.SerializeToString()[:-1], False)):
        assert [side.send("grpc", message) is grpc.StatusCode.OK for side in sides] == [taken, taken]
    for length in (0, 7, 8, 9, 15, 16, 17):
        good.batch.spans[0].trace_id = b"\1" * length
        ours, theirs = (side.send("grpc", good.SerializeToString()) is grpc.StatusCode.OK for side in sides)
        assert ours == theirs or length == 0


# What bad datagrams do is asked of ours alone (test_jaeger.py of the unit tests): a handful of them ends the collector, with a nil pointer.


# Differences on purpose: docs/differences.md.


def test_a_span_without_a_start_has_none(sides: list[Side]) -> None:
    request = post_spans(batch(span("a")))
    request.batch.spans[0].ClearField("start_time")
    ours, theirs = (through(side, "grpc", request.SerializeToString(), 1)[0] for side in sides)
    assert "start_time_unix_nano" not in ours
    assert int(theirs["start_time_unix_nano"]) > 2**63


def test_of_a_scope_named_twice_the_last_counts(sides: list[Side]) -> None:
    request = post_spans(batch(span("a", tag("otel.scope.name", "first"), tag("otel.scope.name", "last"))))
    ours, theirs = (through(side, "grpc", request.SerializeToString(), 1)[0] for side in sides)
    assert [ours["scope"][0], theirs["scope"][0]] == ["last", "first"]
