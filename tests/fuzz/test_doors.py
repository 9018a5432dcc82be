"""What comes in from outside, damaged: a value, or a refusal of the documented kind that is counted. No crash, no hang, bounded memory.

Valid input is changed a little (`support.mutation`), so that it gets past the first check. Always the same examples in `make test`;
HYPOTHESIS_PROFILE=explore looks for new ones, and what it finds stays here as an @example.
"""

import asyncio
import gzip
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import cramjam
import msgpack
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from support import Sink, context
from support.events_contract import event
from support.journal import needs_journal, write
from support.mutation import mutated
from support.otlp import log_batch, metric_request, span_batch
from support.otlp_requests import requests
from support.remote_write import Request, WriteRequest, add_series, labels

from lockgate.batch import Batch, Signal, count_records, message_type
from lockgate.components.processors.attributes import AttributesProcessor
from lockgate.components.processors.filter import FilterProcessor
from lockgate.components.processors.groupbyattrs import GroupByAttrsProcessor
from lockgate.components.processors.k8s_tagger import K8sTaggerProcessor
from lockgate.components.processors.resource import ResourceProcessor
from lockgate.components.processors.source import SourceProcessor
from lockgate.components.processors.sumologic import SumologicProcessor
from lockgate.components.receivers.fluentforward import FluentForwardReceiver, FluentForwardSettings
from lockgate.components.receivers.journald.records import Records
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.components.receivers.prometheusremotewrite import PrometheusRemoteWriteReceiver, PrometheusRemoteWriteSettings
from lockgate.components.receivers.raw_k8s_events.records import last_seen, record, request
from lockgate.net.compression import CorruptBody, TooLarge, compress, decompress
from lockgate.pipeline.contract import Kind, Processor
from lockgate.wire import cri, fluent, otlp_json
from lockgate.wire.protobuf import DecodeError, key_values

assert settings.default is not None
CHEAP = settings(max_examples=3 * settings.default.max_examples)
"""More examples, where one takes a millisecond."""


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Python's own memory grows no further than this inside; what libraries allocate for themselves does not count."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# Container log files.

TIME = b"2026-01-02T03:04:05.000000006Z"
LINES = [
    TIME + b" stdout F whole line\n",
    TIME + b" stdout P first part \n" + TIME + b" stderr F between\n" + TIME + b" stdout F second part\n",
    TIME + b" stderr F:more h\xc3\xa9llo\r\n",
    b'{"log":"docker\\n","stream":"stdout","time":"%s","attrs":{"a":[1,{"b":null}]}}\n' % TIME,
    b'{"log":"part, ","stream":"stderr","time":"%s"}\n{"log":"\\ud83d\\ude00\\n","stream":"stderr","time":"%s"}\n' % (TIME, TIME),
    b"\n",
]
CRI_WORDS = [
    b" stdout ",
    b" stderr ",
    b"P",
    b"F",
    b":",
    b"\n",
    b"\r\n",
    b'{"log":"',
    b'","stream":"',
    b'"time":',
    b"\\ud83d",
    b"\\u0000",
    b"[" * 40,
]
log_files = st.lists(st.sampled_from(LINES), min_size=1, max_size=6).map(b"".join)


@CHEAP
@given(
    mutated(log_files, CRI_WORDS), st.sampled_from([1, 3, 1000]), st.sampled_from([1, 7, 1 << 20]), st.integers(0, 3), st.integers(0, 15)
)
def test_a_container_log_gives_records_whatever_stands_in_it(chunk: bytes, most: int, limit: int, line_format: int, flags: int) -> None:
    attributes = key_values(6, [("log.file.path", "/var/log/pods/x")])
    # Twice its length, because "\u0000" is the worst that a byte becomes; and what each record has beside its body.
    bound = 2 * len(chunk) + (chunk.count(b"\n") + 1) * (len(attributes) + 120) + 200
    parsed = cri.parse(chunk, b"", (attributes,) * 3, 1, most, limit, line_format, flags)
    assert count_records(Signal.LOGS, parsed.payload) == parsed.records
    assert parsed.lines == parsed.records + parsed.joined + parsed.empty
    assert 0 <= parsed.consumed <= len(chunk)
    assert len(parsed.payload) <= bound


