"""Bits flipped, bytes overwritten and files cut short in what a killed role left: queue, notes and positions."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lockgate.batch import Batch
from lockgate.kit.ranges import Ranges
from lockgate.sending.segments import Journal
from support.backend import Backend, bodies_of
from support.faults import Figures, queues
from support.faults.accounts import settled_faults
from support.otlp import log_batch, post_logs
from support.process import Role, free_port, wait_until

CONFIG = """
receivers:
  filelog: {{include: ["{log}"], start_at: beginning, storage: file_storage, poll_interval: 20ms}}
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
exporters:
  otlphttp:
    endpoint: "{url}"
    sending_queue: {{storage: file_storage, num_consumers: 3, max_disk_bytes: 1MiB}}
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
extensions:
  health_check: {{}}
  file_storage: {{directory: "{state}", create_directory: true}}
  ledger: {{endpoint: "127.0.0.1:0", state_directory: "{state}"}}
service:
  extensions: [health_check, file_storage, ledger]
  pipelines: {{logs: {{receivers: [filelog, otlp], exporters: [otlphttp]}}}}
"""


@dataclass
class Remains:
    """What a killed role left, and what it was given and had delivered."""

    state: Path
    log: Path
    lines: list[str]
    delivered: set[str]
    """Bodies."""
    given: int
    """How many batches clients gave it, of one record each."""
    batches: dict[str, Batch]
    """What its queue holds, undamaged."""
    places: dict[str, tuple[int, int, int]]
    """Of each of these: segment, and where its bytes are (or, behind delivered ones, may begin and do end)."""

    def line_spans(self) -> list[tuple[str, int, int]]:
        spans, end = [], 0
        for line in self.lines:
            spans.append((line, end, end := end + len(line) + 1))
        return spans


def leave(directory: Path, dice: random.Random, *, batches: int = 60) -> Remains:
    """Runs a role on a file and a client, first with a server and then without, and kills it."""
    state, log, port = directory / "state", directory / "app.log", free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    lines: list[str] = []
    with Backend() as backend:
        role = Role(directory / "role", CONFIG.format(log=log, port=port, url=backend.url, state=state))
        role.start()
        for number in range(batches):
            if number == batches // 3:
                wait_until(lambda: role.metrics()["otelcol_exporter_queue_size"] == 0, what="an empty queue")
                backend.status = 503
            with open(log, "a") as file:
                for _ in range(dice.randint(1, 10)):
                    lines.append(f"line {len(lines)}")
                    file.write(lines[-1] + "\n")
            noise = dice.randbytes(dice.choice([10, 1000, 8000])).hex()
            post_logs(port, log_batch(f"batch {number} {noise}").payload, f"given-{number}")
            time.sleep(dice.choice([0, 0.02, 0.05]))
        wait_until(lambda: role.metrics()["otelcol_receiver_accepted_log_records"] == len(lines) + batches, what="everything queued")
        time.sleep(1.2)  # positions are saved once a second
        role.kill()
        delivered = set(backend.bodies())
    copy = directory / "copy"
    shutil.copytree(state, copy)
    journal = queues.open_queue(copy)
    found, places, ends = dict[str, Batch](), dict[str, tuple[int, int, int]](), dict[int, int]()
    while journal.readers[queues.READER].unread.records:
        for ref, batch in journal.load(queues.READER, 1 << 20).entries:
            found[batch.id] = batch
            places[batch.id] = ref.segment, ends.get(ref.segment, 0), ref.end
            ends[ref.segment] = ref.end
    journal.close()
    return Remains(state, log, lines, delivered, batches, found, places)


@dataclass(frozen=True)
class Damage:
    path: Path
    kind: str
    start: int
    end: int
    """The bytes from `start` on are not what they were; up to `end`, which is the old end of a file that was cut."""


KINDS = ("flip", "flips", "overwrite", "zeros", "cut", "block")


def damage(state: Path, dice: random.Random) -> Damage:
    """Does something to one file below `state`: any, or one of which the larger are the likelier."""
    paths = sorted(path for path in state.rglob("*") if path.is_file() and path.name != "lock" and path.stat().st_size)
    (larger,) = dice.sample(paths, 1, counts=[path.stat().st_size // 1000 + 1 for path in paths])
    path = dice.choice([larger, dice.choice(paths)])
    content = bytearray(path.read_bytes())
    kind = dice.choice(KINDS)
    start = dice.randrange(len(content))
    end = min(len(content), start + dice.choice([1, 4, 50, 600, 5000]))
    match kind:
        case "flip":
            end = start + 1
            content[start] ^= 1 << dice.randrange(8)
        case "flips":
            for _ in range(dice.randint(2, 20)):
                content[dice.randrange(start, end)] ^= 1 << dice.randrange(8)
        case "overwrite":
            content[start:end] = dice.randbytes(end - start)
        case "zeros":
            content[start:end] = bytes(end - start)
        case "cut":
            end = len(content)
            del content[start:]
        case "block":  # written to the wrong place
            other = dice.choice(paths).read_bytes()
            at = dice.randrange(len(other))
            content[start:end] = other[at : at + end - start].ljust(end - start, b"\0")
    path.write_bytes(content)
    return Damage(path, kind, start, end)


def play(directory: Path, seed: int, *, rounds: int) -> Figures:
    """Opens the queue and the positions `rounds` times, each time with other damage."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    remains = leave(directory, dice)
    figures = Figures(seed=seed, rounds=rounds, waiting_batches=len(remains.batches))
    names = ("damaged", "quarantined", "read_again", "positions_lost", "repeated", "lost_beyond_damage", "uncounted", "invented", "broken")
    figures |= dict.fromkeys((*names, "ledger_faults"), 0)
    figures |= dict.fromkeys((*(f"of_{kind}" for kind in KINDS), "in_segment", "in_notes", "in_positions"), 0)
    target = directory / "target"
    for number in range(rounds):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(remains.state, target)
        done = damage(target, dice)
        figures[f"of_{done.kind}"] += 1
        where = {".segment": "in_segment", ".notes": "in_notes"}.get(done.path.suffix, "in_positions")
        figures[where] += 1
        if faults := _check(target, remains, done, figures):
            figures["broken"] += 1
            print(f"round {number}: {done.kind} of {done.path.name} [{done.start}, {done.end}): {'; '.join(faults[:3])}")
    return figures


