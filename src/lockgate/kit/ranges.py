"""Sets of whole numbers as sorted, disjoint, half-open ranges: which bytes of a source are somewhere."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Neighbours merge, so that what grows at its end stays one range however long it grows."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Everything in [start, end)."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        """Nothing in [start, end)."""
        if start >= end:
            return
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return
        before, after = self._starts[first], self._ends[last - 1]
        kept = [piece for piece in ((before, start), (end, after)) if piece[0] < piece[1]]
        self._starts[first:last] = [piece[0] for piece in kept]
        self._ends[first:last] = [piece[1] for piece in kept]

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges of [start, end) that are not here, in order."""
        gaps: list[tuple[int, int]] = []
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                break
            if start < self._starts[index]:
                gaps.append((start, self._starts[index]))
            start = self._ends[index]
        if start < end:
            gaps.append((start, end))
        return gaps

    def reach(self, start: int) -> int:
        """How far everything from `start` on is here; `start` where nothing is."""
        index = bisect_right(self._starts, start) - 1
        return max(start, self._ends[index]) if index >= 0 else start

    @property
    def end(self) -> int:
        """Behind the last one; 0 where there is none."""
        return self._ends[-1] if self._ends else 0

    def __and__(self, other: Ranges) -> Ranges:
        both = Ranges(self)
        if self._starts:
            for start, end in other.missing(self._starts[0], self._ends[-1]):
                both.remove(start, end)
        return both

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"
