"""A Kubernetes API with pods to be found: `python bench/cluster.py PORT PODS FILE`; the pods' names and uids are written to FILE."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import generate

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import KNOWN
from lockgate.sample.kubernetes_api import SampleApi
from lockgate.sample.kubernetes_store import ObjectStore

_KNOWN = {resource.kind: resource for resource in KNOWN}


def fill(store: ObjectStore, pods: int) -> list[dict[str, str]]:
    """The first so many of generate.py's pods, with their owners and namespaces, and the uids that the API gave them."""

    def create(kind: str, name: str, namespace: str = "", owner: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        labels = {"app": name.split("-")[0], "team": "storefront", "pod-template-hash": "5c7d8f9b6d"}
        meta: dict[str, Any] = {"name": name, "labels": labels, "annotations": {"example.com/owner": "platform"}}
        meta |= {"namespace": namespace} if namespace else {}
        if owner is not None:
            above = owner["metadata"]
            meta["ownerReferences"] = [
                {"apiVersion": "apps/v1", "kind": owner["kind"], "name": above["name"], "uid": above["uid"], "controller": True}
            ]
        made = store.create(_KNOWN[kind], {"metadata": meta} | more, namespace)
        if "status" in more:
            made = store.update(_KNOWN[kind], made | {"status": more["status"]}, namespace, status=True)
        return {"kind": kind} | made

    create("Node", "node-1")
    found: list[dict[str, str]] = []
    for number in range(pods):
        pod = generate.pod(number)
        namespace, replicas = pod["namespace"], pod["name"].rpartition("-")[0]
        app = replicas.partition("-")[0]
        if not found or found[-1]["namespace"] != namespace:
            create("Namespace", namespace)
        if not found or not found[-1]["name"].startswith(f"{app}-"):
            replica_set = create("ReplicaSet", replicas, namespace, create("Deployment", app, namespace))
        ip = f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}"
        container = {"name": "main", "image": f"registry.example/{app}:1.0"}
        status = {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": ip, "podIPs": [{"ip": ip}]}
        status |= {
            "containerStatuses": [
                container | {"containerID": f"containerd://{pod['container']}", "ready": True, "restartCount": 0, "imageID": ""}
            ]
        }
        spec = {"nodeName": "node-1", "containers": [container]}
        made = create("Pod", pod["name"], namespace, replica_set, spec=spec, status=status)
        found.append(pod | {"uid": made["metadata"]["uid"]})
    return found


async def serve(store: ObjectStore, port: int) -> None:
    async with SampleApi(store).serve(port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    store = ObjectStore(SystemClock())
    Path(sys.argv[3]).write_text(json.dumps(fill(store, int(sys.argv[2]))))
    asyncio.run(serve(store, int(sys.argv[1])))
