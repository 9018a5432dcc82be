"""The fluentforward receiver on loopback, with real sockets and Fluentd's own Python client."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme
from fluent import sender
from pydantic import ValidationError
from support import Sink, context

from lockgate.batch import Batch, Signal
from lockgate.components.receivers.fluentforward import FluentForwardReceiver, FluentForwardSettings
from lockgate.pipeline.contract import Consumer, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Listen, Write


@asynccontextmanager
async def receiving(consumer: Consumer, **more: Any) -> AsyncIterator[FluentForwardReceiver]:
    settings = FluentForwardSettings.model_validate({"endpoint": "127.0.0.1:0", **more})
    receiver = FluentForwardReceiver(settings, context("fluentforward", Kind.RECEIVER))
    receiver.outputs = {Signal.LOGS: consumer}
    async with receiver:
        yield receiver


@asynccontextmanager
async def client(receiver: FluentForwardReceiver, **tls: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port, **tls)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


def chunk(name: str, *bodies: str, **options: Any) -> bytes:
    return bytes(msgpack.packb(["t", [[1, {"log": body}] for body in bodies], {"chunk": name, **options}]))


def compressed(name: str, entries: bytes) -> bytes:
    return bytes(msgpack.packb(["t", gzip.compress(entries), {"chunk": name, "compressed": "gzip"}]))


def refused(receiver: FluentForwardReceiver, reason: str) -> float:
    return receiver.context.metrics.value("lockgate_receiver_refused_requests", reason=reason)


class Gate(Sink):
    """A consumer that takes a batch when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = asyncio.Event(), asyncio.Event()

    async def consume(self, batch: Batch) -> None:
        self.entered.set()
        await self.opened.wait()
        await super().consume(batch)


@pytest.mark.parametrize("nanoseconds", [False, True], ids=["seconds", "event-time"])
async def test_fluentds_python_client_delivers(nanoseconds: bool) -> None:
    sink = Sink()
    async with receiving(sink) as receiver:

        def send() -> None:
            logger = sender.FluentSender("app", host="127.0.0.1", port=receiver.port, nanosecond_precision=nanoseconds)
            for number in range(100):
                assert logger.emit("access", {"message": f"line {number}", "n": number}), logger.last_error
            logger.close()

        await asyncio.to_thread(send)
        await sink.wait_for(100)
        assert receiver.context.metrics.value("otelcol_receiver_accepted_log_records") == 100
    assert sink.bodies() == [f"line {number}" for number in range(100)]
    assert {batch.peer for batch in sink.batches} == {"127.0.0.1"}


async def test_a_chunk_is_acknowledged_only_when_it_is_taken() -> None:
    gate = Gate()
    async with receiving(gate) as receiver, client(receiver) as (reader, writer):
        writer.write(chunk("c1", "one", "two"))
        await gate.entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        gate.opened.set()
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c1"}
    assert gate.bodies() == ["one", "two"]


async def test_what_cannot_be_taken_now_is_not_acknowledged_and_has_the_same_id_when_sent_again() -> None:
    sink = Sink(Retryable("busy"))
    ids: list[str] = []

    class Listening(Sink):
        async def consume(self, batch: Batch) -> None:
            ids.append(batch.id)
            await sink.consume(batch)

    async with receiving(Listening()) as receiver:
        async with client(receiver) as (reader, writer):
            writer.write(chunk("c1", "one"))
            assert await reader.read() == b""
        async with client(receiver) as (reader, writer):
            writer.write(chunk("c1", "one") + chunk("c1", "other"))
            assert [msgpack.unpackb(await reader.readexactly(8)) for _ in range(2)] == [{"ack": "c1"}] * 2
        assert refused(receiver, "unavailable") == 1
    assert len(ids) == 3 and ids[0] == ids[1] != ids[2]


async def test_what_nobody_sends_again_is_tried_again_here_under_one_id() -> None:
    sink = Sink(Retryable("busy"), Retryable("busy", after=0.01))
    async with receiving(sink) as receiver, client(receiver) as (_, writer):
        writer.write(msgpack.packb(["t", 1, {"log": "one"}]))
        await sink.wait_for(1)
        assert sink.calls == 3


async def test_what_is_refused_for_good_is_counted_and_acknowledged() -> None:
    async with receiving(Sink(Permanent("never"))) as receiver, client(receiver) as (reader, writer):
        writer.write(chunk("c", "one"))
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
        assert refused(receiver, "permanent") == 1
        assert receiver.context.metrics.value("otelcol_receiver_refused_log_records") == 1


async def test_nothing_more_is_read_while_nothing_is_taken() -> None:
    gate = Gate()
    async with receiving(gate) as receiver, client(receiver) as (_, writer):
        line = msgpack.packb(["t", 1, {"log": "x" * 10_000}])

        async def flood() -> None:
            for _ in range(6000):
                writer.write(line)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        await gate.entered.wait()
        assert not (await asyncio.wait([flooding], timeout=0.3))[0]
        assert receiver._budget.used < 1 << 20
        gate.opened.set()
        await flooding
        await gate.wait_for(6000)
    assert receiver._budget.used == 0


