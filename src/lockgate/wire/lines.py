"""Plain text -> OTLP LogRecords: filelog without the `container` operator. A thin front of the kernel in `cri`.

Lines end as in opentelemetry-collector-contrib's filelog: at a newline, a carriage return before it taken off; TRIM_LEADING and
TRIM_TRAILING (its default, both) take off blanks, tabs, carriage returns and newlines; a line or span without a byte left gives no record.
`time_unix_nano` stays 0. Deliberate difference: what is over `max_record_bytes` is dropped and counted (its on_truncate: drop), where
filelog's default splits.
"""

from __future__ import annotations

from array import array

from lockgate.wire import cri
from lockgate.wire.cri import FLUSH_LINE, TRIM_LEADING, TRIM_TRAILING
from lockgate.wire.parsed import Parsed

__all__ = ["FLUSH_LINE", "TRIM_LEADING", "TRIM_TRAILING", "parse", "parse_spans"]


def parse(
    chunk: bytes,
    resource: bytes,
    attributes: bytes,
    observed_time_unix_nano: int,
    max_records: int,
    max_record_bytes: int,
    flags: int = 0,
) -> Parsed:
    """A record per line. `resource`: an encoded Resource; `attributes`: encoded LogRecord.attributes fields. Raises as `cri.parse`."""
    return cri.parse(chunk, resource, (b"", b"", attributes), observed_time_unix_nano, max_records, max_record_bytes, cri.PLAIN, flags)


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
    """A record per span: for multiline and other patterns, whose boundaries the caller has found.

    `spans`: an array of type "q": start, end, start, end, ..., ascending, not overlapping; ValueError where they are not. As in filelog a
    span's last newline belongs to the body unless TRIM_TRAILING is set. `lines` counts the spans used, `consumed` is the end of the last.
    """
    return cri.parse_spans(chunk, spans, resource, attributes, observed_time_unix_nano, max_records, max_record_bytes, flags)
