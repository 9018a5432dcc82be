"""What users of k8sattributes write, under the collector's keys (opentelemetry-collector-contrib, processor/k8sattributesprocessor)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from lockgate.kit.regex import Regex
from lockgate.kit.settings import Settings
from lockgate.kit.units import Duration
from lockgate.kube.client import Query
from lockgate.kube.following import FollowSettings
from lockgate.kube.resources import (
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    STATEFUL_SETS,
    Resource,
)
from lockgate.kube.selection import ExcludedPod, Filter, escape
from lockgate.pipeline.needs import Kubernetes, Need

Metadata = Literal[
    "container.id",
    "container.image.name",
    "container.image.repo_digests",
    "container.image.tag",
    "container.image.tags",
    "k8s.cluster.uid",
    "k8s.container.name",
    "k8s.cronjob.name",
    "k8s.cronjob.uid",
    "k8s.daemonset.name",
    "k8s.daemonset.uid",
    "k8s.deployment.name",
    "k8s.deployment.uid",
    "k8s.job.name",
    "k8s.job.uid",
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.node.uid",
    "k8s.pod.hostname",
    "k8s.pod.ip",
    "k8s.pod.name",
    "k8s.pod.start_time",
    "k8s.pod.uid",
    "k8s.replicaset.name",
    "k8s.replicaset.uid",
    "k8s.statefulset.name",
    "k8s.statefulset.uid",
    "service.instance.id",
    "service.name",
    "service.namespace",
    "service.version",
]
DEFAULT_METADATA: tuple[Metadata, ...] = (
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.pod.start_time",
    "k8s.deployment.name",
    "k8s.node.name",
    "container.image.name",
    "container.image.tag",
)
From = Literal["pod", "namespace", "node", "deployment", "statefulset", "daemonset", "job"]
IP_ATTRIBUTES = ("k8s.pod.ip", "ip", "host.name")
"""Resource attributes that are taken for a pod's IP; `ip` is what older collectors wrote."""
NOT_IN_ASSOCIATIONS = ("k8s.cluster.uid", "k8s.cronjob.uid", "k8s.deployment.name", "k8s.deployment.uid", "k8s.node.uid", "service.name")
"""Attributes that follow from more than the pod itself, so that no pod can be looked up by them."""


class FieldRule(Settings):
    """Labels or annotations to take over as resource attributes."""

    tag_name: str = ""
    """The attribute to set. By default `k8s.pod.labels.<key>` and the like (`k8s.deployment.label.<key>` for workloads). With a key_regex
    that has groups, `$1`, `${1}` and `${name}` stand for what they matched; write `$$1` in a configuration file."""
    key: str = ""
    """The label or annotation to take."""
    key_regex: Regex = ""
    """Takes every label or annotation whose whole key matches, unless its value is empty."""
    from_: From = Field(default="pod", alias="from")
    """The object to take it from: the pod, its namespace, its node, or the workload that it belongs to."""

    @model_validator(mode="after")
    def _one_of_both(self) -> FieldRule:
        if bool(self.key) == bool(self.key_regex):
            raise ValueError("needs either key or key_regex; give exactly one of them")
        return self


class Extract(Settings):
    """What to add to each resource."""

    metadata: tuple[Metadata, ...] = DEFAULT_METADATA
    """Attributes to add. Those of containers need `k8s.container.name` or `container.id` on the resource, or a pod with one container."""
    annotations: tuple[FieldRule, ...] = ()
    """Annotations to add."""
    labels: tuple[FieldRule, ...] = ()
    """Labels to add."""
    otel_annotations: bool = False
    """Take every pod annotation `resource.opentelemetry.io/<name>` over as the attribute `<name>`."""
    deployment_name_from_replicaset: bool = False
    """Take a Deployment's name from its ReplicaSet's, without the hash at its end. ReplicaSets need not be watched then."""

    @model_validator(mode="after")
    def _empty_is_default(self) -> Extract:
        # An empty list means the default there, too.
        return self if self.metadata else self.model_copy(update={"metadata": DEFAULT_METADATA})


class Source(Settings):
    """One value that helps to find the pod."""

    from_: Literal["resource_attribute", "connection"] = Field(alias="from")
    """`connection` is the address of the client that sent the telemetry."""
    name: str = ""
    """The resource attribute: k8s.pod.uid, k8s.pod.ip, k8s.pod.name, k8s.namespace.name, container.id, host.name (where it is an IP), or
    any that `extract` takes from the pod itself."""

    @model_validator(mode="after")
    def _named(self) -> Source:
        if self.from_ == "resource_attribute" and not self.name:
            raise ValueError("needs name: the resource attribute to look at")
        if self.name in NOT_IN_ASSOCIATIONS:
            raise ValueError(f"{self.name} does not follow from a pod alone, so no pod is found by it; use k8s.pod.uid or k8s.pod.name")
        return self


