"""Where a running program answers on loopback and with which token: a file that only its owner can read, in the state directory."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec


class NotRunning(LookupError):
    """Nothing can be asked, and how to start it."""


@dataclass(frozen=True, slots=True)
class Service:
    """Something that is asked on loopback."""

    file: str
    """The name of its file in a state directory."""
    who: str
    mend: str


QUERIES = Service(
    "query.json", "store", "start one (lockgate up, or lockgate run --config backend), or name its state directory with --state"
)
LEDGER = Service(
    "ledger.json", "role with a ledger", "start one (lockgate up, or a configuration with the extension ledger), or name it with --state"
)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a running program."""

    address: str
    """host:port"""
    token: str
    pid: int

    def allows(self, authorization: str) -> bool:
        """Whether a request with this header may pass."""
        given = authorization.removeprefix("Bearer ")
        return bool(self.token) and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def default_state_directory() -> Path:
    """`$LOCKGATE_STATE`, or `.lockgate` where `lockgate up` keeps everything."""
    return Path(os.environ.get("LOCKGATE_STATE") or ".lockgate")


def publish(directory: Path, service: Service, address: str) -> Access:
    """Writes the file for this process with a new token; raises OSError. Another running program's file is put aside until `withdraw`."""
    access = Access(address, secrets.token_urlsafe(32), os.getpid())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(NotRunning, OSError):
        if _running(directory / service.file, service).pid != access.pid:
            (directory / service.file).replace(directory / f".{service.file}.before")
    temporary = directory / f".{service.file}.{access.pid}"
    temporary.unlink(missing_ok=True)
    # The mode is given at creation: after it, another user could already have opened the file.
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(msgspec.json.encode(access))
    temporary.replace(directory / service.file)
    return access


def withdraw(directory: Path, service: Service, access: Access) -> None:
    """Removes the file, unless another process has taken its place. Who was here before, and still runs, is found again: a second program
    on the same directory ends as soon as it finds that it is the second."""
    file, before = directory / service.file, directory / f".{service.file}.before"
    with contextlib.suppress(NotRunning, OSError):
        if _read(file, service) != access:
            return
        file.unlink()
        try:
            _running(before, service)
        except NotRunning:
            before.unlink(missing_ok=True)
        else:
            before.replace(file)


def find(state: Path, service: Service = QUERIES) -> Access:
    """The running store's access, in this state directory or in its `backend`, where `lockgate up` puts it; raises NotRunning."""
    candidates = [state / service.file, state / "backend" / service.file]
    return _running(next((file for file in candidates if file.exists()), candidates[0]), service)


def find_all(state: Path, service: Service) -> Iterator[tuple[str, Access]]:
    """What runs with this state directory, or with one inside it (`lockgate up` has one for each role), by its name.

    Raises NotRunning where there is nothing.
    """
    files = [file for file in (state / service.file, *sorted(state.glob(f"*/{service.file}"))) if file.exists()]
    running, problem = 0, None
    for file in files:
        try:
            access = _running(file, service)
        except NotRunning as error:
            problem = error
            continue
        running += 1
        yield file.parent.name, access
    if not running:
        raise problem or NotRunning(f"no {service.who} is running here: there is no {service.file} in {state}; {service.mend}")


def _running(file: Path, service: Service) -> Access:
    access = _read(file, service)
    try:
        os.kill(access.pid, 0)
    except ProcessLookupError:
        raise NotRunning(
            f"no {service.who} is running here: process {access.pid}, which is named in {file}, has ended; {service.mend}"
        ) from None
    except PermissionError:
        pass  # it lives, under another user
    return access


def _read(file: Path, service: Service) -> Access:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Access)
    except FileNotFoundError:
        raise NotRunning(f"no {service.who} is running here: {file} is missing; {service.mend}") from None
    except PermissionError:
        raise NotRunning(f"{file} belongs to another user; ask as the user who runs the {service.who}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise NotRunning(f"cannot read {file}: {error}; {service.mend}") from None
