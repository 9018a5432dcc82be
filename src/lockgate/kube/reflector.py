"""List and watch kept up for ever: hands every change of a query's objects to a sink, over broken connections and a server that forgets.

The shape is client-go's reflector. A WatchList (Kubernetes 1.32 and later) where the server offers it, otherwise a paged list and then a
watch; a watch that ends is taken up at the last resourceVersion; 410 Gone, as an answer or inside the stream, leads to a new list, during
which the sink keeps what it has: what the new list does not mention is removed at its end. Nothing is lost, nothing is seen twice.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Callable
from typing import Generic, Never, Protocol, TypeVar

import aiohttp

from lockgate.kit.backoff import delays
from lockgate.kube.access import AccessError
from lockgate.kube.client import ApiError, Client, Gone, Query

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
"""With jitter. client-go waits for up to 30 s; as long after an outage, pods that came meanwhile would be without their metadata."""
PAGE_LIMIT = 500
"""Objects a page; client-go's, and some 5 MB of pods."""
SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner counts as a failure, or a server that ends each at once would be asked without pause."""


class Sink(Protocol[T_contra]):
    """Where a query's objects go."""

    def begin(self) -> None:
        """A new list begins: what is not put before `end` no longer exists. May be said again when a list breaks off."""

    def put(self, item: T_contra) -> None:
        """This object exists, as given; it may have been put before."""

    def remove(self, item: T_contra) -> None:
        """This object, last seen as given, was deleted."""

    def end(self) -> None:
        """The list that began is complete."""


class Persistent(abc.ABC):
    """A query that is followed for ever: every error of the network or the server is waited out and told. `run` never returns."""

    def __init__(
        self, client: Client, query: Query, blocked: Callable[[str], None] = lambda reason: None, rng: random.Random | None = None
    ) -> None:
        """`blocked` is told the reason while this cannot go on, and "" when it can again."""
        self._client, self._query, self._blocked = client, query, blocked
        self._clock, self._log = client.context.clock, client.context.logger
        self._rng = rng or random.Random()
        self._version = ""
        """Where the next watch begins; "" asks for a list before it."""
        self._synced = False
        self._reason = ""
        self._failures = 0
        self.relists = 0

    @abc.abstractmethod
    async def _follow(self) -> None:
        """One watch from `_version` to its end, with the list before it where that is empty; calls `_well` when the server answers."""

    def _can_do_without(self, error: ApiError) -> bool:
        """Whether to ask again at once, in another way."""
        return False

    async def run(self) -> Never:
        """Follows the query until cancelled."""
        waits = delays(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, 2.0, uniform=self._rng)
        while True:
            started, after = self._clock.monotonic(), 0.0
            try:
                await self._follow()
                problem = ""
            except Gone as error:
                self._log.info("listing %s anew: %s", self._query.resource.qualified, error)
                self._version, problem = "", ""
            except ApiError as error:
                if self._can_do_without(error):
                    continue
                problem, after = str(error), error.retry_after or 0.0
            except AccessError as error:
                problem = str(error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = f"cannot reach the Kubernetes API at {self._client.access.url}: {await self._client.explain(error)}"
            if not problem and self._clock.monotonic() - started >= SHORT_WATCH_SECONDS:
                self._well()
                continue
            if self._failures == 0:
                waits = delays(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, 2.0, uniform=self._rng)
            self._failures += 1
            # A watch that breaks once is not worth a word: it resumes where it was.
            if problem and (not self._synced or self._failures > 1):
                self._say(problem)
            await self._clock.sleep(max(next(waits), after))

    def _watch_seconds(self) -> int:
        """How long to ask a watch for; the spread keeps the watches of many agents from ending together."""
        return int(self._rng.uniform(290, 580))

    def _well(self) -> None:
        """The server answers as it should."""
        self._failures, self._synced = 0, self._synced or bool(self._version)
        if self._reason:
            self._log.info("%s in %s are followed again", self._query.resource.qualified, self._query.where)
            self._say("")

    def _say(self, reason: str) -> None:
        if reason and reason != self._reason:
            self._log.warning("%s", reason)
        self._reason = reason
        self._blocked(reason)


class Reflector(Persistent, Generic[T]):
    """One query, one sink."""

    def __init__(
        self,
        client: Client,
        query: Query,
        type_: type[T],
        sink: Sink[T],
        blocked: Callable[[str], None] = lambda reason: None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(client, query, blocked, rng)
        self._type, self._sink = type_, sink
        self._watch_list = True
        self._page_limit = PAGE_LIMIT

    def _can_do_without(self, error: ApiError) -> bool:
        # A server without WatchList says that it does not know the parameters; asked without them, it tells whether all is well.
        if self._watch_list and not self._version and error.code in (400, 422):
            self._watch_list = False
            return True
        return False

    async def _follow(self) -> None:
        initial = not self._version
        if initial:
            self._sink.begin()
            self.relists += 1
            if not self._watch_list:
                await self._list()
                initial = False
        async for event in self._client.watch(
            self._query, self._type, self._version, initial=initial, timeout_seconds=self._watch_seconds()
        ):
            if event.object is not None:
                (self._sink.remove if event.type == "DELETED" else self._sink.put)(event.object)
            if event.initial_end:
                self._sink.end()
                initial = False
            # Until a WatchList is complete its versions are no place to resume from.
            if not initial:
                self._version = event.version or self._version
                self._well()
        if initial:
            # The server, or a proxy before it, takes the parameters and does not know what they mean.
            self._watch_list = False

    async def _list(self) -> None:
        version = ""
        try:
            async for page in self._client.pages(self._query, self._type, self._page_limit):
                for item in page.items or ():
                    self._sink.put(item)
                version = page.metadata.resourceVersion
        except Gone:
            # The history is shorter than our way through the pages; client-go then asks for everything at once as well.
            self._page_limit = 0
            raise
        self._sink.end()
        self._version, self._page_limit = version, PAGE_LIMIT
        self._well()
