"""What a journal knows beside its records: positions that are durable, ids, what each exporter has delivered, and the ledger's counts.

`Knowledge` holds it; entries of the files of notes (segments.py) change it, so that reading a snapshot and the entries behind it gives what
there was. It is asked from the event loop while a thread writes, hence its lock.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from lockgate.batch import Batch, Origin, Signal
from lockgate.kit.metrics import Metrics
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import NO_GROUPS, Held

Span = tuple[int, int]
OriginFields = tuple[str, int, int, int, int, int]
ID_BYTES = 8
"""Of the hash that an id is known by. A window of 65,536 mistakes a new batch for an old one once in 10^14."""


class Share(msgspec.Struct, array_like=True):
    """What became of a source's records at one exporter; what is none of these is pending."""

    queued: int = 0
    delivered: int = 0
    damaged: int = 0
    """Given back to the receiver, which reads and queues them again, or calls them lost."""
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason: one of `REASONS`."""
    since_unix_nano: int = 0
    """Since when there was always something pending; the oldest record that is has not waited longer. 0 where nothing is."""

    @property
    def pending(self) -> int:
        return self.queued - self.delivered - self.damaged - sum(self.rejected.values())

    def add(self, other: Share) -> None:
        """Counts what the other has counted."""
        self.since_unix_nano = min(filter(None, (self.since_unix_nano, other.since_unix_nano)), default=0)
        self.queued += other.queued
        self.delivered += other.delivered
        self.damaged += other.damaged
        for reason, records in other.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + records


DAMAGED = "damaged"
REASONS = ("refused", "partial", "expired", "not retried", DAMAGED)
"""Why records were rejected. Those of clients are, where the queue lost them: nobody can read them again."""


class Account(msgspec.Struct, array_like=True):
    """One source's counts since the journal first heard of it: lines and records as its receiver gave them with `Origin`.

    What a queue lost and gave back is not among the lines, nor the records: what becomes of it is counted when it is read again.
    Under the source `OWNER:=GROUP` is what is left of sources of that group that the receiver `OWNER` knows no more; under `OWNER:` that of
    groups of which it knows none; under `OWNER:?` what was dropped on the way from batches of several sources, if nobody said of which: it
    counts as records of these, so here are as many less. Under the empty one are batches without origins, and rejections that no source can
    be given: part of a batch of several sources. These were counted as delivered for the sources, so `delivered` is less by as much here.
    The sum over all sources is exact.
    """

    lines: int = 0
    records: int = 0
    shares: dict[str, Share] = msgspec.field(default_factory=dict)
    """By exporter."""
    filtered: int = 0
    """Records that the lines became as well, and that processors dropped before they came here."""
    end: int = 0
    """Of a source, how far what came of it reaches."""

    @property
    def joined(self) -> int:
        """Lines that went into a record which another line began."""
        return self.lines - self.records - self.filtered

    def add(self, other: Account) -> None:
        """Counts what the other has counted."""
        self.lines += other.lines
        self.records += other.records
        self.filtered += other.filtered
        for name, share in other.shares.items():
            self.shares.setdefault(name, Share()).add(share)


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
    time_unix_nano: int = 0


class Settled(msgspec.Struct, array_like=True, tag="settled", frozen=True):
    """An exporter is done with these records: (sequence, what was delivered and rejected as (source, records, reason or ""))."""

    reader: str
    records: list[tuple[int, list[tuple[str, int, str]]]]


class Damaged(msgspec.Struct, array_like=True, tag="damaged", frozen=True):
    """These sequences cannot be read any more, and what is known of them."""

    sequences: list[Span]
    records: list[tuple[int, QueuedRecord]]
    unnoted: list[OriginFields] = []
    """What else is given back: of records whose notes are damaged as well, perhaps also of some that were delivered."""
    stranded: list[tuple[str, str, int]] = []
    """(reader, source, records): counted as pending, and of no record that there still is."""


Change = Queued | Settled | Damaged
"""What may stand behind a snapshot."""


@dataclass(frozen=True, slots=True)
class Books:
    """A queue's part of the ledger."""

    accounts: dict[str, Account] = field(default_factory=dict)
    known: dict[str, Ranges] = field(default_factory=dict)
    """What of each source is, or was, in the queue, and perhaps not yet acknowledged to its receiver."""
    groups: dict[str, str] = field(default_factory=dict)
    """The source under which each source is counted when it is gone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an exporter was done with a batch: so many of its records were rejected, for this reason."""

    rejected: int = 0
    reason: str = ""
    is_of_this_batch: bool = True
    """False where it was sent with others, and the server did not say whose records it rejected."""


