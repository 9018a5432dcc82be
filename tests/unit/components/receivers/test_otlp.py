"""The otlp receiver over HTTP: real requests on loopback, the OpenTelemetry SDK's exporters among them."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from backports import zstd
from google.rpc.status_pb2 import Status
from support import FakeHost, Sink, context, logs

from lockgate.batch import Batch, Signal
from lockgate.components.extensions.bearertokenauth import BearerTokenAuthExtension, BearerTokenAuthSettings
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.pipeline.contract import Consumer, Context, Host, Kind
from lockgate.pipeline.errors import Permanent, Retryable

PROTOBUF = {"Content-Type": "application/x-protobuf"}


@asynccontextmanager
async def receiving(
    consumer: Consumer,
    http: dict[str, Any] | None = None,
    *,
    signals: frozenset[Signal] = frozenset(Signal),
    host: Host | None = None,
    **more: Any,
) -> AsyncIterator[tuple[str, Context]]:
    """A receiver on loopback before this consumer; gives its URL and its context."""
    settings = OtlpReceiverSettings.model_validate({"protocols": {"http": {"endpoint": "127.0.0.1:0", **(http or {})}}, **more})
    of = context("otlp", Kind.RECEIVER, host=host)
    receiver = OtlpReceiver(settings, of)
    receiver.outputs = dict.fromkeys(signals, consumer)
    async with receiver:
        assert receiver.http is not None
        yield f"http://127.0.0.1:{receiver.http.port}", of


async def post(url: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    headers = PROTOBUF | (headers or {})
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.read(), {name.lower(): value for name, value in answer.headers.items()}


def reason(body: bytes) -> str:
    return str(Status.FromString(body).message)


class Gate:
    """A consumer that takes a batch when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.batches: list[Batch] = []
        self.cancelled = 0

    async def consume(self, batch: Batch) -> None:
        self.entered.release()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.batches.append(batch)


async def test_the_sdks_exporters_deliver_all_three_signals() -> None:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    def send(url: str) -> None:
        tracing = TracerProvider()
        tracing.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
        with tracing.get_tracer("test").start_as_current_span("a span"):
            pass
        tracing.shutdown()
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics"), export_interval_millis=600_000)
        metering = MeterProvider([reader])
        metering.get_meter("test").create_counter("a_counter").add(7)
        metering.shutdown()
        logging = LoggerProvider()
        logging.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs")))
        logging.get_logger("test").emit(body="a line", timestamp=1)
        logging.shutdown()

    sink = Sink()
    async with receiving(sink) as (url, of):
        await asyncio.to_thread(send, url)
        assert of.metrics.value("otelcol_receiver_accepted_spans", receiver="otlp", transport="http") == 1
        assert of.metrics.value("otelcol_receiver_accepted_metric_points") == 1
    by_signal = {batch.signal: batch for batch in sink.batches}
    assert by_signal[Signal.TRACES].message.resource_spans[0].scope_spans[0].spans[0].name == "a span"
    assert by_signal[Signal.METRICS].message.resource_metrics[0].scope_metrics[0].metrics[0].name == "a_counter"
    assert by_signal[Signal.LOGS].message.resource_logs[0].scope_logs[0].log_records[0].body.string_value == "a line"
    assert {batch.peer for batch in sink.batches} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("encoding", "encode"), [("identity", bytes), ("gzip", gzip.compress), ("zstd", zstd.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("lines", [pytest.param(3, id="inline"), pytest.param(5000, id="in-a-thread")])
async def test_bodies_are_taken_however_they_are_encoded(encoding: str, encode: Callable[[bytes], bytes], lines: int) -> None:
    sent = logs(*(f"line {number}" for number in range(lines)))
    sink = Sink()
    async with receiving(sink) as (url, _):
        status, answer, _ = await post(f"{url}/v1/logs", encode(sent.payload), {"Content-Encoding": encoding})
    assert (status, answer) == (200, b"")
    assert sink.batches[0].payload == sent.payload
    assert sink.count == lines


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        pytest.param("/v1/logs", b"\xff\xff", {}, 400, "", id="not-protobuf"),
        pytest.param("/v1/logs", b"no gzip", {"Content-Encoding": "gzip"}, 400, "Content-Encoding", id="not-gzip"),
        pytest.param("/v1/logs", gzip.compress(b"x" * 99)[:-9], {"Content-Encoding": "gzip"}, 400, "ends early", id="gzip-cut"),
        pytest.param("/v1/logs", b"", {"Content-Encoding": "br"}, 415, "accepted: ", id="unknown-encoding"),
        pytest.param("/v1/logs", b"", {"Content-Type": "text/plain"}, 415, "application/json", id="wrong-content-type"),
        pytest.param("/v1/nothing", b"", {}, 404, "/v1/logs", id="unknown-path"),
        pytest.param("/v1/logs", b"x" * 2001, {}, 413, "at most 2000", id="too-large"),
        pytest.param("/v1/logs", gzip.compress(b"\0" * 9000), {"Content-Encoding": "gzip"}, 413, "inflates to more", id="bomb"),
        pytest.param("/v1/logs", zstd.compress(b"\0" * 9000), {"Content-Encoding": "zstd"}, 413, "inflates to more", id="zstd-bomb"),
    ],
)
async def test_bad_requests_are_refused_with_the_reason(path: str, body: bytes, headers: dict[str, str], status: int, said: str) -> None:
    sink = Sink()
    async with receiving(sink, {"max_request_body_size": 2000}) as (url, of):
        answered, text, _ = await post(url + path, body, headers)
        assert (answered, sink.calls) == (status, 0)
        assert said in reason(text)
        assert of.metrics.value("lockgate_receiver_refused_requests", status=str(status)) == 1


