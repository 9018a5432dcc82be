"""Real CRI log files: conmon, CRI-O's log writer, with two pipes to write through in place of a container.

What conmon 2.1.6 does (observed; `test_conmon.py` holds it to this): it reads 8 KiB at a time and stamps what one read brought. Each
newline ends an `F` record; what is left at the end of a read is a `P` record at once, so a pause in the middle of a line splits it too.
A line that ends just where a read ended is closed by an `F` record with nothing in it, and output that stops without a newline leaves
a `P` that no `F` follows. The two streams interleave per read. A file is reopened as `LOG.tmp` and renamed to `LOG`;
past its maximum size a log is replaced thus without being kept, and the inode of the one before last is often used again.
"""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from io import FileIO
from pathlib import Path

import pytest

needs_conmon = pytest.mark.skipif(not shutil.which("conmon"), reason="conmon is not installed (see tests/install-debian.sh)")

# As much of an OCI runtime as conmon needs: `create` starts the container on the pipes it was given and leaves its pid.
_RUNTIME = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        create) create=1 ;;
        --bundle) bundle=$2; shift ;;
        --pid-file) pid_file=$2; shift ;;
    esac
    shift
done
[ "$create" ] || exit 0
{ cat "$bundle/stderr" >&2 & cat "$bundle/stdout"; wait; } &
echo $! > "$pid_file"
"""
_REOPEN_LOGS = b"2 0 0\n"  # conmon's control message, as CRI-O's ReopenContainerLog writes it


class Container:
    """What is written to `stdout` and `stderr` (unbuffered, blocking) is what the container prints."""

    def __init__(self, log: Path, bundle: Path, conmon: asyncio.subprocess.Process, stdout: FileIO, stderr: FileIO) -> None:
        self.log = log
        self.stdout = stdout
        self.stderr = stderr
        self._bundle = bundle
        self._conmon = conmon

    async def rotate(self, to: Path) -> None:
        """Does as the kubelet does: rename the log, have it reopened, return when the new one is there."""
        self.log.rename(to)
        with (self._bundle / "ctl").open("wb", buffering=0) as control:
            control.write(_REOPEN_LOGS)
        async with asyncio.timeout(5):
            while not self.log.exists():
                await asyncio.sleep(0.005)

    async def exit(self) -> None:
        """Ends the container; on return all that it printed is in the log. May be called twice."""
        self.stdout.close()
        self.stderr.close()
        async with asyncio.timeout(5):
            await self._conmon.wait()


@asynccontextmanager
async def running_container(log: Path, bundle: Path, log_max_size_bytes: int | None = None) -> AsyncIterator[Container]:
    """A container whose output conmon writes to `log` (its folder must exist) until the block is left. `bundle` is a folder of its own.

    Past `log_max_size_bytes` conmon starts the log anew by itself, and what it held is gone.
    """
    bundle.mkdir(parents=True, exist_ok=True)
    runtime = bundle / "runtime"
    runtime.write_text(_RUNTIME)
    runtime.chmod(0o755)
    for stream in ("stdout", "stderr"):
        os.mkfifo(bundle / stream)
    options = ["--sync", "--cid", "container", "--cuuid", "uuid", "--name", "container", "--no-new-keyring", "--full-attach"]
    options += [f"--runtime={runtime}", f"--bundle={bundle}", f"--container-pidfile={bundle / 'pid'}", f"--log-path=k8s-file:{log}"]
    options += [f"--socket-dir-path={bundle}", f"--exit-dir={bundle}"]  # else conmon links sockets into CRI-O's own folder
    if log_max_size_bytes is not None:
        options += ["--log-size-max", str(log_max_size_bytes)]
    conmon = await asyncio.create_subprocess_exec("conmon", *options)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, conmon)
        stdout = stack.enter_context(await _writer(bundle / "stdout", conmon))
        stderr = stack.enter_context(await _writer(bundle / "stderr", conmon))
        yield Container(log, bundle, conmon, stdout, stderr)


async def _writer(fifo: Path, conmon: asyncio.subprocess.Process) -> FileIO:
    """The writing end, once the container has opened the reading one (a blocking open would wait for ever if conmon failed)."""
    async with asyncio.timeout(5):
        while True:
            try:
                descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            else:
                os.set_blocking(descriptor, True)
                return FileIO(descriptor, "w")
            if conmon.returncode is not None:
                raise RuntimeError(f"conmon ended with {conmon.returncode} before the container ran")
            await asyncio.sleep(0.005)


async def _end(conmon: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(5):
            await conmon.wait()
    except TimeoutError:
        conmon.kill()
        await conmon.wait()
