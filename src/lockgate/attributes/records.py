"""The way to the records of a parsed export request, the same for the three signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lockgate.batch import Signal
from lockgate.wire.records import Index, gather

_FIELDS = {
    Signal.LOGS: ("resource_logs", "scope_logs", "log_records"),
    Signal.METRICS: ("resource_metrics", "scope_metrics", "metrics"),
    Signal.TRACES: ("resource_spans", "scope_spans", "spans"),
}


def resources(signal: Signal, request: Any) -> Any:
    """The request's repeated Resource{Logs,Metrics,Spans}."""
    return getattr(request, _FIELDS[signal][0])


def scopes(signal: Signal, entry: Any) -> Any:
    """The repeated Scope{Logs,Metrics,Spans} of one of `resources`."""
    return getattr(entry, _FIELDS[signal][1])


def records(signal: Signal, scope: Any) -> Any:
    """The repeated log records, metrics or spans of one of `scopes`."""
    return getattr(scope, _FIELDS[signal][2])


def groups(signal: Signal, request: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Each (resource entry, scope entry, repeated log records, metrics or spans)."""
    for entry in resources(signal, request):
        for scope in scopes(signal, entry):
            yield entry, scope, records(signal, scope)


def data_points(metric: Any) -> Any:
    """The metric's repeated data points, of whichever kind; an empty tuple for a metric without data."""
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else ()


def keep(signal: Signal, request: Any, stays: Callable[[Any, Any, Any], bool]) -> list[int]:
    """Removes every record (a metric with all its points) for which `stays(resource entry, scope entry, record)` is false.

    Scopes and resources that this empties go too. Returns how many items each resource has lost: log records, spans or data points.
    """
    entries = resources(signal, request)
    dropped = [0] * len(entries)
    for at in range(len(entries) - 1, -1, -1):
        entry = entries[at]
        inner = scopes(signal, entry)
        for position in range(len(inner) - 1, -1, -1):
            scope = inner[position]
            held = records(signal, scope)
            staying = [record for record in held if stays(entry, scope, record)]
            if len(staying) != len(held):
                before = _items(signal, held)
                # Copies before clearing: deleting one by one would shift the rest each time.
                kept = type(scope)()
                records(signal, kept).extend(staying)
                del held[:]
                held.MergeFrom(records(signal, kept))
                dropped[at] += before - _items(signal, held)
            if not held:
                del inner[position]
        if not inner:
            del entries[at]
    return dropped


def _items(signal: Signal, held: Any) -> int:
    return sum(len(data_points(metric)) for metric in held) if signal is Signal.METRICS else len(held)


def representatives(index: Index, keys: Sequence[str]) -> Iterator[tuple[Any, Any, Any]]:
    """For each group of log records (resource entry, scope entry, log record), of the record only its attributes under the index's keys.

    Raises protobuf's DecodeError.
    """
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

    entries = [ResourceLogs.FromString(raw) for raw in index.entries]
    inner = [(entries[entry], ScopeLogs.FromString(raw)) for entry, raw in index.scopes]
    for group in index.groups:
        record = LogRecord()
        for key, value in zip(keys, group.values, strict=True):
            if value is not None:
                record.attributes.add(key=key).value.ParseFromString(value)
        yield *inner[group.scope], record


def keep_groups(index: Index, stays: Sequence[bool]) -> bytes:
    """The request with only the log records of the groups that stay; scopes and resources that this empties go too."""
    homes = [group.scope if stay else -1 for group, stay in zip(index.groups, stays, strict=True)]
    frames: list[tuple[bytes, list[tuple[bytes, int]]]] = []
    last = -1
    for scope in sorted(set(homes) - {-1}):
        entry, raw = index.scopes[scope]
        if entry != last:
            frames.append((index.entries[entry], []))
            last = entry
        frames[-1][1].append((raw, scope))
    return gather(index, homes, frames, remove=False)
