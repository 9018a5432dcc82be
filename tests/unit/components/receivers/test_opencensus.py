"""The opencensus receiver on loopback, with grpcio's client and with OpenCensus' own for Python."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from pydantic import ValidationError
from support import Sink, VirtualClock, context, resource_attributes
from support.opencensus import FULL_SPAN, METRICS, NODE, RESOURCE, metrics, span, traces

from lockgate.batch import Batch, Signal
from lockgate.components.receivers.opencensus import OpenCensusReceiver
from lockgate.components.receivers.opencensus.receiver import CONFIG
from lockgate.components.receivers.opencensus.receiver import METRICS as METRICS_METHOD
from lockgate.components.receivers.opencensus.receiver import TRACES as TRACES_METHOD
from lockgate.components.receivers.opencensus.settings import OpenCensusReceiverSettings
from lockgate.pipeline.contract import Consumer, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Listen


class Gate(Sink):
    """A consumer that takes a batch when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = asyncio.Event(), asyncio.Event()

    async def consume(self, batch: Batch) -> None:
        self.entered.set()
        await self.opened.wait()
        await super().consume(batch)


def made(consumer: Consumer, *, signals: Any = (Signal.TRACES, Signal.METRICS), clock: Any = None, **more: Any) -> OpenCensusReceiver:
    settings = OpenCensusReceiverSettings.model_validate({"endpoint": "127.0.0.1:0", **more})
    receiver = OpenCensusReceiver(settings, context("opencensus", Kind.RECEIVER, clock=clock))
    receiver.outputs = dict.fromkeys(signals, consumer)
    return receiver


@asynccontextmanager
async def receiving(consumer: Consumer, **more: Any) -> AsyncIterator[OpenCensusReceiver]:
    async with made(consumer, **more) as receiver:
        yield receiver


@asynccontextmanager
async def stream(receiver: OpenCensusReceiver, method: str = TRACES_METHOD) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
        async with asyncio.timeout(30):
            yield channel.stream_stream(method)()


