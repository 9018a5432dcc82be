from support import VirtualClock

from lockgate.kit.sometimes import Sometimes


async def test_each_thing_is_said_once_per_interval_with_how_often_it_was_kept_back() -> None:
    clock = VirtualClock()
    sometimes = Sometimes(clock, 10)
    assert [sometimes.now("a"), sometimes.now("a"), sometimes.now("b"), sometimes.now("a")] == [0, None, 0, None]
    await clock.advance(10)
    assert (sometimes.now("a"), sometimes.now("b")) == (2, 0)


async def test_many_different_things_cost_bounded_memory_and_are_said_a_bounded_number_of_times() -> None:
    clock = VirtualClock()
    sometimes = Sometimes(clock, 10, keys=100)
    assert [sometimes.now(number) for number in range(10_000)] == [0] * 101 + [None] * 9_899
    assert len(sometimes._said) <= 101
    assert sometimes.now(5) is None
    await clock.advance(10)
    assert sometimes.now("another") == 0, "what was said long ago makes room"
