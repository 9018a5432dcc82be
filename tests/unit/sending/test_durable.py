"""An exporter with its queue on disk: what is acknowledged survives, what does not fit waits, a full disk is waited for."""

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import FakeHost, context, logs

from lockgate.batch import Batch, Origin, Signal, merge
from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Context, Custody, Kind
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.durable import PipelineQueue
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.settings import SendingSettings


class Server:
    """Keeps what it is sent; refuses with `refusal` while that is set; `open` lets attempts end."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.sent: list[Batch] = []
        self.attempts = self.under_way = 0
        self.open = asyncio.Event()
        self.open.set()

    async def answer(self, batch: Batch) -> Rejected | None:
        self.attempts += 1
        self.under_way += 1
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        if self.refusal is not None:
            raise self.refusal
        self.sent.append(batch)
        return None

    @property
    def ids(self) -> list[str]:
        return [batch.id for batch in self.sent]


class ScriptedExporter(QueuedExporter[SendingSettings]):
    server: Server

    async def send(self, batch: Batch) -> Rejected | None:
        return await self.server.answer(batch)


@asynccontextmanager
async def exporting(directory: Path, server: Server, /, **queue: Any) -> AsyncIterator[tuple[PipelineQueue, Context]]:
    """A pipeline's queue with the exporter `out` behind it."""
    async with exporting_to(directory, {"out": server}, **queue) as (shared, of):
        yield shared, of


@asynccontextmanager
async def exporting_to(directory: Path, servers: dict[str, Server], /, **queue: Any) -> AsyncIterator[tuple[PipelineQueue, Context]]:
    """A pipeline's queue with these exporters behind it; settings of one alone stand under its name."""
    retry = {"initial_interval": "10ms", "max_interval": "20ms"} | queue.pop("retry_on_failure", {})
    storage = FileStorageExtension(FileStorageSettings(directory=str(directory), fsync=queue.pop("fsync", False)), context("file_storage"))
    own = {name: queue.pop(name, {}) for name in servers}
    async with storage:
        of = context("out", Kind.EXPORTER, host=FakeHost({"file_storage": storage}))
        exporters = []
        for name, server in servers.items():
            sending = {"storage": "file_storage", "num_consumers": 1} | queue | own[name]
            settings = SendingSettings.model_validate({"sending_queue": sending, "retry_on_failure": retry})
            exporters.append(exporter := ScriptedExporter(settings, replace(of, id=name)))
            exporter.server = server
        shared = PipelineQueue(of, "file_storage")
        for exporter in exporters:
            shared.attach(exporter)
        async with asyncio.timeout(20), AsyncExitStack() as stack:
            await stack.enter_async_context(shared)
            for exporter in exporters:
                await stack.enter_async_context(exporter)
            yield shared, of


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def a_batch(number: int, size: int = 20) -> Batch:
    return logs(f"{number} {os.urandom(size // 2).hex()}", peer="10.0.0.1")


def queue_directory(directory: Path) -> Path:
    return directory / "queue~002Ftest" / "queue"


async def test_a_batch_is_acknowledged_before_it_is_delivered_and_sent_after_a_restart_in_order_with_its_id(tmp_path: Path) -> None:
    batches = [a_batch(number) for number in range(5)]
    async with exporting(tmp_path, server := Server(Retryable("down"))) as (exporter, of):
        assert exporter.custody is Custody.DURABLE
        for batch in batches:
            await exporter.consume(batch)
        await until(lambda: server.attempts)
        assert of.metrics.value("otelcol_exporter_queue_size", exporter="out") == 5
        assert of.metrics.value("lockgate_queue_disk_bytes", pipeline="test") > 0
    async with exporting(tmp_path, server := Server()) as (_, of):
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
    assert server.sent == batches
    async with exporting(tmp_path, server := Server()) as (exporter, _):
        await exporter.consume(last := a_batch(9))
        await until(lambda: server.sent)
    assert server.sent == [last]
    assert {path.suffix for path in queue_directory(tmp_path).iterdir()} == {".notes"}


