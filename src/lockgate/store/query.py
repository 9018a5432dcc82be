"""Questions to the store: one statement that only reads, bounded in time, rows and bytes; and the logs, as `kubectl logs` would ask.

Blocking: each call takes a thread for as long as its limit lets it.

Memory is bounded twice. DuckDB's own limit covers tables, joins, sorts and aggregates, but not one value: `repeat('a', 3000000000)` took
3.6 GB beside a limit of 256 MB. So the process's data segment is capped while a query runs, and DuckDB answers a failed allocation as an
error.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from lockgate.store.database import Database

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_CHUNK = 256


class QueryError(Exception):
    """The question cannot be answered, and why: its syntax, its limits, or that it would do more than read."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may take and give."""

    seconds: float = 30.0
    rows: int = 10_000
    bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Result:
    """Rows as JSON objects; `truncated` says which limit cut them, "" where none did."""

    columns: list[str]
    rows: list[str]
    truncated: str = ""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which log lines; empty is all. `namespace`, `pod` and `container` take `*` and `?`; `grep` is an RE2 expression on the body."""

    namespace: str = ""
    pod: str = ""
    container: str = ""
    grep: str = ""
    since_seconds: float | None = None


def run(database: Database, sql: str, limits: QueryLimits) -> Result:
    """The answer to one statement; raises QueryError."""
    with _errors(limits):
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(f"one statement is expected, not {len(statements)}")
    if statements[0].type not in _READS:
        raise QueryError(f"{statements[0].type.name} is not allowed here; only SELECT and EXPLAIN are")
    text = _without_end(statements[0].query)
    if statements[0].type is duckdb.StatementType.EXPLAIN:
        # EXPLAIN cannot stand in a FROM clause: its plan is read as it is.
        with _reading(database, limits) as cursor:
            return Result(["explain"], [_object("explain", row[-1]) for row in cursor.execute(text).fetchmany(limits.rows)])
    with _reading(database, limits) as cursor:
        columns = [name for name, *_ in cursor.execute(f"SELECT * FROM (\n{text}\n) AS answer LIMIT 0").description or []]
        # DuckDB writes the JSON: every type it has, exactly, without a Python object per value. The line feeds end a trailing comment.
        cursor.execute(f"SELECT to_json(answer)::VARCHAR FROM (\n{text}\n) AS answer")
        return _take(cursor, columns, limits)


LOG_COLUMNS = ["time", "namespace", "pod", "container", "severity", "body", "received"]


def logs(database: Database, chosen: LogFilter, limits: QueryLimits, after: int = 0, until: int = 2**62) -> Result:
    """The newest matching lines that arrived after `after` and up to `until` (microseconds since 1970), oldest first; raises QueryError."""
    where = ["received > make_timestamp($after)", "received <= make_timestamp($until)"]
    parameters: dict[str, Any] = {"after": after, "until": until, "limit": limits.rows}
    for name in ("namespace", "pod", "container"):
        if pattern := getattr(chosen, name):
            where.append(f"{name} GLOB ${name}")
            parameters[name] = pattern
    if chosen.grep:
        where.append("regexp_matches(body, $grep)")
        parameters["grep"] = chosen.grep
    if chosen.since_seconds is not None:
        where.append("time >= now()::TIMESTAMP - to_microseconds($since)")
        parameters["since"] = int(chosen.since_seconds * 1e6)
    columns = ", ".join(LOG_COLUMNS)
    sql = f"""SELECT to_json(line)::VARCHAR FROM (
        SELECT * FROM (
            SELECT {columns}, time_unix_nano FROM logs WHERE {" AND ".join(where)} ORDER BY received DESC, time_unix_nano DESC LIMIT $limit
        ) ORDER BY received, time_unix_nano
    ) AS line"""
    with _reading(database, limits) as cursor:
        cursor.execute(sql, parameters)
        return _take(cursor, [*LOG_COLUMNS, "time_unix_nano"], limits)


def _take(cursor: duckdb.DuckDBPyConnection, columns: list[str], limits: QueryLimits) -> Result:
    rows: list[str] = []
    size = 0
    while chunk := cursor.fetchmany(min(_CHUNK, limits.rows + 1 - len(rows))):
        for (text,) in chunk:
            if len(rows) == limits.rows:
                return Result(columns, rows, f"cut after {limits.rows} rows")
            size += len(text)
            if size > limits.bytes:
                return Result(columns, rows, f"cut after {limits.bytes} bytes")
            rows.append(text)
    return Result(columns, rows)


def _without_end(sql: str) -> str:
    """The statement without its semicolons and what follows them, so that it can stand in a FROM clause."""
    raw = sql.encode()
    tokens = [(position, kind) for position, kind in duckdb.tokenize(sql) if kind is not duckdb.token_type.comment]
    while tokens and raw[tokens[-1][0] : tokens[-1][0] + 1] == b";":
        raw = raw[: tokens.pop()[0]]
    return raw.decode()


@contextmanager
def _reading(database: Database, limits: QueryLimits) -> Iterator[duckdb.DuckDBPyConnection]:
    """A cursor that cannot write, interrupted when its time is over."""
    cursor = database.cursor()
    # A cursor of its own: an interrupt that comes late hits nobody else.
    timer = threading.Timer(limits.seconds, cursor.interrupt)
    timer.daemon = True
    try:
        with _errors(limits):
            # What parses as a SELECT may still hold a DELETE (WITH x AS (DELETE ...)); the transaction refuses it.
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            timer.start()
            with _DATA_CAP.lowered(2 * database.limits.memory_bytes):
                yield cursor
    finally:
        timer.cancel()
        cursor.close()


@contextmanager
def _errors(limits: QueryLimits) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException:
        raise QueryError(f"the query took longer than {limits.seconds:g} s; ask for less, or raise the limit") from None
    except (duckdb.OutOfMemoryException, MemoryError):
        raise QueryError("the query needs more memory than the store may take; ask for less, or raise memory_limit") from None
    except duckdb.Error as error:
        raise QueryError(str(error).strip()) from None


def _object(name: str, value: Any) -> str:
    return msgspec.json.encode({name: str(value)}).decode()


class _DataCap:
    """The soft RLIMIT_DATA of this process, lowered while at least one query runs."""

    _SLACK = 64 * 2**20
    """Left to the other threads where freed memory that is still mapped already exceeds the cap."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, 0

    @contextmanager
    def lowered(self, allowance_bytes: int) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before, hard = resource.getrlimit(resource.RLIMIT_DATA)
                _, resident, _, _, _, data, _ = (int(n) * resource.getpagesize() for n in Path("/proc/self/statm").read_bytes().split())
                cap = max(resident + allowance_bytes, data + self._SLACK)
                if self._before == resource.RLIM_INFINITY or cap < self._before:
                    resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    resource.setrlimit(resource.RLIMIT_DATA, (self._before, resource.getrlimit(resource.RLIMIT_DATA)[1]))


_DATA_CAP = _DataCap()
