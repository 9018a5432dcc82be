"""A role as a process of its own, as a user runs it: `lockgate run --config FILE`."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_given: set[int] = set()
_chance = random.SystemRandom()


def free_port() -> int:
    """A loopback port that nobody listens on now, and that was not given before: what is to listen on it may not have begun.

    None that the kernel gives to connections (from 32768 on, ip(7)): until it is listened on, somebody else's could take it.
    """
    while True:
        port = _chance.randrange(10_240, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def lockgate(*arguments: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs one command to its end."""
    command = [sys.executable, "-P", "-m", "lockgate.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(environment or {})})


class Role:
    """`with Role(directory, yaml) as role:` runs it, ready; leaving sends SIGTERM and expects exit status 0.

    The configuration is given health_check on `health_port` and own metrics on `metrics_port` by a second file; `preset` goes before it.
    `async with` waits in a thread, for tests whose own loop serves what the role asks. `prefix` is put before the command (setpriv ...).
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        environment: Mapping[str, str] | None = None,
        *,
        preset: str = "",
        expect_ready: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.health_port, self.metrics_port = free_port(), free_port()
        self.log = directory / "role.log"
        (directory / "config.yaml").write_text(config)
        common = {
            "service": {
                "telemetry": {
                    "metrics": {"readers": [{"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": self.metrics_port}}}}]}
                }
            },
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{self.health_port}"}},
        }
        (directory / "common.yaml").write_text(json.dumps(common))
        files = [preset] * bool(preset) + [str(directory / name) for name in ("config.yaml", "common.yaml")]
        self.configs = [argument for file in files for argument in ("--config", file)]
        own = {"LOCKGATE_STATE": str(directory / "state"), "LOCKGATE_LEDGER_PORT": str(free_port())}
        self.environment = {**os.environ, **own, **(environment or {})}
        self.expect_ready, self.prefix = expect_ready, prefix
        self.process: subprocess.Popen[bytes]

    def command(self) -> list[str]:
        """What is run."""
        return [*self.prefix, sys.executable, "-P", "-m", "lockgate.cli.main", "run", *self.configs]

    def spawn(self) -> None:
        """Starts it, and waits for nothing."""
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment)

    def start(self) -> None:
        self.spawn()
        deadline = time.monotonic() + 20
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the role did not become ready:\n{self.log.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self.get("/ready")[0] == 200 or not self.expect_ready
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, Any]:
        """(status, JSON) of a path of health_check."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def metrics(self) -> dict[str, float]:
        """Own metrics, summed over labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        totals: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                totals[name] = totals.get(name, 0) + float(value)
        return totals

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer would."""
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            status = self.stop()
            if error is None:
                assert status == 0, f"exit status {status}:\n{self.log.read_text()}"
        elif error is not None:
            sys.stderr.write(self.log.read_text())

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *raised: Any) -> None:
        await asyncio.to_thread(self.__exit__, *raised)


def wait_until(true: Any, seconds: float = 20, what: str | Callable[[], str] = "") -> None:
    """Returns when `true()` is; fails after so many seconds, saying `what`. For conditions in another process, which cannot be awaited."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what or true}"
        time.sleep(0.05)


async def until(true: Callable[[], Any], seconds: float = 20, what: str = "") -> None:
    """`wait_until` for a test whose own loop must go on."""
    await asyncio.to_thread(wait_until, true, seconds, what)
