"""The watchdog: what should go on and does not, in `/ready`, `/status`, metrics and the log. Never in liveness: a restart mends no outage.

It asks each component what it waits for (`Component.waiting`), so that a peer that never answers, a disk call that never returns and a
component that keeps a batch for ever show alike, although nothing raises an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from lockgate.kit.clock import Clock
from lockgate.kit.metrics import Metrics
from lockgate.kit.sometimes import Sometimes
from lockgate.pipeline.contract import Component, Status

LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 300.0
"""How often it is logged that something still stands still."""
_KEY = "watchdog"


class Watchdog:
    """Looks at all components; `statuses` are theirs."""

    def __init__(
        self, components: Mapping[str, Component[Any]], statuses: Mapping[str, Status], metrics: Metrics, clock: Clock, log: logging.Logger
    ) -> None:
        self._components = {key: each for key, each in components.items() if type(each).waiting is not Component.waiting}
        self._statuses, self._clock, self._log = statuses, clock, log
        self._sometimes = Sometimes(clock, _AGAIN_SECONDS)
        for key, component in self._components.items():
            text = "seconds without progress although something waits"
            metrics.observe("lockgate_stalled_seconds", text, lambda component=component: self._idle(component), component=key)  # type: ignore[misc]

    def look(self) -> None:
        """What has waited for longer than it should blocks readiness, until it goes on."""
        now = self._clock.monotonic()
        for key, component in self._components.items():
            late = [it for it in component.waiting() if now - it.since >= it.limit]
            status = self._statuses[key]
            if late:
                first = min(late, key=lambda it: it.since)
                reason = "; ".join(it.what for it in late)
                if self._sometimes.now(key) is not None:
                    self._log.error("%s has made no progress for %.0f s, and waits for %s", key, now - first.since, reason)
                status.block(f"no progress, waits for {reason}", _KEY, since=first.since)
            elif _KEY in status.blocked:
                self._log.info("%s goes on after %.0f s", key, now - status.blocked[_KEY][1])
                status.clear(_KEY)

    def _idle(self, component: Component[Any]) -> float:
        now = self._clock.monotonic()
        return round(max((now - it.since for it in component.waiting()), default=0.0), 1)


@contextlib.asynccontextmanager
async def watching(watchdog: Watchdog, clock: Clock) -> AsyncIterator[None]:
    """Looks once a second."""

    async def look() -> None:
        while True:
            await clock.sleep(LOOK_SECONDS)
            watchdog.look()

    task = asyncio.create_task(look(), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
