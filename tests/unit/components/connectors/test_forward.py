"""The forward connector."""

import pytest
from support import Sink, context, logs

from lockgate.components.connectors.forward import ForwardConnector, ForwardSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Retryable


async def test_a_batch_goes_unchanged_to_every_pipeline_of_its_signal() -> None:
    sinks = {"logs/a": Sink(), "logs": Sink(), "metrics/a": Sink()}
    connector = ForwardConnector(ForwardSettings(), context("forward", Kind.CONNECTOR))
    connector.outputs = dict(sinks)
    given = logs("x")
    async with connector:
        await connector.consume(given)
    assert [sink.batches for sink in sinks.values()] == [[given], [given], []]
    with pytest.raises(Retryable, match="not running"):
        await connector.consume(given)


async def test_what_a_single_pipeline_refuses_comes_back() -> None:
    refusal = Retryable("later", after=2)
    connector = ForwardConnector(ForwardSettings(), context("forward", Kind.CONNECTOR))
    connector.outputs = {"logs": Sink(refusal)}
    async with connector:
        with pytest.raises(Retryable) as raised:
            await connector.consume(logs("x"))
    assert raised.value is refusal