# The journal's entries.

FIELDS = [
    b"MESSAGE=hello",
    b"PRIORITY=6",
    b"_SYSTEMD_UNIT=kubelet.service",
    b"MESSAGE=h\xc3\xa9",
    b"COREDUMP=" + bytes(range(256)),
    b"_PID=1",
]


@CHEAP
@given(
    st.lists(mutated(st.sampled_from(FIELDS), [b"=", b"__CURSOR", b"__REALTIME_TIMESTAMP"]), max_size=8),
    st.text(max_size=9),
    st.integers(0, 2**64 - 1),
)
@example([b"", b"=", b"==", b"\xff=\xff"], "", 0)
def test_a_journals_entry_gives_a_record_whatever_its_fields(fields: list[bytes], cursor: str, time: int) -> None:
    made = Records({"a": "b"}, {"r": "s"})
    request = made.request([made.record(fields, cursor, time, time, 1)])
    (record,) = ExportLogsServiceRequest.FromString(request).resource_logs[0].scope_logs[0].log_records
    assert count_records(Signal.LOGS, request) == 1
    assert len(request) < 4 * sum(map(len, fields)) + 20 * len(fields) + 4 * len(cursor) + 250
    names = {field.partition(b"=")[0].decode("ascii", "replace") for field in fields}
    assert {entry.key for entry in record.body.kvlist_value.values} == names | {"__CURSOR", "__MONOTONIC_TIMESTAMP"}


# Events of the Kubernetes API.

EVENT_WORDS = [b"null", b"[" * 40, b'{"a":' * 40, b"1e999", b"18446744073709551616", b"\\ud83d", b'"9999-12-31T23:59:59Z"', b'"0001-01-01"']
events = st.sampled_from(
    [
        json.dumps(event("a", eventTime="2026-01-02T03:04:05.000006Z", series={"count": 2, "lastObservedTime": None})).encode(),
        json.dumps(event("b", type="Warning", metadata={"uid": "u", "managedFields": [{"fieldsV1": {"f:a": {}}}], "n": -1.5})).encode(),
    ]
)


@CHEAP
@given(mutated(events, EVENT_WORDS))
@example(b'{"eventTime":"9999-12-31T23:59:59Z","series":{"lastObservedTime":"9999-12-31T23:59:59Z"}}')
@example(b'{"metadata":[],"series":[],"type":7,"message":{},"eventTime":{}}')
@example(b'{"x":' * 5000 + b"1" + b"}" * 5000)
@example(b"[]")
def test_an_event_gives_a_record_or_a_value_error(raw: bytes) -> None:
    last_seen(raw)
    with suppress(ValueError):
        _, made = record(raw, "ADDED", 1)
        assert count_records(Signal.LOGS, request([made])) == 1
        (read,) = ExportLogsServiceRequest.FromString(request([made])).resource_logs[0].scope_logs[0].log_records
        assert [entry.key for entry in read.attributes] == ["object", "type"]


def test_of_ever_new_fields_a_bounded_number_is_remembered() -> None:
    made = Records({}, {})
    made.record([b"A=0"], "", 0, 0, 0)
    with memory_below(4 << 20):
        for number in range(12_000):
            made.record([b"N%d=%s" % (number, b"x" * 200)], "", 0, 0, 0)


@needs_journal
def test_damaged_journal_files_end_no_process_and_give_no_entry_twice(tmp_path: Path) -> None:
    write(tmp_path / "whole.journal", [{"MESSAGE": f"line {number} " + "x" * (number * 7 % 300), "N": number} for number in range(150)])
    assert settings.default is not None
    seed = "1" if settings.default.derandomize else str(time.time_ns())
    command = [sys.executable, str(Path(__file__).with_name("journal_files.py")), str(tmp_path / "whole.journal"), "60", seed]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, f"seed {seed}: {result.stderr}"
    found, _, there = map(int, result.stdout.split())
    assert there == 150 and there < found


