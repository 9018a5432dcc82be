"""A real Prometheus in agent mode, and a real vmagent, scrape a target and write to a whole role: every sample arrives as it was scraped,
also while what is behind the role is down, and over a restart of the role."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.backend import Backend
from support.kube_apiserver import PEERS
from support.process import Role, free_port, wait_until

pytestmark = pytest.mark.peers

PROMETHEUS, VMAGENT = PEERS / "bin" / "prometheus", PEERS / "bin" / "vmagent"
EXPOSITION = """\
# HELP scrapes_total How often this was scraped.
# TYPE scrapes_total counter
scrapes_total{{shard="a b\\"c",path="/é"}} {n} # {{trace_id="4bf92f3577b34da6a3ce929d0e0e4736"}} {n}
# HELP depth How deep it is.
# TYPE depth gauge
depth {n}.25
# TYPE latency histogram
latency_bucket{{le="0.1"}} {n}
latency_bucket{{le="1.0"}} {n}
latency_bucket{{le="+Inf"}} {twice}
latency_sum {n}.5
latency_count {twice}
# EOF
"""


class Target:
    """What is scraped: `served` says when each value was given. After `last` the value stays."""

    def __init__(self) -> None:
        self.served: dict[int, float] = {}
        self.last = 1 << 30
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with target.lock:
                    n = min(len(target.served) + 1, target.last)
                    target.served.setdefault(n, time.time())
                body = EXPOSITION.format(n=n, twice=2 * n).encode()
                self.send_response(200)
                # To ask for exemplars is to ask for OpenMetrics.
                self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Target:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.terminate()
        process.wait(60)


def scrape_config(target: Target, **more: Any) -> dict[str, Any]:
    # With a name that has a slash: how the operator names the jobs of its monitors.
    job = {"job_name": "ns/monitor", "scrape_interval": "200ms", "scrape_timeout": "200ms"}
    return {"scrape_configs": [{**job, "static_configs": [{"targets": [target.address]}], **more}]}


@contextmanager
def prometheus(folder: Path, target: Target, url: str, version: int) -> Iterator[None]:
    message = "prometheus.WriteRequest" if version == 1 else "io.prometheus.write.v2.Request"
    queue = {"batch_send_deadline": "200ms", "min_backoff": "50ms", "max_backoff": "500ms"}
    config = scrape_config(
        target, **({"convert_classic_histograms_to_nhcb": True, "always_scrape_classic_histograms": True} if version == 2 else {})
    )
    write = {"url": url, "protobuf_message": message, "queue_config": queue, "send_exemplars": True, "send_native_histograms": version == 2}
    config["remote_write"] = [{**write, "metadata_config": {"send": True, "send_interval": "500ms"}}] if version == 1 else [write]
    folder.mkdir()
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        str(PROMETHEUS),
        "--agent",
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.agent.path={folder}/wal",
        f"--web.listen-address=127.0.0.1:{free_port()}",
        "--enable-feature=exemplar-storage,metadata-wal-records,native-histograms",
    ]
    with running(command, folder / "prometheus.log"):
        yield


@contextmanager
def vmagent(folder: Path, target: Target, url: str, version: int) -> Iterator[None]:
    folder.mkdir()
    (folder / "scrape.yaml").write_text(yaml.safe_dump(scrape_config(target)))
    command = [
        str(VMAGENT),
        f"-promscrape.config={folder}/scrape.yaml",
        f"-remoteWrite.url={url}",
        f"-remoteWrite.tmpDataPath={folder}/queue",
        "-remoteWrite.flushInterval=200ms",
        "-remoteWrite.retryMinInterval=100ms",
        "-remoteWrite.retryMaxTime=500ms",
        f"-httpListenAddr=127.0.0.1:{free_port()}",
        "-memory.allowedBytes=128MB",
    ]
    with running(command, folder / "vmagent.log"):
        yield


def points(backend: Backend) -> Iterator[tuple[dict[str, str], Any, Any]]:
    """(resource, metric, data point) of everything that arrived."""
    for _, _, message in list(backend.requests):
        for entry in message.resource_metrics:
            resource = {each.key: each.value.string_value for each in entry.resource.attributes}
            for metric in (metric for scope in entry.scope_metrics for metric in scope.metrics):
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    yield resource, metric, point


def values(backend: Backend, name: str) -> dict[int, set[int]]:
    """The times in milliseconds of each value of this metric; stale markers left out."""
    found: dict[int, set[int]] = {}
    for _, metric, point in points(backend):
        if metric.name == name and not point.flags & 1:
            found.setdefault(int(point.as_double), set()).add(point.time_unix_nano // 10**6)
    return found


Sender = Callable[[Path, Target, str, int], Any]


def needs(program: Path) -> Any:
    return pytest.mark.skipif(not program.exists(), reason=f"no {program.name}: `make peers` has not built it")


@pytest.mark.parametrize(
    ("sender", "version"),
    [
        pytest.param(prometheus, 1, id="prometheus-1.0", marks=needs(PROMETHEUS)),
        pytest.param(prometheus, 2, id="prometheus-2.0", marks=needs(PROMETHEUS)),
        pytest.param(vmagent, 1, id="vmagent", marks=needs(VMAGENT)),
    ],
)
def test_every_sample_arrives_over_refusals_and_a_restart(tmp_path: Path, sender: Sender, version: int) -> None:
    port = free_port()
    with Target() as target, Backend() as backend:
        config = {
            "receivers": {"prometheusremotewrite": {"endpoint": f"127.0.0.1:{port}", "read_timeout": "1m", "write_timeout": "1m"}},
            "exporters": {
                "otlphttp": {"endpoint": backend.url, "sending_queue": {"enabled": False}, "retry_on_failure": {"enabled": False}}
            },
            "service": {
                "extensions": ["health_check"],
                "pipelines": {"metrics": {"receivers": ["prometheusremotewrite"], "exporters": ["otlphttp"]}},
            },
        }
        role = Role(tmp_path / "role", yaml.safe_dump(config))
        url = f"http://127.0.0.1:{port}/api/v1/write"
        with role, sender(tmp_path / "sender", target, url, version):
            wait_until(lambda: len(values(backend, "scrapes_total")) >= 5, 60)
            backend.status = 503
            seen, scraped = backend.seen, len(target.served)
            wait_until(lambda: backend.seen > seen and len(target.served) >= scraped + 5, 60)
            backend.status = 200
            wait_until(lambda: len(values(backend, "scrapes_total")) >= scraped + 3, 60)
            assert role.stop() == 0
            scraped = len(target.served)
            wait_until(lambda: len(target.served) >= scraped + 5, 60)
            role.start()
            with target.lock:
                target.last = len(target.served) + 5

            def missing() -> set[int]:
                return set(range(1, target.last + 1)) - set(values(backend, "scrapes_total"))

            wait_until(lambda: not missing(), 90, lambda: f"{sorted(missing())} of {target.last}")
            check(backend, target, version)


def check(backend: Backend, target: Target, version: int) -> None:
    for name in ("scrapes_total", "depth"):
        found = values(backend, name)
        for value in range(1, target.last):
            (time_ms,) = found[value]
            assert -1 < target.served[value] - time_ms / 1000 < 30
    kinds, attributes, exemplars, histograms = {}, {}, 0, 0
    for resource, metric, point in points(backend):
        if metric.name in ("scrapes_total", "depth", "latency_bucket", "latency_count", "latency_sum"):
            assert resource == {"service.name": "ns/monitor", "service.instance.id": target.address}
            kinds[metric.name] = metric.WhichOneof("data")
            attributes[metric.name] = {each.key: each.value.string_value for each in point.attributes}
            exemplars += len(point.exemplars)
        if metric.name == "latency" and metric.WhichOneof("data") == "histogram" and not point.flags & 1:
            assert list(point.explicit_bounds) == [0.1, 1.0]
            assert list(point.bucket_counts) == [point.count // 2, 0, point.count // 2]
            histograms += 1
    assert attributes["scrapes_total"] == {"shard": 'a b"c', "path": "/é"}
    assert (kinds["scrapes_total"], kinds["depth"], kinds["latency_bucket"]) == ("sum", "gauge", "sum")
    if backend_is_told_of_types(backend):
        assert (kinds["latency_count"], kinds["latency_sum"]) == ("sum", "sum")
    assert (histograms > 0) == (version == 2)


def backend_is_told_of_types(backend: Backend) -> bool:
    return any(metric.description == "How deep it is." for _, metric, _ in points(backend))
