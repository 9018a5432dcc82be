"""How a role starts, says how it is, and ends."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from support.backend import Backend
from support.otlp import log_batch
from support.process import Role, free_port, wait_until

CONFIG = """
receivers: {{filelog: {{include: ["{log}"], start_at: beginning, storage: file_storage}}}}
exporters: {{otlphttp: {{endpoint: "{url}", retry_on_failure: {{initial_interval: 100ms, max_interval: 200ms}}}}}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{state}", create_directory: true}}}}
service:
  extensions: [health_check, file_storage]
  shutdown_timeout: 5s
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}
"""


def config(tmp_path: Path, url: str) -> str:
    return CONFIG.format(log=tmp_path / "app.log", url=url, state=tmp_path / "state")


def test_sigterm_delivers_what_is_under_way_and_keeps_the_position(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("one\n")
    with Backend() as backend:
        backend.hold.clear()
        with Role(tmp_path / "role", config(tmp_path, backend.url)) as role:
            wait_until(lambda: backend.seen, what="the first request")
            role.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)  # the stop is under way while the backend has not answered
            backend.hold.set()
            assert role.process.wait(10) == 0
        log.write_text("one\ntwo\n")
        with Role(tmp_path / "role", config(tmp_path, backend.url)):
            wait_until(lambda: len(backend.bodies()) >= 2)
        assert backend.bodies() == ["one", "two"]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\n")
    with Backend() as backend:
        backend.hold.clear()
        role = Role(tmp_path / "role", config(tmp_path, backend.url))
        role.start()
        wait_until(lambda: backend.seen)
        role.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in role.log.read_text())
        began = time.monotonic()
        role.process.send_signal(signal.SIGTERM)
        assert role.process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2


def test_a_drain_that_cannot_end_is_cut_at_its_bound_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\n")
    with Backend() as backend:
        backend.hold.clear()
        role = Role(tmp_path / "role", config(tmp_path, backend.url).replace("shutdown_timeout: 5s", "shutdown_timeout: 1s"))
        role.start()
        wait_until(lambda: backend.seen)
        began = time.monotonic()
        assert role.stop() == 0
        assert time.monotonic() - began < 4
        log = role.log.read_text()
        assert "stopping broke off what was under way (1 request): it was not acknowledged, and is lost where its sender cannot" in log
        assert "not delivered" not in log, "the server did nothing wrong"
        assert "health_check\tbroken off" not in log, "what has nothing under way stops in order"
        backend.hold.set()
        wait_until(lambda: len(backend.requests) == backend.seen, what="the requests that nobody waits for any more")
        backend.requests.clear()
        with Role(tmp_path / "role", config(tmp_path, backend.url)):
            wait_until(lambda: backend.bodies() == ["one"], what="the unacknowledged line is sent again")


def test_what_a_stop_breaks_off_stays_in_a_queue_on_disk_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\n")
    with Backend() as backend:
        backend.hold.clear()
        queued = config(tmp_path, backend.url).replace("otlphttp: {", "otlphttp: {sending_queue: {storage: file_storage}, ", 1)
        role = Role(tmp_path / "role", queued.replace("shutdown_timeout: 5s", "shutdown_timeout: 1s"))
        role.start()
        wait_until(lambda: backend.seen)
        assert role.stop() == 0
        log = role.log.read_text()
        assert "stopping broke off what was under way (1 request): it stays on disk, and is sent after the next start" in log
        assert "not delivered" not in log and "\terror\t" not in log
        backend.hold.set()
        wait_until(lambda: len(backend.requests) == backend.seen, what="the requests that nobody waits for any more")
        backend.requests.clear()
        with Role(tmp_path / "role", queued):
            wait_until(lambda: backend.bodies() == ["one"], what="it is sent")


def test_an_outage_makes_it_unready_with_the_reason_but_never_dead_and_loses_nothing(tmp_path: Path) -> None:
    log, port = tmp_path / "app.log", free_port()
    log.write_text("one\n")
    with Role(tmp_path / "role", config(tmp_path, f"http://127.0.0.1:{port}"), expect_ready=False) as role:
        wait_until(lambda: [each["component"] for each in role.get("/status")[1]["blocked"]] == ["exporters/otlphttp"])
        status, answer = role.get("/ready")
        assert status == 503
        assert f"127.0.0.1:{port}" in answer["blocked"][0]["reason"]
        assert role.get("/")[0] == 200
        assert role.get("/status")[1]["blocked"]
        with Backend(port) as backend:
            wait_until(lambda: role.get("/ready")[0] == 200)
            assert backend.bodies() == ["one"]
            wait_until(lambda: role.metrics().get("otelcol_receiver_accepted_log_records") == 1)
            metrics = role.metrics()
    assert metrics["otelcol_receiver_accepted_log_records"] == 1
    assert metrics["otelcol_exporter_sent_log_records"] == 1
    assert metrics["otelcol_exporter_queue_size"] == 0
    assert "otelcol_exporter_send_failed_log_records" not in metrics or metrics["otelcol_exporter_send_failed_log_records"] == 0


def test_a_port_that_is_taken_ends_the_start_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = config(tmp_path, "http://127.0.0.1:1").replace("health_check: {}", f"health_check: {{endpoint: '127.0.0.1:{port}'}}")
        (tmp_path / "c.yaml").write_text(text)
        command = [sys.executable, "-m", "lockgate.cli.main", "run", "--config", str(tmp_path / "c.yaml")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_kubeconfig_that_is_not_there_ends_the_start_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:0"}}}}}}}}
processors: {{k8sattributes: {{auth_type: kubeConfig, context: here, kubeconfig: {tmp_path / "none"}}}}}
exporters: {{debug: }}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{logs: {{receivers: [otlp], processors: [k8sattributes], exporters: [debug]}}}}
""")
    command = [sys.executable, "-m", "lockgate.cli.main", "run", "--config", str(tmp_path / "c.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert f"cannot read the kubeconfig {tmp_path / 'none'}: No such file" in result.stderr
    assert "Traceback" not in result.stderr


COSTLY = {
    "duckdb",
    "grpclib",
    "h2",
    "rich",
    "opentelemetry",
    "google.protobuf",
    "google.rpc",
    "lockgate.kube",
    "lockgate.store",
    "lockgate.sample",
}
RECEIVING = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{otlphttp: {{endpoint: "{url}"}}}}
extensions: {{health_check: {{}}}}
service:
  extensions: [health_check]
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}
"""


def imported_by(role: Role) -> set[str]:
    """Every module that was imported, and the packages they are in; the role runs with PYTHONPROFILEIMPORTTIME."""
    modules = [line.rpartition("|")[2].strip() for line in role.log.read_text().splitlines() if line.startswith("import time:")]
    return {".".join(parts[:n]) for parts in (module.split(".") for module in modules) for n in range(1, len(parts) + 1)}


def test_what_is_not_configured_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\n")
    with Backend() as backend, Role(tmp_path / "role", config(tmp_path, backend.url), {"PYTHONPROFILEIMPORTTIME": "1"}) as role:
        wait_until(backend.bodies)
        imported = imported_by(role)
    assert "lockgate.components.receivers.filelog.receiver" in imported, "the import log is empty: this test would prove nothing"
    assert sorted(COSTLY & imported) == []


def test_a_role_that_speaks_http_alone_imports_no_grpc(tmp_path: Path) -> None:
    port = free_port()
    with Backend() as backend:
        text = RECEIVING.format(port=port, url=backend.url)
        with Role(tmp_path / "role", text, {"PYTHONPROFILEIMPORTTIME": "1"}) as role:
            url, headers = f"http://127.0.0.1:{port}/v1/logs", {"Content-Type": "application/x-protobuf"}
            urllib.request.urlopen(urllib.request.Request(url, log_batch("one").payload, headers), timeout=10).close()
            imported = imported_by(role)
        assert backend.bodies() == ["one"]
    assert "lockgate.components.receivers.otlp.receiver" in imported, "the import log is empty: this test would prove nothing"
    assert sorted(COSTLY & imported) == []
