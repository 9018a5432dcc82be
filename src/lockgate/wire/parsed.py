"""What the line kernels give back; apart from them, because it stays plain Python."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Left(IntEnum):
    """What stands at `consumed`, and so why a kernel stopped there."""

    NOTHING = 0
    """The chunk is used up."""
    LINE = 1
    """A line without its newline: a torn write, or a chunk shorter than the line."""
    GROUP = 2
    """The first part of a record whose last part has not been seen: wait, enlarge the chunk, or flush."""
    LIMIT = 3
    """More lines; `max_records` was reached."""


class Parsed(NamedTuple):
    """One chunk's records and their ledger, in which always `lines == records + joined + empty`.

    Nothing but `consumed` need be remembered between chunks. A caller makes progress by this rule: where `consumed` is 0 and the chunk
    was full, read a larger one, and at its bound set `FLUSH_GROUPS` (left is GROUP) or `FLUSH_LINE` (left is LINE).
    """

    payload: bytes
    """A framed `resource_logs` field; several concatenate into one ExportLogsServiceRequest. Empty where there is no record."""
    records: int
    lines: int
    """Lines consumed (spans, where the caller gave them)."""
    joined: int
    """Lines that went into a record which another line began."""
    empty: int
    """Lines without a byte, which give no record (as in filelog)."""
    malformed: int
    """Lines kept whole as the body, because they are not in the expected format."""
    truncated: int
    """Records cut at `max_record_bytes`; their rest is dropped."""
    partial: int
    """Records flushed without their last part."""
    consumed: int
    """Bytes; what is behind them has not been looked at, or was undone."""
    left: Left
    pending: int = 0
    """Lines behind `consumed` that were undone, because a record among them waits for its last part; without empty ones."""
