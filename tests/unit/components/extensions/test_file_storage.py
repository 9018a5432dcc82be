"""What is saved is found again: whole, or the generation before it."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import context

from lockgate.components.extensions.file_storage import FileStorageExtension, FileStorageSettings, FileStore, StorageError
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.needs import Write


def extension(directory: Path, **settings: Any) -> FileStorageExtension:
    return FileStorageExtension(FileStorageSettings(directory=str(directory), **settings), context("file_storage", Kind.EXTENSION))


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[FileStorageExtension]:
    async with extension(directory, **settings) as started:
        yield started


async def test_what_was_saved_is_loaded_by_the_same_owner_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as storage:
        one, other = storage.storage("receivers/filelog"), storage.storage("receivers/filelog/other")
        assert one.load() is None
        one.save(b"one")
        one.save(b"two")
        other.save(b"other")
    async with running(tmp_path) as storage:
        assert storage.storage("receivers/filelog").load() == b"two"
        assert storage.storage("receivers/filelog/other").load() == b"other"
        assert Path(one.directory).parent == tmp_path


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grown"])
def test_a_damaged_generation_gives_the_one_before_it(tmp_path: Path, damage: str) -> None:
    store = FileStore(tmp_path)
    for content in (b"first", b"second", b"third"):
        store.save(content)
    newest = max(tmp_path.iterdir(), key=lambda path: path.read_bytes()[4:12][::-1])
    stored = bytearray(newest.read_bytes())
    match damage:
        case "flip":
            stored[-1] ^= 1
        case "cut":
            del stored[-2:]
        case "empty":
            stored.clear()
        case "grown":
            stored += b"x"
    newest.write_bytes(stored)
    again = FileStore(tmp_path)
    assert again.load() == b"second"
    again.save(b"fourth")
    assert FileStore(tmp_path).load() == b"fourth"


@given(st.integers(0, 200), st.integers(0, 7))
def test_no_flipped_bit_is_ever_taken_for_content(tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int) -> None:
    directory = tmp_path_factory.mktemp("store")
    store = FileStore(directory, fsync=False)
    store.save(b"before" * 10)
    store.save(b"newest" * 10)
    newest = directory / "state.0"
    stored = bytearray(newest.read_bytes())
    stored[byte % len(stored)] ^= 1 << bit
    newest.write_bytes(stored)
    assert FileStore(directory).load() == b"before" * 10


def test_damage_to_both_generations_is_an_error_and_with_recreate_put_aside(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save(b"one")
    store.save(b"two")
    for path in tmp_path.iterdir():
        path.write_bytes(b"garbage")
    with pytest.raises(StorageError, match="damaged"):
        FileStore(tmp_path).load()
    assert FileStore(tmp_path, recreate=True).load() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.0.damaged", "state.1.damaged"]


def test_a_full_disk_keeps_what_was_saved_before(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the same failed write, without a file system of our own."""
    program = f"""
import resource, signal
from pathlib import Path
from lockgate.components.extensions.file_storage import FileStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = FileStore(Path({str(tmp_path)!r}))
store.save(b"small")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.save(b"x" * 100_000)
except OSError as error:
    print("refused")
print(store.load())
store.save(b"again")
print(FileStore(Path({str(tmp_path)!r})).load())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "b'small'", "b'again'"]
    assert not (tmp_path / "state.tmp").exists()


async def test_two_programs_do_not_share_a_directory(tmp_path: Path) -> None:
    async with running(tmp_path):
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            async with running(tmp_path, timeout="10ms"):
                pass
    async with running(tmp_path):
        pass


async def test_a_missing_directory_is_an_error_unless_it_may_be_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create_directory"):
        async with running(tmp_path / "a/b"):
            pass
    async with running(tmp_path / "a/b", create_directory=True, directory_permissions="0700"):
        assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700


def test_settings_say_what_they_need_and_what_has_no_effect() -> None:
    settings = FileStorageSettings.model_validate({"directory": "/data", "timeout": "10s", "compaction": {"on_rebound": True}})
    assert list(settings.needs()) == [Write("/data", "positions and queues", lasting=True)]
    assert any("compaction" in warning for warning in settings.warnings())
    assert list(FileStorageSettings().warnings()) == []
    for wrong in ({"directory": ""}, {"directory_permissions": "rwx"}, {"directory_permissions": "7777"}):
        with pytest.raises(ValidationError):
            FileStorageSettings.model_validate(wrong)
