from support import VirtualClock

from lockgate.kit.sometimes import Sometimes


async def test_each_thing_is_said_once_per_interval_with_how_often_it_was_kept_back() -> None:
    clock = VirtualClock()
    sometimes = Sometimes(clock, 10)
    assert [sometimes.now("a"), sometimes.now("a"), sometimes.now("b"), sometimes.now("a")] == [0, None, 0, None]
    await clock.advance(10)
    assert (sometimes.now("a"), sometimes.now("b")) == (2, 0)


def test_many_different_things_cost_bounded_memory() -> None:
    sometimes = Sometimes(VirtualClock())
    for number in range(10_000):
        sometimes.now(number)
    assert len(sometimes._said) <= 256
