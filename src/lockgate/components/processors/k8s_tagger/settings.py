"""What users of k8s_tagger write, under the keys of Sumo Logic's collector (its pkg/processor/k8sprocessor)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lockgate.kit import regex
from lockgate.kit.regex import Regex
from lockgate.kit.settings import Settings, nearest
from lockgate.kube.client import Query
from lockgate.kube.following import FollowSettings
from lockgate.kube.resources import ENDPOINT_SLICES, JOBS, NAMESPACES, PODS, REPLICA_SETS
from lockgate.kube.selection import ExcludedPod, Filter, escape
from lockgate.pipeline.needs import Kubernetes, Need

ATTRIBUTES = {
    "containerId": "k8s.container.id",
    "containerImage": "k8s.container.image",
    "containerName": "k8s.container.name",
    "cronJobName": "k8s.cronjob.name",
    "daemonSetName": "k8s.daemonset.name",
    "deploymentName": "k8s.deployment.name",
    "hostName": "k8s.pod.hostname",
    "jobName": "k8s.job.name",
    "namespace": "k8s.namespace.name",
    "nodeName": "k8s.node.name",
    "podId": "k8s.pod.uid",
    "podName": "k8s.pod.name",
    "replicaSetName": "k8s.replicaset.name",
    "serviceName": "k8s.service.name",
    "startTime": "k8s.pod.startTime",
    "statefulSetName": "k8s.statefulset.name",
}
"""What can be extracted, and the attribute that it goes to."""
NOT_BY_DEFAULT = ("cronJobName", "jobName")
OF_OWNERS = ("cronJobName", "daemonSetName", "deploymentName", "jobName", "replicaSetName", "serviceName", "statefulSetName")
CLUSTER_NAME = "clusterName"
_OTHER_SPELLINGS = {attribute: name for name, attribute in ATTRIBUTES.items()} | {
    "container.id": "containerId",
    "container.image.name": "containerImage",
    "container.name": "containerName",
    "host.name": "hostName",
    "k8s.pod.start_time": "startTime",
}
_LOWER = {name.lower(): name for name in (*ATTRIBUTES, CLUSTER_NAME)}
DEFAULT_LIMIT = 200


class FieldRule(Settings):
    """Labels or annotations to take over as resource attributes."""

    tag_name: str = ""
    """The attribute to set; with key `*`, `%s` in it stands for the key. By default `k8s.labels.<key>`, `k8s.annotations.<key>`,
    `k8s.namespace_labels.<key>` or `k8s.namespace_annotations.<key>`."""
    key: str = Field(min_length=1)
    """The label or annotation to take; `*` takes all."""
    regex: Regex = ""
    """Takes the part of the value that the group `value` matches, the only one in it; where it does not match the attribute is empty."""

    @model_validator(mode="after")
    def _one_group(self) -> FieldRule:
        if self.regex:
            pattern = regex.compile(self.regex)
            if pattern.groups != 1 or "value" not in pattern.groupindex:
                raise ValueError(f"regex {self.regex!r} must have exactly one group, named value: (?P<value>...)")
        return self


class Extract(Settings):
    """What to add to each resource; an attribute that is there already is replaced."""

    metadata: tuple[str, ...] = ()
    """What to add of the pod, its containers, owners and services; OpenTelemetry's names (`k8s.pod.name`) are other spellings. By default
    all but cronJobName and jobName. Owners and services need owner_lookup_enabled."""
    tags: dict[str, str] = {}
    """Other attributes for them: `podName: pod`."""
    annotations: tuple[FieldRule, ...] = ()
    """Annotations of the pod to add."""
    labels: tuple[FieldRule, ...] = ()
    """Labels of the pod to add."""
    namespace_annotations: tuple[FieldRule, ...] = ()
    """Annotations of the pod's namespace to add; need owner_lookup_enabled."""
    namespace_labels: tuple[FieldRule, ...] = ()
    """Labels of the pod's namespace to add; need owner_lookup_enabled."""
    delimiter: str = ", "
    """What stands between the names of several services."""

    @field_validator("metadata")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(_OTHER_SPELLINGS.get(name, name) for name in names)
        for name in found:
            if name not in ATTRIBUTES and name != CLUSTER_NAME:
                raise ValueError(f"{name!r} is not known; {nearest(name, ATTRIBUTES)}")
        return found

    @field_validator("tags")
    @classmethod
    def _known_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        found = {}
        for name, attribute in tags.items():
            known = _OTHER_SPELLINGS.get(name) or _LOWER.get(name.lower())
            if known is None:
                raise ValueError(f"{name!r} is not known; {nearest(name, ATTRIBUTES)}")
            if not attribute:
                raise ValueError(f"{name} needs the name of an attribute")
            found[known] = attribute
        return found

    @property
    def attributes(self) -> dict[str, str]:
        """The attribute of everything to extract, by name."""
        names = self.metadata or [name for name in ATTRIBUTES if name not in NOT_BY_DEFAULT]
        return {name: self.tags.get(name, ATTRIBUTES[name]) for name in names if name != CLUSTER_NAME}