# OTLP, behind its door: what the kernel lets in, every processor takes.

ATTRIBUTES: dict[str, Any] = {
    "k8s.pod.name": "web-0",
    "k8s.namespace.name": "shop",
    "host.name": "h",
    "pod_a": 1,
    "cloud.platform": "aws_ec2",
}
SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    (ResourceProcessor, {"attributes": [{"action": "upsert", "key": "a", "value": "b"}, {"action": "delete", "pattern": "^k8s"}]}),
    (AttributesProcessor, {"actions": [{"action": "hash", "key": "a"}, {"action": "convert", "key": "b", "converted_type": "string"}]}),
    (FilterProcessor, {"logs": {"exclude": {"match_type": "regexp", "record_attributes": [{"key": "a", "value": "^x"}]}}}),
    (
        FilterProcessor,
        {
            "logs": {"include": {"match_type": "regexp", "bodies": ["."]}},
            "metrics": {"exclude": {"match_type": "regexp", "metric_names": ["a"]}},
        },
    ),
    (GroupByAttrsProcessor, {"keys": ["a", "service.name"]}),
    (GroupByAttrsProcessor, {}),
    (SourceProcessor, {}),
    (
        SumologicProcessor,
        {
            "nest_attributes": {"enabled": True, "squash_single_values": True},
            "aggregate_attributes": [{"attribute": "p", "prefixes": ["pod_"]}],
            "translate_docker_metrics": True,
        },
    ),
    (K8sTaggerProcessor, {"passthrough": True}),
]
PROCESSORS: dict[Signal, list[Processor[Any]]] = {
    signal: [made(made.settings_type.model_validate(given), context(signal=signal)) for made, given in SETTINGS] for signal in Signal
}


def metrics_payload() -> bytes:
    request, scope = metric_request(ATTRIBUTES)
    for number in range(2):
        point = scope.metrics.add(name="cpu_usage_idle", unit="1").gauge.data_points.add(as_double=0.5, time_unix_nano=1)
        point.attributes.add(key="a").value.int_value = number
    histogram = scope.metrics.add(name="h").histogram
    histogram.data_points.add(count=3, sum=1.5, bucket_counts=[1, 2], explicit_bounds=[0.5])
    return bytes(request.SerializeToString())


HAND_MADE: dict[Signal, list[bytes]] = {
    Signal.LOGS: [log_batch("body", ({"a": [1, {"b": None}]}, {"a": "x", "n": 7}), resource=ATTRIBUTES).payload],
    Signal.METRICS: [metrics_payload()],
    Signal.TRACES: [span_batch("one", "two", resource=ATTRIBUTES).payload],
}


def valid_requests(signal: Signal) -> st.SearchStrategy[bytes]:
    drawn = requests().filter(lambda pair: pair[0] is signal).map(lambda pair: bytes(pair[1].SerializeToString()))
    return st.sampled_from(HAND_MADE[signal]) | drawn


@given(
    st.sampled_from(list(Signal)).flatmap(lambda signal: st.tuples(st.just(signal), mutated(valid_requests(signal)))),
    st.sampled_from(["", "10.1.2.3", "::1"]),
)
def test_what_the_door_lets_in_every_processor_takes(request_of: tuple[Signal, bytes], peer: str) -> None:
    signal, payload = request_of
    try:
        count = count_records(signal, payload)
    except DecodeError as refusal:
        assert str(refusal).startswith("not an Export")
        return
    message_type(signal).FromString(payload)
    for processor in PROCESSORS[signal]:
        result = processor.process(Batch(signal, payload, count, "id", peer))
        assert count_records(signal, result.payload) == result.count <= count


JSON_WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b'"traceId":"zz",',
    b'"timeUnixNano":-1,',
    b"[" * 200,
    b'{"a":' * 120,
]


def as_json(payload: bytes, signal: Signal) -> bytes:
    return otlp_json.encode(message_type(signal).FromString(payload))


