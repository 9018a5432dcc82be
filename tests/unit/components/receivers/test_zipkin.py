"""The zipkin receiver: who is served, how and with which answer; and with real clients. What becomes of spans is tested in wire."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from backports import zstd
from opentelemetry.exporter.zipkin.encoder import Protocol
from opentelemetry.exporter.zipkin.json import ZipkinExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from support import FakeHost, Sink, context
from support.zipkin import MICRO, body, full, protobuf, spans, thrift, v1, v2

from lockgate.batch import Batch, Signal
from lockgate.components.receivers.zipkin import ZipkinReceiver, ZipkinSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Listen

JSON, PROTOBUF, THRIFT = ({"Content-Type": f"application/{name}"} for name in ("json", "x-protobuf", "x-thrift"))


@asynccontextmanager
async def receiver(sink: Any = None, **settings: Any) -> AsyncIterator[tuple[str, Any, aiohttp.ClientSession]]:
    it = ZipkinReceiver(
        ZipkinSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), context("zipkin", Kind.RECEIVER, host=FakeHost())
    )
    sink = sink or Sink()
    it.outputs = {Signal.TRACES: sink}
    async with it, aiohttp.ClientSession() as session:
        yield f"http://127.0.0.1:{it.port}", sink, session


def received(sink: Sink) -> list[dict[str, Any]]:
    return [span for batch in sink.batches for span in spans(batch.message)]


@pytest.mark.parametrize(
    ("path", "headers", "sent", "status"),
    [
        pytest.param("/api/v2/spans", JSON, body(v2()), 202, id="v2-json"),
        pytest.param("/api/v2/spans", {"Content-Type": "application/json; charset=utf-8"}, body(v2()), 202, id="charset"),
        pytest.param("/api/v2/spans", {"Content-Type": "text/plain"}, body(v2()), 202, id="v2-text"),
        pytest.param("/api/v2/spans", {}, body(v2()), 202, id="v2-nameless"),
        pytest.param("//api/v2/spans/", JSON, body(v2()), 202, id="slashes"),
        pytest.param("/api/v2/spans", PROTOBUF, protobuf(v2()), 202, id="v2-protobuf"),
        pytest.param("/api/v1/spans", JSON, body(v1()), 202, id="v1-json"),
        pytest.param("/api/v1/spans", THRIFT, thrift(v1()), 202, id="v1-thrift"),
        pytest.param("/api/v2/spans", {**JSON, "Content-Encoding": "gzip"}, gzip.compress(body(v2())), 202, id="gzip"),
        pytest.param("/api/v2/spans", {**JSON, "Content-Encoding": "zstd"}, zstd.compress(body(v2())), 202, id="zstd"),
        pytest.param("/api/v2/spans", {**JSON, "Content-Encoding": "gzip"}, body(v2()), 400, id="no-gzip"),
        pytest.param("/api/v2/spans", {**JSON, "Content-Encoding": "br"}, body(v2()), 415, id="unknown-encoding"),
        pytest.param("/api/v2/spans", THRIFT, thrift(v1()), 415, id="thrift-at-v2"),
        pytest.param("/api/v1/spans", PROTOBUF, protobuf(v2()), 415, id="protobuf-at-v1"),
        pytest.param("/api/v2/spans", JSON, body(v2(id="x")), 400, id="bad-span"),
        pytest.param("/api/v3/spans", JSON, b"[]", 404, id="elsewhere"),
        pytest.param("/api/v2/traces", JSON, b"[]", 404, id="a-query"),
    ],
)
async def test_each_path_takes_what_it_is_for(path: str, headers: dict[str, str], sent: bytes, status: int) -> None:
    async with receiver() as (url, sink, session):
        async with session.post(url + path, data=sent, headers=headers) as answer:
            assert answer.status == status, await answer.text()
        assert len(received(sink)) == (status == 202)


async def test_get_is_not_served_and_post_is_named() -> None:
    async with receiver() as (url, _, session), session.get(url + "/api/v2/spans") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_a_refusal_says_which_span_and_why() -> None:
    async with receiver() as (url, sink, session):
        async with session.post(url + "/api/v2/spans", data=body(v2(), v2(parentId="?")), headers=JSON) as answer:
            assert (answer.status, await answer.text()) == (400, "span 1: parentId is not 1 to 16 hex digits: '?'\n")
        assert sink.count == 0


async def test_no_spans_are_taken_and_nothing_is_handed_on() -> None:
    async with receiver() as (url, sink, session):
        async with session.post(url + "/api/v2/spans", data=b"[]", headers=JSON) as answer:
            assert answer.status == 202
        assert sink.batches == []


async def test_tags_are_parsed_where_that_is_asked_for() -> None:
    for parse, value in (False, "7"), (True, 7):
        async with receiver(parse_string_tags=parse) as (url, sink, session):
            v1_span = v1(binaryAnnotations=[{"key": "a", "value": "7"}])
            for path, sent in ("/api/v2/spans", body(v2(tags={"a": "7"}))), ("/api/v1/spans", body(v1_span)):
                async with session.post(url + path, data=sent, headers=JSON) as answer:
                    assert answer.status == 202
        assert [span["attributes"]["a"] for span in received(sink)] == [value, value]


async def test_an_oversized_body_gets_413_compressed_or_not() -> None:
    async with receiver(max_request_body_size=1000, max_decompressed_size=2000) as (url, sink, session):
        large = body(v2(name="x" * 3000))
        for sent, headers in (large, JSON), (gzip.compress(large), {**JSON, "Content-Encoding": "gzip"}):
            async with session.post(url + "/api/v2/spans", data=sent, headers=headers) as answer:
                assert answer.status == 413
        assert sink.count == 0


async def test_a_body_that_takes_too_much_memory_to_decode_gets_413() -> None:
    async with receiver(max_bytes_in_flight="1MiB", max_request_body_size="1MiB") as (url, _, session):
        for path, headers, sent in (
            ("/api/v2/spans", JSON, b"[" + b"{}," * 100_000 + b"{}]"),
            ("/api/v2/spans", PROTOBUF, b"\x0a\x81\x80\x10" + b"\x52\x00" * 130_000),
            ("/api/v1/spans", THRIFT, bytes(200_000)),
        ):
            async with session.post(url + path, data=sent, headers=headers) as answer:
                assert (answer.status, "decoding" in await answer.text()) == (413, True)


class Refusing(Sink):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def consume(self, batch: Batch) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        pytest.param(Retryable("the queue is full", 7), 503, "7", id="not-now"),
        pytest.param(Retryable("the queue is full"), 503, "1", id="not-now-without-a-time"),
        pytest.param(Permanent("never"), 400, None, id="never"),
    ],
)
async def test_a_refusal_of_the_pipeline_is_the_clients_answer(error: Exception, status: int, retry_after: str | None) -> None:
    async with receiver(Refusing(error)) as (url, _, session), session.post(url + "/api/v2/spans", data=body(v2()), headers=JSON) as answer:
        assert (answer.status, answer.headers.get("Retry-After"), await answer.text()) == (status, retry_after, f"{error}\n")


async def test_the_answer_waits_for_the_acknowledgement_and_not_for_ever() -> None:
    class Slow(Sink):
        def __init__(self) -> None:
            super().__init__()
            self.free = asyncio.Event()

        async def consume(self, batch: Batch) -> None:
            await self.free.wait()
            await super().consume(batch)

    async with receiver(Slow(), ack_timeout="200ms") as (url, sink, session):
        async with session.post(url + "/api/v2/spans", data=body(v2()), headers=JSON) as answer:
            assert answer.status == 503 and "not acknowledged" in await answer.text()
        sink.free.set()
        async with session.post(url + "/api/v2/spans", data=body(v2()), headers=JSON) as answer:
            assert answer.status == 202
        assert sink.count == 1


async def test_spans_are_counted_by_the_collectors_names_of_transports() -> None:
    it = context("zipkin", Kind.RECEIVER, host=FakeHost())
    zipkin = ZipkinReceiver(ZipkinSettings(endpoint="127.0.0.1:0"), it)
    zipkin.outputs = {Signal.TRACES: Sink()}
    async with zipkin, aiohttp.ClientSession() as session:
        for path, headers, sent in (
            ("/api/v2/spans", JSON, body(v2(), v2())),
            ("/api/v2/spans", PROTOBUF, protobuf(v2())),
            ("/api/v1/spans", JSON, body(v1())),
            ("/api/v1/spans", THRIFT, thrift(v1())),
        ):
            async with session.post(f"http://127.0.0.1:{zipkin.port}{path}", data=sent, headers=headers) as answer:
                assert answer.status == 202
    counted = {
        transport: it.metrics.value("otelcol_receiver_accepted_spans", receiver="zipkin", transport=transport)
        for transport in ("http_v2_json", "http_v2_proto", "http_v1_json", "http_v1_thrift")
    }
    assert list(counted.values()) == [2, 1, 1, 1]


async def test_a_thousand_spans_are_read_beside_the_loop() -> None:
    async with receiver() as (url, sink, session):
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        async with session.post(url + "/api/v2/spans", data=body(*[full()] * 1000), headers=JSON) as answer:
            assert answer.status == 202
        turning.cancel()
        assert sink.count == 1000 and turns > 10


def test_it_needs_its_port_and_says_what_for() -> None:
    assert Listen("localhost", 9411, "Zipkin spans over HTTP") in list(ZipkinSettings().needs())


@pytest.mark.parametrize("protocol", [Protocol.V2, Protocol.V1])
async def test_opentelemetrys_own_exporter_is_understood(protocol: Protocol) -> None:
    async with receiver() as (url, sink, _):
        exporter = ZipkinExporter(
            endpoint=f"{url}/api/{protocol.value}/spans", version=protocol, local_node_ipv4="10.0.0.1", max_tag_value_length=128
        )
        provider = TracerProvider(resource=Resource({"service.name": "shop", "k8s.pod.name": "shop-0"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        def trace() -> None:
            tracer = provider.get_tracer("lib", "1.2")
            with tracer.start_as_current_span("parent", kind=SpanKind.SERVER, start_time=MICRO * 1000) as span:
                span.set_attribute("http.method", "GET")
                span.add_event("retry", timestamp=(MICRO + 1) * 1000)
                span.set_status(StatusCode.ERROR, "no route")
                tracer.start_span("child", kind=SpanKind.CLIENT).end()
            provider.shutdown()

        await asyncio.to_thread(trace)
    child, parent = sorted(received(sink), key=lambda span: span["name"])
    kinds = (3, 2) if protocol is Protocol.V2 else (0, 0)  # it writes no annotations that would say it in v1
    assert (child["name"], parent["name"], child["kind"], parent["kind"]) == ("child", "parent", *kinds)
    assert child["ids"] == (parent["ids"][0], child["ids"][1], parent["ids"][1])
    assert parent["resource"]["service.name"] == "shop" and parent["times"][0] == MICRO * 1000
    assert parent["attributes"]["http.method"] == "GET" and parent["status"][0] == 2
    assert [time for time, *_ in parent["events"]] == [(MICRO + 1) * 1000]


def test_its_settings_are_the_collectors() -> None:
    settings = ZipkinSettings.model_validate({"endpoint": "0.0.0.0:1", "parse_string_tags": True, "cors": {"allowed_origins": ["*"]}})
    assert (settings.parse_string_tags, settings.cors.allowed_origins) == (True, ("*",))
    assert (ZipkinSettings().endpoint, ZipkinSettings().parse_string_tags) == ("localhost:9411", False)
