"""Saying the same thing only sometimes: what can happen for every item is logged once per interval, with how often it was kept back."""

from lockgate.kit.clock import Clock

_FURTHER = object()


class Sometimes:
    """`if (kept_back := sometimes.now(key)) is not None: log...`: at most once per key and interval.

    Beyond `keys` different ones in an interval the further ones count as one, so that an attacker's variety costs neither memory nor log.
    """

    def __init__(self, clock: Clock, interval_seconds: float = 10.0, keys: int = 256) -> None:
        self._clock, self._interval, self._keys = clock, interval_seconds, keys
        self._said: dict[object, tuple[float, int]] = {}

    def now(self, key: object) -> int | None:
        """How many times this was kept back since it was said last, where it may be said now; None where it may not."""
        time = self._clock.monotonic()
        if key not in self._said and len(self._said) >= self._keys:
            self._said = {old: said for old, said in self._said.items() if time - said[0] < self._interval}
            if len(self._said) >= self._keys:
                key = _FURTHER
        last, kept_back = self._said.get(key, (float("-inf"), 0))
        if time - last < self._interval:
            self._said[key] = (last, kept_back + 1)
            return None
        self._said[key] = (time, 0)
        return kept_back
