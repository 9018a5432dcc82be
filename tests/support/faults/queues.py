"""A role's state directory as its next process finds it: what its queue holds, and what its tailer will not read again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from lockgate.batch import Batch, Origin
from lockgate.components.extensions.file_storage import FileStore, StorageError
from lockgate.kit.ranges import Ranges
from lockgate.sending.notes import Outcome
from lockgate.sending.segments import Journal, Settlement
from lockgate.tail.rounds import decode
from support.otlp import log_batch

QUEUE, POSITIONS, READER, RECEIVER = "queue~002Flogs", "receivers~002Ffilelog", "otlphttp", "filelog"
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
    quarantined_bytes: int = 0
    given_back: list[Origin] = field(default_factory=list)
    error: OSError | None = None


def open_queue(state: Path) -> Journal:
    """As a start does it, but that nothing needs to survive us."""
    directory = state / QUEUE / "queue"
    directory.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(directory, LOG, [READER], segment_bytes=1 << 17, fsync=False)
    journal.open()
    return journal


def drain(journal: Journal, *, settles: bool = False) -> Found:
    """Everything that the queue holds, read as a sender would have it read, and settled as delivered on request."""
    found = Found()
    while journal.readers[READER].unread.records:
        loaded = journal.load(READER, 1 << 20)
        for ref, batch in loaded.entries:
            found.repeated += batch.id in found.batches
            found.batches[batch.id] = batch
            if settles:
                journal.settle([Settlement(READER, ref, batch, Outcome())])
        if loaded.error is not None:
            found.error = loaded.error
            break
    found.damaged, found.torn_bytes, found.quarantined_bytes = journal.damaged_records, journal.torn_bytes, journal.quarantined_bytes
    found.given_back = journal.given_back()
    return found


def goes_on(state: Path, journal: Journal, found: Found) -> list[str]:
    """What is wrong where not: what is written now is there at the next start, beside what was found, which is found again. Closes it."""
    faults = list[str]()
    journal.append([log_batch("after", id="after")])
    journal.close()
    journal = open_queue(state)
    again = drain(journal, settles=True)
    journal.close()
    if other := again.batches.keys() ^ (found.batches.keys() | {"after"}):
        faults.append(f"another start finds, or does not find, {sorted(other)[:5]}")
    journal = open_queue(state)
    if journal.readers[READER].unread.records:
        faults.append("what was delivered came back")
    journal.close()
    return faults


def not_read_again(state: Path, journal: Journal) -> dict[str, Ranges] | None:
    """Which bytes of which content the tailer takes for done, by its key; None where its positions are damaged and it starts over."""
    directory = state / POSITIONS
    directory.mkdir(parents=True, exist_ok=True)
    held = journal.knowledge.held(RECEIVER)
    done = {source.rpartition(":")[2]: Ranges(ranges) for source, ranges in held.durable.items()}
    try:
        entries = decode(FileStore(directory, fsync=False).load()).files
    except (StorageError, ValueError):
        return None
    for entry in entries:
        if not entry.key:
            continue  # it had no content yet
        done.setdefault(entry.key, Ranges()).add(0, entry.position)
    for key, (start, end) in [(entry.key, span) for entry in entries for span in entry.again]:
        done[key].remove(start, end)
    for source, lost in held.lost.items():
        for start, end in lost:
            done.get(source.rpartition(":")[2], Ranges()).remove(start, end)
    return done
