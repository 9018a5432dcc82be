"""YAML documents that know where each value was written, so that every later complaint can name file, line and column.

PyYAML's composed nodes carry marks; this module keeps them beside the plain values, through merging and through `${...}` expansion.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """A document cannot be used; carries every problem found, not just the first, and the warnings that may be their cause."""

    def __init__(self, problems: list[Problem], warnings: Sequence[Problem] = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems, self.warnings = problems, warnings


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
    """Scalars as the collector's reader takes them (YAML 1.2, with 1.1's underscores): `on`, `yes`, `no`, dates and `12:30` are words."""


_RESOLVED_HERE = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "timestamp", "int", "float", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_HERE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))

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
    except RecursionError as error:
        raise DocumentError([Problem(Mark(source), (), "nested too deeply", "write it flatter")]) from error
    except yaml.YAMLError as error:
        raise DocumentError([Problem(Mark(source), (), f"not valid YAML: {error}")]) from error
    builder = _Builder(source, expand)
    if node is not None:
        builder.note(node)
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
        self._nodes, self._endless = 0, False
        self._written: dict[int, set[int]] = {}

    def note(self, root: yaml.Node) -> None:
        """Remember which keys each mapping was written with: `<<` is resolved in place, also in the mappings that it names."""
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.MappingNode) and id(node) not in self._written:
                self._written[id(node)] = {id(key) for key, _ in node.value}
                waiting += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode) and id(node) not in self._written:
                self._written[id(node)] = set()
                waiting += node.value

    def build(self, node: yaml.Node, path: Path) -> Any:
        mark = self.marks[path] = Mark(self.source, node.start_mark.line + 1, node.start_mark.column + 1)
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            if not self._endless:
                self.problems.append(Problem(mark, path[:6], "nested too deeply, or aliases that expand without end", "write it out"))
            self._endless = True
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # the third and last kind of node that there is
        return self._scalar(node, path, mark)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            try:
                self._constructor.flatten_mapping(node)
            except yaml.MarkedYAMLError as error:
                self.problems.append(Problem(self.marks[path], path, f"not valid YAML: {error.problem}", "merge a mapping"))
                return {}
        result: dict[str, Any] = {}
        own: set[str] = set()
        """Keys written here, not taken over by `<<`; only these can be written twice."""
        for key_node, value_node in node.value:
            mark = Mark(self.source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(mark, path, "a key must be a plain word", "quote it, or write a list instead"))
                continue
            key = key_node.value
            if key in own and id(key_node) in self._written.get(id(node), ()):
                first = self.marks[(*path, key)]
                self.problems.append(Problem(mark, (*path, key), f"written twice, first at line {first.line}", "keep one"))
            if id(key_node) in self._written.get(id(node), ()):
                own.add(key)
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


_TOKEN = re.compile(r"\$\$|\$\{|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def environment_expander(environment: Mapping[str, str]) -> Expand:
    """Expands `${NAME}`, `${env:NAME}`, `${env:NAME:-default}` and `$$` (OpenTelemetry, "Configuration", "Environment variables").

    Names and defaults may hold references; what a variable holds is taken as it is. A default that is not needed is not looked at.
    """

    def expand(text: str) -> tuple[str, list[str]]:
        warnings: list[str] = []

        def value_of(body: str) -> str:
            ends = (at for at in _places(body, ":-") if body.count("${", 0, at) == body.count("}", 0, at))  # not inside of another
            middle = next(ends, len(body))
            head, has_default, default = body[:middle], middle < len(body), body[middle + 2 :]
            scheme, colon, name = whole(head).partition(":")
            if not colon:
                scheme, name = "env", scheme
            if scheme != "env":
                raise ValueError(f"${{{body}}} names the unknown source {scheme!r}; write ${{env:NAME}}")
            if not _NAME.fullmatch(name):
                raise ValueError(f"${{{body}}} is no environment variable's name; write ${{env:NAME}}, or $$ for a dollar sign")
            if name in environment:
                return environment[name]
            if not has_default:
                warnings.append(f"environment variable {name} is not set; it reads as empty")
            return whole(default)

        def whole(text: str) -> str:
            parts, at = [], 0
            while (token := _TOKEN.search(text, at)) is not None:
                parts.append(text[at : token.start()])
                end = _end(text, token.end()) if token[0] == "${" else -1
                if end >= 0:
                    parts.append(value_of(text[token.end() : end]))
                    at = end + 1
                else:
                    parts.append("$" if token[0] == "$$" else token[0])
                    at = token.end()
            return "".join([*parts, text[at:]])

        return whole(text), warnings

    return expand


def _places(text: str, part: str) -> Iterator[int]:
    return (match.start() for match in re.finditer(re.escape(part), text))


def _end(text: str, begin: int) -> int:
    """Where the reference ends whose body begins here; -1 where it is none: not closed, nested too deeply, or with another brace in it."""
    depth = 1
    for token in _TOKEN.finditer(text, begin):
        match token[0]:
            case "${" if depth < MAX_DEPTH:
                depth += 1
            case "{" | "${":
                return -1
            case "}":
                depth -= 1
                if not depth:
                    return token.start()
    return -1
