"""States that a power loss could leave of a role's files, built from what it really wrote and synced.

What a sync has covered is there. Of everything else any part may be: each page of a file as it was after any of the writes since its last
sync, or its sectors each from one of two; a size that counts although its pages were never written (zeros); names made, changed and
removed since the directory's last sync up to any one of them, or any choice of them. That is more than any one file system does.
"""

from __future__ import annotations

import http.client
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lockgate.kit.ranges import Ranges
from lockgate.sending.notes import Share
from lockgate.sending.segments import Journal
from support.backend import Backend, bodies_of
from support.faults import Figures, queues, trace
from support.faults.trace import Event
from support.otlp import log_batch
from support.process import Role, free_port, wait_until

PAGE, SECTOR = 4096, 512


@dataclass(slots=True)
class _File:
    durable: bytes = b""
    pending: list[tuple[int, Event]] = field(default_factory=list)
    """Since the last sync, each with where it stands among the events."""


@dataclass(slots=True)
class _Directory:
    durable: dict[str, int | None] = field(default_factory=dict)
    """Name -> inode; None is a directory."""
    pending: list[tuple[int, Event]] = field(default_factory=list)


class Disk:
    """Takes a trace's events one by one; `crash` builds a state at any moment between them."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._files: dict[int, _File] = {}
        self._directories: dict[str, _Directory] = {self._root: _Directory()}
        self._paths: dict[int, str] = {}

    def take(self, index: int, event: Event) -> None:
        parent = event.path.rpartition("/")[0]
        match event.kind:
            case "make":
                self._files[event.inode] = _File()
                self._directories[parent].pending.append((index, event))
            case "write" | "truncate":
                self._files[event.inode].pending.append((index, event))
            case "rename" | "unlink" | "mkdir":
                self._directories[parent].pending.append((index, event))
                if event.kind == "mkdir":
                    self._directories[event.path] = _Directory()
            case "sync" if event.inode >= 0:
                file = self._files[event.inode]
                covered = [each for number, each in file.pending if number < event.since]
                file.durable = _apply(file.durable, covered)
                file.pending = file.pending[len(covered) :]
            case "sync":
                directory = self._directories[event.path]
                covered = [each for number, each in directory.pending if number < event.since]
                directory.durable = _rename(directory.durable, covered)
                directory.pending = directory.pending[len(covered) :]

    def crash(self, target: Path, dice: random.Random) -> int:
        """Writes one possible state to `target`, an empty directory; how many changes were at stake."""
        self._restore(self._root, target, dice)
        at_stake = [*(each.pending for each in self._files.values()), *(each.pending for each in self._directories.values())]
        return sum(len(pending) for pending in at_stake)

    def _restore(self, path: str, target: Path, dice: random.Random) -> None:
        directory = self._directories[path]
        changes = [event for _, event in directory.pending]
        some, first = [event for event in changes if dice.random() < 0.5], changes[: dice.randint(0, len(changes))]
        changes = some if dice.random() < 0.3 else first
        for name, inode in _rename(directory.durable, changes).items():
            if inode is None:
                (target / name).mkdir()
                self._restore(f"{path}/{name}", target / name, dice)
            else:
                (target / name).write_bytes(_content(self._files[inode], dice))


def _rename(names: dict[str, int | None], changes: Sequence[Event]) -> dict[str, int | None]:
    names = dict(names)
    for event in changes:
        name = event.path.rpartition("/")[2]
        match event.kind:
            case "make":
                names[name] = event.inode
            case "mkdir":
                names[name] = None
            case "unlink":
                names.pop(name, None)
            case "rename":
                names.pop(event.old.rpartition("/")[2], None)
                names[name] = event.inode
    return names


def _apply(content: bytes, changes: Sequence[Event]) -> bytes:
    made = bytearray(content)
    for event in changes:
        if event.kind == "truncate":
            del made[event.offset :]
            made.extend(bytes(event.offset - len(made)))
        else:
            made.extend(bytes(max(0, event.offset - len(made))))
            made[event.offset : event.offset + len(event.data)] = event.data
    return bytes(made)


def _content(file: _File, dice: random.Random) -> bytes:
    changes = [event for _, event in file.pending]
    if not changes:
        return file.durable
    way = dice.random()
    if way < 0.15:
        return file.durable
    if way < 0.3:
        return _apply(file.durable, changes)
    # What the file was after some of its writes, in order; and after these and half of one more, its size perhaps further than its data.
    after = sorted(dice.sample(range(len(changes) + 1), min(len(changes) + 1, 3)))
    versions = [_apply(file.durable, changes[:count]) for count in after]
    size = dice.choice([len(file.durable), *(len(version) for version in versions)])
    grain = PAGE if dice.random() < 0.6 else SECTOR
    made = bytearray(size)  # zeros where nothing was written back
    zeros = dice.random() < 0.2
    for start in range(0, size, grain):
        if start + grain <= len(file.durable) and all(
            version[start : start + grain] == file.durable[start : start + grain] for version in versions
        ):
            made[start : start + grain] = file.durable[start : start + grain]
            continue
        choices = [*versions, file.durable]
        if zeros and start >= len(file.durable):
            choices.append(b"")
        piece = dice.choice(choices)[start : start + grain]
        made[start : start + len(piece)] = piece
    return bytes(made[:size])


def crashes(
    events: Sequence[Event], root: Path, count: int, dice: random.Random, make_target: Callable[[int], Path]
) -> Iterator[tuple[int, Path, int]]:
    """`count` states at moments spread over the trace: (how many events had begun, where the state is, changes at stake)."""
    disk, taken = Disk(root), 0
    for number, moment in enumerate(sorted(dice.randint(0, len(events)) for _ in range(count))):
        for index in range(taken, moment):
            disk.take(index, events[index])
        taken = moment
        target = make_target(number)
        yield moment, target, disk.crash(target, dice)


CONFIG = """
receivers:
  filelog: {{include: ["{log}"], start_at: beginning, storage: file_storage, poll_interval: 20ms}}
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
exporters:
  otlphttp:
    endpoint: "{url}"
    sending_queue: {{storage: file_storage, num_consumers: 3, max_disk_bytes: 1MiB}}
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
extensions: {{health_check: {{}}, file_storage: {{directory: "{state}"}}}}
service:
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog, otlp], exporters: [otlphttp]}}}}
"""


@dataclass
class Recording:
    """A role's run: what it did to its files, and what it was given and sent."""

    root: Path
    events: list[Event]
    given: dict[str, bytes]
    """Batch id -> payload, of what clients sent; what the role made of its log file itself is not in here."""
    bodies: dict[str, list[str]]
    """Batch id -> bodies, of everything that arrived behind it."""
    line_ends: list[int]
    """Where each line of the log file ends."""


