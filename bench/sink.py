"""A backend that counts: `python bench/sink.py PORT`. Takes OTLP over HTTP and vlagent's blocks; GET /stats tells what came.

Every OTLP request is validated to its last byte. With /stats?ages=1 each record's age at arrival is noted, from the time in its line.
"""

from __future__ import annotations

import sys
import time
from array import array

from aiohttp import web

from lockgate.batch import Signal, count_records, message_type
from lockgate.net.compression import decompress

LIMIT = 1 << 30


class Sink:
    """What came since the last reset."""

    def __init__(self) -> None:
        self.ages_wanted = False
        self.last_body = b""
        self.reset()

    def reset(self) -> None:
        self.records = self.requests = self.wire_bytes = self.bytes = 0
        self.ages = array("d")

    async def take(self, request: web.Request) -> web.Response:
        raw = await request.read()
        now = time.time_ns()
        body = decompress(raw, request.headers.get("Content-Encoding", ""), LIMIT)
        if request.path.endswith("/native"):
            times = row_times(body)
            self.records += len(times)
        else:
            self.records += count_records(Signal.LOGS, body)
            times = record_times(body) if self.ages_wanted else []
        if self.ages_wanted:
            self.ages.extend((now - each) / 1e6 for each in times)
        self.requests += 1
        self.wire_bytes += len(raw)
        self.bytes += len(body)
        self.last_body = body
        return web.Response(content_type="application/x-protobuf")

    async def stats(self, request: web.Request) -> web.Response:
        if "reset" in request.query:
            self.reset()
        if "ages" in request.query:
            self.ages_wanted = request.query["ages"] == "1"
        ages = sorted(self.ages)
        centile = {f"p{each}": ages[min(len(ages) - 1, len(ages) * each // 100)] if ages else None for each in (50, 99)}
        counts = {"records": self.records, "requests": self.requests, "wire_bytes": self.wire_bytes, "bytes": self.bytes}
        return web.json_response({**counts, **centile})

    async def last(self, request: web.Request) -> web.Response:
        """The last request's bytes, to see what is being compared."""
        return web.Response(body=self.last_body)


def record_times(body: bytes) -> list[int]:
    """Of each record of an OTLP request."""
    scopes = (scope for resource in message_type(Signal.LOGS).FromString(body).resource_logs for scope in resource.scope_logs)
    return [record.time_unix_nano for scope in scopes for record in scope.log_records]


def row_times(body: bytes) -> list[int]:
    """Of each row in VictoriaLogs' native format: tenant (8 bytes), stream tags, time (8 bytes), then counted names and values.

    Raises ValueError or IndexError for a body that does not end with a row.
    """
    position, times = 0, []
    head = tail = b"no row"  # of the row before, all but its time and last value: in a file nothing else differs, and comparing is fast
    while position < len(body):
        time_at = position + len(head)
        if body.startswith(head, position) and body.startswith(tail, time_at + 8):
            position = time_at + 8 + len(tail)
        else:
            length, time_at = _varint(body, position + 8)
            time_at += length
            fields, next_at = _varint(body, time_at + 8)
            for _ in range(2 * fields - 1):
                length, next_at = _varint(body, next_at)
                next_at += length
            head, tail, position = body[position:time_at], body[time_at + 8 : next_at], next_at
        times.append(int.from_bytes(body[time_at : time_at + 8], "big"))
        length, position = _varint(body, position)
        position += length
    if position > len(body):
        raise ValueError("a row that is cut off")
    return times


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7


def main() -> None:
    sink = Sink()
    app = web.Application(client_max_size=LIMIT, handler_args={"auto_decompress": False})
    app.router.add_get("/stats", sink.stats)
    app.router.add_get("/last", sink.last)
    app.router.add_post("/{path:.*}", sink.take)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=lambda _: None)


if __name__ == "__main__":
    main()
