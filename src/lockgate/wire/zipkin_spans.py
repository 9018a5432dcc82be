# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""What of Zipkin v2 is worth compiling: reading its protobuf (zipkin.proto of zipkin-api), and writing OTLP's spans. A kernel: see
`lockgate.wire`.

Protobuf's own library makes an object for each message, each field looked at, and each tag: that takes longer than all the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import cython

from lockgate.wire.protobuf import DecodeError

if not cython.compiled:  # zipkin_spans.pxd has the compiled ones
    from lockgate.wire.memory import copy, new_buffer

compiled: bool = cython.compiled
"""Whether this is the compiled form."""


class Span(NamedTuple):
    """A span as it is on the wire, unchecked but for its texts, which are UTF-8."""

    trace_id: bytes
    parent_id: bytes
    id: bytes
    kind: int
    name: str
    timestamp: int
    duration: int
    local_endpoint: list[str | bytes | int] | None
    """service_name, ipv4, ipv6, port."""
    remote_endpoint: list[str | bytes | int] | None
    annotations: list[tuple[int, str]]
    tags: dict[str, str | None]


class Reader:
    """A position in an encoded ListOfSpans. Raises DecodeError for what is no protobuf, UnicodeDecodeError for text that is not UTF-8.

    As any reader of protobuf: unknown fields are skipped, of a field that comes twice the last counts, and messages are merged.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.src = self.data
        self.size = len(self.data)
        self.at = 0
        self.start = 0
        """Where the content of the field begins that `field` found; it ends at `at`."""
        self.number = 0
        """Its value, where it is a number."""

    def span(self) -> Span | None:
        """The next span; None behind the last."""
        while self.at < self.size:
            if self.field(self.size) == 0x0A:
                return self.read_span(self.at)
        return None

    def read_span(self, end: int) -> Span:
        """The span that `field` found."""
        trace_id = parent_id = id = b""
        kind = timestamp = duration = 0
        name = ""
        local: list[str | bytes | int] | None = None
        remote: list[str | bytes | int] | None = None
        annotations: list[tuple[int, str]] = []
        tags: dict[str, str | None] = {}
        self.at = self.start
        while self.at < end:
            tag = self.field(end)
            if tag == 0x5A:
                self.read_tag(self.at, tags)
            elif tag == 0x0A:
                trace_id = self.data[self.start : self.at]
            elif tag == 0x12:
                parent_id = self.data[self.start : self.at]
            elif tag == 0x1A:
                id = self.data[self.start : self.at]
            elif tag == 0x20:
                kind = self.number
            elif tag == 0x2A:
                name = self.text()
            elif tag == 0x31:
                timestamp = self.number
            elif tag == 0x38:
                duration = self.number
            elif tag == 0x42:
                if local is None:
                    local = ["", b"", b"", 0]
                self.read_endpoint(self.at, local)
            elif tag == 0x4A:
                if remote is None:
                    remote = ["", b"", b"", 0]
                self.read_endpoint(self.at, remote)
            elif tag == 0x52:
                annotations.append(self.read_annotation(self.at))
        return Span(trace_id, parent_id, id, kind, name, timestamp, duration, local, remote, annotations, tags)

    def read_tag(self, end: int, tags: dict[str, str | None]) -> None:
        """An entry of the tags, to these."""
        key = value = ""
        self.at = self.start
        while self.at < end:
            tag = self.field(end)
            if tag == 0x0A:
                key = self.text()
            elif tag == 0x12:
                value = self.text()
        tags[key] = value

    def read_annotation(self, end: int) -> tuple[int, str]:
        """An annotation: timestamp and value."""
        timestamp = 0
        value = ""
        self.at = self.start
        while self.at < end:
            tag = self.field(end)
            if tag == 0x09:
                timestamp = self.number
            elif tag == 0x12:
                value = self.text()
        return timestamp, value

    def read_endpoint(self, end: int, endpoint: list[str | bytes | int]) -> None:
        """An endpoint's fields, over what is there of it."""
        self.at = self.start
        while self.at < end:
            tag = self.field(end)
            if tag == 0x0A:
                endpoint[0] = self.text()
            elif tag == 0x12:
                endpoint[1] = self.data[self.start : self.at]
            elif tag == 0x1A:
                endpoint[2] = self.data[self.start : self.at]
            elif tag == 0x20:
                endpoint[3] = self.number

    def text(self) -> str:
        """The content of the field as text."""
        return self.src[self.start : self.at].decode("utf-8")

    def field(self, end: int) -> int:
        """Goes behind the field that begins here; its tag: number and wire type."""
        tag = self.varint(end)
        wire = tag & 7
        if tag >> 3 == 0 or tag >> 32:
            raise DecodeError(f"no field can begin before byte {self.at}")
        if wire == 2:
            size = self.varint(end)
            if size > end - self.at:
                raise DecodeError(f"a field of {size} bytes at byte {self.at}, where {end - self.at} are left")
            self.start = self.at
            self.at += size
        elif wire == 0:
            self.number = self.varint(end)
        elif wire == 1:
            self.fixed(end, 8)
        elif wire == 5:
            self.fixed(end, 4)
        else:
            raise DecodeError(f"wire type {wire} before byte {self.at} is not used by Zipkin")
        return tag

    def fixed(self, end: int, width: int) -> int:
        """A little-endian number, to `number`."""
        if width > end - self.at:
            raise DecodeError(f"a number of {width} bytes at byte {self.at}, where {end - self.at} are left")
        number = 0
        shift = 0
        while width:
            number |= self.wide(self.src[self.at]) << shift
            self.at += 1
            shift += 8
            width -= 1
        self.number = number
        return 0

    def varint(self, end: int) -> int:
        """A base-128 number below 2**64."""
        number = 0
        shift = 0
        while shift < 70:
            if self.at >= end:
                raise DecodeError(f"a number runs past its message's end, byte {end}")
            byte = self.src[self.at]
            self.at += 1
            number |= self.wide(byte & 127) << shift
            if byte < 128:
                return number & 0xFFFFFFFFFFFFFFFF
            shift += 7
        raise DecodeError(f"a number before byte {self.at} is longer than ten bytes")

    def wide(self, byte: int) -> int:
        """The byte as a number of 64 bits, which C would else shift out of an int."""
        return byte


