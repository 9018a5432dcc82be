"""System calls by seccomp: a filter that refuses what no role ever needs (seccomp(2), filter programs).

A list of what is refused, and not of what is allowed: a list of the allowed would have to foresee every C library, OpenSSL and DuckDB
that this is run with, and what it forgot would fail at a user's, months later, on a rare path. What the kernel learns after `_NEWEST` is
refused as unknown, so that the list cannot age into a hole. In a pod the container runtime's own list of the allowed stands before it.
"""

import ctypes
import errno
import os
import struct

from lockgate.lockdown.libc import forbid_new_privileges, syscall

# (x86_64, aarch64); None where the architecture has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "execveat": (322, 281),
    # files past their directories' rules, and what Landlock does not cover
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # the kernel itself, and doors into it that have been broken often
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "acct": (163, 89),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "nfsservctl": (180, 42),
    "_sysctl": (156, None),
    "sysfs": (139, None),
    "ustat": (136, None),
    "lookup_dcookie": (212, 18),
    # the machine's clock and names
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # who this process is
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
}
_STARTS: dict[str, tuple[int | None, int | None]] = {"execve": (59, 221), "fork": (57, None), "vfork": (58, None)}
"""Refused as well where no program may be started."""
_NEWEST = 469
"""file_setattr, of Linux 6.17: the last call that the list above was compared with. From 424 on, both architectures number alike."""

_SECCOMP, _SOCKET, _SOCKETPAIR, _CLONE, _IOCTL = (317, 277), (41, 198), (53, 199), (56, 220), (16, 29)
_SENDTO, _SENDMSG, _SENDMMSG, _CLONE3 = (44, 206), (46, 211), (307, 269), 435
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above, and the kernel's number for it (linux/audit.h)."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4
_CLONE_THREAD, _NEW_NAMESPACES = 0x00010000, 0x7E020000
_MSG_FASTOPEN = 0x20000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _RAW = 1, 2, 3
_TCP, _UDP = 6, 17

_Code = list[tuple[int, int, int, int]]


def program(machine: str, *, udp: bool, programs: bool) -> bytes:
    """The filter for this machine (as platform.machine names it); raises LookupError for one that it is not written for.

    `udp` lets datagram sockets be made, `programs` lets programs be started.
    """
    if machine not in _ARCHITECTURES:
        raise LookupError(f"the filter is written for {' and '.join(_ARCHITECTURES)}, not for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    code: _Code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    # Also x32's numbers, which stand far above. ENOSYS is what C libraries fall back from.
    code += [(_GREATER, 0, 1, _NEWEST), _refuse(errno.ENOSYS)]
    code += _when(_CLONE3, [_refuse(errno.ENOSYS)])  # its flags lie in memory, where no filter can look
    code += _when(_CLONE[column], _clone(programs))
    code += _when(_SOCKET[column], _socket(udp))
    code += _when(_SOCKETPAIR[column], [_argument(0), (_EQUAL, 0, 1, _UNIX), (_RETURN, 0, 0, _ALLOW), _refuse()])
    code += _when(_IOCTL[column], [_argument(1), (_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX), _refuse(), (_RETURN, 0, 0, _ALLOW)])
    for call, index in ((_SENDTO, 3), (_SENDMSG, 2), (_SENDMMSG, 3)):
        # It connects without asking Landlock (github.com/landlock-lsm/linux/issues/41).
        code += _when(call[column], [_argument(index), (_ANY_BIT, 0, 1, _MSG_FASTOPEN), _refuse(), (_RETURN, 0, 0, _ALLOW)])
    for numbers in (*_REFUSED.values(), *(_STARTS.values() if not programs else ())):
        if (number := numbers[column]) is not None:
            code += _when(number, [_refuse()])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(filter: bytes) -> None:
    """Puts the filter before every thread of this process, for good. Raises OSError."""
    forbid_new_privileges()
    code = ctypes.create_string_buffer(filter, len(filter))
    arguments = ctypes.create_string_buffer(struct.pack("@HP", len(filter) // 8, ctypes.addressof(code)))
    number = _SECCOMP[_ARCHITECTURES[os.uname().machine][0]]
    set_mode_filter, thread_sync = 1, 1
    syscall(number, ctypes.c_ulong(set_mode_filter), ctypes.c_ulong(thread_sync), arguments)


def _refuse(code: int = errno.EPERM) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | code)


def _argument(index: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index)  # the low half: both machines are little-endian


def _when(number: int, body: _Code) -> _Code:
    """The body, which ends in a verdict, for this system call; the accumulator holds its number."""
    return [(_EQUAL, 0, len(body), number), *body]


def _clone(programs: bool) -> _Code:
    thread_only: _Code = [] if programs else [(_ANY_BIT, 1, 0, _CLONE_THREAD), _refuse()]
    return [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _refuse(), *thread_only, (_RETURN, 0, 0, _ALLOW)]


def _socket(udp: bool) -> _Code:
    """Unix, TCP, routing look-ups (getaddrinfo asks which address families there are), and UDP where it is needed.

    By protocol as well: to Landlock MPTCP, SMC and SCTP are no TCP.
    """
    kinds = [(family, _STREAM, protocol) for family in (_INET, _INET6) for protocol in (0, _TCP)]
    if udp:
        kinds += [(family, _DATAGRAM, protocol) for family in (_INET, _INET6) for protocol in (0, _UDP)]
    kinds += [(_NETLINK, kind, 0) for kind in (_RAW, _DATAGRAM)]
    code: _Code = [_argument(0), (_EQUAL, 0, 1, _UNIX), (_RETURN, 0, 0, _ALLOW)]
    for family, kind, protocol in kinds:
        code += [_argument(0), (_EQUAL, 0, 6, family), _argument(1), (_AND, 0, 0, 0xF), (_EQUAL, 0, 3, kind)]
        code += [_argument(2), (_EQUAL, 0, 1, protocol), (_RETURN, 0, 0, _ALLOW)]
    return [*code, _refuse()]
