"""OpenCensus' requests beside the collector's last translator of them (contrib v0.133.0): the same bytes in, the same OTLP out, or what
docs/differences.md says."""

import subprocess
from typing import Any

import pytest
from google.protobuf import json_format
from support.kube_apiserver import PEERS
from support.opencensus import FULL_SPAN, METRICS, NANO, NODE, RESOURCE, attributes, metrics, pairs, span, text, timestamp, traces

from lockgate.batch import Signal, message_type
from lockgate.wire.opencensus import Stream

BINARY = PEERS / "bin" / "opencensus"
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not BINARY.exists(), reason="no opencensus: `make peers` has not built it")]

Object = dict[str, Any]
ZERO_IDS = ("A" * 11 + "=", "A" * 22 + "==")
"""Of spans and traces, which the collector leaves out."""


def theirs(signal: Signal, request: bytes) -> bytes:
    return subprocess.run([str(BINARY), signal.value], input=request, stdout=subprocess.PIPE, check=True, timeout=30).stdout


def ours(signal: Signal, request: bytes) -> bytes:
    return Stream().traces(request) if signal is Signal.TRACES else Stream().metrics(request)


def normal(signal: Signal, payload: bytes) -> list[tuple[Object, list[Object]]]:
    """Each resource's attributes, with its spans or metrics, if it has any. Maps have no order, and what is zero is left out."""
    message = message_type(signal).FromString(payload)
    found = json_format.MessageToDict(message).get({"traces": "resourceSpans", "metrics": "resourceMetrics"}[signal.value], [])
    entries: list[tuple[Object, list[Object]]] = []
    for entry in found:
        scopes = entry.get("scopeSpans", entry.get("scopeMetrics", []))
        records = [record for scope in scopes for record in scope.get("spans", scope.get("metrics", []))]
        resource = unordered(entry.get("resource", {}))
        if same := [each for each in entries if each[0] == resource]:
            same[0][1].extend(unordered(records))
        elif records:
            entries.append((resource, unordered(records)))
    return entries


def unordered(value: Any) -> Any:
    """With lists of attributes as dicts, and without what is empty."""
    if isinstance(value, list):
        if value and isinstance(value[0], dict) and "key" in value[0]:
            return {each["key"]: each.get("value", {}) for each in value}
        return [unordered(each) for each in value]
    if isinstance(value, dict):
        return {key: clean for key, item in value.items() if (clean := unordered(item)) not in ({}, [], *ZERO_IDS)}
    return value


def with_special(**more: Any) -> Object:
    return span(attributes=attributes({"span.kind": "producer", "otel.status_code": 1, "a": "b"}), **more)


TRACES: dict[str, bytes] = {
    "everything": traces(FULL_SPAN, node=NODE, resource=RESOURCE),
    "nothing-but-a-node": traces(span(), node={}),
    "resources-of-their-own": traces(
        span(1), span(2, resource={"type": "own", "labels": pairs({"a": "b"})}), span(3, resource={}), span(4), node=NODE, resource=RESOURCE
    ),
    "an-empty-span": traces({}, node=NODE),
    "kinds": traces(*(span(kind=kind) for kind in range(-1, 4)), node=NODE),
    "kinds-that-attributes-say": traces(
        *(
            span(n, kind=0, attributes=attributes({"span.kind": kind}))
            for n, kind in enumerate(["internal", "producer", "consumer", "server"])
        ),
        with_special(kind=1),
        with_special(kind=0),
        node=NODE,
    ),
    "statuses": traces(
        *(span(n, status={"code": code, "message": "m"}) for n, code in enumerate([0, 1, 2, 16, -1])),
        span(8, status={}),
        with_special(status={"code": 3}),
        with_special(status={}, kind=0),
        node=NODE,
    ),
    "ids-that-are-short-or-long": traces(
        span(trace_id=b"abc", span_id=b"d", parent_span_id=b"e"), span(trace_id=b"x" * 30, span_id=b"y" * 30), node=NODE
    ),
    "times": traces(span(start_time=timestamp(0), end_time=timestamp(NANO + 999_999_999)), span(start_time=None, end_time=None), node=NODE),
    "same-process": traces(span(same_process_as_parent_span={}), span(same_process_as_parent_span={"value": False}), node=NODE),
    "text": traces(span(name={"value": "ü" * 100, "truncated_byte_count": 9}), span(name=text("")), node=NODE),
    "every-language": traces(span(), node={"library_info": {"language": 9}}),
    "attributes-beside-fields": traces(
        span(), node={"attributes": pairs({"service.name": "x", "host.name": "y"}), "service_info": {"name": "z"}}
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_the_collectors(name: str) -> None:
    found, expected = (normal(Signal.TRACES, side(Signal.TRACES, TRACES[name])) for side in (ours, theirs))
    assert found == expected and found


def metric(kind: int, *series: Object, **more: Any) -> Object:
    keys = [{"key": "a", "description": "first"}, {"key": "b"}]
    return {"metric_descriptor": {"name": "m", "type": kind, "label_keys": keys}, "timeseries": series, **more}


METRIC_REQUESTS: dict[str, bytes] = {
    "every-kind": metrics(*METRICS, node=NODE, resource=RESOURCE),
    "resources-of-their-own": metrics(METRICS[0], METRICS[1] | {"resource": RESOURCE}, METRICS[2] | {"resource": {}}, node=NODE),
    "labels": metrics(
        metric(1, {"label_values": [{"value": "x"}, {"value": "", "has_value": True}], "points": [{"int64_value": 0}]}),
        metric(1, {"label_values": [{"value": "x", "has_value": True}] * 3, "points": [{"int64_value": 2**63 - 1}]}),
        metric(1, {"points": [{"int64_value": -(2**63)}]}),
        node=NODE,
    ),
    "empty-distributions-and-summaries": metrics(
        metric(6, {"points": [{"distribution_value": {}}]}), metric(7, {"points": [{"summary_value": {}}]}), node=NODE
    ),
}


@pytest.mark.parametrize("name", METRIC_REQUESTS)
def test_metrics_are_the_collectors(name: str) -> None:
    found, expected = (normal(Signal.METRICS, side(Signal.METRICS, METRIC_REQUESTS[name])) for side in (ours, theirs))
    assert found == expected and found


DIFFERENT: dict[str, tuple[bytes, Any, Any]] = {
    # what is sent; of ours and of theirs the number of points, and what they hold
    "a-gauge-of-distributions": (metrics(metric(3, {"points": [{"distribution_value": {"count": 1}}]}), node=NODE), [], [{}]),
    "a-value-of-another-type": (
        metrics(metric(2, {"points": [{"int64_value": 7}]}), node=NODE),
        [{"name": "m", "gauge": {"dataPoints": [{"asInt": "7"}]}}],
        [{"name": "m", "gauge": {"dataPoints": [{"asDouble": 0.0}]}}],
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_metrics_differ_as_the_documentation_says(name: str) -> None:
    request, *expected = DIFFERENT[name]
    for side, records in zip((ours, theirs), expected, strict=True):
        found = normal(Signal.METRICS, side(Signal.METRICS, request))
        assert [record for _, all_of_it in found for record in all_of_it] == records


def test_a_time_before_1970_is_unknown_and_not_one_in_the_future() -> None:
    request = traces(span(start_time={"seconds": -62_135_596_800}), node=NODE)  # Go's zero time
    (_, (mine,)), (_, (their,)) = (normal(Signal.TRACES, side(Signal.TRACES, request))[0] for side in (ours, theirs))
    assert "startTimeUnixNano" not in mine and int(their["startTimeUnixNano"]) > 2**63
