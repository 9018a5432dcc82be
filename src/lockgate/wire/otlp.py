# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Is this an OTLP Export{Logs,Metrics,Trace}ServiceRequest? A compiled kernel, driven by a table: see `lockgate.wire`.

Accepts what protobuf's own parser (upb) accepts, but for three things that the OpenTelemetry Collector's unmarshaller (pdata) refuses as
well, or that nobody writes: a known field with another wire type (upb keeps it as unknown), a trace or span id of another length than 16
or 8 (or 0), and groups (wire types 3 and 4), which proto3 does not have; and for one that would take too much memory: more than 2^21
messages in one request. Unknown fields are skipped. Messages nest 100 deep, as in protobuf.
"""

from __future__ import annotations

from array import array

import cython

from lockgate.wire.protobuf import DecodeError

if not cython.compiled:  # otlp.pxd has the compiled one
    from lockgate.wire.memory import is_utf8, same

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

LOGS, METRICS, TRACES = 0, 1, 2

# What a field holds: the wire type is the low three bits (0 varint, 1 fixed64, 2 delimited, 5 fixed32); 0xFF is unknown.
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5
_STRING, _BYTES, _ID16, _ID8, _MANY_FIXED64, _MANY_VARINT, _MESSAGE = 2, 10, 18, 26, 34, 42, 50

# opentelemetry-proto 1.x: message -> field number -> kind, or the name of the message there. A test holds it against the generated classes.
SCHEMA: dict[str, dict[int, int | str]] = {
    "ExportLogsServiceRequest": {1: "ResourceLogs"},
    "ExportMetricsServiceRequest": {1: "ResourceMetrics"},
    "ExportTraceServiceRequest": {1: "ResourceSpans"},
    "LogRecord": {
        **dict.fromkeys((1, 11), _FIXED64),
        **dict.fromkeys((2, 7), _VARINT),
        **dict.fromkeys((3, 12), _STRING),
        5: "AnyValue",
        6: "KeyValue",
        8: _FIXED32,
        9: _ID16,
        10: _ID8,
    },
    "Span": {
        1: _ID16,
        2: _ID8,
        3: _STRING,
        4: _ID8,
        5: _STRING,
        6: _VARINT,
        7: _FIXED64,
        8: _FIXED64,
        9: "KeyValue",
        10: _VARINT,
        11: "Event",
        12: _VARINT,
        13: "Link",
        14: _VARINT,
        15: "Status",
        16: _FIXED32,
    },
    "NumberDataPoint": {**dict.fromkeys((2, 3, 4, 6), _FIXED64), 5: "Exemplar", 7: "KeyValue", 8: _VARINT},
    "HistogramDataPoint": {
        **dict.fromkeys((2, 3, 4, 5, 11, 12), _FIXED64),
        6: _MANY_FIXED64,
        7: _MANY_FIXED64,
        8: "Exemplar",
        9: "KeyValue",
        10: _VARINT,
    },
    "ExponentialHistogramDataPoint": {
        **dict.fromkeys((2, 3, 4, 5, 7, 12, 13, 14), _FIXED64),
        1: "KeyValue",
        6: _VARINT,
        8: "Buckets",
        9: "Buckets",
        10: _VARINT,
        11: "Exemplar",
    },
    "SummaryDataPoint": {**dict.fromkeys((2, 3, 4, 5), _FIXED64), 6: "ValueAtQuantile", 7: "KeyValue", 8: _VARINT},
    "ResourceLogs": {1: "Resource", 2: "ScopeLogs", 3: _STRING},
    "ResourceMetrics": {1: "Resource", 2: "ScopeMetrics", 3: _STRING},
    "ResourceSpans": {1: "Resource", 2: "ScopeSpans", 3: _STRING},
    "ScopeLogs": {1: "InstrumentationScope", 2: "LogRecord", 3: _STRING},
    "ScopeMetrics": {1: "InstrumentationScope", 2: "Metric", 3: _STRING},
    "ScopeSpans": {1: "InstrumentationScope", 2: "Span", 3: _STRING},
    "Resource": {1: "KeyValue", 2: _VARINT, 3: "EntityRef"},
    "EntityRef": dict.fromkeys((1, 2, 3, 4), _STRING),
    "InstrumentationScope": {1: _STRING, 2: _STRING, 3: "KeyValue", 4: _VARINT},
    "KeyValue": {1: _STRING, 2: "AnyValue", 3: _VARINT},
    "AnyValue": {1: _STRING, 2: _VARINT, 3: _VARINT, 4: _FIXED64, 5: "ArrayValue", 6: "KeyValueList", 7: _BYTES, 8: _VARINT},
    "ArrayValue": {1: "AnyValue"},
    "KeyValueList": {1: "KeyValue"},
    "Event": {1: _FIXED64, 2: _STRING, 3: "KeyValue", 4: _VARINT},
    "Link": {1: _ID16, 2: _ID8, 3: _STRING, 4: "KeyValue", 5: _VARINT, 6: _FIXED32},
    "Status": {2: _STRING, 3: _VARINT},
    "Metric": {
        **dict.fromkeys((1, 2, 3), _STRING),
        5: "Gauge",
        7: "Sum",
        9: "Histogram",
        10: "ExponentialHistogram",
        11: "Summary",
        12: "KeyValue",
    },
    "Gauge": {1: "NumberDataPoint"},
    "Sum": {1: "NumberDataPoint", 2: _VARINT, 3: _VARINT},
    "Histogram": {1: "HistogramDataPoint", 2: _VARINT},
    "ExponentialHistogram": {1: "ExponentialHistogramDataPoint", 2: _VARINT},
    "Summary": {1: "SummaryDataPoint"},
    "Exemplar": {2: _FIXED64, 3: _FIXED64, 4: _ID8, 5: _ID16, 6: _FIXED64, 7: "KeyValue"},
    "Buckets": {1: _VARINT, 2: _MANY_VARINT},
    "ValueAtQuantile": {1: _FIXED64, 2: _FIXED64},
}
_NAMES = list(SCHEMA)
# The messages at places 3 to 8 are what is counted: the records, spans and data points.
_KEY_VALUE = _NAMES.index("KeyValue")
_SLOTS = 16


def _flat() -> bytes:
    """64 bytes a message: the kinds of fields 0 to 31, then for those that are messages, which."""
    table = bytearray(b"\xff" * 64 * len(_NAMES))
    for place, fields in enumerate(SCHEMA.values()):
        for number, kind in fields.items():
            table[64 * place + number] = _MESSAGE if isinstance(kind, str) else kind
            table[64 * place + 32 + number] = _NAMES.index(kind) if isinstance(kind, str) else 0
    return bytes(table)


_TABLE: bytes = _flat()

_MOST_MESSAGES = 1 << 21
"""Two bytes may be a log record, which takes upb 130 where somebody looks into it. Requests of some 50 MB have so many."""

# Why bytes are refused.
_REASONS = (
    "",
    "a varint is longer than ten bytes, or runs past the end",
    "field number 0, or a tag that is too long",
    "a length runs past the end of the message around it",
    "groups are not used by OTLP",
    "a wire type that does not exist",
    "the field has another wire type than OTLP's",
    "a string is not UTF-8",
    "messages nest deeper than 100",
    "a trace id that is not 16 bytes long",
    "a span id that is not 8 bytes long",
    "a packed field that does not hold whole numbers",
    f"more than {_MOST_MESSAGES} records, attributes and values; send smaller requests",
)


class _Request:
    """One request while it is checked: where, what for, and the records so far."""

    def __init__(self, payload: bytes) -> None:
        self.payload, self.kinds = bytes(payload), _TABLE
        self.src, self.table = self.payload, self.kinds
        self.records = self.messages = self.reason = self.where = self.message = 0
        self.key_value = _KEY_VALUE
        self.seen = array("q", [-1]) * (3 * _SLOTS)
        """Size, position and messages of valid attributes of records, by the size's last bits: most come again with the next record."""

    def varint(self, at: int, end: int, longest: int) -> int:
        """The position behind the varint there, or -1; `number` its value. Of a tenth byte only the lowest bit counts, as in upb."""
        self.number = shift = 0
        while at < end and shift < 7 * longest:
            byte = self.src[at]
            self.number |= (byte & 127) << shift
            at += 1
            if byte < 128:
                return at
            shift += 7
        return -1

    def fail(self, reason: int, where: int, message: int) -> bool:
        self.reason, self.where, self.message = reason, where, message
        return False

    def walk(self, at: int, end: int, message: int, depth: int) -> bool:
        """One message; recursion is bounded by depth."""
        src, table = self.src, self.table
        self.records += message >= 3 and message <= 8
        self.messages += 1
        if self.messages > 2097152:  # _MOST_MESSAGES
            return self.fail(12, at, message)
        while at < end:
            start = at
            tag = src[at]
            at += 1
            if tag > 127:
                at = self.varint(start, end, 5)
                if at < 0:
                    return self.fail(1 if end - start < 5 else 2, start, message)
                tag = self.number
            wire = tag & 7
            tag >>= 3
            if tag == 0 or tag > 536870911:
                return self.fail(2, start, message)
            kind = table[64 * message + tag] if tag < 32 else 255
            if wire == 2:
                if at < end and src[at] < 128:
                    size = src[at]
                    at += 1
                else:
                    at = self.varint(at, end, 5)
                    if at < 0:
                        return self.fail(1, start, message)
                    size = self.number
                if size > end - at:
                    return self.fail(3, start, message)
                stop = at + size
                if kind == 50:
                    if depth >= 100:
                        return self.fail(8, start, message)
                    inner = table[64 * message + 32 + tag]
                    if inner == self.key_value and message >= 3 and message <= 8:
                        slot = 3 * (size & 15)  # _SLOTS
                        if self.seen[slot] == size and same(src, self.seen[slot + 1], at, size):
                            self.messages += self.seen[slot + 2]
                            if self.messages > 2097152:  # _MOST_MESSAGES
                                return self.fail(12, start, message)
                        else:
                            before = self.messages
                            if not self.walk(at, stop, inner, depth + 1):
                                return False
                            self.seen[slot] = size
                            self.seen[slot + 1] = at
                            self.seen[slot + 2] = self.messages - before
                    elif not self.walk(at, stop, inner, depth + 1):
                        return False
                elif kind == 2:
                    if not is_utf8(src, at, stop):
                        return self.fail(7, start, message)
                elif kind == 18:
                    if size != 0 and size != 16:
                        return self.fail(9, start, message)
                elif kind == 26:
                    if size != 0 and size != 8:
                        return self.fail(10, start, message)
                elif kind == 34:
                    if size & 7:
                        return self.fail(11, start, message)
                elif kind == 42:
                    while at < stop:
                        at = self.varint(at, stop, 10)
                        if at < 0:
                            return self.fail(11, start, message)
                elif kind != 255 and kind != 10:
                    return self.fail(6, start, message)
                at = stop
            elif wire == 0:
                if kind != 0 and kind != 255 and kind != 42:
                    return self.fail(6, start, message)
                at = at + 1 if at < end and src[at] < 128 else self.varint(at, end, 10)
                if at < 0:
                    return self.fail(1, start, message)
            elif wire == 1 or wire == 5:
                if kind != wire and kind != 255 and not (wire == 1 and kind == 34):
                    return self.fail(6, start, message)
                at += 8 if wire == 1 else 4
                if at > end:
                    return self.fail(3, start, message)
            else:
                return self.fail(4 if wire < 5 else 5, start, message)
        return True


def validate(payload: bytes, signal: int) -> int:
    """Log records, metric data points or spans in an export request of this signal (LOGS, METRICS, TRACES).

    Raises DecodeError saying what is wrong, in which message, at which byte. Thread-safe; works without the GIL.
    """
    if not 0 <= signal <= 2:
        raise ValueError(f"no such signal: {signal}")
    request = _Request(payload)
    size = cython.declare(cython.Py_ssize_t, len(payload))
    message = cython.declare(cython.int, signal)
    with cython.nogil:
        ok = request.walk(0, size, message, 0)
    if not ok:
        what = f"{_REASONS[request.reason]}, in {_NAMES[request.message]} at byte {request.where} of {size}"
        raise DecodeError(f"not an {_NAMES[signal]}: {what}")
    return request.records
