"""A whole `lockgate run` as a child process, for tests that kill it or talk to it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def running(configuration: str, folder: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`lockgate run` with this YAML, all its components started; ended at exit unless it has ended by itself."""
    file, output = folder / "lockgate.yaml", folder / "lockgate.log"
    file.write_text(configuration)
    command = [sys.executable, "-m", "lockgate.cli.main", "run", "--config", str(file)]
    with open(output, "wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env={**os.environ, **environment})
    try:
        async with asyncio.timeout(30):
            while "everything has started" not in output.read_text():
                assert process.returncode is None, output.read_text()
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(30):
                await process.wait()
