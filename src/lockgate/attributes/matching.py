"""Which records a processor acts upon: `include` and `exclude` by properties, compiled into a function.

Behaviour: the contrib collector's `internal/filter` (filterconfig, filtermatcher, filterlog, filterspan, filtermetric). All properties
given must hold. Of names, bodies, texts, kinds, services and libraries one entry must match; of `attributes` and `resources` all. (The
collector's code asks for all `libraries`, which its documentation contradicts, and which no record could meet; the documentation is
followed.) Regular expressions match anywhere in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import Field, field_validator, model_validator

from lockgate.attributes.values import decode, encode, find, scalar_text, text
from lockgate.batch import Signal
from lockgate.kit import regex
from lockgate.kit.document import Path
from lockgate.kit.settings import Settings

Matches = Callable[[Any, Any, Any], bool]
"""Whether a record matches, given its resource entry, scope entry and itself (log record, span or metric)."""

MatchType = Literal["strict", "regexp"]

_SEVERITIES = {
    f"{name}{step + 1 if step else ''}": first + step
    for first, name in zip(range(1, 25, 4), ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"), strict=True)
    for step in range(4)
}


class AttributeMatch(Settings):
    """An attribute that must be there, with this value where one is given."""

    key: str = Field(min_length=1)
    """The attribute's key."""
    value: Any = None
    """Its value: type and value must be equal with `strict`; a regular expression with `regexp`. Without it, any value matches."""


class LibraryMatch(Settings):
    """An instrumentation scope."""

    name: str
    """The scope's name."""
    version: str | None = None
    """The scope's version; without it any version matches, and "" only a scope without a version."""


class SeverityMatch(Settings):
    """Log records from a severity upwards."""

    min: int
    """The lowest severity that matches: a name such as INFO or WARN2 in any case, or its number (1 to 24)."""
    match_undefined: bool = False
    """Whether records without a severity match too."""

    @field_validator("min", mode="before")
    @classmethod
    def _number(cls, value: object) -> int:
        number = _SEVERITIES.get(str(value).upper()) or (int(str(value)) if str(value).isdecimal() else 0)
        if not 1 <= number <= 24:
            raise ValueError(f"{value!r} is no severity; write TRACE, DEBUG, INFO, WARN, ERROR or FATAL (2 to 4 may follow), or 1 to 24")
        return number


class RegexpCache(Settings):
    """The collector's cache of what matched before."""

    cacheenabled: bool = False
    """No effect: matching takes linear time, and groups of alike records are matched once."""
    cachemaxnumentries: int = Field(default=0, ge=0)
    """No effect."""


class MatchProperties(Settings):
    """What a record must look like; at least one property, and all given ones must hold."""

    match_type: MatchType
    """`strict` compares, `regexp` searches with regular expressions (RE2)."""
    regexp: RegexpCache | None = None
    """No effect, whatever it holds."""
    services: list[str] = []
    """Traces: the resource's service.name; a resource without one is called `<nil-service-name>`."""
    span_names: list[str] = []
    """Traces: the span's name."""
    span_kinds: list[str] = []
    """Traces: the span's kind, as SPAN_KIND_SERVER."""
    log_bodies: list[str] = []
    """Logs: the body as text; a map or list as JSON."""
    log_severity_texts: list[str] = []
    """Logs: the severity text."""
    log_severity_number: SeverityMatch | None = None
    """Logs: severities from a lowest one upwards."""
    metric_names: list[str] = []
    """Metrics: the metric's name."""
    attributes: list[AttributeMatch] = []
    """Logs and traces: attributes of the record; all must match."""
    resources: list[AttributeMatch] = []
    """Attributes of the resource; all must match."""
    libraries: list[LibraryMatch] = []
    """Logs and traces: the instrumentation scope."""

    _USED: ClassVar[dict[Signal, frozenset[str]]] = {
        Signal.LOGS: frozenset({"log_bodies", "log_severity_texts", "log_severity_number", "attributes", "resources", "libraries"}),
        Signal.TRACES: frozenset({"services", "span_names", "span_kinds", "attributes", "resources", "libraries"}),
        Signal.METRICS: frozenset({"metric_names", "resources"}),
    }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self._given():
            raise ValueError("names no property; give at least one, such as attributes or resources")
        texts = [*self.services, *self.span_names, *self.span_kinds, *self.log_bodies, *self.log_severity_texts, *self.metric_names]
        for library in self.libraries:
            texts += [library.name, library.version or ""]
        if self.match_type == "regexp":
            for pattern in texts:
                regex.compile(pattern)
        elif unknown := set(self.span_kinds) - set(Span.SpanKind.keys()[1:]):
            raise ValueError(f"span_kinds {', '.join(sorted(unknown))}: no such kind; known: {', '.join(Span.SpanKind.keys()[1:])}")
        for attribute in (*self.attributes, *self.resources):
            _check_value(self.match_type, attribute)
        return self

    def _given(self) -> set[str]:
        return {name for name in type(self).model_fields if name not in ("match_type", "regexp") and getattr(self, name)}

    def conflict(self, signal: Signal) -> str:
        """The properties named here that this signal's records do not have, in words; empty where there are none."""
        if strange := self._given() - self._USED[signal]:
            return f"{', '.join(sorted(strange))}: {signal} have no such property; known: {', '.join(sorted(self._USED[signal]))}"
        return ""

    def compile(self, signal: Signal) -> Matches:
        """Raises ValueError for properties that this signal's records do not have."""
        if conflict := self.conflict(signal):
            raise ValueError(conflict)
        checks: list[Matches] = []

        def add(wanted: Sequence[str], read: Callable[[Any, Any, Any], str]) -> None:
            if wanted:
                one = any_of(self.match_type, wanted)
                checks.append(lambda entry, scope, record: one(read(entry, scope, record)))

        add(self.services, lambda entry, scope, record: _service(entry))
        add(self.span_names, lambda entry, scope, record: record.name)
        add(self.metric_names, lambda entry, scope, record: record.name)
        add(self.span_kinds, lambda entry, scope, record: _kind(record.kind))
        add(self.log_bodies, lambda entry, scope, record: text(record.body))
        add(self.log_severity_texts, lambda entry, scope, record: record.severity_text)
        if (severity := self.log_severity_number) is not None:
            lowest, undefined = severity.min, severity.match_undefined
            checks.append(lambda entry, scope, record: record.severity_number >= lowest if record.severity_number else undefined)
        if self.libraries:
            known = [(any_of(self.match_type, [item.name]), _version(self.match_type, item.version)) for item in self.libraries]
            checks.append(
                lambda entry, scope, record: any(name(scope.scope.name) and version(scope.scope.version) for name, version in known)
            )
        if self.resources:
            of_resource = all_attributes(self.match_type, self.resources)
            checks.append(lambda entry, scope, record: of_resource(entry.resource.attributes))
        if self.attributes:
            of_record = all_attributes(self.match_type, self.attributes)
            checks.append(lambda entry, scope, record: of_record(record.attributes))
        if len(checks) == 1:
            return checks[0]
        return lambda entry, scope, record: all(check(entry, scope, record) for check in checks)