@given(
    st.sampled_from(list(Signal)).flatmap(
        lambda signal: st.tuples(st.just(signal), mutated(valid_requests(signal).map(lambda payload: as_json(payload, signal)), JSON_WORDS))
    )
)
@example((Signal.LOGS, b'{"resourceLogs":[{"resource":{"attributes":[{"key":"\\ud800"}]}}]}'))
@example((Signal.LOGS, b'{"resourceLogs":' + b"[" * 100_000))
@example((Signal.METRICS, b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"asInt":1e400}]}}]}]}]}'))
def test_json_gives_a_request_that_the_kernel_accepts_or_a_decode_error(request_of: tuple[Signal, bytes]) -> None:
    signal, body = request_of
    assert otlp_json.needed_bytes(body) >= 4 * len(body)
    try:
        payload = otlp_json.decode(body, message_type(signal))
    except DecodeError as refusal:
        assert str(refusal)
        return
    count_records(signal, payload)


# Compressed bodies.

BODIES = [b"", b"x", log_batch("body").payload * 20, bytes(5000)]
ENCODINGS = ["gzip", "zstd", "deflate", "snappy"]
packed = st.tuples(st.sampled_from(BODIES), st.sampled_from(ENCODINGS)).map(lambda pair: (compress(*pair), pair[1]))


@CHEAP
@given(
    st.sampled_from(ENCODINGS).flatmap(
        lambda encoding: st.tuples(mutated(st.sampled_from([compress(body, encoding) for body in BODIES])), st.just(encoding))
    ),
    st.sampled_from([0, 1, 100, 5000, 1 << 20]),
)
def test_a_damaged_body_inflates_within_its_limit_or_is_refused(body_of: tuple[bytes, str], limit: int) -> None:
    body, encoding = body_of
    with memory_below(4 * limit + (9 << 20)), suppress(CorruptBody, TooLarge):  # zstd's window
        assert len(decompress(body, encoding, limit)) <= limit


# Fluent Forward.

RECORD = {
    "log": "x",
    "s": "é",
    "n": -5,
    "u": 2**64 - 1,
    "f": 1.5,
    "m": {"k": [1, {"z": b"\xff"}]},
    "nil": None,
    "t": msgpack.Timestamp(1, 2),
}
ENTRIES = msgpack.packb([1, RECORD]) + msgpack.packb([msgpack.ExtType(0, bytes(8)), {"message": "y"}])
MESSAGES: list[bytes] = [
    msgpack.packb(message)
    for message in (
        ["t", 1, RECORD],
        ["t", [[1, RECORD], [2, {}]], {"chunk": "c", "size": 2}],
        ["t", ENTRIES, {"chunk": "c"}],
        ["t", gzip.compress(ENTRIES), {"compressed": "gzip", "chunk": "c"}],
        ["t", [[[1, {"a": 1}], {"log": "x"}]]],
    )
]
MSGPACK_WORDS = [
    b"\x91",
    b"\x81",
    b"\xc0",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\x00\x01\x00\x00",
    b"\xd7\x00",
    b"\x80" * 300,
    b"\x91" * 300,
]
streams = st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=4).map(b"".join)


@CHEAP
@given(mutated(streams, MSGPACK_WORDS), st.integers(1, 300))
def test_a_fluent_stream_gives_valid_records_or_a_decode_error(stream: bytes, step: int) -> None:
    framer = fluent.Framer(4096)
    # A byte may be an empty map, of which a record's attribute is made: some 12 bytes and its share of the pieces.
    with memory_below(60 * len(stream) + (1 << 20)):
        try:
            for at in range(0, len(stream), step):
                for raw in framer.feed(stream[at : at + step]):
                    message = fluent.read_message(raw)
                    if message.compressed:
                        continue
                    for request in fluent.requests([message], 1, 1 << 14):
                        assert count_records(Signal.LOGS, request)
                assert framer.unfinished <= 4096
        except DecodeError as refusal:
            assert str(refusal)


# Whole receivers, on sockets.


