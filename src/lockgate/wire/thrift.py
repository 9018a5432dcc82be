# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Reads Thrift's binary and compact encodings, field by field, without classes for structs. A compiled kernel: see `lockgate.wire`.

Apache Thrift, doc/specs/thrift-binary-protocol.md and thrift-compact-protocol.md; what they leave open is read as Apache's Go library reads
it (messages of the old form without a version; doubles of the compact encoding little-endian). Nothing is believed of what has not come: a
string is no longer than what follows it, a list has no more elements than that has bytes, and nothing is built for what is skipped.

A struct is read so, its strings with `text`, its lists with `elements` and a loop:

    last = 0
    while kind := reader.field(last):
        last = reader.id
        if last == 1 and kind == I64:
            number = reader.integer(kind)
        else:
            reader.skip(kind)
"""

from __future__ import annotations

import cython

from lockgate.wire.protobuf import DecodeError

if not cython.compiled:  # thrift.pxd has the compiled one
    from lockgate.wire.memory import cut

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

# Kinds of values, by the codes of the binary encoding; the compact encoding's are translated to them.
STOP, BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST, UUID = 0, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16
MAX_DEPTH = 64
"""Of structs and containers in each other; Apache's default."""

_UNSIGNED64 = (1 << 64) - 1
_NONE = 255
_KINDS = bytes([0, 2, 2, 3, 6, 8, 10, 4, 11, 15, 14, 13, 12, 16, _NONE, _NONE])
"""The kind for each code of the compact encoding: 1 is a true, 2 a false boolean."""
# In binary: bytes of a value of that kind; 0 where it says so itself.
_WIDTHS = bytes([_NONE, _NONE, 1, 1, 8, _NONE, 2, _NONE, 4, _NONE, 8, 0, 0, 0, 0, 0, 16])


