"""The ledger over kills: agents that are killed again and again while pods write and rotate, and a backend that refuses some; each file's
lines are accounted for, to the last one, and `lockgate where` says so."""

import copy
import gzip
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend, bodies_of
from support.faults.accounts import FATES, LINES, ledger_faults
from support.process import Role, lockgate, wait_until

CONFIG = """
receivers:
  filelog:
    include: ["{pods}/*/*/*.log"]
    start_at: beginning
    storage: file_storage
    poll_interval: 20ms
    operators: [{{type: container}}]
processors:
  filter: {{logs: {{exclude: {{match_type: regexp, bodies: [" noise "]}}}}}}
exporters:
  otlphttp:
    endpoint: "{url}"
    sending_queue: {{storage: file_storage, num_consumers: 3}}
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
extensions:
  health_check: {{}}
  file_storage: {{directory: "{state}", create_directory: true}}
  ledger: {{endpoint: "127.0.0.1:0", state_directory: "{state}"}}
service:
  extensions: [health_check, file_storage, ledger]
  pipelines: {{logs: {{receivers: [filelog], processors: [filter], exporters: [otlphttp]}}}}
"""
PODS = ("web-0", "web-1", "db-0")
KILLS = 8


class Pod:
    """One container's log: writes, in parts now and then, and rotates as a kubelet does."""

    def __init__(self, pods: Path, name: str, dice: random.Random) -> None:
        self.name, self.dice = name, dice
        self.directory = pods / f"shop_{name}_00000000-0000-0000-0000-{len(name):012}" / "main"
        self.directory.mkdir(parents=True)
        self.log = self.directory / "0.log"
        self._open()
        self.written: Counter[str] = Counter()
        self.rotations = 0

    def write(self) -> None:
        number = self.written["records"] + self.written["filtered"]
        kind = "noise" if number % 5 == 0 else "poison" if number % 97 == 3 else "line"
        head = f"2026-01-01T00:00:{number % 60:02}.{number:09}Z stdout"
        for part in range(number % 11 == 0 and self.dice.randint(1, 3)):
            self.file.write(f"{head} P {self.name} part {part} ")
            self.file.write("\n")
            self.written["joined"] += 1
        self.file.write(f"{head} F {self.name} {kind} {number}\n")
        self.written["filtered" if kind == "noise" else "records"] += 1

    def rotate(self) -> None:
        """The newest rotated file stays as it is until the next rotation."""
        for raw in self.directory.glob("0.log.*"):
            if raw.suffix != ".gz":
                with gzip.open(f"{raw}.tmp", "wb") as packed:
                    packed.write(raw.read_bytes())
                Path(f"{raw}.tmp").rename(f"{raw}.gz")
                raw.unlink()
        self.log.rename(self.directory / f"0.log.20260101-{self.rotations:06}")
        self.file.close()
        self._open()
        self.rotations += 1

    def _open(self) -> None:
        self.file = self.log.open("a", buffering=1)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[Pod]]:
    made = [Pod(tmp_path / "pods", name, random.Random(name)) for name in PODS]
    yield made
    for pod in made:
        pod.file.close()


