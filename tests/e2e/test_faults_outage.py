"""Outages behind the agent: as long as its queue lasts nothing is lost; of what outlasts it, the loss is known."""

from pathlib import Path

from support.faults import outage


def test_an_outage_that_the_queue_has_room_for_costs_nothing_and_is_made_up_for_quickly(tmp_path: Path) -> None:
    figures = outage.play(tmp_path, 1, seconds=4)
    figures.require(waiting_lines=4000, queued_batches=5, said_so=1, drained_times_faster=2)
    figures.require_none("lost", "repeated", "altered", "crashes", "own_faults", "ledger_faults")
    assert figures["agent_mb_at_end_of_outage"] - figures["agent_mb_before"] < 40


def test_of_an_outage_that_outlasts_queue_and_files_every_lost_byte_is_counted(tmp_path: Path) -> None:
    figures = outage.play_too_long(tmp_path, 1)
    figures.require(deleted_in_outage=4, lost=100, counted_gaps=1)
    figures.require_none("repeated", "altered", "lost_that_still_had_a_file", "counted_unknown_ends", "ledger_faults")
    assert figures["counted_lost_bytes"] == figures["lost_bytes"]