class Reader:
    """A position in bytes of one encoding. Every method raises DecodeError for what is not there, or is no Thrift."""

    def __init__(self, data: bytes, compact: bool) -> None:
        self.data = bytes(data)
        self.src, self.kinds, self.widths = self.data, _KINDS, _WIDTHS
        self.size = len(self.data)
        self.at = 0
        """How far it was read."""
        self.id = 0
        """Of the field that `field` found."""
        self.element = 0
        """Kind of the elements that `elements` found."""
        self.compact = compact
        self.truth = False

    def message(self) -> bytes:
        """The name of the method that a message calls, and goes to its arguments, which are a struct; its type and number are not read."""
        if self.compact:
            if self.size < 2 or self.src[0] != 0x82 or self.src[1] & 0x1F != 1:
                raise DecodeError("no message of Thrift's compact encoding, version 1")
            self.at = 2
            self.varint()
            return self.text()
        if self.fixed(4) >> 31:
            if self.src[0] != 0x80 or self.src[1] != 1:
                raise DecodeError("no message of Thrift's binary encoding, version 1")
            name = self.text()
        else:
            self.at = 0
            name = self.text()
            self.fixed(1)
        self.fixed(4)
        return name

    def field(self, last: int) -> int:
        """The kind of the struct's next field; STOP behind its last. `last` is the id of the field before it, 0 for none."""
        code = self.fixed(1)
        if self.compact:
            kind = self.kinds[code & 15]
            if kind != 0:
                self.id = (last + (code >> 4) if code >> 4 else self.integer(4)) & 0xFFFF
                self.truth = code & 15 == 1
        else:
            kind = code if code < 17 else 255
            if kind != 0:
                self.id = self.fixed(2)
        if kind == 255 or (kind != 0 and self.widths[kind] == 255):
            raise DecodeError(f"byte {self.at} stands behind a field of unknown kind {code}")
        return kind

    def boolean(self) -> bool:
        """The value of a BOOL field."""
        return self.truth if self.compact else self.fixed(1) == 1

    def integer(self, kind: int) -> int:
        """A BYTE, I16, I32 or I64, as two's complement of 64 bits: -1 is 2**64 - 1."""
        if self.compact and kind != 3:
            number = self.varint()
            return number >> 1 ^ (_UNSIGNED64 if number & 1 else 0)
        width = self.widths[kind]
        number = self.fixed(width)
        if width < 8 and number >> 8 * width - 1:
            number |= _UNSIGNED64 << 8 * width & _UNSIGNED64
        return number

    def double_bits(self) -> int:
        """The 64 bits of a DOUBLE."""
        number = self.fixed(8)
        if self.compact:
            swapped = 0
            for _ in range(8):
                swapped = swapped << 8 | number & 255
                number >>= 8
            return swapped
        return number

    def length(self) -> int:
        """The length of a STRING, whose bytes follow from `at` on, and are to be gone over by whoever asks."""
        size = self.varint() if self.compact else self.fixed(4)
        if size > self.size - self.at:
            raise DecodeError(f"a string of {size} bytes at byte {self.at}, where {self.size - self.at} are left")
        return size

    def text(self) -> bytes:
        """The bytes of a STRING."""
        size = self.length()
        start = self.at
        self.at += size
        return cut(self.src, start, size)

    def elements(self) -> int:
        """How many elements of the kind `element` a LIST or SET has, which follow."""
        code = self.fixed(1)
        if self.compact:
            count = code >> 4
            if count == 15:
                count = self.varint()
            self.element = self.kinds[code & 15]
        else:
            count = self.fixed(4)
            self.element = code if code < 17 else 255
        self.check_elements(count, self.element)
        return count

    def structs(self) -> int:
        """How many structs a LIST or SET has, which follow; a DecodeError where it holds anything else."""
        count = self.elements()
        if count and self.element != 12:
            raise DecodeError(f"a list of values of kind {self.element} before byte {self.at}, where structs belong")
        return count

    def skip(self, kind: int) -> None:
        """Goes over the value of a field."""
        if not (self.compact and kind == 2):
            self.skip_value(kind, 0)

    def skip_value(self, kind: int, depth: int) -> None:
        """Goes over a value; a boolean is a byte here, as it is in a list."""
        if depth > 64:
            raise DecodeError(f"structs and lists are nested more than {MAX_DEPTH} deep")
        if kind == 12:
            last = 0
            inner = self.field(last)
            while inner != 0:
                last = self.id
                if not (self.compact and inner == 2):
                    self.skip_value(inner, depth + 1)
                inner = self.field(last)
        elif kind == 14 or kind == 15:
            count = self.elements()
            inner = self.element
            while count:
                self.skip_value(inner, depth + 1)
                count -= 1
        elif kind == 13:
            self.skip_map(depth)
        elif kind == 11:
            size = self.length()
            self.at += size
        elif self.compact and (kind == 6 or kind == 8 or kind == 10):
            self.varint()
        else:
            self.advance(self.widths[kind])

    def skip_map(self, depth: int) -> None:
        """Goes over a MAP."""
        if self.compact:
            count = self.varint()
            code = self.fixed(1) if count else 0
            key, value = self.kinds[code >> 4], self.kinds[code & 15]
        else:
            key, value = self.fixed(1), self.fixed(1)
            count = self.fixed(4)
            if key > 16 or value > 16:
                key = 255
        self.check_elements(count, key)
        self.check_elements(count, value)
        while count:
            self.skip_value(key, depth + 1)
            self.skip_value(value, depth + 1)
            count -= 1

    def check_elements(self, count: int, kind: int) -> None:
        """Each element takes a byte at least."""
        if count > self.size - self.at:
            raise DecodeError(f"{count} elements from byte {self.at} on, where {self.size - self.at} bytes are left")
        if count and (kind == 255 or self.widths[kind] == 255):
            raise DecodeError(f"elements of an unknown kind from byte {self.at} on")

    def advance(self, size: int) -> None:
        """Goes over so many bytes."""
        if size > self.size - self.at:
            raise DecodeError(f"{size} bytes are missing behind the last one, {self.size}")
        self.at += size

    def fixed(self, width: int) -> int:
        """A big-endian number of so many bytes."""
        at = self.at
        self.advance(width)
        number = 0
        while at < self.at:
            number = number << 8 | self.src[at]
            at += 1
        return number

    def varint(self) -> int:
        """A base-128 number below 2**64."""
        number = shift = 0
        while shift < 70:
            if self.at >= self.size:
                raise DecodeError(f"a varint runs past the end, byte {self.size}")
            byte = self.src[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number & _UNSIGNED64
            shift += 7
        raise DecodeError(f"a varint before byte {self.at} is longer than ten bytes")
