"""Label and field selectors, as the API's query parameters spell them (k8s.io/apimachinery, labels.Parse and fields.ParseSelector)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Requirement = Callable[[Mapping[str, str]], bool]

_LABEL = re.compile(
    r"\s*(?:"
    r"(?P<absent>!)\s*(?P<name0>[^\s,()!=<>]+)"
    r"|(?P<name1>[^\s,()!=<>]+)\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    r"|(?P<name2>[^\s,()!=<>]+)\s*(?:(?P<operator>==|=|!=|>|<)\s*(?P<value>[^\s,()!=<>]*))?"
    r")\s*(?:,|$)"
)


def labels(text: str) -> list[Requirement]:
    """Each requirement of a label selector; all must hold. Raises ValueError."""
    found, position = [], 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None or match.end() == position:
            raise ValueError(f"unable to parse requirement: found {text[position:]!r}")
        found.append(_requirement(match))
        position = match.end()
    return found


def fields(text: str, known: frozenset[str]) -> list[Requirement]:
    """Each requirement of a field selector over these fields. Raises ValueError."""
    found = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=!]+)(==|!=|=)(.*)", part)
        if match is None:
            raise ValueError(f"invalid selector: {part!r}; can't understand it")
        name, operator, value = match.groups()
        if name not in known:
            raise ValueError(f"field label not supported: {name}")
        found.append(_compare(name, operator, value))
    return found


def matches(requirements: list[Requirement], values: Mapping[str, str]) -> bool:
    return all(holds(values) for holds in requirements)


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        name = match["name0"]
        return lambda values: name not in values
    if match["set"]:
        name, wanted = match["name1"], {value.strip() for value in match["values"].split(",")}
        if match["set"] == "in":
            return lambda values: values.get(name) in wanted
        return lambda values: values.get(name) not in wanted
    name = match["name2"]
    if match["operator"] is None:
        return lambda values: name in values
    return _compare(name, match["operator"], match["value"])


def _compare(name: str, operator: str, value: str) -> Requirement:
    if operator == "!=":
        return lambda values: values.get(name) != value
    if operator in ("=", "=="):
        return lambda values: values.get(name) == value
    limit = int(value)

    def ordered(values: Mapping[str, str]) -> bool:
        text = values.get(name, "")
        return text.lstrip("-").isdigit() and (int(text) > limit if operator == ">" else int(text) < limit)

    return ordered
