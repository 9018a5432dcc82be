"""Runs the feeds, gathers what they bring into batches, hands these on, and keeps the position behind what was taken.

A position is a set of versions of the API server's history (`metadata.resourceVersion`, numbers that grow: KEP-5504) for each namespace
that is watched: everything up to some version, and single ones beyond it while a list goes on. It is on disk after each batch, and a queue
on disk behind the receiver knows it too (`Origin`), so that a kill at any moment neither loses nor repeats what such a queue has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from lockgate.batch import Batch, Origin, Signal, derived_id
from lockgate.components.receivers.raw_k8s_events.records import last_seen, record, request
from lockgate.components.receivers.raw_k8s_events.settings import RawK8sEventsSettings
from lockgate.kit.ranges import Ranges
from lockgate.kit.sometimes import Sometimes
from lockgate.kube.client import Event
from lockgate.kube.feed import Feed
from lockgate.kube.following import shared_client
from lockgate.pipeline.contract import Context, Extension, Held, Receiver, Storage, component
from lockgate.pipeline.errors import Permanent, Retryable

_BATCH_BYTES, _BATCH_EVENTS = 1 << 20, 1000
_WAITING_BYTES = 4 << 20
"""What is read and not yet taken; a watch waits when there is more. An event is 1 to 2 KB, at most etcd's 1.5 MB."""
_SAVE_SECONDS = 1.0
"""While a list goes on its single versions are saved so often; a list of 100,000 has as many."""


class _SavedSource(msgspec.Struct):
    """What is saved of one namespace."""

    done: list[tuple[int, int]]
    """[start, end) of versions."""
    too_old: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """Something that a feed brought: an event, or the news that nothing else lies in these versions."""

    source: str
    """As `Origin.source`."""
    done: Ranges
    """Where it is to be noted that these versions are done with."""
    start: int
    end: int
    """[start, end) of versions, empty where the server's versions are no numbers."""
    raw: bytes = b""
    change: str = ""
    is_told: bool = False
    """Whether a queue on disk is to be told of the versions although there is no event."""


class _Source:
    """One namespace's events, as its feed's taker."""

    def __init__(self, receiver: RawK8sEventsReceiver, namespace: str, saved: _SavedSource, held: Held) -> None:
        self._receiver = receiver
        self.namespace = namespace
        self.generation = saved.generation
        """How often the server's history began anew; part of the source's name, because versions of another history mean nothing now."""
        self.done = Ranges(saved.done)
        """Versions of which nothing is to come any more."""
        for span in held.durable.get(self.id, ()):
            self.done.add(*span)
        self._seen = Ranges(self.done)
        """These, and what waits to be handed on."""
        self.too_old = 0 if self.done.reach(0) else saved.too_old or receiver.oldest_wanted()
        """Events that a list shows and that last happened before this are left out (nanoseconds since 1970)."""
        self._is_lost = False
        """Whether a queue waits to hear of what it lost."""
        if lost := held.lost.get(self.id):
            self.lose(lost)

    @property
    def id(self) -> str:
        """As `Origin.source`."""
        return f"{self._receiver.context.id}:{self.namespace or '*'}" + (f"~{self.generation}" if self.generation else "")

    def lose(self, lost: Ranges) -> None:
        """What was done is to be read again, as far as the server still shows it: the next thing a feed does is a list."""
        for span in lost:
            self.done.remove(*span)
            self._seen.remove(*span)
        self._is_lost = True

    def saved(self) -> _SavedSource:
        return _SavedSource(list(self.done), self.too_old, self.generation)

    # As the feed's taker.

    def resume(self) -> str:
        # A watch from where something was lost would mostly begin with 410 Gone.
        reached = 0 if self._is_lost else self._seen.reach(0)
        return str(reached - 1) if reached else ""

    def is_behind(self, version: str) -> bool:
        reached = self._seen.reach(0) - 1
        if not version.isdigit() or int(version) >= reached:
            return False
        self._receiver.log.error(
            "the API server is at version %s and was at %d: it was restored from a backup, or is another one; events are read anew, as "
            "max_event_age says",
            version,
            reached,
        )
        self.generation += 1
        self.done, self._seen, self.too_old = Ranges(), Ranges(), self._receiver.oldest_wanted()
        return True

    async def listed(self, version: str, item: bytes) -> None:
        start, end = _span(version)
        is_new = start == end or bool(self._seen.missing(start, end))
        if is_new and (not self.too_old or last_seen(item) >= self.too_old):
            await self._put(start, end, item, "ADDED")

    async def caught_up(self, version: str) -> None:
        self.too_old, is_told, self._is_lost = 0, self._is_lost, False
        await self._put(0, _span(version)[1], is_told=is_told)

    async def changed(self, event: Event[msgspec.Raw]) -> None:
        start, end = _span(event.version)
        # A list that was broken off may have shown it.
        is_new = start == end or bool(self._seen.missing(start, end))
        is_wanted = is_new and event.type in ("ADDED", "MODIFIED") and event.object is not None
        # Whatever lies between the last change and this one was of other objects.
        start = min(start, self._seen.reach(0))
        await self._put(start, end, bytes(event.object) if is_wanted and event.object else b"", event.type)

    async def _put(self, start: int, end: int, raw: bytes = b"", change: str = "", is_told: bool = False) -> None:
        await self._receiver.put(_Item(self.id, self.done, start, end, raw, change, is_told))
        self._seen.add(start, end)  # after the wait, in which a feed may be ended


