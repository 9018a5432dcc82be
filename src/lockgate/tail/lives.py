"""Which content an open file holds: it is given its life by its first line, and another one when it is truncated.

Knows what checkpoint and queues say of lives; not how files are found, nor what is read of them.
"""

import os
import sys

from lockgate.kit.ranges import Ranges
from lockgate.tail.account import Account
from lockgate.tail.files import Files
from lockgate.tail.follow import NOTHING_READ, Followed, Life, Saved, begins, identity_of, life_key, parts_of
from lockgate.tail.known import Known
from lockgate.tail.options import Options
from lockgate.tail.queued import Again, Queued


class Lives:
    """Begins and ends them."""

    def __init__(self, options: Options, files: Files, known: Known, account: Account, queued: Queued, again: Again) -> None:
        self._options, self._files, self._known, self._account = options, files, known, account
        self._queued, self._again = queued, again

    def identify(self, file: Followed, size: int, force: bool = False, entry: Saved | None = None) -> None:
        """Give the file its life, as soon as its first line, or enough of it, is there."""
        content = file.pread(self._options.fingerprint_bytes, 0)
        if not begins(file.first, content):
            self.truncated(file, size)
            file.size = size
        line, newline, _ = content.partition(b"\n")
        is_whole = bool(newline) or force or len(content) == self._options.fingerprint_bytes
        known, least = self._known.saved.get(file.identity), ""
        if known is not None and (is_whole or (file.unpacked is None and size < max(known.position, known.first[0]))):
            entry = entry or (known if known.is_of(content, file.pread) else None)
            if entry is not None:
                self._known.forget(known)
            else:
                self._known.orphan(known)
                file.number, least = known.lives + bool(known.key), known.key
                if not file.matched and not file.name.startswith((known.path, known.real)):
                    self._files.close(file, keep=False)  # somebody else's file, on an inode used again; not a rotated one of this log
                    return
        if not is_whole or (not content and file.unpacked is None):
            file.first = identity_of(content)
            return
        if entry is not None and entry.key:
            file.life = Life(entry.key, entry.lives)
            file.first = entry.first if file.unpacked is None else identity_of(content)
            file.size = max(entry.position, min(entry.size, size)) if file.unpacked is None else entry.position
        else:
            file.life = self._new_life(file, line if newline or len(content) == self._options.fingerprint_bytes else b"", least)
            file.first = identity_of(content)
        if file.unpacked is not None:
            self._known.packed_keys.add(file.life.key)
        self._resume(file, entry if entry is not None and entry.key else None)

    def _new_life(self, file: Followed, line: bytes, least: str) -> Life:
        """A life of this file, whose first line is known or does not end; `least`: the key of what stood there before, if anything did."""
        for first in (line, b""):  # perhaps the line had not ended when a process before this one gave it out
            base = life_key(file.device, file.inode, first, 0)
            at_least = file.number if base == parts_of(least)[0] else 0
            number = self._queued.number(base, at_least, lambda end: not end or bool(file.pread(1, end - 1)))
            if number is not None:
                return Life(life_key(file.device, file.inode, first, number), number)
        # Two contents never share a key, whatever they begin with.
        number = file.number
        while (key := life_key(file.device, file.inode, line, number)) in self._known.packed_keys:
            number += 1
        return Life(key, number)

    def _resume(self, file: Followed, entry: Saved | None) -> None:
        """Begin where the checkpoint and the queues say."""
        life = file.life
        assert life is not None
        position, skipping, anchor = (entry.position, entry.skipping, entry.anchor) if entry is not None else (0, False, b"")
        durable = self._queued.take(life.key)
        if durable and not file.pread(1, durable.end - 1):
            durable = Ranges()  # the content that a queue holds of it is not this one, or not any more
        if (reach := durable.reach(position)) > position:
            position, anchor = reach, file.anchor(reach)
            skipping = self.is_in_cut_line(file, reach, anchor)
            file.size = max(file.size, position)
        life.start_at(position, skipping, anchor)
        life.islands = tuple((start, end) for start, end in durable if start > position)
        self._again.drop(life.key, position, sys.maxsize)  # what is ahead is read anyway

    def truncated(self, file: Followed, size: int) -> None:
        """The file was cut under us (copytruncate): what was not read is lost, and counted; what stands there now is another life."""
        life = file.life
        self._account.counts.truncations += 1
        read = life.read if life is not None else 0
        if file.size > read:
            self._account.lose(file.size - read, file.path, "it was truncated before it was read to its end")
        file.size, file.unread, file.chunk_bytes = 0, False, 0
        file.first = NOTHING_READ
        self._files.unfinished.pop(file, None)
        if life is None:
            return
        # A writer without O_APPEND leaves a hole where its old bytes were.
        try:
            start = os.lseek(file.descriptor, 0, os.SEEK_DATA)
        except OSError:
            start = 0
        line, newline, _ = os.pread(file.descriptor, self._options.fingerprint_bytes, start).lstrip(b"\0").partition(b"\n")
        file.number = life.number + 1
        self._files.ready[file] = None
        if not newline and not start:
            file.life = None  # until its first line is there
            return
        file.life = Life(life_key(file.device, file.inode, line, life.number + 1), life.number + 1)
        if 0 < start < size:
            head = os.pread(file.descriptor, 1 << 16, start)
            file.life.start_at(start + len(head) - len(head.lstrip(b"\0")), False, b"")
        file.first = identity_of(os.pread(file.descriptor, self._options.fingerprint_bytes, 0))

    def is_in_cut_line(self, file: Followed, position: int, anchor: bytes) -> bool:
        """Whether the position is inside a line that was cut at its limit; what follows of it is dropped."""
        if anchor[-1:] == b"\n" or position < self._options.max_record_bytes:
            return False
        size = min(position, self._options.max_chunk_bytes)
        return b"\n" not in file.pread(size, position - size)

    def cross(self, file: Followed, life: Life) -> tuple[int, int]:
        """Pass over the first range ahead that a queue holds already, and give it."""
        (start, end), *_ = life.islands
        life.islands = life.islands[1:]
        life.anchor = file.anchor(end)
        life.read, life.skipping = end, self.is_in_cut_line(file, end, life.anchor)
        file.size = max(file.size, end)
        return start, end
