"""Queries over HTTP: who may ask, what is answered, what follows."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError
from support import FakeHost, context
from support.otlp import log_batch

from lockgate.components.exporters.store import StoreExporter, StoreSettings
from lockgate.components.extensions.query import QueryExtension, QuerySettings
from lockgate.net.access import Access, NotRunning, find
from lockgate.pipeline.contract import Kind

ENDLESS = "SELECT count(*) FROM range(100000) a, range(100000) b, range(1000) c WHERE hash(a.range + b.range * c.range) = 7"
"""Small enough to be held in memory, so that time is what runs out first."""


@asynccontextmanager
async def backend(path: Path, **settings: Any) -> AsyncIterator[tuple[StoreExporter, Access, aiohttp.ClientSession]]:
    host = FakeHost()
    store = StoreExporter(StoreSettings(directory=str(path / "store")), context("store", Kind.EXPORTER, host=host))
    host.components["exporters/store"] = store
    parsed = QuerySettings.model_validate({"endpoint": "127.0.0.1:0", "state_directory": str(path), **settings})
    async with QueryExtension(parsed, context("query", Kind.EXTENSION, host=host)), store:
        access = find(path)
        async with aiohttp.ClientSession(f"http://{access.address}", headers={"Authorization": f"Bearer {access.token}"}) as session:
            yield store, access, session


async def ask(session: aiohttp.ClientSession, sql: str, **more: Any) -> tuple[int, Any]:
    async with session.post("/query", json={"sql": sql, **more}) as answer:
        return answer.status, await answer.json()


async def test_sql_is_answered_as_json_and_ndjson(tmp_path: Path) -> None:
    async with backend(tmp_path) as (store, _, session):
        await store.consume(log_batch("a", "b", resource={"pod": "p"}))
        assert await ask(session, "SELECT pod, count(*) AS n FROM logs GROUP BY ALL") == (
            200,
            {"columns": ["pod", "n"], "rows": [{"pod": "p", "n": 2}], "truncated": ""},
        )
        async with session.post("/query", json={"sql": "SELECT body FROM logs ORDER BY 1", "format": "ndjson", "max_rows": 1}) as answer:
            assert (await answer.text(), answer.headers["Lockgate-Truncated"]) == ('{"body":"a"}\n', "cut after 1 rows")


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer \u00fc"}]
)
async def test_nobody_is_answered_without_the_token(tmp_path: Path, header: dict[str, str]) -> None:
    async with backend(tmp_path) as (_, access, _session), aiohttp.ClientSession(f"http://{access.address}") as stranger:
        for path in ("/logs", "/status", "/elsewhere"):
            async with stranger.get(path, headers=header) as answer:
                assert answer.status == 401
        async with stranger.post("/query", json={"sql": "SELECT 1"}, headers=header) as answer:
            assert answer.status == 401
            assert access.token not in await answer.text()


async def test_only_its_owner_can_read_the_token_and_it_goes_with_the_program(tmp_path: Path) -> None:
    async with backend(tmp_path / "state"):
        assert stat.S_IMODE((tmp_path / "state/query.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        for file in (tmp_path / "state/store").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
        assert stat.S_IMODE((tmp_path / "state/store").stat().st_mode) == 0o700
    with pytest.raises(NotRunning, match="start one"):
        find(tmp_path / "state")


@pytest.mark.parametrize("endpoint", ["0.0.0.0:3001", ":3001", "10.0.0.1:3001", "127.0.0.1", "example.com:1", "127.0.0.1:99999"])
def test_it_listens_on_loopback_alone(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="loopback"):
        QuerySettings(endpoint=endpoint)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("DELETE FROM log_records", "DELETE is not allowed"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT nothing FROM logs", "nothing"),
    ],
)
async def test_what_is_refused_says_why_and_the_next_question_is_answered(tmp_path: Path, sql: str, reason: str) -> None:
    async with backend(tmp_path) as (_, _access, session):
        status, said = await ask(session, sql)
        assert status == 400 and reason in said["error"]
        assert (await ask(session, "SELECT 1 AS x"))[0] == 200


async def test_a_long_query_ends_at_its_time_and_does_not_hold_up_others_or_inserts(tmp_path: Path) -> None:
    async with backend(tmp_path, timeout="1s") as (store, _, session):
        long = asyncio.ensure_future(ask(session, ENDLESS))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await store.consume(log_batch("meanwhile"))
            assert (await ask(session, "SELECT count(*) AS n FROM logs"))[1]["rows"] == [{"n": 1}]
            status, said = await long
        assert status == 400 and "longer than 1 s" in said["error"]


async def test_more_questions_than_may_wait_are_answered_429(tmp_path: Path) -> None:
    async with backend(tmp_path, timeout="500ms", max_concurrent_queries=1) as (_, _access, session):
        answers = await asyncio.gather(*(ask(session, ENDLESS) for _ in range(7)))
        statuses = sorted(status for status, _ in answers)
    assert statuses == [400] * 5 + [429] * 2


async def test_logs_are_filtered_and_bad_parameters_named(tmp_path: Path) -> None:
    async with backend(tmp_path) as (store, _, session):
        await store.consume(log_batch("x", "y", resource={"namespace": "shop", "pod": "cart-1", "container": "app"}))
        await store.consume(log_batch("x", resource={"namespace": "other"}))
        async with session.get("/logs", params={"namespace": "shop", "pod": "cart-*", "container": "app", "grep": "^x"}) as answer:
            rows = [json.loads(line) for line in (await answer.text()).splitlines()]
        assert [(row["pod"], row["body"]) for row in rows] == [("cart-1", "x")]
        for wrong in ({"since": "10"}, {"limit": "many"}, {"namspace": "shop"}, {"grep": "("}):
            async with session.get("/logs", params=wrong) as answer:
                assert answer.status == 400, wrong


async def test_following_shows_each_new_line_once_within_a_second(tmp_path: Path) -> None:
    async with backend(tmp_path) as (store, _, session):
        await store.consume(log_batch("before", resource={"pod": "p"}))
        async with session.get("/logs", params={"pod": "p", "follow": "true"}) as answer, asyncio.timeout(10):
            assert json.loads(await answer.content.readline())["body"] == "before"
            seen = []
            for number in range(5):
                sent = asyncio.get_running_loop().time()
                await store.consume(log_batch(f"new {number}", resource={"pod": "p"}))
                await store.consume(log_batch("of another", resource={"pod": "q"}, id=str(number)))
                seen.append(json.loads(await answer.content.readline())["body"])
                assert asyncio.get_running_loop().time() - sent < 1.5
        assert seen == [f"new {number}" for number in range(5)]


async def test_without_the_store_it_answers_503(tmp_path: Path) -> None:
    async with backend(tmp_path, store="store/other") as (_, _access, session):
        status, said = await ask(session, "SELECT 1")
        assert status == 503 and "store/other" in said["error"]


async def test_the_status_counts_rows_and_bytes(tmp_path: Path) -> None:
    async with backend(tmp_path) as (store, _, session):
        await store.consume(log_batch("x", "y"))
        async with session.get("/status") as answer:
            said = await answer.json()
        assert said["rows"] == {"log_records": 2, "metric_points": 0, "span_records": 0}
        assert said["used_bytes"] > 0 and said["newest_arrival_unix_micro"] > 0
