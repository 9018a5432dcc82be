"""The otlphttp exporter against a real HTTP server whose answers are scripted, and against our own receiver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import Sink, VirtualClock, batch, context, logs

from lockgate.batch import Batch, Signal
from lockgate.components.exporters.otlphttp import OtlpHttpExporter, OtlpHttpExporterSettings
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.net.http_server import HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Context, Kind
from lockgate.pipeline.errors import Permanent, Retryable


@asynccontextmanager
async def backend(*script: web.Response) -> AsyncIterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """A server with these answers, then 200; gives its URL and what it got."""
    answers = list(script)
    got: list[tuple[str, dict[str, str], bytes]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        async with server.body(request, bytes) as body:
            got.append((request.path, dict(request.headers), body))
        return answers.pop(0) if answers else web.Response()

    server = HttpServer(HttpServerSettings(endpoint="127.0.0.1:0"), context("backend", Kind.RECEIVER), handle)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}", got
    finally:
        await server.stop(0.2)


@asynccontextmanager
async def exporting(url: str, *, clock: Any = None, **settings: Any) -> AsyncIterator[tuple[OtlpHttpExporter, Context]]:
    of = context("otlphttp", Kind.EXPORTER, clock=clock)
    async with OtlpHttpExporter(OtlpHttpExporterSettings.model_validate({"endpoint": url} | settings), of) as exporter:
        yield exporter, of


ONCE = {"retry_on_failure": {"enabled": False}}


async def test_a_batch_is_posted_compressed_to_its_signals_path_with_its_id() -> None:
    async with backend() as (url, got), exporting(f"{url}/base/") as (exporter, _):
        sent = logs("a")
        await exporter.consume(sent)
    path, headers, body = got[0]
    assert (path, body) == ("/base/v1/logs", sent.payload)
    assert headers["Content-Type"] == "application/x-protobuf"
    assert headers["Content-Encoding"] == "gzip"
    assert headers["X-Lockgate-Batch-Id"] == sent.id


async def test_a_signals_own_endpoint_is_used_as_it_is() -> None:
    async with backend() as (url, got), exporting(url, logs_endpoint=f"{url}/receiver/logs", compression="none") as (exporter, _):
        await exporter.consume(logs("a"))
    assert got[0][0] == "/receiver/logs"
    assert "Content-Encoding" not in got[0][1]


async def test_a_signal_without_an_endpoint_is_refused_and_warned_of() -> None:
    settings: dict[str, Any] = {"endpoint": "", "logs_endpoint": "http://127.0.0.1:1/x"}
    assert sum("there is no endpoint" in warning for warning in OtlpHttpExporterSettings.model_validate(settings).warnings()) == 2
    async with exporting(**({"url": ""} | settings)) as (exporter, _):
        with pytest.raises(Permanent, match="no endpoint"):
            await exporter.consume(Batch(Signal.TRACES, b"", 1, "id"))


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503, 504, 599])
async def test_what_may_pass_later_is_given_back_as_retryable_with_its_delay(status: int) -> None:
    answer = web.Response(status=status, headers={"Retry-After": "9"}, text="go away")
    async with backend(answer) as (url, _), exporting(url, **ONCE) as (exporter, of):
        with pytest.raises(Retryable, match=f"answered {status}: go away") as caught:
            await exporter.consume(logs("a"))
        assert caught.value.after == 9
        assert "sending" in of.status.blocked


@pytest.mark.parametrize("status", [301, 400, 404, 413, 415, 422])
async def test_what_will_never_pass_is_permanent(status: int) -> None:
    async with backend(web.Response(status=status)) as (url, got), exporting(url) as (exporter, of):
        with pytest.raises(Permanent, match=f"answered {status}"):
            await exporter.consume(logs("a"))
        assert len(got) == 1
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        pytest.param(Status(message="bad\nfield").SerializeToString(), "application/x-protobuf", "bad field", id="protobuf"),
        pytest.param(b'{"code": 3, "message": "bad field"}', "application/json", "bad field", id="json"),
        pytest.param(b"\xff\xff", "application/x-protobuf", "no readable reason", id="broken-protobuf"),
        pytest.param(b"{", "application/json", "{", id="broken-json"),
        pytest.param(b"x" * 9000, "text/plain", "x" * 500, id="long-text"),
        pytest.param(b"", "text/plain", "no reason given", id="nothing"),
    ],
)
async def test_the_servers_reason_is_told(body: bytes, content_type: str, said: str) -> None:
    async with backend(web.Response(status=400, body=body, content_type=content_type)) as (url, _), exporting(url) as (exporter, _):
        with pytest.raises(Permanent) as caught:
            await exporter.consume(logs("a"))
    assert str(caught.value).endswith(f"answered 400: {said}")


def protobuf_partial(rejected: int, message: str) -> web.Response:
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = rejected
    response.partial_success.error_message = message
    return web.Response(body=response.SerializeToString(), content_type="application/x-protobuf")


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        pytest.param(protobuf_partial(2, "too old"), 2, id="protobuf"),
        pytest.param(protobuf_partial(0, "a warning"), 0, id="a-warning"),
        pytest.param(protobuf_partial(99, "more than were sent"), 3, id="too-many"),
        pytest.param(web.Response(body=b'{"partialSuccess":{"rejectedLogRecords":"2"}}', content_type="application/json"), 2, id="json"),
        pytest.param(web.Response(body=b"[1]", content_type="application/json"), 0, id="other-json"),
        pytest.param(web.Response(body=b"\xff", content_type="application/x-protobuf"), 0, id="broken"),
        pytest.param(web.Response(text="OK"), 0, id="text"),
    ],
)
async def test_records_rejected_in_a_200_are_counted(answer: web.Response, lost: int, caplog: pytest.LogCaptureFixture) -> None:
    async with backend(answer) as (url, _), exporting(url) as (exporter, of):
        await exporter.consume(logs("a", "b", "c"))
        assert of.metrics.value("otelcol_exporter_sent_log_records") == 3 - lost
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == lost
    assert ("not all of it" in caplog.text) is ((answer.content_type == "application/x-protobuf" and answer.body != b"\xff") or lost > 0)


async def test_an_outage_ends_without_a_lost_or_a_doubled_batch() -> None:
    clock = VirtualClock()
    async with backend(*(web.Response(status=503) for _ in range(3))) as (url, got), exporting(url, clock=clock) as (exporter, of):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        while not consuming.done():
            await asyncio.sleep(0.001)  # the server's answers come in real time, the waits between attempts in virtual
            await clock.advance(60)
        assert len(got) == 4
        assert of.metrics.value("otelcol_exporter_sent_log_records") == 1
        assert not of.status.blocked


def spans() -> Batch:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="s", trace_id=b"t" * 16, span_id=b"s" * 8)
    span.attributes.add(key="k").value.int_value = 5
    return batch(Signal.TRACES, request)


def points() -> Batch:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    metric.gauge.data_points.add(as_double=1.5, time_unix_nano=7)
    return batch(Signal.METRICS, request)


@pytest.mark.parametrize("encoding", ["proto", "json"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "snappy"])
async def test_our_own_receiver_gets_what_was_sent(encoding: str, compression: str) -> None:
    sink = Sink()
    receiver_settings = OtlpReceiverSettings.model_validate({"protocols": {"http": {"endpoint": "127.0.0.1:0"}}})
    receiver = OtlpReceiver(receiver_settings, context("otlp", Kind.RECEIVER))
    receiver.outputs = dict.fromkeys(Signal, sink)
    sent = [logs("a", "b", k8s_pod_name="p"), points(), spans()]
    async with receiver:
        assert receiver.http is not None
        async with exporting(f"http://127.0.0.1:{receiver.http.port}", encoding=encoding, compression=compression) as (exporter, _):
            for one in sent:
                await exporter.consume(one)
    assert [(got.signal, got.id, got.count, got.message) for got in sink.batches] == [
        (one.signal, one.id, one.count, one.message) for one in sent
    ]


async def test_json_is_json() -> None:
    async with backend() as (url, got), exporting(url, encoding="json") as (exporter, _):
        await exporter.consume(spans())
    assert got[0][1]["Content-Type"] == "application/json"
    span = msgspec.json.decode(got[0][2])["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert span["traceId"] == (b"t" * 16).hex()


def test_an_exporter_without_an_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an endpoint"):
        OtlpHttpExporterSettings.model_validate({})
