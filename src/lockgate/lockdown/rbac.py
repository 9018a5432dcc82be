"""Needs of the Kubernetes API as RBAC rules (rbac.authorization.k8s.io/v1): these verbs on these resources, and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lockgate.pipeline.needs import Kubernetes, Need

CLUSTER_SCOPED = frozenset({"nodes", "namespaces", "persistentvolumes", "nodes/metrics", "storageclasses", "clusterroles"})
"""Resources without a namespace: a Role cannot grant them."""


def rules(needs: Iterable[Kubernetes]) -> list[dict[str, Any]]:
    """PolicyRules, one for each API group and set of verbs, in a fixed order."""
    verbs: dict[tuple[str, str], set[str]] = {}
    for need in needs:
        verbs.setdefault((need.group, need.resource), set()).update(need.verbs)
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, resource), granted in sorted(verbs.items()):
        grouped.setdefault((group, tuple(sorted(granted))), []).append(resource)
    return [{"apiGroups": [group], "resources": resources, "verbs": list(granted)} for (group, granted), resources in grouped.items()]


def manifests(
    rows: Sequence[tuple[str, Need]], name: str, namespace: str, service_account: str, only_namespace: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Roles with their bindings for one role's service account, and warnings. Nothing at all where nothing is asked of the API.

    A need of the whole cluster makes a ClusterRole, one of a namespace a Role there. `only_namespace` puts every need into `namespace`,
    and leaves out, with a warning, what has no namespace.
    """
    needs = dict.fromkeys(need for _, need in rows if isinstance(need, Kubernetes))
    places: dict[str, list[Kubernetes]] = {}
    warnings: list[str] = []
    for need in needs:
        place = need.namespace or (namespace if only_namespace else "")
        if place and need.resource in CLUSTER_SCOPED:
            warnings.append(f"{need.resource} has no namespace, so it is not granted here; without it there is no {need.reason}")
            continue
        places.setdefault(place, []).append(need)
    found: list[dict[str, Any]] = []
    for place, asked in sorted(places.items()):
        kind = "Role" if place else "ClusterRole"
        metadata = {"name": name} | ({"namespace": place} if place else {})
        api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        found.append({**api, "kind": kind, "metadata": metadata, "rules": rules(asked)})
        found.append(
            {
                **api,
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": service_account, "namespace": namespace}],
            }
        )
    return found, warnings
