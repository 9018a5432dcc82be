"""Bad input to a running role: a reason and a count for each, bounded memory, and good data goes on all the while."""

import gzip
import http.client
import itertools
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cramjam
import grpc
import pytest
from backports import zstd
from google.rpc.status_pb2 import Status
from support.backend import Backend
from support.otlp import log_batch
from support.process import Role, free_port, lockgate, wait_until

MIB = 1 << 20
BODY_LIMIT, INFLATED_LIMIT = 1 * MIB, 8 * MIB
BOMB_BYTES = 512 * MIB
CONNECTIONS = 12
CONFIG = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:{http}
        max_request_body_size: {body}
        max_decompressed_size: {inflated}
        read_header_timeout: 1s
        read_timeout: 1s
        max_connections: {connections}
      grpc:
        endpoint: 127.0.0.1:{grpc}
        max_recv_msg_size_mib: 1
  filelog: {{include: ["{logs}/*/*/*.log"], start_at: beginning, operators: [{{type: container}}]}}
exporters: {{otlphttp: {{endpoint: "{backend}"}}}}
extensions: {{health_check: {{}}}}
service:
  extensions: [health_check]
  pipelines: {{logs: {{receivers: [otlp, filelog], exporters: [otlphttp]}}}}
"""
PROTOBUF, JSON = {"Content-Type": "application/x-protobuf"}, {"Content-Type": "application/json"}


@dataclass
class Running:
    role: Role
    backend: Backend
    http: int
    grpc: int
    logs: Path
    numbers: Iterator[int]

    def post(self, body: bytes, headers: dict[str, str], path: str = "/v1/logs") -> tuple[int, str]:
        """(status, reason)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=20)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content, type_ = answer.read(), answer.getheader("Content-Type") or ""
        finally:
            connection.close()
        if answer.status == 200:
            return 200, ""
        return answer.status, json.loads(content)["message"] if type_.startswith("application/json") else Status.FromString(content).message

    def memory(self, which: str) -> int:
        """VmRSS (now) or VmHWM (the most ever), in bytes."""
        status = Path(f"/proc/{self.role.process.pid}/status").read_text()
        return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0]) * 1024

    def check_good_data_goes_on(self) -> None:
        """Over HTTP and gRPC and from a file, by the process that was there from the beginning."""
        assert self.role.process.poll() is None, self.role.log.read_text()
        good = [f"good {next(self.numbers)}" for _ in range(3)]
        assert self.post(log_batch(good[0]).payload, PROTOBUF) == (200, "")
        self.export(log_batch(good[1]).payload)
        with (self.logs / "0.log").open("a") as log:
            log.write(f"2026-01-01T00:00:00Z stdout F {good[2]}\n")
        wait_until(lambda: set(good) <= set(self.backend.bodies()), 20, "good data arrived")
        assert "Traceback" not in self.role.log.read_text()

    def export(self, payload: bytes) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")(payload, timeout=10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("bad")
    logs = directory / "pods" / "shop_web-0_0a1b" / "main"
    logs.mkdir(parents=True)
    ports = {"http": free_port(), "grpc": free_port()}
    with Backend() as backend:
        limits = {"body": BODY_LIMIT, "inflated": INFLATED_LIMIT, "connections": CONNECTIONS}
        text = CONFIG.format(logs=directory / "pods", backend=backend.url, **ports, **limits)
        with Role(directory / "role", text) as role:
            yield Running(role, backend, **ports, logs=logs, numbers=itertools.count())


@pytest.fixture(autouse=True)
def good_data_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "running" in request.fixturenames:
        request.getfixturevalue("running").check_good_data_goes_on()


NOT_UTF8 = log_batch("body").payload.replace(b"body", b"\xff\xfe\xfd\xfc")


