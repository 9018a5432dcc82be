"""The policies of every role as the chart itself renders them, as rules of a real kernel: what each role needs passes, nothing else does.

tests/e2e/test_policies.py has the same for `lockgate netpol` with real roles at the ends, and with mutations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import helm
from support.helm import NAMESPACE, Object, of_kind, workloads
from support.netns import Network
from support.netns import missing as no_network
from support.policies import Cluster, Connection, Place, Vip

pytestmark = pytest.mark.skipif(bool(helm.missing or no_network), reason=helm.missing or no_network)

DNS, API, LOGS = "10.96.0.10", "10.96.0.1", "10.96.0.20"
VALUES: dict[str, Any] = {
    "listeners": {"logs": {"fluentForward": 24321}},
    "networkPolicy": {
        "kubernetesApi": {"serviceCidrs": [f"{API}/32"], "endpointCidrs": ["172.18.0.2/32"]},
        "backend": {"cidrs": ["203.0.113.10/32"]},
        "scrapers": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
        "clients": {
            "logs": [{"pods": {"app": "fluent-bit"}, "namespace": "monitoring"}],
            "metrics": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
            "traces": [{"namespace": "shop"}],
        },
    },
}
PORTS = [("TCP", port) for port in (53, 80, 443, 4317, 4318, 6443, 8888, 9153, 13133, 13134, 24321, 55681)]
PORTS += [("UDP", port) for port in (53, 6831, 24321)]
OTHERS = {
    "prometheus": Place("10.244.1.5", "monitoring", {"app": "prometheus"}),
    "fluent-bit": Place("10.244.1.6", "monitoring", {"app": "fluent-bit"}),
    "cart": Place("10.244.1.7", "shop", {"app": "prometheus"}),
    "neighbour": Place("10.244.1.8", NAMESPACE, {"app": "other"}),
    "dns": Place("10.244.1.9", "kube-system", {"k8s-app": "kube-dns"}),
    "api": Place("172.18.0.2"),
    "backend": Place("203.0.113.10"),
    "internet": Place("198.51.100.7"),
    "metadata-service": Place("169.254.169.254"),
}
DELIVERERS = ("logs-metadata", "metrics-metadata", "traces", "events")
NEEDED: set[Connection] = {
    *((role, DNS, protocol, 53) for role in ("logs-collector", *DELIVERERS) for protocol in ("TCP", "UDP")),
    *((role, API, "TCP", 443) for role in DELIVERERS),
    *((role, "backend", "TCP", 443) for role in DELIVERERS),
    *(("prometheus", role, "TCP", 8888) for role in ("logs-collector", *DELIVERERS)),
    ("logs-collector", LOGS, "TCP", 4318),
    ("fluent-bit", LOGS, "TCP", 4318),
    ("fluent-bit", "logs-metadata", "TCP", 24321),
    ("fluent-bit", "logs-metadata", "UDP", 24321),
    ("prometheus", "metrics-metadata", "TCP", 4318),
    ("cart", "traces", "TCP", 4317),
    ("cart", "traces", "TCP", 4318),
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
    services = (Vip(DNS, 53, "UDP", "dns", 53), Vip(DNS, 53, "TCP", "dns", 53), Vip(API, 443, "TCP", "api", 6443))
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
