"""Flows as NetworkPolicies (networking.k8s.io/v1), with the reason of each rule beside it, and as a table for a reviewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import Any

import yaml

from lockgate.lockdown.facts import Facts
from lockgate.lockdown.flows import Flow


def policies(flows: Sequence[Flow], facts: Facts) -> list[dict[str, Any]]:
    """Two policies for the role's pods: one denies everything, so that removing the other opens nothing; one lets the flows pass."""
    return [
        _policy(facts, "deny", {}),
        _policy(facts, "allow", {direction: [_rule(flow) for flow in flows if flow.direction == direction] for direction in _SIDES}),
    ]


def render(flows: Sequence[Flow], facts: Facts) -> str:
    """The policies as YAML; above each rule stands what it is for."""
    deny, _ = policies(flows, facts)
    text = _dump(deny) + "---\n" + _dump(_policy(facts, "allow", {}))
    for direction in _SIDES:
        those = [flow for flow in flows if flow.direction == direction]
        text += f"  {direction}:" + ("\n" if those else " []\n")
        for flow in those:
            comment = "".join(f"# {line}\n" for line in (f"{_SIDES[direction]} {flow.who}", *flow.reasons))
            text += indent(comment + _dump([_rule(flow)]), "    ")
    return text


def explain(flows: Sequence[Flow], warnings: Sequence[str]) -> str:
    """The flows as a table, and what is worth knowing of them."""
    rows = [("DIRECTION", "PEER", "PORTS", "WHY"), *_rows(flows)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = "\n".join("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])).rstrip() for row in rows)
    return "\n".join((table, "everything else: denied, both ways", *(f"warning: {warning}" for warning in warnings)))


_SIDES: dict[Any, str] = {"ingress": "from", "egress": "to"}


def _rows(flows: Sequence[Flow]) -> Iterator[tuple[str, str, str, str]]:
    for flow in flows:
        ports = " ".join(f"{protocol}/{port}" for protocol, port in flow.ports)
        yield flow.direction, flow.who, ports, "; ".join(flow.reasons)


def _rule(flow: Flow) -> dict[str, Any]:
    return {
        _SIDES[flow.direction]: list(flow.peers),
        "ports": [{"protocol": protocol, "port": port} for protocol, port in flow.ports],
    }


def _policy(facts: Facts, suffix: str, rules: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": f"{facts.name}-{suffix}"} | ({"namespace": facts.namespace} if facts.namespace else {})
    spec = {"podSelector": {"matchLabels": facts.labels}, "policyTypes": ["Ingress", "Egress"], **rules}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


class _Dumper(yaml.SafeDumper):
    """Without anchors: a list that occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1000)
    return text
