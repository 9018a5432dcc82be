"""The program: runs a configuration until it is told to stop, and changes to another where it is told to read it again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lockgate.collector.assembly import Assembly, TakenBack
from lockgate.collector.config import Configuration
from lockgate.collector.host import ProgramHost
from lockgate.collector.memory import giving_back, resident_bytes, tune_memory
from lockgate.collector.plan import Plan
from lockgate.collector.telemetry import set_up_logging
from lockgate.collector.watchdog import Watchdog, watching
from lockgate.kit.clock import Clock, SystemClock
from lockgate.kit.document import DocumentError
from lockgate.kit.metrics import Metrics
from lockgate.lockdown.privileges import Privileges, look
from lockgate.lockdown.sandbox import RESTART_STATUS, Closed, Sandbox, enter
from lockgate.pipeline.needs import Need, is_covered

T = TypeVar("T")

log = logging.getLogger("lockgate.service")

LOOK_SECONDS = 5.0
"""How often files are looked at that are followed; a kubelet needs a minute or so to bring a ConfigMap's change."""
SETTLED_SECONDS = 300.0
"""How long a process runs before it ends for a directory that was made anew: one that goes and comes all the time must not become a
restart loop. As long as a kubelet's longest back-off between restarts."""


class Program:
    """One configuration's life in this process. Building does no I/O; `run` does."""

    def __init__(
        self,
        configuration: Configuration,
        clock: Clock | None = None,
        load: Callable[[], Configuration] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.last_reload: dict[str, Any] = {}
        """Its outcome, time and reasons, as `/status` shows them; empty before the first."""
        self._privileges: Privileges | None = None
        self._sandbox = sandbox or Sandbox()
        self._closed = frozenset[Closed]()
        """What is needed and there at two looks, and cannot be opened by this process."""
        self._places = _places(configuration)
        self.wants_restart = False
        """Whether it stopped in order to be started again."""
        facts = {
            "sandbox": lambda: {**self._sandbox.status(), "closed_now": sorted(map(str, self._closed))},
            "reload": lambda: self.last_reload,
            "privileges": lambda: self._privileges.status() if self._privileges else {},
        }
        self.host = ProgramHost(self.clock, facts)
        self._wake = asyncio.Event()
        self._load, self._wants_reload = load or (lambda: configuration), False
        self._seen = _stamps(configuration.files)
        """Of the files, as they were when they were read."""
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._trying: asyncio.Future[None] | None = None
        self._granted = [need for _, need in configuration.needs()]
        """What this process was started with; it can have no more."""
        self.assembly = Assembly(configuration, self.host, self.metrics, self.clock, self._wake.set)

    @property
    def configuration(self) -> Configuration:
        """What runs now."""
        return self.assembly.configuration

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Runs until `stop` is set, then drains; raises what ended it otherwise."""
        loop = asyncio.get_running_loop()
        stop_by: list[float] = []

        def begin_to_stop(_: Any) -> None:
            stop_by.append(loop.time() + self._drain_seconds)  # from now on, also where a reload must end first
            self._wake.set()

        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(begin_to_stop)
        try:
            watchdog = Watchdog(lambda: self.host.components, self.metrics, self.clock, log)
            async with watching(watchdog, self.clock):
                self.host.service.block("not everything is started yet")
                self._try_privileges()
                await self.assembly.start()
                self.host.service.clear()
                async with giving_back(self.clock, self.host.executor):
                    self._process_metrics()
                    self._follow_files()
                    if self._sandbox.landlock:
                        self._watching = asyncio.ensure_future(self._watch_places(stop))
                    log.info("everything has started: %s", self._extent())
                    if on_ready:
                        on_ready()
                    while not stop.is_set():
                        await self._wake.wait()
                        self._wake.clear()
                        await self.assembly.retire()
                        if self._wants_reload and not stop.is_set():
                            self._wants_reload = False
                            await self._reload(stop)
                log.info("stopping: receivers first, then what is under way drains for at most %g s", self._drain_seconds)
        finally:
            stopping.cancel()
            for task in filter(None, (self._looking, self._watching, self._trying)):
                task.cancel()
            try:
                await self.assembly.leave(max(0.0, stop_by[0] - loop.time()) if stop_by else self._drain_seconds)
            finally:
                self.host.close()
        log.info("stopped")

    def reload(self) -> None:
        """Asks for the configuration to be read again; several times before it is are once."""
        self._wants_reload = True
        self._wake.set()

    @property
    def _drain_seconds(self) -> float:
        return self.configuration.service.shutdown_timeout

    def _try_privileges(self) -> None:
        """Beside everything else: a disk that does not answer must not hold up more than itself."""

        async def try_them() -> None:
            used = [configured.settings for configured in self.configuration.used()]
            try:
                self._privileges = await self._in_thread(look, used, [need for _, need in self.configuration.needs()])
            except Exception:  # it only reports
                log.exception("cannot try what this process may read; a bug")
            else:
                for level, text in self._privileges.lines(each=False):
                    if self._privileges.has_readers or level > logging.INFO:
                        log.log(level, "%s", text)

        if self._trying is not None:
            self._trying.cancel()  # of the configuration from before
        self._trying = asyncio.ensure_future(try_them())

    def _extent(self) -> str:
        return f"{len(self.host.components)} components in {len(self.configuration.pipelines)} pipelines"

    def _follow_files(self) -> None:
        follows = self.configuration.service.reload == "on_change"
        if follows and self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        elif not follows and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        while True:
            await self.clock.sleep(LOOK_SECONDS)
            if await self._in_thread(_stamps, self.configuration.files) != self._seen:
                self.reload()

    async def _watch_places(self, stop: asyncio.Event) -> None:
        """Ends the program in order where what it needs is there and closed to it: nothing but a restart opens it.

        At two looks, because a directory may be gone again; what was made anew not before SETTLED_SECONDS.
        """
        started, before = self.clock.monotonic(), frozenset[Closed]()
        while not stop.is_set():
            await self.clock.sleep(LOOK_SECONDS)
            now = await self._in_thread(self._sandbox.closed, self._places)
            stays, before = now & before, now
            left = SETTLED_SECONDS - (self.clock.monotonic() - started)
            ends = left <= 0 or any(place.was_missing for place in stays)
            if new := sorted(map(str, stays if ends else stays - self._closed)):
                what = f"stopping, to be started again (exit status {RESTART_STATUS})" if ends else f"a restart opens it, in {left:.0f} s"
                log.warning("%s, where the sandbox keeps it closed: %s", "; ".join(new), what)
                if ends:
                    self.wants_restart = True
                    stop.set()
            self._closed = stays

    async def _reload(self, stop: asyncio.Event) -> None:
        log.info("reading the configuration again")
        self._seen = await self._in_thread(_stamps, self.configuration.files)
        try:
            new = await self._in_thread(self._load)
        except Exception as error:  # whatever it is, it is no reason to end
            reasons = list(map(str, (*error.warnings, *error.problems))) if isinstance(error, DocumentError) else [describe(error)]
            self._tell("wrong", reasons, "the configuration is wrong; the one from before goes on")
            return
        for warning in new.warnings:
            log.warning("%s", warning)
        from lockgate.collector.describe import what  # a process that is never asked again does without

        wider = [
            f"restart required: {who} needs {type(need).__name__.lower()} {what(need)} ({need.reason}), which this process started without"
            for who, need in new.needs()
            if not is_covered(need, self._granted)
        ]
        if new.service.sandbox != self.configuration.service.sandbox:
            wider.append(f"restart required: service.sandbox is {new.service.sandbox}, and a sandbox is entered at start")
        if wider:
            self._tell("refused", wider, "the configuration needs more than this process started with; the one from before goes on")
            return
        if _alike(new, self.configuration):
            self._tell("unchanged", [], "the configuration is the same; nothing is changed")
            return
        plan, before = Plan.of(self.configuration, new), self.configuration.service.telemetry
        log.info("stopping %s; starting %s", ", ".join(plan.stops) or "nothing", ", ".join(plan.starts) or "nothing")
        try:
            await self.assembly.change(new, stop)
        except TakenBack as error:
            reasons = [describe(leaf) for leaf in leaves(error.__cause__ or error)]
            self._tell("failed", reasons, "the configuration cannot be started; the one from before is back")
            return
        if not stop.is_set():
            telemetry = new.service.telemetry
            if (telemetry.logs, telemetry.resource) != (before.logs, before.resource):
                set_up_logging(telemetry.logs, telemetry.resource)
            self._places = _places(new)
            self._follow_files()
            self._try_privileges()
            self._tell("applied", [], f"the configuration is applied: {self._extent()}")

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.host.executor, work, *arguments)

    def _tell(self, outcome: str, reasons: list[str], text: str) -> None:
        for reason in reasons:
            log.error("%s", reason)
        log.log(logging.ERROR if reasons else logging.INFO, "%s", text)
        self._reloads[outcome].add()
        time = datetime.fromtimestamp(self.clock.time_unix_nano() / 1e9, UTC).isoformat(timespec="milliseconds")
        self.last_reload = {"outcome": outcome, "time": time, "reasons": reasons}

    def _process_metrics(self) -> None:
        started = self.clock.monotonic()
        observe = partial(self.metrics.observe, kind="counter")
        observe("otelcol_process_uptime", "seconds since start", lambda: self.clock.monotonic() - started)
        observe("otelcol_process_cpu_seconds", "CPU seconds used, user and system", lambda: sum(os.times()[:2]))
        self.metrics.observe("otelcol_process_memory_rss", "resident memory in bytes", resident_bytes)
        self._reloads = {
            outcome: self.metrics.counter("lockgate_reloads", "times that the configuration was read again", outcome=outcome)
            for outcome in ("applied", "unchanged", "wrong", "refused", "failed")
        }


def _stamps(files: Sequence[str]) -> list[tuple[int, ...]]:
    """What differs when a file was written, or another stands in its place. A mounted ConfigMap's are links, which are followed."""
    found: list[tuple[int, ...]] = []
    for file in files:
        try:
            status = Path(file).stat()
        except OSError:
            found.append(())
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _places(configuration: Configuration) -> list[Need]:
    """What the components need. What Python and the C library read (a loader's cache) is replaced by any upgrade; of configurations
    the operator says when they are read again."""
    return [need for who, need in configuration.needs() if who != "service"]


def _alike(one: Configuration, other: Configuration) -> bool:
    return (one.used(), one.pipelines, one.service) == (other.used(), other.pipelines, other.service)


def run(configuration: Configuration, load: Callable[[], Configuration]) -> int:
    """Runs the configuration in this process until a signal ends it; the exit status, RESTART_STATUS where it asks to be started again.

    SIGTERM and SIGINT drain within service.shutdown_timeout; a second one ends at once. SIGHUP changes to what `load` then gives.
    """
    telemetry = configuration.service.telemetry
    set_up_logging(telemetry.logs, telemetry.resource)
    for warning in configuration.warnings:
        log.warning("%s", warning)
    tune_memory()
    try:
        # Everything that is configured is imported by now, and no thread is started yet.
        sandbox = enter(configuration.service.sandbox, [need for _, need in configuration.needs()])
        wants_restart = asyncio.run(_run_until_signal(configuration, load, sandbox))
    except Exception as error:
        for leaf in leaves(error):
            # An OSError is about the machine (a port, a file), a LookupError of ours about the configuration: they say what to do.
            # Anything else is our own bug and shows where.
            is_expected = isinstance(leaf, OSError | LookupError) and not isinstance(leaf, KeyError | IndexError)
            log.error("ended: %s", describe(leaf), exc_info=None if is_expected else leaf)
        return 1
    return RESTART_STATUS if wants_restart else 0


async def _run_until_signal(configuration: Configuration, load: Callable[[], Configuration], sandbox: Sandbox) -> bool:
    """Whether it ended to be started again, and no signal said otherwise meanwhile."""
    stop, signals = asyncio.Event(), list[int]()

    def end(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            log.error("second signal: ending at once; what was not acknowledged will be sent again by whoever holds it")
            logging.shutdown()
            os._exit(128 + number)
        stop.set()

    program = Program(configuration, load=load, sandbox=sandbox)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, program.reload)
    started = asyncio.ensure_future(program.run(stop))
    # A start that hangs (a name that does not resolve, a mount that does not answer) ends at the first signal as well.
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        await asyncio.wait({started}, timeout=program.configuration.service.shutdown_timeout + 5)
        started.cancel()
    stopping.cancel()
    await started
    return program.wants_restart and not signals


def describe(error: BaseException) -> str:
    """What happened, and what it was about."""
    return "; ".join((*getattr(error, "__notes__", ()), str(error) or repr(error)))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups; or the one that it is."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
