"""The chart as Helm renders it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from support.kube_apiserver import PEERS

CHART = Path(__file__).parents[2] / "deploy/helm/lockgate"
HELM, KUBECTL = PEERS / "bin/helm", PEERS / "bin/kubectl"
RELEASE, NAMESPACE = "r", "sumo"
missing = "" if HELM.exists() else f"no {HELM}: tests/install_helm.py has not installed it"

Object = dict[str, Any]
Values = Mapping[str, Any]


class Refused(Exception):
    """Helm's error for these values."""


def helm(*arguments: str, values: Values | None = None) -> str:
    """What helm prints. Raises Refused."""
    command = [str(HELM), *arguments, *(["--values", "-"] if values is not None else [])]
    # No cluster and no user's settings: a test must not depend on whose machine it is.
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    text = json.dumps(values) if values is not None else None
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60, env=environment)
    if done.returncode:
        raise Refused(done.stderr or done.stdout)
    return done.stdout


def render(values: Values) -> list[Object]:
    """Every object of the chart, each with what it is rendered from."""
    text = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, values=values)
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def notes(values: Values) -> str:
    """What a user reads after installing."""
    shown = helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=values)
    return shown.partition("\nNOTES:\n")[2]


def overlay(below: Any, above: Any) -> Any:
    """Values as Helm merges them: mappings key by key, anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: overlay(below.get(key), value) for key, value in above.items()}}


def complete(values: Values) -> Any:
    """These values on top of the chart's own."""
    return overlay(yaml.safe_load((CHART / "values.yaml").read_text()), dict(values))


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def workloads(objects: Iterable[Object]) -> dict[str, Object]:
    """DaemonSets and StatefulSets by role: logs-collector, logs-metadata, metrics-metadata, traces."""
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in of_kind(objects, "DaemonSet", "StatefulSet")}


def pod(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def not_restricted(spec: Object) -> list[str]:
    """What Pod Security `restricted` refuses in this pod (Kubernetes, "Pod Security Standards")."""
    found = []
    common = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        if not volume.keys() & {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}:
            found.append(f"volume {volume['name']}")
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = {**common, **container.get("securityContext", {})}
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": "ALL" in own.get("capabilities", {}).get("drop", []),
            "capabilities.add": set(own.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, is_good in checks.items() if not is_good]
    return found
