"""What a policy must know and a configuration cannot: which pods stand behind a name, and where DNS, the API server and the backend are."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lockgate.kit.document import DocumentError, Mark, Problem, parse
from lockgate.kit.settings import Settings, validate


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{error}; write a network like 10.0.0.0/8, or one address like 10.0.0.1/32") from None


Cidr = Annotated[str, AfterValidator(_network)]


class Peer(Settings):
    """The other end of a flow: pods by their labels, or addresses."""

    pods: dict[str, str] = {}
    """Labels of the pods; none is every pod of the namespace."""
    namespace: str = ""
    """Their namespace; empty is this role's own, `*` is every one."""
    namespace_labels: dict[str, str] = {}
    """Their namespace by its labels instead of its name."""
    cidrs: list[Cidr] = []
    """Addresses outside of the pod network, instead of pods."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.cidrs and (self.pods or self.namespace or self.namespace_labels):
            raise ValueError("a peer is either cidrs or pods; write two")
        if self.namespace and self.namespace_labels:
            raise ValueError("a namespace is chosen by its name or by its labels; keep one of them")
        return self


class Service(Peer):
    """The pods behind a Service that the configuration names."""

    ports: dict[int, int] = {}
    """The pods' port for each of the Service's ports, where they differ: a policy sees the packet after the Service's address is gone."""


class Dns(Settings):
    """Who answers names."""

    kind: Literal["coredns", "openshift", "nodelocal"] = "coredns"
    """`coredns`: pods labelled k8s-app: kube-dns in kube-system. `openshift`: openshift-dns, port 5353 behind the Service. `nodelocal`: the
    node's own cache, by address, and CoreDNS as well."""
    nodelocal_cidrs: list[Cidr] = ["169.254.20.10/32"]
    """Where NodeLocal DNS listens."""


class KubernetesApi(Settings):
    """The API server. Whether a policy sees the Service's address or an endpoint's is not defined (Kubernetes, "Network Policies",
    "Behavior of ipBlock selectors"), so both belong here."""

    service_cidrs: list[Cidr] = []
    """The address of the Service `kubernetes`; where either list is empty, its flow is to every address: wider than it need be."""
    service_port: int = 443
    """That Service's port."""
    endpoint_cidrs: list[Cidr] = []
    """The addresses behind it."""
    endpoint_port: int = 6443
    """Their port."""


class Backend(Settings):
    """What stands outside of the cluster."""

    cidrs: list[Cidr] = []
    """Its addresses, or those of the proxy to it; empty is every address that is not private or link-local."""


class Facts(Settings):
    """One role's place in a cluster."""

    name: str = Field("lockgate", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=200)
    """Of the policies, and the value of the label below where `pods` is empty."""
    namespace: str = ""
    """Of the policies; empty leaves it to whoever applies them."""
    pods: dict[str, str] = {}
    """Labels of this role's own pods; `app.kubernetes.io/name: NAME` where none is given."""
    dns: Dns = Dns()
    """Who answers names."""
    kubernetes_api: KubernetesApi = KubernetesApi()
    """The API server."""
    backend: Backend = Backend()
    """What stands outside of the cluster."""
    services: dict[str, Service] = {}
    """The pods behind each name inside the cluster that the configuration connects to."""
    clients: dict[int, list[Peer]] = {}
    """Who may connect to each port that the configuration listens on."""
    scrapers: list[Peer] = []
    """Who may read the program's own metrics."""
    nodes: list[Cidr] = []
    """The nodes' addresses, for network plugins that do not let a kubelet's probes through by themselves."""

    @property
    def labels(self) -> dict[str, str]:
        """Of this role's own pods."""
        return self.pods or {"app.kubernetes.io/name": self.name}


def load(path: str) -> Facts:
    """The facts in this YAML file; raises DocumentError with every problem."""
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError([Problem(Mark(path), (), f"not UTF-8 text: {error}")]) from error
    except OSError as error:
        raise DocumentError([Problem(Mark(path), (), f"cannot be read: {error.strerror}")]) from error
    document = parse(text, path)
    facts, problems = validate(Facts, document, ())
    if facts is None:
        raise DocumentError(problems)
    return facts
