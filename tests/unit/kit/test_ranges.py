"""Ranges against a plain set of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lockgate.kit.ranges import Ranges

pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)


def numbers(ranges: Ranges) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(added=pieces, removed=pieces, again=pieces)
def test_ranges_hold_what_was_added_and_not_removed(
    added: list[tuple[int, int]], removed: list[tuple[int, int]], again: list[tuple[int, int]]
) -> None:
    ranges, plain = Ranges(added), {number for start, end in added for number in range(start, end)}
    for start, end in removed:
        ranges.remove(start, end)
        plain -= set(range(start, end))
    for start, end in again:
        ranges.add(start, end)
        plain |= set(range(start, end))
    assert numbers(ranges) == plain
    several = list(ranges)
    assert all(before[1] < after[0] for before, after in pairwise(several))  # disjoint, sorted, merged


@given(added=pieces, start=st.integers(0, 40), end=st.integers(0, 40))
def test_what_is_missing_is_what_is_not_there(added: list[tuple[int, int]], start: int, end: int) -> None:
    ranges = Ranges(added)
    assert numbers(Ranges(ranges.missing(start, end))) == set(range(start, end)) - numbers(ranges)
    assert ranges.reach(start) == next(number for number in range(start, 99) if number not in numbers(ranges))
    assert ranges.end == max(numbers(ranges), default=-1) + 1


@given(one=pieces, other=pieces)
def test_both_is_what_is_in_each(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert numbers(Ranges(one) & Ranges(other)) == numbers(Ranges(one)) & numbers(Ranges(other))


def test_what_grows_at_its_end_stays_one_range() -> None:
    ranges = Ranges()
    for number in range(1000):
        ranges.add(number, number + 1)
    assert list(ranges) == [(0, 1000)]
