"""Ordered stop. For collector/ alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from lockgate.pipeline.contract import Component

_MOMENT_SECONDS, _MOMENTS_SECONDS = 0.2, 2.0
"""For one component after the end of the drain, and for all; a kubelet waits for 30 s, the drain takes 20."""


async def leave(components: Sequence[Component[Any]], drain_seconds: float) -> None:
    """Leaves these components, the last first: all of them, whatever the others raise.

    Bounded as a whole: what has not stopped by itself `drain_seconds` after the first was asked to is cancelled. What was asked to when
    these were over has a moment: most need no more, and their files and sockets are closed in order.
    """
    deadline = asyncio.get_running_loop().time() + drain_seconds
    async with AsyncExitStack() as stack:
        for component in components:
            stack.push_async_callback(_leave, component, deadline)


async def _leave(component: Component[Any], deadline: float) -> None:
    moment = min(asyncio.get_running_loop().time() + _MOMENT_SECONDS, deadline + _MOMENTS_SECONDS)
    try:
        async with asyncio.timeout_at(max(deadline, moment)):
            await component.__aexit__(None, None, None)
    except TimeoutError:
        component.log.warning("broken off: service.shutdown_timeout was over before this had stopped")