def record(directory: Path, dice: random.Random, *, batches: int = 120, clients: int = 3) -> Recording:
    """Runs a role on a file and clients while its server comes and goes, and watches its system calls."""
    state, log, trace_file = directory / "state", directory / "app.log", directory / "trace"
    state.mkdir(parents=True)
    log.touch()
    port = free_port()
    given: dict[str, bytes] = {}
    line_ends: list[int] = []
    with Backend() as backend:
        text = CONFIG.format(log=log, port=port, url=backend.url, state=state)
        role = Role(directory / "role", text, prefix=trace.strace(trace_file))

        def send(client: int) -> None:
            mine = random.Random(client)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for number in range(batches // clients):
                body = f"batch {client}-{number} " + mine.randbytes(mine.choice([10, 1000, 8000, 20000])).hex()
                id = f"given-{client}-{number}"
                given[id] = log_batch(body).payload
                headers = {"Content-Type": "application/x-protobuf", "X-Lockgate-Batch-Id": id}
                connection.request("POST", "/v1/logs", given[id], headers)
                with connection.getresponse() as answer:
                    assert answer.status == 200, answer.read()
                    answer.read()
            connection.close()

        with role, ThreadPoolExecutor(clients) as pool:
            sending = [pool.submit(send, client) for client in range(clients)]
            with open(log, "ab", buffering=0) as file:
                while not all(each.done() for each in sending):
                    backend.status = dice.choice([200, 503, 503])
                    for _ in range(dice.randint(1, 5)):
                        line_ends.append(file.write(f"line {len(line_ends)}\n".encode()) + (line_ends[-1] if line_ends else 0))
                    time.sleep(dice.uniform(0, 0.1))
            for each in sending:
                each.result()
            time.sleep(0.3)  # for marks that come after the last acknowledgement: the run ends in the middle of its work
            backend.status = 200
            wait_until(lambda: len(set(backend.bodies())) == len(line_ends) + len(given), 30, "everything sent")
        bodies = {headers["x-lockgate-batch-id"]: bodies_of(message) for _, headers, message in backend.requests}
    return Recording(state, trace.read(trace_file, state), given, bodies, line_ends)


def play(directory: Path, seed: int, *, states: int, batches: int = 120, ignores_syncs: bool = False) -> Figures:
    """Opens the queue and the positions in `states` states that a power loss could have left; on request of a disk that ignores syncs."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    run = record(directory / "run", dice, batches=batches)
    if ignores_syncs:
        run.events = [event for event in run.events if event.kind != "sync" or event.inode < 0]
    kinds = Counter(event.kind for event in run.events)
    figures = Figures(seed=seed, states=states, **{f"{kind}s": kinds[kind] for kind in ("write", "sync", "rename", "unlink")})
    figures |= dict.fromkeys(
        (
            "at_stake",
            "waiting",
            "recovered",
            "read_before",
            "to_be_repeated",
            "torn",
            "false_alarms",
            "positions_unusable",
            "lost",
            "invented",
            "broken",
            "ledger_faults",
        ),
        0,
    )
    target = directory / "state"

    def make(_: int) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        return target

    checked = 0
    acknowledged, delivered = set[str](), set[str]()
    for moment, state, at_stake in crashes(run.events, run.root, states, dice, make):
        for event in run.events[checked:moment]:
            if event.kind in ("acknowledged", "delivered"):
                (acknowledged if event.kind == "acknowledged" else delivered).add(event.path)
        checked = moment
        figures["at_stake"] += at_stake > 0
        faults = _check(state, run, acknowledged, delivered, figures)
        if faults:
            kept = directory / f"broken-{moment}"
            if figures["broken"] < 5:
                shutil.copytree(state, kept, dirs_exist_ok=True)
            print(f"state at {moment} of {len(run.events)} events: {'; '.join(faults[:3])}")
            figures["broken"] += 1
    return figures


def _check(state: Path, run: Recording, acknowledged: set[str], delivered: set[str], figures: Figures) -> list[str]:
    """What is wrong with what the next process finds in this state."""
    faults = list[str]()
    journal = queues.open_queue(state)
    found = queues.drain(journal)
    done = queues.not_read_again(state, journal)
    figures["torn"] += found.torn_bytes > 0
    figures["false_alarms"] += found.damaged > 0
    figures["recovered"] += len(found.batches)
    for id, batch in found.batches.items():
        if not (batch.payload == run.given[id] if id in run.given else bodies_of(batch.copy_message()) == run.bodies.get(id)):
            figures["invented"] += 1
            faults.append(f"batch {id} is not what was written")
    waiting = acknowledged - delivered
    figures["waiting"] += len(waiting)
    if lost := waiting - found.batches.keys():
        figures["lost"] += len(lost)
        faults.append(f"acknowledged and gone: {sorted(lost)[:5]}")
    if done is None:
        figures["positions_unusable"] += 1
    else:
        # One file, so one content; lines that are neither in the queue nor delivered must be read again.
        (skipped,) = done.values() if done else [Ranges()]
        figures["read_before"] += bool(skipped)
        lines = {f"line {number}" for number, end in enumerate(run.line_ends) if skipped.reach(end - 1) > end - 1}
        there = {body for id in {*found.batches, *delivered} for body in run.bodies.get(id, ())}
        if lost := lines - there:
            figures["lost"] += len(lost)
            faults.append(f"not to be read again, and gone: {sorted(lost)[:5]}")
        in_queue = {body for id in found.batches for body in run.bodies.get(id, ()) if body.startswith("line ")}
        figures["to_be_repeated"] += len(in_queue - lines)
    faults += (wrong := _ledger_faults(journal, found))
    figures["ledger_faults"] += len(wrong)
    return faults + queues.goes_on(state, journal, found)


def _ledger_faults(journal: Journal, found: queues.Found) -> list[str]:
    """What the ledger calls pending is what the queue holds, of the file and of clients; and each line of the file became a record."""
    bodies = [body for batch in found.batches.values() for body in bodies_of(batch.copy_message())]
    of_file = sum(body.startswith("line ") for body in bodies)
    faults = []
    for owner, waiting in ((queues.RECEIVER, of_file), ("", len(bodies) - of_file)):
        account = journal.knowledge.total(owner)
        share = account.shares.get(queues.READER, Share())
        if share.pending != waiting:
            faults.append(f"the ledger says {share.pending} records of {owner or 'clients'} are pending, and the queue holds {waiting}")
        if owner and not account.lines == account.records == share.queued - share.damaged:
            faults.append(
                f"the ledger says {account.lines} lines, {account.records} records, {share.queued - share.damaged} of them queued"
            )
    return faults
