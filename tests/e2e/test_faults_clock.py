"""Wall clocks that jump by hours, either way: no wait, retry, retention or checkpoint hangs on them."""

from pathlib import Path

import pytest
from support.faults import clock


@pytest.mark.skipif(not clock.LIBRARIES, reason="no libfaketime; sh tests/install-debian.sh installs it")
def test_clocks_that_jump_cost_nothing(tmp_path: Path) -> None:
    figures = clock.play(tmp_path, 2, steps=5)
    figures.require(steps_forwards=1, steps_backwards=1, steps_seen=5, written=500)
    figures.require_none("lost", "repeated", "altered", "crashes", "own_faults", "ledger_faults")
    assert figures["longest_seconds_to_arrive"] < 30
