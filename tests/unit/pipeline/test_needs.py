"""Needs are collected from wherever settings nest."""

from collections.abc import Iterator

from lockgate.kit.settings import Settings
from lockgate.pipeline.errors import Permanent, Refusal, Retryable
from lockgate.pipeline.needs import ComponentSettings, Connect, Listen, Need


class Server(ComponentSettings):
    """Listens."""

    port: int = 1
    """Where."""

    def needs(self) -> Iterator[Need]:
        yield Listen("", self.port, "serves")


class Outer(ComponentSettings):
    """Holds parts."""

    one: Server = Server(port=1)
    """Itself."""
    several: list[Server] = []
    """In a list."""
    named: dict[str, Server] = {}
    """In a mapping."""
    maybe: Server | None = None
    """Or not."""

    def needs(self) -> Iterator[Need]:
        yield Connect("backend", 443, "sends")
        yield from super().needs()


def test_a_part_adds_its_needs_from_lists_mappings_and_fields() -> None:
    outer = Outer(several=[Server(port=2), Server(port=3)], named={"x": Server(port=4)})
    assert list(outer.needs()) == [Connect("backend", 443, "sends"), *(Listen("", port, "serves") for port in (1, 2, 3, 4))]


def test_refusals_are_one_family_and_keep_their_reason() -> None:
    refusal = Retryable("later", after=2.5)
    assert isinstance(refusal, Refusal) and isinstance(Permanent("no"), Refusal) and not isinstance(Permanent("no"), Retryable)
    assert (str(refusal), refusal.after, Retryable("x").after) == ("later", 2.5, None)
    assert issubclass(ComponentSettings, Settings)
