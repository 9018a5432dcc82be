"""The node: starts pods as processes, keeps their logs, restarts what ends, and tells of each pod as a Kubernetes object."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lockgate.sample.cri import ContainerLog


class Cluster(Protocol):
    """The API server as the node and its controllers use it."""

    def create(self, item: dict[str, Any]) -> dict[str, Any]:
        """Creates the object, or finds it there; as stored, with its uid."""

    def set_status(self, item: dict[str, Any], status: dict[str, Any]) -> None:
        """Replaces the object's status."""

    def delete(self, item: dict[str, Any]) -> None:
        """Removes the object now, as a kubelet does when its pod has ended."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs: a controller, its pods and their program."""

    namespace: str
    name: str
    kind: str
    """Deployment, StatefulSet or DaemonSet."""
    program: str
    """A kind that lockgate.sample.app knows."""
    replicas: int = 1
    labels: dict[str, str] = field(default_factory=dict)


WORKLOADS = (
    Workload("shop", "frontend", "Deployment", "web", 2, {"app": "frontend", "team": "storefront"}),
    Workload("shop", "orders", "Deployment", "api", 1, {"app": "orders", "team": "checkout"}),
    Workload("data", "postgres", "StatefulSet", "db", 1, {"app": "postgres", "team": "platform"}),
    Workload("kube-system", "coredns", "DaemonSet", "dns", 1, {"k8s-app": "kube-dns"}),
)


@dataclass(slots=True)
class Pod:
    """One running pod with one container."""

    workload: Workload
    stored: dict[str, Any]
    """The object as the API server keeps it."""
    ip: str
    started: str
    container_id: str = field(default_factory=lambda: os.urandom(32).hex())
    restarts: int = 0

    @property
    def name(self) -> str:
        return str(self.stored["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.stored["metadata"]["uid"])


class Node:
    """Runs workloads under `log_root`, which has the shape of /var/log/pods. `async with` starts and ends everything that it runs."""

    def __init__(
        self,
        log_root: Path,
        cluster: Cluster,
        *,
        name: str = "sample-node",
        lines_per_second: float = 20,
        max_log_bytes: int = 2 << 20,
        max_log_files: int = 5,
        rotate_every_seconds: float = 10,
        environment: dict[str, str] | None = None,
        workloads: tuple[Workload, ...] = WORKLOADS,
    ) -> None:
        self.log_root, self.cluster, self.name, self.workloads = log_root, cluster, name, workloads
        self.lines_per_second, self.environment = lines_per_second, environment or {}
        self.max_log_bytes, self.max_log_files, self.rotate_every_seconds = max_log_bytes, max_log_files, rotate_every_seconds
        self.pods: list[Pod] = []
        self.logs: dict[str, ContainerLog] = {}
        self.rotations = 0
        self._tasks: asyncio.TaskGroup
        self._running: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Node:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.cluster.create(_object("v1", "Node", self.name, labels={"kubernetes.io/hostname": self.name}))
        for namespace in sorted({workload.namespace for workload in self.workloads}):
            self.cluster.create(_object("v1", "Namespace", namespace))
        for workload in self.workloads:
            owner, suffix, labels = self._controllers(workload)
            for index in range(workload.replicas):
                tail = str(index) if workload.kind == "StatefulSet" else _letters(5)
                item = _object("v1", "Pod", f"{workload.name}{suffix}-{tail}", workload.namespace, labels, owner)
                item["metadata"]["annotations"] = {"example.com/owner": workload.labels.get("team", "cluster")}
                item["spec"] = {"nodeName": self.name, "containers": [{"name": workload.name, "image": _image(workload)}]}
                pod = Pod(workload, self.cluster.create(item), f"10.244.0.{10 + len(self.pods)}", _now())
                self.pods.append(pod)
                self._tell(pod, "Scheduled", f"Successfully assigned {workload.namespace}/{pod.name} to {self.name}", "default-scheduler")
                self._spawn(self._run(pod))
        self._spawn(self._kubelet())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.append(self._tasks.create_task(work))

    def _controllers(self, workload: Workload) -> tuple[dict[str, Any], str, dict[str, str]]:
        """Creates this workload's controllers; its pods' owner reference, the suffix of their names, their labels."""
        controller = self.cluster.create(_object("apps/v1", workload.kind, workload.name, workload.namespace, workload.labels))
        owner = _owner(controller, workload.kind)
        if workload.kind != "Deployment":
            return owner, "", workload.labels
        template_hash = _letters(10)
        labels = {**workload.labels, "pod-template-hash": template_hash}
        name = f"{workload.name}-{template_hash}"
        replica_set = self.cluster.create(_object("apps/v1", "ReplicaSet", name, workload.namespace, labels, owner))
        return _owner(replica_set, "ReplicaSet"), f"-{template_hash}", labels

    async def _run(self, pod: Pod) -> None:
        directory = self.log_root / f"{pod.workload.namespace}_{pod.name}_{pod.uid}" / pod.workload.name
        environment = {
            **os.environ,
            **self.environment,
            "LINES_PER_SECOND": str(self.lines_per_second),
            "OTEL_SERVICE_NAME": pod.workload.name,
            "OTEL_RESOURCE_ATTRIBUTES": f"k8s.pod.uid={pod.uid},k8s.pod.name={pod.name},k8s.namespace.name={pod.workload.namespace}",
        }
        try:
            while True:
                self.cluster.set_status(pod.stored, _status(pod))
                log = self.logs[pod.uid] = ContainerLog(directory, pod.restarts, self.max_log_bytes, self.max_log_files)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-m",
                    "lockgate.sample.app",
                    pod.workload.program,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                self._processes[pod.uid] = process
                self._tell(pod, "Started", f"Started container {pod.workload.name}")
                try:
                    assert process.stdout and process.stderr
                    await asyncio.gather(_copy(process.stdout, log, "stdout"), _copy(process.stderr, log, "stderr"))
                    await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
                    log.close()
                pod.restarts += 1
                why = f"Back-off restarting failed container {pod.workload.name} in pod {pod.name}_{pod.workload.namespace}({pod.uid})"
                self._tell(pod, "BackOff", why, kind="Warning")
                await asyncio.sleep(min(10, 2 ** min(pod.restarts, 5) / 4))  # a kubelet's CrashLoopBackOff, in miniature
        finally:
            self.cluster.delete(pod.stored)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory.parent)

    def _tell(self, pod: Pod, reason: str, message: str, component: str = "kubelet", kind: str = "Normal") -> None:
        """Creates an event about this pod, as client-go's recorder writes it."""
        now, namespace = _now(), pod.workload.namespace
        item = _object("v1", "Event", f"{pod.name}.{time.time_ns():x}", namespace)
        involved = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod.name, "uid": pod.uid}
        if component == "kubelet":
            involved["fieldPath"] = f"spec.containers{{{pod.workload.name}}}"
        item |= {"involvedObject": involved, "reason": reason, "message": message, "type": kind, "count": 1, "eventTime": None}
        item |= {"firstTimestamp": now, "lastTimestamp": now, "source": {"component": component, "host": self.name}}
        self.cluster.create(item | {"reportingComponent": component, "reportingInstance": self.name})

    async def _kubelet(self) -> None:
        while True:
            await asyncio.sleep(self.rotate_every_seconds)
            for log in list(self.logs.values()):
                with contextlib.suppress(ValueError):  # closed since: its container has just ended
                    self.rotations += await asyncio.to_thread(log.rotate_if_needed)


