"""The process's own sandbox: from the needs, before the first thread, for good.

Landlock restricts the thread that asks and what it starts, so it must come before every other thread; it can never be widened, so
rules are about directories, in which certificates and tokens may be replaced. What is not there at start gets no rule: the nearest
directory that exists may be /var/lib, and nobody declared that.

A rule is about an inode, so a directory that comes later, or is deleted and made anew, stays closed. Landlock does not restrict stat(2):
`Sandbox.closed` sees such a place, and the program ends with RESTART_STATUS to be started again with it open (collector/program.py). It
cannot do that by itself: what a process executes inherits its rules.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lockgate.lockdown import landlock, seccomp
from lockgate.lockdown.interpreter import mapped_files
from lockgate.lockdown.libc import LIBC
from lockgate.pipeline.needs import Connect, Exec, Listen, Need, Read, Write

log = logging.getLogger("lockgate.service")

Mode = Literal["off", "best-effort", "require"]

_SHARED = frozenset(
    {"/", "/dev", "/etc", "/home", "/opt", "/proc", "/root", "/run", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/tmp"}
)

RESTART_STATUS = 75
"""Exit status of a process that ended in order, to be started again (EX_TEMPFAIL in sysexits.h)."""
_KERNELS_OWN = ("/proc/", "/sys/", "/dev/")
"""File systems that the kernel fills: it may give another inode at every look, and nobody replaces what is there."""


class SandboxError(OSError):
    """The sandbox is required and cannot be had, or does not hold; the text says which part and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the needs come to on this machine, now."""

    read: frozenset[str]
    write: frozenset[str]
    execute: frozenset[str]
    bind: frozenset[int]
    connect: frozenset[int]
    udp: bool
    missing: tuple[Read, ...]
    """What will be read and is not there, and not within anything that is."""
    granted: Mapping[tuple[int, int], bool] = field(default_factory=dict)
    """(device, inode) of what is there, and whether it may be written."""

    @property
    def programs(self) -> bool:
        """Whether programs may be started."""
        return bool(self.execute)

    @property
    def shared(self) -> list[str]:
        """Directories that hold more than what is needed of them."""
        return sorted(path for path in (self.read | self.write) if is_shared(path))


def is_shared(path: str) -> bool:
    """Whether everybody keeps something in this directory. A need for all of one is granted, and said."""
    return path in _SHARED or path == os.path.expanduser("~")


def plan(needs: Iterable[Need]) -> Plan:
    """Which existing paths, which ports. Looks at the file system and changes nothing."""
    read: dict[str, Read] = {}
    write: set[str] = set()
    execute: set[str] = set()
    bind: set[int] = set()
    connect: set[int] = set()
    udp = False
    for need in needs:
        match need:
            case Read(path):
                read[os.path.abspath(path)] = need
            case Write(path):
                write.add(os.path.abspath(path))
            case Exec(program):
                execute |= {os.path.realpath(program), *_loaders()}
            case Listen(port=port, protocol="tcp"):
                bind.add(port)
            case Connect(port=port, protocol="tcp"):
                connect.add(port)
            case Listen() | Connect():
                udp = True
    identities = {path: (found.st_dev, found.st_ino) for path in sorted({*read, *write}) if (found := _status(path))}
    there = set(identities)
    missing = [need for path, need in read.items() if path not in there and not any(_within(path, other) for other in there)]
    return Plan(
        frozenset(there - write),
        frozenset(there & write),
        frozenset(execute),
        frozenset(bind),
        frozenset(connect),
        udp,
        tuple(missing),
        {identities[path]: path in write for path in sorted(there, key=lambda path: path in write)},
    )


@dataclass(frozen=True, slots=True)
class Closed:
    """A place that is needed and there, and that this process cannot open because it came, or was replaced, after its start."""

    path: str
    reason: str
    identity: tuple[int, int]
    """(device, inode) of what is there now."""
    was_missing: bool
    """Whether nothing was there at start."""
    is_deleted: bool = False
    """Whether what is there was deleted elsewhere, and only a mount still holds it."""

    def __str__(self) -> str:
        was = "was not there at start and is now" if self.was_missing else "is another one than at start"
        return f"{self.path} ({self.reason}) {'was deleted and is only still mounted here' if self.is_deleted else was}"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What is in force."""

    mode: Mode = "off"
    landlock: int = 0
    """The ABI version in use; 0 for none."""
    seccomp: bool = False
    lacking: tuple[str, ...] = ()
    """What could not be had, and why."""
    missing: tuple[str, ...] = ()
    """What was not there at start, and stays closed until a restart."""
    granted: Mapping[tuple[int, int], bool] = field(default_factory=dict)
    """As Plan.granted."""

    def closed(self, needs: Iterable[Need]) -> frozenset[Closed]:
        """What of these needs is there now and cannot be opened, because no rule is about it or about a directory above it.

        Nothing where Landlock is not in force. Only looks (stat); a file system that does not answer blocks it: for a thread.
        """
        if not self.landlock:
            return frozenset()
        paths: dict[str, Read | Write] = {}
        for need in needs:
            if isinstance(need, Read | Write) and not f"{os.path.abspath(need.path)}/".startswith(_KERNELS_OWN):
                path = os.path.abspath(need.path)
                if path not in paths or isinstance(need, Write):
                    paths[path] = need
        found = set()
        for path, need in paths.items():
            status = _status(path)
            if status is None:
                continue
            is_deleted = stat.S_ISDIR(status.st_mode) and status.st_nlink == 0
            if is_deleted or not self._is_open(path, isinstance(need, Write)):
                identity = status.st_dev, status.st_ino
                found.add(Closed(path, need.reason, identity, not is_deleted and path in self.missing, is_deleted))
        return frozenset(found)

    def _is_open(self, path: str, is_written: bool) -> bool:
        """As the kernel decides it: a rule about the place, or about any directory on the way to it, suffices."""
        for each in (path, *map(str, Path(os.path.realpath(path)).parents)):
            status = _status(each)
            writable = self.granted.get((status.st_dev, status.st_ino)) if status else None
            if writable or (writable is False and not is_written):
                return True
        return False

    def status(self) -> Mapping[str, object]:
        """For `/status`: what is in force, and what the kernel says of each thread now."""
        threads = [_thread(path) for path in Path("/proc/self/task").glob("*/status")] if self.mode != "off" else []
        return {
            "mode": self.mode,
            "landlock_abi": self.landlock,
            "files": self.landlock > 0,
            "tcp_ports": self.landlock >= landlock.TCP,
            "signals": self.landlock >= landlock.SCOPES,
            "seccomp": self.seccomp,
            "threads": len(threads),
            "threads_confined": sum(threads),
            "lacking": list(self.lacking),
            "missing_at_start": list(self.missing),
        }


