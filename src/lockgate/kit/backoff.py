"""Exponential backoff with jitter, and where it ends."""

import random
from collections.abc import Iterator


def delays(
    initial_seconds: float, max_seconds: float, multiplier: float = 1.5, randomization: float = 0.5, uniform: random.Random | None = None
) -> Iterator[float]:
    """Seconds to wait before each next try, without end: each nominal delay spread by ± `randomization` of itself.

    The same shape as the collector's `retry_on_failure` (cenkalti/backoff), so that a configuration keeps its meaning.
    """
    source = uniform or random.Random()
    nominal = initial_seconds
    while True:
        yield nominal * source.uniform(1 - randomization, 1 + randomization)
        nominal = min(nominal * multiplier, max_seconds)
