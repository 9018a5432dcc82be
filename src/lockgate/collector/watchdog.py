"""The watchdog: what should go on and does not, in `/ready`, `/status`, metrics and the log. Never in liveness: a restart mends no outage.

It asks each component what it waits for (`Component.waiting`), so that a peer that never answers, a disk call that never returns and a
component that keeps a batch for ever show alike, although nothing raises an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from lockgate.kit.clock import Clock
from lockgate.kit.metrics import Metrics
from lockgate.kit.sometimes import Sometimes
from lockgate.pipeline.contract import Component

LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 300.0
"""How often it is logged that something still stands still."""
_KEY = "watchdog"


class Watchdog:
    """Looks at all components that there are; a reload changes them."""

    def __init__(self, components: Callable[[], Mapping[str, Component[Any]]], metrics: Metrics, clock: Clock, log: logging.Logger) -> None:
        self._components, self._metrics, self._clock, self._log = components, metrics, clock, log
        self._sometimes = Sometimes(clock, _AGAIN_SECONDS)
        self._observed: set[str] = set()

    def look(self) -> None:
        """What has waited for longer than it should blocks readiness, until it goes on."""
        now = self._clock.monotonic()
        for key, component in list(self._components().items()):
            if type(component).waiting is Component.waiting:
                continue
            if key not in self._observed:
                self._observed.add(key)
                text = "seconds without progress although something waits"
                self._metrics.observe("lockgate_stalled_seconds", text, partial(self._idle, key), component=key)
            late = [it for it in component.waiting() if now - it.since >= it.limit]
            status = component.context.status
            if late:
                first = min(late, key=lambda it: it.since)
                reason = "; ".join(it.what for it in late)
                if self._sometimes.now(key) is not None:
                    self._log.error("%s has made no progress for %.0f s, and waits for %s", key, now - first.since, reason)
                status.block(f"no progress, waits for {reason}", _KEY, since=first.since)
            elif _KEY in status.blocked:
                self._log.info("%s goes on after %.0f s", key, now - status.blocked[_KEY][1])
                status.clear(_KEY)

    def _idle(self, key: str) -> float:
        component, now = self._components().get(key), self._clock.monotonic()
        return round(max((now - it.since for it in component.waiting()), default=0.0), 1) if component is not None else 0.0


@contextlib.asynccontextmanager
async def watching(watchdog: Watchdog, clock: Clock) -> AsyncIterator[None]:
    """Looks once a second."""

    async def look() -> None:
        while True:
            watchdog.look()
            await clock.sleep(LOOK_SECONDS)

    task = asyncio.create_task(look(), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
