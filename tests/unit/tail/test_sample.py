"""What is tried before anything is followed: what the tailer would read, some of everywhere, and nothing else."""

from __future__ import annotations

import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lockgate.tail.options import Options
from lockgate.tail.sample import try_reading


def names(tmp_path: Path, *include: str, **options: Any) -> dict[str, str]:
    """What was tried, relative to the directory: `directory` or `file`, or the error."""
    tried = try_reading(Options(tuple(f"{tmp_path}/{each}" for each in include), **options), time.time_ns)
    return {
        os.path.relpath(each.path, tmp_path): type(each.error).__name__ if each.error else "directory" if each.is_directory else "file"
        for each in tried
    }


def test_directories_on_the_way_and_files_that_match_are_tried_and_nothing_else(tmp_path: Path) -> None:
    for directory in ("pods/a/main", "pods/b/main", "pods/a.d"):
        (tmp_path / directory).mkdir(parents=True)
    for file in ("pods/a/main/0.log", "pods/a/main/0.log.1", "pods/b/main/0.log", "pods/0.log", "other.log"):
        (tmp_path / file).touch()
    os.mkfifo(tmp_path / "pods/a/main/1.log")
    assert names(tmp_path, "pods/*/*/*.log", exclude=(f"{tmp_path}/pods/b/**",)) == {
        "pods": "directory",
        "pods/a": "directory",
        "pods/a.d": "directory",
        "pods/b": "directory",
        "pods/a/main": "directory",
        "pods/b/main": "directory",
        "pods/a/main/0.log": "file",
    }


def test_links_are_followed_under_the_roots_and_nowhere_else(tmp_path: Path) -> None:
    for directory in ("containers", "pods", "secret"):
        (tmp_path / directory).mkdir()
    (tmp_path / "pods/0.log").touch()
    (tmp_path / "secret/shadow").touch()
    (tmp_path / "containers/good.log").symlink_to("../pods/0.log")
    (tmp_path / "containers/bad.log").symlink_to("../secret/shadow")
    (tmp_path / "containers/dangling.log").symlink_to("../pods/gone")
    (tmp_path / "containers/away.log").symlink_to(tmp_path / "secret")
    found = names(tmp_path, "containers/*.log", "containers/*.log/*", link_roots=(str(tmp_path / "pods"),))
    assert found == {"containers": "directory", "pods/0.log": "file"}


def test_a_root_that_is_missing_is_told_and_files_too_old_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name, age in (("old.log", 7200), ("new.log", 0)):
        (tmp_path / "here" / name).touch()
        os.utime(tmp_path / "here" / name, (time.time() - age,) * 2)
    found = names(tmp_path, "here/*.log", "gone/*.log", exclude_older_than_seconds=3600.0)
    assert found == {"gone": "FileNotFoundError", "here": "directory", "here/new.log": "file"}


@pytest.mark.parametrize("first", ["a", "z"])
def test_a_directory_of_very_many_files_takes_no_others_turn(first: str, tmp_path: Path) -> None:
    for pod in ("a", "m", "z"):
        (tmp_path / pod).mkdir()
        for number in range(2000 if pod == first else 2):
            (tmp_path / pod / f"{number}.log").touch()
    options = Options((f"{tmp_path}/*/*.log",))
    some = [each.path for each in islice(try_reading(options, time.time_ns), 200)]
    assert {os.path.basename(os.path.dirname(path)) for path in some if path.endswith(".log")} == {"a", "m", "z"}
