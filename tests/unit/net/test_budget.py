"""The byte budget: bounded, fair, and whole again whatever is cancelled."""

import asyncio
import random

from lockgate.net.budget import ByteBudget, Share


async def test_a_large_one_is_not_overtaken_for_ever() -> None:
    budget, order = ByteBudget(10), list[str]()

    async def take(name: str, size: int) -> None:
        await budget.acquire(size)
        order.append(name)

    held = await budget.acquire(6)
    waiting = [asyncio.ensure_future(take("large", 9)), asyncio.ensure_future(take("small", 1))]
    await asyncio.sleep(0)
    assert order == []
    budget.release(held)
    await asyncio.gather(*waiting)
    assert order == ["large", "small"]


async def test_more_than_there_is_takes_all_of_it() -> None:
    budget = ByteBudget(10)
    assert await budget.acquire(1000) == 10
    budget.release(10)
    assert budget.used == 0


async def test_nothing_is_lost_whatever_is_cancelled_when() -> None:
    source, budget = random.Random(5), ByteBudget(100)

    async def take() -> None:
        held = await budget.acquire(source.randrange(1, 101))
        assert budget.used <= 100
        try:
            for _ in range(source.randrange(4)):
                await asyncio.sleep(0)
        finally:
            budget.release(held)

    for _ in range(200):
        tasks = [asyncio.ensure_future(take()) for _ in range(10)]
        for _ in range(source.randrange(5)):
            await asyncio.sleep(0)
            for task in source.sample(tasks, 3):
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
        assert budget.used == 0


def test_who_does_not_wait_is_refused_and_keeps_what_it_held() -> None:
    budget = ByteBudget(10)
    first, second = Share(budget), Share(budget)
    assert first.resize(4)
    assert second.resize(6)
    assert not first.resize(5)
    assert (first.size, second.size, budget.used) == (4, 6, 10)
    assert second.resize(1)
    assert first.resize(9)
    first.release()
    first.release()
    assert budget.used == 1


def test_one_that_is_too_large_is_let_in_alone() -> None:
    budget = ByteBudget(10)
    large, small = Share(budget), Share(budget)
    assert small.resize(1)
    assert not large.resize(1000)
    small.release()
    assert large.resize(1000)
    assert not small.resize(1)


async def test_who_does_not_wait_never_overtakes_who_does() -> None:
    budget = ByteBudget(10)
    assert budget.take(6)
    waiting = asyncio.ensure_future(Share(budget).wait_for(9))
    await asyncio.sleep(0)
    assert not budget.take(1)
    budget.release(6)
    await waiting
    assert budget.used == 9
