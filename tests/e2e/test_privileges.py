"""The ladder of privileges, each rung played by a real agent: it reads there, not on the rung below, and says so with the keys to set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import journal
from support.backend import Backend
from support.process import Role, lockgate, wait_until
from support.rungs import becoming, let, needs_root, open_directory, place

pytestmark = needs_root

NOBODY = becoming(10001, 10001)
GROUP = becoming(10001, 10001, [0])
JOURNAL = becoming(10001, 10001, [0, 190])
ROOT = becoming(0, 0)
CAPABILITY = becoming(0, 0, [], ["DAC_READ_SEARCH"])

CONFIG = """
receivers:
  filelog: {{include: ["{directory}/pods/*/*.log"], start_at: beginning, poll_interval: 50ms, storage: file_storage}}
exporters: {{otlphttp: {{endpoint: "{url}"}}}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{directory}/state"}}}}
service:
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp]}}}}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@dataclass
class Case:
    """One file or directory that takes a rung."""

    mode: int
    owner: tuple[int, int]
    below: list[str]
    at: list[str]
    rung: str
    values: list[str]
    pod: int = 0o755
    blame: str = ""
    groups: list[int] = field(default_factory=list)


CASES = {
    "group": Case(0o640, (0, 0), NOBODY, GROUP, "group", ["otellogs.privilege: group"], blame="-rw-r-----, owner uid 0, gid 0"),
    "another-group": Case(
        0o640,
        (0, 190),
        GROUP,
        JOURNAL,
        "group",
        ["otellogs.privilege: group", "otellogs.journalGroup: 190"],
        blame="-rw-r-----, owner uid 0, gid 190",
        groups=[190],
    ),
    "root": Case(0o600, (0, 0), GROUP, ROOT, "root", ["otellogs.privilege: root"], blame="-rw-------, owner uid 0, gid 0"),
    "capability": Case(0o600, (5, 5), ROOT, CAPABILITY, "capability", ["otellogs.privilege: capability"], blame="-rw-------, owner uid 5"),
    # Here the file is open to everybody, and its directory is not.
    "directory": Case(0o644, (0, 0), GROUP, ROOT, "root", ["otellogs.privilege: root"], pod=0o700, blame="drwx------, owner uid 0, gid 0"),
}


def prepare(directory: Path, case: Case, owner: int) -> Path:
    """Two pods: one whose log everybody may read, and the case's. The state directory as the chart's init container leaves it."""
    for name, mode in (("pods", 0o755), ("state", 0o755), ("pods/open", 0o755), ("pods/case", case.pod)):
        place(directory / name, mode)
    give(directory / "state", owner)
    place(directory / "pods/open/0.log", 0o644, 5, 5, "open\n")
    return place(directory / "pods/case/0.log", case.mode, *case.owner, text="closed\n")


def give(state: Path, uid: int) -> None:
    for path in (state, *state.rglob("*")):
        os.chown(path, uid, uid)


def uid_of(prefix: list[str]) -> int:
    return int(prefix[1].partition("=")[2])


def agent(directory: Path, name: str, url: str, prefix: list[str]) -> Role:
    role = Role(directory / name, CONFIG.format(directory=directory, url=url), expect_ready=False, prefix=prefix)
    give(directory / name, uid_of(prefix))
    return role


def privileges(role: Role) -> Any:
    """What /status says, as soon as it was looked."""
    wait_until(lambda: role.get("/status")[1]["privileges"])
    return role.get("/status")[1]["privileges"]


@pytest.mark.parametrize("name", CASES)
def test_an_agent_reads_on_its_rung_and_below_it_says_which_rung_it_takes(name: str, directory: Path) -> None:
    case = CASES[name]
    log = prepare(directory, case, uid_of(case.below))
    culprit = log.parent if case.pod == 0o700 else log
    with Backend() as backend:
        with agent(directory, "below", backend.url, case.below) as role:
            wait_until(lambda: "open" in backend.bodies(), what="what it may read is delivered all the same")
            found = privileges(role)
            assert found["verdict"] == "too little"
            assert found["least"] == {"rung": case.rung, "groups": case.groups, "values": case.values}
            assert len(found["unreadable"]) == 1 and found["unreadable"][0].startswith(f"cannot read {culprit}: Permission denied")
            assert case.blame in found["unreadable"][0]
            standing = {each["rung"]: each for each in found["rungs"]}
            assert standing[case.rung]["holds"] is False and standing[case.rung]["reads"] == found["found"]
            assert found["reads"] != found["found"]
            wait_until(lambda: "privileges are too little" in role.log.read_text())
            said = role.log.read_text()
            assert said.count("privileges are too little") == 1 and ", ".join(case.values) in said
            wait_until(lambda: role.get("/ready")[0] == 503 and str(culprit) in str(role.get("/ready")[1]))
            [blocked] = [each["reason"] for each in role.get("/ready")[1]["blocked"] if str(culprit) in each["reason"]]
            assert case.values[-1].split(":")[0] in blocked or "supplementalGroups" in blocked
            assert role.get("/")[0] == 200
            assert role.process.poll() is None
        assert "closed" not in backend.bodies()
        give(directory / "state", uid_of(case.at))
        with agent(directory, "at", backend.url, case.at) as role:
            wait_until(lambda: "closed" in backend.bodies(), what="it reads on its rung")
            found = privileges(role)
            assert found["verdict"] == "enough" and not found["unreadable"] and found["reads"] == found["found"], found
            assert next(each for each in found["rungs"] if each["rung"] == case.rung)["holds"] is True
            wait_until(lambda: role.get("/ready")[0] == 200)
            wait_until(lambda: "privileges are enough" in role.log.read_text())
            assert "cannot read" not in role.log.read_text()


