"""The network policies that `lockgate netpol` renders, as rules of a real kernel between real processes in network namespaces.

Every needed connection passes and every other one does not; without policies all of them pass (else a broken network would do as well);
without any one rule something needed breaks; with any one rule wider something unneeded passes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.netns import Network, missing
from support.policies import Cluster, Connection, Place, Vip
from support.process import wait_until

from lockgate.collector.config import load
from lockgate.lockdown import netpol
from lockgate.lockdown.facts import Facts
from lockgate.lockdown.flows import derive

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


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if missing:
        pytest.skip(missing)
    with Network(CLUSTER) as made:
        made.listen(PORTS)
        yield made


@pytest.mark.parametrize("blocks_see_services", [False, True], ids=["after DNAT", "before DNAT"])
def test_exactly_the_needed_connections_pass(network: Network, blocks_see_services: bool) -> None:
    network.enforce(CLUSTER)
    assert network.reachable(matrix()) == matrix()  # without policies everything passes
    cluster = replace(CLUSTER, policies=BOTH, blocks_see_services=blocks_see_services)
    network.enforce(cluster)
    passed = network.reachable(matrix())
    assert passed == allowed(cluster)  # the kernel and our reading of the policies agree
    assert passed >= NEEDED
    unneeded = {connection for connection in passed if concerns(connection)} - behind(NEEDED)
    # The backend is known by name alone: what is on the internet may be it.
    assert unneeded == {("metadata", "internet", "TCP", 443)}
    assert {connection for connection in matrix() if not concerns(connection)} <= passed  # nobody else is touched


def mutations(rule: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The rule, wider in one way each."""
    yield {name: value for name, value in rule.items() if name != "ports"}
    yield {name: value for name, value in rule.items() if name != key}
    yield {**rule, "ports": [*rule["ports"], {"protocol": "TCP", "port": 80}]}
    for index, peer in enumerate(rule[key]):
        for wider in wider_peers(peer):
            changed = copy.deepcopy(rule)
            changed[key][index] = wider
            yield changed


