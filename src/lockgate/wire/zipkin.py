"""Zipkin v2, JSON and protobuf -> an OTLP export request (https://zipkin.io/zipkin-api, zipkin.proto of zipkin-api). v1: `zipkin_v1`.

What becomes of what is the OpenTelemetry Collector's (contrib's pkg/translator/zipkin, 0.145), so that spans which its exporters wrote as
Zipkin come back as they were. docs/differences.md says where this one differs, and why: it takes what the Collector loses or refuses.

    traceId, id, parentId        64 bits are padded to OTLP's 128; a span that is its own parent has none
    localEndpoint                service.name of the resource; net.host.* of the span
    remoteEndpoint               peer.service and net.peer.* of the span
    annotations                  events; `name|{"key":"value"}|dropped` is one with attributes
    tags of a resource, a scope  the resource and the scope; all others are attributes of the span but for
    error, otel.status_*         status
    otlp.link.N, w3c.tracestate, span.kind

A span costs some microseconds: the structs come from msgspec, or a kernel (`zipkin_spans`), and the bytes are written by hand.
"""

from __future__ import annotations

import binascii
import itertools
import re
import struct
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, TypeVar, cast

import msgspec

from lockgate.wire import zipkin_spans
from lockgate.wire.protobuf import AttributeValue, DecodeError, delimited, key_values, nested_value, varint

START_TIME_ABSENT = "otel.zipkin.absentField.startTime"
"""The attribute of a span that came without its time."""
MAX_MICROSECONDS = (2**64 - 1) // 1000
"""OTLP's times are nanoseconds in 64 bits."""


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """Null is as good as absent, as it is for the Collector."""


class Endpoint(_Struct):
    """Where a span was recorded, or whom it called."""

    service_name: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None


class _Annotation(_Struct):
    timestamp: int | float
    value: str | None = None


class _Span(_Struct):
    trace_id: str
    id: str
    parent_id: str | None = None
    name: str | None = None
    kind: str | None = None
    timestamp: int | float | None = None
    duration: int | float | None = None
    local_endpoint: Endpoint | None = None
    remote_endpoint: Endpoint | None = None
    annotations: list[_Annotation] | None = None
    tags: dict[str, str | None] | None = None
    # Neither has a place in OTLP; they are named so that what is no boolean is refused.
    debug: bool | None = None
    shared: bool | None = None


_decoder = msgspec.json.Decoder(list[_Span | None] | None)


def needed_json_bytes(body: bytes) -> int:
    """Memory that decoding JSON of either version takes, as measured and rounded up."""
    return 4 * len(body) + 240 * body.count(b"{") + 120 * body.count(b"[") + 145 * body.count(b",")


def needed_protobuf_bytes(body: bytes) -> int:
    """Memory that decoding protobuf takes, as measured and rounded up: each annotation and each tag begins with its byte."""
    return 4 * len(body) + 120 * body.count(b"\x52") + 240 * body.count(b"\x5a")


def decode_json(body: bytes, parse_string_tags: bool = False) -> bytes:
    """The export request that a JSON list of v2 spans says. Raises DecodeError, which names the span and the field."""
    groups = Groups()
    for number, span in enumerate(read_json(_decoder, body)):
        if span is None:
            continue
        try:
            ids = id_of("traceId", span.trace_id, 16), id_of("id", span.id, 8), id_of("parentId", span.parent_id, 8)
            _add(groups, span, *ids, parse_string_tags)
        except DecodeError as error:
            raise DecodeError(f"span {number}: {error}") from None
    return groups.request()


