"""Power loss: what was acknowledged is there in every state that the disk may have been left in."""

import shutil
from pathlib import Path

import pytest
from support.faults import power

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace; sh tests/install-debian.sh installs it")


def test_no_state_that_a_power_loss_leaves_lacks_what_was_acknowledged(tmp_path: Path) -> None:
    figures = power.play(tmp_path, 20261123, states=150)
    # How many writes were under way at once is the machine's to say: torn ones are asked for in the long form.
    figures.require(at_stake=120, waiting=500, recovered=500, read_before=50, renames=1, unlinks=1)
    figures.require_none("lost", "invented", "broken", "positions_unusable")


def test_on_a_disk_that_ignores_syncs_of_files_the_same_check_finds_losses(tmp_path: Path) -> None:
    """The test of the test."""
    figures = power.play(tmp_path, 1, states=40, batches=60, ignores_syncs=True)
    figures.require(lost=10, broken=10)
