"""An agent with its queue on disk, killed again and again, in front of a backend that refuses, breaks off and comes back."""

import random
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

from support.backend import Backend, bodies_of
from support.otlp import log_batch
from support.process import Role, free_port, wait_until

CONFIG = """
receivers:
  filelog: {{include: ["{log}"], start_at: beginning, storage: file_storage, poll_interval: 20ms}}
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
exporters:
  otlphttp:
    endpoint: "{url}"
    sending_queue: {{storage: file_storage, num_consumers: 3}}
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{state}", create_directory: true}}}}
service:
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog, otlp], exporters: [otlphttp]}}}}
"""

KILLS = 25


class Writer:
    """Writes lines to a file and sends batches, each again until it is acknowledged, until it is told to stop."""

    def __init__(self, log: Path, url: str) -> None:
        self.lines = self.acknowledged = self.resent = 0
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=[log]), threading.Thread(target=self._send, args=[url])]

    def _write(self, log: Path) -> None:
        with open(log, "a", buffering=1) as file:
            while not self.stopping.wait(0.002):
                file.write(f"line {self.lines}\n")
                self.lines += 1

    def _send(self, url: str) -> None:
        while not self.stopping.wait(0.002):
            batch = log_batch(f"batch {self.acknowledged}")
            headers = {"Content-Type": "application/x-protobuf", "X-Lockgate-Batch-Id": f"sent-{self.acknowledged}"}
            while True:
                try:
                    with urllib.request.urlopen(urllib.request.Request(url, batch.payload, headers), timeout=5):
                        break
                except OSError:  # refused, reset, or not answered: its owner is still this one
                    self.resent += 1
                    time.sleep(0.02)
            self.acknowledged += 1


def received(backend: Backend, kind: str) -> dict[str, list[str]]:
    """Batch ids by body, in order of arrival."""
    ids: dict[str, list[str]] = defaultdict(list)
    for _, headers, message in list(backend.requests):
        for body in bodies_of(message):
            if body.startswith(kind):
                ids[body].append(headers["x-lockgate-batch-id"])
    return ids


def test_killed_at_25_random_moments_it_loses_nothing_and_repeats_only_under_the_same_id(tmp_path: Path) -> None:
    dice = random.Random(20261123)
    (tmp_path / "state").mkdir()
    port = free_port()
    with Backend() as backend:
        backend.loses_answer = lambda: dice.random() < 0.05
        config = CONFIG.format(log=tmp_path / "app.log", port=port, url=backend.url, state=tmp_path / "state")
        writer = Writer(tmp_path / "app.log", f"http://127.0.0.1:{port}/v1/logs")
        for thread in writer.threads:
            thread.start()
        role = Role(tmp_path / "role", config, expect_ready=False)
        waited = refusals = 0
        try:
            for _ in range(KILLS):
                backend.status = dice.choice([200, 200, 503])
                role.start()
                time.sleep(dice.uniform(0, 0.6))
                refusals += backend.status != 200
                waited += any((tmp_path / "state").glob("queue*/queue/*.segment"))
                role.kill()
        finally:
            backend.status = 200
            role.start()
            writer.stopping.set()
            for thread in writer.threads:
                thread.join()
        try:
            wait_until(lambda: len(received(backend, "line")) == writer.lines, 30, "every line")
            wait_until(lambda: len(received(backend, "batch")) == writer.acknowledged, 30, "every batch")
            wait_until(lambda: role.metrics()["otelcol_exporter_queue_size"] == 0, what="an empty queue")
            metrics: dict[str, Any] = role.metrics()
        finally:
            status = role.stop()
        assert status == 0
        lines, batches = received(backend, "line"), received(backend, "batch")
    assert set(lines) == {f"line {number}" for number in range(writer.lines)}
    assert set(batches) == {f"batch {number}" for number in range(writer.acknowledged)}
    # A repetition carries the id of what it repeats. (Lines are read again under other ids after a kill: their positions are saved later.)
    assert all(set(ids) == {f"sent-{body.split()[1]}"} for body, ids in batches.items())
    assert metrics["lockgate_queue_damaged_records"] == 0
    # The test is about kills with something in the queue, refusals and repetitions: they happened.
    assert waited > KILLS // 2 and refusals and writer.resent
    assert any(len(ids) > 1 for ids in batches.values()), "no repetition was seen"
    assert writer.lines > 1000 and writer.acknowledged > 200


def test_a_line_is_acknowledged_when_it_is_on_disk_and_sent_by_the_next_process(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    with Backend() as backend:
        backend.status = 503
        config = CONFIG.format(log=log, port=free_port(), url=backend.url, state=tmp_path / "state")
        with Role(tmp_path / "role", config, expect_ready=False) as role:
            wait_until(lambda: role.metrics().get("otelcol_receiver_accepted_log_records") == 1000, what="acknowledged")
            components = role.get("/status")[1]["components"]
            assert components["exporters/otlphttp"]["custody"] == "durable"
        assert backend.bodies() == []
        log.unlink()  # nobody has the lines but the queue
        backend.status = 200
        with Role(tmp_path / "role", config, expect_ready=False):
            wait_until(lambda: len(backend.bodies()) >= 1000)
        assert backend.bodies() == [f"line {number}" for number in range(1000)]
