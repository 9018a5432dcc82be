"""Needs: what a component opens, asks and touches, said by its settings before anything is opened.

From the union of a configuration's needs follow the table of `lockgate needs`, the network policies, the RBAC rules and the process's own
sandbox. Nothing may be opened that is not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lockgate.kit.document import Path
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
    """Opens connections to host:port; names are resolved by DNS, which is a need of its own that follows from this one."""

    host: str
    port: int
    reason: str
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True, slots=True)
class Read:
    """Reads files at or under this path; a glob's need is its longest fixed directory."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Write:
    """Creates, reads, replaces and deletes files at or under this directory."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Asks the API server: these verbs on this resource; namespace "" is the whole cluster."""

    verbs: tuple[str, ...]
    group: str
    resource: str
    reason: str
    namespace: str = ""


Need = Listen | Connect | Read | Write | Kubernetes


class ComponentSettings(Settings):
    """Settings of a component, or of a part that several components share (a client, a server, TLS)."""

    def needs(self) -> Iterator[Need]:
        """What running with these settings opens. The default asks every nested part; whoever opens something itself adds to that."""
        for value in self.__dict__.values():
            yield from _needs_of(value)

    def extensions(self) -> Iterator[tuple[Path, str]]:
        """(where, id) of each extension that these settings name; whoever has such a field adds it."""
        for name, value in self.__dict__.items():
            if isinstance(value, ComponentSettings):
                for path, id in value.extensions():
                    yield (name, *path), id

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
