"""Tries a configuration's flows from where it runs, and one that must fail: whether the cluster's policies let pass what they should."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lockgate.lockdown.flows import Rows
from lockgate.pipeline.needs import Connect, Kubernetes

State = Literal["open", "closed", "unknown"]
_DNS_METRICS = ("kube-dns.kube-system.svc", 9153)


@dataclass(frozen=True, slots=True)
class Checked:
    """One connection that was tried."""

    host: str
    port: int
    wanted: State
    state: State
    found: str
    """What happened, and what it means."""
    reasons: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether it is as it should be. What nobody could tell is good for a canary alone."""
        return self.state == self.wanted or (self.state == "unknown" and self.wanted == "closed")


async def check(rows: Rows, canaries: Sequence[tuple[str, int]], seconds: float) -> list[Checked]:
    """Opens and closes one TCP connection for each peer of these needs, and for each canary; sends nothing.

    DNS is checked by what has to be resolved. Who may connect to this pod cannot be seen from here.
    """
    wanted: dict[tuple[str, int], list[str]] = {}
    for component, need in rows:
        if isinstance(need, Connect) and need.protocol == "tcp" and not (component == "service" and need.port == 53):
            wanted.setdefault((need.host, need.port), []).append(f"{component}: {need.reason}")
    needed = [_try(*peer, "open", tuple(reasons), seconds) for peer, reasons in wanted.items()]
    denied = [_try(*canary, "closed", _why(canary), seconds) for canary in canaries if canary not in wanted]
    return await asyncio.gather(*needed, *denied)


def _why(canary: tuple[str, int]) -> tuple[str, ...]:
    unsure = ("where the cluster's DNS has no metrics at this port it is closed anyway: then name another with --canary",)
    return ("canary: nothing here needs it", *(unsure if canary == _DNS_METRICS else ()))


def default_canaries(rows: Rows, environment: Mapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """A port that this role does not need: the API server's, which listens in every cluster, or else the metrics of the cluster's DNS."""
    if any(isinstance(need, Kubernetes) for _, need in rows):
        return [_DNS_METRICS]
    host = environment.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    return [(host, int(environment.get("KUBERNETES_SERVICE_PORT", "443")))]


async def _try(host: str, port: int, wanted: State, reasons: tuple[str, ...], seconds: float) -> Checked:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            addresses = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return Checked(
            host, port, wanted, "unknown", f"its name was not answered in {seconds:g} s: is DNS (UDP and TCP 53) allowed?", reasons
        )
    except OSError as error:
        return Checked(
            host, port, wanted, "unknown", f"its name does not resolve: {error.strerror}; is DNS (UDP and TCP 53) allowed?", reasons
        )
    states = [await _connect(family, address, seconds) for family, _, _, _, address in addresses]
    best = next((each for each in states if each[0] == "open"), states[0])
    return Checked(host, port, wanted, *best, reasons)


async def _connect(family: int, address: tuple[object, ...], seconds: float) -> tuple[State, str]:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(connection, address)
        except TimeoutError:
            return "closed", f"{address[0]}: no answer in {seconds:g} s: dropped on the way, as a network policy or a firewall does"
        except ConnectionRefusedError:
            return (
                "unknown",
                f"{address[0]}: refused: it can be reached, and nothing listens there, or a policy rejects instead of dropping",
            )
        except OSError as error:
            local = error.errno in (errno.EACCES, errno.EPERM)
            why = "this process may not (its sandbox, or a local firewall)" if local else "there is no way to it"
            return "closed", f"{address[0]}: {error.strerror}: {why}"
    return "open", f"{address[0]}: connected"
