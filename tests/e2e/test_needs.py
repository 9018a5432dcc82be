"""Nothing is opened that `lockgate needs` does not list: a role's system calls, all of its life, held against the table."""

import json
import re
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.backend import Backend
from support.events_contract import event
from support.kubernetes import sample_in_thread
from support.otlp import log_batch
from support.process import Role, free_port, lockgate, wait_until

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import EVENTS
from lockgate.sample.kubernetes_store import ObjectStore

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace; sh tests/install-debian.sh installs it")

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
  shutdown_timeout: 1s
  extensions: [health_check, file_storage]
  pipelines: {{logs: {{receivers: [filelog, otlp], exporters: [otlphttp]}}}}
"""

CALLS = "open,openat,openat2,creat,connect,bind,execve,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,symlink"

BEFORE = ("/etc/locale.alias", "/usr/lib/locale", "/usr/share/locale", "/etc/mime.types", "/etc/apache2/mime.types")
"""What the interpreter and libc read at start, before the sandbox closes it; none of it is a user's."""


class Call(NamedTuple):
    """One successful system call as strace wrote it."""

    name: str
    arguments: str
    result: str


@pytest.fixture
def backend() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_running_role_opens_only_what_its_needs_list(tmp_path: Path, backend: socket.socket) -> None:
    container = tmp_path / "pods" / "shop_web-0_0a1b" / "web"
    container.mkdir(parents=True)
    (container / "0.log").write_text("2026-01-01T00:00:00.000000000Z stdout F hello\n")
    ports = {"http": free_port(), "grpc": free_port(), "backend": backend.getsockname()[1]}
    text = CONFIG.format(logs=tmp_path / "pods", state=tmp_path / "state", **ports)
    role, trace = traced(tmp_path, text)
    needs = json.loads(lockgate("needs", "--format", "json", *role.configs).stdout)
    with role:
        connection, _ = backend.accept()  # the line is on its way: every part has opened what it opens
        connection.close()
        wait_until(lambda: list((tmp_path / "state").rglob("*")), what="something in the storage directory")
    wait_until(lambda: "+++ exited with 0 +++" in trace.read_text(), what="the end of the trace")
    calls = list(parse(trace.read_text()))
    seen = {call.name for call in calls}
    assert {"openat", "bind", "connect"} <= seen, f"the trace is empty ({seen}): this test would prove nothing"
    assert "\n".join(unlisted(calls, needs, sys.executable)) == ""
    # And the other way round: the sandbox refused nothing but what it tried itself, to see whether it holds.
    refused = [line for line in trace.read_text().splitlines() if re.search(r"= -1 (EACCES|EPERM)", line)]
    assert [line for line in refused if '"/", O_RDONLY|O_CLOEXEC|O_DIRECTORY' not in line] == []


def test_resolving_a_name_opens_only_what_its_needs_list(tmp_path: Path) -> None:
    ports = {"http": free_port(), "grpc": free_port(), "backend": 4318}
    (tmp_path / "pods").mkdir()
    text = CONFIG.format(logs=tmp_path / "pods", state=tmp_path / "state", **ports)
    text = text.replace("127.0.0.1:4318", "backend.invalid:4318")
    role, trace = traced(tmp_path, text)
    needs = json.loads(lockgate("needs", "--format", "json", *role.configs).stdout)
    with role:
        # Health answers first: under strace the receiver is not yet listening then.
        wait_until(lambda: role.get("/ready")[0] == 200, what="the role is ready")
        headers = {"Content-Type": "application/x-protobuf"}
        request = urllib.request.Request(f"http://127.0.0.1:{ports['http']}/v1/logs", log_batch("one").payload, headers)
        with suppress(OSError):  # it is delivered to nobody, so it is answered by nothing or by 503
            urllib.request.urlopen(request, timeout=5).close()
        wait_until(lambda: "backend.invalid" in str(role.get("/ready")[1]), what="the name is known not to resolve")
    calls = list(parse(trace.read_text()))
    assert any("htons(53)" in call.arguments for call in calls), "no name server was asked: this test would prove nothing"
    assert "\n".join(unlisted(calls, needs, sys.executable)) == ""