def queued_record(batch: Batch) -> QueuedRecord:
    """What is noted of a batch. Ids only where there are no origins: whose receiver knows positions asks for them instead."""
    origins = origin_fields(batch)
    ids = [part.id for part in batch.parts] or [batch.id]
    return QueuedRecord(origins, b"" if origins else b"".join(hashed_id(batch.signal, id) for id in ids), batch.count)


def origin_fields(batch: Batch) -> list[OriginFields]:
    """A batch's origins as they are stored; `Origin(*fields)` gives one back."""
    return [(it.source, it.start, it.end, it.lines, it.records, it.filtered) for it in batch.origins]


def hashed_id(signal: Signal, id: str) -> bytes:
    """What an id is known by; the same id may stand for another batch of another signal."""
    return hashlib.blake2b(f"{signal}\0{id}".encode(), digest_size=ID_BYTES).digest()


def settled_record(sequence: int, batch: Batch, outcome: Outcome) -> tuple[int, list[tuple[str, int, str]]]:
    """What is noted when a batch is settled."""
    rejected = min(outcome.rejected, batch.count)
    origins = [(it.source, it.records) for it in batch.origins] or [("", batch.count)]
    if rejected == batch.count and outcome.is_of_this_batch:
        return sequence, [(source, records, outcome.reason) for source, records in origins if records]
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
        self._groups: dict[str, str] = {}
        """The source under which a source is counted when it is gone."""
        self._touched: dict[str, int] = {}
        self.done: dict[str, Ranges] = {name: Ranges() for name in readers}
        """Sequences that an exporter need not send (any more), by exporter. For the journal's thread alone."""
        self.noted = Ranges()
        """Sequences of which `queued` was told. For the journal's thread alone."""
        self._doubted: dict[str, int] = {}
        """From where on what came of each source may be missing here, because files are damaged."""
        self._found: list[Change] = []
        """What `saved` gave back, and is not in the notes yet."""

    # What is asked from anywhere.

    def held(self, owner: str) -> Held:
        """See `Host.held`."""
        with self._lock:
            return Held(_of(self._durable, owner), _of(self._lost, owner))

    def saved(self, owner: str, positions: Mapping[str, int], groups: Mapping[str, str] = NO_GROUPS) -> list[Origin]:
        """See `Host.saved`. A source that came after the owner began to save is not in `positions`, and still known to it.

        Gives what is to be read again: it lies before a position, so that it was here, and the notes that said so are damaged.
        """
        with self._lock:
            missing = [
                (source, start, end, 0, 0, 0)
                for source in self._doubted.keys() & positions.keys()
                for here in [Ranges([*self._durable.get(source, ()), *self._lost.get(source, ())])]
                for start, end in here.missing(self._doubted.pop(source), positions[source])
            ]
            if missing:
                self._found.append(damaged := Damaged([], [], missing))
                self._damage(damaged)
            self._groups |= {source: f"{owner}:={group.replace(':', '%3A')}" for source, group in groups.items()}
            alive = {self._groups[source] for source in positions if source in self._groups} | {f"{owner}:?"}
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
            for source in [each for each in self._accounts if _owner(each) == owner and each not in positions and each not in alive]:
                if self._touched.get(source, 0) < now - 1:
                    self._fold(owner, source)
            for source in [each for each in self._groups if _owner(each) == owner and each not in positions and each not in self._accounts]:
                del self._groups[source]
            return [Origin(*each) for each in missing]

    def is_known(self, ids: bytes) -> list[bool]:
        """Of each of these hashes, whether its batch is here or was."""
        with self._lock:
            return [ids[start : start + ID_BYTES] in self._ids for start in range(0, len(ids), ID_BYTES)]

    def accounts(self) -> dict[str, Account]:
        """A copy of the counts by source."""
        return self.books().accounts

    def books(self) -> Books:
        """Copies of what the ledger asks, as of one moment."""
        with self._lock:
            accounts = msgspec.msgpack.decode(msgspec.msgpack.encode(self._accounts), type=dict[str, Account])
            return Books(accounts, {source: Ranges(ranges) for source, ranges in self._durable.items()}, dict(self._groups))

    def total(self, owner: str) -> Account:
        """The sum over the sources of this owner; the empty one's is that of batches without origins."""
        total = Account()
        with self._lock:
            for source, account in self._accounts.items():
                if _owner(source) == owner:
                    total.add(account)
        return total

    def owners(self) -> set[str]:
        """Whose sources there are accounts of."""
        with self._lock:
            return {_owner(source) for source in self._accounts}

    def share(self, reader: str) -> Share:
        """The sum over all sources of what became of them at this reader."""
        total = Share()
        with self._lock:
            for account in self._accounts.values():
                if (share := account.shares.get(reader)) is not None:
                    total.add(share)
        return total

    def found(self) -> list[Change]:
        """What `saved` gave back since this was asked last."""
        with self._lock:
            found, self._found = self._found, []
            return found

    # What changes it.

    def trust(self) -> None:
        """All is here that was written behind the snapshot."""
        with self._lock:
            self._doubted.clear()

    def doubt(self) -> None:
        """Something may be missing, also of sources that the snapshot does not know yet."""
        with self._lock:
            for source, ranges in self._durable.items():
                if ranges:
                    self._doubted.setdefault(source, next(iter(ranges))[0])

    def restore(self, snapshot: Snapshot) -> None:
        """Everything as it was; also readers that are there no more."""
        with self._lock:
            self._doubted = {source: account.end for source, account in snapshot.accounts.items() if account.end}
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
                        self._queue(sequence, record, entry.time_unix_nano)
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

    def stranded(self, there: Mapping[int, QueuedRecord]) -> list[tuple[str, str, int]]:
        """What is counted as pending, by reader and source, and is in none of these, which are all that can be known of, by sequence."""
        found = []
        with self._lock:
            for name in self.done:
                waiting = Counter[str]()
                for record in (record for sequence, record in there.items() if not self.is_done(name, sequence)):
                    for source, *_, records, _ in record.origins or [("", 0, 0, 0, record.items, 0)]:
                        waiting[source] += records
                for source, account in self._accounts.items():
                    if (share := account.shares.get(name)) is not None and share.pending > waiting[source]:
                        found.append((name, source, share.pending - waiting[source]))
        return found

    def _queue(self, sequence: int, record: QueuedRecord, time_unix_nano: int) -> None:
        if self.noted.reach(sequence) > sequence:  # a block of notes that stands at another place as well
            return
        self.noted.add(sequence, sequence + 1)
        for source, start, end, lines, records, filtered in record.origins or [("", 0, 0, 0, record.items, 0)]:
            if start < end:
                self._durable.setdefault(source, Ranges()).add(start, end)
                if (lost := self._lost.get(source)) is not None:
                    lost.remove(start, end)
                    if not lost:
                        del self._lost[source]
            self._touched[source] = self._generations.get(_owner(source), 0)
            account = self._accounts.setdefault(source, Account())
            account.lines += lines
            account.records += records
            account.filtered += filtered
            account.end = max(account.end, end)
            for name in self.done:
                share = account.shares.setdefault(name, Share())
                if records and not share.pending:
                    share.since_unix_nano = time_unix_nano
                share.queued += records
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
            if not share.pending:
                share.since_unix_nano = 0

    def _damage(self, entry: Damaged) -> None:
        for sequence, record in entry.records:
            waiting = [name for name in self.done if not self.is_done(name, sequence)]
            for at in range(0, len(record.ids), ID_BYTES):
                self._ids.pop(record.ids[at : at + ID_BYTES], None)  # else what is sent again would be taken for a repetition
            for origin in (record.origins or [("", 0, 0, 0, record.items, 0)]) if waiting else ():
                self._give_back(origin)
                for name in waiting:
                    self._lose(name, origin[0], origin[4], bool(origin[0]))
        for origin in entry.unnoted:
            self._give_back(origin)
        for name, source, records in entry.stranded:
            self._lose(name, source, records, source in self._lost)
        for ranges in self.done.values():
            for span in entry.sequences:
                ranges.add(*span)

    def _give_back(self, origin: OriginFields) -> None:
        """Its bytes are to be read again, and to be counted then."""
        source, start, end, lines, records, filtered = origin
        if start < end:
            if (ranges := self._durable.get(source)) is not None:
                ranges.remove(start, end)
            self._lost.setdefault(source, Ranges()).add(start, end)
        if source:
            self._account(source).add(Account(-lines, -records, {}, -filtered))

    def _lose(self, reader: str, source: str, records: int, is_given_back: bool) -> None:
        """These wait for the reader no more."""
        share = self._share(source, reader)
        if is_given_back:
            share.damaged += records
        else:
            share.rejected[DAMAGED] = share.rejected.get(DAMAGED, 0) + records
        if not share.pending:
            share.since_unix_nano = 0

    def _account(self, source: str) -> Account:
        if (account := self._accounts.get(source)) is not None:
            return account
        # Folded since it was queued.
        return self._accounts.setdefault(f"{_owner(source)}:" if source else "", Account())

    def _share(self, source: str, reader: str) -> Share:
        return self._account(source).shares.setdefault(reader, Share())

    def _fold(self, owner: str, source: str) -> None:
        """Adds an account that nothing is pending of to that of its group, and a group's to the owner's remainder."""
        account = self._accounts[source]
        if source == f"{owner}:" or any(share.pending for share in account.shares.values()):
            return
        del self._accounts[source]
        self._touched.pop(source, None)
        group = self._groups.pop(source, f"{owner}:")
        self._touched[group] = self._generations.get(owner, 0)
        self._accounts.setdefault(group, Account()).add(account)