def conflicts(include: MatchProperties | None, exclude: MatchProperties | None, signal: Signal) -> Iterator[tuple[Path, str]]:
    """(where, what) of the properties that this signal's records do not have."""
    for name, properties in (("include", include), ("exclude", exclude)):
        if properties is not None and (conflict := properties.conflict(signal)):
            yield (name,), conflict


def selection(include: MatchProperties | None, exclude: MatchProperties | None, signal: Signal) -> Matches | None:
    """Whether a record is included, and then not excluded; None where there is no condition. Raises ValueError as `compile`."""
    included = include.compile(signal) if include else None
    excluded = exclude.compile(signal) if exclude else None
    if included and excluded:
        return lambda entry, scope, record: included(entry, scope, record) and not excluded(entry, scope, record)
    if excluded:
        return lambda entry, scope, record: not excluded(entry, scope, record)
    return included


def deciding_keys(include: MatchProperties | None, exclude: MatchProperties | None) -> list[str] | None:
    """The keys of the record attributes that `selection` looks at, where it looks at nothing else of a record; else None."""
    elsewhere = {"attributes", "resources", "libraries", "services"}
    given = [properties for properties in (include, exclude) if properties]
    if any(properties._given() - elsewhere for properties in given):
        return None
    return list(dict.fromkeys(attribute.key for properties in given for attribute in properties.attributes))


def any_of(match_type: MatchType, wanted: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text equals one of these, or one of these expressions is found in it."""
    if match_type == "strict":
        return frozenset(wanted).__contains__
    searches = [regex.compile(pattern).search for pattern in wanted]
    return lambda value: any(search(value) for search in searches)


def all_attributes(match_type: MatchType, wanted: Sequence[AttributeMatch]) -> Callable[[Any], bool]:
    """Whether a repeated KeyValue field holds all of these."""
    checks = [(attribute.key, _value(match_type, attribute)) for attribute in wanted]

    def matches(attributes: Any) -> bool:
        for key, check in checks:
            found = find(attributes, key)
            if found is None or not check(found):
                return False
        return True

    return matches


def _value(match_type: MatchType, attribute: AttributeMatch) -> Callable[[Any], bool]:
    if attribute.value is None:
        return lambda found: True
    if match_type == "regexp":
        search = regex.compile(attribute.value).search
        return lambda found: (written := scalar_text(found)) is not None and search(written) is not None
    wanted = encode(attribute.value)
    kind, plain = wanted.WhichOneof("value"), decode(wanted)
    return lambda found: found.WhichOneof("value") == kind and decode(found) == plain


def _check_value(match_type: MatchType, attribute: AttributeMatch) -> None:
    if match_type == "regexp" and attribute.value is not None:
        if not isinstance(attribute.value, str):
            raise ValueError(f"{attribute.key}: a value for match_type regexp must be a string; quote it")
        regex.compile(attribute.value)
    encode(attribute.value)


def _version(match_type: MatchType, version: str | None) -> Callable[[str], bool]:
    if version is None:
        return lambda found: True
    return any_of(match_type, [version]) if version else (lambda found: not found)


def _service(entry: Any) -> str:
    found = find(entry.resource.attributes, "service.name")
    return "<nil-service-name>" if found is None else text(found)


def _kind(number: int) -> str:
    return Span.SpanKind.Name(number) if number in Span.SpanKind.values() else ""  # type: ignore[arg-type]