def test_the_events_role_opens_only_what_its_needs_list(tmp_path: Path) -> None:
    store = ObjectStore(SystemClock())
    store.create(EVENTS, event("a", seen="2099-01-01T00:00:00Z"))
    with Backend() as backend, sample_in_thread(store) as api:
        (tmp_path / "token").write_text("secret")
        environment = {
            "LOCKGATE_HOST": "127.0.0.1",
            "LOCKGATE_STATE": str(tmp_path / "state"),
            "LOCKGATE_KUBE_API": api,
            "LOCKGATE_BACKEND_URL": backend.url,
        }
        text = f'{{"receivers": {{"raw_k8s_events": {{"token_file": "{tmp_path}/token"}}}}, "service": {{"shutdown_timeout": "1s"}}}}'
        role, trace = traced(tmp_path, text, environment, preset="events")
        needs = json.loads(lockgate("needs", "--format", "json", *role.configs, environment=role.environment).stdout)
        with role:
            wait_until(lambda: "said by a" in backend.bodies(), what="the event at the backend")
    wait_until(lambda: "+++ exited with 0 +++" in trace.read_text(), what="the end of the trace")
    calls = list(parse(trace.read_text()))
    assert any(str(tmp_path / "token") in call.arguments for call in calls), "the trace is empty: this test would prove nothing"
    assert "\n".join(unlisted(calls, needs, sys.executable)) == ""


def traced(tmp_path: Path, text: str, environment: dict[str, str] | None = None, preset: str = "") -> tuple[Role, Path]:
    """A role, and the file that its system calls are written to."""
    trace = tmp_path / "trace"
    # -D: the role stays our child and the tracer hangs on its side, so that signals go where they are meant to go.
    strace = ("strace", "-D", "-f", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(trace))
    return Role(tmp_path / "role", text, environment, preset=preset, expect_ready=False, prefix=strace), trace


def test_the_comparison_sees_what_is_not_listed() -> None:
    """The test of the test: each kind of thing, opened without a need, is told."""
    lines = """
1 openat(AT_FDCWD</x>, "/etc/shadow", O_RDONLY|O_CLOEXEC) = 3</etc/shadow>
1 openat(4</var/log/pods>, "a", O_WRONLY|O_CREAT, 0600) = 5</var/log/pods/a>
1 unlinkat(4</var/log/pods>, "b", 0) = 0
1 bind(6<socket:[1]>, {sa_family=AF_INET, sin_port=htons(81), sin_addr=inet_addr("0.0.0.0")}, 16) = 0
1 connect(7<socket:[2]>, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("10.0.0.1")}, 16) = -1 EINPROGRESS (now)
1 execve("/bin/sh", ["sh"], 0x0 /* 1 vars */) = 0
1 openat(AT_FDCWD</x>, "/nowhere", O_RDONLY) = -1 ENOENT (No such file or directory)
"""
    needs = [{"need": "read", "path": "/var/log/pods"}]
    assert list(unlisted(parse(lines), needs, "/bin/python")) == [
        "read /etc/shadow",
        "wrote /var/log/pods/a",
        "wrote /var/log/pods/b",
        "bound 0.0.0.0:81",
        "connected 10.0.0.1:443",
        "started /bin/sh",
    ]


def parse(trace: str) -> Iterator[Call]:
    unfinished: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            unfinished[process] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if match := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
            rest = unfinished.pop(process) + match[1]
        if (match := re.fullmatch(r"(\w+)\((.*)\)\s+= (.*)", rest)) and (not match[3].startswith("-1") or "EINPROGRESS" in match[3]):
            yield Call(match[1], match[2], match[3])


def unlisted(calls: Iterator[Call] | list[Call], needs: list[dict[str, Any]], executable: str) -> Iterator[str]:
    reads = [need["path"] for need in needs if need["need"] in ("read", "write")]
    writes = [need["path"] for need in needs if need["need"] == "write"]
    listens = {(need["host"], need["port"]) for need in needs if need["need"] == "listen"}
    connects = {(need["host"], need["port"]) for need in needs if need["need"] == "connect"}
    for name, arguments, result in calls:
        address = re.search(r'sin6?_port=htons\((\d+)\).*?"([^"]*)"', arguments)
        if name in ("open", "openat", "openat2", "creat"):
            path = re.sub(r"^\d+<(.*)>$", r"\1", result).removesuffix(" (deleted)")
            path = re.sub(r"^/proc/\d+", "/proc/self", path)
            if re.search(r"O_WRONLY|O_RDWR|O_CREAT", arguments) and path != "/dev/null":
                if not under(path, writes):
                    yield f"wrote {path}"
            elif not under(path, [*reads, *BEFORE]) and not any(under(need, [path]) for need in reads):  # a way to what is needed
                yield f"read {path}"
        elif name in ("bind", "connect") and address:
            port, host = int(address[1]), address[2]
            if port and (host, port) not in (listens if name == "bind" else connects):
                yield f"{'bound' if name == 'bind' else 'connected'} {host}:{port}"
        elif name == "execve":
            if not arguments.startswith(f'"{executable}"'):
                yield "started " + arguments.split('"')[1]
        elif name not in ("bind", "connect"):
            for directory, path in re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', arguments):
                if not under(full := str(Path(directory) / path), writes):
                    yield f"wrote {full}"


def under(path: str, roots: list[str] | tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)
