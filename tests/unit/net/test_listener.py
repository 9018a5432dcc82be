"""Closing a listener at the worst moments."""

import asyncio
import socket

import pytest

from lockgate.net import listener


class Made(asyncio.Protocol):
    """Counts the connections that are made, and ends them."""

    def __init__(self, made: "list[Made]") -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(self)
        transport.close()


async def test_a_connection_accepted_in_the_turn_of_closing_is_made() -> None:
    made: list[Made] = []
    server = await asyncio.get_running_loop().create_server(lambda: Made(made), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()):
        while not any("_accept_connection2" in repr(task) for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        assert not made
        await listener.close(server)
        assert len(made) == 1


async def test_closing_that_is_cancelled_leaves_no_socket_open() -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Made([]), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    closing = asyncio.ensure_future(listener.close(server))
    await asyncio.sleep(0)
    assert server.sockets
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
