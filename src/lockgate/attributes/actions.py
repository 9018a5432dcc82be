"""The actions of the `resource` and `attributes` processors, compiled once from settings into closures.

Behaviour: the contrib collector's `internal/coreinternal/attraction`.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from pydantic import BeforeValidator, model_validator

from lockgate.attributes.values import Attributes, encode, find, put, remove, text
from lockgate.kit import regex
from lockgate.kit.settings import Settings

Edit = Callable[[Attributes, str], None]
"""Changes attributes in place, given them and the peer that sent them."""


def _lower(name: object) -> object:
    return name.lower() if isinstance(name, str) else name


class Action(Settings):
    """One change to a set of attributes."""

    action: Annotated[Literal["insert", "update", "upsert", "delete", "hash", "extract", "convert"], BeforeValidator(_lower)]
    """What to do: `insert` sets the attribute where it is missing, `update` where it exists, `upsert` in both cases; `delete` removes it;
    `hash` replaces its value with its SHA-256 in hex (a list or map becomes ""); `extract` sets one attribute for each named group of
    `pattern`, matched in the value of `key`; `convert` changes its type."""

    key: str = ""
    """The attribute to act upon. `delete` and `hash` may go by `pattern` instead, or as well."""

    value: Any = None
    """The value for insert, update and upsert, with the type that YAML gives it; lists and maps are allowed."""

    from_attribute: str = ""
    """Insert, update and upsert take the value of this attribute; where it is missing, nothing happens."""

    from_context: str = ""
    """Insert, update and upsert take `client.address`, the address of the client that sent the batch. A batch carries no other client
    metadata, so `metadata.*` and `auth.*` are refused."""

    pattern: str = ""
    """A regular expression (RE2): for delete and hash it finds keys, anywhere in the key; for extract it must name all its groups."""

    converted_type: Literal["", "string", "int", "double"] = ""
    """The type that convert gives; a value that cannot be converted stays as it is."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = {
            name
            for name in ("value", "from_attribute", "from_context", "pattern", "converted_type")
            if getattr(self, name) not in (None, "")
        }
        if self.value == "":
            given.add("value")
        sources = given & {"value", "from_attribute", "from_context"}
        match self.action:
            case "insert" | "update" | "upsert":
                allowed = {"value", "from_attribute", "from_context"}
                if len(sources) != 1:
                    raise ValueError(f"{self.action} takes exactly one of value, from_attribute and from_context")
            case "delete" | "hash":
                allowed = {"pattern"}
                if not self.key and not self.pattern:
                    raise ValueError(f"{self.action} takes key or pattern, or both")
            case "extract":
                allowed = {"pattern"}
                if not self.pattern:
                    raise ValueError("extract takes a pattern")
            case "convert":
                allowed = {"converted_type"}
                if not self.converted_type:
                    raise ValueError("convert takes a converted_type: string, int or double")
        if unused := given - allowed:
            raise ValueError(f"{self.action} does not use {', '.join(sorted(unused))}")
        if not self.key and self.action not in ("delete", "hash"):
            raise ValueError(f"{self.action} takes a key")
        if self.from_context and self.from_context != "client.address":
            raise ValueError(f"from_context {self.from_context!r} is not carried by a batch; client.address is")
        encode(self.value)
        if self.pattern:
            compiled = regex.compile(self.pattern)
            if self.action == "extract" and (not compiled.groups or len(compiled.groupindex) != compiled.groups):
                raise ValueError("extract needs a pattern whose groups all have names, as in (?P<name>...)")
        return self


def asks_peer(actions: Sequence[Action]) -> bool:
    """Whether the outcome depends on the peer, so that a cache of outcomes must too."""
    return any(action.from_context for action in actions)


def compile_actions(actions: Sequence[Action]) -> Edit:
    """These actions, one after the other; later ones see what earlier ones did."""
    edits = [_compile(action) for action in actions]

    def edit(attributes: Attributes, peer: str) -> None:
        for each in edits:
            each(attributes, peer)

    return edits[0] if len(edits) == 1 else edit


