"""Finds the pod behind each resource and appends what is known of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from lockgate.attributes.values import text
from lockgate.components.processors.k8sattributes.extraction import Attributes, Extractor, Value, owner_of
from lockgate.components.processors.k8sattributes.settings import IP_ATTRIBUTES, Association, K8sAttributesSettings
from lockgate.kube.association import Ask, Look, any_ip, is_ip, plain_ip, string
from lockgate.kube.cache import MetaCache, Owner, Pod, PodCache, PodIndex
from lockgate.kube.following import Following
from lockgate.kube.tagging import PodProcessor
from lockgate.pipeline.contract import Context, component
from lockgate.wire.protobuf import any_value, delimited

Find = Callable[[Mapping[str, AnyValue], str], tuple[Look, Hashable, str] | None]
"""(attributes, peer) -> how to find the pod, and the connection's IP where that was used; None where this way is not open."""


@component("k8sattributes", K8sAttributesSettings, aliases=("k8s_attributes",))
class K8sAttributesProcessor(PodProcessor[K8sAttributesSettings]):
    """Appends what is known of the pod."""

    def __init__(self, settings: K8sAttributesSettings, context: Context) -> None:
        sources = [source for association in settings.pod_association for source in association.sources]
        uses_peer = not sources or any(source.from_ == "connection" for source in sources)
        super().__init__(settings, context, uses_peer=uses_peer, excluded=settings.exclude.pods)
        self._extractor = Extractor(settings)
        self._sets_ip = settings.passthrough or "k8s.pod.ip" in settings.extract.metadata
        self._finds: list[Find] = []

    async def _follow(self, following: Following) -> None:
        labels, annotations = self._extractor.keeps()
        for name, (query, _) in self.settings.queries(self.settings.filter.node_from_environment()).items():
            if name == "pod":
                self._pods = await following.open(PodCache, query, keep_labels=labels, keep_annotations=annotations)
            else:
                self._metas[name] = await following.open(MetaCache, query)
        self._finds = self._compile_finds(self._pods)
        await following.wait(self.spawn)

    def _edit(self, raw: bytes, peer: str, ask: Ask) -> bytes:
        resource = Resource.FromString(raw)
        present = _Present(resource)
        pod: Pod | None = None
        found = next((way for find in self._finds if (way := find(present.values, peer)) is not None), None)
        if found is not None:
            look, key, connection = found
            if connection and self._sets_ip:
                present.offer({"k8s.pod.ip": connection})
            if self.settings.passthrough:
                return present.encode(raw)
            pod = self._pod([(look, key)], ask)
        if self.settings.passthrough:
            return raw
        deployment = self._deployment(pod, ask) if pod else None
        if pod is not None:
            system = ask(self._metas["namespace"].by_name, "kube-system") if "k8s.cluster.uid" in self._extractor.wanted else None
            present.offer(self._extractor.of_pod(pod, deployment, self._cron_job(pod, ask), system.uid if system else ""))
            count = present.number("k8s.container.restart_count")
            present.offer(self._extractor.of_container(pod, present.string("k8s.container.name"), present.string("container.id"), count))
        self._offer_surroundings(pod, deployment, present, ask)
        return present.encode(raw)

    def _offer_surroundings(self, pod: Pod | None, deployment: Owner | None, present: _Present, ask: Ask) -> None:
        """What namespace, node and workload add; where no pod was found, those that the resource itself names."""
        extractor = self._extractor
        namespace = (pod.namespace if pod else "") or present.string("k8s.namespace.name")
        if namespace:
            if "namespace" in self._metas and (meta := ask(self._metas["namespace"].by_name, namespace)):
                present.offer(extractor.of_meta("namespace", meta))
            if "service.namespace" in extractor.wanted:
                present.offer({"service.namespace": namespace})
        node = (pod.node if pod else "") or present.string("k8s.node.name")
        if node and "node" in self._metas and (meta := ask(self._metas["node"].by_name, node)):
            present.offer(extractor.of_meta("node", meta))
            if "k8s.node.uid" in extractor.wanted:
                present.offer({"k8s.node.uid": meta.uid})
        for source, kind in (("deployment", ""), ("statefulset", "StatefulSet"), ("daemonset", "DaemonSet"), ("job", "Job")):
            if source not in self._metas:
                continue
            owner = deployment if not kind else owner_of(pod.owners, kind) if pod else None
            uid = owner.uid if owner else present.string(f"k8s.{source}.uid")
            if uid and (meta := ask(self._metas[source].by_uid, uid)):
                present.offer(extractor.of_meta(source, meta))

    def _deployment(self, pod: Pod, ask: Ask) -> Owner | None:
        return self._owner_of_owner(pod, "replicaset", "ReplicaSet", "Deployment", ask)

    def _cron_job(self, pod: Pod, ask: Ask) -> Owner | None:
        return self._owner_of_owner(pod, "job", "Job", "CronJob", ask)

    def _owner_of_owner(self, pod: Pod, cache: str, kind: str, above: str, ask: Ask) -> Owner | None:
        owner = owner_of(pod.owners, kind) if cache in self._metas else None
        meta = ask(self._metas[cache].by_uid, owner.uid) if owner else None
        return owner_of(meta.owners, above, controller=True) if meta else None

    def _compile_finds(self, pods: PodCache | None) -> list[Find]:
        if not self.settings.pod_association:
            return [_by_any_ip(pods.by_ip.get if pods is not None else lambda ip: None)]
        return [self._compile_find(association, pods) for association in self.settings.pod_association]

    def _compile_find(self, association: Association, pods: PodCache | None) -> Find:
        names = ["connection" if source.from_ == "connection" else source.name for source in association.sources]
        look, order = self._look(names, pods)

        def find(attributes: Mapping[str, AnyValue], peer: str) -> tuple[Look, Hashable, str] | None:
            values = {}
            for name in names:
                value = plain_ip(peer) if name == "connection" else string(attributes, name)
                if name == "host.name" and not is_ip(value):
                    value = ""
                if not value:
                    return None
                values[name] = value
            key: Hashable = tuple(values[name] for name in order) if len(order) > 1 else values[order[0]]
            return look, key, values.get("connection", "")

        return find

    def _look(self, names: list[str], pods: PodCache | None) -> tuple[Look, list[str]]:
        """How pods are found by these values, and in which order they make the key."""
        if pods is None:
            return (lambda key: None), names
        if names == ["k8s.pod.uid"]:
            return pods.by_uid, names
        if len(names) == 1 and names[0] in ("connection", *IP_ATTRIBUTES):
            return pods.by_ip.get, names
        if sorted(names) == ["k8s.namespace.name", "k8s.pod.name"]:
            return pods.by_name.get, ["k8s.namespace.name", "k8s.pod.name"]
        if names == ["container.id"]:
            return pods.by_container.get, names
        index: PodIndex[Any] = pods.index(lambda pod: self._keys(pod, names))
        self._stack.callback(pods.unindex, index)
        return index.get, names

    def _keys(self, pod: Pod, names: list[str]) -> Iterable[Hashable]:
        attributes = self._extractor.of_pod(pod)
        choices: list[Iterable[Value]] = []
        for name in names:
            match name:
                case "connection" | "k8s.pod.ip" | "ip" | "host.name":
                    choices.append(() if pod.deleted else pod.ips)
                case "container.id":
                    choices.append({container.id for container in pod.containers if container.id})
                case "k8s.pod.uid":
                    choices.append((pod.uid,))
                case "k8s.pod.name":
                    choices.append((pod.name,))
                case "k8s.namespace.name":
                    choices.append((pod.namespace,))
                case _:
                    choices.append(filter(None, (attributes.get(name),)))
        keys = itertools.product(*choices)
        return keys if len(names) > 1 else (key[0] for key in keys)


