"""Bytes that servers may hold in memory at once: taken before a body is read, given back when it has been handed on."""

import asyncio
from collections import deque
from contextlib import suppress


class ByteBudget:
    """So many bytes, first come first served: a large body is not overtaken for ever by small ones."""

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self.size - self._free

    async def acquire(self, size: int) -> int:
        """Waits until so many bytes are free, and takes them; more than there are at all counts as all. Returns what to give back."""
        size = min(size, self.size)
        if not self.take(size):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (size, turn)
            self._waiting.append(entry)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.release(size)  # it was given in the moment of the cancellation
                else:
                    with suppress(ValueError):  # `_give` has met it already, when several are cancelled at once
                        self._waiting.remove(entry)
                    self._give()
                raise
        return size

    def take(self, size: int) -> bool:
        """Takes so many bytes if they are free now and nobody waits for them; whether it did."""
        if self._waiting or size > self._free:
            return False
        self._free -= size
        return True

    def release(self, size: int) -> None:
        """Gives bytes back, and wakes who waits for them."""
        self._free += size
        self._give()

    def _give(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self._free:
                    return
                self._free -= size
                turn.set_result(None)
            self._waiting.popleft()


class Share:
    """What one request holds of a budget, changed as more becomes known of it. More than there is at all counts as all."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0
        """Bytes that are held."""

    async def wait_for(self, size: int) -> None:
        """Holds so many bytes as soon as they are free. Nothing is held meanwhile, so that those who wait never wait for each other."""
        self.release()
        self.size = await self._budget.acquire(size)

    def resize(self, size: int) -> bool:
        """Holds so many bytes instead of those before, if they are free now; whether they were. Fewer always are."""
        more = min(size, self._budget.size) - self.size
        if more <= 0:
            self._budget.release(-more)
        elif not self._budget.take(more):
            return False
        self.size += more
        return True

    def release(self) -> None:
        """Gives everything back; may be called twice."""
        self.resize(0)
