"""What is computed of other users, held against the kernel's answers to real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.rungs import becoming, let, needs_root, open_directory, place

from lockgate.kit.rungs import Grant, Identity, Process, Rung, Way, best, least

AGENT = Process(10001, 10001, frozenset({0}))
ROOT = Process(0, 0, frozenset())

_OPEN = """
import json, os, sys
def opens(path):
    try:
        if path.endswith("/"):
            os.stat(path + ".")
            os.scandir(path).close()
        else:
            os.close(os.open(path, os.O_RDONLY))
        return True
    except PermissionError:
        return False
print(json.dumps([opens(path) for path in json.load(sys.stdin)]))
"""


@needs_root
@pytest.mark.parametrize(
    ("process", "rung", "groups", "capabilities"),
    [
        pytest.param(AGENT, Rung.GROUP, (), (), id="group"),
        pytest.param(AGENT, Rung.GROUP, (190, 4), (), id="groups"),
        pytest.param(ROOT, Rung.GROUP, (190,), (), id="group-computed-by-root"),
        pytest.param(AGENT, Rung.ROOT, (), (), id="root"),
        pytest.param(AGENT, Rung.ROOT, (190,), (), id="root-in-groups"),
        pytest.param(AGENT, Rung.CAPABILITY, (), ("DAC_READ_SEARCH",), id="capability"),
        # Added to a pod whose user is not root it is in the bounding set, and never in effect.
        pytest.param(AGENT, Rung.GROUP, (190,), ("DAC_READ_SEARCH",), id="capability-without-root"),
    ],
)
def test_what_a_rung_reads_is_what_the_kernel_lets_a_process_there_read(
    process: Process, rung: Rung, groups: tuple[int, ...], capabilities: tuple[str, ...]
) -> None:
    chance = random.Random(rung)
    owners, modes = (0, 10001, 1000), [0, 0o111, 0o444, 0o555, 0o040, 0o050, 0o400, 0o500, 0o640, 0o750, 0o604, 0o705, 0o755]
    with open_directory() as root:
        paths = []
        for number in range(40):
            group = chance.choice((0, 190, 4, 10001, 1000))
            directory = place(root / str(number), chance.choice(modes), chance.choice(owners), group)
            paths.append(f"{directory}/")
            for name in range(8):
                file = place(directory / str(name), chance.choice(modes), chance.choice(owners), chance.choice((0, 190)), "")
                if name % 2:
                    listed = {chance.choice(ids): chance.choice((0, 1, 4, 5, 6)) for ids in ((0, 10001, 1000), (4, 190, 10001))}
                    users = {uid: permissions for uid, permissions in listed.items() if uid in owners}
                    let(file, users=users, groups=listed, mask=chance.choice((0, 1, 4, 7)))
                paths.append(str(file))
            if number % 3 == 0:
                let(directory, users={10001: chance.choice((0, 1, 5))}, groups={190: chance.choice((1, 5))}, mask=chance.choice((0, 5, 7)))
        (root / "link").symlink_to(paths[1])
        paths.append(str(root / "link"))
        who = process.on(rung, frozenset(groups))
        computed = [Way.to(path).barrier(who) is None for path in paths]
        own = who.groups - {who.uid} - ({0} if rung is not Rung.GROUP else set())
        command = [*becoming(who.uid, who.uid, sorted(own), capabilities), sys.executable, "-IS", "-c", _OPEN]
        done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=True, timeout=60)
    assert computed == json.loads(done.stdout)
    assert any(computed) and all(computed) is (rung is Rung.CAPABILITY)


def _file(tmp_path: Path, mode: int, uid: int, gid: int, name: str = "file") -> Way:
    return Way.to(str(place(tmp_path / name, mode, uid, gid, "")))


@needs_root
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param([(0o644, 1, 1)], Grant(Rung.GROUP), id="everybody"),
        pytest.param([(0o640, 0, 0)], Grant(Rung.GROUP), id="group-root"),
        pytest.param([(0o640, 0, 190)], Grant(Rung.GROUP, frozenset({190})), id="journal"),
        pytest.param([(0o640, 0, 190), (0o640, 5, 4)], Grant(Rung.GROUP, frozenset({4, 190})), id="two-groups"),
        pytest.param([(0o600, 0, 190)], Grant(Rung.ROOT), id="root-alone"),
        pytest.param([(0o600, 0, 0), (0o640, 5, 190)], Grant(Rung.ROOT, frozenset({190})), id="root-and-a-group"),
        pytest.param([(0o600, 5, 5)], Grant(Rung.CAPABILITY), id="somebody-else-alone"),
        pytest.param([(0o040, 0, 0)], Grant(Rung.GROUP), id="not-even-its-owner"),
        pytest.param([(0, 0, 0)], Grant(Rung.CAPABILITY), id="nobody"),
        # The owner's bits count for the owner, whatever the group may.
        pytest.param([(0o040, 10001, 0)], Grant(Rung.ROOT), id="shut-out-as-owner"),
        pytest.param([(0o640, 9, 100 + gid) for gid in range(9)], Grant(Rung.CAPABILITY), id="too-many-groups"),
        pytest.param([], Grant(Rung.GROUP), id="nothing"),
    ],
)
def test_the_least_rung_that_reads_all(files: list[tuple[int, int, int]], expected: Grant) -> None:
    with open_directory() as root:
        ways = [_file(root, *file, name=str(number)) for number, file in enumerate(files)]
        assert least(ways, AGENT) == expected
        who = AGENT.on(expected.rung, expected.groups)
        assert not any(way.barrier(who) for way in ways)


@needs_root
def test_of_several_groups_that_would_help_one_is_named() -> None:
    with open_directory() as root:
        journal = place(root / "system.journal", 0o640, 0, 190, "")
        let(journal, groups={4: 4, 7: 4})
        assert least([Way.to(str(journal))], AGENT) == Grant(Rung.GROUP, frozenset({190})), "the file's own"
        in_adm = Process(10001, 10001, frozenset({0, 4}))
        assert least([Way.to(str(journal))], in_adm) == Grant(Rung.GROUP, frozenset({4})), "one that it has"
        journal.chmod(0o600)  # which takes the list's mask
        assert least([Way.to(str(journal))], AGENT) == Grant(Rung.ROOT)
        let(journal, groups={7: 4, 9: 6})
        assert least([Way.to(str(journal))], AGENT) == Grant(Rung.GROUP, frozenset({7})), "the file's own may nothing"


@needs_root
def test_a_directory_in_the_way_counts_as_much_as_the_file() -> None:
    with open_directory() as root:
        closed = place(root / "closed", 0o700)
        way = _file(closed, 0o644, 0, 0)
        assert least([way], AGENT) == Grant(Rung.ROOT)
        closed.chmod(0o711)
        assert least([Way.to(str(closed / "file"))], AGENT) == Grant(Rung.GROUP)
        assert least([Way.to(str(closed))], AGENT) == Grant(Rung.ROOT), "it can be entered, and not listed"


@needs_root
def test_a_rung_below_is_not_offered_to_whoever_stands_higher() -> None:
    with open_directory() as root:
        way = _file(root, 0o640, 5, 190)
        assert least([way], AGENT) == Grant(Rung.GROUP, frozenset({190}))
        assert least([way], ROOT, Rung.ROOT, frozenset({4})) == Grant(Rung.ROOT, frozenset({4, 190}))
        assert best([way, _file(root, 0o600, 5, 190, "closed")], ROOT, Rung.ROOT) == Grant(Rung.ROOT, frozenset({190}))
        assert least([_file(root, 0o600, 0, 0, "roots")], AGENT, Rung.GROUP, frozenset({190})) == Grant(Rung.ROOT)


@pytest.mark.parametrize(
    ("grant", "values"),
    [
        (Grant(Rung.GROUP), ["otellogs.privilege: group"]),
        (Grant(Rung.GROUP, frozenset({190})), ["otellogs.privilege: group", "otellogs.journalGroup: 190"]),
        (
            Grant(Rung.GROUP, frozenset({190, 4})),
            ["otellogs.privilege: group", "otellogs.daemonset.securityContext.supplementalGroups: [0, 4, 190]"],
        ),
        (Grant(Rung.ROOT), ["otellogs.privilege: root"]),
        (
            Grant(Rung.ROOT, frozenset({190})),
            ["otellogs.privilege: root", "otellogs.daemonset.securityContext.supplementalGroups: [190]"],
        ),
        (Grant(Rung.CAPABILITY), ["otellogs.privilege: capability"]),
    ],
)
def test_the_values_keys_of_a_rung(grant: Grant, values: list[str]) -> None:
    assert grant.values == values


def test_this_process_is_who_the_kernel_says() -> None:
    here = Process.here()
    assert (here.uid, here.gid, here.groups) == (os.geteuid(), os.getegid(), frozenset(os.getgroups()))
    assert here.capabilities <= here.bounding
    assert here.rung is (Rung.CAPABILITY if here.identity.reads_all else Rung.GROUP if here.uid else Rung.ROOT)


@needs_root
@pytest.mark.parametrize(
    ("prefix", "rung"),
    [
        pytest.param(becoming(10001, 10001, [0]), Rung.GROUP, id="group"),
        pytest.param(becoming(10001, 10001, [0], ["DAC_READ_SEARCH"]), Rung.GROUP, id="capability-that-does-nothing"),
        pytest.param(becoming(0, 0), Rung.ROOT, id="root"),
        pytest.param(becoming(0, 0, [], ["CHOWN"]), Rung.ROOT, id="root-with-another-capability"),
        pytest.param(becoming(0, 0, [], ["DAC_READ_SEARCH"]), Rung.CAPABILITY, id="capability"),
        pytest.param(becoming(0, 0, [], ["DAC_OVERRIDE"]), Rung.CAPABILITY, id="override"),
    ],
)
def test_a_process_knows_its_rung(prefix: list[str], rung: Rung) -> None:
    program = "from lockgate.kit.rungs import Process; print(Process.here().rung.name, *Process.here().bounding)"
    done = subprocess.run([*prefix, sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    name, *bounding = done.stdout.split()
    assert name == rung.name
    added = next(each for each in prefix if each.startswith("--bounding-set"))
    assert set(bounding) == {each[1:].upper() for each in added.split(",")[1:]}


def test_whoever_reads_all_is_stopped_by_nothing() -> None:
    way = Way.to("/proc/self/status")
    assert way.is_whole and way.barrier(Identity(1, frozenset(), reads_all=True)) is None
    assert not Way.to("/proc/self/not-there").is_whole
