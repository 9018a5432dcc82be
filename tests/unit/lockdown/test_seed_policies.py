"""The example policies of Sumo Logic's security best practices beside ours: what each breaks and leaves open, as docs/security.md says.

Judged by the reading of policies that tests/e2e/test_policies.py holds against a kernel, and tests/peers against another implementation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.policies import Cluster, Connection, Place, Vip

from lockgate.collector.config import load
from lockgate.lockdown import netpol
from lockgate.lockdown.facts import Facts
from lockgate.lockdown.flows import derive

ROOT = Path(__file__).parents[3]
SEED = {policy["metadata"]["name"]: policy for policy in yaml.safe_load_all((ROOT / "tests/data/seed_policies.yaml").read_text())}
DNS, API = "10.96.0.10", "10.96.0.1"
METRICS = {"sumologic.com/app": "otelcol", "sumologic.com/component": "metrics"}
PLACES = {
    "otellogs": Place("10.244.1.1", "sumologic", {"app.kubernetes.io/name": "collection-sumologic-otelcol-logs-collector"}),
    "logs-metadata": Place("10.244.1.2", "sumologic", {"app": "collection-sumologic-otelcol-logs"}),
    "metrics-collector": Place("10.244.1.3", "sumologic", METRICS),
    "metrics-metadata": Place("10.244.1.4", "sumologic", {"app": "collection-sumologic-otelcol-metrics"}),
    "otelcol": Place("10.244.1.5", "sumologic", {"app": "collection-sumologic-otelcol"}),
    "allocator": Place("10.244.1.6", "sumologic", {"app.kubernetes.io/component": "opentelemetry-targetallocator"}),
    "prometheus": Place("10.244.1.7", "sumologic", {"app": "prometheus"}),
    "neighbour": Place("10.244.1.8", "sumologic", {"app": "other"}),
    "application": Place("10.244.2.1", "shop", {"app": "cart"}),
    "stranger": Place("10.244.2.2", "default", {"app": "stranger"}),
    "dns": Place("10.244.3.1", "kube-system", {"k8s-app": "kube-dns"}),
    "api": Place("172.18.0.2"),
    "kubelet": Place("172.18.0.3"),
    "backend": Place("203.0.113.10"),
    "cloud-metadata": Place("169.254.169.254"),
    "private-host": Place("10.200.0.9"),
}
CLUSTER = Cluster(PLACES, vips=(Vip(DNS, 53, "UDP", "dns", 53), Vip(API, 443, "TCP", "api", 6443)))
PORTS = [("TCP", port) for port in (22, 80, 443, 2020, 4317, 4318, 6443, 8080, 8888, 9090, 9411, 9888, 10250, 14250, 14268, 24321, 55681)]
PORTS += [("UDP", port) for port in (53, 6831, 6832)]
ENRICHES: set[Connection] = {
    (role, *to) for role in ("logs-metadata", "metrics-metadata", "otelcol") for to in (("api", "TCP", 6443), ("backend", "TCP", 443))
}
NEEDED: set[Connection] = {
    *((role, "dns", "UDP", 53) for role in SEED),
    *(("prometheus", role, "TCP", 8888) for role in SEED),
    *ENRICHES,
    ("otellogs", "logs-metadata", "TCP", 4318),
    ("metrics-collector", "allocator", "TCP", 8080),
    ("metrics-collector", "kubelet", "TCP", 10250),
    ("metrics-collector", "application", "TCP", 8080),  # a target, which listens where it likes
    ("metrics-collector", "metrics-metadata", "TCP", 4318),
    ("application", "otelcol", "TCP", 4317),
    ("application", "otelcol", "TCP", 4318),
}
"""What the roles of today's chart do with its defaults."""

