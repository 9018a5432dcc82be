"""Where a running store answers and with which token: a file that only its owner can read, in the state directory."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

_NAME = "query.json"


class NotRunning(LookupError):
    """No store can be asked, and how to start one."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a running store's queries."""

    address: str
    """host:port"""
    token: str
    pid: int


def default_state_directory() -> Path:
    """`$LOCKGATE_STATE`, or `.lockgate` where `lockgate up` keeps everything."""
    return Path(os.environ.get("LOCKGATE_STATE") or ".lockgate")


def publish(directory: Path, address: str) -> Access:
    """Writes the file for this process with a new token; raises OSError."""
    access = Access(address, secrets.token_urlsafe(32), os.getpid())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = directory / f".{_NAME}.{access.pid}"
    temporary.unlink(missing_ok=True)
    # The mode is given at creation: after it, another user could already have opened the file.
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(msgspec.json.encode(access))
    temporary.replace(directory / _NAME)
    return access


def withdraw(directory: Path, access: Access) -> None:
    """Removes the file, unless another process has taken its place."""
    try:
        if _read(directory / _NAME) == access:
            (directory / _NAME).unlink()
    except (NotRunning, OSError):
        pass


def find(state: Path) -> Access:
    """The running store's access, in this state directory or in its `backend`, where `lockgate up` puts it; raises NotRunning."""
    candidates = [state / _NAME, state / "backend" / _NAME]
    access = _read(next((file for file in candidates if file.exists()), candidates[0]))
    try:
        os.kill(access.pid, 0)
    except ProcessLookupError:
        raise NotRunning(f"no store is running here: process {access.pid}, which is named in {state}, has ended; {_MEND}") from None
    except PermissionError:
        pass  # it lives, under another user
    return access


_MEND = "start one (lockgate up, or lockgate run --config backend), or name its state directory with --state"


def _read(file: Path) -> Access:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Access)
    except FileNotFoundError:
        raise NotRunning(f"no store is running here: {file} is missing; {_MEND}") from None
    except PermissionError:
        raise NotRunning(f"{file} belongs to another user; ask as the user who runs the store") from None
    except (OSError, msgspec.DecodeError) as error:
        raise NotRunning(f"cannot read {file}: {error}; {_MEND}") from None
