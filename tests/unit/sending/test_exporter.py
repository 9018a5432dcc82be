"""QueuedExporter on a virtual clock: what is acknowledged when, what is tried again, what is counted."""

import asyncio
import contextlib
import gc
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import VirtualClock, context, logs

from lockgate.batch import Batch, merge
from lockgate.pipeline.contract import Context, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.settings import SendingSettings


class Server:
    """What the exporter under test sends to: answers from a script, then success; can be held."""

    def __init__(self, *script: Exception | Rejected) -> None:
        self.script = list(script)
        self.sent: list[Batch] = []
        self.attempts = 0
        self.under_way = 0
        self.most_under_way = 0
        self.open = asyncio.Event()
        self.open.set()
        self.judge: Callable[[Batch], None] = lambda _: None

    async def answer(self, batch: Batch) -> Rejected | None:
        self.attempts += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        result = self.script.pop(0) if self.script else None
        if isinstance(result, Exception):
            raise result
        self.judge(batch)
        self.sent.append(batch)
        return result


class ScriptedExporter(QueuedExporter[SendingSettings]):
    server: Server

    async def send(self, batch: Batch) -> Rejected | None:
        return await self.server.answer(batch)


@asynccontextmanager
async def exporting(server: Server, clock: VirtualClock, **settings: Any) -> AsyncIterator[tuple[ScriptedExporter, Context]]:
    of = context("out", Kind.EXPORTER, clock=clock)
    exact = {"retry_on_failure": {"initial_interval": "5s", "max_interval": "30s", "randomization_factor": 0}}
    exporter = ScriptedExporter(SendingSettings.model_validate(exact | settings), of)
    exporter.server = server
    async with exporter:
        yield exporter, of


async def settled(clock: VirtualClock) -> None:
    await clock.advance(0)


def bodies(batch: Batch) -> list[str]:
    return [record.body.string_value for entry in batch.message.resource_logs for scope in entry.scope_logs for record in scope.log_records]


async def test_a_sender_that_waits_keeps_no_batch_alive() -> None:
    server, clock = Server(), VirtualClock()
    async with exporting(server, clock) as (exporter, _):
        await exporter.consume(batch := logs("a"))
        assert [each.id for each in server.sent] == [batch.id]
        name = batch.id
        server.sent.clear()
        del batch
        await settled(clock)
        gc.collect()
        assert [each for each in gc.get_objects() if isinstance(each, Batch) and each.id == name] == []


async def test_consume_returns_when_the_batch_is_delivered_and_not_before() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock) as (exporter, of):
        consuming = asyncio.create_task(exporter.consume(logs("a", "b")))
        await settled(clock)
        assert (server.attempts, consuming.done()) == (1, False)
        assert of.metrics.value("otelcol_exporter_queue_size", exporter="out") == 1
        server.open.set()
        await consuming
        assert of.metrics.value("otelcol_exporter_queue_size", exporter="out") == 0
        assert of.metrics.value("otelcol_exporter_sent_log_records", exporter="out") == 2


async def test_what_may_pass_later_is_tried_again_with_growing_waits_and_shows_in_status() -> None:
    server, clock = Server(*[Retryable("backend is down")] * 4), VirtualClock()
    async with exporting(server, clock) as (exporter, of):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        await settled(clock)
        assert of.status.blocked["sending"] == ("delivery: backend is down", 0.0)
        await clock.advance(5 + 7.5 + 11.25 + 16.8)
        assert not consuming.done()
        await clock.advance(0.1)
        await consuming
        assert clock.slept == [5, 7.5, 11.25, 16.875]
        assert not of.status.blocked
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 0


async def test_a_servers_retry_after_is_waited_for() -> None:
    server, clock = Server(Retryable("busy", 60)), VirtualClock()
    async with exporting(server, clock) as (exporter, _):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        await clock.advance(59)
        assert server.attempts == 1
        await clock.advance(1)
        await consuming


async def test_after_an_outage_the_first_success_wakes_the_senders_that_wait_but_not_before_what_their_server_asked_for() -> None:
    server, clock = Server(), VirtualClock()
    is_out, later = True, ["b"]

    def judge(batch: Batch) -> None:
        if is_out:
            raise Retryable("not yet", 40.0 if bodies(batch) == later else None)

    server.judge = judge
    retry = {"initial_interval": "5s", "max_interval": "30s", "randomization_factor": 0.5}
    async with exporting(server, clock, retry_on_failure=retry) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs(name))) for name in "abcdefgh"]
        await clock.advance(300)
        assert not server.sent
        is_out = False
        while not server.sent:
            await clock.advance(0.1)
        assert len(server.sent) >= 7  # all but the one who may have been told to wait
        await clock.advance(40)
        await asyncio.gather(*consuming)


