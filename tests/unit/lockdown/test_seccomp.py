"""The filter's verdict on system calls, by a small machine that runs it; the kernel's own is asked in tests/e2e/test_sandbox.py."""

import errno
import struct

import pytest

from lockgate.lockdown import seccomp

ALLOWED, KILLED = "allowed", "killed"
X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
CLONE_THREAD_AS_GLIBC = 0x3D0F00
NUMBERS = {
    # of x86_64 and aarch64, from the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h)
    "read": (0, 63),
    "openat": (257, 56),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "mount": (165, 40),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "ioctl": (16, 29),
    "memfd_create": (319, 279),
    "file_setattr": (469, 469),
}
MACHINES = [pytest.param("x86_64", X86_64, 0, id="x86_64"), pytest.param("aarch64", AARCH64, 1, id="aarch64")]


def verdict(filter: bytes, architecture: int, number: int, *arguments: int) -> str:
    """What a filter says of a call: allowed, killed, or the error's name (Documentation/networking/filter.rst)."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", filter))
    accumulator = at = 0
    while True:
        operation, when_true, when_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                at += when_true if accumulator == operand else when_false
            case 0x25:
                at += when_true if accumulator > operand else when_false
            case 0x45:
                at += when_true if accumulator & operand else when_false
            case 0x06:
                known = {0x7FFF0000: ALLOWED, 0x80000000: KILLED}
                return known.get(operand) or errno.errorcode[operand & 0xFFFF]
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


CALLS = [
    pytest.param("read", (), ALLOWED, id="read"),
    pytest.param("openat", (), ALLOWED, id="openat"),
    pytest.param("memfd_create", (), ALLOWED, id="keys-are-given-to-openssl-by-memfd"),
    *(pytest.param(name, (), "EPERM", id=name) for name in ("execve", "execveat", "ptrace", "mount", "unshare", "bpf", "io_uring_setup")),
    pytest.param("open_by_handle_at", (), "EPERM", id="open_by_handle_at"),
    pytest.param("file_setattr", (), "EPERM", id="attributes-of-files-outside-of-every-rule"),
    pytest.param("clone", (CLONE_THREAD_AS_GLIBC,), ALLOWED, id="a-thread"),
    pytest.param("clone", (17,), "EPERM", id="a-process"),
    pytest.param("clone", (CLONE_THREAD_AS_GLIBC | 0x10000000,), "EPERM", id="a-user-namespace"),
    pytest.param("clone3", (), "ENOSYS", id="clone3-so-that-clone-is-tried"),
    pytest.param("socket", (1, 1 | 0o2000000, 0), ALLOWED, id="unix"),
    pytest.param("socket", (2, 1 | 0o2004000, 6), ALLOWED, id="tcp"),
    pytest.param("socket", (10, 1, 0), ALLOWED, id="tcp-over-ipv6"),
    pytest.param("socket", (2, 1, 262), "EPERM", id="mptcp"),
    pytest.param("socket", (2, 1, 132), "EPERM", id="sctp"),
    pytest.param("socket", (2, 3, 6), "EPERM", id="raw"),
    pytest.param("socket", (2, 2, 0), "EPERM", id="udp"),
    pytest.param("socket", (16, 3, 0), ALLOWED, id="routing-netlink"),
    pytest.param("socket", (16, 3, 9), "EPERM", id="audit-netlink"),
    *(pytest.param("socket", (family, 1, 0), "EPERM", id=f"family-{family}") for family in (17, 38, 40, 43, 0, 255)),
    pytest.param("socketpair", (1, 1, 0), ALLOWED, id="a-pair"),
    pytest.param("socketpair", (2, 1, 0), "EPERM", id="no-other-pair"),
    pytest.param("sendto", (5, 0, 9, 0x4000), ALLOWED, id="send"),
    pytest.param("sendto", (5, 0, 9, 0x20004000), "EPERM", id="send-that-connects"),
    pytest.param("sendmsg", (5, 0, 0), ALLOWED, id="sendmsg"),
    pytest.param("sendmsg", (5, 0, 0x20000000), "EPERM", id="sendmsg-that-connects"),
    pytest.param("ioctl", (1, 0x5401), ALLOWED, id="isatty"),
    pytest.param("ioctl", (1, 0x5412), "EPERM", id="typing-into-a-terminal"),
]


@pytest.mark.parametrize(("machine", "architecture", "column"), MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), CALLS)
def test_a_call_is_answered(machine: str, architecture: int, column: int, name: str, arguments: tuple[int, ...], expected: str) -> None:
    filter = seccomp.program(machine, udp=False, programs=False)
    assert verdict(filter, architecture, NUMBERS[name][column], *arguments) == expected


@pytest.mark.parametrize(("machine", "architecture", "column"), MACHINES)
def test_needs_open_datagrams_and_programs_and_no_more(machine: str, architecture: int, column: int) -> None:
    def verdicts(*, udp: bool, programs: bool) -> list[str]:
        filter = seccomp.program(machine, udp=udp, programs=programs)
        calls = [("socket", 2, 2, 17), ("execve",), ("clone", 17), ("clone", 0x10000011), ("execveat",), ("socket", 2, 3, 0)]
        return [verdict(filter, architecture, NUMBERS[str(name)][column], *map(int, arguments)) for name, *arguments in calls]

    assert verdicts(udp=True, programs=False) == [ALLOWED, *["EPERM"] * 5]
    assert verdicts(udp=False, programs=True) == ["EPERM", ALLOWED, ALLOWED, *["EPERM"] * 3]


@pytest.mark.parametrize(("machine", "architecture", "column"), MACHINES)
def test_calls_newer_than_the_list_are_unknown(machine: str, architecture: int, column: int) -> None:
    filter = seccomp.program(machine, udp=True, programs=True)
    assert verdict(filter, architecture, 468) == ALLOWED
    assert verdict(filter, architecture, 470) == "ENOSYS"
    assert verdict(filter, architecture, 0x40000000 | 59) == "ENOSYS"  # x32's execve


def test_another_architecture_s_calls_end_the_process() -> None:
    assert verdict(seccomp.program("x86_64", udp=True, programs=True), I386, 11) == KILLED


def test_a_machine_that_it_is_not_written_for_is_named() -> None:
    with pytest.raises(LookupError, match="not for riscv64"):
        seccomp.program("riscv64", udp=False, programs=False)
