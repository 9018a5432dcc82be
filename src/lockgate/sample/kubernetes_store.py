"""The objects of the sample cluster: a small etcd and registry in memory, with resourceVersions, a history and selectors.

Behaves as a kube-apiserver without controllers does (tests/contract asks both the same questions), with these bounds: a history of so
many changes, so many objects in all, and so many changes waiting for one watcher; whoever falls behind is sent away, as there.
Two things are done here that a real cluster's controllers do, because nobody else is there to do them: a namespace that is deleted takes
its objects with it at once, and old Events are dropped.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
import json
import re
import secrets
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.kit.clock import Clock
from lockgate.kube.resources import EVENTS, KNOWN, NAMESPACES, NODES, PODS, Resource
from lockgate.sample import selectors

Object = dict[str, Any]

HISTORY = 20_000
"""Changes remembered for resuming watches and for the later pages of a list; etcd remembers five minutes."""
MAX_OBJECTS = 100_000
MAX_EVENTS = 5_000
"""Event objects kept; a real cluster keeps them for an hour."""
WATCH_BUFFER = 1_000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
"""The alphabet of generated names (k8s.io/apimachinery, util/rand)."""
_INVOLVED = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"]
_FIELDS: dict[Resource, list[str]] = {
    PODS: [
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork"),
        *("status.phase", "status.podIP", "status.nominatedNodeName"),
    ],
    NAMESPACES: ["status.phase"],
    NODES: ["spec.unschedulable"],
    EVENTS: [*(f"involvedObject.{name}" for name in _INVOLVED), "reason", "reportingComponent", "source", "type"],
}
_SELECTABLE = {resource: frozenset(("metadata.name", "metadata.namespace", *_FIELDS.get(resource, ()))) for resource in KNOWN}
_STATUS = {PODS: {"phase": "Pending", "qosClass": "BestEffort"}, NAMESPACES: {"phase": "Active"}}
"""What a new object's status is, whatever the creator wrote there; a Node's is taken as written."""
_CONTAINER_STATUS = {"state": {}, "lastState": {}, "ready": False, "restartCount": 0, "image": "", "imageID": ""}
"""Fields that the API always shows."""
_WITHOUT_STATUS = ("events", "endpointslices")


class StoreError(Exception):
    """A request that the store refuses, with the parts of the Status that answers it."""

    def __init__(self, code: int, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.more = code, reason, more


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the history; `before` is None for a creation, `after` for a deletion, which carries the last state in `before`."""

    version: int
    resource: Resource
    before: Object | None
    after: Object | None


@dataclass(frozen=True, slots=True)
class Listing:
    items: list[Object]
    version: int
    continue_: str = ""
    remaining: int | None = None


class Selection:
    """Which objects of a resource a request is about. Raises StoreError for a selector that makes no sense."""

    def __init__(self, resource: Resource, namespace: str = "", label_selector: str = "", field_selector: str = "") -> None:
        self.resource, self.namespace = resource, namespace
        self.everything = not label_selector and not field_selector
        try:
            self._labels = selectors.labels(label_selector)
            self._fields = selectors.fields(field_selector, _SELECTABLE[resource])
        except ValueError as error:
            raise StoreError(400, "BadRequest", str(error)) from error

    def takes(self, item: Object) -> bool:
        meta = item["metadata"]
        if self.namespace and self.resource.namespaced and meta.get("namespace") != self.namespace:
            return False
        if self.everything:
            return True
        return selectors.matches(self._labels, meta.get("labels") or {}) and selectors.matches(self._fields, self._values(item))

    def _values(self, item: Object) -> dict[str, str]:
        values = {}
        for name in _SELECTABLE[self.resource]:
            value: Any = item
            for part in name.split("."):
                value = value.get(part, "") if isinstance(value, dict) else ""
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return values