def decode_protobuf(body: bytes, parse_string_tags: bool = False) -> bytes:
    """The export request that an encoded ListOfSpans says. Raises DecodeError, which names the span and the field."""
    reader, groups = zipkin_spans.Reader(body), Groups()
    for number in itertools.count():
        try:
            found = reader.span()
            if found is None:
                break
            span = _Span(
                "",
                "",
                None,
                found.name,
                _PROTOBUF_KINDS.get(found.kind),
                found.timestamp,
                found.duration,
                _protobuf_endpoint("local_endpoint", *found.local_endpoint) if found.local_endpoint else None,
                _protobuf_endpoint("remote_endpoint", *found.remote_endpoint) if found.remote_endpoint else None,
                [_Annotation(*each) for each in found.annotations],
                found.tags,
            )
            ids = (
                _padded("trace_id", found.trace_id, (8, 16), 16),
                _padded("id", found.id, (8,), 8),
                _padded("parent_id", found.parent_id, (0, 8), 8),
            )
            _add(groups, span, *ids, parse_string_tags)
        except DecodeError as error:
            raise DecodeError(f"span {number}: {error}") from None
        except UnicodeDecodeError as error:
            raise DecodeError(f"span {number}: not UTF-8: {error}") from None
    return groups.request()


T = TypeVar("T")


def read_json(decoder: msgspec.json.Decoder[list[T] | None], body: bytes) -> list[T]:
    """What this decoder makes of the body; nothing of `null`. Raises DecodeError."""
    try:
        return decoder.decode(body) or []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(f"not Zipkin JSON: {error}") from None
    except RecursionError:
        raise DecodeError("not Zipkin JSON: it nests too deep") from None


class Groups:
    """Encoded spans, gathered under their resources and scopes, in the order in which those came."""

    def __init__(self) -> None:
        self._spans: dict[bytes, dict[bytes, list[bytes | bytearray]]] = {}

    def add(self, resource: bytes, scope: bytes, span: bytes | bytearray) -> None:
        """A field of ScopeSpans, under this scope of this resource, both encoded."""
        scopes = self._spans.get(resource)
        if scopes is None:
            scopes = self._spans[resource] = {}
        if (spans := scopes.get(scope)) is None:
            spans = scopes[scope] = []
        spans.append(span)

    def request(self) -> bytes:
        """The export request; call it once, it lets go of the spans."""
        out: list[bytes] = []
        for resource, scopes in self._spans.items():
            encoded = [delimited(1, resource)]
            while scopes:
                scope = next(iter(scopes))
                encoded.append(delimited(2, b"".join((delimited(1, scope) if scope else b"", *scopes.pop(scope)))))
            out.append(delimited(1, b"".join(encoded)))
        return b"".join(out)


def id_of(field: str, text: str | None, size: int) -> bytes:
    """The id that these hex digits say, padded with zeros in front; no bytes for none. Raises DecodeError where that is no id."""
    if not text:
        return b""
    try:
        found = binascii.unhexlify(text.rjust(2 * size, "0"))
    except ValueError:  # binascii.Error is one
        found = b""
    if len(found) != size:
        raise DecodeError(f"{field} is not 1 to {2 * size} hex digits: {text!r:.80}")
    return found


def _padded(field: str, found: bytes, sizes: tuple[int, ...], size: int) -> bytes:
    if len(found) not in sizes:
        raise DecodeError(f"{field} has {len(found)} bytes instead of {' or '.join(map(str, sizes))}")
    return found.rjust(size, b"\0") if found else found


def span_ids(trace_id: bytes, span_id: bytes, parent_id: bytes) -> tuple[bytes, bytes, bytes]:
    """A span's ids. Raises DecodeError where one is missing or zero: OTLP has no such spans."""
    if span_id == _NO_SPAN or not span_id:
        raise DecodeError(f"id is {'zero' if span_id else 'empty'}")
    if trace_id == _NO_TRACE or not trace_id:
        raise DecodeError(f"traceId is {'zero' if trace_id else 'empty'}")
    return trace_id, span_id, b"" if parent_id in (span_id, _NO_SPAN) else parent_id


_NO_SPAN, _NO_TRACE = bytes(8), bytes(16)


def nanoseconds(field: str, microseconds: int | float) -> int:
    """A time or a duration, from Zipkin's microseconds. Some programs write them as 1.7e+15, and with fractions. Raises DecodeError."""
    if not 0 <= microseconds <= MAX_MICROSECONDS:
        raise DecodeError(f"{field} is not between 0 and {MAX_MICROSECONDS} microseconds: {microseconds!r:.80}")
    whole = int(microseconds)
    return whole * 1000 + (round((microseconds - whole) * 1000) if type(microseconds) is float else 0)


