"""Damaged queues, notes and positions cost what was damaged, and that is counted, kept aside, and read again where it can be."""

from pathlib import Path

from support.faults import damage


def test_damage_costs_what_was_damaged_and_nothing_else(tmp_path: Path) -> None:
    figures = damage.play(tmp_path, 20261123, rounds=150)
    figures.require(damaged=20, quarantined=20, read_again=50, in_segment=30, in_notes=10, in_positions=10)
    figures.require(**{f"of_{kind}": 10 for kind in damage.KINDS})
    figures.require_none("lost_beyond_damage", "uncounted", "invented", "broken", "ledger_faults")


def test_a_role_that_starts_on_damaged_files_gets_ready_and_reads_again_what_its_queue_lost(tmp_path: Path) -> None:
    figures = damage.play_roles(tmp_path, 20261124, rounds=1)
    figures.require(lines=50, given=15)
    figures.require_none("lost", "ledger_faults")
