"""Sends OTLP over gRPC (OTLP 1.5, https://opentelemetry.io/docs/specs/otlp/#otlpgrpc)."""

from __future__ import annotations

from lockgate.batch import Batch
from lockgate.net.batch_ids import headers_of
from lockgate.net.grpc import GrpcError
from lockgate.net.grpc_client import GrpcClient, GrpcClientSettings, refusal
from lockgate.net.otlp_grpc import METHODS
from lockgate.pipeline.contract import Context, component
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.otlp_answers import partial_success
from lockgate.sending.settings import SendingSettings


class OtlpExporterSettings(GrpcClientSettings, SendingSettings):
    """Where to send OTLP over gRPC, and how."""


@component("otlp", OtlpExporterSettings)
class OtlpExporter(QueuedExporter[OtlpExporterSettings]):
    """Sends OTLP over gRPC. Whatever may pass later is tried again; `net.grpc_client.refusal` says what that is."""

    def __init__(self, settings: OtlpExporterSettings, context: Context) -> None:
        client = GrpcClient(settings, context)
        super().__init__(settings, context, client)
        self._client = client

    async def send(self, batch: Batch) -> Rejected | None:
        try:
            metadata = {key.lower(): value for key, value in headers_of(batch).items()}
            answer = await self._client.call(METHODS[batch.signal], batch.payload, self.settings.timeout or None, metadata)
        except GrpcError as error:
            raise refusal(error) from error
        return partial_success(batch.signal, answer)
