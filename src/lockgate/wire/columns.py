# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Log records -> columns, as Arrow lays them out and a database takes them. A compiled kernel: see `lockgate.wire`.

It writes what nearly every record is: fields that are there once, attributes and bodies of text, whole numbers, truth, lists and maps,
as JSON. A record that is anything else (floating point, bytes, a key twice) is the caller's to describe. Against a dict per record
and JSON text for the database to parse again, this and the insert of its columns cost a seventh.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

import cython

if not cython.compiled:  # columns.pxd has the compiled ones
    from lockgate.wire.memory import copy, equal, new_buffer, put

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

_MOST_BYTES = 1 << 28  # JSON of it takes six times as much at most, and Arrow counts that in 31 bits
_MOST_MEMBERS = 64  # of one map: each is compared with all before it
_DEPTH = 30

TEXTS = ("severity", "body", "attributes", "trace_id", "span_id", "event_name", "scope")
"""The columns of text, in their order."""
# Their numbers. That a record has a severity number is noted as if it were one more.
_SEVERITY, _BODY, _ATTRIBUTES, _TRACE_ID, _SPAN_ID, _EVENT_NAME, _SCOPE = range(7)
_NUMBER = 7
_COLUMNS = 8
_ALL = 2**64 - 1
_LATEST = 2**63 - 1


class Row(NamedTuple):
    """A record as the caller describes it: its texts in UTF-8, by column (without the scope), and None for what it has not."""

    time_unix_nano: int
    severity_number: int | None
    texts: tuple[bytes | None, ...]


class Text(NamedTuple):
    """A column of text, in the buffers of Arrow's `string`."""

    valid: bytes | None
    """A bit for each record, set where it has a value; None where all have."""
    ends: memoryview
    """int32: where each value begins, and the last one's end."""
    data: memoryview


class LogColumns(NamedTuple):
    """The records of a request, in their order."""

    records: int
    resources: list[tuple[bytes, int]]
    """Each ResourceLogs' raw resource, and how many of the records are its."""
    time_unix_nano: array[int]
    """int64; the observed time where there is no other, at most 2**63-1."""
    severity_number: array[int]
    """uint8; of value where `severity_number_valid` says so."""
    severity_number_valid: bytes | None
    texts: list[Text]
    """In the order of TEXTS."""


