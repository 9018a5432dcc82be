"""Strategies over HTTP and gRPC, told to Jaeger's own client and to grpcio; from a file, from the configuration, from another server."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from jaeger_client.local_agent_net import LocalAgentHTTP
from jaeger_client.sampler import AdaptiveSampler, ProbabilisticSampler, RateLimitingSampler, RemoteControlledSampler
from pydantic import ValidationError
from support import VirtualClock, context
from tornado.ioloop import IOLoop

from lockgate.components.extensions.jaegerremotesampling import JaegerRemoteSamplingExtension, JaegerRemoteSamplingSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.needs import Connect, Listen, Read
from lockgate.wire.sampling import GET_SAMPLING_STRATEGY, as_json, encode_parameters

HERE = {"endpoint": "127.0.0.1:0"}
STRATEGIES = json.dumps(
    {
        "service_strategies": [
            {"service": "cart", "type": "probabilistic", "param": 0.25},
            {"service": "shop", "type": "ratelimiting", "param": 5},
            {
                "service": "pay",
                "type": "probabilistic",
                "param": 0.5,
                "operation_strategies": [{"operation": "/health", "type": "probabilistic", "param": 0}],
            },
        ]
    }
)


def extension(source: dict[str, Any], clock: Any = None, **listeners: Any) -> JaegerRemoteSamplingExtension:
    settings = JaegerRemoteSamplingSettings.model_validate({"source": source, **(listeners or {"http": HERE})})
    return JaegerRemoteSamplingExtension(settings, context("jaegerremotesampling", Kind.EXTENSION, clock=clock))


async def ask(it: JaegerRemoteSamplingExtension, path: str = "/sampling?service=cart", method: str = "GET") -> tuple[int, Any]:
    assert it.http is not None
    async with aiohttp.ClientSession() as session, session.request(method, f"http://127.0.0.1:{it.http.port}{path}") as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text and answer.content_type == "application/json" else text


def rate(answer: tuple[int, Any]) -> float:
    assert answer[0] == 200, answer
    found: float = answer[1]["probabilisticSampling"]["samplingRate"]
    return found


class Channel(LocalAgentHTTP):
    """What jaeger-client's tracer gives its sampler."""

    io_loop: Any = None


@pytest.mark.parametrize(
    ("service", "becomes"),
    [
        ("cart", lambda it: isinstance(it, ProbabilisticSampler) and it.rate == 0.25),
        ("shop", lambda it: isinstance(it, RateLimitingSampler) and it.traces_per_second == 5),
        ("pay", lambda it: isinstance(it, AdaptiveSampler) and not it.is_sampled(1, "/health")[0]),
        ("none", lambda it: isinstance(it, ProbabilisticSampler) and it.rate == 0.001),
    ],
)
async def test_jaegers_client_takes_each_kind_of_strategy(service: str, becomes: Any) -> None:
    async with extension({"contents": STRATEGIES}) as it:
        assert it.http is not None
        channel = Channel("127.0.0.1", it.http.port)  # type: ignore[no-untyped-call]  # jaeger-client has no types
        channel.io_loop = IOLoop.current()
        sampler = RemoteControlledSampler(channel, service, sampling_refresh_interval=0.05, init_sampler=ProbabilisticSampler(1.0))
        try:
            async with asyncio.timeout(20):
                while not becomes(sampler.sampler):
                    await asyncio.sleep(0.01)
        finally:
            sampler.close()


async def test_grpc_clients_get_the_same(tmp_path: Path) -> None:
    async with extension({"contents": STRATEGIES}, http=HERE, grpc=HERE) as it:
        assert it.grpc is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{it.grpc.port}") as channel:
            call = channel.unary_unary(GET_SAMPLING_STRATEGY)
            for service in ("cart", "shop", "pay", "none"):
                answer = json.loads(as_json(await call(encode_parameters(service))))
                assert (200, answer) == await ask(it, f"/sampling?service={service}")
            with pytest.raises(grpc.aio.AioRpcError, match="SamplingStrategyParameters"):
                await call(b"\xff")


