"""Backoff."""

import random
from itertools import islice

from lockgate.kit.backoff import delays


def test_delays_grow_to_their_maximum_and_stay() -> None:
    assert list(islice(delays(1, 5, 2, randomization=0), 5)) == [1, 2, 4, 5, 5]


def test_each_delay_is_spread_around_its_nominal_value() -> None:
    found = list(islice(delays(10, 10, randomization=0.5, uniform=random.Random(1)), 500))
    assert all(5 <= delay <= 15 for delay in found) and min(found) < 6 and max(found) > 14
