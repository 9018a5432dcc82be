"""OTLP's names on gRPC, for whoever serves or calls them (opentelemetry-proto 1.x, collector/*/v1)."""

from lockgate.batch import Signal

METHODS = {
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
"""The path of each signal's one method."""