@pytest.mark.parametrize(
    ("headers", "body", "status", "reason"),
    [
        pytest.param(PROTOBUF, b"\xff" * 20, 400, "not an ExportLogsServiceRequest", id="not-protobuf"),
        pytest.param(PROTOBUF, log_batch("cut short").payload[:-3], 400, "truncated|ends|beyond|length", id="protobuf-cut-short"),
        pytest.param(PROTOBUF, NOT_UTF8, 400, "UTF-8", id="text-that-is-not-utf8"),
        pytest.param(JSON, b"{", 400, "JSON", id="not-json"),
        pytest.param(JSON, b'{"resourceLogs": 7}', 400, "ResourceLogs must be an object", id="json-of-another-shape"),
        pytest.param(JSON, b"[" * 100_000, 400, "JSON|deep|recurs", id="json-nested-too-deep"),
        pytest.param({"Content-Type": "text/plain"}, b"hello", 415, "text/plain", id="another-content-type"),
        pytest.param({}, b"hello", 415, "Content-Type", id="no-content-type"),
        pytest.param(PROTOBUF | {"Content-Encoding": "br"}, b"hello", 415, "br", id="another-encoding"),
        pytest.param(PROTOBUF | {"Content-Encoding": "gzip"}, b"hello", 400, "Content-Encoding", id="not-gzip"),
        pytest.param(PROTOBUF | {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 999)[:-9], 400, "Content-Encoding", id="gzip-cut-short"),
        pytest.param(PROTOBUF, bytes(BODY_LIMIT + 1), 413, str(BODY_LIMIT), id="too-large"),
        pytest.param(PROTOBUF | {"X-Path": "/v1/metrics"}, b"", 404, "no pipeline takes metrics", id="a-signal-nobody-takes"),
        pytest.param(PROTOBUF | {"X-Path": "/nothing"}, b"", 404, "/v1/logs", id="another-path"),
    ],
)
def test_a_bad_request_gets_its_status_and_the_reason(
    running: Running, headers: dict[str, str], body: bytes, status: int, reason: str
) -> None:
    headers = dict(headers)
    path = headers.pop("X-Path", "/v1/logs")
    before = running.role.metrics().get("lockgate_receiver_refused_requests", 0)
    answer, text = running.post(body, headers, path)
    assert (answer, bool(re.search(reason, text))) == (status, True), text
    assert running.role.metrics()["lockgate_receiver_refused_requests"] == before + 1


def test_a_body_of_unannounced_length_is_cut_at_the_limit(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.http), timeout=10) as client:
        client.sendall(b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        try:
            for _ in range(64):
                client.sendall(piece)
        except ConnectionError:
            pass
        assert b" 413 " in client.recv(1 << 16).split(b"\r\n")[0]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate", "snappy"])
def test_a_compression_bomb_is_cut_at_its_bound(running: Running, encoding: str, bombs: dict[str, bytes]) -> None:
    body = bombs[encoding]
    before = running.memory("VmRSS")
    for _ in range(4):
        status, reason = running.post(body, PROTOBUF | {"Content-Encoding": encoding})
        assert (status, str(INFLATED_LIMIT) in reason) == (413, True), reason
    assert running.memory("VmHWM") - before < 64 * MIB < BOMB_BYTES


def test_bombs_and_bad_messages_over_grpc_are_refused_with_their_status(running: Running) -> None:
    before = running.memory("VmRSS")
    bad = [
        (bytes(2 * MIB), grpc.Compression.NoCompression, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (bytes(64 * MIB), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\xff" * 20, grpc.Compression.NoCompression, grpc.StatusCode.INVALID_ARGUMENT),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
        for message, compression, code in bad:
            with pytest.raises(grpc.RpcError) as caught:
                export(message, timeout=10, compression=compression)
            assert caught.value.code() is code
    assert running.memory("VmHWM") - before < 64 * MIB


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http1"),
        pytest.param(b"\x16\x03\x01" + bytes(range(200)), id="tls-where-there-is-none"),
        pytest.param(bytes(range(256)) * 64, id="noise"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096, id="preface-then-noise"),
        pytest.param(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\5\1\4\0\0\0\1\xff\xff\xff\xff\xff", id="bad-headers"
        ),
    ],
)
def test_garbage_on_the_grpc_port_ends_its_connection_alone(running: Running, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.grpc), timeout=10) as client:
        client.sendall(garbage)
        assert read_to_the_end(client) is not None


def read_to_the_end(client: socket.socket) -> bytes:
    """What the server still sent before it closed the connection; raises TimeoutError if it does not."""
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        pytest.param(b"POST /v1/logs HTTP/1.1\r\nHost:", b"", id="head"),
        pytest.param(
            b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\nx",
            b"HTTP/1.1 408",
            id="body",
        ),
    ],
)
def test_whoever_sends_too_slowly_is_not_waited_for(running: Running, sent: bytes, answer: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.http), timeout=10) as client:
        began = time.monotonic()
        client.sendall(sent)
        assert read_to_the_end(client).startswith(answer)
        assert 0.9 < time.monotonic() - began < 8


def test_connections_beyond_the_limit_are_closed_and_counted(running: Running) -> None:
    before = running.role.metrics().get("lockgate_server_refused_connections", 0)
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.http), timeout=10))
        one_more = stack.enter_context(socket.create_connection(("127.0.0.1", running.http), timeout=10))
        assert read_to_the_end(one_more) == b""
    assert running.role.metrics()["lockgate_server_refused_connections"] > before

    def accepted() -> bool:
        try:
            return running.post(log_batch("after").payload, PROTOBUF)[0] == 200
        except (ConnectionError, http.client.BadStatusLine):
            return False

    wait_until(accepted, 10, "a connection is accepted again")


