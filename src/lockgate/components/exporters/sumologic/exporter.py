"""Deliver to Sumo Logic: HTTP sources (text, JSON, Prometheus) and OTLP sources.

A source's URL holds its token, so it is a secret: logs, metrics and status show scheme and host alone. Answers (the collector's sumologic
exporter, and Sumo Logic's "HTTP Source upload"):

    200, 204             delivered, unless the body tells of a refusal: counted, with its reason
    400, 413, 414, 415,
    422, 431             refused for good: the same bytes would be refused again
    all others           tried again, with back-off and Retry-After; 401, 403 and 404 say in the status what to look at
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import msgspec
from pydantic import Field, model_validator

from lockgate.batch import Batch, Signal
from lockgate.components.exporters.sumologic.formats import Request, decomposed, log_requests, prometheus_requests
from lockgate.kit.units import Duration, Size
from lockgate.net.batch_ids import ID_HEADER, headers_of
from lockgate.net.compression import Encoding
from lockgate.net.http_client import Answer, HttpClient, HttpClientSettings
from lockgate.pipeline.contract import Context, component
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.sending.exporter import QueuedExporter, Rejected
from lockgate.sending.otlp_answers import partial_success
from lockgate.sending.queue import Entry
from lockgate.sending.settings import SendingSettings

_NEVER = {400, 413, 414, 415, 422, 431}
_LOOK_AT = {
    401: "the source's token or the credentials are not accepted; look at endpoint and headers",
    403: "access is denied; look at endpoint and headers",
    404: "there is no such source; look at endpoint",
}
_OTLP_TYPE = "application/x-protobuf"


class SumologicSettings(HttpClientSettings, SendingSettings):
    """Where to deliver, and in which formats."""

    timeout: Duration = Field(30.0, ge=0)
    """How long one request may take."""
    compression: Encoding = "gzip"
    """How bodies are compressed: gzip, zstd, deflate or none."""
    compress_encoding: Encoding | None = None
    """An older name of `compression`."""
    log_format: Literal["otlp", "json", "text"] = "otlp"
    """`otlp` keeps everything. `json` and `text` are for HTTP sources: a line per record, with the resource's attributes in headers."""
    metric_format: Literal["otlp", "prometheus"] = "otlp"
    """`otlp`, or Prometheus text for an HTTP source."""
    trace_format: Literal["otlp"] = "otlp"
    """Traces are sent as OTLP."""
    client: str = "lockgate"
    """The value of X-Sumo-Client, by which Sumo Logic tells collectors apart."""
    max_request_body_size: Size = Field(1 << 20, ge=1024)
    """Bytes of a json, text or prometheus body, before compression. A single longer line is sent alone."""
    sticky_session_enabled: bool = False
    """Keep to one backend: send back the load balancer's cookie (AWSALB)."""
    decompose_otlp_histograms: bool = False
    """Send each histogram as gauges NAME_sum, NAME_count and NAME_bucket (cumulative, with the attribute `le`)."""
    decompose_otlp_summaries: bool = False
    """Send each summary as a gauge with the attribute `quantile`, and counters NAME_count and NAME_sum."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_formats(cls, value: Any) -> Any:
        if isinstance(value, dict) and (old := value.get("metric_format")) in ("carbon2", "graphite"):
            raise ValueError(f"metric_format {old} is no longer supported by Sumo Logic's collector; write otlp or prometheus")
        return value

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if not self.endpoint:
            raise ValueError(
                "endpoint is empty, and registering a collector through the sumologic extension is not offered here; "
                "write the URL of an HTTP source (json, text, prometheus) or of an OTLP source: "
                "Data Management > Collection > Add Source > HTTP Logs & Metrics, or OTLP/HTTP"
            )
        if self.compress_encoding is not None:
            object.__setattr__(self, "compression", self.compress_encoding)
        return self

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.compress_encoding is not None:
            yield "compress_encoding is the older name of compression"

    def format(self, signal: Signal) -> str:
        """How this signal is sent."""
        return {"logs": self.log_format, "metrics": self.metric_format, "traces": self.trace_format}[signal.value]

    def url(self, signal: Signal) -> str:
        """Where this signal goes: an HTTP source's URL as it is, an OTLP source's with the signal's path unless it has it."""
        path = f"/v1/{signal}"
        parts = urlsplit(self.endpoint)
        if self.format(signal) != "otlp" or parts.path.endswith(path):
            return self.endpoint
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


