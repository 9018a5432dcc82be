"""The client against the sample API: credentials, trust, refusals, and what hangs or is torn."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import web
from support import VirtualClock, context
from support.kubernetes import Faults, apply, pod, put, sample

from lockgate.kit.clock import SystemClock
from lockgate.kube import client as client_module
from lockgate.kube.access import Access
from lockgate.kube.client import ApiError, Client, Gone, Page, Query
from lockgate.kube.reflector import Reflector
from lockgate.kube.resources import PODS, REPLICA_SETS
from lockgate.net.tls import TlsClientSettings
from lockgate.sample.kubernetes_api import SampleApi
from lockgate.sample.kubernetes_store import ObjectStore


class Named(msgspec.Struct):
    name: str
    resourceVersion: str = ""


class Item(msgspec.Struct):
    metadata: Named


ALL_PODS = Query(PODS)


async def names(client: Client, query: Query = ALL_PODS) -> list[str]:
    return [item.metadata.name async for page in client.pages(query, Item) for item in page.items]


async def test_pages_together_are_the_whole_list() -> None:
    async with sample() as (store, access), Client(access, context()) as client:
        for number in range(5):
            store.create(PODS, pod(f"pod-{number}"))
        pages: list[Page[Item]] = [page async for page in client.pages(Query(PODS), Item, 2)]
        assert [[item.metadata.name for item in page.items] for page in pages] == [["pod-0", "pod-1"], ["pod-2", "pod-3"], ["pod-4"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param(Query(PODS, "shop"), ["c"], id="namespace"),
        pytest.param(Query(PODS, label_selector="app=web"), ["a"], id="labels"),
        pytest.param(Query(PODS, field_selector="spec.nodeName=node-2"), ["b"], id="fields"),
        pytest.param(Query(PODS, metadata_only=True), ["a", "b", "c"], id="metadata"),
    ],
)
async def test_a_query_selects_on_the_server(query: Query, expected: list[str]) -> None:
    async with sample() as (store, access), Client(access, context()) as client:
        apply(store, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        for item in (pod("a", labels={"app": "web"}), pod("b", nodeName="node-2"), pod("c", "shop")):
            put(store, PODS, item)
        assert await names(client, query) == expected


async def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    store = ObjectStore(SystemClock())
    api = SampleApi(store, {"old": "agent"})
    async with api.serve() as url, Client(Access(url, str(token)), context()) as client:
        assert await names(client) == []
        api.tokens.clear()
        api.tokens["new"] = "agent"
        token.write_text("new\n")
        assert await names(client) == []


async def test_a_token_that_rotates_under_a_request_is_tried_again_at_once(tmp_path: Path) -> None:
    token, faults = tmp_path / "token", Faults()
    token.write_text("old")

    async def rotate(request: web.Request) -> web.StreamResponse:
        token.write_text("new")
        return web.Response(status=401)

    faults.answers.append(rotate)
    api = SampleApi(ObjectStore(SystemClock()), {"new": "agent"}, middlewares=(faults.middleware,))
    async with api.serve() as url, Client(Access(url, str(token)), context()) as client:
        assert await names(client) == []


async def test_a_refused_token_names_its_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    async with (
        SampleApi(ObjectStore(SystemClock()), {"right": "agent"}).serve() as url,
        Client(Access(url, str(token)), context()) as client,
    ):
        with pytest.raises(ApiError, match=rf"401 Unauthorized; the API server does not accept the token in {token}"):
            await names(client)


@pytest.mark.parametrize(
    ("query", "verb", "grant"),
    [
        pytest.param(Query(PODS), "list", 'the verb "list" on resource "pods" of API group "" in all namespaces', id="list"),
        pytest.param(Query(PODS, "shop"), "watch", 'the verb "watch" on resource "pods" of API group "" in namespace shop', id="watch"),
        pytest.param(Query(REPLICA_SETS), "list", 'the verb "list" on resource "replicasets" of API group "apps" in all', id="group"),
    ],
)
async def test_a_forbidden_request_names_what_is_missing(query: Query, verb: str, grant: str) -> None:
    async with sample(may=lambda user, asked, resource, namespace: asked != verb) as (_, access), Client(access, context()) as client:
        with pytest.raises(ApiError) as refusal:
            if verb == "list":
                await names(client, query)
            else:
                await anext(aiter(client.watch(query, Item, "1")))
        assert refusal.value.code == 403 and grant in str(refusal.value)


async def test_too_many_requests_says_when_to_come_back() -> None:
    faults = Faults()
    faults.status(429, {"Retry-After": "7"}, "slow down")
    async with sample(faults=faults) as (_, access), Client(access, context()) as client:
        with pytest.raises(ApiError, match="429 slow down") as refusal:
            await names(client)
        assert refusal.value.retry_after == 7


async def test_a_forgotten_version_is_gone_inside_the_stream() -> None:
    async with sample() as (store, access), Client(access, context()) as client:
        store.create(PODS, pod("a"))
        store.compact()
        with pytest.raises(Gone, match="410 too old resource version"):
            await anext(aiter(client.watch(Query(PODS), Item, "1")))


async def test_an_object_without_its_shape_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()

    async def odd(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": 7}}, {"metadata": {"name": "b"}}]})

    faults.answers.append(odd)
    async with sample(faults=faults) as (_, access), Client(access, context()) as client:
        assert await names(client) == ["b"]
    assert "an object of pods is left out" in caplog.text


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        pytest.param(b'{"type":"ADDED","object":\n', "no Kubernetes API's", id="no-json"),
        pytest.param(b'{"type":"ADDED"}\n', "no Kubernetes API's", id="no-object"),
        pytest.param(b"x" * 3000, "larger than", id="endless-line"),
    ],
)
async def test_a_watch_that_is_none_is_a_broken_connection(body: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_EVENT_BYTES", 2000)
    faults = Faults()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    faults.answers.append(answer)
    async with sample(faults=faults) as (_, access), Client(access, context()) as client:
        with pytest.raises(aiohttp.ClientPayloadError, match=complaint):
            await anext(aiter(client.watch(Query(PODS), Item, "1")))


async def test_a_silent_watch_ends_to_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "IDLE_SECONDS", 0.05)
    async with sample() as (_, access), Client(access, context()) as client:
        assert [event async for event in client.watch(Query(PODS), Item, "99999")] == []


async def test_a_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "IDLE_SECONDS", 0.05)
    faults = Faults()

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    faults.answers.append(hang)
    async with sample(faults=faults) as (_, access), Client(access, context()) as client:
        with pytest.raises(TimeoutError):
            await anext(aiter(client.watch(Query(PODS), Item, "1")))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def served_by(authority: trustme.CA) -> AsyncIterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with SampleApi(ObjectStore(SystemClock())).serve(tls=context) as url:
        yield url


async def test_the_servers_certificate_must_come_from_the_given_authority_and_a_new_one_is_taken_up(
    authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.crt"
    trustme.CA().cert_pem.write_to_path(ca_file)
    clock = VirtualClock()
    async for url in served_by(authority):
        async with Client(Access(url, tls=TlsClientSettings(ca_file=str(ca_file))), context(clock=clock)) as client:
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
                await names(client)
            explained = await client.explain(caught.value)
            assert "was not accepted" in explained
            assert "issued by 'O=trustme" in explained
            assert f"trusted is what is in {ca_file}" in explained
            authority.cert_pem.write_to_path(ca_file)
            clock.now += 2
            assert await names(client) == []


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self) -> None:
        self.told.append("begin")

    def put(self, item: Item) -> None:
        self.told.append(item.metadata.name)

    def remove(self, item: Item) -> None:
        self.told.append(f"-{item.metadata.name}")

    def end(self) -> None:
        self.told.append("end")


async def test_retry_after_is_waited_out_and_failures_back_off() -> None:
    clock, faults, sink, reasons = VirtualClock(), Faults(), Recorder(), list[str]()
    faults.status(429, {"Retry-After": "40"})
    faults.status(503)
    async with sample(faults=faults) as (store, access), Client(access, context(clock=clock)) as client:
        store.create(PODS, pod("a"))
        reflector = Reflector(client, Query(PODS), Item, sink, reasons.append)
        running = asyncio.ensure_future(reflector.run())
        for seconds in (40, 2):
            async with asyncio.timeout(10):
                while not clock._sleepers:
                    await asyncio.sleep(0.002)
            await clock.advance(seconds)
        async with asyncio.timeout(10):
            while sink.told[-1] != "end":
                await asyncio.sleep(0.002)
        running.cancel()
    assert clock.slept[0] == 40 and 0.5 <= clock.slept[1] <= 1.5
    assert sink.told[-3:] == ["begin", "a", "end"]
    assert "429" in reasons[0] and "503" in reasons[1] and reasons[-1] == ""


async def test_a_server_that_ignores_the_watch_list_is_listed() -> None:
    faults, sink, reasons = Faults(), Recorder(), list[str]()

    async def no_mark(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"2"}}}\n')

    faults.answers.append(no_mark)
    clock = VirtualClock()
    async with sample(faults=faults) as (store, access), Client(access, context(clock=clock)) as client:
        store.create(PODS, pod("a"))
        running = asyncio.ensure_future(Reflector(client, Query(PODS), Item, sink, reasons.append).run())
        async with asyncio.timeout(10):
            while sink.told[-1:] != ["end"]:
                await clock.advance(1)
                await asyncio.sleep(0.002)
        running.cancel()
    assert sink.told == ["begin", "a", "begin", "a", "end"]
    assert not any(reasons)
