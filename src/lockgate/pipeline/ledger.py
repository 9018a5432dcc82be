"""What a receiver says of its sources, for the ledger: where the lines are that no queue has yet, and what was gone before it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import msgspec

from lockgate.batch import Origin

MAX_CLIENTS = 256


class Gap(msgspec.Struct):
    """Bytes of a file that were gone before they were read; kept with the positions, so that a restart does not forget it."""

    path: str
    reason: str
    bytes: int = 0
    """The least it can have been."""
    times: int = 0
    unknown: int = 0
    """How often it is not known whether anything was lost."""
    time_unix_nano: int = 0
    """When the last one was noticed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which container a file is of; empty where it is no container's."""

    namespace: str = ""
    pod: str = ""
    uid: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which containers are asked about; `*` and `?` as in a shell, empty is all."""

    namespace: str = ""
    pod: str = ""
    container: str = ""

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return not (self.namespace or self.pod or self.container)

    def matches(self, place: Place) -> bool:
        """Whether this container is meant."""
        wanted = ((self.namespace, place.namespace), (self.pod, place.pod), (self.container, place.container))
        return all(not pattern or fnmatchcase(name, pattern) for pattern, name in wanted)


@dataclass(slots=True)
class Source:
    """One file's content, in its receiver's eyes."""

    id: str
    """As in `Origin.source`; empty while nothing was read."""
    path: str
    place: Place
    group: str
    """What its counts are kept for when it is gone; see `Host.saved`."""
    size: int
    position: int
    """Everything before it has another owner, for good."""
    read: int
    oldest_unread_unix_nano: int = 0
    """When the first line that was not read was written; 0 where all are, or it does not say."""
    pending_lines: int = 0
    """Lines behind `read` that wait to be joined with others."""
    compressed: bool = False
    again_bytes: int = 0
    """Before `read`, to be read again: a queue lost them."""

    @property
    def unread_bytes(self) -> int:
        """Bytes on disk that were not read, wait to be joined, or are to be read again."""
        return max(0, self.size - self.read) + self.again_bytes


@dataclass(slots=True)
class Sources:
    """All of a receiver's sources that were asked about, as of one moment."""

    sources: list[Source] = field(default_factory=list)
    gaps: list[tuple[Place, Gap]] = field(default_factory=list)
    under_way: list[Origin] = field(default_factory=list)
    """Read, and handed on, and not acknowledged; of all sources."""
    dropped: int = 0
    """Records that were refused for good before a queue had them, or given up, since the start."""
    clients: dict[str, int] = field(default_factory=dict)
    """Records acknowledged to each client since the start; of the last that sent, at most `MAX_CLIENTS`."""
    waiting_files: int = 0
    """Files that wait to be opened, or looked at."""