async def status(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


def value(receiver: OpenCensusReceiver, name: str, **labels: str) -> float:
    return receiver.context.metrics.value(name, **labels)


async def test_a_stream_of_traces_and_one_of_metrics_are_delivered_and_end_well() -> None:
    sink = Sink()
    async with receiving(sink) as receiver:
        async with stream(receiver) as call:
            await call.write(traces(FULL_SPAN, node=NODE, resource=RESOURCE))
            await call.write(traces(span(1), span(2)))
            await call.done_writing()
            assert await status(call) == (grpc.StatusCode.OK, "")
        async with stream(receiver, METRICS_METHOD) as call:
            await call.write(metrics(*METRICS, node=NODE))
            await call.done_writing()
            assert [message async for message in call] == []
            assert await status(call) == (grpc.StatusCode.OK, "")
        assert value(receiver, "otelcol_receiver_accepted_spans", transport="grpc") == 3
        assert value(receiver, "otelcol_receiver_accepted_metric_points", transport="grpc") == 12
    assert [(batch.signal, batch.count, batch.peer) for batch in sink.batches] == [
        (Signal.TRACES, 1, "127.0.0.1"),
        (Signal.TRACES, 2, "127.0.0.1"),
        (Signal.METRICS, 12, "127.0.0.1"),
    ]
    first, second = (resource_attributes(batch) for batch in sink.batches[:2])
    assert first == second and first[0]["service.name"] == "shop"
    assert len({batch.id for batch in sink.batches}) == 3


async def test_a_message_is_read_only_when_the_one_before_is_delivered() -> None:
    gate = Gate()
    async with receiving(gate, max_recv_msg_size_mib=1) as receiver, stream(receiver) as call:
        big = traces(*(span(n) for n in range(10_000)), node=NODE)  # more than a stream's window

        async def write() -> None:
            for _ in range(4):
                await call.write(big)
            await call.done_writing()

        writing = asyncio.create_task(write())
        await gate.entered.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert gate.count == 0 and not writing.done()
        gate.opened.set()
        await writing
        assert await status(call) == (grpc.StatusCode.OK, "")
    assert [batch.count for batch in gate.batches] == [10_000] * 4


async def test_what_cannot_be_taken_now_is_tried_again_under_the_same_id() -> None:
    seen: list[str] = []

    class Refusing(Sink):
        async def consume(self, batch: Batch) -> None:
            seen.append(batch.id)
            await super().consume(batch)

    sink = Refusing(Retryable("full"), Retryable("still full"))
    async with receiving(sink) as receiver, stream(receiver) as call:
        await call.write(traces(span(), node=NODE))
        await call.done_writing()
        assert (await status(call))[0] is grpc.StatusCode.OK
        assert receiver.context.status.blocked == {}
    assert sink.count == 1 and sink.calls == 3 and len(set(seen)) == 1


async def test_what_is_not_taken_within_the_bound_is_counted_and_the_stream_goes_on() -> None:
    clock, sink = VirtualClock(), Sink(*[Retryable("full", after=4.0)] * 4)
    async with receiving(sink, clock=clock, retry_timeout="10s") as receiver, stream(receiver) as call:
        await call.write(traces(span(), node=NODE))
        await call.write(traces(span(2), span(3)))
        await call.done_writing()
        async with asyncio.timeout(20):
            while sink.count == 0:
                await asyncio.sleep(0.001)
                if clock._sleepers:
                    assert "the next owner cannot take records now: full" in receiver.context.status.blocked["delivery"][0]
                    await clock.advance(4)
        assert (await status(call))[0] is grpc.StatusCode.OK
        assert value(receiver, "lockgate_receiver_refused_requests", reason="unavailable") == 1
    assert [batch.count for batch in sink.batches] == [2] and clock.now == 12


async def test_what_is_refused_for_good_is_counted_and_the_stream_goes_on() -> None:
    sink = Sink(Permanent("never"))
    async with receiving(sink) as receiver, stream(receiver) as call:
        await call.write(traces(span(), node=NODE))
        await call.write(traces(span(2)))
        await call.done_writing()
        assert (await status(call))[0] is grpc.StatusCode.OK
        assert value(receiver, "otelcol_receiver_refused_spans", transport="grpc") == 1
        assert value(receiver, "lockgate_receiver_refused_requests", reason="permanent") == 1
    assert sink.count == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(b"\x12\x05\x0a", "not an export request for traces: not an OpenCensus request", id="malformed"),
        pytest.param(traces(span()), "protocol violation: Export's first message must have a Node", id="no-node"),
        pytest.param(b"\x0a\x00\x12\x05\x22\x03\x0a\x01\xff", "UTF-8", id="not-utf8"),
    ],
)
async def test_a_malformed_message_ends_its_stream_with_the_reason_and_is_counted(message: bytes, reason: str) -> None:
    sink = Sink()
    async with receiving(sink) as receiver, stream(receiver) as call:
        await call.write(message)
        code, details = await status(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT and reason in details
        assert value(receiver, "lockgate_receiver_refused_requests", status="INVALID_ARGUMENT") == 1
    assert sink.calls == 0


async def test_points_without_a_form_in_otlp_are_counted_as_refused() -> None:
    sink = Sink()
    lost = {"metric_descriptor": {"type": 3}, "timeseries": [{"points": [{"int64_value": 1}] * 5}]}
    async with receiving(sink) as receiver, stream(receiver, METRICS_METHOD) as call:
        await call.write(metrics(METRICS[0], lost, node=NODE))
        await call.done_writing()
        assert (await status(call))[0] is grpc.StatusCode.OK
        assert value(receiver, "otelcol_receiver_refused_metric_points", transport="grpc") == 5
        assert value(receiver, "lockgate_receiver_refused_requests", reason="untranslatable") == 1
    assert sink.count == 2


async def test_a_signal_that_no_pipeline_takes_is_unimplemented_and_so_is_configuring_libraries() -> None:
    async with receiving(Sink(), signals=[Signal.TRACES]) as receiver:
        async with stream(receiver, METRICS_METHOD) as call:
            code, details = await status(call)
            assert code is grpc.StatusCode.UNIMPLEMENTED and "no pipeline takes metrics" in details
        async with stream(receiver, CONFIG) as call:
            assert await status(call) == (grpc.StatusCode.UNKNOWN, "unimplemented")  # the collector's very words


async def test_at_a_stop_the_message_in_hand_is_delivered_and_clients_are_asked_to_connect_again() -> None:
    gate = Gate()
    receiver = made(gate)
    await receiver.__aenter__()
    async with stream(receiver) as busy, stream(receiver) as idle:
        await idle.write(traces(node=NODE))
        await busy.write(traces(span(), node=NODE))
        await gate.entered.wait()
        stopping = asyncio.create_task(receiver.__aexit__(None, None, None))
        assert await status(idle) == (grpc.StatusCode.UNAVAILABLE, "this server stops; connect again")
        assert not stopping.done()
        gate.opened.set()
        assert await status(busy) == (grpc.StatusCode.UNAVAILABLE, "this server stops; connect again")
        await stopping
    assert gate.count == 1


async def test_what_a_client_had_sent_when_it_went_is_delivered() -> None:
    gate = Gate()
    async with receiving(gate) as receiver:
        async with stream(receiver) as call:
            for number in range(3):
                await call.write(traces(span(number), node=NODE))
            await gate.entered.wait()
        # The channel is closed: the call was cancelled, and the connection ends.
        gate.opened.set()
        await gate.wait_for(3)
    assert [batch.count for batch in gate.batches] == [1, 1, 1]


async def test_what_is_not_delivered_when_there_is_no_time_left_is_counted() -> None:
    gate = Gate()
    receiver = made(gate)
    await receiver.__aenter__()
    async with stream(receiver) as call:
        await call.write(traces(span(), span(2), node=NODE))
        await gate.entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receiver.__aexit__(None, None, None), 0.05)
    assert value(receiver, "otelcol_receiver_refused_spans", transport="grpc") == 2
    assert value(receiver, "lockgate_receiver_refused_requests", reason="unfinished") == 1


