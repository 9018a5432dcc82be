"""The few bytes of protobuf's wire format that the pipeline writes by hand: varints, length-delimited fields, attributes."""

import struct
from collections.abc import Iterable
from typing import Any

import msgspec

AttributeValue = str | bool | int | float | bytes
"""The scalar AnyValue kinds (OTLP common.proto, AnyValue)."""
MAX_NESTED = 20
"""Protobuf's decoders take some 33 nested AnyValues, three messages each, before they refuse the whole request."""

_SHORT = [bytes([number]) for number in range(128)]
"""The varints of one byte: most tags and lengths."""


class DecodeError(ValueError):
    """These bytes are not what they should be; the text says what and where."""


def varint(number: int) -> bytes:
    """Base-128 varint of a non-negative integer below 2**64."""
    if number < 128:
        return _SHORT[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(field: int, body: bytes) -> bytes:
    """One length-delimited field (wire type 2)."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def any_value(value: AttributeValue) -> bytes:
    """An encoded AnyValue holding this scalar."""
    match value:
        case str():
            return delimited(1, value.encode("utf-8", "replace"))
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            return b"\x18" + varint(value & (1 << 64) - 1)
        case float():
            return b"\x21" + struct.pack("<d", value)
        case bytes():
            return delimited(7, value)


def nested_value(value: Any, depth: int = MAX_NESTED) -> bytes:
    """An encoded AnyValue of what JSON can say; null is an empty one, and what nests deeper than `depth` is its JSON as a string."""
    match value:
        case None:
            return b""
        case dict() | list() if not depth:
            return any_value(msgspec.json.encode(value).decode())
        case dict():
            keys = (delimited(1, key.encode("utf-8", "replace")) for key in value)
            values = (delimited(2, nested_value(item, depth - 1)) for item in value.values())
            return delimited(6, b"".join(delimited(1, key + item) for key, item in zip(keys, values, strict=True)))
        case list():
            return delimited(5, b"".join(delimited(1, nested_value(item, depth - 1)) for item in value))
        case int() if not -(2**63) <= value < 2**63:
            return any_value(float(value))
        case _:
            scalar: AttributeValue = value
            return any_value(scalar)


def key_values(field: int, attributes: Iterable[tuple[str, AttributeValue]]) -> bytes:
    """Repeated KeyValue entries as field number `field`: 1 in a Resource, 6 in a LogRecord."""
    return b"".join(delimited(field, delimited(1, key.encode()) + delimited(2, any_value(value))) for key, value in attributes)