class _Work:
    """One request while it is worked on."""

    def __init__(self, payload: bytes) -> None:
        self.payload = bytes(payload)
        self.src, self.size = self.payload, len(payload)
        self.resources: list[tuple[bytes, int]] = []
        self.places = array("q")
        self.content = self.records = self.scopes = self.scope = self.row = self.at = 0
        self.number = self.json_at = self.json_size = self.json_from = self.json_of = self.present = 0
        self.lacks = 0
        self.none = bytearray()
        self.buffers = [self.none] * 7
        self.outs, self.fills, self.rooms = [self.none] * 7, [0] * 7, [0] * 7

    def field(self, at: int, end: int) -> int:
        """Behind the field there, or -1 where it is not plain (tag of one byte, within the message).

        `content` is behind its tag and length; `number` the value of a varint or a fixed64.
        """
        src = self.src
        tag = src[at]
        wire = tag & 7
        at += 1
        if tag < 8 or tag > 127:
            return -1
        if wire == 1 or wire == 5:
            width = 8 if wire == 1 else 4
            self.content = at
            if end - at < width:
                return -1
            value = shift = 0
            for i in range(width):
                byte = src[at + i]
                value |= byte << shift
                shift += 8
            self.number = value
            return at + width
        if wire != 0 and wire != 2:
            return -1
        value = shift = 0
        while at < end and shift < 64:
            byte = src[at]
            value |= (byte & 127) << shift
            at += 1
            if byte < 128:
                value &= _ALL
                self.number = value
                self.content = at
                if wire == 0:
                    return at
                size = end - at
                return at + value if value <= size else -1
            shift += 7
        return -1

    # --- Where the records are ----------------------------------------------------------------------------------------------------------

    def frames(self) -> bool:
        """Notes resources, and where each scope has its records and its name."""
        at = 0
        while at < self.size:
            stop = self.field(at, self.size) if self.src[at] == 0x0A else -1
            if stop < 0:
                return False
            raw, before, has_resource = b"", self.records, False
            at = self.content
            while at < stop:
                start = at
                at = self.field(start, stop)
                if at < 0:
                    return False
                if self.src[start] == 0x0A:
                    if has_resource:
                        return False
                    raw, has_resource = self.payload[self.content : at], True
                elif self.src[start] == 0x12 and not self.scope_logs(self.content, at):
                    return False
            self.resources.append((raw, self.records - before))
        self.scopes = len(self.places) // 4
        self.spots = self.places if self.places else array("q", [0])
        return True

    def scope_logs(self, at: int, end: int) -> bool:
        first = last = name = name_end = count = 0
        has_scope = False
        while at < end:
            start = at
            at = self.field(start, end)
            if at < 0:
                return False
            if self.src[start] == 0x12:
                if count == 0:
                    first = start
                elif last != start:
                    return False
                last = at
                count += 1
            elif self.src[start] == 0x0A:
                if has_scope:
                    return False
                has_scope = True
                inner = self.content
                while inner < at:
                    begin = inner
                    inner = self.field(begin, at)
                    if inner < 0:
                        return False
                    if self.src[begin] == 0x0A:
                        name = self.content
                        name_end = inner
        if count:
            self.places.extend((first, last, name, name_end))
            self.records += count
        return True

    # --- The buffers --------------------------------------------------------------------------------------------------------------------

    def allocate(self) -> None:
        each = self.records + 1
        self.ends = array("i", [0]) * (7 * each)
        self.bits = bytearray(_COLUMNS * ((self.records + 7) // 8) + 1)
        self.times = array("q", [0]) * each
        self.numbers = array("B", [0]) * each
        self.end_of, self.bit_of, self.time_of, self.number_of = self.ends, self.bits, self.times, self.numbers
        self.at = self.spots[0]

    def grow(self) -> None:
        """Room for the record of so many bytes that lacks it."""
        for column in range(7):
            needed = self.fills[column] + self.need(column, self.lacks)
            if needed > self.rooms[column]:
                fill = self.fills[column]
                # Bodies and attributes are most of a payload, and of a column that needs room once much more will need it.
                size = max(needed, 2 * self.rooms[column], self.size if column in (_BODY, _ATTRIBUTES) else 0)
                larger = new_buffer(size)
                memoryview(larger)[:fill] = memoryview(self.buffers[column])[:fill]
                self.buffers[column] = self.outs[column] = larger
                self.rooms[column] = size

    def need(self, column: int, size: int) -> int:
        """How much a record of so many bytes may take at most: JSON writes six bytes for a control character, hexadecimal two for one."""
        return 6 * size + 16 if column in (_BODY, _ATTRIBUTES) else 2 * size + 16

    def has_room(self, size: int) -> bool:
        lacks = False
        for column in range(7):
            lacks |= self.fills[column] + self.need(column, size) > self.rooms[column]
        return not lacks

    # --- Values -------------------------------------------------------------------------------------------------------------------------
    # Each writes at out[o:] and gives the position behind, or -1 where the value is left to the caller.

    def text(self, out: bytearray, o: int, at: int, end: int) -> int:
        """A JSON string."""
        src = self.src
        out[o] = ord('"')
        o += 1
        while at < end:
            start = at
            while at < end and src[at] >= 32 and src[at] != ord('"') and src[at] != ord("\\"):
                at += 1
            o = copy(out, o, src, start, at - start)
            if at < end:
                byte = src[at]
                at += 1
                out[o] = ord("\\")
                o += 1
                if byte == ord('"') or byte == ord("\\"):
                    out[o] = byte
                elif byte == 8:
                    out[o] = ord("b")
                elif byte == 9:
                    out[o] = ord("t")
                elif byte == 10:
                    out[o] = ord("n")
                elif byte == 12:
                    out[o] = ord("f")
                elif byte == 13:
                    out[o] = ord("r")
                else:
                    o = put(out, o, b"u00")
                    out[o] = 48 + (byte >> 4)
                    o += 1
                    out[o] = _hex_digit(byte & 15)
                o += 1
        out[o] = ord('"')
        return o + 1

    def value(self, out: bytearray, o: int, at: int, end: int, depth: int) -> int:
        """An AnyValue as JSON."""
        if at == end:
            return put(out, o, b"null")
        tag = self.src[at]
        stop = self.field(at, end)
        start = self.content
        if stop != end or depth == _DEPTH:
            return -1
        if tag == 0x0A:
            return self.text(out, o, start, end)
        if tag == 0x10:
            return put(out, o, b"true") if self.number != 0 else put(out, o, b"false")
        if tag == 0x18:
            return _decimal(out, o, self.number)
        if tag == 0x2A:
            out[o] = ord("[")
            o += 1
            at = start
            while at < end:
                begin = at
                at = self.field(begin, end)
                if at < 0 or self.src[begin] != 0x0A:
                    return -1
                if begin > start:
                    out[o] = ord(",")
                    o += 1
                o = self.value(out, o, self.content, at, depth + 1)
                if o < 0:
                    return -1
            out[o] = ord("]")
            return o + 1
        if tag == 0x32:
            return self.members(out, o, start, end, 0x0A, depth + 1)
        return -1

    def key(self, at: int, end: int) -> int:
        """Where the key of the KeyValue in [at, end) begins, or -1 where it is not plain; an absent key is an empty one.

        `number` is how long it is, `content` is behind it.
        """
        self.number = 0
        self.content = at
        if at == end or self.src[at] != 0x0A:
            return at
        stop = self.field(at, end)
        if stop < 0:
            return -1
        start = self.content
        self.content = stop
        return start

    def members(self, out: bytearray, o: int, first: int, end: int, tag: int, depth: int) -> int:
        """A map of the KeyValues that are the fields with this tag in [first, end), where there is nothing else."""
        out[o] = ord("{")
        o += 1
        at = first
        count = 0
        while at < end:
            begin = at
            at = self.field(begin, end)
            count += 1
            if at < 0 or self.src[begin] != tag or count > _MOST_MEMBERS:
                return -1
            start = self.key(self.content, at)
            if start < 0:
                return -1
            size = self.number
            value = self.content
            other = first
            while other < begin:
                following = self.field(other, end)
                there = self.key(self.content, following)
                if self.number == size and equal(self.src, there, self.src, start, size):
                    return -1
                other = following
            if count > 1:
                out[o] = ord(",")
                o += 1
            o = self.text(out, o, start, start + size)
            out[o] = ord(":")
            o += 1
            stop = value
            if value < at:
                stop = self.field(value, at) if self.src[value] == 0x12 else -1
                value = self.content
            if stop != at:
                return -1
            o = self.value(out, o, value, at, depth)
            if o < 0:
                return -1
        out[o] = ord("}")
        return o + 1

    # --- Records ------------------------------------------------------------------------------------------------------------------------

    def attributes(self, first: int, last: int) -> bool:
        """The attributes in [first, last); often those of the record before, and comparing is cheaper than writing."""
        out = self.outs[_ATTRIBUTES]
        o = self.fills[_ATTRIBUTES]
        size = last - first
        if self.json_size > 0 and self.json_of == size and equal(self.src, self.json_from, self.src, first, size):
            stop = copy(out, o, out, self.json_at, self.json_size)
        else:
            stop = self.members(out, o, first, last, 0x32, 0)
            if stop < 0:
                return False
            self.json_from = first
            self.json_of = size
        self.json_at = o
        self.json_size = stop - o
        self.keep(_ATTRIBUTES, stop)
        return True

    def body(self, at: int, end: int) -> bool:
        out = self.outs[_BODY]
        o = self.fills[_BODY]
        if at == end:
            return True
        if self.src[at] == 0x0A:  # text stands for itself
            if self.field(at, end) != end:
                return False
            self.keep(_BODY, copy(out, o, self.src, self.content, end - self.content))
            return True
        o = self.value(out, o, at, end, 0)
        if o >= 0:
            self.keep(_BODY, o)
        return o >= 0

    def hexadecimal(self, column: int, at: int, end: int) -> None:
        out = self.outs[column]
        o = self.fills[column]
        while at < end:
            byte = self.src[at]
            out[o] = _hex_digit(byte >> 4)
            out[o + 1] = _hex_digit(byte & 15)
            o += 2
            at += 1
        self.keep(column, o)

    def keep(self, column: int, fill: int) -> None:
        """The record has a value in this column, up to here."""
        self.fills[column] = fill
        self.present |= 1 << column

    def record(self, at: int, end: int) -> bool:
        """Writes the record; False where it is left to the caller."""
        src = self.src
        time = observed = number = 0
        attributes = attributes_end = severity = severity_end = seen = 0
        self.present = 0
        while at < end:
            start = at
            at = self.field(start, end)
            if at < 0:
                return False
            tag = src[start]
            content = self.content
            if tag == 0x32:
                if attributes == 0:
                    attributes = start
                elif attributes_end != start:
                    return False
                attributes_end = at
                continue
            if seen & 1 << (tag >> 3):
                return False
            seen |= 1 << (tag >> 3)
            if tag == 0x09:
                time = self.number
            elif tag == 0x59:
                observed = self.number
            elif tag == 0x10:
                if self.number > 127:
                    return False
                number = self.number
            elif tag == 0x1A:
                severity = content
                severity_end = at
            elif tag == 0x2A:
                if not self.body(content, at):
                    return False
            elif tag == 0x4A:
                if at > content:
                    self.hexadecimal(_TRACE_ID, content, at)
            elif tag == 0x52:
                if at > content:
                    self.hexadecimal(_SPAN_ID, content, at)
            elif tag == 0x62 and at > content:
                self.keep(_EVENT_NAME, copy(self.outs[_EVENT_NAME], self.fills[_EVENT_NAME], src, content, at - content))
        if attributes > 0 and not self.attributes(attributes, attributes_end):
            return False
        if severity_end > severity:
            self.keep(_SEVERITY, copy(self.outs[_SEVERITY], self.fills[_SEVERITY], src, severity, severity_end - severity))
        elif number > 0 and number < 25:
            self.keep(_SEVERITY, _put_level(self.outs[_SEVERITY], self.fills[_SEVERITY], (number - 1) // 4))
        if time == 0:
            time = observed
        self.time_of[self.row] = _LATEST if time >> 63 else time
        if number > 0:
            self.number_of[self.row] = number
            self.present |= 1 << _NUMBER
        return True

    def end_row(self, start: int, end: int) -> None:
        """The record is complete but for its scope's name, which is in [start, end)."""
        if end > start:
            self.keep(_SCOPE, copy(self.outs[_SCOPE], self.fills[_SCOPE], self.src, start, end - start))
        row = self.row
        each = self.records + 1
        width = (self.records + 7) // 8
        for column in range(7):
            self.end_of[column * each + row + 1] = self.fills[column]
        for column in range(_COLUMNS):
            if self.present & 1 << column:
                self.bit_of[column * width + (row >> 3)] |= 1 << (row & 7)
        self.row += 1

    def each_record(self) -> bool:
        """Goes on until all are written (True), one lacks room (`lacks`), or one is left to the caller."""
        self.lacks = 0
        while self.scope < self.scopes:
            last = self.spots[4 * self.scope + 1]
            name = self.spots[4 * self.scope + 2]
            name_end = self.spots[4 * self.scope + 3]
            while self.at < last:
                stop = self.field(self.at, last)
                start = self.content
                if not self.has_room(stop - start + name_end - name):
                    self.lacks = stop - start + name_end - name + 1
                    return False
                if not self.record(start, stop):
                    for column in range(7):
                        self.fills[column] = self.end_of[column * (self.records + 1) + self.row]
                    return False
                self.end_row(name, name_end)
                self.at = stop
            self.scope += 1
            if self.scope < self.scopes:
                self.at = self.spots[4 * self.scope]
        return True

    def take(self, describe: Callable[[bytes], Row]) -> None:
        """Writes the record that was left to the caller."""
        stop = self.field(self.at, self.size)
        name = self.spots[4 * self.scope + 2]
        name_end = self.spots[4 * self.scope + 3]
        row = describe(self.payload[self.content : stop])
        self.lacks = max(max((len(text) for text in row.texts if text is not None), default=0), name_end - name) + 1
        self.grow()
        self.json_size = 0
        self.present = 0
        for column, text in enumerate(row.texts):
            if text is not None:
                at = self.fills[column]
                memoryview(self.buffers[column])[at : at + len(text)] = text
                self.keep(column, at + len(text))
        self.time_of[self.row] = row.time_unix_nano
        if row.severity_number is not None:
            self.number_of[self.row] = row.severity_number
            self.present |= 1 << _NUMBER
        self.end_row(name, name_end)
        self.at = stop

    def valid(self, column: int) -> bytes | None:
        width = (self.records + 7) // 8
        bits = bytes(self.bits[column * width : (column + 1) * width])
        return None if int.from_bytes(bits, "little").bit_count() == self.records else bits

    def columns(self) -> LogColumns:
        each, ends = self.records + 1, memoryview(self.ends)
        texts = [
            Text(self.valid(column), ends[column * each : (column + 1) * each], memoryview(self.buffers[column])[: self.fills[column]])
            for column in range(7)
        ]
        return LogColumns(
            self.records, self.resources, self.times[: self.records], self.numbers[: self.records], self.valid(_NUMBER), texts
        )


def _hex_digit(value: int) -> int:
    return 48 + value if value < 10 else 87 + value


def _put_level(out: bytearray, o: int, level: int) -> int:
    """OpenTelemetry's name of a severity number, by its four."""
    if level == 0:
        return put(out, o, b"TRACE")
    if level == 1:
        return put(out, o, b"DEBUG")
    if level == 2:
        return put(out, o, b"INFO")
    if level == 3:
        return put(out, o, b"WARN")
    if level == 4:
        return put(out, o, b"ERROR")
    return put(out, o, b"FATAL")


def _decimal(out: bytearray, o: int, number: int) -> int:
    """An int64, given as its varint."""
    if number >> 63:
        out[o] = ord("-")
        o += 1
        number = (number ^ _ALL) + 1
    digits = 1
    rest = number // 10
    while rest:
        digits += 1
        rest //= 10
    for i in range(digits):
        out[o + digits - 1 - i] = 48 + number % 10
        number //= 10
    return o + digits


def log_columns(payload: bytes, describe: Callable[[bytes], Row]) -> LogColumns | None:
    """The records of a valid ExportLogsServiceRequest; `describe` is asked for those encoded LogRecords that are not written here.

    None where the request is not plain (tags of two bytes, records or a resource in several places) or larger than 256 MiB. Of what is
    not valid OTLP the columns are of no use, and their text may not be UTF-8. Thread-safe; works without the GIL.
    """
    if len(payload) > _MOST_BYTES:
        return None
    work = _Work(payload)
    if not work.frames():
        return None
    work.allocate()
    while True:
        with cython.nogil:
            done = work.each_record()
        if done:
            return work.columns()
        if work.lacks:
            work.grow()
        else:
            work.take(describe)
