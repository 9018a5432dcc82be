"""A small real HTTP proxy: CONNECT tunnels, and plain requests in absolute form. Every host is this machine, whatever its name."""

import asyncio

from support.served import Served


class Proxy(Served):
    """Remembers what it was asked. `serve` is for asyncio.start_server; `with Proxy() as proxy:` serves `proxy.port` in a thread."""

    def __init__(self, credentials: str = "") -> None:
        super().__init__()
        self.asked: list[str] = []
        """Request lines."""
        self.credentials: list[str] = []
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


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
