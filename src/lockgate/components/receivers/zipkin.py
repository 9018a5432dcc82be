"""Receives spans from Zipkin's clients, by the API of Zipkin's own server (https://zipkin.io/zipkin-api).

    /api/v2/spans   JSON, or protobuf where the Content-Type is application/x-protobuf
    /api/v1/spans   JSON, or Thrift where it is application/x-thrift

What becomes of a span says `wire.zipkin`. Any other Content-Type is JSON, as for Zipkin itself and the Collector: browsers send text/plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import hdrs
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from pydantic import Field

from lockgate.batch import Batch, Signal
from lockgate.kit.units import Duration
from lockgate.net.batch_ids import ID_HEADER
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings, Refusals
from lockgate.net.intake import Intake
from lockgate.net.otlp_http import client_address
from lockgate.pipeline.contract import Context, Receiver, component
from lockgate.pipeline.errors import Refusal
from lockgate.wire import zipkin, zipkin_v1
from lockgate.wire.protobuf import DecodeError

_PATH = re.compile("/+api/v([12])/spans/?")
_PROTOBUF, _THRIFT = "application/x-protobuf", "application/x-thrift"


class ZipkinSettings(HttpServerSettings):
    """Where to receive spans from Zipkin's clients, and how to read them."""

    endpoint: str = "localhost:9411"
    """`host:port` to listen on; without a host, on every address."""
    parse_string_tags: bool = False
    """Make numbers and booleans of tags (and v1's binary annotations) whose text is one; without it attributes stay text."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A client that still waits for its acknowledgement after so long is asked to try again (503)."""

    @property
    def purpose(self) -> str:
        return "Zipkin spans"


@component("zipkin", ZipkinSettings, signals={Signal.TRACES})
class ZipkinReceiver(Receiver[ZipkinSettings]):
    """Receives spans from Zipkin's clients. A client has its answer, 202, when its spans are delivered, or durable."""

    def __init__(self, settings: ZipkinSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._refusals = Refusals(context)
        self._server = HttpServer(settings, context, self._serve, self._refusals)
        self._intake = Intake(self, self._count_refused, settings.ack_timeout)

    def _count_refused(self, batch: Batch, transport: str) -> None:
        """For what `emit` was not allowed to finish."""
        self._count(batch.signal, "refused", transport).add(batch.count)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    async def _serve(self, request: BaseRequest) -> Response:
        try:
            await self._take(request)
        except (HttpRefusal, Refusal, DecodeError) as error:
            return self._refusals.answer(request, error)
        return Response(status=202)

    async def _take(self, request: BaseRequest) -> None:
        """Returns when what the request brings is acknowledged."""
        match = _PATH.fullmatch(request.path)
        if match is None:
            raise HttpRefusal(404, "nothing is served at this path; served: /api/v2/spans, /api/v1/spans")
        if request.method != hdrs.METH_POST:
            raise HttpRefusal(405, f"{request.method} is not served; use POST")
        form = self._form(match[1], request.content_type)
        peer, ids = client_address(request.remote), (request.headers.get(ID_HEADER, ""), "")

        def decode(body: bytes, signal: Signal) -> bytes:
            return form.decode(body)

        async with self._server.body(request, bytes) as body:
            with self._server.working(form.needed_bytes(body)):
                batches = await self._intake.read(Signal.TRACES, body, peer=peer, ids=ids, decode=decode)
            await self._intake.hand_on(batches, form.transport)

    def _form(self, version: str, content_type: str) -> _Form:
        parse, now = self.settings.parse_string_tags, self.context.clock.time_unix_nano()
        if content_type == (_PROTOBUF if version == "1" else _THRIFT):
            raise HttpRefusal(415, f"Content-Type {content_type} is not accepted at /api/v{version}/spans")
        match version, content_type:
            case "2", name if name == _PROTOBUF:
                return _Form("http_v2_proto", lambda body: zipkin.decode_protobuf(body, parse), zipkin.needed_protobuf_bytes)
            case "2", _:
                return _Form("http_v2_json", lambda body: zipkin.decode_json(body, parse), zipkin.needed_json_bytes)
            case _, name if name == _THRIFT:
                return _Form("http_v1_thrift", lambda body: zipkin_v1.decode_thrift(body, now), zipkin_v1.needed_thrift_bytes)
            case _:
                return _Form("http_v1_json", lambda body: zipkin_v1.decode_json(body, now, parse), zipkin.needed_json_bytes)


@dataclass
class _Form:
    """One of the forms that spans come in."""

    transport: str
    """As the Collector's metrics name it."""
    decode: Callable[[bytes], bytes]
    """Makes an export request of a body; raises DecodeError."""
    needed_bytes: Callable[[bytes], int]
    """Memory that it takes."""
