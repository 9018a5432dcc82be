"""OTLP requests for tests: small, of each signal, with every kind of value."""

import urllib.request
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from lockgate.batch import Batch, Signal, derived_id

NANO = 1_700_000_000_000_000_000


def set_attributes(target: Any, values: dict[str, Any]) -> None:
    """Adds these to a repeated KeyValue field; the kind of AnyValue follows the Python type."""
    for key, value in values.items():
        set_value(target.add(key=key).value, value)


def set_value(target: Any, value: Any) -> None:
    match value:
        case bool():
            target.bool_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case str():
            target.string_value = value
        case bytes():
            target.bytes_value = value
        case list():
            target.array_value.SetInParent()
            for item in value:
                set_value(target.array_value.values.add(), item)
        case dict():
            target.kvlist_value.SetInParent()
            set_attributes(target.kvlist_value.values, value)


def log_batch(*records: Any, resource: dict[str, Any] | None = None, id: str = "", time_unix_nano: int = NANO) -> Batch:
    """Log records with these bodies; a record given as (body, attributes) has attributes."""
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    set_attributes(entry.resource.attributes, resource or {})
    scope = entry.scope_logs.add()
    for number, record in enumerate(records):
        body, attributes = record if isinstance(record, tuple) else (record, {})
        added = scope.log_records.add(time_unix_nano=time_unix_nano + number)
        if body is not None:
            set_value(added.body, body)
        set_attributes(added.attributes, attributes)
    return made(Signal.LOGS, request, len(records), id)


def metric_request(resource: dict[str, Any] | None = None) -> tuple[ExportMetricsServiceRequest, Any]:
    """A metrics request and its one scope, to fill."""
    request = ExportMetricsServiceRequest()
    entry = request.resource_metrics.add()
    set_attributes(entry.resource.attributes, resource or {})
    return request, entry.scope_metrics.add()


def span_batch(*names: str, resource: dict[str, Any] | None = None, id: str = "") -> Batch:
    """Spans of 5 ms with these names, with an event each."""
    request = ExportTraceServiceRequest()
    entry = request.resource_spans.add()
    set_attributes(entry.resource.attributes, resource or {})
    scope = entry.scope_spans.add()
    for number, name in enumerate(names):
        span = scope.spans.add(
            name=name,
            trace_id=bytes(16),
            span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=NANO,
            end_time_unix_nano=NANO + 5_000_000,
            kind=2,
        )
        span.status.code = Status.STATUS_CODE_ERROR
        span.events.add(name="retry", time_unix_nano=NANO)
    return made(Signal.TRACES, request, len(names), id)


def made(signal: Signal, request: Any, count: int, id: str = "") -> Batch:
    """A batch of this request; its id follows from the bytes unless one is given."""
    payload = request.SerializeToString()
    return Batch(signal, payload, count, id or derived_id(payload.hex()))


def post_logs(port: int, payload: bytes, id: str) -> None:
    """Sends a request over OTLP/HTTP under this id; raises OSError unless it is acknowledged."""
    headers = {"Content-Type": "application/x-protobuf", "X-Lockgate-Batch-Id": id}
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/logs", payload, headers), timeout=30):
        pass
