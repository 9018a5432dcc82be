"""The store exporter acknowledges what is on disk, once, and says so when it cannot."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support import VirtualClock, context
from support.otlp import log_batch, span_batch

from lockgate.batch import Batch, Signal
from lockgate.components.exporters.store import StoreExporter, StoreSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.store.database import Database, StoreError


def exporter(path: Path, clock: Any = None, **settings: Any) -> StoreExporter:
    parsed = StoreSettings.model_validate({"directory": str(path), **settings})
    return StoreExporter(parsed, context("store", Kind.EXPORTER, clock=clock))


def count(database: Database) -> int:
    row = database.cursor().execute("SELECT count(*) FROM logs").fetchone()
    assert row is not None
    return int(row[0])


async def test_many_callers_share_transactions_and_each_is_acknowledged(tmp_path: Path) -> None:
    async with exporter(tmp_path) as it:
        await asyncio.gather(*(it.consume(log_batch(f"line {n}", id=str(n))) for n in range(200)))
        assert count(it.database) == 200
        row = it.database.cursor().execute("SELECT count(DISTINCT received) FROM logs").fetchone()
        assert row is not None and row[0] < 50, "200 batches took far fewer transactions"
    assert it.context.metrics.value("otelcol_exporter_sent_log_records") == 200


async def test_small_batches_wait_for_the_commit_interval_and_the_first_does_not(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with exporter(tmp_path, clock, commit_interval="10s", retention=0) as it:
        await it.consume(log_batch("at once"))
        later = asyncio.ensure_future(it.consume(log_batch("ten seconds later")))
        async with asyncio.timeout(10):
            while 10 not in clock.slept:
                await asyncio.sleep(0.001)
        assert count(it.database) == 1
        await clock.advance(10)
        await later
        assert count(it.database) == 2


async def test_what_was_acknowledged_is_there_when_opened_again_and_a_resend_is_stored_once(tmp_path: Path) -> None:
    async with exporter(tmp_path) as it:
        await it.consume(log_batch("kept", id="a"))
    async with exporter(tmp_path) as it:
        await it.consume(log_batch("kept", id="a"))
        assert count(it.database) == 1
    assert it.context.metrics.value("lockgate_store_repeated_batches") == 1
    assert it.context.metrics.value("otelcol_exporter_sent_log_records") == 0


async def test_a_batch_that_is_no_otlp_is_permanent_and_its_companions_are_stored(tmp_path: Path) -> None:
    async with exporter(tmp_path) as it:
        bad = Batch(Signal.LOGS, b"\x0a\x05no", 1, "bad")
        results = await asyncio.gather(it.consume(log_batch("x")), it.consume(bad), it.consume(span_batch("s")), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), Permanent, type(None)]
        assert count(it.database) == 1


async def test_a_full_disk_is_retryable_blocks_the_status_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with exporter(tmp_path) as it:

        def full(_: object) -> None:
            raise StoreError("cannot store: No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(it.database, "store", full)
            with pytest.raises(Retryable, match="No space left"):
                await it.consume(log_batch("x"))
            assert it.context.status.blocked
        await it.consume(log_batch("x"))
        assert not it.context.status.blocked


async def test_beyond_its_bound_of_pending_bytes_it_refuses_for_now(tmp_path: Path) -> None:
    async with exporter(tmp_path, max_pending_size=1000) as it:
        large = [log_batch("x" * 900, id=str(n)) for n in range(3)]
        results = await asyncio.gather(*map(it.consume, large), return_exceptions=True)
        assert results[0] is None and isinstance(results[-1], Retryable)
        await it.consume(large[-1])


async def test_leaving_it_finishes_what_is_pending(tmp_path: Path) -> None:
    it = exporter(tmp_path, commit_interval="10ms")
    await it.__aenter__()
    pending = [asyncio.ensure_future(it.consume(log_batch(str(n), id=str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    await it.__aexit__(None, None, None)
    await asyncio.gather(*pending)
    with pytest.raises(Retryable):
        await it.consume(log_batch("late"))


async def test_retention_deletes_on_its_own_clock(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with exporter(tmp_path, clock, retention="100ms") as it:
        await it.consume(log_batch("old"))
        await asyncio.sleep(0.12)
        async with asyncio.timeout(10):
            while not it.context.metrics.value("lockgate_store_expired_rows"):
                await clock.advance(1)
                await asyncio.sleep(0.01)
        assert count(it.database) == 0


async def test_a_file_that_is_no_database_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "telemetry.duckdb").write_bytes(b"this is no database" * 1000)
    with pytest.raises(OSError, match="cannot open the store"):
        async with exporter(tmp_path):
            pass
