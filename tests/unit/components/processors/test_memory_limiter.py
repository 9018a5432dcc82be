"""The memory limiter: what it counts, whom it refuses, and that it never refuses for ever."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import FakeHost, Sink, VirtualClock, context, logs

from lockgate.batch import Batch, Signal
from lockgate.components.processors import memory_limiter
from lockgate.components.processors.memory_limiter import MIB, MemoryLimiterProcessor, MemoryLimiterSettings, memory_there_is
from lockgate.pipeline.errors import Permanent, Retryable

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Held:
    """A consumer that holds batches until the test lets go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.inside = 0

    async def consume(self, batch: Batch) -> None:
        self.inside += 1
        await self.gate.wait()


@asynccontextmanager
async def running(next_: Any, memory: int = 0, **options: Any) -> AsyncIterator[MemoryLimiterProcessor]:
    settings = MemoryLimiterSettings.model_validate({"limit_mib": 10, "spike_limit_mib": 2} | options.pop("settings", {}))
    made = context("memory_limiter", signal=Signal.LOGS, **({"clock": VirtualClock()} | options))
    processor = MemoryLimiterProcessor(settings, made)
    processor.next = next_
    async with processor:
        yield processor


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process is said to use; 0 so that the machine that runs the tests has no say."""
    used = [0]
    monkeypatch.setattr(memory_limiter, "resident_bytes", lambda: used[0])
    return used


def mebibytes(number: float) -> Batch:
    return logs("x" * int(number * MIB))


async def test_bytes_in_custody_over_the_soft_limit_are_refused_and_then_let_through(resident: list[int]) -> None:
    held = Held()
    async with running(held) as processor:
        first = asyncio.create_task(processor.consume(mebibytes(5)))
        await asyncio.sleep(0)
        with pytest.raises(Retryable, match="5 MiB are under way of 8 allowed"):
            await processor.consume(mebibytes(4))
        status, metrics = processor.context.status, processor.context.metrics
        assert "under way" in status.blocked[""][0]
        assert (metrics.value("otelcol_processor_refused_log_records"), held.inside) == (1, 1)
        second = asyncio.create_task(processor.consume(mebibytes(2)))
        await asyncio.sleep(0)
        assert held.inside == 2 and not status.blocked
        held.gate.set()
        await asyncio.gather(first, second)
        await processor.consume(mebibytes(4))
        assert metrics.value("otelcol_processor_accepted_log_records") == 3
        assert processor._custody.bytes == 0


async def test_a_batch_larger_than_the_limit_passes_when_nothing_else_is_in_custody(resident: list[int]) -> None:
    sink = Sink()
    async with running(sink) as processor:
        await processor.consume(mebibytes(20))
    assert sink.count == 1


@pytest.mark.parametrize("error", [Retryable("later"), Permanent("never"), KeyError("bug"), asyncio.CancelledError()])
async def test_custody_ends_with_every_outcome(resident: list[int], error: Any) -> None:
    async with running(Sink(error)) as processor:
        with pytest.raises(type(error)):
            await processor.consume(mebibytes(1))
        assert processor._custody.bytes == 0
        assert processor.context.metrics.value("otelcol_processor_accepted_log_records") == 0


async def test_a_full_process_lets_one_batch_at_a_time_through_and_never_none(resident: list[int]) -> None:
    resident[0] = 1 << 40
    held = Held()
    async with running(held) as processor:
        first = asyncio.create_task(processor.consume(logs("a")))
        await asyncio.sleep(0)
        with pytest.raises(Retryable, match="one batch at a time"):
            await processor.consume(logs("b"))
        held.gate.set()
        await first
        assert not processor.context.status.blocked
        await processor.consume(logs("b"))


async def test_memory_is_looked_at_every_check_interval(resident: list[int]) -> None:
    clock, held = VirtualClock(), Held()
    async with running(held, clock=clock, settings={"check_interval": "5s"}) as processor:
        first = asyncio.create_task(processor.consume(logs("a")))
        await asyncio.sleep(0)
        resident[0] = 1 << 40
        await clock.advance(4.9)
        held.gate.set()
        await processor.consume(logs("b"))
        held.gate.clear()
        second = asyncio.create_task(processor.consume(logs("c")))
        await clock.advance(0.1)
        with pytest.raises(Retryable):
            await processor.consume(logs("d"))
        held.gate.set()
        await asyncio.gather(first, second)


async def test_garbage_is_collected_above_the_limits_and_no_oftener_than_allowed(
    resident: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, collected = VirtualClock(), list[float]()
    monkeypatch.setattr(memory_limiter, "collect_garbage", lambda: collected.append(clock.monotonic()))
    settings = {"check_interval": "1s", "min_gc_interval_when_soft_limited": "3s", "min_gc_interval_when_hard_limited": "2s"}
    async with running(Sink(), clock=clock, settings=settings):
        await clock.advance(2)
        assert collected == []
        resident[0] = 9 * MIB
        await clock.advance(7)
        assert collected == [3, 6, 9]
        resident[0] = 11 * MIB
        await clock.advance(4)
        assert collected == [3, 6, 9, 11, 13]


async def test_pipelines_with_the_same_limiter_share_its_custody(resident: list[int]) -> None:
    host, held = FakeHost(), Held()
    async with running(held, host=host) as one, running(held, host=host) as other:
        call = asyncio.create_task(one.consume(mebibytes(5)))
        await asyncio.sleep(0)
        with pytest.raises(Retryable):
            await other.consume(mebibytes(5))
        held.gate.set()
        await call


async def test_the_real_process_is_measured() -> None:
    assert 10 * MIB < memory_limiter.resident_bytes() < MACHINE
    memory_limiter.collect_garbage()


LIMITS = [
    pytest.param({"limit_mib": 4000, "spike_limit_mib": 800}, (3200, 4000), id="mib"),
    pytest.param({"limit_mib": 100}, (80, 100), id="spike-is-a-fifth"),
    pytest.param({"limit_percentage": 80, "spike_limit_percentage": 15}, (650, 800), id="percentages"),
    pytest.param({"limit_percentage": 75}, (600, 750), id="a-fifth-of-a-percentage"),
    pytest.param({"limit_mib": 100, "limit_percentage": 75}, (80, 100), id="mib-first"),
]


@pytest.mark.parametrize(("settings", "limits"), LIMITS)
def test_limits_of_a_thousand_mebibytes(tmp_path: Path, settings: dict[str, int], limits: tuple[int, int]) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{1000 * MIB}\n")
    soft, hard = MemoryLimiterSettings.model_validate(settings).limits(tmp_path)
    assert (soft // MIB, hard // MIB) == limits


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


CGROUPS = [
    pytest.param(
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "5000\n"},
        5000,
        id="v2-parent",
    ),
    pytest.param({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": "7000\n"}, 7000, id="v2-host-path-in-a-container"),
    pytest.param(
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "9000\n", "sys/fs/cgroup/memory.max": "8000\n"},
        8000,
        id="v2-smallest",
    ),
    pytest.param(
        {"proc/self/cgroup": "9:cpu,memory:/k\n1:cpuset:/k\n", "sys/fs/cgroup/memory/k/memory.limit_in_bytes": "6000\n"}, 6000, id="v1"
    ),
    pytest.param(
        {"proc/self/cgroup": "9:memory:/k\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
        MACHINE,
        id="v1-unlimited",
    ),
    pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, MACHINE, id="v2-unlimited"),
    pytest.param({}, MACHINE, id="no-cgroup"),
]


@pytest.mark.parametrize(("files", "limit"), CGROUPS)
def test_memory_there_is(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)
    assert memory_there_is(tmp_path) == limit


REFUSED = [
    pytest.param({}, "needs limit_mib or limit_percentage", id="no-limit"),
    pytest.param({"limit_mib": 10, "spike_limit_mib": 10}, "less than limit_mib", id="spike"),
    pytest.param({"limit_percentage": 10, "spike_limit_percentage": 20}, "less than limit_percentage", id="spike-percentage"),
    pytest.param({"limit_percentage": 101}, "100", id="more-than-all"),
    pytest.param({"limit_mib": 10, "check_interval": 0}, "more than 0", id="never-checked"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_refused_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MemoryLimiterSettings.model_validate(settings)


def test_needs_name_what_is_read() -> None:
    assert [need.path for need in MemoryLimiterSettings(limit_mib=5).needs()] == ["/proc/self"]  # type: ignore[union-attr]
    assert len(list(MemoryLimiterSettings(limit_percentage=5).needs())) == 2
