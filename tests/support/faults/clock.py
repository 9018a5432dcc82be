"""Wall clocks that jump by hours, each role's its own, as after a resume or by a time server that was wrong; libfaketime moves them."""

from __future__ import annotations

import random
import time
import urllib.request
from email.utils import parsedate_to_datetime
from pathlib import Path

from support.faults import Figures
from support.faults.balancer import Chances
from support.faults.laboratory import Laboratory
from support.process import Role

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
"""Debian's package faketime; the form for programs with threads."""


def play(directory: Path, seed: int, *, steps: int, hours: float = 8, lines_per_second: float = 500) -> Figures:
    """`steps` jumps of one role's clock by up to so many hours, either way, while lines flow, with refusals and short outages."""
    print("seed", seed, flush=True)
    dice = random.Random(seed)
    clocks = {name: directory / f"{name}.clock" for name in ("agent", "metadata-0", "metadata-1", "backend")}
    for clock in clocks.values():
        clock.write_text("+0")

    def environment(name: str) -> dict[str, str]:
        fake = {"FAKETIME_TIMESTAMP_FILE": str(clocks[name]), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return fake | {"LD_PRELOAD": str(LIBRARIES[0])}

    chances = Chances(refused=0.1, answer_lost=0.05, cut=0.02)
    lab = Laboratory(
        directory,
        dice,
        lines_per_second=lines_per_second,
        rotate_bytes=100_000,
        keep_files=10_000,
        chances=chances,
        environment=environment,
        service={"sandbox": "off"},  # it would keep libfaketime from reading the clocks
    )
    forwards = backwards = seen = 0
    offsets = dict.fromkeys(clocks, 0)
    longest = 0.0
    with lab:
        for _ in range(steps):
            name = dice.choice(list(clocks))
            step = dice.choice([-1, 1]) * dice.randint(60, int(hours * 3600))
            offsets[name] += step
            forwards, backwards = forwards + (step > 0), backwards + (step < 0)
            aside = clocks[name].with_suffix(".new")
            aside.write_text(f"{offsets[name]:+d}")
            aside.replace(clocks[name])
            seen += abs(_wall_clock(lab.roles[name]) - time.time() - offsets[name]) < 10
            lab.front.outage = dice.random() < 0.3
            time.sleep(dice.uniform(0.2, 1))
            lab.front.outage = False
            # Everything written so far arrives soon: no interval waits for the wall clock to come back.
            written, began = lab.pods.lines, time.monotonic()
            while lab.ask("SELECT count(*) AS n FROM logs")[0]["n"] < written and time.monotonic() - began < 60:
                time.sleep(0.05)
            longest = max(longest, time.monotonic() - began)
        books = lab.drain(60)
        return Figures(
            seed=seed,
            steps_forwards=forwards,
            steps_backwards=backwards,
            steps_seen=seen,
            longest_seconds_to_arrive=round(longest, 1),
            repeated_at_the_wire=lab.front.repeated + lab.back.repeated,
            **books,
        )


def _wall_clock(role: Role) -> float:
    """What the role takes for the time."""
    with urllib.request.urlopen(f"http://127.0.0.1:{role.health_port}/", timeout=5) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()
