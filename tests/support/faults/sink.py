"""A server that only counts: OTLP over HTTP, for what is too much to keep."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from lockgate.batch import Signal, count_records
from lockgate.net.compression import decompress


class Sink:
    """`with Sink() as sink:` counts `records` of requests that it answered 200; while `refuses` it answers 503."""

    def __init__(self) -> None:
        self.records = 0
        self.refuses = False
        counting, sink = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not sink.refuses:
                    raw = decompress(body, self.headers.get("Content-Encoding", ""), 1 << 28)
                    count = count_records(Signal.LOGS, raw)
                    with counting:
                        sink.records += count
                self.send_response(503 if sink.refuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
