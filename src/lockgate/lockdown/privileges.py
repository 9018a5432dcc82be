"""What this process may read and write of what is declared, on which rung of the ladder it stands, and the lowest that would do.

Looked at once, at start, and by `lockgate privileges`. What is read is tried by whoever declares it (`ComponentSettings.try_reading`), at
most so many paths of each; the rest is arithmetic on owners, groups, modes and access control lists (`kit/rungs.py`).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from lockgate.kit.rungs import Grant, Identity, Process, Rung, Step, Way, best, least
from lockgate.kit.unreadable import REFUSED_ELSEWHERE, describe_unreadable, describe_unwritable
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Tried, Write

MAX_PATHS = 4096
"""Of each component, tried and judged. A node of 500 pods has some 3,000 files and directories."""
_MAX_NAMED = 10
_MAX_STATE_PATHS = 1000
_MAX_NAMED_CAPABILITIES = 14
"""What container runtimes give where nobody says anything; whoever has more has nearly all."""

Verdict = Literal["nothing to read", "too little", "refused elsewhere", "enough", "more than needed"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How much of what was tried somebody reads."""

    files: int
    directories: int

    def of(self, all: Reach) -> str:
        return (
            "reads all" if self == all else f"reads {self.files} of {all.files} files, {self.directories} of {all.directories} directories"
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """One rung, as it is here."""

    rung: str
    groups: tuple[int, ...]
    """All of its supplementary groups, those that these files take among them."""
    holds: bool
    """Whether this process has what the rung has, or more."""
    why: str
    reads: Reach

    def __str__(self) -> str:
        who = f"{self.rung}, in groups {', '.join(map(str, self.groups))}," if self.groups else self.rung
        return f"privilege {who} {'holds' if self.holds else 'does not hold'} here ({self.why})"


@dataclass(frozen=True, slots=True)
class State:
    """A directory that is written to."""

    path: str
    reason: str
    problem: str
    """Why it cannot be; empty where it can."""
    loss: str
    """What takes it away, although it should last; empty where nothing does."""


@dataclass(frozen=True, slots=True)
class Privileges:
    """What was found."""

    process: Process
    found: Reach
    reads: Reach
    """Of that, what this process reads; the kernel's own answer."""
    is_all: bool
    """Whether nothing else is there."""
    missing: tuple[str, ...]
    """Declared, and not there."""
    unreadable: tuple[str, ...]
    """The first of what cannot be read, each with the reason and what would read it."""
    standings: tuple[Standing, ...]
    least: Grant
    """The lowest rung that reads everything that was found."""
    verdict: Verdict
    advice: tuple[str, ...]
    states: tuple[State, ...]

    @property
    def has_readers(self) -> bool:
        """Whether anything declares that it reads what belongs to others."""
        return bool(self.found.files or self.found.directories or self.missing)

    @property
    def is_enough(self) -> bool:
        """Whether everything can be read, and written."""
        return self.reads == self.found and not any(state.problem for state in self.states)

    def lines(self, *, each: bool) -> Iterator[tuple[int, str]]:
        """(level of logging, text): what a human reads once. With `each`, also what is wrong with what; receivers log that themselves."""
        found = self.found
        part = "" if self.is_all else " (not all there are)"
        tried = f"tried {found.files} files and {found.directories} directories{part}: {self.reads.of(found)}"
        yield (
            logging.INFO,
            f"privileges: {self.process}, with {_some(self.process.capabilities)}; {tried if self.has_readers else self.verdict}",
        )
        yield from ((logging.INFO, f"{path} is not there yet") for path in self.missing)
        if found.files or found.directories:
            yield from ((logging.INFO, f"{standing}; {standing.reads.of(self.found)}") for standing in self.standings)
            yield from ((logging.ERROR, text) for text in self.unreadable if each)
            level = logging.ERROR if self.verdict in ("too little", "refused elsewhere") else logging.INFO
            yield level, f"privileges are {self.verdict}" + "".join(f"; {text}" for text in self.advice)
        for state in self.states:
            if state.problem:
                yield logging.ERROR, state.problem
            if state.loss:
                yield logging.WARNING, f"{state.reason} in {state.path} are lost with the {state.loss}"

    def status(self) -> dict[str, object]:
        """For `/status`."""
        process = self.process
        return {
            "uid": process.uid,
            "gid": process.gid,
            "groups": sorted(process.groups),
            "capabilities": sorted(process.capabilities),
            "verdict": self.verdict,
            "advice": self.advice,
            "found": asdict(self.found),
            "reads": asdict(self.reads),
            "tried_all": self.is_all,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "rungs": [asdict(standing) for standing in self.standings],
            "least": {"rung": self.least.rung.name.lower(), "groups": sorted(self.least.groups), "values": self.least.values},
            "state": [asdict(state) for state in self.states],
        }


@dataclass(slots=True)
class _Seen:
    """What was tried and is alike: the first of it, how much it is, and what stands in the way to it. A node's files are of few kinds."""

    tried: Tried
    way: Way
    is_elsewhere: bool
    """Whether the kernel refuses what mode and owner would let this process do: then no rung helps."""
    count: int = 0

    @property
    def hides(self) -> bool:
        """Whether there may be more that cannot be seen."""
        return self.tried.error is not None and (self.tried.is_directory or not self.way.is_whole)

    def is_read_by(self, who: Identity, process: Process) -> bool:
        if who == process.identity:
            return self.tried.error is None  # the kernel's own answer
        return not self.is_elsewhere and not self.way.barrier(who)


def look(components: Iterable[ComponentSettings], needs: Iterable[Need]) -> Privileges:
    """Tries, and looks at the directories that are written to. Blocks: for a thread."""
    process, needs = Process.here(), list(needs)
    step = functools.lru_cache(256)(Step.at)  # ways have most of their directories in common
    kinds: dict[object, _Seen] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    is_all = True
    for settings in components:
        for number, tried in enumerate(settings.try_reading()):
            if number == MAX_PATHS:
                is_all = False
                break
            if isinstance(tried.error, FileNotFoundError):
                missing.append(tried.path)
                continue
            if tried.error is not None and len(unreadable) < _MAX_NAMED:
                unreadable.append(describe_unreadable(tried.path, tried.error))
            way = Way.to(tried.path, step)
            kind = (tried.is_directory, tried.error is None, way.kind)
            if kind not in kinds:
                is_elsewhere = tried.error is not None and way.is_whole and not way.barrier(process.identity)
                kinds[kind] = _Seen(tried, way, is_elsewhere)
            kinds[kind].count += 1
    seen = list(kinds.values())
    ways = [each.way for each in seen if not each.is_elsewhere]
    grant = least(ways, process)

    def standing(rung: Rung) -> Standing:
        extra = best(ways, process, rung).groups
        groups = extra | ({0} if rung is Rung.GROUP else set())
        reads = _reach(seen, process, process.on(rung, extra))
        return Standing(rung.name.lower(), tuple(sorted(groups)), *_holds(process, rung, groups), reads)

    verdict, advice = _judge(process, grant, seen, needs)
    return Privileges(
        process,
        found=_reach(seen, process),
        reads=_reach(seen, process, process.identity),
        is_all=is_all,
        missing=tuple(missing),
        unreadable=tuple(unreadable),
        standings=tuple(map(standing, Rung)),
        least=grant,
        verdict=verdict,
        advice=advice,
        states=tuple(_states(needs)),
    )


def _reach(seen: Iterable[_Seen], process: Process, who: Identity | None = None) -> Reach:
    """How much of it these read; without any, all of it."""
    found = {False: 0, True: 0}
    for each in seen:
        if who is None or each.is_read_by(who, process):
            found[each.tried.is_directory] += each.count
    return Reach(found[False], found[True])


def _holds(process: Process, rung: Rung, groups: frozenset[int]) -> tuple[bool, str]:
    """Whether this process has what this rung has, and in what words."""
    who = process.identity
    if rung is Rung.GROUP:
        lacking = sorted(groups - who.groups)
        return not lacking, f"groups {sorted(who.groups)}" + (f", without {', '.join(map(str, lacking))}" if lacking else "")
    if rung is Rung.ROOT:
        return process.uid == 0, f"uid {process.uid}"
    if who.reads_all:
        return True, f"{' and '.join(sorted(process.capabilities & {'DAC_READ_SEARCH', 'DAC_OVERRIDE'}))} in effect"
    why = "DAC_READ_SEARCH is not in effect"
    if process.uid and "DAC_READ_SEARCH" in process.bounding:
        why += f", although it may be had: for uid {process.uid} it does nothing without an ambient set, which Kubernetes does not give"
    return False, why


def _judge(process: Process, grant: Grant, seen: list[_Seen], needs: Iterable[Need]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and what to do about it."""
    if not seen:
        return "nothing to read", tuple(_unused(process, set(), needs))
    if closed := [each for each in seen if each.tried.error is not None]:
        lost = _reach(closed, process)
        said = f"{lost.files} files and {lost.directories} directories cannot be read, such as {closed[0].tried.path}"
        if all(each.is_elsewhere for each in closed):
            return "refused elsewhere", (said, REFUSED_ELSEWHERE)
        hidden = " at least, as what lies behind that cannot be seen from here" if any(each.hides for each in closed) else ""
        return "too little", (said, f"it takes {grant}{hidden}: {', '.join(grant.values)}")
    more: list[str] = []
    if process.rung > grant.rung:
        more.append(f"{grant} would read as much: {', '.join(grant.values)}")
    elif process.rung is Rung.GROUP and (idle := sorted(process.extra_groups - grant.groups)):
        more.append(f"nothing that was found is read by way of group {', '.join(map(str, idle))}")
    more += _unused(process, {"DAC_READ_SEARCH"} if grant.rung is Rung.CAPABILITY else set(), needs)
    return ("more than needed", tuple(more)) if more else ("enough", ())


def _unused(process: Process, used: set[str], needs: Iterable[Need]) -> Iterator[str]:
    """The capabilities that nothing here uses."""
    if any(isinstance(need, Listen) and 0 < need.port < 1024 for need in needs):
        used = used | {"NET_BIND_SERVICE"}
    if idle := sorted(process.capabilities - used):
        yield f"nothing here uses {_some(idle)}: drop: [ALL]" + "".join(f", add: [{each}]" for each in sorted(used))


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) if 0 < len(names) <= _MAX_NAMED_CAPABILITIES else f"{len(names) or 'no'} capabilities"


def _states(needs: Iterable[Need]) -> Iterator[State]:
    for need in needs:
        if isinstance(need, Write) and (os.path.isdir(need.path) or not os.path.exists(need.path)):
            problem = _unwritable(need)
            yield State(need.path, need.reason, problem, _loss(need.path) if need.lasting else "")


def _unwritable(need: Write) -> str:
    """What is wrong with this directory, or with the first thing in it that is; empty where nothing is."""
    path = need.path
    if not os.path.isdir(path):
        above = next(str(each) for each in Path(os.path.abspath(path)).parents if each.is_dir())
        if need.create is None or _writable(above):
            return ""  # it can be made; or its component asks for it to be made by somebody else
        path = above
    if not _writable(path):
        code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        return describe_unwritable(need.path, OSError(code, os.strerror(code)))
    if need.lasting and path == need.path:
        with os.scandir(path) as entries:
            for entry in islice(entries, _MAX_STATE_PATHS):
                if not entry.is_symlink() and not _writable(entry.path) and os.path.lexists(entry.path):
                    return describe_unwritable(entry.path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    return ""


def _writable(path: str) -> bool:
    wanted = os.R_OK | os.W_OK | (os.X_OK if os.path.isdir(path) else 0)
    return os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids)


def _loss(path: str) -> str:
    """What the file system under this path goes with: a pod, a container, the machine's memory; empty where it stays."""
    real = os.path.realpath(path)
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    best, found = "", ""
    for line in lines:
        # id, parent, device, root of the mount in its file system, mount point, options, fields, -, type (proc_pid_mountinfo(5))
        columns = line.split()
        root, point, kind = columns[3], columns[4].encode().decode("unicode_escape"), columns[columns.index("-") + 1]
        if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
            best = point
            is_empty_dir = "/kubernetes.io~empty-dir/" in root
            found = "pod, whose emptyDir it is" if is_empty_dir else _LOST_WITH.get((kind, point == "/"), "")
    return found


_LOST_WITH = {
    ("overlay", True): "container, whose own file system it is",
    ("tmpfs", False): "memory that it is in",
    ("tmpfs", True): "memory that it is in",
}
"""By type of file system, and whether it is the root's."""
