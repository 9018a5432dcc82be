"""Servers that neither work nor fail: every attempt ends, memory stays, it is said what is waited for, and delivery goes on."""

from pathlib import Path

import pytest
from support.faults import peers


@pytest.mark.parametrize("behaviour", [*peers.BEHAVIOURS, peers.HALF_OPEN])
def test_a_wedged_peer_costs_time_and_nothing_else(tmp_path: Path, behaviour: str) -> None:
    figures = peers.play(tmp_path, behaviour)
    figures.require(alive_answers=10, said_so=1, stalls_logged=1)
    figures.require_none("lost", "ledger_faults")
    assert figures["connections"] >= 4 or behaviour == peers.HALF_OPEN
    assert figures["more_memory_mb"] < 64
    assert figures["goes_on_after_seconds"] < 10
