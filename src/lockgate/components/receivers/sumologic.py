"""Receives what is meant for Sumo Logic: the paths of HTTP sources, of OTLP sources and of installed collectors.

    /receiver/v1/http/TOKEN                        lines of text or JSON; Prometheus text
    /receiver/v1/otlp/TOKEN/v1/{logs,metrics,traces}
    /receiver, /receiver/v1/{logs,metrics,traces}  the same without a token, as Sumo Logic's mock serves it
    /api/v1/collector/{logs,metrics,traces}        either

So a cluster that sends to Sumo Logic is shown what it sends by changing one host name. Text carries no ids and no times: a line is a record
that was observed when it came, and a request that is sent again is stored again, unless it has the id that our own exporter gives it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from pydantic import Field

from lockgate.batch import Batch, Signal
from lockgate.kit.settings import Secret
from lockgate.kit.units import Duration
from lockgate.net.http_server import HttpRefusal, HttpServerSettings
from lockgate.net.intake import Intake
from lockgate.net.otlp_http import JSON, PROTOBUF, OtlpHttp
from lockgate.pipeline.contract import Context, Receiver, component
from lockgate.pipeline.errors import Refusal
from lockgate.wire.protobuf import DecodeError, key_values

PROMETHEUS = "application/vnd.sumologic.prometheus"
_OTHER_METRICS = {"application/vnd.sumologic.carbon2", "application/vnd.sumologic.graphite"}
_OTLP_PATH = re.compile(r"(?:/receiver/v1|/receiver/v1/otlp/(?P<token>[^/]+)/v1|/api/v1/collector)/(?P<signal>logs|metrics|traces)")
_SOURCE_PATH = re.compile(r"/receiver/?|/receiver/v1/http(?:/(?P<token>[^/]+))?/?|/api/v1/collector/(?P<signal>logs|metrics)")
_SOURCE = {"X-Sumo-Host": "_sourceHost", "X-Sumo-Name": "_sourceName", "X-Sumo-Category": "_sourceCategory"}


class SumologicSettings(HttpServerSettings):
    """Where to receive what is meant for Sumo Logic."""

    endpoint: str = "127.0.0.1:3000"
    """host:port to listen on."""
    tokens: list[Secret] = []
    """Tokens that a path may hold; without any, every token is taken, and paths without one too."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A client that still waits for its acknowledgement after so long is asked to try again (503)."""


@component("sumologic", SumologicSettings)
class SumologicReceiver(Receiver[SumologicSettings]):
    """Serves Sumo Logic's receiver paths. A client has its answer when its records are delivered, or durable."""

    transport = "http"

    def __init__(self, settings: SumologicSettings, context: Context) -> None:
        super().__init__(settings, context)
        intake = Intake(self, self._count_refused, settings.ack_timeout)
        self._http = _SumologicHttp(settings, {}, context, intake)
        self._http.tokens = [token.get_secret_value() for token in settings.tokens]

    def _count_refused(self, batch: Batch, transport: str) -> None:
        """For what `emit` was not allowed to finish."""
        self._count(batch.signal, "refused", transport).add(batch.count)

    async def start(self) -> None:
        await self._http.__aenter__()

    async def stop(self) -> None:
        await self._http.__aexit__(None, None, None)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._http.port


class _SumologicHttp(OtlpHttp):
    tokens: list[str]

    def signal(self, path: str) -> Signal | None:
        match = _OTLP_PATH.fullmatch(path)
        return Signal(match["signal"]) if match else None

    async def serve(self, request: BaseRequest) -> Response:
        source, otlp = _SOURCE_PATH.fullmatch(request.path), _OTLP_PATH.fullmatch(request.path)
        try:
            if source is None and otlp is None:
                raise HttpRefusal(404, "nothing is served at this path; see receivers.sumologic in the documentation")
            found = otlp or source
            if self.tokens and not _is_known(found.groupdict().get("token") if found else None, self.tokens):
                raise HttpRefusal(401, "the path's token is not accepted")
            if otlp and (source is None or request.content_type in (PROTOBUF, JSON)):
                return await super().serve(request)
            assert source is not None
            return await self._take_lines(request, source.groupdict()["signal"])
        except (HttpRefusal, Refusal, DecodeError) as error:
            return self.refusals.answer(request, error)

    async def _take_lines(self, request: BaseRequest, wanted: str | None) -> Response:
        if request.method != "POST":
            raise HttpRefusal(405, f"{request.method} is not served; use POST")
        if request.content_type in _OTHER_METRICS:
            raise HttpRefusal(415, f"{request.content_type} is not accepted; send Prometheus text ({PROMETHEUS}) or OTLP")
        signal = Signal.METRICS if request.content_type == PROMETHEUS else Signal.LOGS
        if wanted is not None and signal != wanted:
            raise HttpRefusal(415, f"{request.content_type} is not accepted for {wanted}")
        if not self.intake.serves(signal):
            raise HttpRefusal(404, f"no pipeline takes {signal} from {self.context.id}")
        resource = resource_of(request.headers)
        now = self.context.clock.time_unix_nano()

        def decode(body: bytes, signal: Signal) -> bytes:
            return metrics_request(body, resource, now) if signal is Signal.METRICS else logs_request(body, resource, now)

        await self.hand_on(request, signal, decode)
        return Response()


