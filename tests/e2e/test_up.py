"""`lockgate up`: three signals from a sample cluster, enriched, in a store that answers; and nothing left running."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.process import lockgate, wait_until

from lockgate.presets.up import Up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    state = tmp_path_factory.mktemp("up") / "state"
    command = [sys.executable, "-m", "lockgate.cli.main", "up", "--state", str(state), "--lines-per-second", "100"]
    with open(state.parent / "out", "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        yield state, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def ask(state: Path, sql: str) -> list[dict[str, Any]]:
    result = lockgate("query", "--state", str(state), "--format", "json", sql)
    return [json.loads(line) for line in result.stdout.splitlines()] if result.returncode == 0 else []


def test_within_fifteen_seconds_logs_are_in_the_store_with_live_rates(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, process = up
    began = time.monotonic()
    wait_until(lambda: ask(state, "SELECT 1 FROM logs LIMIT 1") or process.poll() is not None, 40, "logs in the store")
    wait_until(lambda: "logs collector    ready" in (state.parent / "out").read_text(), 20, "the table says ready")
    assert time.monotonic() - began < 15
    assert process.poll() is None, (state.parent / "out").read_text()


def test_logs_carry_what_kubernetes_knows_of_their_pod(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, _ = up
    sql = "SELECT DISTINCT namespace, pod, container, resource FROM logs WHERE pod LIKE 'frontend-%'"
    wait_until(lambda: len(ask(state, sql)) == 2, 30, "both frontends")
    for row in ask(state, sql):
        resource = json.loads(row["resource"]) if isinstance(row["resource"], str) else row["resource"]
        assert resource["k8s.deployment.name"] == "frontend"
        assert resource["k8s.node.name"] == "sample-node"
        assert resource["k8s.pod.label.team"] == "storefront"
        assert resource["_sourceCategory"] == "kubernetes/shop/frontend"
        assert resource["_sourceName"] == f"shop.{row['pod']}.frontend"


def test_every_line_of_a_pod_arrives_once_over_rotations(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    """The sample's database numbers its statements, so a gap or a repetition shows."""
    state, _ = up
    sql = r"""
        SELECT count(*) AS lines, count(DISTINCT n) AS numbers FROM (
            SELECT regexp_extract(body, 'SELECT (\d+)$', 1)::BIGINT AS n
            FROM logs WHERE container = 'postgres' AND body LIKE '%statement: SELECT %')
        WHERE n <= 500
    """
    # Several batches are under way at once, so a later one may be stored first.
    wait_until(lambda: (rows := ask(state, sql)) and rows[0]["numbers"] == 500, 30, "500 statements without a gap")
    assert ask(state, sql) == [{"lines": 500, "numbers": 500}]


def test_partial_lines_are_whole_again(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, _ = up
    sql = "SELECT length(body) AS size FROM logs WHERE body LIKE '%catalogue dump%'"
    wait_until(lambda: ask(state, sql), 30, "a line of 40 kB")
    assert all(row["size"] > 40_000 for row in ask(state, sql))


def test_where_finds_every_role_and_every_line_of_a_pod(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, _ = up

    def where() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(lockgate("where", "data/postgres-0", "--state", str(state), "--output", "json").stdout)
        return answer

    assert set(where()) == {"events", "logs_collector", "logs_metadata", "metrics_metadata", "traces"}
    wait_until(lambda: where()["logs_collector"]["containers"], 30, "the pod's log")
    (container,) = where()["logs_collector"]["containers"]
    for counts in (file["queues"]["logs"] for file in container["files"]):
        parts = ("records", "joined", "filtered", "under_way", "waiting_to_be_joined")
        assert counts["read"] == sum(counts[part] for part in parts)
    totals = lockgate("where", "--state", str(state))
    assert totals.returncode == 0, totals.stderr
    assert "== logs_collector\nreceiver filelog: " in totals.stdout and "== traces" in totals.stdout


def test_the_clusters_events_arrive_whole(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, _ = up
    sql = "SELECT body, attributes FROM logs WHERE source_category = 'kubernetes/events' AND body = 'Started container postgres'"
    wait_until(lambda: ask(state, sql), 30, "the event of a pod's start")
    (row,) = ask(state, sql)
    attributes = json.loads(row["attributes"]) if isinstance(row["attributes"], str) else row["attributes"]
    assert attributes["type"] == "ADDED"
    assert attributes["object"]["involvedObject"]["name"] == "postgres-0"


@pytest.mark.parametrize("table", ["metrics", "traces"])
def test_metrics_and_traces_take_the_same_road(up: tuple[Path, "subprocess.Popen[bytes]"], table: str) -> None:
    state, _ = up
    wait_until(lambda: ask(state, f"SELECT 1 FROM {table} WHERE service = 'frontend' LIMIT 1"), 30, table)
    (row,) = ask(state, f"SELECT resource FROM {table} WHERE service = 'frontend' LIMIT 1")
    resource = json.loads(row["resource"]) if isinstance(row["resource"], str) else row["resource"]
    assert resource["k8s.deployment.name"] == "frontend"


def test_logs_command_shows_lines_and_stops_with_its_reader(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, _ = up
    shown = lockgate("logs", "--state", str(state), "--namespace", "kube-system", "--limit", "3").stdout.splitlines()
    assert len(shown) == 3
    assert all("kube-system/coredns-" in line for line in shown)
    command = [sys.executable, "-m", "lockgate.cli.main", "logs", "--state", str(state), "--namespace", "data", "--follow", "--limit", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        assert "postgres" in following.stdout.readline()
        following.terminate()


def test_a_second_one_on_the_same_directory_ends_and_leaves_the_first_alone(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, process = up
    second = lockgate("up", "--state", str(state))
    assert (second.returncode, second.stderr) == (
        2,
        f"lockgate: another lockgate up uses {state}; stop it, or give this one its own with --state\n",
    )
    assert process.poll() is None
    before = ask(state, "SELECT count(*) AS n FROM logs")[0]["n"]
    wait_until(lambda: ask(state, "SELECT count(*) AS n FROM logs")[0]["n"] > before, 20, "the first one goes on")


def test_interrupting_leaves_nothing_running(up: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    state, process = up
    children = processes_mentioning(str(state))
    assert len(children) > 6, "the roles and the pods were not found: this test would prove nothing"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, (state.parent / "out").read_text()
    assert processes_mentioning(str(state)) == []


async def test_a_role_whose_sandbox_needs_a_restart_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e {tmp_path}/ran ] && exec {sys.executable} "$@"\n: > {tmp_path}/ran; echo the first; exit 75\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    shown = io.StringIO()
    up = Up(tmp_path / "state", lines_per_second=1, console=Console(file=shown, width=200))
    up.roles = [role for role in up.roles if role.preset == "backend"]
    running = asyncio.create_task(up.run())
    async with asyncio.timeout(60):
        while not up.roles[0].ready and not running.done():
            await asyncio.sleep(0.05)
    up.stopping.set()
    assert await running == 0, shown.getvalue()
    assert up.roles[0].ready and "backend is started again: its sandbox kept a place closed that it needs" in shown.getvalue()
    log = (tmp_path / "state" / "backend.log").read_text()
    assert log.startswith("the first\n") and "everything has started" in log


def processes_mentioning(text: str) -> list[int]:
    """Processes whose environment or command line holds this text, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
