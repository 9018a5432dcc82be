"""Accepted so that older configurations start: a ballast was for Go's garbage collector, and there is none here."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from lockgate.pipeline.contract import Extension, component
from lockgate.pipeline.needs import ComponentSettings


class MemoryBallastSettings(ComponentSettings):
    """How much memory Go was to believe in use."""

    size_mib: int = Field(0, ge=0)
    """MiB; no memory is taken."""
    size_in_percentage: int = Field(0, ge=0, le=100)
    """Percent of the memory there is; no memory is taken."""

    def warnings(self) -> Iterator[str]:
        yield "memory_ballast has no effect: it tuned Go's garbage collector, and the collector itself has dropped it; remove it"


@component("memory_ballast", MemoryBallastSettings)
class MemoryBallastExtension(Extension[MemoryBallastSettings]):
    """Does nothing, and says so: there is no Go garbage collector to tune."""
