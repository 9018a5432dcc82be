"""OTLP backends in threads, over HTTP and gRPC, for tests that run roles as processes: keeps the records, answers as it is told."""

import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import grpc

from lockgate.batch import Signal, message_type
from lockgate.net.compression import decompress
from lockgate.net.otlp_grpc import METHODS

PATHS = {"/v1/logs": Signal.LOGS, "/v1/metrics": Signal.METRICS, "/v1/traces": Signal.TRACES}


class Backend:
    """`with Backend() as backend:`; `status`, `headers` and `hold` (an Event that requests wait for) say how it answers."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.loses_answer: Callable[[], bool] = lambda: False
        """Whether the connection is closed where an answer should be: what was taken was taken, and nobody is told."""
        self.hold = threading.Event()
        self.hold.set()
        self.judge: Callable[[Any], int] = lambda message: self.status
        """The status for this message."""
        self.refused: list[Any] = []
        """Messages that were answered 400."""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        """(path, headers, message) of each request that was answered 200."""
        self.seen = 0
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                backend.seen += 1
                backend.hold.wait(60)
                payload = decompress(body, self.headers.get("Content-Encoding", ""), 1 << 28)
                status = backend.take(self.path, {name.lower(): value for name, value in self.headers.items()}, payload)
                if backend.loses_answer():
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in backend.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed in mid-request is what some tests are about

        self._server = Server((host, port), Handler)
        if tls is not None:  # hands shaken by each connection's own thread
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]

    def take(self, path: str, headers: dict[str, str], payload: bytes) -> int:
        """The status for this request, which is kept where that is 200."""
        message = message_type(PATHS[path]).FromString(payload)
        status = self.judge(message)
        if status == 400:
            self.refused.append(message)
        if status == 200:
            self.requests.append((path, headers, message))
        return status

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self) -> list[str]:
        """The string bodies of all log records, in order of arrival."""
        return [body for path, _, message in list(self.requests) if path == "/v1/logs" for body in bodies_of(message)]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcBackend:
    """`with GrpcBackend() as backend:` is grpcio's server; it keeps the requests that it answered."""

    def __init__(self, port: int = 0) -> None:
        self.messages: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service, _, method = METHODS[Signal.LOGS].lstrip("/").partition("/")
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port: int = self._server.add_insecure_port(f"127.0.0.1:{port}")

    def _export(self, message: bytes, _: Any) -> bytes:
        self.messages.append(message_type(Signal.LOGS).FromString(message))
        return b""

    def bodies(self) -> list[str]:
        """The string bodies of all log records, in order of arrival."""
        return [body for message in list(self.messages) for body in bodies_of(message)]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop(0).wait()


def bodies_of(message: Any) -> list[str]:
    """The string bodies of a logs request."""
    return [record.body.string_value for resource in message.resource_logs for scope in resource.scope_logs for record in scope.log_records]
