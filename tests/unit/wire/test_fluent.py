"""Fluent Forward messages become what the collector makes of them; any bytes give records or a DecodeError, in bounded memory."""

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from lockgate.wire import fluent, otlp
from lockgate.wire.protobuf import DecodeError


def value_of(value: Any) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "kvlist_value":
            return {item.key: value_of(item.value) for item in value.kvlist_value.values}
        case "array_value":
            return [value_of(item) for item in value.array_value.values]
        case kind:
            return getattr(value, kind)


def records_of(*messages: Any, max_bytes: int = 1 << 20) -> list[tuple[int, Any, dict[str, Any]]]:
    """(time, body, attributes) of each record."""
    raw = [message if isinstance(message, bytes) else msgpack.packb(message) for message in messages]
    found = []
    for request in fluent.requests([fluent.read_message(each) for each in raw], 7, max_bytes):
        parsed = ExportLogsServiceRequest.FromString(request)
        records = [record for entry in parsed.resource_logs for scope in entry.scope_logs for record in scope.log_records]
        assert otlp.validate(request, 0) == len(records)
        assert all(record.observed_time_unix_nano == 7 for record in records)
        found += [(r.time_unix_nano, value_of(r.body), {a.key: value_of(a.value) for a in r.attributes}) for r in records]
    return found


TAG = {"fluent.tag": "t"}
EVENT_TIME = msgpack.ExtType(0, struct.pack(">II", 5, 6))
VALUES = [
    pytest.param({"log": "x", "a": "b"}, "x", {"a": "b"}, id="fluent-bit-calls-it-log"),
    pytest.param({"message": "x"}, "x", {}, id="fluentd-calls-it-message"),
    pytest.param({"log": "x", "message": "y"}, "y", {"log": "x"}, id="the-last-body-wins-and-the-other-stays"),
    pytest.param({"message": "x", "a": 1, "log": "y"}, "y", {"message": "x", "a": 1}, id="in-either-order"),
    pytest.param({"log": {"a": [1, {"b": None}]}}, {"a": [1, {"b": None}]}, {}, id="a-body-may-be-a-map"),
    pytest.param({"n": -5, "f": 1.5, "t": True, "z": None}, None, {"n": -5, "f": 1.5, "t": True, "z": None}, id="scalars"),
    pytest.param(
        {"big": 2**64 - 1, "most": 2**63 - 1}, None, {"big": str(2**64 - 1), "most": 2**63 - 1}, id="what-int64-cannot-hold-is-text"
    ),
    pytest.param({b"key": b"bytes"}, None, {"key": "bytes"}, id="binary-is-a-string"),
    pytest.param({"k": b"\xff"}, None, {"k": b"\xff"}, id="binary-that-is-no-utf-8-stays-bytes"),
    pytest.param(
        {"k": msgpack.ExtType(5, b"ab"), "t": msgpack.Timestamp(1)}, None, {"k": b"ab", "t": b"\0\0\0\1"}, id="extensions-are-bytes"
    ),
    pytest.param({"l": [], "m": {}}, None, {"l": [], "m": {}}, id="empty-ones-stay"),
    pytest.param({"fluent.tag": "forged"}, None, {}, id="the-tag-is-the-envelopes"),
]


@pytest.mark.parametrize(("record", "body", "attributes"), VALUES)
def test_a_record_becomes_body_and_attributes(record: Any, body: Any, attributes: Any) -> None:
    assert records_of(["t", 3, record]) == [(3 * 10**9, body, attributes | TAG)]


@pytest.mark.parametrize(
    ("time", "expected"),
    [(3, 3 * 10**9), (2**32, 2**32 * 10**9), (EVENT_TIME, 5 * 10**9 + 6), (1.5, 1_500_000_000), (-1, 0), (2**64 - 1, 0), (float("nan"), 0)],
)
def test_times_are_whole_seconds_or_event_times_and_impossible_ones_are_none(time: Any, expected: int) -> None:
    assert records_of(["t", time, {}]) == [(expected, None, TAG)]


def test_all_modes_give_the_same_records() -> None:
    entries = [[EVENT_TIME, {"log": "one"}], [2, {"log": "two"}]]
    packed = b"".join(msgpack.packb(entry) for entry in entries)
    expected = [(5 * 10**9 + 6, "one", TAG), (2 * 10**9, "two", TAG)]
    assert records_of(*(["t", *entry] for entry in entries)) == expected
    assert records_of(["t", entries]) == records_of(["t", entries, {"size": 2}]) == expected
    assert records_of(["t", packed]) == records_of(["t", packed, {"chunk": "c"}]) == expected
    assert records_of(msgpack.packb(["t", packed], use_bin_type=False)) == expected
    assert records_of(["t", []]) == records_of(["t", b""]) == []


