"""Journal entries -> OTLP log records, as the collector's journald receiver makes them: the body is a map of all fields, as strings.

__REALTIME_TIMESTAMP is the record's time and no field; __CURSOR and __MONOTONIC_TIMESTAMP are fields. A field that an entry has several
times is a list. What is no UTF-8 is bytes.
"""

from __future__ import annotations

import struct

from lockgate.wire.protobuf import any_value, delimited, key_values

_MAX_TIME = 2**64 - 1
_KNOWN = 4096
_KNOWN_BYTES = 256


class Records:
    """Makes records; remembers short fields, which most entries of a journal share."""

    def __init__(self, attributes: dict[str, str], resource: dict[str, str]) -> None:
        self._attributes = key_values(6, attributes.items())
        self._resource = delimited(1, key_values(1, resource.items()))
        self._known: dict[bytes, tuple[bytes, bytes]] = {}

    def record(self, fields: list[bytes], cursor: str, real_usec: int, monotonic_usec: int, observed_unix_nano: int) -> bytes:
        """A framed LogRecord of an entry with these `NAME=value` fields."""
        values: dict[bytes, list[bytes]] = {
            b"__CURSOR": [any_value(cursor)],
            b"__MONOTONIC_TIMESTAMP": [any_value(str(monotonic_usec))],
        }
        for field in fields:
            name, value = self._known.get(field) or self._split(field)
            values.setdefault(name, []).append(value)
        body = b"".join(delimited(1, delimited(1, name) + delimited(2, _one_or_list(several))) for name, several in values.items())
        times = struct.pack("<BQBQ", 0x09, min(real_usec * 1000, _MAX_TIME), 0x59, observed_unix_nano)
        return delimited(2, times + delimited(5, delimited(6, body)) + self._attributes)

    def request(self, records: list[bytes]) -> bytes:
        """An export request of these records."""
        return delimited(1, self._resource + delimited(2, b"".join(records)))

    def _split(self, field: bytes) -> tuple[bytes, bytes]:
        name, _, value = field.partition(b"=")
        name = name.decode("ascii", "replace").encode()  # a journal is what was received from another machine, too
        try:
            made = (name, any_value(value.decode()))
        except UnicodeDecodeError:
            made = (name, any_value(value))
        if len(field) <= _KNOWN_BYTES and not name.startswith(b"_SOURCE_"):
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[field] = made
        return made


def _one_or_list(values: list[bytes]) -> bytes:
    return values[0] if len(values) == 1 else delimited(5, b"".join(delimited(1, value) for value in values))
