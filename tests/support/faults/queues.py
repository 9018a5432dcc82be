"""A role's state directory as its next process finds it: what its queue holds, and from where its tailer goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from lockgate.batch import Batch
from lockgate.components.extensions.file_storage import FileStore, StorageError
from lockgate.sending.segments import Journal
from lockgate.tail.follow import Saved
from lockgate.tail.rounds import decode

QUEUE, POSITIONS = "exporters~002Fotlphttp", "receivers~002Ffilelog"
LOG = logging.getLogger("faults")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


@dataclass
class Found:
    """What an opened queue gave."""

    batches: dict[str, Batch] = field(default_factory=dict)
    repeated: int = 0
    """Batches under an id that another had."""
    damaged: int = 0
    torn_bytes: int = 0
    error: OSError | None = None


def open_queue(state: Path) -> Journal:
    """As a start does it, but that nothing needs to survive us."""
    directory = state / QUEUE / "queue"
    directory.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(directory, LOG, segment_bytes=1 << 17, fsync=False)
    journal.open()
    return journal


def drain(journal: Journal, *, mark: bool = False) -> Found:
    """Everything that the queue holds, read as senders would have it read; `mark`ed as delivered on request."""
    found = Found()
    while journal.unread.records:
        loaded = journal.load(1 << 20)
        for ref, batch in loaded.entries:
            found.repeated += batch.id in found.batches
            found.batches[batch.id] = batch
            if mark:
                journal.mark([ref])
        if loaded.error is not None:
            found.error = loaded.error
            break
    found.damaged, found.torn_bytes = journal.damaged_records, journal.torn_bytes
    return found


def positions(state: Path) -> list[Saved] | None:
    """What the tailer would go on from; None where that is damaged, and it would read everything again."""
    directory = state / POSITIONS
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return decode(FileStore(directory, fsync=False).load())
    except (StorageError, ValueError):
        return None
