# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Log records by what a few of their attributes hold, and the same records in another arrangement. A compiled kernel: see `lockgate.wire`.

It decides nothing: `index` says which records are alike (same resource, scope and values under the keys), the caller decides once for each
such group, and `gather` copies the records to where their group goes. Against parsing everything with upb, deciding for each record and
encoding again this costs a tenth. It knows the plain form in which everybody writes; for any other, `index` has no answer, and the caller
goes by upb.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import cython

from lockgate.wire.protobuf import varint

if not cython.compiled:  # records.pxd has the compiled ones
    from lockgate.wire.memory import copy, equal, mixed, new_buffer

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

_MOST = 65536
"""Resources, scopes and groups: what there is a Python object for. With more of them than this, parsing is no dearer."""
_FEW = 256
"""Groups that there may be however few records there are; above, one for two records: deciding costs as much as one by upb."""
_MOST_KEYS = 32
_MOST_PROBES = 64  # so that values made to collide cost no more than this


class Group(NamedTuple):
    """Records of one scope with the same bytes under each key."""

    scope: int
    """Number of the scope in `Index.scopes`."""
    values: tuple[bytes | None, ...]
    """For each key the encoded AnyValue, or None where the records have no such attribute."""
    records: int


class Index:
    """A request's records by group. Groups, scopes and resources are numbered in the order in which they are first seen."""

    def __init__(self, payload: bytes, keys: tuple[bytes, ...]) -> None:
        self.payload = bytes(payload)
        self.src, self.size = self.payload, len(payload)
        self.entries: list[bytes] = []
        """Each ResourceLogs, encoded, without its scope_logs."""
        self.scopes: list[tuple[int, bytes]] = []
        """Of each ScopeLogs that has records: the number of its ResourceLogs, and itself, encoded, without its log_records."""
        self.groups: list[Group] = []
        self.joined = b"".join(keys)  # the compiled form has a pointer to it: it must neither go nor grow
        self.names, self.keys = self.joined, len(keys)
        self.name_ends = array("i", [sum(map(len, keys[: i + 1])) for i in range(len(keys))] or [0])
        self.content = self.first = self.last = self.count = self.found = self.cut = 0

    def field(self, at: int, end: int) -> int:
        """Behind the field there, or -1 where it is not plain (tag of one byte, within the message); `content`: behind tag and length."""
        src = self.src
        tag = src[at]
        wire = tag & 7
        at += 1
        if tag < 8 or tag > 127:
            return -1
        if wire == 2:
            size = shift = 0
            while at < end and shift < 28:
                byte = src[at]
                size |= (byte & 127) << shift
                at += 1
                if byte < 128:
                    self.content = at
                    return at + size if size <= end - at else -1
                shift += 7
            return -1
        self.content = at
        if wire == 0:
            while at < end and at - self.content < 10:
                at += 1
                if src[at - 1] < 128:
                    return at
            return -1
        at += 8 if wire == 1 else 4
        return at if (wire == 1 or wire == 5) and at <= end else -1

    def run(self, at: int, end: int) -> bool:
        """Whether the message's fields 2 stand together: `count` of them in [first, last)."""
        self.first = self.last = end
        self.count = 0
        while at < end:
            start = at
            at = self.field(start, end)
            if at < 0:
                return False
            if self.src[start] == 0x12:
                if self.count == 0:
                    self.first = start
                elif self.last != start:
                    return False
                self.last = at
                self.count += 1
        return True

    def frames(self) -> bool:
        """Notes resources, scopes and where each one's records are."""
        payload, size = self.payload, self.size
        places = array("i")
        at = total = 0
        while at < size:
            stop = self.field(at, size) if self.src[at] == 0x0A else -1
            if stop < 0 or not self.run(self.content, stop) or len(self.entries) == _MOST:
                return False
            start = self.first
            last = self.last
            # The head begins where the content does: `content` has moved on.
            self.field(at, size)
            self.entries.append(payload[self.content : start] + payload[last:stop])
            while start < last:
                inner = self.field(start, last)
                begin = self.content
                if not self.run(begin, inner) or len(self.scopes) == _MOST:
                    return False
                if self.count:
                    self.scopes.append((len(self.entries) - 1, payload[begin : self.first] + payload[self.last : inner]))
                    places.append(self.first)
                    places.append(self.last)
                    total += self.count
                start = inner
            at = stop
        self.records = total
        self.places = places if places else array("i", [0])
        return True

    def allocate(self) -> None:
        """For the counted records. An attribute that is found takes five bytes at least."""
        self.most = min(max(_FEW, self.records // 2), _MOST)
        slots = 1
        while slots < 2 * self.most:
            slots *= 2
        self.mask = slots - 1
        one = array("i", [0])
        self.table = one * slots
        self.rows = one * max(1, 3 * self.records)
        self.cuts = one * (2 * min(self.records * self.keys, self.size // 5) + 2)
        self.values = one * max(1, 2 * self.keys * (self.most + 1))
        self.scope_of, self.count_of, self.size_of, self.hits_of = one * self.most, one * self.most, one * self.most, one * self.most
        self.hashes = array("Q", [0]) * self.most

    def record(self, at: int, end: int) -> bool:
        """The values of one record, noted as those of the next group; False where an attribute is not plain, or there twice."""
        values = self.found * 2 * self.keys
        for i in range(self.keys):
            self.values[values + 2 * i] = -1
        while at < end:
            start = at
            at = self.field(start, end)
            if at < 0 or (self.src[start] == 0x32 and not self.attribute(values, start, self.content, at)):
                return False
        return True

    def attribute(self, values: int, start: int, at: int, end: int) -> bool:
        """A KeyValue in [at, end), as a field from `start` on: at most a key and, behind it, at most a value."""
        src = self.src
        key = value = at
        if at < end and src[at] == 0x0A:
            at = self.field(at, end)
            if at < 0:
                return False
            key = self.content
        size = at - key
        value = at
        if at < end and src[at] == 0x12:
            at = self.field(at, end)
            value = self.content
        if at != end:
            return False
        name = 0
        for i in range(self.keys):
            following = self.name_ends[i]
            if following - name == size and equal(src, key, self.names, name, size):
                if self.values[values + 2 * i] >= 0:
                    return False
                self.values[values + 2 * i] = value
                self.values[values + 2 * i + 1] = end - value
                self.cuts[2 * self.cut] = start
                self.cuts[2 * self.cut + 1] = end
                self.cut += 1
                return True
            name = following
        return True

    def alike(self, group: int, scope: int) -> bool:
        """Whether the values just noted are those of this group."""
        if self.scope_of[group] != scope:
            return False
        here = self.found * 2 * self.keys
        there = group * 2 * self.keys
        for i in range(0, 2 * self.keys, 2):
            a = self.values[here + i]
            b = self.values[there + i]
            if a < 0 or b < 0:
                if a != b:
                    return False
                continue
            size = self.values[here + i + 1]
            if self.values[there + i + 1] != size or not equal(self.src, a, self.src, b, size):
                return False
        return True

    def group(self, scope: int) -> int:
        """The number of the group of the values just noted, or -1 where that would be too many groups."""
        key = mixed(scope, self.src, 0, 0)
        values = self.found * 2 * self.keys
        for i in range(0, 2 * self.keys, 2):
            start = self.values[values + i]
            key = mixed(key, self.src, 0, 0) if start < 0 else mixed(key, self.src, start, self.values[values + i + 1])
        for probe in range(_MOST_PROBES):
            place = (key + probe) & self.mask
            group = self.table[place] - 1
            if group < 0:
                if self.found == self.most:
                    return -1
                self.found += 1
                self.table[place] = self.found
                self.hashes[self.found - 1] = key
                self.scope_of[self.found - 1] = scope
                return self.found - 1
            if self.hashes[group] == key and self.alike(group, scope):
                return group
        return -1

    def each_record(self, scopes: int) -> bool:
        row = 0
        group = -1
        for scope in range(scopes):
            at = self.places[2 * scope]
            end = self.places[2 * scope + 1]
            while at < end:
                stop = self.field(at, end)
                before = self.cut
                if not self.record(self.content, stop):
                    return False
                # Consecutive records are mostly alike, and comparing is cheaper than hashing.
                if group < 0 or not self.alike(group, scope):
                    group = self.group(scope)
                    if group < 0:
                        return False
                self.count_of[group] += 1
                self.size_of[group] += stop - at
                self.hits_of[group] = self.cut - before
                self.rows[row] = at
                self.rows[row + 1] = stop
                self.rows[row + 2] = group
                row += 3
                at = stop
        return True

    def name_groups(self) -> None:
        """Makes `groups` of what was found."""
        for group in range(self.found):
            values: list[bytes | None] = []
            for i in range(group * 2 * self.keys, (group + 1) * 2 * self.keys, 2):
                start = self.values[i]
                values.append(None if start < 0 else self.payload[start : start + self.values[i + 1]])
            self.groups.append(Group(self.scope_of[group], tuple(values), self.count_of[group]))

    def copy_records(self, homes: array[int], fill: array[int], out: bytearray, remove: bool) -> None:
        """Each record to fill[its home], which moves on; records of home -1 nowhere. `remove`: without the attributes under the keys."""
        src = self.src
        cut = 0
        for row in range(0, 3 * self.records, 3):
            group = self.rows[row + 2]
            hits = self.hits_of[group]
            home = homes[group]
            if home >= 0:
                at = self.rows[row]
                end = self.rows[row + 1]
                o = fill[home]
                if remove and hits > 0:
                    self.field(at, end)
                    at = self.content
                    size = end - at
                    for i in range(cut, cut + hits):
                        size -= self.cuts[2 * i + 1] - self.cuts[2 * i]
                    out[o] = 0x12
                    o += 1
                    while size > 127:
                        out[o] = size & 127 | 128
                        size >>= 7
                        o += 1
                    out[o] = size
                    o += 1
                    for i in range(cut, cut + hits):
                        o = copy(out, o, src, at, self.cuts[2 * i] - at)
                        at = self.cuts[2 * i + 1]
                fill[home] = copy(out, o, src, at, end - at)
            cut += hits


def index(payload: bytes, keys: Sequence[bytes]) -> Index | None:
    """The records of an ExportLogsServiceRequest by the values of their attributes under these (different, not empty) keys.

    None where that is left to upb: a message that is not plain (tags of two bytes, fields out of order, a key twice in one record), or
    so many groups that deciding for each one gains nothing. The payload should be valid; of any other the answer is None, or of no use.
    Thread-safe; works without the GIL.
    """
    if len(payload) > 0x7FFFFFFF or len(keys) > _MOST_KEYS or not all(keys):
        return None
    work = Index(payload, tuple(keys))
    if not work.frames():
        return None
    work.allocate()
    scopes = cython.declare(cython.Py_ssize_t, len(work.scopes))
    with cython.nogil:
        ok = work.each_record(scopes)
    if not ok:
        return None
    work.name_groups()
    return work


def gather(index: Index, homes: Sequence[int], frames: Sequence[tuple[bytes, Sequence[tuple[bytes, int]]]], remove: bool) -> bytes:
    """The indexed request's records in another arrangement, in their order within each home.

    `homes`: for each group the number of its home, or -1 to leave its records out. `frames`: ResourceLogs, each encoded without scope_logs,
    with its ScopeLogs, each encoded without log_records, and the home whose records stand there. `remove`: whether the attributes under the
    index's keys go. Raises ValueError for homes that are not one for each group.
    """
    if len(homes) != len(index.groups) or min(homes, default=0) < -1:
        raise ValueError(f"{len(index.groups)} groups need as many homes, from -1 on, not {list(homes)[:10]}")
    work = cython.declare(Index, index)
    rooms = [0] * (max(homes, default=-1) + 1)
    for group in range(len(homes)):
        if homes[group] >= 0:
            rooms[homes[group]] += work.size_of[group]
    starts = list(accumulate(rooms, initial=0))
    buffer = new_buffer(starts.pop())
    places = array("i", homes or [0])
    fill = array("i", starts or [0])
    places_view = cython.declare("int[::1]", places)
    fill_view = cython.declare("int[::1]", fill)
    out = cython.declare("unsigned char*", buffer)
    removing = cython.declare(cython.bint, remove)
    with cython.nogil:
        work.copy_records(places_view, fill_view, out, removing)
    view = memoryview(buffer)
    pieces: list[bytes | memoryview] = []
    for entry, scopes in frames:
        size = len(entry)
        inner: list[bytes | memoryview] = []
        for scope, home in scopes:
            held = view[starts[home] : fill[home]]
            head = b"\x12" + varint(len(scope) + len(held)) + scope
            inner += (head, held)
            size += len(head) + len(held)
        pieces += (b"\x0a" + varint(size) + entry, *inner)
    return b"".join(pieces)
