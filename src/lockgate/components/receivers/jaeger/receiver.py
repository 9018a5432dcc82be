"""The `jaeger` receiver itself: starts and stops the transports that are configured."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from lockgate.batch import Batch, Signal
from lockgate.components.receivers.jaeger.settings import JaegerGrpcSettings, JaegerReceiverSettings
from lockgate.components.receivers.jaeger.thrift_http import ThriftHttp
from lockgate.components.receivers.jaeger.thrift_udp import ThriftUdp
from lockgate.net.intake import Intake
from lockgate.pipeline.contract import Context, Custody, Receiver, component

if TYPE_CHECKING:
    from lockgate.components.receivers.jaeger.grpc import JaegerGrpc


@component("jaeger", JaegerReceiverSettings, signals={Signal.TRACES})
class JaegerReceiver(Receiver[JaegerReceiverSettings]):
    """Receives Jaeger's spans. Over gRPC and HTTP a client has its answer when its spans are delivered, or durable; over UDP it has none,
    and its spans are held in memory until then."""

    def __init__(self, settings: JaegerReceiverSettings, context: Context) -> None:
        super().__init__(settings, context)
        intake = Intake(self, self._count_refused, settings.ack_timeout)
        protocols = settings.protocols
        self.grpc = _grpc(protocols.grpc, context, intake) if protocols.grpc else None
        self.thrift_http = ThriftHttp(protocols.thrift_http, context, intake) if protocols.thrift_http else None
        self.thrift_compact = ThriftUdp(protocols.thrift_compact, True, self) if protocols.thrift_compact else None
        self.thrift_binary = ThriftUdp(protocols.thrift_binary, False, self) if protocols.thrift_binary else None
        if self.thrift_compact or self.thrift_binary:
            self.custody = Custody.MEMORY
        self._transports = AsyncExitStack()

    def _count_refused(self, batch: Batch, transport: str) -> None:
        """For what `emit` was not allowed to finish."""
        self._count(batch.signal, "refused", transport).add(batch.count)

    async def start(self) -> None:
        for transport in (self.grpc, self.thrift_http, self.thrift_compact, self.thrift_binary):
            if transport is not None:
                await self._transports.enter_async_context(transport)

    async def stop(self) -> None:
        await self._transports.aclose()


def _grpc(settings: JaegerGrpcSettings, context: Context, intake: Intake) -> JaegerGrpc:
    # HTTP/2 is some megabytes that a role which serves Thrift alone does without.
    from lockgate.components.receivers.jaeger.grpc import JaegerGrpc

    return JaegerGrpc(settings, context, intake)
