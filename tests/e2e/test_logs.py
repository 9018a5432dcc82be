"""Logs from a real CRI writer through both logs roles to a backend, while files rotate: each line once, whole, in order."""

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend
from support.conmon import needs_conmon, running_container
from support.kubernetes import pod, put, sample
from support.process import Role, free_port, until

from lockgate.kube.resources import NAMESPACES, PODS

pytestmark = needs_conmon

LONG_EVERY = 20
"""Every so many lines one is longer than the 8 KiB that conmon reads at a time, and so is written in parts."""
LONG_BYTES = 9000


def line(number: int) -> str:
    return f"{number:06d} " + "x" * (LONG_BYTES if number % LONG_EVERY == 0 else 100 + number % 50)


def lines(first: int, last: int) -> bytes:
    return "".join(f"{line(number)}\n" for number in range(first, last)).encode()


class Road:
    """Both roles, ready, between `log` (of a pod that the API knows) and `backend`."""

    def __init__(self, log: Path, backend: Backend, collector: Role, metadata: Role) -> None:
        self.log, self.backend, self.collector, self.metadata = log, backend, collector, metadata
        self._counted = self._requests = 0

    @property
    def arrived(self) -> int:
        """Records that reached the backend."""
        requests = self.backend.requests[self._requests :]
        self._requests += len(requests)
        self._counted += sum(len(list(records(message))) for _, _, message in requests)
        return self._counted


def records(message: Any) -> Iterator[tuple[Any, Any]]:
    """(resource, record) of each log record of a request."""
    for resource in message.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield resource.resource, record


def attributes(entity: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in entity.attributes}


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Path]:
    """What plays /var/log/pods: where that can be had a file system of its own, so that nobody else takes the inode numbers."""
    directory, image = tmp_path / "pods", tmp_path / "image"
    directory.mkdir()
    with open(image, "wb") as file:
        file.truncate(256 << 20)
    mounted = False
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, directory], check=True, capture_output=True)
        mounted = True
    yield directory
    if mounted:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
async def road(tmp_path: Path, pods: Path) -> AsyncIterator[Road]:
    async with sample() as (store, access), contextlib.AsyncExitStack() as stack:
        put(store, NAMESPACES, {"metadata": {"name": "shop"}})
        made = put(store, PODS, pod("web-0", "shop", ip="10.1.0.1", labels={"team": "storefront"}))
        directory = pods / f"shop_web-0_{made['metadata']['uid']}" / "main"
        directory.mkdir(parents=True)
        backend = stack.enter_context(Backend())
        kube = {"LOCKGATE_KUBE_AUTH": "none", "LOCKGATE_KUBE_API": access.url, "LOCKGATE_HOST": "127.0.0.1"}
        port = free_port()
        metadata = Role(
            tmp_path / "metadata",
            environment=kube | {"LOCKGATE_BACKEND_URL": backend.url, "LOCKGATE_OTLP_HTTP_PORT": str(port)},
            preset="logs_metadata",
        )
        collector = Role(
            tmp_path / "collector",
            environment={
                "LOCKGATE_LOG_ROOT": str(pods),
                "LOCKGATE_LOGS_METADATA_URL": f"http://127.0.0.1:{port}",
                "LOCKGATE_STATE": str(tmp_path / "state"),
            },
            preset="logs_collector",
        )
        await stack.enter_async_context(metadata)
        await stack.enter_async_context(collector)
        yield Road(directory / "0.log", backend, collector, metadata)


def assert_each_line_once_whole_in_order_and_enriched(road: Road, count: int) -> None:
    got = [each for _, _, message in road.backend.requests for each in records(message)]
    bodies = [record.body.string_value for _, record in got]
    numbers = [int(body[:6]) for body in bodies]
    assert sorted(numbers) == list(range(count))
    for _, _, message in road.backend.requests:  # several are on their way at once, and may overtake each other
        within = [int(record.body.string_value[:6]) for _, record in records(message)]
        assert within == sorted(within), "out of order"
    wrong = [body[:40] for number, body in zip(numbers, bodies, strict=True) if body != line(number)]
    assert not wrong
    assert {attributes(record)["log.file.path"] for _, record in got} == {str(road.log)}
    resources = [attributes(resource) for resource in {id(resource): resource for resource, _ in got}.values()]
    assert {(it["k8s.pod.label.team"], it["k8s.node.name"], it["_sourceName"]) for it in resources} == {
        ("storefront", "node-1", "shop.web-0.main")
    }
    for role in (road.collector, road.metadata):
        metrics = role.metrics()
        assert metrics["otelcol_receiver_accepted_log_records"] == count
        assert metrics["otelcol_exporter_sent_log_records"] == count
    assert {metrics.get(f"lockgate_filelog_{what}", 0) for what in ("gaps", "malformed_lines", "unfinished_records")} == {0}


