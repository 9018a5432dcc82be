"""The byte budget: bounded, fair, and whole again whatever is cancelled."""

import asyncio
import random

from lockgate.net.budget import ByteBudget


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
