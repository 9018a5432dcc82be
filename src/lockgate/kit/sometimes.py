"""Saying the same thing only sometimes: what can happen for every item is logged once per interval, with how often it was kept back."""

from lockgate.kit.clock import Clock

_KEYS = 256
"""Different things remembered; beyond it all are forgotten and begin anew, so that an attacker's variety costs no memory."""


class Sometimes:
    """`if (kept_back := sometimes.now(key)) is not None: log...`: at most once per key and interval."""

    def __init__(self, clock: Clock, interval_seconds: float = 10.0) -> None:
        self._clock, self._interval = clock, interval_seconds
        self._said: dict[object, tuple[float, int]] = {}

    def now(self, key: object) -> int | None:
        """How many times this was kept back since it was said last, where it may be said now; None where it may not."""
        time = self._clock.monotonic()
        last, kept_back = self._said.get(key, (float("-inf"), 0))
        if time - last < self._interval:
            self._said[key] = (last, kept_back + 1)
            return None
        if len(self._said) >= _KEYS:
            self._said.clear()
        self._said[key] = (time, 0)
        return kept_back
