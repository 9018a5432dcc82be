"""Processes on the rungs of the ladder: what a container runtime makes of a security context, by setpriv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def becoming(uid: int, gid: int, groups: Iterable[int] = (), capabilities: Iterable[str] = (), *, no_new_privs: bool = True) -> list[str]:
    """What to put before a command. Capabilities are given as a runtime gives them: in the bounding set, never in an ambient one."""
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    listed = ",".join(map(str, groups))
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        f"--groups={listed}" if listed else "--clear-groups",
        f"--bounding-set={bounding}",
        "--inh-caps=-all",
        *["--no-new-privs"] * no_new_privs,
    ]


def contained(pod: Mapping[str, Any], container: Mapping[str, Any]) -> list[str]:
    """Likewise, as these rendered security contexts say. A runtime adds group 0 to root's own."""
    own = {**pod, **container}
    assert own["capabilities"]["drop"] == ["ALL"]
    groups = own.get("supplementalGroups", [])
    added = own["capabilities"].get("add", [])
    return becoming(own["runAsUser"], own["runAsGroup"], groups, added, no_new_privs=not own["allowPrivilegeEscalation"])


def _in_the_way() -> str:
    """Why nobody else can be played here; empty where they can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "only root, with setpriv, can become anybody"
    command = [*becoming(10001, 10001), sys.executable, "-P", "-c", "import lockgate.collector.program"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return f"Python, or Lockgate, lies where other users may not look: {ended.stderr[-300:]}" if ended.returncode else ""


needs_root = pytest.mark.skipif(bool(_reason := _in_the_way()), reason=_reason)


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def place(path: Path, mode: int, uid: int = 0, gid: int = 0, text: str | None = None) -> Path:
    """A file with this text, or a directory, of this owner, group and mode."""
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path
