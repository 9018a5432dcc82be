"""The Kubernetes API as a client: pages of a list, and a watch's events, as msgspec structs over aiohttp.

Not kubernetes-asyncio or a generated client: 5,000 pods cost 67-210 MB there, because whole objects are decoded; here a struct names the
fields that are wanted and the decoder skips the rest.

    ApiError        the server said no: code, its message, who may not do what
    └── Gone        410: this resourceVersion or continue token is too old; list again

Anything that breaks on the way (connection, time-out, half a line) is an aiohttp.ClientError, OSError or TimeoutError.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

import aiohttp
import msgspec
from yarl import URL

from lockgate.kit.sometimes import Sometimes
from lockgate.kube.access import Access
from lockgate.kube.resources import Resource
from lockgate.net.proxy import proxy_for
from lockgate.pipeline.contract import Context

T = TypeVar("T")

REQUEST_SECONDS = 60.0
"""For one page of a list; the API server's own limit for requests that are not watches (--request-timeout)."""
IDLE_SECONDS = 150.0
"""A watch without a byte for this long is taken for dead: API servers send a bookmark about each minute."""
MAX_PAGE_BYTES = 256 << 20
MAX_EVENT_BYTES = 16 << 20
"""Ten times what etcd stores of one object; more is no event."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to list and watch. Hashable, so that equal queries share one cache."""

    resource: Resource
    namespace: str = ""
    label_selector: str = ""
    field_selector: str = ""
    metadata_only: bool = False
    """Ask for PartialObjectMetadata: names, labels, annotations and owners, without spec and status."""

    @property
    def where(self) -> str:
        return f"namespace {self.namespace}" if self.namespace else "all namespaces" if self.resource.namespaced else "the cluster"


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, text: str, code: int, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.code, self.retry_after = code, retry_after


class Gone(ApiError):
    """What was asked for has left the server's history."""


class ListMeta(msgspec.Struct):
    resourceVersion: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remainingItemCount: int | None = None
    annotations: dict[str, str] | None = None


class Page(msgspec.Struct, Generic[T]):
    """One page of a list, all pages of which show the same moment."""

    metadata: ListMeta
    items: list[T]


