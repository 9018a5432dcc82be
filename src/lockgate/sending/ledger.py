"""The ledger: what receivers say of their files and queues of their accounts, put together, by container and as a whole.

For each source and queue: lines read = records + joined + filtered + waiting to be joined, of what was read; and records queued =
delivered + pending + rejected. What a damaged queue gave back is in neither until it is read again. Nothing is counted for it in memory
alone where the queue is on disk: it follows from the positions and the queue's accounts, which survive a kill together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from lockgate.kit.ranges import Ranges
from lockgate.pipeline.ledger import Chosen, Place, Source, Sources
from lockgate.sending.notes import Account, Books, Share


@runtime_checkable
class Bookkeeper(Protocol):
    """A queue that keeps accounts."""

    @property
    def keeps_accounts(self) -> bool:
        """Whether it does."""

    @property
    def is_on_disk(self) -> bool:
        """Whether its accounts survive this process."""

    def books(self) -> Books:
        """As of one moment."""

    def waiting_bytes(self) -> dict[str, int]:
        """Payload that waits or is under way, by exporter."""


class Fates(msgspec.Struct):
    """What became of records at one exporter."""

    queued: int
    delivered: int
    pending: int
    rejected: dict[str, int]
    damaged: int
    """Given back to the receiver, to be read and queued again: none of those that were `queued`."""
    pending_seconds: float | None
    """How long there has always been something pending: nothing waits longer."""
    pending_bytes: int | None = None


class Counts(msgspec.Struct):
    """Lines and records of some sources, at one queue."""

    read: int
    """Lines: `records + joined + filtered + under_way + waiting_to_be_joined`."""
    records: int
    """Records that the queue has, or had."""
    joined: int
    """Lines that went into a record which another line began."""
    filtered: int
    """Records that processors dropped, as they were told to."""
    under_way: int
    """Lines read, handed on, and not yet in this queue."""
    waiting_to_be_joined: int
    exporters: dict[str, Fates]


class File(msgspec.Struct):
    """One file's content."""

    path: str
    size: int
    read_bytes: int
    unread_bytes: int
    """On disk, and not read; also those of lines that wait to be joined."""
    oldest_unread_seconds: float | None
    compressed: bool
    queues: dict[str, Counts]


class Lost(msgspec.Struct):
    """Bytes that were gone before they were read."""

    path: str
    reason: str
    bytes: int
    times: int
    unknown: int
    """How often it is not known whether anything was lost."""
    seconds_ago: float


class Container(msgspec.Struct):
    """One container's files, or those of none."""

    namespace: str
    pod: str
    uid: str
    container: str
    files: list[File]
    gone: dict[str, Counts]
    """Of files that are no longer there, by queue."""
    lost: list[Lost]


class Receiver(msgspec.Struct):
    """One receiver's totals, of everything that was asked about."""

    files: int
    unread_bytes: int
    oldest_unread_seconds: float | None
    waiting_files: int
    refused_on_the_way: int
    """Records refused for good before a queue had them, or given up, since the start."""
    lost_bytes: int
    lost_times: int
    lost_perhaps: int
    queues: dict[str, Counts]
    filtered_unassigned: dict[str, int]
    """By queue: of the filtered records, those that no file could be given, and that count as records of their files."""
    clients: dict[str, int]
    """Records acknowledged to each client since the start, of those that sent last."""


class Queue(msgspec.Struct):
    """One queue's totals, over all sources."""

    on_disk: bool
    exporters: dict[str, Fates]
    without_source: dict[str, Fates]
    """Of these, what has no file: what clients sent, and rejections of which it is not known whose they are."""


class Report(msgspec.Struct):
    """One role's answer."""

    receivers: dict[str, Receiver]
    queues: dict[str, Queue]
    containers: list[Container]
    left_out: int
    """Containers that were asked about, and are not told: those with the least on disk."""
    problems: list[str]


def report(
    receivers: Mapping[str, Sources], queues: Mapping[str, Bookkeeper], behind: Mapping[str, Iterable[str]], *, now: int, most: int
) -> Report:
    """`behind`: which queues each receiver's records come to; `now`: nanoseconds since 1970; `most`: files of which each is told."""
    books = {name: queue.books() for name, queue in queues.items()}
    told: dict[str, Receiver] = {}
    by_place: dict[Place, Container] = {}
    for owner, found in receivers.items():
        mine = {name: books[name] for name in behind.get(owner, ()) if name in books}
        by_source: dict[str, list[Source]] = {}
        groups: dict[str, Place] = {}
        for source in found.sources:
            by_source.setdefault(source.id, []).append(source)
            groups[f"{owner}:={source.group.replace(':', '%3A')}"] = source.place
        for source in found.sources:
            counts = {name: _counts(now, [source], mine[name], found) for name in mine}
            oldest = _seconds(now, source.oldest_unread_unix_nano)
            position = min(source.read, source.size)
            file = File(source.path, source.size, position, source.unread_bytes, oldest, source.compressed, counts)
            _container(by_place, source.place).files.append(file)
        gone = {name: _gone(groups, by_source, each) for name, each in mine.items()}
        for name, by_group in gone.items():
            for group, accounts in by_group.items():
                _container(by_place, groups[group]).gone[name] = _of(now, accounts)
        for place, gap in found.gaps:
            lost = Lost(gap.path, gap.reason, gap.bytes, gap.times, gap.unknown, _seconds(now, gap.time_unix_nano) or 0.0)
            _container(by_place, place).lost.append(lost)
        told[owner] = _receiver(now, owner, found, mine, gone)
    containers = sorted(by_place.values(), key=lambda it: -sum(file.unread_bytes for file in it.files))
    kept: list[Container] = []
    for container in containers:
        if kept and sum(len(it.files) + len(it.lost) for it in [*kept, container]) > most:
            break
        kept.append(container)
    kept.sort(key=lambda it: (it.namespace, it.pod, it.uid, it.container))
    for container in kept:
        del container.files[most:], container.lost[most:]
    totals = {name: _queue(now, queue, books[name].accounts) for name, queue in queues.items()}
    return Report(told, totals, kept, len(containers) - len(kept), [])


