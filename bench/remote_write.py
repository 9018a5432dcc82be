"""Samples per CPU second of remote write, inflated and translated to OTLP: `python bench/remote_write.py [seconds per row]`.

Noisy on a shared machine. Input: requests of 2,000 series with eleven labels as cAdvisor's have them, one sample each, as Prometheus sends
them. Beside it, where `make peers` has built it, what Prometheus' receiver needs to inflate and decode the same bodies, without OTLP.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cramjam

from lockgate.collector.memory import tune_memory
from lockgate.net.compression import decompress
from lockgate.wire import series
from lockgate.wire.protobuf import delimited, varint
from lockgate.wire.remote_write import Families, translate

SERIES = 2000
LIMIT = 1 << 30
DECODE = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers") / "bin" / "prometheus-decode"


def labels(number: int) -> dict[str, str]:
    node = f"10-1-{number % 7}-12"
    return {
        "__name__": f"container_{number % 40}_usage_seconds_total",
        "container": "app",
        "endpoint": "https-metrics",
        "instance": f"{node.replace('-', '.')}:10250",
        "job": "kubelet",
        "metrics_path": "/metrics/cadvisor",
        "namespace": f"team-{number % 17}",
        "node": f"ip-{node}.ec2.internal",
        "pod": f"checkout-{number % 60}-7f9c6b5d4-x{number % 97}",
        "service": "kubelet",
        "uid": f"{number:032x}",
    }


def body(version: int) -> bytes:
    chance = random.Random(1)
    symbols: dict[str, int] = {"": 0}
    out = []
    for number in range(SERIES):
        sample = delimited(2, b"\x09" + struct.pack("<d", chance.random() * 1e6) + b"\x10" + varint(1_700_000_000_000 + number % 5))
        pairs = labels(number)
        if version == 1:
            named = b"".join(delimited(1, delimited(1, key.encode()) + delimited(2, text.encode())) for key, text in pairs.items())
            out.append(delimited(1, named + sample))
        else:
            refs = b"".join(varint(symbols.setdefault(text, len(symbols))) for pair in pairs.items() for text in pair)
            out.append(delimited(5, delimited(1, refs) + sample + delimited(5, b"\x08\x01")))
    head = b"".join(delimited(4, text.encode()) for text in symbols) if version == 2 else b""
    return bytes(cramjam.snappy.compress_raw(head + b"".join(out)))


def main(seconds: float) -> None:
    tune_memory()  # as the program does
    bodies = {version: body(version) for version in (1, 2)}
    for version, compressed in bodies.items():
        families, runs, begin = Families(), 0, time.process_time()
        while (spent := time.process_time() - begin) < seconds:
            assert translate(decompress(compressed, "snappy", LIMIT), version, families, LIMIT).samples == SERIES
            runs += 1
        form = "compiled" if series.compiled else "uncompiled"
        print(f"{version}.0, lockgate ({form}): inflated, decoded, as OTLP {runs * SERIES / spent / 1e6:8.2f} M samples/s", flush=True)
    if DECODE.exists():
        with TemporaryDirectory() as folder:
            files = [Path(folder) / str(version) for version in bodies]
            for file, compressed in zip(files, bodies.values(), strict=True):
                file.write_bytes(compressed)
            printed = subprocess.run([DECODE, *files], check=True, capture_output=True, text=True, env={**os.environ, "GOMAXPROCS": "1"})
        for version, rate in zip(bodies, printed.stdout.split(), strict=True):
            print(f"{version}.0, Prometheus: inflated, decoded, labels {float(rate) / 1e6:8.2f} M samples/s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
