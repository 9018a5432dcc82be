"""The program: a configuration becomes components, the components a graph, and the graph runs until it is told to stop."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from lockgate.batch import Signal
from lockgate.collector.config import Configuration, Configured, Pipeline
from lockgate.collector.host import ProgramHost
from lockgate.collector.telemetry import MetricsServer, set_up_logging
from lockgate.kit.clock import Clock, SystemClock
from lockgate.kit.metrics import Metrics
from lockgate.pipeline.contract import Component, Connector, Consumer, Context, Kind, Processor, Receiver, Status
from lockgate.pipeline.fan_out import Fork, fan_out
from lockgate.pipeline.graph import running
from lockgate.sending.durable import PipelineQueue
from lockgate.sending.exporter import QueuedExporter

log = logging.getLogger("lockgate.service")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class Program:
    """One configuration's components, wired. Building does no I/O; `run` does."""

    def __init__(self, configuration: Configuration, clock: Clock | None = None) -> None:
        self.configuration = configuration
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.host = ProgramHost()
        self.components: list[Component[Any]] = []
        """In the order of entering: extensions, exporters, then each pipeline against the flow, receivers last."""
        self.host.add_status("service", Status(self.clock))
        self._build()

    def _make(self, configured: Configured, pipeline: Pipeline | None = None) -> Component[Any]:
        key = configured.key + (f"@{pipeline.id}" if pipeline else "")
        context = self._context(configured.id, configured.kind, key, pipeline)
        component = configured.component(configured.settings, context)
        self.host.add_status(key, context.status)
        self.host.add(key, component)
        self.components.append(component)
        return component

    def _context(self, id: str, kind: Kind, key: str, pipeline: Pipeline | None = None) -> Context:
        return Context(
            id,
            kind,
            self.host,
            logging.getLogger(f"lockgate.{key}"),
            self.metrics,
            self.clock,
            Status(self.clock),
            pipeline.signal if pipeline else None,
            pipeline.id if pipeline else "",
        )

    def _build(self) -> None:
        used = self.configuration.used()
        for configured in used:
            if configured.kind is Kind.EXTENSION:
                self._make(configured)
        queues_at = len(self.components)
        consumers: dict[str, Any] = {c.id: self._make(c) for c in used if c.kind is Kind.EXPORTER}
        queues = {pipeline.id: self._queues(pipeline, consumers) for pipeline in self.configuration.pipelines}
        # Before the exporters that they feed, so that these stop first, and what they have delivered is still noted.
        self.components[queues_at:queues_at] = [queue for several in queues.values() for queue in dict.fromkeys(several.values())]
        connectors = {c.id: c for c in used if c.kind is Kind.CONNECTOR}
        heads: dict[str, Consumer] = {}
        joined, crossed = self.configuration.forks()
        waiting = list(self.configuration.pipelines)
        while waiting:
            # A connector is made once every pipeline that it feeds is, so that entering runs against the flow; there is no cycle.
            for id, configured in connectors.items():
                fed = [pipeline.id for pipeline in self.configuration.pipelines if id in pipeline.receivers]
                if id not in consumers and all(name in heads for name in fed):
                    connector = self._make(configured)
                    assert isinstance(connector, Connector)
                    connector.outputs = {name: heads[name] for name in fed}
                    consumers[id] = connector
            ready = next(pipeline for pipeline in waiting if all(id in consumers for id in pipeline.exporters))
            waiting.remove(ready)
            ahead = list(dict.fromkeys(queues[ready.id].get(id, consumers[id]) for id in ready.exporters))
            if ready.id in crossed:
                ahead = [Fork(ready.id, it) if isinstance(it, Connector) else it for it in ahead]
            heads[ready.id] = self._chain(ready, ahead)
        for configured in used:
            if configured.kind is Kind.RECEIVER:
                self._receive(configured, heads)
                behind = self.configuration.behind(configured.id)
                holders = [queues[pipeline.id].get(id) for pipeline, id in behind]
                # What one way has brought is no sign of what the other has: nothing counts as durable there, and may come twice.
                is_sure = not any(pipeline.id in joined for pipeline, _ in behind)
                self.host.add_behind(configured.id, [*dict.fromkeys(holders), *([] if is_sure else [None])])

    def _queues(self, pipeline: Pipeline, exporters: Mapping[str, Component[Any]]) -> dict[str, PipelineQueue]:
        """The queues on disk that this pipeline's exporters share, by exporter."""
        by_storage: dict[str, list[QueuedExporter[Any]]] = {}
        for exporter in (exporters.get(id) for id in pipeline.exporters):
            if isinstance(exporter, QueuedExporter) and exporter.queued_in:
                by_storage.setdefault(exporter.queued_in, []).append(exporter)
        queues: dict[str, PipelineQueue] = {}
        for storage, several in by_storage.items():
            key = f"service/queue/{pipeline.id}" + (f"@{storage}" if len(by_storage) > 1 else "")
            context = self._context(pipeline.id, Kind.EXPORTER, key, pipeline)
            queue = PipelineQueue(context, storage, several)
            self.host.add_status(key, context.status)
            self.host.add(key, queue)
            queues |= {exporter.context.id: queue for exporter in several}
        return queues

    def _chain(self, pipeline: Pipeline, exporters: list[Consumer]) -> Consumer:
        head = fan_out(exporters, self.clock)
        for id in reversed(pipeline.processors):
            processor = self._make(self.configuration.components[Kind.PROCESSOR, id], pipeline)
            assert isinstance(processor, Processor)
            processor.next = head
            head = processor
        return head

    def _receive(self, configured: Configured, heads: dict[str, Consumer]) -> None:
        receiver = self._make(configured)
        assert isinstance(receiver, Receiver)
        for kind in Signal:
            fed = [heads[p.id] for p in self.configuration.pipelines if p.signal is kind and configured.id in p.receivers]
            if fed:
                receiver.outputs[kind] = fan_out(fed, self.clock)

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Runs until `stop` is set, then drains; raises what ended it otherwise."""
        service = self.configuration.service
        async with AsyncExitStack() as stack:
            stack.callback(self.host.close)
            if (prometheus := service.telemetry.metrics.prometheus()) is not None:
                await stack.enter_async_context(MetricsServer(prometheus, self._context("telemetry", Kind.EXTENSION, "service/telemetry")))
            starting = self.host.statuses["service"]
            starting.block("not everything is started yet")
            await stack.enter_async_context(running(self.components, service.shutdown_timeout))
            starting.clear()
            self._process_metrics()
            log.info("everything is ready: %d components in %d pipelines", len(self.components), len(self.configuration.pipelines))
            if on_ready:
                on_ready()
            await stop.wait()
            log.info("stopping: receivers first, then what is under way drains for at most %g s", service.shutdown_timeout)
        log.info("stopped")

    def _process_metrics(self) -> None:
        started = self.clock.monotonic()
        observe = partial(self.metrics.observe, kind="counter")
        observe("otelcol_process_uptime", "seconds since start", lambda: self.clock.monotonic() - started)
        observe("otelcol_process_cpu_seconds", "CPU seconds used, user and system", lambda: sum(os.times()[:2]))
        self.metrics.observe("otelcol_process_memory_rss", "resident memory in bytes", resident_bytes)


def run(configuration: Configuration) -> int:
    """Runs the configuration in this process until a signal ends it; the exit status.

    SIGTERM and SIGINT drain within service.shutdown_timeout; a second one ends at once.
    """
    telemetry = configuration.service.telemetry
    set_up_logging(telemetry.logs, telemetry.resource)
    for warning in configuration.warnings:
        log.warning("%s", warning)
    tune_memory()
    try:
        asyncio.run(_run_until_signal(configuration))
    except Exception as error:
        for leaf in _leaves(error):
            # An OSError is about the machine (a port, a file) and says what to do; anything else is our own bug and shows where.
            text = "; ".join((*getattr(leaf, "__notes__", ()), str(leaf) or repr(leaf)))
            log.error("ended: %s", text, exc_info=None if isinstance(leaf, OSError | LookupError) else leaf)
        return 1
    return 0


async def _run_until_signal(configuration: Configuration) -> None:
    stop = asyncio.Event()

    def end(number: int) -> None:
        if stop.is_set():
            log.error("second signal: ending at once; what was not acknowledged will be sent again by whoever holds it")
            logging.shutdown()
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    program = Program(configuration)
    started = asyncio.ensure_future(program.run(stop))
    # A start that hangs (a name that does not resolve, a mount that does not answer) ends at the first signal as well.
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        await asyncio.wait({started}, timeout=configuration.service.shutdown_timeout + 5)
        started.cancel()
    stopping.cancel()
    await started


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def tune_memory() -> None:
    """Keeps large buffers in the process: glibc otherwise maps and unmaps each one (1-4 times the cost of a batch, measured).

    And freezes what start-up made, so that the collector of cycles does not walk it again and again.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_M_MMAP_THRESHOLD, 64 << 20)
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)
            mallopt(_M_ARENA_MAX, 2)
    gc.collect()
    gc.freeze()
    # At exit what is frozen must be collectable again, or extension modules (DuckDB's nanobind) report all they own as leaked.
    atexit.register(gc.unfreeze)


def resident_bytes() -> float:
    """This process's resident memory."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