def _container(by_place: dict[Place, Container], place: Place) -> Container:
    return by_place.setdefault(place, Container(place.namespace, place.pod, place.uid, place.container, [], {}, []))


def _gone(groups: Mapping[str, Place], present: Mapping[str, object], books: Books) -> dict[str, list[Account]]:
    """By group, the accounts of its sources that are gone: folded into the group's already, or not yet."""
    gone: dict[str, list[Account]] = {}
    for id, account in books.accounts.items():
        group = id if id in groups else books.groups.get(id, "") if id not in present else ""
        if group in groups:
            gone.setdefault(group, []).append(account)
    return gone


def _receiver(
    now: int, owner: str, found: Sources, mine: Mapping[str, Books], gone: Mapping[str, Mapping[str, Iterable[Account]]]
) -> Receiver:
    queues = {}
    for name, books in mine.items():
        queues[name] = _counts(now, found.sources, books, found)
        _add(queues[name], _of(now, [account for accounts in gone[name].values() for account in accounts]))
    gaps = [gap for _, gap in found.gaps]
    return Receiver(
        len(found.sources),
        sum(source.unread_bytes for source in found.sources),
        _seconds(now, min((it.oldest_unread_unix_nano for it in found.sources if it.oldest_unread_unix_nano), default=0)),
        found.waiting_files,
        found.dropped,
        sum(gap.bytes for gap in gaps),
        sum(gap.times for gap in gaps),
        sum(gap.unknown for gap in gaps),
        queues,
        {name: account.filtered for name, books in mine.items() if (account := books.accounts.get(f"{owner}:?")) is not None},
        found.clients,
    )


def _counts(now: int, sources: list[Source], books: Books, found: Sources) -> Counts:
    ids, known = {source.id for source in sources}, books.known
    counts = _of(now, [books.accounts[id] for id in ids if id in books.accounts])
    # What is in the queue, and not yet acknowledged to the receiver, is in the accounts already.
    flying = [it for it in found.under_way if it.source in ids and known.get(it.source, Ranges()).reach(it.start) < it.end]
    counts.under_way = sum(origin.lines for origin in flying)
    counts.waiting_to_be_joined = sum(source.pending_lines for source in sources)
    counts.read += counts.under_way + counts.waiting_to_be_joined
    return counts


def _of(now: int, accounts: Iterable[Account]) -> Counts:
    total = Account()
    for account in accounts:
        total.add(account)
    exporters = {name: _fates(now, share) for name, share in total.shares.items()}
    return Counts(total.lines, total.records, total.joined, total.filtered, 0, 0, exporters)


def _add(counts: Counts, other: Counts) -> None:
    for name in ("read", "records", "joined", "filtered"):
        setattr(counts, name, getattr(counts, name) + getattr(other, name))
    for name, fates in other.exporters.items():
        mine = counts.exporters.setdefault(name, Fates(0, 0, 0, {}, 0, None))
        for field in ("queued", "delivered", "pending", "damaged"):
            setattr(mine, field, getattr(mine, field) + getattr(fates, field))
        for reason, records in fates.rejected.items():
            mine.rejected[reason] = mine.rejected.get(reason, 0) + records
        mine.pending_seconds = max(filter(None, (mine.pending_seconds, fates.pending_seconds)), default=None)


def _queue(now: int, queue: Bookkeeper, accounts: Mapping[str, Account]) -> Queue:
    waiting = queue.waiting_bytes()
    counts = _of(now, accounts.values())
    for name, fates in counts.exporters.items():
        fates.pending_bytes = waiting.get(name)
    return Queue(queue.is_on_disk, counts.exporters, _of(now, [accounts[""]] if "" in accounts else []).exporters)


def _fates(now: int, share: Share) -> Fates:
    rejected = {reason: records for reason, records in share.rejected.items() if records}
    since = _seconds(now, share.since_unix_nano)
    return Fates(share.queued - share.damaged, share.delivered, share.pending, rejected, share.damaged, since)


def _seconds(now: int, time_unix_nano: int) -> float | None:
    return round(max(0, now - time_unix_nano) / 1e9, 1) if time_unix_nano else None


def anything_lost(report: Report, chosen: Chosen) -> bool:
    """Whether something of what was asked about was rejected, or gone before it was read."""
    files = [counts for container in report.containers for file in container.files for counts in file.queues.values()]
    gone = [counts for container in report.containers for counts in container.gone.values()]
    whole = [queue.exporters for queue in report.queues.values()] if chosen.is_all else []
    exporters = [*(counts.exporters for counts in (*files, *gone)), *whole]
    rejected = any(fates.rejected for each in exporters for fates in each.values())
    return rejected or any(container.lost for container in report.containers) or any(it.lost_times for it in report.receivers.values())
