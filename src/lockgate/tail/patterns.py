"""Which files a set of glob patterns means, asked directory by directory, so that only what changed is looked at again.

The collector's patterns (doublestar): `*` and `?` stay within a name, `**` spans directories, `[a-z]`, `[!a-z]`, `{one,two}`, `\\` quotes.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import re2

State = frozenset[tuple[int, int]]
"""(pattern, component) pairs that may match next: where a directory stands in the patterns."""

_MAGIC = frozenset("*?[{\\")


def fixed_root(pattern: str) -> str:
    """The longest directory of a pattern that has no wildcard: what is watched, and what must be readable."""
    parts = pattern.split("/")
    count = next((index for index, part in enumerate(parts) if _MAGIC & set(part)), len(parts) - 1)
    return os.path.normpath("/".join(parts[:count]) or "/")


def check(pattern: str) -> None:
    """Raises ValueError, with the reason, where this is no pattern that can be matched here."""
    if not pattern.startswith("/"):
        raise ValueError(f"{pattern!r} must be an absolute path: it is matched the same wherever the program was started")
    if os.path.normpath(pattern.replace("\\", "x")) != pattern.replace("\\", "x"):
        raise ValueError(f"{pattern!r} contains . or .. or //; write the path without them")
    for part in _expand(pattern):
        try:
            re2.compile(_regex(part))
        except re2.error as error:
            raise ValueError(f"{pattern!r} is no glob pattern: {error}") from None


class Patterns:
    """Include and exclude patterns, compiled."""

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        patterns = [expanded for pattern in include for expanded in _expand(pattern)]
        self.roots = sorted({fixed_root(pattern) for pattern in patterns})
        self._components: list[list[str]] = []
        self._starts: dict[str, set[tuple[int, int]]] = {}
        for pattern in patterns:
            root = fixed_root(pattern)
            rest = pattern[len(root.rstrip("/")) + 1 :].split("/")
            self._starts.setdefault(root, set()).add((len(self._components), 0))
            self._components.append(rest)
        self._states: dict[State, State] = {}
        """Every state that was reached, once: thousands of directories are in the same few."""
        self._matchers = {part: _matcher(part) for parts in self._components for part in parts if part != "**"}
        excluded = [_regex(expanded) for pattern in exclude for expanded in _expand(pattern)]
        self._excluded = re2.compile("|".join(excluded)).fullmatch if excluded else None

    def start(self, root: str) -> State:
        """The state of one of `roots`."""
        return frozenset(self._starts[root])

    def step(self, state: State, name: str) -> tuple[State, bool]:
        """Entering `name` from a directory in this state: the state if it is a directory, and whether it matches if it is a file."""
        after: set[tuple[int, int]] = set()
        matches = False
        todo = list(state)
        while todo:
            pattern, index = todo.pop()
            parts = self._components[pattern]
            last = index == len(parts) - 1
            if parts[index] == "**":
                after.add((pattern, index))
                matches |= last
                if not last:
                    todo.append((pattern, index + 1))
            elif self._matchers[parts[index]](name):
                if last:
                    matches = True
                else:
                    after.add((pattern, index + 1))
        state = frozenset(after)
        return self._states.setdefault(state, state), matches

    def spans(self, state: State) -> bool:
        """Whether a `**` is at work here."""
        return any(self._components[pattern][index] == "**" for pattern, index in state)

    def excluded(self, path: str) -> bool:
        return self._excluded is not None and self._excluded(path) is not None


def _matcher(part: str) -> Callable[[str], Any]:
    """Whether a name matches this one component; the common forms without a regular expression."""
    if part == "*":
        return lambda name: True
    if not _MAGIC & set(part):
        return part.__eq__
    if part[0] == "*" and not _MAGIC & set(part[1:]):
        ending = part[1:]
        return lambda name: name.endswith(ending)
    expression = re2.compile(_regex(part))
    return lru_cache(4096)(expression.fullmatch)


def _regex(pattern: str) -> str:
    """The regular expression of a pattern without braces."""
    out, position = [], 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if pattern[position - 1 :].startswith("**/") and (position == 1 or pattern[position - 2] == "/"):
            out.append("(?:[^/]*/)*")
            position += 2
        elif pattern[position - 1 :] == "**" and (position == 1 or pattern[position - 2] == "/"):
            out.append(".*")
            position += 1
        elif character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "\\" and position < len(pattern):
            out.append(re2.escape(pattern[position]))
            position += 1
        elif character == "[" and "]" in pattern[position + 1 :]:
            end = pattern.index("]", position + 1)
            body = pattern[position:end]
            negated = body[:1] in "!^"
            out.append("[" + ("^/" if negated else "") + (body[1:] if negated else body).replace("\\", "\\\\").replace("[", "\\[") + "]")
            position = end + 1
        else:
            out.append(re2.escape(character))
    return "(?s:" + "".join(out) + ")"


def _expand(pattern: str) -> Iterator[str]:
    """The pattern once for each choice of its `{one,two}` alternatives."""
    depth = start = 0
    commas: list[int] = []
    index = 0
    while index < len(pattern):
        character = pattern[index]
        if character == "\\":
            index += 1
        elif character == "{":
            depth += 1
            if depth == 1:
                start, commas = index, []
        elif character == "," and depth == 1:
            commas.append(index)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                edges = [start, *commas, index]
                for left, right in pairwise(edges):
                    yield from _expand(pattern[:start] + pattern[left + 1 : right] + pattern[index + 1 :])
                return
        index += 1
    if depth:
        raise ValueError(f"{pattern!r} opens a brace that it does not close")
    yield pattern
