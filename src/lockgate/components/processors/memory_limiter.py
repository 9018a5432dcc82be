"""Refuse what memory has no room for, so that the sender keeps it.

Unlike the collector's, which refuses while its heap is over the soft limit, this one counts what it can be sure of: the payload bytes in
custody, from `consume`'s entry to its return, over all pipelines that name the same memory_limiter. A batch is refused when it would bring
them over the soft limit. The process's own memory is looked at too, every `check_interval`: while it is over the soft limit one batch at a
time passes, and garbage is collected. It never refuses everything: memory that does not come down (a cache, another component, a leak)
would otherwise end collection for ever. For the same reason a batch always passes when nothing else is in custody, however large it is.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from lockgate.kit.units import Duration, format_duration
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, Retryable, component
from lockgate.pipeline.needs import Need, Read

MIB = 1 << 20


class MemoryLimiterSettings(ComponentSettings):
    """The hard limit, and how far below it the soft limit stands. MiB go before percentages."""

    check_interval: Duration = 1.0
    """Time between looks at the process's memory."""
    limit_mib: int = Field(0, ge=0)
    """Hard limit in MiB: above it garbage is collected at every check. 0 takes limit_percentage."""
    spike_limit_mib: int = Field(0, ge=0)
    """The soft limit, from which on batches are refused, is this much below the hard one; 0 is a fifth of it."""
    limit_percentage: int = Field(0, ge=0, le=100)
    """Hard limit in percent of the memory there is: the cgroup's limit, or the machine's memory where there is none."""
    spike_limit_percentage: int = Field(0, ge=0, le=100)
    """As spike_limit_mib, in percent of the memory there is."""
    min_gc_interval_when_soft_limited: Duration = 10.0
    """Least time between garbage collections while memory is above the soft limit."""
    min_gc_interval_when_hard_limited: Duration = 0.0
    """Least time between garbage collections while memory is above the hard limit."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.check_interval <= 0:
            raise ValueError("check_interval must be more than 0")
        if not self.limit_mib and not self.limit_percentage:
            raise ValueError("needs limit_mib or limit_percentage")
        if self.limit_mib and self.spike_limit_mib >= self.limit_mib:
            raise ValueError("spike_limit_mib must be less than limit_mib")
        if not self.limit_mib and self.spike_limit_percentage >= self.limit_percentage:
            raise ValueError("spike_limit_percentage must be less than limit_percentage")
        return self

    def limits(self, root: Path = Path("/")) -> tuple[int, int]:
        """The soft and the hard limit in bytes."""
        if self.limit_mib:
            hard, spike = self.limit_mib * MIB, self.spike_limit_mib * MIB
        else:
            total = memory_there_is(root)
            hard, spike = total * self.limit_percentage // 100, total * self.spike_limit_percentage // 100
        return hard - (spike or hard // 5), hard

    def needs(self) -> Iterator[Need]:
        yield Read("/proc/self", "memory_limiter reads how much memory the process uses")
        if not self.limit_mib:
            yield Read("/sys/fs/cgroup", "memory_limiter takes a percentage of the cgroup's memory limit")


class Custody:
    """Payload bytes in custody, and whether memory is short; shared by the pipelines that name the same memory_limiter."""

    def __init__(self) -> None:
        self.bytes = 0
        self.memory = 0
        """The process's resident bytes at the last look."""
        self.collected_at = float("-inf")
        """When garbage was collected last, in monotonic seconds."""


@component("memory_limiter", MemoryLimiterSettings)
class MemoryLimiterProcessor(Processor[MemoryLimiterSettings]):
    """Refuses as Retryable, with the reason; blocked in status while it does."""

    def __init__(self, settings: MemoryLimiterSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._soft, self._hard = settings.limits()
        self._custody = Custody()
        self._stack = AsyncExitStack()
        labels = {"processor": context.id}
        items = context.signal.items if context.signal else "items"
        self._accepted = context.metrics.counter(f"otelcol_processor_accepted_{items}", f"{items} let through", **labels)
        self._refused = context.metrics.counter(f"otelcol_processor_refused_{items}", f"{items} refused for want of memory", **labels)

    async def start(self) -> None:
        shared = self.context.host.shared(("memory_limiter", self.context.id), _custody)
        self._custody = await self._stack.enter_async_context(shared)
        self.look()
        self.spawn(self._watch(), "memory watch")

    async def stop(self) -> None:
        await self._stack.aclose()
        self.context.status.clear()

    async def consume(self, batch: Batch) -> None:
        self.refuse_if_stopped()
        custody, size = self._custody, len(batch.payload)
        if custody.bytes and (reason := self._want(custody, size)):
            self._refused.add(batch.count)
            self.context.status.block(f"memory: {reason}")
            raise Retryable(f"processor {self.context.id} refuses for want of memory: {reason}")
        self.context.status.clear()
        self._incoming.add(batch.count)
        custody.bytes += size
        try:
            await self.next.consume(batch)
        finally:
            custody.bytes -= size
            if not custody.bytes:
                self.context.status.clear()
        self._accepted.add(batch.count)
        self._outgoing.add(batch.count)

    def _want(self, custody: Custody, size: int) -> str:
        """Why a batch of this size has no room; "" where it has."""
        if custody.bytes + size > self._soft:
            return f"{custody.bytes >> 20} MiB are under way of {self._soft >> 20} allowed; what takes them is slow, or raise the limit"
        if custody.memory > self._soft:
            return f"the process uses {custody.memory >> 20} MiB of {self._soft >> 20} allowed, so one batch at a time passes"
        return ""

    async def _watch(self) -> None:
        while True:
            await self.context.clock.sleep(self.settings.check_interval)
            self.look()

    def look(self) -> None:
        """Measure the process; collect garbage where it uses too much and long enough has passed."""
        custody, now = self._custody, self.context.clock.monotonic()
        custody.memory = resident_bytes()
        if custody.memory <= self._soft:
            return
        settings = self.settings
        hard = custody.memory > self._hard
        if now - custody.collected_at >= (
            settings.min_gc_interval_when_hard_limited if hard else settings.min_gc_interval_when_soft_limited
        ):
            before, custody.collected_at = custody.memory, now
            collect_garbage()
            custody.memory = resident_bytes()
            self.log.warning(
                "memory over the %s limit of %d MiB: %d MiB, %d MiB after collecting garbage; next look in %s",
                "hard" if hard else "soft",
                (self._hard if hard else self._soft) >> 20,
                before >> 20,
                custody.memory >> 20,
                format_duration(settings.check_interval),
            )


@asynccontextmanager
async def _custody() -> AsyncIterator[Custody]:
    yield Custody()


def resident_bytes() -> int:
    """Memory that this process holds, as the kernel counts it against its cgroup (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def collect_garbage() -> None:
    """Frees what nobody holds, and gives free heap back to the kernel, which otherwise goes on counting it."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc alone has it
        trim(0)


def memory_there_is(root: Path = Path("/")) -> int:
    """Bytes: the smallest memory limit of this process's cgroup and those above it (v2, else v1), or the machine's memory."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path is often the host's while the mount shows the container's own group: then the mount itself counts.
        group = mount / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(mount):
                break
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # "max" is no limit; version 1 writes a number beyond any machine's memory
                yield int(text)