class Door:
    """A receiver that runs on a loop of its own, and the consumer behind it."""

    def __init__(self, open: Callable[[Sink], AbstractAsyncContextManager[Any]]) -> None:
        self.sink = Sink()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.receiver = self.run(self._stack.enter_async_context(open(self.sink)))

    def run(self, work: Any) -> Any:
        async def within() -> Any:
            async with asyncio.timeout(20):
                return await work

        return self._runner.run(within())

    @property
    def refused(self) -> float:
        """Requests refused at the door, for whichever reason."""
        return float(self.receiver.context.metrics.value("lockgate_receiver_refused_requests"))

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@asynccontextmanager
async def otlp_receiver(sink: Sink) -> AsyncIterator[OtlpReceiver]:
    settings = {"protocols": {"http": {"endpoint": "127.0.0.1:0", "max_request_body_size": "64KiB", "max_bytes_in_flight": "1MiB"}}}
    receiver = OtlpReceiver(OtlpReceiverSettings.model_validate(settings), context("otlp", Kind.RECEIVER))
    receiver.outputs = dict.fromkeys(Signal, sink)
    async with receiver:
        yield receiver


@asynccontextmanager
async def fluent_receiver(sink: Sink) -> AsyncIterator[FluentForwardReceiver]:
    settings = {"endpoint": "127.0.0.1:0", "max_message_size": "4KiB", "max_bytes_in_flight": "1MiB", "max_decompressed_size": "16KiB"}
    receiver = FluentForwardReceiver(FluentForwardSettings.model_validate(settings), context("fluent", Kind.RECEIVER))
    receiver.outputs = {Signal.LOGS: sink}
    async with receiver:
        yield receiver


@asynccontextmanager
async def remote_write_receiver(sink: Sink) -> AsyncIterator[PrometheusRemoteWriteReceiver]:
    settings = {"endpoint": "127.0.0.1:0", "max_request_body_size": "64KiB", "max_bytes_in_flight": "1MiB"}
    receiver = PrometheusRemoteWriteReceiver(PrometheusRemoteWriteSettings.model_validate(settings), context("prw", Kind.RECEIVER))
    receiver.outputs = {Signal.METRICS: sink}
    async with receiver:
        yield receiver


@pytest.fixture(scope="module")
def remote_write_door() -> Iterator[Door]:
    door = Door(remote_write_receiver)
    yield door
    door.close()


@pytest.fixture(scope="module")
def otlp_door() -> Iterator[Door]:
    door = Door(otlp_receiver)
    yield door
    door.close()


@pytest.fixture(scope="module")
def fluent_door() -> Iterator[Door]:
    door = Door(fluent_receiver)
    yield door
    door.close()


PROTOBUF, JSON = "application/x-protobuf", "application/json"


async def posted(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}{path}", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.read()


bodies = st.sampled_from(list(Signal)).flatmap(
    lambda signal: st.tuples(
        st.just(signal),
        mutated(valid_requests(signal)) | mutated(valid_requests(signal).map(lambda payload: as_json(payload, signal)), JSON_WORDS),
    )
)


@given(bodies, st.sampled_from([PROTOBUF, JSON, "text/plain"]), st.sampled_from(["", *ENCODINGS, "br"]), st.booleans(), st.data())
def test_every_request_over_http_is_delivered_or_refused_counted_and_explained(
    otlp_door: Door, signal_and_body: tuple[Signal, bytes], content_type: str, encoding: str, is_packed: bool, data: st.DataObject
) -> None:
    signal, body = signal_and_body
    if is_packed and encoding in ENCODINGS:
        body = data.draw(mutated(st.just(compress(body, encoding))))
    headers = {"Content-Type": content_type} | ({"Content-Encoding": encoding} if encoding else {})
    refused, delivered = otlp_door.refused, len(otlp_door.sink.batches)
    status, answer = otlp_door.run(posted(otlp_door.receiver.http.port, f"/v1/{signal}", body, headers))
    assert status in (200, 400, 413, 415)
    if status == 200:
        assert otlp_door.refused == refused
        for batch in otlp_door.sink.batches[delivered:]:
            assert count_records(signal, batch.payload) == batch.count > 0
    else:
        assert otlp_door.refused == refused + 1
        assert len(otlp_door.sink.batches) == delivered
        assert json.loads(answer)["message"] if content_type == JSON else Status.FromString(answer).message
    assert otlp_door.receiver.http.server.budget.used == 0
    otlp_door.sink.batches.clear()


