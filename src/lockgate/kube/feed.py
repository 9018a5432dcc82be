"""Every change of a query's objects handed on one after the other, from a known version on, no faster than they are taken.

Where a reflector keeps what exists now, a feed loses no step on the way: what it hands on is awaited, so that a consumer that is slow
slows the watch, and not memory. After 410 Gone it lists, and goes on from there: then of an object that changed several times only the
last state is seen, and what was deleted meanwhile is not. Pages alone, no WatchList: that one cannot be slowed down.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from lockgate.kube.client import Client, Event, ListMeta, Query, decoded
from lockgate.kube.reflector import PAGE_LIMIT, Persistent


class Taker(Protocol):
    """Whom the changes are handed to."""

    def resume(self) -> str:
        """The version after which to watch; "" where it is not known, and a list is needed."""

    def is_behind(self, version: str) -> bool:
        """The server is at this version: whether it lies before what was taken. Then this is a server that was restored, or another one,
        and what is listed next is to be taken as if nothing had been."""

    async def listed(self, version: str, item: bytes) -> None:
        """This object exists, at this version of its own; it may have been taken before."""

    async def caught_up(self, version: str) -> None:
        """Everything that existed at this version was listed."""

    async def changed(self, event: Event[msgspec.Raw]) -> None:
        """The next change, or a bookmark."""


class _Versioned(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)


class Feed(Persistent):
    """One query, one taker."""

    def __init__(
        self,
        client: Client,
        query: Query,
        taker: Taker,
        blocked: Callable[[str], None] = lambda reason: None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(client, query, blocked, rng)
        self._taker = taker
        self._version = taker.resume()

    async def _follow(self) -> None:
        # A watch from a version that the server has not reached yet is answered with silence.
        if self._version and self._taker.is_behind(await self._server_version()):
            self._version = ""
        if not self._version:
            await self._list()
        async for event in self._client.watch(self._query, msgspec.Raw, self._version, timeout_seconds=self._watch_seconds()):
            await self._taker.changed(event)
            self._version = event.version or self._version
            self._well()

    async def _server_version(self) -> str:
        async with aclosing(self._client.pages(self._query, msgspec.Raw, 1)) as pages:  # type: ignore[type-var]
            async for page in pages:
                return page.metadata.resourceVersion
        return ""

    async def _list(self) -> None:
        self.relists += 1
        versions, version = msgspec.json.Decoder(_Versioned), ""
        # Gone between two pages (a slow taker) begins again at the first: what was taken is not taken again, so it comes to an end.
        async for page in self._client.pages(self._query, msgspec.Raw, PAGE_LIMIT):
            version = page.metadata.resourceVersion
            for item in page.items:
                await self._taker.listed(decoded(versions, item).metadata.resourceVersion, bytes(item))
        await self._taker.caught_up(version)
        self._version = version
        self._well()
