"""What the queues behind a tailer say of its lives, by their keys: what they hold already, and what they lost again."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from lockgate.kit.ranges import Ranges
from lockgate.tail.follow import parts_of

_NONE = Ranges()


class Queued:
    """What was durable when the tailer started. A life takes its share when its file is found; what was lost of it goes to `again`."""

    def __init__(self, durable: Mapping[str, Ranges], lost: Mapping[str, Ranges], again: "Again") -> None:
        self._again = again
        self._durable = dict(durable)
        self._lost = dict(lost)
        self._numbers: dict[str, list[int]] = {}
        self._by_digest: dict[str, list[str]] = {}
        for key in self.keys:
            base, digest, number = parts_of(key)
            self._numbers.setdefault(base, []).append(number)
            self._by_digest.setdefault(digest, []).append(key)

    @property
    def keys(self) -> set[str]:
        """Lives that no file was found for yet."""
        return self._durable.keys() | self._lost.keys()

    def end(self, key: str) -> int:
        """How far the life reaches, by what is known of it here."""
        return max(ranges.get(key, _NONE).end for ranges in (self._durable, self._lost))

    def number(self, base: str, least: int, fits: Callable[[int], bool]) -> int | None:
        """Which of the lives that begin with this line this content is: the last one that is not longer than the content."""
        numbers = sorted(self._numbers.get(base, ()), reverse=True)
        for number in numbers:
            key = f"{base}.{number}" if number else base
            if number >= least and key in self.keys and fits(self.end(key)):
                return number
        return None

    def key_of(self, digest: str) -> str | None:
        """The life whose first line has this digest, whatever file it stood in."""
        keys = [key for key in self._by_digest.get(digest, ()) if key in self.keys]
        return max(keys, key=lambda key: parts_of(key)[2], default=None)

    def take(self, key: str) -> Ranges:
        """What is durable of this life; what was lost of it is to be read again."""
        self._again.add(key, self._lost.pop(key, _NONE))
        return self._durable.pop(key, Ranges())

    def take_lost(self) -> None:
        """What was lost of lives that no file was found for is to be read again, should one come."""
        lost, self._lost = self._lost, {}
        for key, ranges in lost.items():
            self._again.add(key, ranges)

    def forget(self) -> None:
        """Whose file was not found by now is gone."""
        self._durable.clear()


class Again:
    """Ranges that are to be read once more, because a queue lost them; asked by the reading thread, told of takings by any."""

    def __init__(self) -> None:
        self.unread: dict[str, Ranges] = {}
        self.untaken: dict[str, Ranges] = {}
        self.taken: deque[tuple[str, int, int]] = deque()
        """Ranges that were taken, not yet seen here."""

    def add(self, key: str, ranges: Iterable[tuple[int, int]]) -> None:
        self._see_taken()  # what was taken before this may be lost once more
        for start, end in ranges:
            self.unread.setdefault(key, Ranges()).add(start, end)
            self.untaken.setdefault(key, Ranges()).add(start, end)

    def read(self, key: str, start: int, end: int) -> None:
        self._remove(self.unread, key, start, end)

    def bytes_of(self, key: str) -> int:
        """How much of this life is to be read once more."""
        return sum(end - start for start, end in self.unread.get(key, ()))

    def drop(self, key: str, start: int, end: int) -> None:
        """This cannot be read any more."""
        self._remove(self.unread, key, start, end)
        self._remove(self.untaken, key, start, end)

    def of(self, key: str) -> tuple[tuple[int, int], ...]:
        """What of this life was not taken yet."""
        self._see_taken()
        return tuple(self.untaken.get(key, ()))

    def _see_taken(self) -> None:
        while self.taken:
            self._remove(self.untaken, *self.taken.popleft())

    @staticmethod
    def _remove(group: dict[str, Ranges], key: str, start: int, end: int) -> None:
        if (ranges := group.get(key)) is not None:
            ranges.remove(start, end)
            if not ranges:
                del group[key]
