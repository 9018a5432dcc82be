"""A full disk under the agent's state: it waits, says why, and goes on by itself; nothing is lost, and nothing is there twice."""

from pathlib import Path

import pytest
from support.faults import disk


@pytest.mark.parametrize("by_others", [pytest.param(True, id="filled-by-others"), pytest.param(False, id="filled-by-the-queue")])
def test_on_a_full_disk_the_agent_waits_and_goes_on_by_itself(tmp_path: Path, by_others: bool) -> None:
    try:
        figures = disk.play(tmp_path, 1, by_others=by_others, kills=1, full_seconds=2)
    except disk.NotMountable as error:
        pytest.skip(f"{error}; it takes root, and a loop device or tmpfs")
    assert figures["least_free_bytes"] < 64 << 10
    figures.require(alive_answers=10, written_while_full=1000)
    figures.require_none("dead_answers", "restarts", "lost", "repeated", "altered", "crashes", "own_faults", "ledger_faults")
