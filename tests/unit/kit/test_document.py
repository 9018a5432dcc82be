"""Documents with marks: what reads as what, where each value stands, and what is refused."""

from typing import Any

import pytest

from lockgate.kit.document import Document, DocumentError, Mark, environment_expander, merge, parse, path_text

EXPAND = environment_expander({"NAME": "value", "NUMBER": "5", "ID": "0123", "YES": "true", "EMPTY": "", "LIST": "[1]", "COLON": "a: b"})


def problems(text: str, **options: Any) -> list[str]:
    with pytest.raises(DocumentError) as raised:
        parse(text, "f.yaml", **options)
    return [str(problem) for problem in raised.value.problems]


SCALARS = [
    ("on", "on"), ("yes", "yes"), ("no", "no"), ("true", True), ("False", False), ("5", 5), ("-5", -5), ("1.5", 1.5), ("1e3", 1000.0),
    ("0x1F", 31), ("0o17", 15), ("~", None), ("null", None), ("", None), ("12:30", "12:30"), ("12:30:45", "12:30:45"), ("1:30.5", "1:30.5"),
    ("2024-01-01", "2024-01-01"), ("'5'", "5"), ("1.2.3", "1.2.3"), (".inf", float("inf")), ("10s", "10s"), ("=", "="), ("1_000", 1000),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: Any) -> None:
    found = parse(f"a: {text}", "f").value["a"]
    assert found == value and type(found) is type(value)


def test_an_empty_document_is_an_empty_mapping() -> None:
    assert parse("", "f").value == {} and parse("# nothing", "f").value == {}


def test_every_value_has_the_mark_of_its_key_and_items_their_own() -> None:
    document = parse("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", "f.yaml")
    assert {path: str(mark) for path, mark in document.marks.items()} == {
        (): "f.yaml:1:1",
        ("a",): "f.yaml:1:1",
        ("a", "b"): "f.yaml:2:3",
        ("a", "c"): "f.yaml:3:3",
        ("a", "c", 0): "f.yaml:4:7",
        ("a", "c", 1): "f.yaml:5:7",
        ("a", "c", 1, "y"): "f.yaml:5:7",
    }
    assert document.mark(("a", "b", "none", 3)) == Mark("f.yaml", 2, 3)
    assert path_text(("a", "c", 1, "y")) == "a.c[1].y"