class Association(Settings):
    """One way to find the pod: all its sources must be there, and must be the same pod's."""

    sources: tuple[Source, ...] = Field(min_length=1, max_length=4)
    """The values to look at."""


class Exclude(Settings):
    """Pods whose telemetry is left as it is."""

    pods: tuple[ExcludedPod, ...] = (ExcludedPod(name="jaeger-agent"), ExcludedPod(name="jaeger-collector"))
    """By name."""


class K8sAttributesSettings(FollowSettings):
    """Finds the pod that telemetry came from and adds what Kubernetes knows of it. Attributes that are there already are not changed."""

    passthrough: bool = False
    """Only write the client's IP to `k8s.pod.ip`, for a later tier to look up. Asks nothing of the Kubernetes API."""
    extract: Extract = Extract()
    """What to add."""
    filter: Filter = Filter()
    """Which pods to follow."""
    pod_association: tuple[Association, ...] = ()
    """Ways to find the pod, in order: the first whose values are all there decides, whether it finds a pod or not. By default the IP in
    `k8s.pod.ip`, in `ip`, of the connection, or in `host.name`."""
    exclude: Exclude = Exclude()
    """Which pods to leave alone."""
    watch_sync_period: Duration = 0.0
    """Accepted for the collector's configurations; there is nothing to resynchronise here."""

    @property
    def sources_of_rules(self) -> frozenset[str]:
        """Where labels and annotations are taken from."""
        return frozenset(rule.from_ for rule in (*self.extract.labels, *self.extract.annotations))

    def queries(self, node: str | None = None) -> dict[str, tuple[Query, str]]:
        """What must be followed, and why, by what it is called here; `node` is what `filter.node_from_env_var` holds."""
        if self.passthrough:
            return {}
        wanted, taken = set(self.extract.metadata), self.sources_of_rules
        found: dict[str, tuple[Query, str]] = {}

        def follow(name: str, resource: Resource, field_selector: str, *reasons: tuple[bool, str]) -> None:
            because = [reason for applies, reason in reasons if applies]
            if because:
                namespace = self.filter.namespace if resource.namespaced else ""
                found[name] = Query(resource, namespace, field_selector=field_selector, metadata_only=True), ", ".join(because)

        pods = Query(PODS, self.filter.namespace, self.filter.label_selector(), self.filter.field_selector(node))
        found["pod"] = pods, "finds pods by IP, name and UID"
        only_kube_system = "metadata.name=kube-system" if "namespace" not in taken else ""
        from_rules = "labels or annotations of "
        follow(
            "namespace",
            NAMESPACES,
            only_kube_system,
            ("namespace" in taken, from_rules + "namespaces"),
            ("k8s.cluster.uid" in wanted, "k8s.cluster.uid"),
        )
        node = node or self.filter.node
        of_this_node = f"metadata.name={escape(node)}" if node else ""
        follow("node", NODES, of_this_node, ("node" in taken, from_rules + "nodes"), ("k8s.node.uid" in wanted, "k8s.node.uid"))
        by_name = not self.extract.deployment_name_from_replicaset
        follow(
            "replicaset",
            REPLICA_SETS,
            "",
            ("k8s.deployment.uid" in wanted, "k8s.deployment.uid"),
            ("k8s.deployment.name" in wanted and by_name, "k8s.deployment.name"),
            ("service.name" in wanted and by_name, "service.name"),
            ("deployment" in taken, from_rules + "deployments"),
        )
        follow("deployment", DEPLOYMENTS, "", ("deployment" in taken, from_rules + "deployments"))
        follow("statefulset", STATEFUL_SETS, "", ("statefulset" in taken, from_rules + "statefulsets"))
        follow("daemonset", DAEMON_SETS, "", ("daemonset" in taken, from_rules + "daemonsets"))
        follow("job", JOBS, "", ("job" in taken, from_rules + "jobs"), ("k8s.cronjob.uid" in wanted, "k8s.cronjob.uid"))
        return found

    def needs(self) -> Iterator[Need]:
        queries = self.queries()
        if queries:
            yield from self.api_needs("k8sattributes follows pods and their owners")
        for query, reason in queries.values():
            yield Kubernetes(("list", "watch"), query.resource.group, query.resource.plural, reason, query.namespace)

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.watch_sync_period:
            yield "watch_sync_period has no effect: the watch itself is followed, nothing is read again by the clock"
