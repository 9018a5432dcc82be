"""Ordered stop. For collector/ alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from lockgate.pipeline.contract import Component


async def leave(components: Sequence[Component[Any]], drain_seconds: float) -> None:
    """Leaves these components, the last first: all of them, whatever the others raise.

    Bounded as a whole: what has not stopped by itself `drain_seconds` after the first was asked to is cancelled.
    """
    deadline = asyncio.get_running_loop().time() + drain_seconds
    async with AsyncExitStack() as stack:
        for component in components:
            stack.push_async_callback(_leave, component, deadline)


async def _leave(component: Component[Any], deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await component.__aexit__(None, None, None)
    except TimeoutError:
        component.log.error("not stopped within the drain time-out, so it was cancelled; what it held in memory was not acknowledged")
