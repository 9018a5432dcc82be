"""Drop records by their properties: what `include` does not match, and what `exclude` matches.

Behaviour: the contrib collector's `filterprocessor`. Conditions in OTTL are not there yet, and are refused as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from lockgate.attributes.matching import (
    AttributeMatch,
    Matches,
    MatchProperties,
    MatchType,
    RegexpCache,
    SeverityMatch,
    conflicts,
    deciding_keys,
    selection,
)
from lockgate.attributes.records import keep, keep_groups, representatives
from lockgate.kit.document import Path
from lockgate.kit.settings import Settings
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, Signal, component
from lockgate.wire import records


class _NoOttl:
    """Says what an OTTL condition is where one is written, instead of `unknown key`."""

    OTTL: ClassVar[frozenset[str]]

    @model_validator(mode="before")
    @classmethod
    def _refuse_ottl(cls, value: Any) -> Any:
        if isinstance(value, dict) and (written := sorted(key for key in cls.OTTL if value.get(key))):
            raise ValueError(f"{', '.join(written)}: OTTL conditions are not supported yet; write include or exclude")
        return value


class LogProperties(Settings):
    """What a log record must look like; all given properties must hold."""

    match_type: MatchType
    """`strict` compares, `regexp` searches with regular expressions (RE2)."""
    resource_attributes: list[AttributeMatch] = []
    """Attributes of the resource; all must match."""
    record_attributes: list[AttributeMatch] = []
    """Attributes of the record; all must match."""
    severity_texts: list[str] = []
    """Severity texts, of which one must match."""
    severity_number: SeverityMatch | None = None
    """Severities from a lowest one upwards."""
    bodies: list[str] = []
    """Bodies as text, of which one must match."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.properties()
        return self

    def properties(self) -> MatchProperties | None:
        """The same in the words of the other processors; None where no property is given, which is no condition."""
        given = {
            "resources": self.resource_attributes,
            "attributes": self.record_attributes,
            "log_severity_texts": self.severity_texts,
            "log_severity_number": self.severity_number,
            "log_bodies": self.bodies,
        }
        return MatchProperties.model_validate({"match_type": self.match_type, **given}) if any(given.values()) else None


class MetricProperties(Settings):
    """What a metric must look like: all given properties must hold to include it, one of them to exclude it. (`expr` is refused.)"""

    match_type: MatchType
    """`strict` compares, `regexp` searches with regular expressions (RE2)."""
    regexp: RegexpCache | None = None
    """No effect, whatever it holds."""
    metric_names: list[str] = []
    """Names, of which one must match."""
    resource_attributes: list[AttributeMatch] = []
    """Attributes of the resource; all must match."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.properties()
        return self

    def properties(self, *names: str) -> MatchProperties | None:
        """As LogProperties.properties, but only of those named here, where any is."""
        given = {"metric_names": self.metric_names, "resources": self.resource_attributes}
        given = {name: value for name, value in given.items() if not names or name in names}
        return MatchProperties.model_validate({"match_type": self.match_type, **given}) if any(given.values()) else None


class LogFilters(_NoOttl, Settings):
    """Which log records stay."""

    OTTL: ClassVar[frozenset[str]] = frozenset({"resource", "log_record"})

    include: LogProperties | None = None
    """Only records that match stay."""
    exclude: LogProperties | None = None
    """Of these, records that match go."""


class MetricFilters(_NoOttl, Settings):
    """Which metrics stay."""

    OTTL: ClassVar[frozenset[str]] = frozenset({"resource", "metric", "datapoint"})

    include: MetricProperties | None = None
    """Only metrics that match stay."""
    exclude: MetricProperties | None = None
    """Of these, metrics go that have one of the names, or whose resource has all of the attributes."""
    regexp: RegexpCache | None = None
    """No effect, whatever it holds."""

    def selection(self) -> Matches | None:
        """Which metrics stay; None where there is no condition."""
        included = selection(self.include.properties() if self.include else None, None, Signal.METRICS)
        if self.exclude is None:
            return included
        # The collector drops whole resources first, and then metrics by name: each property excludes by itself.
        excluding = (selection(None, self.exclude.properties(name), Signal.METRICS) for name in ("resources", "metric_names"))
        checks = [check for check in (included, *excluding) if check]
        return (lambda entry, scope, record: all(check(entry, scope, record) for check in checks)) if checks else None


class SpanFilters(Settings):
    """Which spans stay."""

    include: MatchProperties | None = None
    """Only spans that match stay."""
    exclude: MatchProperties | None = None
    """Of these, spans that match go."""


class FilterSettings(_NoOttl, ComponentSettings):
    """Conditions by signal; those of other signals than the pipeline's have no effect."""

    OTTL: ClassVar[frozenset[str]] = frozenset({"traces", "log_conditions", "metric_conditions", "trace_conditions"})

    error_mode: Literal["propagate", "ignore", "silent"] = "propagate"
    """What to do when a condition fails to evaluate; include and exclude cannot fail."""
    logs: LogFilters = LogFilters()
    """For pipelines of logs."""
    metrics: MetricFilters = MetricFilters()
    """For pipelines of metrics."""
    spans: SpanFilters = SpanFilters()
    """For pipelines of traces."""

    def conflicts(self, signal: Signal) -> Iterator[tuple[Path, str]]:
        if signal is Signal.TRACES:
            for path, what in conflicts(self.spans.include, self.spans.exclude, signal):
                yield ("spans", *path), what


