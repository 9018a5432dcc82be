"""Closing a listener at the worst moments, and opening it again while clients knock."""

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from support import FakeHost, context
from support.process import free_port

from lockgate.collector.host import ProgramHost
from lockgate.kit.clock import SystemClock
from lockgate.net.listener import UNIX, Address, Listener


class Made(asyncio.Protocol):
    """Counts the connections that are made, and ends them."""

    def __init__(self, made: "list[Made]") -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(self)
        transport.close()


ANY_PORT = Address("127.0.0.1", 0)


async def opened(made: list[Made], host: Any, address: Address = ANY_PORT) -> Listener:
    async def serve(listening: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(lambda: Made(made), sock=listening)

    listener = Listener()
    await listener.open(context(host=host), address, serve)
    return listener


async def test_a_connection_accepted_in_the_turn_of_closing_is_made() -> None:
    made: list[Made] = []
    listener = await opened(made, FakeHost())
    with socket.create_connection(("127.0.0.1", listener.port)):
        while not any("_accept_connection2" in repr(task) for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        assert not made
        await listener.close()
        assert len(made) == 1


async def test_closing_that_is_cancelled_leaves_no_socket_open() -> None:
    listener = await opened([], FakeHost())
    address = "127.0.0.1", listener.port
    closing = asyncio.ensure_future(listener.close())
    await asyncio.sleep(0)
    socket.create_connection(address).close()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.fixture
def keeping() -> ProgramHost:
    host = ProgramHost(SystemClock())
    host.keeps = lambda key: isinstance(key, Address)
    return host


async def test_who_connects_between_two_servers_is_served_by_the_second(keeping: ProgramHost) -> None:
    made: list[Made] = []
    address = Address("127.0.0.1", free_port())
    first = await opened(made, keeping, address)
    await first.close()
    with socket.create_connection(("127.0.0.1", address.port), 5) as client:
        assert not made
        second = await opened(made, keeping, address)
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert len(made) == 1
    await second.close()
    await keeping.end_unused()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", address.port))


async def test_a_unix_socket_is_kept_as_well_and_removed_in_the_end(keeping: ProgramHost, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = await opened([], keeping, Address(str(path), UNIX))
    await first.close()
    assert path.is_socket()
    await keeping.end_unused()
    assert not path.exists()


async def test_an_address_that_another_listens_at_is_refused(keeping: ProgramHost) -> None:
    address = Address("127.0.0.1", free_port())
    first = await opened([], keeping, address)
    with pytest.raises(OSError) as refused:
        await opened([], keeping, address)
    assert refused.value.errno == errno.EADDRINUSE
    socket.create_connection(("127.0.0.1", address.port)).close()
    await first.close()


async def test_datagrams_alone_have_sockets_at_all_addresses_of_a_name_and_one_port() -> None:
    listener = Listener()
    await listener.open(context(), Address("localhost", 0, has_datagrams=True, has_streams=False))
    try:
        assert {each.type for each in listener.datagrams} == {socket.SOCK_DGRAM}
        assert {each.getsockname()[1] for each in listener.datagrams} == {listener.port}
        found = await asyncio.get_running_loop().getaddrinfo("localhost", None, type=socket.SOCK_DGRAM)
        assert {each.getsockname()[0] for each in listener.datagrams} == {place[0] for *_, place in found}
    finally:
        for each in listener.datagrams:
            each.close()
        await listener.close()


async def test_a_stream_and_datagrams_may_have_the_same_port_and_datagrams_not_twice(keeping: ProgramHost) -> None:
    number = free_port()
    stream = await opened([], keeping, Address("127.0.0.1", number))
    address = Address("127.0.0.1", number, has_datagrams=True, has_streams=False)
    first, second = Listener(), Listener()
    await first.open(context(host=keeping), address)
    with pytest.raises(OSError) as refused:
        await second.open(context(host=keeping), address)
    assert refused.value.errno == errno.EADDRINUSE
    for each in first.datagrams:
        each.close()
    await first.close()
    await stream.close()
    await keeping.end_unused()
