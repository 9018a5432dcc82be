"""Reads damaged journal files, one after the other: a process of its own, because a fault in libsystemd ends it.

`python tests/fuzz/journal_files.py FILE COUNT SEED` prints how many entries were read in all. Ends with an AssertionError on more entries
than the file has, or on a record that is not valid.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from lockgate.batch import Signal, count_records
from lockgate.components.receivers.journald.journal import Journal
from lockgate.components.receivers.journald.records import Records

_HEADER = 272
"""Its bytes."""


def damaged(chance: random.Random, whole: bytes, used: list[int]) -> bytes:
    """The file with a few faults, a third of them in its header; `used` is where it holds something: most is empty."""
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5, 50])):
        at = chance.randrange(8, _HEADER) if chance.random() < 0.3 else chance.choice(used) + chance.randrange(16)
        match chance.choice(["flip", "set", "zero", "copy", "cut"]):
            case "flip":
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case "set":
                data[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), chance.randbytes(8)])
            case "zero":
                data[at : at + 64] = bytes(64)
            case "copy":
                source = chance.choice(used)
                data[at : at + 64] = data[source : source + 64]
            case "cut" if chance.random() < 0.2:
                del data[at:]
                data = data or bytearray(8)
    return bytes(data)


def read(directory: str, most: int) -> int:
    """How many entries could be read; OSError where none could be, or where reading broke off."""
    made, found = Records({}, {}), 0
    with Journal(directory, [], []) as journal:
        journal.seek_head()
        while journal.next():
            found += 1
            assert found <= most, "more entries than there are"
            record = made.record(list(journal.fields()), journal.cursor, *journal.times(), 1)
            assert count_records(Signal.LOGS, made.request([record])) == 1
    return found


def main() -> None:
    whole, count, chance = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    with tempfile.TemporaryDirectory() as directory:
        file, found, refused = Path(directory, "a.journal"), 0, 0
        file.write_bytes(whole)
        there = read(directory, 1 << 20)
        used = [at for at in range(_HEADER, len(whole), 16) if any(whole[at : at + 16])]
        for _ in range(count):
            file.unlink()
            file.write_bytes(damaged(chance, whole, used))
            try:
                found += read(directory, 2 * there)
            except OSError:
                refused += 1
    print(found, refused, there)


if __name__ == "__main__":
    main()
