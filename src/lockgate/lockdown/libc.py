"""libc, of which Python's standard library does not offer `syscall` and `prctl`."""

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

_PR_SET_NO_NEW_PRIVS = 38


def syscall(number: int, *arguments: object) -> int:
    """The result; raises OSError. Integers as ctypes' fixed-width types where they exceed an int."""
    result = int(LIBC.syscall(number, *arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def forbid_new_privileges() -> None:
    """No program started from here on gains rights by its mode bits, which is what the kernel asks before it takes rules from anybody."""
    if LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
