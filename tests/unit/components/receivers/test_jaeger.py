"""The jaeger receiver on loopback, with real sockets, a real gRPC client and Jaeger's own Python client."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from support import Sink, VirtualClock, context
from support.jaeger import batch, datagram, post_spans, posted, span, tag
from support.process import free_port, until

from lockgate.batch import Batch, Signal
from lockgate.collector.host import ProgramHost
from lockgate.components.receivers.jaeger import JaegerReceiver
from lockgate.components.receivers.jaeger.settings import JaegerReceiverSettings
from lockgate.kit.clock import SystemClock
from lockgate.kit.document import Document
from lockgate.kit.settings import validate
from lockgate.net.listener import Address
from lockgate.pipeline.contract import Consumer, Custody, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Listen

POST_SPANS = "/jaeger.api_v2.CollectorService/PostSpans"
UDP = pytest.mark.parametrize("transport", ["thrift_compact", "thrift_binary"])


@asynccontextmanager
async def receiving(consumer: Consumer, transport: str, clock: Any = None, **more: Any) -> AsyncIterator[JaegerReceiver]:
    ack_timeout = more.pop("ack_timeout", "25s")
    protocols = {transport: {"endpoint": "127.0.0.1:0", **more}}
    settings = JaegerReceiverSettings.model_validate({"protocols": protocols, "ack_timeout": ack_timeout})
    receiver = JaegerReceiver(settings, context("jaeger", Kind.RECEIVER, **({"clock": clock} if clock else {})))
    receiver.outputs = {Signal.TRACES: consumer}
    async with asyncio.timeout(60), receiver:
        yield receiver


def port(receiver: JaegerReceiver) -> int:
    (found,) = (each.port for each in (receiver.grpc, receiver.thrift_http, receiver.thrift_compact, receiver.thrift_binary) if each)
    return found


def send(receiver: JaegerReceiver, *messages: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for message in messages:
            sender.sendto(message, ("127.0.0.1", port(receiver)))


def names(sink: Sink) -> list[str]:
    return [
        each.name
        for received in sink.batches
        for resource in received.message.resource_spans
        for scope in resource.scope_spans
        for each in scope.spans
    ]


def counted(receiver: JaegerReceiver, name: str, **labels: str) -> float:
    return receiver.context.metrics.value(name, **labels)


def dropped(receiver: JaegerReceiver, reason: str) -> float:
    return counted(receiver, "lockgate_receiver_dropped_datagrams", reason=reason)


class Gate(Sink):
    """A consumer that takes batches once it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()

    async def consume(self, received: Batch) -> None:
        await self.opened.wait()
        await super().consume(received)


async def post(receiver: JaegerReceiver, body: bytes, path: str = "/api/traces", method: str = "POST", **headers: str) -> tuple[int, str]:
    usual = {"Content-Type": "application/x-thrift"}
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port(receiver)}{path}"
        async with session.request(
            method, url, data=body, headers=usual | {key.replace("_", "-"): it for key, it in headers.items()}
        ) as answer:
            return answer.status, await answer.text()


async def call(receiver: JaegerReceiver, message: bytes) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port(receiver)}") as channel:
        try:
            assert await channel.unary_unary(POST_SPANS)(message, timeout=20) == b""
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


# HTTP and gRPC: an answer after delivery.


async def test_a_posted_batch_is_answered_when_it_is_delivered() -> None:
    gate = Gate()
    async with receiving(gate, "thrift_http") as receiver:
        answer = asyncio.ensure_future(post(receiver, posted(batch(span("a"), span("b")))))
        done, _ = await asyncio.wait([answer], timeout=0.2)
        assert not done
        gate.opened.set()
        assert await answer == (202, "")
        assert names(gate) == ["a", "b"]
        assert gate.batches[0].peer == "127.0.0.1"
        assert counted(receiver, "otelcol_receiver_accepted_spans", transport="collector_http") == 2


