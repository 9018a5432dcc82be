"""SQL that only reads; whatever else it tries is refused, and the store goes on."""

import json
from collections.abc import Iterator

import pytest
from support.otlp import log_batch

from lockgate.store import query
from lockgate.store.database import Database, Limits
from lockgate.store.query import LogFilter, QueryError, QueryLimits

LIMITS = QueryLimits(seconds=20, rows=100)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("store"), Limits(memory_bytes=128 << 20, spill_bytes=16 << 20))
    for pod in ("cart-1", "cart-2", "web-1"):
        database.store([log_batch(*(f"{pod} line {n}" for n in range(10)), resource={"namespace": "shop", "pod": pod, "container": "app"})])
    yield database
    database.close()


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        pytest.param("SELECT pod, count(*) AS n FROM logs GROUP BY ALL ORDER BY pod LIMIT 1", [{"pod": "cart-1", "n": 10}], id="group"),
        pytest.param("FROM logs SELECT count(*) AS n; -- done", [{"n": 30}], id="from-first-with-comment"),
        pytest.param("WITH a AS (SELECT 1 AS x) SELECT x, x FROM a", [{"x": 1, "x_1": 1}], id="with-equal-names"),
        pytest.param("SELECT 'inf'::DOUBLE > 1 AS y, NULL AS z", [{"y": True, "z": None}], id="null"),
        pytest.param("SELECT DISTINCT resource->>'namespace' AS ns FROM logs", [{"ns": "shop"}], id="json"),
        pytest.param("SELECT 1 AS x WHERE false", [], id="nothing"),
    ],
)
def test_a_select_is_answered(database: Database, sql: str, rows: list[dict[str, object]]) -> None:
    assert [json.loads(row) for row in query.run(database, sql, LIMITS).rows] == rows


def test_columns_are_named_even_without_rows(database: Database) -> None:
    assert query.run(database, "SELECT pod, body FROM logs WHERE false", LIMITS).columns == ["pod", "body"]


def test_explain_and_describe_are_answered(database: Database) -> None:
    assert "log_records" in query.run(database, "EXPLAIN SELECT * FROM logs", LIMITS).rows[0]
    assert any('"namespace"' in row for row in query.run(database, "DESCRIBE logs", LIMITS).rows)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_json('/etc/passwd')",
        "SELECT * FROM read_parquet('http://127.0.0.1:1/x')",
        "SELECT * FROM '/etc/passwd'",
        "FROM glob('/*')",
        "FROM sniff_csv('/etc/passwd')",
        "SELECT getenv('HOME')",
        "COPY logs TO '/tmp/lockgate-copy.csv'",
        "COPY (SELECT 1) TO '/tmp/lockgate-copy.csv'",
        "EXPORT DATABASE '/tmp/lockgate-export'",
        "ATTACH '/tmp/lockgate-attached.db'",
        "ATTACH ':memory:' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '100GB'",
        "SET GLOBAL enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "CALL enable_logging()",
        "SELECT * FROM enable_logging()",
        "DELETE FROM log_records",
        "DROP VIEW logs",
        "CREATE TABLE mine (i INT)",
        "CREATE TEMP TABLE mine AS SELECT 1",
        "CREATE MACRO m() AS 1",
        "CREATE SECRET s (TYPE s3)",
        "WITH gone AS (DELETE FROM log_records RETURNING *) SELECT * FROM gone",
        "FROM query('DELETE FROM log_records')",
        "EXPLAIN ANALYZE DELETE FROM log_records",
        "SELECT 1; SELECT 2",
        "SELECT 1) AS answer; DELETE FROM log_records; SELECT (1",
        "BEGIN",
        "CHECKPOINT",
        "VACUUM",
        "PREPARE p AS SELECT 1",
        "",
        "SELEKT 1",
        "SELECT * FROM nowhere",
        "SELECT \x00",
    ],
)
def test_what_does_more_than_read_the_store_is_refused(database: Database, sql: str) -> None:
    with pytest.raises(QueryError):
        query.run(database, sql, LIMITS)
    assert query.run(database, "SELECT count(*) AS n FROM logs", LIMITS).rows == ['{"n":30}']


def test_a_query_without_end_is_interrupted(database: Database) -> None:
    with pytest.raises(QueryError, match=r"longer than 0\.3 s"):
        # Small enough to be held in memory on either side, so that time is what runs out first.
        sql = "SELECT count(*) FROM range(100000) a, range(100000) b, range(1000) c WHERE hash(a.range + b.range * c.range) = 7"
        query.run(database, sql, QueryLimits(seconds=0.3))


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("SELECT list(range) FROM range(500000000)", id="aggregate"),
        pytest.param("SELECT length(repeat('a', 3000000000)) AS n", id="one-value"),
        pytest.param("SELECT a.range FROM range(100000000) a ORDER BY hash(a.range)", id="sort"),
        pytest.param("SELECT string_agg(repeat('x', 1000), '') FROM range(10000000)", id="long-text"),
    ],
)
def test_a_query_that_wants_too_much_memory_is_refused_and_the_store_goes_on(database: Database, sql: str) -> None:
    with pytest.raises(QueryError, match=r"memory|longer|spill|size"):
        query.run(database, sql, QueryLimits(seconds=10))
    assert database.store([log_batch("after " + sql, resource={"pod": "after"})])[0].stored == 1


def test_rows_and_bytes_are_cut_and_it_is_said(database: Database) -> None:
    cut = query.run(database, "SELECT * FROM range(1000)", QueryLimits(rows=7))
    assert (len(cut.rows), cut.truncated) == (7, "cut after 7 rows")
    cut = query.run(database, "SELECT repeat('x', 1000) AS x FROM range(1000)", QueryLimits(bytes=5000))
    assert (len(cut.rows), cut.truncated) == (4, "cut after 5000 bytes")
    assert query.run(database, "SELECT * FROM range(7)", QueryLimits(rows=7)).truncated == ""


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        pytest.param(LogFilter(namespace="shop"), 30, id="namespace"),
        pytest.param(LogFilter(namespace="sho"), 0, id="no-prefix-match"),
        pytest.param(LogFilter(pod="cart-*"), 20, id="glob"),
        pytest.param(LogFilter(pod="cart-?", container="app", grep="line [01]$"), 4, id="grep"),
        pytest.param(LogFilter(pod="x' OR '1'='1"), 0, id="no-injection"),
        pytest.param(LogFilter(namespace="shop", since_seconds=60), 0, id="since"),
    ],
)
def test_logs_are_chosen(database: Database, chosen: LogFilter, count: int) -> None:
    assert len(query.logs(database, chosen, LIMITS).rows) == count


def test_logs_are_the_newest_oldest_first(database: Database) -> None:
    rows = query.logs(database, LogFilter(namespace="shop"), QueryLimits(rows=3)).rows
    assert [json.loads(row)["body"] for row in rows] == ["web-1 line 7", "web-1 line 8", "web-1 line 9"]


def test_a_bad_expression_is_the_askers_fault(database: Database) -> None:
    with pytest.raises(QueryError):
        query.logs(database, LogFilter(grep="("), LIMITS)
