"""kill -9 at random moments of every role, among rotations, refusals, lost answers and outages: each line is in the backend once."""

from pathlib import Path

from support.faults import kills
from support.faults.balancer import Chances


def test_whatever_is_killed_each_line_is_in_the_backend_once(tmp_path: Path) -> None:
    figures = kills.play(
        tmp_path,
        20261123,
        kills={"agent": 6, "metadata-0": 4, "metadata-1": 4, "backend": 6},
        rotate_bytes=15_000,
        chances=Chances(refused=0.15, answer_lost=0.15, cut=0.05),
    )
    figures.require(kills=20, rotations=6, compressed=3, split_lines=50, refused=1, answer_lost=1, unreachable=1, wire_repetitions=1)
    figures.require(written=1000)
    figures.require_none("lost", "repeated", "altered", "never_written", "without_metadata", "crashes", "own_faults", "ledger_faults")
