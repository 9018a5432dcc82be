"""The policies of every role as the chart itself renders them, as rules of a real kernel: what each role needs passes, nothing else does.

Every port of Sumo Logic's security best practices is open that a role of ours listens on, Jaeger's datagrams among them.
tests/e2e/test_policies.py has the same for `lockgate netpol` with real roles at the ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from support import helm
from support.chart_values import SEED_LISTENERS
from support.helm import NAMESPACE, Object, of_kind, workloads
from support.netns import Network
from support.netns import missing as no_network
from support.policies import Cluster, Connection, Place, Rule, Vip, narrowed, rules, widened

pytestmark = pytest.mark.skipif(bool(helm.missing or no_network), reason=helm.missing or no_network)

DNS, API, LOGS = "10.96.0.10", "10.96.0.1", "10.96.0.20"
VALUES: dict[str, Any] = {
    "listeners": SEED_LISTENERS,
    "networkPolicy": {
        "kubernetesApi": {"serviceCidrs": [f"{API}/32"], "endpointCidrs": ["172.18.0.2/32"]},
        "backend": {"cidrs": ["203.0.113.10/32"]},
        "scrapers": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
        "clients": {
            "logs": [{"pods": {"app": "fluent-bit"}, "namespace": "monitoring"}],
            "metrics": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
            "traces": [{"pods": {"sends": "spans"}, "namespace": "shop"}],
        },
    },
}
DATAGRAMS = (6831, 6832)
SPANS = (4317, 4318, 5778, 9411, 14250, 14268, 55678, 55680, 55681)
PORTS = [("TCP", port) for port in (53, 80, 443, 2020, *SPANS, 6443, *DATAGRAMS, 8888, 9153, 9888, 13133, 13134, 24321)]
PORTS += [("UDP", port) for port in (53, *DATAGRAMS, 14268, 24321)]
_OURS = {"app.kubernetes.io/name": "lockgate", "app.kubernetes.io/instance": "r"}
_FALSE = {"logs-collector": "10.244.1.14", "logs-metadata": "10.244.1.15"}
OTHERS = {
    "prometheus": Place("10.244.1.5", "monitoring", {"app": "prometheus"}),
    "fluent-bit": Place("10.244.1.6", "monitoring", {"app": "fluent-bit"}),
    "cart": Place("10.244.1.7", "shop", {"app": "prometheus", "sends": "spans"}),
    "shop-shipper": Place("10.244.1.10", "shop", {"app": "fluent-bit", "k8s-app": "kube-dns"}),
    "grafana": Place("10.244.1.11", "monitoring", {"app": "grafana", "sends": "spans"}),
    "shipper": Place("10.244.1.13", f"{NAMESPACE}-nodes", {"app": "shipper"}),
    "kube-proxy": Place("10.244.1.12", "kube-system", {"k8s-app": "kube-proxy"}),
    "neighbour": Place("10.244.1.8", NAMESPACE, {"app": "other"}),
    "dns": Place("10.244.1.9", "kube-system", {"k8s-app": "kube-dns"}),
    "api": Place("172.18.0.2"),
    "backend": Place("203.0.113.10"),
    "internet": Place("198.51.100.7"),
    "metadata-service": Place("169.254.169.254"),
    **{f"false-{role}": Place(address, "shop", {**_OURS, "app.kubernetes.io/component": role}) for role, address in _FALSE.items()},
}
"""Whoever may talk with the roles, and those who may not: of the same labels elsewhere, of other labels there."""
DELIVERERS = ("logs-metadata", "metrics-metadata", "traces", "events")
NEEDED: set[Connection] = {
    *((role, DNS, protocol, 53) for role in ("logs-collector", *DELIVERERS) for protocol in ("TCP", "UDP")),
    *((role, API, "TCP", 443) for role in DELIVERERS),
    *((role, "backend", "TCP", 443) for role in DELIVERERS),
    *(("prometheus", role, "TCP", 8888) for role in ("logs-metadata", "traces", "events")),
    ("prometheus", "logs-collector", "TCP", 2020),
    ("prometheus", "metrics-metadata", "TCP", 24321),
    ("logs-collector", LOGS, "TCP", 4318),
    ("fluent-bit", LOGS, "TCP", 4318),
    ("fluent-bit", "logs-metadata", "TCP", 24321),
    ("fluent-bit", "logs-metadata", "UDP", 24321),
    ("prometheus", "metrics-metadata", "TCP", 4318),
    ("prometheus", "metrics-metadata", "TCP", 9888),
    *(("cart", "traces", "TCP", port) for port in SPANS),
    *(("cart", "traces", "UDP", port) for port in DATAGRAMS),
}


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    return helm.render(VALUES)


@pytest.fixture(scope="module")
def cluster(rendered: list[Object]) -> Cluster:
    """The chart's pods, where and as it labels them, among others."""
    roles = {
        role: Place(f"10.244.0.{number}", each["metadata"]["namespace"], each["spec"]["template"]["metadata"]["labels"])
        for number, (role, each) in enumerate(workloads(rendered).items(), 1)
    }
    services: tuple[Vip, ...] = (Vip(DNS, 53, "UDP", "dns", 53), Vip(DNS, 53, "TCP", "dns", 53), Vip(API, 443, "TCP", "api", 6443))
    services += (Vip(API, 80, "TCP", "api", 80),)  # a port that no role needs
    return Cluster({**roles, **OTHERS}, vips=(*services, Vip(LOGS, 4318, "TCP", "logs-metadata", 4318)))


