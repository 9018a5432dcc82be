"""The real OpenTelemetry Collector as `make peers` built it, as a process."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kube_apiserver import PEERS
from support.process import wait_until

BINARY = PEERS / "bin" / "otelcol"
TRACES = PEERS / "bin" / "otelcol-traces"
"""The collector with the receivers of Jaeger and Zipkin."""
needs_otelcol = pytest.mark.skipif(not BINARY.exists(), reason="no otelcol: `make peers` has not built it")
needs_otelcol_traces = pytest.mark.skipif(not TRACES.exists(), reason="no otelcol-traces: `make peers` has not built it")


@contextmanager
def running_otelcol(
    directory: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None = None, binary: Path = BINARY
) -> Iterator[Path]:
    """A collector that is ready, without metrics of its own; gives its log."""
    directory.mkdir(parents=True, exist_ok=True)
    service = {**config["service"], "telemetry": {"metrics": {"level": "none"}}}
    (directory / "config.yaml").write_text(yaml.safe_dump({**config, "service": service}))
    log = directory / "otelcol.log"
    with log.open("wb") as output:
        command = [str(binary), "--config", str(directory / "config.yaml")]
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    try:
        wait_until(lambda: "Everything is ready" in log.read_text() or process.poll() is not None, 30, "the collector is ready")
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        process.terminate()
        process.wait(20)
