"""Durations and sizes as users write them (`1h30m`, `200ms`, `16MiB`), as annotated types for settings."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_DURATION = re.compile(r"([+-]?)((?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_DURATION_PART = re.compile(r"([0-9.]+)([^0-9.]+)")
_DURATION_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*((?:[kmgt]i?)?)b?", re.IGNORECASE)
_SIZE_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_duration(text: object) -> float:
    """Seconds from a Go duration string (time.ParseDuration); a bare number is only accepted where it is 0.

    Raises ValueError for anything else: a bare `30` means 30 ns to the collector and 30 s to a human, so it is asked for.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("must be a duration such as 500ms, 30s or 1h30m")
    if isinstance(text, int | float):
        if text == 0:
            return 0.0
        raise ValueError(f"is a number without a unit; write {text}s if seconds are meant")
    body = text.strip()
    if body in ("0", "+0", "-0"):
        return 0.0
    if (match := _DURATION.fullmatch(body)) is None:
        raise ValueError(f"{text!r} is no duration; write it like 500ms, 30s or 1h30m")
    seconds = sum(float(number) * _DURATION_SECONDS[unit] for number, unit in _DURATION_PART.findall(match[2]))
    return -seconds if match[1] == "-" else seconds


def format_duration(seconds: float) -> str:
    """A short spelling that parse_duration reads back, to the nanosecond."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 else ""
    for unit, size in (("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if nanoseconds and nanoseconds % size == 0:
            return f"{sign}{nanoseconds // size}{unit}"
    return f"{sign}{nanoseconds}ns" if nanoseconds else "0s"


def parse_size(text: object) -> int:
    """Bytes from `16MiB`, `10MB`, `512k` or a bare number of bytes; raises ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no size; write it like 16MiB, 10MB or a number of bytes")
    return int(float(match[1]) * _SIZE_BYTES[match[2].lower()])


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0), PlainSerializer(format_duration)]
"""Seconds, written as a Go duration; not negative."""

Size = Annotated[int, BeforeValidator(parse_size)]
"""Bytes, written with or without a unit."""
