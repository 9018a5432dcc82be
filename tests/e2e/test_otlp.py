"""What OpenTelemetry's SDK sends, through the metadata roles into the embedded backend, is what `lockgate query` gives back."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExportResult, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, InMemoryMetricReader, MetricExportResult, NumberDataPoint
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from support.kubernetes import pod, put, sample_in_thread
from support.process import Role, free_port, lockgate, wait_until

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import NAMESPACES, PODS
from lockgate.sample.kubernetes_store import ObjectStore

TRANSPORTS = ["http", "grpc"]
VALUES: dict[str, Any] = {
    "text": "žluťoučký \N{PILE OF POO}\n\x01",
    "empty": "",
    "integer": -(2**53) - 1,
    "real": 0.1,
    "true": True,
    "texts": ("a", "b"),
    "integers": (1, 2**53 + 1),
}
"""Every kind of attribute that the SDK has."""


@dataclass
class Roles:
    """All three metadata roles before one backend. `ports`: (role's preset, transport) -> where it listens."""

    state: Path
    ports: dict[tuple[str, str], int]
    pod_uid: str

    def url(self, preset: str, transport: str) -> str:
        path = {"logs_metadata": "/v1/logs", "metrics_metadata": "/v1/metrics", "traces": "/v1/traces"}[preset]
        return f"http://127.0.0.1:{self.ports[preset, transport]}{path if transport == 'http' else ''}"

    def ask(self, sql: str) -> list[dict[str, Any]]:
        result = lockgate("query", "--state", str(self.state), "--format", "json", sql)
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def rows(self, table: str, service: str, count: int) -> list[dict[str, Any]]:
        """All rows of a service, once there are so many."""
        sql = f"SELECT * FROM {table} WHERE service = '{service}' ORDER BY time_unix_nano"
        wait_until(lambda: len(self.ask(sql)) >= count, 20, f"{count} rows of {service} in {table}")
        return self.ask(sql)

    def resource(self, service: str) -> Resource:
        return Resource({"service.name": service, "k8s.pod.uid": self.pod_uid, **{f"r.{name}": value for name, value in VALUES.items()}})

    def check_resource(self, row: dict[str, Any], resource: Resource) -> None:
        assert {name: row["resource"][name] for name in resource.attributes} == plain(resource.attributes)
        added = {"k8s.pod.name": "web-0", "k8s.namespace.name": "shop", "k8s.pod.label.team": "storefront", "cluster": "kubernetes"}
        assert row["resource"].items() >= added.items()
        assert (row["namespace"], row["pod"], row["node"]) == ("shop", "web-0", "node-1")


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    directory = tmp_path_factory.mktemp("roles")
    store = ObjectStore(SystemClock())
    put(store, NAMESPACES, {"metadata": {"name": "shop"}})
    made = put(store, PODS, pod("web-0", "shop", ip="10.1.0.1", labels={"team": "storefront"}))
    backend, state = free_port(), directory / "state"
    ports: dict[tuple[str, str], int] = {}
    with ExitStack() as stack:
        url = stack.enter_context(sample_in_thread(store))
        common = {"LOCKGATE_HOST": "127.0.0.1", "LOCKGATE_STATE": str(state), "LOCKGATE_QUERY_PORT": "0"}
        common |= {"LOCKGATE_OTLP_HTTP_PORT": str(free_port()), "LOCKGATE_OTLP_GRPC_PORT": str(free_port())}
        stack.enter_context(Role(directory / "backend", environment=common | {"LOCKGATE_BACKEND_PORT": str(backend)}, preset="backend"))
        common |= {"LOCKGATE_KUBE_AUTH": "none", "LOCKGATE_KUBE_API": url}
        common |= {"LOCKGATE_BACKEND_URL": f"http://127.0.0.1:{backend}/receiver"}
        for preset in ("logs_metadata", "metrics_metadata", "traces"):
            ports |= {(preset, transport): free_port() for transport in TRANSPORTS}
            environment = common | {
                "LOCKGATE_OTLP_HTTP_PORT": str(ports[preset, "http"]),
                "LOCKGATE_STATE": str(directory / preset / "state"),
            }
            both = f'receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{ports[preset, "grpc"]}"}}}}}}}}'
            stack.enter_context(Role(directory / preset, both, environment, preset=preset))
        yield Roles(state, ports, made["metadata"]["uid"])


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(dict(value) if hasattr(value, "items") else value))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_spans_are_what_was_sent(roles: Roles, transport: str) -> None:
    resource, kept = roles.resource(f"spans-{transport}"), InMemorySpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("scope.name", "1.2")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER, attributes=VALUES) as outer:
        link = Link(outer.get_span_context(), {"why": "because"})
        with (
            pytest.raises(RuntimeError),
            tracer.start_as_current_span("inner", kind=SpanKind.CLIENT, links=[link]) as inner,
        ):
            inner.add_event("event", VALUES, timestamp=1_700_000_000_123_456_789)
            raise RuntimeError("boom")
        outer.set_status(Status(StatusCode.OK))
    spans = sorted(kept.get_finished_spans(), key=lambda span: span.start_time or 0)
    exporter = (
        HttpSpans(roles.url("traces", "http"), compression=Compression.Gzip)
        if transport == "http"
        else GrpcSpans(roles.url("traces", "grpc"), insecure=True)
    )
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    rows = roles.rows("traces", f"spans-{transport}", 2)
    assert len(rows) == len(spans) == 2
    for row, span in zip(rows, spans, strict=True):
        context, start, end = span.get_span_context(), span.start_time, span.end_time
        assert context and start and end
        assert (row["name"], row["kind"], row["scope"]) == (span.name, span.kind.name.lower(), "scope.name")
        assert (row["trace_id"], row["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
        assert row["parent_span_id"] == (f"{span.parent.span_id:016x}" if span.parent else None)
        assert (row["time_unix_nano"], row["duration_nano"]) == (start, end - start)
        assert (row["status"], row["status_message"]) == (span.status.status_code.name.lower(), span.status.description)
        assert row["attributes"] == (plain(span.attributes) if span.attributes else None)
        events = [{"time_unix_nano": e.timestamp, "name": e.name, "attributes": plain(e.attributes)} for e in span.events]
        assert row["events"] == (events or None)
        links = [
            {"trace_id": f"{each.context.trace_id:032x}", "span_id": f"{each.context.span_id:016x}", "attributes": plain(each.attributes)}
            for each in span.links
        ]
        assert row["links"] == (links or None)
        roles.check_resource(row, resource)
    assert [event["name"] for event in rows[1]["events"]] == ["event", "exception"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_metric_points_are_what_was_sent(roles: Roles, transport: str) -> None:
    resource, reader = roles.resource(f"metrics-{transport}"), InMemoryMetricReader()
    view = View(instrument_type=Histogram, instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], resource, shutdown_on_exit=False, views=[view])
    meter = provider.get_meter("scope.name")
    meter.create_counter("counter", "By").add(2**53, VALUES)  # a value is a DOUBLE in the store: larger integers are rounded
    meter.create_up_down_counter("up-down").add(-1.5)
    meter.create_gauge("gauge", "Cel").set(-273.15, {"where": "here"})
    explicit = meter.create_histogram("explicit", "s", explicit_bucket_boundaries_advisory=[0.1, 1, 10])
    exponential = meter.create_histogram("exponential", "s")
    for value in (0, 0.05, 0.1, 0.5, 5, 5, 50, 1e300):
        explicit.record(value, {"route": "/"})
        exponential.record(value, {"route": "/"})
    data = reader.get_metrics_data()
    assert data is not None
    exporter = (
        HttpMetrics(roles.url("metrics_metadata", "http"))
        if transport == "http"
        else GrpcMetrics(roles.url("metrics_metadata", "grpc"), insecure=True)
    )
    assert exporter.export(data) is MetricExportResult.SUCCESS
    exporter.shutdown()
    sent = {metric.name: metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics}
    rows = {row["name"]: row for row in roles.rows("metrics", f"metrics-{transport}", len(sent))}
    assert rows.keys() == sent.keys() == {"counter", "up-down", "gauge", "explicit", "exponential"}
    for name, metric in sent.items():
        row, (point,) = rows[name], metric.data.data_points
        assert (row["unit"] or "", row["scope"]) == (metric.unit or "", "scope.name")
        assert row["attributes"] == (plain(point.attributes) if point.attributes else None)
        assert row["time_unix_nano"] == point.time_unix_nano
        assert row["start_unix_nano"] == (point.start_time_unix_nano or None)
        if isinstance(point, NumberDataPoint):
            assert row["value"] == point.value
        else:
            assert (row["count"], row["sum"]) == (point.count, point.sum)
        roles.check_resource(row, resource)
    assert {name: row["kind"] for name, row in rows.items()} == {
        "counter": "sum", "up-down": "sum", "gauge": "gauge", "explicit": "histogram", "exponential": "exponential_histogram"
    }  # fmt: skip
    assert {name: (row["temporality"], row["monotonic"]) for name, row in rows.items()} == {
        "counter": ("cumulative", True), "up-down": ("cumulative", False), "gauge": (None, None),
        "explicit": ("cumulative", None), "exponential": ("cumulative", None),
    }  # fmt: skip
    assert rows["explicit"]["detail"] == {"bounds": [0.1, 1, 10], "counts": [3, 1, 2, 2]}
    (point,) = sent["exponential"].data.data_points
    assert isinstance(point, ExponentialHistogramDataPoint)
    detail = rows["exponential"]["detail"]
    assert (detail["scale"], detail["zero_count"]) == (point.scale, point.zero_count) and point.zero_count == 1
    assert detail["positive"] == {"offset": point.positive.offset, "counts": list(point.positive.bucket_counts)}
    assert detail["negative"]["counts"] == list(point.negative.bucket_counts)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_log_records_are_what_was_sent(roles: Roles, transport: str) -> None:
    from opentelemetry._logs import LogRecord, SeverityNumber

    resource, kept = roles.resource(f"logs-{transport}"), InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK's own omission
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(kept))
    logger = provider.get_logger("scope.name")
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("any")
    bodies: list[Any] = ["plain", "žluť\nlines\x00", 7, 2.5, True, {"nested": {"list": [1, "two", None]}}, [1, [2]]]
    with tracer.start_as_current_span("span") as span:
        for number, body in enumerate(bodies):
            logger.emit(
                LogRecord(
                    timestamp=1_700_000_000_000_000_001 + number,
                    body=body,
                    severity_number=SeverityNumber.WARN,
                    severity_text="careful" if number else None,
                    attributes=VALUES,
                    event_name="happened" if number == 1 else None,
                )
            )
    exporter = (
        HttpLogs(roles.url("logs_metadata", "http")) if transport == "http" else GrpcLogs(roles.url("logs_metadata", "grpc"), insecure=True)
    )
    assert exporter.export(kept.get_finished_logs()) is LogRecordExportResult.SUCCESS
    exporter.shutdown()
    rows = roles.rows("logs", f"logs-{transport}", len(bodies))
    as_text = [body if isinstance(body, str) else json.dumps(body, separators=(",", ":")) for body in bodies]
    assert [row["body"] for row in rows] == as_text
    context = span.get_span_context()
    for number, row in enumerate(rows):
        assert row["time_unix_nano"] == 1_700_000_000_000_000_001 + number
        assert (row["severity_number"], row["severity"]) == (13, "careful" if number else "WARN")
        assert (row["trace_id"], row["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
        assert (row["scope"], row["event_name"]) == ("scope.name", "happened" if number == 1 else None)
        assert row["attributes"] == plain(VALUES)
        roles.check_resource(row, resource)
