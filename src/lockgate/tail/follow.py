"""One followed file: who it is, how far it was read, how far it was taken.

Identity is (device, inode, first bytes), and the descriptor is kept: ext4 gives an inode number away again as soon as the file is
unlinked, unless somebody holds it open. The bytes just before the position are compared at every read, so that a file truncated and
grown past the position again is noticed.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import msgspec
from msgspec import structs

from lockgate.tail.packed import Unpacked
from lockgate.wire.parsed import Parsed

ANCHOR_BYTES = 32


class Flush(IntEnum):
    """What to do with bytes whose record is not complete."""

    NOTHING = 0
    """Leave them: more is expected."""
    QUIET = 1
    """Nothing came for a while: give out what the format allows (a group without its end, a plain line without its newline)."""
    END = 2
    """Nothing will come: give out everything."""


class Parser(Protocol):
    """Turns a file's bytes into records. One for each file; keeps nothing between calls."""

    def __call__(self, chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        """Never consumes a part of a record, so that positions are all the state there is; told Flush.END it consumes what it is given."""


MakeParser = Callable[[str, str, int], Parser]
"""(path as matched, path with links resolved, descriptor) -> parser."""


class Saved(msgspec.Struct, frozen=True):
    """What a checkpoint knows of a file."""

    key: str
    """Of its life; empty where it had none yet."""
    device: int
    inode: int
    path: str
    real: str
    position: int
    """Everything before it was taken by the next owner."""
    skipping: bool
    """Whether the position is inside a line that was cut at its limit, the rest of which is dropped."""
    anchor: bytes
    """The bytes just before the position."""
    first: tuple[int, bytes]
    """Length and digest of the first bytes."""
    size: int
    """How large the file was seen to be."""
    lives: int
    packed: bool = False
    """Whether the file is the compressed form of the content that positions count in."""
    done: bool = False
    """Whether it was rotated and read to its end: that it goes is no loss."""
    again: tuple[tuple[int, int], ...] = ()
    """What was given back by a damaged queue and not taken again yet."""

    def begins_as(self, head: bytes) -> bool:
        """Whether a content with these first bytes may be this one."""
        return begins(self.first, head) if self.first[0] or not self.packed else not head

    def ends_as(self, pread: Callable[[int, int], bytes]) -> bool:
        """Whether the bytes before the position are those of this one."""
        return pread(len(self.anchor), self.position - len(self.anchor)) == self.anchor

    def is_of(self, head: bytes, pread: Callable[[int, int], bytes]) -> bool:
        """Whether what is known fits this content: by its first bytes, and by those before the position."""
        return self.begins_as(head) and self.ends_as(pread) and (not self.position or bool(pread(1, self.position - 1)))

    def has_nothing_for(self, size: int) -> bool:
        """Whether nothing is to be read of its file, which has this size."""
        return self.done and not self.again and (self.packed or self.position == size)

    def moved_to(self, path: str, status: os.stat_result) -> "Saved":
        """The same content, which stands in another file now."""
        return structs.replace(self, device=status.st_dev, inode=status.st_ino, real=path, packed=path.endswith(".gz"))


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:12]


def begins(first: tuple[int, bytes], content: bytes) -> bool:
    """Whether the content has these first bytes, as `identity_of` gave them."""
    length, known = first
    return len(content) >= length and digest(content[:length]) == known


NOTHING_READ = 0, digest(b"")


