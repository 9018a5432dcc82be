"""Ids over a hop: what our exporters say is what our receivers hear, over HTTP and gRPC, and nothing else is taken for it."""

from typing import Any

import aiohttp
import pytest
from support import Sink, context, logs

from lockgate.batch import Part, Signal, merge
from lockgate.components.exporters.otlp import OtlpExporter, OtlpExporterSettings
from lockgate.components.exporters.otlphttp import OtlpHttpExporter, OtlpHttpExporterSettings
from lockgate.components.exporters.sumologic.exporter import SumologicExporter, SumologicSettings
from lockgate.components.receivers.otlp import OtlpReceiver
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.net.batch_ids import ID_HEADER, MAX_PARTS_BYTES, PARTS_HEADER, headers_of, parts_in
from lockgate.pipeline.contract import Kind

EXPORTERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "otlphttp": (OtlpHttpExporter, OtlpHttpExporterSettings, {"endpoint": "http://127.0.0.1:{http}"}),
    "otlp": (OtlpExporter, OtlpExporterSettings, {"endpoint": "127.0.0.1:{grpc}", "tls": {"insecure": True}}),
    "sumologic": (SumologicExporter, SumologicSettings, {"endpoint": "http://127.0.0.1:{http}", "log_format": "otlp"}),
}


@pytest.mark.parametrize("name", EXPORTERS)
async def test_a_merged_batch_arrives_in_its_parts_under_their_ids(name: str) -> None:
    kind, settings, values = EXPORTERS[name]
    sink, parts = Sink(), [logs("a", "b"), logs("c", peer=""), logs("d")]
    endpoints = {"http": {"endpoint": "127.0.0.1:0"}, "grpc": {"endpoint": "127.0.0.1:0"}}
    receiver = OtlpReceiver(OtlpReceiverSettings.model_validate({"protocols": endpoints}), context("otlp", Kind.RECEIVER))
    receiver.outputs = dict.fromkeys(Signal, sink)
    async with receiver:
        assert receiver.http is not None and receiver.grpc is not None
        values = values | {"endpoint": values["endpoint"].format(http=receiver.http.port, grpc=receiver.grpc.port)}
        async with kind(settings.model_validate(values), context(name, Kind.EXPORTER)) as exporter:
            await exporter.consume(merge(parts))
            await exporter.consume(merge([parts[2]]))
    assert sorted((batch.id, batch.payload, batch.count) for batch in sink.batches) == sorted(
        (batch.id, batch.payload, batch.count) for batch in [*parts, parts[2]]
    )


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("", id="absent"),
        pytest.param("a;10", id="too-short"),
        pytest.param("a;10,b;2", id="too-long"),
        pytest.param("a;11,b;0", id="an-empty-one"),
        pytest.param("a;12,b;-1", id="negative"),
        pytest.param("a b;11", id="no-id"),
        pytest.param("a;٣", id="no-digit"),
        pytest.param("a", id="no-size"),
        pytest.param("a;11,", id="one-more"),
    ],
)
def test_what_does_not_fit_the_payload_is_not_about_it(header: str) -> None:
    assert parts_in(header, 11) == []


def test_a_list_that_servers_would_refuse_is_not_sent() -> None:
    batch = merge([logs(str(number)) for number in range(150)])
    assert parts_in(headers_of(batch)[PARTS_HEADER], len(batch.payload)) == list(batch.parts)
    several = merge([logs(str(number)) for number in range(400)])
    assert PARTS_HEADER not in headers_of(several)
    assert MAX_PARTS_BYTES < 8190
    assert parts_in("a;5,b#1;6", 11) == [Part("a", 5), Part("b#1", 6)]


async def test_parts_that_are_no_requests_of_their_own_are_one_batch() -> None:
    sink, whole = Sink(), logs("a", "b")
    receiver = OtlpReceiver(
        OtlpReceiverSettings.model_validate({"protocols": {"http": {"endpoint": "127.0.0.1:0"}}}), context("otlp", Kind.RECEIVER)
    )
    receiver.outputs = dict.fromkeys(Signal, sink)
    async with receiver, aiohttp.ClientSession() as session:
        assert receiver.http is not None
        headers = {"Content-Type": "application/x-protobuf", ID_HEADER: "whole", PARTS_HEADER: f"a;3,b;{len(whole.payload) - 3}"}
        async with session.post(f"http://127.0.0.1:{receiver.http.port}/v1/logs", data=whole.payload, headers=headers) as answer:
            assert answer.status == 200
    assert [(batch.id, batch.count) for batch in sink.batches] == [("whole", 2)]
