"""Processes under measurement: started as a user starts them, their CPU time and memory read from /proc."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
LOCKGATE = Path(sys.executable).parent / "lockgate"
PEERS = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers") / "bin"
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A measurement could not be made; says why."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> Any:
    """The JSON at this URL."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def wait_until(true: Callable[[], Any], seconds: float, what: str, *alive: Process) -> None:
    """Returns when `true()` is; raises Failed after so long, or when one of the processes that must live has ended."""
    deadline = time.monotonic() + seconds
    while not true():
        for process in alive:
            process.check()
        if time.monotonic() > deadline:
            logs = "\n".join(process.tail() for process in alive)
            raise Failed(f"not within {seconds:g} s: {what}\n{logs}")
        time.sleep(0.02)


class Process:
    """One process; `with` starts it and ends it."""

    def __init__(self, name: str, command: Sequence[object], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name, self.command, self.log, self.environment = name, [str(part) for part in command], log, environment or {}
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with open(self.log, "wb") as output:
            environment = {**os.environ, **self.environment}
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises Failed where it has ended with an error."""
        if self._process.poll():
            raise Failed(f"{self.name} ended with status {self._process.returncode}:\n{self.tail()}")

    def wait(self, seconds: float) -> None:
        """Until it has ended by itself."""
        if self._process.wait(seconds):
            self.check()

    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])

    def cpu_seconds(self) -> float:
        """User and system, of all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mb(self, peak: bool = False) -> float:
        """Resident memory now or, since its start, at most."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return int(line.split()[1]) / 1024
        raise Failed(f"{self.name} has ended")


class Server(Process):
    """A process that is ready when a URL answers 200. What it needs (`beside`) starts before it, ends after it and is not counted."""

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        log: Path,
        ready: str,
        environment: dict[str, str] | None = None,
        beside: Server | None = None,
    ) -> None:
        super().__init__(name, command, log, environment)
        self.ready, self._beside = ready, beside
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ending:
            if self._beside:
                ending.enter_context(self._beside)
            super().__enter__()
            ending.push(super().__exit__)
            wait_until(self._answers, 60, f"{self.name} is ready", self)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(self.ready, timeout=5) as answer:
            return bool(answer.status == 200)
        return False


class Sink(Server):
    """The backend (sink.py): counts what it is sent, in a process of its own."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.url = f"http://127.0.0.1:{(port := port or free_port())}"
        super().__init__("sink", [sys.executable, HERE / "sink.py", str(port)], directory / "sink.log", f"{self.url}/stats")

    def stats(self, reset: bool = False) -> dict[str, Any]:
        """What came since the last reset."""
        found: dict[str, Any] = get(f"{self.url}/stats{'?reset=1' if reset else ''}")
        return found

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Within the block the age of every record at its arrival is noted."""
        get(f"{self.url}/stats?reset=1&ages=1")
        yield
        get(f"{self.url}/stats?ages=0")


class Cluster(Server):
    """A Kubernetes API (cluster.py) with this many pods, in a process of its own; plain HTTP."""

    def __init__(self, directory: Path, pods: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._list = directory / "pods.json"
        command = [sys.executable, HERE / "cluster.py", str(port), str(pods), self._list]
        super().__init__("cluster", command, directory / "cluster.log", f"{self.url}/readyz")
        self.kubeconfig = directory / "kubeconfig"
        named = {"name": "bench"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [named | {"cluster": {"server": self.url}}],
            "contexts": [named | {"context": {"cluster": "bench", "user": "bench"}}],
            "users": [named | {"user": {}}],
            "current-context": "bench",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def pods(self) -> list[dict[str, str]]:
        """Namespace, name, uid and container of each."""
        found: list[dict[str, str]] = json.loads(self._list.read_text())
        return found
