"""OTLP/JSON <-> protobuf (OTLP 1.x, "JSON Protobuf Encoding"). Plain Python on protobuf's own JSON mapping: not a hot path.

OTLP differs from that mapping in two ways: trace and span ids are hex (of either case) instead of base64, and enums are written as numbers;
names are read too, as the OpenTelemetry Collector does. Both spellings of a key are read; 64-bit integers are numbers or strings.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from lockgate.wire.protobuf import DecodeError

_ID_SIZES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_MAX_DEPTH = 100


def needed_bytes(body: bytes) -> int:
    """Memory that decoding takes, as measured and rounded up: three bytes of JSON may be an object that takes two hundred."""
    return 4 * len(body) + 180 * body.count(b"{") + 60 * body.count(b"[") + 40 * body.count(b",")


def decode(body: bytes, kind: type[Message]) -> bytes:
    """The encoded message of this kind (an export request's class) that the JSON text says; unknown keys are ignored.

    Raises DecodeError where it is not JSON in UTF-8, or not that message.
    """
    message = kind()
    try:
        document = msgspec.json.decode(body)
        _map_bytes(document, message.DESCRIPTOR, _to_base64, 0)
        json_format.ParseDict(document, message, ignore_unknown_fields=True, max_recursion_depth=_MAX_DEPTH)
        return message.SerializeToString()
    except RecursionError:
        raise DecodeError(f"the JSON nests deeper than {_MAX_DEPTH}") from None
    except DecodeError:
        raise
    except (msgspec.MsgspecError, json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        # ParseDict raises the last three where a value has another JSON type than it expects.
        raise DecodeError(f"not OTLP/JSON: {error}") from error


def encode(message: Message) -> bytes:
    """The message as OTLP/JSON; fields with their default value are left out."""
    document = json_format.MessageToDict(message, use_integers_for_enums=True)
    _map_bytes(document, message.DESCRIPTOR, lambda text, name: base64.b64decode(text).hex() if name in _ID_SIZES else text, 0)
    return msgspec.json.encode(document)


def _to_base64(text: Any, name: str) -> str:
    """A bytes field as protobuf's mapping wants it; that one takes what is not base64 for nothing."""
    size = _ID_SIZES.get(name)
    try:
        raw = binascii.unhexlify(text) if size else base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, TypeError, AttributeError):
        raise DecodeError(f"not OTLP/JSON: {name} is not a string of {'hex digits' if size else 'base64'}: {text!r:.80}") from None
    if size and len(raw) not in (0, size):
        raise DecodeError(f"not OTLP/JSON: {name} has {len(raw)} bytes instead of {size}")
    return base64.b64encode(raw).decode()


@cache
def _on_the_way(descriptor: Any) -> dict[str, Any]:
    """The fields that are bytes, or messages which may hold some, by both spellings of their key."""
    fields = [field for field in descriptor.fields if field.type == field.TYPE_BYTES or field.message_type is not None]
    return {key: field for field in fields for key in (field.json_name, field.name)}


def _map_bytes(document: Any, descriptor: Any, convert: Callable[[Any, str], str], depth: int) -> None:
    """Converts every bytes field in place; by the schema, because an unknown field may hold a `traceId` of its own."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    if not isinstance(document, dict):
        raise DecodeError(f"not OTLP/JSON: {descriptor.name} must be an object, not {document!r:.80}")
    fields = _on_the_way(descriptor)
    for key, value in document.items():
        field = fields.get(key)
        if field is None or value is None:
            continue
        if field.message_type is None:
            document[key] = convert(value, field.name)  # a new value for a key that is there: the iteration goes on
        else:
            for item in value if field.is_repeated and isinstance(value, list) else [value]:
                _map_bytes(item, field.message_type, convert, depth + 1)
