"""What needs come to, and what is done where the kernel lacks something. What holds is tried in tests/e2e/test_sandbox.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.collector.config import preset_names
from lockgate.lockdown import landlock, sandbox
from lockgate.lockdown.interpreter import interpreter_needs
from lockgate.lockdown.sandbox import Plan, Sandbox, plan
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


def entered(*needs: Need) -> Sandbox:
    """As if these had been the needs of a process that Landlock restricts; nothing is in force."""
    found = plan(needs)
    return Sandbox("require", landlock.SCOPES, missing=tuple(need.path for need in found.missing), granted=found.granted)


def told(sandbox: Sandbox, *needs: Need) -> list[str]:
    return sorted(map(str, sandbox.closed(needs)))


def test_a_directory_that_was_missing_is_closed_once_it_is_there(tmp_path: Path) -> None:
    place = tmp_path / "later"
    needs = [Read(str(place), "logs"), Read(f"{place}/in", "more")]
    box = entered(*needs)
    assert told(box, *needs) == []
    place.mkdir()
    assert told(box, *needs) == [f"{place} (logs) was not there at start and is now"]
    assert told(entered(*needs), *needs) == []


@pytest.mark.parametrize("is_link", [False, True], ids=["itself", "where-a-link-leads"])
def test_a_directory_made_anew_is_closed(tmp_path: Path, is_link: bool) -> None:
    place, real = tmp_path / "place", tmp_path / ("real" if is_link else "place")
    real.mkdir()
    if is_link:
        place.symlink_to(real)
    need = Read(str(place), "logs")
    box = entered(need)
    assert told(box, need) == []
    (real / "file").touch()
    assert told(box, need) == []
    (real / "file").unlink()
    real.rmdir()
    assert told(box, need) == []
    (tmp_path / "other").mkdir()  # the number of the old inode may be given again, as nothing holds it here
    real.mkdir()
    if (real.stat().st_dev, real.stat().st_ino) in box.granted:
        pytest.skip("this file system gave the same inode, which Landlock's own hold on it prevents")
    assert told(box, need) == [f"{place} (logs) is another one than at start"]


def test_what_a_kubelet_swaps_below_an_open_directory_stays_open(tmp_path: Path) -> None:
    for generation in ("..1", "..2"):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "ca.crt").touch()
    (tmp_path / "..data").symlink_to("..1")
    needs = [Read(str(tmp_path), "a Secret"), Read(f"{tmp_path}/..data", "what its link leads to")]
    box = entered(*needs)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert told(box, *needs) == []


def test_a_directory_below_one_that_is_only_read_is_closed_to_writing(tmp_path: Path) -> None:
    above, state = Read(str(tmp_path), "logs"), Write(f"{tmp_path}/state", "positions")
    (tmp_path / "state").mkdir()
    box = entered(above, state)
    assert told(box, state) == []
    (tmp_path / "state").rename(tmp_path / "old")
    (tmp_path / "state").mkdir()
    assert told(box, above, state) == [f"{tmp_path}/state (positions) is another one than at start"]
    assert told(entered(Write(str(tmp_path), "all"), state), above, state) == []


def test_a_mount_of_a_directory_that_was_deleted_elsewhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "deleted").mkdir()
    descriptor = os.open(tmp_path / "deleted", os.O_RDONLY)
    (tmp_path / "mount").symlink_to(f"/proc/self/fd/{descriptor}")  # it leads to the inode, as a bind mount does
    need = Read(f"{tmp_path}/mount", "logs")
    box = entered(need)
    assert told(box, need) == []
    (tmp_path / "deleted").rmdir()
    assert told(box, need) == [f"{tmp_path}/mount (logs) was deleted and is only still mounted here"]
    os.close(descriptor)


def test_what_the_kernel_fills_and_a_process_without_landlock_find_nothing_closed(tmp_path: Path) -> None:
    assert told(entered(), Read("/proc/self", "memory"), Read("/sys", "cgroups"), Write("/dev/null", "nothing")) == []
    assert told(Sandbox("best-effort", seccomp=True), Read(str(tmp_path), "logs")) == []
    assert told(Sandbox(), Read(str(tmp_path), "logs")) == []


@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_finds_closed_what_it_was_started_with(preset: str, tmp_path: Path) -> None:
    code = f"""
import os
from lockgate.collector.config import load
environment = dict(LOCKGATE_STATE="{tmp_path}/state", LOCKGATE_LOG_ROOT="{tmp_path}", LOCKGATE_KUBE_AUTH="none")
needs = lambda: [need for _, need in load(["{preset}"], environment=environment).needs()]
box = enter("best-effort", needs())
assert box.landlock and box.granted
print("closed:", *map(str, box.closed(needs())))
"""
    assert run(code).partition("closed:")[2].split("\n")[0] == ""


@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
def test_what_is_found_closed_is_what_the_kernel_refuses(tmp_path: Path) -> None:
    for name in ("anew", "stays"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "moved").mkdir(parents=True)
    (tmp_path / "link").symlink_to("stays")
    code = f"""
import os
needs = [Read(f"{tmp_path}/{{name}}", name) for name in ("anew", "stays", "later", "link")]
box = enter("best-effort", [*needs, *interpreter_needs()])
print("ready", flush=True)
input()
print("told", *sorted(place.reason for place in box.closed(needs)))
def is_refused(path):
    try: os.listdir(path)
    except PermissionError: return True
print("refused", *sorted(need.reason for need in needs if is_refused(need.path)))
"""
    with subprocess.Popen(command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        (tmp_path / "anew").rmdir()
        for name in ("anew", "later"):
            (tmp_path / name).mkdir()
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("outside/moved")
        out, _ = process.communicate("go\n", timeout=30)
    assert out == "told anew later link\nrefused anew later link\n"


def command(code: str) -> list[str]:
    names = "from lockgate.lockdown.sandbox import enter; from lockgate.lockdown.interpreter import interpreter_needs"
    return [sys.executable, "-P", "-c", f"{names}; from lockgate.pipeline.needs import *\n{code}"]


def run(code: str, status: int = 0) -> str:
    """Runs it in a process of its own: there is no way back out of a sandbox. Gives its output."""
    result = subprocess.run(command(code), capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == status, result.stderr
    return result.stdout + result.stderr
