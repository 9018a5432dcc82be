"""The events role with its queue on disk, killed again and again, between an API server that forgets and a backend that refuses."""

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest
from support.backend import Backend, bodies_of
from support.events_contract import event
from support.kubernetes import Faults, sample
from support.process import Role, free_port, until

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import EVENTS
from lockgate.sample.kubernetes_store import ObjectStore

KILLS = 10


def received(backend: Backend) -> dict[str, list[str]]:
    """Batch ids by the event's message, in order of arrival."""
    ids: dict[str, list[str]] = defaultdict(list)
    for _, headers, message in list(backend.requests):
        for body in bodies_of(message):
            ids[body].append(headers["x-lockgate-batch-id"])
    return ids


async def test_killed_at_random_moments_it_loses_no_event_and_repeats_only_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.sample.kubernetes_store.MAX_EVENTS", 100_000)
    dice = random.Random(20261123)
    store, faults, said = ObjectStore(SystemClock()), Faults(), 0
    stopping = asyncio.Event()

    async def writes() -> None:
        nonlocal said
        while not stopping.is_set():
            for _ in range(dice.randint(1, 20)):
                store.create(EVENTS, event(f"e{said}"))
                said += 1
            await asyncio.sleep(dice.uniform(0, 0.1))

    with Backend() as backend:
        async with sample(store, faults) as (_, access):
            environment = {
                "LOCKGATE_HOST": "127.0.0.1",
                "LOCKGATE_METRICS_PORT": str(free_port()),
                "LOCKGATE_KUBE_AUTH": "none",
                "LOCKGATE_KUBE_API": access.url,
                "LOCKGATE_BACKEND_URL": backend.url,
            }
            settings = (
                "receivers: {raw_k8s_events: {max_event_age: 1h}}\nexporters: {sumologic: {retry_on_failure: {initial_interval: 20ms}}}"
            )
            role = Role(tmp_path / "role", settings, environment, preset="events", expect_ready=False)
            writing, lists = asyncio.create_task(writes()), 0
            try:
                for number in range(KILLS):
                    backend.status = dice.choice([200, 200, 503])
                    if forgets := number % 3 != 1:
                        before = said
                        while said == before:  # one that the role has not seen
                            await asyncio.sleep(0.01)
                        store.compact()
                    await asyncio.to_thread(role.start)
                    if forgets:
                        await faults.asked(limit="500")
                        lists += 1
                    await asyncio.sleep(dice.uniform(0, 0.5))
                    faults.cut()
                    await asyncio.to_thread(role.kill)
                backend.status = 200
                stopping.set()
                await writing
                await asyncio.to_thread(role.start)
                await until(lambda: len(received(backend)) == said, 60, f"{said} events")
                assert await asyncio.to_thread(role.stop) == 0
            finally:
                writing.cancel()
                await asyncio.to_thread(role.kill)
    found = received(backend)
    assert set(found) == {f"said by e{number}" for number in range(said)}
    assert [body for body, ids in found.items() if len(set(ids)) > 1] == []
    assert said > 500 and lists >= KILLS // 2
