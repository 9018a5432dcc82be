"""Keep telemetry in the embedded store: one DuckDB file, one writer, group commit.

A batch is acknowledged when the transaction that holds its rows and its id is on disk. Batches that arrive while one transaction is
written share the next one, so a slow disk makes larger transactions, not a longer queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
from pydantic import Field

from lockgate.batch import Batch
from lockgate.kit.units import Duration, Size
from lockgate.pipeline.contract import Context, Custody, Exporter, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import ComponentSettings, Need, Read, Write
from lockgate.store.database import Database, Limits, Outcome, StoreError

_GROUP_BYTES = 4 * 2**20
"""Payload bytes that share one transaction at most; rows cost several times their bytes in memory while they are inserted."""
_EXPIRY_SECONDS = 30.0


class StoreSettings(ComponentSettings):
    """Where telemetry is kept, how long and how much of it."""

    directory: str = Field(min_length=1)
    """The store's directory; made with mode 0700 where it is missing. One process at a time uses it."""
    retention: Duration = 7 * 86400.0
    """How long records are kept after their arrival (at most 1/24 longer); 0 keeps them until max_size."""
    max_size: Size = 5 * 2**30
    """Bytes of records, compressed; beyond it the oldest are deleted until 9/10 of it are left. 0 is no bound."""
    memory_limit: Size = Field(256 * 2**20, ge=64 * 2**20)
    """What the database takes for inserting and for all queries; twice that caps what a single query may add to the process."""
    max_spill_size: Size = 2**30
    """What queries may write to the store's directory when memory does not suffice."""
    threads: int = Field(2, ge=1)
    """Threads of the database, for one query or insert."""
    id_window: Duration = 86400.0
    """How long a batch's id is remembered: a batch that is sent again within it is stored once."""
    commit_interval: Duration = Field(0.05, ge=0, le=10)
    """The shortest time from one transaction to the next, unless there is much to write. A transaction costs some 4 ms of CPU however
    small it is; a longer interval costs senders as much latency, at most."""
    max_pending_size: Size = 64 * 2**20
    """Payload bytes that may wait for their transaction; beyond it senders are told to try later."""

    def needs(self) -> Iterator[Need]:
        yield Write(self.directory, "stored telemetry", 0o700, lasting=True)
        # DuckDB ends the process where these are there and it may not read them.
        yield Read("/sys/fs/cgroup", "DuckDB looks how many processors it may use", optional=True)


