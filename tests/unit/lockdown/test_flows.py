"""Which flows follow from which needs, and what a policy says of them."""

from typing import Any

import pytest
import yaml

from lockgate.kit.document import DocumentError
from lockgate.lockdown import netpol, rbac
from lockgate.lockdown.facts import Facts, load
from lockgate.lockdown.flows import PRIVATE, Derived, derive
from lockgate.pipeline.needs import Connect, Kubernetes, Listen, Need, Read

AGENT: list[tuple[str, Need]] = [
    ("service", Listen("0.0.0.0", 8888, "own metrics")),
    ("extensions/health_check", Listen("0.0.0.0", 13133, "health checks over HTTP")),
    ("receivers/filelog", Read("/var/log/pods", "log files")),
    ("exporters/otlphttp", Connect("logs-metadata.sumo.svc.cluster.local.", 4318, "requests")),
    ("service", Connect("192.0.2.53", 53, "DNS", "udp")),
]
METADATA: list[tuple[str, Need]] = [
    ("receivers/otlp", Listen("0.0.0.0", 4318, "requests over HTTP")),
    ("receivers/jaeger", Listen("0.0.0.0", 6831, "compact Thrift", "udp")),
    ("extensions/pprof", Listen("localhost", 1777, "profiles")),
    ("processors/k8sattributes", Kubernetes(("list", "watch"), "", "pods", "finds pods")),
    ("processors/k8sattributes", Connect("kubernetes.default.svc", 443, "follows pods")),
    ("exporters/sumologic", Connect("endpoint.example.com", 443, "requests")),
]


def rules(derived: Derived, direction: str) -> list[tuple[Any, Any]]:
    return [(flow.peers, flow.ports) for flow in derived.flows if flow.direction == direction]


def facts(**more: Any) -> Facts:
    return Facts.model_validate(more)


def test_an_agent_reaches_dns_and_logs_metadata_and_is_reached_by_its_scraper_alone() -> None:
    known = facts(
        services={"logs-metadata.sumo": {"pods": {"app": "m"}, "namespace": "sumo", "ports": {4318: 14318}}},
        scrapers=[{"pods": {"app": "prometheus"}}],
    )
    derived = derive(AGENT, known)
    assert not derived.warnings
    dns, metadata = rules(derived, "egress")
    assert dns[1] == (("TCP", 53), ("UDP", 53)) and dns[0][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert metadata[0][0]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "sumo"}}
    assert metadata[1] == (("TCP", 14318),)  # the pods' port: a policy sees the packet behind the Service
    assert rules(derived, "ingress") == [(({"podSelector": {"matchLabels": {"app": "prometheus"}}},), (("TCP", 8888),))]


def test_a_metadata_role_reaches_the_api_server_by_both_of_its_addresses_and_ports_and_the_internet_without_private_ranges() -> None:
    known = facts(
        kubernetes_api={"service_cidrs": ["10.96.0.1/32"], "endpoint_cidrs": ["172.18.0.2/32"]},
        clients={4318: [{}], 6831: [{"namespace": "*"}]},
    )
    derived = derive(METADATA, known)
    assert not derived.warnings
    _, service, endpoint, backend = rules(derived, "egress")
    assert service == (({"ipBlock": {"cidr": "10.96.0.1/32"}},), (("TCP", 443),))
    assert endpoint == (({"ipBlock": {"cidr": "172.18.0.2/32"}},), (("TCP", 6443),))
    assert backend[0][0] == {"ipBlock": {"cidr": "0.0.0.0/0", "except": PRIVATE}} and backend[1] == (("TCP", 443),)
    assert "169.254.0.0/16" in PRIVATE  # the cloud's metadata
    assert rules(derived, "ingress")[1] == (({"namespaceSelector": {}},), (("UDP", 6831),))


@pytest.mark.parametrize(
    ("rows", "known", "warning"),
    [
        (METADATA, {}, "nobody may connect to port 4318"),
        (METADATA, {}, "the API server's endpoint address is not known"),
        (METADATA, {"clients": {4319: [{}]}}, "clients.4319: this configuration does not listen on port 4319"),
        (AGENT, {}, "nothing says which pods that is: all of namespace sumo on port 4318"),
        (AGENT, {}, "name who may in scrapers"),
        ([("e", Connect("proxy.corp.example", 3128, "", is_proxy=True))], {}, "every address is allowed on port 3128"),
        ([("r", Listen("", 0, ""))], {}, "a port that the system chooses"),
    ],
)
def test_what_is_wider_or_narrower_than_meant_is_said(rows: list[tuple[str, Need]], known: dict[str, Any], warning: str) -> None:
    assert any(warning in said for said in derive(rows, facts(**known)).warnings)


