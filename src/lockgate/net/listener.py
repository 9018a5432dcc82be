"""Closing a listener without dropping who is at the door."""

import asyncio


async def close(server: asyncio.Server) -> None:
    """Stops listening, after connections that were accepted in this turn of the loop have been made.

    asyncio makes an accepted connection one turn later; if the server is closed in between it fails there, and leaves the socket open to
    nobody (CPython's `_SelectorSocketTransport` attaches to the server first thing).
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()