def _check(state: Path, remains: Remains, done: Damage, figures: Figures) -> list[str]:
    faults = list[str]()
    journal = queues.open_queue(state)
    found = queues.drain(journal)
    missing = remains.batches.keys() - found.batches.keys()
    figures["damaged"] += len(missing)
    figures["quarantined"] += found.quarantined_bytes > 0
    for id, batch in found.batches.items():
        if id in remains.batches:
            if (batch.payload, batch.count) != (remains.batches[id].payload, remains.batches[id].count):
                figures["invented"] += 1
                faults.append(f"batch {id} is not what was written")
        elif set(bodies_of(batch.copy_message())) <= remains.delivered:
            figures["repeated"] += 1
            if done.path.suffix != ".notes":
                faults.append(f"batch {id} was delivered, and is to be sent again")
        else:
            figures["invented"] += 1
            faults.append(f"batch {id} was never written")
    beyond = [id for id in missing if not _touches(done, *remains.places[id])]
    if beyond:
        figures["lost_beyond_damage"] += len(beyond)
        faults.append(f"not damaged, and gone: {sorted(beyond)[:5]} of {len(beyond)}")
    if found.damaged < len(missing):
        figures["uncounted"] += 1
        faults.append(f"{len(missing)} batches are gone, {found.damaged} are counted")
    if missing and done.kind != "cut" and not found.quarantined_bytes:
        faults.append("nothing was put into quarantine")
    kept = _kept(state, journal, remains)
    if kept is None:
        figures["positions_lost"] += 1
    else:
        there = remains.delivered | {body for batch in found.batches.values() for body in bodies_of(batch.copy_message())}
        figures["read_again"] += len(remains.lines) - len(kept)
        if lost := kept - there:
            figures["lost_beyond_damage"] += len(lost)
            faults.append(f"neither in the queue nor to be read again: {sorted(lost)[:3]} of {len(lost)}")
    if wrong := _ledger_faults(journal, remains, found):
        figures["ledger_faults"] += 1
        faults += wrong
    faults += queues.goes_on(state, journal, found)
    return faults


