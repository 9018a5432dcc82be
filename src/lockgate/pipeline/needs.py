"""Needs: what a component opens, asks and touches, said by its settings before anything is opened.

From the union of a configuration's needs follow the table of `lockgate needs`, the network policies, the RBAC rules and the process's own
sandbox. Nothing may be opened that is not in it.
"""

import ipaddress
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lockgate.batch import Signal
from lockgate.kit.document import Path as KeyPath
from lockgate.kit.settings import Settings


@dataclass(frozen=True, slots=True)
class Listen:
    """Accepts connections (tcp) or datagrams (udp) at host:port; an empty host is every address."""

    host: str
    port: int
    reason: str
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True, slots=True)
class Connect:
    """Opens connections to host:port; a name's resolution is a need of its own that follows from this one: `name_resolution`."""

    host: str
    port: int
    reason: str
    protocol: Literal["tcp", "udp"] = "tcp"
    is_proxy: bool = False
    """Whether host:port is a proxy, which may stand anywhere, and not the peer itself."""


@dataclass(frozen=True, slots=True)
class Read:
    """Reads files at or under this path; a glob's need is its longest fixed directory. `optional`: no surprise where it is missing."""

    path: str
    reason: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """Creates, reads, replaces and deletes files at or under this directory (or writes this one file).

    `create` are the permissions with which the directory may be made at start; None leaves it to the component to refuse a missing one.
    `lasting`: what is written must be found there after a restart.
    """

    path: str
    reason: str
    create: int | None = None
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Exec:
    """Starts this program; what it starts can do no more than Lockgate itself."""

    program: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Asks the API server: these verbs on this resource; namespace "" is the whole cluster."""

    verbs: tuple[str, ...]
    group: str
    resource: str
    reason: str
    namespace: str = ""


Need = Listen | Connect | Read | Write | Exec | Kubernetes


@dataclass(frozen=True, slots=True)
class Tried:
    """What the kernel said just now when a file of somebody else's, or a directory, was opened to be read, or listed."""

    path: str
    is_directory: bool
    error: OSError | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that settings name, as it is on this machine now."""

    where: KeyPath
    """The key that names it."""
    what: str
    is_refused: bool = True
    """Whether start would refuse it here; else it is worth a warning."""


def elsewhere(where: KeyPath, path: str) -> Unusable | None:
    """What to say of a file of which not even the directory is here: it is some other machine's, such as a pod's, and cannot be tried."""
    if os.path.exists(os.path.dirname(os.path.abspath(path))):  # noqa: PTH110, PTH120, PTH100  # Path.exists raises where it may not look
        return None
    what = f"{path} is not on this machine, nor its directory, so it was not tried; start refuses it where it is missing"
    return Unusable(where, what, is_refused=False)


def followed(path: str, reason: str) -> Iterator[Read]:
    """What it takes to read a file again as it is replaced: its directory (a Secret is swapped by a rename in it), and where links lead."""
    here, real = Path(path).absolute().parent, Path(path).resolve().parent
    yield Read(str(here), reason)
    if not real.is_relative_to(here.resolve()):
        yield Read(str(real), reason)


def is_covered(need: Need, granted: Iterable[Need]) -> bool:
    """Whether who may do what is `granted` may do this as well; reasons do not count."""
    match need:
        case Listen(host, port, _, protocol):
            return any(isinstance(it, Listen) and (it.port, it.protocol) == (port, protocol) and _is_at(host, it.host) for it in granted)
        case Connect(host, port, _, protocol, _):
            place = _canonical(host), port, protocol
            return any(isinstance(it, Connect) and (_canonical(it.host), it.port, it.protocol) == place for it in granted)
        case Read(path):
            return any(isinstance(it, Read | Write) and _is_below(path, it.path) for it in granted)
        case Write(path):
            return any(isinstance(it, Write) and _is_below(path, it.path) for it in granted)
        case Exec(program):
            return any(isinstance(it, Exec) and it.program == program for it in granted)
        case Kubernetes(verbs, group, resource, _, namespace):
            allowed = {
                verb
                for it in granted
                if isinstance(it, Kubernetes) and (it.group, it.resource) == (group, resource) and it.namespace in ("", namespace)
                for verb in it.verbs
            }
            return allowed.issuperset(verbs)


def _is_at(host: str, granted: str) -> bool:
    if granted in ("0.0.0.0", "::") and _is_address(host):
        return ipaddress.ip_address(host.strip("[]")).version == (4 if granted == "0.0.0.0" else 6)
    return not granted or _canonical(host) == _canonical(granted)


def _canonical(host: str) -> str:
    return str(ipaddress.ip_address(host.strip("[]"))) if _is_address(host) else host.lower().rstrip(".")


def _is_below(path: str, granted: str) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(granted))  # noqa: PTH100  # Path.absolute keeps `..`


def name_resolution(needs: Iterable[Need], resolv_conf: str = "/etc/resolv.conf") -> Iterator[Need]:
    """What it takes to resolve the names among these needs, once for all: libc's files, and the name servers that resolv_conf lists.

    Nothing for addresses. `localhost` is found in the files, which are read for it all the same (glibc, getaddrinfo).
    """
    hosts = [need.host for need in needs if isinstance(need, Connect | Listen)]
    names = sorted({host.lower().rstrip(".") for host in hosts if host and not _is_address(host)})
    if not names:
        return
    why = f"names are resolved: {', '.join(names)}"
    for path in ("/etc/nsswitch.conf", "/etc/host.conf", resolv_conf, "/etc/hosts", "/etc/gai.conf"):
        # Where a link leads: systemd-resolved and NetworkManager keep resolv.conf elsewhere, in a directory where they replace it.
        real = Path(path).resolve()
        yield Read(str(real if real.parent == Path(path).parent else real.parent), why, optional=True)
    remote = [name for name in names if name != "localhost" and not name.endswith(".localhost")]
    for server in _name_servers(resolv_conf) if remote else ():
        for protocol in _DNS_PROTOCOLS:
            yield Connect(server, 53, f"DNS, to resolve {', '.join(remote)}", protocol)


_DNS_PROTOCOLS: tuple[Literal["tcp", "udp"], ...] = ("udp", "tcp")
"""Answers that do not fit a datagram are asked for again over tcp (RFC 7766)."""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _name_servers(resolv_conf: str) -> list[str]:
    """The first three, as glibc; its default where there is none (resolv.conf(5))."""
    try:
        lines = Path(resolv_conf).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    servers = [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]
    return servers[:3] or ["127.0.0.1"]


class ComponentSettings(Settings):
    """Settings of a component, or of a part that several components share (a client, a server, TLS)."""

    def needs(self) -> Iterator[Need]:
        """What running with these settings opens. The default asks every nested part; whoever opens something itself adds to that."""
        for value in self.__dict__.values():
            yield from _needs_of(value)

    def try_reading(self) -> Iterator[Tried]:
        """Of a component that reads what belongs to others: tries what is there and would be read, as far as it is asked to.

        Opens and closes, follows links as the component does, and leaves out what is gone meanwhile; a declared place that does not
        exist is a FileNotFoundError. Blocks: for a thread.
        """
        yield from ()

    def unusable(self) -> Iterator[Unusable]:
        """Of the files that start reads: those that it would refuse, or that are worth a warning. Reads them; asked by `validate` alone,
        because most other commands are not run where the files are. The default asks every nested part."""
        for name, value in self.__dict__.items():
            if isinstance(value, ComponentSettings):
                for found in value.unusable():
                    yield replace(found, where=(name, *found.where))

    def extensions(self) -> Iterator[tuple[KeyPath, str]]:
        """(where, id) of each extension that these settings name; whoever has such a field adds it."""
        for name, value in self.__dict__.items():
            if isinstance(value, ComponentSettings):
                for path, id in value.extensions():
                    yield (name, *path), id

    def conflicts(self, signal: Signal) -> Iterator[tuple[KeyPath, str]]:
        """(where, what) of each setting that a pipeline of this signal cannot use; start would refuse it."""
        yield from ()

    def queued_in(self) -> str:
        """Of an exporter: the storage extension that its queue is in, which it shares with others of its pipelines; empty for none."""
        return ""

    def warnings(self) -> Iterator[str]:
        """What is accepted, but gives up a promise or has no effect here; shown at start and by `validate`."""
        for value in self.__dict__.values():
            if isinstance(value, ComponentSettings):
                yield from value.warnings()


def _needs_of(value: object) -> Iterator[Need]:
    if isinstance(value, ComponentSettings):
        yield from value.needs()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _needs_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _needs_of(item)
