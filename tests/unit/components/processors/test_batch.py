"""The batch processor: who waits for whom, what is merged, what a refusal does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from support import Sink, VirtualClock, context, logs

from lockgate.batch import Batch, Part
from lockgate.components.processors.batch import BatchProcessor, BatchSettings
from lockgate.pipeline.errors import Permanent, Retryable


class Gate:
    """A consumer whose deliveries wait until the test lets them go, one by one, with an outcome."""

    def __init__(self) -> None:
        self.arrived: list[Batch] = []
        self.outcomes: list[asyncio.Future[None]] = []

    async def consume(self, batch: Batch) -> None:
        self.arrived.append(batch)
        self.outcomes.append(asyncio.get_running_loop().create_future())
        await self.outcomes[-1]

    def let_go(self, number: int, error: Exception | None = None) -> None:
        if error:
            self.outcomes[number].set_exception(error)
        else:
            self.outcomes[number].set_result(None)

    @property
    def counts(self) -> list[int]:
        return [batch.count for batch in self.arrived]


@asynccontextmanager
async def running(next_: Any, clock: Any = None, **settings: Any) -> AsyncIterator[BatchProcessor]:
    processor = BatchProcessor(BatchSettings.model_validate(settings), context("batch", clock=clock or VirtualClock()))
    processor.next = next_
    async with processor:
        yield processor


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def ends(*tasks: Awaitable[Any]) -> list[Any]:
    async with asyncio.timeout(5):
        return await asyncio.gather(*tasks, return_exceptions=True)


def batch(*bodies: str, peer: str = "") -> Batch:
    return logs(*bodies, peer=peer)


async def test_a_batch_goes_on_at_once_while_nothing_is_under_way() -> None:
    sink = Sink()
    async with running(sink) as processor:
        given = batch("a")
        await processor.consume(given)
        assert sink.batches == [given]


async def test_what_arrives_meanwhile_is_merged_and_follows_when_the_way_is_free() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
        await settle()
        assert gate.counts == [1] and not any(call.done() for call in calls)
        gate.let_go(0)
        await settle()
        assert gate.counts == [1, 2] and [call.done() for call in calls] == [True, False, False]
        merged = gate.arrived[1]
        parts = [batch(name) for name in "bc"]
        assert merged.parts == tuple(Part(part.id, len(part.payload)) for part in parts)
        gate.let_go(1)
        assert await ends(*calls) == [None] * 3


async def test_enough_records_do_not_wait_for_what_is_under_way() -> None:
    gate = Gate()
    async with running(gate, send_batch_size=3) as processor:
        calls = [asyncio.create_task(processor.consume(batch(*names))) for names in ("a", "bc", "d", "e")]
        await settle()
        assert gate.counts == [1, 3]
        assert processor.context.metrics.value("otelcol_processor_batch_batch_size_trigger_send") == 1
        gate.let_go(0)
        gate.let_go(1)
        await settle()
        assert gate.counts == [1, 3, 1]
        gate.let_go(2)
        assert await ends(*calls) == [None] * 4


async def test_the_time_out_ends_the_waiting() -> None:
    gate, clock = Gate(), VirtualClock()
    async with running(gate, clock, timeout="2s") as processor:
        calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
        await settle()
        await clock.advance(1.99)
        assert gate.counts == [1]
        await clock.advance(0.01)
        assert gate.counts == [1, 2]
        assert processor.context.metrics.value("otelcol_processor_batch_timeout_trigger_send") == 1
        gate.let_go(0)
        gate.let_go(1)
        await ends(*calls)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"send_batch_size": 0}])
async def test_without_time_out_or_size_nothing_waits(settings: dict[str, Any]) -> None:
    gate = Gate()
    async with running(gate, **settings) as processor:
        calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
        await settle()
        assert gate.counts == [1, 1, 1]
        for number in range(3):
            gate.let_go(number)
        await ends(*calls)


async def test_peers_are_never_merged_and_do_not_wait_for_each_other() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = [asyncio.create_task(processor.consume(batch(name, peer=peer))) for name, peer in ("a1", "b2", "c1", "d2", "e1")]
        await settle()
        assert [found.peer for found in gate.arrived] == ["1", "2"]
        gate.let_go(0)
        gate.let_go(1)
        await settle()
        assert [(found.peer, found.count) for found in gate.arrived[2:]] == [("1", 2), ("2", 1)]
        gate.let_go(2)
        gate.let_go(3)
        await ends(*calls)
        assert not processor._shards


async def test_more_peers_than_the_limit_pass_unmerged() -> None:
    gate = Gate()
    async with running(gate, metadata_cardinality_limit=1) as processor:
        calls = [asyncio.create_task(processor.consume(batch("x", peer=peer))) for peer in ("1", "1", "2", "2")]
        await settle()
        assert [found.peer for found in gate.arrived] == ["1", "2", "2"] and len(processor._shards) == 1
        for number in range(3):
            gate.let_go(number)
        await settle()
        gate.let_go(3)
        await ends(*calls)


async def test_too_large_a_batch_is_split_and_its_caller_waits_for_all_pieces() -> None:
    gate = Gate()
    async with running(gate, send_batch_size=2, send_batch_max_size=2) as processor:
        call = asyncio.create_task(processor.consume(batch(*"abcde")))
        for number in range(3):
            await settle()
            assert gate.counts == [2, 2, 1][: number + 1] and not call.done()
            gate.let_go(number)
        assert await ends(call) == [None]
        assert [found.id.partition("#")[2] for found in gate.arrived] == ["0", "1", "2"]


async def test_merging_stops_at_the_maximum() -> None:
    gate = Gate()
    async with running(gate, send_batch_size=3, send_batch_max_size=3) as processor:
        calls = [asyncio.create_task(processor.consume(batch(*names))) for names in ("a", "bb", "cc", "d")]
        await settle()
        assert gate.counts == [1, 2, 2]
        for number in range(3):
            gate.let_go(number)
        await settle()
        assert gate.counts == [1, 2, 2, 1]
        gate.let_go(3)
        assert await ends(*calls) == [None] * 4


async def merged(gate: Gate, processor: BatchProcessor, *names: str) -> list[asyncio.Task[None]]:
    """Callers whose batches are one delivery, number 1; delivery 0 is over."""
    calls = [asyncio.create_task(processor.consume(batch("first")))]
    await settle()
    calls += [asyncio.create_task(processor.consume(batch(name))) for name in names]
    await settle()
    gate.let_go(0)
    await settle()
    assert gate.counts == [1, len(names)]
    return calls[1:]


async def test_retryable_goes_to_every_caller_unchanged() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = await merged(gate, processor, "a", "b")
        refusal = Retryable("later", after=3)
        gate.let_go(1, refusal)
        assert await ends(*calls) == [refusal, refusal]


async def test_a_merged_batch_refused_for_ever_is_retried_in_its_parts() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = await merged(gate, processor, "a", "bad", "c")
        gate.let_go(1, Permanent("no"))
        outcomes = [None, Permanent("bad part"), Retryable("later")]
        for number, outcome in enumerate(outcomes, 2):
            await settle()
            assert gate.counts[number] == 1
            gate.let_go(number, outcome)
        assert await ends(*calls) == outcomes


async def test_a_permanently_refused_piece_does_not_keep_the_others_back() -> None:
    sink = Sink(Permanent("no"))
    async with running(sink, send_batch_size=2, send_batch_max_size=2) as processor:
        with pytest.raises(Permanent, match="1 of 3 pieces: no"):
            await processor.consume(batch(*"abcde"))
    assert sink.bodies() == list("cde")


async def test_a_bug_behind_it_reaches_the_caller() -> None:
    async with running(Sink(KeyError("bug"))) as processor:
        with pytest.raises(KeyError):
            await processor.consume(batch("a"))


async def test_a_cancelled_caller_takes_its_waiting_batch_with_it() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
        await settle()
        calls[1].cancel()
        await settle()
        gate.let_go(0)
        await settle()
        assert gate.counts == [1, 1]
        gate.let_go(1)
        assert isinstance((await ends(*calls))[1], asyncio.CancelledError)


async def test_a_delivery_goes_on_for_the_callers_that_are_left_and_ends_with_the_last() -> None:
    gate = Gate()
    async with running(gate) as processor:
        calls = await merged(gate, processor, "a", "b")
        calls[0].cancel()
        await settle()
        assert not gate.outcomes[1].cancelled()
        calls[1].cancel()
        await settle()
        assert gate.outcomes[1].cancelled() and not processor._flights


async def stopping(processor: BatchProcessor, gate: Gate, act: Callable[[], None]) -> list[Any]:
    calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
    await settle()
    leave = asyncio.create_task(processor.__aexit__(None, None, None))
    await settle()
    act()
    await ends(leave)
    return await ends(*calls)


async def test_stopping_sends_what_waits_and_waits_for_it() -> None:
    gate = Gate()
    processor = BatchProcessor(BatchSettings(), context("batch"))
    processor.next = gate
    await processor.__aenter__()

    def act() -> None:
        assert gate.counts == [1, 2]
        gate.let_go(0)
        gate.let_go(1)

    assert await stopping(processor, gate, act) == [None] * 3
    with pytest.raises(Retryable, match="not running"):
        await processor.consume(batch("d"))


async def test_a_stop_that_is_cut_short_tells_every_caller() -> None:
    gate = Gate()
    processor = BatchProcessor(BatchSettings(), context("batch"))
    processor.next = gate
    await processor.__aenter__()
    calls = [asyncio.create_task(processor.consume(batch(name))) for name in "abc"]
    await settle()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await processor.__aexit__(None, None, None)
    outcomes = await ends(*calls)
    assert [type(outcome) for outcome in outcomes] == [Retryable] * 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"send_batch_size": 10, "send_batch_max_size": 5}, "at least send_batch_size"),
        ({"timeout": "-1s"}, "greater than or equal to 0"),
        ({"metadata_keys": ["tenant"]}, "must be empty"),
        ({"timeout": 5}, "without a unit"),
    ],
)
def test_refused_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        BatchSettings.model_validate(settings)
