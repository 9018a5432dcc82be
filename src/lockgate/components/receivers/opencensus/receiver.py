"""The `opencensus` receiver itself: streams of messages in, one after the other into the pipelines.

As contrib's opencensusreceiver v0.133.0, which later versions of the collector no longer have, with these differences. OpenCensus has no
acknowledgement: a message is in our custody once it is read. So one is read only when the one before is delivered, durable, or refused
for good, and until then the client is held back; one that cannot be handed on now is tried again (the collector ends the stream, and the
message is lost). What was read is handed on also when its client has gone. And there is no HTTP/JSON on the port: it would need a second
server behind a switch that looks at each connection's first bytes, for what no library of OpenCensus' sends.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from lockgate.batch import Batch, Signal
from lockgate.components.receivers.opencensus.settings import OpenCensusReceiverSettings
from lockgate.kit.backoff import delays
from lockgate.net.intake import Intake, StreamRefusals
from lockgate.pipeline.contract import Context, Receiver, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.wire.opencensus import Stream
from lockgate.wire.protobuf import DecodeError

if TYPE_CHECKING:
    from lockgate.net.grpc_server import Call, GrpcServer

TRACES = "/opencensus.proto.agent.trace.v1.TraceService/Export"
METRICS = "/opencensus.proto.agent.metrics.v1.MetricsService/Export"
CONFIG = "/opencensus.proto.agent.trace.v1.TraceService/Config"


@component("opencensus", OpenCensusReceiverSettings, signals={Signal.TRACES, Signal.METRICS})
class OpenCensusReceiver(Receiver[OpenCensusReceiverSettings]):
    """Receives OpenCensus. A stream's next message is read when the one before is delivered, or durable."""

    transport = "grpc"

    def __init__(self, settings: OpenCensusReceiverSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._intake = Intake(self, self._count_unfinished, settings.ack_timeout)
        self._server: GrpcServer | None = None
        self._refuse = StreamRefusals(context, "OpenCensus")

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port if self._server else 0

    async def start(self) -> None:
        # HTTP/2 and protobuf are some 10 MB that whoever only checks a configuration does without.
        from lockgate.net.grpc_server import GrpcServer, streaming

        methods = {
            TRACES: streaming(lambda call: self._export(Signal.TRACES, call)),
            METRICS: streaming(lambda call: self._export(Signal.METRICS, call)),
            CONFIG: _config,
        }
        self._server = await GrpcServer(self.settings, methods, self.context).__aenter__()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.__aexit__()

    def _export(self, signal: Signal, call: Call) -> Callable[[bytes], Awaitable[None]]:
        from grpclib.const import Status

        from lockgate.net.grpc import GrpcError

        if not self._intake.serves(signal):
            raise GrpcError(Status.UNIMPLEMENTED, f"no pipeline takes {signal} from {self.context.id}")
        stream, peer, id, number = Stream(), call.peer, uuid.uuid4().hex, 0

        def decode(body: bytes, signal: Signal) -> bytes:
            return stream.traces(body) if signal is Signal.TRACES else stream.metrics(body)

        async def take(message: bytes) -> None:
            nonlocal number
            number += 1
            try:
                batches = await self._intake.read(signal, message, peer=peer, ids=(f"{id}.{number}", ""), decode=decode)
            except DecodeError as error:
                raise Permanent(f"not an export request for {signal}: {error}") from None
            if stream.lost:
                self._count(signal, "refused", self.transport).add(stream.lost)
                self._refuse("untranslatable", f"{stream.lost} data points have no form in OTLP, and are lost", peer)
            await self._hand_on(batches, peer)

        return take

    async def _hand_on(self, batches: Sequence[Batch], peer: str) -> None:
        """Returns when these are acknowledged, or given up and counted."""
        clock, limit = self.context.clock, self.settings.retry_timeout
        waits, begun = delays(0.1, 5.0), clock.monotonic()
        try:
            while True:
                try:
                    await self._intake.hand_on(batches, self.transport)
                    return
                except Retryable as refusal:
                    left = begun + limit - clock.monotonic() if limit else math.inf
                    if left <= 0:
                        self._refuse("unavailable", f"records were not taken within {limit:g} s, and are lost: {refusal}", peer)
                        return
                    self.context.status.block(f"the next owner cannot take records now: {refusal}", "delivery")
                    wait = min(max(next(waits), refusal.after or 0.0), left)
                except asyncio.CancelledError:
                    for batch in batches:
                        self._count_unfinished(batch, self.transport)
                    raise
                await clock.sleep(wait)
        except Permanent as refusal:
            self._refuse("permanent", f"records were refused for good, and are lost: {refusal}", peer)
        except asyncio.CancelledError:
            self._refuse("unfinished", "records were not delivered when there was no time left, and are lost", peer)
            raise
        finally:
            self.context.status.clear("delivery")

    def _count_unfinished(self, batch: Batch, transport: str) -> None:
        self._count(batch.signal, "refused", transport).add(batch.count)


async def _config(call: Call) -> Any:
    """No configuration is sent to libraries: the collector's answer, which they know."""
    from grpclib.const import Status

    from lockgate.net.grpc import GrpcError

    raise GrpcError(Status.UNKNOWN, "unimplemented")
