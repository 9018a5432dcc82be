"""The long forms of the fault tests: `make soak` runs them all, `python tests/soak/faults.py kills power ...` some of them.

Prints a table for docs/soak.md. Ends with status 1 where a promise was broken, having run the rest. Environment: SOAK_SEED (else the
time), SOAK_KILLS (of each role), SOAK_STATES, SOAK_DAMAGES, SOAK_OUTAGE_SECONDS, SOAK_LOST_FILES, SOAK_GIGABYTES, SOAK_QUEUED_GIGABYTES,
SOAK_DIRECTORY (with room for all that).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.faults import Figures, backlog, clock, damage, disk, kills, outage, peers, power

SEED = int(os.environ.get("SOAK_SEED", time.time_ns() % 10**9))
KEPT = ("lost", "repeated", "altered", "never_written", "without_metadata", "crashes", "own_faults", "ledger_faults")


def number(name: str, default: float) -> float:
    return float(os.environ.get(f"SOAK_{name}", default))


def play_kills(directory: Path) -> Figures:
    many = int(number("KILLS", 1000))
    figures = kills.play(
        directory,
        SEED,
        # The two replicas are one role.
        kills={"agent": many, "metadata-0": many // 2, "metadata-1": many // 2, "backend": many},
        rotate_bytes=200_000,
        drain_seconds=300,
    )
    figures.require(rotations=many / 20, compressed=many / 20, refused=many / 50, answer_lost=many / 50, wire_repetitions=many / 50)
    figures.require(outage=1, unreachable=1)
    figures.require_none(*KEPT)
    return figures


def play_power(directory: Path) -> Figures:
    states = int(number("STATES", 10_000))
    figures = power.play(directory, SEED, states=states)
    figures.require(at_stake=states / 2, waiting=states, recovered=states, read_before=states / 2, torn=states / 200, renames=1, unlinks=1)
    figures.require_none("lost", "invented", "broken", "positions_unusable")
    return figures


def play_damage(directory: Path) -> Figures:
    rounds = int(number("DAMAGES", 10_000))
    figures = damage.play(directory, SEED, rounds=rounds)
    figures.require(damaged=rounds / 2, quarantined=rounds / 10, read_again=rounds, in_segment=rounds / 5, in_notes=rounds / 20)
    figures.require(in_positions=rounds / 20)
    figures.require_none("lost_beyond_damage", "uncounted", "invented", "broken", "ledger_faults")
    return figures


def play_damaged_roles(directory: Path) -> Figures:
    figures = damage.play_roles(directory, SEED, rounds=max(1, int(number("DAMAGES", 10_000)) // 500))
    figures.require_none("lost", "ledger_faults")
    return figures


def play_disk(directory: Path) -> Figures:
    figures = disk.play(directory, SEED, by_others=False, kills=5, full_seconds=20)
    figures.require_none("dead_answers", "restarts", *KEPT)
    return figures


def play_outage(directory: Path) -> Figures:
    usual: dict[str, Any] = {"retry_on_failure": {}}  # a user's waits, not those of a play of seconds
    seconds = number("OUTAGE_SECONDS", 300)
    figures = outage.play(directory, SEED, seconds=seconds, lines_per_second=10_000, drain_seconds=600, agent_settings=usual)
    figures.require(drained_times_faster=5 if figures["load"] < 2 else 1)  # where others want both cores the rate is theirs to say
    assert figures["delivery_began_after_seconds"] < 15, figures
    figures.require_none(*KEPT)
    return figures


def play_outage_too_long(directory: Path) -> Figures:
    files = int(number("LOST_FILES", 100))
    figures = outage.play_too_long(directory, SEED, lost_files=files, drain_seconds=300)
    figures.require(deleted_in_outage=files, lost=files * 100, counted_gaps=1)
    figures.require_none("repeated", "altered", "lost_that_still_had_a_file", "counted_unknown_ends", "ledger_faults")
    assert figures["counted_lost_bytes"] == figures["lost_bytes"], figures
    return figures


def play_peers(directory: Path) -> Figures:
    several = [peers.play(directory / behaviour, behaviour, seconds=20) for behaviour in (*peers.BEHAVIOURS, peers.HALF_OPEN)]
    figures = Figures(
        behaviours=len(several),
        connections=sum(each["connections"] for each in several),
        more_memory_mb=max(each["more_memory_mb"] for each in several),
        goes_on_after_seconds=max(each["goes_on_after_seconds"] for each in several),
        lost=sum(each["lost"] for each in several),
        ledger_faults=sum(each["ledger_faults"] for each in several),
    )
    figures.require_none("lost", "ledger_faults")
    assert figures["more_memory_mb"] < 64, figures
    return figures


def play_clock(directory: Path) -> Figures:
    figures = clock.play(directory, SEED, steps=60)
    figures.require(steps_forwards=5, steps_backwards=5, steps_seen=60)
    figures.require_none(*KEPT)
    return figures


def play_backlog(directory: Path) -> Figures:
    figures = backlog.play(directory, gigabytes=number("GIGABYTES", 20))
    figures.require_none("lost", "ledger_faults")
    assert figures["memory_mb_at_most"] < 400, figures
    return figures


def play_queued_backlog(directory: Path) -> Figures:
    figures = backlog.play(directory, gigabytes=number("QUEUED_GIGABYTES", 5), outage=True)
    figures.require_none("lost", "ledger_faults")
    assert figures["memory_mb_at_most"] < 400, figures
    return figures


PLAYS: dict[str, Callable[[Path], Figures]] = {
    name.removeprefix("play_"): play for name, play in list(globals().items()) if name.startswith("play_")
}


def main() -> None:
    print("SOAK_SEED", SEED, flush=True)
    rows, broken = list[str](), False
    for name in sys.argv[1:] or PLAYS:
        directory = Path(tempfile.mkdtemp(prefix=f"soak-{name}-", dir=os.environ.get("SOAK_DIRECTORY")))
        began = time.monotonic()
        try:
            figures, verdict = PLAYS[name](directory), "kept"
        except Exception:
            traceback.print_exc()
            print("what it left:", directory)
            figures, verdict, broken = Figures(), "BROKEN", True
        else:
            shutil.rmtree(directory)
        told = ", ".join(
            f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in figures.items()
        )
        rows.append(f"| {name} | {time.strftime('%Y-%m-%d')} | {verdict} | {time.monotonic() - began:.0f} s | {told} |")
        print(rows[-1], flush=True)
    print("\n| play | date | promise | took | figures |\n|---|---|---|---|---|", *rows, sep="\n")
    sys.exit(broken)


if __name__ == "__main__":
    main()
