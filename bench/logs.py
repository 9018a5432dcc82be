"""Logs from file to backend, against peers in the same minutes: `make bench`, or `python bench/logs.py [PART...] [--quick]`.

    throughput  one big file; lines per CPU second of the agent
    paced       110 files at 100 lines/s: CPU of each tier, age of the records when they arrive; agent alone, then agent and metadata role
    metadata    the metadata role fed with batches; records per CPU second
    durable     the queue on disk: alone, the agent with it against the agent without, and how fast a backlog leaves
    size        resident memory with 500 files, with the backend down, and CPU and memory with 1,000 idle files

Everything runs on this machine, each program as a process of its own; the generators and the backend (sink.py) are not counted. A row's
ratio is Lockgate's figure over the peer's of the same part.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import agents
from agents import Agent, fresh
from generate import big_file, log_path, message, pod, records
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from processes import HERE, Cluster, Failed, Process, Server, Sink, free_port, wait_until

from lockgate.batch import Batch, Signal


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    lines: int = 4_000_000
    paced_seconds: float = 20.0
    metadata_records: int = 4_000_000
    idle_seconds: float = 30.0
    busy_seconds: float = 30.0
    repeats: int = 3
    every_row: bool = True
    """Whether variants of Lockgate, and the peers' sizes, are measured too."""


QUICK = Sizes(800_000, paced_seconds=5.0, metadata_records=800_000, idle_seconds=5.0, busy_seconds=5.0, repeats=1, every_row=False)
PACED_FILES, PACED_LINES_PER_SECOND = 110, 11_000
PODS = 1000
_ACCEPTED = "otelcol_receiver_accepted_log_records"
BATCH_RECORDS, BATCH_RESOURCES = 8192, 110
LABELLING = Agent("lockgate with the pods' labels", agents.lockgate_agent(labels=True))


@dataclass(slots=True)
class Table:
    """Rows as they come, printed at once; figures that others are compared with are kept by name."""

    firsts: dict[str, float] = field(default_factory=dict)

    def row(self, part: str, what: str, figures: str, ratio: str = "", aim: str = "") -> None:
        """One line of the table."""
        print(f"| {part:10} | {what:44} | {figures:52} | {ratio:>8} | {aim:28} |", flush=True)

    def rate(self, part: str, what: str, per_second: float, more: str, aim: str = "") -> None:
        """A rate; the first of a part is what the others are compared with."""
        ours = self.firsts.setdefault(part, per_second)
        self.row(part, what, f"{per_second:,.0f} per CPU s; {more}", "" if ours is per_second else f"{ours / per_second:.1f}x", aim)