def observe_lines(metrics: Metrics, knowledge: Knowledge, owner: str, **labels: str) -> None:
    """The receiver's lines, by what became of them: those of all its files, in one series for each fate. What is given back goes off."""

    def observe(fate: str, read: Callable[[Account], int]) -> None:
        text = "lines that came to this queue: records, joined into others, or filtered on the way"
        metrics.observe("lockgate_ledger_lines", text, lambda: read(knowledge.total(owner)), receiver=owner, fate=fate, **labels)

    observe("record", lambda account: account.records)
    observe("joined", lambda account: account.joined)
    observe("filtered", lambda account: account.filtered)


def observe_records(metrics: Metrics, knowledge: Knowledge, exporter: str, **labels: str) -> None:
    """The exporter's records, by what became of them."""

    def observe(fate: str, read: Callable[[Share], int], reason: str = "") -> None:
        text = "records that came to this exporter's queue, by what became of them"
        metrics.observe(
            "lockgate_ledger_records", text, lambda: read(knowledge.share(exporter)), exporter=exporter, fate=fate, reason=reason, **labels
        )

    observe("delivered", lambda share: share.delivered)
    observe("pending", lambda share: share.pending)
    observe("damaged", lambda share: share.damaged)
    for reason in REASONS:
        observe("rejected", lambda share, reason=reason: share.rejected.get(reason, 0), reason)  # type: ignore[misc]


def origins_of(records: Iterable[QueuedRecord]) -> list[Origin]:
    """The origins in these."""
    return [origin for record in records for origin in (Origin(*fields) for fields in record.origins) if origin.start < origin.end]


def _owner(source: str) -> str:
    return source.rpartition(":")[0]


def _of(sources: Mapping[str, Ranges], owner: str) -> dict[str, Ranges]:
    return {source: Ranges(ranges) for source, ranges in sources.items() if _owner(source) == owner}