@dataclass(slots=True, eq=False)
class Life:
    """A file's content from its birth to its truncation: what positions count in. `key` names it for good, in every process."""

    key: str
    number: int
    read: int = 0
    skipping: bool = False
    anchor: bytes = b""
    taken: tuple[int, bool, bytes] = (0, False, b"")
    """Position, skipping and anchor up to which everything was taken."""
    islands: tuple[tuple[int, int], ...] = ()
    """Ranges ahead that a queue holds already."""
    _done: dict[int, tuple[int, bool, bytes]] = field(default_factory=dict)

    def start_at(self, position: int, skipping: bool, anchor: bytes) -> None:
        self.read, self.skipping, self.anchor = position, skipping, anchor
        self.taken = position, skipping, anchor

    def take(self, start: int, end: int, skipping: bool, anchor: bytes) -> None:
        """These bytes have a new owner; the position follows over the contiguous prefix alone."""
        taken = end, skipping, anchor
        if start != self.taken[0]:
            self._done[start] = taken  # a round never holds an empty range, so every start is another
            return
        self.taken = taken
        while self._done and (after := self._done.pop(self.taken[0], None)) is not None:
            self.taken = after

    @property
    def settled(self) -> bool:
        """Whether everything read was taken."""
        return self.taken[0] == self.read


@dataclass(slots=True, eq=False)
class Followed:
    """An open file."""

    path: str
    """As matched; a rotated file keeps the path that it was matched by, because that says whose log it is."""
    real: str
    descriptor: int
    device: int
    inode: int
    parse: Parser
    name: str
    """Where it stands now."""
    matched: bool = True
    """Whether its present name is one that the patterns mean."""
    life: Life | None = None
    """None until the first line, or enough of it, is there to know it by."""
    number: int = 0
    """That of its next life."""
    first: tuple[int, bytes] = NOTHING_READ
    size: int = 0
    """How large it was when last seen."""
    changed_nano: int = -1
    """Its modification time when last seen."""
    chunk_bytes: int = 0
    """How much to read at least: grows while one record does not fit."""
    bytes_per_record: float = 150.0
    quiet_since: float = 0.0
    """When its last new byte was seen."""
    unread: bool = False
    """Whether bytes are left behind that make no whole record yet."""
    pending_lines: int = 0
    """How many lines of them wait to be joined."""
    unpacked: Unpacked | None = None
    """Set where the file is compressed: positions and sizes are those of its content."""
    open_group: bool = False
    """Whether they are whole lines of a record whose last line is still to come, perhaps in the file that takes this one's place."""
    copy: tuple[str, os.stat_result] | None = None
    """Where its content stands compressed, too."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    def pread(self, size: int, position: int) -> bytes:
        return os.pread(self.descriptor, size, position) if self.unpacked is None else self.unpacked.pread(size, position)

    def pread_head(self, size: int) -> bytes:
        """The first bytes; nothing of a compressed file, which would have to begin again for them."""
        return b"" if self.unpacked is not None else os.pread(self.descriptor, size, 0)

    def anchor(self, position: int) -> bytes:
        """The bytes just before this position."""
        return self.pread(min(ANCHOR_BYTES, position), max(0, position - ANCHOR_BYTES))

    def saved(self) -> Saved:
        """What is known of it; without a key while it has no life."""
        life = self.life or Life("", self.number)
        position, skipping, anchor = life.taken
        return Saved(
            life.key,
            self.device,
            self.inode,
            self.path,
            self.real,
            position,
            skipping,
            anchor,
            self.first,
            self.size,
            life.number,
            self.unpacked is not None,
        )


def identity_of(content: bytes) -> tuple[int, bytes]:
    """How many first bytes these are, and their digest."""
    return len(content), digest(content)


def life_key(device: int, inode: int, first_line: bytes, number: int) -> str:
    """A name for this content that every process gives it again."""
    suffix = f".{number}" if number else ""
    return f"{device:x}-{inode:x}-{line_digest(first_line)}{suffix}"


def line_digest(first_line: bytes) -> str:
    """The part of a life's key that is the same for a compressed copy of it."""
    return digest(first_line).hex()[:16]


def parts_of(key: str) -> tuple[str, str, int]:
    """Of a life's key: without its number, its first line's digest, its number."""
    base, _, number = key.partition(".")
    return base, base.rpartition("-")[2], int(number or 0)
