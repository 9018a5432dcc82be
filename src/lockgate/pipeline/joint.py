"""A joint: the place of a consumer in the wiring. Whoever stands there can be replaced while batches pass. For collector/ alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from lockgate.batch import Batch
from lockgate.pipeline.contract import Consumer
from lockgate.pipeline.errors import Gone, Retryable


class Joint:
    """Hands on to whoever stands here. A batch that meets nobody waits; given back by who has left meanwhile, it goes to the next."""

    def __init__(self, name: str, on_idle: Callable[[], None] = lambda: None) -> None:
        self._name, self._on_idle = name, on_idle
        self._consumer: Consumer | None = None
        self._turn = asyncio.Event()
        """Set while the joint is open, or gone."""
        self._gone = False
        self._calls: Counter[int] = Counter()
        """Calls under way, by the identity of whom they went to."""

    def open(self, consumer: Consumer) -> None:
        """From now on this one is asked."""
        self._consumer, self._gone = consumer, False
        self._turn.set()

    def close(self) -> None:
        """From now on batches wait, and those that come back."""
        self._consumer = None
        self._turn.clear()

    def remove(self) -> None:
        """From now on whoever comes, waits or is given back hears Gone."""
        self._consumer, self._gone = None, True
        self._turn.set()

    def is_idle(self, consumer: Consumer) -> bool:
        """Whether no call to this consumer is under way."""
        return not self._calls[id(consumer)]

    async def consume(self, batch: Batch) -> None:
        while True:
            while (consumer := self._consumer) is None:
                if self._gone:
                    raise Gone(f"{self._name} was taken out of the configuration")
                await self._turn.wait()
            self._calls[id(consumer)] += 1
            try:
                await consumer.consume(batch)
            except Retryable:
                if consumer is self._consumer:
                    raise
            else:
                return
            finally:
                self._calls[id(consumer)] -= 1
                if not self._calls[id(consumer)]:
                    del self._calls[id(consumer)]
                    self._on_idle()
