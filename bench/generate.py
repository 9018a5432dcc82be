"""Container logs: one big file at once, or many files at a pace (`python bench/generate.py ROOT LINES_PER_SECOND SECONDS FILE...`)."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

TEXT = (
    b"GET /cart/items?id=%d 200 %dms upstream=10.0.%d.%d:8080 request=%032x user=%d",
    b'level=info msg="order stored" order=%d took=%dms shard=%d/%d trace=%032x items=%d',
    b'level=warn msg="slow query" id=%d ms=%d pool=%d of=%d statement=%032x rows=%d',
)


def pod(number: int) -> dict[str, str]:
    """The so-manieth pod of all parts: ten to a deployment, five deployments to a namespace; its one container is called main."""
    group = number // 10
    name = f"app{group}-5c7d8f9b6d-{number:05}"
    return {"namespace": f"shop{group // 5}", "name": name, "uid": f"0000000a-0000-0000-0000-{number:012x}", "container": f"{number:064x}"}


def log_path(pod: dict[str, str]) -> str:
    """Where the kubelet keeps its log, below /var/log/pods."""
    return f"{pod['namespace']}_{pod['name']}_{pod['uid']}/main/0.log"


def message(chance: random.Random) -> bytes:
    """About 100 bytes, as an application would log: a few shapes, numbers that differ."""
    numbers = chance.randrange(10**6), chance.randrange(900), chance.randrange(255), chance.randrange(255), chance.getrandbits(128)
    return chance.choice(TEXT) % (*numbers, chance.randrange(10**5))


def big_file(path: Path, lines: int, seed: int = 1) -> None:
    """So many CRI lines of about 150 bytes, 5% of them partial. Small files need different seeds: peers know a file by its first bytes."""
    chance = random.Random(seed)
    texts = [message(chance) for _ in range(min(lines, 20_000))]
    nanos = 1_700_000_000 * 10**9
    with open(path, "wb", buffering=1 << 20) as file:
        for number in range(lines):
            nanos += 1_000_003
            second, fraction = divmod(nanos, 10**9)
            if not fraction // 1_000_003 or not number:
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            tag = b"P" if number % 20 == 9 else b"F"
            file.write(
                b"%s.%09dZ %s %s %s\n" % (stamp, fraction, b"stderr" if number % 10 == 3 else b"stdout", tag, texts[number % len(texts)])
            )


def records(lines: int) -> int:
    """Records in such a file: a partial line joins the one behind it."""
    return lines - len(range(9, lines, 20))


def pace(files: list[Path], lines_per_second: float, seconds: float) -> None:
    """Writes single lines, to the files in turn, as many containers would; each line holds the time when it was written."""
    chance = random.Random(2)
    texts = [message(chance) for _ in range(2000)]
    handles = [open(path, "ab", buffering=0) for path in files]  # noqa: SIM115  # until this process ends
    began, written = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * lines_per_second)
        for number in range(written, due):
            now = time.time_ns()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)).encode()
            handles[number % len(handles)].write(b"%s.%09dZ stdout F %s\n" % (stamp, now % 10**9, texts[number % 2000]))
        written = due
        time.sleep(0.005)
    print(written)


if __name__ == "__main__":
    pace([Path(sys.argv[1], name) for name in sys.argv[4:]], float(sys.argv[2]), float(sys.argv[3]))
