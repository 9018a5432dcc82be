"""Strict settings: pydantic models whose every complaint names a path, and the nearest known name for a misspelt one."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, model_validator

from lockgate.kit.document import Document, Path, Problem

Secret = SecretStr
"""A value that never prints; `.get_secret_value()` gives it."""


S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """What a user writes. Unknown keys are errors; a field's docstring is its documentation; a key set to null takes its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


def validate(model: type[S], document: Document, path: Path) -> tuple[S | None, list[Problem]]:
    """The settings at this path of the document, or every problem found in them."""
    value = document.value
    for part in path:
        value = value[part]
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, list(_problems(model, error, document, path))


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What each field means: its docstring, read from the source when asked for.

    pydantic's use_attribute_docstrings reads every model's source at each start: 60 ms and half a megabyte.
    """
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, Settings) and isinstance(body := ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0], ast.ClassDef):
            for field, text in pairwise(body.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                    found[field.target.id] = inspect.cleandoc(str(getattr(text.value, "value", "")))
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or what is known where nothing comes close."""
    import difflib  # for mistakes alone

    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else "none is known here"


_IN_YAMLS_WORDS = {
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "input should be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "input should be a mapping"),
}
"""What pydantic says of Python's types, by its name of the error."""


def _problems(model: type[BaseModel], error: ValidationError, document: Document, path: Path) -> Iterator[Problem]:
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_is_below(other["loc"], item["loc"]) for other in items):
            continue  # what is wrong in it has been taken out before it was counted
        steps, inner = _resolve(model, item["loc"])
        at = (*path, *steps)
        mark, message, mend = document.mark(at), _IN_YAMLS_WORDS.get(item["type"], item["msg"]), ""
        if item["type"] == "extra_forbidden":
            message, mend = "unknown key", nearest(str(steps[-1]), _keys(inner)) if inner else ""
        elif item["type"] == "missing":
            message = "missing; it has no default"
        elif item["type"] in ("too_short", "string_too_short") and item["ctx"]["min_length"] == 1:
            message = "must not be empty"
        elif item["type"] == "literal_error":
            near = nearest(str(item["input"]), re.findall(r"'([^']*)'", item["ctx"]["expected"]))
            mend = near if near.startswith("did") else ""  # the message has named them all
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        yield Problem(mark, at, message[:1].lower() + message[1:] if message[:2].istitle() else message, mend)


def _is_below(location: tuple[int | str, ...], above: tuple[int | str, ...]) -> bool:
    return len(location) > len(above) and location[: len(above)] == above


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _resolve(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[Path, type[BaseModel] | None]:
    """The path without the names that pydantic inserts for union members, and the model that holds its last step."""
    steps: list[str | int] = []
    holder: type[BaseModel] | None = model
    current: Any = model
    for part in location:
        members = list(_members(current))
        models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        mappings = [member for member in members if get_origin(member) is dict]
        owner = next((m for m in models if part in m.model_fields or part in _keys(m)), None)
        if isinstance(part, int):
            steps.append(part)
            current = next((get_args(m)[0] for m in members if get_origin(m) in (list, tuple, set, frozenset)), None)
        elif owner is not None:
            steps.append(part)
            holder = owner
            current = next(field for name, field in owner.model_fields.items() if part in (name, field.alias)).annotation
        elif len(members) > 1 and (named := [m for m in members if getattr(m, "__name__", "") == part and not get_args(m)]):
            current = named[0]  # a member of a union, which the user never typed
        elif mappings and "[" not in part:
            steps.append(part)
            current = get_args(mappings[0])[1]
        elif models and part == location[-1] and "[" not in part and not part.startswith(("function-", "constrained-", "is-instance")):
            steps.append(part)
            holder = models[0]
        # else: the name of a union member, or of a validator
    return tuple(steps), holder


def _members(annotation: Any) -> Iterator[Any]:
    """What may stand where this annotation is: the members of a union, the type inside Annotated, or itself."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    elif annotation is not None and annotation is not NoneType:
        yield annotation