def wider_peers(peer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if (block := peer.get("ipBlock")) is None:
        yield {**peer, "podSelector": {}}
        yield {**peer, "namespaceSelector": {}}
    elif "." in block["cidr"]:  # these namespaces have no IPv6
        yield {"ipBlock": {"cidr": "0.0.0.0/0"}}


def rules() -> Iterator[tuple[int, str, str, int]]:
    """(policy, direction, from or to, index) of each rule."""
    for number, policy in enumerate(BOTH):
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for index in range(len(policy["spec"].get(direction, ()))):
                yield number, direction, key, index


def test_without_any_one_rule_or_any_one_port_of_it_something_needed_breaks() -> None:
    tried = 0
    for number, direction, _, index in rules():
        for port in range(-1, len(BOTH[number]["spec"][direction][index]["ports"])):
            changed = copy.deepcopy(BOTH)
            those = changed[number]["spec"][direction]
            if port < 0:
                del those[index]
            else:
                del those[index]["ports"][port]
                if not those[index]["ports"]:
                    continue  # no port is every port
            tried += 1
            assert any(
                not cluster.allows(*needed)
                for seen in (False, True)
                for cluster in [replace(CLUSTER, policies=changed, blocks_see_services=seen)]
                for needed in NEEDED
            ), f"nothing needs rule {index} of {direction} of {BOTH[number]['metadata']['name']}"
    assert tried >= 9


def test_with_any_one_rule_wider_something_unneeded_passes_when_its_side_is_judged_alone() -> None:
    tried = 0
    for number, direction, key, index in rules():
        # The other end's policy would hide what this one opens.
        alone = [policy for policy in BOTH if policy["metadata"]["namespace"] == BOTH[number]["metadata"]["namespace"]]
        usual = {seen: allowed(replace(CLUSTER, policies=alone, blocks_see_services=seen)) for seen in (False, True)}
        for wider in mutations(BOTH[number]["spec"][direction][index], key):
            if wider == BOTH[number]["spec"][direction][index]:
                continue
            changed = copy.deepcopy(BOTH[number])
            changed["spec"][direction][index] = wider
            widened = [changed if policy is BOTH[number] else policy for policy in alone]
            tried += 1
            assert any(allowed(replace(CLUSTER, policies=widened, blocks_see_services=seen)) > usual[seen] for seen in (False, True)), wider
    assert tried >= 30


def test_the_kernel_agrees_with_the_reading_of_changed_policies_too(network: Network) -> None:
    for number, direction, key, index in list(rules())[::3]:
        changed = copy.deepcopy(BOTH)
        changed[number]["spec"][direction][index] = next(mutations(changed[number]["spec"][direction][index], key))
        cluster = replace(CLUSTER, policies=changed)
        network.enforce(cluster)
        assert network.reachable(matrix()) == allowed(cluster)


def test_logs_reach_the_backend_under_the_policies_and_not_when_they_deny_everything(tmp_path: Path) -> None:
    if missing:
        pytest.skip(missing)
    with Network(CLUSTER, name_server=DNS) as network, open(tmp_path / "log", "ab") as output:
        # Before anything is connected: what stands would go on.
        network.enforce(replace(CLUSTER, policies=[policy for policy in BOTH if policy["metadata"]["name"].endswith("-deny")]))
        names = {
            "receivers.example.com": PLACES["backend"].address,
            "kubernetes.default.svc": API,
            "logs-metadata.sumo.svc.cluster.local": METADATA,
        }
        records = [f"--address=/{name}/{address}" for name, address in names.items()]
        network.start("dns", ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", *records], output)
        lockgate = [sys.executable, "-P", "-m", "lockgate.cli.main"]
        state = tmp_path / "backend"
        common = {"LOCKGATE_HOST": "0.0.0.0", "LOCKGATE_LOG_ROOT": str(tmp_path / "pods")}
        backend = {**common, "LOCKGATE_BACKEND_PORT": "443", "LOCKGATE_STATE": str(state)}
        network.start("backend", [*lockgate, "run", "--config", "backend"], output, backend)
        sample = [*lockgate, "run", "--config", "sample", "--set", "extensions.sample_cluster.endpoint=0.0.0.0:6443"]
        network.start("api", sample, output, common)
        for role in ROLES:
            environment = {**common, **ENVIRONMENT[role], "LOCKGATE_STATE": str(tmp_path / role)}
            network.start(role, [*lockgate, "run", "--config", PRESETS[role]], output, environment)

        def ask(name: str, *command: str) -> str:
            return subprocess.run([*network.inside(name), *command], capture_output=True, text=True, check=False).stdout

        def delivered() -> int:
            sql = "SELECT count(*) AS n FROM logs WHERE pod != '' AND resource LIKE '%k8s.pod.uid%'"
            answer = ask("backend", *lockgate, "query", "--state", str(state), "--format", "json", sql)
            return int(json.loads(answer.splitlines()[0])["n"]) if answer.strip() else -1

        status = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:13133/status').status)"
        for name in ("backend", "api", *ROLES):
            wait_until(lambda name=name: ask(name, sys.executable, "-c", status).strip() == "200", what=f"{name} runs")
        wait_until(lambda: delivered() == 0, what="the backend answers")
        network.enforce(replace(CLUSTER, policies=BOTH))
        wait_until(lambda: delivered() > 0, 40, "logs arrive")

        def check(role: str) -> subprocess.CompletedProcess[str]:
            pod = {"KUBERNETES_SERVICE_HOST": API, "KUBERNETES_SERVICE_PORT": "443", **ENVIRONMENT[role]}
            command = [*network.inside(role), *lockgate, "netcheck", "--config", PRESETS[role], "--seconds", "1"]
            return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **pod})

        fine = check("agent")
        assert fine.returncode == 0 and "logs-metadata.sumo.svc.cluster.local:4318 should be open" in fine.stdout, fine.stdout
        assert f"ok    {API}:443 should be closed: {API}: no answer in 1 s: dropped" in fine.stdout
        assert check("metadata").returncode == 0
        # A cluster that enforces nothing, and one in which a rule is missing.
        network.enforce(CLUSTER)
        open_ = check("agent")
        assert open_.returncode == 1 and "A canary was reached" in open_.stdout
        without = copy.deepcopy(BOTH)
        del without[1]["spec"]["egress"][-1]
        network.enforce(replace(CLUSTER, policies=without))
        broken = check("agent")
        assert broken.returncode == 1 and "should be open: 10.96.0.20: no answer in 1 s: dropped on the way" in broken.stdout