async def test_during_an_outage_ten_senders_ask_as_often_as_one() -> None:
    server, clock = Server(*[Retryable("down")] * 1000), VirtualClock()
    retry = {"initial_interval": "1s", "max_interval": "5s", "randomization_factor": 0}
    async with exporting(server, clock, retry_on_failure=retry) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs(name))) for name in "abcdefghij"]
        await clock.advance(100)
        before = server.attempts
        await clock.advance(1000)
        assert 190 <= server.attempts - before <= 210
        server.script.clear()
        await clock.advance(5)
        await asyncio.gather(*consuming)


async def test_where_others_are_delivered_a_refused_batch_waits_for_itself() -> None:
    server, clock = Server(), VirtualClock()
    refused = 0

    def judge(batch: Batch) -> None:
        nonlocal refused
        if bodies(batch) == ["odd"] and refused < 4:
            refused += 1
            raise Retryable("not this one")

    server.judge = judge
    async with exporting(server, clock) as (exporter, _):
        odd = asyncio.create_task(exporter.consume(logs("odd")))
        await settled(clock)
        for number in range(41):
            await exporter.consume(logs(str(number)))
            await clock.advance(1)
        await odd
        assert clock.slept == [5, 7.5, 11.25, 16.875]


async def test_an_attempt_without_an_answer_is_tried_again() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, timeout="10ms", retry_on_failure={"enabled": False}) as (exporter, _):
        with pytest.raises(Retryable, match="no answer in"):
            await exporter.consume(logs("a"))


async def test_a_batch_is_given_back_after_max_elapsed_time() -> None:
    server, clock = Server(*[Retryable("down")] * 9), VirtualClock()
    retry = {"initial_interval": "5s", "max_interval": "30s", "max_elapsed_time": "10s", "randomization_factor": 0}
    async with exporting(server, clock, retry_on_failure=retry) as (exporter, of):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        await clock.advance(6)
        with pytest.raises(Retryable, match="down"):
            await consuming
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1


async def test_a_permanent_refusal_travels_back_and_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    server, clock = Server(Permanent("bad field"), Permanent("bad field")), VirtualClock()
    async with exporting(server, clock) as (exporter, of):
        for _ in range(2):
            with pytest.raises(Permanent, match="bad field"):
                await exporter.consume(logs("a", "b"))
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 4
    assert caplog.text.count("refused for good: bad field") == 1


async def test_a_new_kind_of_loss_is_told_at_once_and_the_same_kind_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["http://h:1 answered 404: no 17", "http://h:1 answered 404: no 18", "http://h:1 answered 400: no 19"]
    server = Server(Permanent(texts[0]), Rejected(1, "too old: 5 h"), Permanent(texts[1]), Permanent(texts[2]), Permanent(texts[1]))
    clock = VirtualClock()
    async with exporting(server, clock) as (exporter, of):
        for seconds in (0, 0, 0, 0, 11):
            await clock.advance(seconds)
            with contextlib.suppress(Permanent):
                await exporter.consume(logs("a"))
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 5
    said = [
        record.getMessage().partition("refused for good: ")[2] for record in caplog.records if "refused for good" in record.getMessage()
    ]
    assert said == [texts[0], "too old: 5 h", texts[2], f"{texts[1]} (1 more like this were not logged)"]


async def test_reasons_that_differ_each_time_are_told_a_bounded_number_of_times(caplog: pytest.LogCaptureFixture) -> None:
    server, clock = Server(*(Permanent(f"wrong {chr(97 + n % 26)}{chr(97 + n // 26)}") for n in range(100))), VirtualClock()
    async with exporting(server, clock) as (exporter, _):
        for _ in range(100):
            with pytest.raises(Permanent):
                await exporter.consume(logs("a"))
    assert caplog.text.count("refused for good") == 17


async def test_rejected_records_of_a_partial_success_count_as_failed() -> None:
    server, clock = Server(Rejected(1, "too old")), VirtualClock()
    async with exporting(server, clock) as (exporter, of):
        await exporter.consume(logs("a", "b", "c"))
        assert of.metrics.value("otelcol_exporter_sent_log_records") == 2
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1


async def test_no_more_requests_are_under_way_than_consumers() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue={"num_consumers": 3}) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs(str(number)))) for number in range(10)]
        await settled(clock)
        assert server.under_way == 3
        server.open.set()
        await asyncio.gather(*consuming)
    assert (server.most_under_way, len(server.sent)) == (3, 10)


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param({"queue_size": 2}, id="requests"),
        pytest.param({"queue_size": 4, "sizer": "items"}, id="items"),
        pytest.param({"max_bytes": 2 * len(logs("a", "b").payload)}, id="bytes"),
    ],
)
async def test_a_full_queue_makes_its_callers_wait(bound: dict[str, Any]) -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue=bound | {"num_consumers": 9}) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs("a", "b"))) for _ in range(5)]
        await settled(clock)
        assert server.under_way == 2
        consuming.pop(2).cancel()  # one who waited for room and gave up leaves no hole
        server.open.set()
        await asyncio.gather(*consuming)
    assert len(server.sent) == 4


