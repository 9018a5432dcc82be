"""The otlp receiver over gRPC, against OpenTelemetry's own SDK exporters and the real grpcio."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from support import FakeHost, Sink, context, logs

from lockgate.batch import Signal
from lockgate.components.extensions.bearertokenauth import BearerTokenAuthExtension, BearerTokenAuthSettings
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.net.otlp_grpc import METHODS
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable

RESOURCE = Resource.create({"service.name": "shop"})


@asynccontextmanager
async def receiving(
    *refusals: Exception, host: Any = None, signals: Any = tuple(Signal), **settings: Any
) -> AsyncIterator[tuple[Sink, OtlpReceiver]]:
    made = OtlpReceiverSettings.model_validate({"protocols": {"grpc": {"endpoint": "127.0.0.1:0", **settings}}})
    receiver = OtlpReceiver(made, context("otlp", Kind.RECEIVER, host=host))
    sink = Sink(*refusals)
    receiver.outputs = dict.fromkeys(signals, sink)
    async with receiver:
        yield sink, receiver


def port(receiver: OtlpReceiver) -> int:
    assert receiver.grpc is not None
    return receiver.grpc.port


def emit_logs(**options: Any) -> None:
    provider = LoggerProvider(resource=RESOURCE)
    provider.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(**options)))
    logger = logging.getLogger("shop")
    logger.propagate = False
    handler = LoggingHandler(logger_provider=provider)
    logger.addHandler(handler)
    try:
        logger.warning("sold out")
    finally:
        logger.removeHandler(handler)
        provider.shutdown()


def emit_traces(**options: Any) -> None:
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(**options)))
    with provider.get_tracer("shop").start_as_current_span("buy"):
        pass
    provider.shutdown()


def emit_metrics(**options: Any) -> None:
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(**options), export_interval_millis=60_000)
    provider = MeterProvider([reader], resource=RESOURCE)
    provider.get_meter("shop").create_counter("sales").add(3)
    provider.shutdown()


Emit = Callable[..., None]
EMITTERS: list[tuple[Signal, Emit]] = [(Signal.LOGS, emit_logs), (Signal.TRACES, emit_traces), (Signal.METRICS, emit_metrics)]


# LoggingHandler has moved to an instrumentation package; it is what applications out there use.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LoggingHandler.*")
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "gzip"])
@pytest.mark.parametrize(("signal", "emit"), EMITTERS, ids=lambda value: str(value) if isinstance(value, Signal) else "")
async def test_the_sdks_exporters_are_heard(signal: Signal, emit: Callable[..., None], compression: Any) -> None:
    async with receiving() as (sink, receiver):
        endpoint = f"127.0.0.1:{port(receiver)}"
        await asyncio.to_thread(emit, endpoint=endpoint, insecure=True, compression=compression, timeout=10)
        await sink.wait_for(1)
        batch = sink.batches[0]
        assert (batch.signal, batch.peer) == (signal, "127.0.0.1")
        assert "shop" in str(batch.message)
        name = f"otelcol_receiver_accepted_{signal.items}"
        assert receiver.context.metrics.value(name, receiver="otlp", transport="grpc") == sink.count


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_the_sdk_is_heard_over_tls(mutual: bool, tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf, mine = ca.issue_cert("localhost"), ca.issue_cert("shop.example")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    if mutual:
        tls["client_ca_file"] = str(tmp_path / "ca.pem")
    pair = (mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes()) if mutual else (None, None)
    async with receiving(tls=tls) as (sink, receiver):
        endpoint = f"localhost:{port(receiver)}"
        await asyncio.to_thread(
            emit_traces, endpoint=endpoint, credentials=grpc.ssl_channel_credentials(ca.cert_pem.bytes(), *pair), timeout=10
        )
        await sink.wait_for(1)
        if mutual:
            channel = grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(ca.cert_pem.bytes()))
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(METHODS[Signal.LOGS])(logs("x").payload, timeout=5)
    assert sink.count == 1


@asynccontextmanager
async def exporting(receiver: OtlpReceiver, signal: Signal = Signal.LOGS) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port(receiver)}", options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel.unary_unary(METHODS[signal])


async def status(call: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


async def test_a_body_that_is_no_export_request_is_refused_with_the_reason() -> None:
    async with receiving() as (sink, receiver), exporting(receiver) as export:
        code, text = await status(export(b"\x0a\xff\xff\xff\xff\x7fgarbage", timeout=5))
        assert (code, text.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "not an export request for logs")
        invalid = logs("Z" * 50).payload.replace(b"Z" * 50, b"\xff" * 50)
        assert (await status(export(invalid, timeout=5)))[0] == grpc.StatusCode.INVALID_ARGUMENT
        refused = {"receiver": "otlp", "transport": "grpc", "status": "INVALID_ARGUMENT"}
        assert receiver.context.metrics.value("lockgate_receiver_refused_requests", **refused) == 2
    assert not sink.batches


async def test_an_empty_request_is_accepted_and_goes_nowhere() -> None:
    async with receiving() as (sink, receiver), exporting(receiver) as export:
        assert await export(b"", timeout=5) == b""
    assert not sink.calls


async def test_what_the_pipeline_says_is_what_the_client_hears() -> None:
    async with (
        receiving(Retryable("queue is full", 3), Permanent("not wanted"), ZeroDivisionError()) as (sink, receiver),
        exporting(receiver) as export,
    ):
        assert await status(export(logs("a").payload, timeout=5)) == (grpc.StatusCode.UNAVAILABLE, "queue is full")
        assert await status(export(logs("a").payload, timeout=5)) == (grpc.StatusCode.INVALID_ARGUMENT, "not wanted")
        assert (await status(export(logs("a").payload, timeout=5)))[0] == grpc.StatusCode.UNAVAILABLE
        assert await export(logs("a").payload, timeout=5) == b""
    assert sink.bodies() == ["a"]


async def test_a_signal_without_a_pipeline_is_unimplemented() -> None:
    async with receiving(signals=[Signal.TRACES]) as (_, receiver), exporting(receiver) as export:
        assert (await status(export(logs("a").payload, timeout=5)))[0] == grpc.StatusCode.UNIMPLEMENTED


async def test_a_bearer_token_is_asked_for() -> None:
    extension = BearerTokenAuthExtension(
        BearerTokenAuthSettings.model_validate({"token": "secret"}), context("bearertokenauth", Kind.EXTENSION)
    )
    host = FakeHost({"bearertokenauth": extension})
    async with receiving(host=host, auth={"authenticator": "bearertokenauth"}) as (sink, receiver), exporting(receiver) as export:
        assert (await status(export(logs("a").payload, timeout=5)))[0] == grpc.StatusCode.UNAUTHENTICATED
        await export(logs("a").payload, metadata=[("authorization", "Bearer secret")], timeout=5)
    assert sink.bodies() == ["a"]


async def test_our_exporters_batch_id_is_kept() -> None:
    async with receiving() as (sink, receiver), exporting(receiver) as export:
        await export(logs("a").payload, metadata=[("x-lockgate-batch-id", "abc123")], timeout=5)
    assert sink.batches[0].id == "abc123"


async def test_fifty_clients_at_once_are_all_heard() -> None:
    async with receiving(max_bytes_in_flight="8MiB", max_recv_msg_size_mib=2) as (sink, receiver), exporting(receiver) as export:
        payloads = [logs(*(f"{n} {'x' * 1000}" for _ in range(500))).payload for n in range(50)]
        await asyncio.gather(*(export(payload, timeout=20) for payload in payloads))
    assert sink.count == 50 * 500


async def test_a_stopped_receiver_is_unavailable() -> None:
    async with receiving() as (_, receiver), exporting(receiver) as export:
        await export(logs("a").payload, timeout=5)
        await receiver.__aexit__(None, None, None)
        assert (await status(export(logs("b").payload, timeout=5)))[0] == grpc.StatusCode.UNAVAILABLE