@component("store", StoreSettings)
class StoreExporter(Exporter[StoreSettings]):
    """Keeps logs, metrics and traces in an embedded database that answers SQL (see the query extension)."""

    custody = Custody.DURABLE

    def __init__(self, settings: StoreSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._database: Database | None = None
        self._pending: list[tuple[Batch, asyncio.Future[Outcome]]] = []
        self._pending_bytes = 0
        self._unanswered: set[asyncio.Future[Outcome]] = set()
        self._arrived = asyncio.Event()
        # One thread: DuckDB has one writer anyway, and expiry must not meet an insert.
        self._writer: ThreadPoolExecutor | None = None
        self._repeated = context.metrics.counter(
            "lockgate_store_repeated_batches", "batches that were already stored and were acknowledged again", exporter=context.id
        )
        self._expired = context.metrics.counter("lockgate_store_expired_rows", "rows deleted by retention", exporter=context.id)

    @property
    def database(self) -> Database:
        """The open store, for whoever answers queries; raises Retryable while there is none."""
        if self._database is None:
            raise Retryable(f"store {self.context.id} is not open")
        return self._database

    async def start(self) -> None:
        limits = Limits(self.settings.memory_limit, self.settings.max_spill_size, self.settings.threads, self.settings.id_window)
        self._writer = ThreadPoolExecutor(1, "lockgate-store")
        directory = Path(self.settings.directory)
        try:
            self._database = await asyncio.get_running_loop().run_in_executor(self._writer, Database, directory, limits)
        except (duckdb.Error, OSError) as error:
            self._writer.shutdown(wait=False)
            reason = str(error).split("\n", 1)[0]
            raise OSError(f"cannot open the store in {directory}: {reason}; see who else uses it, and that it may be written") from error
        labels = {"exporter": self.context.id}
        self.context.metrics.observe("lockgate_store_pending_bytes", "payload bytes waiting for a transaction", self._bytes, **labels)
        self.spawn(self._commit_for_ever(), "commit")
        self.spawn(self._expire_for_ever(), "expire")

    async def stop(self) -> None:
        # Receivers have stopped before this, so what waits here is all there will be.
        while self._unanswered:
            await asyncio.wait(set(self._unanswered))
        if self._writer is not None and self._database is not None:
            database, self._database = self._database, None
            await asyncio.get_running_loop().run_in_executor(self._writer, database.close)
            self._writer.shutdown(wait=False)

    def _bytes(self) -> float:
        return self._pending_bytes

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        if self._pending and self._pending_bytes + len(batch.payload) > self.settings.max_pending_size:
            raise Retryable(f"store {self.context.id} is behind: {self._pending_bytes} bytes wait for the disk", 1.0)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._unanswered.add(future)
        future.add_done_callback(self._unanswered.discard)
        self._pending.append((batch, future))
        self._pending_bytes += len(batch.payload)
        self._arrived.set()
        outcome = await future
        if outcome.refused:
            self._count("send_failed", batch.count, batch)
            raise Permanent(f"store {self.context.id} cannot keep this batch: {outcome.refused}")
        self._count("sent", outcome.stored, batch)
        self._repeated.add(outcome.repeated)

    def _count(self, event: str, amount: int, batch: Batch) -> None:
        name, help = f"otelcol_exporter_{event}_{batch.signal.items}", f"{batch.signal.items} {event.replace('_', ' ')} by this exporter"
        self.context.metrics.counter(name, help, exporter=self.context.id).add(amount)

    async def _commit_for_ever(self) -> None:
        clock, committed = self.context.clock, float("-inf")
        while True:
            await self._arrived.wait()
            rest = committed + self.settings.commit_interval - clock.monotonic()
            if rest > 0 and self._pending_bytes < _GROUP_BYTES and self.running:
                await clock.sleep(rest)
            committed = clock.monotonic()
            group: list[tuple[Batch, asyncio.Future[Outcome]]] = []
            size = 0
            while self._pending and (not group or size + len(self._pending[0][0].payload) <= _GROUP_BYTES):
                group.append(self._pending.pop(0))
                size += len(group[-1][0].payload)
            if not self._pending:
                self._arrived.clear()
            try:
                batches = [batch for batch, _ in group]
                outcomes = await asyncio.get_running_loop().run_in_executor(self._writer, self.database.store, batches)
            except StoreError as error:
                self.context.status.block(str(error))
                self.log.warning("%s; the senders keep these batches and try again", error)
                for _, future in group:
                    _set(future, Retryable(str(error), 1.0))
            else:
                self.context.status.clear()
                for (_, future), outcome in zip(group, outcomes, strict=True):
                    _set(future, outcome)
            finally:
                self._pending_bytes -= size
                for _, future in group:
                    _set(future, Retryable(f"store {self.context.id} stopped before this batch was on disk"))

    async def _expire_for_ever(self) -> None:
        age, size = self.settings.retention or None, self.settings.max_size or None
        while True:
            # Less than a hundredth of the age between looks, so that a short retention is kept as well.
            await self.context.clock.sleep(min(_EXPIRY_SECONDS, (age or 3600) / 100))
            with contextlib.suppress(Retryable):
                try:
                    removed = await asyncio.get_running_loop().run_in_executor(self._writer, self.database.expire, age, size)
                except duckdb.Error as error:
                    self.log.warning("cannot delete old records: %s; trying again in a while", str(error).split("\n", 1)[0])
                else:
                    self._expired.add(removed)


def _set(future: asyncio.Future[Outcome], outcome: Outcome | Retryable) -> None:
    if future.done():
        return
    if isinstance(outcome, Retryable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
