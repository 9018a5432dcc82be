# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where the resources stand in an export request. A compiled kernel: see `lockgate.wire`. It serves `Batch.map_resources`."""

from __future__ import annotations

import cython

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
