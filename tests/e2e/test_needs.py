"""Nothing is opened that `lockgate needs` does not list: a running role's every open, bind, connect and look-up held against the table."""

import ast
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.process import Role, free_port, lockgate, wait_until

# Loaded by the role's interpreter before anything else: writes each audited event as a line (PEP 578).
AUDIT = """
import os, sys
_out = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_events = {"open", "socket.bind", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.listdir"}
def _hook(event, arguments):
    if event in _events:
        try:
            line = repr((event, tuple(a if isinstance(a, (str, int, tuple, type(None))) else str(a) for a in arguments[-3:])))
            os.write(_out, line.encode() + b"\\n")
        except BaseException as error:
            os.write(_out, repr(("hook failed", (str(error),))).encode() + b"\\n")
sys.addaudithook(_hook)
"""

CONFIG = """
receivers:
  filelog: {{include: ["{logs}/*/*/*.log"], storage: file_storage, start_at: beginning, operators: [{{type: container}}]}}
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{http}"}}, grpc: {{endpoint: "127.0.0.1:{grpc}"}}}}}}
exporters:
  otlphttp: {{endpoint: "http://127.0.0.1:{backend}"}}
extensions:
  health_check: {{}}
  file_storage: {{directory: "{state}", create_directory: true}}
service:
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog, otlp], exporters: [otlphttp]}}}}
"""

SYSTEM = (
    "/dev/",
    "/proc/",
    "/sys/fs/cgroup",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/mime.types",
    "/etc/nsswitch",
    "/etc/resolv.conf",
    "/etc/hosts",
)
"""What the interpreter, libc and the kernel's own views are read from in every process; it opens no way out."""


@pytest.fixture
def backend() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_running_role_opens_only_what_its_needs_list(tmp_path: Path, backend: socket.socket) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AUDIT)
    container = tmp_path / "pods" / "shop_web-0_0a1b" / "web"
    container.mkdir(parents=True)
    (container / "0.log").write_text("2026-01-01T00:00:00.000000000Z stdout F hello\n")
    ports = {"http": free_port(), "grpc": free_port(), "backend": backend.getsockname()[1]}
    text = CONFIG.format(logs=tmp_path / "pods", state=tmp_path / "state", **ports)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])}
    role = Role(tmp_path / "role", text, environment | {"AUDIT_FILE": str(tmp_path / "audit")}, expect_ready=False)
    needs = json.loads(lockgate("needs", "--format", "json", *role.configs).stdout)
    with role:
        connection, _ = backend.accept()  # the line is on its way: every part has opened what it opens
        connection.close()
        wait_until(lambda: (tmp_path / "state").exists(), what="the storage directory")
    events: list[tuple[str, tuple[Any, ...]]] = [ast.literal_eval(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert any(event == "socket.connect" for event, _ in events), "the hook saw nothing: this test would prove nothing"
    assert list(unlisted(events, needs)) == []


def unlisted(events: list[tuple[str, tuple[Any, ...]]], needs: list[dict[str, Any]]) -> Iterator[str]:
    reads = [need["path"] for need in needs if need["need"] in ("read", "write")]
    writes = [need["path"] for need in needs if need["need"] == "write"]
    listens = {(need["host"], need["port"]) for need in needs if need["need"] == "listen"}
    connects = {(need["host"], need["port"]) for need in needs if need["need"] == "connect"}
    names = {host for host, _ in listens | connects} | {None, ""}
    code = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path))}
    for event, arguments in events:
        match event, arguments:
            case "open", (path, mode, flags) if isinstance(path, str):
                writing = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "w" in str(mode)
                if writing and path != "/dev/null" and not under(path, writes):
                    yield f"wrote {path}"
                elif not writing and not under(path, [*reads, *code, *SYSTEM]):
                    yield f"read {path}"
            case "os.listdir", (path,) if isinstance(path, str) and not under(path, [*reads, *code, *SYSTEM]):
                yield f"listed {path}"
            case "socket.bind", (_, (host, port, *_)) if (host, port) not in listens and port:
                yield f"bound {host}:{port}"
            case "socket.connect", (_, (host, port, *_)) if (host, port) not in connects:
                yield f"connected {host}:{port}"
            case "socket.getaddrinfo", (host, *_) if host not in names:
                yield f"looked up {host}"
            case (("subprocess.Popen" | "os.exec" | "os.posix_spawn"), _):
                yield f"started {arguments}"
            case "hook failed", _:
                yield f"{arguments}"


def under(path: str, roots: list[str] | tuple[str, ...]) -> bool:
    real = os.path.realpath(path)
    return any(real == root or real.startswith(root.rstrip("/") + "/") or path.startswith(root.rstrip("/") + "/") for root in roots)