def _ledger_faults(journal: Journal, remains: Remains, found: queues.Found) -> list[str]:
    """Lines count once, until they are given back, and a client's records are lost where nobody else has them."""
    there = [body for batch in found.batches.values() for body in bodies_of(batch.copy_message())]
    waiting = Counter(body.split()[0] for body in there)
    back = len(_lost(journal, remains))
    faults = []
    for owner, word, records, rejected in (
        (queues.RECEIVER, "line", len(remains.lines) - back, 0),
        ("", "batch", remains.given, sum(id.startswith("given-") for id in remains.batches) - waiting["batch"]),
    ):
        account = journal.knowledge.total(owner)
        share = account.shares[queues.READER]
        wanted = (records * bool(owner), records, records, records - waiting[word] - rejected, waiting[word], rejected)
        told = (account.lines, account.records, share.queued - share.damaged, share.delivered, share.pending, sum(share.rejected.values()))
        if told != wanted:
            faults.append(f"the ledger says (lines, records, queued, delivered, pending, rejected) of {word}s {told}, and it is {wanted}")
    return faults


def _kept(state: Path, journal: Journal, remains: Remains) -> set[str] | None:
    """The lines that are not to be read again; None where all are, because nobody knows."""
    if (skipped := queues.not_read_again(state, journal)) is None:
        return None
    (ranges,) = skipped.values() if skipped else [Ranges()]
    return {line for line, _, end in remains.line_spans() if ranges.reach(end - 1) > end - 1}


def _lost(journal: Journal, remains: Remains) -> set[str]:
    """The lines that are given back."""
    ranges = journal.knowledge.held(queues.RECEIVER).lost.values()
    return {line for line, _, end in remains.line_spans() if any(each.reach(end - 1) > end - 1 for each in ranges)}


def _touches(done: Damage, segment: int, start: int, end: int) -> bool:
    return done.path.suffix == ".segment" and int(done.path.stem) == segment and done.start < end and start < done.end


def play_roles(directory: Path, seed: int, *, rounds: int, damages: int = 1) -> Figures:
    """Starts a role on damaged files `rounds` times: it becomes ready, empties its queue, and every line of its file arrives."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    figures = Figures(seed=seed, rounds=rounds, damaged=0, quarantined=0, lines=0, lost=0, repeated=0, given=0, given_damaged=0)
    figures["ledger_faults"] = 0
    for number in range(rounds):
        place = directory / str(number)
        remains = leave(place, dice, batches=30)
        kinds = Counter[str]()
        for _ in range(damages):
            done = damage(remains.state, dice)
            kinds[done.path.suffix] += 1
        with Backend() as backend:
            reads = _reads(remains, place / "copy")
            config = CONFIG.format(log=remains.log, port=free_port(), url=backend.url, state=remains.state)
            with Role(place / "role", config, {"LOCKGATE_STATE": str(remains.state)}) as role:
                all_lines = set(remains.lines)
                try:
                    wait_until(lambda: remains.delivered | set(backend.bodies()) >= all_lines, 15, "every line")  # noqa: B023
                except AssertionError:
                    print(number, dict(kinds), "a line is missing")
                wait_until(lambda: role.metrics()["otelcol_exporter_queue_size"] == 0, what="an empty queue")
                wait_until(lambda: role.get("/ready")[0] == 200, what="ready")
                metrics = role.metrics()
                bodies = backend.bodies()
                given = {id for id in remains.batches if id.startswith("given-")}
                arrived = {f"given-{body.split()[1]}" for body in bodies if body.startswith("batch ")}
                known = {"": dict.fromkeys(("read", "records", "delivered"), reads)}
                here = range(remains.given, remains.given + 1)
                figures["ledger_faults"] += len(settled_faults(role, known, here, len(given - arrived)))
        lines = Counter(body for body in bodies if body.startswith("line "))
        figures["damaged"] += int(metrics["lockgate_queue_damaged_records"])
        figures["quarantined"] += int(metrics["lockgate_queue_quarantined_bytes"])
        figures["lines"] += len(remains.lines)
        figures["lost"] += len(all_lines - remains.delivered - lines.keys())
        figures["repeated"] += sum((lines + Counter(remains.delivered & lines.keys())).values()) - len(lines)
        figures["given"] += len(given)
        figures["given_damaged"] += len(given - arrived)
        shutil.rmtree(place)
    return figures


def _reads(remains: Remains, copy: Path) -> int:
    """How often a line of the file will have been read that nobody gave back: each once, and again what no position tells of."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(remains.state, copy)
    journal = queues.open_queue(copy)
    queues.drain(journal)
    kept = _kept(copy, journal, remains) or set()
    back = _lost(journal, remains)
    journal.close()
    return len(remains.lines) + len(set(remains.lines) - kept - back)