class Association(Settings):
    """One way to find the pod."""

    from_: Literal["connection", "resource_attribute", "build_hostname"] = Field(alias="from")
    """`connection` is the address of the client that sent the telemetry. `resource_attribute` holds the pod's UID, its IP or
    `<pod>.<namespace>`. `build_hostname` makes the latter of `k8s.pod.name` and `k8s.namespace.name`; where one of these is missing no
    pod is looked for, in later ways neither."""
    name: str = ""
    """The resource attribute to read (`host.name` counts only where it is an IP); with build_hostname, the attribute to write what was
    made to, none by default."""

    @model_validator(mode="after")
    def _named(self) -> Association:
        if self.from_ == "resource_attribute" and not self.name:
            raise ValueError("needs name: the resource attribute to look at")
        return self


class Exclude(Settings):
    """Pods whose telemetry is left as it is."""

    pods: tuple[ExcludedPod, ...] = ()
    """By name."""


class K8sTaggerSettings(FollowSettings):
    """Finds the pod that telemetry came from and adds what Kubernetes knows of it. What the pod was found by is written back: an IP to
    `k8s.pod.ip`, another attribute's value to itself."""

    passthrough: bool = False
    """Only write what a pod would be found by, for a later tier to look up. Asks nothing of the Kubernetes API."""
    owner_lookup_enabled: bool = False
    """Whether owners, services and namespaces are looked at. Needs access to namespaces, replicasets, jobs and endpointslices, each only
    where something of it is extracted."""
    extract: Extract = Extract()
    """What to add."""
    filter: Filter = Filter()
    """Which pods to follow."""
    pod_association: tuple[Association, ...] = ()
    """Ways to find the pod, in order: the first that gives something decides. By default the IP in `k8s.pod.ip`, in `ip`, of the
    connection, or in `host.name`."""
    exclude: Exclude = Exclude()
    """Which pods to leave alone."""
    limit: int = Field(default=DEFAULT_LIMIT, ge=0)
    """Accepted for configurations of Sumo Logic's collector; what a page of a list holds is decided once for all that follow the API."""

    def queries(self, node: str | None = None) -> dict[str, tuple[Query, str]]:
        """What must be followed, and why, by what it is called here; `node` is what `filter.node_from_env_var` holds."""
        if self.passthrough:
            return {}
        namespace, wanted = self.filter.namespace, self.extract.attributes
        pods = Query(PODS, namespace, self.filter.label_selector(), self.filter.field_selector(node))
        found = {"pod": (pods, "finds pods by IP, name and UID")}
        if not self.owner_lookup_enabled:
            return found
        if self.extract.namespace_labels or self.extract.namespace_annotations:
            only = f"metadata.name={escape(namespace)}" if namespace else ""
            found["namespace"] = Query(NAMESPACES, field_selector=only, metadata_only=True), "labels or annotations of namespaces"
        if "deploymentName" in wanted:
            found["ReplicaSet"] = Query(REPLICA_SETS, namespace, metadata_only=True), "deploymentName"
        if "cronJobName" in wanted:
            found["Job"] = Query(JOBS, namespace, metadata_only=True), "cronJobName"
        if "serviceName" in wanted:
            found["service"] = Query(ENDPOINT_SLICES, namespace), "serviceName"
        return found

    def needs(self) -> Iterator[Need]:
        queries = self.queries()
        if queries:
            yield from self.api_needs("k8s_tagger follows pods and their owners")
        for query, reason in queries.values():
            yield Kubernetes(("list", "watch"), query.resource.group, query.resource.plural, reason, query.namespace)

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if CLUSTER_NAME in (*self.extract.metadata, *self.extract.tags):
            yield f"extract: {CLUSTER_NAME} gives nothing: the API does not know a cluster's name; add it with a resource processor"
        if self.limit != DEFAULT_LIMIT:
            yield "limit has no effect: the size of a list's pages is the same for all that follow the Kubernetes API"
        if not self.owner_lookup_enabled and not self.passthrough:
            idle = [name for name in OF_OWNERS if name in self.extract.metadata]
            idle += [name for name in ("namespace_labels", "namespace_annotations") if getattr(self.extract, name)]
            if idle:
                yield f"extract: {', '.join(idle)} give nothing without owner_lookup_enabled: true"
