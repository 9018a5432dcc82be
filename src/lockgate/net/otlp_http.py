"""OTLP 1.5 over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp): requests, answers, and what each refusal looks like."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response

from lockgate.batch import Signal, message_type
from lockgate.net.batch_ids import ID_HEADER, PARTS_HEADER
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings, Refusals, refusal_of
from lockgate.net.intake import Decode, Intake, read_request
from lockgate.pipeline.contract import Context
from lockgate.pipeline.errors import Refusal
from lockgate.wire.protobuf import DecodeError

PROTOBUF, JSON = "application/x-protobuf", "application/json"

# google.rpc.Code for the Status in a refusal's body.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 3, 415: 3, 503: 14}


class OtlpHttp:
    """Serves OTLP/HTTP at these paths. A receiver with paths of another protocol beside them overrides `serve`."""

    def __init__(self, settings: HttpServerSettings, paths: Mapping[str, Signal], context: Context, intake: Intake) -> None:
        self.paths, self.context, self.intake = paths, context, intake
        self.refusals = Refusals(context)
        self.server = HttpServer(settings, context, self.serve, self.refusals)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self.server.port

    async def __aenter__(self) -> OtlpHttp:
        await self.server.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.server.stop()

    async def serve(self, request: BaseRequest) -> Response:
        """The answer to one request."""
        content_type = request.content_type
        try:
            await self._take(request, content_type)
        except (HttpRefusal, Refusal, DecodeError) as error:
            return self._refused(request, content_type, refusal_of(error))
        return Response(body=b"{}" if content_type == JSON else b"", content_type=content_type)

    async def _take(self, request: BaseRequest, content_type: str) -> None:
        signal = self.signal(request.path)
        if signal is None:
            raise HttpRefusal(404, f"nothing is served at this path; served: {', '.join(self.paths)}")
        if not self.intake.serves(signal):
            raise HttpRefusal(404, f"no pipeline takes {signal} from {self.context.id}")
        if request.method != "POST":
            raise HttpRefusal(405, f"{request.method} is not OTLP; use POST")
        if content_type not in (PROTOBUF, JSON):
            raise HttpRefusal(415, f"Content-Type {content_type} is not accepted; use {PROTOBUF} or {JSON}")
        if content_type != JSON:
            await self.hand_on(request, signal)
            return
        from lockgate.wire import otlp_json

        peer, ids = client_address(request.remote), (request.headers.get(ID_HEADER, ""), "")  # parts are bytes of protobuf
        async with self.server.body(request, bytes) as body:
            with self.server.working(otlp_json.needed_bytes(body)):
                batches = await self.intake.read(signal, body, peer=peer, ids=ids, decode=_decode_json)
            await self.intake.hand_on(batches, "http")

    async def hand_on(self, request: BaseRequest, signal: Signal, decode: Decode | None = None) -> None:
        """Returns when what the request brings is acknowledged. Inflating, decoding and validating are one job of one thread."""
        peer, ids = client_address(request.remote), (request.headers.get(ID_HEADER, ""), request.headers.get(PARTS_HEADER, ""))
        async with self.server.body(request, partial(read_request, signal, peer, ids, decode)) as batches:
            await self.intake.hand_on(batches, "http")

    def signal(self, path: str) -> Signal | None:
        """The signal behind this path."""
        return self.paths.get(path)

    def _refused(self, request: BaseRequest, content_type: str, refusal: HttpRefusal) -> Response:
        self.refusals(request, refusal)
        headers = refusal.headers | ({"Allow": "POST"} if refusal.status == 405 else {})
        code = _CODES.get(refusal.status, 2)
        if content_type == JSON:
            body = msgspec.json.encode({"code": code, "message": refusal.reason})
        else:
            from google.rpc.status_pb2 import Status  # with protobuf's whole runtime, so not before there is something to refuse

            # Everything that did not say JSON gets protobuf, as the specification asks for what cannot be told.
            content_type, body = PROTOBUF, Status(code=code, message=refusal.reason).SerializeToString()
        return Response(status=refusal.status, body=body, content_type=content_type, headers=headers)


def _decode_json(body: bytes, signal: Signal) -> bytes:
    from lockgate.wire import otlp_json

    return otlp_json.decode(body, message_type(signal))


def client_address(remote: str | None) -> str:
    """The client as a batch's `peer`."""
    # An IPv4 client of a dual-stack socket; pods are known by the plain address.
    return (remote or "").removeprefix("::ffff:")