SPANS = (4317, 5778, 9411, 14268, 55678, 55680, 55681)
WORD_PORTS = PORTS + [("TCP", port) for port in (5778, 6831, 6832, 55678, 55680)]
WORD: set[Connection] = {
    *((role, "dns", "UDP", 53) for role in SEED),
    *ENRICHES,
    ("prometheus", "otellogs", "TCP", 2020),
    ("otellogs", "logs-metadata", "TCP", 24321),
    *(("prometheus", role, "TCP", 24321) for role in ("logs-metadata", "metrics-metadata")),
    ("metrics-collector", "allocator", "TCP", 8080),
    ("metrics-collector", "application", "TCP", 9090),
    ("metrics-collector", "metrics-metadata", "TCP", 8888),
    ("prometheus", "metrics-metadata", "TCP", 9888),
    *(("application", "otelcol", "TCP", port) for port in SPANS),
    *(("application", "otelcol", "UDP", port) for port in (6831, 6832)),
}
"""What they would do on the ports that the document names."""


def judged(
    role: str, policies: list[dict[str, Any]], needed: set[Connection] = NEEDED, ports: list[tuple[str, int]] = PORTS
) -> tuple[set[Connection], int, int]:
    """What is needed and does not pass, and how many unneeded connections of how many pass, with this role's policies alone."""
    cluster = CLUSTER.under(policies)
    concerned = {
        (source, target, *port) for source in PLACES for target in PLACES for port in ports if source != target and role in (source, target)
    }
    passed = {connection for connection in concerned if cluster.allows(*connection)}
    unneeded = concerned - needed
    return (needed & concerned) - passed, len(passed & unneeded), len(unneeded)


def ours(role: str, preset: str, environment: dict[str, str], **known: Any) -> list[dict[str, Any]]:
    place = PLACES[role]
    facts = {
        "name": role,
        "namespace": place.namespace,
        "pods": place.labels,
        "scrapers": [{"pods": {"app": "prometheus"}}],
        "kubernetes_api": {"service_cidrs": [f"{API}/32"], "endpoint_cidrs": ["172.18.0.2/32"]},
        "backend": {"cidrs": ["203.0.113.0/24"]},
    }
    parsed = Facts.model_validate(facts | known)
    return netpol.policies(derive(load([preset], environment=environment).needs(), parsed).flows, parsed)


BACKEND = {"LOCKGATE_BACKEND_URL": "https://receivers.example.com/receiver"}
OURS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "otellogs": (
        "logs_collector",
        {"LOCKGATE_LOGS_METADATA_URL": "http://logs-metadata:4318"},
        {"services": {"logs-metadata": {"pods": PLACES["logs-metadata"].labels}}},
    ),
    "logs-metadata": ("logs_metadata", BACKEND, {"clients": {4318: [{"pods": PLACES["otellogs"].labels}]}}),
    "metrics-metadata": ("metrics_metadata", BACKEND, {"clients": {4318: [{"pods": METRICS}]}}),
    "otelcol": ("traces", BACKEND, {"clients": {4317: [{"namespace": "shop"}], 4318: [{"namespace": "shop"}]}}),
}


@pytest.mark.parametrize(("heading", "needed", "ports"), [("policy", NEEDED, PORTS), ("policy, at its word", WORD, WORD_PORTS)])
@pytest.mark.parametrize("role", SEED)
def test_what_an_example_breaks_and_leaves_open_is_what_the_documentation_says(
    role: str, heading: str, needed: set[Connection], ports: list[tuple[str, int]]
) -> None:
    broken, opened, matrix = judged(role, [SEED[role]], needed, ports)
    words = ", ".join(sorted(f"{source} -> {target} {protocol}/{port}" for source, target, protocol, port in broken)) or "nothing"
    column = f"{opened} of {matrix}"
    [table] = re.findall(rf"^\| {heading} \|.*\n((?:\|.*\n)+)", (ROOT / "docs/security.md").read_text(), re.M)
    line = next(line for line in table.splitlines() if line.startswith(f"| `{role}` |"))
    assert [cell.strip() for cell in line.strip("|").split("|")][1:3] == [words, column]


@pytest.mark.parametrize("role", OURS)
def test_ours_break_nothing_and_leave_nothing_open(role: str) -> None:
    preset, environment, known = OURS[role]
    broken, opened, _ = judged(role, ours(role, preset, environment, **known))
    assert (broken, opened) == (set(), 0)
