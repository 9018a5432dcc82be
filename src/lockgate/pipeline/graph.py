"""The graph that runs components: ordered start and stop. For collector/ alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from lockgate.pipeline.contract import Component


@asynccontextmanager
async def running(components: Sequence[Component[Any]], drain_seconds: float) -> AsyncIterator[None]:
    """The components, entered in this order (extensions, exporters, ..., receivers last) and left in the opposite one.

    Leaving is bounded as a whole: what has not stopped by itself `drain_seconds` after the first was asked to is cancelled.
    """
    deadline: list[float] = []

    def bound() -> float:
        if not deadline:
            deadline.append(asyncio.get_running_loop().time() + drain_seconds)
        return deadline[0]

    async with AsyncExitStack() as stack:
        for component in components:
            await stack.enter_async_context(_bounded(component, bound))
        yield


@asynccontextmanager
async def _bounded(component: Component[Any], bound: Callable[[], float]) -> AsyncIterator[None]:
    await component.__aenter__()
    try:
        yield
    finally:
        try:
            async with asyncio.timeout_at(bound()):
                await component.__aexit__(None, None, None)
        except TimeoutError:
            component.log.error("not stopped within the drain time-out, so it was cancelled; what it held in memory was not acknowledged")
