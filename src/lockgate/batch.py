"""Batch: what flows. A signal and the bytes of one OTLP `Export*ServiceRequest`; Python touches only what changes.

Three tiers of editing. The resource tier walks the wire and rewrites the few bytes of each resource (`map_resources`). The group tier moves
or drops encoded log records by what a few attributes hold (`wire.records`, then `with_payload`). The record tier parses the whole request
once for a chain of record processors (`message`, `with_message`) and encodes it once after them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockgate.wire.protobuf import DecodeError, varint
from lockgate.wire.resources import Resources, resources

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    Message = ExportLogsServiceRequest | ExportMetricsServiceRequest | ExportTraceServiceRequest


class Signal(StrEnum):
    """The three kinds of telemetry; events travel as logs."""

    LOGS = "logs"
    METRICS = "metrics"
    TRACES = "traces"

    @property
    def items(self) -> str:
        """What the collector's own metrics call this signal's records."""
        return {"logs": "log_records", "metrics": "metric_points", "traces": "spans"}[self.value]


ALL_SIGNALS = frozenset(Signal)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part of a batch came from: bytes [start, end) of a source. A queue record keeps it, so a source knows what is durable."""

    source: str
    """`OWNER:KEY`: the receiver's id, and what names the source in every process of that receiver."""
    start: int
    end: int
    lines: int = 0
    """Lines in these bytes, and how many records of the batch they became; for the ledger."""
    records: int = 0
    filtered: int = 0
    """Records that they became and that were dropped on the way, as a processor was told to; not among `records`."""

    @property
    def owner(self) -> str:
        """The id of the receiver whose source it is."""
        return self.source.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Part:
    """One batch inside a merged one: its id and its payload's length, in order."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Immutable, so that fan-out shares it; a step that changes something returns another.

    `id` is deterministic and survives every hop: equal ids are the same records, though not always the same bytes (labels change).
    `peer` is the address of the client that sent it, for pod association; merging never mixes peers.
    """

    signal: Signal
    payload: bytes
    count: int
    """Log records, metric data points or spans in the payload."""
    id: str
    peer: str = ""
    origins: tuple[Origin, ...] = ()
    parts: tuple[Part, ...] = ()
    """Set on a merged batch alone."""
    encoded: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    """The payload in a content encoding, where somebody has made it already: compression is most of what sending costs."""
    regrouped: bool = False
    """Whether its resources are no longer those of its origins, in their order."""
    _message: list[Any] = field(default_factory=list, repr=False, compare=False)
    _resources: Resources | None = field(default=None, init=False, repr=False, compare=False)
    """Set while `payload` is not: what it is made of when it is first asked for, so that a chain of resource processors copies once."""

    if not TYPE_CHECKING:  # where it would let every misspelt name pass

        def __getattr__(self, name: str) -> bytes:
            # Called for what is not there: a payload that is still to be made.
            if name != "payload":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if (held := self._resources) is not None:  # None: another thread has just made it
                object.__setattr__(self, "payload", held.join())
                object.__setattr__(self, "_resources", None)
            return self.payload

    @property
    def message(self) -> Any:
        """The parsed request, parsed once and shared: read it, do not change it; `copy_message` gives one to change."""
        if not self._message:
            self._message.append(message_type(self.signal).FromString(self.payload))
        return self._message[0]

    def copy_message(self) -> Any:
        """A parsed request of the caller's own, for `with_message`."""
        return message_type(self.signal).FromString(self.payload)

    def with_message(self, message: Message, count: int, dropped: Sequence[int] = ()) -> Batch:
        """This batch with another content, of `count` records; `dropped` as for `with_payload`."""
        origins = self._origins_of(count, dropped)
        return replace(self, payload=message.SerializeToString(), count=count, origins=origins, parts=(), encoded={}, _message=[message])

    def with_payload(self, payload: bytes, count: int | None = None, dropped: Sequence[int] = ()) -> Batch:
        """This batch with other bytes, of `count` records; of as many as before without it.

        `dropped` says how many records each of its resources lost, so that the ledger knows of which origin they were.
        """
        count = self.count if count is None else count
        origins = self._origins_of(count, dropped)
        return replace(self, payload=payload, count=count, origins=origins, parts=(), encoded={}, _message=[])

    def _origins_of(self, left: int, dropped: Sequence[int]) -> tuple[Origin, ...]:
        """The origins, when so many records are left. What cannot be told of one of them is told of their receiver, as `OWNER:?`."""
        if left == self.count or not self.origins:
            return self.origins
        origins = list(self.origins)
        givers = [number for number, origin in enumerate(origins) if origin.records > 0]
        if len(givers) == 1:
            dropped = [self.count - left]
        elif self.regrouped or len(dropped) != len(givers):
            return (*origins, Origin(f"{origins[0].owner}:?", 0, 0, 0, left - self.count, self.count - left))
        for number, gone in zip(givers, dropped, strict=True):
            origin = origins[number]
            origins[number] = replace(origin, records=origin.records - gone, filtered=origin.filtered + gone)
        return tuple(origins)

    def through(self, name: str) -> Batch:
        """This batch as it goes on behind a fork: under ids that follow from its own and the name of the way.

        Where two ways lead to the same place, each half would else be taken for a repetition of the other.
        """
        parts = tuple(Part(derived_id(part.id, name), part.size) for part in self.parts)
        return replace(self, id=derived_id(self.id, name), parts=parts)

    def map_resources(self, edit: Callable[[bytes], bytes | None]) -> Batch:
        """This batch with each raw Resource message replaced by `edit(raw)`; None removes the resource with all its records.

        `edit` is called once for each distinct run of bytes in this batch, however often they occur. The records behind a resource are
        copied as they are. Returns the same batch where nothing changed.
        """
        held = self._resources or resources(self.payload)
        if held is None:
            payload, changed, dropped = _map_resources(self.signal, self.payload, edit)
            return self.with_payload(payload, self.count - sum(dropped), dropped) if changed else self
        edited = held.edited(edit)
        if edited is None:
            return self
        left, removed = edited[0], iter(edited[1])
        # One that was removed by a step before this is none of this batch's any more.
        still = [after for before, after in zip(held.raws, left.raws, strict=True) if before is not None] if edited[1] else ()
        dropped = [count_records(self.signal, next(removed)) if after is None else 0 for after in still]
        batch = self.with_payload(b"", self.count - sum(dropped), dropped)
        object.__setattr__(batch, "_resources", left)
        object.__delattr__(batch, "payload")
        return batch


