"""Whatever happens to files, each record's fate is known: read once, read again after a kill, or lost and counted as such."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.tail import Bench, bodies

from lockgate.tail.follow import Saved


class History(RuleBasedStateMachine):
    """One container's log under a kubelet that rotates, an application that truncates, and an agent that is stopped and killed."""

    @initialize(inotify=st.booleans())
    def begin(self, inotify: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.inotify = inotify
        self.bench = Bench(Path(self.folder.name), inotify=inotify, poll_seconds=0.001, flush_seconds=0.0)
        self.number = self.rotations = 0
        self.torn = ""
        self.files: dict[str, list[str]] = {"0.log": []}
        """The records in each file that exists, by its present name."""
        self.seen: list[str] = []
        self.may_repeat: set[str] = set()
        self.may_be_lost: set[str] = set()
        self.after_save = 0
        self.born = {"0.log": 0}
        """When each file was made: inodes are used again, these numbers are not."""
        self.known: set[int] = set()
        """The files that the saved positions know, by that number."""
        self.looked: set[str] = set()
        """The files that were there, under their present names, at some look."""
        self.running = True
        self.periodic: list[Saved] = []
        self.bench.write("0.log", "")
        self.collect()

    def record(self) -> str:
        self.number += 1
        return f"record {self.number:06d}"

    def note(self, found: list[str]) -> None:
        self.seen += found
        self.looked |= self.files.keys()

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        for _ in range(count):
            record = self.record()
            rest = record[len(self.torn) :] if self.torn and record.startswith(self.torn) else record
            self.bench.write("0.log", rest + "\n")
            self.files["0.log"].append(record)
            self.torn = ""

    @precondition(lambda self: not self.torn)
    @rule(length=st.integers(1, 8))
    def write_torn(self, length: int) -> None:
        self.torn = f"record {self.number + 1:06d}"[:length]
        self.bench.write("0.log", self.torn)

    @precondition(lambda self: not self.torn)
    @rule(late=st.booleans())
    def rotate(self, late: bool) -> None:
        """Rename, perhaps one more line by the old writer, then a new file."""
        self.rotations += 1
        name = f"0.log.{self.rotations:04d}"
        self.bench.rename("0.log", name)
        self.files[name] = self.files.pop("0.log")
        self.born[name] = self.born["0.log"]
        self.born["0.log"] = self.rotations
        known = "0.log" in self.looked
        self.looked -= {"0.log"}
        if known:
            self.looked.add(name)
        if late:
            record = self.record()
            self.bench.write(name, record + "\n")
            self.files[name].append(record)
        if not known and not self.inotify:
            self.may_be_lost |= set(self.files[name])  # made and rotated between two looks: only inotify tells
        self.bench.write("0.log", "")
        self.files["0.log"] = []

    @rule()
    def remove_rotated(self) -> None:
        """The oldest rotated file goes, as after compression."""
        rotated = sorted(name for name in self.files if name != "0.log")
        if rotated:
            records = self.files.pop(rotated[0])
            if not self.running or rotated[0] not in self.looked:
                self.may_be_lost |= set(records) - set(self.seen)  # nobody holds it open
            (Path(self.folder.name) / rotated[0]).unlink()

    @rule()
    def truncate(self) -> None:
        self.may_be_lost |= set(self.files["0.log"]) - set(self.seen)
        if self.torn:
            self.torn = ""
        os.truncate(Path(self.folder.name) / "0.log", 0)
        self.files["0.log"] = []

    @precondition(lambda self: self.running)
    @rule()
    def collect(self) -> None:
        self.note(self.bench.read(1))

    @precondition(lambda self: self.running)
    @rule()
    def collect_little(self) -> None:
        """A round of one or two records, taken."""
        round_ = self.bench.look(1, max_records=2)
        for range_ in round_.ranges:
            range_.take()
        self.note(bodies(round_))

    @precondition(lambda self: self.running)
    @rule()
    def save(self) -> None:
        self.periodic = self.bench.tailer.snapshot()
        self.known = self.known_files(self.periodic)
        self.after_save = len(self.seen)

    @precondition(lambda self: self.running)
    @rule()
    def stop(self) -> None:
        self.known = self.known_files(self.bench.tailer.snapshot())
        self.bench.stop()
        self.periodic, self.after_save = self.bench.saved, len(self.seen)
        self.down()

    @precondition(lambda self: self.running)
    @rule()
    def kill(self) -> None:
        self.may_repeat |= set(self.seen[self.after_save :])
        self.bench.kill()
        self.bench.saved = self.periodic
        self.down()

    def known_files(self, saved: list[Saved]) -> set[int]:
        inodes = {entry.inode for entry in saved}
        return {self.born[name] for name in self.files if (Path(self.folder.name) / name).stat().st_ino in inodes}

    def down(self) -> None:
        self.running = False
        # Files that no checkpoint knows are found again by a name that matches, and by nothing else (yet).
        for name, records in self.files.items():
            if name != "0.log" and self.born[name] not in self.known:
                self.may_be_lost |= set(records) - set(self.seen)

    @precondition(lambda self: not self.running)
    @rule()
    def start(self) -> None:
        for name, records in self.files.items():
            if name != "0.log" and self.born[name] not in self.known:
                self.may_be_lost |= set(records) - set(self.seen)
        self.running = True
        self.collect()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            if self.torn:
                self.write(1)
            if not self.running:
                self.start()
            for _ in range(3):
                self.collect()
            written = {record for records in self.files.values() for record in records}
            missing = written - set(self.seen) - self.may_be_lost
            assert not missing, f"lost, and nobody said so: {sorted(missing)}"
            repeated = {record for record in self.seen if self.seen.count(record) > 1} - self.may_repeat
            assert not repeated, f"read twice without a kill: {sorted(repeated)}"
        finally:
            self.bench.kill()
            self.folder.cleanup()


History.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
TestHistory = History.TestCase