def test_fluent_bits_metadata_is_kept() -> None:
    assert records_of(["t", [[[3, {}], {"log": "x"}], [[3, {"a": 1}], {"log": "y"}]]]) == [
        (3 * 10**9, "x", TAG),
        (3 * 10**9, "y", TAG | {"fluent.metadata": {"a": 1}}),
    ]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(["t"], id="too-short"),
        pytest.param(["t", 1, {}, {}, 5], id="too-long"),
        pytest.param([5, 1, {}], id="tag-is-no-string"),
        pytest.param(["t" * 1025, 1, {}], id="tag-too-long"),
        pytest.param(["t", None, {}], id="no-time"),
        pytest.param(["t", {}, {}], id="time-is-a-map"),
        pytest.param(["t", True, {}], id="time-is-a-boolean"),
        pytest.param(["t", 1, [1]], id="record-is-no-map"),
        pytest.param(["t", 1, {5: "x"}], id="key-is-no-string"),
        pytest.param(["t", 1], id="no-record"),
        pytest.param(b"\x93\xa1t\x01\x81\x91\x90\x01", id="key-is-a-list"),
        pytest.param(["t", [[1]]], id="entry-too-short"),
        pytest.param(["t", b"\x92\x01"], id="packed-entries-end-early"),
        pytest.param(["t", [], 5], id="options-are-no-map"),
        pytest.param(["t", [], {"chunk": 5}], id="chunk-is-no-string"),
        pytest.param(["t", b"", {"compressed": "zstd"}], id="unknown-compression"),
        pytest.param(["t", b"", {"fluent_signal": 1}], id="metrics"),
    ],
)
def test_what_is_no_message_is_refused(message: Any) -> None:
    with pytest.raises(DecodeError):
        records_of(message)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_is_bounded_and_what_is_within_can_be_parsed() -> None:
    assert records_of(["t", 1, {"k": nested(fluent.MAX_DEPTH - 1)}])
    deepest: Any = "x"
    for _ in range(fluent.MAX_DEPTH - 1):
        deepest = {"k": deepest}
    assert records_of(["t", 1, {"k": deepest}])
    with pytest.raises(DecodeError, match="deep"):
        records_of(["t", 1, {"k": nested(fluent.MAX_DEPTH)}])
    with pytest.raises(DecodeError):
        list(fluent.Framer(1 << 20).feed(b"\x91" * 5000))


def test_what_repeats_the_tag_comes_in_pieces() -> None:
    raw = msgpack.packb(["t" * 1000, b"\x92\x01\x80" * 1000])
    pieces = list(fluent.requests([fluent.read_message(raw)], 7, 10_000))
    assert max(map(len, pieces)) < 12_000 and sum(otlp.validate(piece, 0) for piece in pieces) == 1000


def test_many_empty_maps_take_no_objects() -> None:
    raw = b"\x93\xa1t\x01\x81\xa1k\xdd" + (200_000).to_bytes(4, "big") + b"\x80" * 200_000
    message = fluent.read_message(raw)
    tracemalloc.start()
    try:
        assert len(list(fluent.requests([message], 7, 1 << 20))) == 1
        assert tracemalloc.get_traced_memory()[1] < 40 * len(raw)
    finally:
        tracemalloc.stop()
    with pytest.raises(DecodeError, match="keys"):
        records_of(["t", 1, {str(number): 1 for number in range(65537)}])


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_framing_gives_the_messages_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    messages = [msgpack.packb(["t", body]) for body in bodies]
    stream, framer = b"".join(messages), fluent.Framer(1000)
    assert [m for at in range(0, len(stream), step) for m in framer.feed(stream[at : at + step])] == messages
    assert framer.unfinished == 0


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\xc1", b"\x92\xc1", b"\x01"])
def test_garbage_is_no_message(garbage: bytes) -> None:
    with pytest.raises(DecodeError):
        list(fluent.Framer(1000).feed(garbage))


@pytest.mark.parametrize("head", [b"\x92\xa1t\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x93\xdb\xff\xff\xff\xff"])
def test_an_endless_message_is_refused_at_the_bound(head: bytes) -> None:
    framer = fluent.Framer(4096)
    assert list(framer.feed(head + b"\x01" * 3000)) == []
    with pytest.raises(DecodeError, match="4096"):
        list(framer.feed(b"\x01" * 3000))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(values, max_size=5).map(msgpack.packb) | st.binary(max_size=60).map(lambda tail: b"\x93\xa1t" + tail), st.data())
def test_any_bytes_give_valid_records_or_a_decode_error(raw: bytes, data: st.DataObject) -> None:
    if raw and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    try:
        for message in fluent.Framer(1 << 16).feed(raw):
            for request in fluent.requests([fluent.read_message(message)], 1, 1 << 16):
                ExportLogsServiceRequest.FromString(request)
                otlp.validate(request, 0)
    except DecodeError:
        pass