def _map_resources(signal: Signal, payload: bytes, edit: Callable[[bytes], bytes | None]) -> tuple[bytes, bool, list[int]]:
    """The payload, whether it is another, and how many records each resource lost."""
    view = memoryview(payload)
    out: list[bytes | memoryview] = []
    dropped: list[int] = []
    edited: dict[bytes, bytes | None] = {}
    position, size, changed = 0, len(payload), False
    while position < size:
        start = position
        tag, position = _varint(payload, position)
        if tag & 7 != 2:
            end = position = _skip(payload, position, tag)
        else:
            length, position = _varint(payload, position)
            end = position + length
        if end > size:
            raise DecodeError(f"field at byte {start} runs past the end of the request")
        if tag != 0x0A:
            out.append(view[start:end])
            position = end
            continue
        raw, rest = _resource(payload, view, position, end)
        if raw in edited:
            new = edited[raw]
        else:
            new = edited[raw] = edit(raw)
        if new is None:
            changed = True
            dropped.append(count_records(signal, payload[start:end]))
        elif new is raw or new == raw:
            out.append(view[start:end])
        else:
            changed = True
            head = b"\x0a" + varint(len(new))
            body = sum(map(len, rest))
            out += (b"\x0a" + varint(len(head) + len(new) + body) + head, new, *rest)
        if new is not None:
            dropped.append(0)
        position = end
    return (b"".join(out) if changed else payload), changed, dropped


def _resource(payload: bytes, view: memoryview, position: int, end: int) -> tuple[bytes, list[memoryview]]:
    """The raw resource of one Resource{Logs,Metrics,Spans} message and the pieces that are not it.

    A writer may put the resource anywhere, or split it; protobuf says that the pieces of a split message merge, which for raw bytes is
    concatenation. The common case (first, once) costs one look.
    """
    if position < end and payload[position] == 0x0A:
        length, start = _varint(payload, position + 1)
        stop = start + length
        if stop == end or (stop < end and payload[stop] == 0x12 and _only_scopes(payload, stop, end)):
            return payload[start:stop], [view[stop:end]]
    pieces, rest = [], []
    while position < end:
        start = position
        tag, position = _varint(payload, position)
        if tag == 0x0A:
            length, position = _varint(payload, position)
            pieces.append(payload[position : position + length])
            position += length
        elif tag & 7 == 2:
            length, position = _varint(payload, position)
            position += length
            rest.append(view[start:position])
        else:
            position = _skip(payload, position, tag)
            rest.append(view[start:position])
        if position > end:
            raise DecodeError(f"field at byte {start} runs past the end of its message")
    return b"".join(pieces), rest