def tried(directory: Path, prefix: list[str]) -> tuple[int, Any]:
    """Exit status and JSON of `lockgate privileges`, run on this rung as in a pod."""
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(directory=directory, url="http://127.0.0.1:1"))
    role = Role(directory / "command", "", prefix=prefix)
    command = [*role.command()[:-5], "privileges", "--config", str(config), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("prefix", "mode", "advice"),
    [
        pytest.param(ROOT, 0o640, ["a user other than root, in group 0 would read as much: otellogs.privilege: group"], id="root"),
        pytest.param(
            CAPABILITY,
            0o600,
            ["uid 0 would read as much: otellogs.privilege: root", "nothing here uses DAC_READ_SEARCH: drop: [ALL]"],
            id="capability",
        ),
        pytest.param(JOURNAL, 0o640, ["nothing that was found is read by way of group 190"], id="group"),
        pytest.param(becoming(0, 0, [], ["NET_RAW", "CHOWN"]), 0o600, ["nothing here uses CHOWN, NET_RAW: drop: [ALL]"], id="others"),
    ],
)
def test_who_has_more_than_is_needed_is_told_what_can_be_taken_away(
    directory: Path, prefix: list[str], mode: int, advice: list[str]
) -> None:
    prepare(directory, Case(mode, (0, 0), [], [], "", []), uid_of(prefix))
    status, found = tried(directory, prefix)
    assert (status, found["verdict"], found["advice"]) == (0, "more than needed", advice)


def test_users_and_groups_of_access_control_lists_are_computed(directory: Path) -> None:
    path = prepare(directory, CASES["capability"], 10001)
    let(path, users={10001: 4})
    status, found = tried(directory, GROUP)
    assert (status, found["verdict"], found["reads"]) == (0, "enough", found["found"])
    assert tried(directory, becoming(10002, 10002))[1]["verdict"] == "too little"
    found = tried(directory, CAPABILITY)[1]
    assert found["verdict"] == "more than needed"
    text = "a user other than root, in group 0 would read as much: otellogs.privilege: group"
    assert text in found["advice"]
    path.chmod(0o600)
    let(path, groups={190: 4})
    found = tried(directory, GROUP)[1]
    assert found["verdict"] == "too little"
    text = "it takes a user other than root, in group 0 and group 190: otellogs.privilege: group, otellogs.journalGroup: 190"
    assert text in found["advice"]
    assert "with an access control list" in found["unreadable"][0]
    assert tried(directory, becoming(10001, 10001, [0, 190]))[1]["verdict"] == "enough"


def test_a_capability_of_a_user_other_than_root_is_said_to_do_nothing(directory: Path) -> None:
    prepare(directory, CASES["capability"], 10001)
    status, found = tried(directory, becoming(10001, 10001, [0], ["DAC_READ_SEARCH"]))
    assert (status, found["verdict"], found["capabilities"]) == (1, "too little", [])
    why = found["rungs"][2]["why"]
    assert "for uid 10001 it does nothing without an ambient set" in why


def test_what_lies_behind_a_closed_directory_is_not_known_from_here(directory: Path) -> None:
    prepare(directory, Case(0o600, (5, 5), [], [], "", [], pod=0o700), 10001)
    (directory / "pods").chmod(0o700)
    status, found = tried(directory, GROUP)
    assert status == 1
    assert found["found"] == {"files": 0, "directories": 1}
    assert found["least"]["rung"] == "root"
    status, found = tried(directory, ROOT)  # from there more is seen
    assert (status, found["least"]["rung"]) == (1, "capability")