def _add(groups: Groups, span: _Span, trace_id: bytes, span_id: bytes, parent_id: bytes, parse_string_tags: bool) -> None:
    """One span to its group; what both forms of v2 have in common."""
    tags, local, remote = span.tags or {}, span.local_endpoint, span.remote_endpoint
    name, kind, resource, scope, more = (local.service_name if local else None), _KINDS.get(span.kind or "", 0), b"", b"", b""
    if _SPECIAL.isdisjoint(tags):
        resource = _service(name)
    else:
        if None in tags.values():
            tags = {key: value or "" for key, value in tags.items()}
        kind, resource, scope, more = _take_special(cast("dict[str, str]", tags), name, kind)
    start = nanoseconds("timestamp", span.timestamp or 0)
    end = start + nanoseconds("duration", span.duration or 0)
    if end >= 1 << 64:
        raise DecodeError(f"timestamp and duration end after {MAX_MICROSECONDS} microseconds: {span.timestamp} + {span.duration}")
    pieces: list[bytes | bytearray] = [more]
    if local is not None:
        pieces.append(_endpoint_of("host", None, local, tags))
    if remote is not None:
        pieces.append(_endpoint_of("peer", remote.service_name, remote, tags))
    if not span.timestamp:
        tags.pop(START_TIME_ABSENT, None)
        pieces.append(_ABSENT)
    if parse_string_tags:
        pieces.append(key_values(9, ((key, typed(value or "")) for key, value in tags.items())))
        tags = {}
    if span.annotations:
        pieces += [_event(nanoseconds("an annotation's timestamp", each.timestamp), each.value or "") for each in span.annotations]
    ids = span_ids(trace_id, span_id, parent_id)
    groups.add(resource, scope, zipkin_spans.span(ids, span.name or "", kind, start, end, tags, pieces))


def _endpoint_of(side: str, service: str | None, endpoint: Endpoint, tags: dict[str, Any]) -> bytes:
    make = _short_endpoint if service is None or len(service) < 100 else _endpoint
    keys, encoded = make(side, service, endpoint.ipv4, endpoint.ipv6, endpoint.port)
    if not keys.isdisjoint(tags):
        for key in keys:
            tags.pop(key, None)
    return encoded


