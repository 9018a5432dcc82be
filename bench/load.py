"""Sends OTLP logs as agents would: `python bench/load.py URL PODS.json RECORDS BATCH_RECORDS RESOURCES`.

Bodies are made and compressed before the first is sent; four requests are under way at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from pathlib import Path

import aiohttp
from generate import message

from lockgate.net.compression import compress
from lockgate.wire import cri
from lockgate.wire.protobuf import key_values

CONNECTIONS = 4
BODIES = 16


def body(pods: list[dict[str, str]], records: int) -> bytes:
    """One request: as many resources as pods, which share the records evenly."""
    chance, out = random.Random(3), []
    for number, pod in enumerate(pods):
        share = records * (number + 1) // len(pods) - records * number // len(pods)
        path = f"/var/log/pods/{pod['namespace']}_{pod['name']}_{pod['uid']}/main/0.log"
        names = [("k8s.namespace.name", pod["namespace"]), ("k8s.pod.name", pod["name"]), ("k8s.pod.uid", pod["uid"])]
        resource = key_values(1, [*names, ("k8s.container.name", "main"), ("k8s.container.restart_count", "0")])
        attributes = key_values(6, [("log.iostream", "stdout"), ("log.file.path", path)])
        lines = b"".join(b"2026-01-01T00:00:%02d.%09dZ stdout F %s\n" % (i % 60, i, message(chance)) for i in range(share))
        out.append(cri.parse(lines, resource, (attributes,) * 3, 1, share, 1 << 20).payload)
    return b"".join(out)


async def main(url: str, pods: list[dict[str, str]], records: int, per_batch: int, resources: int) -> None:
    around = itertools.islice(itertools.cycle(pods), BODIES * resources)
    bodies = [compress(body(list(itertools.islice(around, resources)), per_batch), "gzip") for _ in range(BODIES)]
    numbers = iter(range(records // per_batch))
    async with aiohttp.ClientSession() as session:

        async def send() -> None:
            for number in numbers:
                headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", "X-Lockgate-Batch-Id": f"bench-{number}"}
                while True:
                    async with session.post(url, data=bodies[number % BODIES], headers=headers) as answer:
                        if answer.status == 200:
                            break
                        print(answer.status, await answer.text(), file=sys.stderr)
                        await asyncio.sleep(0.1)

        await asyncio.gather(*(send() for _ in range(CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), *map(int, sys.argv[3:6])))
