"""What there is, in words: a configuration's needs, the components, a component's keys. All from the models; nothing is written twice."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lockgate.collector.components import UnusableComponent, all_types, find, summary
from lockgate.collector.config import Configuration
from lockgate.kit.settings import Secret, meanings, nearest
from lockgate.kit.units import format_duration, parse_duration, parse_size
from lockgate.pipeline.contract import Component, Kind
from lockgate.pipeline.needs import Connect, Exec, Kubernetes, Listen, Need, Read, Write


def needs_json(configuration: Configuration) -> str:
    """The needs as JSON: a list of objects with component, need (the kind of need) and that kind's fields."""
    return json.dumps(
        [{"component": who, "need": type(need).__name__.lower(), **asdict(need)} for who, need in configuration.needs()], indent=2
    )


def needs_table(configuration: Configuration) -> str:
    """The needs as aligned columns: component, need, what, why."""
    rows = [(who, type(need).__name__.lower(), what(need), need.reason) for who, need in configuration.needs()]
    return _columns([("COMPONENT", "NEED", "WHAT", "WHY"), *rows])


def component_list() -> str:
    """Every component there is: kind, type, signals, what it does."""
    rows = [("KIND", "TYPE", "SIGNALS", "WHAT IT DOES")]
    for kind, type_name in all_types():
        try:
            found = find(kind, type_name)
        except UnusableComponent as error:
            rows.append((kind.singular, type_name, "", f"unusable: {error}"))
            continue
        assert found is not None
        signals = " ".join(sorted(found.signals)) if kind is not Kind.EXTENSION else ""
        rows.append((kind.singular, type_name, signals, summary(kind, type_name)))
    return _columns(rows)


def component_reference(name: str) -> str:
    """Each component of this name with its keys; raises LookupError naming the nearest where there is none."""
    section, _, type_name = name.rpartition("/")
    kinds = [kind for kind in Kind if section in ("", kind.value, kind.singular)]
    found = [(kind, component) for kind in kinds if (component := find(kind, type_name)) is not None]
    if not found:
        raise LookupError(f"there is no component {name}; {nearest(type_name, {known for _, known in all_types()})}")
    return "\n\n".join(_reference(kind, component) for kind, component in found)


def _reference(kind: Kind, component: type[Component[Any]]) -> str:
    lines = [f"{kind.singular} {component.type_name}: {summary(kind, component.type_name)}"]
    if kind is not Kind.EXTENSION:
        lines.append(f"signals: {', '.join(sorted(component.signals))}")
    keys = list(_keys(component.settings_type, ""))
    lines.append("" if keys else "It has no keys.")
    for path, kind_of_value, default, meaning in keys:
        lines += [f"{path}: {kind_of_value}{default}", *(f"    {line}" for line in meaning.splitlines())]
    return "\n".join(lines)


def _keys(model: type[BaseModel], prefix: str, above: tuple[type[BaseModel], ...] = ()) -> Iterator[tuple[str, str, str, str]]:
    described = meanings(model)
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path, _type_text(field), _default_text(field), field.description or described.get(name, "")
        nested, container = _nested(field.annotation)
        for inner in nested:
            if inner not in above:
                yield from _keys(inner, f"{path}{container}.", (*above, model))


def _nested(annotation: Any, container: str = "") -> tuple[list[type[BaseModel]], str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], container
    origin, found = get_origin(annotation), []
    container = "[]" if origin in (list, tuple) else ".NAME" if origin is dict else container
    for argument in get_args(annotation):
        models, container_inside = _nested(argument, container)
        found += models
        container = container_inside if models else container
    return found, container


def _type_text(field: FieldInfo) -> str:
    functions = [getattr(item, "func", None) for item in field.metadata]
    if parse_duration in functions:
        return "duration"
    if parse_size in functions:
        return "size in bytes"
    return _annotation_text(field.annotation)


def _annotation_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(_annotation_text(argument) for argument in arguments if argument is not type(None))
    if origin is Annotated:
        functions = [getattr(item, "func", None) for item in arguments[1:]]
        return "duration" if parse_duration in functions else "size in bytes" if parse_size in functions else _annotation_text(arguments[0])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_annotation_text(arguments[0])}" if arguments else "list"
    if origin is dict:
        return f"map of {_annotation_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if annotation is Secret:
        return "secret string"
    names = {str: "string", int: "integer", float: "number", bool: "true | false", Any: "anything"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    default = field.get_default(call_default_factory=True) if not field.default_factory else field.default_factory()  # type: ignore[call-arg]
    if isinstance(default, BaseModel) or default is None:
        return ""
    if _type_text(field) == "duration":
        return f" = {format_duration(default)}"
    return f" = {json.dumps(default, default=str, ensure_ascii=False)}"


def what(need: Need) -> str:
    """Which, in a word."""
    match need:
        case Listen(host, port, _, protocol):
            return f"{_bracketed(host) or '*'}:{port}/{protocol}"
        case Connect(host, port, _, protocol, _):
            return f"{_bracketed(host)}:{port}/{protocol}"
        case Read(path) | Write(path) | Exec(path):
            return path
        case Kubernetes(verbs, group, resource, _, namespace):
            where = f" in {namespace}" if namespace else ""
            return f"{','.join(verbs)} {resource}{'.' + group if group else ''}{where}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _columns(rows: list[tuple[str, str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join((*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3])).rstrip() for row in rows
    )
