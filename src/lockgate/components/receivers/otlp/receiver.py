"""The `otlp` receiver itself: starts and stops the transports that are configured."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from lockgate.batch import Batch
from lockgate.components.receivers.otlp.settings import OtlpGrpcSettings, OtlpReceiverSettings
from lockgate.net.intake import Intake
from lockgate.net.otlp_http import OtlpHttp
from lockgate.pipeline.contract import Context, Receiver, component

if TYPE_CHECKING:
    from lockgate.components.receivers.otlp.grpc import OtlpGrpc


@component("otlp", OtlpReceiverSettings)
class OtlpReceiver(Receiver[OtlpReceiverSettings]):
    """Receives OTLP. A client has its answer when its records are delivered, or durable."""

    def __init__(self, settings: OtlpReceiverSettings, context: Context) -> None:
        super().__init__(settings, context)
        intake = Intake(self, self._count_refused, settings.ack_timeout)
        protocols = settings.protocols
        self.http = OtlpHttp(protocols.http, protocols.http.paths(), context, intake) if protocols.http else None
        self.grpc = _grpc(protocols.grpc, context, intake) if protocols.grpc else None
        self._transports = AsyncExitStack()

    def _count_refused(self, batch: Batch, transport: str) -> None:
        """For what `emit` was not allowed to finish."""
        self._count(batch.signal, "refused", transport).add(batch.count)

    async def start(self) -> None:
        for transport in (self.http, self.grpc):
            if transport is not None:
                await self._transports.enter_async_context(transport)

    async def stop(self) -> None:
        await self._transports.aclose()


def _grpc(settings: OtlpGrpcSettings, context: Context, intake: Intake) -> OtlpGrpc:
    # HTTP/2 and protobuf are some 10 MB that a role which serves HTTP alone does without.
    from lockgate.components.receivers.otlp.grpc import OtlpGrpc

    return OtlpGrpc(settings, context, intake)
