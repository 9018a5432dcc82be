"""The few bytes of protobuf's wire format that the pipeline writes by hand: varints, length-delimited fields, attributes."""

import struct
from collections.abc import Iterable

AttributeValue = str | bool | int | float | bytes
"""The scalar AnyValue kinds (OTLP common.proto, AnyValue)."""


class DecodeError(ValueError):
    """These bytes are not what they should be; the text says what and where."""


def varint(number: int) -> bytes:
    """Base-128 varint of a non-negative integer below 2**64."""
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


def key_values(field: int, attributes: Iterable[tuple[str, AttributeValue]]) -> bytes:
    """Repeated KeyValue entries as field number `field`: 1 in a Resource, 6 in a LogRecord."""
    return b"".join(delimited(field, delimited(1, key.encode()) + delimited(2, any_value(value))) for key, value in attributes)
