"""What C does better than Python, in the uncompiled kernels' form; memory.pxd holds the same functions for the compiled ones.

Positions are from the start of the buffer. Nothing is checked in the compiled form: a kernel stays inside its buffers by itself.
"""

from __future__ import annotations

from lockgate.wire import protobuf

Buffer = bytes | bytearray


def new_buffer(size: int) -> bytearray:
    """A buffer of this size, of any content. Raises MemoryError."""
    return bytearray(size)


def copy(out: bytearray, o: int, src: Buffer, start: int, size: int) -> int:
    """Copies src[start : start + size] to out[o:]; the position behind it."""
    out[o : o + size] = src[start : start + size]
    return o + size


def move(out: bytearray, o: int, start: int, size: int) -> None:
    """Copies out[start : start + size] to out[o:]; the two may overlap."""
    out[o : o + size] = out[start : start + size]


def put(out: bytearray, o: int, word: bytes) -> int:
    """Writes the word, which has no zero byte, to out[o:]; the position behind it."""
    return copy(out, o, word, 0, len(word))


def find(src: Buffer, start: int, end: int, byte: int) -> int:
    """Where the byte is first in src[start:end], or -1."""
    return src.find(byte, start, end)


def count(src: Buffer, size: int, byte: int) -> int:
    """How often the byte is in src[:size]."""
    return src.count(byte, 0, size)


def same(src: Buffer, a: int, b: int, size: int) -> bool:
    """Whether the bytes at a are those at b."""
    return src[a : a + size] == src[b : b + size]


def equal(one: Buffer, a: int, other: Buffer, b: int, size: int) -> bool:
    """Whether the bytes of one buffer at a are those of the other at b."""
    return one[a : a + size] == other[b : b + size]


def mixed(key: int, src: Buffer, start: int, size: int) -> int:
    """A hash of the key and of src[start : start + size], below 2**64; not the same in the two forms."""
    return hash((key, src[start : start + size])) & (1 << 64) - 1


def starts(src: Buffer, p: int, end: int, word: bytes) -> bool:
    """Whether src[p:end] starts with the word, which has no zero byte."""
    return src.startswith(word, p, end)


def is_utf8(src: Buffer, p: int, end: int) -> bool:
    """Whether src[p:end] is UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF."""
    try:
        src[p:end].decode()
    except UnicodeDecodeError:
        return False
    return True


def cut(src: bytes, start: int, size: int) -> bytes:
    """src[start : start + size]."""
    return src[start : start + size]


def big64(number: int) -> bytes:
    """The number below 2**64 in eight bytes, the highest first."""
    return number.to_bytes(8, "big")


def fixed64(tag: int, number: int) -> bytes:
    """A protobuf field of eight bytes for the number below 2**64. Here as below the tag is one byte."""
    return bytes([tag]) + number.to_bytes(8, "little")


def varint(tag: int, number: int) -> bytes:
    """A protobuf field with the varint of the number below 2**64."""
    return bytes([tag]) + protobuf.varint(number)


def field(tag: int, body: bytes) -> bytes:
    """A delimited protobuf field."""
    return protobuf.delimited(tag >> 3, body)


def attribute(tag: int, key: bytes, value: bytes) -> bytes:
    """A KeyValue of an encoded AnyValue, as a field of this tag."""
    return field(tag, field(0x0A, key) + field(0x12, value))