class Watcher:
    """One watch's changes as they happen, filtered: (type, object). One that is too far behind has `overflowed` and gets no more."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.queue: deque[tuple[str, Object]] = deque()
        self.arrived = asyncio.Event()
        self.overflowed = False

    def see(self, change: Change) -> None:
        if change.resource is not self._selection.resource or self.overflowed:
            return
        event = self._event(change)
        if event is None:
            return
        self.overflowed = len(self.queue) >= WATCH_BUFFER
        if not self.overflowed:
            self.queue.append(event)
        self.arrived.set()

    def _event(self, change: Change) -> tuple[str, Object] | None:
        """An object that a change brings into the selection is ADDED, one that it takes out is DELETED."""
        was = change.before is not None and self._selection.takes(change.before)
        is_ = change.after is not None and self._selection.takes(change.after)
        if is_:
            assert change.after is not None
            return ("MODIFIED" if was else "ADDED"), change.after
        if was:
            assert change.before is not None
            return "DELETED", _with(change.before, resourceVersion=str(change.version))
        return None


class ObjectStore:
    """Objects by resource and key (`namespace/name`). What goes in and comes out is never changed in place: share it, do not edit it."""

    def __init__(self, clock: Clock, history: int = HISTORY) -> None:
        self._clock = clock
        self._objects: dict[Resource, dict[str, Object]] = {resource: {} for resource in KNOWN}
        self._history: deque[Change] = deque(maxlen=history)
        self._watchers: set[Watcher] = set()
        self.version = 1
        self.compacted = 0
        """Changes up to this version are forgotten."""
        for namespace in ("default", "kube-system"):
            self.create(NAMESPACES, {"metadata": {"name": namespace}})

    def create(self, resource: Resource, item: Mapping[str, Any], namespace: str = "") -> Object:
        """The object as stored. Raises StoreError."""
        new = copy.deepcopy(dict(item))
        meta = self._check(resource, new, namespace)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "".join(secrets.choice(_SUFFIX) for _ in range(5))
        if not _NAME.fullmatch(str(meta.get("name", ""))):
            raise _invalid(resource, str(meta.get("name", "")), f"metadata.name: Invalid value: {str(meta.get('name', ''))!r}")
        if resource.namespaced and meta["namespace"] not in self._objects[NAMESPACES]:
            raise _not_found(NAMESPACES, meta["namespace"])
        if resource is PODS and not (new.get("spec") or {}).get("containers"):
            raise _invalid(resource, meta["name"], "spec.containers: Required value")
        key = _key(resource, meta.get("namespace", ""), meta["name"])
        if key in self._objects[resource]:
            raise _status(409, "AlreadyExists", resource, meta["name"], f'{resource.qualified} "{meta["name"]}" already exists')
        if sum(map(len, self._objects.values())) >= MAX_OBJECTS:
            raise StoreError(500, "InternalError", f"the sample cluster holds no more than {MAX_OBJECTS} objects; delete some")
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now()}
        meta.pop("deletionTimestamp", None)
        if resource is NAMESPACES:
            meta["labels"] = {"kubernetes.io/metadata.name": meta["name"]} | (meta.get("labels") or {})
            new["spec"] = {"finalizers": ["kubernetes"]}
        if resource in _STATUS:
            new["status"] = dict(_STATUS[resource])
        elif resource is not NODES and resource.plural not in _WITHOUT_STATUS:
            new["status"] = {}
        if resource is EVENTS and len(self._objects[EVENTS]) >= MAX_EVENTS:
            oldest = next(iter(self._objects[EVENTS].values()))["metadata"]
            self.delete(EVENTS, oldest["namespace"], oldest["name"])
        return self._put(resource, key, None, new)

    def update(self, resource: Resource, item: Mapping[str, Any], namespace: str = "", *, status: bool = False) -> Object:
        """Replaces an object, or with `status` its status alone. A resourceVersion that is given must be the current one."""
        new = copy.deepcopy(dict(item))
        meta = self._check(resource, new, namespace)
        old = self.get(resource, meta.get("namespace", ""), str(meta.get("name", "")))
        return self._change(resource, old, new, status)

    def merge(self, resource: Resource, namespace: str, name: str, patch: Any, *, status: bool = False) -> Object:
        """Applies a JSON merge patch (RFC 7386)."""
        old = self.get(resource, namespace, name)
        new = _merge(copy.deepcopy(old), patch)
        if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
            raise StoreError(400, "BadRequest", "the patch leaves no object")
        return self._change(resource, old, new, status)

    def delete(self, resource: Resource, namespace: str, name: str, grace_seconds: int | None = None) -> Object:
        """The object as it was. A pod on a node first gets a deletionTimestamp, and is gone when it is deleted with `grace_seconds` 0, as
        its kubelet does."""
        old = self.get(resource, namespace, name)
        if resource is PODS and old.get("spec", {}).get("nodeName") and old["status"].get("phase") not in ("Succeeded", "Failed"):
            grace = old["spec"].get("terminationGracePeriodSeconds", 30) if grace_seconds is None else grace_seconds
            if grace == 0 or "deletionTimestamp" not in old["metadata"]:
                marked = _with(old, deletionTimestamp=self._now(grace), deletionGracePeriodSeconds=grace)
                old = self._put(resource, _key_of(resource, old), old, marked)
            if grace > 0:
                return old
        if resource is NAMESPACES:
            for each, items in self._objects.items():
                for key in [key for key in items if each.namespaced and key.startswith(f"{name}/")]:
                    self._remove(each, key)
        return self._remove(resource, _key_of(resource, old))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self._objects[resource][_key(resource, namespace, name)]
        except KeyError:
            raise _not_found(resource, name) from None

    def list(self, selection: Selection, limit: int = 0, continue_: str = "", version: str = "", match: str = "") -> Listing:
        """One page; all pages of one list show the moment of its first. Raises StoreError 410 where that has left the history."""
        at, after = self._moment(continue_, version, match, limit)
        state = self._state(selection.resource, at)
        keys = [key for key in sorted(state) if key > after and selection.takes(state[key])]
        # What is served at version 0 comes from a server's watch cache, which knows no pages.
        page = keys[:limit] if limit and version != "0" else keys
        more = len(keys) - len(page)
        token = _token(at, page[-1]) if more else ""
        return Listing([state[key] for key in page], at, token, more if more and selection.everything else None)

    def watch(self, selection: Selection, since: int) -> Watcher:
        """Changes after `since`, those of the past first. Raises StoreError 410 where the history does not reach that far."""
        if since < self.compacted:
            raise StoreError(410, "Expired", f"too old resource version: {since} ({self.compacted})")
        watcher = Watcher(selection)
        for change in self._history:
            if change.version > since:
                watcher.see(change)
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def compact(self) -> None:
        """Forgets the history: every version before now is Gone. etcd is told so every five minutes."""
        self._history.clear()
        self.compacted = self.version

    def _check(self, resource: Resource, item: Object, namespace: str) -> Object:
        for name, wanted in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            if item.setdefault(name, wanted) != wanted:
                raise StoreError(400, "BadRequest", f"{name} in the data ({item[name]}) does not match the expected one ({wanted})")
        meta = item.setdefault("metadata", {})
        if not isinstance(meta, dict):
            raise StoreError(400, "BadRequest", "metadata is not an object")
        if resource.namespaced:
            if namespace and meta.get("namespace", namespace) != namespace:
                raise StoreError(400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request")
            meta["namespace"] = namespace or meta.get("namespace") or "default"
        else:
            meta.pop("namespace", None)
        return meta

    def _change(self, resource: Resource, old: Object, new: Object, status: bool) -> Object:
        meta, name = new["metadata"], old["metadata"]["name"]
        if meta.get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
            text = f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been modified; '
            raise _status(409, "Conflict", resource, name, text + "please apply your changes to the latest version and try again")
        if meta.get("uid") not in (None, "", old["metadata"]["uid"]):
            raise _status(409, "Conflict", resource, name, f"Precondition failed: UID in precondition: {meta['uid']}")
        if status:
            new = old | {"status": new.get("status", {})}
        elif "status" in old and resource.plural not in _WITHOUT_STATUS:
            new = new | {"status": old["status"]}
        kept = {key: old["metadata"][key] for key in ("uid", "creationTimestamp", "name", "namespace") if key in old["metadata"]}
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            if key in old["metadata"]:
                kept[key] = old["metadata"][key]
        new = new | {"metadata": new["metadata"] | kept | {"resourceVersion": old["metadata"]["resourceVersion"]}}
        # A write that changes nothing makes no version and no event, as there.
        return old if _same(new, old) else self._put(resource, _key_of(resource, old), old, new)

    def _put(self, resource: Resource, key: str, old: Object | None, new: Object) -> Object:
        self.version += 1
        parts = {name: part for name, part in new.items() if name in ("spec", "status", "data") and isinstance(part, dict)}
        managed: Object = {"manager": "sample", "operation": "Update", "apiVersion": resource.api_version, "time": self._now()}
        managed |= {"fieldsType": "FieldsV1", "fieldsV1": _fields_v1(parts)}
        new = _with(new, resourceVersion=str(self.version), managedFields=[managed])
        new = _shown(new)
        self._objects[resource][key] = new
        self._tell(Change(self.version, resource, old, new))
        return new

    def _remove(self, resource: Resource, key: str) -> Object:
        self.version += 1
        old = self._objects[resource].pop(key)
        self._tell(Change(self.version, resource, old, None))
        return _with(old, resourceVersion=str(self.version))

    def _tell(self, change: Change) -> None:
        if len(self._history) == self._history.maxlen:
            self.compacted = self._history[0].version
        self._history.append(change)
        for watcher in self._watchers:
            watcher.see(change)

    def _moment(self, continue_: str, version: str, match: str, limit: int) -> tuple[int, str]:
        """The version to show, and the key after which to begin."""
        if continue_:
            try:
                token = json.loads(base64.urlsafe_b64decode(continue_))
                at, after = int(token["rv"]), str(token["start"])
                at = self.version if at < 0 else at
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(400, "BadRequest", "continue key is not valid") from error
            if at < self.compacted:
                # -1 in a token asks for the rest as it is now; the answer offers that to whoever can live with a mixed list.
                fresh = base64.urlsafe_b64encode(json.dumps({"v": "meta.k8s.io/v1", "rv": self.version, "start": after}).encode()).decode()
                text = (
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the "
                )
                raise StoreError(410, "Expired", text + "continue parameter, or use the continue token in this response", continue_=fresh)
            return at, after
        wanted = self.parse_version(version)
        if wanted > self.version:
            # A real server first waits three seconds for that version to come.
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            text = f"Timeout: Too large resource version: {wanted}, current: {self.version}"
            raise StoreError(504, "Timeout", text, details={"causes": causes, "retryAfterSeconds": 1})
        if match == "Exact" or (limit and not match and wanted):
            if wanted < self.compacted:
                raise StoreError(410, "Expired", "The resourceVersion for the provided list is too old.")
            return wanted, ""
        return self.version, ""

    @staticmethod
    def parse_version(text: str) -> int:
        if text and not text.isdigit():
            raise StoreError(400, "BadRequest", f"invalid resource version: resourceVersion: Invalid value: {text!r}: must be a number")
        return int(text or 0)

    def _state(self, resource: Resource, at: int) -> dict[str, Object]:
        """The objects as they were at this version: the present with the history undone."""
        if at >= self.version:
            return self._objects[resource]
        state = dict(self._objects[resource])
        for change in reversed(self._history):
            if change.version <= at:
                break
            if change.resource is resource:
                if change.before is None:
                    assert change.after is not None
                    state.pop(_key_of(resource, change.after), None)
                else:
                    state[_key_of(resource, change.before)] = change.before
        return state

    def _now(self, seconds: int = 0) -> str:
        at = datetime.datetime.fromtimestamp(self._clock.time_unix_nano() // 10**9 + seconds, datetime.UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def __iter__(self) -> Iterator[tuple[Resource, Object]]:
        for resource, items in self._objects.items():
            for item in items.values():
                yield resource, item


def of_resource(resource: Resource) -> Object:
    """How a Status' details name a resource."""
    return {"kind": resource.plural} | ({"group": resource.group} if resource.group else {})