def _object(
    api_version: str, kind: str, name: str, namespace: str = "", labels: dict[str, str] | None = None, owner: dict[str, Any] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": labels or {}}
    if namespace:
        metadata["namespace"] = namespace
    if owner:
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _owner(stored: dict[str, Any], kind: str) -> dict[str, Any]:
    metadata = stored["metadata"]
    return {"apiVersion": "apps/v1", "kind": kind, "name": metadata["name"], "uid": metadata["uid"], "controller": True}


def _image(workload: Workload) -> str:
    return f"registry.example/{workload.name}:1.0"


def _status(pod: Pod) -> dict[str, Any]:
    container = {
        "name": pod.workload.name,
        "containerID": f"containerd://{pod.container_id}",
        "image": _image(pod.workload),
        "imageID": "",
        "ready": True,
        "restartCount": pod.restarts,
        "state": {"running": {"startedAt": _now()}},
    }
    return {
        "phase": "Running",
        "podIP": pod.ip,
        "podIPs": [{"ip": pod.ip}],
        "hostIP": "10.0.0.1",
        "startTime": pod.started,
        "containerStatuses": [container],
    }


async def _copy(source: asyncio.StreamReader, log: ContainerLog, stream: str) -> None:
    while data := await source.read(1 << 16):
        log.write(stream, data)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _letters(count: int) -> str:
    # The alphabet of Kubernetes' generated names (apimachinery util/rand): no vowels, no look-alikes.
    alphabet = "bcdfghjklmnpqrstvwxz2456789"
    return "".join(alphabet[byte % len(alphabet)] for byte in os.urandom(count))
