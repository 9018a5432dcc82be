"""Who may read a file: this process, and whoever else it could be run as; and the least of these that reads everything.

A ladder of three rungs, as the chart's `otellogs.privilege` has it. Where this process stands the kernel is asked, by opening; what it
would answer on another rung is computed from owner, group, mode and POSIX access control list (path_resolution(7), acl(5),
capabilities(7)). What security modules, Landlock, or a file server refuse is not computed: where these decide, the kernel's own answer is
what counts.
"""

from __future__ import annotations

import enum
import functools
import os
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

UID = 10001
"""The chart's user, and the group of that number."""
_MAX_GROUPS = 8
"""Whoever needs more groups than that is better off as root; a guess."""
_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN
NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
CHECKPOINT_RESTORE
""".split()  # noqa: SIM905  # one a line would be a screen
"""By number (Linux, include/uapi/linux/capability.h)."""


class Rung(enum.IntEnum):
    """From the least privileges to the most; the name in lower case is the value of `otellogs.privilege`."""

    GROUP = 1
    """A user other than root, in group 0 and perhaps others."""
    ROOT = 2
    """Uid 0 without a capability: the owner of root's files, and nothing else."""
    CAPABILITY = 3
    """Uid 0 that may read everything: CAP_DAC_READ_SEARCH."""


_USER, _GROUP_OBJ, _GROUP, _MASK = 2, 4, 8, 16
"""Tags of an access control list's entries (Linux, include/uapi/linux/posix_acl.h). The owner's and everybody else's are in the mode."""


class Status(NamedTuple):
    """What counts here of stat(2), in a tenth of the memory, and of the access control list."""

    st_mode: int
    st_uid: int
    st_gid: int
    entries: tuple[tuple[int, int, int], ...] = ()
    """(tag, permissions, uid or gid) of each entry of the list; none where there is no list."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the kernel sees when a file is opened."""

    uid: int
    groups: frozenset[int]
    """The effective one and the supplementary ones."""
    reads_all: bool = False
    """Whether CAP_DAC_READ_SEARCH or CAP_DAC_OVERRIDE is effective."""

    def may(self, status: Status, wanted: int) -> bool:
        """Whether mode, owner and group let this one; `wanted` is R_OK, X_OK or both."""
        if self.reads_all:
            return True
        if self.uid != status.st_uid and status.entries and status.st_mode & stat.S_IRWXG:  # a list whose mask is empty is not looked at
            return self._is_let(status, wanted)
        shift = 6 if self.uid == status.st_uid else 3 if status.st_gid in self.groups else 0
        return (status.st_mode >> shift) & wanted == wanted

    def _is_let(self, status: Status, wanted: int) -> bool:
        """By the list, for anybody but the owner: acl(5), "Access check algorithm"."""
        mask = next((permissions for tag, permissions, _ in status.entries if tag == _MASK), 7)
        groups: list[int] = []
        for tag, permissions, id in status.entries:
            if tag == _USER and id == self.uid:
                return permissions & mask & wanted == wanted
            if (tag == _GROUP_OBJ and status.st_gid in self.groups) or (tag == _GROUP and id in self.groups):
                groups.append(permissions & mask)
        # Whoever is in a group of the list is not everybody else, although each of them lets him do less.
        return any(each & wanted == wanted for each in groups or [status.st_mode & 7])


@dataclass(frozen=True, slots=True)
class Process:
    """What the kernel says of a process."""

    uid: int
    gid: int
    groups: frozenset[int]
    """The supplementary ones."""
    capabilities: frozenset[str] = frozenset()
    """Those in effect, without CAP_."""
    bounding: frozenset[str] = frozenset()
    """Those that it, or a program it starts, could ever have."""

    @classmethod
    def here(cls) -> Process:
        """This one. Where there is no /proc its capabilities are not known, and taken for none."""
        sets = {"CapEff": frozenset[str](), "CapBnd": frozenset[str]()}
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            lines = []
        for name, _, value in (line.partition(":\t") for line in lines):
            if name in sets:
                sets[name] = _named(int(value, 16))
        return cls(os.geteuid(), os.getegid(), frozenset(os.getgroups()), sets["CapEff"], sets["CapBnd"])

    @property
    def identity(self) -> Identity:
        reads_all = bool(self.capabilities & {"DAC_READ_SEARCH", "DAC_OVERRIDE"})
        return Identity(self.uid, self.groups | {self.gid}, reads_all)

    @property
    def rung(self) -> Rung:
        """Where it stands."""
        return Rung.CAPABILITY if self.identity.reads_all else Rung.GROUP if self.uid else Rung.ROOT

    @property
    def extra_groups(self) -> frozenset[int]:
        """Those that neither its own user nor the ladder's lowest rung brings."""
        return self.groups - {0, self.gid}

    def on(self, rung: Rung, groups: frozenset[int] = frozenset()) -> Identity:
        """Whom the kernel would see there, with these groups besides; a user other than root stays who it is on the lowest rung."""
        if rung is Rung.GROUP:
            user, group = (self.uid, self.gid) if self.uid else (UID, UID)
            return Identity(user, groups | {0, group})
        return Identity(0, groups | {0}, rung is Rung.CAPABILITY)

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}, groups {sorted(self.groups)}"


def _named(bits: int) -> frozenset[str]:
    numbers = (number for number in range(bits.bit_length()) if bits >> number & 1)
    return frozenset(_CAPABILITIES[number] if number < len(_CAPABILITIES) else str(number) for number in numbers)