def test_a_root_that_no_directory_hides_is_waited_for_and_one_that_is_hidden_is_an_error(directory: Path) -> None:
    place(directory / "state", 0o755, 10001, 10001)
    with agent(directory, "missing", "http://127.0.0.1:1", GROUP) as role:
        assert privileges(role)["missing"] == [f"{directory}/pods"]
        assert f"waiting for {directory}/pods to exist" in str(role.get("/ready")[1])
    hidden = place(directory / "hidden", 0o700)
    place(hidden / "pods", 0o755)
    config = CONFIG.format(directory=directory, url="http://127.0.0.1:1").replace("/pods", "/hidden/pods")
    role = Role(directory / "role", config, expect_ready=False, prefix=GROUP)
    give(directory / "role", 10001)
    with role:
        assert privileges(role)["verdict"] == "too little"
        ready = str(role.get("/ready")[1])
        assert "waiting for" not in ready
        assert "it takes uid 0 at least, as what lies behind that cannot be seen from here: otellogs.privilege: root" in ready


def test_a_file_that_comes_later_and_takes_a_higher_rung_names_it(directory: Path) -> None:
    prepare(directory, Case(0o644, (0, 0), [], [], "", []), 10001)
    with Backend() as backend, agent(directory, "role", backend.url, GROUP) as role:
        wait_until(lambda: "closed" in backend.bodies())
        assert privileges(role)["verdict"] == "enough"
        wait_until(lambda: role.get("/ready")[0] == 200)
        place(directory / "pods/case/1.log", 0o600, text="later\n")
        wait_until(lambda: "1.log" in str(role.get("/ready")[1]))
        assert "it takes uid 0: otellogs.privilege: root" in str(role.get("/ready")[1])
        assert "it takes uid 0: otellogs.privilege: root" in role.log.read_text()
        (directory / "pods/case/1.log").chmod(0o644)
        wait_until(lambda: "later" in backend.bodies())
        wait_until(lambda: role.get("/ready")[0] == 200)


def test_after_a_reload_the_rungs_are_tried_anew(directory: Path) -> None:
    prepare(directory, CASES["root"], 10001)
    with Backend() as backend:
        config = CONFIG.format(directory=directory, url=backend.url)
        role = Role(directory / "role", config.replace("*.log", "*.txt"), prefix=GROUP)
        give(directory / "role", 10001)
        with role:
            assert privileges(role)["found"] == {"files": 0, "directories": 3}
            (directory / "role/config.yaml").write_text(config)
            role.process.send_signal(signal.SIGHUP)
            wait_until(lambda: privileges(role)["verdict"] == "too little")
            assert privileges(role)["least"]["values"] == ["otellogs.privilege: root"]


def test_what_the_sandbox_refuses_is_not_blamed_on_the_rung(directory: Path) -> None:
    place(directory / "state", 0o755)
    with agent(directory, "role", "http://127.0.0.1:1", ROOT) as role:
        if not role.get("/status")[1]["sandbox"]["files"]:
            pytest.skip("this kernel has no Landlock")
        place(directory / "pods", 0o755)  # what appears later stays closed until a restart
        wait_until(lambda: "no privilege mends it: the sandbox" in str(role.get("/ready")[1]))
        assert "otellogs.privilege" not in str(role.get("/ready")[1])


@pytest.mark.parametrize("how", ["directory", "within"])
def test_a_state_directory_of_somebody_else_is_an_error_with_the_remedy(how: str, directory: Path) -> None:
    prepare(directory, CASES["group"], 10001)
    state = directory / "state"
    if how == "directory":
        os.chown(state, 0, 0)
    else:  # left by an agent on another rung
        state = place(state / "receivers~002Ffilelog", 0o750)
    status, found = tried(directory, GROUP)
    assert status == 1
    [problem] = [each["problem"] for each in found["state"] if each["problem"]]
    for words in (
        f"cannot write to {state}: Permission denied",
        "this process is uid 10001, gid 10001, groups [0]",
        "is mode drwxr-x" if how == "directory" else "is mode drwxr-x---, owner uid 0, gid 0",
        "an init container with CAP_CHOWN and no other",
        "otellogs.state.type: emptyDir",
    ):
        assert words in problem, problem
    if how == "directory":
        role = agent(directory, "role", "http://127.0.0.1:1", GROUP)
        role.spawn()
        assert role.process.wait(30) == 1
        assert f"cannot write to {state}" in role.log.read_text() and "CAP_CHOWN" in role.log.read_text()
    give(directory / "state", 10001)
    assert tried(directory, GROUP)[0] == 0


EMPTY_DIR = """
mkdir -p {0}/kubelet/pods/3f1c/volumes/kubernetes.io~empty-dir/state
chown 10001 {0}/kubelet/pods/3f1c/volumes/kubernetes.io~empty-dir/state
mount --bind {0}/kubelet/pods/3f1c/volumes/kubernetes.io~empty-dir/state {0}/state
exec "$@"
"""
HOST_PATH = EMPTY_DIR.replace("kubelet/pods/3f1c/volumes/kubernetes.io~empty-dir", "node/var/lib")
MEMORY = 'mount -t tmpfs -o uid=10001 tmpfs {0}/state; exec "$@"'
CONTAINER = """
mkdir -p {0}/layers
mount -t tmpfs tmpfs {0}/layers
mkdir {0}/layers/upper {0}/layers/work {0}/layers/root
mount -t overlay overlay -o lowerdir=/,upperdir={0}/layers/upper,workdir={0}/layers/work {0}/layers/root
mount --rbind /proc {0}/layers/root/proc
mount --rbind /dev {0}/layers/root/dev
exec chroot {0}/layers/root "$@"
"""


