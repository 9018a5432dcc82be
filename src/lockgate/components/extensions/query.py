"""Questions to a running store over HTTP on loopback: SQL that only reads, and the logs, also as they arrive.

    POST /query    {"sql": ..., "format": "json" | "ndjson", "max_rows": ...}
    GET  /logs     ?namespace= &pod= &container= &grep= &since=10m &limit= &follow=true    NDJSON
    GET  /status   rows, bytes and the newest arrival

Each request carries the token from the state directory (mode 0600): loopback is shared by all users of a machine, logs are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import msgspec
from aiohttp import web
from pydantic import Field

from lockgate.kit.units import Duration, Size, parse_duration
from lockgate.net import access
from lockgate.net.loopback import LoopbackSettings
from lockgate.pipeline.contract import Context, Extension, Kind, component
from lockgate.pipeline.errors import Retryable
from lockgate.store import query
from lockgate.store.database import Database

_FOLLOW_SECONDS = 0.25
"""Between two looks at whether something was committed; a look is one comparison, a query follows only where something was."""
_FOLLOWERS = 16


class QuerySettings(LoopbackSettings):
    """Where queries are answered, and what one may take."""

    PURPOSE = "queries"

    endpoint: str = "127.0.0.1:3001"
    """host:port on loopback; port 0 takes a free one (clients find it through the state directory)."""
    store: str = "store"
    """The store exporter to ask: `store` or `store/name`."""
    timeout: Duration = 30.0
    """How long one query may run."""
    max_rows: int = Field(10_000, ge=1)
    """Rows that one query may give."""
    max_result_size: Size = 64 * 2**20
    """Bytes that one query may give."""
    max_concurrent_queries: int = Field(4, ge=1)
    """Queries that run at once; four times as many may wait, more are answered 429."""


class _Question(msgspec.Struct, forbid_unknown_fields=True):
    sql: str
    format: Literal["json", "ndjson"] = "json"
    max_rows: int | None = None


@component("query", QuerySettings)
class QueryExtension(Extension[QuerySettings]):
    """Answers SQL and log questions from a running store, to whoever can read its token file."""

    def __init__(self, settings: QuerySettings, context: Context) -> None:
        super().__init__(settings, context)
        self._runner: web.AppRunner | None = None
        self._access: access.Access | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._running = asyncio.Semaphore(settings.max_concurrent_queries)
        self._waiting = self._followers = 0
        self._limits = query.QueryLimits(settings.timeout, settings.max_rows, settings.max_result_size)

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self.settings.max_concurrent_queries, "lockgate-query")
        app = web.Application(middlewares=[self._guard], client_max_size=2**20)
        app.router.add_post("/query", self._query)
        app.router.add_get("/logs", self._logs)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        host, _, port = self.settings.endpoint.rpartition(":")
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(error.errno, f"cannot listen on {self.settings.endpoint} for queries: {error.strerror}") from error
        try:
            self._access = access.publish(self.settings.directory, access.QUERIES, self.address)
        except OSError as error:
            await self._runner.cleanup()
            reason = f"cannot leave the queries' token in {self.settings.directory}: {error.strerror}; set state_directory"
            raise OSError(error.errno, reason) from error

    async def stop(self) -> None:
        if self._access is not None:
            access.withdraw(self.settings.directory, access.QUERIES, self._access)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def address(self) -> str:
        """host:port where it listens."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if self._access is None or not self._access.allows(request.headers.get("Authorization", "")):
            return _problem(401, f"the token of {self.settings.directory}/query.json is missing or wrong")
        try:
            return await handler(request)
        except query.QueryError as error:
            return _problem(400, str(error))
        except Retryable as error:
            return _problem(503, str(error))
        except _TooMany:
            return _problem(429, f"{self.settings.max_concurrent_queries} queries run and as many wait as may; try again")

    def _database(self) -> Database:
        for found in self.context.host.components.values():
            if found.context.kind is Kind.EXPORTER and found.context.id == self.settings.store:
                if isinstance(database := getattr(found, "database", None), Database):
                    return database
                break
        raise Retryable(f"there is no exporter {self.settings.store} with a store; name one under extensions.{self.context.id}.store")

    async def _ask(self, question: Callable[..., query.Result], *arguments: object) -> query.Result:
        if self._waiting >= 4 * self.settings.max_concurrent_queries:
            raise _TooMany
        database = self._database()
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        # Released when the thread is free, not when the client is gone: a query that nobody waits for still costs what it costs.
        answer = asyncio.get_running_loop().run_in_executor(self._threads, question, database, *arguments)
        answer.add_done_callback(self._release)
        return await asyncio.shield(answer)

    def _release(self, answer: asyncio.Future[query.Result]) -> None:
        self._running.release()
        if not answer.cancelled():
            answer.exception()  # seen, in case that nobody waits for it any more

    async def _query(self, request: web.Request) -> web.Response:
        try:
            question = msgspec.json.decode(await request.read(), type=_Question)
        except msgspec.DecodeError as error:
            return _problem(400, f"the body is no question: {error}; send JSON with the key sql")
        limits = self._limits
        if question.max_rows is not None:
            limits = replace(limits, rows=max(1, min(question.max_rows, limits.rows)))
        result = await self._ask(query.run, question.sql, limits)
        if question.format == "ndjson":
            headers = {"Lockgate-Truncated": result.truncated} if result.truncated else {}
            text = "".join(f"{row}\n" for row in result.rows)
            return web.Response(text=text, content_type="application/x-ndjson", headers=headers)
        columns = msgspec.json.encode(result.columns).decode()
        truncated = msgspec.json.encode(result.truncated).decode()
        return web.Response(
            text=f'{{"columns":{columns},"rows":[{",".join(result.rows)}],"truncated":{truncated}}}', content_type="application/json"
        )

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        asked = request.query
        unknown = set(asked) - {"namespace", "pod", "container", "grep", "since", "limit", "follow"}
        if unknown:
            return _problem(400, f"unknown parameters: {', '.join(sorted(unknown))}")
        try:
            since = parse_duration(asked["since"]) if "since" in asked else None
            limits = replace(self._limits, rows=max(0, min(int(asked.get("limit", 1000)), self._limits.rows)))
        except ValueError as error:
            return _problem(400, str(error))
        chosen = query.LogFilter(asked.get("namespace", ""), asked.get("pod", ""), asked.get("container", ""), asked.get("grep", ""), since)
        follow = asked.get("follow", "") in ("true", "1")
        if follow and self._followers >= _FOLLOWERS:
            raise _TooMany
        seen = self._database().last_received
        result = await self._ask(query.logs, chosen, limits, 0, seen)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self._followers += follow
        try:
            await response.prepare(request)
            await _write(response, result)
            while follow and self.running and not (request.transport is None or request.transport.is_closing()):
                await self.context.clock.sleep(_FOLLOW_SECONDS)
                newest = self._database().last_received
                if newest > seen:
                    await _write(response, await self._ask(query.logs, replace(chosen, since_seconds=None), self._limits, seen, newest))
                    seen = newest
        except ConnectionError:
            pass  # whoever followed has gone
        except (query.QueryError, Retryable, _TooMany) as error:
            # The answer has begun, so its status is said: the last line tells why it ends.
            await response.write(msgspec.json.encode({"error": str(error) or "too many queries"}) + b"\n")
        finally:
            self._followers -= follow
        return response

    async def _status(self, _: web.Request) -> web.Response:
        database = self._database()
        counts = ", ".join(f"(SELECT count(*) FROM {view}) AS {view}" for view in ("log_records", "metric_points", "span_records"))
        result = await self._ask(query.run, f"SELECT {counts}", self._limits)
        used = await asyncio.get_running_loop().run_in_executor(self._threads, database.used_bytes)
        body = {"rows": msgspec.json.decode(result.rows[0]), "used_bytes": used, "newest_arrival_unix_micro": database.last_received}
        return web.json_response(body)


class _TooMany(Exception):
    pass


async def _write(response: web.StreamResponse, result: query.Result) -> None:
    if result.rows:
        await response.write("".join(f"{row}\n" for row in result.rows).encode())


def _problem(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