async def test_a_call_is_answered_when_its_spans_are_delivered() -> None:
    gate = Gate()
    async with receiving(gate, "grpc") as receiver:
        answer = asyncio.ensure_future(call(receiver, post_spans(batch(span("a"))).SerializeToString()))
        done, _ = await asyncio.wait([answer], timeout=0.2)
        assert not done
        gate.opened.set()
        assert await answer is grpc.StatusCode.OK
        assert names(gate) == ["a"]
        assert counted(receiver, "otelcol_receiver_accepted_spans", transport="grpc") == 1


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        pytest.param(Retryable("busy"), 503, grpc.StatusCode.UNAVAILABLE, id="retryable"),
        pytest.param(Permanent("never"), 400, grpc.StatusCode.INVALID_ARGUMENT, id="permanent"),
    ],
)
async def test_a_refusal_downstream_travels_to_the_client(refusal: Exception, status: int, code: grpc.StatusCode) -> None:
    async with receiving(Sink(refusal), "thrift_http") as receiver:
        answer, text = await post(receiver, posted(batch(span("a"))))
        assert (answer, text) == (status, f"{refusal}\n")
        assert counted(receiver, "otelcol_receiver_refused_spans", transport="collector_http") == 1
    async with receiving(Sink(refusal), "grpc") as receiver:
        assert await call(receiver, post_spans(batch(span("a"))).SerializeToString()) is code


async def test_who_waits_too_long_is_asked_to_try_again() -> None:
    async with receiving(Gate(), "thrift_http", ack_timeout="50ms") as receiver:
        assert (await post(receiver, posted(batch(span("a")))))[0] == 503
        assert counted(receiver, "otelcol_receiver_refused_spans") == 1
    async with receiving(Gate(), "grpc", ack_timeout="50ms") as receiver:
        assert await call(receiver, post_spans(batch(span("a"))).SerializeToString()) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        pytest.param({"Content_Type": "application/vnd.apache.thrift.binary; a=b"}, 202, "", id="the-other-type"),
        pytest.param({"Content_Type": "application/json"}, 400, "application/json is not accepted", id="another-type"),
        pytest.param({"path": "/v1/traces"}, 404, "served: /api/traces", id="another-path"),
        pytest.param({"path": "/api/traces?format=jaeger.thrift"}, 202, "", id="with-a-query"),
        pytest.param({"method": "PUT"}, 405, "use POST", id="another-method"),
        pytest.param({"body": b"\1\2\3"}, 400, "unknown kind", id="no-thrift"),
        pytest.param({"Content_Encoding": "gzip"}, 400, "Content-Encoding", id="not-what-its-encoding-says"),
    ],
)
async def test_requests_are_answered_as_they_deserve(request_: dict[str, Any], status: int, words: str) -> None:
    async with receiving(Sink(), "thrift_http") as receiver:
        answer, text = await post(receiver, **{"body": posted(batch(span("a"))), **request_})
        assert (answer, words in text) == (status, True), text
        assert counted(receiver, "lockgate_receiver_refused_requests", status=str(status)) == (status != 202)


async def test_a_call_that_is_no_post_spans_request_is_refused_for_good() -> None:
    async with receiving(Sink(), "grpc") as receiver:
        assert await call(receiver, b"\xff") is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_large_batch_passes_on_both() -> None:
    large = batch(*(span(f"{number}", tag("text", "x" * 300)) for number in range(2000)))
    for transport, message in (("thrift_http", posted(large)), ("grpc", post_spans(large).SerializeToString())):
        sink = Sink()
        async with receiving(sink, transport) as receiver:
            await (post if transport == "thrift_http" else call)(receiver, message)
            assert sink.count == 2000


# UDP: custody at once.


@UDP
async def test_datagrams_are_handed_on_together_and_the_sender_is_known(transport: str) -> None:
    sink = Sink()
    async with receiving(sink, transport) as receiver:
        assert receiver.custody is Custody.MEMORY
        send(receiver, *(datagram(batch(span(f"{number}")), transport == "thrift_compact") for number in range(50)))
        await sink.wait_for(50)
        assert names(sink) == [f"{number}" for number in range(50)]
        assert len(sink.batches) < 50
        assert {received.peer for received in sink.batches} == {"127.0.0.1"}
        assert counted(receiver, "otelcol_receiver_accepted_spans", transport=f"udp_{transport}") == 50
        await until(lambda: counted(receiver, "lockgate_receiver_bytes_at_risk") == 0)
        assert counted(receiver, "lockgate_receiver_held_datagrams") == 0


# In a process of its own: it leaves sockets and threads behind.
CLIENT = """
import sys, time
from jaeger_client import Config
agent = {"reporting_host": "127.0.0.1", "reporting_port": int(sys.argv[1])}
config = {"sampler": {"type": "const", "param": 1}, "local_agent": agent, "reporter_flush_interval": 0.05}
tracer = Config(config=config, service_name="shop", validate=True).new_tracer()
with tracer.start_span("outer", tags={"span.kind": "server", "rows": 3}) as outer:
    with tracer.start_span("inner", child_of=outer):
        outer.log_kv({"event": "fetched", "rows": 3})
closed = tracer.close()
while not closed.done():
    time.sleep(0.01)
"""