async def test_compressed_chunks_are_inflated_and_bombs_are_cut() -> None:
    sink = Sink()
    entry = msgpack.packb([1, {"log": "x"}])
    async with receiving(sink, max_decompressed_size="1MiB") as receiver:
        async with client(receiver) as (reader, writer):
            writer.write(compressed("c", entry * 10_000))
            assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
        for bad in (
            compressed("c", b"\0" * (8 << 20)),
            compressed("c", entry)[:-40].replace(b"\x1f\x8b", b"\0\0"),
            compressed("c", b"\xc1"),
        ):
            async with client(receiver) as (reader, writer):
                writer.write(bad)
                writer.write_eof()
                assert await reader.read() == b""
        assert refused(receiver, "malformed") + refused(receiver, "truncated") == 3
        assert receiver._budget.used == 0
    assert sink.count == 10_000


async def test_a_long_chunk_goes_on_in_pieces_and_is_acknowledged_once() -> None:
    sink = Sink()
    async with receiving(sink) as receiver, client(receiver) as (reader, writer):
        writer.write(chunk("c", *["x" * 1000] * 6000))
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
    assert sink.count == 6000 and len({batch.id for batch in sink.batches}) == len(sink.batches) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"\x93\xa1t\x01" + b"\x81\xa1k" * 100_000, "malformed"),
        (b"\x92\xa1t\xc6\xff\xff\xff\xff" + b"x" * 100_000, "malformed"),
        (chunk("c", "one")[:-3], "truncated"),
    ],
    ids=["http", "nested", "endless", "truncated"],
)
async def test_garbage_closes_its_connection_and_no_other(data: bytes, reason: str) -> None:
    sink = Sink()
    async with receiving(sink, max_message_size=65536) as receiver, client(receiver) as (reader, writer):
        async with client(receiver) as (bad_reader, bad_writer):
            bad_writer.write(data)
            bad_writer.write_eof()
            with suppress(ConnectionResetError):
                assert await bad_reader.read() == b""
        assert refused(receiver, reason) == 1
        writer.write(chunk("c", "one"))
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
    assert sink.bodies() == ["one"]


async def test_an_unfinished_message_and_an_idle_connection_have_their_time() -> None:
    async with receiving(Sink(), read_timeout="50ms") as receiver, client(receiver) as (reader, writer):
        writer.write(chunk("c", "one")[:5])
        assert await reader.read() == b""
        assert refused(receiver, "slow") == 1
    async with receiving(Sink(), idle_timeout="50ms") as receiver, client(receiver) as (reader, _):
        assert await reader.read() == b""
        assert refused(receiver, "slow") == 0


async def test_connections_over_the_bound_are_closed() -> None:
    async with receiving(Sink(), max_connections=1) as receiver, client(receiver) as (reader, writer):
        writer.write(chunk("c", "one"))
        await reader.read(100)
        async with client(receiver) as (second, _):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await second.readexactly(1)
        assert refused(receiver, "connections") == 1


async def test_large_messages_wait_for_room_and_all_arrive() -> None:
    sink = Sink()
    async with receiving(sink, max_message_size="1MiB", max_bytes_in_flight="1MiB") as receiver:

        async def send(name: str) -> None:
            async with client(receiver) as (reader, writer):
                writer.write(chunk(name, "x" * 900_000))
                assert msgpack.unpackb(await reader.read(100)) == {"ack": name}

        await asyncio.gather(*(send(f"c{number}") for number in range(6)))
        assert receiver._budget.used == 0
    assert sink.count == 6


async def test_stopping_finishes_what_is_under_way() -> None:
    gate = Gate()
    async with receiving(gate) as receiver, client(receiver) as (reader, writer), client(receiver):
        writer.write(chunk("c", "one"))
        await gate.entered.wait()
        stopping = asyncio.create_task(receiver.__aexit__(None, None, None))
        await asyncio.sleep(0)
        gate.opened.set()
        await stopping
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
        assert await reader.read() == b""


async def test_a_heartbeat_is_echoed() -> None:
    async with receiving(Sink()) as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heart:
            heart.setblocking(False)
            heart.connect(("127.0.0.1", receiver.port))
            heart.send(b"\0more")
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(heart, 10), 10) == b"\0"


async def test_it_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    sink = Sink()
    tls = {"cert_file": str(tmp_path / "cert"), "key_file": str(tmp_path / "key")}
    async with receiving(sink, tls=tls) as receiver, client(receiver, ssl=trust, server_hostname="localhost") as (reader, writer):
        writer.write(chunk("c", "one"))
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
    assert sink.count == 1


async def test_it_listens_on_a_unix_socket_and_removes_it(tmp_path: Path) -> None:
    sink, path = Sink(), tmp_path / "fluent.sock"
    async with receiving(sink, endpoint=f"unix://{path}"):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(chunk("c", "one"))
        assert msgpack.unpackb(await reader.read(100)) == {"ack": "c"}
        writer.close()
    assert sink.count == 1 and not path.exists()


def test_its_needs_are_what_it_opens() -> None:
    needs = list(FluentForwardSettings().needs())
    assert [(need.host, need.port, need.protocol) for need in needs if isinstance(need, Listen)] == [
        ("0.0.0.0", 8006, "tcp"),
        ("0.0.0.0", 8006, "udp"),
    ]
    assert [type(need) for need in FluentForwardSettings(endpoint="/run/x/fluent.sock").needs()] == [Write]


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "nowhere"},
        {"endpoint": "unix://relative"},
        {"endpoint": "/s", "tls": {"cert_file": "a", "key_file": "b"}},
        {"max_bytes_in_flight": "1MiB"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FluentForwardSettings.model_validate(wrong)