_KINDS = {"SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_TAG_KINDS = {"internal": 1} | {name.lower(): kind for name, kind in _KINDS.items()}
_STATUS_CODES = {"UNSET": 0, "OK": 1, "ERROR": 2}
"""What follows `STATUS_CODE_`, in upper case: the Collector writes `Ok`, or `STATUS_CODE_OK` formerly, OpenTelemetry's SDKs `OK`."""
_NO_SERVICE = "OTLPResourceNoServiceName"
"""What the Collector's exporter writes for a resource without a service.name."""
_LINKS = 128
"""Links of a span, at most, as in the Collector."""

# The resource attributes of semantic conventions 1.38, and former ones, which the Collector looks for among the tags.
_RESOURCE_KEYS = """
    aws.ecs.cluster.arn aws.ecs.container.arn aws.ecs.launchtype aws.ecs.task.arn aws.ecs.task.family aws.ecs.task.revision
    aws.eks.cluster.arn aws.log.group.arns aws.log.group.names aws.log.stream.arns aws.log.stream.names cloud.account.id
    cloud.availability_zone cloud.platform cloud.provider cloud.region container.id container.image.name container.image.tag
    container.name container.runtime deployment.environment device.id device.manufacturer device.model.identifier device.model.name
    faas.id faas.instance faas.max_memory faas.name faas.version host.arch host.id host.image.id host.image.name host.image.version
    host.name host.type k8s.cluster.name k8s.container.name k8s.container.restart_count k8s.cronjob.name k8s.cronjob.uid
    k8s.daemonset.name k8s.daemonset.uid k8s.deployment.name k8s.deployment.uid k8s.job.name k8s.job.uid k8s.namespace.name
    k8s.node.name k8s.node.uid k8s.pod.name k8s.pod.uid k8s.replicaset.name k8s.replicaset.uid k8s.statefulset.name k8s.statefulset.uid
    opencensus.exporterversion opencensus.resourcetype opencensus.starttime os.description os.name os.type os.version process.command
    process.command_args process.command_line process.executable.name process.executable.path process.owner process.pid
    process.runtime.description process.runtime.name process.runtime.version service.instance.id service.name service.namespace
    service.version telemetry.auto.version telemetry.sdk.language telemetry.sdk.name telemetry.sdk.version webengine.description
    webengine.name webengine.version
"""
_RESOURCE = frozenset(_RESOURCE_KEYS.split())
_SERVICE_SOURCE, _SCOPE_NAME, _SCOPE_VERSION = "otlp.service.name.source", "otel.library.name", "otel.library.version"
_SPECIAL = _RESOURCE | {
    _SERVICE_SOURCE,
    _SCOPE_NAME,
    _SCOPE_VERSION,
    "w3c.tracestate",
    "span.kind",
    "otel.status_code",
    "error",
    "otlp.link.0",
}


def _take_special(tags: dict[str, str], service: str | None, kind: int) -> tuple[int, bytes, bytes, bytes]:
    """Takes the tags that are no attributes: the span's kind, its resource and scope, and other fields of the span, encoded."""
    source = tags.pop(_SERVICE_SOURCE, "") or "service.name"
    # Sorted: the same tags in another order are the same resource.
    found = {key: tags.pop(key) for key in sorted(_RESOURCE & tags.keys())}
    resource = (
        key_values(1, found.items())
        if service is None or service in ("", _NO_SERVICE)
        else key_values(1, ({source: service} | found).items())
    )
    scope = b"".join(delimited(field, tags.pop(key).encode()) for field, key in ((1, _SCOPE_NAME), (2, _SCOPE_VERSION)) if tags.get(key))
    more = []
    if "w3c.tracestate" in tags:
        more.append(delimited(3, tags.pop("w3c.tracestate").encode()))
    if not kind and (kind := _TAG_KINDS.get(tags.get("span.kind", ""), 0)):
        del tags["span.kind"]
    for number in range(_LINKS):
        key = f"otlp.link.{number}"
        if key not in tags:
            break
        if (link := _link(tags[key])) is not None:
            del tags[key]
            more.append(link)
    code, message = 0, ""
    if "otel.status_code" in tags:
        code = _STATUS_CODES.get(tags.pop("otel.status_code").removeprefix("STATUS_CODE_").upper(), 0)
        message = tags.pop("otel.status_description", "")
    if "error" in tags:
        code = 2
        if tags["error"] == "true":
            del tags["error"]
    more.append(status(code, message))
    return kind, resource, scope, b"".join(more)


def status(code: int, message: str) -> bytes:
    """A span's status, encoded; nothing of none."""
    text = delimited(2, message.encode()) if message else b""
    return delimited(15, text + (bytes((0x18, code)) if code else b"")) if text or code else b""


def _link(text: str) -> bytes | None:
    """The link that `trace id|span id|state|{"key":"value"}|dropped` says, encoded; None of another text."""
    ids = text.split("|", 3)
    attributes = _with_attributes(4, ids.pop()) if len(ids) == 4 else None
    if attributes is None:
        return None
    try:
        trace_id, span_id = binascii.unhexlify(ids[0].strip('"')), binascii.unhexlify(ids[1].strip('"'))
    except ValueError:
        return None
    if len(trace_id) not in (0, 16) or len(span_id) not in (0, 8):
        return None
    return delimited(13, delimited(1, trace_id) + delimited(2, span_id) + delimited(3, ids[2].encode()) + attributes)


def _event(nanoseconds: int, value: str) -> bytes | bytearray:
    """A span's event, encoded. An annotation's text is its name, unless it is `name|{"key":"value"}|dropped`."""
    name, bar, rest = value.partition("|")
    if not bar or (attributes := _with_attributes(3, rest)) is None:
        return zipkin_spans.event(nanoseconds, value)
    return delimited(11, _EVENT_TIME.pack(9, nanoseconds) + delimited(2, name.encode()) + attributes)


_EVENT_TIME = struct.Struct("<BQ")
_attributes_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def _with_attributes(field: int, text: str) -> bytes | None:
    """What `{"key":"value"}|dropped` says, as attributes in this field and a count in the next; None of another text."""
    encoded, _, dropped = text.rpartition("|")
    if not re.fullmatch("[0-9]{1,10}", dropped) or int(dropped) >= 1 << 32:
        return None
    try:
        attributes = _attributes_decoder.decode(encoded) or {}
        entries = [
            delimited(field, delimited(1, key.encode()) + delimited(2, nested_value(_whole(value))))
            for key, value in attributes.items()
            if value is not None
        ]
    except (ValueError, OverflowError, RecursionError):  # msgspec's errors are the first
        return None
    count = int(dropped)
    return b"".join(entries) + (bytes(((field + 1) << 3,)) + varint(count) if count else b"")


def _whole(value: Any) -> Any:
    # JSON has one kind of number, and the Collector writes 1.0 as 1.
    return int(value) if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**63 else value


def typed(value: str) -> str | int | float | bool:
    """The value that `parse_string_tags` finds in this text; the text, where a number is too large for its type."""
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch("-?[0-9]{1,19}", value) and -(2**63) <= (number := int(value)) < 2**63:
        return number
    if re.fullmatch(r"-?[0-9]+\.[0-9]+", value) and abs(decimal := float(value)) < float("inf"):
        return decimal
    return value


@lru_cache(1024)
def _short_service(name: str) -> bytes:
    return key_values(1, [("service.name", name)])


def _service(name: str | None) -> bytes:
    """The resource of a service without further attributes, encoded."""
    if not name or name == _NO_SERVICE:
        return b""
    return _short_service(name) if len(name) < 100 else _short_service.__wrapped__(name)


_ABSENT = key_values(9, [(START_TIME_ABSENT, True)])


def _endpoint(side: str, service: str | None, ipv4: str | None, ipv6: str | None, port: int | None) -> tuple[frozenset[str], bytes]:
    """The span's attributes that an endpoint gives, encoded, and their keys."""
    attributes: dict[str, AttributeValue] = {"peer.service": service} if service else {}
    for field, text in ("ipv4", ipv4), ("ipv6", ipv6):
        if text:
            attributes[f"net.{side}.ip"] = address(f"{_ENDPOINTS[side]}.{field}", text)
    if port:
        attributes[f"net.{side}.port"] = port
    return frozenset(attributes), key_values(9, attributes.items())


_ENDPOINTS = {"host": "localEndpoint", "peer": "remoteEndpoint"}
_short_endpoint = lru_cache(4096)(_endpoint)


@lru_cache(4096)
def _short_address(text: str | bytes) -> str:
    ip = ip_address(text)
    if isinstance(ip, IPv6Address):
        if ip.scope_id:
            raise ValueError
        ip = ip.ipv4_mapped or ip
    return str(ip)


def address(field: str, text: str | bytes) -> str:
    """An IP address as Go writes it, from text or from its bytes. Raises DecodeError."""
    try:
        if len(text) > 45:  # the longest there is: IPv6 that ends in an IPv4 address
            raise ValueError
        return _short_address(text)
    except ValueError:
        raise DecodeError(f"{field} is no IP address: {text!r:.80}") from None


_PROTOBUF_KINDS = {1: "CLIENT", 2: "SERVER", 3: "PRODUCER", 4: "CONSUMER"}


def _protobuf_endpoint(field: str, service_name: Any, ipv4: Any, ipv6: Any, port: Any) -> Endpoint:
    if port > 65535:
        raise DecodeError(f"{field}.port is not between 0 and 65535")
    return Endpoint(service_name, ipv4 and address(f"{field}.ipv4", ipv4), ipv6 and address(f"{field}.ipv6", ipv6), port)
