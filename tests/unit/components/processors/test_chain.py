"""Processors of the resource tier behind each other: the bytes are made once, and each counts by itself."""

from typing import Any

import pytest
from support import Sink, context, logs, resource_attributes

from lockgate.batch import Batch, Signal, merge
from lockgate.components.processors.resource import ResourceProcessor, ResourceSettings
from lockgate.components.processors.source import SourceProcessor, SourceSettings
from lockgate.pipeline.contract import Consumer, Processor
from lockgate.wire.resources import Resources


def chain(sink: Sink) -> list[Processor[Any]]:
    """resource, source (which drops what has `drop`), resource."""
    found: list[Processor[Any]] = [
        resource("first", {"action": "upsert", "key": "cluster", "value": "c"}),
        SourceProcessor(SourceSettings(exclude={"drop": "."}, collector="me"), context("source", signal=Signal.LOGS)),
        resource("last", {"action": "delete", "key": "cluster"}),
    ]
    following: list[Consumer] = [*found[1:], sink]
    for before, after in zip(found, following, strict=True):
        before.next = after
    return found


def resource(id: str, *actions: dict[str, Any]) -> ResourceProcessor:
    return ResourceProcessor(ResourceSettings.model_validate({"attributes": list(actions)}), context(id, signal=Signal.LOGS))


def given() -> Batch:
    return merge([logs("one", "two", a="1"), logs("three", drop="yes"), logs("four", a="1")])


async def test_a_chain_gives_what_its_steps_give_and_each_counts_what_it_saw() -> None:
    sink = Sink()
    processors = chain(sink)
    for processor in processors:
        await processor.__aenter__()
    await processors[0].consume(given())
    for processor in processors:
        await processor.__aexit__(None, None, None)

    def count(event: str) -> list[float]:
        return [
            each.context.metrics.value(
                f"otelcol_processor_{event}_items", processor=each.context.id, otel_signal="logs", pipeline=each.context.pipeline
            )
            for each in processors
        ]

    assert (count("incoming"), count("outgoing")) == ([4, 4, 3], [4, 3, 3])
    step = given()
    for processor in chain(Sink()):
        step = processor.process(step)
        assert step.payload
    (result,) = sink.batches
    assert result == step
    assert sink.bodies() == ["one", "two", "four"]
    assert [attributes["_collector"] for attributes in resource_attributes(result)] == ["me", "me"]


async def test_a_chain_of_resource_processors_makes_the_bytes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    join = Resources.join

    def counted(self: Resources) -> bytes:
        made.append(join(self))
        return made[-1]

    monkeypatch.setattr(Resources, "join", counted)
    batch = given()
    for number in range(5):
        batch = resource("each", {"action": "upsert", "key": f"key-{number}", "value": "v"}).process(batch)
    assert made == []
    assert batch.payload is batch.payload
    assert made == [batch.payload]
