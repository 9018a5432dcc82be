"""What a change of the configuration stops and starts, and what goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lockgate.collector.config import Configuration, Configured, Pipeline
from lockgate.pipeline.contract import Kind

TELEMETRY = "service/telemetry"


@dataclass(frozen=True, slots=True)
class Place:
    """Something that is started and stopped as one: a component by `kind/id`, or a pipeline's processors by `pipelines/id`."""

    made_of: Any
    """Equal where it can go on."""
    extensions: frozenset[str] = frozenset()
    """Keys of those that it names: where one of them stops, it stops as well."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Keys of places, each in the order of entering."""

    stops: tuple[str, ...]
    starts: tuple[str, ...]

    @classmethod
    def of(cls, old: Configuration, new: Configuration) -> Plan:
        """The least that makes the one the other."""
        before, after = places(old), places(new)
        stops = {key for key, place in before.items() if key not in after or place.made_of != after[key].made_of}
        while more := {key for key, place in before.items() if key not in stops and place.extensions & stops}:
            stops |= more
        return cls(
            tuple(key for key in before if key in stops),
            tuple(key for key in after if key in stops or key not in before),
        )


def places(configuration: Configuration) -> dict[str, Place]:
    """Every place, in the order of entering: own metrics, extensions, exporters, pipelines and connectors against the flow, receivers."""
    used = {configured.key: configured for configured in configuration.used()}
    found = {}
    if (prometheus := configuration.service.telemetry.metrics.prometheus()) is not None:
        found[TELEMETRY] = Place(prometheus)
    found |= {key: _place(it) for key, it in used.items() if it.kind is Kind.EXTENSION}
    feeds: dict[str, list[str]] = {}
    for pipeline in configuration.pipelines:
        for key, exporters in queues(configuration, pipeline).items():
            named = {f"{Kind.EXTENSION.value}/{exporters[0].settings.queued_in()}", *(it.key for it in exporters)}
            found[key] = Place([_place(it).made_of for it in exporters], frozenset(named))
            for exporter in exporters:
                feeds.setdefault(exporter.key, []).append(key)
    for key, it in used.items():
        if it.kind is Kind.EXPORTER:
            # A queue and the exporters that it feeds are started and stopped together.
            place = _place(it, feeds.get(key))
            found[key] = Place(place.made_of, place.extensions | set(feeds.get(key, ())))
    _, crossed = configuration.forks()
    for each in _against_the_flow(configuration):
        if isinstance(each, Pipeline):
            processors = [configuration.components[Kind.PROCESSOR, id] for id in each.processors]
            made_of = [_place(it).made_of for it in processors], ahead(configuration, each), each.id in crossed
            found[f"pipelines/{each.id}"] = Place(made_of, frozenset[str]().union(*(_place(it).extensions for it in processors)))
        else:
            found[each.key] = _place(each, fed_by(configuration, each.id))
    for key, it in used.items():
        if it.kind is Kind.RECEIVER:
            found[key] = _place(it, {pipeline.signal for pipeline in configuration.pipelines if it.id in pipeline.receivers})
    return found


def fed_by(configuration: Configuration, id: str) -> list[str]:
    """The pipelines that this receiver or connector feeds."""
    return [pipeline.id for pipeline in configuration.pipelines if id in pipeline.receivers]


def queues(configuration: Configuration, pipeline: Pipeline) -> dict[str, list[Configured]]:
    """The queues on disk of this pipeline by key, `queues/PIPELINE@STORAGE`, with the exporters that share each."""
    found: dict[str, list[Configured]] = {}
    for id in pipeline.exporters:
        exporter = configuration.components.get((Kind.EXPORTER, id))
        if exporter is not None and (storage := exporter.settings.queued_in()):
            found.setdefault(f"queues/{pipeline.id}@{storage}", []).append(exporter)
    return found


def ahead(configuration: Configuration, pipeline: Pipeline) -> list[str]:
    """The keys of the queues, exporters and connectors that this pipeline hands its batches to."""
    queued = {it.id: key for key, exporters in queues(configuration, pipeline).items() for it in exporters}
    kinds = [Kind.EXPORTER if (Kind.EXPORTER, id) in configuration.components else Kind.CONNECTOR for id in pipeline.exporters]
    return list(dict.fromkeys(queued.get(id, f"{kind.value}/{id}") for kind, id in zip(kinds, pipeline.exporters, strict=True)))


def _place(configured: Configured, *more: Any) -> Place:
    extensions = frozenset(f"{Kind.EXTENSION.value}/{id}" for _, id in configured.settings.extensions())
    return Place((configured.id, configured.component, configured.settings, *more), extensions)


def _against_the_flow(configuration: Configuration) -> Iterator[Pipeline | Configured]:
    """Pipelines and connectors, each after what it feeds; there is no cycle."""
    connectors = [configured for configured in configuration.used() if configured.kind is Kind.CONNECTOR]
    waiting: list[Pipeline | Configured] = [*configuration.pipelines, *connectors]
    names = {connector.id for connector in connectors}
    done: set[str] = set()
    while waiting:
        for each in list(waiting):
            needed = [id for id in each.exporters if id in names] if isinstance(each, Pipeline) else fed_by(configuration, each.id)
            if done.issuperset(needed):
                waiting.remove(each)
                done.add(each.id)
                yield each