async def test_a_batch_larger_than_the_queue_is_sent_alone() -> None:
    server, clock = Server(), VirtualClock()
    async with exporting(server, clock, sending_queue={"max_bytes": 1}) as (exporter, _):
        await asyncio.gather(*(exporter.consume(logs("a")) for _ in range(3)))
    assert (len(server.sent), server.most_under_way) == (3, 1)


async def test_a_full_queue_refuses_where_the_user_said_so() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue={"queue_size": 1, "block_on_overflow": False}) as (exporter, of):
        first = asyncio.create_task(exporter.consume(logs("a")))
        await settled(clock)
        with pytest.raises(Retryable, match="queue is full"):
            await exporter.consume(logs("b"))
        assert of.metrics.value("otelcol_exporter_enqueue_failed_log_records") == 1
        server.open.set()
        await first


async def test_a_caller_who_gives_up_does_not_stop_what_is_under_way_and_takes_back_what_waits() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue={"num_consumers": 1}) as (exporter, of):
        under_way, waiting = (asyncio.create_task(exporter.consume(logs(body))) for body in "ab")
        await settled(clock)
        under_way.cancel()
        waiting.cancel()
        await asyncio.gather(under_way, waiting, return_exceptions=True)
        server.open.set()
        await exporter.consume(logs("c"))
        assert of.metrics.value("otelcol_exporter_queue_size") == 0
    assert [bodies(batch) for batch in server.sent] == [["a"], ["c"]]


async def test_what_nobody_waits_for_any_more_is_not_tried_again() -> None:
    server, clock = Server(Retryable("busy"), Retryable("busy")), VirtualClock()
    async with exporting(server, clock, retry_on_failure={"initial_interval": "1s", "randomization_factor": 0}) as (exporter, _):
        given_up = asyncio.create_task(exporter.consume(logs("read again by who had it")))
        await settled(clock)
        kept = asyncio.create_task(exporter.consume(logs("waited for")))
        await settled(clock)
        assert server.attempts == 2
        given_up.cancel()
        await clock.advance(60)
        await kept
        assert [bodies(batch) for batch in server.sent] == [["waited for"]]


async def test_stopping_waits_for_callers_who_send_themselves() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue={"enabled": False}) as (exporter, _):
        sending = asyncio.create_task(exporter.consume(logs("one")))
        await settled(clock)
        stopping = asyncio.create_task(exporter.__aexit__(None, None, None))
        await settled(clock)
        assert not stopping.done()
        server.open.set()
        await asyncio.gather(sending, stopping)


async def test_waiting_batches_are_merged_up_to_max_size_and_the_first_goes_at_once() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    batching = {"min_size": 2, "max_size": 3, "flush_timeout": "1s"}
    async with exporting(server, clock, sending_queue={"num_consumers": 1, "batch": batching}) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs(body))) for body in "abcde"]
        await settled(clock)
        server.open.set()
        await asyncio.gather(*consuming)
    assert [bodies(batch) for batch in server.sent] == [["a", "b", "c"], ["d", "e"]]


async def test_a_batch_waits_for_min_size_only_while_something_is_under_way_and_no_longer_than_flush_timeout() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    batching = {"min_size": 10, "flush_timeout": "1s"}
    async with exporting(server, clock, sending_queue={"num_consumers": 2, "batch": batching}) as (exporter, _):
        first = asyncio.create_task(exporter.consume(logs("a")))
        await settled(clock)
        assert server.under_way == 1
        second = asyncio.create_task(exporter.consume(logs("b")))
        await clock.advance(0.9)
        assert server.under_way == 1
        await clock.advance(0.1)
        assert server.under_way == 2
        server.open.set()
        await asyncio.gather(first, second)


async def test_batches_of_different_clients_are_not_merged() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    async with exporting(server, clock, sending_queue={"num_consumers": 1, "batch": {"min_size": 0}}) as (exporter, _):
        consuming = [asyncio.create_task(exporter.consume(logs("x", peer=peer))) for peer in ("1.1.1.1", "2.2.2.2", "1.1.1.1")]
        await settled(clock)
        server.open.set()
        await asyncio.gather(*consuming)
    assert sorted(batch.peer for batch in server.sent) == ["1.1.1.1", "2.2.2.2"]


def refuse_b(batch: Batch) -> None:
    if "b" in bodies(batch):
        raise Permanent("b is bad")