@dataclass(frozen=True, slots=True)
class Step:
    """One directory that must be entered, or what is read at the end of the way."""

    path: str
    status: Status
    wanted: int

    @classmethod
    def at(cls, path: str, wanted: int) -> Step:
        found = os.stat(path)
        return cls(path, Status(found.st_mode, found.st_uid, found.st_gid, _access_list(path)), wanted)

    def __str__(self) -> str:
        owner = f"owner uid {self.status.st_uid}, gid {self.status.st_gid}"
        more = ", with an access control list" if self.status.entries else ""
        return f"{self.path} is mode {stat.filemode(self.status.st_mode)}, {owner}{more}"

    def group(self, who: Identity, held: frozenset[int]) -> int | None:
        """One that would let these take it, where there is one: rather one of those held, or the file's own, than another of its list."""
        named = [id for tag, _, id in self.status.entries if tag == _GROUP]
        found = sorted({self.status.st_gid, *named}, key=lambda group: (group not in held, group != self.status.st_gid, group))
        return next((group for group in found if Identity(who.uid, who.groups | {group}).may(self.status, self.wanted)), None)


def _access_list(path: str) -> tuple[tuple[int, int, int], ...]:
    """The entries of a file's list, as Linux stores it: a version, then each (include/uapi/linux/posix_acl_xattr.h)."""
    try:
        stored = os.getxattr(path, "system.posix_acl_access")
    except (OSError, AttributeError):  # Python has it on Linux alone
        return ()
    return tuple(struct.iter_unpack("<HHI", stored[4:])) if len(stored) % 8 == 4 and stored[:4] == b"\2\0\0\0" else ()


@dataclass(frozen=True, slots=True)
class Way:
    """What must be passed to read a path, from the root directory on."""

    steps: tuple[Step, ...]
    is_whole: bool
    """False where something in the way hides what lies behind it."""

    @classmethod
    def to(cls, path: str, step: Callable[[str, int], Step] = Step.at) -> Way:
        """The way to this path, and on to where its links lead. A directory is entered and listed at its end, a file read."""
        path = os.path.abspath(path)
        real = os.path.realpath(path)
        steps: list[Step] = []
        try:
            directories = _down_to(os.path.dirname(path))
            if real != path:
                directories = tuple(dict.fromkeys(directories + _down_to(os.path.dirname(real))))
            steps.extend(step(each, os.X_OK) for each in directories)
            end = step(real, os.R_OK)
            if stat.S_ISDIR(end.status.st_mode):
                end = step(real, os.R_OK | os.X_OK)
        except OSError:
            return cls(tuple(steps), is_whole=False)
        return cls((*steps, end), is_whole=True)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for ways that the same may go."""
        return (self.is_whole, *((step.status, step.wanted) for step in self.steps))

    def barrier(self, who: Identity) -> Step | None:
        """The first step that these may not take."""
        return next((step for step in self.steps if not who.may(step.status, step.wanted)), None)

    def groups(self, who: Identity, held: frozenset[int]) -> frozenset[int]:
        """The groups that would help these; where several would, rather one of those held."""
        helping = (step.group(who, held) for step in self.steps if not who.may(step.status, step.wanted))
        return frozenset(group for group in helping if group is not None)


@functools.lru_cache(256)  # files come by the directory
def _down_to(directory: str) -> tuple[str, ...]:
    above = os.path.dirname(directory)
    return (directory,) if above == directory else (*_down_to(above), directory)


@dataclass(frozen=True, slots=True)
class Grant:
    """A rung, with the groups that it takes besides group 0."""

    rung: Rung
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        who = ("a user other than root, in group 0", "uid 0", "uid 0 with CAP_DAC_READ_SEARCH")[self.rung - 1]
        return who + (f" and {'groups' if self.groups - {min(self.groups)} else 'group'} {_listed(self.groups)}" if self.groups else "")

    @property
    def values(self) -> list[str]:
        """What to set in the chart's values."""
        found = [f"otellogs.privilege: {self.rung.name.lower()}"]
        if self.rung is Rung.GROUP and len(self.groups) == 1:
            found.append(f"otellogs.journalGroup: {_listed(self.groups)}")
        elif self.groups:
            groups = sorted(self.groups | ({0} if self.rung is Rung.GROUP else set()))
            found.append(f"otellogs.daemonset.securityContext.supplementalGroups: {groups}")
        return found


def least(ways: Iterable[Way], process: Process, lowest: Rung = Rung.GROUP, keep: frozenset[int] = frozenset()) -> Grant:
    """The lowest rung, from `lowest` on, that goes all of these ways, as far as they can be seen.

    `keep` are groups that are needed for something else, as long as it is `lowest`.
    """
    ways = list(ways)
    grants = (best(ways, process, rung, keep if rung is lowest else frozenset()) for rung in Rung if rung >= lowest)
    return next(grant for grant in grants if grant.rung is Rung.CAPABILITY or _is_enough(grant, ways, process))


def best(ways: Iterable[Way], process: Process, rung: Rung, keep: frozenset[int] = frozenset()) -> Grant:
    """This rung, with all groups that help it on these ways."""
    return Grant(rung, keep.union(*(way.groups(process.on(rung, keep), process.groups) for way in ways)))


def _is_enough(grant: Grant, ways: Iterable[Way], process: Process) -> bool:
    who = process.on(grant.rung, grant.groups)
    return len(grant.groups) <= _MAX_GROUPS and not any(way.barrier(who) for way in ways)


def _listed(groups: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(groups)))
