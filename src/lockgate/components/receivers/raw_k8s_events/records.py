"""Events of the Kubernetes API -> OTLP log records, as Sumo Logic's receiver makes them (rawk8seventsreceiver, convertToLog).

The body is the event's message; the attribute `object` is the whole event as the API gives it, `type` is ADDED or MODIFIED. Beyond that
receiver a record has its observed time, and where an event has none of its three times, its object's creation is its time.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import msgspec

from lockgate.wire.protobuf import any_value, delimited, nested_value, varint

_SEVERITIES = {"normal": 9, "warning": 13}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME = 2**64 - 1


def last_seen(raw: bytes) -> int:
    """When the event with this JSON happened last (nanoseconds since 1970); the end of time where that cannot be read."""
    try:
        event = _read(raw)
    except ValueError:
        return _MAX_TIME
    series = event.get("series")
    repeated = series.get("lastObservedTime") if isinstance(series, dict) else None
    *happened, created = map(_nanoseconds, (repeated, *_times(event)))
    return max(happened) or created or _MAX_TIME


def record(raw: bytes, change: str, observed_unix_nano: int) -> tuple[str, bytes]:
    """What names this state of the event with this JSON (UID and version), and its framed LogRecord. Raises ValueError."""
    event = _read(raw)
    metadata = event.get("metadata")
    name = f"{metadata.get('uid')} {metadata.get('resourceVersion')}" if isinstance(metadata, dict) else ""
    time = next(filter(None, map(_nanoseconds, _times(event))), 0)
    parts = [struct.pack("<BQBQ", 0x09, time, 0x59, observed_unix_nano)]
    kind, message = event.get("type"), event.get("message")
    if isinstance(kind, str) and (severity := _SEVERITIES.get(kind.lower())):
        parts += [b"\x10" + varint(severity), delimited(3, kind.encode("utf-8", "replace"))]
    parts.append(delimited(5, any_value(message if isinstance(message, str) else "")))
    for key, value in (("object", event), ("type", change)):
        parts.append(delimited(6, delimited(1, key.encode()) + delimited(2, nested_value(value))))
    return name, delimited(2, b"".join(parts))


def request(records: list[bytes]) -> bytes:
    """An export request of these records: one resource without attributes."""
    return delimited(1, delimited(1, b"") + delimited(2, b"".join(records)))


def _read(raw: bytes) -> dict[str, Any]:
    """The event, with kind and apiVersion, which a list's items lack."""
    try:
        return {"apiVersion": "v1", "kind": "Event"} | msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is no object of the API: {error}") from error


def _times(event: dict[str, Any]) -> tuple[Any, ...]:
    """Its times, the one that counts first."""
    metadata = event.get("metadata")
    created = metadata.get("creationTimestamp") if isinstance(metadata, dict) else None
    return event.get("eventTime"), event.get("lastTimestamp"), event.get("firstTimestamp"), created


def _nanoseconds(text: Any) -> int:
    """Of a Time or MicroTime of the API (RFC 3339, at most microseconds); 0 for none, and for what is none."""
    try:
        since = datetime.fromisoformat(text) - _EPOCH
    except (TypeError, ValueError):
        return 0
    return min(max(0, ((since.days * 86400 + since.seconds) * 10**6 + since.microseconds) * 1000), _MAX_TIME)