async def test_one_bad_part_does_not_condemn_what_it_was_merged_with_here() -> None:
    server, clock = Server(), VirtualClock()
    server.open.clear()
    server.judge = refuse_b
    async with exporting(server, clock, sending_queue={"num_consumers": 1, "batch": {"min_size": 0}}) as (exporter, of):
        consuming = [asyncio.create_task(exporter.consume(logs(body))) for body in "abc"]
        await settled(clock)
        server.open.set()
        results = await asyncio.gather(*consuming, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), Permanent, type(None)]
        assert of.metrics.value("otelcol_exporter_sent_log_records") == 2
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1


async def test_one_bad_part_of_a_batch_merged_upstream_is_counted_and_the_rest_delivered() -> None:
    server, clock = Server(), VirtualClock()
    server.judge = refuse_b
    async with exporting(server, clock) as (exporter, of):
        await exporter.consume(merge([logs("a"), logs("b"), logs("c")]))
        assert [bodies(batch) for batch in server.sent] == [["a"], ["c"]]
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1


async def test_stopping_sends_what_waits_once_and_gives_the_rest_back() -> None:
    server, clock = Server(*[Retryable("down")] * 99), VirtualClock()
    async with exporting(server, clock, sending_queue={"num_consumers": 1}) as (exporter, of):
        consuming = [asyncio.create_task(exporter.consume(logs(body))) for body in "abc"]
        await settled(clock)
        assert server.attempts == 1
    results = await asyncio.gather(*consuming, return_exceptions=True)
    assert [type(result) for result in results] == [Retryable] * 3
    assert server.attempts == 2
    assert of.metrics.value("otelcol_exporter_queue_size") == 0


async def test_after_stop_a_batch_is_refused_for_now() -> None:
    server, clock = Server(), VirtualClock()
    async with exporting(server, clock) as (exporter, _):
        pass
    with pytest.raises(Retryable, match="not running"):
        await exporter.consume(logs("a"))


async def test_without_a_queue_the_caller_sends() -> None:
    server, clock = Server(Retryable("down")), VirtualClock()
    async with exporting(server, clock, sending_queue={"enabled": False}) as (exporter, _):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        await clock.advance(5)
        await consuming
    assert server.attempts == 2


async def test_a_fault_of_our_own_reaches_the_caller_and_the_senders_live_on() -> None:
    server, clock = Server(ZeroDivisionError("bug")), VirtualClock()
    async with exporting(server, clock, sending_queue={"num_consumers": 1}) as (exporter, _):
        with pytest.raises(ZeroDivisionError):
            await exporter.consume(logs("a"))
        await exporter.consume(logs("b"))


async def test_what_it_waits_for_while_nothing_is_delivered_is_told_with_the_last_refusal() -> None:
    server, clock = Server(*[Retryable("down")] * 100), VirtualClock()
    async with exporting(server, clock, sending_queue={"stalled_after": "60s"}) as (exporter, _):
        consuming = asyncio.create_task(exporter.consume(logs("a")))
        await clock.advance(100)
        (waiting,) = exporter.waiting()
        assert (waiting.what, waiting.since, waiting.limit) == ("delivery: down; 1 are in the queue", 0.0, 60.0)
        consuming.cancel()


@pytest.mark.parametrize(
    ("queue", "retry", "warned"),
    [
        pytest.param({}, {}, [], id="all-promises-kept"),
        pytest.param({"storage": "file_storage"}, {}, [], id="durable"),
        pytest.param({"wait_for_result": False}, {"max_elapsed_time": "5m"}, ["sending_queue.wait_for_result"], id="memory"),
        pytest.param({"storage": "s", "wait_for_result": True}, {}, ["sending_queue.wait_for_result"], id="durable-wait"),
        pytest.param({"block_on_overflow": False}, {}, ["sending_queue.block_on_overflow"], id="refuses"),
        pytest.param({"storage": "s"}, {"max_elapsed_time": "5m"}, ["retry_on_failure.max_elapsed_time"], id="durable-gives-up"),
        pytest.param({"storage": "s"}, {"enabled": False}, ["retry_on_failure.enabled"], id="durable-tries-once"),
        pytest.param({"storage": "s", "enabled": False}, {}, ["sending_queue.storage"], id="storage-without-queue"),
    ],
)
def test_what_gives_up_a_promise_gives_a_warning(queue: dict[str, Any], retry: dict[str, Any], warned: list[str]) -> None:
    settings = SendingSettings.model_validate({"sending_queue": queue, "retry_on_failure": retry})
    assert [re.split("[: ]", warning)[0] for warning in settings.warnings()] == warned
    assert list(settings.extensions()) == ([(("sending_queue", "storage"), queue["storage"])] if "storage" in queue else [])
