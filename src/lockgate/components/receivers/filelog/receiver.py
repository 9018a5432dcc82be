"""Runs the tailer: settings in, batches out, and what happened as metrics and status."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from lockgate.batch import Origin, Signal
from lockgate.components.receivers.filelog.parsers import make_parser, pod_attributes
from lockgate.components.receivers.filelog.settings import FilelogSettings
from lockgate.kit.ranges import Ranges
from lockgate.pipeline.contract import Context, Receiver, Storage, Waiting, component
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.ledger import Chosen, Place, Sources
from lockgate.tail.follow import Parser
from lockgate.tail.options import Options
from lockgate.tail.rounds import Checkpoint, Rounds, decode
from lockgate.tail.tailer import Tailer

_SPARE_DESCRIPTORS = 256
"""For sockets, the queue and everything else."""


@component("filelog", FilelogSettings, signals={Signal.LOGS})
class FilelogReceiver(Receiver[FilelogSettings]):
    """Follows files; a position passes a record only when the pipeline has taken it."""

    def __init__(self, settings: FilelogSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._tailer: Tailer | None = None
        self._rounds: Rounds | None = None

    async def start(self) -> None:
        settings, context = self.settings, self.context
        storage: Storage | None = None
        if settings.storage:
            storage = context.host.extension(settings.storage).storage(f"{context.kind}/{context.id}")
        left: Checkpoint | None = context.host.left.get(self._key)
        saved = left if left is not None else await self._load(storage) if storage is not None else Checkpoint(0)
        held = context.host.held(context.id)
        # What cannot be known is read again: duplicates, not loss. What came to be while nobody looked is new.
        known = () if saved is None else saved.files if saved.version else None

        def parser(path: str, real: str, descriptor: int) -> Parser:
            return make_parser(settings, path, real, descriptor)

        operator = settings.operators[0] if settings.operators else None
        options = Options(
            include=tuple(settings.include),
            exclude=(*settings.exclude, *own_pod_patterns(os.environ, socket.gethostname())),
            link_roots=tuple(settings.symlink_roots),
            start_at_end=settings.start_at == "end",
            exclude_older_than_seconds=settings.exclude_older_than,
            poll_seconds=settings.poll_interval,
            fingerprint_bytes=settings.fingerprint_size,
            max_record_bytes=operator.max_log_size if operator else settings.max_log_size,
            max_files=self._max_files(),
            max_deleted_bytes=settings.max_deleted_size,
            flush_seconds=settings.flush_seconds,
            inotify=settings.inotify,
            own=own_output(),
        )
        self._tailer = Tailer(
            options,
            parser,
            known,
            gaps=saved.gaps if saved is not None else (),
            durable=_by_key(held.durable),
            lost=_by_key(held.lost),
            monotonic=context.clock.monotonic,
            unix_nano=context.clock.time_unix_nano,
        )
        if self._tailer.unwatched and settings.inotify:
            self.log.warning("%s", self._tailer.unwatched)
        self._rounds = Rounds(
            self._tailer,
            self.emit,
            self.spawn,
            context.host.executor,
            owner=context.id,
            storage=storage,
            saved=partial(context.host.saved, context.id),
            clock=context.clock,
            status=context.status,
            log=self.log,
            retry=settings.retry_on_failure,
        )
        self._observe(self._tailer, self._rounds)
        await self._rounds.start()

    async def stop(self) -> None:
        if self._rounds is not None:
            try:
                await self._rounds.stop()
            finally:
                if self._rounds.left is not None:
                    self.context.host.left[self._key] = self._rounds.left

    @property
    def _key(self) -> str:
        return f"{self.context.kind.value}/{self.context.id}"

    def give_back(self, origins: Sequence[Origin]) -> None:
        if self._rounds is not None:
            self._rounds.give_back(origins)

    def waiting(self) -> Iterator[Waiting]:
        yield from super().waiting()
        if self._rounds is not None:
            yield from self._rounds.waiting()

    async def sources(self, chosen: Chosen) -> Sources | None:
        def place(path: str, real: str) -> Place | None:
            found = place_of(path) or place_of(real) or Place()
            return found if chosen.matches(found) else None

        if self._rounds is None or not self.running:
            raise Retryable(f"receiver {self.context.id} is not running")
        return await self._rounds.look_at(place)

    async def _load(self, storage: Storage) -> Checkpoint | None:
        """The saved positions; None where they cannot be read."""
        try:
            return decode(await self.in_thread(storage.load))
        except (OSError, ValueError) as error:
            self.log.error(
                "positions in storage %s cannot be used: %s; files are read again from their beginning", self.settings.storage, error
            )
            return None

    def _max_files(self) -> int:
        """max_concurrent_files, as far as the system lets us; the soft limit is raised to the hard one."""
        wanted = self.settings.max_concurrent_files
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and wanted > hard - _SPARE_DESCRIPTORS:
            allowed = max(16, hard - _SPARE_DESCRIPTORS)
            self.log.warning("max_concurrent_files is %d, but this process may open %d files; using %d", wanted, hard, allowed)
            wanted = allowed
        need = wanted + _SPARE_DESCRIPTORS
        if soft != resource.RLIM_INFINITY and soft < need:
            resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))
        return wanted

    def _observe(self, tailer: Tailer, rounds: Rounds) -> None:
        metrics, counts, label = self.context.metrics, tailer.counts, {"receiver": self.context.id}
        metrics.observe("otelcol_fileconsumer_open_files", "files open", lambda: tailer.open_files, **label)
        metrics.observe("otelcol_fileconsumer_reading_files", "files that have something to read", lambda: tailer.ready_files, **label)
        metrics.observe("lockgate_filelog_pending_lines", "lines read that wait to be joined", lambda: tailer.pending_lines, **label)
        metrics.observe("lockgate_filelog_bytes_under_way", "payload bytes read and not yet taken", lambda: rounds.bytes_under_way, **label)
        for name, help, read in (
            ("malformed_lines", "lines in no known format, sent on as they are", lambda: counts.malformed),
            ("truncated_records", "records cut at max_log_size", lambda: counts.truncated),
            ("unfinished_records", "joined records given out without their last part", lambda: counts.unfinished),
            ("rotations", "files renamed while followed", lambda: counts.rotations),
            ("truncations", "files truncated while followed", lambda: counts.truncations),
            ("gaps", "times that bytes were gone before they were read", lambda: counts.gaps),
            (
                "unknown_ends",
                "files that went while nobody looked, read perhaps not to their end",
                lambda: counts.unknown,
            ),
            ("rotated_files_found", "rotated or compressed files read that were not followed before", lambda: counts.found),
            ("lost_bytes", "bytes known to be gone before they were read, the least it can have been", lambda: counts.lost_bytes),
            ("refused_files", "files not opened: links out of the roots, or not regular", lambda: counts.refused),
            ("inotify_overflows", "times the kernel's event queue was full, and everything was looked at again", lambda: counts.overflows),
            ("dropped_records", "records refused for good, or given up", lambda: rounds.dropped),
        ):
            metrics.observe(f"lockgate_filelog_{name}", help, read, kind="counter", **label)


def place_of(path: str) -> Place | None:
    """The container whose log this is, also one that was rotated."""
    found = pod_attributes(path) or pod_attributes(path.rpartition("/")[0] + "/0.log")
    if not found:
        return None
    return Place(*(found[f"k8s.{key}"] for key in ("namespace.name", "pod.name", "pod.uid", "container.name")))


def _by_key(sources: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """By what names a source in its receiver, from what names it in the program."""
    return {source.rpartition(":")[2]: ranges for source, ranges in sources.items()}


def own_output() -> frozenset[tuple[int, int]]:
    """The files that this program writes its own log to: following them would feed on itself."""
    found = set()
    for descriptor in (1, 2):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def own_pod_patterns(environment: Mapping[str, str], hostname: str) -> tuple[str, ...]:
    """Excludes the log of this very pod: in a pod our output is a pipe, and only the path tells whose the file is.

    By LOCKGATE_POD_UID (the downward API's metadata.uid) where it is set, else by the host name, which is the pod's name unless the pod
    uses the host's network.
    """
    return tuple(_own_pod_patterns(environment, hostname))


def _own_pod_patterns(environment: Mapping[str, str], hostname: str) -> Iterator[str]:
    if uid := _plain(environment.get("LOCKGATE_POD_UID", "")):
        yield f"/**/*_{uid}/**"
    if "KUBERNETES_SERVICE_HOST" in environment and (name := _plain(hostname)):
        if not uid:
            yield f"/**/*_{name}_*/**"
        yield f"/**/{name}_*_*-*.log"


def _plain(text: str) -> str:
    return text if text.replace("-", "").replace(".", "").isalnum() else ""
