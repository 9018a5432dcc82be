"""How each program is run for each role: the same work with the same settings, each otherwise as it comes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from generate import log_path, pod
from processes import LOCKGATE, PEERS, Cluster, Server, free_port

Start = Callable[[Path, Path, str], Server]
"""(directory of its own, what plays /var/log/pods, the backend's URL) -> the agent."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A node agent: tail, parse, join, encode, compress, send, positions on disk."""

    name: str
    start: Start
    share: float = 1.0
    """How much of the lines it is given, so that a slow one does not take minutes."""
    missing: str = ""
    """Why it cannot be run here."""
    only_paced: bool = False
    """Whether it is a variant that matters to the paced part alone."""


def lockgate(name: str, directory: Path, config: dict[str, Any], metrics_port: int = 0, beside: Server | None = None) -> Server:
    """`lockgate run` with this configuration."""
    health, metrics = free_port(), metrics_port or free_port()
    readers = {"readers": [{"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": metrics}}}}]}
    service = config["service"] | {"telemetry": {"metrics": readers}}
    service["extensions"] = [*service.get("extensions", []), "health_check"]
    extensions = config.get("extensions", {}) | {"health_check": {"endpoint": f"127.0.0.1:{health}"}}
    (path := directory / f"{name}.yaml").write_text(json.dumps(config | {"service": service, "extensions": extensions}))
    command = [LOCKGATE, "run", "--config", path]
    return Server(name, command, directory / f"{name}.log", f"http://127.0.0.1:{health}/ready", beside=beside)


def otelcol(name: str, directory: Path, config: dict[str, Any], environment: dict[str, str] | None = None) -> Server:
    """The collector, with health_check and without metrics of its own."""
    health = free_port()
    service = config["service"] | {"telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}}}
    service["extensions"] = [*service.get("extensions", []), "health_check"]
    extensions = config.get("extensions", {}) | {"health_check": {"endpoint": f"127.0.0.1:{health}"}}
    (path := directory / f"{name}.yaml").write_text(json.dumps(config | {"service": service, "extensions": extensions}))
    command = [PEERS / "otelcol", "--config", path]
    return Server(name, command, directory / f"{name}.log", f"http://127.0.0.1:{health}/", environment)


def _filelog(root: Path) -> dict[str, Any]:
    return {
        "include": [f"{root}/*/*/*.log"],
        "include_file_path": True,
        "include_file_name": False,
        "start_at": "beginning",
        "storage": "file_storage",
        "operators": [{"type": "container"}],
    }


def _pods(root: Path) -> list[dict[str, str]]:
    """What the agent will be given: generate.py's pods, as many as there are folders."""
    return [pod(number) for number in range(len(list(root.iterdir())))]


def lockgate_agent(merge_records: int = 0, *, is_durable: bool = False, labels: bool = False, metrics_port: int = 0) -> Start:
    """The logs collector's preset, with its queue in memory unless it `is_durable`.

    `merge_records`: the queue merges what waits; `labels`: it adds what vlagent does, from a Kubernetes API as well.
    """

    def start(directory: Path, root: Path, backend: str) -> Server:
        exporter: dict[str, Any] = {"endpoint": backend, "compression": "gzip"}
        if merge_records:
            batch = {"min_size": merge_records, "max_size": merge_records, "flush_timeout": "1s"}
            exporter["sending_queue"] = {"batch": batch, "num_consumers": 2}
        if is_durable:
            exporter |= {
                "sending_queue": {"storage": "file_storage", "queue_size": 1_000_000, "max_disk_bytes": "4GiB"},
                "retry_on_failure": {"initial_interval": "200ms", "max_interval": "200ms"},
            }
        config: dict[str, Any] = {
            "receivers": {"filelog": _filelog(root)},
            "exporters": {"otlphttp": exporter},
            "extensions": {"file_storage": {"directory": str(directory / "state"), "create_directory": True}},
            "service": {"extensions": ["file_storage"], "pipelines": {"logs": {"receivers": ["filelog"], "exporters": ["otlphttp"]}}},
        }
        if not labels:
            return lockgate("agent", directory, config, metrics_port)
        cluster = Cluster(directory, len(_pods(root)))
        names = ("k8s.namespace.name", "k8s.pod.name")
        config["processors"] = {
            "k8sattributes": {
                "auth_type": "none",
                "api_server": cluster.url,
                "filter": {"node": "node-1"},
                "extract": {
                    "metadata": ["k8s.node.name", "k8s.pod.ip", "container.id"],
                    "labels": [{"from": "pod", "key_regex": "(.*)", "tag_name": "k8s.pod.label.$$1"}],
                },
                "pod_association": [{"sources": [{"from": "resource_attribute", "name": name} for name in names]}],
                "wait_for_metadata": True,
            }
        }
        config["service"]["pipelines"]["logs"]["processors"] = ["k8sattributes"]
        return lockgate("agent", directory, config, metrics_port, cluster)

    return start


def otelcol_agent(directory: Path, root: Path, backend: str) -> Server:
    """filelog with the container operator, batches of 8,192 records."""
    config = {
        "receivers": {"filelog": _filelog(root)},
        "processors": {"batch": {"send_batch_size": 8192, "timeout": "200ms"}},
        "exporters": {"otlphttp": {"endpoint": backend, "compression": "gzip"}},
        "extensions": {"file_storage": {"directory": str(directory / "state"), "create_directory": True}},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"logs": {"receivers": ["filelog"], "processors": ["batch"], "exporters": ["otlphttp"]}},
        },
    }
    return otelcol("otelcol", directory, config)


