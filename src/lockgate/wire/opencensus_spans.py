# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""The spans of an OpenCensus ExportTraceServiceRequest as OTLP's, field by field, without an object for any. A compiled kernel.

The mapping is the collector's (contrib v0.133.0, pkg/translator/opencensus, oc_to_traces.go), which drops stack traces, a link's type and
child_span_count. Fields may come in any order; of a singular one that comes twice the last counts. Two things are as the wire says them:
a map's key that is there twice stays twice, and text is copied as it is, so that the result is still to be validated.
"""

from __future__ import annotations

from typing import NamedTuple

import cython

from lockgate.wire.protobuf import DecodeError

if not cython.compiled:  # opencensus_spans.pxd has the compiled ones
    from lockgate.wire.memory import copy, equal, move, new_buffer, put

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

_FULL = 3
_REASONS = ("", "a tag or number is longer than its type, or runs past the end", "a field runs past the end of the message around it")

_KIND_KEY, _STATUS_KEY = b"span.kind", b"otel.status_code"
_INTERNAL, _PRODUCER, _CONSUMER = b"internal", b"producer", b"consumer"


class Spans(NamedTuple):
    """What a request holds."""

    encoded: bytes
    """OTLP's ScopeSpans.spans, a field each."""
    apart: int
    """Spans that are not among them, because they have a resource of their own."""
    node: bytes | None
    """The encoded Node, None without one."""
    resource: bytes | None
    """The encoded Resource, None without one."""


