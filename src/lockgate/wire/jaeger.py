# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Jaeger's spans -> an OTLP ExportTraceServiceRequest: Thrift (jaeger.thrift, agent.thrift) and protobuf (api_v2). A compiled kernel: see
`lockgate.wire`.

A span becomes what the collector's pkg/translator/jaeger makes of it, in which the two differ: what protobuf's tags say of scope and trace
state stays a tag in Thrift. Other than there,

- text that is not UTF-8 becomes bytes, and in names replacement characters: OTLP's receivers refuse a whole request for it;
- a span of protobuf without a start time has none, instead of one in the year 2339;
- of a tag that a span has twice the last one counts, for its scope too;
- a list of tags or references has at most 65,536 of them, a request 65,536 processes and scopes, and 2^20 spans, tags, logs and references.
"""

from __future__ import annotations

import cython

from lockgate.wire.protobuf import DecodeError, key_values

if not cython.compiled:  # jaeger.pxd has the compiled ones
    from lockgate.wire.memory import attribute, big64, cut, field, fixed64, is_utf8, varint
    from lockgate.wire.thrift import Reader

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

_UNSIGNED64 = (1 << 64) - 1
_MOST = 65536
"""A distinct tag takes some 300 bytes while its span is read, a process 700, however short they were."""
_MOST_VALUES = 1 << 20

_KINDS = {b"internal": 1, b"server": 2, b"client": 3, b"producer": 4, b"consumer": 5}
_CODES = {b"OK": 1, b"ERROR": 2}
_CHILD_OF = key_values(4, [("opentracing.ref_type", "child_of")])
_FOLLOWS_FROM = key_values(4, [("opentracing.ref_type", "follows_from")])
_NO_SERVICE = b"OTLPResourceNoServiceName"


def from_agent(datagram: bytes, compact: bool) -> bytes:
    """Of a datagram to an agent, which calls Agent.emitBatch. Raises DecodeError."""
    reader = Reader(datagram, compact)
    name = reader.message()
    if name == b"emitZipkinBatch":
        raise DecodeError("a batch of Zipkin's spans; send them to a zipkin receiver")
    if name != b"emitBatch":
        raise DecodeError(f"a call of {name[:40]!r}, where emitBatch belongs")
    request = b""
    kind = reader.field(0)
    while kind != 0:
        last = reader.id
        if last == 1 and kind == 12:
            request = _Thrift(reader).batch()
        else:
            reader.skip(kind)
        kind = reader.field(last)
    return request


def from_thrift(body: bytes) -> bytes:
    """Of a Batch in Thrift's binary encoding, as it is posted to /api/traces. Raises DecodeError."""
    return _Thrift(Reader(body, False)).batch()


def from_protobuf(message: bytes) -> bytes:
    """Of an api_v2 PostSpansRequest. Raises DecodeError."""
    return _Protobuf(message).request()


