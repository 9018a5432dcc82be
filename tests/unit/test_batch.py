"""Batch's edits on the wire against the same edits on parsed messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from support import logs

from lockgate.batch import Batch, Origin, Part, Signal, count_records, derived_id, merge, message_type
from lockgate.wire.protobuf import DecodeError, delimited, key_values, varint

ADDED = key_values(1, [("k8s.pod.name", "web-0")])
ITEM = {
    Signal.LOGS: delimited(2, delimited(2, b"\x1a\x04text") * 2),
    Signal.METRICS: delimited(2, delimited(2, delimited(5, delimited(1, b"") * 2))),
    Signal.TRACES: delimited(2, delimited(2, delimited(5, b"span")) * 2),
}
"""A scope with two records of each signal."""

resource_pieces = st.sampled_from(
    [
        b"",
        key_values(1, [("a", "b")]),
        key_values(1, [("drop", True)]),
        key_values(1, [("c", 1)]) + b"\x10\x05",
        delimited(99, b"\xff") + b"\x10\x01",
    ]
)
unknown_fields = st.sampled_from(
    [
        delimited(77, b"what"),
        varint(78 << 3) + b"\xff\x01",
        varint(79 << 3 | 1) + b"12345678",
        varint(80 << 3 | 5) + b"1234",
        b"\xe8\x84\x80\x00\x07",
    ]
)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[Signal, bytes]:
    """Requests in every order that protobuf allows, with split resources, missing ones and unknown fields."""
    signal = draw(st.sampled_from(list(Signal)))
    plain = resource_pieces.map(lambda piece: [delimited(1, piece), ITEM[signal]])
    piece = resource_pieces.map(lambda raw: delimited(1, raw)) | resource_pieces.map(lambda raw: b"\x8a\x00" + varint(len(raw)) + raw)
    odd = st.lists(piece | st.just(ITEM[signal]) | st.just(delimited(3, b"http://schema")) | unknown_fields, max_size=6)
    blocks = draw(st.lists(plain | odd, max_size=5))
    fields = [delimited(1, b"".join(block)) for block in blocks] + draw(st.lists(unknown_fields, max_size=2))
    return signal, b"".join(draw(st.permutations(fields)))


def resources_of(message: Any) -> Any:
    return next(getattr(message, field.name) for field in message.DESCRIPTOR.fields)


def edited(payload: bytes, signal: Signal, *, remove: bool) -> tuple[bytes, int]:
    """What `map_resources` with `edit` must give, done on the parsed request."""
    message = message_type(signal).FromString(payload)
    kept, removed = [], 0
    for entry in resources_of(message):
        if remove and any(attribute.key == "drop" for attribute in entry.resource.attributes):
            removed += count_records(signal, delimited(1, entry.SerializeToString()))
            continue
        entry.resource.MergeFromString(ADDED)
        kept.append(type(entry).FromString(entry.SerializeToString()))
    del resources_of(message)[:]
    resources_of(message).extend(kept)
    return message.SerializeToString(deterministic=True), removed


@settings(max_examples=500, deadline=None)
@given(payloads(), st.booleans())
def test_map_resources_does_on_the_wire_what_the_same_edit_does_on_messages(case: tuple[Signal, bytes], remove: bool) -> None:
    signal, payload = case
    seen: list[bytes] = []

    def edit(raw: bytes) -> bytes | None:
        seen.append(raw)
        if remove and any(attribute.key == "drop" for attribute in Resource.FromString(raw).attributes):
            return None
        return raw + ADDED

    batch = Batch(signal, payload, count_records(signal, payload), "id", parts=(Part("a", 1),))
    result = batch.map_resources(edit)
    expected, removed = edited(payload, signal, remove=remove)
    assert message_type(signal).FromString(result.payload).SerializeToString(deterministic=True) == expected
    assert result.count == batch.count - removed == count_records(signal, result.payload)
    assert len(seen) == len(set(seen))
    assert (result.id, result.signal) == (batch.id, batch.signal)


EDITS: list[Callable[[bytes], bytes | None]] = [
    lambda raw: raw + ADDED,
    lambda raw: raw.removesuffix(ADDED),
    lambda raw: raw + delimited(99, b"x" * 200),
    lambda raw: None if b"drop" in raw else raw,
    lambda raw: None if b"pod" in raw else raw,
    lambda raw: b"",
    lambda raw: raw,
]


@settings(max_examples=500, deadline=None)
@given(payloads(), st.lists(st.sampled_from(EDITS), max_size=5))
def test_a_chain_of_edits_gives_what_each_step_gives_by_itself(
    case: tuple[Signal, bytes], edits: list[Callable[[bytes], bytes | None]]
) -> None:
    signal, payload = case
    chained = single = Batch(signal, payload, count_records(signal, payload), "id", "10.0.0.1", (Origin("file", 0, 9),))
    for edit in edits:
        chained = chained.map_resources(edit)
        single = single.map_resources(edit)
        assert single.payload is single.payload  # made now, and once
    assert chained.count == single.count  # before the bytes are made
    assert chained == single
    assert count_records(signal, chained.payload) == chained.count


def test_an_edited_batch_can_be_edited_again_after_its_bytes_were_asked_for() -> None:
    scopes = delimited(2, delimited(2, b""))
    once = Batch(Signal.LOGS, delimited(1, delimited(1, b"") + scopes), 1, "id").map_resources(lambda raw: raw + ADDED)
    before = once.payload
    twice = once.map_resources(lambda raw: raw + ADDED)
    assert before == delimited(1, delimited(1, ADDED) + scopes) == once.payload
    assert twice.payload == delimited(1, delimited(1, ADDED * 2) + scopes)
    assert replace(twice, id="other").with_payload(b"", 0).map_resources(lambda raw: raw + ADDED).payload == b""


def test_a_name_that_a_batch_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="'Batch' object has no attribute 'payloads'"):
        Batch(Signal.LOGS, b"", 0, "id").payloads  # type: ignore[attr-defined]  # noqa: B018


@settings(max_examples=200, deadline=None)
@given(payloads())
def test_an_edit_that_changes_nothing_returns_the_same_batch(case: tuple[Signal, bytes]) -> None:
    batch = Batch(*case, 0, "id")
    assert batch.map_resources(lambda raw: bytes(bytearray(raw))) is batch


@settings(max_examples=500, deadline=None)
@given(payloads(), st.integers(0, 400), st.integers(0, 4), st.binary(max_size=3))
def test_map_resources_of_damaged_bytes_gives_a_decode_error_or_bytes(case: tuple[Signal, bytes], at: int, cut: int, new: bytes) -> None:
    signal, payload = case
    at %= len(payload) + 1
    damaged = payload[:at] + new + payload[at + cut :]
    try:
        valid = count_records(signal, damaged) >= 0
    except DecodeError:
        valid = False
    try:
        result = Batch(signal, damaged, 0, "id").map_resources(lambda raw: raw + ADDED)
    except DecodeError:
        assert not valid
    else:
        if valid:
            assert count_records(signal, result.payload) == count_records(signal, damaged)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x0a\x05\x0a", id="field-past-the-end"),
        pytest.param(b"\x0a\x03\x0a\x07\x12", id="resource-past-its-message"),
        pytest.param(b"\x09\x01", id="fixed64-past-the-end"),
        pytest.param(b"\x0d\x01", id="fixed32-past-the-end"),
        pytest.param(b"\x08\xff", id="varint-past-the-end"),
        pytest.param(b"\x0b", id="group"),
        pytest.param(b"\x0a" + b"\xff" * 11, id="endless-varint"),
    ],
)
def test_bytes_that_are_no_request_are_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Batch(Signal.LOGS, payload, 0, "id").map_resources(lambda raw: raw + ADDED)
    with pytest.raises(DecodeError):
        count_records(Signal.LOGS, payload)


@pytest.mark.parametrize("signal", list(Signal))
def test_records_are_counted_per_signal(signal: Signal) -> None:
    assert count_records(signal, delimited(1, ITEM[signal] * 2) + delimited(1, ITEM[signal])) == 6


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["x", "y", "zz"]), min_size=1, max_size=3), min_size=1, max_size=4))
def test_merging_keeps_bytes_counts_origins_and_parts_in_order(groups: list[list[str]]) -> None:
    def batch(name: str, place: int) -> Batch:
        payload = delimited(1, delimited(1, key_values(1, [("name", name)])) + ITEM[Signal.LOGS])
        return Batch(Signal.LOGS, payload, 2, f"{name}{place}", "10.0.0.1", (Origin(name, place, place + 1),))

    flat = [batch(name, place) for place, name in enumerate(chain(*groups))]
    rest = iter(flat)
    merged = merge(merge(next(rest) for _ in group) for group in groups)
    assert merged.payload == b"".join(one.payload for one in flat)
    assert merged.count == 2 * len(flat) == count_records(Signal.LOGS, merged.payload)
    assert merged.origins == tuple(origin for one in flat for origin in one.origins)
    if len(flat) > 1:
        assert merged.parts == tuple(Part(one.id, len(one.payload)) for one in flat)
        assert merged.id == derived_id(*(one.id for one in flat))
    else:
        assert merged is flat[0]


def test_only_batches_of_one_signal_and_peer_merge() -> None:
    one = Batch(Signal.LOGS, b"", 0, "1", "10.0.0.1")
    for other in (Batch(Signal.TRACES, b"", 0, "2", "10.0.0.1"), Batch(Signal.LOGS, b"", 0, "2", "10.0.0.2")):
        with pytest.raises(ValueError, match="one signal and one peer"):
            merge([one, other])
    with pytest.raises(ValueError, match="one signal and one peer"):
        merge([])


def test_a_message_is_parsed_once_and_encoded_once() -> None:
    batch = Batch(Signal.LOGS, delimited(1, ITEM[Signal.LOGS]), 2, "id")
    assert batch.message is batch.message
    mine = batch.copy_message()
    assert mine is not batch.message
    mine.resource_logs[0].schema_url = "changed"
    changed = batch.with_message(mine, 2)
    assert changed.message is mine
    assert changed.payload == mine.SerializeToString()
    assert batch.message.resource_logs[0].schema_url == ""


def origins(batch: Batch) -> list[tuple[int, int]]:
    return [(origin.records, origin.filtered) for origin in batch.origins]


def three_files() -> Batch:
    """Of three files, one of which gave no record."""
    batch = merge([logs("a", "b", name="one"), logs("c", "d", "e", name="two")])
    given = (Origin("tail:1", 0, 10, 2, 2), Origin("tail:2", 0, 10, 1, 0), Origin("tail:3", 0, 10, 3, 3))
    return replace(batch, origins=given)


def test_what_is_dropped_of_each_resource_is_told_of_its_origin() -> None:
    batch = three_files()
    assert origins(batch.with_payload(b"", 2, [1, 2])) == [(1, 1), (0, 0), (1, 2)]
    assert origins(batch.with_payload(b"", 0, [2, 3])) == [(0, 2), (0, 0), (0, 3)]
    assert origins(batch.with_payload(b"")) == origins(batch)


def test_a_removed_resource_is_told_of_its_origin() -> None:
    batch = three_files()
    left = batch.map_resources(lambda raw: None if b"two" in raw else raw)
    assert (left.count, origins(left)) == (2, [(2, 0), (0, 0), (0, 3)])
    # The origin that has given everything away is no origin of what comes next.
    assert origins(left.map_resources(lambda raw: None)) == [(0, 2), (0, 0), (0, 3)]


def test_what_is_dropped_without_saying_of_what_is_told_of_the_receiver() -> None:
    batch = three_files()
    for left in (batch.with_payload(b"", 1), replace(batch, regrouped=True).with_payload(b"", 1, [2, 2])):
        assert origins(left) == [(2, 0), (0, 0), (3, 0), (-4, 4)]
        assert left.origins[-1].source == "tail:?"


def test_what_is_dropped_of_one_origin_is_told_of_it_however_it_was_regrouped() -> None:
    batch = replace(logs("a", "b"), origins=(Origin("tail:1", 0, 10, 2, 2),), regrouped=True)
    assert origins(batch.with_payload(b"", 1)) == [(1, 1)]
