"""Health over HTTP: alive at `/`, ready at `/ready`, and at `/status` what is blocked, where, since when and why.

Alive means that the event loop answers; a component's task that dies ends the program, which a kubelet sees as well. An outage of a
backend makes the program not ready, never dead: restarting it would only lose what it holds.
"""

from __future__ import annotations

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse, json_response

from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings


class ResponseBody(ComponentSettings):
    """What `/` answers instead of its JSON."""

    healthy: str = ""
    """The body of a 200."""
    unhealthy: str = ""
    """The body of a 503; as `/` answers only when alive, it is used for `/ready`."""


class HealthCheckSettings(HttpServerSettings):
    """Where health is told."""

    endpoint: str = "localhost:13133"
    """`host:port` to listen on; without a host, on every address."""
    path: str = "/"
    """The path of the liveness answer."""
    response_body: ResponseBody = ResponseBody()
    """What to answer instead of JSON."""

    @property
    def purpose(self) -> str:
        return "health checks"


@component("health_check", HealthCheckSettings)
class HealthCheckExtension(Extension[HealthCheckSettings]):
    """Answers the kubelet, and whoever asks what is wrong."""

    def __init__(self, settings: HealthCheckSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.server = HttpServer(settings, context, self._answer)
        self._started = context.clock.monotonic()

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(1.0)

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise HttpRefusal(405, "only GET and HEAD are answered here")
        blocked = self._blocked()
        if request.path == self.settings.path:
            return self._body(200, self.settings.response_body.healthy, {"status": "Server available", "uptime_seconds": self._uptime()})
        if request.path == "/ready":
            text = self.settings.response_body.unhealthy if blocked else ""
            return self._body(503 if blocked else 200, text, {"ready": not blocked, "blocked": blocked})
        if request.path == "/status":
            components = {key: {"running": it.running, "custody": it.custody.value} for key, it in self.context.host.components.items()}
            facts = {name: fact() for name, fact in self.context.host.facts.items()}
            return json_response({"uptime_seconds": self._uptime(), "blocked": blocked, "components": components, **facts})
        raise HttpRefusal(404, f"nothing is at {request.path}; ask {self.settings.path}, /ready or /status")

    def _body(self, status: int, text: str, document: dict[str, object]) -> Response:
        return Response(status=status, text=text) if text else json_response(document, status=status)

    def _uptime(self) -> float:
        return round(self.context.clock.monotonic() - self._started, 3)

    def _blocked(self) -> list[dict[str, object]]:
        now = self.context.clock.monotonic()
        return [
            {"component": key, "reason": reason, "seconds": round(now - since, 1)}
            for key, status in self.context.host.statuses.items()
            for reason, since in status.blocked.values()
        ]
