"""From needs and facts to flows: who may open a connection to whom, both ways, and why. What is not here is denied."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lockgate.lockdown.facts import Facts, Peer
from lockgate.pipeline.needs import Connect, Kubernetes, Listen, Need

Direction = Literal["ingress", "egress"]
Rows = Sequence[tuple[str, Need]]
"""(component, need), as `Configuration.needs()` gives them."""

PRIVATE = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
"""What a backend on the internet is not: this host, private, shared, link-local (the cloud's metadata among it), multicast, reserved
(RFC 6890)."""
PRIVATE_6 = ["::/128", "::1/128", "64:ff9b::/96", "fc00::/7", "fe80::/10", "ff00::/8"]
"""Likewise, and what stands for an IPv4 address. Not ::ffff:0:0/96: it is IPv4 on the wire, and the API server refuses a policy with it."""

_INTERNET: tuple[dict[str, Any], ...] = (
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": PRIVATE}},
    {"ipBlock": {"cidr": "::/0", "except": PRIVATE_6}},
)
_ANYWHERE: tuple[dict[str, Any], ...] = ({"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}})
_COREDNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}
_OPENSHIFT = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}},
    "podSelector": {"matchLabels": {"dns.operator.openshift.io/daemonset-dns": "default"}},
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Connections between this role's pods and these peers (NetworkPolicyPeer), to these ports of whoever is connected to."""

    direction: Direction
    peers: tuple[dict[str, Any], ...]
    ports: tuple[tuple[str, int], ...]
    """(TCP or UDP, port), sorted."""
    reasons: tuple[str, ...]
    who: str = ""
    """The peers in words."""


@dataclass(slots=True)
class Derived:
    """The flows of one role, and what makes them wider or narrower than a reviewer would expect."""

    flows: list[Flow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def derive(rows: Rows, facts: Facts) -> Derived:
    """Every flow that these needs take in such a cluster; flows with the same peers are one."""
    derived = Derived()
    found = [*_ingress(rows, facts, derived.warnings), *_egress(rows, facts, derived.warnings)]
    merged: dict[str, Flow] = {}
    for flow in found:
        key = f"{flow.direction} {flow.peers}"
        if (before := merged.get(key)) is not None:
            ports = tuple(sorted({*before.ports, *flow.ports}))
            who = before.who if flow.who in before.who else f"{before.who}, and {flow.who}"
            flow = Flow(flow.direction, flow.peers, ports, tuple(dict.fromkeys((*before.reasons, *flow.reasons))), who)
        merged[key] = flow
    derived.flows = list(merged.values())
    return derived


def _ingress(rows: Rows, facts: Facts, warnings: list[str]) -> Iterator[Flow]:
    for component, need in rows:
        if not isinstance(need, Listen) or _is_loopback(need.host):
            continue
        port, why = (need.protocol.upper(), need.port), (f"{component}: {need.reason}",)
        if not need.port:
            warnings.append(f"{component} listens on a port that the system chooses; no policy can name it; set one")
            continue
        if component == "extensions/health_check" or component.startswith("extensions/health_check/"):
            if facts.nodes:
                yield Flow("ingress", _addresses(facts.nodes), (port,), why, "the nodes' kubelets")
            continue  # a pod's own node always reaches it (Kubernetes, "Network Policies", "Prerequisites")
        peers = facts.scrapers if component == "service" else facts.clients.get(need.port, [])
        if not peers:
            key = "scrapers" if component == "service" else f"clients.{need.port}"
            warnings.append(f"nobody may connect to port {need.port} ({component}: {need.reason}); name who may in {key}")
        for peer in peers:
            yield Flow("ingress", _peers(peer), (port,), why, _words(peer))
    listening = {need.port for _, need in rows if isinstance(need, Listen)}
    for unused in sorted(facts.clients.keys() - listening):
        warnings.append(f"clients.{unused}: this configuration does not listen on port {unused}")


def _egress(rows: Rows, facts: Facts, warnings: list[str]) -> Iterator[Flow]:
    asks_api = {component for component, need in rows if isinstance(need, Kubernetes)}
    connects = [(component, need) for component, need in rows if isinstance(need, Connect) and not _is_loopback(need.host)]
    # The name servers of whatever machine derives the policy are not the cluster's.
    connects = [(component, need) for component, need in connects if not (component == "service" and need.port == 53)]
    names = sorted({need.host for _, need in connects if _address(need.host) is None})
    if names:
        yield from _dns(facts, f"names: {', '.join(names)}")
    for component, need in connects:
        ports = ((need.protocol.upper(), need.port),)
        why = (f"{component}: {need.reason}",)
        if component in asks_api:
            yield from _api(need, facts, why, warnings)
        elif (service := _service(need.host, facts)) is not None:
            ports = ((ports[0][0], service.ports.get(need.port, need.port)),)
            yield Flow("egress", _peers(service), ports, why, _words(service))
        elif (address := _address(need.host)) is not None:
            block = f"{address}/{address.max_prefixlen}"
            yield Flow("egress", _addresses([block]), ports, why, block)
        elif (namespace := _namespace(need.host)) is not None:
            warnings.append(
                f"{component} connects to {need.host}, and nothing says which pods that is: all of "
                f"{f'namespace {namespace}' if namespace else 'this namespace'} on port {need.port} are allowed; name them in services"
            )
            peer = Peer(namespace=namespace)
            yield Flow("egress", _peers(peer), ports, why, _words(peer))
        elif facts.backend.cidrs:
            yield Flow("egress", _addresses(facts.backend.cidrs), ports, why, "the backend's addresses")
        elif need.is_proxy:
            warnings.append(
                f"{component} goes through the proxy {need.host}, whose address is not known: every address is allowed on port "
                f"{need.port}; name its addresses in backend.cidrs, or its pods in services"
            )
            yield Flow("egress", _ANYWHERE, ports, why, "any address")
        else:
            yield Flow("egress", _INTERNET, ports, why, "any address that is not private or link-local")


def _dns(facts: Facts, why: str) -> Iterator[Flow]:
    ports = (("TCP", 53), ("UDP", 53))
    if facts.dns.kind == "openshift":
        yield Flow("egress", (_OPENSHIFT,), (("TCP", 5353), ("UDP", 5353)), (why,), "OpenShift's DNS")
        return
    if facts.dns.kind == "nodelocal":
        yield Flow("egress", _addresses(facts.dns.nodelocal_cidrs), ports, (why,), "the node's DNS cache")
    yield Flow("egress", (_COREDNS,), ports, (why,), "CoreDNS")


def _api(need: Connect, facts: Facts, why: tuple[str, ...], warnings: list[str]) -> Iterator[Flow]:
    if (address := _address(need.host)) is not None:  # a kubeconfig's server, which is no Service
        block = f"{address}/{address.max_prefixlen}"
        yield Flow("egress", _addresses([block]), (("TCP", need.port),), why, f"the API server, {block}")
        return
    api = facts.kubernetes_api
    for key, cidrs, port in (
        ("service_cidrs", api.service_cidrs, api.service_port),
        ("endpoint_cidrs", api.endpoint_cidrs, api.endpoint_port),
    ):
        what = f"the API server's {key.partition('_')[0]}"
        if cidrs:
            yield Flow("egress", _addresses(cidrs), (("TCP", port),), why, what)
            continue
        yield Flow("egress", _ANYWHERE, (("TCP", port),), why, f"{what}, wherever it is")
        warning = (
            f"{what} address is not known: every address is allowed on port {port}; set kubernetes_api.{key} "
            "(kubectl get service,endpoints kubernetes)"
        )
        if warning not in warnings:
            warnings.append(warning)


def _peers(peer: Peer) -> tuple[dict[str, Any], ...]:
    if peer.cidrs:
        return _addresses(peer.cidrs)
    selector: dict[str, Any] = {}
    if peer.namespace_labels:
        selector["namespaceSelector"] = {"matchLabels": dict(peer.namespace_labels)}
    elif peer.namespace == "*":
        selector["namespaceSelector"] = {}
    elif peer.namespace:
        selector["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": peer.namespace}}
    if peer.pods or not selector:
        selector["podSelector"] = {"matchLabels": dict(peer.pods)} if peer.pods else {}
    return (selector,)


def _addresses(cidrs: Sequence[str]) -> tuple[dict[str, Any], ...]:
    return tuple({"ipBlock": {"cidr": cidr}} for cidr in cidrs)


def _words(peer: Peer) -> str:
    if peer.cidrs:
        return ", ".join(peer.cidrs)
    pods = f"pods {_pairs(peer.pods)}" if peer.pods else "every pod"
    if peer.namespace_labels:
        return f"{pods} in namespaces {_pairs(peer.namespace_labels)}"
    return pods + {"": "", "*": " in every namespace"}.get(peer.namespace, f" in namespace {peer.namespace}")


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _service(host: str, facts: Facts) -> Any:
    """The pods behind this name, which the facts may have in a shorter form (a, a.ns, a.ns.svc, a.ns.svc.cluster.local)."""
    parts = host.rstrip(".").split(".")
    whole = ".".join(parts)
    if whole in facts.services:
        return facts.services[whole]
    if len(parts) == 2 or parts[2:3] == ["svc"]:
        for length in (2, 1):
            found = facts.services.get(".".join(parts[:length]))
            if found is not None and (length == 2 or parts[1] in (found.namespace, facts.namespace)):
                return found
    return None


def _namespace(host: str) -> str | None:
    """The namespace of a name inside the cluster, "" for this role's own; None for a name outside."""
    parts = host.rstrip(".").split(".")
    if len(parts) == 1:
        return ""
    return parts[1] if parts[2:3] == ["svc"] else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    name = host.lower().rstrip(".")
    return address.is_loopback if address is not None else name == "localhost" or name.endswith(".localhost")
