"""Processes on the rungs of the ladder: what a container runtime makes of a security context, by setpriv."""

from __future__ import annotations

import os
import shutil
import struct
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


def let(path: Path, *, users: Mapping[int, int] | None = None, groups: Mapping[int, int] | None = None, mask: int = 7) -> None:
    """Gives a file an access control list of these (permissions by uid and gid); owner, own group and others keep what the mode says.

    As setfacl would (linux/posix_acl_xattr.h); from then on the mode shows the mask where its group was.
    """
    mode, nobody = path.stat().st_mode, 0xFFFFFFFF
    named = [(0x02, each, id) for id, each in sorted((users or {}).items())]
    more = [(0x08, each, id) for id, each in sorted((groups or {}).items())]
    entries = [(0x01, mode >> 6 & 7, nobody), *named, (0x04, mode >> 3 & 7, nobody), *more, (0x10, mask, nobody), (0x20, mode & 7, nobody)]
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries))
    except OSError as error:
        pytest.skip(f"this file system has no access control lists: {error}")
