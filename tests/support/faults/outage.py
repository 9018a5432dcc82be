"""Nobody takes anything for a while: as long as the queue is sized for, and longer than the queue and the kubelet's files last."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.faults import Figures
from support.faults.laboratory import Laboratory, cpu_seconds, memory_bytes
from support.process import wait_until


def play(
    directory: Path,
    seed: int,
    *,
    seconds: float,
    lines_per_second: float = 2000,
    drain_seconds: float = 60,
    agent_settings: dict[str, Any] | None = None,
) -> Figures:
    """An outage of `seconds` that the queue has room for: everything waits on disk, and drains faster than it came, while
    more comes."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    lab = Laboratory(directory, dice, lines_per_second=lines_per_second, rotate_bytes=1 << 20, keep_files=5, agent=agent_settings)
    with lab:
        agent = lab.roles["agent"]
        wait_until(lambda: lab.rows(), what="delivery before the outage")
        before = memory_bytes(agent)
        lab.front.outage = True
        time.sleep(seconds)
        queued = agent.metrics()["otelcol_exporter_queue_size"]
        ready, most = agent.get("/ready")[1], memory_bytes(agent)
        waiting = lab.pods.lines - lab.rows()
        load, spent = os.getloadavg()[0], sum(map(cpu_seconds, lab.roles.values()))
        lab.front.outage = False
        ended, stored = time.monotonic(), lab.rows()
        wait_until(lambda: lab.rows() > stored, drain_seconds, "delivery after the outage")
        began = time.monotonic() - ended
        # The pods go on writing: the backlog is gone when what is missing is what they wrote in the last second.
        wait_until(lambda: lab.pods.lines - lab.rows() < lines_per_second, drain_seconds, "the backlog in the backend")
        took, delivered = time.monotonic() - ended, lab.rows() - stored
        spent = sum(map(cpu_seconds, lab.roles.values())) - spent
        lab.pods.stop()
        figures = Figures(seed=seed, seconds=seconds, lines_per_second=lines_per_second, queued_batches=int(queued), waiting_lines=waiting)
        figures |= {
            "said_so": sum("delivery" in each["reason"] for each in ready["blocked"]),
            "delivery_began_after_seconds": round(began, 1),
            "drained_in_seconds": round(took, 1),
            "drained_lines_per_second": round(delivered / took),
            "drained_times_faster": round(delivered / took / lines_per_second, 1),
            "drained_lines_per_cpu_second": round(delivered / max(spent, 0.01)),
            "load": round(load, 1),
            "agent_mb_before": before >> 20,
            "agent_mb_at_end_of_outage": most >> 20,
            **lab.drain(10),
        }
        return figures


def play_too_long(directory: Path, seed: int, *, lost_files: int = 2, lines_per_second: float = 1000, drain_seconds: float = 60) -> Figures:
    """An outage that outlasts the queue (1 MiB) and the kubelet's five files: what it deleted unread is a gap, counted exactly."""
    print("seed", seed, flush=True)
    lab = Laboratory(
        directory,
        random.Random(seed),
        pods=1,
        lines_per_second=lines_per_second,
        rotate_bytes=400_000,  # a rotation takes longer than the agent's looks are apart, as a kubelet's do
        keep_files=5,
        writes_parts=False,
        noise=600,
        agent={"sending_queue": {"storage": "file_storage", "max_disk_bytes": "1MiB"}},
        filelog={"max_deleted_size": "150KiB"},
    )
    with lab:
        agent, (log,) = lab.roles["agent"], lab.pods.logs
        wait_until(lambda: lab.rows(), what="delivery before the outage")
        lab.front.outage = True
        deleted = log.deleted
        wait_until(lambda: _is_full(lab), 60, "a full queue")
        full = log.deleted
        wait_until(lambda: log.deleted >= full + lost_files + log.keep, 60 + 3 * lost_files, "files deleted unread")
        lab.pods.stop()
        lab.front.outage = False
        quiet = _stored_until_quiet(lab, drain_seconds)
        lost_bytes = sum(len(log.line_bytes(number)) for number in lab.missing(log))
        with suppress(AssertionError):  # what was deleted is noticed within ten seconds
            wait_until(lambda: agent.metrics()["lockgate_filelog_lost_bytes"] == lost_bytes, 15, "the gap counted")
        metrics = agent.metrics()
        missing = set(lab.missing(log))
        gone = {number for first, beyond in log.deleted_numbers for number in range(first, beyond)}
        books = lab.books() | {"ledger_faults": len(lab.ledger_faults(lost=True))}
        return Figures(
            seed=seed,
            deleted_in_outage=log.deleted - deleted,
            lines_in_deleted_files=len(gone),
            **books,
            lost_that_still_had_a_file=len(missing - gone),
            lost_bytes=lost_bytes,
            counted_gaps=int(metrics.get("lockgate_filelog_gaps", 0)),
            counted_lost_bytes=int(metrics.get("lockgate_filelog_lost_bytes", 0)),
            counted_unknown_ends=int(metrics.get("lockgate_filelog_unknown_ends", 0)),
            drained_in_seconds=round(quiet, 1),
        )


def _is_full(lab: Laboratory) -> bool:
    """Whether the agent has stopped reading: it holds something that its queue does not take, and for a while no more of it."""
    name = "lockgate_filelog_bytes_under_way"
    before = lab.roles["agent"].metrics()[name]
    time.sleep(1.5)
    return before > 0 and lab.roles["agent"].metrics()[name] == before


def _stored_until_quiet(lab: Laboratory, seconds: float) -> float:
    """Waits until nothing has arrived for two seconds; how long it took."""
    began = last = time.monotonic()
    stored = -1
    while time.monotonic() - last < 2 and time.monotonic() - began < seconds:
        if (now := lab.rows()) != stored:
            stored, last = now, time.monotonic()
        time.sleep(0.1)
    return last - began
