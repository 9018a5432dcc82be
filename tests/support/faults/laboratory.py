"""All logs roles by their presets, as processes: agent -> balancer -> two metadata replicas -> balancer -> the embedded backend."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lockgate.cli.asking import Refused, asking
from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import NAMESPACES, PODS
from lockgate.net.access import NotRunning
from lockgate.sample.kubernetes_store import ObjectStore
from support.faults import Figures
from support.faults.accounts import settled_faults
from support.faults.balancer import Balancer, Chances
from support.faults.kubelet import PodLog, Pods, whole
from support.kubernetes import pod, put, sample_in_thread
from support.process import Role, free_port, wait_until

QUICK = {"retry_on_failure": {"initial_interval": "20ms", "max_interval": "200ms"}}
"""Waits fit for a play of seconds."""


class Laboratory:
    """`with Laboratory(directory, dice) as lab:` runs everything; `lab.roles` are agent, metadata-0, metadata-1, backend.

    Leaving stops what still runs, by its process id, and leaves the directory as it is.
    """

    def __init__(
        self,
        directory: Path,
        dice: random.Random,
        *,
        replicas: int = 2,
        pods: int = 3,
        lines_per_second: float = 500,
        rotate_bytes: int = 0,
        keep_files: int = 5,
        writes_parts: bool = True,
        noise: int = 0,
        chances: Chances | None = None,
        agent: dict[str, Any] | None = None,
        filelog: dict[str, Any] | None = None,
        service: dict[str, Any] | None = None,
        agent_state: Path | None = None,
        environment: Callable[[str], Mapping[str, str]] = lambda name: {},
    ) -> None:
        self.directory, self.dice, self._noise = directory, dice, noise
        self._stack = contextlib.ExitStack()
        self._store = ObjectStore(SystemClock())
        put(self._store, NAMESPACES, {"metadata": {"name": "shop"}})
        logs = []
        for number in range(pods):
            made = put(self._store, PODS, pod(f"web-{number}", "shop", ip=f"10.1.0.{number + 1}", labels={"team": "storefront"}))
            folder = directory / "pods" / f"shop_web-{number}_{made['metadata']['uid']}" / "main"
            each = random.Random(dice.random())
            rotation = {"rotate_bytes": rotate_bytes, "keep": keep_files}
            logs.append(PodLog(folder, f"web-{number}", each, **rotation, writes_parts=writes_parts, noise=noise))
        self.pods = Pods(logs, lines_per_second)
        ports = [free_port() for _ in range(replicas)]
        backend_port = free_port()
        self.front = Balancer(ports, random.Random(dice.random()), chances)
        self.back = Balancer([backend_port], random.Random(dice.random()), chances)
        self._environment = environment
        """Of the role with this name, besides its own."""
        self._filelog = filelog or {}
        self._service = service or {}
        """Of every role."""
        self._agent, self._agent_state = agent or {}, agent_state or directory / "agent-state"
        self._ports, self._backend_port = ports, backend_port
        self.roles: dict[str, Role] = {}
        self.crashed: list[str] = []
        """Roles that ended without having been told to."""

    def kill(self, name: str) -> None:
        """kill -9 now, whatever it is doing, and at once another process in its place."""
        role = self.roles[name]
        if (status := role.process.poll()) is not None:
            self.crashed.append(f"{name} ended by itself with status {status}")
        role.kill()
        role.spawn()

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """Rows that the backend answers; raises NotRunning or Refused."""
        question = json.dumps({"sql": sql, "format": "ndjson"}).encode()
        with asking(self.directory / "backend", "POST", "/query", body=question) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def rows(self) -> int:
        """Log records in the backend."""
        return int(self.ask("SELECT count(*) AS rows FROM log_records")[0]["rows"])

    def books(self) -> Figures:
        """What was written and what the backend has of it: lost, repeated, altered and unknown lines, exactly."""
        books = Figures(written=self.pods.lines, stored=0, lost=0, repeated=0, altered=0, never_written=0, without_metadata=0)
        sql = f"""
            SELECT split_part(body, ' ', 1) AS pod, count(*) AS rows, count(DISTINCT number) AS distinct_rows, max(number) AS newest,
                count(*) FILTER (WHERE NOT ({whole(self._noise)})) AS altered,
                count(*) FILTER (WHERE json_extract_string(resource, '$."k8s.pod.label.team"') IS DISTINCT FROM 'storefront') AS bare
            FROM (SELECT body, resource, try_cast(split_part(body, ' ', 2) AS BIGINT) AS number FROM logs) GROUP BY 1
        """
        rows = {row["pod"]: row for row in self.ask(sql)}
        for log in self.pods.logs:
            row = rows.pop(log.name, None)
            books["stored"] += row["rows"] if row else 0
            books["lost"] += log.lines - (row["distinct_rows"] if row else 0)
            books["repeated"] += row["rows"] - row["distinct_rows"] if row else 0
            books["altered"] += row["altered"] if row else 0
            books["never_written"] += row is not None and row["newest"] >= log.lines
            books["without_metadata"] += row["bare"] if row else 0
        books["never_written"] += sum(row["rows"] for row in rows.values())
        return books

    def missing(self, log: PodLog) -> list[int]:
        """The numbers of this pod's lines that the backend does not have."""
        have = f"SELECT split_part(body, ' ', 2)::BIGINT FROM logs WHERE pod = '{log.name}'"
        sql = f"SELECT list(n ORDER BY n) AS missing FROM range({log.lines}) AS numbers(n) WHERE n NOT IN ({have})"
        return self.ask(sql)[0]["missing"] or []  # in one row: an answer has at most 10,000

    def drain(self, seconds: float, *, allowed_losses: int = 0) -> dict[str, Any]:
        """Ends all faults, waits until everything has arrived and all queues are empty; the books, taken after that."""
        self.pods.stop()
        self.front.outage = self.back.outage = False
        self.front.chances = self.back.chances = Chances()
        for name, role in self.roles.items():
            if role.process.poll() is not None:
                self.crashed.append(f"{name} ended by itself with status {role.process.returncode}")
                role.spawn()
        # Without an assertion here: what is lost is what the books are for.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self._lost() <= allowed_losses, seconds, "all lines in the backend")
        senders = [role for name, role in self.roles.items() if name != "backend"]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: all(_waiting(role) == 0 for role in senders), 20, "empty queues")
        books = self.books()
        books |= {"crashes": len(self.crashed), "own_faults": sum(_own_faults(role) for role in self.roles.values())}
        return books | {"ledger_faults": len(self.ledger_faults(lost=bool(books["lost"])))}

    def ledger_faults(self, *, lost: bool = False) -> list[str]:
        """What is wrong with the ledgers of the agent (each pod by what it wrote) and of each metadata replica (what went by on its wire).

        `lost`: whether lines are missing in the backend; then they must be those that the agent's ledger calls lost.
        """
        known = {}
        for log in self.pods.logs:
            gone = self.missing(log) if lost else []
            there = log.lines - len(gone)
            known[log.name] = {
                "read": there + log.parts,
                "records": there,
                "joined": log.parts,
                "delivered": there,
                "lost_bytes": sum(len(log.line_bytes(number)) for number in gone),
            }
        faults = settled_faults(self.roles["agent"], known)
        for name, port in zip((name for name in self.roles if name.startswith("metadata-")), self._ports, strict=True):
            # What a replica got and did not answer, because it was killed, it may have or not.
            most = sum(self.front.offered[port].values())
            faults += settled_faults(self.roles[name], {}, range(sum(self.front.given[port].values()), most + 1))
        return faults

    def _lost(self) -> float:
        try:
            if (short := self.pods.lines - self.rows()) > 0:
                return short  # at least; and cheap to ask, while the backend has to work
            return float(self.books()["lost"])
        except (NotRunning, Refused, OSError):
            return float("inf")

    def _make_roles(self, kube_url: str) -> None:
        kube = {"LOCKGATE_KUBE_AUTH": "none", "LOCKGATE_KUBE_API": kube_url, "LOCKGATE_HOST": "127.0.0.1"}
        self.roles["backend"] = Role(
            self.directory / "backend",
            json.dumps({"service": self._service}),
            environment={
                **self._environment("backend"),
                "LOCKGATE_STATE": str(self.directory / "backend"),
                "LOCKGATE_BACKEND_PORT": str(self._backend_port),
                "LOCKGATE_QUERY_PORT": str(free_port()),
                "LOCKGATE_OTLP_HTTP_PORT": str(free_port()),
                "LOCKGATE_OTLP_GRPC_PORT": str(free_port()),
            },
            preset="backend",
            expect_ready=False,
        )
        for number, port in enumerate(self._ports):
            name = f"metadata-{number}"
            self.roles[name] = Role(
                self.directory / name,
                json.dumps({"exporters": {"sumologic": QUICK}, "service": self._service}),
                environment={**self._environment(name), **kube}
                | {"LOCKGATE_BACKEND_URL": f"{self.back.url}/receiver", "LOCKGATE_OTLP_HTTP_PORT": str(port)},
                preset="logs_metadata",
                expect_ready=False,
            )
        self.roles["agent"] = Role(
            self.directory / "agent",
            json.dumps({"exporters": {"otlphttp": QUICK | self._agent}, "receivers": {"filelog": self._filelog}, "service": self._service}),
            environment={
                **self._environment("agent"),
                "LOCKGATE_LOG_ROOT": str(self.directory / "pods"),
                "LOCKGATE_LOGS_METADATA_URL": self.front.url,
                "LOCKGATE_STATE": str(self._agent_state),
                "LOCKGATE_HOST": "127.0.0.1",
            },
            preset="logs_collector",
            expect_ready=False,
        )

    def __enter__(self) -> Self:
        with self._stack:
            kube_url = self._stack.enter_context(sample_in_thread(self._store))
            self._stack.enter_context(self.front)
            self._stack.enter_context(self.back)
            self._make_roles(kube_url)
            self._stack.callback(self._end_roles)
            for role in self.roles.values():
                role.start()
            self._stack.enter_context(self.pods)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def _end_roles(self) -> None:
        # Receivers' senders first, so that each can hand on what is under way.
        running = [role for role in reversed(self.roles.values()) if hasattr(role, "process") and role.process.poll() is None]
        for role in running:
            role.process.send_signal(signal.SIGTERM)
        wedged = []
        for role in running:
            try:
                role.process.wait(40)
            except subprocess.TimeoutExpired:
                role.kill()
                wedged.append(str(role.log))
        assert not wedged, f"did not stop within 40 s: {wedged}"


def _waiting(role: Role) -> float:
    try:
        return role.metrics().get("otelcol_exporter_queue_size", 0)
    except OSError:
        return -1


def memory_bytes(role: Role) -> int:
    """What the process holds in memory now (RSS)."""
    pages = Path(f"/proc/{role.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(role: Role) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{role.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_faults(role: Role) -> int:
    """Lines in which the role confesses a bug, or died of one."""
    text = role.log.read_text()
    return sum(text.count(sign) for sign in ("a fault of our own", "a fault of lockgate's own", "Traceback (most recent call last):\n"))
