"""A journal file that is cut while it is read: the kernel sends SIGBUS for its pages that are gone, which would end the process.

As journalctl does (systemd, basic/sigbus.c), a page of zeros is put where the fault was, and whoever reads asks `happened` afterwards. The
handler is Python: it runs where otherwise the process would end, in the thread that read, which holds no lock that it needs. Faults of
threads that do not read journals have the outcome that they had before.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SA_SIGINFO = 4
_MAP_FIXED = 0x10
_ADDRESS_AT = 16
"""Where siginfo_t has si_addr, on Linux of 64 bits."""


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc and musl on Linux of 64 bits."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_before = _Action()
_handler: Any = None
_readers: set[int] = set()
_faults = 0


@contextmanager
def survived() -> Iterator[None]:
    """What this thread reads of mapped files inside does not end the process."""
    global _handler
    if _handler is None:
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_fault)
        action = _Action(handler=ctypes.cast(_handler, ctypes.c_void_p), flags=_SA_SIGINFO)
        if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_before)) != 0:
            raise OSError(ctypes.get_errno(), "cannot handle SIGBUS")
    _readers.add(threading.get_ident())
    try:
        yield
    finally:
        _readers.discard(threading.get_ident())


def happened() -> int:
    """How often so far; what has been read since may be zeros that no file holds."""
    return _faults


def _fault(number: int, information: int, _: int) -> None:
    global _faults
    address = ctypes.c_size_t.from_address(information + _ADDRESS_AT).value
    page = address - address % mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    if threading.get_ident() in _readers and _libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0) == page:
        _faults += 1
    else:
        _libc.sigaction(number, ctypes.byref(_before), None)  # the access is tried again, and fails as it would have
