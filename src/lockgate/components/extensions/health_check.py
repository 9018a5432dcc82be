"""Health over HTTP: alive at `/`, ready at `/ready`, and at `/status` what is blocked, where, since when and why.

Alive means that the event loop answers; a component's task that dies ends the program, which a kubelet sees as well. An outage of a
backend makes the program not ready, never dead: restarting it would only lose what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web

from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Listen, Need


class ResponseBody(ComponentSettings):
    """What `/` answers instead of its JSON."""

    healthy: str = ""
    """The body of a 200."""
    unhealthy: str = ""
    """The body of a 503; as `/` answers only when alive, it is used for `/ready`."""


class HealthCheckSettings(ComponentSettings):
    """Where health is told."""

    endpoint: str = "localhost:13133"
    """host:port to listen on."""
    path: str = "/"
    """The path of the liveness answer."""
    response_body: ResponseBody = ResponseBody()
    """What to answer instead of JSON."""

    def needs(self) -> Iterator[Need]:
        host, _, port = self.endpoint.rpartition(":")
        yield Listen(host.strip("[]"), int(port), "health checks")


@component("health_check", HealthCheckSettings)
class HealthCheckExtension(Extension[HealthCheckSettings]):
    """Answers the kubelet, and whoever asks what is wrong."""

    def __init__(self, settings: HealthCheckSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._runner: web.AppRunner | None = None
        self._started = 0.0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get(self.settings.path, self._alive)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        self._started = self.context.clock.monotonic()
        await self._runner.setup()
        (listen,) = self.settings.needs()
        assert isinstance(listen, Listen)
        try:
            await web.TCPSite(self._runner, listen.host or None, listen.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(error.errno, f"cannot listen on {self.settings.endpoint} for health checks: {error.strerror}") from error

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def _alive(self, _: web.Request) -> web.Response:
        if self.settings.response_body.healthy:
            return web.Response(text=self.settings.response_body.healthy)
        return web.json_response({"status": "Server available", "uptime_seconds": self._uptime()})

    async def _ready(self, _: web.Request) -> web.Response:
        blocked = self._blocked()
        if blocked and self.settings.response_body.unhealthy:
            return web.Response(text=self.settings.response_body.unhealthy, status=503)
        return web.json_response({"ready": not blocked, "blocked": blocked}, status=503 if blocked else 200)

    async def _status(self, _: web.Request) -> web.Response:
        components = {key: {"running": it.running, "custody": it.custody.value} for key, it in self.context.host.components.items()}
        return web.json_response({"uptime_seconds": self._uptime(), "blocked": self._blocked(), "components": components})

    def _uptime(self) -> float:
        return round(self.context.clock.monotonic() - self._started, 3)

    def _blocked(self) -> list[dict[str, object]]:
        now = self.context.clock.monotonic()
        return [
            {"component": key, "reason": reason, "seconds": round(now - since, 1)}
            for key, status in self.context.host.statuses.items()
            for reason, since in status.blocked.values()
        ]