def enter(mode: Mode, needs: Iterable[Need]) -> Sandbox:
    """Confines this process to its needs, and checks that it is. Directories that may be made are made first.

    `best-effort` takes what the kernel has, and logs what it has not; `require` raises SandboxError before anything is opened.
    """
    if mode == "off":
        return Sandbox()
    needs = list(needs)
    version, filter = landlock.abi(), b""
    lacking = list(_lacking(version, len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1))
    try:
        found = plan(needs)
        filter = seccomp.program(os.uname().machine, udp=found.udp, programs=found.programs)
    except LookupError as error:
        lacking.append(f"system calls: {error.args[0]}")
    if mode == "require" and lacking:
        raise _refused(lacking)
    _make_directories(needs)
    found = plan(needs)
    try:
        if version:
            _restrict(found)
    except OSError as error:
        version = 0
        lacking.append(f"files and TCP ports: the kernel refuses Landlock's rules: {error.strerror}")
    try:
        if filter:
            seccomp.install(filter)
    except OSError as error:
        filter = b""
        lacking.append(f"system calls: the kernel refuses the filter: {error.strerror}")
    lacking += _not_holding(found, version, bool(filter))
    if mode == "require" and lacking:
        raise _refused(lacking)
    if version < landlock.SCOPES:
        # Not demanded by `require`: too few clusters have it.
        lacking.append(
            f"signals to other processes, and their abstract sockets: Landlock ABI {version} cannot refuse them (Linux 6.12 can)"
        )
    missing = tuple(sorted(os.path.abspath(need.path) for need in found.missing))
    sandbox = Sandbox(mode, version, bool(filter), tuple(lacking), missing, found.granted if version else {})
    _tell(sandbox, found)
    return sandbox


