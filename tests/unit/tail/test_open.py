"""Files are opened beneath the declared roots and nowhere else."""

import os
from pathlib import Path

import pytest

from lockgate.tail.open import Refused, Roots


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "pods/ns_pod_uid/c").mkdir(parents=True)
    (tmp_path / "pods/ns_pod_uid/c/0.log").write_text("a line\n")
    (tmp_path / "containers").mkdir()
    (tmp_path / "secret").write_text("root:x\n")
    return tmp_path


def read(roots: Roots, path: Path) -> tuple[bytes, str]:
    descriptor, real = roots.open(str(path))
    try:
        return os.read(descriptor, 100), real
    finally:
        os.close(descriptor)


def test_a_plain_file_opens(logs: Path) -> None:
    path = logs / "pods/ns_pod_uid/c/0.log"
    assert read(Roots.of([str(logs / "pods")]), path) == (b"a line\n", str(path))


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_links_between_declared_roots_open(logs: Path, absolute: bool) -> None:
    target = logs / "pods/ns_pod_uid/c/0.log"
    link = logs / "containers/pod.log"
    link.symlink_to(target if absolute else "../pods/ns_pod_uid/c/0.log")
    roots = Roots.of([str(logs / "pods"), str(logs / "containers")])
    assert read(roots, link) == (b"a line\n", str(target))


def test_a_link_through_a_link_opens_where_each_step_is_declared(logs: Path) -> None:
    (logs / "docker").mkdir()
    (logs / "docker/id-json.log").write_text("{}\n")
    (logs / "pods/ns_pod_uid/c/1.log").symlink_to(logs / "docker/id-json.log")
    (logs / "containers/pod.log").symlink_to(logs / "pods/ns_pod_uid/c/1.log")
    every = [str(logs / name) for name in ("pods", "containers", "docker")]
    assert read(Roots.of(every), logs / "containers/pod.log")[0] == b"{}\n"
    with pytest.raises(Refused, match="outside of"):
        Roots.of(every[:2]).open(str(logs / "containers/pod.log"))


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("../../../../secret", id="relative"),
        pytest.param("../c/../../../../secret", id="relative-through-itself"),
        pytest.param("/proc/self/root/etc/passwd", id="magic-link"),
    ],
)
def test_a_link_out_of_the_roots_is_refused(logs: Path, target: str) -> None:
    link = logs / "pods/ns_pod_uid/c/9.log"
    link.symlink_to(target)
    with pytest.raises(Refused, match="outside of"):
        Roots.of([str(logs / "pods")]).open(str(link))


def test_a_linked_directory_out_of_the_roots_is_refused(logs: Path) -> None:
    (logs / "pods/ns_evil_uid").symlink_to("/etc")
    with pytest.raises(Refused, match="outside of"):
        Roots.of([str(logs / "pods")]).open(str(logs / "pods/ns_evil_uid/passwd"))


def test_a_path_that_only_looks_like_a_root_is_refused(logs: Path) -> None:
    (logs / "pods-evil").mkdir()
    (logs / "pods-evil/0.log").write_text("x\n")
    with pytest.raises(Refused):
        Roots.of([str(logs / "pods")]).open(str(logs / "pods-evil/0.log"))


def test_links_in_circles_are_refused(logs: Path) -> None:
    (logs / "pods/a.log").symlink_to("b.log")
    (logs / "pods/b.log").symlink_to("a.log")
    with pytest.raises(Refused, match="more than"):
        Roots.of([str(logs / "pods")]).open(str(logs / "pods/a.log"))


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_regular_file_is_refused_without_waiting(logs: Path, kind: str) -> None:
    path = logs / "pods/x.log"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(Refused, match="regular"):
        Roots.of([str(logs / "pods")]).open(str(path))


def test_nothing_stays_open_after_a_refusal(logs: Path) -> None:
    roots = Roots.of([str(logs / "pods")])
    (logs / "pods/x.log").symlink_to("/etc/passwd")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(Refused):
            roots.open(str(logs / "pods/x.log"))
        with pytest.raises(FileNotFoundError):
            roots.open(str(logs / "pods/missing/0.log"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
