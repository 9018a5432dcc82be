"""Runs the reader: rounds of entries in a thread, handed on one after the other, the cursor kept behind what was taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lockgate.batch import Batch, Signal, derived_id
from lockgate.components.receivers.journald import shrunk
from lockgate.components.receivers.journald.journal import Journal
from lockgate.components.receivers.journald.records import Records
from lockgate.components.receivers.journald.settings import JOURNAL_FILES, JournaldSettings
from lockgate.kit import regex
from lockgate.kit.sometimes import Sometimes
from lockgate.kit.unreadable import describe_unreadable
from lockgate.pipeline.contract import Context, Receiver, Storage, component
from lockgate.pipeline.retry import hand_on

T = TypeVar("T")

_ROUND_BYTES = 2 << 20
_ROUND_ENTRIES = 8192
_LOOK_SECONDS = 1.0
"""How often to look where the kernel tells of no change: a journal on a network, or one that is not there yet."""
_SAVE_SECONDS = 1.0
_PERMISSION_SECONDS = 30.0
_MAX_FILES_NAMED = 20


@dataclass(frozen=True, slots=True)
class _Round:
    payload: bytes
    count: int
    first: str
    last: str
    """The cursor of the last entry that was looked at, whether it is in the payload or not; empty where there was none."""
    more: bool


@component("journald", JournaldSettings, signals={Signal.LOGS})
class JournaldReceiver(Receiver[JournaldSettings]):
    """Reads the journal; its cursor passes an entry only when the pipeline has taken it."""

    def __init__(self, settings: JournaldSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._records = Records(settings.attributes, settings.resource)
        self._journal: Journal | None = None
        self._storage: Storage | None = None
        self._cursor = ""
        self._saved = ""
        self._last_save = self._last_check = float("-inf")
        self._opened: tuple[int, int] | None = None
        self._unreadable: list[str] = []
        """Files and directories, with what is wrong with them."""
        self._opened_alone: set[tuple[int, int]] = set()
        self._begin_at_end = settings.start_at == "end"
        self._job: asyncio.Future[Any] | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._sometimes = Sometimes(context.clock, 60.0)
        self._truncated = self._damaged = 0
        ignore_case = settings.grep == settings.grep.lower()
        self._grep = regex.compile(("(?i)" if ignore_case else "") + settings.grep) if settings.grep else None
        metrics, label = context.metrics, {"receiver": context.id}
        self._dropped = metrics.counter("lockgate_journald_dropped_records", "records refused for good, or given up", **label)
        self._gaps = metrics.counter("lockgate_journald_gaps", "times that the entry behind the cursor was gone", **label)
        self._cut = metrics.counter("lockgate_journald_truncated_fields", "fields that were cut or left out for their length", **label)
        self._broken = metrics.counter("lockgate_journald_damaged_entries", "entries that could not be read to their end", **label)

    async def start(self) -> None:
        left: str | None = self.context.host.left.get(f"{self.context.kind.value}/{self.context.id}")
        if self.settings.storage:
            self._storage = self.context.host.extension(self.settings.storage).storage(f"{self.context.kind}/{self.context.id}")
            try:
                self._cursor = self._saved = ((await self.in_thread(self._storage.load)) or b"").decode()
            except (OSError, ValueError) as error:
                self._begin_at_end = False  # duplicates, not loss
                self.log.error("the cursor in storage %s cannot be used: %s; reading from the beginning", self.settings.storage, error)
        if left is not None:
            self._cursor, self._begin_at_end = left, False
        await self._open()
        self._reading = self.spawn(self._read(), "read")

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    # Reading.

    async def _read(self) -> None:
        try:
            while not self._stopping:
                more = False
                if self._journal is not None or await self._open():
                    more = await self._round()
                await self._save(now=False)
                if not more:
                    await self._wait()
        finally:
            self.context.host.left[f"{self.context.kind.value}/{self.context.id}"] = self._cursor
            await self._save(now=True)
            # A cancelled stop may leave a thread inside the journal: then it ends with the process.
            if self._journal is not None and (self._job is None or self._job.done()):
                self._journal.close()

    async def _in_journal(self, work: Callable[..., T], *arguments: Any) -> T:
        def run() -> T:
            with shrunk.survived():
                return work(*arguments)

        self._job = job = asyncio.ensure_future(self.in_thread(run))
        return await asyncio.shield(job)

    async def _round(self) -> bool:
        """Reads and hands on; whether more was waiting."""
        assert self._journal is not None
        try:
            found = await self._in_journal(self._collect, self._journal)
        except OSError as error:
            self._fail(f"cannot read the journal in {self.settings.where}: {error}")
            return False
        self._report()
        if found.count:
            batch = Batch(Signal.LOGS, found.payload, found.count, derived_id(self.context.id, found.first, found.last))
            context = self.context
            retry = self.settings.retry_on_failure
            if not await hand_on(batch, self.emit, retry, clock=context.clock, status=context.status, log=self.log):
                self._dropped.add(batch.count)
        self._cursor = found.last or self._cursor
        return found.more

    async def _open(self) -> bool:
        where = self.settings.where
        try:
            self._journal = await self._in_journal(self._open_at_cursor)
        except FileNotFoundError:
            self._begin_at_end = False  # what comes to be is new
            self.context.status.block(f"waiting for {where} to exist", "journal")
            if self._sometimes.now("missing") is not None:
                self.log.warning("there is no journal at %s; waiting for it", where)
            return False
        except OSError as error:
            path = next(iter(self.settings.files), where)
            self._fail(describe_unreadable(path, error))
            return False
        self.context.status.clear("journal")
        return True

    def _open_at_cursor(self) -> Journal:
        settings, where = self.settings, self.settings.where
        paths = settings.files or [where]
        for path in paths:
            os.stat(path)
            if not os.access(path, os.R_OK, effective_ids=True):
                raise PermissionError(13, os.strerror(13), path)
        journal = Journal(where, settings.files, settings.conditions())
        try:
            status = os.stat(paths[0])
            self._opened = (status.st_dev, status.st_ino)
            if self._cursor:
                self._seek(journal)
            elif self._begin_at_end:
                self._cursor = journal.seek_tail()
            else:
                journal.seek_head()
        except BaseException:
            journal.close()
            raise
        self._begin_at_end = False
        return journal

    def _seek(self, journal: Journal) -> None:
        try:
            found = journal.seek(self._cursor)
        except OSError as error:
            self.log.error("the saved cursor %r cannot be used: %s; the journal is read from its beginning", self._cursor[:200], error)
            journal.seek_head()
            return
        if not found:
            self._gaps.add()
            self.log.warning("the entry read last is not in %s any more; going on with the first behind it", self.settings.where)

    def _collect(self, journal: Journal) -> _Round:
        """A round of entries. In a thread."""
        self._check_files()
        journal.process()
        now = self.context.clock.time_unix_nano()
        records: list[bytes] = []
        size = looked = 0
        first = last = ""
        more = True
        while size < _ROUND_BYTES and looked < _ROUND_ENTRIES:
            if not journal.next():
                more = False
                break
            looked += 1
            last = journal.cursor
            fields = list(journal.fields())
            if self._grep is not None and not self._is_wanted(fields):
                continue
            first = first or last
            records.append(self._records.record(fields, last, *journal.times(), now))
            size += len(records[-1])
        journal.check()
        return _Round(self._records.request(records), len(records), first, last, more)

    def _is_wanted(self, fields: list[bytes]) -> bool:
        assert self._grep is not None
        messages = (field[8:] for field in fields if field.startswith(b"MESSAGE="))
        return any(self._grep.search(message.decode("utf-8", "replace")) for message in messages)

    def _check_files(self) -> None:
        """Raises OSError where the directory is another one by now; finds files that libsystemd passes over in silence."""
        if (now := self.context.clock.monotonic()) - self._last_check < _LOOK_SECONDS:
            return
        paths = self.settings.files or [self.settings.where]
        status = os.stat(paths[0])
        if (status.st_dev, status.st_ino) != self._opened:
            raise OSError("it has been replaced by another; opening that")
        if self.settings.files or now - self._last_check < _PERMISSION_SECONDS:
            return
        self._last_check = now
        closed: list[OSError] = []  # directories
        problems: list[str] = []
        opened: set[tuple[int, int]] = set()
        for directory, _, names in os.walk(paths[0], onerror=closed.append):
            for path in (os.path.join(directory, name) for name in names if name.endswith(JOURNAL_FILES)):
                try:
                    opened.add(self._open_alone(path))
                except FileNotFoundError:
                    pass  # rotated away
                except PermissionError as error:
                    problems.append(describe_unreadable(path, error))
                except OSError as error:
                    problems.append(
                        f"cannot read {path}: {error}; it is damaged, or written by a systemd that is newer than libsystemd here"
                    )
        self._opened_alone = opened
        self._unreadable = [describe_unreadable(str(error.filename), error) for error in closed] + problems

    def _open_alone(self, path: str) -> tuple[int, int]:
        """Which file it is; raises OSError where it cannot be read, of which libsystemd says nothing where it is one of many."""
        status = os.stat(path)
        if (key := (status.st_dev, status.st_ino)) not in self._opened_alone:
            with open(path, "rb"), Journal("", [path], []):
                pass
        return key

    async def _wait(self) -> None:
        """Until the journal may have changed, but not without end."""
        self._wake.clear()
        if self._stopping:
            return
        loop, descriptor = asyncio.get_running_loop(), self._journal.descriptor if self._journal else -1
        if descriptor >= 0:
            loop.add_reader(descriptor, self._wake.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
        finally:
            if descriptor >= 0:
                loop.remove_reader(descriptor)

    async def _save(self, now: bool) -> None:
        if self._storage is None or self._cursor == self._saved:
            return
        if not now and self.context.clock.monotonic() - self._last_save < _SAVE_SECONDS:
            return
        self._last_save = self.context.clock.monotonic()
        cursor = self._cursor
        try:
            await self.in_thread(self._storage.save, cursor.encode())
        except OSError as error:
            reason = f"cannot save the cursor: {error}; a restart would read again from the last one saved"
            if "cursor" not in self.context.status.blocked:
                self.log.error("%s", reason)
            self.context.status.block(reason, "cursor")
        else:
            self._saved = cursor
            self.context.status.clear("cursor")

    # Telling.

    def _fail(self, reason: str) -> None:
        """The journal cannot be read; it is opened anew after a while."""
        self.context.status.block(reason, "journal")
        if self._sometimes.now(reason) is not None:
            self.log.error("%s", reason)
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _report(self) -> None:
        assert self._journal is not None
        self._cut.add(self._journal.truncated)
        self._broken.add(self._journal.damaged)
        if self._journal.damaged and self._sometimes.now("damaged") is not None:
            self.log.error("entries of the journal in %s are damaged; what can be read of them is sent", self.settings.where)
        self._journal.truncated = self._journal.damaged = 0
        if self._unreadable:
            more = f" (and {len(self._unreadable) - 1} more)" if len(self._unreadable) > 1 else ""
            self.context.status.block(self._unreadable[0] + more, "unreadable")
            if self._sometimes.now("unreadable") is not None:
                self.log.error("%s%s", self._unreadable[0], more)
        else:
            self.context.status.clear("unreadable")
