"""How a program that answers on loopback is found."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lockgate.net.access import LEDGER, Access, NotRunning, find, publish, withdraw


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process, which runs until it is ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def of_another(directory: Path, pid: int) -> Access:
    access = Access("127.0.0.1:1", "token", pid)
    (directory / LEDGER.file).write_bytes(msgspec.json.encode(access))
    return access


def test_what_is_published_is_found_by_its_owner_alone_until_it_is_withdrawn(tmp_path: Path) -> None:
    access = publish(tmp_path / "state", LEDGER, "127.0.0.1:2")
    assert find(tmp_path / "state", LEDGER) == access
    assert (tmp_path / "state" / LEDGER.file).stat().st_mode & 0o777 == 0o600
    withdraw(tmp_path / "state", LEDGER, access)
    with pytest.raises(NotRunning):
        find(tmp_path / "state", LEDGER)
    assert not list((tmp_path / "state").iterdir())


def test_a_second_program_that_ends_leaves_the_first_to_be_found(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    first = of_another(tmp_path, other.pid)
    second = publish(tmp_path, LEDGER, "127.0.0.1:2")
    assert find(tmp_path, LEDGER) == second
    withdraw(tmp_path, LEDGER, second)
    assert find(tmp_path, LEDGER) == first
    assert [each.name for each in tmp_path.iterdir()] == [LEDGER.file]


def test_a_program_that_has_ended_is_not_brought_back(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    of_another(tmp_path, other.pid)
    second = publish(tmp_path, LEDGER, "127.0.0.1:2")
    other.communicate(b"\n")
    withdraw(tmp_path, LEDGER, second)
    assert not list(tmp_path.iterdir())
