"""The ledger put together from receivers and queues: both equations hold, also while things are under way, and for a queue in memory."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support import VirtualClock, context, logs

from lockgate.batch import Batch, Origin
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Context, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.ledger import Chosen, Gap, Place, Source, Sources
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.ledger import Report, anything_lost, report
from lockgate.sending.notes import Account, Books, Share
from lockgate.sending.settings import SendingSettings

WEB, DB = Place("shop", "web-0", "u1", "main"), Place("shop", "db-0", "u2", "main")


def source(key: str, place: Place, size: int = 100, read: int = 100, **more: Any) -> Source:
    return Source(f"tail:{key}", f"/pods/{place.pod}/{key}.log", place, f"/pods/{place.pod}", size, read, read, **more)


class Queue:
    """A queue with these books."""

    keeps_accounts = is_on_disk = True

    def __init__(self, books: Books) -> None:
        self._books = books

    def books(self) -> Books:
        return self._books

    def waiting_bytes(self) -> dict[str, int]:
        return {"out": 7}


def told(sources: Sources, books: Books, most: int = 100) -> Report:
    return report({"tail": sources}, {"logs": Queue(books)}, {"tail": ["logs"]}, now=10_000_000_000, most=most)


def test_what_is_under_way_is_read_and_not_queued_unless_the_queue_has_it_already() -> None:
    flying = [Origin("tail:a", 100, 200, 4, 3), Origin("tail:a", 200, 300, 5, 5)]
    sources = Sources([source("a", WEB, 400, 300, pending_lines=2)], under_way=flying)
    # The second range has been written, and its receiver does not know yet.
    account = Account(10 + 5, 8 + 5, {"out": Share(13, 6, 0, {"refused": 1}, 4_000_000_000)}, 1)
    answer = told(sources, Books({"tail:a": account}, {"tail:a": Ranges([(0, 100), (200, 300)])}))
    (container,) = answer.containers
    counts = container.files[0].queues["logs"]
    assert (counts.read, counts.records, counts.joined, counts.filtered, counts.under_way, counts.waiting_to_be_joined) == (
        21,
        13,
        1,
        1,
        4,
        2,
    )
    fates = counts.exporters["out"]
    assert (fates.queued, fates.delivered, fates.pending, fates.rejected, fates.pending_seconds) == (13, 6, 6, {"refused": 1}, 6.0)
    assert answer.queues["logs"].exporters["out"].pending_bytes == 7
    assert anything_lost(answer, Chosen(pod="web-0"))


def test_files_that_are_gone_count_for_their_container_folded_or_not_and_other_containers_for_none() -> None:
    one = Account(2, 2, {"out": Share(2, 2)})
    books = Books(
        {"tail:a": one, "tail:gone": one, "tail:=/pods/web-0": one, "tail:b": one, "tail:": one},
        groups={"tail:gone": "tail:=/pods/web-0", "tail:b": "tail:=/pods/db-0", "tail:a": "tail:=/pods/web-0"},
    )
    answer = told(Sources([source("a", WEB)]), books)
    (container,) = answer.containers
    assert (container.files[0].queues["logs"].read, container.gone["logs"].read) == (2, 4)
    assert answer.receivers["tail"].queues["logs"].read == 6
    assert answer.queues["logs"].exporters["out"].delivered == 10
    assert not anything_lost(answer, Chosen(pod="web-0"))


def test_an_answer_is_bounded_and_those_with_the_most_unread_are_told() -> None:
    sources = Sources([source(f"{number}", replace(WEB, pod=f"web-{number}"), 100 + number, 100) for number in range(50)])
    answer = told(sources, Books(), most=10)
    assert {it.pod for it in answer.containers} == {f"web-{number}" for number in range(40, 50)}
    assert (answer.left_out, answer.receivers["tail"].files, answer.receivers["tail"].unread_bytes) == (40, 50, sum(range(50)))
    (one,) = told(Sources([source(f"{number}", WEB) for number in range(50)]), Books(), most=10).containers
    assert len(one.files) == 10


def test_a_gap_is_a_loss_and_what_only_perhaps_was_one_is_told() -> None:
    sources = Sources([source("a", WEB)], gaps=[(WEB, Gap("/pods/web-0/a.log", "gone", 12, 1, 0, 9_000_000_000))])
    answer = told(sources, Books())
    (lost,) = answer.containers[0].lost
    assert (lost.bytes, lost.seconds_ago) == (12, 1.0)
    assert anything_lost(answer, Chosen()) and not anything_lost(told(Sources([source("b", DB)]), Books()), Chosen())


class Scripted(QueuedExporter[SendingSettings]):
    script: list[Any]

    async def send(self, batch: Batch) -> Rejected | None:
        result = self.script.pop(0)
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]


def scripted(of: Context, *script: Any) -> Scripted:
    settings = {"retry_on_failure": {"randomization_factor": 0, "max_elapsed_time": "500ms"}}
    exporter = Scripted(SendingSettings.model_validate(settings), of)
    exporter.script = list(script)
    return exporter


async def test_a_queue_in_memory_accounts_for_what_it_settled_and_not_for_what_its_sender_still_has() -> None:
    clock = VirtualClock()
    of = context("out", Kind.EXPORTER, clock=clock)
    exporter = scripted(of, None, Rejected(1, "too old"), Permanent("bad"), Retryable("down"))
    batches = [replace(logs("a", "b"), origins=(Origin("tail:a", at, at + 1, 3, 2, 1),)) for at in range(4)]
    nothing_left = replace(batches[0], payload=b"", count=0, origins=(Origin("tail:a", 4, 5, 2, 0, 2),))
    async with exporter:
        await exporter.consume(batches[0])
        await exporter.consume(batches[1])
        with pytest.raises(Permanent):
            await exporter.consume(batches[2])
        await exporter.consume(nothing_left)
        given_back = asyncio.create_task(exporter.consume(batches[3]))
        await clock.advance(10)
        with pytest.raises(Retryable):
            await given_back
        books = exporter.books()
    account = books.accounts["tail:a"]
    assert (account.lines, account.records, account.filtered, account.joined) == (11, 6, 5, 0)
    assert account.shares["out"] == Share(6, 3, 0, {"partial": 1, "refused": 2})
    assert list(books.known["tail:a"]) == [(0, 3), (4, 5)]
    assert of.metrics.value("lockgate_ledger_records", exporter="out", fate="rejected") == 3
    exporter.saved("tail", {"tail:a": 5})
    assert exporter.books().known == {} and exporter.held("tail").durable == {}
