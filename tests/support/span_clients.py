# mypy: allow-untyped-calls
"""One span by each protocol that the traces role can listen for, as its clients send it; `send` runs it in a network namespace.

    python span_clients.py HOST '{"zipkin": 9411, ...}' PREFIX        each span's name is PREFIX and its listener's key

Jaeger's Thrift is made by jaeger-client's own code; gRPC is grpcio's, with messages as their .proto files number the fields.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping

import grpc
from jaeger_client.thrift_gen.agent import Agent
from jaeger_client.thrift_gen.jaeger import ttypes as jaeger
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TMessageType
from thrift.transport.TTransport import TMemoryBuffer

from lockgate.wire.protobuf import delimited, varint

TRACE, SPAN = bytes(range(1, 17)), bytes(range(1, 9))


def _post(url: str, body: bytes, kind: str) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status in (200, 202), answer.status


def _otlp(name: str) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name=name, trace_id=TRACE, span_id=SPAN)
    return request.SerializeToString()


def _call(host: str, port: int, method: str, message: bytes) -> None:
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        channel.unary_unary(method)(message, timeout=20, wait_for_ready=True)


def otlp_http(host: str, port: int, name: str) -> None:
    _post(f"http://{host}:{port}/v1/traces", _otlp(name), "application/x-protobuf")


def otlp_grpc(host: str, port: int, name: str) -> None:
    _call(host, port, "/opentelemetry.proto.collector.trace.v1.TraceService/Export", _otlp(name))


def jaeger_grpc(host: str, port: int, name: str) -> None:
    """jaeger-idl, api_v2/collector.proto and model.proto."""
    now = delimited(6, b"\x08" + varint(int(time.time())))
    span = delimited(1, TRACE) + delimited(2, SPAN) + delimited(3, name.encode()) + now
    batch = delimited(1, span) + delimited(2, delimited(1, b"shop"))
    _call(host, port, "/jaeger.api_v2.CollectorService/PostSpans", delimited(1, batch))


def _thrift(name: str) -> jaeger.Batch:
    span = jaeger.Span(
        traceIdLow=1, traceIdHigh=2, spanId=3, parentSpanId=0, operationName=name, flags=1, startTime=int(time.time() * 1e6), duration=1
    )
    return jaeger.Batch(process=jaeger.Process(serviceName="shop"), spans=[span])


def jaeger_thrift_http(host: str, port: int, name: str) -> None:
    buffer = TMemoryBuffer()
    _thrift(name).write(TBinaryProtocol(buffer))
    _post(f"http://{host}:{port}/api/traces?format=jaeger.thrift", buffer.getvalue(), "application/x-thrift")


def _datagram(protocol: type[TCompactProtocol] | type[TBinaryProtocol]) -> Callable[[str, int, str], None]:
    def send(host: str, port: int, name: str) -> None:
        buffer = TMemoryBuffer()
        message = protocol(buffer)
        message.writeMessageBegin("emitBatch", TMessageType.ONEWAY, 0)
        Agent.emitBatch_args(_thrift(name)).write(message)
        message.writeMessageEnd()
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as datagrams:
            datagrams.sendto(buffer.getvalue(), address)

    return send


def zipkin(host: str, port: int, name: str) -> None:
    span = {"traceId": TRACE.hex(), "id": SPAN.hex(), "name": name, "timestamp": int(time.time() * 1e6), "duration": 1}
    _post(f"http://{host}:{port}/api/v2/spans", json.dumps([span]).encode(), "application/json")


def opencensus(host: str, port: int, name: str) -> None:
    """opencensus-proto 0.4, agent/trace/v1/trace_service.proto and trace/v1/trace.proto: a stream that is answered nothing."""
    node = delimited(1, delimited(3, delimited(1, b"shop")))
    now = b"\x08" + varint(int(time.time()))
    span = delimited(1, TRACE) + delimited(2, SPAN) + delimited(4, delimited(1, name.encode())) + delimited(5, now) + delimited(6, now)

    def messages() -> Iterable[bytes]:
        yield node + delimited(2, span)

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        export = channel.stream_stream("/opencensus.proto.agent.trace.v1.TraceService/Export")
        list(export(messages(), timeout=20, wait_for_ready=True))


CLIENTS: dict[str, Callable[[str, int, str], None]] = {
    "otlpHttp": otlp_http,
    "otlpGrpc": otlp_grpc,
    "otlpHttpLegacy": otlp_http,
    "otlpGrpcLegacy": otlp_grpc,
    "jaegerGrpc": jaeger_grpc,
    "jaegerThriftHttp": jaeger_thrift_http,
    "jaegerThriftCompact": _datagram(TCompactProtocol),
    "jaegerThriftBinary": _datagram(TBinaryProtocol),
    "zipkin": zipkin,
    "opencensus": opencensus,
}
"""By the listener's key in the chart's values."""


def send(inside: list[str], host: str, ports: Mapping[str, int], prefix: str) -> None:
    """A span to each of these ports, from where `inside` runs commands. Raises CalledProcessError, with what a client said on stderr."""
    subprocess.run([*inside, sys.executable, __file__, host, json.dumps(dict(ports)), prefix], check=True, timeout=120)


if __name__ == "__main__":
    for key, port in json.loads(sys.argv[2]).items():
        CLIENTS[key](sys.argv[1], port, f"{sys.argv[3]}{key}")
