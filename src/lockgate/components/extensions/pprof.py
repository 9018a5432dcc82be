"""What the program is doing, for whoever debugs it: stacks, a sampling profile, memory. Text, not Go's pprof format.

/debug/pprof/             what there is
/debug/pprof/goroutine    the stack of every thread and every task, as text (also at /debug/pprof/stacks)
/debug/pprof/profile      ?seconds=30: collapsed stacks ("main;run;work 123"), for flamegraph.pl, speedscope or inferno
/debug/pprof/heap         ?seconds=10: what was allocated in that time and is still held, by line (tracemalloc; slows the program)
"""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from aiohttp import web
from pydantic import Field, field_validator

from lockgate.net.address import split_endpoint
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Write

_HERTZ = 100
_MAX_SECONDS = 120.0
_STACKS = 20_000
"""Different stacks that one profile keeps; what comes after is counted together."""


class PprofSettings(ComponentSettings):
    """Where to answer. Stacks tell no telemetry, but file names and lines: do not offer them to a whole network."""

    endpoint: str = "localhost:1777"
    """host:port to listen on."""
    block_profile_fraction: int = Field(0, ge=0)
    """Of Go's runtime; has no effect."""
    mutex_profile_fraction: int = Field(0, ge=0)
    """Of Go's runtime; has no effect."""
    save_to_file: str = ""
    """Take a profile for as long as the program runs and write it here, as collapsed stacks, when it stops."""

    @field_validator("endpoint")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        split_endpoint(value)
        return value

    def needs(self) -> Iterator[Need]:
        yield Listen(*split_endpoint(self.endpoint), "profiles")
        if self.save_to_file:
            yield Write(str(Path(self.save_to_file).absolute().parent), "the profile of the whole run")

    def warnings(self) -> Iterator[str]:
        if self.block_profile_fraction or self.mutex_profile_fraction:
            yield "block_profile_fraction and mutex_profile_fraction have no effect: they are of Go's runtime"


@component("pprof", PprofSettings)
class PprofExtension(Extension[PprofSettings]):
    """Shows stacks, a sampling profile and memory, as text."""

    def __init__(self, settings: PprofSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._runner: web.AppRunner | None = None
        self._whole_run: Profile | None = None
        self._busy = False

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/debug/pprof/", self._index)
        app.router.add_get("/debug/pprof/goroutine", self._stacks)
        app.router.add_get("/debug/pprof/stacks", self._stacks)
        app.router.add_get("/debug/pprof/profile", self._profile)
        app.router.add_get("/debug/pprof/heap", self._heap)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        host, port = split_endpoint(self.settings.endpoint)
        try:
            await web.TCPSite(self._runner, host or None, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(error.errno, f"cannot listen on {self.settings.endpoint} for profiles: {error.strerror}") from error
        if self.settings.save_to_file:
            self._whole_run = Profile()
            self._whole_run.start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._whole_run is not None:
            text = self._whole_run.finish()
            try:
                await self.in_thread(_write, self.settings.save_to_file, text)
            except OSError as error:
                self.log.warning("cannot write the profile to %s: %s", self.settings.save_to_file, error.strerror)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=(__doc__ or "").partition("\n\n")[2])

    async def _stacks(self, _: web.Request) -> web.Response:
        return web.Response(text=stacks())

    async def _profile(self, request: web.Request) -> web.Response:
        seconds = _seconds(request, 30.0)
        self._claim()
        try:
            profile = Profile()
            profile.start()
            try:
                await asyncio.sleep(seconds)
            finally:
                text = profile.finish()
        finally:
            self._busy = False
        return web.Response(text=text)

    async def _heap(self, request: web.Request) -> web.Response:
        seconds = _seconds(request, 10.0)
        self._claim()
        try:
            tracemalloc.start()
            try:
                await asyncio.sleep(seconds)
                snapshot = tracemalloc.take_snapshot()
                held, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        finally:
            self._busy = False
        lines = [f"{held} bytes allocated in {seconds:g} s are still held (peak {peak})"]
        lines += [f"{stat.size}\t{stat.count}\t{stat.traceback[0]}" for stat in snapshot.statistics("lineno")[:100]]
        return web.Response(text="\n".join(lines) + "\n")

    def _claim(self) -> None:
        if self._busy:
            raise web.HTTPConflict(text="another profile is being taken; wait for it\n")
        self._busy = True


class Profile:
    """Where all threads are, sampled 100 times a second by a thread of its own, from `start` to `finish`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="lockgate-profile", daemon=True)

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def finish(self) -> str:
        """Ends; a line per different stack, outermost function first, and how often it was seen."""
        self._over.set()
        self._thread.join(1.0)
        return "".join(f"{stack} {count}\n" for stack, count in self._counts.most_common())

    def _sample(self) -> None:
        own = threading.get_ident()
        due = time.monotonic()
        while not self._over.is_set():
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident != own:
                    stack = ";".join((names.get(ident, "?"), *reversed([_name(frame) for frame in _chain(frame)])))
                    self._counts[stack if stack in self._counts or len(self._counts) < _STACKS else "(further stacks)"] += 1
            due = max(due + 1 / _HERTZ, time.monotonic())
            self._over.wait(due - time.monotonic())


def stacks() -> str:
    """The stack of every thread and of every task of the running loop."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {names.get(ident, '?')} ({ident}):\n")
        out.writelines(f"    {_name(frame)} {frame.f_code.co_filename}:{frame.f_lineno}\n" for frame in _chain(frame))
        out.write("\n")
    for task in asyncio.all_tasks():
        out.write(f"task {task.get_name()}:\n")
        out.writelines(f"    {_name(frame)} {frame.f_code.co_filename}:{frame.f_lineno}\n" for frame in reversed(task.get_stack()))
        out.write("\n")
    return out.getvalue()


def _chain(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"


def _seconds(request: web.Request, default: float) -> float:
    try:
        seconds = float(request.query.get("seconds", default))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise web.HTTPBadRequest(text=f"seconds must be a number up to {_MAX_SECONDS:g}\n")
    return seconds


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