class Bench:
    """The parts."""

    def __init__(self, work: Path, sizes: Sizes, table: Table) -> None:
        self.work, self.sizes, self.table = work, sizes, table

    def _agents(self, part: str, more: Sequence[Agent] = ()) -> Iterator[Agent]:
        """Those that can be run here; a row says why another cannot."""
        for agent in [*agents.agents(), *more]:
            if agent.missing:
                self.table.row(part, agent.name, f"skipped: {agent.missing}")
            elif part == "paced" or not agent.only_paced:
                yield agent

    def throughput(self) -> None:
        """(a) One big file, put in place while the agent waits: its start is not counted."""
        lines = self.sizes.lines
        for share in sorted({agent.share for agent in agents.agents()}):
            big_file(self.work / f"big-{share}", int(lines * share))
        extra = [LABELLING, Agent("lockgate, merged to 32k lines a batch", agents.lockgate_agent(32_768))]
        for agent in self._agents("throughput", extra if self.sizes.every_row else []):
            count = int(lines * agent.share)
            runs = [self._one_big_file(agent, self.work / f"big-{agent.share}", count) for _ in range(self.sizes.repeats)]
            cpu, wall, rss, batch, size = min(runs)
            aim = {"lockgate": "1,000,000", "otelcol": "30x", "vlagent": "5x"}.get(agent.name, "")
            more = f"{count / wall:,.0f}/s, {batch:,.0f} a batch, {size:.0f} B each, {rss:.0f} MB"
            self.table.rate("throughput", agent.name, count / cpu, more, aim)

    def _one_big_file(self, agent: Agent, file: Path, lines: int) -> tuple[float, float, float, float, float]:
        """CPU seconds, wall seconds, peak MB, records a request, compressed bytes a record."""
        root, own = fresh(self.work / "pods"), fresh(self.work / "agent")
        (path := root / log_path(pod(0))).parent.mkdir(parents=True)
        with Sink(self.work) as sink, agent.start(own, root, sink.url) as process:
            time.sleep(1)
            before, began = process.cpu_seconds(), time.monotonic()
            os.link(file, path)
            expected = records(lines)
            wait_until(lambda: sink.stats()["records"] >= expected, 300, f"{expected} records at the backend", process, sink)
            wall = time.monotonic() - began
            time.sleep(1.2)  # the checkpoint belongs to the work
            stats = sink.stats()
            if stats["records"] != expected:
                raise Failed(f"{agent.name} sent {stats['records']:,} records where {expected:,} were written")
            cpu, size = process.cpu_seconds() - before, stats["wire_bytes"] / expected
            return cpu, wall, process.rss_mb(peak=True), expected / stats["requests"], size

    def paced(self) -> None:
        """(b) Many files at a pace."""
        for agent in self._agents("paced", [LABELLING] if self.sizes.every_row else []):
            with Sink(self.work) as sink:
                self._pace(f"{agent.name} agent", agent, None, sink, sink.url)
            if agent.name not in ("lockgate", "otelcol"):
                continue  # nothing of its kind plays the metadata role
            with Cluster(self.work, PODS) as cluster, Sink(self.work) as sink:
                port, own = free_port(), fresh(self.work / "metadata")
                start = (
                    agents.lockgate_metadata(own, f"127.0.0.1:{port}", sink.url, cluster.url)
                    if agent.name == "lockgate"
                    else agents.otelcol_metadata(own, f"127.0.0.1:{port}", sink.url, cluster.kubeconfig)
                )
                with start as metadata:
                    self._pace(f"{agent.name} agent, metadata", agent, cluster.pods(), sink, f"http://127.0.0.1:{port}", metadata)

    def _pace(self, name: str, agent: Agent, pods: list[dict[str, str]] | None, sink: Sink, url: str, *behind: Server) -> None:
        root, own = fresh(self.work / "pods"), fresh(self.work / "agent")
        files = make_files(root, PACED_FILES, pods)
        seconds = self.sizes.paced_seconds
        with agent.start(own, root, url) as process:
            with writing(self.work, root, files, PACED_LINES_PER_SECOND, seconds + 3):
                time.sleep(2)
                with sink.timed():
                    tiers = [process, *behind]
                    before = [tier.cpu_seconds() for tier in tiers]
                    time.sleep(seconds)
                    shares = [100 * (tier.cpu_seconds() - cpu) / seconds for tier, cpu in zip(tiers, before, strict=True)]
                stats = sink.stats()
            cores = " + ".join(f"{share:.1f}%" for share in shares)
            sizes = " + ".join(f"{tier.rss_mb(peak=True):.0f}" for tier in tiers)
            ages = f"p50 {stats['p50']:.0f} p99 {stats['p99']:.0f} ms"
            figures = f"{stats['records'] / seconds:,.0f} lines/s: {cores} of a core; {ages}; {sizes} MB"
            ours = self.table.firsts.setdefault(f"paced {len(tiers)}", sum(shares))
            aim = "3% a tier, p99 300 ms" if agent.name == "lockgate" else ""
            self.table.row("paced", name, figures, f"{sum(shares) / ours:.1f}x" if ours != sum(shares) else "", aim)

    def metadata(self) -> None:
        """(c) The metadata role at full speed."""
        runs: list[tuple[str, float, Callable[[Path, str, str, Cluster], Server], str]] = [
            ("lockgate", 1.0, lambda own, at, sink, cluster: agents.lockgate_metadata(own, at, sink, cluster.url), "900,000"),
            (
                "otelcol (without source)",
                0.1,
                lambda own, at, sink, cluster: agents.otelcol_metadata(own, at, sink, cluster.kubeconfig),
                "10x",
            ),
            (
                "lockgate, without source",
                1.0,
                lambda own, at, sink, cluster: agents.lockgate_metadata(own, at, sink, cluster.url, source=False),
                "",
            ),
        ]
        for name, share, start, aim in runs if self.sizes.every_row else runs[:2]:
            if name.startswith("otelcol") and (why := agents.missing("otelcol")):
                self.table.row("metadata", name, f"skipped: {why}")
                continue
            count = int(self.sizes.metadata_records * share) // BATCH_RECORDS * BATCH_RECORDS
            found = [self._feed(start, count) for _ in range(self.sizes.repeats)]
            cpu, wall, rss, size = min(found)
            self.table.rate("metadata", name, count / cpu, f"{count / wall:,.0f}/s, {size:.0f} B each, {rss:.0f} MB", aim)

    def _feed(self, start: Callable[[Path, str, str, Cluster], Server], count: int) -> tuple[float, float, float, float]:
        """CPU seconds, wall seconds, peak MB, compressed bytes a record."""
        port, own = free_port(), fresh(self.work / "metadata")
        with Cluster(self.work, PODS) as cluster, Sink(self.work) as sink:
            cluster.pods()
            with start(own, f"127.0.0.1:{port}", sink.url, cluster) as process:

                def load(records: int) -> None:
                    url, pods = f"http://127.0.0.1:{port}/v1/logs", self.work / "pods.json"
                    command = [sys.executable, HERE / "load.py", url, pods, records, BATCH_RECORDS, BATCH_RESOURCES]
                    with Process("load", [str(part) for part in command], self.work / "load.log") as sender:
                        sender.wait(300)
                    wait_until(lambda: sink.stats()["records"] >= records, 60, f"{records} records at the backend", process, sink)

                load(16 * BATCH_RECORDS)  # every resource once: start-up and first look-ups are not the steady state
                sink.stats(reset=True)
                before, began = process.cpu_seconds(), time.monotonic()
                load(count)
                wall, size = time.monotonic() - began, sink.stats()["wire_bytes"] / count
                return process.cpu_seconds() - before, wall, process.rss_mb(peak=True), size

    def durable(self) -> None:
        """(e) The queue on disk."""
        self._journal()
        lines = self.sizes.lines
        big_file(self.work / "big-1.0", lines)
        rates = {}
        for name, start, aim in (
            ("lockgate, queue in memory", agents.lockgate_agent(), ""),
            ("lockgate, queue on disk", agents.lockgate_agent(is_durable=True), "70% of memory"),
        ):
            runs = [self._one_big_file(Agent(name, start), self.work / "big-1.0", lines) for _ in range(self.sizes.repeats)]
            cpu, wall, rss, _, _ = min(runs)
            rates[name] = lines / cpu
            share = f"{100 * rates[name] / next(iter(rates.values())):.0f}%"
            self.table.row("durable", name, f"{lines / cpu:,.0f} per CPU s; {lines / wall:,.0f}/s, {rss:.0f} MB", share, aim)
        self._drain(lines)

    def _journal(self) -> None:
        """The files alone: write, sync, read back, of batches as the agent makes them."""
        from lockgate.sending.notes import Outcome
        from lockgate.sending.segments import Journal, Settlement

        body = b"".join(otlp_line(number) for number in range(BATCH_RECORDS))
        batches = [Batch(Signal.LOGS, body, BATCH_RECORDS, f"bench-{number}") for number in range(400)]
        log = logging.getLogger("bench")
        directory = fresh(self.work / "journal")
        journal = Journal(directory / "queue", log, ["out"])
        journal.open()
        began = time.monotonic()
        for first in range(0, len(batches), 4):
            journal.append(batches[first : first + 4])
        wrote = time.monotonic() - began
        journal.close()
        began = time.monotonic()
        journal = Journal(directory / "queue", log, ["out"])
        journal.open()
        opened = time.monotonic() - began
        began = time.monotonic()
        while (loaded := journal.load("out", 16 << 20)).entries:
            journal.settle([Settlement("out", ref, batch, Outcome()) for ref, batch in loaded.entries])
        read = time.monotonic() - began
        journal.close()
        size, count = sum(len(batch.payload) for batch in batches) / 2**20, len(batches) * BATCH_RECORDS
        self.table.row("durable", "journal: write and sync", f"{size / wrote:,.0f} MiB/s, {count / wrote:,.0f} records/s")
        self.table.row("durable", "journal: read back and settle", f"{size / read:,.0f} MiB/s, {count / read:,.0f} records/s")
        self.table.row("durable", f"journal: open {size:,.0f} MiB of payload", f"{1000 * opened:.1f} ms")

    def _drain(self, lines: int) -> None:
        """A backlog of the big file, then a backend."""
        root, own = fresh(self.work / "pods"), fresh(self.work / "agent")
        sink_port, metrics = free_port(), free_port()
        start, expected = agents.lockgate_agent(is_durable=True, metrics_port=metrics), records(lines)

        def accepted() -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as answer:
                return sum(float(line.split()[-1]) for line in answer.read().decode().splitlines() if line.startswith(_ACCEPTED))

        with start(own, root, f"http://127.0.0.1:{sink_port}") as process:
            (path := root / log_path(pod(0))).parent.mkdir(parents=True)
            os.link(self.work / "big-1.0", path)
            wait_until(lambda: accepted() >= expected, 120, "everything in the queue", process)
            with Sink(self.work, sink_port) as sink:
                wait_until(lambda: sink.stats()["records"], 30, "the first records", process)
                began, before = time.monotonic(), sink.stats()["records"]
                wait_until(lambda: sink.stats()["records"] >= expected, 120, "everything at the backend", process, sink)
                rate = (expected - before) / (time.monotonic() - began)
            figures = f"{rate:,.0f} lines/s, {process.rss_mb(peak=True):.0f} MB"
            self.table.row("durable", f"a backlog of {expected:,} lines leaves", figures, f"{rate / 10_000:.0f}x", "5x of 10,000 lines/s")

    def size(self) -> None:
        """(d) Memory, and what doing nothing costs."""
        for agent in self._agents("size"):
            if agent.name != "lockgate" and not self.sizes.every_row:
                continue
            ours = agent.name == "lockgate"
            for what, aim, measure in (
                ("500 files, 10,000 lines/s", "80 MB", partial(self._busy, agent, 500, down=False)),
                ("500 files, backend down", "150 MB", partial(self._busy, agent, 500, down=True)),
                ("1,000 idle files", "1%, 50 MB", partial(self._idle, agent, 1000)),
            ):
                try:
                    figures = measure()
                except Failed as error:
                    if ours:
                        raise
                    figures = f"failed: {error}".partition("\n")[0]
                self.table.row("size", f"{agent.name}, {what}", figures, aim=aim if ours else "")

    def _busy(self, agent: Agent, count: int, down: bool) -> str:
        root, own = fresh(self.work / "pods"), fresh(self.work / "agent")
        files = make_files(root, count)
        seconds = self.sizes.busy_seconds
        with Sink(self.work) as sink:
            url = f"http://127.0.0.1:{free_port()}" if down else sink.url
            with agent.start(own, root, url) as process, writing(self.work, root, files, 10_000, seconds + 1):
                time.sleep(seconds)
                return f"at most {process.rss_mb(peak=True):.0f} MB in {seconds:.0f} s"

    def _idle(self, agent: Agent, count: int) -> str:
        root, own = fresh(self.work / "pods"), fresh(self.work / "agent")
        for number, name in enumerate(make_files(root, count)):
            big_file(root / name, 20, seed=number)
        with Sink(self.work) as sink, agent.start(own, root, sink.url) as process:
            expected = count * records(20)
            wait_until(lambda: sink.stats()["records"] >= expected, 60, f"{expected} records at the backend", process, sink)
            time.sleep(8)  # the container operator waits 5 s for a last part
            before, seconds = process.cpu_seconds(), self.sizes.idle_seconds
            time.sleep(seconds)
            share = 100 * (process.cpu_seconds() - before) / seconds
            return f"{share:.2f}% of a core; {process.rss_mb():.0f} MB, at most {process.rss_mb(peak=True):.0f} MB"


