"""OTLP 1.5 over gRPC (https://opentelemetry.io/docs/specs/otlp/#otlpgrpc). What a refusal looks like is said in `net.grpc_server`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from grpclib.const import Status

from lockgate.batch import Signal
from lockgate.components.receivers.otlp.settings import OtlpGrpcSettings
from lockgate.net.batch_ids import ID_HEADER, PARTS_HEADER
from lockgate.net.grpc import GrpcError
from lockgate.net.grpc_server import Call, GrpcServer, unary
from lockgate.net.intake import Intake
from lockgate.net.otlp_grpc import METHODS
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Permanent
from lockgate.wire.protobuf import DecodeError


class OtlpGrpc:
    """Serves OTLP/gRPC."""

    def __init__(self, settings: OtlpGrpcSettings, context: Context, intake: Intake) -> None:
        self._context, self._intake = context, intake
        methods = {path: unary(self._export(signal)) for signal, path in METHODS.items()}
        self._server = GrpcServer(settings, methods, context)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    async def __aenter__(self) -> OtlpGrpc:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._server.__aexit__()

    def _export(self, signal: Signal) -> Callable[[bytes, Call], Awaitable[bytes]]:
        async def export(message: bytes, call: Call) -> bytes:
            if not self._intake.serves(signal):
                raise GrpcError(Status.UNIMPLEMENTED, f"no pipeline takes {signal} from {self._context.id}")
            try:
                id, parts = (call.headers.get(key.lower(), "") for key in (ID_HEADER, PARTS_HEADER))
                await self._intake.take(signal, message, peer=call.peer, transport="grpc", batch_id=id, batch_parts=parts)
            except DecodeError as error:
                raise Permanent(f"not an export request for {signal}: {error}") from None
            return b""  # an Export*ServiceResponse without partial success

        return export
