"""The store keeps what it acknowledged, once, and no longer than it should."""

import json
import math
import os
import signal as signals
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from support.otlp import NANO, log_batch, made, metric_request, set_attributes, span_batch

from lockgate.batch import Batch, Signal, merge
from lockgate.store.database import Database, Limits
from lockgate.wire.protobuf import delimited


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "store", Limits(memory_bytes=128 << 20))
    yield database
    database.close()


def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    return database.cursor().execute(sql).fetchall()


def test_a_log_record_is_stored_with_its_resource_promoted(database: Database) -> None:
    resource = {"k8s.namespace.name": "shop", "k8s.pod.name": "cart-1", "k8s.container.name": "app", "service.name": "cart", "n": 3}
    (outcome,) = database.store([log_batch(("paid", {"stream": "stdout", "list": [1, True, 2.5, {"a": b"x"}]}), resource=resource)])
    assert outcome.stored == 1
    (row,) = rows(database, "SELECT epoch_ns(time), namespace, pod, container, service, node, body, attributes, resource FROM logs")
    assert row[:7] == (NANO, "shop", "cart-1", "app", "cart", None, "paid")
    assert json.loads(row[7]) == {"stream": "stdout", "list": [1, True, 2.5, {"a": "eA=="}]}
    assert json.loads(row[8]) == resource


def test_sumo_logic_names_are_promoted_as_well(database: Database) -> None:
    database.store([log_batch("x", resource={"namespace": "shop", "pod": "p", "container": "c", "_sourceCategory": "kubernetes/shop"})])
    assert rows(database, "SELECT namespace, pod, container, source_category FROM logs") == [("shop", "p", "c", "kubernetes/shop")]


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        pytest.param("", "", id="empty-text"),
        pytest.param("nul \x00 and \u2028 and 🦆", "nul \x00 and \u2028 and 🦆", id="odd-text"),
        pytest.param({"a": [1, {}]}, '{"a":[1,{}]}', id="map"),
        pytest.param(b"\xff", "/w==", id="bytes"),
        pytest.param(math.inf, "Infinity", id="infinity"),
        pytest.param(None, None, id="no-body"),
    ],
)
def test_every_kind_of_body_is_stored(database: Database, body: Any, stored: str | None) -> None:
    database.store([log_batch(body)])
    assert rows(database, "SELECT body FROM logs") == [(stored,)]


def test_all_columns_of_a_log_record_are_stored_in_order_whatever_form_its_request_has(database: Database) -> None:
    def record(body: str, **odd: Any) -> bytes:
        made = LogRecord(time_unix_nano=NANO, severity_number=9, trace_id=b"t" * 16, span_id=b"s" * 8, event_name="e")  # type: ignore[arg-type]
        made.body.string_value = body
        set_attributes(made.attributes, {"n": 7} | odd)
        return delimited(2, made.SerializeToString())

    scope = delimited(1, delimited(1, b"lib"))
    plain = delimited(1, delimited(2, scope + record("1") + record("2", odd=0.5) + record("3")))
    apart = delimited(1, delimited(2, scope + record("4") + delimited(3, b"schema") + record("5")) + delimited(1, b""))
    database.store([Batch(Signal.LOGS, plain, 3, "plain"), Batch(Signal.LOGS, apart, 2, "apart"), log_batch("bare", id="bare")])
    sql = "SELECT body, attributes, severity, severity_number, trace_id, span_id, event_name, scope, epoch_ns(time) FROM logs"
    rest = ("INFO", 9, "74" * 16, "73" * 8, "e", "lib", NANO)
    found = rows(database, sql)
    assert found[:5] == [(str(n), '{"n":7,"odd":0.5}' if n == 2 else '{"n":7}', *rest) for n in range(1, 6)]
    assert found[5] == ("bare", None, None, None, None, None, None, None, NANO)


def test_times_beyond_64_bits_signed_and_absent_times_are_stored(database: Database) -> None:
    database.store([log_batch("late", time_unix_nano=2**64 - 1), log_batch("none", time_unix_nano=0)])
    assert rows(database, "SELECT body, time_unix_nano FROM logs ORDER BY ALL") == [("late", 2**63 - 1), ("none", 0)]


def test_every_kind_of_metric_point_is_stored(database: Database) -> None:
    request, scope = metric_request({"k8s.node.name": "n1"})
    gauge = scope.metrics.add(name="g", unit="By").gauge
    gauge.data_points.add(time_unix_nano=NANO, as_double=math.inf)
    gauge.data_points.add(time_unix_nano=NANO, as_double=math.nan, flags=1)
    point = scope.metrics.add(name="s").sum
    point.is_monotonic, point.aggregation_temporality = True, 2
    set_attributes(point.data_points.add(time_unix_nano=NANO, as_int=7).attributes, {"le": 0.5})
    scope.metrics.add(name="h").histogram.data_points.add(time_unix_nano=NANO, count=3, sum=4.5, explicit_bounds=[1], bucket_counts=[1, 2])
    scope.metrics.add(name="e").exponential_histogram.data_points.add(time_unix_nano=NANO, count=2, scale=1)
    summary = scope.metrics.add(name="q").summary.data_points.add(time_unix_nano=NANO, count=2, sum=3)
    summary.quantile_values.add(quantile=0.5, value=1.5)
    scope.metrics.add(name="nothing")
    (outcome,) = database.store([made(Signal.METRICS, request, 6)])
    assert outcome.stored == 6
    assert rows(
        database, "SELECT name, kind, value, count, sum, monotonic, temporality, detail->>'counts' FROM metrics ORDER BY name, value"
    ) == [
        ("e", "exponential_histogram", None, 2, None, None, None, None),
        ("g", "gauge", math.inf, None, None, None, None, None),
        ("g", "gauge", None, None, None, None, None, None),
        ("h", "histogram", None, 3, 4.5, None, None, "[1,2]"),
        ("q", "summary", None, 2, 3.0, None, None, None),
        ("s", "sum", 7.0, None, None, True, "cumulative", None),
    ]
    assert rows(database, "SELECT DISTINCT node FROM metrics") == [("n1",)]


