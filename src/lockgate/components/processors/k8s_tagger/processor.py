"""Finds the pod behind each resource and writes what is known of it over what is there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from lockgate.attributes.formats import go_format
from lockgate.components.processors.k8s_tagger.settings import FieldRule, K8sTaggerSettings
from lockgate.kit import regex
from lockgate.kube.association import Ask, Look, any_ip, is_ip, plain_ip, string
from lockgate.kube.cache import Meta, MetaCache, Owner, Pod, PodCache, ServiceCache
from lockgate.kube.following import Following
from lockgate.kube.tagging import PodProcessor
from lockgate.pipeline.contract import Context, component

Identified = tuple[str, str, tuple[str, str] | None]
"""The attribute to write the identifier to ("" for none), the identifier, and (namespace, pod) where it is made of these."""
Take = Callable[[Mapping[str, str]], dict[str, str]]
"""What a rule takes of labels or annotations."""

_OWNERS = {
    "CronJob": "cronJobName",
    "DaemonSet": "daemonSetName",
    "Deployment": "deploymentName",
    "Job": "jobName",
    "ReplicaSet": "replicaSetName",
    "StatefulSet": "statefulSetName",
}


@component("k8s_tagger", K8sTaggerSettings)
class K8sTaggerProcessor(PodProcessor[K8sTaggerSettings]):
    """Writes what is known of the pod over what is there."""

    def __init__(self, settings: K8sTaggerSettings, context: Context) -> None:
        uses_peer = not settings.pod_association or any(each.from_ == "connection" for each in settings.pod_association)
        super().__init__(settings, context, uses_peer=uses_peer, excluded=settings.exclude.pods)
        extract = settings.extract
        self._attributes = extract.attributes
        self._labels = [_compile(rule, "labels") for rule in extract.labels]
        self._annotations = [_compile(rule, "annotations") for rule in extract.annotations]
        self._namespace_labels = [_compile(rule, "namespace_labels") for rule in extract.namespace_labels]
        self._namespace_annotations = [_compile(rule, "namespace_annotations") for rule in extract.namespace_annotations]
        self._services: ServiceCache | None = None

    async def _follow(self, following: Following) -> None:
        for name, (query, _) in self.settings.queries(self.settings.filter.node_from_environment()).items():
            if name == "pod":
                self._pods = await following.open(PodCache, query, keep_labels=bool(self._labels), keep_annotations=bool(self._annotations))
            elif name == "service":
                self._services = await following.open(ServiceCache, query)
            else:
                self._metas[name] = await following.open(MetaCache, query)
        await following.wait(self.spawn)

    def _edit(self, raw: bytes, peer: str, ask: Ask) -> bytes:
        resource = Resource.FromString(raw)
        there: dict[str, AnyValue] = {}
        for attribute in resource.attributes:
            there.setdefault(attribute.key, attribute.value)
        identified = self._identify(there, peer)
        if identified is None:
            return raw
        name, identifier, _ = identified
        new = {name: identifier} if name else {}
        if self._pods is not None and (pod := self._pod(_ways(self._pods, identified), ask)) is not None:
            new |= self._of_pod(pod, ask)
        for key, value in new.items():
            (there[key] if key in there else resource.attributes.add(key=key).value).string_value = value
        return resource.SerializeToString() if new else raw

    def _identify(self, attributes: Mapping[str, AnyValue], peer: str) -> Identified | None:
        if not self.settings.pod_association:
            ip = any_ip(attributes, peer)
            return ("k8s.pod.ip", ip, None) if ip else None
        for association in self.settings.pod_association:
            match association.from_:
                case "connection":
                    if ip := plain_ip(peer):
                        return "k8s.pod.ip", ip, None
                case "build_hostname":
                    pod, namespace = string(attributes, "k8s.pod.name"), string(attributes, "k8s.namespace.name")
                    return (association.name, f"{pod}.{namespace}", (namespace, pod)) if pod and namespace else None
                case "resource_attribute":
                    value = string(attributes, association.name)
                    if association.name != "host.name" and value:
                        return association.name, value, None
                    if association.name == "host.name" and is_ip(value):
                        return "k8s.pod.ip", value, None
        return None

    def _of_pod(self, pod: Pod, ask: Ask) -> dict[str, str]:
        """All attributes of this pod, in the original's order: of rules that set the same attribute the last one counts."""
        container = pod.containers[0] if pod.containers else None
        values = {
            "podName": pod.name,
            "podId": pod.uid,
            "namespace": pod.namespace,
            "nodeName": pod.node,
            "hostName": pod.hostname or pod.name,
        }
        if pod.created:
            values["startTime"] = _go_time(pod.created)
        if container:
            values |= {"containerName": container.name, "containerImage": container.image}
            if container.id:
                values["containerId"] = container.runtime + container.id
        found = self._named(values) | _taken(self._labels, pod.labels)
        if namespace := ask(self._metas["namespace"].by_name, pod.namespace) if "namespace" in self._metas else None:
            found |= _taken(self._namespace_labels, namespace.labels) | _taken(self._namespace_annotations, namespace.annotations)
        found |= _taken(self._annotations, pod.annotations)
        return found | self._of_owners(pod, ask) if self.settings.owner_lookup_enabled else found

    def _of_owners(self, pod: Pod, ask: Ask) -> dict[str, str]:
        values = {}
        for owner in self._owners(pod, ask):
            if owner.kind in _OWNERS:
                values[_OWNERS[owner.kind]] = owner.name
        if self._services is not None:
            names = ask(self._services.of_pod, (pod.namespace, pod.name)) or ()
            values["serviceName"] = self.settings.extract.delimiter.join(names)
        return self._named(values)

    def _owners(self, pod: Pod, ask: Ask) -> Iterable[Owner]:
        """The pod's owners and the owners of these, as far as they are followed."""
        yield from pod.owners
        for owner in pod.owners:
            above: Meta | None = ask(self._metas[owner.kind].by_uid, owner.uid) if owner.kind in self._metas else None
            yield from above.owners if above else ()

    def _named(self, values: Mapping[str, str]) -> dict[str, str]:
        return {self._attributes[name]: value for name, value in values.items() if name in self._attributes}


def _ways(pods: PodCache, identified: Identified) -> Iterator[tuple[Look, Hashable]]:
    _, identifier, full_name = identified
    if not full_name:
        yield pods.by_uid, identifier
        yield pods.by_ip.get, identifier
    name, _, namespace = identifier.rpartition(".")  # a namespace's name has no dot, a pod's may
    yield pods.by_name.get, full_name or (namespace, name)


def _compile(rule: FieldRule, source: str) -> Take:
    part = _part(rule.regex)
    if rule.key == "*":
        template = rule.tag_name or f"k8s.{source}.%s"
        return lambda values: {go_format(template, [key]): part(value) for key, value in values.items()}
    name = rule.tag_name or f"k8s.{source}.{rule.key}"
    return lambda values: {name: part(values[rule.key])} if rule.key in values else {}


def _part(pattern: str) -> Callable[[str], str]:
    """What is taken of a value."""
    if not pattern:
        return lambda value: value
    search = regex.compile(pattern).search
    return lambda value: (match["value"] or "") if (match := search(value)) else ""


def _taken(rules: Iterable[Take], values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for take in rules for name, value in take(values).items()}


def _go_time(rfc3339: str) -> str:
    """As Go's time.Time prints a time of the API, which are in UTC and whole seconds: `2020-01-01 00:00:00 +0000 UTC`."""
    return rfc3339.replace("T", " ").replace("Z", " +0000 UTC")