def test_malformed_lines_of_a_container_keep_their_bytes_and_are_counted(running: Running) -> None:
    lines = [
        b"no format at all",
        b"2026-01-01T00:00:00Z stdout X an unknown tag",
        b"2026-01-01T00:00:00Z nowhere F an unknown stream",
        b"yesterday stdout F no time",
        b'{"log":"docker, cut sho',
        b"\xff\xfe\x00 no text \xc3\x28",
    ]
    before = running.role.metrics()["lockgate_filelog_malformed_lines"]
    with (running.logs / "1.log").open("wb") as log:
        log.write(b"".join(line + b"\n" for line in lines))

    def bodies() -> set[bytes]:
        found = set()
        for _, _, message in list(running.backend.requests):
            for record in (record for each in message.resource_logs for scope in each.scope_logs for record in scope.log_records):
                found.add(record.body.string_value.encode() or record.body.bytes_value)
        return found

    wait_until(lambda: set(lines) <= bodies(), 20, "every line, as it is")
    assert running.role.metrics()["lockgate_filelog_malformed_lines"] == before + len(lines)


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Small bodies that inflate to far more than the limit."""
    block = bytes(MIB)
    gzipped, deflated, squeezed = zlib.compressobj(9, wbits=31), zlib.compressobj(9), zstd.ZstdCompressor(1)
    made = dict.fromkeys(("gzip", "deflate", "zstd"), b"")
    for name, compressor in (("gzip", gzipped), ("deflate", deflated), ("zstd", squeezed)):
        made[name] = b"".join([*(compressor.compress(block) for _ in range(BOMB_BYTES // MIB)), compressor.flush()])
    made["snappy"] = bytes(cramjam.snappy.compress_raw(bytes(2 * INFLATED_LIMIT)))
    assert all(len(bomb) < BODY_LIMIT for bomb in made.values())
    return made


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_log_directory_that_may_not_be_read_is_named_with_uid_gid_and_mode(open_path: Path) -> None:
    secret = open_path / "pods" / "shop_web-0_0a1b"
    (secret / "main").mkdir(parents=True)
    (secret / "main" / "0.log").write_text("2026-01-01T00:00:00Z stdout F at last\n")
    prefix: list[str] = []
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:  # whom no mode stops
        uid, gid = 65534, 65533
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        if subprocess.run([*prefix, sys.executable, "-c", "import lockgate"], capture_output=True, check=False).returncode:
            pytest.skip("another uid may not read this checkout")
    secret.chmod(0o700 if prefix else 0)
    owner = f"mode {stat.filemode(secret.stat().st_mode)}, owner uid {os.getuid()}, gid {os.getgid()}"
    with Backend() as backend:
        config = CONFIG.format(
            logs=open_path / "pods", backend=backend.url, http=free_port(), grpc=free_port(), body=MIB, inflated=MIB, connections=9
        )
        with Role(open_path / "role", config, expect_ready=False, prefix=prefix) as role:
            (blocked,) = role.get("/status")[1]["blocked"]
            assert blocked["component"] == "receivers/filelog"
            for text in (blocked["reason"], role.log.read_text()):
                assert f"cannot read {secret}" in text
                assert f"this process is uid {uid}, gid {gid}" in text
                assert owner in text
            assert role.get("/ready")[0] == 503
            secret.chmod(0o755)
            wait_until(lambda: backend.bodies() == ["at last"], 30, "the line, once it may be read")
            wait_until(lambda: role.get("/ready")[0] == 200, 10, "ready")


def test_a_configuration_that_is_wrong_in_three_places_reports_three_errors(tmp_path: Path) -> None:
    wrong = CONFIG.format(logs="/x", backend="http://127.0.0.1:1", http=4318, grpc=4317, body=MIB, inflated=MIB, connections=9)
    wrong = wrong.replace("read_timeout: 1s", "read_timeout: soon").replace("otlphttp: {endpoint", "otlphttp: {endpiont")
    wrong = wrong.replace("[otlp, filelog]", "[otlp, fillog]")
    (tmp_path / "wrong.yaml").write_text(wrong)
    for command in ("validate", "run"):
        result = lockgate(command, "--config", str(tmp_path / "wrong.yaml"))
        *problems, last = result.stderr.splitlines()
        assert (result.returncode, "3 problems" in last) == (2, True), result.stderr
        assert [re.sub(r"^.*wrong\.yaml:\d+:\d+: ", "", problem).split(": ")[0] for problem in problems] == [
            "receivers.otlp.protocols.http.read_timeout",
            "exporters.otlphttp.endpiont",
            "service.pipelines.logs.receivers[1]",
        ], result.stderr