def _span(version: str) -> tuple[int, int]:
    return (int(version), int(version) + 1) if version.isdigit() else (0, 0)


@component("raw_k8s_events", RawK8sEventsSettings, signals={Signal.LOGS})
class RawK8sEventsReceiver(Receiver[RawK8sEventsSettings]):
    """Watches Kubernetes events; its position passes one only when the pipeline has taken it. One replica alone should run it."""

    transport = "http"

    def __init__(self, settings: RawK8sEventsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._stack = AsyncExitStack()
        self._lender: Extension[Any] | None = None
        self._storage: Storage | None = None
        self._sources: dict[str, _Source] = {}
        self._waiting: deque[_Item] = deque()
        self._waiting_bytes = 0
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._feeds: dict[str, asyncio.Task[Any]] = {}
        self._delivering: asyncio.Task[None] | None = None
        self._stopping = False
        self._saved = b""
        self._last_save = float("-inf")
        self._sometimes = Sometimes(context.clock, 60.0)
        self._start_feed: Callable[[_Source], None] = lambda source: None
        metrics, label = context.metrics, {"receiver": context.id}
        self._dropped = metrics.counter("lockgate_k8s_events_dropped", "events refused for good, given up, or unreadable", **label)
        metrics.observe(
            "lockgate_k8s_events_waiting_bytes", "events read and not yet taken by the pipeline", lambda: self._waiting_bytes, **label
        )

    def oldest_wanted(self) -> int:
        """The time of the oldest event to read where no position is known (nanoseconds since 1970)."""
        return max(1, self.context.clock.time_unix_nano() - int(self.settings.max_event_age * 1e9))

    async def start(self) -> None:
        self._storage = self._find_storage()
        saved = await self._load()
        held = self.context.host.held(self.context.id)
        unknown = [(0, self.settings.resource_version + 1)] if self.settings.resource_version else []
        for query in self.settings.queries():
            known = saved.get(query.namespace) or _SavedSource(unknown)
            self._sources[query.namespace] = _Source(self, query.namespace, known, held)
        client = await self._stack.enter_async_context(shared_client(self.settings.access(), self.context))

        def start_feed(source: _Source) -> None:
            key = f"events of {source.namespace}" if source.namespace else "events"
            query = next(query for query in self.settings.queries() if query.namespace == source.namespace)

            def blocked(reason: str) -> None:
                self.context.status.block(reason, key) if reason else self.context.status.clear(key)

            self._feeds[source.namespace] = self.spawn(Feed(client, query, source, blocked).run(), key)

        self._start_feed = start_feed
        for source in self._sources.values():
            start_feed(source)
        self._delivering = self.spawn(self._deliver(), "hand on")

    async def stop(self) -> None:
        self._stopping = True
        self._arrived.set()
        feeds = list(self._feeds.values())
        for feed in feeds:
            feed.cancel()
        if self._delivering is not None:
            await asyncio.wait([self._delivering, *feeds])
        await self._stack.aclose()

    def give_back(self, origins: Sequence[Origin]) -> None:
        for source in self._sources.values():
            lost = Ranges((origin.start, origin.end) for origin in origins if origin.source == source.id)
            if lost and (feed := self._feeds.get(source.namespace)) is not None and not self._stopping:
                feed.cancel()
                source.lose(lost)
                self._start_feed(source)

    # What comes in.

    async def put(self, item: _Item) -> None:
        """Takes this, when there is room for it."""
        while self._waiting_bytes >= _WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(item)
        self._waiting_bytes += len(item.raw)
        self._arrived.set()

    def _round(self) -> list[_Item]:
        items: list[_Item] = []
        size = 0
        while self._waiting and size < _BATCH_BYTES and len(items) < _BATCH_EVENTS:
            items.append(self._waiting.popleft())
            size += len(items[-1].raw)
        self._waiting_bytes -= size
        self._room.set()
        return items

    # What goes out.

    async def _deliver(self) -> None:
        try:
            while not self._stopping:
                if not self._waiting:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                items = self._round()
                batch = self._batch(items)
                if (batch.count or batch.origins) and not await self._hand_on(batch):
                    break
                for item in items:
                    item.done.add(item.start, item.end)
                await self._save(now=False)
        finally:
            self.context.host.left[f"{self.context.kind.value}/{self.context.id}"] = self._state()
            await self._save(now=True)

    def _batch(self, items: Iterable[_Item]) -> Batch:
        now = self.context.clock.time_unix_nano()
        records: list[bytes] = []
        origins: list[Origin] = []
        names = [self.context.id]
        for item in items:
            made = 0
            if item.raw:
                try:
                    name, content = record(item.raw, item.change, now)
                except ValueError as error:
                    self._dropped.add()
                    if self._sometimes.now("unreadable") is not None:
                        self.log.error("an event is left out: %s", error)
                else:
                    records.append(content)
                    names.append(name)
                    made = 1
            if item.start < item.end and (made or item.is_told):
                _add(origins, Origin(item.source, item.start, item.end, lines=made, records=made))
        return Batch(Signal.LOGS, request(records), len(records), derived_id(*names), origins=tuple(origins))

    async def _hand_on(self, batch: Batch) -> bool:
        """Offers the batch until it is taken, or lost: then the log and a count say so. False where this stops before that."""
        tries, status = 0, self.context.status
        while True:
            try:
                await self.emit(batch)
                break
            except Retryable as refusal:
                tries += 1
                if not self.settings.consume_max_retries or tries <= self.settings.consume_max_retries:
                    status.block(f"the next owner cannot take events now: {refusal}", "delivery")
                    await self.context.clock.sleep(max(self.settings.consume_retry_delay, refusal.after or 0.0))
                    if self._stopping:
                        return False
                    continue
                self.log.error("gave up %d events after %d tries, as consume_max_retries says: %s", batch.count, tries, refusal)
            except Permanent as refusal:
                self.log.error("%d events were refused for good, and are lost: %s", batch.count, refusal)
            self._dropped.add(batch.count)
            break
        status.clear("delivery")
        return True

    # The position.

    def _find_storage(self) -> Storage | None:
        """Named, or the one that the program runs: configurations of Sumo Logic's receiver do not name it. Raises LookupError."""
        self._lender = self._find_lender()
        return None if self._lender is None else self._lender.storage(f"{self.context.kind}/{self.context.id}")

    def _find_lender(self) -> Extension[Any] | None:
        host = self.context.host
        if self.settings.storage:
            return host.extension(self.settings.storage)
        found = [it for it in host.components.values() if isinstance(it, Extension) and type(it).storage is not Extension.storage]
        if len(found) > 1:
            names = ", ".join(sorted(it.context.id for it in found))
            raise LookupError(f"several storage extensions run ({names}); name the one that keeps the position: storage")
        if not found:
            self.log.warning(
                "no storage: after a restart, events that are not older than max_event_age are read again, and older ones never; "
                "add a file_storage to service.extensions"
            )
            return None
        return found[0]

    async def _load(self) -> dict[str, _SavedSource]:
        content: bytes | None = self.context.host.left.get(f"{self.context.kind.value}/{self.context.id}")
        try:
            if content is None and self._storage is not None:
                content = await self.in_thread(self._storage.load)
            return msgspec.json.decode(content, type=dict[str, _SavedSource]) if content else {}
        except (OSError, msgspec.DecodeError) as error:
            self.log.error("the position cannot be used: %s; events that are not older than max_event_age are read anew", error)
            return {}

    def _state(self) -> bytes:
        return msgspec.json.encode({source.namespace: source.saved() for source in self._sources.values()})

    async def _save(self, now: bool) -> None:
        if self._storage is None or self._lender is None:
            return
        is_listing = any(len(source.done) > 1 for source in self._sources.values())
        if not now and is_listing and self.context.clock.monotonic() - self._last_save < _SAVE_SECONDS:
            return
        if (state := self._state()) == self._saved:
            return
        self._last_save = self.context.clock.monotonic()
        positions = {source.id: source.done.reach(0) for source in self._sources.values()}
        try:
            if not self._lender.running and (another := self._find_storage()) is not None:
                self._storage = another  # a reload has put it in the place of the first
            await self.in_thread(self._storage.save, state)
        except (OSError, LookupError) as error:
            reason = f"cannot save the position: {error}; a restart would read events again"
            if "position" not in self.context.status.blocked:
                self.log.error("%s", reason)
            self.context.status.block(reason, "position")
        else:
            self._saved = state
            self.context.status.clear("position")
            self.context.host.saved(self.context.id, positions)


def _add(origins: list[Origin], new: Origin) -> None:
    """To the last one, where the new one goes on from there."""
    if origins and (last := origins[-1]).source == new.source and last.end == new.start:
        origins[-1] = replace(last, end=new.end, lines=last.lines + new.lines, records=last.records + new.records)
    else:
        origins.append(new)
