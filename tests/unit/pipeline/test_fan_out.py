"""What an acknowledgement of several consumers means."""

import asyncio

import pytest
from support import Sink, VirtualClock, logs

from lockgate.batch import Batch
from lockgate.kit.clock import Clock
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.fan_out import FanOut, fan_out


class Slow:
    """Holds a batch until told."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.cancelled = False

    async def consume(self, batch: Batch) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def a_clock() -> VirtualClock:
    clock: VirtualClock = VirtualClock()
    checked: Clock = clock
    assert checked is clock
    return clock


def test_a_single_consumer_is_itself() -> None:
    sink = Sink()
    assert fan_out([sink], a_clock()) is sink


async def test_it_is_acknowledged_when_the_last_one_has_it() -> None:
    slow, sink = Slow(), Sink()
    call = asyncio.create_task(fan_out([slow, sink], a_clock()).consume(logs("a")))
    await sink.wait_for(1)
    assert not call.done()
    slow.go.set()
    await call


async def test_every_consumer_gets_the_same_batch() -> None:
    one, two = Sink(), Sink()
    given = logs("a")
    await fan_out([one, two], a_clock()).consume(given)
    assert one.batches[0] is given and two.batches[0] is given


async def test_only_the_one_that_said_retryable_is_asked_again_not_before_its_time() -> None:
    one, two, clock = Sink(Retryable("later", after=7), Retryable("later", after=7)), Sink(), a_clock()
    call = asyncio.create_task(fan_out([one, two], clock).consume(logs("a")))
    await clock.advance(6.9)
    assert (one.calls, two.calls) == (1, 1)
    await clock.advance(0.2)
    assert one.calls == 2
    await clock.advance(10)
    await call
    assert (one.count, two.calls, one.calls) == (1, 1, 3)


async def test_a_permanent_refusal_by_some_is_no_refusal_and_by_all_is_one() -> None:
    refusal, sink = Permanent("no"), Sink()
    await fan_out([Sink(refusal), sink], a_clock()).consume(logs("a"))
    assert sink.count == 1
    with pytest.raises(Permanent) as raised:
        await fan_out([Sink(refusal), Sink(Permanent("neither"))], a_clock()).consume(logs("a"))
    assert raised.value is refusal


async def test_a_bug_in_one_is_raised_although_another_would_be_retried_for_ever() -> None:
    clock = a_clock()
    endless = Sink(*(Retryable("down") for _ in range(1000)))
    with pytest.raises(KeyError):
        async with asyncio.timeout(5):
            await fan_out([Sink(KeyError("bug")), endless], clock).consume(logs("a"))
    assert endless.calls <= 2


async def test_cancelling_the_caller_cancels_every_delivery_and_leaves_no_task() -> None:
    slow, other = Slow(), Slow()
    before = asyncio.all_tasks()
    call = asyncio.create_task(FanOut([slow, other], a_clock()).consume(logs("a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert slow.cancelled and other.cancelled and asyncio.all_tasks() == before
