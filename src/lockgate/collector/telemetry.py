"""What the program says of itself: its log on standard error, its metrics on a port of its own."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse

from lockgate.collector.config import LogSettings, PrometheusSettings
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Context, Extension

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_NAMES = {logging.WARNING: "warn", logging.CRITICAL: "error"}


class _Formatter(logging.Formatter):
    """One line a record. Fields travel as `extra={"fields": {...}}`; the component's id is the logger's name below `lockgate.`."""

    def __init__(self, encoding: str, fields: dict[str, str]) -> None:
        super().__init__()
        self.as_json, self.fields = encoding == "json", fields

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level = _NAMES.get(record.levelno, record.levelname.lower())
        fields: dict[str, Any] = {**self.fields, **getattr(record, "fields", {})}
        component = record.name.removeprefix("lockgate.")
        if record.exc_info:
            fields["stacktrace"] = self.formatException(record.exc_info)
        if self.as_json:
            return json.dumps({"ts": stamp, "level": level, "component": component, "msg": record.getMessage(), **fields}, default=str)
        tail = f"\t{json.dumps(fields, default=str)}" if fields else ""
        return f"{stamp}\t{level}\t{component}\t{record.getMessage()}{tail}"


def set_up_logging(settings: LogSettings, resource: dict[str, str]) -> None:
    """Sends every logger to standard error as these settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(settings.encoding, {**resource, **settings.initial_fields}))
    logging.basicConfig(level=_LEVELS[settings.level.lower()], handlers=[handler], force=True)
    # A library's request log is per item, and its warnings about peers are not ours to repeat at info.
    for noisy in ("aiohttp.access", "h2", "hpack", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


class MetricsServer(Extension[PrometheusSettings]):
    """Serves the metrics at /metrics."""

    def __init__(self, settings: PrometheusSettings, context: Context) -> None:
        super().__init__(settings, context)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.server = HttpServer(HttpServerSettings(endpoint=f"{host}:{settings.port}"), context, self._answer)

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(1.0)

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        if request.path != "/metrics":
            raise HttpRefusal(404, f"nothing is at {request.path}; ask /metrics")
        settings = self.settings
        scope = None if settings.without_scope_info else "lockgate"
        text = self.context.metrics.render(counter_suffix="" if settings.without_type_suffix else "_total", scope=scope)
        return Response(text=text, content_type="text/plain", charset="utf-8", headers={"X-Content-Type-Options": "nosniff"})
