# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Container log lines -> OTLP LogRecords. A compiled kernel: see `lockgate.wire`.

Formats: CRI as containerd and CRI-O write it (kubelet, CRI logging: `time stream tag[:tag] message`) and docker's json-file. What
becomes of a line is what the `container` operator of opentelemetry-collector-contrib makes of it: body, time, `log.iostream` (in the
caller's attributes), `logtag`; a joined record has the time and the tag of its first part (recombine's overwrite_with: oldest).

Deliberate differences to that operator: streams are joined apart; docker's partial lines are joined as well, and their final newline is
taken off; only the first of several tags decides (F:x is complete); a tag that is neither P nor F makes the line malformed, instead of a
part of the next record; an offset is accepted whatever the runtime (containerd writes the node's zone); times are those of RFC 3339 with
at most nine digits of fraction (Go's parser takes a comma, and more digits). A carriage return before the newline is taken off as there,
but not from a part that another follows. A malformed line is kept, with `time_unix_nano` 0.

The chunk's offset is the whole state: where a group (P ... F) is open at the chunk's end, everything since the start of the oldest
overlapping group is undone, and `consumed` points there.
"""

from __future__ import annotations

from array import array

import cython

from lockgate.wire.parsed import Left, Parsed
from lockgate.wire.protobuf import key_values

if not cython.compiled:  # cri.pxd has the compiled ones
    from lockgate.wire.memory import Buffer, copy, count, find, is_utf8, new_buffer, put, same, starts

compiled: bool = cython.compiled
"""Whether this is the compiled form: for status, and for those who wonder about the speed."""

# Formats. AUTO looks at each line: one that opens with a brace is docker's.
AUTO, DOCKER, CRI, PLAIN = 0, 1, 2, 3
# Flags, to be added up.
FLUSH_GROUPS = 1
"""Emit groups that are open at the chunk's end, flagged, instead of leaving them for the next chunk."""
FLUSH_LINE = 2
"""Take what is behind the last newline as a whole line."""
TRIM_LEADING = 4
"""Take white space off the front of plain lines and spans (filelog without preserve_leading_whitespaces)."""
TRIM_TRAILING = 8
"""Take white space off the end of plain lines, spans and CRI records (filelog without preserve_trailing_whitespaces)."""

TRUNCATED_ATTRIBUTE = "log.record.truncated"
"""A true attribute on records cut at `max_record_bytes` and on those flushed without their last part."""
_TRUNCATED = key_values(6, [(TRUNCATED_ATTRIBUTE, True)])


class _Chunk:
    """One chunk while it is worked on: what it says, and the records so far."""

    def __init__(
        self, chunk: bytes, resource: bytes, attributes: tuple[bytes, bytes, bytes], observed: int, limits: tuple[int, int], flags: int
    ) -> None:
        self.max_records, self.max_record_bytes = limits
        if self.max_records < 1 or self.max_record_bytes < 1:
            raise ValueError(f"max_records and max_record_bytes must be positive, not {limits[0]} and {limits[1]}")
        # What the compiled form has pointers to: it must neither go nor grow.
        self.kept = (bytes(chunk), bytes(resource), *map(bytes, attributes), _TRUNCATED)
        self.src, self.size, self.is_text = self.kept[0], len(chunk), chunk.isascii()
        self.head, self.head_size, self.observed = self.kept[1], len(resource), observed
        self.attributes, self.sizes = [b"", b"", b"", b""], [0, 0, 0, 0]  # by stream: stdout, stderr, neither; then the flag
        for i in range(4):
            encoded = self.kept[2 + i]
            self.attributes[i], self.sizes[i] = encoded, len(encoded)
        self.flush_groups, self.flush_line = bool(flags & FLUSH_GROUPS), bool(flags & FLUSH_LINE)
        self.trim_leading, self.trim_trailing = bool(flags & TRIM_LEADING), bool(flags & TRIM_TRAILING)
        self.records = self.lines = self.joined = self.empty = self.malformed = self.truncated = self.partial = self.consumed = 0
        self.left = self.pending = 0
        self.time = self.tag = self.tag_end = self.start = self.end = self.stream = 0
        self.is_part = self.is_escaped = False
        self.second_at = -1
        self.parts, self.fill, self.opened, self.times, self.tags, self.tag_ends = [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]

    def allocate(self, most: int, room: int) -> None:
        """For so many records and twice `room` bytes of joined body. Bodies and tags are at most the chunk: no byte goes to two records."""
        self.begin = self.o = self.head_size + 44
        each = 65 + max(self.sizes[0], self.sizes[1], self.sizes[2]) + self.sizes[3]
        self.room = room
        self.area = [self.begin + self.size + most * each, 0]
        self.area[1] = self.area[0] + room
        self.buffer = self.out = new_buffer(self.area[1] + room)

    def parsed(self) -> Parsed:
        payload = bytes(memoryview(self.buffer)[self.begin : self.o]) if self.records else b""
        counts = (self.records, self.lines, self.joined, self.empty, self.malformed, self.truncated, self.partial)
        return Parsed(payload, *counts, self.consumed, Left(self.left), self.pending)

    # --- Headers: what a line says ------------------------------------------------------------------------------------------------------
    # True where the line is in the format; then time, stream, tag..tag_end, start..end (the body), is_part and is_escaped are set.

    def cri(self, p: int, end: int) -> bool:
        src = self.src
        stop = end - 1 if end > p and src[end - 1] == ord("\r") else end
        p = self.timestamp(p, stop)
        if p < 0 or stop - p < 9 or src[p] != ord(" ") or src[p + 7] != ord(" "):
            return False
        if starts(src, p + 1, stop, b"stdout"):
            self.stream = 0
        elif starts(src, p + 1, stop, b"stderr"):
            self.stream = 1
        else:
            return False
        p += 8
        self.tag = p
        if src[p] != ord("F") and src[p] != ord("P"):
            return False
        self.is_part = src[p] == ord("P")
        self.is_escaped = False
        p += 1
        if p < stop and src[p] != ord(" "):
            if src[p] != ord(":"):
                return False
            while p < stop and src[p] != ord(" "):
                if src[p] < 33 or src[p] > 126 or p - self.tag >= 64:
                    return False
                p += 1
        self.tag_end = p
        if p < stop:
            self.start = p + 1
            self.end = end if self.is_part else stop
        else:
            self.start = self.end = stop
        return True

    def timestamp(self, p: int, end: int) -> int:
        """RFC 3339 at p: the position behind it, `time` in nanoseconds; -1 where it is no time, or outside of 0 .. 2**63-1 ns."""
        src = self.src
        if end - p < 20:
            return -1
        # Consecutive lines mostly share their second, and comparing is cheaper than parsing.
        if self.second_at < 0 or not same(src, p, self.second_at, 19):
            second = _seconds(src, p)
            if second < 0:
                return -1
            self.second_at = p
            self.second = second
        total = self.second - 86400
        fraction = 0
        p += 19
        if src[p] == ord("."):
            p += 1
            scale = 1000000000
            while p < end and src[p] >= 48 and src[p] <= 57:
                if scale == 1:
                    return -1
                fraction = fraction * 10 + src[p] - 48
                scale //= 10
                p += 1
            if scale == 1000000000:
                return -1
            fraction *= scale
        if p >= end:
            return -1
        if src[p] == ord("Z"):
            p += 1
        elif src[p] == ord("+") or src[p] == ord("-"):
            if end - p < 6 or src[p + 3] != ord(":"):
                return -1
            hours = _two(src, p + 1)
            minutes = _two(src, p + 4)
            if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
                return -1
            offset = hours * 3600 + minutes * 60
            total += -offset if src[p] == ord("+") else offset
            p += 6
        else:
            return -1
        latest = 9223372036  # 2**63-1 ns is 2262-04-11T23:47:16.854775807Z
        if total < 0 or total > latest or (total == latest and fraction > 854775807):
            return -1
        self.time = total * 1000000000 + fraction
        return p

    def docker(self, p: int, end: int) -> bool:
        """A strict JSON object with the strings log, stream and time, in any order, and whatever else; of equal keys the last counts."""
        self.start = self.time_start = self.stream = -1
        self.tag = self.tag_end = 0
        p = _blanks(self.src, p, end)
        if _at(self.src, p, end) != ord("{"):
            return False
        p = self.value(p, end, 0)
        if p < 0 or _blanks(self.src, p, end) != end or self.start < 0 or self.stream < 0 or self.time_start < 0:
            return False
        return self.timestamp(self.time_start, self.time_end) == self.time_end

    def member(self, key: int, start: int, end: int) -> bool:
        """Notes what src[start:end], the value just parsed, is to docker; False where that cannot be. `key`: behind its opening quote."""
        src = self.src
        if starts(src, key, start, b'stream"'):
            self.stream = 0 if starts(src, start, end, b'"stdout"') else 1 if starts(src, start, end, b'"stderr"') else -1
            return self.stream >= 0
        if starts(src, key, start, b'time"'):
            self.time_start = start + 1
            self.time_end = end - 1
            return src[start] == ord('"')
        if not starts(src, key, start, b'log"'):
            return True
        if src[start] != ord('"'):
            return False
        self.start = start + 1
        self.end = end - 1
        escape = self.escape
        self.is_escaped = escape >= 0
        # Docker cuts long lines into entries, of which only the last has the newline.
        self.is_part = True
        if escape >= 0 and (
            starts(src, escape, end, b'\\n"') or starts(src, escape, end, b'\\u000a"') or starts(src, escape, end, b'\\u000A"')
        ):
            self.is_part = False
            self.is_escaped = self.escaped_before
            self.end = escape
        return True

    def value(self, p: int, end: int, depth: int) -> int:
        """Behind any JSON value at p, or -1; at most 32 levels deep, of which the line's object is the first."""
        src = self.src
        byte = _at(src, p, end)
        if byte == ord('"'):
            return self.string(p + 1, end)
        if byte != ord("{") and byte != ord("["):
            if starts(src, p, end, b"true") or starts(src, p, end, b"null"):
                return p + 4
            return p + 5 if starts(src, p, end, b"false") else _number(src, p, end)
        if depth >= 32:
            return -1
        close = byte + 2  # ASCII: the closing bracket and brace are two further
        key = 0
        p = _blanks(src, p + 1, end)
        if _at(src, p, end) == close:
            return p + 1
        while True:
            if close == ord("}"):
                key = p + 1
                p = self.string(key, end) if _at(src, p, end) == ord('"') else -1
                if p < 0:
                    return -1
                p = _blanks(src, p, end)
                if _at(src, p, end) != ord(":"):
                    return -1
                p = _blanks(src, p + 1, end)
            start = p
            p = self.value(start, end, depth + 1)
            if p < 0 or (depth == 0 and not self.member(key, start, p)):
                return -1
            p = _blanks(src, p, end)
            byte = _at(src, p, end)
            if byte == close:
                return p + 1
            if byte != ord(","):
                return -1
            p = _blanks(src, p + 1, end)

    def string(self, p: int, end: int) -> int:
        """From behind a JSON string's opening quote to behind its closing one, or -1. `escape` becomes where its last escape is, or -1."""
        src = self.src
        escape = before = -1
        while p < end:
            byte = src[p]
            if byte == ord('"'):
                self.escape = escape
                self.escaped_before = before >= 0
                return p + 1
            if byte < 32:
                return -1
            if byte != ord("\\"):
                p += 1
                continue
            before = escape
            escape = p
            kind = _at(src, p + 1, end)
            if kind == ord("u") and _hex4(src, p + 2, end) >= 0:
                p += 6
            elif kind >= 0 and kind in b'nt"\\r/bf':
                p += 2
            else:
                return -1
        return -1

    # --- Joining: what a record is made of ----------------------------------------------------------------------------------------------

    def each_line(self, line_format: int) -> None:
        src, size = self.src, self.size
        p = 0
        while p < size:
            # Never inside a group: a chunk in which a group spans more records than the limit would be read again and again.
            if self.records >= self.max_records and self.parts[0] == 0 and self.parts[1] == 0:
                self.left = 3
                break
            end = find(src, p, size, 10)
            following = end + 1
            if end < 0:
                if not self.flush_line:
                    self.left = 1
                    break
                end = following = size
            self.lines += 1
            stop = end - 1 if end > p and src[end - 1] == ord("\r") else end
            if stop == p:
                self.empty += 1
            elif line_format == 3:
                self.plain(p, stop)
            elif self.docker(p, end) if line_format == 1 or (line_format == 0 and src[p] == ord("{")) else self.cri(p, end):
                self.entry(p)
            else:
                self.malformed += 1
                self.time = self.tag = self.tag_end = 0
                self.record(2, src, p, end, False)
            p = following
        self.consumed = p
        if self.parts[0] == 0 and self.parts[1] == 0:
            return
        if self.flush_groups:
            first = 1 if self.parts[0] == 0 or (self.parts[1] > 0 and self.opened[1] < self.opened[0]) else 0
            self.close(first, True)
            self.close(1 - first, True)
            return
        self.pending = self.lines - self.empty
        (self.o, self.consumed, self.records, self.lines, self.joined, self.empty, self.malformed, self.truncated) = self.undo
        self.pending -= self.lines - self.empty
        self.left = 2

    def plain(self, start: int, end: int) -> None:
        """A line or span without a header."""
        if self.trim_leading:
            start = _blanks(self.src, start, end)
        if self.trim_trailing:
            end = _trimmed(self.src, start, end)
        if start == end:
            self.empty += 1
        else:
            self.record(2, self.src, start, end, False)

    def entry(self, p: int) -> None:
        """The line at p, whose header has been parsed: a record, or a part of one."""
        src, stream = self.src, self.stream
        if self.trim_trailing and self.tag > 0 and not self.is_part:  # docker's lines have no tag, and are not trimmed
            self.end = _trimmed(src, self.start, self.end)
        if not self.is_part and self.parts[stream] == 0 and not self.is_escaped:  # nearly every line: its bytes are the body
            self.record(stream, src, self.start, self.end, False)
            return
        if self.parts[stream] == 0:
            self.fill[stream] = 0
            self.opened[stream] = p
            self.times[stream] = self.time
            self.tags[stream] = self.tag
            self.tag_ends[stream] = self.tag_end
            if self.is_part and self.parts[1 - stream] == 0:
                # Groups that overlap are undone together: the first one's lines stand before the second's.
                self.undo = (self.o, p, self.records, self.lines - 1, self.joined, self.empty, self.malformed, self.truncated)
        self.parts[stream] += 1
        area, fill = self.area[stream], self.fill[stream]
        if fill <= self.max_record_bytes:  # beyond, one more byte is all that needs to be known
            if self.is_escaped:
                self.fill[stream] = _unescape(src, self.start, self.end, self.out, area + fill, area + self.room) - area
            else:
                size = min(self.end - self.start, self.room - fill)
                self.fill[stream] = copy(self.out, area + fill, src, self.start, size) - area
        if not self.is_part:
            self.close(stream, False)

    def close(self, stream: int, flagged: bool) -> None:
        """Emits the stream's group, if one is open; `flagged` for want of its last part."""
        if self.parts[stream] == 0:
            return
        self.joined += self.parts[stream] - 1
        self.partial += flagged
        self.parts[stream] = 0
        self.time = self.times[stream]
        self.tag = self.tags[stream]
        self.tag_end = self.tag_ends[stream]
        self.record(stream, self.out, self.area[stream], self.area[stream] + self.fill[stream], flagged)

    def each_span(self, spans: array[int]) -> None:
        for i in range(len(spans) // 2):
            if self.records >= self.max_records:
                self.left = 3
                return
            self.lines += 1
            self.consumed = spans[2 * i + 1]
            self.plain(spans[2 * i], spans[2 * i + 1])

    # --- Encoding -----------------------------------------------------------------------------------------------------------------------

    def record(self, stream: int, body: Buffer, start: int, end: int, flagged: bool) -> None:
        """One ScopeLogs.log_records field: at most 65 bytes more than body, attributes, tag and flag."""
        out, time, observed, tag_size = self.out, self.time, self.observed, self.tag_end - self.tag
        attributes_size = self.sizes[stream]
        stop = _cut(body, start, end, self.max_record_bytes)
        self.records += 1
        if stop < end:
            self.truncated += 1
            flagged = True
        size = stop - start
        value = 1 + _varint_size(size) + size
        total = 1 + _varint_size(value) + value + attributes_size
        total += (9 if time else 0) + (9 if observed else 0) + (14 + tag_size if tag_size else 0) + (self.sizes[3] if flagged else 0)
        o = self.o
        out[o] = 0x12
        o = _put_varint(out, o + 1, total)
        if time:
            out[o] = 0x09
            o = _put_fixed64(out, o + 1, time)
        out[o] = 0x2A
        o = _put_varint(out, o + 1, value)
        # string_value must be UTF-8 (OTLP common.proto): other bytes travel as bytes_value.
        out[o] = 0x0A if self.is_text or is_utf8(body, start, stop) else 0x3A
        o = _put_varint(out, o + 1, size)
        o = copy(out, o, body, start, size)
        o = copy(out, o, self.attributes[stream], 0, attributes_size)
        if tag_size:  # the attribute logtag; a tag is at most 64 bytes, so every length is one byte
            out[o] = 0x32
            out[o + 1] = 12 + tag_size
            o = put(out, o + 2, b"\x0a\x06logtag\x12")
            out[o] = 2 + tag_size
            out[o + 1] = 0x0A
            out[o + 2] = tag_size
            o = copy(out, o + 3, self.src, self.tag, tag_size)
        if flagged:
            o = copy(out, o, self.attributes[3], 0, self.sizes[3])
        if observed:
            out[o] = 0x59
            o = _put_fixed64(out, o + 1, observed)
        self.o = o

    def frame(self) -> None:
        """Writes resource_logs { resource, scope_logs { records } } around the records; `allocate` left room for it."""
        if self.records == 0:
            return
        out, size = self.out, self.o - self.begin
        head = 1 + _varint_size(self.head_size) + self.head_size
        inner = head + 1 + _varint_size(size) + size
        self.begin = self.o - inner - 1 - _varint_size(inner)
        out[self.begin] = 0x0A
        o = _put_varint(out, self.begin + 1, inner)
        out[o] = 0x0A
        o = copy(out, _put_varint(out, o + 1, self.head_size), self.head, 0, self.head_size)
        out[o] = 0x12
        _put_varint(out, o + 1, size)


def _varint_size(number: int) -> int:
    size = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


def _put_varint(out: bytearray, o: int, number: int) -> int:
    while number > 127:
        out[o] = number & 127 | 128
        o += 1
        number >>= 7
    out[o] = number
    return o + 1


def _put_fixed64(out: bytearray, o: int, number: int) -> int:
    for i in range(8):  # gcc makes one store of it
        out[o + i] = number >> (8 * i) & 255
    return o + 8


def _cut(body: Buffer, start: int, end: int, limit: int) -> int:
    """Where to end: after `limit` bytes, or up to three less, so that no character is cut in two."""
    if end - start <= limit:
        return end
    stop = start + limit
    while stop > start and start + limit - stop < 3 and body[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop


def _at(src: Buffer, p: int, end: int) -> int:
    """The byte at p, or -1 behind the end."""
    return src[p] if p < end else -1


def _blanks(src: Buffer, p: int, end: int) -> int:
    """Behind the blanks, tabs, carriage returns and newlines at p: what filelog trims, and JSON's white space."""
    while p < end and (src[p] == 32 or src[p] == 9 or src[p] == 13 or src[p] == 10):
        p += 1
    return p


def _trimmed(src: Buffer, p: int, end: int) -> int:
    """The end of src[p:end] without them."""
    while end > p and (src[end - 1] == 32 or src[end - 1] == 9 or src[end - 1] == 13 or src[end - 1] == 10):
        end -= 1
    return end


def _two(src: Buffer, p: int) -> int:
    """Two decimal digits, or -1."""
    a = src[p] - 48
    b = src[p + 1] - 48
    return a * 10 + b if a >= 0 and a <= 9 and b >= 0 and b <= 9 else -1


def _seconds(src: Buffer, p: int) -> int:
    """The 19 bytes YYYY-MM-DDTHH:MM:SS as Unix seconds and a day, or -1; of the years 1969 (for an offset) to 2262."""
    if src[p + 4] != ord("-") or src[p + 7] != ord("-") or src[p + 10] != ord("T") or src[p + 13] != ord(":") or src[p + 16] != ord(":"):
        return -1
    century, year, month, day = _two(src, p), _two(src, p + 2), _two(src, p + 5), _two(src, p + 8)
    hour, minute, second = _two(src, p + 11), _two(src, p + 14), _two(src, p + 17)
    if century < 0 or year < 0 or month < 1 or month > 12 or day < 1 or hour < 0 or hour > 23:
        return -1
    if minute < 0 or minute > 59 or second < 0 or second > 59:
        return -1
    year += 100 * century
    if year < 1969 or year > 2262:
        return -1
    longest = 31
    if month == 2:
        longest = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    if day > longest:
        return -1
    # Days since 1970-01-01 in the calendar whose year begins in March, so that the leap day is its last.
    if month <= 2:
        year -= 1
        month += 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719469
    # A day more, so that 1969-12-31 with a negative offset is not taken for the error.
    return (days + 1) * 86400 + hour * 3600 + minute * 60 + second


def _hex4(src: Buffer, p: int, end: int) -> int:
    """Four hex digits, or -1."""
    if end - p < 4:
        return -1
    value = 0
    for i in range(4):
        byte = src[p + i]
        if byte >= 48 and byte <= 57:
            value = value * 16 + byte - 48
        elif (byte >= 97 and byte <= 102) or (byte >= 65 and byte <= 70):
            value = value * 16 + (byte & 7) + 9
        else:
            return -1
    return value


def _digits(src: Buffer, p: int, end: int) -> int:
    """Behind one or more decimal digits, or -1."""
    start = p
    while p < end and src[p] >= 48 and src[p] <= 57:
        p += 1
    return p if p > start else -1


def _number(src: Buffer, p: int, end: int) -> int:
    """Behind a JSON number, or -1."""
    p += _at(src, p, end) == ord("-")
    p = p + 1 if _at(src, p, end) == ord("0") else _digits(src, p, end)
    if p >= 0 and _at(src, p, end) == ord("."):
        p = _digits(src, p + 1, end)
    if p >= 0 and (_at(src, p, end) == ord("e") or _at(src, p, end) == ord("E")):
        p += 1
        p += _at(src, p, end) == ord("+") or _at(src, p, end) == ord("-")
        p = _digits(src, p, end)
    return p


def _unescape(src: Buffer, p: int, end: int, out: bytearray, o: int, limit: int) -> int:
    """A valid JSON string's inside, unescaped to out[o:limit]; stops where a character does not fit. A lone surrogate becomes U+FFFD."""
    while p < end:
        run = find(src, p, end, ord("\\"))
        if run < 0:
            run = end
        if run > p:
            if run - p > limit - o:
                return copy(out, o, src, p, limit - o)
            o = copy(out, o, src, p, run - p)
            p = run
            continue
        code = kind = _at(src, p + 1, end)
        p += 2
        if kind == ord("n"):
            code = 10
        elif kind == ord("t"):
            code = 9
        elif kind == ord("r"):
            code = 13
        elif kind == ord("b"):
            code = 8
        elif kind == ord("f"):
            code = 12
        elif kind == ord("u"):
            code = _hex4(src, p, end)
            p += 4
            if code >= 0xD800 and code <= 0xDFFF:
                low = _hex4(src, p + 2, end) if code < 0xDC00 and starts(src, p, end, b"\\u") else -1
                if low >= 0xDC00 and low <= 0xDFFF:
                    code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00
                    p += 6
                else:
                    code = 0xFFFD
        size = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        if size > limit - o:
            return o
        for i in range(size - 1, 0, -1):
            out[o + i] = 0x80 | code & 63
            code >>= 6
        out[o] = code if size == 1 else 0xF00 >> size & 0xFF | code
        o += size
    return o


def parse(
    chunk: bytes,
    resource: bytes,
    attributes: tuple[bytes, bytes, bytes],
    observed_time_unix_nano: int,
    max_records: int,
    max_record_bytes: int,
    line_format: int = AUTO,
    flags: int = 0,
) -> Parsed:
    """The chunk's lines as LogRecords of one resource and one nameless scope.

    `resource`: an encoded Resource message. `attributes`: encoded `LogRecord.attributes` fields (`protobuf.key_values(6, ...)`) for lines
    of stdout, of stderr, and for those that have no stream (malformed and plain ones). `logtag` is added here. `max_records` may be passed
    while a group is open. Raises ValueError for limits below 1, OverflowError for numbers that do not fit, MemoryError. Thread-safe; works
    without the GIL.
    """
    work = _Chunk(chunk, resource, attributes, observed_time_unix_nano, (max_records, max_record_bytes), flags)
    work.allocate(count(chunk, len(chunk), 10) + 1, min(len(chunk), max_record_bytes + 8))
    shape = cython.declare(cython.int, line_format)
    with cython.nogil:
        work.each_line(shape)
        work.frame()
    return work.parsed()


def parse_spans(
    chunk: bytes,
    spans: array[int],
    resource: bytes,
    attributes: bytes,
    observed_time_unix_nano: int,
    max_records: int,
    max_record_bytes: int,
    flags: int = 0,
) -> Parsed:
    """The spans of the chunk as LogRecords, one each: see `lines.parse_spans`."""
    work = _Chunk(chunk, resource, (b"", b"", attributes), observed_time_unix_nano, (max_records, max_record_bytes), flags)
    places = cython.declare("const long long[::1]", spans)
    before, size = 0, len(chunk)
    for i in range(len(places) // 2 * 2):
        if places[i] < before or places[i] > size:
            raise ValueError(f"span {i // 2} is not within the chunk's {size} bytes, or overlaps the one before it")
        before = places[i]
    work.allocate(len(places) // 2, 0)
    with cython.nogil:
        work.each_span(places)
        work.frame()
    return work.parsed()