class _Translation:
    """One request while it is read. `field` leaves what it found in attributes, which the next call overwrites."""

    def __init__(self, message: bytes, apart: bool) -> None:
        self.message = bytes(message)
        self.src, self.size, self.is_apart = self.message, len(message), apart
        self.words = b"".join((_KIND_KEY, _STATUS_KEY, _INTERNAL, _PRODUCER, _CONSUMER))
        self.known = self.words
        self.low, self.latest = 0xFFFFFFFF, 18_446_744_072  # Cython has no C literals of that size

    def allocate(self, capacity: int) -> None:
        """A new beginning, with room for so many bytes."""
        self.buffer = new_buffer(capacity)
        self.out, self.capacity = self.buffer, capacity
        self.o = self.reason = self.where = self.apart = 0
        self.node = self.node_size = self.resource = self.resource_size = -1

    # --- Reading ------------------------------------------------------------------------------------------------------------------------

    def fail(self, reason: int, where: int) -> int:
        if self.reason == 0:
            self.reason = reason
            self.where = where
        return -1

    def varint(self, at: int, end: int, longest: int) -> int:
        """The position behind the varint there, or -1; `number` its value. Of a tenth byte only the lowest bit counts, as in upb."""
        src = self.src
        number = byte = 0
        shift = 0
        while at < end and shift < 7 * longest:
            byte = src[at]
            if shift == 63:
                number |= (byte & 1) << shift
            else:
                number |= (byte & 127) << shift
            at += 1
            if byte < 128:
                self.number = number
                return at
            shift += 7
        return self.fail(1, at)

    def field(self, at: int, end: int) -> int:
        """The position behind the field there, or -1; `tag` is its number and wire type, `content` where its value starts."""
        start = at
        at = self.varint(at, end, 5)
        if at < 0:
            return -1
        self.tag = self.number
        if self.tag < 8:
            return self.fail(1, start)
        wire = self.tag & 7
        if wire == 0:
            self.content = at
            return self.varint(at, end, 10)
        if wire == 2:
            at = self.varint(at, end, 5)
            if at < 0:
                return -1
            self.content = at
            size = self.number
            return self.fail(2, start) if size > end - at else at + size
        self.content = at
        at += 8 if wire == 1 else 4
        if (wire == 1 or wire == 5) and at <= end:
            return at
        return self.fail(2, start)

    def string(self, at: int, end: int) -> None:
        """A TruncatableString: `text` and `text_size`."""
        self.text = at
        self.text_size = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.text = self.content
                self.text_size = at - self.content

    def timestamp(self, at: int, end: int) -> int:
        """A Timestamp in nanoseconds since 1970; 0 where it is earlier, or later than OTLP can say."""
        seconds = nanos = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return 0
            if self.tag == 0x08:
                seconds = self.number
            elif self.tag == 0x10:
                nanos = self.number
        if seconds > self.latest:
            return 0
        return seconds * 1000000000 + (nanos if nanos < 1000000000 else 0)

    def entry(self, at: int, end: int) -> None:
        """An entry of Attributes.attribute_map: `key`, `key_size`, `kind` (its value's field number, or 0), and the value.

        That is `text` and `text_size`, `value`, or for a double where it stands.
        """
        self.key = self.key_size = self.kind = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.key = self.content
                self.key_size = at - self.content
            elif self.tag == 0x12:
                inner = self.content
                while inner < at:
                    inner = self.field(inner, at)
                    if inner < 0:
                        return
                    if self.tag == 0x0A:
                        self.kind = 1
                        self.string(self.content, inner)
                    elif self.tag == 0x10 or self.tag == 0x18:
                        self.kind = self.tag >> 3
                        self.value = self.number
                    elif self.tag == 0x21:
                        self.kind = 4
                        self.value = self.content

    def is_word(self, start: int, size: int, word: int, word_size: int) -> bool:
        """Whether the text there is the one at `word` among those known."""
        return size == word_size and equal(self.src, start, self.known, word, size)

    def look_for_special(self, at: int, end: int) -> None:
        """Attributes that stand for what OpenCensus has no field for: `kind_said`, and `status_said` with `status_code`."""
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag != 0x0A:
                continue
            self.entry(self.content, at)
            if self.kind == 1 and self.is_word(self.key, self.key_size, 0, 9):
                self.kind_said = 0
                if self.is_word(self.text, self.text_size, 25, 8):
                    self.kind_said = 1
                elif self.is_word(self.text, self.text_size, 33, 8):
                    self.kind_said = 4
                elif self.is_word(self.text, self.text_size, 41, 8):
                    self.kind_said = 5
            elif self.is_word(self.key, self.key_size, 9, 16):
                self.status_said = True
                self.status_code = self.value if self.kind == 2 else 0

    # --- Writing: nothing more once there is a reason to stop -----------------------------------------------------------------------------

    def room(self, size: int) -> bool:
        if self.reason == 0 and size > self.capacity - self.o:
            self.reason = 3  # _FULL
        return self.reason == 0

    def length(self, number: int) -> None:
        """A varint; the room is there."""
        o, out = self.o, self.out
        while number > 127:
            out[o] = number & 127 | 128
            o += 1
            number >>= 7
        out[o] = number
        self.o = o + 1

    def put_number(self, tag: int, number: int) -> None:
        if self.room(11):
            self.out[self.o] = tag
            self.o += 1
            self.length(number)

    def put_time(self, tag: int, time: int) -> None:
        if time != 0 and self.room(9):
            o, out = self.o, self.out
            out[o] = tag
            for i in range(8):
                out[o + 1 + i] = time >> (8 * i) & 255
            self.o = o + 9

    def put_text(self, tag: int, start: int, size: int) -> None:
        if self.room(size + 11):
            self.out[self.o] = tag
            self.o += 1
            self.length(size)
            self.o = copy(self.out, self.o, self.src, start, size)

    def put_id(self, tag: int, start: int, size: int, wanted: int) -> None:
        """A trace or span id, cut to its length or filled up with zeros."""
        if size <= 0 or not self.room(wanted + 2):
            return
        out = self.out
        out[self.o] = tag
        out[self.o + 1] = wanted
        o = copy(out, self.o + 2, self.src, start, min(size, wanted))
        self.o += 2 + wanted
        while o < self.o:
            out[o] = 0
            o += 1

    def put_word(self, tag: int, word: bytes) -> None:
        """A word of our own, of at most 120 bytes."""
        mark = self.open(tag)
        if self.room(120):
            self.o = put(self.out, self.o, word)
        self.close(mark)

    def open(self, tag: int) -> int:
        """Begins a message, with one byte for its length: what `close` is to be told."""
        if self.room(2):
            self.out[self.o] = tag
            self.o += 2
        return self.o

    def close(self, mark: int) -> None:
        if not self.room(9):
            return
        size = end = self.o - mark
        extra = 0
        while end > 127:
            end >>= 7
            extra += 1
        if extra > 0:
            move(self.out, mark + extra, mark, size)
        self.o = mark - 1
        self.length(size)
        self.o += size

    def put_attribute(self, tag: int) -> None:
        """The KeyValue of the `entry` just read."""
        mark = self.open(tag)
        self.put_text(0x0A, self.key, self.key_size)
        value = self.open(0x12)
        if self.kind == 1:
            self.put_text(0x0A, self.text, self.text_size)
        elif self.kind == 2:
            self.put_number(0x18, self.value)
        elif self.kind == 3:
            self.put_number(0x10, 1 if self.value != 0 else 0)
        elif self.kind == 4:
            if self.room(9):
                self.out[self.o] = 0x21
                self.o = copy(self.out, self.o + 1, self.src, self.value, 8)
        else:
            self.put_word(0x0A, b"<Unknown OpenCensus attribute value type>")
        self.close(value)
        self.close(mark)

    def put_own(self, tag: int, key: bytes, value_tag: int, value: int) -> None:
        """A KeyValue of our own: a number or a bool."""
        mark = self.open(tag)
        self.put_word(0x0A, key)
        inner = self.open(0x12)
        self.put_number(value_tag, value)
        self.close(inner)
        self.close(mark)

    def attributes(self, at: int, end: int, tag: int, dropped_tag: int, is_spans: bool) -> None:
        dropped = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.entry(self.content, at)
                if is_spans and (
                    (self.drops_kind and self.is_word(self.key, self.key_size, 0, 9))
                    or (self.drops_status and self.is_word(self.key, self.key_size, 9, 16))
                ):
                    continue
                self.put_attribute(tag)
            elif self.tag == 0x10:
                dropped = self.number & self.low
        if dropped != 0:
            self.put_number(dropped_tag, dropped)

    def tracestate(self, at: int, end: int, tag: int) -> None:
        """W3C's form: "key=value,key=value"."""
        mark = self.open(tag)
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag != 0x0A:
                continue
            inner = self.content
            self.key = self.key_size = self.text = self.text_size = 0
            while inner < at:
                inner = self.field(inner, at)
                if inner < 0:
                    return
                if self.tag == 0x0A:
                    self.key = self.content
                    self.key_size = inner - self.content
                elif self.tag == 0x12:
                    self.text = self.content
                    self.text_size = inner - self.content
            if self.room(self.key_size + self.text_size + 2):
                if self.o > mark:
                    self.out[self.o] = ord(",")
                    self.o += 1
                self.o = copy(self.out, self.o, self.src, self.key, self.key_size)
                self.out[self.o] = ord("=")
                self.o = copy(self.out, self.o + 1, self.src, self.text, self.text_size)
        self.close(mark)

    def event(self, at: int, end: int) -> None:
        mark = self.open(0x5A)
        value = value_end = kind = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.put_time(0x09, self.timestamp(self.content, at))
            elif self.tag == 0x12 or self.tag == 0x1A:
                kind = self.tag
                value = self.content
                value_end = at
        if kind == 0x12:
            while value < value_end:
                value = self.field(value, value_end)
                if value < 0:
                    return
                if self.tag == 0x0A:
                    self.string(self.content, value)
                    self.put_text(0x12, self.text, self.text_size)
                elif self.tag == 0x12:
                    self.attributes(self.content, value, 0x1A, 0x20, False)
        elif kind == 0x1A:
            self.put_word(0x12, b"message")
            self.message_event(value, value_end)
        else:
            self.put_word(0x12, b"An unknown OpenCensus TimeEvent type was detected when translating")
        self.close(mark)

    def message_event(self, at: int, end: int) -> None:
        kind = id = size = compressed_size = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x08:
                kind = self.number
            elif self.tag == 0x10:
                id = self.number
            elif self.tag == 0x18:
                size = self.number
            elif self.tag == 0x20:
                compressed_size = self.number
        mark = self.open(0x1A)
        self.put_word(0x0A, b"message.type")
        inner = self.open(0x12)
        if kind == 1:
            self.put_word(0x0A, b"SENT")
        elif kind == 2:
            self.put_word(0x0A, b"RECEIVED")
        else:
            self.put_word(0x0A, b"TYPE_UNSPECIFIED")
        self.close(inner)
        self.close(mark)
        self.put_own(0x1A, b"messaging.message_id", 0x18, id)
        self.put_own(0x1A, b"messaging.message_payload_size_bytes", 0x18, size)
        self.put_own(0x1A, b"messaging.message_payload_compressed_size_bytes", 0x18, compressed_size)

    def events(self, at: int, end: int) -> None:
        annotations = messages = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.event(self.content, at)
            elif self.tag == 0x10:
                annotations = self.number
            elif self.tag == 0x18:
                messages = self.number
        dropped = (annotations + messages) & self.low
        if dropped != 0:
            self.put_number(0x60, dropped)

    def links(self, at: int, end: int) -> None:
        dropped = 0
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                mark = self.open(0x6A)
                inner = self.content
                while inner < at:
                    inner = self.field(inner, at)
                    if inner < 0:
                        return
                    if self.tag == 0x0A:
                        self.put_id(0x0A, self.content, inner - self.content, 16)
                    elif self.tag == 0x12:
                        self.put_id(0x12, self.content, inner - self.content, 8)
                    elif self.tag == 0x22:
                        self.attributes(self.content, inner, 0x22, 0x28, False)
                    elif self.tag == 0x2A:
                        self.tracestate(self.content, inner, 0x1A)
                self.close(mark)
            elif self.tag == 0x10:
                dropped = self.number & self.low
        if dropped != 0:
            self.put_number(0x70, dropped)

    def span(self, start: int, end: int) -> None:
        """One ScopeSpans.spans; where the span has a resource of its own and that is not wanted, it is counted as apart instead."""
        self.kind_said = self.status_code = 0
        self.status_said = has_resource = has_status = has_same = False
        kind = code = same = status = status_size = 0
        at = start
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x3A:
                self.look_for_special(self.content, at)
            elif self.tag == 0x70:
                kind = self.number & self.low
            elif self.tag == 0x82:
                has_resource = True
            elif self.tag == 0x5A:
                has_status = True
                inner = self.content
                while inner < at:
                    inner = self.field(inner, at)
                    if inner < 0:
                        return
                    if self.tag == 0x08:
                        code = self.number & self.low
                    elif self.tag == 0x12:
                        status = self.content
                        status_size = inner - self.content
            elif self.tag == 0x62:
                has_same = True
                inner = self.content
                while inner < at:
                    inner = self.field(inner, at)
                    if inner < 0:
                        return
                    if self.tag == 0x08:
                        same = 1 if self.number != 0 else 0
        if has_resource and not self.is_apart:
            self.apart += 1
            return
        self.drops_kind = kind == 0 and self.kind_said != 0
        self.drops_status = has_status and self.status_said
        mark = self.open(0x12)
        at = start
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return
            if self.tag == 0x0A:
                self.put_id(0x0A, self.content, at - self.content, 16)
            elif self.tag == 0x12:
                self.put_id(0x12, self.content, at - self.content, 8)
            elif self.tag == 0x1A:
                self.put_id(0x22, self.content, at - self.content, 8)
            elif self.tag == 0x22:
                self.string(self.content, at)
                self.put_text(0x2A, self.text, self.text_size)
            elif self.tag == 0x2A:
                self.put_time(0x39, self.timestamp(self.content, at))
            elif self.tag == 0x32:
                self.put_time(0x41, self.timestamp(self.content, at))
            elif self.tag == 0x3A:
                self.attributes(self.content, at, 0x4A, 0x50, True)
            elif self.tag == 0x4A:
                self.events(self.content, at)
            elif self.tag == 0x52:
                self.links(self.content, at)
            elif self.tag == 0x7A:
                self.tracestate(self.content, at, 0x1A)
        if has_same:
            self.put_own(0x4A, b"opencensus.same_process_as_parent_span", 0x10, same)
        if kind == 1 or kind == 2:
            self.put_number(0x30, kind + 1)
        elif self.drops_kind:
            self.put_number(0x30, self.kind_said)
        if has_status:
            inner = self.open(0x7A)
            if status_size > 0:
                self.put_text(0x12, status, status_size)
            if self.status_said:
                self.put_number(0x18, self.status_code & self.low)
            elif code != 0:
                self.put_number(0x18, 2)
            self.close(inner)
        self.close(mark)

    def each_span(self) -> None:
        at = 0
        while at < self.size and self.reason == 0:
            at = self.field(at, self.size)
            if at < 0:
                return
            if self.tag == 0x12:
                self.span(self.content, at)
            elif self.tag == 0x0A:
                self.node = self.content
                self.node_size = at - self.content
            elif self.tag == 0x1A:
                self.resource = self.content
                self.resource_size = at - self.content


def translate(message: bytes, limit: int, apart: bool = False) -> Spans:
    """The spans of this request that have no resource of their own, or with `apart` all.

    Raises DecodeError where it is no request, or where the spans would be more than `limit` bytes. Thread-safe; works without the GIL.
    """
    work = _Translation(message, apart)
    room = min(limit, len(message) + len(message) // 2 + 1024)
    while True:
        work.allocate(room)
        with cython.nogil:
            work.each_span()
        if work.reason != _FULL or room == limit:
            break
        room = min(limit, 4 * room)
    if work.reason == _FULL:
        raise DecodeError(f"the spans would take more than {limit} bytes in OTLP")
    if work.reason != 0:
        raise DecodeError(f"not an OpenCensus request: {_REASONS[work.reason]}, at byte {work.where} of {len(message)}")
    node = work.message[work.node : work.node + work.node_size] if work.node >= 0 else None
    resource = work.message[work.resource : work.resource + work.resource_size] if work.resource >= 0 else None
    return Spans(bytes(memoryview(work.buffer)[: work.o]), work.apart, node, resource)
