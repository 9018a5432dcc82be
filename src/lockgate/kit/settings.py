"""Strict settings: pydantic models whose every complaint names a path, and the nearest known name for a misspelt one."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, model_validator

from lockgate.kit.document import Document, Path, Problem

Secret = SecretStr
"""A value that never prints; `.get_secret_value()` gives it."""


S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """What a user writes. Unknown keys are errors; a field's docstring is its documentation; a key set to null takes its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, coerce_numbers_to_str=True)

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


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or what is known where nothing comes close."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else "none is known here"


def _problems(model: type[BaseModel], error: ValidationError, document: Document, path: Path) -> Iterator[Problem]:
    for item in error.errors(include_url=False, include_input=False):
        steps, inner = _resolve(model, item["loc"])
        at = (*path, *steps)
        mark, message, mend = document.mark(at), item["msg"], ""
        if item["type"] == "extra_forbidden":
            message, mend = "unknown key", nearest(str(steps[-1]), _keys(inner)) if inner else ""
        elif item["type"] == "missing":
            message = "missing; it has no default"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        yield Problem(mark, at, message[:1].lower() + message[1:] if message[:2].istitle() else message, mend)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _resolve(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[Path, type[BaseModel] | None]:
    """The path without the names that pydantic inserts for union members, and the model that holds its last step."""
    steps: list[str | int] = []
    holder: type[BaseModel] | None = model
    current: Any = model
    for part in location:
        if isinstance(part, int):
            steps.append(part)
            current = _item(current)
            continue
        models = list(_models(current))
        owner = next((m for m in models if part in m.model_fields or part in _keys(m)), None)
        if owner is not None:
            field = next(f for name, f in owner.model_fields.items() if part in (name, f.alias))
            steps.append(part)
            holder, current = owner, field.annotation
        elif get_origin(current) is dict or any(get_origin(a) is dict for a in get_args(current)):
            steps.append(part)
            current = _item(current)
        elif part == location[-1] and not part.startswith(("function-", "constrained-", "is-instance")) and models:
            steps.append(part)
            holder = models[0]
        # else: the name of a union member, which the user never typed
    return tuple(steps), holder


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _item(annotation: Any) -> Any:
    for candidate in (annotation, *get_args(annotation)):
        if get_origin(candidate) in (list, tuple, dict, set, frozenset):
            return get_args(candidate)[-1 if get_origin(candidate) is dict else 0]
    return annotation
