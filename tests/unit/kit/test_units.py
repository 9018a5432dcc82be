"""Durations and sizes as users write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.kit.units import format_duration, parse_duration, parse_size

DURATIONS = [
    ("0", 0),
    ("1h30m", 5400),
    ("200ms", 0.2),
    ("1.5s", 1.5),
    (".5m", 30),
    ("-2s", -2),
    ("+2s", 2),
    ("3us", 3e-6),
    ("3µs", 3e-6),
    ("7ns", 7e-9),
    (0, 0),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "1h 2m", "5d", "--5s", "-+5s", "1e3s", 30, 1.5, True, None, [], "٣s", "-"])
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|unit"):
        parse_duration(text)


@given(st.integers(0, 10**16))
def test_a_formatted_duration_reads_back(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5400, "90m"), (3600, "1h"), (90, "90s"), (0.3, "300ms"), (0, "0s"), (1e-6, "1us"), (-5, "-5s")]
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


SIZES = [("16MiB", 16 << 20), ("10MB", 10_000_000), ("512k", 512_000), ("1.5Ki", 1536), ("7", 7), (7, 7), ("2 GiB", 2 << 30), ("5b", 5)]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5i", "5ib", "MiB", "-5", -5, 1.5, True, None, "5 miles", "1e3", "٣"])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)