async def test_jaegers_own_client_is_understood() -> None:
    sink = Sink()
    async with receiving(sink, "thrift_compact") as receiver:
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, str(port(receiver)))
        assert await client.wait() == 0
        await sink.wait_for(2)
    (resource,) = sink.batches[0].message.resource_spans
    attributes = {each.key: each.value for each in resource.resource.attributes}
    assert attributes["service.name"].string_value == "shop"
    assert attributes["opencensus.exporterversion"].string_value.startswith("Jaeger-Python-")
    assert {"host.name", "ip"} <= attributes.keys()
    spans = {each.name: each for received in sink.batches for each in received.message.resource_spans[0].scope_spans[0].spans}
    assert spans["inner"].parent_span_id == spans["outer"].span_id
    assert spans["outer"].kind == spans["outer"].SPAN_KIND_SERVER
    assert [event.name for event in spans["outer"].events] == ["fetched"]


@UDP
async def test_malformed_datagrams_are_counted_and_told_once(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    good = datagram(batch(span("a")), transport == "thrift_compact")
    async with receiving(sink, transport) as receiver:
        send(receiver, b"", good[:-5], good, b"\xff" * 100, good[::-1])
        await until(lambda: dropped(receiver, "malformed") == 4)
        await sink.wait_for(1)
        assert len([record for record in caplog.records if "no call of emitBatch" in record.message]) == 1
        assert counted(receiver, "lockgate_receiver_bytes_at_risk") == 0


async def test_what_does_not_fit_is_dropped_and_counted_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    message = datagram(batch(span("a")), True)
    for settings, reason in (
        ({"queue_size": 2}, "queue_size"),
        ({"max_bytes_in_flight": 2 * len(message)}, "bytes"),
    ):
        gate = Gate()
        async with receiving(gate, "thrift_compact", **settings) as receiver:
            send(receiver, *[message] * 5)
            await until(lambda receiver=receiver, reason=reason: dropped(receiver, reason) == 3)  # type: ignore[misc]
            assert counted(receiver, "lockgate_receiver_held_datagrams") == 2
            assert counted(receiver, "lockgate_receiver_bytes_at_risk") == 2 * len(message)
            gate.opened.set()
            await gate.wait_for(2)
            send(receiver, message)
            await gate.wait_for(3)
    assert "as many datagrams are held as queue_size allows" in caplog.text


async def test_a_datagram_that_is_too_long_is_dropped_and_not_cut() -> None:
    sink = Sink()
    short, long = (datagram(batch(span("x" * size)), True) for size in (1, 500))
    async with receiving(sink, "thrift_compact", max_packet_size=len(short)) as receiver:
        send(receiver, long, short)
        await sink.wait_for(1)
        assert dropped(receiver, "packet_size") == 1
        assert names(sink) == ["x"]


async def test_what_the_kernel_drops_is_counted() -> None:
    sink = Sink()
    async with receiving(sink, "thrift_compact", socket_buffer_size=4096, queue_size=10_000) as receiver:
        send(receiver, *[datagram(batch(span("x" * 1000)), True)] * 200)  # the loop does not run meanwhile
        await until(lambda: sink.count + dropped(receiver, "socket_buffer") == 200)
        assert dropped(receiver, "socket_buffer") > 0


async def test_a_buffer_that_the_kernel_does_not_grant_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(Sink(), "thrift_compact", socket_buffer_size=2**31 - 1):
        assert "raise net.core.rmem_max" in caplog.text


async def test_what_cannot_be_handed_on_now_is_tried_again() -> None:
    sink, clock = Sink(Retryable("busy"), Retryable("busy", 30.0)), VirtualClock()
    async with receiving(sink, "thrift_compact", clock) as receiver:
        send(receiver, datagram(batch(span("a")), True))
        await until(lambda: len(clock.slept) == 1)
        assert "busy" in receiver.context.status.blocked["udp_thrift_compact"][0]
        await clock.advance(1)
        await until(lambda: len(clock.slept) == 2)
        assert clock.slept[1] == 30.0
        await clock.advance(30)
        await sink.wait_for(1)
        await until(lambda: not receiver.context.status.blocked)
        assert dropped(receiver, "refused") == 0


async def test_what_is_refused_for_good_is_counted_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink(Permanent("never"))
    async with receiving(sink, "thrift_compact") as receiver:
        send(receiver, datagram(batch(span("a")), True))
        await until(lambda: dropped(receiver, "refused") == 1)
        assert counted(receiver, "otelcol_receiver_refused_spans", transport="udp_thrift_compact") == 1
        assert "1 spans were refused for good, and are lost: never" in caplog.text
        send(receiver, datagram(batch(span("b")), True))
        await sink.wait_for(1)


async def test_stopping_hands_on_what_is_held_and_what_the_kernel_has() -> None:
    gate = Gate()
    async with receiving(gate, "thrift_compact") as receiver:
        send(receiver, *(datagram(batch(span(f"{number}")), True) for number in range(3)))
        await until(lambda: counted(receiver, "lockgate_receiver_held_datagrams") == 3)
        send(receiver, datagram(batch(span("3")), True))  # not read yet
        asyncio.get_running_loop().call_later(0.05, gate.opened.set)
    assert sorted(names(gate)) == ["0", "1", "2", "3"]
    assert dropped(receiver, "stopped") == 0


async def test_what_is_held_when_stopping_ends_is_counted_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    settings = JaegerReceiverSettings.model_validate({"protocols": {"thrift_compact": {"endpoint": "127.0.0.1:0"}}})
    receiver = JaegerReceiver(settings, context("jaeger", Kind.RECEIVER))
    receiver.outputs = {Signal.TRACES: Gate()}
    await receiver.__aenter__()
    send(receiver, datagram(batch(span("a")), True))
    await until(lambda: counted(receiver, "lockgate_receiver_held_datagrams") == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await receiver.__aexit__(None, None, None)
    assert dropped(receiver, "stopped") == 1
    assert "1 datagrams with spans are lost" in caplog.text


async def test_a_reload_keeps_the_socket_and_what_has_come_meanwhile_and_counts_what_had_no_room() -> None:
    host, number = ProgramHost(SystemClock()), free_port()
    host.keeps = lambda key: isinstance(key, Address)
    settings = JaegerReceiverSettings.model_validate(
        {"protocols": {"thrift_compact": {"endpoint": f"127.0.0.1:{number}", "socket_buffer_size": 8192}}}
    )
    sink = Sink()

    def made() -> JaegerReceiver:
        receiver = JaegerReceiver(settings, context("jaeger", Kind.RECEIVER, host=host))
        receiver.outputs = {Signal.TRACES: sink}
        return receiver

    async with asyncio.timeout(60):
        async with made() as receiver:
            send(receiver, datagram(batch(span("before")), True))
            await sink.wait_for(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram(batch(span("between")), True), ("127.0.0.1", number))
            for _ in range(500):
                sender.sendto(datagram(batch(span("x" * 3000)), True), ("127.0.0.1", number))
        async with made() as receiver:
            await until(lambda: sink.count + dropped(receiver, "socket_buffer") == 502)
            assert dropped(receiver, "socket_buffer") > 0
        await host.end_unused()
    host.close()
    assert names(sink)[:2] == ["before", "between"]


# Settings.


def problems(document: dict[str, Any]) -> str:
    _, found = validate(JaegerReceiverSettings, Document(document), ())
    return "\n".join(map(str, found))


def test_a_protocol_that_is_named_alone_has_its_defaults() -> None:
    settings, found = validate(
        JaegerReceiverSettings, Document({"protocols": dict.fromkeys(["grpc", "thrift_http", "thrift_compact"])}), ()
    )
    assert settings is not None, found
    needs = {(need.host, need.port, need.protocol) for need in settings.needs() if isinstance(need, Listen)}
    assert needs == {("localhost", 14250, "tcp"), ("localhost", 14268, "tcp"), ("localhost", 6831, "udp")}
    assert settings.protocols.thrift_binary is None


def test_the_binary_port_is_6832() -> None:
    settings = JaegerReceiverSettings.model_validate({"protocols": {"thrift_binary": {}}})
    assert [(need.port, need.protocol) for need in settings.needs() if isinstance(need, Listen)] == [(6832, "udp")]


def test_what_cannot_be_honoured_is_said() -> None:
    assert "grpc or thrift_http or thrift_compact or thrift_binary" in problems({"protocols": {}})
    assert "jaegerremotesampling" in problems({"protocols": {"grpc": None}, "remote_sampling": {"host_endpoint": "0.0.0.0:5778"}})
    assert "thrift_compact" in problems({"protocols": {"thrift_compct": None}})
    settings = JaegerReceiverSettings.model_validate({"protocols": {"thrift_compact": {"workers": 5}}})
    warned = "\n".join(settings.warnings())
    assert "workers has no effect" in warned
    assert "by UDP are not told" in warned
    assert list(JaegerReceiverSettings.model_validate({"protocols": {"grpc": None}}).warnings()) == []