class Event(msgspec.Struct, Generic[T]):
    """One event of a watch; a bookmark has no object and says only how far the watch has come."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    version: str
    object: T | None = None
    initial_end: bool = False
    """The bookmark after which a WatchList has sent everything that existed when it began."""


class _Frame(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _RawPage(msgspec.Struct):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class _OnlyMeta(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)


class _Details(msgspec.Struct):
    retryAfterSeconds: int | None = None


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


class Client:
    """One API server. Enter it before use; one client serves any number of lists and watches."""

    def __init__(self, access: Access, context: Context) -> None:
        """`context` is that of the component that asks first. Raises TlsError where the certificates cannot be used."""
        self.access, self.context = access, context
        self._session: aiohttp.ClientSession | None = None
        proxy = access.proxy or str(proxy_for(URL(access.url), os.environ) or "")
        self._tls = access.tls.follow(context) if "https:" in (access.url[:6], proxy[:6]) else None
        self._sometimes = Sometimes(context.clock)

    async def __aenter__(self) -> Self:
        # A watch holds its connection, and a metadata tier has up to eight of them; a pool's limit would let lists starve behind them.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def explain(self, error: Exception) -> str:
        """Why the server could not be reached, for a person."""
        url = URL(self.access.url)
        proxy = URL(self.access.proxy) if self.access.proxy else proxy_for(url, os.environ)
        met = await self.access.tls.explain(error, url.host or "", url.port or 443, proxy)
        return met or f"{type(error).__name__}: {error}"

    async def pages(self, query: Query, type_: type[T], limit: int = 500) -> AsyncIterator[Page[T]]:
        """The whole list, page by page, as it was at one moment. Raises Gone where that moment left the history between two pages.

        `limit` 0 asks for everything at once: dear in memory, and the way out after Gone.
        """
        pages, objects = msgspec.json.Decoder(_RawPage), msgspec.json.Decoder(type_)
        parameters, accept = self._parameters(query), "PartialObjectMetadataList"
        if limit:
            parameters["limit"] = str(limit)
        while True:
            async with self._open("list", query, parameters, accept, REQUEST_SECONDS) as response:
                page = decoded(pages, await _read(response))
            items = (self._object(objects, raw, query) for raw in page.items or ())
            yield Page(page.metadata, [item for item in items if item is not None])
            if not page.metadata.continue_:
                return
            parameters["continue"] = page.metadata.continue_

    async def watch(
        self, query: Query, type_: type[T], version: str, *, initial: bool = False, timeout_seconds: int = 300
    ) -> AsyncIterator[Event[T]]:
        """Events after `version`, until the server ends the watch (at the latest after `timeout_seconds`) or is silent for IDLE_SECONDS: a
        quiet cluster and a dead connection look alike, and resuming serves both.

        `initial` asks for a WatchList: everything that exists as ADDED, then a bookmark with `initial_end`. Raises ApiError 400 or 422
        where the server does not offer that, Gone where `version` is too old.
        """
        parameters = self._parameters(query) | {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout_seconds)}
        if initial:
            parameters |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        else:
            parameters["resourceVersion"] = version
        frames, objects = msgspec.json.Decoder(_Frame), msgspec.json.Decoder(type_)
        metas, statuses = msgspec.json.Decoder(_OnlyMeta), msgspec.json.Decoder(_Status)
        async with self._open(
            "watch", query, parameters, "PartialObjectMetadata", timeout_seconds + IDLE_SECONDS, IDLE_SECONDS
        ) as response:
            async for line in _lines(response):
                frame = decoded(frames, line)
                match frame.type:
                    case "ERROR":
                        raise self._error(decoded(statuses, frame.object), "watch", query)
                    case "BOOKMARK":
                        meta = decoded(metas, frame.object).metadata
                        ended = (meta.annotations or {}).get("k8s.io/initial-events-end") == "true"
                        yield Event("BOOKMARK", meta.resourceVersion, None, ended)
                    case "ADDED" | "MODIFIED" | "DELETED" as kind:
                        version = decoded(metas, frame.object).metadata.resourceVersion
                        yield Event(kind, version, self._object(objects, frame.object, query))

    def _object(self, decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, query: Query) -> T | None:
        try:
            return decoder.decode(raw)
        except msgspec.DecodeError as error:
            # The others go on; one object of a shape that nobody expected must not cost the whole cluster's metadata.
            if (kept_back := self._sometimes.now((query, str(error)))) is not None:
                what = query.resource.qualified
                self.context.logger.warning("an object of %s is left out: %s (%d more were not logged)", what, error, kept_back)
            return None

    def _parameters(self, query: Query) -> dict[str, str]:
        selectors = {"labelSelector": query.label_selector, "fieldSelector": query.field_selector}
        return {name: value for name, value in selectors.items() if value}

    @asynccontextmanager
    async def _open(
        self, verb: str, query: Query, parameters: Mapping[str, str], partial: str, total: float, idle: float = REQUEST_SECONDS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("a Kubernetes client must be entered before it is used")
        url = self.access.url + query.resource.path(query.namespace)
        accept = f"application/json;as={partial};g=meta.k8s.io;v=v1,application/json" if query.metadata_only else "application/json"
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=10, sock_read=idle)
        token = self.access.bearer()
        for attempt in (1, 2):
            headers = {"Accept": accept, "User-Agent": "lockgate"} | ({"Authorization": f"Bearer {token}"} if token else {})
            async with self._session.get(
                url,
                params=parameters,
                headers=headers,
                timeout=timeout,
                ssl=self._tls.context() if self._tls else True,
                proxy=self.access.proxy or proxy_for(URL(url), os.environ),
                server_hostname=self.access.tls.server_name_override or None,
            ) as response:
                if response.status == 401 and attempt == 1:
                    # The token may have rotated between the read and the server's look at it.
                    before, token = token, self.access.bearer()
                    if token != before:
                        continue
                if response.status != 200:
                    raise await self._refusal(response, verb, query)
                yield response
                return

    async def _refusal(self, response: aiohttp.ClientResponse, verb: str, query: Query) -> ApiError:
        body = (await response.content.read(64 << 10)).strip()
        try:
            status = msgspec.json.decode(body, type=_Status)
        except msgspec.DecodeError:
            # A proxy on the way, or a server that is starting, answers in words of its own.
            status = _Status(message=body[:200].decode("utf-8", "replace"))
        status.code = response.status
        after = response.headers.get("Retry-After", "")
        if after.isdigit() and (status.details is None or status.details.retryAfterSeconds is None):
            status.details = _Details(int(after))
        return self._error(status, verb, query)

    def _error(self, status: _Status, verb: str, query: Query) -> ApiError:
        what = f"cannot {verb} {query.resource.qualified} in {query.where} at {self.access.url}: "
        what += f"{status.code} {status.message or status.reason}"
        match status.code:
            case 401:
                source = f"the token in {self.access.token_file}" if self.access.token_file else "these credentials"
                what += f"; the API server does not accept {source}"
            case 403:
                what += (
                    f'; grant this service account the verb "{verb}" on resource "{query.resource.plural}" '
                    f'of API group "{query.resource.group}" in {query.where} (`lockgate needs` lists everything it asks)'
                )
            case 404:
                what += f"; this API server has no {query.resource.api_version} {query.resource.plural}"
        after = status.details.retryAfterSeconds if status.details else None
        return (Gone if status.code == 410 else ApiError)(what, status.code, after)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_PAGE_BYTES:
            raise aiohttp.ClientPayloadError(f"a page of {response.url.path} is larger than {MAX_PAGE_BYTES >> 20} MiB")
    return bytes(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines alone: what a broken connection leaves of one is dropped, and comes again after the resume. Ends where nothing comes."""
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            chunk = await response.content.readany()
        except TimeoutError:
            return
        if not chunk:
            return
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        size += len(first)
        if size > MAX_EVENT_BYTES:
            raise aiohttp.ClientPayloadError(f"an event of {response.url.path} is larger than {MAX_EVENT_BYTES >> 20} MiB")
        for following in others:
            if line := b"".join(pieces):
                yield line
            pieces, size = [following], len(following)


def decoded(decoder: msgspec.json.Decoder[T], content: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise aiohttp.ClientPayloadError(f"the answer is no Kubernetes API's: {error}") from error
