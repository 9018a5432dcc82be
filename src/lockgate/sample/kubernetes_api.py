"""The sample cluster's API server: the store over HTTP, in the words of a kube-apiserver (Kubernetes API Concepts; API Conventions).

Serves get, list (pages, exact versions), watch (resume, bookmarks, WatchList, 410 Gone inside the stream), create, update, merge patch,
status and delete, and PartialObjectMetadata for all of these; JSON alone. What is not here is refused as a real server would that does not
have it, so that a client cannot come to rely on the sample.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from lockgate.kube.resources import KNOWN, PODS, Resource
from lockgate.sample.kubernetes_store import Object, ObjectStore, Selection, StoreError, Watcher, of_resource

MAX_BODY_BYTES = 3 << 20
"""A kube-apiserver's own limit for a request."""
BOOKMARK_SECONDS = 60.0
LAST_BOOKMARK_SECONDS = 2.0
"""A watch that is about to end says how far it came this long before."""
DEFAULT_WATCH_SECONDS = 1800
_RESOURCES = {(resource.group, resource.version, resource.plural): resource for resource in KNOWN}
ANONYMOUS = "system:anonymous"
_INITIAL_END = {"k8s.io/initial-events-end": "true"}
May = Callable[[str, str, Resource, str], bool]
"""(user, verb, resource, namespace) -> may they."""