def _only_scopes(payload: bytes, position: int, end: int) -> bool:
    """Whether only length-delimited fields other than the resource follow: then the rest is copied whole."""
    while position < end:
        tag, position = _varint(payload, position)
        if tag == 0x0A or tag & 7 != 2:
            return False
        length, position = _varint(payload, position)
        position += length
    return position == end


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while True:
            byte = payload[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
            shift += 7
            if shift > 63:
                raise DecodeError(f"varint at byte {position} is longer than ten bytes")
    except IndexError:
        raise DecodeError("the request ends inside a varint") from None


def _skip(payload: bytes, position: int, tag: int) -> int:
    match tag & 7:
        case 0:
            return _varint(payload, position)[1]
        case 1:
            return position + 8
        case 5:
            return position + 4
        case kind:
            raise DecodeError(f"wire type {kind} at byte {position} is not used by OTLP")


def message_type(signal: Signal) -> Any:
    """The generated protobuf class of this signal's export request; imported when first asked for (it costs 8 MB)."""
    match signal:
        case Signal.LOGS:
            from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

            return ExportLogsServiceRequest
        case Signal.METRICS:
            from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

            return ExportMetricsServiceRequest
        case Signal.TRACES:
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

            return ExportTraceServiceRequest


def count_records(signal: Signal, payload: bytes) -> int:
    """Records in an export request; raises DecodeError where it is not one."""
    from lockgate.wire import otlp

    return otlp.validate(payload, list(Signal).index(signal))


def merge(batches: Iterable[Batch]) -> Batch:
    """One batch of several, in order: protobuf messages concatenate. Its id is derived from theirs.

    ValueError where there is none, or where signals or peers differ: pod association would give one client's records to another.
    """
    several = list(batches)
    if len({(batch.signal, batch.peer) for batch in several}) != 1:
        raise ValueError("only batches of one signal and one peer merge")
    if len(several) == 1:
        return several[0]
    parts = tuple(part for batch in several for part in (batch.parts or (Part(batch.id, len(batch.payload)),)))
    return Batch(
        several[0].signal,
        b"".join(batch.payload for batch in several),
        sum(batch.count for batch in several),
        derived_id(*(part.id for part in parts)),
        several[0].peer,
        tuple(origin for batch in several for origin in batch.origins),
        parts,
        regrouped=any(batch.regrouped for batch in several),
    )


_METRIC_KINDS = frozenset({5, 7, 9, 10, 11})
_CHILDREN = {
    Signal.LOGS: ({1}, {2}, {2}),
    Signal.TRACES: ({1}, {2}, {2}),
    Signal.METRICS: ({1}, {2}, {2}, _METRIC_KINDS, {1}),
}
"""Field numbers that lead from a request to its records: resources, scopes, then records, or metrics, their kind and its data points."""


def split(batch: Batch, max_records: int) -> list[Batch]:
    """This batch in pieces of at most so many records, in order; itself where it is small enough.

    A piece's id follows from the batch's (`id#0`, `id#1`, ...), so that sending the batch again gives the same pieces. The origins go with
    the last piece: they are durable when all pieces are, and pieces are sent in order. So that their records are counted once, the last
    piece takes back, of the empty source, what the others were counted as. Raises DecodeError.
    """
    if batch.count <= max_records:
        return [batch]
    payload = batch.payload
    cut = list(_cut(payload, 0, len(payload), _CHILDREN[batch.signal], max_records, max_records))
    last = len(cut) - 1
    others = sum(count for _, count in cut[:-1])
    origins = (*batch.origins, Origin("", 0, 0, 0, -others)) if batch.origins else ()
    return [
        Batch(batch.signal, piece, count, f"{batch.id}#{number}", batch.peer, origins if number == last else (), regrouped=batch.regrouped)
        for number, (piece, count) in enumerate(cut)
    ]


def _cut(payload: bytes, position: int, end: int, levels: Sequence[Set[int]], room: int, size: int) -> Iterator[tuple[bytes, int]]:
    """The message in [position, end) in pieces: `room` records in the first one, `size` in the others, fewer in the last.

    Each piece repeats what is not on the way to the records: the resource, the scope, a metric's name and temporality.
    """
    head: list[bytes] = []
    children: list[tuple[int, int, int]] = []
    while position < end:
        start = position
        tag, position = _varint(payload, position)
        if tag & 7 == 2:
            length, body = _varint(payload, position)
            position = body + length
        else:
            body, position = 0, _skip(payload, position, tag)
        if position > end:
            raise DecodeError(f"field at byte {start} runs past the end of its message")
        if body and tag >> 3 in levels[0]:
            children.append((start, body, position))
        else:
            head.append(payload[start:position])
    out, held = list(head), 0
    for start, body, stop in children:
        if held == room:
            yield b"".join(out), held
            out, held, room = list(head), 0, size
        if len(levels) == 1:
            out.append(payload[start:stop])
            held += 1
            continue
        for number, (piece, count) in enumerate(_cut(payload, body, stop, levels[1:], room - held, size)):
            if number:  # the one before filled the room that was left
                yield b"".join(out), held
                out, held, room = list(head), 0, size
            tag, _ = _varint(payload, start)
            out += (varint(tag), varint(len(piece)), piece)
            held += count
    if held:
        yield b"".join(out), held


def derived_id(*ids: str) -> str:
    """A short id that follows from these alone, the same in every process."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:32]
