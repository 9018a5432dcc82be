"""Tries to read what the patterns mean, before anything is followed: each directory is listed, each file opened, and closed again.

As the discovery and the arrivals do it, but lazily, and some names of each directory in turn: whoever takes a bounded sample has some of
everywhere, however many files one directory holds.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from lockgate.pipeline.needs import Tried
from lockgate.tail.open import Refused, Roots
from lockgate.tail.options import Options
from lockgate.tail.patterns import Patterns, State

_AT_ONCE = 64
"""Names of one directory before it is another's turn."""


def try_reading(options: Options, unix_nano: Callable[[], int]) -> Iterator[Tried]:
    """What is found now; of the patterns' roots also those that are missing.

    What links out of the roots, or is no regular file, is passed over.
    """
    patterns = Patterns(options.include, options.exclude)
    sample = _Sample(patterns, Roots.of([*patterns.roots, *options.link_roots]), lambda status: options.is_too_old(status, unix_nano))
    walks = deque(sample.walk(root, patterns.start(root)) for root in patterns.roots)
    while walks:
        walk = walks.popleft()
        some = list(islice(walk, _AT_ONCE))
        for found in some:
            if isinstance(found, tuple):
                walks.append(sample.walk(*found))
            elif found is not None and (not isinstance(found.error, FileNotFoundError) or found.path in patterns.roots):
                yield found
        if len(some) == _AT_ONCE:
            walks.append(walk)


class _Sample:
    def __init__(self, patterns: Patterns, roots: Roots, is_too_old: Callable[[os.stat_result], bool]) -> None:
        self._patterns, self._roots, self._is_too_old = patterns, roots, is_too_old

    def walk(self, path: str, state: State) -> Iterator[Tried | tuple[str, State] | None]:
        """This directory; then, name by name, a file, a directory to walk, or None for anything else."""
        try:
            listing = os.scandir(path)
        except OSError as error:
            yield Tried(path, True, error)
            return
        yield Tried(path, True)
        with listing as entries:
            for entry in entries:
                try:
                    yield self._look_at(entry, state)
                except Refused:
                    yield None
                except OSError as error:
                    yield Tried(entry.path, False, error)

    def _look_at(self, entry: "os.DirEntry[str]", state: State) -> Tried | tuple[str, State] | None:
        after, matched = self._patterns.step(state, entry.name)
        is_directory = entry.is_dir(follow_symlinks=False)
        if after and (is_directory or (not self._patterns.spans(state) and entry.is_dir())):
            if not is_directory:
                self._roots.resolve(entry.path)
            return entry.path, after
        if is_directory or not matched or self._patterns.excluded(entry.path) or self._is_too_old(entry.stat()):
            return None
        descriptor, real = self._roots.open(entry.path)
        os.close(descriptor)
        return None if self._patterns.excluded(real) else Tried(real, False)