def otlp_line(number: int) -> bytes:
    """One log record as an export request of its own: they concatenate."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=1_700_000_000_000_000_000 + number)
    record.body.string_value = message(random.Random(number)).decode()
    return bytes(request.SerializeToString())


def make_files(root: Path, count: int, pods: list[dict[str, str]] | None = None) -> list[str]:
    """Empty log files of so many pods, as paths below the root."""
    names = []
    for number in range(count):
        name = log_path(pods[number] if pods else pod(number))
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
        names.append(name)
    return names


def writing(work: Path, root: Path, files: list[str], lines_per_second: float, seconds: float) -> Process:
    """A process that writes to these files."""
    command = [sys.executable, HERE / "generate.py", root, str(lines_per_second), str(seconds), *files]
    return Process("writer", command, work / "writer.log")


def machine() -> Iterator[str]:
    """What this was measured on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    yield f"{os.cpu_count()} cores ({model}), load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, Linux {platform.release()}"
    yield "CPU seconds are user and system of all threads; the best of the runs is shown, because others share this machine"


def main() -> int:
    """Runs the parts that are asked for; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = {name: getattr(Bench, name) for name in ("throughput", "paced", "metadata", "durable", "size")}
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rows and one run each: two minutes, and noisier")
    parser.add_argument("--lines", type=int, help="lines of the big file")
    parser.add_argument("--repeats", type=int, help="runs of each throughput and metadata row")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    sizes = QUICK if arguments.quick else Sizes()
    changes = {"lines": arguments.lines, "repeats": arguments.repeats}
    sizes = Sizes(**{name: changes.get(name) or getattr(sizes, name) for name in Sizes.__dataclass_fields__})
    table, status = Table(), 0
    for line in machine():
        print(line)
    table.row("part", "what", "figure", "ratio", "aim")
    with TemporaryDirectory(prefix="lockgate-bench-") as work:
        for name, part in parts.items():
            if arguments.parts and name not in arguments.parts:
                continue
            try:
                part(Bench(Path(work), sizes, table))
            except Failed as error:
                table.row(name, f"failed: {error}", "")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
