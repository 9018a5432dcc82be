"""A cluster's network on this machine: a network namespace for each pod and host, one that routes between them, real sockets in each.

Every address is the test's own and exists inside these namespaces alone. Needs root, ip (iproute2), nft and, for names,
dnsmasq.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from support.policies import Cluster, Connection, nftables

PEER = Path(__file__).with_name("netns_peer.py")
missing = (
    "needs root, to make network namespaces"
    if os.geteuid()
    else "".join(
        f"{tool} is not installed"
        for tool in ("ip", "nft", "dnsmasq")
        if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    )
)
"""Why it cannot run here; empty where it can."""
_numbers = itertools.count()
_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET."""
_ROUTER = "100.127.255.1"
"""What every pod sends through; the same address on each link."""


T = TypeVar("T")


def enter(namespace: str) -> None:
    """Moves this thread, and none of the others, into the network namespace at this path: sockets that it makes belong there."""
    with open(namespace, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def within(namespace: str, call: Callable[[], T]) -> T:
    """What this gives in a thread of its own in that network namespace."""
    with ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,)) as pool:
        return pool.submit(call).result()


class Network:
    """`with Network(cluster) as network:` makes the namespaces; leaving ends every process in them and removes them."""

    def __init__(self, cluster: Cluster, name_server: str = "") -> None:
        self.cluster, self._name_server = cluster, name_server
        self._prefix = f"lg{os.getpid()}-{next(_numbers)}"
        self._peers: dict[str, subprocess.Popen[str]] = {}
        self._started: list[subprocess.Popen[Any]] = []
        self._made: list[str] = []

    def namespace(self, name: str) -> str:
        """Of a place, or of `router`."""
        return f"{self._prefix}-{name}"

    def path(self, name: str) -> str:
        """Of the namespace of a place."""
        return f"/run/netns/{self.namespace(name)}"

    def inside(self, name: str) -> list[str]:
        """What to put before a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def __enter__(self) -> Self:
        try:
            self._make("router")
            self._in("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
            for number, (name, place) in enumerate(self.cluster.places.items()):
                self._join(name, place.address, number)
            self._in("router", "ip", "link", "set", "lo", "up")
            # A Service's address is nobody's: without a route the packet would not reach the place where it is rewritten.
            for address in {vip.address for vip in self.cluster.vips}:
                self._in("router", "ip", "route", "add", "blackhole", address)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what was started, by pid; remove the namespaces."""
        self._started += self._peers.values()
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", self.namespace(name)], check=False)
            shutil.rmtree(f"/etc/netns/{self.namespace(name)}", ignore_errors=True)

    def _make(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self.namespace(name)], check=True)
        self._made.append(name)

    def _in(self, name: str, *command: str) -> None:
        subprocess.run([*self.inside(name), *command], check=True)

    def _join(self, name: str, address: str, number: int) -> None:
        """As Calico does it: one address on a link of its own, everything routed by the host."""
        self._make(name)
        if self._name_server:
            folder = Path("/etc/netns", self.namespace(name))  # `ip netns exec` shows these files as /etc's
            folder.mkdir(parents=True)
            (folder / "resolv.conf").write_text(f"nameserver {self._name_server}\noptions timeout:1 attempts:2\n")
        link = f"p{number}"
        far = ("peer", "name", "eth0", "netns", self.namespace(name))
        self._in("router", "ip", "link", "add", link, "type", "veth", *far)
        self._in("router", "ip", "link", "set", link, "up")
        self._in("router", "ip", "route", "add", f"{address}/32", "dev", link)
        self._in("router", "ip", "address", "add", f"{_ROUTER}/32", "dev", link)
        self._in(name, "ip", "link", "set", "lo", "up")
        self._in(name, "ip", "address", "add", f"{address}/32", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        self._in(name, "ip", "route", "add", _ROUTER, "dev", "eth0")
        self._in(name, "ip", "route", "add", "default", "via", _ROUTER)

    def enforce(self, cluster: Cluster) -> None:
        """Puts these policies (and the Services) into force, at once and whole. Connections that stand already go on."""
        subprocess.run([*self.inside("router"), "nft", "-f", "-"], input=nftables(cluster), text=True, check=True)

    def start(self, name: str, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None = None) -> Any:
        """A process there."""
        process = subprocess.Popen(
            [*self.inside(name), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
        self._started.append(process)
        return process

    def listen(self, ports: Iterable[tuple[str, int]]) -> None:
        """Every place listens on these ports, but for those that a program there has."""
        wanted = [list(port) for port in ports]
        for name in self.cluster.places:
            self._peers[name] = subprocess.Popen(
                [*self.inside(name), sys.executable, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self._ask({name: {"listen": wanted} for name in self.cluster.places})

    def reachable(self, connections: Iterable[Connection], expected: Iterable[Connection]) -> set[Connection]:
        """Which of these really get through; the target may be a place's name or an address. What is expected to is tried for longer."""
        passed, deadline = self._try(connections, 0.7), time.monotonic() + 30
        while (left := set(expected) - passed) and time.monotonic() < deadline:
            passed |= self._try(left, 2)
        return passed

    def _try(self, connections: Iterable[Connection], seconds: float) -> set[Connection]:
        asked: dict[str, list[Connection]] = {}
        for connection in connections:
            asked.setdefault(connection[0], []).append(connection)
        tries = {
            name: {"try": [[self._address(target), protocol, port] for _, target, protocol, port in those], "seconds": seconds}
            for name, those in asked.items()
        }
        answers = self._ask(tries)
        return {each for name, those in asked.items() for each, passed in zip(those, answers[name], strict=True) if passed}

    def _address(self, target: str) -> str:
        place = self.cluster.places.get(target)
        return place.address if place is not None else target

    def _ask(self, questions: Mapping[str, Any]) -> dict[str, list[bool]]:
        for name, question in questions.items():
            stdin = self._peers[name].stdin
            assert stdin is not None
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        answers: dict[str, list[bool]] = {}
        for name in questions:
            stdout = self._peers[name].stdout
            assert stdout is not None
            answers[name] = json.loads(stdout.readline())
        return answers
