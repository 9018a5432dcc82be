"""The ledger at the end of a play: what a role says over its door must agree with itself, and with what the play knows by its own means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockgate.cli.asking import Refused, asked
from lockgate.net.access import LEDGER, NotRunning, find
from support.process import Role, wait_until

LINES = ("read", "records", "joined", "filtered", "under_way", "waiting_to_be_joined")
FATES = ("queued", "delivered", "pending", "damaged")

Known = Mapping[str, Mapping[str, int]]
"""By pod (empty where a file is of none), exactly: `read`, `records`, `joined`, `filtered`, `delivered`, `rejected REASON`, `lost_bytes`;
what is not said is 0. One that is `damaged` says nothing: what is given back and read again counts once."""


def settled_faults(role: Role, known: Known, given: range = range(1), damaged: int = 0, *, seconds: float = 20) -> list[str]:
    """What is wrong with a role's ledger once nothing is under way any more; waits for that, and for what it should say, so long."""
    faults = ["it was not asked"]

    def is_right() -> bool:
        try:
            access = find(Path(role.environment["LOCKGATE_STATE"]), LEDGER)
            with asked(access, "GET", "/where") as answer:
                faults[:] = ledger_faults(json.loads(answer.read()), role.metrics(), known, given, damaged)
        except (NotRunning, Refused, OSError) as error:
            faults[:] = [f"it does not answer: {error}"]
        return not faults

    try:
        wait_until(is_right, seconds)
    except AssertionError:
        for fault in faults:
            print(f"the ledger of {role.log.parent.name}: {fault}")
    return faults


def ledger_faults(
    answer: dict[str, Any], metrics: Mapping[str, float], known: Known, given: range = range(1), damaged: int = 0
) -> list[str]:
    """What in this answer contradicts itself, the role's metrics, or what is `known`.

    `given`: how many records clients, who have no files, may have had taken; `damaged`: how many of these the queue lost.
    """
    return list(_faults(answer, metrics, known, given, damaged))


def _faults(answer: dict[str, Any], metrics: Mapping[str, float], known: Known, given: range, damaged: int) -> Iterator[str]:
    if answer["problems"] or answer["left_out"]:
        yield f"it could not tell all: {answer['problems']}, {answer['left_out']} containers left out"
    sums: dict[str, Counter[str]] = {}
    for container in answer["containers"]:
        where = container["pod"]
        total = sums.setdefault(where, Counter())
        for file in container["files"]:
            total["unread_bytes"] += file["unread_bytes"]
            for counts in file["queues"].values():
                yield from _contradictions(file["path"], counts)
                total.update(_flat(counts))
        for counts in container["gone"].values():
            yield from _contradictions(f"what is gone of {where}", counts)
            total.update(_flat(counts))
        for lost in container["lost"]:
            total.update(lost_bytes=lost["bytes"], lost_perhaps=lost["unknown"])
    for where in known.keys() | sums.keys():
        told = sums.get(where, Counter())
        wanted = {key: number for key, number in known.get(where, {}).items() if number}
        compared = {key: number for key, number in told.items() if number and (key in wanted or key not in _DERIVED)}
        if compared != wanted:
            yield f"of {where or 'files of no pod'} it says {compared}, and it is {wanted}"
    parts, whole = Counter[str](), Counter[str]()
    for total in sums.values():
        parts.update(total)
    for receiver in answer["receivers"].values():
        for counts in receiver["queues"].values():
            yield from _contradictions("a receiver", counts)
            whole.update(_flat(counts))
        whole.update({key: receiver[key] for key in ("unread_bytes", "lost_bytes", "lost_perhaps")})
        if receiver["refused_on_the_way"] or receiver["waiting_files"]:
            yield f"a receiver: {receiver['refused_on_the_way']} refused on the way, {receiver['waiting_files']} files wait"
    if whole != parts:  # as Counters compare: what is not there is 0
        yield f"receivers sum up {dict(whole)}, their containers {dict(parts)}"
    queued, clients = Counter[str](), Counter[str]()
    for queue in answer["queues"].values():
        for of, exporters in ((queued, "exporters"), (clients, "without_source")):
            for fates in queue[exporters].values():
                of.update(_fates(fates))
                yield from _broken_equation(f"a queue's {exporters}", _fates(fates))
    of_files = Counter({key: number for key, number in parts.items() if key in FATES or key.startswith("rejected ")})
    of_files.update(clients)
    if queued != of_files:
        yield f"queues sum up {dict(queued)}, their sources {dict(of_files)}"
    rejected = {key: number for key, number in clients.items() if key.startswith("rejected ") and number}
    if clients["queued"] not in given or clients["pending"] or rejected != ({"rejected damaged": damaged} if damaged else {}):
        yield f"of clients it says {dict(clients)}, and {given} were given, {damaged} of them damaged"
    lines, records = metrics.get("lockgate_ledger_lines", 0), metrics.get("lockgate_ledger_records", 0)
    if (lines, records) != (parts["read"], queued["queued"] + queued["damaged"]):
        yield f"its metrics say {lines:.0f} lines and {records:.0f} records, and it {parts['read']} and {queued['queued']}"


_DERIVED = {"queued", "damaged", "lost_perhaps"}
"""Not compared with what is known: what was queued is what there are `records` of (below), and damage is no fate. Nor is what the tailer
cannot know: a file that was empty when its position was saved, and that a kubelet compressed while nobody could save or look."""


def _contradictions(where: str, counts: dict[str, Any]) -> Iterator[str]:
    flat = _flat(counts)
    if flat["read"] != sum(flat[key] for key in LINES[1:]):
        yield f"{where}: the lines do not add up: {dict(flat)}"
    for fates in counts["exporters"].values():
        if fates["queued"] != flat["records"]:
            yield f"{where}: {flat['records']} records, and {fates['queued']} queued"
        yield from _broken_equation(where, _fates(fates))


def _broken_equation(where: str, fates: Counter[str]) -> Iterator[str]:
    if fates["queued"] != sum(number for key, number in fates.items() if key not in _DERIVED):
        yield f"{where}: the records do not add up: {dict(fates)}"
    if min(fates.values(), default=0) < 0:
        yield f"{where}: less than nothing: {dict(fates)}"


def _flat(counts: dict[str, Any]) -> Counter[str]:
    flat = Counter({key: counts[key] for key in LINES})
    for fates in counts["exporters"].values():
        flat.update(_fates(fates))
    return flat


def _fates(fates: dict[str, Any]) -> Counter[str]:
    flat = Counter({key: fates[key] for key in FATES})
    flat.update({f"rejected {reason}": records for reason, records in fates["rejected"].items()})
    return flat
