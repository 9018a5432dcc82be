"""A server of asyncio's in a thread of its own, for tests that have no loop, or another one."""

import asyncio
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

LIMIT = 1 << 20
"""Bytes of a head, or of a line, at most."""


class Served(ABC):
    """`with` it, `serve` is called for every connection to `port` of loopback; leaving ends them."""

    def __init__(self) -> None:
        self.port = 0

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        async def main() -> None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, limit=LIMIT)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(main())

        self._thread = threading.Thread(target=run, name=type(self).__name__)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
