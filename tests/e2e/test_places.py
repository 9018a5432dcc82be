"""Directories that come after the start, or are made anew: a confined role ends in order, and reads them after that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.backend import Backend
from support.process import Role, wait_until

from lockgate.lockdown import landlock
from lockgate.lockdown.sandbox import RESTART_STATUS

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")

CONFIG = """
receivers: {{filelog: {{include: ["{logs}/*.log"], storage: file_storage}}}}
exporters: {{otlphttp: {{endpoint: "{url}"}}}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{state}", create_directory: true}}}}
service:
  sandbox: {sandbox}
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}
"""
SOONER = """
import lockgate.collector.program as program, lockgate.cli.main as main
program.LOOK_SECONDS, program.SETTLED_SECONDS = 0.2, 1.0
main.main()
"""


class SoonerRole(Role):
    """As `Role`, but what takes it minutes takes a second."""

    def command(self) -> list[str]:
        return [*self.prefix, sys.executable, "-P", "-c", SOONER, "run", *self.configs]


def config(directory: Path, logs: Path, url: str, sandbox: str = "best-effort") -> str:
    return CONFIG.format(logs=logs, url=url, state=directory / "state", sandbox=sandbox)


def write(logs: Path, *lines: str) -> None:
    """As a whole: a directory with what is in it."""
    new = logs.with_name("new")
    new.mkdir(parents=True)
    (new / "app.log").write_text("".join(f"{line}\n" for line in lines))
    new.rename(logs)


@needs_landlock
def test_a_directory_missing_at_start_ends_the_role_in_order_and_is_read_whole_once_started_again(tmp_path: Path) -> None:
    logs = tmp_path / "later" / "pods"
    with Backend() as backend:
        text = config(tmp_path, logs, backend.url)
        with Role(tmp_path / "role", text, expect_ready=False) as role:
            assert str(logs) in role.get("/status")[1]["sandbox"]["missing_at_start"]
            assert f"{logs} is not there (log files): once it is, this process ends with status 75" in role.log.read_text()
            write(logs, "one", "two")
            assert role.process.wait(60) == RESTART_STATUS
            log = role.log.read_text()
            assert f"{logs} (log files) was not there at start and is now, where the sandbox keeps it closed: stopping" in log
            assert "ended: " not in log and log.rstrip().endswith("stopped")
        assert backend.bodies() == []
        with Role(tmp_path / "role", text) as role:
            wait_until(lambda: backend.bodies() == ["one", "two"], what="the lines from the file's start")
            assert role.get("/status")[1]["sandbox"]["closed_now"] == []


@needs_landlock
def test_a_directory_deleted_and_made_anew_ends_the_role_and_what_was_there_before_is_not_repeated(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs, "one", "two")
    with Backend() as backend:
        text = config(tmp_path, logs, backend.url)
        with SoonerRole(tmp_path / "role", text, expect_ready=False) as role:
            with open(logs / "app.log", "a") as log:
                log.write("three\n")
            wait_until(lambda: backend.bodies() == ["three"], what="the line from before")
            shutil.rmtree(logs)
            write(logs, "four", "five")
            assert role.process.wait(60) == RESTART_STATUS
            assert f"{logs} (log files) is another one than at start" in role.log.read_text()
        with SoonerRole(tmp_path / "role", text):
            wait_until(lambda: backend.bodies() == ["three", "four", "five"], what="what is in the new directory")


@needs_landlock
@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0, reason="cannot mount"
)
def test_a_mounted_directory_deleted_and_made_anew_on_the_node_is_mounted_and_read_by_the_next_start(tmp_path: Path) -> None:
    """As of a pod's hostPath: the container keeps what was deleted, and never sees what is there instead."""
    node, logs = tmp_path / "node", tmp_path / "logs"
    logs.mkdir()
    write(node)
    in_a_pod = ("unshare", "-m", "sh", "-c", f'mount --bind {node} {logs} && exec "$@"', "sh")
    with Backend() as backend:
        text = config(tmp_path, logs, backend.url)
        with SoonerRole(tmp_path / "role", text, prefix=in_a_pod) as role:
            shutil.rmtree(node)
            write(node, "one")
            assert role.process.wait(60) == RESTART_STATUS
            assert f"{logs} (log files) was deleted and is only still mounted here" in role.log.read_text()
        with SoonerRole(tmp_path / "role", text, prefix=in_a_pod):
            wait_until(lambda: backend.bodies() == ["one"], what="what is there instead")


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "made-anew"])
def test_without_a_sandbox_the_role_goes_on_and_reads_it(tmp_path: Path, is_there: bool) -> None:
    logs = tmp_path / "logs"
    if is_there:
        write(logs)
    with (
        Backend() as backend,
        SoonerRole(tmp_path / "role", config(tmp_path, logs, backend.url, "off"), expect_ready=False) as role,
    ):
        shutil.rmtree(logs, ignore_errors=True)
        write(logs, "one")
        wait_until(lambda: backend.bodies() == ["one"], what="the line")
        assert role.process.poll() is None