@pytest.mark.parametrize(
    ("mounts", "words"),
    [
        pytest.param(EMPTY_DIR, "pod, whose emptyDir it is", id="emptyDir"),
        pytest.param(MEMORY, "memory that it is in", id="memory"),
        pytest.param(CONTAINER, "container, whose own file system it is", id="container"),
        pytest.param(HOST_PATH, "", id="hostPath"),
    ],
)
def test_positions_in_what_does_not_last_are_said_to_be_lost_with_it(mounts: str, words: str, directory: Path) -> None:
    prepare(directory, CASES["group"], 10001)
    below = subprocess.run(["stat", "--file-system", "--format=%T", directory], capture_output=True, text=True, check=True).stdout.strip()
    if below in ("overlayfs", "tmpfs") and not words:
        pytest.skip(f"nothing lasts here: {directory} is in {below}")
    inside = ["unshare", "--mount", "sh", "-ec", mounts.format(directory), "sh"]
    if (ended := subprocess.run([*inside, "true"], check=False, capture_output=True)).returncode:
        pytest.skip(f"nothing can be mounted here: {ended.stderr.decode()}")
    status, found = tried(directory, [*inside, *GROUP])
    [state] = [each for each in found["state"] if each["path"] == f"{directory}/state"]
    assert (status, state["loss"], state["problem"]) == (0, words, "")
    if mounts is EMPTY_DIR:
        with Backend() as backend:
            config = CONFIG.format(directory=directory, url=backend.url)
            role = Role(directory / "role", config, expect_ready=False, prefix=[*inside, *GROUP])
            give(directory / "role", 10001)
            with role:
                wait_until(lambda: "positions and queues in" in role.log.read_text())
                assert f"{directory}/state are lost with the {words}" in role.log.read_text()


def test_of_very_many_files_some_of_everywhere_are_tried(directory: Path) -> None:
    prepare(directory, CASES["group"], 10001)
    many = place(directory / "pods/many", 0o755)
    for number in range(20_000):
        os.close(os.open(many / f"{number}.log", os.O_CREAT, 0o644))
    status, found = tried(directory, NOBODY)
    assert status == 1 and found["tried_all"] is False
    assert found["found"]["files"] + found["found"]["directories"] == 4096
    assert "pods/case/0.log" in found["unreadable"][0]


def test_a_role_that_reads_nothing_of_others_has_only_its_own_to_tell() -> None:
    done = lockgate("privileges", "--config", "metrics_metadata", "--set", "extensions.file_storage.directory=/nowhere/state")
    assert "nothing to read" in done.stdout and "otellogs" not in done.stdout.partition("\n")[0]


@journal.needs_journal
def test_the_journals_group_is_named_and_with_it_the_journal_is_read(directory: Path) -> None:
    place(directory / "state", 0o755, 10001, 10001)
    entries = place(directory / "journal", 0o755)
    journal.write(entries / "a.journal", [{"MESSAGE": "from the journal", "PRIORITY": "6"}])
    os.chown(entries, 0, 190)
    os.chown(entries / "a.journal", 0, 190)
    entries.chmod(0o2750)
    (entries / "a.journal").chmod(0o640)
    receiver = f'{{journald: {{directory: "{entries}", start_at: beginning, storage: file_storage}}}}'

    def start(name: str, url: str, prefix: list[str]) -> Role:
        lines = CONFIG.format(directory=directory, url=url).replace("receivers: [filelog]", "receivers: [journald]").splitlines()
        config = "\n".join(f"receivers: {receiver}" if line == "receivers:" else line for line in lines if "  filelog:" not in line)
        role = Role(directory / name, config, expect_ready=False, prefix=prefix)
        give(directory / name, 10001)
        return role

    with Backend() as backend:
        with start("below", backend.url, GROUP) as role:
            found = privileges(role)
            assert found["verdict"] == "too little"
            assert found["least"]["values"] == ["otellogs.privilege: group", "otellogs.journalGroup: 190"]
            wait_until(lambda: str(entries) in str(role.get("/ready")[1]))
            assert "190" in str(role.get("/ready")[1])
        assert not backend.bodies()
        with start("at", backend.url, JOURNAL) as role:
            wait_until(lambda: backend.seen, what="the journal is read")
            assert privileges(role)["verdict"] == "enough"
