"""What Python itself and the C library open, whatever is configured."""

from __future__ import annotations

import os
import ssl
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import lockgate
from lockgate.pipeline.needs import Need, Read, Write


def interpreter_needs() -> Iterator[Need]:
    """Code and libraries, which a later import loads, and the files that every process may open. None of it is a user's."""
    for directory in _outermost({*_code(), *(os.path.dirname(path) for path in mapped_files())}):
        yield Read(directory, "Python's modules and the libraries that they load")
    yield Read(os.path.join(sys.prefix, "pyvenv.cfg"), "where Python's modules are", optional=True)
    yield Read("/etc/ld.so.cache", "where libraries are", optional=True)
    yield Read(
        os.path.realpath(os.path.join(os.path.dirname(ssl.get_default_verify_paths().openssl_cafile), "openssl.cnf")), "OpenSSL", True
    )
    yield Read(os.path.realpath("/etc/localtime"), "local time", optional=True)
    yield Read("/usr/share/zoneinfo", "time zones", optional=True)
    yield Read("/dev/urandom", "random numbers", optional=True)
    yield Write("/dev/null", "where libraries write what nobody reads")
    yield Read("/proc/self", "own memory and threads", optional=True)
    yield Read("/proc/meminfo", "the machine's memory", optional=True)
    yield Read("/sys/devices/system/cpu", "the number of processors", optional=True)


def mapped_files() -> list[str]:
    """The files that this process has mapped to execute: the program, its libraries, and the loader. None where /proc is missing."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    # address, permissions, offset, device, inode, path (proc_pid_maps(5))
    columns = [line.split(maxsplit=5) for line in maps]
    return sorted({each[5] for each in columns if len(each) == 6 and "x" in each[1] and os.path.isfile(each[5])})


def _code() -> Iterator[str]:
    # `python -m` puts the working directory before everything, where no module of ours is.
    named = (os.environ.get("PYTHONPATH") or "").split(os.pathsep)
    yield from (path for path in sys.path if path and (path != str(Path.cwd()) or path in named) and os.path.exists(path))
    yield from (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    yield os.path.dirname(lockgate.__file__)


def _outermost(paths: set[str]) -> list[str]:
    """Without those that lie in another; links resolved, because a rule is about what they lead to."""
    real = sorted({os.path.realpath(path) for path in paths if path and path != "/"})
    return [path for path in real if not any(path != other and path.startswith(other + "/") for other in real)]
