"""The receiver of Sumo Logic's paths: who is served where, and what is refused how."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FakeHost, Sink, context
from support.otlp import log_batch

from lockgate.batch import Signal, count_records
from lockgate.components.receivers.sumologic import SumologicReceiver, SumologicSettings, logs_request, metrics_request, resource_of
from lockgate.pipeline.contract import Kind
from lockgate.wire.protobuf import DecodeError

PROTOBUF = {"Content-Type": "application/x-protobuf"}
TEXT = {"Content-Type": "application/x-www-form-urlencoded"}
PROMETHEUS = {"Content-Type": "application/vnd.sumologic.prometheus"}


@asynccontextmanager
async def receiver(signals: tuple[Signal, ...] = tuple(Signal), **settings: Any) -> AsyncIterator[tuple[str, Sink, aiohttp.ClientSession]]:
    it = SumologicReceiver(
        SumologicSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), context("sumologic", Kind.RECEIVER, host=FakeHost())
    )
    sink = Sink()
    it.outputs = dict.fromkeys(signals, sink)
    async with it, aiohttp.ClientSession() as session:
        yield f"http://127.0.0.1:{it.port}", sink, session


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/receiver/v1/http/T", TEXT, 200, id="http-source"),
        pytest.param("/receiver", TEXT, 200, id="mock-source"),
        pytest.param("/receiver/v1/logs", PROTOBUF, 200, id="mock-otlp"),
        pytest.param("/receiver/v1/otlp/T/v1/logs", PROTOBUF, 200, id="otlp-source"),
        pytest.param("/api/v1/collector/logs", PROTOBUF, 200, id="collector-otlp"),
        pytest.param("/api/v1/collector/logs", TEXT, 200, id="collector-text"),
        pytest.param("/receiver/v1/otlp/T/v1/logs", TEXT, 415, id="text-at-otlp"),
        pytest.param("/api/v1/collector/logs", PROMETHEUS, 415, id="metrics-at-logs"),
        pytest.param("/receiver/v1/http/T", {"Content-Type": "application/vnd.sumologic.carbon2"}, 415, id="carbon2"),
        pytest.param("/receiver/v1/http/T", {**TEXT, "Content-Encoding": "br"}, 415, id="unknown-encoding"),
        pytest.param("/receiver/v1/profiles", PROTOBUF, 404, id="no-such-signal"),
        pytest.param("/elsewhere", TEXT, 404, id="elsewhere"),
    ],
)
async def test_each_path_takes_what_it_is_for(path: str, headers: dict[str, str], status: int) -> None:
    body = log_batch("line").payload if headers is PROTOBUF else b"line"
    async with receiver() as (url, sink, session):
        async with session.post(url + path, data=body, headers=headers) as answer:
            assert answer.status == status, await answer.text()
        assert sink.bodies() == (["line"] if status == 200 else [])


async def test_only_listed_tokens_are_taken_where_some_are_listed() -> None:
    expected = [("/receiver/v1/http/good", 200), ("/receiver/v1/http/bad", 401), ("/receiver", 401), ("/api/v1/collector/logs", 401)]
    async with receiver(tokens=["good", "other"]) as (url, sink, session):
        for path, status in expected:
            async with session.post(url + path, data=b"x", headers=TEXT) as answer:
                assert answer.status == status, path
    assert sink.count == 1


async def test_a_signal_without_a_pipeline_is_not_served() -> None:
    async with receiver((Signal.TRACES,)) as (url, _, session), session.post(url + "/receiver", data=b"x", headers=TEXT) as answer:
        assert answer.status == 404


async def test_get_is_not_served() -> None:
    async with receiver() as (url, _, session), session.get(url + "/receiver") as answer:
        assert answer.status == 405


async def test_a_bad_line_is_named() -> None:
    async with receiver() as (url, sink, session):
        async with session.post(url + "/receiver", data=b"ok 1 1\nnot a sample at all\n", headers=PROMETHEUS) as answer:
            assert (answer.status, "line 2" in await answer.text()) == (400, True)
        async with session.post(url + "/receiver", data=b"\xff\xfe", headers=TEXT) as answer:
            assert (answer.status, "UTF-8" in await answer.text()) == (400, True)
    assert sink.count == 0


async def test_an_oversized_body_gets_413() -> None:
    async with (
        receiver(max_request_body_size=1000) as (url, _, session),
        session.post(url + "/receiver", data=b"x" * 2000, headers=TEXT) as answer,
    ):
        assert answer.status == 413


async def test_equal_lines_sent_twice_are_two_batches_and_equal_ids_are_seen() -> None:
    async with receiver() as (url, sink, session):
        for id in ("", "", "a-1", "a-1"):
            headers = {**TEXT, **({"X-Lockgate-Batch-Id": id} if id else {})}
            async with session.post(url + "/receiver", data=b"tick", headers=headers) as answer:
                assert answer.status == 200
    ids = [batch.id for batch in sink.batches]
    assert ids[0] != ids[1] and ids[2:] == ["a-1", "a-1"]


def test_fields_and_source_headers_become_resource_attributes() -> None:
    headers = {"X-Sumo-Fields": "a=b, c=d:e, =x, nothing, f=g=h", "X-Sumo-Category": "cat", "X-Sumo-Host": ""}
    assert resource_of(headers) == {"a": "b", "c": "d:e", "f": "g=h", "_sourceCategory": "cat"}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_decode_error(body: bytes) -> None:
    for decode in (logs_request, metrics_request):
        with suppress(DecodeError):
            assert isinstance(decode(body, {}, 1), bytes)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@given(st.lists(st.dictionaries(st.sampled_from(["log", "a"]), _JSON, max_size=2), max_size=3))
def test_any_json_line_is_a_record(lines: list[dict[str, Any]]) -> None:
    payload = logs_request("\n".join(map(json.dumps, lines)).encode(), {}, 1)
    assert count_records(Signal.LOGS, payload) == len(lines)


def test_deep_json_is_a_record_that_every_parser_takes() -> None:
    for depth in (10, 30, 500, 100_000):
        payload = logs_request(b'{"log":' + b'[{"a":' * depth + b"1" + b"}]" * depth + b"}", {}, 1)
        assert count_records(Signal.LOGS, payload) == 1
