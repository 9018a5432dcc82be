"""Tells tracing clients how much to sample, as Jaeger's agent and collector do: over HTTP on 5778 and over gRPC on 14250.

    GET /sampling?service=NAME                                  JSON
    jaeger.api_v2.SamplingManager/GetSamplingStrategy           protobuf

The strategies are a file of Jaeger's form, followed as it changes, or another server's, asked over gRPC.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Literal, Self

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from grpclib.const import Status
from pydantic import field_validator, model_validator

from lockgate.kit.units import Duration
from lockgate.net.followed import FollowedFile
from lockgate.net.grpc import GrpcError
from lockgate.net.grpc_client import GrpcClient, GrpcClientSettings
from lockgate.net.grpc_server import Call, GrpcServer, unary
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Need, followed
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.sampling import (
    GET_SAMPLING_STRATEGY,
    Strategies,
    as_json,
    decode_parameters,
    encode_parameters,
    parse_strategies,
)

_REMOTE_SECONDS = 5.0
"""How long another server may take: Jaeger's clients wait no longer themselves."""
_MAX_CACHED = 1000
"""Services whose answers are kept; their names are the clients' choice."""


class SamplingHttpSettings(HttpServerSettings):
    """The HTTP listener."""

    endpoint: str = "localhost:5778"
    """`host:port` to listen on; without a host, on every address."""

    @property
    def purpose(self) -> str:
        return "sampling strategies"


class SamplingGrpcSettings(GrpcServerSettings):
    """The gRPC listener."""

    endpoint: str = "localhost:14250"
    """`host:port` to listen on; without a host, on every address. The jaeger receiver's gRPC has the same port by default."""


class RemoteSettings(GrpcClientSettings):
    """Another server of strategies."""

    compression: Literal["gzip", "zstd", "snappy", "none", ""] = "none"
    """How requests are compressed; they are a name."""


class SourceSettings(ComponentSettings):
    """Where the strategies come from: exactly one of `file`, `contents` and `remote`."""

    file: str = ""
    """A strategies file of Jaeger's form (JSON), followed as it changes. Not a URL: mount the file, or ask a `remote`."""
    contents: str = ""
    """The strategies themselves, in the same form. Not one of the collector's keys."""
    remote: RemoteSettings | None = None
    """Another server of Jaeger's SamplingManager."""
    reload_interval: Duration = 0.0
    """How long an answer of `remote` is kept; 0 asks for every request. How often `file` is looked at, at most; 0 is once a second."""

    @field_validator("file")
    @classmethod
    def _is_no_url(cls, value: str) -> str:
        if value.startswith(("http://", "https://")):
            raise ValueError(f"{value} is a URL; mount the file, or name a server of strategies in remote")
        return value

    @field_validator("contents")
    @classmethod
    def _can_be_used(cls, value: str) -> str:
        if value:
            parse_strategies(value)
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((bool(self.file), bool(self.contents), self.remote is not None)) != 1:
            raise ValueError("needs exactly one of file, contents and remote")
        return self

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        if self.file:
            yield from followed(self.file, "sampling strategies, followed as they change")


class JaegerRemoteSamplingSettings(ComponentSettings):
    """Where strategies are told, and where they come from."""

    http: SamplingHttpSettings | None = None
    """Listen for HTTP. Where neither `http` nor `grpc` is named, both listen at their defaults; else only what is named."""
    grpc: SamplingGrpcSettings | None = None
    """Listen for gRPC."""
    source: SourceSettings
    """The strategies."""

    @model_validator(mode="before")
    @classmethod
    def _both_by_default(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("http") is None and value.get("grpc") is None:
            return {**value, "http": {}, "grpc": {}}
        return value


@component("jaegerremotesampling", JaegerRemoteSamplingSettings)
class JaegerRemoteSamplingExtension(Extension[JaegerRemoteSamplingSettings]):
    """Answers each service with its strategy, or the default one."""

    def __init__(self, settings: JaegerRemoteSamplingSettings, context: Context) -> None:
        super().__init__(settings, context)
        source = settings.source
        self.http = HttpServer(settings.http, context, self._answer) if settings.http else None
        self.grpc = GrpcServer(settings.grpc, {GET_SAMPLING_STRATEGY: unary(self._call)}, context) if settings.grpc else None
        self._file = FollowedFile(source.file, context.clock, source.reload_interval) if source.file else None
        self._remote = GrpcClient(source.remote, context) if source.remote else None
        self._text: str | None = None
        self._strategies: Strategies | None = None
        self._cached: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._running = AsyncExitStack()

    async def start(self) -> None:
        if self._remote is None:
            self._own()  # a file that is missing, or none, ends the start, not the first request
        async with AsyncExitStack() as stack:
            if self._remote is not None:
                await stack.enter_async_context(self._remote)
            if self.http is not None:
                await self.http.start()
                stack.push_async_callback(self.http.stop, 1.0)
            if self.grpc is not None:
                await stack.enter_async_context(self.grpc)
            self._running = stack.pop_all()

    async def stop(self) -> None:
        await self._running.aclose()

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise HttpRefusal(405, "only GET and HEAD are answered here")
        if request.path != "/sampling":
            raise HttpRefusal(404, f"nothing is at {request.path}; ask /sampling?service=NAME")
        if not (service := request.query.get("service", "")):
            raise HttpRefusal(400, "the parameter service is missing; ask /sampling?service=NAME")
        try:
            return Response(text=as_json(await self._strategy(service)), content_type="application/json")
        except GrpcError as error:
            raise HttpRefusal(503, f"no sampling strategy for {service!r}: {error}", retry_after=1) from error
        except DecodeError as error:
            raise HttpRefusal(502, f"no sampling strategy for {service!r}: the remote server's answer is {error}") from error

    async def _call(self, message: bytes, call: Call) -> bytes:
        try:
            service = decode_parameters(message)
        except DecodeError as error:
            raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from None
        return await self._strategy(service)

    async def _strategy(self, service: str) -> bytes:
        """The encoded answer for this service. Raises GrpcError where the remote server gives none."""
        if self._remote is None:
            return self._own().of(service)
        now, interval = self.context.clock.monotonic(), self.settings.source.reload_interval
        if (found := self._cached.get(service)) is not None and now < found[0]:
            return found[1]
        answer = await self._remote.call(GET_SAMPLING_STRATEGY, encode_parameters(service), _REMOTE_SECONDS)
        if interval:
            self._cached[service] = (now + interval, answer)
            self._cached.move_to_end(service)
            if len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)
        return answer

    def _own(self) -> Strategies:
        """The strategies of the file as it is now, or as it was when it could last be used. Raises OSError and ValueError at first."""
        where = self.settings.source.file or "contents"
        try:
            text = self._file.text() if self._file is not None else self.settings.source.contents
            if text == self._text and self._strategies is not None:
                return self._strategies
            self._text = text
            strategies = parse_strategies(text)
        except ValueError as error:
            if self._strategies is None:
                raise ValueError(f"cannot use the sampling strategies of {where}: {error}") from error
            self.log.error("cannot use the sampling strategies of %s as they are now: %s; those from before are told", where, error)
            return self._strategies
        for note in strategies.notes:
            self.log.warning("sampling strategies of %s: %s", where, note)
        if self._strategies is not None:
            self.log.info("the sampling strategies of %s have changed", where)
        self._strategies = strategies
        return strategies
