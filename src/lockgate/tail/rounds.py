"""The asynchronous half of following files: pace, delivery, acknowledgement, checkpoints.

A round is one job in a thread that reads every ready file into one batch with many origins. A batch processor behind a batch per file
was tried first: holding callers for a time-out cost latency (p99 of 824 against 108 ms), or stood still.

Pace: a line after quiet is read at once; then a round at most every `poll_seconds`, unless a round left something behind. Several rounds
may be under way, bounded in number and in bytes from read to taken. A refused round is offered again, the same bytes, after a while;
positions pass it only when it is taken.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import msgspec

from lockgate.batch import Batch, Origin, Signal, derived_id
from lockgate.kit.clock import Clock
from lockgate.pipeline.contract import Status, Storage, Waiting
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.ledger import Gap, Place, Source, Sources
from lockgate.pipeline.retry import RetryOnFailure, hand_on
from lockgate.tail.follow import Saved
from lockgate.tail.reading import Round
from lockgate.tail.tailer import Tailer

_MAX_NAMED_PROBLEMS = 20
_ROUND_BYTES = 2 << 20
_ROUND_RECORDS = 8192
_MAX_ROUNDS = 8
_MAX_BYTES = 32 << 20
"""Payload bytes from read to taken."""
_SAVE_SECONDS = 1.0
READ_SECONDS = 30.0
"""After so long a round of reading is said to hang; one reads some MB. A guess."""
LOOK_SECONDS = 5.0
"""How long the ledger waits for a thread that reads."""
_BLOCKED_SECONDS = 1.0
"""How often is looked while nothing may be read. A kubelet, which looks every ten seconds, deletes a file after several rotations."""


class Rounds:
    """Reads, hands on, remembers. Made with a tailer that nobody else uses."""

    def __init__(
        self,
        tailer: Tailer,
        emit: Callable[[Batch], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, Any], str], Any],
        executor: Executor,
        *,
        owner: str,
        storage: Storage | None,
        saved: Callable[[Mapping[str, int], Mapping[str, str]], None] = lambda positions, groups: None,
        clock: Clock,
        status: Status,
        log: logging.Logger,
        retry: RetryOnFailure,
    ) -> None:
        self._owner = owner
        self._tailer, self._emit, self._spawn, self._executor = tailer, emit, spawn, executor
        self._storage, self._clock, self._status, self._log = storage, clock, status, log
        self._retry = retry
        self._saved_positions = saved
        self._given_back: list[tuple[str, int, int]] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Condition()
        self._using = asyncio.Lock()
        """Held while a thread works with the tailer."""
        self._job: asyncio.Future[Any] | None = None
        self._job_since = 0.0
        self._stopping = False
        self._reading: asyncio.Task[None] | None = None
        self._named: set[str] = set()
        self._changed = False
        self._groups: dict[str, str] = {}
        """The directory of each source that was known when positions were saved last."""
        self._under_way: dict[int, tuple[Origin, ...]] = {}
        self._looking: asyncio.Future[list[Source]] | None = None
        self.left: Checkpoint | None = None
        """Once stopped: where to go on."""
        self.rounds_under_way = 0
        self.bytes_under_way = 0
        self.dropped = 0
        """Records refused for good, or given up."""

    async def start(self) -> None:
        """Looks once, so that what cannot be read is known before anything runs; then reads in the background."""
        try:
            self._groups = self._groups_of(self._tailer.snapshot())
            found = await self._collect()
            # Which files are there is known before anything of them is delivered, and so what is new after a kill.
            await self._save_now()
            await self._deliver_soon(found)
        except BaseException:
            self._close()
            raise
        self._reading = self._spawn(self._read(), "read")
        self._spawn(self._keep_saving(), "checkpoints")

    async def stop(self) -> None:
        """Stops reading, waits for what is under way, saves. Cancelled, it saves what was taken until then."""
        self._stopping = True
        self._wake.set()
        async with self._room:
            self._room.notify_all()
        try:
            if self._reading is not None:
                await asyncio.wait([self._reading])
            async with self._room:
                await self._room.wait_for(lambda: not self.rounds_under_way)
        finally:
            self._remove_reader()
            if self._is_free:
                self._tailer.give_back(self._given_back)
                entries = self._tailer.snapshot()
                self.left = Checkpoint(1, entries, list(self._tailer.gaps.values()))
                self._tell_saved(entries, self._save(entries))
            self._close()

    @property
    def _is_free(self) -> bool:
        """Whether no thread uses the tailer; after a stop that was cancelled one may."""
        return self._job is None or self._job.done()

    def _close(self) -> None:
        if self._is_free:
            self._tailer.close()
        elif self._job is not None:
            self._job.add_done_callback(lambda _: self._tailer.close())

    def give_back(self, origins: Iterable[Origin]) -> None:
        """A queue lost these ranges: they are read again."""
        self._given_back.extend((origin.source.rpartition(":")[2], origin.start, origin.end) for origin in origins)
        self._wake.set()

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def _with_tailer(self, work: Callable[..., Any], *arguments: Any) -> Any:
        async with self._using:
            self._job_since = self._clock.monotonic()
            self._job = asyncio.ensure_future(self._in_thread(work, *arguments))
            return await asyncio.shield(self._job)

    def waiting(self) -> Iterator[Waiting]:
        """See `Component.waiting`."""
        if self._job is not None and not self._job.done():
            text = f"the disk: reading {self._tailer.at or 'directories'} does not return"
            yield Waiting(text, self._job_since, READ_SECONDS)

    # Reading.

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began = loop.time()
            found = await self._collect()
            await self._deliver_soon(found)
            while not await self._has_room():
                await self._with_tailer(self._tailer.look)
                self._report()
            if not found.more:
                await self._wait(began)

    async def _has_room(self) -> bool:
        """Waits until another round may be under way; False where that takes long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BLOCKED_SECONDS), self._room:
                await self._room.wait_for(
                    lambda: self._stopping or (self.rounds_under_way < _MAX_ROUNDS and self.bytes_under_way < _MAX_BYTES)
                )
                return True
        return False

    async def _wait(self, began: float) -> None:
        """Until something is to be read, and not before the pace allows."""
        loop = asyncio.get_running_loop()
        poll = self._tailer.options.poll_seconds
        due = max(0.0, self._tailer.next_look() - self._clock.monotonic())
        self._wake.clear()
        if self._stopping or self._given_back:
            return
        watching = self._watch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(due if watching else min(due, poll)):
                await self._wake.wait()
        self._remove_reader()
        rest = began + poll - loop.time()
        if rest > 0 and not self._stopping:
            # Not waiting for the descriptor: events gather while we rest.
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._wake.wait()

    def _watch(self) -> bool:
        self._watched = self._tailer.descriptor
        if self._watched < 0:
            return False
        asyncio.get_running_loop().add_reader(self._watched, self._wake.set)
        return True

    _watched = -1

    def _remove_reader(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    async def _collect(self) -> Round:
        back, self._given_back = self._given_back, []

        def collect() -> Round:
            self._tailer.give_back(back)
            return self._tailer.collect(_ROUND_BYTES, _ROUND_RECORDS)

        found: Round = await self._with_tailer(collect)
        self._report()
        return found

    # Delivering.

    async def _deliver_soon(self, found: Round) -> None:
        for range_ in found.passed:
            range_.take()
        self._changed = self._changed or bool(found.passed or found.ranges)
        if not found.ranges:
            return
        if not found.records:
            for range_ in found.ranges:
                range_.take()
            return
        origins = tuple(
            Origin(f"{self._owner}:{range_.life.key}", range_.start, range_.end, range_.lines, range_.records) for range_ in found.ranges
        )
        batch_id = derived_id(*(f"{origin.source}:{origin.start}-{origin.end}" for origin in origins))
        batch = Batch(Signal.LOGS, b"".join(found.payloads), found.records, batch_id, origins=origins)
        found.payloads.clear()
        self.rounds_under_way += 1
        self.bytes_under_way += len(batch.payload)
        self._under_way[id(found)] = origins
        self._spawn(self._deliver(found, batch), "deliver")

    async def _deliver(self, found: Round, batch: Batch) -> None:
        try:
            if not await hand_on(batch, self._emit, self._retry, clock=self._clock, status=self._status, log=self._log):
                self.dropped += batch.count
            for range_ in found.ranges:
                range_.take()
            self._changed = True
        finally:
            del self._under_way[id(found)]
            async with self._room:
                self.rounds_under_way -= 1
                self.bytes_under_way -= len(batch.payload)
                self._room.notify_all()

    # Telling.

    def _report(self) -> None:
        """What cannot be read goes to the log once, and into the status as long as it lasts; what was lost, to the log."""
        while self._tailer.losses:
            self._changed = True
            self._log.error("%s", self._tailer.losses.popleft())
        problems = self._tailer.problems
        gone = self._named - problems.keys()
        for path in gone:
            self._status.clear(path)
        self._named -= gone
        for path in problems.keys() - self._named:
            if len(self._named) >= _MAX_NAMED_PROBLEMS:
                break
            self._log.error("%s", problems[path])
            self._status.block(problems[path], path)
            self._named.add(path)
        if len(problems) > len(self._named):
            self._status.block(f"{len(problems) - len(self._named)} more files or directories cannot be read", "unreadable")
        else:
            self._status.clear("unreadable")
        if missing := sorted(self._tailer.missing - problems.keys()):
            self._status.block(f"waiting for {', '.join(missing)} to exist", "missing")
        else:
            self._status.clear("missing")
        if self._tailer.waiting_files:
            self._status.block(f"{self._tailer.waiting_files} files wait, because max_concurrent_files are open and busy", "waiting")
        else:
            self._status.clear("waiting")

    async def look_at(self, place: Callable[[str, str], Place | None]) -> Sources:
        """See `Receiver.sources`. Raises Retryable where a reading thread does not return."""
        if self._looking is not None and not self._looking.done():
            raise Retryable("files cannot be looked at now: a look at them does not return")
        self._looking = self._spawn(self._with_tailer(self._tailer.look_at, place), "look")
        done, _ = await asyncio.wait({self._looking}, timeout=LOOK_SECONDS)
        if not done:
            raise Retryable("files cannot be looked at now: reading them does not return")
        found = Sources(
            self._looking.result(),
            under_way=[origin for origins in self._under_way.values() for origin in origins],
            dropped=self.dropped,
            waiting_files=self._tailer.waiting_files,
        )
        for source in found.sources:
            source.id = f"{self._owner}:{source.id}" if source.id else ""
        for gap in list(self._tailer.gaps.values()):
            if (where := place(gap.path, gap.path)) is not None:
                found.gaps.append((where, gap))
        return found

    # Remembering.

    async def _keep_saving(self) -> None:
        while True:
            await self._clock.sleep(_SAVE_SECONDS)
            if not self._changed or self._stopping:
                continue
            await self._save_now()

    async def _save_now(self) -> None:
        self._changed = False
        entries: list[Saved] = await self._with_tailer(self._tailer.snapshot)
        self._tell_saved(entries, await self._in_thread(self._save, entries))

    def _tell_saved(self, entries: list[Saved], is_saved: bool) -> None:
        """Queues need not remember what is saved here; without a storage nothing is, but what is gone is."""
        if is_saved or self._storage is None:
            positions = {f"{self._owner}:{entry.key}": entry.position if is_saved else 0 for entry in entries if entry.key}
            groups = self._groups_of(entries)
            self._saved_positions(positions, self._groups | groups)
            self._groups = groups

    def _groups_of(self, entries: list[Saved]) -> dict[str, str]:
        return {f"{self._owner}:{entry.key}": os.path.dirname(entry.real) for entry in entries if entry.key}

    def _save(self, entries: list[Saved]) -> bool:
        if self._storage is None:
            return False
        try:
            self._storage.save(encode(entries, list(self._tailer.gaps.values())))
        except OSError as error:
            self._changed = True
            reason = f"cannot save positions: {error}; a restart would read again from the last ones saved"
            if "checkpoint" not in self._status.blocked:
                self._log.error("%s", reason)
            self._status.block(reason, "checkpoint")
            return False
        self._status.clear("checkpoint")
        return True


class Checkpoint(msgspec.Struct):
    """What is stored."""

    version: int = 1
    """0 where nothing was stored yet, which is the first start; a first start that found no file stores 1."""
    files: list[Saved] = []
    gaps: list[Gap] = []


def encode(entries: list[Saved], gaps: list[Gap]) -> bytes:
    """Positions and gaps as they are stored."""
    return msgspec.msgpack.encode(Checkpoint(1, entries, gaps))


def decode(content: bytes | None) -> Checkpoint:
    """What `encode` made; raises ValueError for anything else."""
    if content is None:
        return Checkpoint(0)
    try:
        checkpoint = msgspec.msgpack.decode(content, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise ValueError(f"is no checkpoint of file positions: {error}") from error
    if checkpoint.version != 1:
        raise ValueError(f"is a checkpoint of version {checkpoint.version}; this program knows version 1")
    return checkpoint
