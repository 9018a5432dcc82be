"""A small real HTTP proxy: CONNECT tunnels, and plain requests in absolute form. Every host is this machine, whatever its name."""

import asyncio
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Remembers what it was asked. `serve` is for asyncio.start_server; `with Proxy() as proxy:` serves `proxy.port` in a thread."""

    def __init__(self, credentials: str = "") -> None:
        self.asked: list[str] = []
        """Request lines."""
        self.credentials: list[str] = []
        self.port = 0
        self._wanted = credentials
        """The Proxy-Authorization without which it answers 407; empty for none."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        self.asked.append(line)
        given = [header.partition(": ")[2] for header in headers if header.lower().startswith("proxy-authorization")]
        self.credentials += given
        if self._wanted and self._wanted not in given:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        method, target, _ = line.split(" ")
        if method == "CONNECT":
            upstream = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            authority, _, path = target.partition("://")[2].partition("/")
            upstream = await asyncio.open_connection("127.0.0.1", int(authority.rpartition(":")[2]))
            upstream[1].write(head.replace(target.encode(), f"/{path}".encode(), 1))
        await asyncio.gather(_pipe(reader, upstream[1]), _pipe(upstream[0], writer))

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        async def main() -> None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
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

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
