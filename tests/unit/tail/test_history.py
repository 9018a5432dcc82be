"""Whatever happens to a container's log, each line's fate is known: read exactly once, or gone before anybody could read it, and counted.

Seeded random players of a container, its kubelet and an agent that pauses, is stopped and is killed. LOCKGATE_HISTORIES says how many
(`make soak`: thousands), LOCKGATE_FIRST_HISTORY with which one to begin.
"""

import gzip
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.tail import Bench, bodies, container

from lockgate.kit.ranges import Ranges
from lockgate.tail.follow import Saved
from lockgate.tail.reading import Round

HISTORIES = int(os.environ.get("LOCKGATE_HISTORIES", "300"))
FIRST = int(os.environ.get("LOCKGATE_FIRST_HISTORY", "0"))
STEPS = 60
_PART = re.compile(r"<\d+\.\d+>")


@dataclass
class Content:
    """What was written to one file from its birth to its end or its truncation."""

    parts: list[str] = field(default_factory=list)
    is_known: bool = False
    """Whether it had a line at a save, or the queue has something of it: before that, it cannot be told from what takes its place."""
    events: int = -1
    """How many losses had been counted when it was destroyed; -1 while it stands."""


class Player:
    """One container's log."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.keep = self.random.choice([3, 5])
        flush = self.random.choice([0.0, 5.0])
        self.bench = Bench(folder, inotify=self.random.random() < 0.5, poll_seconds=0.001, flush_seconds=flush)
        self.bench.make_parser = container
        self.told: list[str] = []
        """The history, for whoever must understand a failure."""
        self.seen: Counter[str] = Counter()
        self.counted = 0
        """Losses counted by the tailers that are gone."""
        self.happened: Counter[str] = Counter()
        self.records: list[tuple[list[tuple[str, int, int]], list[str]]] = []
        """What the queue holds: ranges and parts of each record."""
        self.number = self.rotations = 0
        self.open_part = 0
        self.torn = ""
        self.contents: dict[str, Content] = {"0.log": Content()}
        self.gone: list[Content] = []
        self.under_way: list[Round] = []
        self.is_new = True
        """Whether the agent has not looked yet."""
        self.saved: list[Saved] = []
        self.queue: dict[str, Ranges] = {}
        """Everything that the queue ever held; `bench.durable` is what it was not told to forget."""
        self.kubelet: Iterator[None] = iter(())
        self.writer = open(folder / "0.log", "ab", 0)  # noqa: SIM115 - reopened at each rotation
        self.writes_to = "0.log"
        self.running = False
        self.start()

    # The container.

    def part(self, tag: str) -> str:
        if not self.open_part:
            self.number += 1
        text = f"<{self.number}.{self.open_part}>"
        self.open_part = self.open_part + 1 if tag == "P" else 0
        self.contents[self.writes_to].parts.append(text)
        # Of different lengths, so that positions and sizes rarely agree by chance.
        return f"2024-01-01T00:00:00.5Z stdout {tag} {text}{'.' * self.random.choice([0, 1, 7, 60])}\n"

    def write(self) -> None:
        self.writer.write((self.torn + "".join(self.part(self.random.choice("FFFP")) for _ in range(self.random.randint(1, 4)))).encode())
        self.torn = ""

    def write_torn(self) -> None:
        if not self.torn:
            line = self.part("F")
            cut = self.random.randint(1, len(line) - 1)
            self.writer.write(line[:cut].encode())
            self.torn = line[cut:]

    # The kubelet, one step at a time.

    def rotate(self) -> None:
        if next(self.kubelet, 0) == 0:
            self.kubelet = self.rotation()
            next(self.kubelet)

    def rotation(self) -> Iterator[None]:
        rotated = sorted(path.name for path in self.folder.iterdir() if path.name.startswith("0.log."))
        for name in [name for name in rotated if name.endswith(".tmp")]:
            (self.folder / name).unlink()
            rotated.remove(name)
        for name in [name for name in rotated if f"{name}.gz" in rotated]:
            (self.folder / name).unlink()
            rotated.remove(name)
        while len(rotated) > self.keep - 2:
            name = rotated.pop(0)
            (self.folder / name).unlink()
            self.destroy(name.removesuffix(".gz"))
            self.happened["deleted"] += 1
            yield
        for name in rotated:
            if name.endswith(".gz"):
                continue
            packed = gzip.compress((self.folder / name).read_bytes(), 1)
            (self.folder / f"{name}.tmp").write_bytes(packed[: len(packed) // 2])
            yield
            if self.random.random() < 0.03:
                return  # a kubelet that dies here leaves a .tmp
            (self.folder / f"{name}.tmp").write_bytes(packed)
            (self.folder / f"{name}.tmp").rename(self.folder / f"{name}.gz")
            self.happened["compressed"] += 1
            yield
            if self.random.random() < 0.03:
                return  # and here both
            (self.folder / name).unlink()
            yield
        if self.torn:
            self.writer.write(self.torn.encode())  # a runtime ends the line that it writes
            self.torn = ""
        self.rotations += 1
        name = f"0.log.20240101-{self.rotations:06d}"
        (self.folder / "0.log").rename(self.folder / name)
        self.contents[name] = self.contents.pop("0.log")
        self.writes_to = name
        self.happened["rotated"] += 1
        yield
        if self.random.random() < 0.5:
            self.write()
            if self.torn:
                raise AssertionError
            yield
        self.writer.close()
        self.contents["0.log"] = Content()
        self.writer = open(self.folder / "0.log", "ab", 0)  # noqa: SIM115
        self.writes_to = "0.log"

    def truncate(self) -> None:
        if self.writes_to == "0.log":
            os.truncate(self.folder / "0.log", 0)
            if self.torn:  # it never was a line, and what came after may begin just as it did
                self.contents["0.log"].parts.pop()
            self.torn = ""
            self.destroy("0.log")
            self.contents["0.log"] = Content()
            self.happened["truncated"] += 1

    def destroy(self, name: str) -> None:
        content = self.contents.pop(name, None)
        if content is not None:
            content.events = self.losses
            self.gone.append(content)

    # The agent.

    @property
    def losses(self) -> int:
        if not self.running:
            return self.counted
        counts = self.bench.tailer.counts
        return self.counted + counts.gaps + counts.unknown + counts.truncations

    def look(self, max_records: int = 1000) -> None:
        if not self.running:
            return
        found = self.bench.look(1, max_records=max_records)
        if self.is_new:
            self.save()  # as the reading loop does, before anything is handed on
            self.is_new = False
        self.happened["joined"] += sum(len(_PART.findall(body)) > 1 for body in bodies(found))
        if self.random.random() < 0.7:
            self.take(found)
        else:
            self.under_way.append(found)

    def look_little(self) -> None:
        self.look(2)

    def take(self, found: Round) -> None:
        """The queue has it."""
        parts = [part for body in bodies(found) for part in _PART.findall(body)]
        ranges = [(range_.life.key, range_.start, range_.end) for range_ in found.ranges]
        for range_ in found.ranges:
            range_.take()
        if not found.records:
            return
        for key, start, end in ranges:
            held = self.queue.setdefault(key, Ranges())
            assert held.missing(start, end) == [(start, end)], f"read twice: {key} {start}-{end}"
            for group in (self.queue, self.bench.durable):
                group.setdefault(key, Ranges()).add(start, end)
            self.bench.lost.get(key, Ranges()).remove(start, end)
        self.happened["read again"] += sum(range_.again is not None for range_ in found.ranges)
        self.records.append((ranges, parts))
        self.seen.update(parts)
        for content in self.contents.values():
            content.is_known |= not set(parts).isdisjoint(content.parts)

    def take_late(self) -> None:
        if self.under_way:
            self.take(self.under_way.pop(self.random.randrange(len(self.under_way))))
            self.happened["taken late"] += 1

    def damage(self) -> None:
        """A record of the queue can no longer be read, which it finds at once, or when it is opened again."""
        if self.records:
            ranges, parts = self.records.pop(self.random.randrange(len(self.records)))
            self.happened["damaged"] += 1
            self.seen.subtract(parts)
            for key, start, end in ranges:
                self.queue[key].remove(start, end)
                self.bench.durable.get(key, Ranges()).remove(start, end)
                self.bench.lost.setdefault(key, Ranges()).add(start, end)
            if self.running:
                self.bench.tailer.give_back(ranges)

    def save(self) -> None:
        if self.running:
            self.saved = self.bench.tailer.snapshot()
            inodes = {entry.inode for entry in self.saved if entry.key}
            for path in self.folder.iterdir():
                if path.name in self.contents and path.stat().st_ino in inodes:
                    self.contents[path.name].is_known = True
            positions = {entry.key: entry.position for entry in self.saved}
            self.bench.durable = {key: ranges for key, ranges in self.bench.durable.items() if key in positions}
            for key, ranges in self.bench.durable.items():
                ranges.remove(0, positions[key])
            self.bench.lost.clear()

    def stop(self) -> None:
        if self.running:
            while self.under_way:
                self.take_late()
            self.save()
            self.happened["stopped"] += 1
            self.down()

    def kill(self) -> None:
        if self.running:
            self.happened["killed"] += 1
            self.happened["killed with rounds under way"] += bool(self.under_way)
            self.down()

    def down(self) -> None:
        counts = self.bench.tailer.counts
        self.happened["found"] += counts.found
        self.happened["rotations seen"] += counts.rotations
        self.happened["gaps"] += counts.gaps
        self.happened["unknown"] += counts.unknown
        self.counted = self.losses
        self.running = False
        self.under_way.clear()
        self.bench.kill()
        self.bench.saved = self.saved

    def start(self) -> None:
        if not self.running:
            self.running = self.is_new = True
            self.look()

    def play(self) -> None:
        actions = {
            self.write: 12,
            self.write_torn: 2,
            self.rotate: 14,
            self.truncate: 0.5,
            self.look: 8,
            self.look_little: 3,
            self.take_late: 3,
            self.save: 3,
            self.stop: 0.7,
            self.damage: 0.5,
            self.kill: 1.5,
            self.start: 2,
        }
        for action in self.random.choices(list(actions), list(actions.values()), k=STEPS):
            self.told.append(action.__name__)
            if action == self.write_torn and self.writes_to != "0.log":
                continue
            action()

    def end(self) -> None:
        if self.torn:
            self.writer.write(self.torn.encode())
            self.torn = ""
        if self.open_part:
            self.writer.write(self.part("F").encode())
        self.start()
        for _ in range(30):
            self.take_all()
        self.losses_at_end = self.losses
        self.down()

    def take_all(self) -> None:
        while self.under_way:
            self.take(self.under_way.pop())
        while True:
            found = self.bench.look(1)
            self.take(found)
            if not found.more:
                return

    def judge(self) -> None:
        twice = [part for part, count in self.seen.items() if count > 1]
        assert not twice, f"twice: {twice}"
        for content in self.contents.values():
            missing = [part for part in content.parts if not self.seen[part]]
            assert not missing, f"lost, and it still stands there: {missing}"
        for content in self.gone:
            missing = [part for part in content.parts if not self.seen[part]]
            if missing and content.is_known:
                self.happened["lost"] += len(missing)
                assert self.losses_at_end > content.events, f"lost, and nobody said so: {missing}"
            elif missing:
                self.happened["lost unseen" if self.losses_at_end > content.events else "lost unseen in silence"] += len(missing)


def test_each_line_is_read_once_or_its_loss_is_counted(tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + HISTORIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        player = Player(folder, seed)
        try:
            player.play()
            player.end()
            player.judge()
        except Exception as error:
            pytest.fail(f"history {seed}: {error!r} after {' '.join(player.told)}")
        finally:
            player.writer.close()
            player.bench.kill()
        happened += player.happened
    print(dict(happened))  # `make soak` shows it
    for what in (
        "rotated",
        "compressed",
        "deleted",
        "truncated",
        "killed",
        "killed with rounds under way",
        "stopped",
        "taken late",
        "damaged",
    ):
        assert happened[what] > HISTORIES // 10, f"too few were {what}: {happened}"
    for what in ("found", "rotations seen", "joined", "lost", "read again"):
        assert happened[what] > HISTORIES // 100, f"too few: {what}: {happened}"
    # What was written and cut between two looks leaves no trace; that must stay the exception.
    assert happened["lost unseen in silence"] < (happened["lost"] + happened["lost unseen"]) / 2