async def test_a_backlog_is_sent_in_order_with_little_of_it_in_memory(tmp_path: Path) -> None:
    batches = [a_batch(number, 2000) for number in range(60)]
    async with exporting(tmp_path, server := Server(), max_bytes=10_000) as (exporter, of):
        server.open.clear()
        await asyncio.gather(*map(exporter.consume, batches[:40]))
        await until(lambda: server.under_way)
        (cursor,) = exporter._cursors
        assert cursor.loaded < 15_000
        server.open.set()
        await asyncio.gather(*map(exporter.consume, batches[40:]))
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        assert cursor.loaded == 0
    assert server.ids == [batch.id for batch in batches]


async def test_what_came_together_is_made_durable_by_few_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    async with exporting(tmp_path, Server(), fsync=True) as (exporter, _):
        await asyncio.gather(*(exporter.consume(a_batch(number)) for number in range(200)))
        assert 1 <= syncs <= 5
        before = syncs
        await exporter.consume(a_batch(200))
        assert syncs > before  # and none is acknowledged without


async def test_without_fsync_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: pytest.fail("synced"))
    async with exporting(tmp_path, server := Server(), fsync=False) as (exporter, _):
        await exporter.consume(a_batch(0))
        await until(lambda: server.sent)


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param({"queue_size": 3}, id="requests"),
        pytest.param({"queue_size": 3, "sizer": "items"}, id="items"),
        pytest.param({"queue_size": 3 * len(a_batch(0, 1000).payload), "sizer": "bytes"}, id="bytes"),
        pytest.param({"max_disk_bytes": 1 << 20}, id="disk"),
    ],
)
async def test_a_full_queue_makes_its_callers_wait_also_after_a_restart(tmp_path: Path, bound: dict[str, Any]) -> None:
    size = 500_000 if "max_disk_bytes" in bound else 1000
    taken = 0

    async def feed(exporter: PipelineQueue) -> None:
        nonlocal taken
        for number in range(8):
            await exporter.consume(a_batch(number, size))
            taken += 1

    async with exporting(tmp_path, Server(Retryable("down")), **bound) as (exporter, of):
        feeding = asyncio.create_task(feed(exporter))
        await until(lambda: taken >= 2)
        await asyncio.sleep(0.2)  # nothing more may come
        assert 2 <= taken <= 3 and not feeding.done()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    had = taken
    async with exporting(tmp_path, server := Server(Retryable("down")), **bound) as (exporter, of):
        waiting = asyncio.create_task(exporter.consume(a_batch(99, size)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        server.refusal = None
        await waiting
        await until(lambda: len(server.sent) == had + 1)
        assert of.metrics.value("otelcol_exporter_queue_size") == 0


async def test_a_full_queue_refuses_where_the_user_said_so(tmp_path: Path) -> None:
    async with exporting(tmp_path, Server(Retryable("down")), queue_size=1, block_on_overflow=False) as (exporter, of):
        await exporter.consume(a_batch(0))
        with pytest.raises(Retryable, match="queue is full"):
            await exporter.consume(a_batch(1))
        assert of.metrics.value("otelcol_exporter_enqueue_failed_log_records") == 1


async def test_waiting_batches_are_merged_and_each_is_marked(tmp_path: Path) -> None:
    batches = [a_batch(number) for number in range(6)]
    async with exporting(tmp_path, server := Server(), batch={"min_size": 0}) as (exporter, of):
        server.open.clear()
        for batch in batches:
            await exporter.consume(batch)
        server.open.set()
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
    assert len(server.sent) < 6
    # What was under way before the others came went alone.
    assert [part for sent in server.sent for part in ([part.id for part in sent.parts] or [sent.id])] == [batch.id for batch in batches]
    async with exporting(tmp_path, server := Server()) as (exporter, of):
        assert of.metrics.value("otelcol_exporter_queue_size") == 0


@pytest.mark.parametrize(
    ("refusal", "retry"),
    [
        pytest.param(Permanent("bad"), {}, id="for-good"),
        pytest.param(Retryable("down"), {"enabled": False}, id="no-retry"),
        pytest.param(Retryable("down"), {"max_elapsed_time": "30ms"}, id="given-up-in-time"),
    ],
)
async def test_what_is_refused_or_given_up_leaves_the_queue_counted_and_logged(
    tmp_path: Path, refusal: Exception, retry: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with exporting(tmp_path, Server(refusal), retry_on_failure=retry) as (exporter, of):
        await exporter.consume(a_batch(0))
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        assert of.metrics.value("otelcol_exporter_send_failed_log_records") == 1
    assert str(refusal) in caplog.text and "ERROR" in caplog.text
    async with exporting(tmp_path, Server(), retry_on_failure=retry) as (_, of):
        assert of.metrics.value("otelcol_exporter_queue_size") == 0


async def test_giving_up_batch_after_batch_is_counted_each_time_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with exporting(tmp_path, Server(Retryable("down")), retry_on_failure={"enabled": False}) as (queue, of):
        for number in range(20):
            await queue.consume(a_batch(number))
        await until(lambda: of.metrics.value("otelcol_exporter_send_failed_log_records") == 20)
    assert sum("were given up" in record.message for record in caplog.records) == 1


async def test_a_fault_of_our_own_keeps_the_batch_on_disk_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    poison, good = a_batch(0), a_batch(1)
    async with exporting(tmp_path, server := Server(ZeroDivisionError("bug"))) as (exporter, _):
        await exporter.consume(poison)
        await until(lambda: "a fault of lockgate's own" in caplog.text)
        server.refusal = None
        await exporter.consume(good)
        await until(lambda: server.sent == [good])
    async with exporting(tmp_path, server := Server()):
        await until(lambda: server.sent == [poison])


async def test_a_stop_does_not_wait_for_the_backlog(tmp_path: Path) -> None:
    batches = [a_batch(number) for number in range(50)]
    server = Server()
    async with exporting(tmp_path, server) as (exporter, _):
        server.open.clear()
        for batch in batches:
            await exporter.consume(batch)
        await until(lambda: server.under_way)
        asyncio.get_running_loop().call_later(0.05, server.open.set)
    assert server.ids == [batches[0].id]  # what was under way was seen to its end
    async with exporting(tmp_path, server):
        await until(lambda: len(server.sent) == 50)
    assert server.ids == [batch.id for batch in batches]


async def test_a_caller_who_gives_up_waiting_for_room_leaves_no_hole(tmp_path: Path) -> None:
    async with exporting(tmp_path, server := Server(Retryable("down")), queue_size=1) as (exporter, of):
        await exporter.consume(a_batch(0))
        waiting = asyncio.create_task(exporter.consume(a_batch(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        server.refusal = None
        await exporter.consume(a_batch(2))
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
    assert len(server.sent) == 2


async def test_damaged_records_are_counted_and_the_rest_is_sent(tmp_path: Path) -> None:
    batches = [a_batch(number, 300) for number in range(5)]
    async with exporting(tmp_path, Server(Retryable("down"))) as (exporter, _):
        await asyncio.gather(*map(exporter.consume, batches))
    (path,) = queue_directory(tmp_path).glob("*.segment")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    async with exporting(tmp_path, server := Server()) as (_, of):
        await until(lambda: len(server.sent) == 4)
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        assert of.metrics.value("lockgate_queue_damaged_records") == 1
        assert of.metrics.value("lockgate_queue_quarantined_bytes") > 100
    assert server.ids == [batch.id for batch in batches if batch.id in server.ids]


async def test_while_nothing_can_be_written_callers_are_told_and_it_resumes_by_itself(tmp_path: Path) -> None:
    # A limit of 0 bytes per file: the kernel refuses what makes any file grow, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with exporting(tmp_path, server := Server(Retryable("down"))) as (exporter, of):
        await exporter.consume(a_batch(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(Retryable, match="cannot write to the sending queue: File too large"):
                await exporter.consume(a_batch(1))
            assert "cannot write" in of.status.blocked["queue"][0]
            server.refusal = None
            await until(lambda: len(server.sent) == 1)  # what is there is still delivered
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await until(lambda: "queue" not in of.status.blocked)
        await exporter.consume(a_batch(1))
        await until(lambda: len(server.sent) == 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "lockgate-test", str(directory)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def test_a_full_disk_loses_nothing_gives_space_back_and_goes_on(small_disk: Path) -> None:
    batches = [a_batch(number, 100_000) for number in range(60)]
    refused = 0

    async def feed(exporter: PipelineQueue) -> None:
        nonlocal refused
        for batch in batches:
            while True:
                try:
                    await exporter.consume(batch)
                    break
                except Retryable:
                    refused += 1
                    await asyncio.sleep(0.02)

    async with exporting(small_disk, server := Server(Retryable("down"))) as (exporter, of):
        feeding = asyncio.create_task(feed(exporter))
        await until(lambda: refused > 3)
        assert "No space left" in of.status.blocked["queue"][0]
        server.refusal = None
        await feeding
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        assert "queue" not in of.status.blocked
    assert server.ids == [batch.id for batch in batches]
    assert not list(queue_directory(small_disk).glob("*.segment"))


async def test_a_batch_that_comes_again_is_acknowledged_and_sent_once_also_after_a_restart(tmp_path: Path) -> None:
    batches = [a_batch(number) for number in range(4)]
    async with exporting(tmp_path, server := Server()) as (queue, of):
        await asyncio.gather(*(queue.consume(batch) for batch in batches for _ in range(3)))
        await until(lambda: len(server.sent) == 4)
        await queue.consume(batches[0])
        assert of.metrics.value("lockgate_queue_duplicate_batches") == 9
    async with exporting(tmp_path, server) as (queue, of):
        await queue.consume(batches[2])
        await queue.consume(replace(batches[3], signal=Signal.TRACES))  # another batch: an id is one of its signal
        await until(lambda: len(server.sent) == 5)
        assert of.metrics.value("lockgate_queue_duplicate_batches") == 1
    assert sorted(server.ids[:4]) == sorted(batch.id for batch in batches)


async def test_of_a_merged_batch_only_the_parts_that_are_new_are_written(tmp_path: Path) -> None:
    batches = [a_batch(number) for number in range(4)]
    async with exporting(tmp_path, server := Server()) as (queue, of):
        await queue.consume(batches[1])
        await queue.consume(merge(batches[:3]))
        await queue.consume(merge([batches[2], batches[0]]))
        await queue.consume(merge(batches[2:]))
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
    assert server.sent == [batches[1], merge([batches[0], batches[2]]), batches[3]]


async def test_a_damaged_batch_is_new_when_it_comes_again(tmp_path: Path) -> None:
    batches = [a_batch(number, 300) for number in range(3)]
    async with exporting(tmp_path, Server(Retryable("down"))) as (queue, _):
        await asyncio.gather(*map(queue.consume, batches))
    (path,) = queue_directory(tmp_path).glob("*.segment")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    async with exporting(tmp_path, server := Server()) as (queue, of):
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        assert len(server.sent) == 2
        for batch in batches:
            await queue.consume(batch)
        await until(lambda: len(server.sent) == 3)
    assert sorted(server.ids) == sorted(batch.id for batch in batches)


async def test_a_dead_exporter_neither_starves_nor_repeats_the_others_and_gets_all_of_it_later(tmp_path: Path) -> None:
    batches = [a_batch(number, 2000) for number in range(40)]
    good, dead = Server(), Server(Retryable("down"))
    async with exporting_to(tmp_path, {"good": good, "dead": dead}, max_bytes=10_000) as (queue, of):
        for batch in batches[:20]:
            await queue.consume(batch)
        await until(lambda: len(good.sent) == 20)
        assert of.metrics.value("otelcol_exporter_queue_size", exporter="dead") == 20
        assert of.metrics.value("otelcol_exporter_queue_size", exporter="good") == 0
        waiting = sum(path.stat().st_size for path in queue_directory(tmp_path).glob("*.segment"))
        assert waiting < 1.2 * sum(len(batch.payload) for batch in batches[:20])  # written once
    async with exporting_to(tmp_path, {"good": good, "dead": dead}, max_bytes=10_000) as (queue, of):
        for batch in batches[20:]:
            await queue.consume(batch)
        await until(lambda: len(good.sent) == 40)
        dead.refusal = None
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size", exporter="dead") == 0)
    assert good.ids == dead.ids == [batch.id for batch in batches]
    assert {path.suffix for path in queue_directory(tmp_path).iterdir()} == {".notes"}


@pytest.mark.parametrize("is_waited_for", [pytest.param(True, id="waits"), pytest.param(False, id="refuses")])
async def test_a_dead_exporter_that_fills_the_queue_holds_up_the_pipeline_or_refuses_for_it(tmp_path: Path, is_waited_for: bool) -> None:
    good, dead = Server(), Server(Retryable("down"))
    own = {"queue_size": 3, "block_on_overflow": is_waited_for}
    async with exporting_to(tmp_path, {"good": good, "dead": dead}, dead=own) as (queue, _):
        for number in range(3):
            await queue.consume(a_batch(number))
        await until(lambda: len(good.sent) == 3)
        if is_waited_for:
            fourth = asyncio.create_task(queue.consume(a_batch(3)))
            await asyncio.sleep(0.1)
            assert not fourth.done()
            dead.refusal = None
            await fourth
        else:
            with pytest.raises(Retryable, match="3 of 3 wait for dead"):
                await queue.consume(a_batch(3))


async def test_an_exporter_of_two_pipelines_gets_from_both_though_one_has_a_backlog(tmp_path: Path) -> None:
    storage = FileStorageExtension(FileStorageSettings(directory=str(tmp_path)), context("file_storage"))
    async with storage, asyncio.timeout(20):
        of = context("out", Kind.EXPORTER, host=FakeHost({"file_storage": storage}))
        settings = SendingSettings.model_validate({"sending_queue": {"storage": "file_storage", "num_consumers": 1, "max_bytes": 10_000}})
        exporter = ScriptedExporter(settings, of)
        exporter.server = server = Server()
        server.open.clear()
        one, other = (PipelineQueue(replace(of, pipeline=name), "file_storage") for name in ("a", "b"))
        one.attach(exporter)
        other.attach(exporter)
        async with one, other, exporter:
            await asyncio.gather(*(one.consume(a_batch(number, 2000)) for number in range(50)))
            await other.consume(late := a_batch(99))
            server.open.set()
            await until(lambda: len(server.sent) == 51)
            assert server.sent.index(late) < 15


async def test_damaged_ranges_that_are_found_while_running_are_given_back(tmp_path: Path) -> None:
    batches = [replace(a_batch(number, 3000), origins=(Origin("tail:f", number, number + 1, 1, 1),)) for number in range(20)]
    async with exporting(tmp_path, server := Server(Retryable("down")), max_bytes=5000) as (queue, of):
        await asyncio.gather(*map(queue.consume, batches))
        (path,) = queue_directory(tmp_path).glob("*.segment")
        content = bytearray(path.read_bytes())
        content[len(content) * 3 // 4] ^= 1
        path.write_bytes(content)
        server.refusal = None
        await until(lambda: of.metrics.value("otelcol_exporter_queue_size") == 0)
        (origin,) = of.host.given_back  # type: ignore[attr-defined]  # the fake's
        assert queue.held("tail").lost == {"tail:f": Ranges([(origin.start, origin.end)])}
    assert server.ids == [batch.id for number, batch in enumerate(batches) if number != origin.start]


async def test_what_a_receiver_has_behind_it_and_damaged_files_do_not_tell_of_is_given_back(tmp_path: Path) -> None:
    batches = [replace(a_batch(number, 300), origins=(Origin("tail:f", number, number + 1, 1, 1),)) for number in range(3)]
    async with exporting(tmp_path, Server(Retryable("down"))) as (queue, _):
        for batch in batches:
            await queue.consume(batch)
    (segment,) = queue_directory(tmp_path).glob("*.segment")
    notes = max(queue_directory(tmp_path).glob("*.notes"))
    segment.write_bytes(segment.read_bytes()[:-10])
    notes.write_bytes(notes.read_bytes()[:-10])
    async with exporting(tmp_path, server := Server()) as (queue, of):
        queue.saved("tail", {"tail:f": 3})
        assert of.host.given_back == [Origin("tail:f", 2, 3)]  # type: ignore[attr-defined]  # the fake's
        assert queue.held("tail").lost == {"tail:f": Ranges([(2, 3)])}
        await until(lambda: len(server.sent) == 2)
