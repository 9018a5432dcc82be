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
from lockgate.wire import cri, otlp
from lockgate.wire.protobuf import key_values

LINES = 8000
HEADS = [b"2024-04-13T07:59:%02d.%09dZ stdout " % (i // 400 % 60, i * 777) for i in range(LINES)]
RESOURCE = key_values(1, [("k8s.pod.name", "web-0"), ("k8s.namespace.name", "shop")])
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
    request = message_type(Signal.LOGS)
    measure("validate by upb's FromString", partial(request.FromString, payload), len(payload), seconds)
    measure("encode by upb's SerializeToString", request.FromString(payload).SerializeToString, len(payload), seconds)


if __name__ == "__main__":
    main()
