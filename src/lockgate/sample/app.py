"""What runs inside a sample pod: `python -m lockgate.sample.app KIND`. Writes logs to its standard streams, sends OTLP metrics and traces.

Standard library alone, because it plays somebody else's program: OTLP as JSON over urllib, as a minimal SDK would send it.
Environment: LINES_PER_SECOND, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (full URLs; unset sends none),
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

LONG_LINE = 40_000
"""Bytes of the occasional long line: more than twice what containerd puts into one CRI line, so that partial lines occur."""


def lines(kind: str, chance: random.Random) -> Iterator[tuple[str, bool]]:
    """(text without newline, whether it goes to standard error), without end."""
    number = 0
    while True:
        number += 1
        millis = chance.expovariate(1 / 40)
        if kind == "web":
            address = f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}"
            path = chance.choice(["/", "/cart", "/checkout", f"/products/{chance.randrange(500)}", "/healthz"])
            status = chance.choices([200, 304, 404, 500], [90, 5, 4, 1])[0]
            stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime())
            yield (
                f'{address} - - [{stamp}] "GET {path} HTTP/1.1" {status} {chance.randrange(20_000)} "-" "Mozilla/5.0" {millis:.1f}ms',
                False,
            )
        elif kind == "api":
            level = chance.choices(["info", "warn", "error"], [94, 4, 2])[0]
            record = {
                "level": level,
                "msg": "order handled",
                "order": number,
                "user": chance.randrange(10_000),
                "duration_ms": round(millis, 1),
            }
            yield json.dumps(record), level == "error"
            if number % 400 == 0:
                yield json.dumps({"level": "debug", "msg": "catalogue dump", "dump": "x" * LONG_LINE}), False
        elif kind == "db":
            yield (
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} UTC [{os.getpid()}] LOG:  duration: {millis:.3f} ms  statement: SELECT {number}",
                False,
            )
            if number % 97 == 0:
                yield "ERROR:  deadlock detected", True
                yield "DETAIL:  Process 12 waits for ShareLock on transaction 345", True
                yield "HINT:  See server log for query details.", True
        else:
            yield (
                f"[INFO] 10.244.0.{chance.randrange(255)}:{chance.randrange(65_536)} - {number} A IN shop.svc.cluster.local. NOERROR",
                False,
            )


class Telemetry:
    """Counts what the program did, and sends it as OTLP/JSON: a sum and a histogram every five seconds, a trace a second."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.handled, self.started = chance, 0, time.time_ns()
        self.buckets = [0] * 5
        pairs = [pair.split("=", 1) for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if "=" in pair]
        attributes = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "sample"), **dict(pairs)}
        self.resource = {"attributes": [_attribute(key, value) for key, value in attributes.items()]}

    def run(self) -> None:
        metrics, traces = (os.environ.get(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT") for name in ("METRICS", "TRACES"))
        second = 0
        while True:
            time.sleep(1)
            second += 1
            if traces:
                _post(traces, self.trace())
            if metrics and second % 5 == 0:
                _post(metrics, self.metrics())

    def metrics(self) -> dict[str, Any]:
        """An ExportMetricsServiceRequest in JSON."""
        times = {"startTimeUnixNano": str(self.started), "timeUnixNano": str(time.time_ns())}
        counter = {"name": "requests.handled", "unit": "{request}", "sum": {"aggregationTemporality": 2, "isMonotonic": True}}
        counter["sum"]["dataPoints"] = [{**times, "asInt": str(self.handled)}]  # type: ignore[index]
        point = {**times, "count": str(sum(self.buckets)), "sum": self.handled * 40.0, "explicitBounds": [10, 50, 100, 500]}
        point["bucketCounts"] = [str(count) for count in self.buckets]
        histogram = {"name": "request.duration", "unit": "ms", "histogram": {"aggregationTemporality": 2, "dataPoints": [point]}}
        return {
            "resourceMetrics": [
                {"resource": self.resource, "scopeMetrics": [{"scope": {"name": "sample"}, "metrics": [counter, histogram]}]}
            ]
        }

    def trace(self) -> dict[str, Any]:
        """An ExportTraceServiceRequest in JSON: one request with a query inside."""
        trace_id, root, child = (self.chance.randbytes(size).hex() for size in (16, 8, 8))
        end = time.time_ns()
        start = end - int(self.chance.expovariate(1 / 40) * 1e6)
        common = {"traceId": trace_id, "endTimeUnixNano": str(end)}
        spans = [
            {**common, "spanId": root, "name": "GET /checkout", "kind": 2, "startTimeUnixNano": str(start)},
            {
                **common,
                "spanId": child,
                "parentSpanId": root,
                "name": "SELECT",
                "kind": 3,
                "startTimeUnixNano": str(start + (end - start) // 4),
            },
        ]
        return {"resourceSpans": [{"resource": self.resource, "scopeSpans": [{"scope": {"name": "sample"}, "spans": spans}]}]}


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    # Like a program whose telemetry is down: it goes on, and what it could not send is gone.
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as response:
        response.read()


def main(kind: str) -> None:
    chance = random.Random()
    pause = 1 / float(os.environ.get("LINES_PER_SECOND", "20"))
    telemetry = Telemetry(chance)
    threading.Thread(target=telemetry.run, daemon=True).start()
    due = time.monotonic()
    for text, is_error in lines(kind, chance):
        stream = sys.stderr if is_error else sys.stdout
        stream.write(text + "\n")
        telemetry.handled += 1
        telemetry.buckets[min(4, int(chance.expovariate(0.5)))] += 1
        due += pause
        if (wait := due - time.monotonic()) > 0:
            sys.stdout.flush()
            time.sleep(wait)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1] if len(sys.argv) > 1 else "web")
