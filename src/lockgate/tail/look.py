"""When to look at what: at what inotify told, at all names, at all sizes, at files that leave or are quiet. Leaves reading to others."""

import os
from collections.abc import Callable

from msgspec import structs

from lockgate.tail.account import Account
from lockgate.tail.arrivals import Arrivals
from lockgate.tail.files import Files
from lockgate.tail.known import Known
from lockgate.tail.open import status_of
from lockgate.tail.options import Options
from lockgate.tail.packed import unpacked_size
from lockgate.tail.queued import Queued
from lockgate.tail.recognition import Recognition

_SWEEP_SECONDS = 10.0
"""How often everything is looked at although inotify works: the bound on what a lost event costs."""
_LEAVING_SECONDS = 1.0
_SCAN_SHARE = 0.01
"""The most of a core that looking at directories may take; polling a thousand directories costs some 30 ms."""


class Look:
    """Makes files ready to be read."""

    def __init__(
        self,
        options: Options,
        files: Files,
        known: Known,
        arrivals: Arrivals,
        recognition: Recognition,
        queued: Queued,
        account: Account,
        monotonic: Callable[[], float],
    ) -> None:
        self._options, self._files, self._known, self._arrivals, self._recognition = options, files, known, arrivals, recognition
        self._queued, self._account, self._monotonic = queued, account, monotonic
        self._next_scan = self._next_sweep = self._next_leaving = 0.0

    def next(self) -> float:
        """When (monotonic) the next call is due although nothing is reported."""
        due = [self._next_sweep, self._next_scan]
        if self._files.unfinished and self._options.flush_seconds:
            due.append(min(file.quiet_since for file in self._files.unfinished) + self._options.flush_seconds)
        if self._files.leaving:
            due.append(self._next_leaving)
        return min(due)

    def look(self) -> None:
        """Look at what is due."""
        now = self._monotonic()
        changes = self._arrivals.discovery.drain()
        everything = changes.overflow or now >= self._next_sweep
        if changes.overflow:
            self._account.counts.overflows += 1
        for directory, name in changes.modified:
            if (file := self._files.by_name.get(f"{directory.rstrip('/')}/{name}")) is not None:
                self._files.ready[file] = None
            else:
                changes.directories.add(directory)
        if now >= self._next_scan or changes.overflow:
            self._scan(now)
        elif changes.directories:
            self._arrivals.discovery.rescan(changes.directories)
        for old, new in changes.moved:
            self._arrivals.moved(old, new)
        if everything:
            self._files.check_sizes(self._files.opened.values())
            self._next_sweep = now + _SWEEP_SECONDS
        elif self._arrivals.discovery.descriptor < 0:
            self._files.poll_sizes()
        if self._arrivals.strangers or self._known.orphans:
            self._meet()
        if not self._arrivals.looked:
            self._arrivals.looked = True
            self._files.in_order()
            self._queued.take_lost()
        if everything and self._arrivals.has_seen_all and self._queued.keys:
            self._recognition.forget_queued()
        if self._files.leaving and now >= self._next_leaving:
            self._next_leaving = now + min(_LEAVING_SECONDS, self._options.linger_seconds)
            self._check_leaving(now)
            self._let_go_of_deleted()
        if self._files.unfinished and self._options.flush_seconds:
            for file in self._files.unfinished:
                if now - file.quiet_since >= self._options.flush_seconds:
                    self._files.ready[file] = None

    def _scan(self, now: float) -> None:
        self._account.counts.scans += 1
        self._arrivals.waiting = 0
        self._account.begin_look()
        self._arrivals.discovery.scan()
        if not self._arrivals.looked:
            self._arrivals.from_start = True
            for directory in sorted({os.path.dirname(path) for entry in self._known.saved.values() for path in (entry.real, entry.path)}):
                self._arrivals.discovery.look_in(directory)
        self._arrivals.check_saved()
        pause = self._options.poll_seconds if self._arrivals.discovery.descriptor < 0 else _SWEEP_SECONDS
        if self._arrivals.discovery.missing or self._arrivals.waiting_files:
            pause = min(pause, 1.0)
        # The first look opens everything, which says nothing of the cost of the next.
        cost = self._monotonic() - now if self._account.counts.scans > 1 else 0.0
        self._next_scan = now + max(pause, min(cost / _SCAN_SHARE, _SWEEP_SECONDS))

    def _meet(self) -> None:
        if self._recognition.meet():
            self._next_scan = min(self._next_scan, self._monotonic() + 1.0)

    def _check_leaving(self, now: float) -> None:
        """Rotated files are drained, and let go when nothing more came for a while."""
        for file in list(self._files.leaving):
            self._files.check_sizes([file])
            if file in self._files.ready or now - file.quiet_since < self._options.linger_seconds:
                continue
            if file.unread and (file.life is not None or file.size):
                self._files.ready[file] = None  # the reader sees that it is leaving, and gives everything out
            elif file.life is None or file.life.settled:
                keep = os.fstat(file.descriptor).st_nlink > 0
                if not keep and file.copy is None:
                    # It may have been compressed just behind our look.
                    self._arrivals.discovery.rescan([os.path.dirname(file.real)])
                    self._meet()
                self._files.close(file, keep=keep)

    def _let_go_of_deleted(self) -> None:
        """Deleted files that wait to be read take space that their owner thinks free: beyond a bound the oldest are a gap."""
        kept = 0
        for file in reversed(list(self._files.leaving)):
            status = os.fstat(file.descriptor)
            if status.st_nlink or file.life is None or not file.life.settled:
                continue
            size = status.st_size if file.unpacked is None else unpacked_size(file.descriptor, status.st_size)
            unread = max(0, size - file.life.read)
            kept += unread
            if kept <= self._options.max_deleted_bytes or not unread:
                continue
            path, copy = file.copy or ("", None)
            entry = structs.replace(file.saved(), size=size)
            self._files.let_go(file)
            if copy is not None and status_of(path, (copy.st_dev, copy.st_ino)) is not None:
                self._known.remember(entry.moved_to(path, copy))  # its content is still there, compressed
            else:
                self._account.lose(unread, file.path, "it was deleted, and more than max_deleted_size of deleted files waited to be read")
