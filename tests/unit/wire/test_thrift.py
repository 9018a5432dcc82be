"""Thrift's two encodings, in both forms of the kernel, as Apache's library writes them."""

from __future__ import annotations

import struct
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.transport.TTransport import TMemoryBuffer
from unit.wire.conftest import both_forms

from lockgate.wire.protobuf import DecodeError

FORMS = both_forms("thrift")
EACH_FORM = pytest.mark.parametrize("kernel", [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in FORMS])
BOTH = pytest.mark.parametrize("compact", [pytest.param(False, id="binary"), pytest.param(True, id="compact")])
BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST = 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15
INTEGERS = {BYTE: 8, I16: 16, I32: 32, I64: 64}

Value = tuple[int, Any]
"""Kind, and what it holds; of containers (kinds of elements, elements), of structs (id, value) pairs."""


def scalars() -> st.SearchStrategy[Value]:
    integers = [st.tuples(st.just(kind), st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)) for kind, bits in INTEGERS.items()]
    others = [
        st.tuples(st.just(kind), values)
        for kind, values in ((BOOL, st.booleans()), (DOUBLE, st.floats(allow_nan=False)), (STRING, st.binary(max_size=40)))
    ]
    return st.one_of(*integers, *others)


def structs(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    fields = st.lists(st.tuples(st.integers(1, 32767), values), max_size=5, unique_by=lambda field: field[0])
    return st.tuples(st.just(STRUCT), fields)


def containers(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    # Elements of one kind: the first one, again and again.
    lists = st.tuples(st.sampled_from([LIST, SET]), st.tuples(values, st.integers(0, 20)))
    maps = st.tuples(st.just(MAP), st.tuples(values, values, st.integers(0, 5)))
    return st.one_of(lists, maps, structs(values))


STRUCTS = structs(st.recursive(scalars(), containers, max_leaves=8))


def write(protocol: Any, value: Value) -> None:
    kind, content = value
    match kind:
        case _ if kind in INTEGERS:
            getattr(protocol, f"write{ {BYTE: 'Byte', I16: 'I16', I32: 'I32', I64: 'I64'}[kind] }")(content)
        case 2:
            protocol.writeBool(content)
        case 4:
            protocol.writeDouble(content)
        case 11:
            protocol.writeBinary(content)
        case 12:
            protocol.writeStructBegin("")
            for id, field in content:
                protocol.writeFieldBegin("", field[0], id)
                write(protocol, field)
                protocol.writeFieldEnd()
            protocol.writeFieldStop()
            protocol.writeStructEnd()
        case 13:
            key, item, count = content
            protocol.writeMapBegin(key[0], item[0], count)
            for _ in range(count):
                write(protocol, key)
                write(protocol, item)
            protocol.writeMapEnd()
        case _:
            item, count = content
            protocol.writeListBegin(item[0], count)
            for _ in range(count):
                write(protocol, item)
            protocol.writeListEnd()


def encoded(value: Value, compact: bool) -> bytes:
    buffer = TMemoryBuffer()
    write((TCompactProtocol if compact else TBinaryProtocol)(buffer), value)
    return bytes(buffer.getvalue())


def read_struct(reader: Any) -> list[tuple[int, Value]]:
    """Scalars as they are; what contains others is skipped."""
    found: list[tuple[int, Value]] = []
    last = 0
    while kind := reader.field(last):
        last = reader.id
        value: Any = None
        if kind in INTEGERS:
            value = reader.integer(kind)
        elif kind == BOOL:
            value = reader.boolean()
        elif kind == DOUBLE:
            value = reader.double_bits()
        elif kind == STRING:
            value = reader.text()
        else:
            reader.skip(kind)
        found.append((last, (kind, value)))
    return found


def expected(fields: list[tuple[int, Value]]) -> list[tuple[int, Value]]:
    def seen(kind: int, value: Any) -> Any:
        if kind in INTEGERS:
            return value & (1 << 64) - 1
        if kind == DOUBLE:
            return struct.unpack("<Q", struct.pack("<d", value))[0]
        return value if kind in (BOOL, STRING) else None

    return [(id, (kind, seen(kind, value))) for id, (kind, value) in fields]


@EACH_FORM
@BOTH
@given(STRUCTS)
@settings(max_examples=40)
def test_what_apache_writes_is_read_and_what_contains_others_is_skipped(kernel: ModuleType, compact: bool, value: Value) -> None:
    payload = encoded(value, compact)
    reader = kernel.Reader(payload, compact)
    assert read_struct(reader) == expected(value[1])
    assert reader.at == len(payload)
    skipped = kernel.Reader(payload, compact)
    skipped.skip(STRUCT)
    assert skipped.at == len(payload)


@BOTH
@given(st.binary(max_size=60), STRUCTS, st.data())
@settings(max_examples=50)
@example(b"\xf0" + b"\xff" * 12, (STRUCT, []), None)
def test_any_bytes_are_skipped_or_refused_by_both_forms_alike(compact: bool, noise: bytes, value: Value, data: Any) -> None:
    payload = bytearray(encoded(value, compact))
    if data is not None:
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    for each in (noise, bytes(payload), bytes(payload[: len(payload) // 2])):
        outcomes = []
        for form in FORMS:
            reader = form.Reader(each, compact)
            try:
                reader.skip(STRUCT)
                outcomes.append(reader.at)
            except DecodeError as error:
                outcomes.append(str(error))
            assert reader.at <= len(each)
        assert outcomes[0] == outcomes[1]


@EACH_FORM
@BOTH
def test_a_list_has_no_more_elements_than_bytes_follow(kernel: ModuleType, compact: bool) -> None:
    few = b"\xfc\xff\xff\xff\xff\x07" if compact else b"\x0c\x7f\xff\xff\xff"
    for payload in (few + b"\0" * 20, few):
        with pytest.raises(DecodeError, match="2147483647 elements"):
            kernel.Reader(payload, compact).elements()


@EACH_FORM
@BOTH
def test_a_string_is_no_longer_than_what_follows_it(kernel: ModuleType, compact: bool) -> None:
    for size in (b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01") if compact else (b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"):
        with pytest.raises(DecodeError, match="a string of"):
            kernel.Reader(size + b"0123456789", compact).text()


@EACH_FORM
@BOTH
def test_nesting_ends_at_a_depth(kernel: ModuleType, compact: bool) -> None:
    level = b"\x1c" if compact else b"\x0c\x00\x01"
    kernel.Reader(level * 60 + b"\0" * 61, compact).skip(STRUCT)
    with pytest.raises(DecodeError, match="64 deep"):
        kernel.Reader(level * 1000 + b"\0" * 1001, compact).skip(STRUCT)


@EACH_FORM
@pytest.mark.parametrize(
    ("payload", "compact"),
    [
        pytest.param(b"\x80\x01\0\x04\0\0\0\x04ping\0\0\0\x07\0", False, id="binary"),
        pytest.param(b"\0\0\0\x04ping\x04\0\0\0\x07\0", False, id="binary-without-a-version"),
        pytest.param(b"\x82\x81\x07\x04ping\0", True, id="compact"),
    ],
)
def test_a_message_has_a_name_and_a_struct(kernel: ModuleType, payload: bytes, compact: bool) -> None:
    reader = kernel.Reader(payload, compact)
    assert reader.message() == b"ping"
    assert reader.field(0) == 0
    assert reader.at == len(payload)


@EACH_FORM
@pytest.mark.parametrize(
    ("payload", "compact", "words"),
    [
        pytest.param(b"\x80\x02\0\x04\0\0\0\x04ping\0\0\0\x07\0", False, "version 1", id="binary-of-another-version"),
        pytest.param(b"\x82\x82\x07\x04ping\0", True, "version 1", id="compact-of-another-version"),
        pytest.param(b"\x80\x01\0\x04\0\0\0\x04ping", True, "no message of Thrift's compact", id="binary-for-compact"),
        pytest.param(b"", False, "missing", id="nothing"),
        pytest.param(b"", True, "no message", id="nothing-in-compact"),
    ],
)
def test_what_is_no_message_is_refused(kernel: ModuleType, payload: bytes, compact: bool, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        kernel.Reader(payload, compact).message()


@EACH_FORM
@BOTH
def test_an_unknown_kind_of_field_is_refused(kernel: ModuleType, compact: bool) -> None:
    for kind in (14, 15) if compact else (1, 5, 7, 9, 17, 255):
        with pytest.raises(DecodeError, match="unknown kind"):
            kernel.Reader(bytes([kind | 16 if compact else kind, 0, 1, 0]), compact).field(0)
