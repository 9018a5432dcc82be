"""Servers that neither work nor fail: what they do to a sender beside one that works, and alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from support.backend import Backend
from support.faults import Figures
from support.faults.accounts import settled_faults
from support.faults.laboratory import memory_bytes
from support.process import Role, wait_until

CONFIG = """
receivers: {{filelog: {{include: ["{log}"], start_at: beginning, storage: file_storage, poll_interval: 20ms}}}}
exporters:
  otlphttp:
    endpoint: "http://127.0.0.1:{port}"
    timeout: 500ms
    sending_queue: {{storage: file_storage, num_consumers: 4, stalled_after: 1s}}
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
extensions:
  health_check: {{}}
  file_storage: {{directory: "{state}", create_directory: true}}
  ledger: {{endpoint: "127.0.0.1:0", state_directory: "{state}"}}
service:
  extensions: [health_check, file_storage, ledger]
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}
"""


def never_answers(connection: socket.socket, stopping: threading.Event) -> None:
    """Reads all that comes, and says nothing."""
    while not stopping.is_set() and _read_some(connection):
        pass


def never_reads(connection: socket.socket, stopping: threading.Event) -> None:
    """Accepts, and lets the sender's bytes lie: the window fills."""
    stopping.wait()


def a_byte_at_a_time(connection: socket.socket, stopping: threading.Event) -> None:
    """An answer that would take ten minutes, and is never silent for long."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Padding: " + b"x" * 6000 + b"\r\n\r\n"
    _read_some(connection)
    for number in range(len(answer)):
        if stopping.wait(0.1):
            return
        connection.sendall(answer[number : number + 1])


def closes_in_mid_answer(connection: socket.socket, stopping: threading.Event) -> None:
    """Says how long the answer is, and stops before its end."""
    _read_some(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 400\r\n\r\nhalf")


def answers_without_end(connection: socket.socket, stopping: threading.Event) -> None:
    """A refusal whose body never ends, as fast as it is read."""
    _read_some(connection)
    connection.sendall(b"HTTP/1.1 503 Unavailable\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not stopping.is_set():
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def talks_nonsense(connection: socket.socket, stopping: threading.Event) -> None:
    """Is no HTTP server at all."""
    _read_some(connection)
    connection.sendall(b"220 mail.example ESMTP ready\r\n" * 3)


BEHAVIOURS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    each.__name__: each
    for each in (never_answers, never_reads, a_byte_at_a_time, closes_in_mid_answer, answers_without_end, talks_nonsense)
}
HALF_OPEN = "half_open"
"""The kernel takes the connection, no program ever does: what a host looks like that died without a word."""


class Wedged:
    """`with Wedged(behaviour) as peer:` listens on `peer.port`."""

    def __init__(self, behaviour: str) -> None:
        self.met = 0
        """Connections."""
        self._serve = BEHAVIOURS.get(behaviour)
        self._stopping = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.met += 1
                self._threads.append(threading.Thread(target=self._talk, args=[connection]))
                self._threads[-1].start()

    def _talk(self, connection: socket.socket) -> None:
        assert self._serve is not None
        with connection, suppress(OSError):
            connection.settimeout(1)
            self._serve(connection, self._stopping)

    def __enter__(self) -> Self:
        if self._serve is not None:
            self._threads.append(threading.Thread(target=self._accept))
            self._threads[-1].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()


class Switch:
    """`with Switch(first) as switch:` forwards connections to the port `switch.target`, byte by byte, knowing nothing of HTTP."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=_copy, args=pair))
                    self._threads[-1].start()

    def cut(self) -> None:
        """Breaks every connection."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.cut()
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join()
        for each in (self._socket, *self._open):
            each.close()


def play(directory: Path, behaviour: str, *, seconds: float = 2.5, lines: int = 5_000) -> Figures:
    """A role in front of a wedged peer for a while, then of one that works at the same address."""
    log = directory / "app.log"
    directory.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(lines)))
    with Backend() as backend, Wedged(behaviour) as wedged, Switch(backend.port) as switch:
        state = directory / "role" / "state"  # where a role's own is
        with Role(directory / "role", CONFIG.format(log=log, port=switch.port, state=state)) as role:
            wait_until(lambda: backend.bodies(), what="delivery")
            wait_until(lambda: role.metrics()["otelcol_exporter_queue_size"] == 0, what="an empty queue")
            before = memory_bytes(role)
            switch.target = wedged.port
            switch.cut()  # what works is kept open; the next batches need new connections
            with open(log, "a") as file:
                file.writelines(f"line {number} {'x' * 100}\n" for number in range(lines, 3 * lines))
            most, alive, reasons = 0, 0, set[str]()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                most = max(most, memory_bytes(role))
                alive += role.get("/")[0] == 200
                reasons |= {each["reason"] for each in role.get("/ready")[1]["blocked"]}
                time.sleep(0.1)
            stalled = role.log.read_text().count("has made no progress for")
            met, switched = wedged.met, time.monotonic()
            switch.target = backend.port
            wait_until(lambda: len(set(backend.bodies())) == 3 * lines, 30, "delivery goes on")
            took = time.monotonic() - switched
            wait_until(lambda: role.get("/ready")[0] == 200, what="ready again")
            bodies = backend.bodies()
            faults = settled_faults(role, {"": dict.fromkeys(("read", "records", "delivered"), 3 * lines)})
        print(behaviour, "said:", *sorted(reasons), sep="\n  ")
        return Figures(
            behaviour=behaviour,
            connections=met,
            alive_answers=alive,
            said_so=sum(reason.startswith("delivery: ") for reason in reasons),
            stalls_logged=stalled,
            more_memory_mb=(most - before) >> 20,
            goes_on_after_seconds=round(took, 1),
            lost=3 * lines - len(set(bodies)),
            ledger_faults=len(faults),
        )


def _read_some(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except TimeoutError:
        return b"nothing yet"


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