REFUSED = [
    pytest.param("a: [1", "f.yaml:1:6: not valid YAML", id="syntax"),
    pytest.param("a: 1\n---\nb: 2", "f.yaml:2:1: not valid YAML", id="two-documents"),
    pytest.param("a: 1\na: 2", "f.yaml:2:1: a: written twice, first at line 1; keep one", id="duplicate"),
    pytest.param("[1]: 2", "f.yaml:1:1: a key must be a plain word", id="complex-key"),
    pytest.param("a: !!python/object:os.system x", "f.yaml:1:4: a: cannot be read as", id="foreign-tag"),
    pytest.param("a: *b", "f.yaml:1:4: not valid YAML: found undefined alias", id="unknown-alias"),
    pytest.param("<<: 5", "f.yaml:1:1: not valid YAML", id="merge-of-a-number"),
    pytest.param("a: !!int x", "f.yaml:1:4: a: cannot be read as int", id="wrong-tag"),
    pytest.param("a: \x00", "f.yaml: not valid YAML", id="control-character"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_refused(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


def test_all_problems_are_reported_at_once() -> None:
    assert len(problems("a: 1\na: 2\nb: ${nope:x}\n[1]: 2", expand=EXPAND)) == 3


def test_a_merge_key_gives_what_is_missing_and_is_no_duplicate() -> None:
    document = parse("base: &b {a: 1, c: 3}\nuse:\n  <<: *b\n  a: 2\n", "f")
    assert document.value["use"] == {"a": 2, "c": 3}
    assert document.marks["use", "a"].line == 4


def test_a_mapping_that_merges_may_be_merged_and_used_again() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2, y: 2}\nc: {<<: *b, y: 3}\nd: *b\ne: {<<: [*a, *b]}\n"
    value = parse(text, "f").value
    assert (value["c"], value["d"], value["e"]) == ({"x": 2, "y": 3}, {"x": 2, "y": 2}, {"x": 1, "y": 2})
    assert len(problems("a: &a {x: 1, x: 2}")) == 1


def test_aliases_are_followed() -> None:
    assert parse("a: &x [1]\nb: *x", "f").value == {"a": [1], "b": [1]}


LAUGHS = "a: &a [x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 20)}]\n" for n in range(12))
BOMBS = [
    pytest.param(LAUGHS, id="laughs"),
    pytest.param("&a [*a]", id="itself"),
    pytest.param("&a [*a, *a]", id="itself-twice"),
    pytest.param("[" * 500 + "]" * 500, id="deep"),
    pytest.param("[" * 100_000, id="very-deep"),
]  # fmt: skip


@pytest.mark.parametrize("text", BOMBS)
def test_documents_that_expand_or_nest_without_end_are_refused_shortly(text: str) -> None:
    found = problems(text)
    assert len(found) == 1 and len(found[0]) < 500


EXPANSIONS = [
    pytest.param("${NAME}", "value", id="name"),
    pytest.param("${env:NAME}", "value", id="scheme"),
    pytest.param("x-${NAME}-${env:NUMBER}", "x-value-5", id="inside-text"),
    pytest.param("${NUMBER}", 5, id="takes-the-type"),
    pytest.param("'${NUMBER}'", 5, id="quoted-too-as-in-the-collector"),
    pytest.param("${YES}", True, id="boolean"),
    pytest.param("${ID}", "0123", id="an-id-stays-what-it-was"),
    pytest.param("${EMPTY}", None, id="empty"),
    pytest.param("${NONE:-d}", "d", id="default"),
    pytest.param("${env:NONE:-a:-b}", "a:-b", id="default-with-colons"),
    pytest.param("${EMPTY:-d}", None, id="set-but-empty-is-set"),
    pytest.param("$$NAME", "$NAME", id="dollar"),
    pytest.param("$${NAME}", "${NAME}", id="escaped-reference"),
    pytest.param("$1", "$1", id="a-plain-dollar-stays"),
    pytest.param("${COLON}", "a: b", id="text-is-not-parsed-again"),
    pytest.param("${NONE:-${NAME}}", "value", id="a-reference-as-default"),
    pytest.param("x${NONE:-a${env:NONE:-b}c}y", "xabcy", id="defaults-in-defaults"),
    pytest.param("${NAME:-${NONE}}", "value", id="a-default-that-is-not-needed-is-not-looked-at"),
    pytest.param("${env:${NONE:-NAME}:-d}", "value", id="a-reference-as-name"),
    pytest.param("^a{2}${NAME}$", "^a{2}value$", id="braces-of-a-regular-expression"),
    pytest.param("'${open'", "${open", id="not-closed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), EXPANSIONS)
def test_expansion(text: str, value: Any) -> None:
    document = parse(f"a: {text}", "f", EXPAND)
    assert document.value == {"a": value} and type(document.value["a"]) is type(value)
    assert document.warnings == []


def test_references_without_end_are_text() -> None:
    assert EXPAND("${NONE:-" * 5000)[0] == "${NONE:-" * 5000


def test_an_unset_variable_reads_as_empty_with_a_warning_at_its_place() -> None:
    document = parse("a:\n  b: x${NONE}", "f.yaml", EXPAND)
    assert document.value == {"a": {"b": "x"}}
    assert [str(warning) for warning in document.warnings] == ["f.yaml:2:6: a.b: environment variable NONE is not set; it reads as empty"]


@pytest.mark.parametrize("text", ["${file:x}", "${a b}", "${}", "${env:}"])
def test_malformed_references_are_problems_at_their_place(text: str) -> None:
    (found,) = problems(f"a: {text}", expand=EXPAND)
    assert found.startswith("f.yaml:1:4: a: ${")


def test_merging_goes_key_by_key_replaces_lists_and_keeps_the_marks_of_what_stays() -> None:
    base = parse("a:\n  x: 1\n  l: [1, 2, 3]\nb: {k: 1}", "base")
    over = parse("\n\na:\n  x: 2\n  l: [9]\nb: 5\nc: 7", "over")
    merged: Document = merge(base, over)
    assert merged.value == {"a": {"x": 2, "l": [9]}, "b": 5, "c": 7}
    assert merged.mark(("a", "x")) == Mark("over", 4, 3)
    assert merged.mark(("a", "l", 2)) == Mark("over", 5, 3)
    assert merged.mark(("b", "k")) == Mark("over", 6, 1)
    assert base.value == {"a": {"x": 1, "l": [1, 2, 3]}, "b": {"k": 1}}
