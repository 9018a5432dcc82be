"""Sends OTLP over HTTP (OTLP 1.5, https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from yarl import URL

from lockgate.batch import Batch, Signal
from lockgate.kit.units import Duration
from lockgate.net.batch_ids import PARTS_HEADER, headers_of
from lockgate.net.compression import Encoding
from lockgate.net.http_client import Answer, HttpClient, HttpClientSettings, check_url, safe_url
from lockgate.pipeline.contract import Context, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.otlp_answers import failure, partial_success
from lockgate.sending.settings import SendingSettings

_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_CONTENT_TYPES = {"proto": _PROTOBUF, "json": _JSON}


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
        client = HttpClient(settings, context)
        super().__init__(settings, context, client)
        self._client = client

    @property
    def compression(self) -> tuple[str, int | None]:
        return self.settings.compression, self.settings.compression_params.level

    async def send(self, batch: Batch) -> Rejected | None:
        url = self.settings.url(batch.signal)
        if not url:
            raise Permanent(f"no endpoint is set for {batch.signal}")
        body, encoded, headers = batch.payload, batch.encoded, {"Content-Type": _CONTENT_TYPES[self.settings.encoding], **headers_of(batch)}
        if self.settings.encoding == "json":
            body, encoded = await self.in_thread(_to_json, batch), {}
            headers.pop(PARTS_HEADER, None)  # they are not pieces of this body
        answer = await self._client.post(url, body, headers, encoded)
        if 200 <= answer.status < 300:
            is_json = _is(_JSON, answer)
            return partial_success(batch.signal, answer.body, json=is_json) if is_json or _is(_PROTOBUF, answer) else None
        reason = f"{safe_url(URL(url))} answered {answer.status}: {_reason(answer)}"
        if answer.status >= 500 or answer.status in (401, 403, 408, 429):
            raise Retryable(reason, answer.retry_after(self.context.clock.time_unix_nano() / 1e9))
        raise Permanent(reason)


def _to_json(batch: Batch) -> bytes:
    from lockgate.wire import otlp_json

    return otlp_json.encode(batch.message)


def _is(content_type: str, answer: Answer) -> bool:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() == content_type


def _reason(answer: Answer) -> str:
    """What the server says: OTLP puts a Status into the body, everybody else a text."""
    if _is(_PROTOBUF, answer):
        said = failure(answer.body)
        return "no readable reason" if said is None else _one_line(said)
    said = failure(answer.body, json=True) if _is(_JSON, answer) else None
    return answer.text or "no reason given" if said is None else _one_line(said)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500] or "no reason given"