class SampleApi:
    """One API server over one store. `tokens` maps bearer tokens to users; without any, everybody is served."""

    def __init__(
        self,
        store: ObjectStore,
        tokens: Mapping[str, str] | None = None,
        may: May = lambda user, verb, resource, namespace: True,
        bookmark_seconds: float = BOOKMARK_SECONDS,
        watch_list: bool = True,
        middlewares: tuple[Middleware, ...] = (),
    ) -> None:
        self.store, self.tokens = store, dict(tokens or {})
        self._may, self._bookmark_seconds, self._watch_list = may, bookmark_seconds, watch_list
        self.app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_statuses, *middlewares])
        self.app.router.add_get("/{path:version|healthz|livez|readyz}", self._about)
        self.app.router.add_route("*", "/{path:.*}", self._handle)

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Serves until left; gives the URL."""
        runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, ssl_context=tls)
            await site.start()
            yield f"{'https' if tls else 'http'}://{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _about(self, request: web.Request) -> web.Response:
        if request.path == "/version":
            return _json({"major": "1", "minor": "34", "gitVersion": "v1.34.0-lockgate-sample", "platform": "sample"})
        return web.Response(text="ok")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        user = self._user(request)
        parts = request.path.strip("/").split("/")
        if len(parts) < 3 or parts[0] not in ("api", "apis"):
            return self._discover(parts)
        group, version, *rest = ["", *parts[1:]] if parts[0] == "api" else parts[1:]
        if not rest:
            return self._discover(parts)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        resource = _RESOURCES.get((group, version, rest[0]))
        if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
            raise StoreError(404, "NotFound", "the server could not find the requested resource")
        name, subresource = (*rest[1:], "", "")[:2]
        if subresource not in ("", "status"):
            raise StoreError(404, "NotFound", "the server could not find the requested resource")
        watch = request.query.get("watch") in ("1", "true", "True")
        verb = _verb(request.method, name, watch)
        if (self.tokens and user == ANONYMOUS) or not self._may(user, verb, resource, namespace):
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            text = f'{resource.qualified} is forbidden: User "{user}" cannot {verb} resource "{resource.plural}" in API group '
            raise StoreError(403, "Forbidden", f'{text}"{resource.group}" {where}', details=of_resource(resource))
        match verb:
            case "list":
                return self._list(request, resource, namespace)
            case "watch":
                return await self._stream(request, resource, namespace)
            case "get":
                return self._one(request, self.store.get(resource, namespace, name))
            case "create":
                return self._one(request, self.store.create(resource, await _body(request), namespace), 201)
            case "update":
                body = await _body(request)
                if (body.get("metadata") or {}).get("name", name) != name:
                    raise StoreError(400, "BadRequest", "the name of the object does not match the name on the URL")
                body = body | {"metadata": (body.get("metadata") or {}) | {"name": name}}
                return self._one(request, self.store.update(resource, body, namespace, status=bool(subresource)))
            case "patch":
                if request.content_type != "application/merge-patch+json":
                    why = "the body of the request was in an unknown format - accepted media types include: application/merge-patch+json"
                    raise StoreError(415, "UnsupportedMediaType", why)
                patch = await _body(request)
                return self._one(request, self.store.merge(resource, namespace, name, patch, status=bool(subresource)))
            case _:
                options = await _body(request) if request.can_read_body else {}
                grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
                return self._one(request, self.store.delete(resource, namespace, name, None if grace is None else int(grace)))

    def _user(self, request: web.Request) -> str:
        if not self.tokens or not request.headers.get("Authorization"):
            return ANONYMOUS
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or token not in self.tokens:
            raise StoreError(401, "Unauthorized", "Unauthorized")
        return self.tokens[token]

    def _discover(self, parts: list[str]) -> web.Response:
        match parts:
            case ["api"]:
                return _json({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                groups = dict.fromkeys((resource.group, resource.version) for resource in KNOWN if resource.group)
                return _json({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*each) for each in groups]})
            case ["api" | "apis", *rest]:
                served = [each for each in KNOWN if each.api_version == "/".join(rest)]
                if served:
                    rows = [_discovered(each) for each in served]
                    return _json({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "/".join(rest), "resources": rows})
        raise StoreError(404, "NotFound", "the server could not find the requested resource")

    def _one(self, request: web.Request, item: Object, status: int = 200) -> web.Response:
        return _json(_partial(item) if _wants_partial(request, "PartialObjectMetadata") else item, status)

    def _selection(self, request: web.Request, resource: Resource, namespace: str) -> Selection:
        return Selection(resource, namespace, request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))

    def _list(self, request: web.Request, resource: Resource, namespace: str) -> web.Response:
        query = request.query
        if "sendInitialEvents" in query:
            raise _forbidden_option("sendInitialEvents", "sendInitialEvents is forbidden for list")
        match, version = query.get("resourceVersionMatch", ""), query.get("resourceVersion", "")
        if match and not version:
            raise _forbidden_option("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        if match == "Exact" and version == "0":
            raise _forbidden_option("resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
        page = self.store.list(
            self._selection(request, resource, namespace), _number(query.get("limit"), "limit"), query.get("continue", ""), version, match
        )
        partial = _wants_partial(request, "PartialObjectMetadataList")
        meta: dict[str, Any] = {"resourceVersion": str(page.version)}
        if page.continue_:
            meta["continue"] = page.continue_
        if page.remaining is not None:
            meta["remainingItemCount"] = page.remaining
        kind, api = ("PartialObjectMetadataList", "meta.k8s.io/v1") if partial else (f"{resource.kind}List", resource.api_version)
        # A list says kind and apiVersion once, its items do not; but PartialObjectMetadata, which are made one by one, do.
        items = [_partial(item) if partial else {k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in page.items]
        return _json({"kind": kind, "apiVersion": api, "metadata": meta, "items": items})

    async def _stream(self, request: web.Request, resource: Resource, namespace: str) -> web.StreamResponse:
        query = request.query
        initial, match = query.get("sendInitialEvents"), query.get("resourceVersionMatch", "")
        if initial is not None and not self._watch_list:
            why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise _forbidden_option("sendInitialEvents", why)
        if initial is not None and match != "NotOlderThan":
            raise _forbidden_option("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        if initial is None and match:
            why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            raise _forbidden_option("resourceVersionMatch", why)
        selection = self._selection(request, resource, namespace)
        since = self.store.parse_version(query.get("resourceVersion", ""))
        seconds = _number(query.get("timeoutSeconds"), "timeoutSeconds") or DEFAULT_WATCH_SECONDS
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true", "True")
        whole = initial == "true" or (initial is None and since == 0)
        stream = _Stream(resource, _wants_partial(request, "PartialObjectMetadata"))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            watcher = self.store.watch(selection, self.store.version if whole else since)
            # The snapshot and the subscription are of one moment: nothing is awaited between them.
            snapshot, version = self.store.list(selection).items if whole else [], self.store.version
        except StoreError as error:
            # Once the request itself is in order, a version that is too old is told inside the stream (storage/cacher).
            await response.write(stream.event("ERROR", error_status(error)))
            return response
        try:
            if whole:
                for item in snapshot:
                    await response.write(stream.event("ADDED", item))
                if bookmarks and (initial == "true" or "resourceVersion" in query):
                    await response.write(stream.bookmark(version, _INITIAL_END))
            await self._follow(response, watcher, stream, seconds, bookmarks)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self.store.unwatch(watcher)
        return response

    async def _follow(self, response: web.StreamResponse, watcher: Watcher, stream: _Stream, seconds: int, bookmarks: bool) -> None:
        """Events as they come; a bookmark now and then, and one before the end where there is something new to say."""
        loop = asyncio.get_running_loop()
        end, told, last = loop.time() + seconds, self.store.version, False
        while not watcher.overflowed:
            while watcher.queue:
                await response.write(stream.event(*watcher.queue.popleft()))
            watcher.arrived.clear()
            left = end - loop.time()
            if left <= 0:
                return
            wait = self._bookmark_seconds
            if not last and bookmarks:
                wait = min(wait, left - LAST_BOOKMARK_SECONDS) if left > LAST_BOOKMARK_SECONDS else 0.0
            try:
                async with asyncio.timeout(min(left, max(0.0, wait))):
                    await watcher.arrived.wait()
            except TimeoutError:
                if watcher.queue:
                    continue
                last = end - loop.time() <= LAST_BOOKMARK_SECONDS
                # Nothing is waiting, so everything up to the store's version has been sent.
                if bookmarks and self.store.version > told:
                    told = self.store.version
                    await response.write(stream.bookmark(told))


class _Stream:
    """How one watch's events are written."""

    def __init__(self, resource: Resource, partial: bool) -> None:
        self._partial = partial
        kind, api = ("PartialObjectMetadata", "meta.k8s.io/v1") if partial else (resource.kind, resource.api_version)
        self._empty: Object = {"kind": kind, "apiVersion": api}
        if resource is PODS and not partial:
            self._empty |= {"spec": {"containers": None}, "status": {}}

    def event(self, type_: str, item: Object) -> bytes:
        shown = _partial(item) if self._partial and type_ != "ERROR" else item
        return msgspec.json.encode({"type": type_, "object": shown}) + b"\n"

    def bookmark(self, version: int, annotations: Mapping[str, str] | None = None) -> bytes:
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if annotations:
            meta["annotations"] = annotations
        return msgspec.json.encode({"type": "BOOKMARK", "object": self._empty | {"metadata": meta}}) + b"\n"


