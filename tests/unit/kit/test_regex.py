"""Go's regular expressions."""

import time

import pytest

from lockgate.kit import regex

SEARCHES = [
    ("a$", "a\n", False), (r"^\d$", "٣", False), (r"^\w$", "é", False), ("$^", "", True), ("(?P<n>x)( |)", "x", True),
    ("[a-zA-z]", "_", True), ("é+", "éé", True), ("(?s).", "\n", True), (".", "\n", False), ("(?i)ABC", "abc", True),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text", "found"), SEARCHES)
def test_search(pattern: str, text: str, found: bool) -> None:
    assert bool(regex.compile(pattern).search(text)) is found


@pytest.mark.parametrize("pattern", ["(", "(?=x)", r"(a)\1", "a**", "[z-a]", "a{2000}"])
def test_what_re2_lacks_is_a_value_error_that_quotes_it(pattern: str) -> None:
    with pytest.raises(ValueError, match="RE2") as raised:
        regex.compile(pattern)
    assert repr(pattern) in str(raised.value)


def test_time_is_linear_where_backtracking_would_take_for_ever() -> None:
    started = time.perf_counter()
    assert not regex.compile("^(a+)+$").search("a" * 50_000 + "b")
    assert time.perf_counter() - started < 5
