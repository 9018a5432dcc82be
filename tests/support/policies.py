"""NetworkPolicies as a network plugin reads them: which connections they let pass, and the same as nftables rules.

Two independent readings of one specification: `Cluster.allows` evaluates the policies for one connection, `nftables` translates them into a
ruleset that the kernel applies. The tests hold the two equal on real sockets.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Policy = Mapping[str, Any]
Connection = tuple[str, str, str, int]
"""(from, to, TCP or UDP, port), by the names of pods and hosts."""


@dataclass(frozen=True, slots=True)
class Place:
    """A pod, or, without a namespace, an address outside of the pod network."""

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vip:
    """A Service's address and port, and where kube-proxy sends what comes for it."""

    address: str
    port: int
    protocol: str
    to: str
    to_port: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Pods, hosts, Services and the policies in force."""

    places: Mapping[str, Place]
    policies: Sequence[Policy] = ()
    vips: Sequence[Vip] = ()
    blocks_see_services: bool = False
    """Whether an ipBlock of a pod's egress is held against the address that the pod sent to, or the one behind the Service. Both exist."""

    def under(self, policies: Sequence[Policy], *, blocks_see_services: bool = False) -> Cluster:
        """The same cluster with these policies in force."""
        return replace(self, policies=policies, blocks_see_services=blocks_see_services)

    def allows(self, source: str, target: str, protocol: str, port: int) -> bool:
        """Whether the policies of both ends let this connection pass. The target is a place, or a Service's address."""
        vip = next((vip for vip in self.vips if (vip.address, vip.protocol, vip.port) == (target, protocol, port)), None)
        seen = (target if vip is not None else self.places[target].address, port)
        real = (vip.to, vip.to_port) if vip is not None else (target, port)
        blocks = seen if self.blocks_see_services else (self.places[real[0]].address, real[1])
        return self._end_allows("Egress", source, real, blocks, protocol) and self._end_allows(
            "Ingress", real[0], (source, real[1]), (self.places[source].address, real[1]), protocol
        )

    def _end_allows(self, direction: str, own: str, pods: tuple[str, int], blocks: tuple[str, int], protocol: str) -> bool:
        policies = list(self.selecting(own, direction))
        return not policies or any(
            self._rule_matches(rule, "to" if direction == "Egress" else "from", policy, pods, blocks, protocol)
            for policy in policies
            for rule in policy["spec"].get(direction.lower()) or ()
        )

    def _rule_matches(self, rule: Policy, key: str, policy: Policy, pods: tuple[str, int], blocks: tuple[str, int], protocol: str) -> bool:
        for peer in rule.get(key) or ({"ipBlock": {"cidr": "0.0.0.0/0"}},):
            name, port = blocks if "ipBlock" in peer else pods
            address = ipaddress.ip_address(name if "ipBlock" in peer else self.places[name].address)
            matches = any(
                address in network and not any(address in hole for hole in holes)
                for network, holes in self.networks(peer, policy)
                if network.version == 4
            )
            if matches and _port_matches(rule.get("ports"), protocol, port):
                return True
        return False

    def selecting(self, name: str, direction: str) -> Iterator[Policy]:
        """The policies that isolate this pod in this direction."""
        place = self.places[name]
        for policy in self.policies:
            spec = policy["spec"]
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
            if place.namespace == policy["metadata"]["namespace"] and direction in types and _selects(spec["podSelector"], place.labels):
                yield policy

    def networks(self, peer: Policy, policy: Policy) -> Iterator[tuple[Any, list[Any]]]:
        """(network, holes in it) for this peer: the addresses of the pods that it selects now, or its block."""
        if (block := peer.get("ipBlock")) is not None:
            yield ipaddress.ip_network(block["cidr"]), [ipaddress.ip_network(hole) for hole in block.get("except", [])]
            return
        for place in self.places.values():
            namespaces = peer.get("namespaceSelector")
            here = place.namespace == policy["metadata"]["namespace"]
            if not place.namespace or not (here if namespaces is None else _selects(namespaces, _namespace_labels(place.namespace))):
                continue
            if _selects(peer.get("podSelector") or {}, place.labels):
                yield ipaddress.ip_network(place.address), []


