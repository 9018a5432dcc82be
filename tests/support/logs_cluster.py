"""A cluster with the two logs roles, those who may talk to them and those who may not, and the policies that are rendered for it."""

from __future__ import annotations

from typing import Any

from lockgate.collector.config import load
from lockgate.lockdown import netpol
from lockgate.lockdown.facts import Facts
from lockgate.lockdown.flows import derive
from support.policies import Cluster, Connection, Place, Vip

DNS, API, METADATA = "10.96.0.10", "10.96.0.1", "10.96.0.20"
PLACES = {
    "agent": Place("10.244.1.2", "nodes", {"app": "agent"}),
    "metadata": Place("10.244.1.3", "sumo", {"app": "metadata"}),
    "neighbour": Place("10.244.1.4", "sumo", {"app": "other"}),
    "prometheus": Place("10.244.1.5", "monitoring", {"app": "prometheus"}),
    "dns": Place("10.244.1.6", "kube-system", {"k8s-app": "kube-dns"}),
    # In the right namespace with other labels, and with the right labels in another namespace: nobody needs them.
    "grafana": Place("10.244.2.1", "monitoring", {"app": "grafana"}),
    "shipper": Place("10.244.2.2", "nodes", {"app": "shipper"}),
    "proxy": Place("10.244.2.3", "kube-system", {"k8s-app": "kube-proxy"}),
    "shop-prometheus": Place("10.244.2.4", "shop", {"app": "prometheus"}),
    "shop-agent": Place("10.244.2.5", "shop", {"app": "agent"}),
    "shop-metadata": Place("10.244.2.6", "shop", {"app": "metadata"}),
    "shop-dns": Place("10.244.2.7", "shop", {"k8s-app": "kube-dns"}),
    "api": Place("172.18.0.2"),
    "backend": Place("203.0.113.10"),
    "internet": Place("198.51.100.7"),
    "private": Place("10.200.0.9"),
    "metadata-service": Place("169.254.169.254"),
}
"""Two roles, whoever may ask them, who may not, and what no role should reach: other hosts, the cloud's metadata service among them."""
CLUSTER = Cluster(
    PLACES,
    vips=(
        Vip(DNS, 53, "UDP", "dns", 53),
        Vip(DNS, 53, "TCP", "dns", 53),
        Vip(API, 443, "TCP", "api", 6443),
        Vip(API, 80, "TCP", "api", 80),  # a port that no role needs
        Vip(METADATA, 4318, "TCP", "metadata", 4318),
    ),
)
ROLES = ("agent", "metadata")
PORTS = [("TCP", port) for port in (53, 80, 443, 1777, 3000, 4317, 4318, 6443, 8888, 9153, 13133, 24321)] + [("UDP", 53), ("UDP", 6831)]
NEEDED: set[Connection] = {
    *((role, DNS, protocol, 53) for role in ROLES for protocol in ("TCP", "UDP")),
    *(("prometheus", role, "TCP", 8888) for role in ROLES),
    ("agent", METADATA, "TCP", 4318),
    ("metadata", API, "TCP", 443),
    ("metadata", "backend", "TCP", 443),
}
ENVIRONMENT = {
    "agent": {"LOCKGATE_LOGS_METADATA_URL": "http://logs-metadata.sumo.svc.cluster.local:4318"},
    "metadata": {
        "LOCKGATE_KUBE_AUTH": "none",
        "LOCKGATE_KUBE_API": "http://kubernetes.default.svc:443",
        "LOCKGATE_BACKEND_URL": "http://receivers.example.com:443/receiver",
    },
}
PRESETS = {"agent": "logs_collector", "metadata": "logs_metadata"}
FACTS: dict[str, dict[str, Any]] = {
    "agent": {
        "services": {"logs-metadata.sumo": {"pods": {"app": "metadata"}, "namespace": "sumo"}},
    },
    "metadata": {
        "clients": {4318: [{"pods": {"app": "agent"}, "namespace": "nodes"}]},
        "kubernetes_api": {"service_cidrs": [f"{API}/32"], "endpoint_cidrs": ["172.18.0.2/32"]},
    },
}


def policies(role: str) -> list[dict[str, Any]]:
    """As `lockgate netpol` prints them."""
    place = PLACES[role]
    known = {
        "name": role,
        "namespace": place.namespace,
        "pods": place.labels,
        "scrapers": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
    }
    facts = Facts.model_validate({**known, **FACTS[role]})
    derived = derive(load([PRESETS[role]], environment=ENVIRONMENT[role]).needs(), facts)
    assert not derived.warnings
    return netpol.policies(derived.flows, facts)


def matrix() -> set[Connection]:
    """Every connection between two places, and to each Service."""
    direct = {(source, target, *port) for source in PLACES for target in PLACES if source != target for port in PORTS}
    return direct | {(source, vip.address, vip.protocol, vip.port) for source in PLACES for vip in CLUSTER.vips if source != vip.to}


def concerns(connection: Connection) -> bool:
    """Whether a role is at one of its ends."""
    return connection[0] in ROLES or connection[1] in (*ROLES, METADATA)


def allowed(cluster: Cluster) -> set[Connection]:
    return {connection for connection in matrix() if cluster.allows(*connection)}


def behind(connections: set[Connection]) -> set[Connection]:
    """These, and what they are behind their Services."""
    vips = {(vip.address, vip.protocol, vip.port): vip for vip in CLUSTER.vips}
    real = {(each[0], vip.to, vip.protocol, vip.to_port) for each in connections if (vip := vips.get(each[1:])) is not None}
    return connections | real


BOTH = [policy for role in ROLES for policy in policies(role)]
