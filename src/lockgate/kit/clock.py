"""Time by argument: code that waits or stamps takes a Clock, so that its tests run on a virtual one and assert the exact second."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the program knows of time."""

    def monotonic(self) -> float:
        """Seconds that never step, for durations."""

    def time_unix_nano(self) -> int:
        """Nanoseconds since 1970, for records; may step."""

    async def sleep(self, seconds: float) -> None:
        """Returns after this many seconds."""


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time_unix_nano(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
