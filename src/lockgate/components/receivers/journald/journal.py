"""libsystemd's journal reader, called directly.

cysystemd brings the library, and we call it ourselves: cysystemd's own reader replaces what is no UTF-8, leaves out all fields behind one
of more than 1 MB, and cannot say `A and B, or C and D`. Every call releases the interpreter lock. A reader is used by one thread at a time.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

from lockgate.components.receivers.journald import shrunk

_LARGEST = 1 << 20
"""Bytes of one field; a longer one is cut. journald accepts 768 MB."""
_LARGEST_ENTRY = 8 << 20
"""Bytes of one entry; fields behind that are left out."""

_library: Any = None


def _load() -> Any:
    global _library
    if _library is None:
        import cysystemd.reader

        # A look-up in an extension module finds what it is linked with: the libsystemd of its wheel.
        _library = ctypes.CDLL(cysystemd.reader.__file__)
    return _library


class Journal:
    """An open journal: a directory, or some files. Raises OSError, with what libsystemd says. Files may shrink where `shrunk.survived`."""

    def __init__(self, directory: str, files: Sequence[str], conditions: list[list[list[str]]]) -> None:
        self._lib = _load()
        self._shrunk = shrunk.happened()
        self._handle = ctypes.c_void_p()
        handle = ctypes.byref(self._handle)
        if files:
            paths = (ctypes.c_char_p * (len(files) + 1))(*(os.fsencode(path) for path in files), None)
            self._check(self._lib.sd_journal_open_files(handle, paths, 0), "open")
        else:
            self._check(self._lib.sd_journal_open_directory(handle, os.fsencode(directory), 0), "open")
        self.truncated = 0
        """Fields cut, and entries whose last fields were left out."""
        self.damaged = 0
        """Entries that could not be read to their end."""
        self._size, self._data = ctypes.c_size_t(), ctypes.c_void_p()
        try:
            self._call("set_data_threshold", ctypes.c_size_t(_LARGEST + 1))
            for groups in conditions:
                for group in groups:
                    for match in group:
                        raw = match.encode()
                        self._call("add_match", raw, ctypes.c_size_t(len(raw)))
                    self._call("add_disjunction")
                self._call("add_conjunction")
            self.descriptor = int(self._call("get_fd"))
            """Becomes readable when the journal may have changed; then call `process`."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        if self._handle:
            self._lib.sd_journal_close(self._handle)
            self._handle = ctypes.c_void_p()

    def process(self) -> None:
        """Takes notice of what has changed: entries, files that are new or gone."""
        self._call("process")

    def seek_head(self) -> None:
        """`next` is the first entry."""
        self._call("seek_head")

    def seek_tail(self) -> str:
        """`next` is what is written from now on. Gives the cursor of the last entry; empty where there is none."""
        self._call("seek_tail")
        if self._call("previous"):
            return self.cursor
        self.seek_head()
        return ""

    def seek(self, cursor: str) -> bool:
        """`next` is the entry behind this one, or the one that took its place where it is gone; whether it was there."""
        self._call("seek_cursor", cursor.encode())
        if self._call("next") and self._call("test_cursor", cursor.encode()):
            return True
        self._call("seek_cursor", cursor.encode())
        return False

    def next(self) -> bool:
        """Goes to the next entry; whether there is one. Raises OSError also where a file has shrunk: then open anew."""
        found = bool(self._call("next"))
        self.check()
        return found

    def check(self) -> None:
        """Raises OSError where a file has shrunk since the journal was opened, so that what was read may be wrong."""
        if shrunk.happened() != self._shrunk:
            raise OSError(errno.EIO, "a file was cut while it was read")

    @property
    def cursor(self) -> str:
        """Where the entry is, for `seek`."""
        text = ctypes.c_void_p()
        self._call("get_cursor", ctypes.byref(text))
        try:
            return ctypes.string_at(text.value or 0).decode()
        finally:
            _free(text)

    def times(self) -> tuple[int, int]:
        """The entry's microseconds since 1970, and since its boot."""
        real, monotonic, boot = ctypes.c_uint64(), ctypes.c_uint64(), (ctypes.c_uint8 * 16)()
        self._call("get_realtime_usec", ctypes.byref(real))
        self._call("get_monotonic_usec", ctypes.byref(monotonic), boot)
        return real.value, monotonic.value

    def fields(self) -> Iterator[bytes]:
        """`NAME=value` of each field of the entry; a name may come several times."""
        self._lib.sd_journal_restart_data(self._handle)
        held = 0
        enumerate, data, size = self._lib.sd_journal_enumerate_available_data, ctypes.byref(self._data), ctypes.byref(self._size)
        while (result := enumerate(self._handle, data, size)) > 0:
            length = self._size.value
            if length > _LARGEST:
                self.truncated += 1
                length = _LARGEST
            held += length
            if held > _LARGEST_ENTRY:
                self.truncated += 1
                return
            yield ctypes.string_at(self._data, length)
        if result < 0:
            self.damaged += 1

    def _call(self, name: str, *arguments: Any) -> int:
        return self._check(getattr(self._lib, f"sd_journal_{name}")(self._handle, *arguments), name)

    @staticmethod
    def _check(result: int, what: str) -> int:
        if result < 0:
            raise OSError(-result, f"{os.strerror(-result)} (sd_journal_{what})")
        return int(result)


_free = ctypes.CDLL(None).free
_free.argtypes = [ctypes.c_void_p]
_free.restype = None
