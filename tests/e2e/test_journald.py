"""The node's journal on its way to the backend: through both presets, over kills, and with the collector's own configuration beside it."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.backend import Backend
from support.journal import needs_journal, write
from support.process import Role, free_port, lockgate, wait_until

from lockgate.attributes.values import decode


def entries(*texts: str) -> list[dict[str, Any]]:
    return [{"MESSAGE": text, "PRIORITY": "6", "_SYSTEMD_UNIT": "kubelet.service", "_HOSTNAME": "n1"} for text in texts]


def received(backend: Backend) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(resource attributes, body) of each record."""
    return [
        ({each.key: decode(each.value) for each in entry.resource.attributes}, decode(record.body))
        for _, _, message in list(backend.requests)
        for entry in message.resource_logs
        for scope in entry.scope_logs
        for record in scope.log_records
    ]


@needs_journal
def test_the_presets_bring_the_journal_to_the_backend_with_source_fields(tmp_path: Path) -> None:
    journal, port = tmp_path / "journal", free_port()
    journal.mkdir()
    with Backend() as backend:
        common = {"LOCKGATE_HOST": "127.0.0.1", "LOCKGATE_CLUSTER": "c1"}
        metadata = common | {"LOCKGATE_BACKEND_URL": backend.url, "LOCKGATE_JOURNALD_PORT": str(port)}
        collector = common | {
            "LOCKGATE_JOURNAL": str(journal),
            "LOCKGATE_NODE": "n1",
            "LOCKGATE_STATE": str(tmp_path / "state"),
            "LOCKGATE_LOG_ROOT": str(tmp_path / "pods"),
            "LOCKGATE_JOURNALD_METADATA_URL": f"http://127.0.0.1:{port}",
        }
        over_logs_collector = Path(sys.modules["lockgate"].__path__[0], "presets", "journald.yaml").read_text()
        with (
            Role(tmp_path / "metadata", environment=metadata, preset="journald_metadata"),
            Role(tmp_path / "collector", over_logs_collector, collector, preset="logs_collector", expect_ready=False),
        ):
            write(journal / "a.journal", entries("hello"))  # what is written after the start: that is where reading begins
            wait_until(lambda: received(backend), 20, "the entry")
    ((resource, body),) = received(backend)
    assert resource == {
        "k8s.node.name": "n1",
        "cluster": "c1",
        "_collector": "c1",
        "_sourceHost": "n1",
        "_sourceName": "journald",
        "_sourceCategory": "kubernetes/system",
    }
    assert (body["MESSAGE"], body["_SYSTEMD_UNIT"]) == ("hello", "kubelet.service")


CONFIG = """
receivers:
  journald: {{directory: "{journal}", start_at: beginning, storage: file_storage}}
exporters:
  otlphttp: {{endpoint: "{url}", retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{state}", create_directory: true}}}}
service: {{extensions: [health_check, file_storage], pipelines: {{logs: {{receivers: [journald], exporters: [otlphttp]}}}}}}
"""


@needs_journal
def test_kills_and_rotations_lose_no_entry(tmp_path: Path) -> None:
    journal, chance, count = tmp_path / "journal", random.Random(7), 0
    journal.mkdir()
    with Backend() as backend:
        role = Role(tmp_path / "role", CONFIG.format(journal=journal, url=backend.url, state=tmp_path / "state"), expect_ready=False)
        for turn in range(5):
            write(journal / "system.journal", entries(*(str(count + number) for number in range(300))), 1_700_000_000 + 1000 * turn)
            count += 300
            backend.status = chance.choice([200, 503])
            role.start()
            time.sleep(chance.uniform(0, 1.5))  # a kill at any moment
            if turn % 2:
                (journal / "system.journal").rename(journal / f"system@{turn:032x}-{turn:016x}-{turn:016x}.journal")
            role.kill()
        backend.status = 200
        with role:
            wait_until(lambda: {body["MESSAGE"] for _, body in received(backend)} == {str(n) for n in range(count)}, 30, "every entry")


@needs_journal
def test_a_file_that_is_cut_while_it_is_read_ends_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    write(journal / "a.journal", entries(*(f"{number} {'x' * 12_000}" for number in range(300))))
    write(journal / "b.journal", entries("good"), 1_800_000_000)
    with Backend() as backend:
        backend.hold.clear()
        config = CONFIG.format(journal=journal, url=backend.url, state=tmp_path / "state")
        with Role(tmp_path / "role", config, expect_ready=False) as role:
            wait_until(lambda: backend.seen, 20, "a first request")
            os.truncate(journal / "a.journal", 200_000)
            backend.hold.set()
            wait_until(lambda: "good" in [body["MESSAGE"] for _, body in received(backend)], 20, "the entry of the other file")
            assert "a file was cut while it was read" in role.log.read_text()


def test_without_libsystemd_the_collector_runs_and_the_journals_preset_says_what_it_lacks(tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text("import sys\nsys.modules['cysystemd'] = None\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", "import cysystemd"], env=environment, capture_output=True, check=False).returncode == 1
    assert lockgate("validate", "--config", "logs_collector", environment=environment).returncode == 0
    result = lockgate("validate", "--config", "logs_collector", "--config", "journald", environment=environment)
    assert result.returncode != 0 and "pip install 'lockgate[journald]'" in result.stderr
