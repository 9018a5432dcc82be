"""Stacks, a profile and memory over real HTTP; a ballast that says that it does nothing."""

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import context

from lockgate.components.extensions.memory_ballast import MemoryBallastExtension, MemoryBallastSettings
from lockgate.components.extensions.pprof import PprofExtension, PprofSettings
from lockgate.pipeline.contract import Kind


@asynccontextmanager
async def pprof(**settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    parsed = PprofSettings.model_validate({"endpoint": "127.0.0.1:0", **settings})
    async with PprofExtension(parsed, context("pprof", Kind.EXTENSION)) as it:
        host, port = it.address
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield session


async def get(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as answer:
        return answer.status, await answer.text()


async def test_stacks_show_threads_and_tasks() -> None:
    async def waits_for_a_reason() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(waits_for_a_reason(), name="the odd one")
    async with pprof() as session:
        status, text = await get(session, "/debug/pprof/goroutine")
    task.cancel()
    assert status == 200
    assert "thread MainThread" in text and "task the odd one:" in text and "waits_for_a_reason" in text


async def test_a_profile_finds_the_busy_function() -> None:
    over = threading.Event()

    def spin_on_purpose() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin_on_purpose)
    thread.start()
    try:
        async with pprof() as session:
            first, second = await asyncio.gather(
                get(session, "/debug/pprof/profile?seconds=0.3"), get(session, "/debug/pprof/profile?seconds=0.3")
            )
    finally:
        over.set()
        thread.join()
    assert sorted((first[0], second[0])) == [200, 409]
    lines = (first if first[0] == 200 else second)[1].splitlines()
    assert any("spin_on_purpose" in line and int(line.rpartition(" ")[2]) >= 5 for line in lines)


async def test_the_heap_is_traced_on_request_and_no_longer() -> None:
    async with pprof() as session:
        asking = asyncio.ensure_future(get(session, "/debug/pprof/heap?seconds=0.2"))
        await asyncio.sleep(0.1)
        held = [bytes(1000) for _ in range(100)]
        status, text = await asking
    assert status == 200 and "test_pprof.py" in text and held
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize("seconds", ["0", "-1", "many", "1e9", "nan"])
async def test_seconds_are_bounded(seconds: str) -> None:
    async with pprof() as session:
        assert (await get(session, f"/debug/pprof/profile?seconds={seconds}"))[0] == 400


async def test_a_profile_of_the_whole_run_is_written_at_stop(tmp_path: Path) -> None:
    async with pprof(save_to_file=str(tmp_path / "profile")):
        await asyncio.sleep(0.05)
    assert "MainThread;" in (tmp_path / "profile").read_text()


async def test_the_ballast_says_that_it_does_nothing() -> None:
    settings = MemoryBallastSettings(size_mib=512)
    assert list(settings.warnings()) and list(PprofSettings(mutex_profile_fraction=1).warnings())
    async with MemoryBallastExtension(settings, context("memory_ballast", Kind.EXTENSION)):
        pass
