"""The receiver of remote write: what is answered to whom, and what is handed on. What series become is tested in unit/wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import cramjam
import pytest
from support import FakeHost, Sink, context
from support.remote_write import Request, WriteRequest, add_series, expected, labels, points_of

from lockgate.components.receivers.prometheusremotewrite import PrometheusRemoteWriteReceiver, PrometheusRemoteWriteSettings
from lockgate.net.compression import compress
from lockgate.pipeline.contract import Context, Kind, Signal
from lockgate.pipeline.errors import Permanent, Retryable

V1 = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
V2 = {
    "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "2.0.0",
}
WRITTEN = [f"X-Prometheus-Remote-Write-{what}-Written" for what in ("Samples", "Histograms", "Exemplars")]


@asynccontextmanager
async def receiver(*refusals: Exception, **settings: Any) -> AsyncIterator[tuple[str, Sink, aiohttp.ClientSession, Context]]:
    ctx = context("prometheusremotewrite", Kind.RECEIVER, host=FakeHost())
    it = PrometheusRemoteWriteReceiver(PrometheusRemoteWriteSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), ctx)
    sink = Sink(*refusals)
    it.outputs = {Signal.METRICS: sink}
    async with it, aiohttp.ClientSession() as session:
        yield f"http://127.0.0.1:{it.port}/api/v1/write", sink, session, ctx


def request_of(version: int, series: int = 3) -> Any:
    request = WriteRequest() if version == 1 else Request()
    for number in range(series):
        add_series(request, labels(name=f"m{number}", job="j", instance="i", number=str(number)), [(float(number), 1000)])
    return request


def snappy(request: Any) -> bytes:
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def metric(ctx: Context, name: str) -> float:
    return ctx.metrics.value(name)


@pytest.mark.parametrize(("version", "headers"), [(1, V1), (2, V2)])
async def test_a_request_is_handed_on_then_answered_with_204(version: int, headers: dict[str, str]) -> None:
    request = request_of(version)
    async with receiver() as (url, sink, session, _), session.post(url, data=snappy(request), headers=headers) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
        written = [answer.headers.get(name) for name in WRITTEN]
    assert written == (["3", "0", "0"] if version == 2 else [None] * 3)
    (batch,) = sink.batches
    assert points_of(batch.payload) == expected(request)[0]
    assert (batch.count, batch.peer) == (3, "127.0.0.1")


@pytest.mark.parametrize("path", ["/prometheus.metrics", "/prometheus.metrics.kubelet", "/prometheus.metrics.applications.custom"])
async def test_the_paths_of_sumo_logics_collection_are_served(path: str) -> None:
    async with receiver() as (url, sink, session, _):
        async with session.post(url.replace("/api/v1/write", path), data=snappy(request_of(1)), headers=V1) as answer:
            assert answer.status == 204
        assert sink.count == 3


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        pytest.param("/", "POST", V1, 404, id="root"),
        pytest.param("/api/v1/write/x", "POST", V1, 404, id="below"),
        pytest.param("/api/v1/write", "GET", V1, 405, id="get"),
        pytest.param("/api/v1/write", "POST", {**V1, "Content-Type": "application/json"}, 415, id="json"),
        pytest.param("/api/v1/write", "POST", {**V1, "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v3"}, 415, id="3.0"),
        pytest.param("/api/v1/write", "POST", {**V1, "Content-Encoding": "br"}, 415, id="brotli"),
    ],
)
async def test_what_is_no_remote_write_is_refused(path: str, method: str, headers: dict[str, str], status: int) -> None:
    async with receiver() as (url, sink, session, _):
        async with session.request(method, url.replace("/api/v1/write", path), data=snappy(request_of(1)), headers=headers) as answer:
            assert answer.status == status, await answer.text()
        assert sink.calls == 0


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-protobuf;proto=prometheus.WriteRequest",
        'Application/X-Protobuf; Proto="prometheus.WriteRequest"; charset=utf-8',
        None,
    ],
)
async def test_1_0_may_be_said_or_not(content_type: str | None) -> None:
    headers = {"Content-Encoding": "snappy"} | ({"Content-Type": content_type} if content_type else {})
    async with receiver() as (url, sink, session, _):
        skipped = [] if content_type else ["Content-Type"]
        async with session.post(url, data=snappy(request_of(1)), headers=headers, skip_auto_headers=skipped) as answer:
            assert answer.status == 204
        assert sink.count == 3


async def test_vmagents_zstd_is_taken() -> None:
    async with receiver() as (url, sink, session, _):
        body = compress(request_of(1).SerializeToString(), "zstd")
        async with session.post(url, data=body, headers={**V1, "Content-Encoding": "zstd"}) as answer:
            assert answer.status == 204
        assert sink.count == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"\x80\x80\x80\x80\x04" + b"\x00" * 20, 413, id="bomb-by-its-length"),
        pytest.param(b"\xff\xff\xff\xff\xff\xff", 400, id="endless-length"),
        pytest.param(b"\x7f\x0cabcd", 400, id="lie-too-long"),
        pytest.param(b"\x01\x0cabcd", 400, id="lie-too-short"),
        pytest.param(bytes(cramjam.snappy.compress_raw(b"\xff" * 50)), 400, id="no-protobuf"),
        pytest.param(b"not snappy", 400, id="text"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_refused_for_good(body: bytes, status: int) -> None:
    async with receiver(max_request_body_size="1MiB") as (url, sink, session, ctx):
        async with session.post(url, data=body, headers=V1) as answer:
            assert answer.status == status, await answer.text()
        assert sink.calls == 0
        assert metric(ctx, "lockgate_receiver_refused_requests") == 1


async def test_labels_that_would_fill_the_memory_get_413() -> None:
    request = Request()
    add_series(request, [("__name__", "bomb"), *((f"l{number:03}", "x" * 1000) for number in range(200))], [(1.0, 1)] * 100)
    async with receiver(max_request_body_size="1MiB") as (url, sink, session, _):
        async with session.post(url, data=snappy(request), headers=V2) as answer:
            assert answer.status == 413
            assert [answer.headers[name] for name in WRITTEN] == ["0", "0", "0"]
        assert sink.calls == 0


@pytest.mark.parametrize(("version", "headers"), [(1, V1), (2, V2)])
async def test_bad_series_give_400_with_the_reason_and_the_good_ones_are_taken(version: int, headers: dict[str, str]) -> None:
    request = request_of(version)
    add_series(request, [("a", "b")], [(1.0, 1), (2.0, 2)])
    async with receiver() as (url, sink, session, ctx):
        async with session.post(url, data=snappy(request), headers=headers) as answer:
            assert answer.status == 400
            assert "2 of 5 samples are refused, the others are taken; it has no metric name" in await answer.text()
            assert answer.headers.get(WRITTEN[0]) == ("3" if version == 2 else None)
        assert sink.count == 3
        assert metric(ctx, "otelcol_receiver_refused_metric_points") == 2
        assert metric(ctx, "otelcol_receiver_accepted_metric_points") == 3


@pytest.mark.parametrize(
    ("refusal", "status", "retry_after"),
    [
        pytest.param(Retryable("the queue is full", after=7), 503, "7", id="later"),
        pytest.param(Retryable("the queue is full"), 503, "1", id="soon"),
        pytest.param(Permanent("too old"), 400, None, id="never"),
    ],
)
async def test_what_the_pipeline_refuses_is_refused_so(refusal: Exception, status: int, retry_after: str | None) -> None:
    async with receiver(refusal) as (url, sink, session, _):
        async with session.post(url, data=snappy(request_of(2)), headers=V2) as answer:
            assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
            assert [answer.headers[name] for name in WRITTEN] == ["0", "0", "0"]
        assert sink.count == 0
        async with session.post(url, data=snappy(request_of(2)), headers=V2) as answer:
            assert answer.status == 204
        assert sink.count == 3


async def test_a_body_that_comes_too_slowly_is_asked_for_again_for_prometheus_never_retries_408() -> None:
    async with receiver(read_timeout="50ms") as (url, _, _, _):
        host, port = url.split("/")[2].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\nabc")
        async with asyncio.timeout(20):
            assert b" 503 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_without_an_acknowledgement_in_time_the_client_is_asked_to_try_again() -> None:
    class Never(Sink):
        async def consume(self, batch: Any) -> None:
            await asyncio.Event().wait()

    ctx = context("prometheusremotewrite", Kind.RECEIVER, host=FakeHost())
    settings = PrometheusRemoteWriteSettings.model_validate({"endpoint": "127.0.0.1:0", "ack_timeout": "50ms"})
    it = PrometheusRemoteWriteReceiver(settings, ctx)
    it.outputs = {Signal.METRICS: Never()}
    async with it, aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{it.port}/api/v1/write", data=snappy(request_of(1)), headers=V1) as answer:
            assert answer.status == 503
        assert metric(ctx, "otelcol_receiver_refused_metric_points") == 3


async def test_a_request_sent_again_is_the_same_batch_and_another_is_not() -> None:
    async with receiver() as (url, sink, session, _):
        for request in (request_of(1), request_of(1), request_of(1, series=4)):
            async with session.post(url, data=snappy(request), headers=V1) as answer:
                assert answer.status == 204
        first, again, other = (batch.id for batch in sink.batches)
        assert first == again != other


async def test_metadata_alone_is_learned_and_acknowledged() -> None:
    metadata, request = WriteRequest(), WriteRequest()
    metadata.metadata.add(type=1, metric_family_name=b"requests")
    add_series(request, labels(name="requests"), [(1.0, 1)])
    async with receiver() as (url, sink, session, _):
        for each in (metadata, request):
            async with session.post(url, data=snappy(each), headers=V1) as answer:
                assert answer.status == 204
        assert [point[3] for point in points_of(sink.batches[0].payload)] == ["sum"]


async def test_an_exemplar_without_its_sample_is_counted() -> None:
    request = request_of(2)
    add_series(request, labels(name="gone")).exemplars.add(value=1.0, timestamp=1)
    async with receiver() as (url, _, session, ctx):
        async with session.post(url, data=snappy(request), headers=V2) as answer:
            assert (answer.status, answer.headers[WRITTEN[2]]) == (204, "0")
        assert metric(ctx, "lockgate_receiver_dropped_exemplars") == 1
