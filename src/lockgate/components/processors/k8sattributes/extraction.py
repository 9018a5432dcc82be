"""What an object's labels, annotations, owners and containers give as attributes (the rules of contrib's internal/kube/client.go)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from lockgate.components.processors.k8sattributes.settings import FieldRule, K8sAttributesSettings
from lockgate.kit import regex
from lockgate.kube.cache import Container, Meta, Owner, Pod

Value = str | tuple[str, ...]
"""A tuple is an array of strings."""
Attributes = dict[str, Value]

_OTEL_ANNOTATIONS = FieldRule(key_regex=r"resource\.opentelemetry\.io/(.+)", tag_name="$1")
_CRON_JOB = regex.compile(r"^(.*)-\d+$")
_DEPLOYMENT_HASH = regex.compile(r"^[a-z0-9]{10}$")
_REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})", re.ASCII)
# distribution/reference, "Grammar": domain, path components, tag, digest.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_IMAGE = regex.compile(
    rf"^((?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*)(?::(\w[\w.-]{{0,127}}))?(?:@([A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}}))?$"
)

_OWNERS = {"ReplicaSet": "replicaset", "DaemonSet": "daemonset", "StatefulSet": "statefulset", "Job": "job"}
_WORKLOADS = ("deployment", "statefulset", "daemonset", "job")


class Extractor:
    """The rules of one configuration."""

    def __init__(self, settings: K8sAttributesSettings) -> None:
        self.wanted = frozenset(settings.extract.metadata)
        self.by_hash = settings.extract.deployment_name_from_replicaset
        annotations = [*settings.extract.annotations, *([_OTEL_ANNOTATIONS] if settings.extract.otel_annotations else [])]
        self._labels = [_compile(rule, "label") for rule in settings.extract.labels]
        self._annotations = [_compile(rule, "annotation") for rule in annotations]
        self._container = {each for each in self.wanted if each.startswith(("container.", "k8s.container.", "service."))} - {
            "service.name",
            "service.namespace",
        }

    def keeps(self) -> tuple[bool, bool]:
        """Whether pods' labels, and their annotations, are asked for at all."""
        labels = any(each.from_ == "pod" for each in self._labels) or not self.wanted.isdisjoint(("service.name", "service.version"))
        return labels, any(each.from_ == "pod" for each in self._annotations)

    def of_pod(self, pod: Pod, deployment: Owner | None = None, cron_job: Owner | None = None, cluster_uid: str = "") -> Attributes:
        """`deployment` and `cron_job` are the owners of the pod's own owner, where that is known."""
        wanted = self.wanted
        plain = {
            "k8s.pod.name": pod.name,
            "service.name": pod.name,
            "k8s.pod.hostname": pod.hostname,
            "k8s.pod.ip": pod.ip,
            "k8s.namespace.name": pod.namespace,
            "service.namespace": pod.namespace,
            "k8s.pod.uid": pod.uid,
            "k8s.node.name": pod.node,
        }
        found: Attributes = {name: value for name, value in plain.items() if name in wanted}
        if pod.created and "k8s.pod.start_time" in wanted:
            found["k8s.pod.start_time"] = pod.created
        for owner in pod.owners:
            if owner.kind in _OWNERS:
                found |= {name: value for name, value in self._of_owner(owner, deployment, cron_job).items() if name in wanted and value}
        if cluster_uid and "k8s.cluster.uid" in wanted:
            found["k8s.cluster.uid"] = cluster_uid
        found |= self.of_fields("pod", pod.labels, pod.annotations)
        # app.kubernetes.io/instance goes before app.kubernetes.io/name, and both before what the owners say.
        for name, labels in {
            "service.name": ("app.kubernetes.io/instance", "app.kubernetes.io/name"),
            "service.version": ("app.kubernetes.io/version",),
        }.items():
            value = next((pod.labels[label] for label in labels if label in pod.labels), None)
            if name in wanted and value is not None:
                found[name] = value
        return found

    def _of_owner(self, owner: Owner, deployment: Owner | None, cron_job: Owner | None) -> dict[str, str]:
        kind = _OWNERS[owner.kind]
        found = {f"k8s.{kind}.name": owner.name, f"k8s.{kind}.uid": owner.uid, "service.name": owner.name}
        if kind == "replicaset":
            name = _without_hash(owner.name) if self.by_hash else deployment.name if deployment else ""
            found |= {"k8s.deployment.name": name, "k8s.deployment.uid": deployment.uid if deployment else ""}
            found["service.name"] = name or owner.name
        elif kind == "job":
            match = _CRON_JOB.match(owner.name)
            name = match[1] if match else ""
            found |= {"k8s.cronjob.name": name, "k8s.cronjob.uid": cron_job.uid if cron_job else ""}
            found["service.name"] = name or owner.name
        return found

    def of_fields(self, source: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Attributes:
        """What the rules for this kind of object take of its labels and annotations."""
        found: Attributes = {}
        for rules, values in ((self._labels, labels), (self._annotations, annotations)):
            for rule in rules:
                if rule.from_ == source:
                    found |= rule.take(values)
        return found

    def of_meta(self, source: str, meta: Meta) -> Attributes:
        return self.of_fields(source, meta.labels, meta.annotations)

    def of_container(self, pod: Pod, name: str, id: str, restart_count: int | None) -> Attributes:
        """Attributes of the container with this name, or this id, or of the only one. A `restart_count` of another run than the pod's
        status tells of gives no id: it would be another container's."""
        if not self._container:
            return {}
        container = _container(pod, name, id)
        if container is None:
            return {}
        found: Attributes = {"k8s.container.name": container.name}
        if image := parse_image(container.image):
            repository, tag, digest = image
            found |= {
                "container.image.name": repository,
                "container.image.tag": tag or "latest",
                "container.image.tags": (tag or "latest",),
            }
            version = "@".join(filter(None, (tag, digest)))
            if version:
                found["service.version"] = version
        found["service.instance.id"] = f"{pod.namespace}.{pod.name}.{container.name}"
        if container.id and restart_count in (None, container.restart_count):
            found["container.id"] = container.id
            if digest := canonical_image(container.image_id):
                found["container.image.repo_digests"] = (digest,)
        return {name: value for name, value in found.items() if name in self._container}


class _Rule:
    """A FieldRule, compiled."""

    def __init__(self, from_: str, take: Callable[[Mapping[str, str]], Attributes]) -> None:
        self.from_, self.take = from_, take


def _compile(rule: FieldRule, what: str) -> _Rule:
    # Workloads came after the semantic conventions had settled on the singular.
    prefix = f"k8s.{rule.from_}.{what}." if rule.from_ in _WORKLOADS else f"k8s.{rule.from_}.{what}s."
    if rule.key:
        name = rule.tag_name or prefix + rule.key
        return _Rule(rule.from_, lambda values: {name: values[rule.key]} if rule.key in values else {})
    pattern = regex.compile(f"^(?:{rule.key_regex})$")
    expand = _template(rule.tag_name) if pattern.groups and rule.tag_name else None

    @lru_cache(maxsize=4096)
    def named(key: str) -> str | None:
        match = pattern.match(key)
        if match is None:
            return None
        return expand(match) if expand else prefix + key

    def take(values: Mapping[str, str]) -> Attributes:
        return {name: value for key, value in values.items() if value and (name := named(key))}

    return _Rule(rule.from_, take)


def _template(text: str) -> Callable[[re.Match[str]], str]:
    """Go's regexp.Expand: `$name` takes the longest run of word characters, an unknown group is empty, `$$` is a dollar sign."""

    def expand(match: re.Match[str]) -> str:
        def group(reference: re.Match[str]) -> str:
            if reference[1]:
                return "$"
            name = reference[2] or reference[3]
            try:
                return match.group(int(name) if name.isdigit() else name) or ""
            except (IndexError, KeyError):
                return ""

        return _REFERENCE.sub(group, text)

    return expand


def _without_hash(replica_set: str) -> str:
    """`web` of `web-5db86d8867`; "" where the name does not end in a pod template's hash."""
    name, _, suffix = replica_set.rpartition("-")
    return name if name and _DEPLOYMENT_HASH.match(suffix) else ""


def _container(pod: Pod, name: str, id: str) -> Container | None:
    if name:
        return next((each for each in pod.containers if each.name == name), None)
    if id:
        return next((each for each in pod.containers if each.id == id), None)
    return pod.containers[0] if len(pod.containers) == 1 else None


@lru_cache(maxsize=4096)
def parse_image(image: str) -> tuple[str, str, str] | None:
    """(repository, tag, digest) of an image reference, "" for what it does not have; None where it is none."""
    match = _IMAGE.match(image)
    if match is None or len(match[1]) > 255:
        return None
    return match[1], match[2] or "", match[3] or ""


@lru_cache(maxsize=4096)
def canonical_image(image_id: str) -> str:
    """A container status's imageID as `domain/path@digest`; "" where it names no repository and digest."""
    parsed = parse_image(image_id)
    if parsed is None or not parsed[2]:
        return ""
    name, tag, digest = parsed
    first, slash, _ = name.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost" or first != first.lower()):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    return f"{name}{f':{tag}' if tag else ''}@{digest}"


def owner_of(owners: Sequence[Owner], kind: str, *, controller: bool = False) -> Owner | None:
    """The first owner of this kind; with `controller`, one that says it is in charge."""
    return next((owner for owner in owners if owner.kind == kind and (owner.controller or not controller)), None)
