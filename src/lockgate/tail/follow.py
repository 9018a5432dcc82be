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
    first: tuple[int, bytes] = (0, b"")
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
    open_group: bool = False
    """Whether they are whole lines of a record whose last line is still to come, perhaps in the file that takes this one's place."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    def saved(self) -> Saved | None:
        if self.life is None:
            return None
        position, skipping, anchor = self.life.taken
        return Saved(
            self.life.key,
            self.device,
            self.inode,
            self.path,
            self.real,
            position,
            skipping,
            anchor,
            self.first,
            self.size,
            self.life.number,
        )


def first_bytes(descriptor: int, size: int) -> tuple[int, bytes]:
    """How many first bytes there are, up to `size`, and their digest."""
    content = os.pread(descriptor, size, 0)
    return len(content), digest(content)


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:12]


def life_key(device: int, inode: int, first_line: bytes, number: int) -> str:
    """A name for this content that every process gives it again."""
    suffix = f".{number}" if number else ""
    return f"{device:x}-{inode:x}-{digest(first_line).hex()[:16]}{suffix}"