def _lacking(version: int, threads: int) -> Iterator[str]:
    """What this kernel, and a process with so many threads, cannot give of what `require` asks."""
    if not version:
        yield "files: there is no Landlock here (it takes Linux 5.13, `lsm=landlock`, and a container runtime that lets it through)"
    elif version < landlock.TRUNCATE:
        yield f"truncation of files: Landlock ABI {version} cannot refuse it (Linux 6.2 can)"
    if version < landlock.TCP:
        yield f"TCP ports: Landlock ABI {version} cannot refuse them (Linux 6.7 can)"
    if threads > 1:
        yield f"files and ports of {threads - 1} threads that were started before the sandbox: a bug of what was imported"


def _refused(lacking: Iterable[str]) -> SandboxError:
    return SandboxError(
        f"service.sandbox is require, and there is no: {'; '.join(lacking)}. Mend that, or set service.sandbox: best-effort"
    )


def _restrict(found: Plan) -> None:
    granted = dict.fromkeys(found.read, landlock.READ) | dict.fromkeys(found.write, landlock.WRITE)
    files = {path: access for path, access in granted.items() if not os.path.isdir(path)}
    directories = {path: access for path, access in granted.items() if path not in files}
    for path in found.execute:
        files[path] = files.get(path, landlock.EXECUTE) | landlock.EXECUTE
    landlock.restrict(directories, files, found.bind, found.connect)


def _make_directories(needs: Iterable[Need]) -> None:
    for need in needs:
        if isinstance(need, Write) and need.create is not None:
            # A directory that cannot be made is its component's to complain of: it knows the setting.
            with contextlib.suppress(OSError):
                Path(need.path).mkdir(need.create, parents=True, exist_ok=True)


def _not_holding(found: Plan, version: int, filtered: bool) -> list[str]:
    """Tries two things that must fail now and change nothing: an outer layer may have taken the rules without obeying them."""
    holes = []
    if version and "/" not in found.read | found.write:
        with contextlib.suppress(PermissionError):
            os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
            holes.append("files: Landlock took the rules, but the root directory can still be listed")
    if filtered and LIBC.unshare(0) == 0:
        holes.append("system calls: the filter was taken, but unshare is still answered")
    return holes


def _tell(sandbox: Sandbox, found: Plan) -> None:
    for text in sandbox.lacking:
        log.warning("the sandbox lacks %s", text)
    for path in found.shared:
        log.warning("the sandbox leaves all of %s open: something that is needed lies there; give it a directory of its own", path)
    for need in found.missing:
        if sandbox.landlock and not need.optional:
            log.warning(
                "%s is not there (%s): once it is, this process ends with status %d, because only a restart opens what appears there later",
                need.path,
                need.reason,
                RESTART_STATUS,
            )
    log.info(
        "sandboxed: files %s, TCP ports %s, system calls %s",
        f"by {len(found.read) + len(found.write)} rules" if sandbox.landlock else "open",
        f"bind {sorted(found.bind)} connect {sorted(found.connect)}" if sandbox.landlock >= landlock.TCP else "open",
        "filtered" if sandbox.seccomp else "open",
    )


def _thread(status: Path) -> bool:
    """Whether the kernel says that this thread is filtered and can gain nothing."""
    try:
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    except OSError:
        return True  # it has ended
    return lines.get("Seccomp") == "2" and lines.get("NoNewPrivs") == "1"


def _status(path: str) -> os.stat_result | None:
    """Of what is at this path, links followed as Landlock follows them; None where nothing is, or it cannot be seen."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _within(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _loaders() -> list[str]:
    """The dynamic loader of this interpreter, which the kernel opens with every program that is linked like it."""
    return [path for path in mapped_files() if os.path.basename(path).startswith("ld-")]
