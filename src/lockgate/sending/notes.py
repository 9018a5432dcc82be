"""What a journal knows beside its records: positions that are durable, ids, what each exporter has delivered, and the ledger's counts.

`Knowledge` holds it; entries of the files of notes (segments.py) change it, so that reading a snapshot and the entries behind it gives what
there was. It is asked from the event loop while a thread writes, hence its lock.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lockgate.batch import Batch, Origin, Signal
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Held

Span = tuple[int, int]
OriginFields = tuple[str, int, int, int, int]
ID_BYTES = 8
"""Of the hash that an id is known by. A window of 65,536 mistakes a new batch for an old one once in 10^14."""


class Share(msgspec.Struct, array_like=True):
    """What became of a source's records at one exporter; what is none of these is pending."""

    queued: int = 0
    delivered: int = 0
    damaged: int = 0
    """Given back to the receiver, which queues them again where it can still read them."""
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason, one of a few words: `refused`, `partial`, `expired`, `not retried`."""

    @property
    def pending(self) -> int:
        return self.queued - self.delivered - self.damaged - sum(self.rejected.values())

    def add(self, other: Share) -> None:
        """Counts what the other has counted."""
        self.queued += other.queued
        self.delivered += other.delivered
        self.damaged += other.damaged
        for reason, records in other.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + records


class Account(msgspec.Struct, array_like=True):
    """One source's counts since the journal first heard of it: lines and records as its receiver gave them with `Origin`.

    Under the source `OWNER:` is what is left of sources that the receiver `OWNER` knows no more; under the empty one stand batches without
    origins, and rejections that no source can be given: part of a batch of several sources. These were counted as delivered for the
    sources, so `delivered` is less by as much here, and the sum over all sources is exact.
    """

    lines: int = 0
    records: int = 0
    shares: dict[str, Share] = msgspec.field(default_factory=dict)
    """By exporter."""


class SegmentNote(msgspec.Struct, array_like=True, frozen=True):
    """One segment, so that it need not be read to know how much it holds."""

    number: int
    end: int
    size: int
    records: int
    items: int
    payload_bytes: int


class Snapshot(msgspec.Struct, array_like=True, tag="snapshot"):
    """All that is known; opens every file of notes."""

    next: int
    """Sequences below are in `done`, in one of `segments`, or were never acknowledged."""
    segments: list[SegmentNote]
    done: dict[str, list[Span]]
    durable: dict[str, list[Span]]
    lost: dict[str, list[Span]]
    accounts: dict[str, Account]
    ids: bytes


class QueuedRecord(msgspec.Struct, array_like=True, frozen=True):
    """Where one record came from."""

    origins: list[OriginFields]
    ids: bytes
    """Hashes, one after the other."""
    items: int


class Queued(msgspec.Struct, array_like=True, tag="queued", frozen=True):
    """These records are durable; consecutive sequences."""

    first: int
    records: list[QueuedRecord]


class Settled(msgspec.Struct, array_like=True, tag="settled", frozen=True):
    """An exporter is done with these records: (sequence, what was delivered and rejected as (source, records, reason or ""))."""

    reader: str
    records: list[tuple[int, list[tuple[str, int, str]]]]


class Damaged(msgspec.Struct, array_like=True, tag="damaged", frozen=True):
    """These sequences cannot be read any more, and what is known of them."""

    sequences: list[Span]
    records: list[tuple[int, QueuedRecord]]


Change = Queued | Settled | Damaged
"""What may stand behind a snapshot."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an exporter was done with a batch: so many of its records were rejected, for this reason."""

    rejected: int = 0
    reason: str = ""
    is_of_this_batch: bool = True
    """False where it was sent with others, and the server did not say whose records it rejected."""


def queued_record(batch: Batch) -> QueuedRecord:
    """What is noted of a batch. Ids only where there are no origins: whose receiver knows positions asks for them instead."""
    origins = [(it.source, it.start, it.end, it.lines, it.records) for it in batch.origins]
    ids = [part.id for part in batch.parts] or [batch.id]
    return QueuedRecord(origins, b"" if origins else b"".join(hashed_id(batch.signal, id) for id in ids), batch.count)


def hashed_id(signal: Signal, id: str) -> bytes:
    """What an id is known by; the same id may stand for another batch of another signal."""
    return hashlib.blake2b(f"{signal}\0{id}".encode(), digest_size=ID_BYTES).digest()


