"""What needs come to, and what is done where the kernel lacks something. What holds is tried in tests/e2e/test_sandbox.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.lockdown import landlock, sandbox
from lockgate.lockdown.interpreter import interpreter_needs
from lockgate.lockdown.sandbox import Plan, plan
from lockgate.pipeline.needs import Connect, Exec, Kubernetes, Listen, Need, Read, Write


def test_ports_come_from_tcp_alone_and_datagrams_open_udp() -> None:
    found = plan([Listen("", 4318, "a"), Connect("b", 443, "c"), Kubernetes(("get",), "", "pods", "d")])
    assert (set(found.bind), set(found.connect), found.udp) == ({4318}, {443}, False)
    assert plan([Connect("dns", 53, "names", "udp")]) == Plan(*(frozenset(),) * 5, udp=True, missing=())
    assert plan([Listen("", 6831, "spans", "udp")]).udp


def test_what_is_written_is_read_as_well_and_what_is_not_there_gets_no_rule(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    needs: list[Need] = [
        Read(f"{tmp_path}/there", "a"),
        Write(f"{tmp_path}/there", "b"),
        Read(f"{tmp_path}/file", "c"),
        Read(f"{tmp_path}/there/later", "within what is open"),
        Read(f"{tmp_path}/gone", "d"),
        Write(f"{tmp_path}/state", "its component says that it is missing"),
    ]
    found = plan(needs)
    assert (set(found.read), set(found.write)) == ({f"{tmp_path}/file"}, {f"{tmp_path}/there"})
    assert found.missing == (Read(f"{tmp_path}/gone", "d"),)
    assert not found.programs


def test_relative_paths_are_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.chdir(tmp_path)
    assert plan([Write("state", "a")]).write == {f"{tmp_path}/state"}


def test_a_program_is_opened_with_its_loader(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    found = plan([Exec(f"{tmp_path}/python", "a")])
    assert found.programs
    assert str(Path(sys.executable).resolve()) in found.execute
    assert any(Path(path).name.startswith("ld-") for path in found.execute)


def test_a_need_for_all_of_a_shared_directory_is_told() -> None:
    assert plan([Read("/etc", "a"), Read("/etc/hosts", "b"), Write("/tmp", "c")]).shared == ["/etc", "/tmp"]


def test_directories_are_made_with_their_permissions_and_never_where_nobody_said_so(tmp_path: Path) -> None:
    run(f"enter('best-effort', [Write('{tmp_path}/made/deep', 'a', 0o700), Write('{tmp_path}/not', 'b'), *interpreter_needs()])")
    assert (tmp_path / "made" / "deep").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        pytest.param(0, ["files: ", "TCP ports: "], id="none"),
        pytest.param(2, ["truncation of files: ", "TCP ports: "], id="5.19"),
        pytest.param(3, ["TCP ports: "], id="6.2"),
        pytest.param(4, [], id="6.7"),
    ],
)
def test_an_older_kernel_lacks(version: int, lacking: list[str]) -> None:
    found = list(sandbox._lacking(version, threads=1))
    assert len(found) == len(lacking)
    assert all(text.startswith(start) for text, start in zip(found, lacking, strict=True))


@pytest.mark.skipif(landlock.abi() < landlock.TCP, reason="needs Landlock ABI 4 (Linux 6.7)")
def test_a_thread_that_was_started_before_is_not_passed_over() -> None:
    thread = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    result = run(f"{thread}enter('require', interpreter_needs())", status=1)
    assert "1 threads that were started before the sandbox" in result
    assert "there is no" in result
    assert "in force" in run(f"{thread}enter('best-effort', interpreter_needs()); print('in force')")


@pytest.mark.skipif(landlock.abi() < landlock.TCP, reason="needs Landlock ABI 4 (Linux 6.7)")
def test_modules_and_libraries_can_be_loaded_afterwards() -> None:
    late = "import sqlite3, zoneinfo, lockgate.store.database, lockgate.wire.cri; zoneinfo.ZoneInfo('Europe/Berlin')"
    assert "loaded" in run(f"enter('require', interpreter_needs())\n{late}; print('loaded')")


def test_rules_that_are_taken_and_not_obeyed_are_found_out(tmp_path: Path) -> None:
    nothing = plan([Read(str(tmp_path), "a")])
    assert sandbox._not_holding(nothing, 0, filtered=False) == []
    found = sandbox._not_holding(nothing, 7, filtered=True)  # in this process nothing is in force
    assert [text.partition(":")[0] for text in found] == ["files", "system calls"]


def test_the_interpreter_needs_no_directory_that_everybody_uses() -> None:
    assert not plan(interpreter_needs()).shared


def run(code: str, status: int = 0) -> str:
    """Runs it in a process of its own: there is no way back out of a sandbox. Gives its output."""
    names = "from lockgate.lockdown.sandbox import enter; from lockgate.lockdown.interpreter import interpreter_needs"
    command = [sys.executable, "-P", "-c", f"{names}; from lockgate.pipeline.needs import *\n{code}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == status, result.stderr
    return result.stdout + result.stderr