class _Present:
    """A resource's attributes and what is to be added to them: what is there, and not empty, stays."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self.values: dict[str, AnyValue] = {}
        for attribute in resource.attributes:
            self.values.setdefault(attribute.key, attribute.value)
        self._added: Attributes = {}

    def offer(self, attributes: Attributes) -> None:
        for name, value in attributes.items():
            # The collector's rule: an attribute whose text is empty is as good as none.
            there = name in self.values and text(self.values[name])
            if not there and not self._added.get(name):
                self._added[name] = value

    def string(self, name: str) -> str:
        """The attribute's text where it is a string, added or there before; "" otherwise."""
        added = self._added.get(name, "")
        return (added if isinstance(added, str) else "") or string(self.values, name)

    def number(self, name: str) -> int | None:
        """An integer, or a string that is one; -1, which nothing has, for anything else that is there."""
        value = self.values.get(name)
        if value is None:
            return None
        if value.WhichOneof("value") == "int_value":
            return int(value.int_value)
        try:
            return int(value.string_value)
        except ValueError:
            return -1

    def encode(self, raw: bytes) -> bytes:
        if not self._added:
            return raw
        if replaced := self._added.keys() & self.values.keys():
            for index in range(len(self._resource.attributes) - 1, -1, -1):
                if self._resource.attributes[index].key in replaced:
                    del self._resource.attributes[index]
            raw = self._resource.SerializeToString()
        return raw + b"".join(_key_value(name, value) for name, value in self._added.items())


def _key_value(name: str, value: Value) -> bytes:
    encoded = any_value(value) if isinstance(value, str) else delimited(5, b"".join(delimited(1, any_value(item)) for item in value))
    return delimited(1, delimited(1, name.encode("utf-8", "replace")) + delimited(2, encoded))


def _by_any_ip(look: Look) -> Find:
    """The collector's way where no association is configured."""

    def find(attributes: Mapping[str, AnyValue], peer: str) -> tuple[Look, Hashable, str] | None:
        ip = any_ip(attributes, peer)
        return (look, ip, ip) if ip else None

    return find