async def test_a_file_is_followed_and_a_bad_one_leaves_what_was_told_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file, clock = tmp_path / "strategies.json", VirtualClock()

    def write(text: str) -> None:
        (new := tmp_path / "new").write_text(text)
        new.rename(file)

    write(STRATEGIES)
    async with extension({"file": str(file), "reload_interval": "10s"}, clock) as it:
        assert rate(await ask(it)) == 0.25
        write('{"default_strategy": {"type": "probabilistic", "param": 1}}')
        await clock.advance(9)
        assert rate(await ask(it)) == 0.25
        await clock.advance(2)
        assert rate(await ask(it)) == 1
        write('{"default_strategy": {"type": "probabilistic", "param": 2}}')
        await clock.advance(11)
        assert rate(await ask(it)) == 1
        assert (
            f"cannot use the sampling strategies of {file} as they are now: the default strategy: param 2 is no probability" in caplog.text
        )
        file.unlink()
        await clock.advance(11)
        assert rate(await ask(it)) == 1
        write(STRATEGIES)
        await clock.advance(11)
        assert rate(await ask(it)) == 0.25


@pytest.mark.parametrize("text", [None, "{", "\xff"])
async def test_a_missing_or_unusable_file_ends_the_start(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "strategies.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises((OSError, ValueError), match=r"strategies\.json"):
        async with extension({"file": str(file)}):
            pass


async def test_another_server_is_asked_and_its_answers_are_kept_for_the_interval() -> None:
    clock = VirtualClock()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(extension({"contents": STRATEGIES}, grpc=HERE))
        assert behind.grpc is not None
        remote = {"endpoint": f"127.0.0.1:{behind.grpc.port}", "tls": {"insecure": True}}
        it = await stack.enter_async_context(extension({"remote": remote, "reload_interval": "30s"}, clock))
        direct = await stack.enter_async_context(extension({"remote": remote}))
        assert rate(await ask(it)) == rate(await ask(direct)) == 0.25
        await behind.stop()
        await clock.advance(29)
        assert rate(await ask(it)) == 0.25
        await clock.advance(2)
        for each in (it, direct):
            status, reason = await ask(each)
            assert status == 503 and "no sampling strategy for 'cart'" in reason


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/sampling", "GET", 400), ("/", "GET", 404), ("/sampling?service=cart", "POST", 405), ("/sampling?service=cart", "HEAD", 200)],
)
async def test_other_requests_are_refused(path: str, method: str, status: int) -> None:
    async with extension({"contents": "{}"}) as it:
        assert (await ask(it, path, method))[0] == status


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "source"),
        ({"source": {}}, "exactly one of file, contents and remote"),
        ({"source": {"file": "/f", "contents": "{}"}}, "exactly one of"),
        ({"source": {"file": "https://example.com/f"}}, "is a URL; mount the file"),
        ({"source": {"contents": '{"default": 1}'}}, "unknown field `default`"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        JaegerRemoteSamplingSettings.model_validate(settings)


def test_both_listen_where_none_is_named_and_else_only_the_named() -> None:
    def needs(**settings: Any) -> set[Any]:
        return set(JaegerRemoteSamplingSettings.model_validate(settings).needs())

    listens = needs(source={"contents": "{}"})
    assert {(each.host, each.port) for each in listens if isinstance(each, Listen)} == {("localhost", 5778), ("localhost", 14250)}
    only = needs(source={"file": "/etc/sampling/strategies.json"}, http={}, grpc=None)
    assert {each.port for each in only if isinstance(each, Listen)} == {5778}
    assert {each.path for each in only if isinstance(each, Read)} >= {"/etc/sampling"}
    remote = needs(source={"remote": {"endpoint": "jaeger:14250", "tls": {"insecure": True}}}, grpc={"endpoint": ":14250"})
    assert {(each.host, each.port) for each in remote if isinstance(each, Connect)} == {("jaeger", 14250)}
