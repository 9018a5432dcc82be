# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where the resources stand in an export request, and others in their place. A compiled kernel: see `lockgate.wire`.

It serves `Batch.map_resources`.
"""

from __future__ import annotations

from collections.abc import Callable

import cython

from lockgate.wire.protobuf import varint

compiled: bool = cython.compiled
"""Whether this is the compiled form."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _field(p: cython.p_uchar, at: cython.Py_ssize_t, end: cython.Py_ssize_t, found: cython.p_longlong) -> cython.bint:
    """Whether a delimited field with a tag of one byte stands here; found becomes (where its content starts, where it ends)."""
    size: cython.Py_ssize_t = 0
    shift: cython.int = 0
    if at >= end or p[at] & 0x87 != 2:
        return False
    at += 1
    while at < end and shift < 28:  # four bytes: what is larger than 256 MB is not plain
        size |= cython.cast(cython.Py_ssize_t, p[at] & 127) << shift
        at += 1
        if p[at - 1] < 128:
            found[0] = at
            found[1] = at + size
            return size <= end - at
        shift += 7
    return False


def locate(payload: bytes) -> list[tuple[int, int, int]] | None:
    """(start, end) of each resource message and the end of all that belongs to it, which is where the next one's begins.

    Only for requests as everybody writes them: nothing but field 1, the resource first in it, and behind it delimited fields that are not
    another piece of the resource. None for any other, valid or not.
    """
    p: cython.p_uchar = payload
    found: cython.longlong[2] = [0, 0]
    at: cython.Py_ssize_t = 0
    end: cython.Py_ssize_t
    first: cython.Py_ssize_t
    last: cython.Py_ssize_t
    size: cython.Py_ssize_t = len(payload)
    places: list[tuple[int, int, int]] = []
    while at < size:
        if p[at] != 0x0A or not _field(p, at, size, found):
            return None
        at, end = found[0], found[1]
        if at == end or p[at] != 0x0A or not _field(p, at, end, found):
            return None
        first, last = found[0], found[1]
        at = last
        while at < end:
            if p[at] == 0x0A or not _field(p, at, end, found):
                return None
            at = found[1]
        places.append((first, last, end))
    return places


class Resources:
    """A plain request's resources as they are to be, and all else as it is. Steps that edit resources only add to it; `join` makes the
    bytes, once, however many steps there were."""

    def __init__(self, payload: bytes, places: list[tuple[int, int, int]], raws: list[bytes | None]) -> None:
        self.payload, self.places, self.raws = payload, places, raws
        """`raws`: the resource at each place; None where it is removed, with all that belongs to it."""

    def edited(self, edit: Callable[[bytes], bytes | None]) -> tuple[Resources, list[bytes]] | None:
        """These with `edit(raw)` for each resource, and what of the payload that newly removes; None where nothing changed.

        `edit` is called once for each distinct run of bytes.
        """
        known: dict[bytes, bytes | None] = {}
        out: list[bytes | None] = []
        removed: list[bytes] = []
        changed: cython.bint = False
        for number, raw in enumerate(self.raws):
            new = raw
            if raw is not None:
                if raw in known:
                    new = known[raw]
                else:
                    new = known[raw] = edit(raw)
                if new is None:
                    removed.append(self.payload[self.places[number - 1][2] if number else 0 : self.places[number][2]])
                    changed = True
                elif new is not raw and new != raw:
                    changed = True
            out.append(new)
        return (Resources(self.payload, self.places, out), removed) if changed else None

    def join(self) -> bytes:
        """The request's bytes. What stays is copied in runs, not resource by resource."""
        payload = self.payload
        view = memoryview(payload)
        out: list[bytes | memoryview] = []
        start: cython.Py_ssize_t = 0
        copied: cython.Py_ssize_t = 0
        first: cython.Py_ssize_t
        last: cython.Py_ssize_t
        end: cython.Py_ssize_t
        for (first, last, end), new in zip(self.places, self.raws, strict=True):
            if new is None:
                out.append(view[copied:start])
                copied = end
            elif len(new) != last - first or not payload.startswith(new, first):
                head = b"\x0a" + varint(len(new))
                out += (view[copied:start], b"\x0a" + varint(len(head) + len(new) + end - last) + head, new)
                copied = last
            start = end
        out.append(view[copied:])
        return b"".join(out)


def resources(payload: bytes) -> Resources | None:
    """The request's resources, where `locate` finds them."""
    places = locate(payload)
    return None if places is None else Resources(payload, places, [payload[first:last] for first, last, _ in places])
