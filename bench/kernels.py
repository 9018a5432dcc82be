"""What the kernels do per CPU second, as installed, uncompiled and by upb: `python bench/kernels.py [seconds per row]`.

Noisy on a shared machine: compare rows of one run. Input: 8,000 lines of about 150 bytes, one resource, two attributes and a log tag.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lockgate.batch import Signal, message_type
from lockgate.wire import columns, cri, otlp, records
from lockgate.wire.protobuf import delimited, key_values

LINES = 8000
RESOURCES = 110
HEADS = [b"2024-04-13T07:59:%02d.%09dZ stdout " % (i // 400 % 60, i * 777) for i in range(LINES)]
RESOURCE = key_values(1, [("k8s.pod.name", "web-0"), ("k8s.namespace.name", "shop")])
LABELS = ("k8s.container.name", "k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid")
PATH = ("log.file.path", "/var/log/pods/shop_web-0/web/0.log")
ATTRIBUTES = (
    key_values(6, [PATH, ("log.iostream", "stdout")]),
    key_values(6, [PATH, ("log.iostream", "stderr")]),
    key_values(6, [PATH]),
)
TEXT = b"GET /cart/items?id=4711 200 12ms upstream=10.0.3.7:8080 agent=Mozilla/5.0 (X11; Linux x86_64) request=9f86d081884c7d65 ok"


def chunk(tag: Callable[[int], bytes], text: bytes = TEXT) -> bytes:
    return b"".join(head + tag(i) + b" " + text + b"\n" for i, head in enumerate(HEADS))


def docker() -> bytes:
    rows = (b'{"log":"' + TEXT + b' \\"q\\"\\n","stream":"stdout","time":"' + head.split(b" ")[0] + b'"}\n' for head in HEADS)
    return b"".join(rows)


def labelled() -> bytes:
    """As many log records, from as many containers as a node has at most, each with its labels as attributes of the record."""
    record = cri.parse(HEADS[0] + b"F " + TEXT + b"\n", b"", ATTRIBUTES, 1, 1, 1 << 20).payload
    (scope,) = message_type(Signal.LOGS).FromString(record).resource_logs[0].scope_logs
    body, out = scope.log_records[0].SerializeToString(), []
    for number in range(RESOURCES):
        labels = zip(LABELS, ("web", "shop", f"web-{number}", f"9f86d081-884c-7d65-9a2f-{number:012}"), strict=True)
        held = delimited(2, body + key_values(6, labels)) * (LINES // RESOURCES + (number < LINES % RESOURCES))
        out.append(delimited(1, delimited(1, key_values(1, [("host", f"h{number}")])) + delimited(2, delimited(1, b"") + held)))
    return b"".join(out)


def regroup(form: ModuleType, payload: bytes) -> bytes:
    """Half of the groups, without their labels: what filter and groupbyattrs ask for, without what they decide."""
    index = form.index(payload, [label.encode() for label in LABELS])
    homes = [number if number % 2 else -1 for number in range(len(index.groups))]
    frames = [(index.entries[index.scopes[number][0]], [(index.scopes[number][1], number)]) for number in homes if number >= 0]
    return bytes(form.gather(index, homes, frames, remove=True))


def uncompiled(module: ModuleType) -> ModuleType:
    name = module.__name__.rsplit(".")[-1]
    spec = importlib.util.spec_from_file_location(f"uncompiled_{name}", Path(str(module.__file__)).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    return plain


def measure(name: str, work: Callable[[], Any], size: int, seconds: float) -> None:
    work()
    begin, runs = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        work()
        runs += 1
    print(f"{name:34} {runs * LINES / spent / 1e6:9.3f} M lines/s {runs * size / spent / 1e6:9.1f} MB/s", flush=True)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    chunks = {
        "cri": chunk(lambda i: b"F"),
        "cri, 5% partial": chunk(lambda i: b"F" if i % 20 else b"P"),
        "cri, not ASCII": chunk(lambda i: b"F", TEXT.replace(b"ok", "für 3 €".encode())),
        "docker": docker(),
    }
    plain = chunks["cri"]
    ends = [at for at, byte in enumerate(plain) if byte == 10]
    spans = array("q", [at for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False) for at in (start, end)])
    for form in (cri, uncompiled(cri)):
        label = "compiled" if form.compiled else "uncompiled"
        for name, data in chunks.items():
            measure(f"{name} ({label})", partial(form.parse, data, RESOURCE, ATTRIBUTES, 1, LINES, 1 << 20), len(data), seconds)
        work = partial(form.parse, plain, RESOURCE, ATTRIBUTES, 1, LINES, 1 << 20, cri.PLAIN)
        measure(f"plain lines ({label})", work, len(plain), seconds)
        work = partial(form.parse_spans, plain, spans, RESOURCE, ATTRIBUTES[2], 1, LINES, 1 << 20)
        measure(f"spans ({label})", work, len(plain), seconds)
    payload = cri.parse(plain, RESOURCE, ATTRIBUTES, 1, LINES, 1 << 20).payload
    for form in (otlp, uncompiled(otlp)):
        label = "compiled" if form.compiled else "uncompiled"
        measure(f"validate ({label})", partial(form.validate, payload, otlp.LOGS), len(payload), seconds)
    for form in (columns, uncompiled(columns)):
        label = "compiled" if form.compiled else "uncompiled"
        measure(f"columns ({label})", partial(form.log_columns, payload, None), len(payload), seconds)
    with_labels = labelled()
    for form in (records, uncompiled(records)):
        label = "compiled" if form.compiled else "uncompiled"
        measure(
            f"index by 4 attributes ({label})",
            partial(form.index, with_labels, [name.encode() for name in LABELS]),
            len(with_labels),
            seconds,
        )
        measure(f"index and gather half ({label})", partial(regroup, form, with_labels), len(with_labels), seconds)
    request = message_type(Signal.LOGS)
    measure("validate by upb's FromString", partial(request.FromString, payload), len(payload), seconds)
    measure("encode by upb's SerializeToString", request.FromString(payload).SerializeToString, len(payload), seconds)


if __name__ == "__main__":
    main()
