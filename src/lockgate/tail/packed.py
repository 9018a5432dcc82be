"""Reads a gzip file's content by position, as if it were plain: in bounded pieces, forward. Going back begins again at its beginning.

What a kubelet compresses is one member; other rotators append several, and pad. A file that ends early or is damaged gives what is good of
it, and `error` says why there is no more.
"""

import os

from isal import igzip_lib
from isal.igzip_lib import IsalError

_INPUT_BYTES = 64 << 10
_OUTPUT_BYTES = 256 << 10


class Unpacked:
    """The content of the open gzip file `descriptor`, which stays the caller's. Keeps what the last call gave, from its position on."""

    __slots__ = ("_descriptor", "_input", "_kept", "_member", "_padding", "_start", "ended", "error", "read_bytes")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begin()

    def _begin(self) -> None:
        self._member: igzip_lib.IgzipDecompressor | None = None
        self._input = b""
        self._start = 0
        """Position of the first byte kept."""
        self._kept = bytearray()
        self.ended = False
        """Whether everything there is was unpacked."""
        self.error = ""
        self.read_bytes = 0
        """Compressed bytes used."""

    @property
    def end(self) -> int:
        """How far it was unpacked; when it has ended, how much there is."""
        return self._start + len(self._kept)

    def pread(self, size: int, position: int) -> bytes:
        """As os.pread: fewer bytes than asked for at the end alone."""
        if position < self._start:
            self._begin()
        while self.end < position + size and not self.ended:
            self._kept += self._more(min(_OUTPUT_BYTES, position + size - self.end))
            self._drop(position)
        self._drop(position)
        begin = position - self._start
        return bytes(self._kept[begin : begin + size]) if begin >= 0 else b""

    def pause(self) -> None:
        """Take no memory until the next call, which then begins at the beginning."""
        if not self.ended:
            self._begin()

    def forget(self, position: int) -> None:
        """Keep nothing from before this position."""
        self._drop(position)

    def _drop(self, position: int) -> None:
        unneeded = min(position - self._start, len(self._kept))
        if unneeded > 0:
            del self._kept[:unneeded]
            self._start += unneeded

    def _more(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        while True:
            if not self._input and (self._member is None or self._member.needs_input):
                self._input = os.pread(self._descriptor, _INPUT_BYTES, self.read_bytes)
                self.read_bytes += len(self._input)
                if not self._input:
                    return self._finish("" if self._member is None and self.read_bytes else "it ends early")
            if self._member is None:
                if self.read_bytes > len(self._input):  # between members
                    self._input = self._input.lstrip(b"\0")
                    if not self._input:
                        continue
                self._member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
            try:
                content = self._member.decompress(self._input, size)
            except (IsalError, EOFError, ValueError) as error:  # type: ignore[misc]  # the stub declares the class as an instance
                return self._finish(str(error))
            self._input = b""
            if self._member.eof:
                self._input, self._member = self._member.unused_data, None
            if content:
                return content

    def _finish(self, error: str) -> bytes:
        self.ended, self.error, self._member, self._input = True, error, None, b""
        return b""


def unpacked_size(descriptor: int, size: int) -> int:
    """How much a gzip file of one member (a kubelet's) says that it holds: RFC 1952, ISIZE."""
    return int.from_bytes(os.pread(descriptor, 4, max(0, size - 4)), "little")