def ask(state: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = lockgate("where", *arguments, "--state", str(state), "--output", "json")
    return done.returncode, json.loads(done.stdout)[state.name] if done.stdout else {}


def total(container: dict[str, Any]) -> Counter[str]:
    """All counts of a container's files, also of those that are gone."""
    found: Counter[str] = Counter()
    for counts in [*(file["queues"]["logs"] for file in container["files"]), *container["gone"].values()]:
        found.update({key: counts[key] for key in ("read", "records", "joined", "filtered", "under_way", "waiting_to_be_joined")})
        for fates in counts["exporters"].values():
            found.update({key: fates[key] for key in ("queued", "delivered", "pending", "damaged")})
            found.update({f"rejected {reason}": records for reason, records in fates["rejected"].items()})
    return found


def others(answer: Any) -> Iterator[tuple[str, Any]]:
    """Where, and the answer with one of its counts of lines, records or lost bytes one higher."""
    counts = {*LINES, *FATES, "unread_bytes", "lost_bytes"}

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in items:
            if isinstance(each, int) and (key in counts or path[-1:] == ("rejected",)):
                yield (*path, key)
            yield from places(each, (*path, key))

    for *path, key in places(answer, ()):
        other = copy.deepcopy(answer)
        target = other
        for step in path:
            target = target[step]
        target[key] += 1
        yield "/".join(map(str, (*path, key))), other


def of(messages: list[Any], pod: Pod) -> set[str]:
    return {body for message in messages for body in bodies_of(message) if body.split()[0] == pod.name}


def test_over_kills_rotations_and_refusals_every_line_of_every_file_is_accounted_for(tmp_path: Path, pods: list[Pod]) -> None:
    dice = random.Random(20261123)
    state = tmp_path / "state"
    stopping = threading.Event()
    pace = threading.Lock()

    def write() -> None:
        while not stopping.wait(0.004):
            with pace:
                for pod in pods:
                    pod.write()

    with Backend() as backend:
        available = 200
        backend.judge = lambda message: 400 if available == 200 and any("poison" in body for body in bodies_of(message)) else available
        role = Role(tmp_path / "role", CONFIG.format(pods=tmp_path / "pods", url=backend.url, state=state), expect_ready=False)
        writer = threading.Thread(target=write)
        writer.start()
        waited = 0
        try:
            for round_ in range(KILLS):
                available = dice.choice([200, 200, 503])
                role.start()
                time.sleep(dice.uniform(0.1, 0.7))
                waited += any(state.glob("queue*/queue/*.segment"))
                role.kill()
                if round_ % 2:
                    with pace:
                        dice.choice(pods).rotate()
            available = 200
            role.start()
            for pod in pods:
                with pace:
                    pod.rotate()
                time.sleep(0.3)
        finally:
            stopping.set()
            writer.join()
        try:

            def is_done() -> bool:
                counts = [total(it) for it in ask(state)[1].get("containers", ())]
                done = sum(it["read"] for it in counts) >= sum(sum(pod.written.values()) for pod in pods)
                return done and not any(it["pending"] + it["under_way"] for it in counts)

            wait_until(is_done, 40, "every line is delivered or rejected")
            status, answer = ask(state)
            screens = {pod.name: lockgate("where", f"shop/{pod.name}", "--state", str(state)) for pod in pods}
            nobody = lockgate("where", "shop/nobody", "--state", str(state))
            metrics = role.metrics()
            # A kubelet deletes the oldest: what became of it is still known.
            packed = sorted((tmp_path / "pods").rglob("*.gz"))
            before = {it["pod"]: total(it) for it in answer["containers"]}
            for path in packed:
                path.unlink()
            wait_until(lambda: all(it["path"] not in map(str, packed) for each in ask(state)[1]["containers"] for it in each["files"]))
            after = ask(state)[1]["containers"]
            assert {it["pod"]: total(it) for it in after} == before
            assert any(it["gone"] for it in after)
        finally:
            assert role.stop() == 0
    delivered = [message for _, _, message in backend.requests]
    known = {}
    for pod in pods:
        (container,) = (it for it in answer["containers"] if it["pod"] == pod.name)
        assert (container["namespace"], container["container"], container["lost"]) == ("shop", "main", [])
        taken, refused = of(delivered, pod), of(backend.refused, pod)
        assert not taken & refused
        known[pod.name] = {
            **pod.written,
            "read": sum(pod.written.values()),
            "delivered": len(taken),
            "rejected refused": len(refused),
        }
        # Each file by itself: the newest has what was written since its rotation.
        (newest,) = (file for file in container["files"] if file["path"] == str(pod.log))
        assert newest["queues"]["logs"]["read"] == len(pod.log.read_text().splitlines())
        text = screens[pod.name].stdout
        assert screens[pod.name].returncode == 3 and "REJECTED (refused " in text
        assert f"shop/{pod.name}/main" in text and "0.log: read to the end" in text
        assert len(refused) > 5 and len(taken) > 50 and pod.written["joined"] > 10 and pod.written["filtered"] > 10
    # Each pod's lines, and the whole as the sum of its parts, in the answer as in the metrics.
    assert ledger_faults(answer, metrics, known) == []
    # The test of the test: no number could be another.
    altered = list(others(answer))
    assert len(altered) > 100
    for where, other in altered:
        assert ledger_faults(other, metrics, known), where
    assert status == 3
    assert nobody.returncode == 1 and "nothing is known of shop/nobody" in nobody.stderr
    # It is about kills with something in the queue, and about rotated files.
    assert waited and sum(pod.rotations for pod in pods) > len(pods) and packed


def test_what_waits_is_told_and_what_is_gone_unread(tmp_path: Path, pods: list[Pod]) -> None:
    state, pod = tmp_path / "state", pods[0]
    for _ in range(100):
        pod.write()
    with Backend() as backend:
        backend.status = 503
        role = Role(tmp_path / "role", CONFIG.format(pods=tmp_path / "pods", url=backend.url, state=state), expect_ready=False)
        with role:
            pod.file.write("2026-01-01T00:00:00Z stdout P the first part\n")
            wait_until(lambda: ask(state, "shop/web-0")[1]["containers"][0]["files"][0]["queues"]["logs"]["waiting_to_be_joined"] == 1)
            wait_until(lambda: ask(state, "shop/web-0")[1]["queues"]["logs"]["exporters"]["otlphttp"]["pending"] == 80)
            status, answer = ask(state, "shop/web-*/main")
            text = lockgate("where", "shop/web-0", "--state", str(state)).stdout
            (container,) = (it for it in answer["containers"] if it["pod"] == "web-0")
            counts = container["files"][0]["queues"]["logs"]
            assert counts["read"] == sum(pod.written.values()) + 1
            assert (counts["records"], counts["filtered"], counts["waiting_to_be_joined"]) == (80, 20, 1)
            assert counts["exporters"]["otlphttp"]["pending"] == 80 and counts["exporters"]["otlphttp"]["pending_seconds"] < 30
            assert status == 0 and "80 in the queue (for " in text and "bytes not read, the oldest written" in text
            assert {it["pod"] for it in answer["containers"]} == {"web-0", "web-1"}
        # Gone while nobody looked, with a tail that was never read: a gap, which the next process still knows after a kill.
        pod.write()
        pod.file.flush()
        unread = pod.log.stat().st_size
        pod.log.unlink()
        (pod.directory / "0.log").write_text("2026-01-01T00:00:00Z stdout F anew\n")
        role.start()
        wait_until(lambda: ask(state, "shop/web-0")[1]["containers"][0]["lost"])
        role.kill()
        role.start()
        try:
            wait_until(lambda: ask(state, "shop/web-0")[1].get("containers"))
            status, answer = ask(state, "shop/web-0")
            text = lockgate("where", "shop/web-0", "--state", str(state)).stdout
        finally:
            backend.status = 200
            assert role.stop() == 0
    assert unread and status == 3
    (lost,) = answer["containers"][0]["lost"]
    assert lost["path"] == str(pod.log) and lost["times"] + lost["unknown"] == 1
    assert "LOST " in text and "0.log" in text


def test_who_has_no_token_is_told_nothing(tmp_path: Path, pods: list[Pod]) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    state = tmp_path / "state"
    with Backend() as backend, Role(tmp_path / "role", CONFIG.format(pods=tmp_path / "pods", url=backend.url, state=state)):
        access = json.loads((state / "ledger.json").read_text())
        assert (state / "ledger.json").stat().st_mode & 0o777 == 0o600
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(HTTPError, match="401") as refused:
                urlopen(Request(f"http://{access['address']}/where", headers=headers), timeout=5)
            refused.value.close()
        with urlopen(
            Request(f"http://{access['address']}/where", headers={"Authorization": f"Bearer {access['token']}"}), timeout=5
        ) as told:
            assert "web-0" in told.read().decode()
    assert not (state / "ledger.json").exists()
    assert lockgate("where", "--state", str(state)).returncode != 0
