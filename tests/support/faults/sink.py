"""A server that only counts: OTLP over HTTP, for what is too much to keep."""

from __future__ import annotations

import threading

from lockgate.batch import Signal, count_records
from support.backend import Backend


class Sink(Backend):
    """`with Sink() as sink:` counts `records` of requests that it answered 200; while `refuses` it answers 503."""

    def __init__(self) -> None:
        super().__init__()
        self.records = 0
        self.refuses = False
        self._counting = threading.Lock()

    def take(self, path: str, headers: dict[str, str], payload: bytes) -> int:
        if self.refuses:
            return 503
        count = count_records(Signal.LOGS, payload)
        with self._counting:
            self.records += count
        return 200
