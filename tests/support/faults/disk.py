"""A disk that fills up under the agent's state: by its own queue while nobody takes, or by somebody else."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.faults import Figures
from support.faults.laboratory import Laboratory
from support.process import Role, wait_until


class NotMountable(Exception):
    """No file system can be had here: it takes root, and a loop device or tmpfs."""


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[str]:
    """`directory` on a file system of its own: ext4 where a loop device can be had, else tmpfs; gives its kind."""
    directory.mkdir(parents=True)
    image = directory.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    ext4 = [["mkfs.ext4", "-q", "-m", "0", "-J", "size=1", str(image)], ["mount", "-o", "loop", str(image), str(directory)]]
    tmpfs = [["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "faults", str(directory)]]
    kind = "ext4" if _all_run(ext4) else "tmpfs" if _all_run(tmpfs) else ""
    if not kind:
        raise NotMountable(f"cannot mount a file system on {directory}")
    try:
        yield kind
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        image.unlink()


def _all_run(commands: list[list[str]]) -> bool:
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def play(
    directory: Path, seed: int, *, by_others: bool, kills: int = 0, full_seconds: float = 3, lines_per_second: float = 1500
) -> Figures:
    """Fills the disk, `by_others` or by an outage behind the agent, keeps it so for a while, and lets go. `kills` of the agent meanwhile.

    Raises NotMountable.
    """
    print("seed", seed, flush=True)
    mount = directory / "disk"
    with small_disk(mount, 8) as kind:
        lab = Laboratory(
            directory,
            random.Random(seed),
            lines_per_second=lines_per_second,
            rotate_bytes=1 << 20,
            keep_files=10_000,
            noise=1200,
            agent_state=mount / "state",
        )
        with lab:
            agent = lab.roles["agent"]
            wait_until(lambda: agent.get("/ready")[0] == 200, what="ready before the fault")
            process = agent.process.pid
            hog = mount / "hog"
            # The queue has what is left of the disk to itself, room for more than one batch, and has to give it back to itself.
            with suppress(OSError), open(hog, "wb", buffering=0) as file:
                while by_others or free_bytes(mount) > 2 << 20:
                    file.write(bytes(4096))
            lab.front.outage = not by_others
            wait_until(lambda: _says(agent, "No space left"), 60, "the agent says that the disk is full")
            before, answers, reasons = agent.metrics(), [], set[str]()
            least = free_bytes(mount)
            until = time.monotonic() + full_seconds
            while time.monotonic() < until:
                answers.append(agent.get("/")[0])
                reasons |= {each["reason"] for each in agent.get("/ready")[1]["blocked"]}
                least = min(least, free_bytes(mount))
                time.sleep(0.1)
            after = agent.metrics()
            for _ in range(kills):
                lab.kill("agent")
                wait_until(lambda: _says(agent, "No space left"), 60, "a process that starts on the full disk says so")
            written_meanwhile, process = lab.pods.lines, agent.process.pid
            if by_others:
                hog.unlink()
            lab.front.outage = False
            wait_until(lambda: agent.get("/ready")[0] == 200, 60, "ready again by itself")
            books = lab.drain(60)
            left = sum(path.stat().st_size for path in mount.rglob("*.segment"))
            figures = Figures(seed=seed, disk=kind, by="others" if by_others else "the queue", seconds_full=full_seconds)
            figures |= {
                "least_free_bytes": least,
                "alive_answers": answers.count(200),
                "dead_answers": len(answers) - answers.count(200),
                "kills": kills,
                "restarts": int(agent.process.pid != process),
                "accepted_while_full": int(_accepted(after) - _accepted(before)),
                "written_while_full": written_meanwhile,
                "left_in_queue_bytes": left,
                **books,
            }
            print("said while full:", *sorted(reasons), sep="\n  ")
            return figures


def _says(role: Role, reason: str) -> bool:
    """Whether the role answers, and is not ready for this reason."""
    try:
        return any(reason in each["reason"] for each in role.get("/ready")[1]["blocked"])
    except OSError:
        return False


def _accepted(metrics: dict[str, float]) -> float:
    return metrics.get("otelcol_receiver_accepted_log_records", 0)
