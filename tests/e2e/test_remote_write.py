"""Remote write to a whole role with the processors that Sumo Logic's collection has behind it, and a queue on disk."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import cramjam
import yaml
from support.backend import Backend
from support.process import Role, free_port, wait_until
from support.remote_write import WriteRequest, add_series, labels

RENAMED = {"namespace": "k8s.namespace.name", "pod": "k8s.pod.name", "container": "k8s.container.name", "service.name": "job"}


def config(port: int, backend: Backend, state: Path) -> str:
    actions = [
        action
        for old, new in RENAMED.items()
        for action in ({"action": "upsert", "from_attribute": old, "key": new}, {"action": "delete", "key": old})
    ]
    processors = {"groupbyattrs": {"keys": ["container", "namespace", "pod", "service"]}, "resource": {"attributes": actions}}
    pipeline = {"receivers": ["prometheusremotewrite"], "processors": list(processors), "exporters": ["otlphttp"]}
    settings = {
        "receivers": {"prometheusremotewrite": {"endpoint": f"127.0.0.1:{port}", "read_timeout": "1m", "write_timeout": "1m"}},
        "processors": processors,
        "exporters": {
            "otlphttp": {
                "endpoint": backend.url,
                "sending_queue": {"storage": "file_storage"},
                "retry_on_failure": {"initial_interval": "20ms", "max_interval": "100ms"},
            }
        },
        "extensions": {"health_check": {}, "file_storage": {"directory": str(state), "create_directory": True}},
        "service": {"extensions": ["health_check", "file_storage"], "pipelines": {"metrics": pipeline}},
    }
    return yaml.safe_dump(settings)


def send(port: int, request: Any) -> int:
    body = bytes(cramjam.snappy.compress_raw(request.SerializeToString()))
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
    url = f"http://127.0.0.1:{port}/prometheus.metrics.kubelet"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            status: int = answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:  # not there yet
        return 0
    return status


def arrived(backend: Backend) -> list[tuple[dict[str, str], str, dict[str, str], float]]:
    return [
        (
            {each.key: each.value.string_value for each in entry.resource.attributes},
            metric.name,
            {each.key: each.value.string_value for each in point.attributes},
            point.as_double,
        )
        for _, _, message in list(backend.requests)
        for entry in message.resource_metrics
        for scope in entry.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


def test_what_was_answered_with_204_arrives_once_after_a_kill_with_the_collections_labels(tmp_path: Path) -> None:
    port = free_port()
    with Backend() as backend:
        backend.status = 503
        role = Role(tmp_path, config(port, backend, tmp_path / "state"), expect_ready=False)
        request = WriteRequest()
        pairs = labels(name="up", job="ns/monitor", instance="10.0.0.1:80", namespace="shop", pod="web-0", container="app", endpoint="http")
        for number in range(50):
            add_series(request, [*pairs, ("n", str(number))], [(float(number), 1_700_000_000_000)])
        with role:
            wait_until(lambda: send(port, request) == 204)
            role.kill()
            role.start()
            wait_until(lambda: send(port, request) == 204)  # as Prometheus does when an answer is lost
            backend.status = 200
            wait_until(lambda: len(arrived(backend)) >= 50)
            marker = WriteRequest()
            add_series(marker, labels(name="marker"), [(1.0, 1)])
            wait_until(lambda: send(port, marker) == 204)
            wait_until(lambda: any(name == "marker" for _, name, _, _ in arrived(backend)))
    found = [each for each in arrived(backend) if each[1] == "up"]
    resource = {"k8s.namespace.name": "shop", "k8s.pod.name": "web-0", "k8s.container.name": "app", "job": "ns/monitor"}
    assert all(each[0] == resource | {"service.instance.id": "10.0.0.1:80"} for each in found)
    assert sorted(found, key=lambda each: each[3]) == [
        (found[0][0], "up", {"endpoint": "http", "n": str(number)}, float(number)) for number in range(50)
    ]
