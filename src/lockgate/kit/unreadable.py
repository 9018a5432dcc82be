"""Why this process may not read a file."""

import os
import stat
from pathlib import Path


def describe_unreadable(path: str, error: OSError) -> str:
    """What cannot be read, by whom, and whose it is: everything that is needed to mend it."""
    who = f"this process is uid {os.geteuid()}, gid {os.getegid()}, groups {sorted(os.getgroups())}"
    whose = next(filter(None, map(_owner, [Path(path), *Path(path).parents])), "")
    if whose.startswith(f"{path} is "):
        whose = f"it{whose.removeprefix(path)}"
    mend = "give it that group (supplementalGroups), or run as the owner"
    return f"cannot read {path}: {error.strerror or error}; {who}; {whose}; {mend}"


def _owner(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{path} is mode {stat.filemode(status.st_mode)}, owner uid {status.st_uid}, gid {status.st_gid}"