def fluent_bit_agent(directory: Path, root: Path, backend: str, inotify: bool = True) -> Server:
    """tail with the cri parser, positions in its database, output opentelemetry; flushed as often as Lockgate polls."""
    http, host = free_port(), backend.removeprefix("http://")
    tail = {
        "name": "tail",
        "path": f"{root}/*/*/*.log",
        "path_key": "log.file.path",
        "tag": "kube.*",
        "multiline.parser": "cri",
        "read_from_head": True,
        "refresh_interval": 1,
        "inotify_watcher": inotify,
        "db": str(directory / "positions.db"),
    }
    output = {
        "name": "opentelemetry",
        "match": "*",
        "host": host.partition(":")[0],
        "port": int(host.partition(":")[2]),
        "logs_uri": "/v1/logs",
        "compress": "gzip",
        "logs_body_key": "log",
        "logs_body_key_attributes": True,
    }
    service = {"flush": 0.2, "log_level": "warn", "http_server": True, "http_listen": "127.0.0.1", "http_port": http}
    config = {"service": service, "pipeline": {"inputs": [tail], "outputs": [output]}}
    (path := directory / "fluent-bit.yaml").write_text(json.dumps(config))
    command = [PEERS / "fluent-bit", "--config", path]
    return Server("fluent-bit", command, directory / "fluent-bit.log", f"http://127.0.0.1:{http}/api/v1/uptime")


def vlagent_agent(directory: Path, root: Path, backend: str) -> Server:
    """Its Kubernetes collector as it comes: a record has its pod's labels too, positions go to disk once a minute and at the end.

    It reads what a Kubernetes API says runs on its node, through the kubelet's links.
    """
    pods, http = _pods(root), f"127.0.0.1:{free_port()}"
    cluster = Cluster(directory, len(pods))
    (links := directory / "containers").mkdir()
    for each in pods:
        (links / f"{each['name']}_{each['namespace']}_main-{each['container']}.log").symlink_to(root / log_path(each))
    flags = {
        "kubernetesCollector": "true",
        "kubernetesCollector.logsPath": links,
        "tmpDataPath": directory / "state",
        "remoteWrite.url": f"{backend}/insert/native",
        "httpListenAddr": http,
    }
    command = [PEERS / "vlagent", *(f"-{name}={value}" for name, value in flags.items())]
    environment = {"KUBECONFIG": str(cluster.kubeconfig), "KUBERNETES_SERVICE_HOST": ""}
    return Server("vlagent", command, directory / "vlagent.log", f"http://{http}/health", environment, cluster)


_METADATA = [
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.pod.start_time",
    "k8s.node.name",
    "k8s.deployment.name",
    "k8s.statefulset.name",
    "k8s.daemonset.name",
    "k8s.replicaset.name",
]


def _enriching() -> dict[str, Any]:
    return {
        "extract": {
            "metadata": _METADATA,
            "labels": [{"from": "pod", "key_regex": "(.*)", "tag_name": "k8s.pod.label.$$1"}],
            "annotations": [
                {"from": "pod", "key_regex": "(.*)", "tag_name": "k8s.pod.annotation.$$1"},
                {"from": "namespace", "key_regex": "(.*)", "tag_name": "k8s.namespace.annotation.$$1"},
            ],
        },
        "pod_association": [
            {"sources": [{"from": "resource_attribute", "name": "k8s.pod.uid"}]},
            {"sources": [{"from": "connection"}]},
        ],
        "wait_for_metadata": True,
        "wait_for_metadata_timeout": "30s",
    }


def _metadata(endpoint: str, backend: str, kubernetes: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": endpoint}}}},
        "processors": {
            "k8sattributes": kubernetes | _enriching(),
            "resource": {"attributes": [{"action": "upsert", "key": "cluster", "value": "bench"}]},
            **source,
        },
        "exporters": {"otlphttp": {"endpoint": backend, "compression": "gzip"}},
        "service": {
            "pipelines": {"logs": {"receivers": ["otlp"], "processors": ["k8sattributes", "resource", *source], "exporters": ["otlphttp"]}}
        },
    }


def lockgate_metadata(directory: Path, endpoint: str, backend: str, api: str, source: bool = True) -> Server:
    """Gzip in, validated, k8sattributes, resource and (with `source`) source, gzip out."""
    more = {"source": {"collector": "bench"}} if source else {}
    return lockgate("metadata", directory, _metadata(endpoint, backend, {"auth_type": "none", "api_server": api}, more))


def otelcol_metadata(directory: Path, endpoint: str, backend: str, kubeconfig: Path) -> Server:
    """The same without source, which is no component of contrib."""
    config = _metadata(endpoint, backend, {"auth_type": "kubeConfig"}, {})
    return otelcol("otelcol", directory, config, {"KUBECONFIG": str(kubeconfig)})


def missing(binary: str) -> str:
    """Why this peer cannot be run; empty where it can."""
    return "" if os.access(PEERS / binary, os.X_OK) else f"no {binary} in {PEERS}: `make peers` builds it where it can"


def agents() -> list[Agent]:
    """Every agent that is compared, Lockgate first."""
    return [
        Agent("lockgate", lockgate_agent()),
        Agent("otelcol", otelcol_agent, 0.1, missing("otelcol")),
        Agent("fluent-bit", fluent_bit_agent, 0.1, missing("fluent-bit")),
        # Its default wakes for every single write; whoever turns that off pays with latency.
        Agent("fluent-bit, inotify off", partial(fluent_bit_agent, inotify=False), 0.1, missing("fluent-bit"), only_paced=True),
        Agent("vlagent", vlagent_agent, 0.25, missing("vlagent")),
    ]


def fresh(directory: Path) -> Path:
    """This directory, empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
