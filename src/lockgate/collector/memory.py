"""The process's memory: large buffers stay while they are in use, and go back to the system soon after."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from lockgate.kit.clock import Clock

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_GIVE_BACK_SECONDS = 5.0
"""How often free pages are given back. It costs 0.1 ms where nothing is free, 3 ms for 40 MB (measured), and a fault for each page that is
used again."""


def tune_memory() -> None:
    """Keeps large buffers in the process: glibc otherwise maps and unmaps each one (1-4 times the cost of a batch, measured).

    And freezes what start-up made, so that the collector of cycles does not walk it again and again.
    """
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, 64 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_ARENA_MAX, 2)
    gc.collect()
    gc.freeze()
    # At exit what is frozen must be collectable again, or extension modules (DuckDB's nanobind) report all they own as leaked.
    atexit.register(gc.unfreeze)


def import_http_library() -> None:
    """Imports aiohttp without the system's certificate authorities, which it reads when it is imported: 2.5 MB and 20 ms for nothing.

    Whatever speaks TLS here brings its own context (net/tls.py); aiohttp's own trusts nobody.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        import aiohttp  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def giving_back(clock: Clock, executor: Executor) -> AsyncIterator[None]:
    """Within the block, what a burst took goes back to the system within seconds: `tune_memory` alone would keep it for good."""
    trim = _libc("malloc_trim")
    if trim is None:
        yield
        return
    task = asyncio.create_task(_give_back(trim, clock, executor), name="give memory back")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _give_back(trim: Callable[[int], int], clock: Clock, executor: Executor) -> None:
    while True:
        await asyncio.get_running_loop().run_in_executor(executor, trim, 0)
        await clock.sleep(_GIVE_BACK_SECONDS)


def _libc(name: str) -> Callable[..., int] | None:
    """This function of the C library; None where it has none (musl, macOS)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def resident_bytes() -> float:
    """This process's resident memory."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
