"""Where the lines are: unread on disk, waiting, delivered, rejected or lost, by container and file, asked over HTTP on loopback.

    GET /where   ?namespace= &pod= &container=    JSON; `*` and `?` as in a shell

Each request carries the token from the state directory (mode 0600): loopback is shared by all users of a machine, and names of pods and
files are not everybody's. `lockgate where` asks here.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from pydantic import Field

from lockgate.net import access
from lockgate.net.http_server import HttpRefusal, HttpServer, HttpServerSettings
from lockgate.net.loopback import LoopbackSettings
from lockgate.pipeline.contract import Context, Extension, Kind, Receiver, component
from lockgate.pipeline.errors import Retryable
from lockgate.pipeline.ledger import Chosen, Sources
from lockgate.sending.ledger import Bookkeeper, anything_lost, report


class LedgerSettings(LoopbackSettings):
    """Where the ledger answers, and how much it tells."""

    PURPOSE = "questions to the ledger"

    endpoint: str = "127.0.0.1:13134"
    """host:port on loopback; port 0 takes a free one (clients find it through the state directory)."""
    max_files: int = Field(1000, ge=1)
    """Files that one answer tells of; of more, those of the containers with the most unread. Totals are of all."""


@component("ledger", LedgerSettings)
class LedgerExtension(Extension[LedgerSettings]):
    """Answers whoever can read its token file; one question at a time."""

    def __init__(self, settings: LedgerSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.server = HttpServer(HttpServerSettings(endpoint=settings.endpoint), context, self._answer)
        self._access: access.Access | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        await self.server.start()
        host = self.settings.endpoint.rpartition(":")[0]
        try:
            self._access = access.publish(self.settings.directory, access.LEDGER, f"{host}:{self.server.port}")
        except OSError as error:
            await self.server.stop(0.0)
            reason = f"cannot leave the ledger's token in {self.settings.directory}: {error.strerror}; set state_directory"
            raise OSError(error.errno, reason) from error

    async def stop(self) -> None:
        if self._access is not None:
            access.withdraw(self.settings.directory, access.LEDGER, self._access)
        await self.server.stop(1.0)

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        if self._access is None or not self._access.allows(request.headers.get("Authorization", "")):
            raise HttpRefusal(401, f"the token of {self.settings.directory}/{access.LEDGER.file} is missing or wrong")
        if request.path != "/where":
            raise HttpRefusal(404, f"nothing is at {request.path}; ask /where")
        if request.method != "GET":
            raise HttpRefusal(405, "only GET is answered here")
        if unknown := set(request.query) - {"namespace", "pod", "container"}:
            raise HttpRefusal(400, f"unknown parameters: {', '.join(sorted(unknown))}")
        if self._turn.locked():
            raise HttpRefusal(503, "another question is being answered; try again", 1.0)
        async with self._turn:
            body = await self._where(Chosen(**request.query))
        return Response(body=body, content_type="application/json")

    async def _where(self, chosen: Chosen) -> bytes:
        host = self.context.host
        queues: dict[str, Bookkeeper] = {}
        names: dict[int, str] = {}
        for each in host.components.values():
            if each.keeps_accounts and isinstance(each, Bookkeeper):
                name = each.context.pipeline or each.context.id
                while name in queues:
                    name += "'"  # a pipeline whose exporters keep their queues in several storages
                queues[name] = each
                names[id(each)] = name
        receivers: dict[str, Sources] = {}
        behind: dict[str, list[str]] = {}
        problems: list[str] = []
        for each in list(host.components.values()):
            if each.context.kind is not Kind.RECEIVER or not isinstance(each, Receiver):
                continue
            behind[each.context.id] = [names[id(queue)] for queue in host.behind(each.context.id) if id(queue) in names]
            try:
                if (found := await each.sources(chosen)) is not None:
                    receivers[each.context.id] = found
            except Retryable as error:
                problems.append(f"receivers/{each.context.id}: {error}")
        now = self.context.clock.time_unix_nano()

        def put_together() -> bytes:
            told = report(receivers, queues, behind, now=now, most=self.settings.max_files)
            told.problems += problems
            return msgspec.json.encode({"lost": anything_lost(told, chosen), **msgspec.structs.asdict(told)})

        return await self.in_thread(put_together)
