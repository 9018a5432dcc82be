"""Files and TCP ports by Landlock (kernel documentation, "Landlock: unprivileged access control")."""

from collections.abc import Iterable, Mapping

from landlockpy import AccessFS, AccessNet, LandlockError, Ruleset, Scope, UnsupportedError, _syscall, abi_version, fs_for_abi, net_for_abi

from lockgate.lockdown.libc import LIBC

# The library would look for libc by starting ldconfig, and where that is missing a compiler (tests/e2e/test_needs.py sees it).
_syscall._libc = LIBC

TRUNCATE, TCP, SCOPES = 3, 4, 6
"""The ABI versions that brought what is used here: Linux 6.2, 6.7, 6.12; files alone came with 1, in Linux 5.13."""
_NEWEST_USED = 7
"""What a later ABI can refuse besides (UDP and named Unix sockets among it) is not asked for: it was tried on no kernel yet."""

_OF_FILES = AccessFS.EXECUTE | AccessFS.WRITE_FILE | AccessFS.READ_FILE | AccessFS.TRUNCATE
READ = AccessFS.READ_FILE | AccessFS.READ_DIR
WRITE = (
    READ
    | AccessFS.WRITE_FILE
    | AccessFS.TRUNCATE
    | AccessFS.MAKE_REG
    | AccessFS.MAKE_DIR
    | AccessFS.MAKE_SOCK
    | AccessFS.REMOVE_FILE
    | AccessFS.REMOVE_DIR
    | AccessFS.REFER
)
EXECUTE = AccessFS.READ_FILE | AccessFS.EXECUTE


def abi() -> int:
    """The kernel's ABI version; 0 where Landlock is missing, switched off, or refused by an outer sandbox."""
    try:
        return abi_version()
    except (LandlockError, UnsupportedError):
        return 0


def restrict(directories: Mapping[str, AccessFS], files: Mapping[str, AccessFS], bind: Iterable[int], connect: Iterable[int]) -> None:
    """This thread, and all that it starts from here on, reach these existing paths and TCP ports and nothing else. Raises OSError.

    The calls that are restricted are all that the kernel knows, to ABI 7; from 6 on also signals to, and abstract sockets of, other
    processes.
    """
    version = min(abi_version(), _NEWEST_USED)
    scoped = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL
    with Ruleset(handled_fs=fs_for_abi(version), handled_net=net_for_abi(version), scoped=scoped) as rules:
        for path, access in directories.items():
            rules.allow_path(path, access)
        for path, access in files.items():
            rules.allow_path(path, access & _OF_FILES)
        for ports, right in ((bind, AccessNet.BIND_TCP), (connect, AccessNet.CONNECT_TCP)):
            for port in ports:
                rules.allow_port(port, right)
        rules.restrict()