@pytest.mark.parametrize(
    ("kind", "peers", "port"),
    [("openshift", 1, 5353), ("nodelocal", 2, 53), ("coredns", 1, 53)],
)
def test_dns_is_allowed_as_the_cluster_does_it(kind: str, peers: int, port: int) -> None:
    found = [flow for flow in derive(AGENT, facts(dns={"kind": kind})).flows if "names:" in flow.reasons[0]]
    assert len(found) == peers and all(flow.ports == (("TCP", port), ("UDP", port)) for flow in found)


def test_nothing_that_needs_no_name_gets_dns_and_loopback_needs_no_flow() -> None:
    rows: list[tuple[str, Need]] = [
        ("e", Connect("10.1.2.3", 4318, "")),
        ("f", Connect("localhost", 4318, "")),
        ("g", Connect("::1", 1, "")),
    ]
    assert rules(derive(rows, facts()), "egress") == [(({"ipBlock": {"cidr": "10.1.2.3/32"}},), (("TCP", 4318),))]


def test_the_yaml_that_is_printed_is_the_policies_with_a_reason_above_each_rule() -> None:
    known = facts(name="m", namespace="sumo", clients={4318: [{}], 6831: [{}]})
    flows = derive(METADATA, known).flows
    text = netpol.render(flows, known)
    assert list(yaml.safe_load_all(text)) == netpol.policies(flows, known)
    assert text.count("    # exporters/sumologic: requests\n") == 1
    assert text.count("# receivers/otlp") == 1
    deny, allow = netpol.policies(flows, known)
    assert deny["spec"] == {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "m"}}, "policyTypes": ["Ingress", "Egress"]}
    assert allow["spec"]["podSelector"] == deny["spec"]["podSelector"] and allow["metadata"]["namespace"] == "sumo"
    # One rule for both ports that the same peers may use.
    assert allow["spec"]["ingress"] == [
        {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 4318}, {"protocol": "UDP", "port": 6831}]}
    ]


def test_facts_that_are_wrong_are_named_with_their_place(tmp_path: Any) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text(
        "dns: {kind: codedns}\nscraper: []\nnodes: [10.0.0.1/8]\nclients: {4318: [{pods: {a: b}, cidrs: [10.0.0.0/8]}]}\n"
        "scrapers: [{namespace: a, namespace_labels: {b: c}}]\n"
    )
    with pytest.raises(DocumentError) as error:
        load(str(path))
    assert sorted(str(problem).split(": ", 1)[0].rpartition("/")[2] for problem in error.value.problems) == [
        "facts.yaml:1:7",
        "facts.yaml:2:1",
        "facts.yaml:3:9",
        "facts.yaml:4:18",
        "facts.yaml:5:12",
    ]
    assert "did you mean scrapers?" in str(error.value)
    assert "a peer is either cidrs or pods" in str(error.value)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read: No such file"), (b"\xff", "not UTF-8 text")])
def test_facts_that_cannot_be_read_are_named(tmp_path: Any, content: bytes | None, said: str) -> None:
    path = tmp_path / "facts.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DocumentError, match=f"facts.yaml: {said}"):
        load(str(path))


def test_a_rule_for_several_peers_at_the_same_addresses_names_them_all() -> None:
    rows: list[tuple[str, Need]] = [
        ("k", Connect("kubernetes.default.svc", 443, "follows pods")),
        ("k", Kubernetes(("list",), "", "pods", "finds pods")),
    ]
    [_, api] = derive(rows, Facts()).flows
    assert api.who == "the API server's service, wherever it is, and the API server's endpoint, wherever it is"


def test_rbac_grants_what_is_asked_and_a_role_without_a_namespace_says_what_is_missing() -> None:
    rows: list[tuple[str, Need]] = [
        ("k", Kubernetes(("watch", "list"), "", "pods", "pods")),
        ("k", Kubernetes(("list", "watch"), "apps", "replicasets", "owners")),
        ("k", Kubernetes(("list", "watch"), "", "nodes", "node labels")),
        ("l", Kubernetes(("get", "update"), "coordination.k8s.io", "leases", "one at a time", "mine")),
    ]
    found, warnings = rbac.manifests(rows, "m", "sumo", "m")
    assert [(each["kind"], each["metadata"].get("namespace")) for each in found] == [
        ("ClusterRole", None),
        ("ClusterRoleBinding", None),
        ("Role", "mine"),
        ("RoleBinding", "mine"),
    ]
    assert not warnings and found[0]["rules"] == [
        {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list", "watch"]},
    ]
    assert found[3]["subjects"] == [{"kind": "ServiceAccount", "name": "m", "namespace": "sumo"}]
    found, warnings = rbac.manifests(rows, "m", "sumo", "m", only_namespace=True)
    assert {each["kind"] for each in found} == {"Role", "RoleBinding"}
    assert warnings == ["nodes has no namespace, so it is not granted here; without it there is no node labels"]
    assert rbac.manifests([], "m", "sumo", "m") == ([], [])
