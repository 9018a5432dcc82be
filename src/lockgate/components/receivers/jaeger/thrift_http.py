"""Jaeger's Thrift over HTTP: a Batch in the binary encoding, posted to /api/traces, is answered with 202."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response

from lockgate.batch import Signal
from lockgate.components.receivers.jaeger.settings import ThriftHttpSettings
from lockgate.net.http_server import HttpRefusal, HttpServer, Refusals
from lockgate.net.intake import Intake, read_request
from lockgate.net.otlp_http import client_address
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Refusal
from lockgate.wire import jaeger
from lockgate.wire.protobuf import DecodeError

PATH = "/api/traces"
CONTENT_TYPES = ("application/x-thrift", "application/vnd.apache.thrift.binary")
TRANSPORT = "collector_http"
"""As the collector's receiver calls it."""


class ThriftHttp:
    """Serves /api/traces."""

    def __init__(self, settings: ThriftHttpSettings, context: Context, intake: Intake) -> None:
        self._intake, self._refusals = intake, Refusals(context, TRANSPORT)
        self._server = HttpServer(settings, context, self._serve, self._refusals)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    async def __aenter__(self) -> ThriftHttp:
        await self._server.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._server.stop()

    async def _serve(self, request: BaseRequest) -> Response:
        try:
            await self._take(request)
        except (HttpRefusal, Refusal, DecodeError) as error:
            return self._refusals.answer(request, error)
        return Response(status=202)

    async def _take(self, request: BaseRequest) -> None:
        if request.path != PATH:
            raise HttpRefusal(404, f"nothing is served at this path; served: {PATH}")
        if request.method != "POST":
            raise HttpRefusal(405, f"{request.method} brings no spans; use POST")
        if request.content_type not in CONTENT_TYPES:
            raise HttpRefusal(400, f"Content-Type {request.content_type} is not accepted; use {' or '.join(CONTENT_TYPES)}")
        make = partial(read_request, Signal.TRACES, client_address(request.remote), ("", ""), _decode)
        async with self._server.body(request, make) as batches:
            await self._intake.hand_on(batches, TRANSPORT)


def _decode(body: bytes, signal: Signal) -> bytes:
    return jaeger.from_thrift(body)
