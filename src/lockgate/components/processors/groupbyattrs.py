"""Move record attributes to the resource, and gather the records that then share one.

Behaviour: the contrib collector's `groupbyattrsprocessor`: an attribute of the record overwrites the resource's; records whose resources
and scopes (name and version) are then equal stand together, in the order of first arrival. Without keys it only gathers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import count
from typing import Any

from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs

from lockgate.attributes.records import data_points, groups, records, resources, scopes
from lockgate.attributes.values import find, put, remove
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, Signal, component
from lockgate.wire.records import Index, gather, index

_KEPT, _SMALL = 4096, 4096
"""How many resources are remembered, and up to how many bytes of a resource and what moves there: some 4 MB, 40 MB at worst."""


class GroupByAttrsSettings(ComponentSettings):
    """Which attributes describe the sender rather than the record."""

    keys: list[str] = []
    """Keys of the record attributes (of metrics: of each data point) to move; a record without any of them keeps its resource. Empty ones,
    and one given twice, count for nothing."""


@component("groupbyattrs", GroupByAttrsSettings)
class GroupByAttrsProcessor(Processor[GroupByAttrsSettings]):
    """Keeps the number of records, not their order across resources. Log records are moved by groups of alike ones, and stay encoded."""

    def __init__(self, settings: GroupByAttrsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._keys = list(dict.fromkeys(filter(None, settings.keys)))
        self._move = lru_cache(_KEPT)(partial(_moved, self._keys))
        self._describe = lru_cache(_KEPT)(_described)
        self._encoded_keys = [key.encode(errors="surrogatepass") for key in self._keys]

    def process(self, batch: Batch) -> Batch:
        if batch.signal is Signal.LOGS and (found := index(batch.payload, self._encoded_keys)) is not None:
            return replace(batch.with_payload(self._regroup(found)), regrouped=True)
        request = batch.copy_message()
        regrouped = type(request)()
        homes = _Homes(batch.signal, regrouped)
        for entry, scope, held in groups(batch.signal, request):
            for record in held:
                if batch.signal is not Signal.METRICS:
                    homes.of(entry, scope, self._take(record.attributes)).append(record)
                    continue
                for point in data_points(record):
                    homes.of_metric(entry, scope, record, self._take(point.attributes)).append(point)
        return replace(batch.with_message(regrouped, batch.count), regrouped=True)

    def _regroup(self, index: Index) -> bytes:
        """What `process` does, by groups of alike log records."""
        homes: list[int] = []
        numbers = count()
        # By identity of the resource: itself, and by name and version its scopes with the numbers of their homes.
        known: dict[Any, tuple[bytes, dict[tuple[str, str], tuple[bytes, int]]]] = {}
        for group in index.groups:
            number, raw = index.scopes[group.scope]
            entry = index.entries[number]
            # What comes with every batch is nearly always the same; the bound on its size bounds the cache's.
            is_small = len(entry) + len(raw) + sum(map(len, filter(None, group.values))) < _SMALL
            move, describe = (self._move, self._describe) if is_small else (self._move.__wrapped__, self._describe.__wrapped__)
            identity, head = move(entry, group.values)
            name, version, encoded = describe(raw)
            inner = known.setdefault(identity, (head, {}))[1]
            if (name, version) not in inner:
                inner[name, version] = (encoded, next(numbers))
            homes.append(inner[name, version][1])
        return gather(index, homes, [(head, list(inner.values())) for head, inner in known.values()], remove=True)

    def _take(self, attributes: Any) -> list[tuple[str, bytes]]:
        """The attributes to group by, as (key, encoded value), removed from the record's."""
        taken = [(key, value.SerializeToString()) for key in self._keys if (value := find(attributes, key)) is not None]
        if taken:
            remove(attributes, {key for key, _ in taken}.__contains__)
        return taken


def _moved(keys: list[str], raw: bytes, values: tuple[bytes | None, ...]) -> tuple[frozenset[tuple[str, bytes]], bytes]:
    """A ResourceLogs' attributes with these set, for comparison, and the ResourceLogs with them, encoded, without scopes."""
    entry = ResourceLogs.FromString(raw)
    for key, value in zip(keys, values, strict=True):
        if value is not None:
            put(entry.resource.attributes, key).ParseFromString(value)
    identity = frozenset((attribute.key, attribute.value.SerializeToString()) for attribute in entry.resource.attributes)
    return identity, ResourceLogs(resource=entry.resource, schema_url=entry.schema_url).SerializeToString()


def _described(raw: bytes) -> tuple[str, str, bytes]:
    """A ScopeLogs' name and version, and itself, encoded."""
    entry = ScopeLogs.FromString(raw)
    encoded = ScopeLogs(scope=entry.scope, schema_url=entry.schema_url).SerializeToString()
    return entry.scope.name, entry.scope.version, encoded


class _Homes:
    """Where records go: found by what the resource will be and by the scope's name and version."""

    def __init__(self, signal: Signal, request: Any) -> None:
        self._signal, self._request = signal, request
        self._known: dict[Any, Any] = {}
        self._seen: dict[Any, Any] = {}

    def of(self, entry: Any, scope: Any, taken: list[tuple[str, bytes]]) -> Any:
        """The repeated records of the group that this combination belongs to."""
        # The messages themselves are part of the key, so that they outlive it and an id is never another's.
        key = (id(entry), id(scope), *taken)
        if key not in self._seen:
            self._seen[key] = (self._find(entry, scope, taken), entry, scope)
        return self._seen[key][0]

    def of_metric(self, entry: Any, scope: Any, metric: Any, taken: list[tuple[str, bytes]]) -> Any:
        """The repeated data points of the metric of this name and kind in that group."""
        held = self.of(entry, scope, taken)
        kind = metric.WhichOneof("data")
        data = getattr(metric, kind)
        shape = (
            id(held),
            metric.name,
            metric.unit,
            kind,
            getattr(data, "aggregation_temporality", 0),
            getattr(data, "is_monotonic", False),
        )
        if shape not in self._known:
            home = held.add(name=metric.name, description=metric.description, unit=metric.unit)
            home.metadata.extend(metric.metadata)
            inner = getattr(home, kind)
            inner.SetInParent()
            for name in ("aggregation_temporality", "is_monotonic"):
                if hasattr(data, name):
                    setattr(inner, name, getattr(data, name))
            self._known[shape] = (inner.data_points, held)
        return self._known[shape][0]

    def _find(self, entry: Any, scope: Any, taken: list[tuple[str, bytes]]) -> Any:
        resource = type(entry.resource)()
        resource.CopyFrom(entry.resource)
        for key, value in taken:
            put(resource.attributes, key).ParseFromString(value)
        identity = frozenset((attribute.key, attribute.value.SerializeToString()) for attribute in resource.attributes)
        home = self._known.get(identity)
        if home is None:
            home = self._known[identity] = resources(self._signal, self._request).add(schema_url=entry.schema_url)
            home.resource.CopyFrom(resource)
        place = (identity, scope.scope.name, scope.scope.version)
        inner = self._known.get(place)
        if inner is None:
            inner = self._known[place] = scopes(self._signal, home).add(schema_url=scope.schema_url)
            inner.scope.CopyFrom(scope.scope)
        return records(self._signal, inner)