def error_status(error: StoreError) -> Object:
    """The Status object that answers for this error."""
    more = dict(error.more)
    meta = {"continue": more.pop("continue_")} if "continue_" in more else {}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": meta, "status": "Failure", "message": str(error), "reason": error.reason}
    return status | more | {"code": error.code}


@web.middleware
async def _statuses(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Every refusal is a Status."""
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except StoreError as error:
        headers = {"Retry-After": str(error.more["details"]["retryAfterSeconds"])} if error.code == 504 else {}
        return _json(error_status(error), error.code, headers)
    except web.HTTPRequestEntityTooLarge:
        return _json(error_status(StoreError(413, "RequestEntityTooLarge", f"limit is {MAX_BODY_BYTES}")), 413)


async def _body(request: web.Request) -> Object:
    if request.content_type not in ("application/json", "application/merge-patch+json"):
        raise StoreError(415, "UnsupportedMediaType", f"the body's type {request.content_type} is not application/json")
    try:
        body = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise StoreError(400, "BadRequest", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise StoreError(400, "BadRequest", "the body is not an object")
    return body


def _verb(method: str, name: str, watch: bool) -> str:
    verbs = {
        "GET": "get" if name else "watch" if watch else "list",
        "POST": "create",
        "PUT": "update",
        "PATCH": "patch",
        "DELETE": "delete",
    }
    verb = verbs.get(method, "")
    if not verb or (verb in ("update", "patch", "delete") and not name) or (verb == "create" and name):
        raise StoreError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    return verb


def _number(text: str | None, name: str) -> int:
    if text and not text.isdigit():
        raise StoreError(400, "BadRequest", f"{name} must be a number, not {text!r}")
    return int(text or 0)


def _forbidden_option(field: str, why: str) -> StoreError:
    return StoreError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {why}')


def _wants_partial(request: web.Request, kind: str) -> bool:
    return f"as={kind};" in request.headers.get("Accept", "").replace(",", ";").replace(" ", "") + ";"


def _partial(item: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _group(group: str, version: str) -> Object:
    served = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [served], "preferredVersion": served}


def _discovered(resource: Resource) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    names = {"name": resource.plural, "singularName": resource.kind.lower(), "namespaced": resource.namespaced, "kind": resource.kind}
    return names | {"verbs": verbs}


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json")
