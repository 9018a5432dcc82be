"""A bounded cache of edited resources, for `Batch.map_resources` to ask: a resource comes back with every batch, nearly always the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

MAX_BYTES = 16 << 20
"""Raw and edited bytes kept: some 10,000 resources with many labels; a pod's node has 110, a large cluster's gateway sees them all."""


class EditCache(Generic[K]):
    """Outcomes of an edit by (what it depended on besides the bytes, raw bytes), until `max_bytes` are kept; then it starts over.

    Starting over beats LRU here: it costs nothing on a hit, and a working set larger than the bound still hits in part.
    """

    def __init__(self, edit: Callable[[bytes, K], bytes | None], max_bytes: int = MAX_BYTES) -> None:
        self._edit, self._max_bytes, self._bytes = edit, max_bytes, 0
        self._known: dict[K, dict[bytes, bytes | None]] = {}

    def bound(self, key: K) -> Callable[[bytes], bytes | None]:
        """The edit for this key, to be given to `map_resources` and then forgotten."""
        known = self._known.setdefault(key, {})

        def cached(raw: bytes) -> bytes | None:
            try:
                return known[raw]
            except KeyError:
                new = self._edit(raw, key)
            # 300 is about what two bytes objects and their places in a dict cost, so that tiny resources are bounded too.
            size = len(raw) + (len(new) if new else 0) + 300
            self._bytes += size
            if self._bytes > self._max_bytes:
                self._known = {key: known}
                known.clear()
                self._bytes = size
            known[raw] = new
            return new

        return cached
