"""A program for one network namespace: listens on ports, and tries to reach others. Run by tests/support/netns.py.

Standard input and output carry JSON lines: {"listen": [[protocol, port], ...]} and {"try": [[address, protocol, port], ...], "seconds": s},
which is answered by a list of booleans.
"""

import asyncio
import itertools
import json
import socket
import sys
from typing import Any


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


async def listen(protocol: str, port: int) -> bool:
    """Whether this port could be listened on; another program may have it."""
    loop = asyncio.get_running_loop()
    try:
        if protocol == "UDP":
            await loop.create_datagram_endpoint(Echo, ("0.0.0.0", port))
        else:
            await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", port)
    except OSError:
        return False
    return True


own_ports = itertools.cycle(range(33000, 55000))
"""Each try's own: what comes from the same port again, the kernel takes for the flow that stood before the policies changed."""
at_once = asyncio.Semaphore(300)


async def attempt(address: str, protocol: str, port: int, seconds: float) -> bool:
    """Whether it answers: accepts a connection, or returns a datagram."""
    async with at_once:
        return await _attempt(address, protocol, port, seconds)


async def _attempt(address: str, protocol: str, port: int, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                if protocol == "UDP":
                    connection.bind(("0.0.0.0", next(own_ports)))
                await loop.sock_connect(connection, (address, port))
                if protocol == "UDP":
                    await loop.sock_sendall(
                        connection, b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"
                    )  # a question that a name server answers too
                    await loop.sock_recv(connection, 512)
        except (OSError, TimeoutError):
            return False
    return True


async def main() -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        if "listen" in asked:
            answer = [await listen(*port) for port in asked["listen"]]
        else:
            answer = list(
                await asyncio.gather(*(attempt(address, protocol, port, asked["seconds"]) for address, protocol, port in asked["try"]))
            )
        print(json.dumps(answer), flush=True)


asyncio.run(main())