@component("filter", FilterSettings)
class FilterProcessor(Processor[FilterSettings]):
    """Counts what it drops; resources and scopes that lose all their records go too.

    Log records of which only attributes count are decided upon by groups of alike ones, and stay encoded.
    """

    def __init__(self, settings: FilterSettings, context: Context) -> None:
        super().__init__(settings, context)
        signal = context.signal or Signal.LOGS
        keys: list[str] | None = None
        if signal is Signal.METRICS:
            self._selects = settings.metrics.selection()
        elif signal is Signal.TRACES:
            self._selects = selection(settings.spans.include, settings.spans.exclude, signal)
        else:
            include, exclude = (each.properties() if each else None for each in (settings.logs.include, settings.logs.exclude))
            self._selects = selection(include, exclude, signal)
            keys = deciding_keys(include, exclude)
        # Uncompiled, the kernel is slower than deciding for each record by upb.
        self._keys = keys if records.compiled else None
        self._encoded_keys = [key.encode(errors="surrogatepass") for key in self._keys or ()]
        counted = {Signal.LOGS: "logs", Signal.METRICS: "datapoints", Signal.TRACES: "spans"}[signal]
        self._filtered = context.metrics.counter(
            f"otelcol_processor_filter_{counted}_filtered", f"{counted} dropped by this processor", filter=context.id
        )

    def process(self, batch: Batch) -> Batch:
        if self._selects is None:
            return batch
        index = None if self._keys is None else records.index(batch.payload, self._encoded_keys)
        if self._keys is not None and index is not None:
            stays = [self._selects(*alike) for alike in representatives(index, self._keys)]
            left = sum(group.records for group, stay in zip(index.groups, stays, strict=True) if stay)
            if left == batch.count:
                return batch
            self._filtered.add(batch.count - left)
            dropped = [0] * len(index.entries)
            for group, stay in zip(index.groups, stays, strict=True):
                if not stay:
                    dropped[index.scopes[group.scope][0]] += group.records
            return batch.with_payload(keep_groups(index, stays), left, dropped)
        request = batch.copy_message()
        dropped = keep(batch.signal, request, self._selects)
        left = batch.count - sum(dropped)
        if left == batch.count:
            return batch
        self._filtered.add(batch.count - left)
        return batch.with_message(request, left, dropped)
