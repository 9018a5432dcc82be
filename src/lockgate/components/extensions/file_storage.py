"""Keeps what other components must find again after a restart: positions, cursors, queues. Plain files, replaced whole.

Not a database, as the collector's (bbolt): a blob per component, of which two generations are kept, needs no compaction, no repair, and
no memory map. A blob is written aside, made durable, and renamed over the older generation; each carries a number and a CRC.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import field_validator

from lockgate.kit.units import Duration, Size
from lockgate.kit.unreadable import describe_unwritable
from lockgate.pipeline.contract import Context, Extension, Storage, component
from lockgate.pipeline.needs import ComponentSettings, Need, Write

_HEAD = struct.Struct("<4sQQI")
_MAGIC = b"LGS1"
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


class Compaction(ComponentSettings):
    """The collector's keys, accepted and without effect: there is nothing to compact."""

    on_start: bool = False
    """No effect."""
    on_rebound: bool = False
    """No effect."""
    directory: str = ""
    """No effect."""
    max_transaction_size: Size = 65536
    """No effect."""
    rebound_needed_threshold_mib: int = 100
    """No effect."""
    rebound_trigger_threshold_mib: int = 10
    """No effect."""
    check_interval: Duration = 5.0
    """No effect."""
    cleanup_on_start: bool = False
    """No effect."""


class FileStorageSettings(ComponentSettings):
    """Where to keep it."""

    directory: str = "/var/lib/otelcol/file_storage"
    """The directory; one running program at a time uses it."""
    create_directory: bool = False
    """Whether to create the directory where it does not exist."""
    directory_permissions: str = "0750"
    """Octal permissions of directories that are created, minus the umask."""
    timeout: Duration = 1.0
    """How long to wait for another program to let go of the directory."""
    fsync: bool = True
    """Whether a save is on disk before it counts. False survives the end of the program, not that of the machine. (The collector's
    default is false; a save here is once a second.)"""
    recreate: bool = False
    """Whether content that is damaged in both generations is put aside as *.damaged; false reports it, and the next save replaces it."""
    compaction: Compaction = Compaction()
    """No effect: nothing here needs compaction."""

    @field_validator("directory")
    @classmethod
    def _is_named(cls, directory: str) -> str:
        if not directory:
            raise ValueError("must name a directory")
        return directory

    @field_validator("directory_permissions")
    @classmethod
    def _is_octal(cls, permissions: str) -> str:
        try:
            mode = int(permissions, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            raise ValueError(f"{permissions!r} is no octal permission; write it like 0750")
        return permissions

    def needs(self) -> Iterator[Need]:
        create = int(self.directory_permissions, 8) if self.create_directory else None
        yield Write(self.directory, "positions and queues", create, lasting=True)

    def warnings(self) -> Iterator[str]:
        if "compaction" in self.model_fields_set:
            yield "compaction has no effect: nothing here needs it"
        if not self.fsync:
            yield "fsync: false gives up positions and queues saved shortly before the machine (not the program) stops"


class StorageError(OSError):
    """The storage cannot be used; the text says why and how to mend it."""


@component("file_storage", FileStorageSettings)
class FileStorageExtension(Extension[FileStorageSettings]):
    """A directory per owner, under one lock."""

    def __init__(self, settings: FileStorageSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._lock = -1

    async def start(self) -> None:
        directory = Path(self.settings.directory)
        mode = int(self.settings.directory_permissions, 8)
        try:
            if self.settings.create_directory:
                await self.in_thread(lambda: directory.mkdir(mode, parents=True, exist_ok=True))
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise StorageError(f"cannot use {directory}: it does not exist; create it, or set create_directory: true") from error
        except OSError as error:
            raise StorageError(describe_unwritable(str(directory), error)) from error
        await self._take_lock(directory)

    async def stop(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def storage(self, owner: str) -> Storage:
        """The owner's own store. Raises OSError where its directory cannot be made."""
        name = "".join(character if character in _SAFE else f"~{ord(character):04X}" for character in owner)
        directory = Path(self.settings.directory, name)
        try:
            directory.mkdir(int(self.settings.directory_permissions, 8), exist_ok=True)
            if self.settings.fsync:
                # What is synced in a directory is lost with the directory, if a power loss takes that away. Each time: whoever made it
                # may have been killed before this.
                _sync(directory.parent)
        except OSError as error:
            raise StorageError(describe_unwritable(str(directory), error)) from error
        return FileStore(directory, fsync=self.settings.fsync, recreate=self.settings.recreate)

    async def _take_lock(self, directory: Path) -> None:
        clock = self.context.clock
        until = clock.monotonic() + self.settings.timeout
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() >= until:
                    holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    os.close(self._lock)
                    self._lock = -1
                    raise StorageError(
                        f"cannot use {directory}: another program (process {holder}) uses it; stop it, or give this one its own"
                    ) from None
                await clock.sleep(0.05)
            else:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
                return


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileStore:
    """One owner's blob, in two generations."""

    def __init__(self, directory: Path, *, fsync: bool = True, recreate: bool = False) -> None:
        self._directory, self._fsync, self._recreate = directory, fsync, recreate
        self._number = -1
        """Of the newest generation; -1 until it was looked for."""
        with contextlib.suppress(FileNotFoundError):
            (directory / "state.tmp").unlink()

    @property
    def directory(self) -> str:
        return str(self._directory)

    @property
    def fsync(self) -> bool:
        return self._fsync

    def load(self) -> bytes | None:
        """What was saved last, or before that where the newest is damaged. Raises StorageError where nothing whole is left."""
        generations, damaged = self._read()
        if generations:
            number = max(generations)
            self._number = number
            return generations[number]
        if damaged and not self._recreate:
            raise StorageError(f"{', '.join(str(path) for path in damaged)}: damaged, both generations of it")
        for path in damaged:
            path.rename(path.with_suffix(path.suffix + ".damaged"))
        self._number = 0
        return None

    def save(self, content: bytes) -> None:
        if self._number < 0:
            self._number = max(self._read()[0], default=0)
        number = self._number + 1
        aside = self._directory / "state.tmp"
        head = _HEAD.pack(_MAGIC, number, len(content), zlib.crc32(content, zlib.crc32(struct.pack("<Q", number))))
        try:
            with open(aside, "wb") as file:
                file.write(head)
                file.write(content)
                file.flush()
                if self._fsync:
                    os.fsync(file.fileno())
            aside.replace(self._path(number))
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()  # a full disk needs its space back
            raise
        if self._fsync:
            _sync(self._directory)
        self._number = number

    def _path(self, number: int) -> Path:
        return self._directory / f"state.{number % 2}"

    def _read(self) -> tuple[dict[int, bytes], list[Path]]:
        """Whole generations by number, and the files of damaged ones."""
        generations: dict[int, bytes] = {}
        damaged: list[Path] = []
        for path in (self._path(0), self._path(1)):
            try:
                stored = path.read_bytes()
            except FileNotFoundError:
                continue
            content = stored[_HEAD.size :]
            magic, number, size, crc = _HEAD.unpack(stored[: _HEAD.size].ljust(_HEAD.size, b"\0"))
            if magic == _MAGIC and size == len(content) and crc == zlib.crc32(content, zlib.crc32(struct.pack("<Q", number))):
                generations[number] = content
            else:
                damaged.append(path)
        return generations, damaged
