"""Sampling strategies beside the real OpenTelemetry Collector's: one strategies file, and the same answers from both, but for the words in
JSON that docs/differences.md tells of."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from support.otelcol import TRACES, needs_otelcol_traces, running_otelcol
from support.process import Role, free_port, wait_until

from lockgate.wire.sampling import GET_SAMPLING_STRATEGY, as_json, encode_parameters

pytestmark = [pytest.mark.peers, needs_otelcol_traces]

HEALTH = {"operation": "/health", "type": "probabilistic", "param": 0.0}
PAY = {"operation": "pay", "type": "probabilistic", "param": 0.125}
FILE = {
    "default_strategy": {"type": "probabilistic", "param": 0.5, "operation_strategies": [HEALTH]},
    "service_strategies": [
        {"service": "plain", "type": "probabilistic", "param": 0.25},
        {"service": "limited", "type": "ratelimiting", "param": 5.5},
        {"service": "own", "type": "probabilistic", "param": 0.75, "operation_strategies": [{**HEALTH, "param": 1.0}, PAY]},
        {"service": "limited-own", "type": "ratelimiting", "param": 7, "operation_strategies": [PAY]},
        {"service": "rates", "type": "probabilistic", "param": 1, "operation_strategies": [{**PAY, "type": "ratelimiting"}]},
        {"service": "unknown", "type": "lottery", "param": 1},
    ],
}
SERVICES = [*(str(each["service"]) for each in FILE["service_strategies"]), "nobody"]  # type: ignore[index]


def over_http(port: int, service: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/sampling?service={service}", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def over_grpc(port: int, service: str) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return bytes(channel.unary_unary(GET_SAMPLING_STRATEGY)(encode_parameters(service), timeout=10))


def without_defaults(answer: Any) -> Any:
    """As Go's encoding/json leaves out zeros and empty lists, and says enums."""
    if not isinstance(answer, dict):
        return answer
    kept = {
        key: {"PROBABILISTIC": 0, "RATE_LIMITING": 1}.get(value, value) if key == "strategyType" else value for key, value in answer.items()
    }
    inner = {
        key: [without_defaults(each) for each in value] if isinstance(value, list) else without_defaults(value)
        for key, value in kept.items()
    }
    return {key: value for key, value in inner.items() if value not in (0, []) or isinstance(value, dict)}


@pytest.mark.parametrize("source", ["file", "remote"])
def test_both_tell_the_same_strategies(tmp_path: Path, source: str) -> None:
    file = tmp_path / "strategies.json"
    file.write_text(json.dumps(FILE))
    ports = {name: free_port() for name in ("ours-http", "ours-grpc", "theirs-http", "theirs-grpc", "otlp")}

    def configuration(who: str, origin: dict[str, Any]) -> dict[str, Any]:
        listeners = {protocol: {"endpoint": f"127.0.0.1:{ports[f'{who}-{protocol}']}"} for protocol in ("http", "grpc")}
        return {
            "receivers": {"jaeger": {"protocols": {"thrift_http": {"endpoint": f"127.0.0.1:{ports['otlp']}"}}}},
            "exporters": {"otlphttp": {"endpoint": "http://127.0.0.1:1"}},
            "extensions": {"jaegerremotesampling": {**listeners, "source": origin}},
            "service": {
                "extensions": ["jaegerremotesampling"],
                "pipelines": {"traces": {"receivers": ["jaeger"], "exporters": ["otlphttp"]}},
            },
        }

    # The collector merges the default operations into rate-limited services when it looks again at the file, not when it first reads it.
    theirs = configuration("theirs", {"file": str(file), "reload_interval": "100ms"})
    remote = {"remote": {"endpoint": f"127.0.0.1:{ports['theirs-grpc']}", "tls": {"insecure": True}}}
    ours = configuration("ours", {"file": str(file)} if source == "file" else remote)
    del ours["receivers"], ours["exporters"], ours["service"]["pipelines"]
    ours["service"]["extensions"].append("health_check")
    with running_otelcol(tmp_path / "theirs", theirs, binary=TRACES), Role(tmp_path / "ours", yaml.safe_dump(ours)):
        wait_until(lambda: "operationSampling" in over_http(ports["theirs-http"], "limited"), 30, "the collector has looked again")
        for service in SERVICES:
            answer = over_grpc(ports["ours-grpc"], service)
            assert answer == over_grpc(ports["theirs-grpc"], service), service
            told = over_http(ports["ours-http"], service)
            assert told == json.loads(as_json(answer)), service
            assert without_defaults(told) == over_http(ports["theirs-http"], service), service
