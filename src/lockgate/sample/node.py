"""The node: starts pods as processes, keeps their logs, restarts what ends, and tells of each pod as a Kubernetes object."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockgate.sample.cri import ContainerLog

Apply = Callable[[str, dict[str, Any]], None]
"""(`apply` or `delete`, a Kubernetes object): how the node tells an API server."""


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
    name: str
    owner: dict[str, Any]
    ip: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    container_id: str = field(default_factory=lambda: os.urandom(32).hex())
    restarts: int = 0
    labels: dict[str, str] = field(default_factory=dict)


class Node:
    """Runs workloads under `log_root`, which has the shape of /var/log/pods. `async with` starts and ends everything that it runs."""

    def __init__(
        self,
        log_root: Path,
        apply: Apply,
        *,
        name: str = "sample-node",
        lines_per_second: float = 20,
        max_log_bytes: int = 2 << 20,
        max_log_files: int = 5,
        rotate_every_seconds: float = 10,
        environment: dict[str, str] | None = None,
        workloads: tuple[Workload, ...] = WORKLOADS,
    ) -> None:
        self.log_root, self.apply, self.name, self.workloads = log_root, apply, name, workloads
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
        now = _now()
        self.apply(
            "apply", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}}
        )
        for namespace in sorted({workload.namespace for workload in self.workloads}):
            labels = {"kubernetes.io/metadata.name": namespace}
            self.apply(
                "apply",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels, "creationTimestamp": now}},
            )
        for workload in self.workloads:
            owner, suffix = self._controllers(workload)
            for index in range(workload.replicas):
                name = f"{workload.name}{suffix}-{index}" if workload.kind == "StatefulSet" else f"{workload.name}{suffix}-{_letters(5)}"
                pod = Pod(workload, name, owner, ip=f"10.244.0.{10 + len(self.pods)}")
                pod.labels = {**workload.labels, **({"pod-template-hash": suffix[1:]} if workload.kind == "Deployment" else {})}
                self.pods.append(pod)
                self.apply("apply", self._pod_object(pod))
                self._spawn(self._run(pod))
        self._spawn(self._kubelet())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.append(self._tasks.create_task(work))

    def _controllers(self, workload: Workload) -> tuple[dict[str, Any], str]:
        """The owner reference of this workload's pods and their name's suffix; tells the API of the controllers on the way."""
        uid = str(uuid.uuid4())
        metadata = {"namespace": workload.namespace, "name": workload.name, "uid": uid, "labels": workload.labels}
        self.apply("apply", {"apiVersion": "apps/v1", "kind": workload.kind, "metadata": metadata})
        owner = {"apiVersion": "apps/v1", "kind": workload.kind, "name": workload.name, "uid": uid, "controller": True}
        if workload.kind != "Deployment":
            return owner, ""
        template_hash = _letters(9)
        replica_set = {"namespace": workload.namespace, "name": f"{workload.name}-{template_hash}", "uid": str(uuid.uuid4())}
        self.apply(
            "apply",
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {**replica_set, "labels": workload.labels, "ownerReferences": [owner]},
            },
        )
        return {**owner, "kind": "ReplicaSet", "name": replica_set["name"], "uid": replica_set["uid"]}, f"-{template_hash}"

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
                log = self.logs[pod.uid] = ContainerLog(directory, pod.restarts, self.max_log_bytes, self.max_log_files)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "lockgate.sample.app",
                    pod.workload.program,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                self._processes[pod.uid] = process
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
                self.apply("apply", self._pod_object(pod))
                await asyncio.sleep(min(10, 2 ** min(pod.restarts, 5) / 4))  # a kubelet's CrashLoopBackOff, in miniature
        finally:
            self.apply("delete", self._pod_object(pod))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory.parent)

    async def _kubelet(self) -> None:
        while True:
            await asyncio.sleep(self.rotate_every_seconds)
            for log in list(self.logs.values()):
                with contextlib.suppress(ValueError):  # closed since: its container has just ended
                    self.rotations += await asyncio.to_thread(log.rotate_if_needed)

    def _pod_object(self, pod: Pod) -> dict[str, Any]:
        started = _now()
        status = {"running": {"startedAt": started}}
        container = {"name": pod.workload.name, "image": f"registry.example/{pod.workload.name}:1.0"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": pod.workload.namespace,
                "name": pod.name,
                "uid": pod.uid,
                "labels": pod.labels,
                "annotations": {"example.com/owner": pod.workload.labels.get("team", "cluster")},
                "ownerReferences": [pod.owner],
                "creationTimestamp": started,
            },
            "spec": {"nodeName": self.name, "containers": [container]},
            "status": {
                "phase": "Running",
                "podIP": pod.ip,
                "podIPs": [{"ip": pod.ip}],
                "hostIP": "10.0.0.1",
                "startTime": started,
                "containerStatuses": [
                    {
                        "name": pod.workload.name,
                        "containerID": f"containerd://{pod.container_id}",
                        "image": container["image"],
                        "imageID": "",
                        "ready": True,
                        "restartCount": pod.restarts,
                        "state": status,
                    }
                ],
            },
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
