"""YAML documents that know where each value was written, so that every later complaint can name file, line and column.

PyYAML's composed nodes carry marks; this module keeps them beside the plain values, through merging and through `${...}` expansion.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Where a value stands in a document: mapping keys and list indexes from the root."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a source; line and column count from 1, 0 where the source has no lines (a `--set` argument)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, at which path, what, and how to mend it."""

    mark: Mark | None
    path: Path
    what: str
    mend: str = ""

    def __str__(self) -> str:
        place = f"{self.mark}: " if self.mark else ""
        path = f"{path_text(self.path)}: " if self.path else ""
        return f"{place}{path}{self.what}" + (f"; {self.mend}" if self.mend else "")


class DocumentError(Exception):
    """A document cannot be used; carries every problem found, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def path_text(path: Path) -> str:
    """`receivers.filelog.include[0]` for ("receivers", "filelog", "include", 0)."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


@dataclass(slots=True)
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and the mark of each path."""

    value: Any
    marks: dict[Path, Mark] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)

    def mark(self, path: Path) -> Mark | None:
        """The mark of this path, or of the nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if (found := self.marks.get(path[:length])) is not None:
                return found
        return None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema for booleans, as the collector reads it: `on`, `yes` and `no` are words, not booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))

Expand = Callable[[str], tuple[str, list[str]]]
"""Expands a scalar's `${...}`; returns the text and what is worth a warning. Raises ValueError for a malformed reference."""

MAX_DEPTH = 100
"""Nesting beyond this is refused: a guess that no real configuration comes near, and far below Python's recursion limit."""

MAX_NODES = 1_000_000
"""Nodes after aliases are followed; a configuration that needs more is an alias bomb (the `billion laughs` document)."""


def parse(text: str, source: str, expand: Expand | None = None) -> Document:
    """The document in this YAML text; an empty one is an empty mapping. Raises DocumentError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(source, at.line + 1, at.column + 1) if at else Mark(source)
        raise DocumentError(
            [Problem(mark, (), f"not valid YAML: {error.problem or error.context}", "mend the indentation or quoting")]
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError([Problem(Mark(source), (), f"not valid YAML: {error}")]) from error
    builder = _Builder(source, expand)
    value = {} if node is None else builder.build(node, ())
    if builder.problems:
        raise DocumentError(builder.problems)
    return Document({} if value is None else value, builder.marks, builder.warnings)


class _Builder:
    def __init__(self, source: str, expand: Expand | None) -> None:
        self.source, self.expand = source, expand
        self.marks: dict[Path, Mark] = {}
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._constructor = _Loader("")
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        mark = self.marks[path] = Mark(self.source, node.start_mark.line + 1, node.start_mark.column + 1)
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            if self._nodes <= MAX_NODES + 1 or len(path) == MAX_DEPTH + 1:
                self.problems.append(Problem(mark, path[:6], "nested too deeply, or aliases that expand without end", "write it out"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # the third and last kind of node that there is
        return self._scalar(node, path, mark)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            self._constructor.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = Mark(self.source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(mark, path, "a key must be a plain word", "quote it, or write a list instead"))
                continue
            key = key_node.value
            if key in result:
                first = self.marks[(*path, key)]
                self.problems.append(Problem(mark, (*path, key), f"written twice, first at line {first.line}", "keep one"))
            result[key] = self.build(value_node, (*path, key))
            # The key's own place is where a reader looks for `unknown key`; a scalar's value keeps the key's line as well.
            self.marks[(*path, key)] = mark
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path, mark: Mark) -> Any:
        tag, text = node.tag, node.value
        if self.expand is not None and "$" in text:
            try:
                expanded, warnings = self.expand(text)
            except ValueError as error:
                self.problems.append(Problem(mark, path, str(error)))
                return None
            self.warnings += [Problem(mark, path, warning) for warning in warnings]
            if text.startswith("${") and text.find("}") == len(text) - 1 and node.tag == "tag:yaml.org,2002:str":
                # A value that is one reference takes the type of what stands there, as in the collector; but only where
                # its text survives the round trip, so that an id such as 0123 stays what it was.
                tag = self._constructor.resolve(yaml.ScalarNode, expanded, (True, False))  # type: ignore[no-untyped-call]
                if tag != "tag:yaml.org,2002:null" and str(self._construct(tag, expanded, node)).lower() != expanded.lower():
                    tag = "tag:yaml.org,2002:str"
            text = expanded
        try:
            return self._construct(tag, text, node)
        except (yaml.YAMLError, ValueError) as error:
            self.problems.append(Problem(mark, path, f"cannot be read as {tag.rpartition(':')[2]}: {error}"))
            return None

    def _construct(self, tag: str, text: str, node: yaml.ScalarNode) -> Any:
        return self._constructor.construct_object(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark))


def merge(base: Document, over: Document) -> Document:
    """`over` laid upon `base`: mappings merge key by key, anything else (lists too) is replaced, as the collector merges files."""
    marks = dict(base.marks)

    def forget(path: Path) -> None:
        for known in [known for known in marks if known[: len(path)] == path]:
            del marks[known]

    def lay(below: Any, above: Any, path: Path) -> Any:
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            merged = dict(below)
            for key, value in above.items():
                merged[key] = lay(below[key], value, (*path, key)) if key in below else value
            return merged
        forget(path)
        return above

    value = lay(base.value, over.value, ())
    return Document(value, marks | over.marks, [*base.warnings, *over.warnings])


_REFERENCE = re.compile(r"\$(?:\$|\{(?P<body>[^{}]*)\})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def environment_expander(environment: Mapping[str, str]) -> Expand:
    """Expands `${NAME}`, `${env:NAME}`, `${env:NAME:-default}` and `$$` (OpenTelemetry, "Configuration", "Environment variables")."""

    def expand(text: str) -> tuple[str, list[str]]:
        warnings: list[str] = []

        def replace(match: re.Match[str]) -> str:
            body = match["body"]
            if body is None:
                return "$"
            scheme, colon, rest = body.partition(":")
            if not colon or rest.startswith("-"):
                scheme, rest = "env", body
            if scheme != "env":
                raise ValueError(f"${{{body}}} names the unknown source {scheme!r}; write ${{env:NAME}}")
            name, has_default, default = rest.partition(":-")
            if not _NAME.fullmatch(name):
                raise ValueError(f"${{{body}}} is no environment variable's name; write ${{env:NAME}}, or $$ for a dollar sign")
            if name in environment:
                return environment[name]
            if not has_default:
                warnings.append(f"environment variable {name} is not set; it reads as empty")
            return default

        return _REFERENCE.sub(replace, text), warnings

    return expand
