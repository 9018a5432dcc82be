"""Listening at an address, so that nobody at the door is turned away: neither when a server stops, nor while another takes its place.

The sockets are shared things of the host (`Host.shared`), which keeps them over a reload. In between, the kernel goes on accepting
connections, up to the backlog; the server that follows finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from lockgate.pipeline.contract import Context

BACKLOG = 1024
UNIX = -1
"""In place of a port: the host is a path."""


@dataclass(frozen=True, slots=True)
class Address:
    """What sockets are shared by."""

    host: str
    """Empty for every address."""
    port: int
    family: int = socket.AF_UNSPEC
    has_datagrams: bool = False
    has_streams: bool = True
    """Without, nothing but datagrams."""


@dataclass(slots=True)
class _Bound:
    sockets: list[socket.socket]
    datagrams: list[socket.socket] = field(default_factory=list)
    in_use: bool = False


class Listener:
    """The servers at one address."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._stack = contextlib.AsyncExitStack()
        self.datagrams: list[socket.socket] = []
        """Datagram sockets at the same address, where they were asked for; whoever uses them closes them."""

    @property
    def port(self) -> int:
        """The port that is listened at: the system's choice where it was 0."""
        return int((self._servers[0].sockets if self._servers else self.datagrams)[0].getsockname()[1])

    async def open(
        self, context: Context, address: Address, serve: Callable[[socket.socket], Awaitable[asyncio.Server]] | None = None
    ) -> None:
        """Has `serve` make a server for each socket of the address that takes streams. Raises OSError."""
        # Whoever asks for any free port gets one of its own.
        found = context.host.shared(address, lambda: _bind(address)) if address.port else _bind(address)
        try:
            bound = await self._stack.enter_async_context(found)
            if bound.in_use:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            bound.in_use = True
            self._stack.callback(_release, bound)
            # Copies: asyncio closes what it is given, and the connections at the door with the last one.
            self.datagrams = [each.dup() for each in bound.datagrams]
            if serve is not None:
                for each in bound.sockets:
                    self._servers.append(await serve(each.dup()))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stops listening, after connections that were accepted in this turn of the loop have been made.

        asyncio makes an accepted connection one turn later; if the server is closed in between it fails there, and leaves the socket open
        to nobody (CPython's `_SelectorSocketTransport` attaches to the server first thing). Being cancelled meanwhile does not leave it
        open.
        """
        loop = asyncio.get_running_loop()
        for server in self._servers:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        try:
            for _ in range(3 if self._servers else 0):
                await asyncio.sleep(0)
        finally:
            for server in self._servers:
                server.close()
            self._servers.clear()
            await self._stack.aclose()


def _release(bound: _Bound) -> None:
    bound.in_use = False


@contextlib.asynccontextmanager
async def _bind(address: Address) -> AsyncIterator[_Bound]:
    with contextlib.ExitStack() as stack:
        if not address.has_streams:
            yield _Bound([], await _bind_udp(address, stack))
            return
        bound = _Bound([_bind_unix(address.host, stack)] if address.port == UNIX else await _bind_tcp(address, stack))
        if address.has_datagrams:
            for each in bound.sockets:
                datagrams = stack.enter_context(socket.socket(each.family, socket.SOCK_DGRAM))
                datagrams.setblocking(False)
                datagrams.bind(each.getsockname())
                bound.datagrams.append(datagrams)
        yield bound


async def _bind_tcp(address: Address, stack: contextlib.ExitStack) -> list[socket.socket]:
    # asyncio knows how to resolve and to bind; its sockets are taken over before it listens at them.
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, address.host or None, address.port, family=address.family, start_serving=False
    )
    sockets = [stack.enter_context(each.dup()) for each in server.sockets]
    server.close()
    return sockets


async def _bind_udp(address: Address, stack: contextlib.ExitStack) -> list[socket.socket]:
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host or None, address.port, family=address.family, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, place in dict.fromkeys(found):
        try:
            each = stack.enter_context(socket.socket(family, kind, protocol))
        except OSError:
            continue  # a kernel without IPv6 still gives its addresses, as asyncio knows of TCP's
        each.setblocking(False)
        if family == socket.AF_INET6:
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The system's choice is made once for all of a name's addresses.
        port = sockets[0].getsockname()[1] if sockets else place[1]
        each.bind((place[0], port, *place[2:]))
        sockets.append(each)
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return sockets


def _bind_unix(name: str, stack: contextlib.ExitStack) -> socket.socket:
    path = Path(name)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # left by a process that was killed
    listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listening.setblocking(False)
    listening.bind(name)
    stack.callback(path.unlink, missing_ok=True)
    return listening
