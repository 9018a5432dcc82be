"""The feed against the sample API: what breaks between it and the server costs a taker nothing but time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from aiohttp import web
from support import context
from support.events_contract import event, until
from support.kubernetes import Faults, sample

from lockgate.kube import feed
from lockgate.kube.access import Access
from lockgate.kube.client import Client, Event, Query
from lockgate.kube.feed import Feed
from lockgate.kube.resources import EVENTS
from lockgate.sample.kubernetes_store import ObjectStore


class Taker:
    """Keeps what it is given, and waits before each if it is told to."""

    def __init__(self, version: str = "") -> None:
        self.version = version
        self.got: list[str] = []
        self.asked_behind: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    def resume(self) -> str:
        return self.version

    def is_behind(self, version: str) -> bool:
        self.asked_behind.append(version)
        return bool(self.version) and int(version) < int(self.version)

    async def listed(self, version: str, item: bytes) -> None:
        await self.go.wait()
        self.got.append(f"listed {name(item)}")

    async def caught_up(self, version: str) -> None:
        self.got.append("caught up")

    async def changed(self, event: Event[msgspec.Raw]) -> None:
        await self.go.wait()
        if event.object is not None:
            self.got.append(f"{event.type} {name(event.object)}")


def name(item: bytes | msgspec.Raw) -> str:
    found: str = msgspec.json.decode(item)["metadata"]["name"]
    return found


def say(store: ObjectStore, *names: str) -> None:
    for each in names:
        store.create(EVENTS, event(each))


@asynccontextmanager
async def fed(access: Access, taker: Taker, blocked: Callable[[str], None] = lambda reason: None) -> AsyncIterator[Feed]:
    async with Client(access, context()) as client:
        made = Feed(client, Query(EVENTS), taker, blocked)
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_it_lists_then_watches_and_names_each_change() -> None:
    taker, faults = Taker(), Faults()
    async with sample(faults=faults) as (store, access):
        say(store, "a", "b")
        async with fed(access, taker):
            await faults.asked(watch="1")
            say(store, "c")
            store.merge(EVENTS, "default", "a", {"count": 2})
            store.delete(EVENTS, "default", "b")
            await until(lambda: len(taker.got) == 6)
    assert taker.got == ["listed a", "listed b", "caught up", "ADDED c", "MODIFIED a", "DELETED b"]


async def test_history_that_goes_between_two_pages_begins_the_list_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGE_LIMIT", 2)
    taker, faults = Taker(), Faults()
    async with sample(faults=faults) as (store, access):
        say(store, *"abc")
        taker.go.clear()
        async with fed(access, taker) as made:
            await faults.asked(limit="2")
            say(store, "d")
            store.compact()
            taker.go.set()
            await until(lambda: "caught up" in taker.got)
            assert made.relists == 2
    assert taker.got[-5:] == ["listed a", "listed b", "listed c", "listed d", "caught up"]


async def test_a_taker_that_is_slow_slows_the_feed_and_loses_nothing() -> None:
    taker, faults = Taker(), Faults()
    async with sample(faults=faults) as (store, access), fed(access, taker):
        await faults.asked(watch="1")
        taker.go.clear()
        expected = [f"e{number:04}" for number in range(1500)]  # more than the server keeps for one watcher
        for each in expected:
            say(store, each)
            if each.endswith("00"):
                await asyncio.sleep(0)
        taker.go.set()
        await until(lambda: len(taker.got) == 1501)
    assert taker.got == ["caught up", *(f"ADDED {each}" for each in expected)]


async def test_it_asks_where_the_server_is_before_it_resumes() -> None:
    taker = Taker("1000000")
    async with sample() as (store, access):
        say(store, "a")
        async with fed(access, taker):
            await until(lambda: taker.got)
    assert taker.asked_behind == [str(store.version)] and taker.got == ["listed a", "caught up"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b'{"type":"ADDED","object":{"metadata":7}}\n', id="metadata-of-another-type"),
        pytest.param(b'{"type":"ERROR","object":[]}\n', id="error-that-is-none"),
        pytest.param(b'{"type":"BOOKMARK","object":{"metadata":[]}}\n', id="bookmark-of-nothing"),
        pytest.param(b'{"metadata":{},"items":[7,{"metadata":"x"}]}', id="list-of-no-objects"),
        pytest.param(b"\xff\xfe\n", id="no-json"),
        pytest.param(b'{"type":"ADDED","obj', id="torn"),
        pytest.param(b'{"a":' * 100_000 + b"\n", id="nests-without-end"),
    ],
)
async def test_an_answer_that_is_no_kubernetes_apis_is_told_and_waited_out(answer: bytes) -> None:
    taker, faults, reasons = Taker(), Faults(), list[str]()

    async def answers(request: web.Request) -> Any:
        return web.Response(body=answer, content_type="application/json")

    async with sample(faults=faults) as (store, access):
        faults.answers += [answers, answers]
        async with fed(access, taker, reasons.append):
            await until(lambda: not faults.answers)
            say(store, "a")
            await until(lambda: any(each.endswith(" a") for each in taker.got))
    assert not reasons or reasons[-1] == ""