async def test_a_request_without_credentials_is_refused_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    guard = BearerTokenAuthExtension(
        BearerTokenAuthSettings.model_validate({"token": "secret"}), context("bearertokenauth", Kind.EXTENSION)
    )
    sink, host = Sink(), FakeHost({"bearertokenauth": guard})
    async with receiving(sink, {"auth": {"authenticator": "bearertokenauth"}}, host=host) as (url, of):
        assert (await post(url + "/v1/logs", logs("a").payload))[0] == 401
        assert of.metrics.value("lockgate_receiver_refused_requests", status="401") == 1
        assert "401: not authenticated: no Authorization header" in caplog.text
        assert (await post(url + "/v1/logs", logs("a").payload, {"Authorization": "Bearer secret"}))[0] == 200
    assert sink.bodies() == ["a"]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="tls"),
        pytest.param(b"POST /v1/logs HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", id="two-lengths"),
        pytest.param(b"POST /v1/logs HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", id="endless-head"),
    ],
)
async def test_what_is_not_http_is_refused_and_counted(head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(Sink()) as (url, of):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(head)
        answer = await reader.read()
        writer.close()
        assert b" 400 " in answer and b"Server: lockgate" in answer
        assert of.metrics.value("lockgate_receiver_refused_requests", status="400") == 1
        assert "with 400: not HTTP as it should be: " in caplog.text


async def test_json_is_taken_and_answered_with_json() -> None:
    body = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1","body":{"stringValue":"hello"}}]}]}]}'
    sink = Sink(Retryable("later"))
    async with receiving(sink) as (url, _):
        json = {"Content-Type": "application/json; charset=utf-8"}
        assert (await post(f"{url}/v1/logs", body, json))[:2] == (503, b'{"code":14,"message":"later"}')
        status, answer, headers = await post(f"{url}/v1/logs", body, json)
        assert (status, answer, headers["content-type"].split(";")[0]) == (200, b"{}", "application/json")
        assert (await post(f"{url}/v1/logs", b'{"resourceLogs":3}', json))[0] == 400
        assert (await post(f"{url}/v1/logs", b"\xff{", json))[0] == 400
    assert sink.bodies() == ["hello"]


async def test_a_get_is_answered_with_what_is_allowed() -> None:
    async with receiving(Sink()) as (url, _), aiohttp.ClientSession() as session, session.get(f"{url}/v1/logs") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_a_signal_that_no_pipeline_takes_is_not_found() -> None:
    async with receiving(Sink(), signals=frozenset({Signal.LOGS})) as (url, _):
        status, text, _ = await post(f"{url}/v1/traces", b"")
    assert (status, "no pipeline takes traces" in reason(text)) == (404, True)


async def test_a_permanent_refusal_is_400_and_a_retryable_one_503_with_its_delay() -> None:
    async with receiving(Sink(Permanent("not wanted"), Retryable("not now", 7))) as (url, of):
        status, text, _ = await post(f"{url}/v1/logs", logs("a").payload)
        assert (status, reason(text)) == (400, "not wanted")
        status, text, headers = await post(f"{url}/v1/logs", logs("a").payload)
        assert (status, reason(text), headers["retry-after"]) == (503, "not now", "7")
        assert of.metrics.value("otelcol_receiver_refused_log_records") == 2


async def test_a_fault_of_our_own_is_503_so_that_nothing_is_dropped() -> None:
    async with receiving(Sink(ZeroDivisionError())) as (url, _):
        status, _, headers = await post(f"{url}/v1/logs", logs("a").payload)
    assert (status, "retry-after" in headers) == (503, True)


async def test_the_answer_comes_after_the_consumer_has_taken_the_batch() -> None:
    gate = Gate()
    async with receiving(gate) as (url, _):
        asked = asyncio.create_task(post(f"{url}/v1/logs", logs("a").payload))
        await gate.entered.acquire()
        assert not asked.done()
        gate.opened.set()
        assert (await asked)[0] == 200


async def test_an_id_sent_again_while_it_is_under_way_runs_once_and_equal_bytes_without_one_run_twice() -> None:
    gate, id = Gate(), {"X-Lockgate-Batch-Id": "abc-1"}
    async with receiving(gate) as (url, _):
        first = asyncio.create_task(post(f"{url}/v1/logs", logs("a").payload, id))
        await gate.entered.acquire()
        second = asyncio.create_task(post(f"{url}/v1/logs", logs("a").payload, id))
        others = [asyncio.create_task(post(f"{url}/v1/logs", logs("b").payload)) for _ in range(2)]
        await gate.entered.acquire()
        await gate.entered.acquire()
        gate.opened.set()
        assert [answer[0] for answer in await asyncio.gather(first, second, *others)] == [200] * 4
    assert len(gate.batches) == 3


async def test_a_batch_id_survives_the_hop_and_a_strange_one_does_not() -> None:
    sink = Sink()
    async with receiving(sink) as (url, _):
        await post(f"{url}/v1/logs", logs("a").payload, {"X-Lockgate-Batch-Id": "abc-1"})
        await post(f"{url}/v1/logs", logs("a").payload, {"X-Lockgate-Batch-Id": "a b <c>"})
        await post(f"{url}/v1/logs", logs("a").payload)
    ids = [batch.id for batch in sink.batches]
    assert ids[0] == "abc-1"
    assert len(set(ids)) == 3
    assert "a b <c>" not in ids


async def test_a_client_is_told_to_try_again_after_the_ack_timeout_and_the_batch_is_given_up() -> None:
    gate = Gate()
    async with receiving(gate, ack_timeout="50ms") as (url, of):
        status, text, _ = await post(f"{url}/v1/logs", logs("a").payload)
        assert (status, "not acknowledged within" in reason(text)) == (503, True)
        assert gate.cancelled == 1
        assert of.metrics.value("otelcol_receiver_refused_log_records") == 1


async def test_paths_can_be_set() -> None:
    sink = Sink()
    async with receiving(sink, {"logs_url_path": "receiver/v1/logs"}) as (url, _):
        assert (await post(f"{url}/receiver/v1/logs", logs("a").payload))[0] == 200
        assert (await post(f"{url}/v1/logs", logs("a").payload))[0] == 404


async def test_an_empty_request_is_acknowledged_and_goes_no_further() -> None:
    sink = Sink()
    async with receiving(sink) as (url, _):
        assert (await post(f"{url}/v1/logs", b""))[0] == 200
    assert sink.calls == 0


def test_a_protocol_named_alone_is_served_with_its_defaults() -> None:
    settings = OtlpReceiverSettings.model_validate({"protocols": {"http": None}})
    assert settings.protocols.http is not None
    assert settings.protocols.http.endpoint == "localhost:4318"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        pytest.param({"protocols": {}}, "names no protocol", id="no-protocol"),
        pytest.param({"protocols": {"http": {"endpoint": "nowhere"}}}, "is no host:port", id="no-port"),
        pytest.param({"protocols": {"http": {"logs_url_path": "/v1/traces"}}}, "the same path", id="same-path"),
        pytest.param({"protocols": {"http": {"max_bytes_in_flight": 1}}}, "could never be read", id="budget-too-small"),
        pytest.param({"protocols": {"http": {"compression_algorithms": ["lz4"]}}}, "cannot be decoded", id="unknown-algorithm"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OtlpReceiverSettings.model_validate(settings)


async def test_json_that_would_take_too_much_memory_is_refused_before_it_is_decoded() -> None:
    sink, json = Sink(), {"Content-Type": "application/json"}
    many = b'{"resourceLogs":[' + b"{}," * 20_000 + b"{}]}"
    few = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"x"}}]}]}]}'
    async with receiving(sink, {"max_request_body_size": "100KiB", "max_bytes_in_flight": "1MiB"}) as (url, of):
        status, body, _ = await post(f"{url}/v1/logs", many, json)
        assert (status, b"max_bytes_in_flight" in body) == (413, True)
        assert of.metrics.value("lockgate_receiver_refused_requests", status="413") == 1
        assert (await post(f"{url}/v1/logs", few, json))[0] == 200
    assert sink.bodies() == ["x"]
