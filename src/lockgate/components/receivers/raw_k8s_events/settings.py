"""What a user writes for raw_k8s_events: the keys of Sumo Logic's receiver (sumologic-otel-collector, rawk8seventsreceiver/config.go)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field, field_validator

from lockgate.kit.document import Path
from lockgate.kit.units import Duration
from lockgate.kube.access import KubernetesClientSettings
from lockgate.kube.client import Query
from lockgate.kube.resources import EVENTS
from lockgate.pipeline.needs import Kubernetes, Need

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class RawK8sEventsSettings(KubernetesClientSettings):
    """Which events to read, and where to begin."""

    namespaces: list[str] = []
    """Namespaces whose events to read; none named is all. Named ones are watched one by one, and ask for permission there alone."""
    max_event_age: Duration = Field(60.0, ge=0)
    """Where no position is known, events of the time before the start to read: those that last happened no longer ago."""
    consume_retry_delay: Duration = Field(0.5, gt=0)
    """Time between two tries to hand events to a pipeline that cannot take them now."""
    consume_max_retries: int = Field(0, ge=0)
    """New tries after which events are given up and counted; 0, the default here, is never. (The receiver there drops after 20.)"""
    resource_version: int = Field(0, ge=0, lt=2**63 - 1)
    """Where no position is known, the version of the API server's history after which to begin, whatever the events' age; 0 is none."""
    storage: str = ""
    """The storage extension that keeps the position. By default the one that the program runs, if it runs one."""

    @field_validator("namespaces")
    @classmethod
    def _are_names(cls, namespaces: list[str]) -> list[str]:
        for namespace in namespaces:
            if not _NAMESPACE.fullmatch(namespace):
                raise ValueError(f"{namespace!r} is no namespace's name (patterns are not supported); leave namespaces out for all")
        return list(dict.fromkeys(namespaces))

    def queries(self) -> list[Query]:
        """What is listed and watched."""
        return [Query(EVENTS, namespace) for namespace in self.namespaces or [""]]

    def needs(self) -> Iterator[Need]:
        yield from self.api_needs("raw_k8s_events lists and watches events")
        for query in self.queries():
            yield Kubernetes(("list", "watch"), EVENTS.group, EVENTS.plural, "events are what it reads", query.namespace)

    def extensions(self) -> Iterator[tuple[Path, str]]:
        yield from super().extensions()
        if self.storage:
            yield ("storage",), self.storage

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.consume_max_retries:
            yield "consume_max_retries drops events when a pipeline is busy for long; leave it out to keep them"