def event(nanoseconds: int, name: str) -> bytearray:
    """A span's event without attributes, encoded."""
    text = name.encode()
    text_size = len(text)
    inner = 10 + text_size + _width(text_size)
    buffer = new_buffer(1 + _width(inner) + inner)
    out = buffer
    o = _put(out, 0, 0x5A, inner)
    o = _fixed(out, o, 0x09, nanoseconds)
    o = _put(out, o, 0x12, text_size)
    text_bytes = text
    copy(out, o, text_bytes, 0, text_size)
    return buffer


def span(
    ids: tuple[bytes, bytes, bytes],
    name: str,
    kind: int,
    start: int,
    end: int,
    tags: dict[str, str | None],
    pieces: list[bytes | bytearray],
) -> bytearray:
    """A span, encoded, as a field of ScopeSpans: trace, span and parent id, times in nanoseconds, tags as its attributes (None is empty
    text), and further fields of it that are encoded already."""
    texts = [name.encode()]
    size = 21 + _width(len(texts[0])) + len(texts[0])  # with its kind and times
    for key, value in tags.items():
        key_text = key.encode()
        value_text = b"" if value is None else value.encode()
        texts.append(key_text)
        texts.append(value_text)
        key_size = len(key_text)
        inner = 1 + _width(len(value_text)) + len(value_text)
        inner += 2 + _width(key_size) + key_size + _width(inner)
        size += 1 + _width(inner) + inner
    for id in ids:
        if id:
            size += 1 + _width(len(id)) + len(id)
    for piece in pieces:
        size += len(piece)
    buffer = new_buffer(1 + _width(size) + size)
    out = buffer
    o = _put(out, 0, 0x12, size)
    for number in range(3):
        id = ids[number]
        if id:
            o = _put(out, o, 0x22 if number == 2 else 0x0A + 8 * number, len(id))
            source = id
            o = copy(out, o, source, 0, len(id))
    text = texts[0]
    o = _put(out, o, 0x2A, len(text))
    source = text
    o = copy(out, o, source, 0, len(text))
    o = _put(out, o, 0x30, kind)
    o = _fixed(out, o, 0x39, start)
    o = _fixed(out, o, 0x41, end)
    for number in range(1, len(texts), 2):
        key_text = texts[number]
        value_text = texts[number + 1]
        key_size = len(key_text)
        value_size = len(value_text)
        inner = 1 + _width(value_size) + value_size
        o = _put(out, o, 0x4A, 2 + _width(key_size) + key_size + _width(inner) + inner)
        o = _put(out, o, 0x0A, key_size)
        source = key_text
        o = copy(out, o, source, 0, key_size)
        o = _put(out, o, 0x12, inner)
        o = _put(out, o, 0x0A, value_size)
        source = value_text
        o = copy(out, o, source, 0, value_size)
    for piece in pieces:
        if isinstance(piece, bytes):
            source = piece
            o = copy(out, o, source, 0, len(piece))
        else:
            source_array = piece
            target = source_array
            o = copy(out, o, target, 0, len(piece))
    return buffer


def _fixed(out: bytearray, o: int, tag: int, number: int) -> int:
    """Writes a tag of one byte, and 64 bits; the position behind them."""
    out[o] = tag
    for place in range(1, 9):
        out[o + place] = number & 255
        number >>= 8
    return o + 9


def _width(number: int) -> int:
    """Bytes of the number as a varint."""
    width = 1
    while number > 127:
        number >>= 7
        width += 1
    return width


def _put(out: bytearray, o: int, tag: int, number: int) -> int:
    """Writes a tag of one byte, and a varint; the position behind them."""
    out[o] = tag
    o += 1
    while number > 127:
        out[o] = number & 127 | 128
        o += 1
        number >>= 7
    out[o] = number
    return o + 1
