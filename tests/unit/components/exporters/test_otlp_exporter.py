"""The otlp exporter against the real grpcio server, and against our own receiver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from support import Sink, context, logs

from lockgate.batch import Batch, Signal
from lockgate.components.exporters.otlp import OtlpExporter, OtlpExporterSettings
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable

QUICK = {"initial_interval": "10ms", "max_interval": "50ms"}


class LogsServer:
    """A grpcio server of OTLP's logs service; answers with the statuses in `script` first, one per call."""

    def __init__(self, *script: Any, answer: bytes = b"") -> None:
        self.script, self.answer = list(script), answer
        self.bodies: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.port = 0

    async def export(self, message: bytes, call: grpc.aio.ServicerContext) -> bytes:
        self.metadata.append(dict(call.invocation_metadata() or ()))
        if self.script:
            await call.abort(self.script.pop(0), "scripted")
        request = ExportLogsServiceRequest.FromString(message)
        self.bodies += [
            record.body.string_value for entry in request.resource_logs for scope in entry.scope_logs for record in scope.log_records
        ]
        return self.answer

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        name = "opentelemetry.proto.collector.logs.v1.LogsService"
        handler = grpc.method_handlers_generic_handler(name, {"Export": grpc.unary_unary_rpc_method_handler(self.export)})
        self.server.add_generic_rpc_handlers((handler,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def __aenter__(self) -> "LogsServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)


@asynccontextmanager
async def exporting(port: int, **settings: Any) -> AsyncIterator[OtlpExporter]:
    made = {"endpoint": f"127.0.0.1:{port}", "tls": {"insecure": True}, "retry_on_failure": QUICK, **settings}
    async with OtlpExporter(OtlpExporterSettings.model_validate(made), context("otlp", Kind.EXPORTER)) as exporter:
        yield exporter


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_a_batch_arrives_with_its_id(compression: str) -> None:
    batch = logs("a", "b")
    async with LogsServer() as server, exporting(server.port, compression=compression) as exporter:
        await exporter.consume(batch)
    assert server.bodies == ["a", "b"]
    assert server.metadata[0]["x-lockgate-batch-id"] == batch.id
    assert exporter.context.metrics.value("otelcol_exporter_sent_log_records", exporter="otlp") == 2


async def test_what_may_pass_later_is_sent_again() -> None:
    script = [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ABORTED,
    ]
    async with LogsServer(*script) as server, exporting(server.port) as exporter:
        await exporter.consume(logs("a"))
    assert server.bodies == ["a"]
    assert len(server.metadata) == 6


async def test_what_is_refused_for_good_is_counted_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with LogsServer(grpc.StatusCode.INVALID_ARGUMENT) as server, exporting(server.port) as exporter:
        with pytest.raises(Permanent, match="scripted"):
            await exporter.consume(logs("a"))
        assert exporter.context.metrics.value("otelcol_exporter_send_failed_log_records", exporter="otlp") == 1
    assert "INVALID_ARGUMENT: scripted" in caplog.text


async def test_a_partial_success_is_counted_and_not_sent_again() -> None:
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 1
    answer.partial_success.error_message = "too old"
    async with LogsServer(answer=answer.SerializeToString()) as server, exporting(server.port) as exporter:
        await exporter.consume(logs("a", "b"))
        metrics = exporter.context.metrics
        assert metrics.value("otelcol_exporter_sent_log_records", exporter="otlp") == 1
        assert metrics.value("otelcol_exporter_send_failed_log_records", exporter="otlp") == 1
    assert len(server.metadata) == 1


async def test_nothing_is_lost_while_the_server_restarts_under_load() -> None:
    async with LogsServer() as server, exporting(server.port, timeout="2s") as exporter:
        stop = asyncio.Event()

        async def restart() -> None:
            while not stop.is_set():
                await asyncio.sleep(0.1)
                await server.server.stop(0)
                await asyncio.sleep(0.05)
                await server.start()

        restarting = asyncio.ensure_future(restart())
        bodies = [f"record {n}" for n in range(600)]
        limit = asyncio.Semaphore(20)

        async def send(body: str) -> None:
            async with limit:
                await asyncio.sleep(0.01)
                await exporter.consume(logs(body, "x" * 20_000))

        try:
            await asyncio.gather(*map(send, bodies))
        finally:
            stop.set()
            await restarting
    assert set(bodies) <= set(server.bodies)


class Later(Sink):
    """Takes each batch a little later."""

    async def consume(self, batch: Batch) -> None:
        await asyncio.sleep(0.002)
        await super().consume(batch)


async def test_nothing_is_lost_while_our_own_receiver_restarts_under_load() -> None:
    sink, port = Later(), 0

    def receiver() -> OtlpReceiver:
        settings = OtlpReceiverSettings.model_validate({"protocols": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}})
        made = OtlpReceiver(settings, context("otlp", Kind.RECEIVER))
        made.outputs = dict.fromkeys(Signal, sink)
        return made

    current = receiver()
    await current.__aenter__()
    assert current.grpc is not None
    port = current.grpc.port
    try:
        async with exporting(port) as exporter:
            sending = asyncio.ensure_future(asyncio.gather(*(exporter.consume(logs(f"{n}", "x" * 5_000)) for n in range(2000))))
            restarts = 0
            while not sending.done():
                await asyncio.sleep(0.1)
                await current.__aexit__(None, None, None)
                current = receiver()
                await current.__aenter__()
                restarts += 1
            await sending
    finally:
        await current.__aexit__(None, None, None)
    bodies = [body for body in sink.bodies() if body[0] != "x"]
    assert {f"{n}" for n in range(2000)} == set(bodies)
    assert restarts >= 2
    # A receiver that is stopped answers what it has taken: nothing was even sent twice.
    assert len(bodies) == 2000


async def test_a_server_that_reads_slowly_holds_no_more_than_its_windows() -> None:
    received = 0
    go = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS with HTTP/2's defaults, and no window ever after
        while data := await reader.read(65536):
            received += len(data)
        writer.close()
        go.set()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with exporting(port, compression="none", timeout="300ms", retry_on_failure={"enabled": False}) as exporter:
            with pytest.raises(Retryable, match=r"no answer|did not answer"):
                await exporter.consume(logs("x" * 5_000_000))
        await asyncio.wait_for(go.wait(), 5)
    assert received < 200_000
