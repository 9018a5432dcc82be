"""The watchdog over a peer that accepts and never answers: not ready, and alive."""

from pathlib import Path

from support.backend import Backend
from support.process import Role, wait_until

CONFIG = """
receivers: {{filelog: {{include: ["{log}"], start_at: beginning}}}}
exporters: {{otlphttp: {{endpoint: "{url}", timeout: 0, sending_queue: {{stalled_after: 1s}}}}}}
extensions: {{health_check: {{}}}}
service: {{extensions: [health_check], pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}}}
"""


def test_a_server_that_never_answers_is_told_by_ready_status_and_metrics_and_never_by_liveness(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("a line\n")
    with Backend() as backend:
        backend.hold.clear()
        with Role(tmp_path / "role", CONFIG.format(log=log, url=backend.url), expect_ready=False) as role:
            stalled = "exporters/otlphttp"
            wait_until(lambda: [it["component"] for it in role.get("/ready")[1].get("blocked", ())] == [stalled], what="not ready")
            status, answer = role.get("/ready")
            (blocked,) = answer["blocked"]
            assert status == 503 and blocked["seconds"] >= 1
            assert blocked["reason"].startswith("no progress, waits for delivery: 1 requests are not answered")
            assert role.get("/status")[1]["blocked"]
            assert role.get("/")[0] == 200
            assert role.metrics()["lockgate_stalled_seconds"] >= 1
            backend.hold.set()
            wait_until(lambda: role.get("/ready")[0] == 200, what="ready again")
            assert backend.bodies() == ["a line"]
            assert role.metrics()["lockgate_stalled_seconds"] == 0
