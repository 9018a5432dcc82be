"""kill -9 at random moments, role by role, while files rotate, answers are lost, requests are refused and outages come and go."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from support.faults import Figures
from support.faults.balancer import Chances
from support.faults.laboratory import Laboratory


def play(
    directory: Path,
    seed: int,
    *,
    kills: Mapping[str, int],
    lines_per_second: float = 500,
    rotate_bytes: int = 30_000,
    keep_files: int = 10_000,
    chances: Chances | None = None,
    seconds: float = 0,
    drain_seconds: float = 60,
) -> Figures:
    """So many `kills` of each role, in an order and at moments that the seed gives. `seconds` bounds it; 0 does not."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    chances = Chances(refused=0.1, answer_lost=0.05, cut=0.02)
    lab = Laboratory(directory, dice, lines_per_second=lines_per_second, rotate_bytes=rotate_bytes, keep_files=keep_files, chances=chances)
    left = Counter(kills)
    killed: Counter[str] = Counter()
    with lab:
        began = time.monotonic()
        until_weather = 0.0
        born = dict.fromkeys(kills, began)
        while left.total() and not (seconds and time.monotonic() - began > seconds):
            if time.monotonic() > until_weather:
                until_weather = time.monotonic() + dice.uniform(0.5, 3)
                lab.front.outage, lab.back.outage = dice.random() < 0.2, dice.random() < 0.2
            (name,) = dice.sample(list(left), 1, counts=list(left.values()))
            # At an age from the middle of its start, which takes a second here, to long after it.
            age = dice.choice([dice.uniform(0, 0.3), dice.uniform(0.3, 1.2), dice.uniform(1, 3)])
            time.sleep(max(dice.uniform(0, 0.1), born[name] + age - time.monotonic()))
            lab.kill(name)
            born[name] = time.monotonic()
            killed[name] += 1
            if killed.total() % 100 == 0:
                print(f"{killed.total()} kills after {time.monotonic() - began:.0f} s, {lab.pods.lines} lines", flush=True)
            left[name] -= 1
            left += Counter()  # without those that are done
        took = time.monotonic() - began
        books = lab.drain(drain_seconds)
        figures = Figures(seed=seed, kills=killed.total(), seconds=round(took))
        figures |= {f"kills of {name}": killed[name] for name in kills}
        figures |= {
            "rotations": sum(log.rotations for log in lab.pods.logs),
            "compressed": sum(log.compressed for log in lab.pods.logs),
            "split_lines": sum(log.parts for log in lab.pods.logs),
            "deleted": sum(log.deleted for log in lab.pods.logs),
            **{name: lab.front.seen[name] + lab.back.seen[name] for name in ("refused", "answer_lost", "cut", "outage", "unreachable")},
            "wire_repetitions": lab.front.repeated + lab.back.repeated,
            **books,
        }
        for line in lab.crashed:
            print(line)
        if books["lost"]:
            for log in lab.pods.logs:
                missing = lab.missing(log)
                print("missing of", log.name, len(missing), missing[:10], missing[-3:])
    return figures
