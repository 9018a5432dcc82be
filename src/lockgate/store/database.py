"""One DuckDB file, its one writer, and the window of batch ids.

Rows and the ids of their batches are committed in one transaction, so a batch that is sent again after a lost answer is stored once. A
commit is on disk when `store` returns (DuckDB syncs its write-ahead log). SQL can reach no file, no network, no other database and no
setting: external access is off and the configuration is locked before the first query.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from lockgate.batch import Batch, Signal
from lockgate.store import rows, schema
from lockgate.store.arrow import LogStream
from lockgate.wire.protobuf import DecodeError


class StoreError(Exception):
    """The rows were not stored; the same batches may be stored later (a full disk, a database that had to be opened again)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the database may take."""

    memory_bytes: int = 512 * 2**20
    """DuckDB's buffers, shared by the writer and all queries; past it they spill to disk, or a query fails."""
    spill_bytes: int = 2**30
    """What queries may spill to disk."""
    threads: int = 2
    ids_seconds: float = 86400.0
    """How long the ids of stored batches are kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one batch: how many of its rows are new, and why none is where the batch cannot be stored at all."""

    stored: int
    repeated: bool = False
    refused: str = ""


class Database:
    """The store in the directory `path`. `store` and `expire` are called by one thread at a time; cursors are for any thread."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self._resources: set[int] = set()
        self._last_received = 0
        self._connection = self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, spill = self.path / "telemetry.duckdb", self.path / "spill"
        connection = duckdb.connect(
            str(file),
            config={
                "memory_limit": f"{self.limits.memory_bytes // 2**20}MiB",
                "threads": str(self.limits.threads),
                "temp_directory": str(spill),
                "max_temp_directory_size": f"{self.limits.spill_bytes // 2**20}MiB",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                # Rows come in order of arrival and are read by time; keeping the order of unordered queries costs memory.
                "preserve_insertion_order": "true",
            },
        )
        for statement in ("SET GLOBAL TimeZone = 'UTC'", "SET GLOBAL enable_external_access = false", *schema.CREATE):
            connection.execute(statement)
        connection.execute("SET GLOBAL lock_configuration = true")
        for name in (file, file.with_name(file.name + ".wal")):
            with contextlib.suppress(FileNotFoundError):
                name.chmod(0o600)
        self._resources = {row[0] for row in connection.execute("SELECT id FROM resources").fetchall()}
        newest = "SELECT max(epoch_us(received)) FROM batches"
        self._last_received = _one(connection.execute(newest)) or 0
        return connection

    def close(self) -> None:
        """Writes a checkpoint and closes; again: nothing."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of the caller's own to the same database; the caller closes it."""
        return self._connection.cursor()

    def store(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Makes these batches durable in one transaction, skips what is already stored; one outcome each, in order.

        Raises StoreError where none was stored.
        """
        parsed: list[tuple[Batch, list[tuple[str, rows.Rows]], str]] = []
        for batch in batches:
            try:
                parsed.append((batch, [(id, rows.rows(batch.signal, payload)) for id, payload in _parts(batch)], ""))
            except DecodeError as error:
                parsed.append((batch, [], str(error)))
        try:
            return self._commit(parsed)
        except duckdb.Error as error:
            with contextlib.suppress(duckdb.Error):
                self._connection.rollback()
                self._connection.unregister("arriving")
            if isinstance(error, duckdb.FatalException | duckdb.InternalException):
                # DuckDB refuses everything after such an error until it is opened again.
                self.close()
                self._connection = self._open()
            elif len(batches) == 1 and isinstance(error, duckdb.DataError | duckdb.ProgrammingError):
                return [Outcome(0, refused=_brief(error))]
            elif len(batches) > 1:
                # One batch must not condemn the others that happened to share its transaction.
                return [outcome for batch in batches for outcome in self.store([batch])]
            raise StoreError(f"cannot store into {self.path}: {_brief(error)}") from error

    def _commit(self, parsed: list[tuple[Batch, list[tuple[str, rows.Rows]], str]]) -> list[Outcome]:
        connection = self._connection
        connection.begin()
        ids = [id for _, parts, _ in parsed for id, _ in parts]
        marks = ", ".join("?" * len(ids)) or "NULL"
        known = {row[0] for row in connection.execute(f"SELECT id FROM batches WHERE id IN ({marks})", ids).fetchall()}
        new_ids: list[str] = []
        outcomes: list[Outcome] = []
        by_signal: dict[Signal, list[rows.Rows]] = {}
        for batch, parts, refused in parsed:
            fresh = []
            for id, part in parts:
                if id not in known:
                    known.add(id)
                    new_ids.append(id)
                    fresh.append(part)
            by_signal.setdefault(batch.signal, []).extend(fresh)
            outcomes.append(Outcome(sum(part.count for part in fresh), bool(parts) and not fresh, refused))
        # Strictly rising, so that a reader who has seen everything up to one `received` misses nothing.
        received = max(time.time_ns() // 1000, self._last_received + 1)
        resources = {
            id: raw for parts in by_signal.values() for part in parts for id, raw in part.resources.items() if id not in self._resources
        }
        if resources:
            text = msgspec.json.encode([rows.resource_row(id, raw) for id, raw in resources.items()]).decode()
            connection.execute(schema.INSERT_RESOURCES, {"rows": text})
        for signal, several in by_signal.items():
            if not any(part.count for part in several):
                continue
            if signal is Signal.LOGS:
                connection.register("arriving", LogStream(part.columns for part in several if part.columns))
                connection.execute(schema.TABLES[signal].insert_columns, {"received": received})
                connection.unregister("arriving")
            else:
                text = b"".join(rows.join(several)).decode()
                connection.execute(schema.TABLES[signal].insert, {"rows": text, "received": received})
        if new_ids:
            values = {"rows": msgspec.json.encode(new_ids).decode(), "received": received}
            remember = "INSERT INTO batches SELECT make_timestamp($received), unnest(from_json($rows::VARCHAR, '[\"VARCHAR\"]'))"
            connection.execute(remember, values)
        connection.commit()
        self._last_received = received
        self._resources.update(resources)
        return outcomes

    @property
    def last_received(self) -> int:
        """The `received` of the newest commit, in microseconds since 1970; 0 where there is none."""
        return self._last_received

    def used_bytes(self) -> int:
        """Blocks in use and the write-ahead log. The file itself does not shrink when rows go: its free blocks are used again."""
        size = self._connection.cursor().execute("SELECT used_blocks * block_size FROM pragma_database_size()")
        wal = self.path / "telemetry.duckdb.wal"
        return int(_one(size)) + (wal.stat().st_size if wal.exists() else 0)

    def expire(self, max_age_seconds: float | None, max_bytes: int | None) -> int:
        """Deletes the rows that are too old, then the oldest until the rest fits; how many.

        Slices go, not single rows: nothing is touched before the oldest row is 1/24 over its age, and a full store is cut to 9/10.
        Age counts from arrival.
        """
        now = max(time.time_ns() // 1000, self._last_received)
        removed = 0
        if max_age_seconds is not None:
            cutoff = now - int(max_age_seconds * 1e6)
            oldest = [self._oldest(table.name) for table in schema.TABLES.values()]
            if any(o is not None and o < cutoff - int(max_age_seconds * 1e6 / 24) for o in oldest):
                removed += self._delete_before(cutoff)
        if max_bytes is not None and self.used_bytes() > max_bytes:
            self._checkpoint()  # what is in the write-ahead log counts once, and compressed
            if (used := self.used_bytes()) > max_bytes:
                removed += self._shrink(1 - 0.9 * max_bytes / used, max_bytes)
        self._run("DELETE FROM batches WHERE received < make_timestamp(?)", [now - int(self.limits.ids_seconds * 1e6)])
        if removed:
            self._prune_resources()
            self._checkpoint()
        return removed

    def _oldest(self, table: str) -> int | None:
        value: int | None = _one(self._run(f"SELECT epoch_us(min(received)) FROM {table}"))
        return value

    def _delete_before(self, received: int) -> int:
        return sum(
            _one(self._run(f"DELETE FROM {table.name} WHERE received < make_timestamp(?)", [received])) for table in schema.TABLES.values()
        )

    def _shrink(self, share: float, max_bytes: int) -> int:
        """Deletes what arrived before this share of the largest table's rows did; how many rows."""
        counts = {table.name: _one(self._run(f"SELECT count(*) FROM {table.name}")) for table in schema.TABLES.values()}
        largest = max(counts, key=lambda name: counts[name])
        removed = self._delete_before((_one(self._run(f"SELECT epoch_us(quantile_disc(received, {share:.6f})) FROM {largest}")) or 0) + 1)
        self._checkpoint()
        if removed and self.used_bytes() > max_bytes:
            # Only row groups (122,880 rows) that are gone as a whole free their blocks. Where the rest of one weighs so much that the store
            # is still too large, it is a small store: write it anew, or the next look would delete again what is already deleted.
            self._connection.begin()
            self._run(f"CREATE TABLE rewritten AS SELECT * FROM {largest}")
            self._run(f"DROP TABLE {largest}")
            self._run(f"ALTER TABLE rewritten RENAME TO {largest}")
            self._connection.commit()
        return removed

    def _prune_resources(self) -> None:
        used = " UNION ".join(f"SELECT resource FROM {table.name}" for table in schema.TABLES.values())
        self._run(f"DELETE FROM resources WHERE id NOT IN ({used})")
        self._resources = {row[0] for row in self._run("SELECT id FROM resources").fetchall()}

    def _checkpoint(self) -> None:
        # A query that is still reading older rows keeps them; the next expiry frees them.
        with contextlib.suppress(duckdb.TransactionException):
            self._run("CHECKPOINT")
            # The blocks that the first one replaced become free with the second.
            self._run("CHECKPOINT")

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        return self._connection.execute(sql, list(parameters))


def _parts(batch: Batch) -> list[tuple[str, bytes]]:
    """The batches that this one was merged from, each with its bytes; the batch itself where it is none."""
    if sum(part.size for part in batch.parts) != len(batch.payload) or not batch.parts:
        return [(batch.id, batch.payload)]
    out, position = [], 0
    for part in batch.parts:
        out.append((part.id, batch.payload[position : position + part.size]))
        position += part.size
    return out


def _one(result: duckdb.DuckDBPyConnection) -> Any:
    row = result.fetchone()
    return row[0] if row else None


def _brief(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]
