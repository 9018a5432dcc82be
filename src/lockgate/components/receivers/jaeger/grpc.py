"""Jaeger's collector.proto (api_v2) over gRPC. What a refusal looks like is said in `net.grpc_server`."""

from __future__ import annotations

from typing import Any

from lockgate.batch import Signal
from lockgate.components.receivers.jaeger.settings import JaegerGrpcSettings
from lockgate.net.grpc_server import Call, GrpcServer, unary
from lockgate.net.intake import Intake
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Permanent
from lockgate.wire import jaeger
from lockgate.wire.protobuf import DecodeError

POST_SPANS = "/jaeger.api_v2.CollectorService/PostSpans"


class JaegerGrpc:
    """Serves CollectorService."""

    def __init__(self, settings: JaegerGrpcSettings, context: Context, intake: Intake) -> None:
        self._intake = intake
        self._server = GrpcServer(settings, {POST_SPANS: unary(self._post_spans)}, context)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    async def __aenter__(self) -> JaegerGrpc:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._server.__aexit__()

    async def _post_spans(self, message: bytes, call: Call) -> bytes:
        try:
            await self._intake.take(Signal.TRACES, message, peer=call.peer, transport="grpc", decode=_decode)
        except DecodeError as error:
            raise Permanent(f"not a PostSpansRequest: {error}") from None
        return b""  # a PostSpansResponse


def _decode(body: bytes, signal: Signal) -> bytes:
    return jaeger.from_protobuf(body)
