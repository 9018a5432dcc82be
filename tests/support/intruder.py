"""A component of somebody else's that turns on the process it runs in: each attempt is what an attacker with code in a role would try.

It is copied into a directory of its own and found by its entry point (`installed`); the role's own thread pool runs the attempts.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lockgate.pipeline.contract import Extension, component
from lockgate.pipeline.needs import ComponentSettings, Listen, Need

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WAIT_ALL, CLONE_NEWUTS = 0x4206, 0x4207, 17, 0x40000000, 0x04000000


class IntruderSettings(ComponentSettings):
    """Where it is told what to try."""

    port: int
    """On loopback."""

    def needs(self) -> Iterator[Need]:
        yield Listen("127.0.0.1", self.port, "orders")


@component("intruder", IntruderSettings)
class IntruderExtension(Extension[IntruderSettings]):
    """Tries what it is told."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.settings.port)

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, *arguments = json.loads(await reader.readline())
        writer.write(json.dumps(await self.in_thread(attempt, name, *arguments)).encode() + b"\n")
        await writer.drain()
        writer.close()


def attempt(name: str, *arguments: Any) -> str:
    """`done`, or the name of the error."""
    try:
        ATTEMPTS[name](*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except Exception as error:
        return repr(error)
    return "done"


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def link_and_read(path: str, directory: str) -> None:
    """By a name in a directory that is open to this role. (Making the link is refused as well, so somebody else has made it.)"""
    read(f"{directory}/{Path(path).name}")


def rename_in(path: str, directory: str) -> None:
    target = f"{directory}/taken"
    Path(path).rename(target)
    Path(target).rename(path)


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"x")


def connect(port: int, protocol: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
        client.connect(("127.0.0.1", port))


def connect_by_sending(port: int) -> None:
    with socket.socket() as client:
        client.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", port))


def connect_abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name)


def bind(port: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


def make_socket(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def ptrace(pid: int) -> None:
    checked(LIBC.ptrace(PTRACE_SEIZE, pid, None, None))
    # And lets go of it: a process that is traced cannot be reaped by its parent.
    checked(LIBC.ptrace(PTRACE_INTERRUPT, pid, None, None))
    os.waitpid(pid, WAIT_ALL)
    checked(LIBC.ptrace(PTRACE_DETACH, pid, None, None))


def open_by_handle(handle: str, kind: int, directory: str) -> None:
    """The file behind a handle, whatever directory it is in."""
    raw = bytes.fromhex(handle)
    structure = ctypes.create_string_buffer(len(raw).to_bytes(4, "little") + kind.to_bytes(4, "little") + raw)
    mount = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(checked(LIBC.open_by_handle_at(mount, structure, os.O_RDONLY)))
    finally:
        os.close(mount)


def mount(directory: str) -> None:
    checked(LIBC.mount(b"none", directory.encode(), b"tmpfs", 0, None))
    checked(LIBC.umount2(directory.encode(), 0))


def io_uring() -> None:
    os.close(checked(LIBC.syscall(425, 1, ctypes.create_string_buffer(120))))


ATTEMPTS: dict[str, Callable[..., object]] = {
    "read": read,
    "list": os.listdir,
    "link_and_read": link_and_read,
    "rename_in": rename_in,
    "write": write,
    "truncate": lambda path: os.truncate(path, 3),
    "delete": lambda path: Path(path).unlink(),
    "chown": lambda path: os.chown(path, -1, -1),
    "connect": connect,
    "connect_by_sending": connect_by_sending,
    "connect_abstract": connect_abstract,
    "bind": bind,
    "socket": make_socket,
    "execute": lambda program: subprocess.run([program], check=True),
    "fork": fork,
    "ptrace": ptrace,
    "signal": lambda pid: os.kill(pid, 0),
    "open_by_handle": open_by_handle,
    "mount": mount,
    "unshare": lambda: checked(LIBC.unshare(CLONE_NEWUTS)),
    "chroot": lambda: os.chroot("/"),
    "setgid": lambda: os.setgid(os.getgid()),
    "io_uring": io_uring,
}


def installed(site: Path) -> dict[str, str]:
    """Makes it a package in this directory; the environment in which it is found."""
    site.mkdir()
    shutil.copy(__file__, site / "acme_intruder.py")
    metadata = site / "acme_intruder-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-intruder\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[lockgate.components]\nextension/intruder = acme_intruder:IntruderExtension\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


def order(port: int, name: str, *arguments: Any) -> str:
    """What came of an attempt, in the role whose intruder listens there."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(json.dumps([name, *arguments]).encode() + b"\n")
        with client.makefile() as answer:
            return str(json.loads(answer.readline()))