def _token(version: int, start: str) -> str:
    return base64.urlsafe_b64encode(json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start}).encode()).decode()


def _fields_v1(value: Object) -> Object:
    """Who manages which field, in the shape of `managedFields`; clients ought to skip it, and it is half of what a real pod weighs."""
    return {f"f:{key}": _fields_v1(inner) if isinstance(inner, dict) else {} for key, inner in value.items()}


def _key(resource: Resource, namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if resource.namespaced else name


def _key_of(resource: Resource, item: Object) -> str:
    return _key(resource, item["metadata"].get("namespace", ""), item["metadata"]["name"])


def _with(item: Object, **meta: Any) -> Object:
    return item | {"metadata": item["metadata"] | meta}


def _shown(item: Object) -> Object:
    """With the fields that the API always shows."""
    statuses = item.get("status", {}).get("containerStatuses")
    if not statuses:
        return item
    return item | {"status": item["status"] | {"containerStatuses": [_CONTAINER_STATUS | status for status in statuses]}}


def _same(new: Object, old: Object) -> bool:
    """Whether a write changes nothing but what the server writes itself."""
    own = {name: old["metadata"].get(name) for name in ("resourceVersion", "managedFields")}
    return _shown(_with(new, **own)) == old


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result


def _status(code: int, reason: str, resource: Resource, name: str, message: str) -> StoreError:
    return StoreError(code, reason, message, details={"name": name} | of_resource(resource))


def _not_found(resource: Resource, name: str) -> StoreError:
    return _status(404, "NotFound", resource, name, f'{resource.qualified} "{name}" not found')


def _invalid(resource: Resource, name: str, why: str) -> StoreError:
    qualified = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return _status(422, "Invalid", resource, name, f'{qualified} "{name}" is invalid: {why}')
