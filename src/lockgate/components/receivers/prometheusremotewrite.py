"""Receives Prometheus remote write 1.0 and 2.0, from Prometheus, its agent mode, vmagent and whatever else speaks it.

https://prometheus.io/docs/specs/prw/remote_write_spec/ and .../remote_write_spec_2_0/; what becomes of a series says wire/remote_write.py.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from aiohttp import hdrs
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from pydantic import Field

from lockgate.batch import Batch, Signal
from lockgate.kit.units import Duration
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings, Refusals
from lockgate.net.intake import Intake
from lockgate.net.otlp_http import client_address
from lockgate.pipeline.contract import Context, Receiver, component
from lockgate.pipeline.errors import Refusal
from lockgate.wire.protobuf import DecodeError
from lockgate.wire.remote_write import Families, TooLarge, Translation, translate

_PATH = re.compile(r"/api/v1/write|/prometheus\.metrics(\.[^/]*)?")
"""Where Prometheus' own receiver and contrib's are; and where Sumo Logic's collection has let Prometheus write to."""
_VERSIONS = {"prometheus.WriteRequest": 1, "io.prometheus.write.v2.Request": 2}
_RETRIED = {408, 429}
"""Statuses that other clients retry, and Prometheus does not: it gets 503 instead."""


class PrometheusRemoteWriteSettings(HttpServerSettings):
    """Where to receive remote write."""

    endpoint: str = "localhost:9090"
    """`host:port` to listen on; without a host, on every address."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A client that still waits for its acknowledgement after so long is asked to try again (503). Prometheus itself waits for
    `remote_timeout`, by default 30 s, and sends again what it has no answer for."""

    @property
    def purpose(self) -> str:
        return "Prometheus remote write"


class _Taken(NamedTuple):
    """A request, translated."""

    translation: Translation
    batch_id: str


@component("prometheusremotewrite", PrometheusRemoteWriteSettings, signals={Signal.METRICS})
class PrometheusRemoteWriteReceiver(Receiver[PrometheusRemoteWriteSettings]):
    """Serves /api/v1/write. A client has its answer when its samples are delivered, or durable.

    A request that is sent again is the same batch again: its id follows from its bytes. Nobody says the same twice and means two things,
    for a series has one sample at one time.
    """

    transport = "http"

    def __init__(self, settings: PrometheusRemoteWriteSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._refusals = Refusals(context)
        self.server = HttpServer(settings, context, self._serve, self._refusals)
        self._intake = Intake(self, self._count_refused, settings.ack_timeout)
        self._families = Families()
        self._lost_exemplars = context.metrics.counter(
            "lockgate_receiver_dropped_exemplars",
            "exemplars whose sample did not come in the same request",
            receiver=context.id,
            transport=self.transport,
        )

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self.server.port

    def _count_refused(self, batch: Batch, transport: str) -> None:
        """For what `emit` was not allowed to finish."""
        self._count(batch.signal, "refused", transport).add(batch.count)

    async def _serve(self, request: BaseRequest) -> Response:
        written = Translation(b"", 0, 0, 0, 0, "", 0)
        version = 1
        try:
            version = _version(request)
            async with self.server.body(request, lambda body: self._translate(body, version)) as (translation, batch_id):
                await self._take(request, translation, batch_id)
            written = translation
            if translation.reason:
                total = translation.samples + translation.histograms + translation.refused
                raise HttpRefusal(400, f"{translation.refused} of {total} samples are refused, the others are taken; {translation.reason}")
        except (HttpRefusal, Refusal, DecodeError, TooLarge) as error:
            response = self._refusals.answer(request, _refusal(error, self.settings.inflated_limit))
        else:
            response = Response(status=204)
        if version == 2:  # "Required Written Response Headers"; without them Prometheus takes a success for a failure
            for what, count in (("Samples", written.samples), ("Histograms", written.histograms), ("Exemplars", written.exemplars)):
                response.headers[f"X-Prometheus-Remote-Write-{what}-Written"] = str(count)
        return response

    def _translate(self, body: bytes, version: int) -> _Taken:
        batch_id = hashlib.sha256(body, usedforsecurity=False).hexdigest()[:32]
        return _Taken(translate(body, version, self._families, self.settings.inflated_limit), batch_id)

    async def _take(self, request: BaseRequest, translation: Translation, batch_id: str) -> None:
        """Returns when what is good of the request is acknowledged."""
        count = translation.samples + translation.histograms
        # The bytes that came are held already; what they became is several times as much.
        with self.server.working(len(translation.payload)):
            await self._intake.hand_on(
                [Batch(Signal.METRICS, translation.payload, count, batch_id, client_address(request.remote))], self.transport
            )
        if translation.refused:
            self._count(Signal.METRICS, "refused", self.transport).add(translation.refused)
        if translation.lost_exemplars:
            self._lost_exemplars.add(translation.lost_exemplars)


def _version(request: BaseRequest) -> int:
    """1 or 2: which message the body is. Raises HttpRefusal where it is none that is served here."""
    if not _PATH.fullmatch(request.path):
        raise HttpRefusal(404, "nothing is served at this path; send remote write to /api/v1/write")
    if request.method != hdrs.METH_POST:
        raise HttpRefusal(405, f"{request.method} is not remote write; use POST")
    # This header alone says it; X-Prometheus-Remote-Write-Version is of the protocol, and for people. Without it, it is 1.0 (as for
    # Prometheus): clients older than the specification have none.
    media, *parameters = request.headers.get(hdrs.CONTENT_TYPE, "application/x-protobuf").split(";")
    named = {key.strip().lower(): value.strip().strip('"') for key, _, value in (each.partition("=") for each in parameters)}
    proto = named.get("proto", "prometheus.WriteRequest")
    if media.strip().lower() != "application/x-protobuf" or proto not in _VERSIONS:
        accepted = " or ".join(f"application/x-protobuf;proto={each}" for each in _VERSIONS)
        raise HttpRefusal(415, f"Content-Type {request.headers.get(hdrs.CONTENT_TYPE)} is not accepted; send {accepted}")
    return _VERSIONS[proto]


def _refusal(error: Exception, limit: int) -> Exception:
    match error:
        case HttpRefusal() if error.status in _RETRIED:
            return HttpRefusal(503, error.reason, error.retry_after or 1)
        case TooLarge():
            return HttpRefusal(413, f"the request becomes more than the {limit} bytes that are accepted; send smaller requests")
        case _:
            return error