async def test_lines_survive_a_kubelets_rotations_under_full_speed(road: Road, tmp_path: Path) -> None:
    count, rotated = 24_000, list[Path]()
    async with running_container(road.log, tmp_path / "bundle") as container:
        for first in range(0, count, 4000):
            writing = asyncio.create_task(asyncio.to_thread(container.stdout.write, lines(first, first + 4000)))
            if first:
                # In the middle of writing, as it is always.
                rotated.append(road.log.with_name(f"0.log.20260102-03040{len(rotated)}"))
                await container.rotate(rotated[-1])
            await writing
        await container.exit()
    await until(lambda: road.arrived >= count, 60, "all lines arrived")
    assert_each_line_once_whole_in_order_and_enriched(road, count)
    assert len(rotated) == 5
    parts = sum(path.read_bytes().count(b" stdout P ") for path in rotated)
    assert parts >= count / LONG_EVERY / 2, "few partial lines were written: this test would prove little"
    metrics = road.collector.metrics()  # a file that was rotated before the collector first looked is found, not followed
    assert metrics["lockgate_filelog_rotations"] + metrics["lockgate_filelog_rotated_files_found"] == len(rotated)


async def test_lines_survive_rotations_that_delete_what_was_read(road: Road, tmp_path: Path) -> None:
    """conmon's own maximum size: what is not read while its file has a name is gone, so the writer is never half a file ahead."""
    count, step, size = 20_000, 500, 1 << 20
    assert len(lines(0, step)) * 1.3 < size / 2
    inodes = set[int]()
    async with running_container(road.log, tmp_path / "bundle", log_max_size_bytes=size) as container:
        for first in range(0, count, step):
            await asyncio.to_thread(container.stdout.write, lines(first, first + step))
            await until(lambda first=first: road.arrived >= first, 20, f"line {first} arrived")  # type: ignore[misc]
            inodes.add(road.log.stat().st_ino)
        await container.exit()
    await until(lambda: road.arrived >= count, 60, "all lines arrived")
    assert b" stdout P " in road.log.read_bytes()
    assert len(inodes) >= 8, "few rotations were seen: this test would prove little"
    assert_each_line_once_whole_in_order_and_enriched(road, count)


async def test_a_log_on_an_inode_used_again_while_the_collector_was_down_is_read_from_its_beginning(road: Road, tmp_path: Path) -> None:
    """conmon alternates between two inodes where nobody holds the old file open."""
    short = [number for number in range(3000) if number % LONG_EVERY]
    written = 0

    async def write_more() -> None:
        nonlocal written
        some, written = short[written : written + 20], written + 20  # less than a pipe takes at once, so that no line is split
        await asyncio.to_thread(container.stdout.write, "".join(f"{line(number)}\n" for number in some).encode())
        await until(lambda: road.log.read_bytes().endswith(f"{line(some[-1])}\n".encode()), what="written")

    async with running_container(road.log, tmp_path / "bundle", log_max_size_bytes=30_000) as container:
        await write_more()
        await until(lambda: road.arrived >= 20, what="the first lines arrived")
        inode = road.log.stat().st_ino
        await asyncio.to_thread(road.collector.stop)
        other = False
        while not (other and road.log.stat().st_ino == inode) and written < 2000:
            await write_more()
            other |= road.log.stat().st_ino != inode
        await container.exit()
    if road.log.stat().st_ino != inode:
        pytest.skip("somebody else on this file system has the inode number; a file system of the test's own needs root")
    left = [int(number) for number in re.findall(rb" stdout F (\d{6}) ", road.log.read_bytes())]
    await asyncio.to_thread(road.collector.start)
    await until(lambda: road.arrived >= 20 + len(left), what="what the new file holds")
    got = [record.body.string_value for _, _, message in road.backend.requests for _, record in records(message)]
    assert got == [line(number) for number in [*short[:20], *left]]