def _is_known(token: str | None, tokens: list[str]) -> bool:
    return any([hmac.compare_digest((token or "").encode(), known.encode()) for known in tokens])  # noqa: C419  # each in constant time


def resource_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The resource attributes that X-Sumo-Fields ("k=v, k=v") and the source headers tell."""
    fields = (field.partition("=") for field in _clean(headers.get("X-Sumo-Fields", "")).split(","))
    resource = {key.strip(): value.strip() for key, equals, value in fields if equals and key.strip()}
    return resource | {key: _clean(headers[header]) for header, key in _SOURCE.items() if headers.get(header)}


def _clean(header: str) -> str:
    # Bytes of a header that are not UTF-8 arrive as lone surrogates, which no protobuf string takes.
    return header.encode("utf-8", "replace").decode()


def logs_request(body: bytes, resource: dict[str, str], now_unix_nano: int) -> bytes:
    """A record per line, as an export request. A JSON object with the key `log` is what the collector's json format makes of a record:
    that is its body, the other keys its attributes. Raises DecodeError for what is not UTF-8."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    entry.resource.MergeFromString(key_values(1, resource.items()))
    scope = entry.scope_logs.add()
    for line in _text(body).split("\n"):
        text = line.removesuffix("\r")
        if not text:
            continue
        record = scope.log_records.add(observed_time_unix_nano=now_unix_nano)
        parsed = _json_record(text)
        if parsed is None:
            record.body.string_value = text
            continue
        if "log" in parsed:
            _set(record.body, parsed.pop("log"))
        for key, value in parsed.items():
            _set(record.attributes.add(key=key).value, value)
    return request.SerializeToString()


def _json_record(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) and "log" in parsed else None


def _set(target: Any, value: Any, depth: int = 0) -> None:
    match value:
        case bool():
            target.bool_value = value
        case int() if -(2**63) <= value < 2**63:
            target.int_value = value
        case int() | float():
            target.double_value = float(value)
        case str():
            target.string_value = value
        case list() | dict() if depth == _DEPTH:
            target.string_value = msgspec.json.encode(value).decode()
        case list():
            target.array_value.SetInParent()
            for item in value:
                _set(target.array_value.values.add(), item, depth + 1)
        case dict():
            target.kvlist_value.SetInParent()
            for key, item in value.items():
                _set(target.kvlist_value.values.add(key=key).value, item, depth + 1)


_DEPTH = 20
"""Lists and maps in each other; what is deeper stays JSON text. Protobuf ends at 100 messages; a level takes up to 3."""

_SAMPLE = re.compile(r"(?P<name>[^\s{]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+(?P<stamp>-?\d{1,18}))?")
_LABEL = re.compile(r'\s*([^=,{}"\s]+)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def metrics_request(body: bytes, resource: dict[str, str], now_unix_nano: int) -> bytes:
    """A gauge per name, a point per sample, as an export request; raises DecodeError naming the line that is no sample."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest()
    entry = request.resource_metrics.add()
    entry.resource.MergeFromString(key_values(1, resource.items()))
    scope = entry.scope_metrics.add()
    metrics: dict[str, Any] = {}
    for number, line in enumerate(_text(body).split("\n"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            sample = _SAMPLE.fullmatch(text)
            if sample is None:
                raise ValueError('is no sample: name{label="value"} number milliseconds')
            labels = list(_labels(sample["labels"] or ""))
            value = float(sample["value"])
            stamp = int(sample["stamp"]) * 1_000_000 if sample["stamp"] else now_unix_nano
            if not 0 <= stamp < 2**63:
                raise ValueError("has a time before 1970 or after 2262")
        except ValueError as error:
            raise DecodeError(f"line {number} {error}: {text[:200]}") from None
        name = sample["name"]
        if name not in metrics:
            metrics[name] = scope.metrics.add(name=name).gauge.data_points
        point = metrics[name].add(time_unix_nano=stamp, as_double=value)
        for key, label in labels:
            point.attributes.add(key=key).value.string_value = label
    return request.SerializeToString()


def _labels(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f"has malformed labels at {text[position : position + 20]!r}")
        yield match[1], re.sub(r'\\[\\"n]', lambda escape: _ESCAPES[escape[0]], match[2])
        position = match.end()


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the body is not UTF-8: {error}") from None
