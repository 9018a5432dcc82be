"""The process's own sandbox: from the needs, before the first thread, for good.

Landlock restricts the thread that asks and what it starts, so it must come before every other thread; it can never be widened, so
rules are about directories, in which certificates and tokens may be replaced. What is not there at start gets no rule: the nearest
directory that exists may be /var/lib, and nobody declared that.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    there = {path for path in (*read, *write) if os.path.exists(path)}
    missing = [need for path, need in read.items() if path not in there and not any(_within(path, other) for other in there)]
    return Plan(
        frozenset(there - write),
        frozenset(there & write),
        frozenset(execute),
        frozenset(bind),
        frozenset(connect),
        udp,
        tuple(missing),
    )


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
    sandbox = Sandbox(mode, version, bool(filter), tuple(lacking), tuple(sorted(need.path for need in found.missing)))
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
        if not need.optional:
            log.warning("%s is not there (%s): what appears there later stays closed until a restart", need.path, need.reason)
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


def _within(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _loaders() -> list[str]:
    """The dynamic loader of this interpreter, which the kernel opens with every program that is linked like it."""
    return [path for path in mapped_files() if os.path.basename(path).startswith("ld-")]
