"""Complaints about settings: path, place, nearest name."""

from typing import Any, Literal

import pytest
from pydantic import Field

from lockgate.kit.document import parse
from lockgate.kit.settings import Secret, Settings, nearest, validate


class Http(Settings):
    """One protocol."""

    endpoint: str = "x"
    """Where."""
    port: int = 1
    """Which."""


class Rule(Settings):
    """A rule."""

    action: Literal["keep", "drop"]
    """What."""
    retries: int = 0
    """How often."""


class Outer(Settings):
    """Everything nested."""

    http: Http | None = None
    """Optional."""
    rules: list[Rule] = []
    """A list."""
    named: dict[str, Rule] = {}
    """A mapping."""
    either: bool | Http = False
    """A union."""
    lists: dict[str, list[Http]] = {}
    """A mapping of lists."""
    token: Secret = Secret("")
    """A secret."""
    aliased: int = Field(0, alias="as")
    """Under another name."""
    text: str = ""
    """Text."""
    some: list[Rule] = Field([Rule(action="keep")], min_length=1)
    """At least one."""


def complaints(text: str) -> list[str]:
    settings, found = validate(Outer, parse(text, "f.yaml"), ())
    assert (settings is None) is bool(found)
    return [str(problem) for problem in found]


CASES = [
    pytest.param("htpp: {}", ["f.yaml:1:1: htpp: unknown key; did you mean http?"], id="nearest"),
    pytest.param("http:\n  endpiont: a", ["f.yaml:2:3: http.endpiont: unknown key; did you mean endpoint?"], id="in-an-optional-model"),
    pytest.param(
        "rules:\n  - action: keep\n    retris: 1", ["f.yaml:3:5: rules[0].retris: unknown key; did you mean retries?"], id="in-a-list"
    ),
    pytest.param("rules:\n  - retries: 1", ["f.yaml:2:5: rules[0].action: missing; it has no default"], id="missing"),
    pytest.param(
        "named:\n  x:\n    action: keep\n    retris: 1",
        ["f.yaml:4:5: named.x.retris: unknown key; did you mean retries?"],
        id="in-a-mapping",
    ),
    pytest.param("named:\n  action: {retries: x, action: drop}", ["f.yaml:2:12: named.action.retries: "], id="a-mapping-key-like-a-field"),
    pytest.param("lists:\n  a:\n    - prt: 1", ["f.yaml:3:7: lists.a[0].prt: unknown key; did you mean port?"], id="mapping-of-lists"),
    pytest.param("as: x", ["f.yaml:1:1: as: "], id="alias"),
    pytest.param(
        "zzz: 1", ["f.yaml:1:1: zzz: unknown key; known: as, either, http, lists, named, rules, some, text, token"], id="known-names"
    ),
    pytest.param(
        "http: {port: x}\nrules: 5\nzz: 1", ["f.yaml:1:8: http.port: ", "f.yaml:2:1: rules: ", "f.yaml:3:1: zz: unknown"], id="all-at-once"
    ),
    pytest.param(
        "rules: [{action: kep}]", ["f.yaml:1:10: rules[0].action: input should be 'keep' or 'drop'; did you mean keep?"], id="literal"
    ),
    pytest.param(
        "http: 5\nrules: {}", ["f.yaml:1:1: http: input should be a mapping", "f.yaml:2:1: rules: input should be a list"], id="yamls-words"
    ),
    pytest.param("some: []", ["f.yaml:1:1: some: must not be empty"], id="empty"),
    pytest.param("some: [{action: x}]", ["f.yaml:1:9: some[0].action: input should be"], id="a-bad-item-is-no-empty-list"),
    pytest.param("[1]", ["f.yaml:1:1: "], id="not-a-mapping"),
]


@pytest.mark.parametrize(("text", "starts"), CASES)
def test_complaints(text: str, starts: list[str]) -> None:
    found = complaints(text)
    assert len(found) == len(starts), found
    for complaint, start in zip(found, starts, strict=True):
        assert complaint.startswith(start)


def test_a_misspelt_key_in_a_union_is_found_without_the_names_that_only_pydantic_knows() -> None:
    found = complaints("either: {prt: 1}")
    assert "f.yaml:1:10: either.prt: unknown key; did you mean port?" in found
    assert not any("Http" in complaint or "bool" in complaint.split(": ")[1] for complaint in found)


def test_null_takes_the_default_and_numbers_are_text_where_text_is_wanted() -> None:
    settings, _ = validate(Outer, parse("http: ~\ntext: 5\nrules: ", "f"), ())
    assert settings is not None and (settings.http, settings.text, settings.rules) == (None, "5", [])
    assert validate(Http, parse("", "f"), ())[0] == Http()


def test_settings_at_a_path() -> None:
    settings, found = validate(Http, parse("a: [{port: 5}]", "f"), ("a", 0))
    assert settings == Http(port=5) and not found


def test_a_secret_does_not_print() -> None:
    settings, _ = validate(Outer, parse("token: hunter2", "f"), ())
    assert settings is not None and "hunter2" not in repr(settings) and settings.token.get_secret_value() == "hunter2"


def test_nearest() -> None:
    assert nearest("a", []) == "none is known here"
    values: list[Any] = [nearest("endpoin", ["port", "endpoint"]), nearest("q", ["b", "a"])]
    assert values == ["did you mean endpoint?", "known: a, b"]