def _namespace_labels(namespace: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": namespace}


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert not selector.keys() - {"matchLabels"}, "only matchLabels is needed here"
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


def _port_matches(ports: Any, protocol: str, port: int) -> bool:
    return not ports or any(each.get("protocol", "TCP") == protocol and each["port"] == port for each in ports)


def nftables(cluster: Cluster) -> str:
    """A ruleset for the host that routes between all places: the Services' DNAT, then both ends' policies."""
    rules = ["flush ruleset", "table ip lockgate {", " chain services {", "  type nat hook prerouting priority -100;"]
    for vip in cluster.vips:
        to = f"{cluster.places[vip.to].address}:{vip.to_port}"
        rules.append(f"  ip daddr {vip.address} {vip.protocol.lower()} dport {vip.port} dnat to {to}")
    rules.append(" }")
    ends: list[str] = []
    for name, place in cluster.places.items():
        for direction, own in (("Egress", "saddr"), ("Ingress", "daddr")):
            if not (policies := list(cluster.selecting(name, direction))):
                continue
            chain = f"{direction.lower()}_{name}"
            ends.append(f"  ip {own} {place.address} jump {chain}")
            rules.append(f" chain {chain} {{")
            for policy in policies:
                for rule in policy["spec"].get(direction.lower()) or ():
                    rules += [f"  {match} return" for match in _matches(cluster, policy, rule, direction)]
            rules += ["  counter drop", " }"]
    established = "  ct state established,related accept"
    return "\n".join([*rules, " chain forward {", "  type filter hook forward priority 0;", established, *ends, " }", "}"]) + "\n"


def _matches(cluster: Cluster, policy: Policy, rule: Policy, direction: str) -> Iterator[str]:
    key, far = ("to", "daddr") if direction == "Egress" else ("from", "saddr")
    ports = [(each.get("protocol", "TCP").lower(), each["port"]) for each in rule.get("ports") or ()]
    for peer in rule.get(key) or ({"ipBlock": {"cidr": "0.0.0.0/0"}},):
        sent = direction == "Egress" and cluster.blocks_see_services and "ipBlock" in peer
        address = "ct original ip daddr" if sent else f"ip {far}"
        for network, holes in cluster.networks(peer, policy):
            if network.version != 4:
                continue
            outside = f" {address} != {{ {', '.join(map(str, holes))} }}" if holes else ""
            for protocol, port in ports or [("", 0)]:
                on = f" meta l4proto {protocol} ct original proto-dst {port}" if sent else f" {protocol} dport {port}"
                yield f"{address} {network}{outside}{on if protocol else ''}"


Rule = tuple[int, str, str, int]
"""(number of the policy, ingress or egress, from or to, index) of one rule among policies."""


def rules(policies: Sequence[Policy]) -> Iterator[Rule]:
    """Each rule of these policies."""
    for number, policy in enumerate(policies):
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for index in range(len(policy["spec"].get(direction, ()))):
                yield number, direction, key, index


def narrowed(policies: Sequence[Policy], rule: Rule) -> Iterator[list[dict[str, Any]]]:
    """These policies without this rule, and without any one port of it."""
    number, direction, _, index = rule
    ports = policies[number]["spec"][direction][index]["ports"]
    for port in range(-1, len(ports) if len(ports) > 1 else 0):  # no port is every port
        changed: list[dict[str, Any]] = copy.deepcopy(list(policies))  # type: ignore[arg-type]  # a copy is the test's own
        those = changed[number]["spec"][direction]
        if port < 0:
            del those[index]
        else:
            del those[index]["ports"][port]
        yield changed


def widened(policies: Sequence[Policy], rule: Rule) -> Iterator[list[dict[str, Any]]]:
    """These policies with this rule wider in one way each."""
    number, direction, key, index = rule
    usual = policies[number]["spec"][direction][index]
    for wider in _wider(usual, key):
        if wider != usual:
            changed: list[dict[str, Any]] = copy.deepcopy(list(policies))  # type: ignore[arg-type]  # a copy is the test's own
            changed[number]["spec"][direction][index] = wider
            yield changed


def _wider(rule: Policy, key: str) -> Iterator[dict[str, Any]]:
    yield {name: value for name, value in rule.items() if name != "ports"}
    yield {name: value for name, value in rule.items() if name != key}
    yield {**rule, "ports": [*rule["ports"], {"protocol": "TCP", "port": 80}]}
    for index, peer in enumerate(rule[key]):
        for wider in _wider_peers(peer):
            changed = copy.deepcopy(dict(rule))
            changed[key][index] = wider
            yield changed


def _wider_peers(peer: Policy) -> Iterator[dict[str, Any]]:
    if (block := peer.get("ipBlock")) is None:
        yield {**peer, "podSelector": {}}
        yield {**peer, "namespaceSelector": {}}
    elif "." in block["cidr"]:  # these namespaces have no IPv6
        yield {"ipBlock": {"cidr": "0.0.0.0/0"}}
