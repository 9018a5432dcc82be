"""The images that `make images` built: what is in them. tests/images/test_chart.py runs them."""

import json
import re
import stat
from pathlib import Path

import pytest
from support.container import IMAGES, Image

pytestmark = pytest.mark.images


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image("lockgate", tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image("lockgate-debug", tmp_path_factory.mktemp("debug"))


def test_it_is_small(image: Image) -> None:
    assert image.layer_bytes < 60e6


def test_the_only_programs_are_python_and_lockgate(image: Image) -> None:
    """No shell, no package manager, nothing that could be run by name."""
    programs = {
        entry.name for entry in image.entries if entry.isreg() and entry.mode & 0o111 and not re.search(r"\.so(\.[\d.]+)?$", entry.name)
    }
    assert programs == {"usr/bin/python3.11", "usr/local/bin/lockgate"}
    names = {Path(entry.name).name for entry in image.entries if entry.name != "var/lib/dpkg"}  # what is in it, for scanners
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "perl", "pip", "ensurepip", "Cython", "duckdb"}
    assert image.config["config"]["User"] == "10001:10001"


@pytest.mark.parametrize("name", ["image", "debug"])
def test_nothing_is_setuid_or_writable_by_others(name: str, request: pytest.FixtureRequest) -> None:
    found: Image = request.getfixturevalue(name)
    modes = {entry.name: entry.mode for entry in found.entries if not entry.issym()}
    assert {path for path, mode in modes.items() if mode & (stat.S_ISUID | stat.S_ISGID)} == set()
    assert {path for path, mode in modes.items() if mode & 0o002} == {"tmp"}
    assert {entry.name for entry in found.entries if entry.uid or entry.gid} == {"var/lib/lockgate"}


def test_what_is_in_it_is_listed(image: Image) -> None:
    bill = json.loads((IMAGES / "lockgate.cdx.json").read_text())
    listed = {part["purl"].split("@")[0] for part in bill["components"]}
    assert {"pkg:deb/debian/libc6", "pkg:deb/debian/libssl3", "pkg:pypi/lockgate", "pkg:pypi/aiohttp"} <= listed
    assert not any(re.search("cython|duckdb|pip$", name) for name in listed)
    libraries = {path.name for path in (image.root / "usr/local/lib/python3.11/dist-packages").glob("*.dist-info")}
    assert len(libraries) == sum(name.startswith("pkg:pypi/") for name in listed)
    packages = [name.split("/")[-1] for name in listed if "/debian/" in name]
    assert [name for name in packages if not (image.root / "usr/share/doc" / name / "copyright").exists()] == []
