"""Sends OTLP over HTTP (OTLP 1.5, https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, field_validator, model_validator
from yarl import URL

from lockgate.batch import Batch, Signal
from lockgate.kit.units import Duration
from lockgate.net.compression import Encoding
from lockgate.net.http_client import Answer, HttpClient, HttpClientSettings, check_url, safe_url
from lockgate.pipeline.contract import Context, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.settings import SendingSettings

_CONTENT_TYPES = {"proto": "application/x-protobuf", "json": "application/json"}


class OtlpHttpExporterSettings(HttpClientSettings, SendingSettings):
    """Where to send OTLP, and how."""

    timeout: Duration = Field(30.0, ge=0)
    """How long one attempt may take, from connecting to the end of the answer; 0 for no limit."""
    compression: Encoding = "gzip"
    """How bodies are compressed: gzip, zstd, deflate, zlib, snappy or none."""
    traces_endpoint: str = ""
    """The whole URL for traces, instead of `endpoint` with /v1/traces."""
    metrics_endpoint: str = ""
    """The whole URL for metrics, instead of `endpoint` with /v1/metrics."""
    logs_endpoint: str = ""
    """The whole URL for logs, instead of `endpoint` with /v1/logs."""
    encoding: Literal["proto", "json"] = "proto"
    """How requests are written. JSON costs several times the work of protobuf."""

    @field_validator("traces_endpoint", "metrics_endpoint", "logs_endpoint")
    @classmethod
    def _endpoints_are_urls(cls, value: str) -> str:
        if value:
            check_url(value)
        return value

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if not self.urls():
            raise ValueError("needs an endpoint, such as https://host:4318")
        return self

    def url(self, signal: Signal) -> str:
        """The URL for this signal; empty where it has none."""
        own = str(getattr(self, f"{signal}_endpoint"))
        return own or (f"{self.endpoint.rstrip('/')}/v1/{signal}" if self.endpoint else "")

    def urls(self) -> list[str]:
        return [url for signal in Signal if (url := self.url(signal))]

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        for signal in Signal:
            if not self.url(signal):
                yield f"there is no endpoint for {signal}: they are refused for good; set endpoint or {signal}_endpoint"


@component("otlphttp", OtlpHttpExporterSettings)
class OtlpHttpExporter(QueuedExporter[OtlpHttpExporterSettings]):
    """Sends OTLP over HTTP. Whatever may pass later is tried again: every 5xx, 429, 408, a closed connection, and 401 and 403 too, because
    credentials are replaced while the program runs. What remains of 4xx is refused for good."""

    def __init__(self, settings: OtlpHttpExporterSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._client = HttpClient(settings, context)

    async def start(self) -> None:
        await self._client.__aenter__()
        await super().start()

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await self._client.__aexit__(None, None, None)

    async def send(self, batch: Batch) -> Rejected | None:
        url = self.settings.url(batch.signal)
        if not url:
            raise Permanent(f"no endpoint is set for {batch.signal}")
        body = batch.payload
        if self.settings.encoding == "json":
            body = await self.in_thread(_to_json, batch)
        headers = {"Content-Type": _CONTENT_TYPES[self.settings.encoding], "X-Lockgate-Batch-Id": batch.id}
        answer = await self._client.post(url, body, headers)
        if 200 <= answer.status < 300:
            return _partial_success(answer, batch.signal)
        reason = f"{safe_url(URL(url))} answered {answer.status}: {_reason(answer)}"
        if answer.status >= 500 or answer.status in (401, 403, 408, 429):
            raise Retryable(reason, answer.retry_after(self.context.clock.time_unix_nano() / 1e9))
        raise Permanent(reason)


def _to_json(batch: Batch) -> bytes:
    from lockgate.wire import otlp_json

    return otlp_json.encode(batch.message)


def _is_json(answer: Answer) -> bool:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/json"


def _reason(answer: Answer) -> str:
    """What the server says: OTLP puts a Status into the body, everybody else a text."""
    if answer.headers.get("Content-Type", "").startswith("application/x-protobuf"):
        # Imported when a server says something: it costs 2 MB.
        from google.protobuf.message import DecodeError as ProtobufError
        from google.rpc.status_pb2 import Status

        try:
            return " ".join(Status.FromString(answer.body).message.split())[:500] or "no reason given"
        except ProtobufError:
            return "no readable reason"
    if _is_json(answer):
        try:
            said = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            said = None
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            return " ".join(said["message"].split())[:500]
    return answer.text or "no reason given"


def _partial_success(answer: Answer, signal: Signal) -> Rejected | None:
    if not answer.body:
        return None
    from google.protobuf.message import DecodeError as ProtobufError

    try:
        if _is_json(answer):
            said = msgspec.json.decode(answer.body)
            partial = said.get("partialSuccess") or said.get("partial_success") or {}
            name = {"logs": "rejectedLogRecords", "metrics": "rejectedDataPoints", "traces": "rejectedSpans"}[signal]
            records, reason = int(partial.get(name, 0)), str(partial.get("errorMessage", ""))
        elif answer.headers.get("Content-Type", "").startswith("application/x-protobuf"):
            message = _response_type(signal).FromString(answer.body).partial_success
            name = {"logs": "rejected_log_records", "metrics": "rejected_data_points", "traces": "rejected_spans"}[signal]
            records = getattr(message, name)
            reason = message.error_message
        else:
            return None
    except (ProtobufError, msgspec.DecodeError, ValueError, AttributeError, TypeError):
        return None  # the server took the batch; an unreadable remark does not undo that
    if not records and not reason:
        return None
    return Rejected(max(records, 0), f"the server took the request but not all of it: {reason or 'no reason given'}")


def _response_type(signal: Signal) -> Any:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    types = {"logs": ExportLogsServiceResponse, "metrics": ExportMetricsServiceResponse, "traces": ExportTraceServiceResponse}
    return types[signal]
