"""From telemetry to the pod that it came from: what counts as an address, and edited resources kept for as long as what they hang on.

An edit is kept under the raw bytes (and the peer, where that decides), together with every look-up in the caches that led to it. The caches
replace an object only when something that matters has changed, so the result holds for as long as each look-up still gives the very same
object, "not found" included.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue

MAX_BYTES = 32 << 20
"""Raw and edited bytes kept: some 15,000 resources with many labels."""
_ENTRY_BYTES = 600
"""What an entry costs beside its bytes: keys, tuples, a dict's slot."""

Look = Callable[[Any], Any]
LookUp = tuple[Look, Hashable, Any]
"""A look-up that led to a result: the function, what it was given, what it gave."""
Ask = Callable[[Look, Hashable], Any]
"""Does a look-up and remembers it."""


class _Edit:
    """One result, and what it hangs on."""

    __slots__ = ("look_ups", "result", "size")

    def __init__(self, result: bytes, look_ups: tuple[LookUp, ...], size: int) -> None:
        self.result, self.look_ups, self.size = result, look_ups, size


class EditsByLookUp:
    """Outcomes of `edit(raw, peer, ask)`, for `Batch.map_resources`; beyond `MAX_BYTES` the oldest go."""

    def __init__(self, edit: Callable[[bytes, str, Ask], bytes]) -> None:
        self._edit = edit
        self._edits: dict[tuple[str, bytes], _Edit] = {}
        self._bytes = 0

    def bound(self, peer: str) -> Callable[[bytes], bytes]:
        """The edit for this peer."""
        return functools.partial(self._edited, peer)

    def _edited(self, peer: str, raw: bytes) -> bytes:
        known = self._edits.get((peer, raw))
        if known is not None:
            for look, key, seen in known.look_ups:
                if look(key) is not seen:
                    break
            else:
                return known.result
            del self._edits[peer, raw]
            self._bytes -= known.size
        trail: list[LookUp] = []

        def ask(look: Look, key: Hashable) -> Any:
            found = look(key)
            trail.append((look, key, found))
            return found

        result = self._edit(raw, peer, ask)
        size = len(raw) + len(result) + _ENTRY_BYTES
        while self._bytes + size > MAX_BYTES and self._edits:
            oldest = next(iter(self._edits))
            self._bytes -= self._edits.pop(oldest).size
        if size <= MAX_BYTES:
            self._edits[peer, raw] = _Edit(result, tuple(trail), size)
            self._bytes += size
        return result


def any_ip(attributes: Mapping[str, AnyValue], peer: str) -> str:
    """The pod's IP where nobody says how to find it: `k8s.pod.ip`, `ip`, the peer's, or `host.name`; "" where none is there."""
    host = string(attributes, "host.name")
    return string(attributes, "k8s.pod.ip") or string(attributes, "ip") or plain_ip(peer) or (host if is_ip(host) else "")


def string(attributes: Mapping[str, AnyValue], name: str) -> str:
    """The attribute where it is a string, "" otherwise."""
    value = attributes.get(name)
    return value.string_value if value is not None else ""


@functools.lru_cache(maxsize=4096)
def plain_ip(peer: str) -> str:
    """A peer's address as Kubernetes writes it: an IPv4 address that came in over IPv6 is an IPv4 address."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    return str(getattr(address, "ipv4_mapped", None) or address)


@functools.lru_cache(maxsize=4096)
def is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