def settled_record(sequence: int, batch: Batch, outcome: Outcome) -> tuple[int, list[tuple[str, int, str]]]:
    """What is noted when a batch is settled."""
    rejected = min(outcome.rejected, batch.count)
    origins = [(it.source, it.records) for it in batch.origins] or [("", batch.count)]
    if rejected == batch.count and outcome.is_of_this_batch:
        return sequence, [(source, records, outcome.reason) for source, records in origins]
    by_source: dict[str, int] = {}
    for source, records in origins:
        by_source[source] = by_source.get(source, 0) + records
    told = [(source, records, "") for source, records in by_source.items()]
    if rejected:
        one = next(iter(by_source)) if len(by_source) == 1 and outcome.is_of_this_batch else ""
        told += [(one, -rejected, ""), (one, rejected, outcome.reason)]
    return sequence, told


class Knowledge:
    """See the module. `readers` are the exporters' names."""

    def __init__(self, readers: Iterable[str], id_window: int) -> None:
        self._lock = threading.Lock()
        self._id_window = id_window
        self._durable: dict[str, Ranges] = {}
        self._lost: dict[str, Ranges] = {}
        self._accounts: dict[str, Account] = {}
        self._ids: dict[bytes, None] = {}
        self._generations: dict[str, int] = {}
        """How often each owner has saved, and (below) when each source was last added to."""
        self._touched: dict[str, int] = {}
        self.done: dict[str, Ranges] = {name: Ranges() for name in readers}
        """Sequences that an exporter need not send (any more), by exporter. For the journal's thread alone."""
        self.noted = Ranges()
        """Sequences of which `queued` was told. For the journal's thread alone."""

    # What is asked from anywhere.

    def held(self, owner: str) -> Held:
        """See `Host.held`."""
        with self._lock:
            return Held(_of(self._durable, owner), _of(self._lost, owner))

    def saved(self, owner: str, positions: Mapping[str, int]) -> None:
        """See `Host.saved`. A source that came after the owner began to save is not in `positions`, and still known to it."""
        with self._lock:
            now = self._generations[owner] = self._generations.get(owner, 0) + 1
            for source in [each for each in {**self._durable, **self._lost} if _owner(each) == owner]:
                if source in positions:
                    if (ranges := self._durable.get(source)) is not None:
                        ranges.remove(0, positions[source])
                        if not ranges:
                            del self._durable[source]
                elif self._touched.get(source, 0) < now - 1:
                    self._durable.pop(source, None)
                    self._lost.pop(source, None)
            for source in [each for each in self._accounts if _owner(each) == owner and each not in positions]:
                if self._touched.get(source, 0) < now - 1:
                    self._fold(owner, source)

    def is_known(self, ids: bytes) -> list[bool]:
        """Of each of these hashes, whether its batch is here or was."""
        with self._lock:
            return [ids[start : start + ID_BYTES] in self._ids for start in range(0, len(ids), ID_BYTES)]

    def accounts(self) -> dict[str, Account]:
        """A copy of the counts by source."""
        with self._lock:
            return msgspec.msgpack.decode(msgspec.msgpack.encode(self._accounts), type=dict[str, Account])

    # What changes it.

    def restore(self, snapshot: Snapshot) -> None:
        """Everything as it was; also readers that are there no more."""
        with self._lock:
            self.done = {name: Ranges(spans) for name, spans in snapshot.done.items()}
            self.noted = Ranges([(0, snapshot.next)])
            self._durable = {source: Ranges(spans) for source, spans in snapshot.durable.items()}
            self._lost = {source: Ranges(spans) for source, spans in snapshot.lost.items()}
            self._accounts = snapshot.accounts
            ids = snapshot.ids
            self._ids = dict.fromkeys(ids[start : start + ID_BYTES] for start in range(0, len(ids), ID_BYTES))

    def retire(self, names: Sequence[str]) -> dict[str, int]:
        """Forgets the readers that are not among these; how many records each had yet to deliver."""
        with self._lock:
            gone = {
                name: sum(end - start for span in self.noted for start, end in ranges.missing(max(1, span[0]), span[1]))
                for name, ranges in self.done.items()
                if name not in names
            }
            for name in gone:
                del self.done[name]
                for account in self._accounts.values():
                    account.shares.pop(name, None)
            return gone

    def enrol(self, names: Sequence[str], following: int) -> None:
        """Those of these that are new begin at the sequence `following`."""
        with self._lock:
            for name in names:
                self.done.setdefault(name, Ranges([(0, following)]))

    def snapshot(self, following: int, segments: list[SegmentNote]) -> Snapshot:
        """All of it, to be written."""
        with self._lock:
            return Snapshot(
                following,
                segments,
                {name: list(ranges) for name, ranges in self.done.items()},
                {source: list(ranges) for source, ranges in self._durable.items()},
                {source: list(ranges) for source, ranges in self._lost.items()},
                msgspec.msgpack.decode(msgspec.msgpack.encode(self._accounts), type=dict[str, Account]),
                b"".join(self._ids),
            )

    def apply(self, entry: Change) -> None:
        """What was written behind the snapshot."""
        with self._lock:
            match entry:
                case Queued():
                    for sequence, record in enumerate(entry.records, entry.first):
                        self._queue(sequence, record)
                case Settled():
                    for sequence, told in entry.records:
                        self._settle(entry.reader, sequence, told)
                case Damaged():
                    self._damage(entry)

    def is_done(self, reader: str, sequence: int) -> bool:
        return self.done[reader].reach(sequence) > sequence

    def pending(self, start: int, end: int) -> Ranges:
        """The sequences of [start, end) that some reader is not done with."""
        return Ranges(span for ranges in self.done.values() for span in ranges.missing(start, end))

    def _queue(self, sequence: int, record: QueuedRecord) -> None:
        self.noted.add(sequence, sequence + 1)
        for source, start, end, lines, records in record.origins or [("", 0, 0, 0, record.items)]:
            if source:
                self._durable.setdefault(source, Ranges()).add(start, end)
                if (lost := self._lost.get(source)) is not None:
                    lost.remove(start, end)
                    if not lost:
                        del self._lost[source]
            self._touched[source] = self._generations.get(_owner(source), 0)
            account = self._accounts.setdefault(source, Account())
            account.lines += lines
            account.records += records
            for name in self.done:
                account.shares.setdefault(name, Share()).queued += records
        for at in range(0, len(record.ids), ID_BYTES):
            self._ids[record.ids[at : at + ID_BYTES]] = None
        while len(self._ids) > self._id_window:
            del self._ids[next(iter(self._ids))]

    def _settle(self, reader: str, sequence: int, told: list[tuple[str, int, str]]) -> None:
        ranges = self.done.get(reader)
        if ranges is None or ranges.reach(sequence) > sequence:
            return
        ranges.add(sequence, sequence + 1)
        for source, records, reason in told:
            share = self._share(source, reader)
            if reason:
                share.rejected[reason] = share.rejected.get(reason, 0) + records
            else:
                share.delivered += records

    def _damage(self, entry: Damaged) -> None:
        for sequence, record in entry.records:
            waiting = [name for name in self.done if not self.is_done(name, sequence)]
            for at in range(0, len(record.ids), ID_BYTES):
                self._ids.pop(record.ids[at : at + ID_BYTES], None)  # else what is sent again would be taken for a repetition
            for source, start, end, _, records in record.origins or [("", 0, 0, 0, record.items)]:
                if source and waiting:
                    if (ranges := self._durable.get(source)) is not None:
                        ranges.remove(start, end)
                    self._lost.setdefault(source, Ranges()).add(start, end)
                for name in waiting:
                    self._share(source, name).damaged += records
        for ranges in self.done.values():
            for span in entry.sequences:
                ranges.add(*span)

    def _share(self, source: str, reader: str) -> Share:
        account = self._accounts.get(source)
        if account is None:  # folded since it was queued
            account = self._accounts.setdefault(f"{_owner(source)}:" if source else "", Account())
        return account.shares.setdefault(reader, Share())

    def _fold(self, owner: str, source: str) -> None:
        """Adds an account that nothing is pending of to the owner's remainder."""
        account = self._accounts[source]
        if source == f"{owner}:" or any(share.pending for share in account.shares.values()):
            return
        del self._accounts[source]
        self._touched.pop(source, None)
        rest = self._accounts.setdefault(f"{owner}:", Account())
        rest.lines += account.lines
        rest.records += account.records
        for name, share in account.shares.items():
            rest.shares.setdefault(name, Share()).add(share)


def origins_of(records: Iterable[QueuedRecord]) -> list[Origin]:
    """The origins in these."""
    return [Origin(*fields) for record in records for fields in record.origins]


def _owner(source: str) -> str:
    return source.rpartition(":")[0]


def _of(sources: Mapping[str, Ranges], owner: str) -> dict[str, Ranges]:
    return {source: Ranges(ranges) for source, ranges in sources.items() if _owner(source) == owner}
