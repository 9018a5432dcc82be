"""A joint: whoever stands there is replaced while batches pass, and each batch is taken once."""

import asyncio

import pytest
from support import Sink, VirtualClock, logs

from lockgate.batch import Batch
from lockgate.pipeline.errors import Gone, Permanent, Retryable
from lockgate.pipeline.fan_out import fan_out
from lockgate.pipeline.joint import Joint


class Held(Sink):
    """Keeps its callers waiting until it is told to take or to refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def consume(self, batch: Batch) -> None:
        await asyncio.shield(self.verdict)
        await super().consume(batch)


def joint(consumer: Sink | None = None) -> Joint:
    made = Joint("exporters/x")
    if consumer is not None:
        made.open(consumer)
    return made


async def begun(at: Joint, body: str = "one") -> "asyncio.Task[None]":
    task = asyncio.create_task(at.consume(logs(body)))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_a_batch_waits_while_nobody_stands_there() -> None:
    at, sink = joint(), Sink()
    task = await begun(at)
    assert not task.done()
    at.open(sink)
    await task
    assert sink.bodies() == ["one"]


async def test_what_the_one_who_left_gives_back_goes_to_the_next_and_what_it_took_does_not() -> None:
    old, new = Held(), Sink()
    at = joint(old)
    task = await begun(at)
    at.close()
    old.verdict.set_exception(Retryable("stopped"))
    await begun(at, "two")
    assert not task.done()
    at.open(new)
    await task
    assert sorted(new.bodies()) == ["one", "two"]
    assert old.bodies() == []

    old, new = Held(), Sink()
    at = joint(old)
    task = await begun(at)
    at.open(new)
    old.verdict.set_result(None)
    await task
    assert (old.bodies(), new.bodies()) == (["one"], [])


async def test_a_refusal_by_who_still_stands_there_is_the_callers() -> None:
    at = joint(Sink(Retryable("busy"), Permanent("never")))
    with pytest.raises(Retryable, match="busy"):
        await at.consume(logs("one"))
    with pytest.raises(Permanent, match="never"):
        await at.consume(logs("one"))


async def test_who_waits_at_a_place_that_is_removed_hears_that_it_is_gone() -> None:
    at = joint()
    task = await begun(at)
    at.remove()
    with pytest.raises(Gone):
        await task


async def test_a_consumer_is_idle_when_its_last_call_has_ended_whoever_stands_there_now() -> None:
    told: list[str] = []
    old, new = Held(), Sink()
    at = Joint("x", lambda: told.append("idle"))
    at.open(old)
    tasks = [await begun(at), await begun(at)]
    at.open(new)
    assert not at.is_idle(old)
    assert told == []
    old.verdict.set_result(None)
    await asyncio.gather(*tasks)
    assert at.is_idle(old)
    assert told == ["idle"]


async def test_a_fan_out_asks_one_that_is_gone_no_more_and_repeats_nothing_to_the_others() -> None:
    stays, goes = Sink(), Sink(Retryable("busy"))
    places = [joint(stays), joint(goes)]
    clock = VirtualClock()
    task = asyncio.create_task(fan_out(places, clock).consume(logs("one")))
    await clock.advance(0)
    places[1].remove()
    await clock.advance(10)
    await task
    assert (stays.bodies(), goes.bodies()) == (["one"], [])


async def test_a_fan_out_whose_consumers_are_all_gone_gives_the_batch_back() -> None:
    places = [joint(Sink(Permanent("never"))), joint()]
    places[1].remove()
    with pytest.raises(Gone):
        await fan_out(places, VirtualClock()).consume(logs("one"))
