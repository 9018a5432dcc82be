"""Much at once: a backlog of files read and sent, a queue of gigabytes drained, and hours of steady flow with an outage in them."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from support.faults import Figures
from support.faults.accounts import settled_faults
from support.faults.kubelet import body
from support.faults.laboratory import memory_bytes
from support.faults.sink import Sink
from support.process import Role, wait_until

CONFIG = """
receivers:
  filelog: {{include: ["{logs}/*/0.log"], start_at: beginning, storage: file_storage, operators: [{{type: container}}]}}
exporters:
  otlphttp:
    endpoint: "{url}"
    sending_queue: {{storage: file_storage, queue_size: 1000000, max_disk_bytes: 20GiB}}
    retry_on_failure: {{initial_interval: 50ms, max_interval: 1s}}
extensions:
  health_check: {{}}
  file_storage: {{directory: "{state}", create_directory: true}}
  ledger: {{endpoint: "127.0.0.1:0", state_directory: "{state}"}}
service:
  extensions: [health_check, file_storage, ledger]
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}
"""

BLOCK_LINES = 20_000


def play(directory: Path, *, gigabytes: float, files: int = 4, outage: bool = False) -> Figures:
    """A role reads so much from `files` files and sends it; with an `outage` all of it waits in the queue first.

    Lines are not unlike each other for gigabytes, as numbering them would cost more than reading: counts are exact, identities are not.
    """
    blocks = max(1, round(gigabytes * 1e9 / files / len(_block())))
    logs = directory / "logs"
    for number in range(files):
        (logs / str(number)).mkdir(parents=True)
        with open(logs / str(number) / "0.log", "wb") as file:
            for _ in range(blocks):
                file.write(_block())
    lines, size = files * blocks * BLOCK_LINES, files * blocks * len(_block())
    with Sink() as sink:
        sink.refuses = outage
        role = Role(directory / "role", CONFIG.format(logs=logs, url=sink.url, state=directory / "role" / "state"), expect_ready=False)
        with role:
            began, most, first, queued_mb = time.monotonic(), 0, memory_bytes(role), 0
            if outage:
                while role.metrics().get("otelcol_receiver_accepted_log_records", 0) < lines:
                    most = max(most, memory_bytes(role))
                    time.sleep(0.5)
                queued_mb = int(role.metrics()["lockgate_queue_disk_bytes"]) >> 20
                read_in = time.monotonic() - began
                began, sink.refuses = time.monotonic(), False
            while sink.records < lines:
                most = max(most, memory_bytes(role))
                assert role.process.poll() is None
                time.sleep(0.5)
            took = time.monotonic() - began
            wait_until(lambda: role.metrics()["otelcol_exporter_queue_size"] == 0, what="an empty queue")
            faults = settled_faults(role, {"": dict.fromkeys(("read", "records", "delivered"), lines)})
            cpu = role.metrics()["otelcol_process_cpu_seconds"]
        return Figures(
            gigabytes=round(size / 1e9, 2),
            lines=lines,
            received=sink.records,
            lost=lines - sink.records,
            ledger_faults=len(faults),
            seconds=round(took, 1),
            lines_per_second=round(lines / took),
            cpu_seconds=round(cpu, 1),
            memory_mb_at_start=first >> 20,
            memory_mb_at_most=most >> 20,
            **({"queued_mb_on_disk": queued_mb, "seconds_to_queue": round(read_in, 1)} if outage else {}),
        )


@cache
def _block() -> bytes:
    lines = (body("backlog", number).encode() for number in range(BLOCK_LINES))
    return b"".join(b"2026-01-01T00:00:00.%09dZ stdout F %s\n" % numbered for numbered in enumerate(lines))
