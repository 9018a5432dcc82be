# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
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

import cython

from lockgate.wire.parsed import Left, Parsed
from lockgate.wire.protobuf import key_values

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
    from cython.cimports.libc.stdlib import free, malloc
    from cython.cimports.libc.string import memchr, memcmp, memcpy

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

# Places in `h`, the results of parsing one line: 0 time_unix_nano, 1 stream, 2 partial, 3 body start, 4 body end, 5 tag start, 6 tag end,
# 7 body has escapes, 8 start of a line whose date and time have been validated (or -1), 9 their seconds, 10 start of the last escape of a
# JSON string (or -1), 11 that escape's end, 12 whether it is a newline, 13 whether the string has an escape before the last.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _copy(
    out: cython.p_uchar, o: cython.Py_ssize_t, src: cython.p_uchar, start: cython.Py_ssize_t, size: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    if cython.compiled:
        memcpy(out + o, src + start, size)
    else:
        out[o : o + size] = src[start : start + size]
    return o + size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _find(src: cython.p_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t, byte: cython.int) -> cython.Py_ssize_t:
    if cython.compiled:
        at: cython.p_uchar = cython.cast(cython.p_uchar, memchr(src + start, byte, end - start))
        return -1 if at == cython.NULL else at - src
    return src.find(byte, start, end)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _newlines(src: cython.p_uchar, n: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """How many; the compiler makes vectors of it, where bytes.count costs a fifth of the kernel."""
    if not cython.compiled:
        return src.count(b"\n")
    count: cython.Py_ssize_t = 0
    i: cython.Py_ssize_t
    for i in range(n):
        count += src[i] == 10
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _same(src: cython.p_uchar, a: cython.Py_ssize_t, b: cython.Py_ssize_t, size: cython.Py_ssize_t) -> cython.bint:
    if cython.compiled:
        return memcmp(src + a, src + b, size) == 0
    return src[a : a + size] == src[b : b + size]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_utf8(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
    """As RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF."""
    if not cython.compiled:
        try:
            bytes(src[p:end]).decode()
        except UnicodeDecodeError:
            return False
        return True
    word = cython.declare(cython.ulonglong)
    a: cython.int
    b: cython.int
    while p < end:
        if end - p >= 8:
            memcpy(cython.address(word), src + p, 8)
            if not (word & cython.cast(cython.ulonglong, 0x8080808080808080)):
                p += 8
                continue
        a = src[p]
        if a < 0x80:
            p += 1
            continue
        if a < 0xC2 or a > 0xF4 or end - p < 2:
            return False
        b = src[p + 1]
        if b & 0xC0 != 0x80:
            return False
        if a < 0xE0:
            p += 2
            continue
        if end - p < 3 or src[p + 2] & 0xC0 != 0x80:
            return False
        if a < 0xF0:
            if (a == 0xE0 and b < 0xA0) or (a == 0xED and b > 0x9F):
                return False
            p += 3
            continue
        if end - p < 4 or src[p + 3] & 0xC0 != 0x80 or (a == 0xF0 and b < 0x90) or (a == 0xF4 and b > 0x8F):
            return False
        p += 4
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _varint_size(number: cython.ulonglong) -> cython.Py_ssize_t:
    size: cython.Py_ssize_t = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _put_varint(out: cython.p_uchar, o: cython.Py_ssize_t, number: cython.ulonglong) -> cython.Py_ssize_t:
    while number > 127:
        out[o] = number & 127 | 128
        o += 1
        number >>= 7
    out[o] = number
    return o + 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _put_fixed64(out: cython.p_uchar, o: cython.Py_ssize_t, number: cython.ulonglong) -> cython.Py_ssize_t:
    i: cython.int
    for i in range(8):  # gcc makes one store of it
        out[o + i] = number >> (8 * i) & 255
    return o + 8


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _record(
    out: cython.p_uchar,
    o: cython.Py_ssize_t,
    time: cython.ulonglong,
    observed: cython.ulonglong,
    body: cython.p_uchar,
    start: cython.Py_ssize_t,
    size: cython.Py_ssize_t,
    is_text: cython.bint,
    attributes: cython.p_uchar,
    attributes_size: cython.Py_ssize_t,
    src: cython.p_uchar,
    tag: cython.Py_ssize_t,
    tag_size: cython.Py_ssize_t,
    flag: cython.p_uchar,
    flag_size: cython.Py_ssize_t,
) -> cython.Py_ssize_t:
    """One ScopeLogs.log_records field. At most 65 bytes more than body, attributes, tag and flag."""
    value: cython.Py_ssize_t = 1 + _varint_size(size) + size
    total: cython.Py_ssize_t = 1 + _varint_size(value) + value + attributes_size + flag_size
    if time:
        total += 9
    if observed:
        total += 9
    if tag_size:
        total += 14 + tag_size
    out[o] = 0x12
    o = _put_varint(out, o + 1, total)
    if time:
        out[o] = 0x09
        o = _put_fixed64(out, o + 1, time)
    out[o] = 0x2A
    o = _put_varint(out, o + 1, value)
    # string_value must be UTF-8 (OTLP common.proto): other bytes travel as bytes_value.
    out[o] = 0x0A if is_text or _is_utf8(body, start, start + size) else 0x3A
    o = _put_varint(out, o + 1, size)
    o = _copy(out, o, body, start, size)
    o = _copy(out, o, attributes, 0, attributes_size)
    if tag_size:  # attribute "logtag"; the tag is at most 64 bytes, so every length is one byte
        out[o] = 0x32
        out[o + 1] = 12 + tag_size
        out[o + 2] = 0x0A
        out[o + 3] = 6
        out[o + 4] = ord("l")
        out[o + 5] = ord("o")
        out[o + 6] = ord("g")
        out[o + 7] = ord("t")
        out[o + 8] = ord("a")
        out[o + 9] = ord("g")
        out[o + 10] = 0x12
        out[o + 11] = 2 + tag_size
        out[o + 12] = 0x0A
        out[o + 13] = tag_size
        o = _copy(out, o + 14, src, tag, tag_size)
    o = _copy(out, o, flag, 0, flag_size)
    if observed:
        out[o] = 0x59
        o = _put_fixed64(out, o + 1, observed)
    return o


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _cut(body: cython.p_uchar, start: cython.Py_ssize_t, size: cython.Py_ssize_t, limit: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """The size to keep: `limit`, or up to three bytes less, so that no character is cut in two."""
    if size <= limit:
        return size
    keep: cython.Py_ssize_t = limit
    while keep > 0 and limit - keep < 3 and body[start + keep] & 0xC0 == 0x80:
        keep -= 1
    return keep


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _two(src: cython.p_uchar, p: cython.Py_ssize_t) -> cython.int:
    """Two decimal digits, or -1."""
    a: cython.int = src[p]
    b: cython.int = src[p + 1]
    if a < 48 or a > 57 or b < 48 or b > 57:
        return -1
    return (a - 48) * 10 + b - 48


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _seconds(src: cython.p_uchar, p: cython.Py_ssize_t) -> cython.longlong:
    """The 19 bytes YYYY-MM-DDTHH:MM:SS as Unix seconds, or -1; of the years 1969 (for an offset) to 2262."""
    if src[p + 4] != ord("-") or src[p + 7] != ord("-") or src[p + 10] != ord("T") or src[p + 13] != ord(":") or src[p + 16] != ord(":"):
        return -1
    century: cython.int = _two(src, p)
    year: cython.int = _two(src, p + 2)
    month: cython.int = _two(src, p + 5)
    day: cython.int = _two(src, p + 8)
    hour: cython.int = _two(src, p + 11)
    minute: cython.int = _two(src, p + 14)
    second: cython.int = _two(src, p + 17)
    if century < 0 or year < 0 or month < 1 or month > 12 or day < 1 or hour < 0 or hour > 23:
        return -1
    if minute < 0 or minute > 59 or second < 0 or second > 59:
        return -1
    year += 100 * century
    if year < 1969 or year > 2262:
        return -1
    longest: cython.int = 31
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
    days: cython.longlong = 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719469
    # A day more, so that 1969-12-31 with a negative offset is not taken for the error.
    return (days + 1) * 86400 + hour * 3600 + minute * 60 + second


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _time(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, h: cython.p_longlong) -> cython.Py_ssize_t:
    """RFC 3339 at p: the position behind it, h[0] in nanoseconds; -1 where it is no time, or outside of 0 .. 2**63-1 ns."""
    if end - p < 20:
        return -1
    # Consecutive lines mostly share their second, and comparing is cheaper than parsing.
    if h[8] < 0 or not _same(src, p, h[8], 19):
        seconds: cython.longlong = _seconds(src, p)
        if seconds < 0:
            return -1
        h[8] = p
        h[9] = seconds
    total: cython.longlong = h[9] - 86400
    fraction: cython.longlong = 0
    byte: cython.int
    p += 19
    if src[p] == ord("."):
        p += 1
        scale: cython.longlong = 1000000000
        while p < end:
            byte = src[p]
            if byte < 48 or byte > 57:
                break
            if scale == 1:
                return -1
            fraction = fraction * 10 + byte - 48
            scale //= 10
            p += 1
        if scale == 1000000000:
            return -1
        fraction *= scale
    if p >= end:
        return -1
    byte = src[p]
    if byte == ord("Z"):
        p += 1
    elif byte == ord("+") or byte == ord("-"):
        if end - p < 6 or src[p + 3] != ord(":"):
            return -1
        hours: cython.int = _two(src, p + 1)
        minutes: cython.int = _two(src, p + 4)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
            return -1
        if byte == ord("+"):
            total -= hours * 3600 + minutes * 60
        else:
            total += hours * 3600 + minutes * 60
        p += 6
    else:
        return -1
    latest: cython.longlong = 9223372036  # 2**63-1 ns is 2262-04-11T23:47:16.854775807Z
    if total < 0 or total > latest or (total == latest and fraction > 854775807):
        return -1
    h[0] = total * 1000000000 + fraction
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _stream(src: cython.p_uchar, p: cython.Py_ssize_t) -> cython.int:
    """0 for stdout, 1 for stderr, else -1; of six bytes."""
    if src[p] != ord("s") or src[p + 1] != ord("t") or src[p + 2] != ord("d"):
        return -1
    if src[p + 3] == ord("o") and src[p + 4] == ord("u") and src[p + 5] == ord("t"):
        return 0
    if src[p + 3] == ord("e") and src[p + 4] == ord("r") and src[p + 5] == ord("r"):
        return 1
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _cri(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, h: cython.p_longlong) -> cython.bint:
    stop: cython.Py_ssize_t = end
    if end > p and src[end - 1] == ord("\r"):
        stop -= 1
    p = _time(src, p, stop, h)
    if p < 0 or stop - p < 9 or src[p] != ord(" ") or src[p + 7] != ord(" "):
        return False
    stream: cython.int = _stream(src, p + 1)
    if stream < 0:
        return False
    p += 8
    h[5] = p
    kind: cython.int = src[p]
    if kind != ord("F") and kind != ord("P"):
        return False
    p += 1
    if p < stop and src[p] != ord(" "):
        if src[p] != ord(":"):
            return False
        while p < stop and src[p] != ord(" "):
            if src[p] < 33 or src[p] > 126 or p - h[5] >= 64:
                return False
            p += 1
    h[6] = p
    h[1] = stream
    h[2] = kind == ord("P")
    h[7] = False
    if p < stop:
        h[3] = p + 1
        h[4] = end if kind == ord("P") else stop
    else:
        h[3] = h[4] = stop
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _at(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """The byte at p, or -1 behind the end."""
    return src[p] if p < end else -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _space(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    while p < end and (src[p] == 32 or src[p] == 9 or src[p] == 13):  # no newline is left in a line
        p += 1
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hex4(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """Four hex digits, or -1."""
    if end - p < 4:
        return -1
    value: cython.int = 0
    byte: cython.int
    i: cython.int
    for i in range(4):
        byte = src[p + i]
        if byte >= 48 and byte <= 57:
            byte -= 48
        elif byte >= 97 and byte <= 102:
            byte -= 87
        elif byte >= 65 and byte <= 70:
            byte -= 55
        else:
            return -1
        value = value * 16 + byte
    return value


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _string(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, h: cython.p_longlong) -> cython.Py_ssize_t:
    """From behind a JSON string's opening quote to behind its closing one, or -1; h[10..13] tell of its escapes."""
    byte: cython.int
    h[10] = -1
    h[11] = -1
    h[12] = False
    h[13] = False
    while p < end:
        byte = src[p]
        if byte == ord('"'):
            return p + 1
        if byte < 32:
            return -1
        if byte != ord("\\"):
            p += 1
            continue
        h[13] = h[10] >= 0
        h[10] = p
        byte = _at(src, p + 1, end)
        if byte == ord("u"):
            byte = _hex4(src, p + 2, end)
            if byte < 0:
                return -1
            h[12] = byte == 10
            p += 6
        elif (
            byte == ord("n")
            or byte == ord("t")
            or byte == ord('"')
            or byte == ord("\\")
            or byte == ord("r")
            or byte == ord("/")
            or byte == ord("b")
            or byte == ord("f")
        ):
            h[12] = byte == ord("n")
            p += 2
        else:
            return -1
        h[11] = p
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _digits(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Behind one or more decimal digits, or -1."""
    start: cython.Py_ssize_t = p
    while p < end and src[p] >= 48 and src[p] <= 57:
        p += 1
    return p if p > start else -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _number(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    if _at(src, p, end) == ord("-"):
        p += 1
    if _at(src, p, end) == ord("0"):
        p += 1
    else:
        p = _digits(src, p, end)
        if p < 0:
            return -1
    if _at(src, p, end) == ord("."):
        p = _digits(src, p + 1, end)
        if p < 0:
            return -1
    if _at(src, p, end) == ord("e") or _at(src, p, end) == ord("E"):
        p += 1
        if _at(src, p, end) == ord("+") or _at(src, p, end) == ord("-"):
            p += 1
        return _digits(src, p, end)
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _value(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, h: cython.p_longlong, depth: cython.int) -> cython.Py_ssize_t:
    """Behind any JSON value at p (docker's `attrs`), or -1; at most 32 levels deep."""
    byte: cython.int = _at(src, p, end)
    close: cython.int
    if byte == ord('"'):
        return _string(src, p + 1, end, h)
    if byte == ord("{") or byte == ord("["):
        if depth >= 32:
            return -1
        close = byte + 2  # ASCII: the closing bracket and brace are two further
        p = _space(src, p + 1, end)
        if _at(src, p, end) == close:
            return p + 1
        while True:
            if close == ord("}"):
                if _at(src, p, end) != ord('"'):
                    return -1
                p = _string(src, p + 1, end, h)
                if p < 0:
                    return -1
                p = _space(src, p, end)
                if _at(src, p, end) != ord(":"):
                    return -1
                p = _space(src, p + 1, end)
            p = _value(src, p, end, h, depth + 1)
            if p < 0:
                return -1
            p = _space(src, p, end)
            byte = _at(src, p, end)
            if byte == close:
                return p + 1
            if byte != ord(","):
                return -1
            p = _space(src, p + 1, end)
    if end - p >= 4 and byte == ord("t"):
        return p + 4 if src[p + 1] == ord("r") and src[p + 2] == ord("u") and src[p + 3] == ord("e") else -1
    if end - p >= 4 and byte == ord("n"):
        return p + 4 if src[p + 1] == ord("u") and src[p + 2] == ord("l") and src[p + 3] == ord("l") else -1
    if end - p >= 5 and byte == ord("f"):
        if src[p + 1] == ord("a") and src[p + 2] == ord("l") and src[p + 3] == ord("s") and src[p + 4] == ord("e"):
            return p + 5
        return -1
    return _number(src, p, end)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _docker(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, h: cython.p_longlong) -> cython.bint:
    """A strict JSON object with the strings log, stream and time, in any order, and whatever else; of equal keys the last counts."""
    key: cython.Py_ssize_t
    size: cython.Py_ssize_t
    start: cython.Py_ssize_t
    which: cython.int
    byte: cython.int
    stream: cython.int = -1
    has_log: cython.bint = False
    time_start: cython.Py_ssize_t = -1
    time_end: cython.Py_ssize_t = -1
    p = _space(src, p, end)
    if _at(src, p, end) != ord("{"):
        return False
    p = _space(src, p + 1, end)
    while True:
        if _at(src, p, end) != ord('"'):
            return False
        key = p + 1
        p = _string(src, key, end, h)
        if p < 0:
            return False
        size = p - 1 - key
        which = 0
        if size == 3 and src[key] == ord("l") and src[key + 1] == ord("o") and src[key + 2] == ord("g"):
            which = 1
        elif size == 4 and src[key] == ord("t") and src[key + 1] == ord("i") and src[key + 2] == ord("m") and src[key + 3] == ord("e"):
            which = 2
        elif size == 6 and src[key] == ord("s") and src[key + 1] == ord("t") and src[key + 2] == ord("r") and src[key + 3] == ord("e"):
            which = 3 if src[key + 4] == ord("a") and src[key + 5] == ord("m") else 0
        p = _space(src, p, end)
        if _at(src, p, end) != ord(":"):
            return False
        p = _space(src, p + 1, end)
        if which == 0:
            p = _value(src, p, end, h, 0)
            if p < 0:
                return False
        else:
            if _at(src, p, end) != ord('"'):
                return False
            start = p + 1
            p = _string(src, start, end, h)
            if p < 0:
                return False
            if which == 1:
                has_log = True
                h[3] = start
                h[4] = p - 1
                h[7] = h[10] >= 0
                h[2] = True
                if h[11] == p - 1 and h[12]:
                    h[4] = h[10]
                    h[7] = h[13]
                    h[2] = False
            elif which == 2:
                time_start = start
                time_end = p - 1
            else:
                stream = _stream(src, start) if p - 1 - start == 6 else -1
                if stream < 0:
                    return False
        p = _space(src, p, end)
        byte = _at(src, p, end)
        if byte == ord("}"):
            break
        if byte != ord(","):
            return False
        p = _space(src, p + 1, end)
    if _space(src, p + 1, end) != end or not has_log or stream < 0 or time_start < 0:
        return False
    h[1] = stream
    h[5] = h[6] = 0
    return _time(src, time_start, time_end, h) == time_end


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _unescape(
    src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t, out: cython.p_uchar, o: cython.Py_ssize_t, limit: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """A valid JSON string's inside, unescaped to out[o:limit]; stops where a character does not fit. A lone surrogate becomes U+FFFD."""
    byte: cython.int
    code: cython.int
    low: cython.int
    run: cython.Py_ssize_t
    while p < end:
        run = _find(src, p, end, ord("\\"))
        if run < 0:
            run = end
        if run > p:
            if run - p > limit - o:
                return _copy(out, o, src, p, limit - o)
            o = _copy(out, o, src, p, run - p)
            p = run
            continue
        byte = src[p + 1]
        p += 2
        code = byte
        if byte == ord("n"):
            code = 10
        elif byte == ord("t"):
            code = 9
        elif byte == ord("r"):
            code = 13
        elif byte == ord("b"):
            code = 8
        elif byte == ord("f"):
            code = 12
        elif byte == ord("u"):
            code = _hex4(src, p, end)
            p += 4
            if code >= 0xD800 and code <= 0xDFFF:
                low = -1
                if code < 0xDC00 and end - p >= 6 and src[p] == ord("\\") and src[p + 1] == ord("u"):
                    low = _hex4(src, p + 2, end)
                if low >= 0xDC00 and low <= 0xDFFF:
                    code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00
                    p += 6
                else:
                    code = 0xFFFD
        if o + (1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4) > limit:
            return o
        if code < 0x80:
            out[o] = code
            o += 1
        elif code < 0x800:
            out[o] = 0xC0 | code >> 6
            out[o + 1] = 0x80 | code & 63
            o += 2
        elif code < 0x10000:
            out[o] = 0xE0 | code >> 12
            out[o + 1] = 0x80 | code >> 6 & 63
            out[o + 2] = 0x80 | code & 63
            o += 3
        else:
            out[o] = 0xF0 | code >> 18
            out[o + 1] = 0x80 | code >> 12 & 63
            out[o + 2] = 0x80 | code >> 6 & 63
            out[o + 3] = 0x80 | code & 63
            o += 4
    return o


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _trim_start(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    while p < end and (src[p] == 32 or src[p] == 9 or src[p] == 13 or src[p] == 10):
        p += 1
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _trim_end(src: cython.p_uchar, p: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    while end > p and (src[end - 1] == 32 or src[end - 1] == 9 or src[end - 1] == 13 or src[end - 1] == 10):
        end -= 1
    return end


# Places in `result`: 0 bytes written, 1 records, 2 lines, 3 joined, 4 empty, 5 malformed, 6 truncated, 7 partial, 8 consumed, 9 left.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _run(
    src: cython.p_uchar,
    n: cython.Py_ssize_t,
    out: cython.p_uchar,
    o: cython.Py_ssize_t,
    scratch: cython.Py_ssize_t,
    room: cython.Py_ssize_t,
    stdout: cython.p_uchar,
    stdout_size: cython.Py_ssize_t,
    stderr: cython.p_uchar,
    stderr_size: cython.Py_ssize_t,
    neither: cython.p_uchar,
    neither_size: cython.Py_ssize_t,
    flag: cython.p_uchar,
    flag_size: cython.Py_ssize_t,
    observed: cython.ulonglong,
    max_records: cython.longlong,
    max_record_bytes: cython.Py_ssize_t,
    line_format: cython.int,
    flags: cython.int,
    is_text: cython.bint,
    result: cython.p_longlong,
) -> cython.Py_ssize_t:
    """The whole chunk. Records go to out[o:], the bodies that need assembling to the two areas of `room` bytes from out[scratch] on."""
    h: cython.longlong[16] = [0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0]
    opened: cython.longlong[2] = [-1, -1]  # where an open group's first line starts, or -1
    fill: cython.longlong[2] = [0, 0]  # bytes of it in its scratch area
    parts: cython.longlong[2] = [0, 0]
    times: cython.longlong[2] = [0, 0]
    tags: cython.longlong[2] = [0, 0]
    tag_sizes: cython.longlong[2] = [0, 0]
    cut: cython.longlong[8] = [0, 0, 0, 0, 0, 0, 0, 0]  # what to go back to: output, records, ..., truncated, position
    p: cython.Py_ssize_t = 0
    line_end: cython.Py_ssize_t
    following: cython.Py_ssize_t
    start: cython.Py_ssize_t
    end: cython.Py_ssize_t
    size: cython.Py_ssize_t
    area: cython.Py_ssize_t
    records: cython.longlong = 0
    lines: cython.longlong = 0
    joined: cython.longlong = 0
    empty: cython.longlong = 0
    malformed: cython.longlong = 0
    truncated: cython.longlong = 0
    partial: cython.longlong = 0
    left: cython.int = 0
    s: cython.int
    i: cython.int
    ok: cython.bint
    cr: cython.Py_ssize_t
    while p < n:
        # Never inside a group: a chunk in which a group spans more records than the limit would be read again and again.
        if records >= max_records and opened[0] < 0 and opened[1] < 0:
            left = 3
            break
        line_end = _find(src, p, n, 10)
        following = line_end + 1
        if line_end < 0:
            if not flags & 2:
                left = 1
                break
            line_end = following = n
        lines += 1
        cr = 1 if line_end > p and src[line_end - 1] == 13 else 0
        if line_end - cr == p:
            empty += 1
            p = following
            continue
        if line_format == 3:
            start = p
            end = line_end - cr
            if flags & 4:
                start = _trim_start(src, start, end)
            if flags & 8:
                end = _trim_end(src, start, end)
            if start == end:
                empty += 1
                p = following
                continue
            ok = False
        else:
            if line_format == 1 or (line_format == 0 and src[p] == ord("{")):
                ok = _docker(src, p, line_end, h)
            else:
                ok = _cri(src, p, line_end, h)
                if ok and flags & 8 and not h[2]:
                    h[4] = _trim_end(src, h[3], h[4])
            if not ok:
                malformed += 1
                start = p
                end = line_end
        if not ok:
            size = _cut(src, start, end - start, max_record_bytes)
            if size < end - start:
                truncated += 1
                o = _record(out, o, 0, observed, src, start, size, is_text, neither, neither_size, src, 0, 0, flag, flag_size)
            else:
                o = _record(out, o, 0, observed, src, start, size, is_text, neither, neither_size, src, 0, 0, flag, 0)
            records += 1
            p = following
            continue
        s = cython.cast(cython.int, h[1])
        start = h[3]
        end = h[4]
        if not h[2] and opened[s] < 0 and not h[7]:  # nearly every line: complete, and its bytes are the body
            size = _cut(src, start, end - start, max_record_bytes)
            if size < end - start:
                truncated += 1
            o = _record(
                out,
                o,
                h[0],
                observed,
                src,
                start,
                size,
                is_text,
                stderr if s else stdout,
                stderr_size if s else stdout_size,
                src,
                h[5],
                h[6] - h[5],
                flag,
                flag_size if size < end - start else 0,
            )
            records += 1
            p = following
            continue
        area = scratch + s * room
        if opened[s] < 0:
            fill[s] = 0
            parts[s] = 0
            times[s] = h[0]
            tags[s] = h[5]
            tag_sizes[s] = h[6] - h[5]
            if h[2]:
                if opened[1 - s] < 0:
                    # Groups that overlap are cut back together: the first one's lines stand before the second's.
                    cut[0] = o
                    cut[1] = records
                    cut[2] = lines - 1
                    cut[3] = joined
                    cut[4] = empty
                    cut[5] = malformed
                    cut[6] = truncated
                    cut[7] = p
                opened[s] = p
        parts[s] += 1
        if fill[s] <= max_record_bytes:  # beyond, one more byte is all that needs to be known
            if h[7]:
                fill[s] = _unescape(src, start, end, out, area + fill[s], area + room) - area
            else:
                size = end - start
                if size > room - fill[s]:
                    size = room - fill[s]
                fill[s] = _copy(out, area + fill[s], src, start, size) - area
        p = following
        if h[2]:
            continue
        size = _cut(out, area, fill[s], max_record_bytes)
        if size < fill[s]:
            truncated += 1
        o = _record(
            out,
            o,
            times[s],
            observed,
            out,
            area,
            size,
            is_text,
            stderr if s else stdout,
            stderr_size if s else stdout_size,
            src,
            tags[s],
            tag_sizes[s],
            flag,
            flag_size if size < fill[s] else 0,
        )
        records += 1
        joined += parts[s] - 1
        opened[s] = -1
    if opened[0] >= 0 or opened[1] >= 0:
        if flags & 1:
            for i in range(2):
                s = i
                if opened[0] >= 0 and opened[1] >= 0 and opened[1] < opened[0]:
                    s = 1
                if opened[s] < 0:
                    s = 1 - s
                if opened[s] < 0:
                    break
                area = scratch + s * room
                size = _cut(out, area, fill[s], max_record_bytes)
                if size < fill[s]:
                    truncated += 1
                o = _record(
                    out,
                    o,
                    times[s],
                    observed,
                    out,
                    area,
                    size,
                    is_text,
                    stderr if s else stdout,
                    stderr_size if s else stdout_size,
                    src,
                    tags[s],
                    tag_sizes[s],
                    flag,
                    flag_size,
                )
                records += 1
                partial += 1
                joined += parts[s] - 1
                opened[s] = -1
        else:
            o = cut[0]
            records = cut[1]
            lines = cut[2]
            joined = cut[3]
            empty = cut[4]
            malformed = cut[5]
            truncated = cut[6]
            p = cut[7]
            left = 2
    result[1] = records
    result[2] = lines
    result[3] = joined
    result[4] = empty
    result[5] = malformed
    result[6] = truncated
    result[7] = partial
    result[8] = p
    result[9] = left
    return o


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _run_spans(
    src: cython.p_uchar,
    spans: cython.longlong[::1],
    count: cython.Py_ssize_t,
    out: cython.p_uchar,
    o: cython.Py_ssize_t,
    attributes: cython.p_uchar,
    attributes_size: cython.Py_ssize_t,
    flag: cython.p_uchar,
    flag_size: cython.Py_ssize_t,
    observed: cython.ulonglong,
    max_records: cython.longlong,
    max_record_bytes: cython.Py_ssize_t,
    flags: cython.int,
    is_text: cython.bint,
    result: cython.p_longlong,
) -> cython.Py_ssize_t:
    i: cython.Py_ssize_t
    start: cython.Py_ssize_t
    end: cython.Py_ssize_t
    size: cython.Py_ssize_t
    for i in range(count):
        if result[1] >= max_records:
            result[9] = 3
            break
        start = spans[2 * i]
        end = spans[2 * i + 1]
        result[2] += 1
        result[8] = end
        if flags & 4:
            start = _trim_start(src, start, end)
        if flags & 8:
            end = _trim_end(src, start, end)
        if start == end:
            result[4] += 1
            continue
        size = _cut(src, start, end - start, max_record_bytes)
        result[1] += 1
        if size < end - start:
            result[6] += 1
        o = _record(
            out,
            o,
            0,
            observed,
            src,
            start,
            size,
            is_text,
            attributes,
            attributes_size,
            src,
            0,
            0,
            flag,
            flag_size if size < end - start else 0,
        )
    return o


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _frame(
    out: cython.p_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t, resource: cython.p_uchar, size: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """Writes resource_logs { resource, scope_logs { records } } around out[start:end]; where it begins: at most 44 + size before start."""
    scope: cython.Py_ssize_t = 1 + _varint_size(end - start)
    head: cython.Py_ssize_t = 1 + _varint_size(size) + size
    inner: cython.Py_ssize_t = head + scope + end - start
    begin: cython.Py_ssize_t = start - scope - head - 1 - _varint_size(inner)
    out[begin] = 0x0A
    o: cython.Py_ssize_t = _put_varint(out, begin + 1, inner)
    out[o] = 0x0A
    o = _copy(out, _put_varint(out, o + 1, size), resource, 0, size)
    out[o] = 0x12
    _put_varint(out, o + 1, end - start)
    return begin


def _check(max_records: int, max_record_bytes: int) -> None:
    if max_records < 1 or max_record_bytes < 1:
        raise ValueError(f"max_records and max_record_bytes must be positive, not {max_records} and {max_record_bytes}")


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
    _check(max_records, max_record_bytes)
    stdout_attributes: bytes = attributes[0]
    stderr_attributes: bytes = attributes[1]
    other_attributes: bytes = attributes[2]
    flag: bytes = _TRUNCATED
    src: cython.p_uchar = chunk
    head: cython.p_uchar = resource
    a0: cython.p_uchar = stdout_attributes
    a1: cython.p_uchar = stderr_attributes
    a2: cython.p_uchar = other_attributes
    f: cython.p_uchar = flag
    n: cython.Py_ssize_t = len(chunk)
    head_size: cython.Py_ssize_t = len(resource)
    a0_size: cython.Py_ssize_t = len(stdout_attributes)
    a1_size: cython.Py_ssize_t = len(stderr_attributes)
    a2_size: cython.Py_ssize_t = len(other_attributes)
    f_size: cython.Py_ssize_t = len(flag)
    observed: cython.ulonglong = observed_time_unix_nano
    limit: cython.longlong = max_records
    record_limit: cython.Py_ssize_t = max_record_bytes
    shape: cython.int = line_format
    switches: cython.int = flags
    is_text: cython.bint = chunk.isascii()
    # A body is never longer than the bytes that it came from, and these go to one record: n covers all bodies and tags.
    each: cython.Py_ssize_t = 65 + max(a0_size, a1_size, a2_size) + f_size
    begin: cython.Py_ssize_t = head_size + 44
    scratch: cython.Py_ssize_t = begin + n + (_newlines(src, n) + 1) * each
    room: cython.Py_ssize_t = n if record_limit > n else min(n, record_limit + 8)
    result: cython.longlong[10] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    end: cython.Py_ssize_t
    out: cython.p_uchar
    if cython.compiled:
        out = cython.cast(cython.p_uchar, malloc(scratch + 2 * room))
        if out == cython.NULL:
            raise MemoryError
    else:
        out = bytearray(scratch + 2 * room)
    with cython.nogil:
        end = _run(
            src,
            n,
            out,
            begin,
            scratch,
            room,
            a0,
            a0_size,
            a1,
            a1_size,
            a2,
            a2_size,
            f,
            f_size,
            observed,
            limit,
            record_limit,
            shape,
            switches,
            is_text,
            result,
        )
        if end > begin:
            begin = _frame(out, begin, end, head, head_size)
    return _parsed(out, begin, end, result)


def parse_spans(
    chunk: bytes,
    spans: cython.longlong[::1],
    resource: bytes,
    attributes: bytes,
    observed_time_unix_nano: int,
    max_records: int,
    max_record_bytes: int,
    flags: int = 0,
) -> Parsed:
    """The spans of the chunk as LogRecords, one each: see `lines.parse_spans`."""
    _check(max_records, max_record_bytes)
    flag: bytes = _TRUNCATED
    src: cython.p_uchar = chunk
    head: cython.p_uchar = resource
    a: cython.p_uchar = attributes
    f: cython.p_uchar = flag
    n: cython.Py_ssize_t = len(chunk)
    count: cython.Py_ssize_t = len(spans) // 2
    i: cython.Py_ssize_t
    before: cython.longlong = 0
    for i in range(2 * count):
        if spans[i] < before or spans[i] > n:
            raise ValueError(f"span {i // 2} is not within the chunk's {n} bytes, or overlaps the one before it")
        before = spans[i]
    head_size: cython.Py_ssize_t = len(resource)
    a_size: cython.Py_ssize_t = len(attributes)
    f_size: cython.Py_ssize_t = len(flag)
    observed: cython.ulonglong = observed_time_unix_nano
    limit: cython.longlong = max_records
    record_limit: cython.Py_ssize_t = max_record_bytes
    switches: cython.int = flags
    is_text: cython.bint = chunk.isascii()
    begin: cython.Py_ssize_t = head_size + 44
    size: cython.Py_ssize_t = begin + n + count * (65 + a_size + f_size)
    result: cython.longlong[10] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    end: cython.Py_ssize_t
    out: cython.p_uchar
    if cython.compiled:
        out = cython.cast(cython.p_uchar, malloc(size))
        if out == cython.NULL:
            raise MemoryError
    else:
        out = bytearray(size)
    with cython.nogil:
        end = _run_spans(src, spans, count, out, begin, a, a_size, f, f_size, observed, limit, record_limit, switches, is_text, result)
        if end > begin:
            begin = _frame(out, begin, end, head, head_size)
    return _parsed(out, begin, end, result)


@cython.cfunc
def _parsed(out: cython.p_uchar, begin: cython.Py_ssize_t, end: cython.Py_ssize_t, result: cython.p_longlong):  # type: ignore[no-untyped-def]
    """The outcome as an object; frees `out`."""
    payload: bytes
    if cython.compiled:
        try:
            payload = PyBytes_FromStringAndSize(cython.cast(cython.p_char, out + begin), end - begin) if result[1] else b""
        finally:
            free(out)
    else:
        payload = bytes(out[begin:end]) if result[1] else b""
    return Parsed(payload, result[1], result[2], result[3], result[4], result[5], result[6], result[7], result[8], Left(result[9]))