def writes() -> Iterator[bytes]:
    """Requests of remote write 1.0 and 2.0, with everything that a series may have."""
    native = {"schema": 2, "count_int": 3, "sum": 1.5, "timestamp": 5, "positive_spans": [{"length": 2}], "positive_deltas": [2, -1]}
    for made in (WriteRequest(), Request()):
        for number in range(3):
            add_series(made, labels(name="up", job="j", instance="i", n=str(number)), [(0.5, 1000), (1.5, 2000)], histograms=[native])
        add_series(made, labels(name="up", job="j", instance="i", n="0")).exemplars.add(value=1.0, timestamp=1)
        yield made.SerializeToString()


@given(
    mutated(st.sampled_from(list(writes())), [b"\xff\xff\xff\xff\x0f", b"\x12\x00"]),
    st.sampled_from(["", ";proto=prometheus.WriteRequest", ";proto=io.prometheus.write.v2.Request", ";proto=x"]),
    st.booleans(),
    st.data(),
)
def test_every_remote_write_is_delivered_or_refused_counted_and_explained(
    remote_write_door: Door, body: bytes, proto: str, is_damaged: bool, data: st.DataObject
) -> None:
    door = remote_write_door
    compressed = bytes(cramjam.snappy.compress_raw(body))
    if is_damaged:
        compressed = data.draw(mutated(st.just(compressed)))
    refused = door.refused
    headers = {"Content-Type": PROTOBUF + proto, "Content-Encoding": "snappy"}
    status, answer = door.run(posted(door.receiver.port, "/api/v1/write", compressed, headers))
    assert status in (204, 400, 413, 415)
    assert door.refused == refused + (status != 204)
    assert bool(answer) == (status != 204)
    for batch in door.sink.batches:  # with 400, what is good is delivered
        assert status in (204, 400)
        assert count_records(Signal.METRICS, batch.payload) == batch.count > 0
    assert door.receiver.server.budget.used == 0
    door.sink.batches.clear()


async def sent(port: int, stream: bytes) -> bytes:
    """What is answered until the receiver closes, which it does when it has read all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(stream)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def expected_of(stream: bytes) -> tuple[int, int]:
    """Records of the whole messages before the first fault; how many refusals: one where there is a fault, or an end inside a message."""
    framer, count = fluent.Framer(4096), 0
    try:
        for raw in framer.feed(stream):
            message = fluent.read_message(raw)
            if message.compressed:
                entries = decompress(message.entries, "gzip", 16384)
                message = replace(message, entries=entries, compressed=False)
            count += sum(count_records(Signal.LOGS, request) for request in list(fluent.requests([message], 1, 1 << 20)))
    except (DecodeError, CorruptBody, TooLarge):
        return count, 1
    return count, int(framer.unfinished > 0)


@CHEAP
@given(mutated(streams, MSGPACK_WORDS))
@example(MESSAGES[0] + b"\xc1")
@example(MESSAGES[0] + msgpack.packb(["t", 1, [1]]))
@example(MESSAGES[0] + MESSAGES[2][:-3])
def test_every_whole_message_of_a_fluent_stream_is_delivered_and_the_fault_behind_them_counted(fluent_door: Door, stream: bytes) -> None:
    refused = fluent_door.refused
    answer = fluent_door.run(sent(fluent_door.receiver.port, stream))
    records, faults = expected_of(stream)
    assert (fluent_door.sink.count, fluent_door.refused - refused) == (records, faults)
    acknowledged = list(msgpack.Unpacker(BytesIO(answer), raw=True))
    assert all(set(each) == {b"ack"} for each in acknowledged)
    assert fluent_door.receiver._budget.used == 0
    fluent_door.sink.batches.clear()
