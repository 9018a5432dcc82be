"""`lockgate up`: every role as a process of its own on this machine, the embedded backend, and a sample cluster to collect from.

Each role is started as it would run in a pod: `lockgate run --config PRESET`, told by its environment where its peers are. This module
only chooses ports, starts, watches and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lockgate.lockdown.sandbox import RESTART_STATUS

DEFAULT_STATE = Path(".lockgate")
"""Where everything is written, and where `lockgate logs` and `lockgate query` look first."""
_PR_SET_PDEATHSIG = 1
READY_SECONDS = 30
"""How long the roles may take to become ready before `up` gives up; on two cores they take some three."""


@dataclass(slots=True)
class Role:
    """One process: a preset and where it listens."""

    name: str
    preset: str
    environment: dict[str, str]
    health_port: int
    metrics_port: int
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    blocked: str = ""
    totals: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    rss: float = 0.0
    looked: float = 0.0


class Up:
    """The roles of one `lockgate up`. `state` holds everything that it writes: logs of the roles, pods' logs, checkpoints, the database."""

    def __init__(
        self, state: Path, *, lines_per_second: float, context: str = "", kubeconfig: Path | None = None, console: Console | None = None
    ) -> None:
        self.state, self.context, self.kubeconfig = state.absolute(), context, kubeconfig
        self.console = console or Console()
        self._taken: set[int] = set()
        self.query_port = self._port(3001)
        self.roles = self._roles(lines_per_second)
        self.stopping = asyncio.Event()

    def _port(self, preferred: int) -> int:
        for port in (preferred, 0):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                found: int = probe.getsockname()[1]
                if found not in self._taken:
                    self._taken.add(found)
                    return found
        return self._port(0)

    def _roles(self, lines_per_second: float) -> list[Role]:
        backend, api, logs, metrics, traces = (self._port(port) for port in (3000, 16443, 4318, 4328, 4338))
        grpc = self._port(4317)
        log_root = Path("/var/log/pods") if self.context else self.state / "pods"
        kube = (
            {"LOCKGATE_KUBE_AUTH": "kubeConfig", "LOCKGATE_KUBE_CONTEXT": self.context}
            if self.context
            else {"LOCKGATE_KUBE_AUTH": "none", "LOCKGATE_KUBE_API": f"http://127.0.0.1:{api}"}
        )
        if self.kubeconfig is not None:
            kube["LOCKGATE_KUBECONFIG"] = str(self.kubeconfig.absolute())
        deliver = {**kube, "LOCKGATE_BACKEND_URL": f"http://127.0.0.1:{backend}/receiver"}
        roles = [
            self._role(
                "backend",
                "backend",
                {
                    "LOCKGATE_STATE": str(self.state),  # where `lockgate logs` and `lockgate query` look first
                    "LOCKGATE_BACKEND_PORT": str(backend),
                    "LOCKGATE_QUERY_PORT": str(self.query_port),
                    "LOCKGATE_OTLP_HTTP_PORT": str(self._port(0)),
                    "LOCKGATE_OTLP_GRPC_PORT": str(self._port(0)),
                },
            ),
            self._role("logs metadata", "logs_metadata", {**deliver, "LOCKGATE_OTLP_HTTP_PORT": str(logs)}),
            self._role("metrics metadata", "metrics_metadata", {**deliver, "LOCKGATE_OTLP_HTTP_PORT": str(metrics)}),
            self._role("traces", "traces", {**deliver, "LOCKGATE_OTLP_HTTP_PORT": str(traces), "LOCKGATE_OTLP_GRPC_PORT": str(grpc)}),
            self._role("events", "events", deliver),
            self._role(
                "logs collector",
                "logs_collector",
                {"LOCKGATE_LOG_ROOT": str(log_root), "LOCKGATE_LOGS_METADATA_URL": f"http://127.0.0.1:{logs}"},
            ),
        ]
        if not self.context:
            sample = {
                "LOCKGATE_LOG_ROOT": str(log_root),
                "LOCKGATE_SAMPLE_API_PORT": str(api),
                "LOCKGATE_SAMPLE_LINES_PER_SECOND": f"{lines_per_second:g}",
                "LOCKGATE_METRICS_URL": f"http://127.0.0.1:{metrics}/v1/metrics",
                "LOCKGATE_TRACES_URL": f"http://127.0.0.1:{traces}/v1/traces",
            }
            roles.insert(0, self._role("sample cluster", "sample", sample))
        return roles

    def _role(self, name: str, preset: str, environment: dict[str, str]) -> Role:
        health, metrics = self._port(0), self._port(0)
        own = {
            "LOCKGATE_HOST": "127.0.0.1",
            "LOCKGATE_HEALTH_PORT": str(health),
            "LOCKGATE_METRICS_PORT": str(metrics),
            "LOCKGATE_LEDGER_PORT": str(self._port(0)),
            "LOCKGATE_STATE": str(self.state / preset),
        }
        return Role(name, preset, own | environment, health, metrics)

    async def run(self) -> int:
        """Starts everything, shows it until SIGINT or SIGTERM, stops everything; the exit status. Raises LookupError where another does."""
        self.state.mkdir(parents=True, exist_ok=True)
        with self._alone():
            return await self._run()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the directory: a second `up` would take away the pods and the answers of the first before it found that it cannot run."""
        with open(self.state / "up.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LookupError(f"another lockgate up uses {self.state}; stop it, or give this one its own with --state") from None
            yield

    async def _run(self) -> int:
        if not self.context:
            # Yesterday's sample pods are gone; their logs would only be read again.
            shutil.rmtree(self.state / "pods", ignore_errors=True)
            # Before the roles are: what is not there at their start, their sandbox keeps closed.
            (self.state / "pods").mkdir()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stopping.set)
        try:
            for role in self.roles:
                await self._start(role)
            await self._watch()
        finally:
            await self._stop()
        return 1 if any(role.process and role.process.returncode not in (0, None, RESTART_STATUS) for role in self.roles) else 0

    async def _start(self, role: Role) -> None:
        log = self.state / f"{role.preset}.log"
        with open(log, "wb" if role.process is None else "ab") as output:  # noqa: ASYNC230  # once, at start
            role.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "lockgate.cli.main",
                "run",
                "--config",
                role.preset,
                env={**os.environ, **role.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the roles in order
                preexec_fn=_die_with_parent,
            )

    async def _stop(self) -> None:
        for role in reversed(self.roles) if self.context else [self.roles[0], *reversed(self.roles[1:])]:
            if role.process is None or role.process.returncode is not None:
                continue
            role.process.terminate()
            try:
                async with asyncio.timeout(25):
                    await role.process.wait()
            except TimeoutError:
                role.process.kill()
                await role.process.wait()
        self.console.print("stopped; what was collected stays in", str(self.state), style="dim", soft_wrap=True)

    async def _watch(self) -> None:
        started, announced = time.monotonic(), False
        live = Live(console=self.console, auto_refresh=False, transient=False) if self.console.is_terminal else None
        last_line = 0.0
        with live or contextlib.nullcontext():
            while not self.stopping.is_set():
                await asyncio.gather(*(asyncio.to_thread(_look, role) for role in self.roles))
                for role in self.roles:
                    if role.process and role.process.returncode == RESTART_STATUS:
                        self.console.print(f"{role.name} is started again: its sandbox kept a place closed that it needs", style="yellow")
                        role.looked = 0.0  # its counters begin again
                        await self._start(role)
                    elif role.process and role.process.returncode is not None:
                        log = self.state / f"{role.preset}.log"
                        self.console.print(f"{role.name} ended with status {role.process.returncode}; the end of {log}:", style="bold red")
                        self.console.print(_tail(log), soft_wrap=True, markup=False, highlight=False)
                        return
                ready = all(role.ready for role in self.roles)
                if not ready and not announced and time.monotonic() - started > READY_SECONDS:
                    waiting = "; ".join(f"{role.name}: {role.blocked or 'does not answer'}" for role in self.roles if not role.ready)
                    self.console.print(
                        f"not ready after {READY_SECONDS} s: {waiting}. Logs are in {self.state}", style="yellow", soft_wrap=True
                    )
                announced = announced or ready
                if live:
                    live.update(self._picture(), refresh=True)
                elif time.monotonic() - last_line >= 5 or (ready and not last_line):
                    last_line = time.monotonic()
                    self.console.print(self._picture())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self.stopping.wait()

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("role", "state"):
            table.add_column(column)
        for column in ("in/s", "out/s", "total out", "CPU %", "RSS MB"):
            table.add_column(column, justify="right")
        for role in self.roles:
            state = Text("ready", "green") if role.ready else Text(role.blocked or "starting", "yellow")
            cells = [f"{role.rates.get(key, 0):,.0f}" for key in ("in", "out")]
            table.add_row(role.name, state, *cells, f"{role.totals.get('out', 0):,.0f}", f"{role.cpu:.1f}", f"{role.rss:.0f}")
        lockgate = "lockgate" if shutil.which("lockgate") else str(Path(sys.executable).parent / "lockgate")
        where = "" if self.state == DEFAULT_STATE.absolute() else f" --state {self.state}"
        hints = Text.assemble(
            ("\nask it     ", "dim"),
            f"{lockgate} logs{where} --namespace shop --follow\n",
            f'           {lockgate} query{where} "SELECT namespace, pod, count(*) FROM logs GROUP BY ALL"\n',
            ("Ctrl-C stops everything", "dim"),
            no_wrap=True,
            overflow="ignore",
        )
        return Group(table, hints)


def _die_with_parent() -> None:
    """The kernel ends a role when `up` itself is killed: Ctrl-C or not, nothing is left running."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _look(role: Role) -> None:
    """One look at a role's health and metrics."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{role.health_port}/ready", timeout=2) as answer:
            role.ready, role.blocked = answer.status == 200, ""
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(ValueError, KeyError, IndexError):
            role.blocked = json.loads(error.read())["blocked"][0]["reason"]
        role.ready = False
    except OSError:
        role.ready = False
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{role.metrics_port}/metrics", timeout=2) as answer:
        totals: dict[str, float] = {}
        for name, value in _samples(answer.read().decode()):
            if key := _STAGE.get(name):
                totals[key] = totals.get(key, 0) + value
        now = time.monotonic()
        if role.looked:
            seconds = now - role.looked
            role.rates = {key: (value - role.totals.get(key, 0)) / seconds for key, value in totals.items()}
            role.cpu = 100 * role.rates.get("cpu", 0)
        role.totals, role.looked, role.rss = totals, now, totals.get("rss", 0) / 1e6


_STAGE = {
    **{f"otelcol_receiver_accepted_{items}": "in" for items in ("log_records", "metric_points", "spans")},
    **{f"otelcol_exporter_sent_{items}": "out" for items in ("log_records", "metric_points", "spans")},
    "otelcol_process_cpu_seconds": "cpu",
    "otelcol_process_memory_rss": "rss",
}


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            yield series.partition("{")[0], float(value)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def up(state: Path, *, lines_per_second: float, context: str = "", kubeconfig: Path | None = None) -> int:
    """Runs the roles until a signal; the exit status."""
    return asyncio.run(Up(state, lines_per_second=lines_per_second, context=context, kubeconfig=kubeconfig).run())
