"""Sends OTLP over gRPC (OTLP 1.5, https://opentelemetry.io/docs/specs/otlp/#otlpgrpc)."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError as ProtobufError

from lockgate.batch import Batch, Signal
from lockgate.net.grpc import GrpcError
from lockgate.net.grpc_client import GrpcClient, GrpcClientSettings, refusal
from lockgate.net.otlp_grpc import ID_METADATA, METHODS
from lockgate.pipeline.contract import Context, component
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.settings import SendingSettings


class OtlpExporterSettings(GrpcClientSettings, SendingSettings):
    """Where to send OTLP over gRPC, and how."""


@component("otlp", OtlpExporterSettings)
class OtlpExporter(QueuedExporter[OtlpExporterSettings]):
    """Sends OTLP over gRPC. Whatever may pass later is tried again; `net.grpc_client.refusal` says what that is."""

    def __init__(self, settings: OtlpExporterSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._client = GrpcClient(settings, context)

    async def start(self) -> None:
        await self._client.__aenter__()
        await super().start()

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await self._client.__aexit__(None, None, None)

    async def send(self, batch: Batch) -> Rejected | None:
        try:
            answer = await self._client.call(METHODS[batch.signal], batch.payload, self.settings.timeout or None, {ID_METADATA: batch.id})
        except GrpcError as error:
            raise refusal(error) from error
        return _partial_success(answer, batch.signal) if answer else None


def _partial_success(answer: bytes, signal: Signal) -> Rejected | None:
    name = {"logs": "rejected_log_records", "metrics": "rejected_data_points", "traces": "rejected_spans"}[signal]
    try:
        partial = _response_type(signal).FromString(answer).partial_success
    except ProtobufError:
        return None  # the server took the batch; an unreadable remark does not undo that
    records = max(0, getattr(partial, name))
    if not records and not partial.error_message:
        return None
    return Rejected(records, f"the server took the request but not all of it: {partial.error_message or 'no reason given'}")


def _response_type(signal: Signal) -> Any:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    types = {"logs": ExportLogsServiceResponse, "metrics": ExportMetricsServiceResponse, "traces": ExportTraceServiceResponse}
    return types[signal]
