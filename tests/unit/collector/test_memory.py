"""Memory that a burst took, in a process of its own: the settings of malloc are the whole process's."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from concurrent.futures import ThreadPoolExecutor
from lockgate.collector.memory import giving_back, resident_bytes, tune_memory
from lockgate.kit.clock import SystemClock

async def main():
    tune_memory()
    burst = [b"x" * (64 << 10) for _ in range(640)]
    last = b"x" * (64 << 10)  # above what is freed, so that the heap cannot simply shrink
    most = resident_bytes()
    del burst
    kept = resident_bytes()
    with ThreadPoolExecutor(1) as threads:
        async with giving_back(SystemClock(), threads):
            async with asyncio.timeout(20):
                while resident_bytes() > most - (30 << 20):
                    await asyncio.sleep(0.01)
    assert kept > most - (8 << 20), "nothing was kept: this would prove nothing"
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told what to keep")
def test_what_a_burst_took_is_given_back() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
