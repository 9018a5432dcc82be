import asyncio
import logging
from collections.abc import Sequence

import pytest
from support import VirtualClock

from lockgate.batch import Batch, Signal
from lockgate.pipeline.contract import Status
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.retry import RetryOnFailure, hand_on

BUSY = Retryable("busy", after=10.0)


@pytest.mark.parametrize(
    ("answers", "retry", "is_taken", "offers", "told"),
    [
        pytest.param([None], {}, True, 1, "", id="taken-at-once"),
        pytest.param([BUSY, BUSY, BUSY, None], {}, True, 4, "", id="kept-until-it-is-taken"),
        pytest.param([BUSY, Permanent("bad")], {}, False, 2, "7 records were refused for good, and are lost: bad", id="refused-for-good"),
        pytest.param([BUSY] * 9, {"max_elapsed_time": "20s"}, False, 3, "gave up 7 records after 20 s", id="given-up-in-the-end"),
    ],
)
async def test_a_batch_is_offered_until_its_fate_is_known(
    answers: Sequence[Exception | None],
    retry: dict[str, str],
    is_taken: bool,
    offers: int,
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = VirtualClock()
    status, blocked = Status(clock), []
    rest = list(answers)

    async def emit(batch: Batch) -> None:
        blocked.append("delivery" in status.blocked)
        if (answer := rest.pop(0)) is not None:
            raise answer

    batch = Batch(Signal.LOGS, b"", 7, "id")
    settings = RetryOnFailure.model_validate(retry)
    handing = asyncio.create_task(hand_on(batch, emit, settings, clock=clock, status=status, log=logging.getLogger("test")))
    await clock.advance(100)
    assert handing.done() and handing.result() is is_taken
    assert blocked == [False] + [True] * (offers - 1), "what holds it up is told while it does"
    assert not status.blocked
    assert told in caplog.text and bool(told) == bool(caplog.text)