def test_it_needs_its_port_and_says_what_it_does_not_serve() -> None:
    assert [need for need in OpenCensusReceiverSettings().needs() if isinstance(need, Listen)] == [
        Listen("localhost", 55678, "gRPC clients")
    ]
    with pytest.raises(ValidationError, match="HTTP/JSON is not served here, only gRPC"):
        OpenCensusReceiverSettings(cors_allowed_origins=["https://*.example.com"])


CLIENT = """
import sys
from opencensus.ext.ocagent.stats_exporter import new_stats_exporter
from opencensus.ext.ocagent.trace_exporter import TraceExporter
from opencensus.common.transports.sync import SyncTransport
from opencensus.stats import aggregation, measure, stats, view
from opencensus.tags import tag_key, tag_map, tag_value
from opencensus.trace.samplers import AlwaysOnSampler
from opencensus.trace.tracer import Tracer

endpoint = sys.argv[1]
tracer = Tracer(sampler=AlwaysOnSampler(), exporter=TraceExporter("shop", "h1", endpoint=endpoint, transport=SyncTransport))
with tracer.span("parent"):
    with tracer.span("child") as child:
        child.add_annotation("note")
exporter = new_stats_exporter("shop", "h1", endpoint=endpoint, interval=3600)
size, key = measure.MeasureInt("size", "how big", "By"), tag_key.TagKey("path")
sizes = view.View("sizes", "how big", [key], size, aggregation.DistributionAggregation([10.0, 100.0]))
stats.stats.view_manager.register_view(sizes)
recorder, tags = stats.stats.stats_recorder.new_measurement_map(), tag_map.TagMap()
tags.insert(key, tag_value.TagValue("/a"))
recorder.measure_int_put(size, 42)
recorder.record(tags)
exporter.export_metrics(stats.stats.get_metrics())
rpc = exporter._rpc_handler._rpc
rpc._request_queue.put(None)  # the end of the requests; its own close() would cancel them
try:
    rpc.recv()
except StopIteration:
    pass
"""


async def test_opencensus_own_client_for_python_delivers_spans_and_views() -> None:
    sink = Sink()
    async with receiving(sink) as receiver:
        # Its messages were generated by a compiler that only protobuf's pure Python still reads, and even that not their maps.
        environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", CLIENT, f"127.0.0.1:{receiver.port}", env=environment, stderr=subprocess.PIPE
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors.decode()
        await sink.wait_for(3)
    *by_span, by_view = sink.batches
    spans = {each.name: each for batch in by_span for each in batch.message.resource_spans[0].scope_spans[0].spans}
    assert list(spans) == ["child", "parent"] and spans["child"].parent_span_id == spans["parent"].span_id
    assert [event.name for event in spans["child"].events] == ["note"]
    for batch in sink.batches:
        (attributes,) = resource_attributes(batch)
        assert attributes["service.name"] == "shop" and attributes["host.name"] == "h1"
        assert attributes["process.pid"] == process.pid and attributes["telemetry.sdk.language"] == "python"
    (view,) = by_view.message.resource_metrics[0].scope_metrics[0].metrics
    (point,) = view.histogram.data_points
    assert (view.name, point.count, point.sum, list(point.bucket_counts)) == ("sizes", 1, 42, [0, 1, 0])
    assert [(each.key, each.value.string_value) for each in point.attributes] == [("path", "/a")]