@component("sumologic", SumologicSettings)
class SumologicExporter(QueuedExporter[SumologicSettings]):
    """Delivers logs, metrics and traces to Sumo Logic's sources, and counts what they refuse even with a 200."""

    def __init__(self, settings: SumologicSettings, context: Context) -> None:
        client = HttpClient(settings, context)
        super().__init__(settings, context, client)
        self._client = client
        self._urls = {signal: settings.url(signal) for signal in Signal}
        self._cookie = ""
        self._done: dict[asyncio.Task[Any] | None, dict[int, _Verdict]] = {}
        """What became of the requests of the batch under way in a task: what is in here needs no other attempt."""

    @property
    def compression(self) -> tuple[str, int | None]:
        return self.settings.compression, self.settings.compression_params.level

    async def _attempts(self, batch: Batch, entries: Sequence[Entry]) -> Rejected | None:
        task = asyncio.current_task()
        self._done[task] = {}
        try:
            return await super()._attempts(batch, entries)
        finally:
            del self._done[task]

    async def send(self, batch: Batch) -> Rejected | None:
        done, carried = self._done[asyncio.current_task()], 0
        # Made anew for each attempt: retries are rare, and a batch that waits for one should not be held in two forms.
        for number, request in enumerate(self._requests(batch)):
            carried += request.count
            if number not in done:
                done[number] = await self._post(batch, number, request)
        refused = [verdict for verdict in done.values() if verdict.rejected]
        reasons = "; ".join(dict.fromkeys(verdict.reason for verdict in refused))
        if refused and len(refused) == len(done) and all(verdict.status != 200 for verdict in refused):
            raise Permanent(reasons)
        rejected = sum(verdict.rejected for verdict in refused)
        if carried < batch.count:
            rejected += batch.count - carried
            reasons = "; ".join(filter(None, (reasons, "exponential histograms have no form in Prometheus text; use metric_format: otlp")))
        return Rejected(rejected, reasons) if rejected else None

    def _requests(self, batch: Batch) -> Iterator[Request]:
        settings = self.settings
        match batch.signal, settings.format(batch.signal):
            case Signal.LOGS, "json" | "text" as format:
                return log_requests(batch, format, settings.max_request_body_size)
            case Signal.METRICS, "prometheus":
                return prometheus_requests(batch, settings.max_request_body_size)
            case Signal.METRICS, _ if settings.decompose_otlp_histograms or settings.decompose_otlp_summaries:
                changed = decomposed(batch, histograms=settings.decompose_otlp_histograms, summaries=settings.decompose_otlp_summaries)
                return iter([Request(changed.payload, batch.count)])
            case _:
                return iter([Request(batch.payload, batch.count)])

    async def _post(self, batch: Batch, number: int, request: Request) -> _Verdict:
        """Raises Retryable where the request is to be sent again."""
        format = self.settings.format(batch.signal)
        kind = {"otlp": _OTLP_TYPE, "prometheus": "application/vnd.sumologic.prometheus"}.get(format, "application/x-www-form-urlencoded")
        headers = {"Content-Type": kind, "X-Sumo-Client": self.settings.client, **dict(request.headers)}
        if request.body is batch.payload:
            headers |= headers_of(batch)
        else:
            headers[ID_HEADER] = batch.id if format == "otlp" else f"{batch.id}-{number}"
        if self._cookie:
            headers["Cookie"] = f"AWSALB={self._cookie}"
        answer = await self._client.post(
            self._urls[batch.signal], request.body, headers, batch.encoded if request.body is batch.payload else None
        )
        if self.settings.sticky_session_enabled:
            self._keep_cookie(answer)
        if answer.status in (200, 202, 204):
            return _said(batch.signal, answer, request)
        if answer.status in _NEVER:
            return _Verdict(answer.status, request.count, f"Sumo Logic answered {answer.status}: {answer.text or 'no reason given'}")
        what = _LOOK_AT.get(answer.status, answer.text)
        now = self.context.clock.time_unix_nano() / 1e9
        raise Retryable(f"Sumo Logic answered {answer.status}: {what}", answer.retry_after(now))

    def _keep_cookie(self, answer: Answer) -> None:
        for name, value in answer.headers.items():
            if name.lower() == "set-cookie":
                try:
                    cookie = SimpleCookie(value).get("AWSALB")
                except CookieError:
                    continue
                if cookie is not None:
                    self._cookie = cookie.value


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How a request was answered: so many of its records were refused for good."""

    status: int
    rejected: int = 0
    reason: str = ""


def _said(signal: Signal, answer: Answer, request: Request) -> _Verdict:
    """What the body of a 200 says, if anything."""
    if not answer.body:
        return _Verdict(200)
    if _OTLP_TYPE in answer.headers.get("Content-Type", ""):
        partial = partial_success(signal, answer.body)
        return _Verdict(200, min(partial.records, request.count), partial.reason) if partial else _Verdict(200)
    try:
        said = msgspec.json.decode(answer.body, type=_ReceiverAnswer, strict=False)
    except msgspec.DecodeError:
        return _Verdict(200)  # not in the source's format: a gateway's page, perhaps; the request was taken
    why = f"Sumo Logic took the request but dropped records: {said.reason or 'no reason given'}"
    return _Verdict(200, min(said.rejected(request.count), request.count), why)


class _Fault(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_log_records: int = 0
    rejected_data_points: int = 0
    rejected_spans: int = 0
    error_message: str = ""


class _ReceiverAnswer(msgspec.Struct):
    """What a source says in JSON beside a 200: {"id", "code": "budget.exceeded", "status", "message", "errors": [{"code", "message"}]}."""

    code: str | int | None = None
    message: str | None = None
    errors: list[_Fault] | None = None
    partial_success: _PartialSuccess | None = msgspec.field(name="partialSuccess", default=None)

    def rejected(self, count: int) -> int:
        """Records refused. A source's own format does not say how many: "Message(s) in the request dropped" is counted as all."""
        if (partial := self.partial_success) is not None:
            return max(partial.rejected_log_records, partial.rejected_data_points, partial.rejected_spans, 0)
        is_refusal = bool(self.errors) or (isinstance(self.code, str) and "." in self.code) or "dropped" in (self.message or "")
        return count if is_refusal else 0

    @property
    def reason(self) -> str:
        """What was said, in one line."""
        if self.partial_success is not None:
            return self.partial_success.error_message
        faults = [self.code if isinstance(self.code, str) else None, self.message]
        faults += [str(part) for fault in self.errors or () for part in (fault.code, fault.message) if part]
        return ": ".join(dict.fromkeys(" ".join(str(fault).split())[:300] for fault in faults if fault))
