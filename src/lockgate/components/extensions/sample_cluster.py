"""A cluster in miniature on this machine: an API server, and a node whose pods are real processes. For `lockgate up` and for tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from lockgate.kit.units import Duration, Size
from lockgate.kube.resources import KNOWN
from lockgate.net.address import split_endpoint
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Connect, Exec, Listen, Need, Write
from lockgate.sample.kubernetes_api import SampleApi
from lockgate.sample.kubernetes_store import ObjectStore, StoreError
from lockgate.sample.node import Node

_RESOURCES = {resource.kind: resource for resource in KNOWN}


class SampleClusterSettings(ComponentSettings):
    """How large, how loud, and where."""

    endpoint: str = "127.0.0.1:16443"
    """host:port of the API server: plain HTTP without credentials, so keep it on loopback."""
    log_root: str = ".lockgate/pods"
    """What plays /var/log/pods. The pods that run here are removed from it at stop."""
    lines_per_second: float = Field(20.0, gt=0, le=100_000)
    """How fast each pod logs."""
    max_log_size: Size = 2 << 20
    """Bytes at which a container's log is rotated (kubelet: containerLogMaxSize, 10Mi there)."""
    max_log_files: int = Field(5, ge=2)
    """Files kept per container (kubelet: containerLogMaxFiles)."""
    rotation_interval: Duration = 10.0
    """How often sizes are looked at (kubelet: containerLogMonitorInterval)."""
    metrics_url: str = ""
    """Where the pods send OTLP metrics, as a full URL; empty sends none."""
    traces_url: str = ""
    """Where the pods send OTLP spans, as a full URL; empty sends none."""

    @property
    def log_directory(self) -> Path:
        """`log_root`, absolute."""
        return Path(self.log_root).absolute()

    def needs(self) -> Iterator[Need]:
        yield Listen(*split_endpoint(self.endpoint), "the sample API server")
        yield Write(str(self.log_directory), "the sample pods' logs", 0o755)
        yield Exec(sys.executable, "the sample pods are processes")
        for url in filter(None, (self.metrics_url, self.traces_url)):
            parts = urlsplit(url)
            yield Connect(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), "what the sample pods send")


@component("sample_cluster", SampleClusterSettings)
class SampleClusterExtension(Extension[SampleClusterSettings]):
    """Runs a small cluster to collect from: an API server, and a node whose pods are processes."""

    def __init__(self, settings: SampleClusterSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.store = ObjectStore(context.clock)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        settings = self.settings
        host, port = split_endpoint(settings.endpoint)
        environment = {
            key: url
            for key, url in (
                ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", settings.metrics_url),
                ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", settings.traces_url),
            )
            if url
        }
        await self._stack.enter_async_context(SampleApi(self.store).serve(host, port))
        node = Node(
            settings.log_directory,
            _StoreCluster(self.store),
            lines_per_second=settings.lines_per_second,
            max_log_bytes=settings.max_log_size,
            max_log_files=settings.max_log_files,
            rotate_every_seconds=settings.rotation_interval,
            environment=environment,
        )
        await self._stack.enter_async_context(node)
        self.context.metrics.observe("lockgate_sample_log_rotations", "container logs rotated", lambda: node.rotations, kind="counter")
        self.log.info("the sample cluster runs %d pods; its API server is http://%s:%d", len(node.pods), host, port)

    async def stop(self) -> None:
        await self._stack.aclose()


class _StoreCluster:
    """The sample API server's store, as the node and its controllers see it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, item: dict[str, Any]) -> dict[str, Any]:
        resource, metadata = _RESOURCES[item["kind"]], item["metadata"]
        namespace = metadata.get("namespace", "")
        try:
            return self._store.get(resource, namespace, metadata["name"])
        except StoreError:
            return self._store.create(resource, item, namespace)

    def set_status(self, item: dict[str, Any], status: dict[str, Any]) -> None:
        metadata = item["metadata"]
        self._store.merge(_RESOURCES[item["kind"]], metadata.get("namespace", ""), metadata["name"], {"status": status}, status=True)

    def delete(self, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        self._store.delete(_RESOURCES[item["kind"]], metadata.get("namespace", ""), metadata["name"], grace_seconds=0)