def _compile(action: Action) -> Edit:
    key = action.key
    match action.action:
        case "insert" | "update" | "upsert":
            return _setter(action)
        case "delete":
            matches = _keys(action)
            return lambda attributes, peer: remove(attributes, matches)
        case "hash":
            matches = _keys(action)

            def hash_(attributes: Attributes, peer: str) -> None:
                for attribute in attributes:
                    if matches(attribute.key):
                        attribute.value.string_value = _digest(attribute.value)

            return hash_
        case "extract":
            pattern = regex.compile(action.pattern)
            names = sorted(pattern.groupindex, key=lambda name: pattern.groupindex[name])

            def extract(attributes: Attributes, peer: str) -> None:
                value = find(attributes, key)
                if value is not None and value.HasField("string_value") and (match := pattern.search(value.string_value)):
                    for name in names:
                        put(attributes, name).string_value = match[name] or ""

            return extract
        case "convert":
            convert = {"string": _to_string, "int": _to_int, "double": _to_double}[action.converted_type]

            def convert_(attributes: Attributes, peer: str) -> None:
                if (value := find(attributes, key)) is not None:
                    convert(value)

            return convert_


def _setter(action: Action) -> Edit:
    key, wanted = action.key, action.from_attribute
    inserts, updates = action.action != "update", action.action != "insert"
    fixed = encode(action.value)
    new = KeyValue(key=key, value=fixed)
    source: Callable[[Attributes, str], AnyValue | None]
    if wanted:
        source = lambda attributes, peer: find(attributes, wanted)  # noqa: E731
    elif action.from_context:
        source = lambda attributes, peer: AnyValue(string_value=peer) if peer else None  # noqa: E731
    else:
        source = lambda attributes, peer: fixed  # noqa: E731

    def set_(attributes: Attributes, peer: str) -> None:
        value = source(attributes, peer)
        if value is None:
            return
        existing = find(attributes, key)
        if existing is None:
            if inserts:
                attributes.append(new if value is fixed else KeyValue(key=key, value=value))
        elif updates and existing is not value:
            existing.CopyFrom(value)

    return set_


def _keys(action: Action) -> Callable[[str], object]:
    key = action.key
    if not action.pattern:
        return key.__eq__
    search = regex.compile(action.pattern).search
    return lambda name: (bool(key) and name == key) or search(name)


def _digest(value: AnyValue) -> str:
    match value.WhichOneof("value"):
        case "string_value":
            content = value.string_value.encode()
        case "bool_value":
            content = bytes([value.bool_value])
        case "int_value":
            content = struct.pack("<q", value.int_value)
        case "double_value":
            content = struct.pack("<d", value.double_value)
        case _:
            content = b""
    return hashlib.sha256(content).hexdigest() if content else ""


_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


def _to_string(value: AnyValue) -> None:
    value.string_value = text(value)


def _to_int(value: AnyValue) -> None:
    number: int | None = None
    match value.WhichOneof("value"):
        case "double_value" if math.isfinite(value.double_value):
            number = int(value.double_value)
        case "bool_value":
            number = int(value.bool_value)
        case "string_value" if _INTEGER.fullmatch(value.string_value):
            number = int(value.string_value)
    if number is not None and -(2**63) <= number < 2**63:
        value.int_value = number


def _to_double(value: AnyValue) -> None:
    match value.WhichOneof("value"):
        case "int_value":
            value.double_value = float(value.int_value)
        case "bool_value":
            value.double_value = float(value.bool_value)
        case "string_value" if (number := _parse_float(value.string_value)) is not None:
            value.double_value = number


def _parse_float(written: str) -> float | None:
    """Go's strconv.ParseFloat for decimal notation: no blanks, no underscores, out of range is no number."""
    if "_" in written or written != written.strip():
        return None
    try:
        number = float(written)
    except ValueError:
        return None
    return None if math.isinf(number) and "inf" not in written.lower() else number
