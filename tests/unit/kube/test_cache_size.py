"""What 5,000 pods cost in memory, in a process of their own."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from support.kubernetes import Object, apply, pod, sample

MEASURE = """
import asyncio, sys
from support import context
from lockgate.kube.access import Access
from lockgate.kube.cache import PodCache
from lockgate.kube.client import Client, Query
from lockgate.kube.resources import PODS

def resident_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

async def main():
    before = resident_bytes()
    async with Client(Access(sys.argv[1]), context()) as client, PodCache(client, Query(PODS)) as cache:
        await cache.synced.wait()
        print(len(cache), resident_bytes() - before)

asyncio.run(main())
"""
TESTS = Path(__file__).parents[2]


def _pod(number: int) -> Object:
    """A pod as large as a real one: managed fields, environment, labels, an annotation."""
    environment = [{"name": f"E{each}", "value": "v" * 20} for each in range(20)]
    meta: dict[str, Any] = {"labels": {"app": f"app-{number % 200}", "team": "x"}, "annotations": {"note": f"{number}" + "y" * 200}}
    item = pod(f"app-{number}", f"ns-{number % 20}", ip=f"10.0.{number // 250}.{number % 250}", nodeName=f"node-{number % 50}", **meta)
    item["spec"]["containers"][0]["env"] = environment
    item["metadata"]["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{number % 200}-abc", "uid": "u"}]
    return {"apiVersion": "v1", "kind": "Pod"} | item


async def test_five_thousand_pods_cost_less_than_20_mb() -> None:
    """10-11 MB when this was written, on top of 31 MB for aiohttp, msgspec and pydantic."""
    async with sample() as (store, access):
        for number in range(5000):
            apply(store, _pod(number))
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MEASURE, access.url, stdout=asyncio.subprocess.PIPE, env=environment
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    count, size = map(int, output.split())
    assert count == 5000 and size < 20e6