@pytest.fixture(scope="module")
def network(cluster: Cluster) -> Iterator[Network]:
    with Network(cluster) as made:
        made.listen(PORTS)
        yield made


@pytest.mark.parametrize("blocks_see_services", [False, True], ids=["after DNAT", "before DNAT"])
def test_exactly_the_needed_connections_of_every_role_pass(
    network: Network, cluster: Cluster, rendered: list[Object], blocks_see_services: bool
) -> None:
    places = cluster.places
    everything = {(source, target, *port) for source in places for target in places if source != target for port in PORTS}
    everything |= {(source, vip.address, vip.protocol, vip.port) for source in places for vip in cluster.vips if source != vip.to}
    network.enforce(cluster)
    assert network.reachable(everything, everything) == everything  # without policies everything passes
    network.enforce(cluster.under(of_kind(rendered, "NetworkPolicy"), blocks_see_services=blocks_see_services))
    roles = places.keys() - OTHERS.keys()
    services = {(vip.address, vip.protocol, vip.port): (vip.to, vip.protocol, vip.to_port) for vip in cluster.vips}
    behind = {(each[0], *services.get(each[1:], each[1:])) for each in NEEDED}
    concerned = {each for each in everything if {each[0], services.get(each[1:], each[1:])[0]} & roles}
    passed = network.reachable(everything, everything - concerned | NEEDED | behind)
    assert passed >= NEEDED
    assert (passed & concerned) - NEEDED - behind == set()
    assert everything - concerned <= passed  # nobody else is touched


def _own(policies: list[Object], number: int) -> list[Object]:
    """Those of the same role: alone, as the other end's policies would hide what these open."""
    labels = policies[number]["spec"]["podSelector"]
    return [each for each in policies if each["spec"]["podSelector"] == labels]


def _role(cluster: Cluster, policy: Object) -> str:
    [name] = {name for name in cluster.places for found in cluster.under([policy]).selecting(name, "Ingress") if found is policy}
    return name


def test_without_any_one_rule_or_any_one_port_of_it_something_needed_breaks(cluster: Cluster, rendered: list[Object]) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    tried = 0
    for rule in rules(policies):
        for changed in narrowed(policies, rule):
            tried += 1
            ways = [cluster.under(changed, blocks_see_services=seen) for seen in (False, True)]
            assert any(not way.allows(*needed) for way in ways for needed in NEEDED), f"nothing needs all of {_named(policies, rule)}"
    assert tried >= 50


def test_with_any_one_rule_wider_something_unneeded_passes_when_its_side_is_judged_alone(cluster: Cluster, rendered: list[Object]) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    tried = 0
    for rule in rules(policies):
        role = _role(cluster, policies[rule[0]])
        near = [(source, role, *port) for source in cluster.places for port in PORTS if source != role]
        far = [(role, target, *port) for target in cluster.places for port in PORTS if target != role]
        far += [(role, vip.address, vip.protocol, vip.port) for vip in cluster.vips if vip.to != role]
        concerned = near if rule[1] == "ingress" else far
        usual = [cluster.under(_own(policies, rule[0]), blocks_see_services=seen) for seen in (False, True)]
        closed = [(way.blocks_see_services, each) for way in usual for each in concerned if not way.allows(*each)]
        for changed in widened(policies, rule):
            tried += 1
            wider = {seen: cluster.under(_own(changed, rule[0]), blocks_see_services=seen) for seen in (False, True)}
            assert any(wider[seen].allows(*each) for seen, each in closed), f"nothing more passes with {_named(changed, rule)}"
    assert tried >= 100


def _named(policies: list[Object], rule: Rule) -> str:
    number, direction, _, index = rule
    return f"{policies[number]['metadata']['name']}: {policies[number]['spec'][direction][index]}"


def test_datagrams_pass_as_datagrams_alone_and_only_while_their_port_is_named(
    network: Network, cluster: Cluster, rendered: list[Object]
) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    spans = [(source, "traces", protocol, port) for source in OTHERS for protocol in ("TCP", "UDP") for port in DATAGRAMS]
    open_ = {("cart", "traces", "UDP", port) for port in DATAGRAMS}
    network.enforce(cluster)
    assert network.reachable(spans, spans) == set(spans)  # without policies everything passes
    network.enforce(cluster.under(policies))
    assert network.reachable(spans, open_) == open_
    [rule] = [each for each in rules(policies) if {"protocol": "UDP", "port": 6831} in _ports(policies, each)]
    [without] = [
        each for each in narrowed(policies, rule) if (found := _ports(each, rule)) and {"protocol": "UDP", "port": 6831} not in found
    ]
    network.enforce(cluster.under(without))
    left = open_ - {("cart", "traces", "UDP", 6831)}
    assert network.reachable(spans, left) == left
    wider = copy.deepcopy(policies)
    wider[rule[0]]["spec"][rule[1]][rule[3]]["ports"].append({"protocol": "TCP", "port": 6831})  # as the example has it
    network.enforce(cluster.under(wider))
    open_.add(("cart", "traces", "TCP", 6831))
    assert network.reachable(spans, open_) == open_


def _ports(policies: list[Object], rule: Rule) -> list[Object]:
    number, direction, _, index = rule
    those = policies[number]["spec"][direction]
    return list(those[index].get("ports", [])) if index < len(those) else []