class _Thrift:
    """Reads jaeger.thrift; each method the struct that it is named after, and all fields that are required must be there."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.values = 0

    def batch(self) -> bytes:
        reader, seen = self.reader, 0
        resource = b""
        spans: list[bytes] = []
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if last == 1 and kind == 12:
                resource = self.process()
                seen |= 1
            elif last == 2 and kind == 15:
                count = self.count()
                while count:
                    spans.append(self.span())
                    count -= 1
                seen |= 2
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if seen != 3:
            raise _incomplete("batch", seen, ("process", "spans"))
        spans = [span for span in spans if span]
        return field(0x0A, field(0x0A, resource) + field(0x12, b"".join(spans))) if spans else b""

    def process(self) -> bytes:
        reader, seen = self.reader, 0
        service = b""
        tags: dict[bytes, bytes] = {}
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if last == 1 and kind == 11:
                service = reader.text()
                seen = 1
            elif last == 2 and kind == 15:
                tags = self.tags()
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if not seen:
            raise _incomplete("process", 0, ("serviceName",))
        return _resource(service, tags)

    def span(self) -> bytes:
        reader, seen = self.reader, 0
        span = _Span()
        is_blank = True
        duration = flags = 0
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if kind == 10 and (last < 5 or 7 < last < 10):
                number = reader.integer(kind)
                if last == 1:
                    span.low = number
                elif last == 2:
                    span.high = number
                elif last == 3:
                    span.id = number
                elif last == 4:
                    span.parent = number
                elif last == 8:
                    span.start = number
                elif last == 9:
                    duration = number
                seen |= 1 << last
            elif last == 5 and kind == 11:
                span.name = _name(reader.text())
                seen |= 32
            elif last == 7 and kind == 8:
                flags = reader.integer(kind)
                seen |= 128
            elif last == 6 and kind == 15:
                count = self.count()
                while count:
                    self.reference(span)
                    count -= 1
                is_blank = False
            elif last == 10 and kind == 15:
                span.tags = self.tags()
                is_blank = False
            elif last == 11 and kind == 15:
                count = self.count()
                while count:
                    span.events.append(self.log())
                    count -= 1
                is_blank = False
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if seen & 0b1110111110 != 0b1110111110:  # bits 1 to 5 and 7 to 9
            names = ("traceIdLow", "traceIdHigh", "spanId", "parentSpanId", "operationName", "", "flags", "startTime", "duration")
            raise _incomplete("span", seen >> 1, names)
        if is_blank and not (span.low or span.high or span.id or span.parent or span.name or flags or span.start or duration):
            return b""
        span.end = ((span.start + duration) & _UNSIGNED64) * 1000 & _UNSIGNED64
        span.start = span.start * 1000 & _UNSIGNED64
        return field(0x12, span.encoded())

    def reference(self, span: _Span) -> None:
        reader, seen = self.reader, 0
        type = low = high = id = 0
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if last == 1 and kind == 8:
                type = reader.integer(kind)
                seen |= 1
            elif kind == 10 and 1 < last < 5:
                number = reader.integer(kind)
                if last == 2:
                    low = number
                elif last == 3:
                    high = number
                else:
                    id = number
                seen |= 1 << last - 1
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if seen != 15:
            raise _incomplete("reference", seen, ("refType", "traceIdLow", "traceIdHigh", "spanId"))
        span.references.append((type, high, low, id))

    def log(self) -> bytes:
        reader, seen = self.reader, 0
        time = 0
        fields: dict[bytes, bytes] = {}
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if last == 1 and kind == 10:
                time = reader.integer(kind)
                seen |= 1
            elif last == 2 and kind == 15:
                fields = self.tags()
                seen |= 2
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if seen != 3:
            raise _incomplete("log", seen, ("timestamp", "fields"))
        return _event(time * 1000 & _UNSIGNED64, fields)

    def tags(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        count = self.count()
        if count > _MOST:
            raise DecodeError(f"{count} tags in one list; at most {_MOST} are accepted")
        while count:
            self.tag(found)
            count -= 1
        return found

    def tag(self, found: dict[bytes, bytes]) -> None:
        """Its key and an encoded AnyValue; of those with the same key the last one stays."""
        reader, seen = self.reader, 0
        key, text, binary = b"", b"\x0a\x00", b"\x3a\x00"
        type = bits = number = 0
        truth = False
        kind = reader.field(0)
        while kind != 0:
            last = reader.id
            if last == 1 and kind == 11:
                key = _name(reader.text())
                seen |= 1
            elif last == 2 and kind == 8:
                type = reader.integer(kind)
                seen |= 2
            elif last == 3 and kind == 11:
                text = _text(reader.text())
            elif last == 4 and kind == 4:
                bits = reader.double_bits()
            elif last == 5 and kind == 2:
                truth = reader.boolean()
            elif last == 6 and kind == 10:
                number = reader.integer(kind)
            elif last == 7 and kind == 11:
                binary = field(0x3A, reader.text())
            else:
                reader.skip(kind)
            kind = reader.field(last)
        if seen != 3:
            raise _incomplete("tag", seen, ("key", "vType"))
        if type == 0:
            found[key] = text
        elif type == 1:
            found[key] = fixed64(0x21, bits)
        elif type == 2:
            found[key] = b"\x10\x01" if truth else b"\x10\x00"
        elif type == 3:
            found[key] = varint(0x18, number)
        elif type == 4:
            found[key] = binary
        else:
            found[key] = _text(b'<Unknown Jaeger TagType "<UNSET>">')

    def count(self) -> int:
        """Of structs in a list."""
        count = self.reader.structs()
        self.values += count
        if self.values > _MOST_VALUES:
            raise DecodeError(f"more than {_MOST_VALUES} spans, tags, logs and references; send smaller batches")
        return count


class _Protobuf:
    """Reads api_v2's messages; each method the one that it is named after, which ends at `end`. Unknown fields are skipped."""

    def __init__(self, message: bytes) -> None:
        self.data = bytes(message)
        self.src = self.data
        self.size = len(self.data)
        self.at = self.values = self.scopes = 0
        self.process_raw = b""
        """Of the batch."""
        self.has_process = False
        self.groups: dict[bytes | None, dict[bytes, list[bytes]]] = {}
        """Spans by the process that they name (None for their batch's) and the scope."""

    def request(self) -> bytes:
        while self.at < self.size:
            tag = self.varint(self.size)
            if tag == 0x0A:
                self.batch(self.stop(self.size))
            else:
                self.skip(tag, self.size)
        groups = self.groups
        if self.has_process and None in groups:
            # A span may name the same process.
            for scope, spans in groups.pop(None).items():
                groups.setdefault(self.process_raw, {}).setdefault(scope, []).extend(spans)
        out = []
        for process, scopes in groups.items():
            fields = [field(0x0A, b"" if process is None else _Protobuf(process).process())]
            for scope, spans in scopes.items():
                fields.append(field(0x12, scope + b"".join(spans)))
            out.append(field(0x0A, b"".join(fields)))
        return b"".join(out)

    def batch(self, end: int) -> None:
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x0A:
                self.value()
                self.span(self.stop(end))
            elif tag == 0x12:
                # The pieces of a message in several are one message.
                self.process_raw += self.content(end)
                self.has_process = True
            else:
                self.skip(tag, end)

    def process(self) -> bytes:
        service = b""
        tags: dict[bytes, bytes] = {}
        while self.at < self.size:
            tag = self.varint(self.size)
            if tag == 0x0A:
                service = self.content(self.size)
            elif tag == 0x12:
                self.tag(tags, self.stop(self.size))
            else:
                self.skip(tag, self.size)
        return b"" if service == _NO_SERVICE else _resource(service, tags)

    def span(self, end: int) -> None:
        span = _Span()
        process: bytes | None = None
        is_blank = True
        duration = 0
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x0A:
                span.high, span.low = self.trace_id(end), self.low
            elif tag == 0x12:
                span.id = self.span_id(end)
            elif tag == 0x1A:
                span.name = _name(self.content(end))
            elif tag == 0x22:
                self.value()
                self.reference(span, self.stop(end))
                is_blank = False
            elif tag == 0x28:
                is_blank = self.varint(end) == 0 and is_blank
            elif tag == 0x32:
                span.start = self.time(self.stop(end), 62135596800, 315537897599)
                is_blank = False
            elif tag == 0x3A:
                duration = self.time(self.stop(end), 9223372035, 18446744070)
            elif tag == 0x42:
                self.tag(span.tags, self.stop(end))
                is_blank = False
            elif tag == 0x4A:
                self.value()
                span.events.append(self.log(self.stop(end)))
                is_blank = False
            elif tag == 0x52:
                process = (process or b"") + self.content(end)
            elif tag == 0x5A or tag == 0x62:  # process_id, warnings
                is_blank = not self.content(end) and is_blank
            else:
                self.skip(tag, end)
        if not is_blank or process is not None or span.low or span.high or span.id or span.name or duration:
            span.end = (span.start + duration) & _UNSIGNED64
            self.add(span, process)

    def add(self, span: _Span, process: bytes | None) -> None:
        scope = b""
        tags = span.tags
        if (name := tags.pop(b"otel.scope.name", None)) is not None:
            scope = _string(0x0A, name)
            if (version := tags.pop(b"otel.scope.version", None)) is not None:
                scope += _string(0x12, version)
        state = tags.pop(b"w3c.tracestate", None)
        encoded = span.encoded()
        if state is not None:
            encoded += _string(0x1A, state)
        key = field(0x0A, scope) if scope else b""
        group = self.groups.setdefault(process, {})
        if key not in group:
            group[key] = []
            self.scopes += 1
            if self.scopes > _MOST:
                raise DecodeError(f"spans of more than {_MOST} processes and scopes; send smaller batches")
        group[key].append(field(0x12, encoded))

    def reference(self, span: _Span, end: int) -> None:
        type = low = high = id = 0
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x0A:
                high, low = self.trace_id(end), self.low
            elif tag == 0x12:
                id = self.span_id(end)
            elif tag == 0x18:
                type = self.varint(end)
            else:
                self.skip(tag, end)
        span.references.append((type, high, low, id))
        if len(span.references) > _MOST:
            raise DecodeError(f"a span of more than {_MOST} references")

    def log(self, end: int) -> bytes:
        time = 0
        fields: dict[bytes, bytes] = {}
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x0A:
                time = self.time(self.stop(end), 62135596800, 315537897599)
            elif tag == 0x12:
                self.tag(fields, self.stop(end))
            else:
                self.skip(tag, end)
        return _event(time, fields)

    def tag(self, found: dict[bytes, bytes], end: int) -> None:
        """Its key and an encoded AnyValue; of those with the same key the last one stays."""
        self.value()
        key, text, binary = b"", b"\x0a\x00", b"\x3a\x00"
        type = bits = number = truth = 0
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x0A:
                key = _name(self.content(end))
            elif tag == 0x10:
                type = self.varint(end)
            elif tag == 0x1A:
                text = _text(self.content(end))
            elif tag == 0x20:
                truth = self.varint(end)
            elif tag == 0x28:
                number = self.varint(end)
            elif tag == 0x31:
                bits = self.fixed64(end)
            elif tag == 0x3A:
                binary = field(0x3A, self.content(end))
            else:
                self.skip(tag, end)
        if type == 0:
            found[key] = text
        elif type == 1:
            found[key] = b"\x10\x01" if truth else b"\x10\x00"
        elif type == 2:
            found[key] = varint(0x18, number)
        elif type == 3:
            found[key] = fixed64(0x21, bits)
        elif type == 4:
            found[key] = binary
        else:
            found[key] = _text(b'<Unknown Jaeger TagType "%d">' % (type if type < 1 << 63 else type - (1 << 64)))
        if len(found) > _MOST:
            raise DecodeError(f"more than {_MOST} tags in one list")

    def time(self, end: int, least: int, most: int) -> int:
        """Nanoseconds of a Timestamp or Duration, as two's complement: of seconds from -`least` to `most - least`."""
        seconds = nanos = 0
        while self.at < end:
            tag = self.varint(end)
            if tag == 0x08:
                seconds = self.varint(end)
            elif tag == 0x10:
                nanos = self.varint(end)
            else:
                self.skip(tag, end)
        # A Duration's nanoseconds have the sign of its seconds.
        if (seconds + least) & _UNSIGNED64 > most or (nanos + 999999999) & _UNSIGNED64 > 1999999998:
            raise DecodeError(f"a time before byte {end} that is out of range")
        return (seconds * 1000000000 + nanos) & _UNSIGNED64

    def trace_id(self, end: int) -> int:
        """Its high half; its low one is in `low`."""
        stop = self.stop(end)
        if stop - self.at == 16:
            high = self.big()
        elif stop - self.at == 8:
            high = 0
        else:
            raise DecodeError(f"a trace id of {stop - self.at} bytes at byte {self.at}; it has 16, or 8")
        self.low = self.big()
        return high

    def span_id(self, end: int) -> int:
        stop = self.stop(end)
        if stop - self.at != 8:
            raise DecodeError(f"a span id of {stop - self.at} bytes at byte {self.at}; it has 8")
        return self.big()

    def big(self) -> int:
        """Eight bytes that are there."""
        number = 0
        for _ in range(8):
            number = number << 8 | self.src[self.at]
            self.at += 1
        return number

    def fixed64(self, end: int) -> int:
        if end - self.at < 8:
            raise DecodeError(f"a number at byte {self.at} runs past the end of its message")
        number = shift = 0
        while shift < 64:
            byte = self.src[self.at]
            number |= byte << shift
            self.at += 1
            shift += 8
        return number

    def content(self, end: int) -> bytes:
        stop = self.stop(end)
        start = self.at
        self.at = stop
        return cut(self.src, start, stop - start)

    def stop(self, end: int) -> int:
        """Where a delimited field ends, whose content begins at `at` then."""
        size = self.varint(end)
        if size > end - self.at:
            raise DecodeError(f"a field of {size} bytes at byte {self.at} runs past the end of its message")
        return self.at + size

    def skip(self, tag: int, end: int) -> None:
        wire = tag & 7
        if tag < 8:
            raise DecodeError(f"field number 0 before byte {self.at}")
        if wire == 0:
            self.varint(end)
        elif wire == 1:
            self.fixed64(end)
        elif wire == 2:
            self.at = self.stop(end)
        elif wire == 5 and end - self.at >= 4:
            self.at += 4
        else:
            raise DecodeError(f"a field of wire type {wire} before byte {self.at} that is none")

    def varint(self, end: int) -> int:
        number = shift = 0
        while shift < 70:
            if self.at >= end:
                raise DecodeError(f"a varint runs past the end of its message, byte {end}")
            byte = self.src[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number & _UNSIGNED64
            shift += 7
        raise DecodeError(f"a varint before byte {self.at} is longer than ten bytes")

    def value(self) -> None:
        self.values += 1
        if self.values > _MOST_VALUES:
            raise DecodeError(f"more than {_MOST_VALUES} spans, tags, logs and references; send smaller batches")


class _Span:
    """A span of either, its times in nanoseconds."""

    def __init__(self) -> None:
        self.high = self.low = self.id = self.parent = self.start = self.end = 0
        self.name = b""
        self.tags: dict[bytes, bytes] = {}
        self.references: list[tuple[int, int, int, int]] = []
        """(type, high and low half of the trace id, span id) each."""
        self.events: list[bytes] = []

    def encoded(self) -> bytes:
        """Without the tags that have become something else."""
        tags = self.tags
        out = [_ids(b"\x0a\x10", b"\x12\x08", self.high, self.low, self.id)]
        if not self.parent and self.references:
            self.parent = self.inferred_parent()
        if self.parent:
            out.append(b"\x22\x08" + big64(self.parent))
        if self.name:
            out.append(field(0x2A, self.name))
        kind = 0
        if tags:
            if (given := tags.pop(b"span.kind", None)) is not None:
                kind = _KINDS.get(_string(0, given), 0)
                out.append(varint(0x30, kind))
            status = self.status(kind)
            if status:
                out.append(field(0x7A, status))
        out.append(fixed64(0x39, self.start))
        out.append(fixed64(0x41, self.end))
        out.append(_attributes(0x4A, tags))
        out += self.events
        for type, high, low, id in self.references:
            if type or id != self.parent:
                link = _ids(b"\x0a\x10", b"\x12\x08", high, low, id)
                out.append(field(0x6A, link + (_FOLLOWS_FROM if type else _CHILD_OF)))
        return b"".join(out)

    def inferred_parent(self) -> int:
        """Of references to the same trace the first CHILD_OF, else the first FOLLOWS_FROM."""
        followed = 0
        is_followed = False
        for type, high, low, id in self.references:
            if high == self.high and low == self.low:
                if type == 0:
                    return id
                if type == 1 and not is_followed:
                    followed, is_followed = id, True
        return followed

    def status(self, kind: int) -> bytes:
        """An encoded Status of the tags `error`, else `otel.status_code` (which it takes away), else of what `http.status_code` says."""
        tags = self.tags
        code = 0
        message: bytes | None = None
        is_given = tags.get(b"error") == b"\x10\x01"
        if is_given:
            code = 2
            del tags[b"error"]
            message = tags.pop(b"otel.status_description", None)
            if message is None:
                message = tags.get(b"http.status_message")
        if (given := tags.pop(b"otel.status_code", None)) is not None:
            if not is_given:
                code = _CODES.get(_string(0, given).upper(), 0)
                message = tags.pop(b"otel.status_description", None)
        elif not is_given and (given := tags.get(b"http.status_code")) is not None:
            code = _http_status(given, kind)
            if code == 0:
                return b""
            message = tags.get(b"http.status_message")
        out = b"" if message is None else _string(0x12, message)
        return out + varint(0x18, code) if code else out


def _resource(service: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An encoded Resource."""
    found: dict[bytes, bytes] = {}
    if service:
        found[b"service.name"] = _text(service)
    found.update(tags)
    if b"hostname" in found and b"host.name" not in found:
        found[b"host.name"] = found.pop(b"hostname")
    if b"jaeger.version" in found and b"opencensus.exporterversion" not in found:
        found[b"opencensus.exporterversion"] = _text(b"Jaeger-" + _string(0, found.pop(b"jaeger.version")))
    return _attributes(0x0A, found)


def _event(time: int, fields: dict[bytes, bytes]) -> bytes:
    """An encoded Event, as a field of a span."""
    out = fixed64(0x09, time)
    if (name := fields.pop(b"event", None)) is not None:
        out += _string(0x12, name)
    return field(0x5A, out + _attributes(0x1A, fields))


def _attributes(tag: int, found: dict[bytes, bytes]) -> bytes:
    """Each as a KeyValue in a field of this tag."""
    return b"".join([attribute(tag, key, value) for key, value in found.items()])


def _http_status(value: bytes, kind: int) -> int:
    """The status that the attribute `http.status_code` stands for in a span of this kind; 0 for none."""
    number = shift = 0
    if value[0] == 0x18:
        for byte in value[1:]:
            number |= (byte & 127) << shift
            shift += 7
    else:
        text = _string(0, value)
        digits = text[1:] if text[:1] in (b"+", b"-") else text
        if not digits.isdigit() or len(digits) > 100 or int(digits) >> 63:
            return 0
        number = int(digits) if text[0] != 45 else _UNSIGNED64  # less than nothing is no status, like what is too much
    if 400 <= number < 500 and kind == 2:
        return 0
    return 0 if 100 <= number < 399 else 2


def _string(tag: int, value: bytes) -> bytes:
    """The text of an encoded AnyValue, empty where it is no text: as a field of this tag, or bare where that is 0."""
    start = 1
    if value[0] != 0x0A:
        text = b""
    else:
        while value[start] > 127:
            start += 1
        text = cut(value, start + 1, len(value) - start - 1)
    return field(tag, text) if tag else text


def _text(raw: bytes) -> bytes:
    """An encoded AnyValue: a string, or bytes where it is none."""
    return field(0x0A if is_utf8(raw, 0, len(raw)) else 0x3A, raw)


def _name(raw: bytes) -> bytes:
    """What is written where only text can be."""
    return raw if is_utf8(raw, 0, len(raw)) else raw.decode("utf-8", "replace").encode()


def _ids(trace: bytes, span: bytes, high: int, low: int, id: int) -> bytes:
    """The fields of a trace's and a span's id; of those that are not 0."""
    out = trace + big64(high) + big64(low) if high or low else b""
    return out + span + big64(id) if id else out


def _incomplete(what: str, seen: int, names: tuple[str, ...]) -> DecodeError:
    missing = [name for number, name in enumerate(names) if name and not seen >> number & 1]
    return DecodeError(f"a {what} without {' and '.join(missing)}")
