"""Why this process may not read a file or write to a directory, and what would let it."""

import stat

from lockgate.kit.rungs import Process, Way, least

REFUSED_ELSEWHERE = (
    "owner, mode and access control list would allow it, so no privilege mends it: the sandbox, SELinux, AppArmor or a file server refuses"
)


def describe_unreadable(path: str, error: OSError) -> str:
    """What cannot be read, by whom, and whose it is; and the lowest rung from here on that would read it, with the chart's keys."""
    process, way = Process.here(), Way.to(path)
    barrier = way.barrier(process.identity)
    return "; ".join((f"cannot read {path}: {error.strerror or error}", *_who(process, path, way), *_mend(error, process, way, barrier)))


def _mend(error: OSError, process: Process, way: Way, barrier: object) -> list[str]:
    if not isinstance(error, PermissionError):
        return []
    if way.is_whole and barrier is None:
        return [REFUSED_ELSEWHERE]
    grant = least([way], process, process.rung, process.extra_groups)
    is_file = way.is_whole and not stat.S_ISDIR(way.steps[-1].status.st_mode)
    seen = "" if is_file else " at least, as what lies behind that cannot be seen from here"
    return [f"it takes {grant}{seen}: {', '.join(grant.values)}"]


def describe_unwritable(path: str, error: OSError) -> str:
    """What cannot be written to, by whom, and whose it is; and the ways to have a directory that can be."""
    text = "; ".join((f"cannot write to {path}: {error.strerror or error}", *_who(Process.here(), path, Way.to(path))))
    if not isinstance(error, PermissionError):
        return text
    return (
        f"{text}; give it to this user: by an init container with CAP_CHOWN and no other (the chart's changeowner, with "
        "otellogs.state.type: hostPath), by fsGroup where it is a claim; or keep it in an emptyDir (otellogs.state.type: emptyDir), which "
        "needs neither and is gone with the pod"
    )


def _who(process: Process, path: str, way: Way) -> list[str]:
    """This process, and the step that stops it, or else the last that can be seen."""
    found = [f"this process is {process}"]
    step = way.barrier(process.identity) or (way.steps[-1] if way.steps else None)
    return [*found, f"it{str(step).removeprefix(path)}" if step.path == path else str(step)] if step else found