def test_a_span_is_stored_with_duration_status_and_events(database: Database) -> None:
    database.store([span_batch("GET /", resource={"service.name": "web"})])
    found = rows(database, "SELECT name, service, duration_nano, status, kind, trace_id, span_id, events->0->>'name' FROM traces")
    assert found == [("GET /", "web", 5_000_000, "error", "server", "0" * 32, "0" * 16, "retry")]


def test_an_equal_id_is_stored_once_in_one_transaction_and_across_a_restart(database: Database) -> None:
    batch = log_batch("once", id="a")
    first, second = database.store([batch, batch])
    assert (first.stored, second.stored, second.repeated) == (1, 0, True)
    database.close()
    again = Database(database.path)
    assert again.store([log_batch("once, with another label", id="a")])[0].repeated
    assert rows(again, "SELECT body FROM logs") == [("once",)]
    again.close()


def test_the_new_parts_of_a_merged_batch_are_stored_and_the_known_ones_skipped(database: Database) -> None:
    one, two, three = (log_batch(name, id=name) for name in ("one", "two", "three"))
    database.store([two])
    (outcome,) = database.store([merge([one, two, three])])
    assert (outcome.stored, outcome.repeated) == (2, False)
    assert rows(database, "SELECT body FROM logs ORDER BY body") == [("one",), ("three",), ("two",)]


def test_a_batch_that_is_no_otlp_is_refused_alone(database: Database) -> None:
    good, bad, other = database.store([log_batch("good"), Batch(Signal.LOGS, b"\x0a\x05no", 1, "bad"), span_batch("s")])
    assert (good.stored, other.stored) == (1, 1)
    assert "not a logs export request" in bad.refused


def test_arrivals_rise_strictly_from_commit_to_commit(database: Database) -> None:
    for number in range(5):
        database.store([log_batch(str(number))])
    stamps = [row[0] for row in rows(database, "SELECT epoch_us(received) FROM logs ORDER BY body")]
    assert stamps == sorted(set(stamps))
    assert database.last_received == stamps[-1]


def test_expiry_by_age_deletes_rows_resources_and_old_ids(tmp_path: Path) -> None:
    database = Database(tmp_path, Limits(ids_seconds=0))
    database.store([log_batch("old", resource={"pod": "old"}), span_batch("old")])
    assert database.expire(3600, None) == 0
    time.sleep(0.11)  # age is measured by the clock of the database's rows
    assert database.expire(0.1, None) == 2
    assert rows(database, "SELECT (SELECT count(*) FROM resources), (SELECT count(*) FROM batches)") == [(0, 0)]
    # The resource is forgotten in memory too: its next row brings it back.
    database.store([log_batch("new", resource={"pod": "old"})])
    assert rows(database, "SELECT body, pod FROM logs") == [("new", "old")]
    database.close()


def test_expiry_by_size_deletes_the_oldest_and_frees_blocks(tmp_path: Path) -> None:
    database = Database(tmp_path)
    for number in range(8):
        database.store([log_batch(*(os.urandom(500).hex() for _ in range(2000)), id=str(number), resource={"pod": str(number)})])
    database.expire(None, 1 << 40)
    before = database.used_bytes()
    limit = before // 2
    assert database.expire(None, limit) > 0
    assert database.used_bytes() <= limit * 1.1
    kept = [row[0] for row in rows(database, "SELECT DISTINCT pod FROM logs ORDER BY pod")]
    assert kept and kept == [str(number) for number in range(8 - len(kept), 8)], "the newest are kept"
    database.close()


_WRITER = """
import sys
from pathlib import Path
from support.otlp import log_batch
from lockgate.store.database import Database
database = Database(Path(sys.argv[1]))
for number in range(100000):
    database.store([log_batch(*(f"{number}/{row}" for row in range(50)), id=str(number))])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    acknowledged = -1
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged >= 40:
                writer.send_signal(signals.SIGKILL)
                break
        rest = writer.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
    database = Database(tmp_path)
    counts = rows(database, "SELECT id, count(*) FROM logs JOIN batches ON split_part(body, '/', 1) = id GROUP BY id")
    assert {int(id) for id, _ in counts} >= set(range(acknowledged + 1))
    assert {count for _, count in counts} == {50}, "a batch is there as a whole or not at all"
    assert database.store([log_batch("again", id=str(acknowledged))])[0].repeated
    database.close()
