"""Rotated files that were not seen before, and known contents whose file is not there any more: often they are the same.

Contents are known by their first bytes, under any name and inside a .gz. Reads nothing but what it takes to know them.
"""

import os
from collections.abc import Callable

from msgspec import structs

from lockgate.tail.account import Account
from lockgate.tail.arrivals import Arrivals
from lockgate.tail.files import Files
from lockgate.tail.follow import ANCHOR_BYTES, Saved, identity_of, life_key, line_digest, parts_of
from lockgate.tail.known import Known
from lockgate.tail.open import Refused, status_of
from lockgate.tail.options import Options
from lockgate.tail.packed import Unpacked
from lockgate.tail.queued import Queued


class Recognition:
    """Finds out what a rotated file is, and has it followed if there is something to read."""

    def __init__(
        self,
        options: Options,
        files: Files,
        known: Known,
        arrivals: Arrivals,
        queued: Queued,
        account: Account,
        unix_nano: Callable[[], int],
        *,
        is_new: bool,
    ) -> None:
        self._options, self._files, self._known, self._arrivals = options, files, known, arrivals
        self._queued, self._account, self._unix_nano = queued, account, unix_nano
        self._is_new = is_new
        """Whether nothing is known of any process before this one."""

    def meet(self) -> bool:
        """Everything there is to meet, and what of it is gone; whether something must wait."""
        must_wait = False
        # What went may have been compressed since its directory was listed.
        self._arrivals.discovery.rescan({os.path.dirname(entry.real) for entry in self._known.orphans})
        strangers, self._arrivals.strangers = sorted(self._arrivals.strangers.items(), key=lambda item: (item[1], item[0])), {}
        adopted = len(self._files.opened)
        for path, log in strangers:
            if not self._meet(path, log):
                self._arrivals.strangers[path] = log
                must_wait = True
        if len(self._files.opened) != adopted:
            self._files.in_order()
        waiting = {os.path.dirname(path) for path in self._arrivals.strangers}
        orphans, self._known.orphans = self._known.orphans, []
        for entry in orphans:
            if os.path.dirname(entry.real) in waiting:
                self._known.orphans.append(entry)
                continue
            self._queued.take(entry.key)
            if entry.size > entry.position and not entry.done:
                self._account.lose(entry.size - entry.position, entry.path, "it was deleted or truncated before it was read to its end")
            elif not entry.done:
                self._account.lose(
                    0, entry.path, "it was deleted or truncated while nobody looked; what was written to it meanwhile is lost"
                )
        return must_wait

    def _meet(self, path: str, log: str) -> bool:
        """Find out what this rotated file is, and follow it if there is something to read; false where that must wait."""
        is_packed = path.endswith(".gz")
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            if (file := self._files.opened.get(identity)) is not None:
                self._files.rename(file, path, False)
                return True
            entry = self._known.saved.get(identity)
            if identity in self._options.own:
                return True
            # Under another name it may be another file, on an inode used again.
            if entry is not None and entry.packed == is_packed and entry.real == path and entry.has_nothing_for(status.st_size):
                return True
            if not self._files.make_room():
                return False
            descriptor, real = self._arrivals.roots.open(path)
        except FileNotFoundError:
            return True  # renamed again, or compressed: the other name tells
        except (OSError, Refused) as error:
            self._account.unreadable(path, error)
            return True
        self._account.readable(path)
        unpacked = Unpacked(descriptor) if is_packed else None
        if not self._recognise(path, real, log, descriptor, unpacked):
            os.close(descriptor)
        return True

    def _recognise(self, path: str, real: str, log: str, descriptor: int, unpacked: Unpacked | None) -> bool:
        """Whether the open rotated file was adopted."""
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino

        def pread(size: int, position: int) -> bytes:
            return os.pread(descriptor, size, position) if unpacked is None else unpacked.pread(size, position)

        head = pread(self._options.fingerprint_bytes, 0)
        entry = self._known.saved.get(identity)
        if entry is not None and (entry.packed != (unpacked is not None) or not entry.is_of(head, pread)):
            self._known.orphan(entry)
            entry = None
        if entry is not None and entry.has_nothing_for(status.st_size):
            self._known.saved[identity] = structs.replace(entry, real=path)
            return False
        if entry is None and self._is_new and not self._arrivals.looked:
            # Nobody followed this log when it was rotated, and no pattern means what was.
            self._known.remember(self._left_out(path, log, head, status, descriptor, unpacked))
            return False
        if entry is None and head:
            directory = os.path.dirname(path) + "/"
            for file in self._files.opened.values():
                if file.real.startswith(directory) and file.pread_head(len(head)) == head:
                    file.copy = path, status
                    return False
            entry = self._content_elsewhere(directory, head, pread)
            if entry is not None and unpacked is None and status_of(entry.real, (entry.device, entry.inode)) is not None:
                return False  # a copy of what stands elsewhere
            if entry is not None:
                if entry in self._known.orphans:
                    self._known.orphans.remove(entry)
                else:
                    self._known.forget(entry)
                more, shorter = bool(pread(1, entry.position)), not pread(1, entry.position - 1) if entry.position else False
                entry = structs.replace(entry.moved_to(path, status), done=shorter or (entry.done and (entry.packed or not more)))
                if entry.done and not entry.again:
                    self._known.remember(entry)
                    return False
        if (
            (entry is None or not entry.key)
            and unpacked is not None
            and (key := self._queued.key_of(line_digest(head.partition(b"\n")[0]))) is not None
        ):
            entry = Saved(key, *identity, log, path, 0, False, b"", identity_of(head), 0, parts_of(key)[2], True)
            # It had no content yet when its position was saved, and a key begins with its file.
            orphans = self._known.orphans
            self._known.orphans = [it for it in orphans if it.key or not key.startswith(f"{it.device:x}-{it.inode:x}-")]
        if entry is None:
            if self._options.is_too_old(status, self._unix_nano):
                self._known.remember(self._left_out(path, log, head, status, descriptor, unpacked))
                return False
            self._account.counts.found += 1
        self._arrivals.adopt(path, real, descriptor, False, log=log, entry=entry, unpacked=unpacked)
        if unpacked is not None:
            unpacked.pause()
        return True

    def _content_elsewhere(self, directory: str, head: bytes, pread: Callable[[int, int], bytes]) -> Saved | None:
        """What is known of this content under another identity."""
        known = [
            entry
            for entry in [*self._known.orphans, *self._known.saved.values()]
            if entry.key and entry.first[0] and entry.real.startswith(directory) and entry.begins_as(head)
        ]
        exact = next((entry for entry in known if entry.ends_as(pread)), None)
        # Lines that its last writer wrote after it was compressed were read from the descriptor (test_05).
        return exact or next((entry for entry in known if not pread(1, entry.position - 1)), None)

    def _left_out(self, path: str, log: str, head: bytes, status: os.stat_result, descriptor: int, unpacked: Unpacked | None) -> Saved:
        """An entry that says of a file that there is nothing to read."""
        size = 0 if unpacked is not None else status.st_size
        anchor = os.pread(descriptor, min(ANCHOR_BYTES, size), max(0, size - ANCHOR_BYTES))
        key = life_key(status.st_dev, status.st_ino, head.partition(b"\n")[0], 0)
        first = identity_of(head)
        return Saved(key, status.st_dev, status.st_ino, log, path, size, False, anchor, first, size, 0, unpacked is not None, True)

    def forget_queued(self) -> None:
        """Lives that a queue holds something of, and that nothing else is known of: read by a process that was killed, and gone."""
        known = {entry.key for entry in self._known.saved.values()}
        for key in sorted(self._queued.keys - known):
            self._account.lose(0, key, "it was read by the process before this one, and is gone")
        self._queued.forget()
