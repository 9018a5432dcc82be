"""`lockgate where`: where a pod's lines are now, and what was lost of them and why; of every role that runs here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lockgate.cli.asking import Refused, asked, visible
from lockgate.net.access import LEDGER, NotRunning, default_state_directory, find_all

LOST = 3
"""The exit status where something was rejected, or gone before it was read."""
_MOST = 5
"""Of clients, and of containers that are behind, those with the most."""
_IN_A_POD = Path("/var/lib/lockgate")
"""Where the presets keep their state."""


def where(pod: str = "", /, *, output: Literal["text", "json"] = "text", state: Path | None = None) -> int:
    """Show where lines are now: on disk and unread, waiting, delivered, rejected or lost, and why.

    Exit status 0: nothing was lost; 3: something was rejected, or gone before it was read; 1: it cannot be told.

    Parameters
    ----------
    pod
        NAMESPACE/POD or NAMESPACE/POD/CONTAINER; * and ? match anything and any character. Without it, the totals.
    output
        Text, or JSON by role.
    state
        The state directory of a role, or the one of `lockgate up`; $LOCKGATE_STATE, or .lockgate here.
    """
    names = pod.split("/") if pod else []
    if pod and not (2 <= len(names) <= 3 and all(names)):
        print(f"lockgate: {pod} is no NAMESPACE/POD or NAMESPACE/POD/CONTAINER", file=sys.stderr)
        return 1
    parameters = dict(zip(("namespace", "pod", "container"), names, strict=False))
    answers: dict[str, Any] = {}
    directory = state or default_state_directory()
    if state is None and not directory.exists():
        directory = _IN_A_POD
    try:
        roles = list(find_all(directory, LEDGER))
    except NotRunning as error:
        print(f"lockgate: {error}", file=sys.stderr)
        return 1
    for role, access in roles:
        try:
            with asked(access, "GET", "/where", parameters) as answer:
                answers[role] = json.loads(answer.read())
        except (Refused, NotRunning) as error:
            print(f"lockgate: {role}: {error}", file=sys.stderr)
    if not answers:
        return 1
    if output == "json":
        print(json.dumps(answers, indent=2))
    else:
        for role, answer in answers.items():
            lines = list(_containers(answer) if pod else _totals(answer))
            if lines or len(answers) == 1:
                if len(answers) > 1:
                    print(f"== {role}")
                print(visible("\n".join(lines)))
    if pod and not any(answer["containers"] for answer in answers.values()):
        print(f"lockgate: nothing is known of {pod} here: no role here follows a log of it", file=sys.stderr)
        return 1
    for role, answer in answers.items():
        for problem in answer["problems"]:
            print(f"lockgate: {role}: {problem}", file=sys.stderr)
    if any(answer["problems"] for answer in answers.values()):
        return 1
    return LOST if any(answer["lost"] for answer in answers.values()) else 0


def _containers(answer: dict[str, Any]) -> Iterator[str]:
    for container in answer["containers"]:
        yield "/".join(filter(None, (container[key] for key in ("namespace", "pod", "container")))) + f"  (uid {container['uid'] or '-'})"
        files = container["files"]
        # One directory, as a rule: it is said once.
        common = os.path.commonpath([os.path.dirname(file["path"]) for file in files]) if files else ""  # noqa: PTH120 - text
        if common:
            yield f"  {common}/"
        for file in sorted(files, key=lambda it: it["path"]):
            yield f"    {_plain(file['path'], common)}: {_disk(file)}"
            for name, counts in file["queues"].items():
                yield from _counts(name, counts, "      ")
        for name, counts in container["gone"].items():
            yield "    files that are gone"
            yield from _counts(name, counts, "      ")
        for lost in container["lost"]:
            yield f"    LOST {_lost(lost, common)}"
    if answer["left_out"]:
        yield f"and {answer['left_out']} more containers"
    if answer["containers"]:
        for name, queue in answer["queues"].items():
            for exporter, fates in queue["exporters"].items():
                if fates["pending"]:
                    yield f"{_queue(name, queue)} {exporter}: {_pending(fates)} in all"


def _totals(answer: dict[str, Any]) -> Iterator[str]:
    for id, receiver in answer["receivers"].items():
        if clients := receiver["clients"]:
            yield f"receiver {id}: {sum(clients.values()):,} records of {len(clients):,} clients since the start, the most of"
            for client, records in sorted(clients.items(), key=lambda it: -it[1])[:_MOST]:
                yield f"  {client}: {records:,}"
            continue
        files = f"{receiver['files']:,} files, {_disk(receiver)}"
        waiting = f", {receiver['waiting_files']:,} files wait to be opened" if receiver["waiting_files"] else ""
        yield f"receiver {id}: {files}{waiting}"
        for name, counts in receiver["queues"].items():
            yield f"  {_lines(name, counts)}"
        for name, records in receiver["filtered_unassigned"].items():
            if records:
                yield f"  {name}: besides, {records:,} records were filtered of which the file is not known; above they are delivered"
        if receiver["refused_on_the_way"]:
            yield f"  {receiver['refused_on_the_way']:,} records were refused for good on the way, or given up, since the start"
        if receiver["lost_times"]:
            yield f"  LOST at least {receiver['lost_bytes']:,} bytes before they were read, in {receiver['lost_times']:,} gaps"
        if receiver["lost_perhaps"]:
            yield f"  LOST perhaps the ends of {receiver['lost_perhaps']:,} files that went while nobody looked"
    for name, queue in answer["queues"].items():
        yield _queue(name, queue)
        for exporter, fates in queue["exporters"].items():
            yield f"  {exporter}: {_fates(fates)}"
        for exporter, fates in queue["without_source"].items():
            if fates["rejected"]:
                yield f"  {exporter}: of these, {_rejected(fates['rejected'])} of which the file is not known"
    behind = [(file["unread_bytes"], container) for container in answer["containers"] for file in container["files"]]
    by_pod: dict[str, int] = {}
    for unread, container in behind:
        key = "/".join((container["namespace"], container["pod"], container["container"]))
        by_pod[key] = by_pod.get(key, 0) + unread
    most = [(unread, key) for key, unread in by_pod.items() if unread]
    for unread, key in sorted(most, reverse=True)[:_MOST]:
        yield f"behind: {key}: {unread:,} bytes not read"
    if not answer["receivers"] and not answer["queues"]:
        yield "nothing here keeps accounts: there is no filelog, and no sending queue"


def _counts(name: str, counts: dict[str, Any], indent: str) -> Iterator[str]:
    yield indent + _lines(name, counts)
    for exporter, fates in counts["exporters"].items():
        yield f"{indent}  {exporter}: {_fates(fates)}"


def _lines(name: str, counts: dict[str, Any]) -> str:
    others = {
        "joined": "joined into others",
        "filtered": "filtered",
        "under_way": "under way",
        "waiting_to_be_joined": "waiting to be joined",
    }
    parts = [f"{counts[key]:,} {text}" for key, text in others.items() if counts[key]]
    return f"{name}: {counts['read']:,} lines read = " + " + ".join([f"{counts['records']:,} records", *parts])


def _fates(fates: dict[str, Any]) -> str:
    parts = [f"{fates['delivered']:,} delivered"]
    if fates["pending"]:
        parts.append(_pending(fates))
    if fates["rejected"]:
        parts.append(_rejected(fates["rejected"]))
    again = f" (besides, {fates['damaged']:,} damaged in the queue and given back, to be read again)" if fates["damaged"] else ""
    return f"{fates['queued']:,} records = " + " + ".join(parts) + again


def _pending(fates: dict[str, Any]) -> str:
    size = f", {fates['pending_bytes']:,} bytes" if fates.get("pending_bytes") else ""
    since = f", for {_time(fates['pending_seconds'])}" if fates["pending"] and fates["pending_seconds"] is not None else ""
    return f"{fates['pending']:,} in the queue" + (f" ({(size + since).removeprefix(', ')})" if size or since else "")


def _rejected(reasons: dict[str, int]) -> str:
    return f"{sum(reasons.values()):,} REJECTED ({', '.join(f'{reason} {records:,}' for reason, records in sorted(reasons.items()))})"


def _queue(name: str, queue: dict[str, Any]) -> str:
    return f"queue {name}, {'on disk' if queue['on_disk'] else 'in memory, since the start'}:"


def _disk(file: dict[str, Any]) -> str:
    if not file["unread_bytes"]:
        return "read to the end"
    oldest = f", the oldest written {_time(file['oldest_unread_seconds'])} ago" if file["oldest_unread_seconds"] is not None else ""
    return f"{file['unread_bytes']:,} bytes not read{oldest}"


def _lost(lost: dict[str, Any], common: str) -> str:
    what = f"at least {lost['bytes']:,} bytes of" if lost["bytes"] else "perhaps the end of"
    times = f", {lost['times'] + lost['unknown']} times" if lost["times"] + lost["unknown"] > 1 else ""
    return f"{what} {_plain(lost['path'], common)}{times}, last {_time(lost['seconds_ago'])} ago: {lost['reason']}"


def _plain(path: str, common: str) -> str:
    return path.removeprefix(f"{common}/") if common else path or "more files"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
