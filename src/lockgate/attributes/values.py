"""Attribute values: between Python and OTLP's AnyValue, and the text that Go's pdata gives them; looking attributes up by key."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Attributes = Any
"""A repeated KeyValue field of a protobuf message, to be changed in place."""


def encode(value: object) -> AnyValue:
    """An AnyValue holding this Python value, lists and mappings included; raises ValueError for what OTLP cannot hold."""
    match value:
        case None:
            return AnyValue()
        case str():
            return AnyValue(string_value=value)
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            result = AnyValue()
            result.array_value.SetInParent()
            result.array_value.values.extend(encode(item) for item in value)
            return result
        case dict():
            result = AnyValue()
            result.kvlist_value.SetInParent()
            result.kvlist_value.values.extend(KeyValue(key=str(key), value=encode(item)) for key, item in value.items())
            return result
    raise ValueError(f"a {type(value).__name__} cannot be an attribute's value")


def decode(value: AnyValue) -> Any:
    """The Python value in an AnyValue: None, str, bool, int, float, bytes, list or dict."""
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [decode(item) for item in value.array_value.values]
        case "kvlist_value":
            return {item.key: decode(item.value) for item in value.kvlist_value.values}
        case kind:
            return getattr(value, kind)


def text(value: AnyValue) -> str:
    """The value as text, as Go's pdata `Value.AsString` writes it: JSON for maps and lists, base64 for bytes, "" for nothing."""
    if (kind := value.WhichOneof("value")) == "string_value":
        return value.string_value
    plain = decode(value)
    match plain:
        case None:
            return ""
        case bool():
            return "true" if plain else "false"
        case float():
            return float_text(plain)
        case bytes():
            return base64.b64encode(plain).decode()
        case _ if kind == "int_value":
            return str(plain)
    return _json(plain)


def scalar_text(value: AnyValue) -> str | None:
    """The text of a string, boolean, integer or double; None for other kinds, which regular expressions never match."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "int_value":
            return str(value.int_value)
        case "double_value":
            return _fixed(value.double_value)
    return None


def find(attributes: Attributes, key: str) -> AnyValue | None:
    """The value of the first attribute with this key, to be changed in place."""
    for attribute in attributes:
        if attribute.key == key:
            return attribute.value  # type: ignore[no-any-return]
    return None


def put(attributes: Attributes, key: str) -> AnyValue:
    """The value under this key, an empty new one where there was none."""
    found = find(attributes, key)
    return attributes.add(key=key).value if found is None else found


def remove(attributes: Attributes, goes: Callable[[str], object]) -> None:
    """Removes every attribute whose key `goes`; of a key that occurs twice none is left."""
    for index in range(len(attributes) - 1, -1, -1):
        if goes(attributes[index].key):
            del attributes[index]


def _fixed(number: float) -> str:
    if not math.isfinite(number):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(number, "NaN")
    digits = format(Decimal(repr(number)), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def float_text(number: float) -> str:
    """As pdata and Go's encoding/json write a double: an exponent below 1e-6 and from 1e21 on."""
    if not number or 1e-6 <= abs(number) < 1e21 or not math.isfinite(number):
        return _fixed(number)
    mantissa, _, exponent = repr(number).partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"


_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def _json(value: Any) -> str:
    """As Go's json.Marshal: keys sorted, `<`, `>` and `&` escaped."""
    plain = json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=lambda item: base64.b64encode(item).decode()
    )
    return plain.translate(_HTML)
