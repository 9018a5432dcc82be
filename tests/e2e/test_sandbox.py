"""Every role, confined to its needs: it does its work, and code within it can do nothing else. With the sandbox off it could."""

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from support.backend import Backend
from support.intruder import installed, order
from support.kubernetes import pod, put, sample_in_thread
from support.otlp import log_batch, metric_request, span_batch
from support.process import Role, free_port, wait_until

from lockgate.kit.clock import SystemClock
from lockgate.kube.resources import NAMESPACES, PODS
from lockgate.lockdown import landlock
from lockgate.sample.kubernetes_store import ObjectStore

pytestmark = [
    pytest.mark.skipif(landlock.abi() < landlock.SCOPES, reason="needs Landlock ABI 6 (Linux 6.12)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the positive control must be able to do what the sandbox forbids"),
]

CONFIG = """
extensions: {{intruder: {{port: {port}}}}}
service: {{sandbox: {mode}, shutdown_timeout: 2s, extensions: [{extensions}]}}
"""
PRESETS = ["logs_collector", "logs_metadata", "metrics_metadata", "traces", "events", "backend", "sample"]
REFUSED = {"EACCES", "EPERM"}


def post(url: str, payload: bytes, kind: str = "application/x-protobuf") -> int:
    request = urllib.request.Request(url, payload, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return int(answer.status)


class Place:
    """What a role runs between, and how to see that it does its work."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory, self.state = directory, directory / "state"
        self.backend = stack.enter_context(Backend())
        self.pods = directory / "pods"
        store = ObjectStore(SystemClock())
        put(store, NAMESPACES, {"metadata": {"name": "shop"}})
        put(store, PODS, pod("web-0", "shop", ip="10.1.0.1"))
        self.api = stack.enter_context(sample_in_thread(store))
        self.container = self.pods / "shop_web-0_0a1b" / "web"
        self.container.mkdir(parents=True)
        self.http, self.sample, self.lines = free_port(), free_port(), 0
        self.environment = {
            "LOCKGATE_HOST": "127.0.0.1",
            "LOCKGATE_STATE": str(self.state),
            "LOCKGATE_LOG_ROOT": str(self.pods),
            "LOCKGATE_QUERY_PORT": "0",
            "LOCKGATE_OTLP_HTTP_PORT": str(self.http),
            "LOCKGATE_OTLP_GRPC_PORT": "0",
            "LOCKGATE_BACKEND_PORT": "0",
            "LOCKGATE_SAMPLE_API_PORT": str(self.sample),
            "LOCKGATE_KUBE_AUTH": "none",
            "LOCKGATE_KUBE_API": self.api,
            "LOCKGATE_BACKEND_URL": self.backend.url,
            "LOCKGATE_LOGS_METADATA_URL": self.backend.url,
        }

    def works(self, preset: str) -> None:
        """Has the role do, now, what it is for."""
        url, before = f"http://127.0.0.1:{self.http}/v1", self.backend.seen
        match preset:
            case "logs_collector":
                self.lines += 1
                with open(self.container / "0.log", "a") as log:
                    log.write(f"2026-01-01T00:00:00.000000000Z stdout F line {self.lines}\n")
                wait_until(lambda: f"line {self.lines}" in self.backend.bodies(), what="the line at the backend")
            case "sample":
                with urllib.request.urlopen(f"http://127.0.0.1:{self.sample}/api/v1/pods", timeout=10) as answer:
                    assert json.loads(answer.read())["items"]
                size = self._sampled()
                wait_until(lambda: self._sampled() > size, what="lines of the sample's pods, which are processes")
            case "metrics_metadata":
                request, scope = metric_request()
                scope.metrics.add(name="m").gauge.data_points.add(as_int=1)
                assert post(f"{url}/metrics", request.SerializeToString()) == 200
            case "traces":
                assert post(f"{url}/traces", span_batch("one").payload) == 200
            case "events":
                self.lines += 1
                said = {"metadata": {"generateName": "web-0."}, "message": f"event {self.lines}", "lastTimestamp": "2099-01-01T00:00:00Z"}
                assert post(f"{self.api}/api/v1/namespaces/shop/events", json.dumps(said).encode(), "application/json") == 201
                wait_until(lambda: f"event {self.lines}" in self.backend.bodies(), what="the event at the backend")
            case _:
                assert post(f"{url}/logs", log_batch("one").payload) == 200
        if preset.endswith("metadata") or preset == "traces":
            wait_until(lambda: self.backend.seen > before, what="delivered")

    def _sampled(self) -> int:
        return sum(path.stat().st_size for path in self.pods.glob("*/*/0.log") if path.parent != self.container)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


@dataclass
class Victim:
    """What is next to a role, and none of its business."""

    directory: Path
    process: "subprocess.Popen[bytes]"
    listener: socket.socket
    abstract: str
    open_to_role: Path

    def attempts(self) -> list[tuple[str, list[Any]]]:
        secret, port = str(self.directory / "secret"), self.listener.getsockname()[1]
        (self.open_to_role / "secret").symlink_to(secret)
        inside = str(self.open_to_role)
        handle, kind = handle_of(secret)
        return [
            ("read", ["/etc/shadow"]),
            ("read", [secret]),
            ("read", [f"/proc/{self.process.pid}/environ"]),
            ("link_and_read", [secret, inside]),
            ("open_by_handle", [handle, kind, inside]),
            ("list", [str(self.directory)]),
            ("list", ["/"]),
            ("write", [secret]),
            ("write", [str(self.directory / "new")]),
            ("truncate", [secret]),
            ("rename_in", [secret, inside]),
            ("chown", [secret]),
            ("delete", [str(self.directory / "old")]),
            ("connect", [port]),
            ("connect", [port, 262]),  # as MPTCP, which to Landlock is no TCP
            ("connect_by_sending", [port]),
            ("connect_abstract", [self.abstract]),
            ("bind", [free_port()]),
            ("socket", [socket.AF_PACKET, socket.SOCK_RAW]),
            ("socket", [socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP]),
            ("socket", [socket.AF_INET, socket.SOCK_DGRAM]),
            ("socket", [socket.AF_NETLINK, socket.SOCK_RAW, 9]),  # audit
            ("execute", ["/bin/true"]),
            ("fork", []),
            ("signal", [self.process.pid]),
            ("ptrace", [self.process.pid]),
            ("mount", [str(self.directory / "mount")]),
            ("unshare", []),
            ("chroot", []),
            ("setgid", []),
            ("io_uring", []),
        ]


def handle_of(path: str) -> tuple[str, int]:
    """A file's handle, as hex, and its type (name_to_handle_at(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    structure, mount_id = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132)), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), structure, ctypes.byref(mount_id), 0):
        pytest.skip(f"this file system has no handles: {os.strerror(ctypes.get_errno())}")
    size, kind = (int.from_bytes(structure.raw[at : at + 4], "little") for at in (0, 4))
    return structure.raw[8 : 8 + size].hex(), kind


@contextmanager
def victim(directory: Path, open_to_role: Path) -> Iterator[Victim]:
    directory.mkdir()
    (directory / "mount").mkdir()
    for name in ("secret", "old"):
        (directory / name).write_text("a secret")
    abstract = f"lockgate-test-{os.getpid()}"
    with (
        subprocess.Popen(["/bin/sleep", "300"]) as process,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind("\0" + abstract)
        unix.listen()
        try:
            yield Victim(directory, process, listener, abstract, open_to_role)
        finally:
            process.kill()


@contextmanager
def running(place: Place, preset: str, mode: str, prefix: tuple[str, ...] = ()) -> Iterator[tuple[Role, Callable[..., str]]]:
    """The role, and what gives its intruder an order."""
    port = free_port()
    own = yaml.safe_load(resources.files("lockgate.presets").joinpath(f"{preset}.yaml").read_text())["service"]["extensions"]
    text = CONFIG.format(port=port, mode=mode, extensions=", ".join([*own, "intruder"]))
    environment = place.environment | installed(place.directory / "site")
    with Role(place.directory / "role", text, environment, preset=preset, prefix=prefix) as role:
        yield role, lambda name, *arguments: order(port, name, *arguments)


def threads(role: Role) -> list[dict[str, str]]:
    """What the kernel says of each thread."""
    found = Path(f"/proc/{role.process.pid}/task").glob("*/status")
    return [dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line) for path in found]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_role_does_its_work_and_nothing_else(preset: str, place: Place) -> None:
    inside = place.pods if preset in ("logs_collector", "sample") else Path("/proc/self")
    with running(place, preset, "require") as (role, tries), victim(place.directory / "other", place.directory / "role") as other:
        place.works(preset)
        outcomes = {f"{name} {arguments}": tries(name, *arguments) for name, arguments in other.attempts()}
        allowed = {"fork []": "done"} if preset == "sample" else {}
        assert {what: outcome for what, outcome in outcomes.items() if outcome not in REFUSED} == allowed
        assert (other.directory / "secret").read_text() == "a secret"
        place.works(preset)
        assert tries("list", str(inside)) == "done", "the harness is refused everything"
        found = threads(role)
        assert len(found) > 1
        assert {(each["Seccomp"], each["NoNewPrivs"]) for each in found} == {("2", "1")}
        status = role.get("/status")[1]["sandbox"]
        assert status["threads_confined"] == status["threads"] > 1
        assert (status["mode"], status["lacking"]) == ("require", [])
        assert status["files"] and status["tcp_ports"] and status["signals"] and status["seccomp"]


def test_without_the_sandbox_every_attempt_succeeds(place: Place) -> None:
    """The control: what is refused above is refused by the sandbox, and by nothing else."""
    preset = "logs_collector"
    with running(place, preset, "off") as (role, tries), victim(place.directory / "other", place.directory / "role") as other:
        place.works(preset)
        outcomes = {f"{name} {arguments}": tries(name, *arguments) for name, arguments in other.attempts()}
        assert {what: outcome for what, outcome in outcomes.items() if outcome != "done"} == {}
        assert {(each["Seccomp"], each["NoNewPrivs"]) for each in threads(role)} == {("0", "0")}
        assert role.get("/status")[1]["sandbox"]["mode"] == "off"


WITHOUT = (sys.executable, str(Path(__file__).parents[1] / "support" / "without_landlock.py"))


def test_a_required_sandbox_that_cannot_be_had_ends_the_start_with_the_reason(place: Place) -> None:
    with pytest.raises(AssertionError, match="did not become ready") as failed, running(place, "logs_metadata", "require", WITHOUT):
        pass
    text = str(failed.value)
    assert "service.sandbox is require, and there is no: files: there is no Landlock here" in text
    assert "Traceback" not in text


def test_best_effort_takes_what_there_is_and_says_what_is_not(place: Place) -> None:
    with (
        running(place, "logs_metadata", "best-effort", WITHOUT) as (role, tries),
        victim(place.directory / "other", place.directory / "role") as other,
    ):
        place.works("logs_metadata")
        assert tries("read", str(other.directory / "secret")) == "done"
        assert tries("execute", "/bin/true") in REFUSED
        assert tries("ptrace", other.process.pid) in REFUSED
        status = role.get("/status")[1]["sandbox"]
        assert (status["files"], status["tcp_ports"], status["seccomp"]) == (False, False, True)
        assert any(text.startswith("files: there is no Landlock here") for text in status["lacking"])
        assert "the sandbox lacks files: there is no Landlock here" in role.log.read_text()


def test_a_process_without_capabilities_can_confine_itself(place: Place) -> None:
    none = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    with (
        running(place, "logs_metadata", "require", none) as (role, tries),
        victim(place.directory / "other", place.directory / "role") as other,
    ):
        assert {each["CapEff"] for each in threads(role)} == {"0000000000000000"}
        place.works("logs_metadata")
        assert tries("read", str(other.directory / "secret")) == "EACCES"


def test_a_changed_configuration_is_read_from_within_and_cannot_open_the_sandbox(tmp_path: Path) -> None:
    config = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{debug: {{verbosity: {verbosity}}}}}
extensions: {{health_check: {{}}}}
service: {{sandbox: {mode}, extensions: [health_check], pipelines: {{logs: {{receivers: [otlp], exporters: [debug]}}}}}}
"""
    port = free_port()
    with Role(tmp_path / "role", config.format(port=port, verbosity="basic", mode="require")) as role:

        def outcome(verbosity: str, mode: str) -> tuple[str, list[str]]:
            aside = tmp_path / "role" / "aside"
            aside.write_text(config.format(port=port, verbosity=verbosity, mode=mode))
            aside.rename(tmp_path / "role" / "config.yaml")  # as a mounted ConfigMap is: another file in the same directory
            before = role.get("/status")[1].get("reload")
            role.process.send_signal(signal.SIGHUP)
            wait_until(lambda: role.get("/status")[1].get("reload") != before, what="the reload's outcome")
            answer = role.get("/status")[1]["reload"]
            return answer["outcome"], answer["reasons"]

        assert outcome("detailed", "require") == ("applied", [])
        reason = "restart required: service.sandbox is off, and a sandbox is entered at start"
        assert outcome("detailed", "off") == ("refused", [reason])
        assert role.get("/status")[1]["sandbox"]["mode"] == "require"


TRUSTING = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:{port}
        tls: {{cert_file: {mount}/tls.crt, key_file: {mount}/tls.key, client_ca_file: {mount}/ca.crt}}
        auth: {{authenticator: bearertokenauth}}
exporters: {{otlphttp: {{endpoint: "{backend}"}}}}
extensions: {{health_check: {{}}, bearertokenauth: {{filename: {mount}/token}}}}
service:
  sandbox: require
  extensions: [health_check, bearertokenauth]
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}
"""


def test_certificates_and_tokens_are_followed_as_a_kubelet_swaps_them(tmp_path: Path) -> None:
    mount, port = tmp_path / "mount", free_port()
    mount.mkdir()
    for name in ("tls.crt", "tls.key", "ca.crt", "token"):
        (mount / name).symlink_to(f"..data/{name}")

    def swap(generation: int) -> ssl.SSLContext:
        """Puts new content in the mount as the kubelet's AtomicWriter does; the client that goes with it."""
        authority = trustme.CA()
        server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@example")
        directory = mount / f"..{generation}"
        directory.mkdir()
        server.cert_chain_pems[0].write_to_path(directory / "tls.crt")
        server.private_key_pem.write_to_path(directory / "tls.key")
        authority.cert_pem.write_to_path(directory / "ca.crt")
        (directory / "token").write_text(f"token-{generation}")
        (mount / "..data_tmp").symlink_to(directory.name)
        (mount / "..data_tmp").rename(mount / "..data")
        for old in (name for name in ("tls.crt", "tls.key", "ca.crt", "token") if generation > 1):
            (mount / f"..{generation - 1}" / old).unlink()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        client.configure_cert(context)
        return context

    def delivers(client: ssl.SSLContext, generation: int) -> bool:
        headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer token-{generation}"}
        request = urllib.request.Request(f"https://127.0.0.1:{port}/v1/logs", log_batch("one").payload, headers)
        try:
            with urllib.request.urlopen(request, timeout=5, context=client) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    first = swap(1)
    with Backend() as backend, Role(tmp_path / "role", TRUSTING.format(port=port, mount=mount, backend=backend.url)):
        assert delivers(first, 1)
        second = swap(2)
        wait_until(lambda: delivers(second, 2), what="the new certificate, CA and token")
        assert not delivers(first, 1)


SENDING = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters:
  otlphttp:
    endpoint: https://127.0.0.1:{backend}
    retry_on_failure: {{initial_interval: 200ms, max_interval: 500ms}}
    tls: {tls}
extensions: {{health_check: {{}}}}
service:
  sandbox: require
  trust: {trust}
  extensions: [health_check]
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}
"""


@pytest.mark.parametrize("swaps_links", [False, True], ids=["renamed", "as-a-kubelet-swaps-it"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["its-own", "the-services"])
def test_whom_an_exporter_trusts_follows_the_file(tmp_path: Path, everywhere: bool, swaps_links: bool) -> None:
    mount, port, server = tmp_path / "mount", free_port(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mount.mkdir()

    def put_authority(generation: int, authority: trustme.CA) -> None:
        directory = mount / f"..{generation}"
        directory.mkdir()
        authority.cert_pem.write_to_path(directory / "ca.crt")
        if swaps_links:
            (mount / "..data_tmp").symlink_to(directory.name)
            (mount / "..data_tmp").rename(mount / "..data")
            if generation == 1:
                (mount / "ca.crt").symlink_to("..data/ca.crt")
        else:
            (directory / "ca.crt").rename(mount / "ca.crt")

    first, second = trustme.CA(), trustme.CA()
    first.issue_cert("127.0.0.1").configure_cert(server)
    put_authority(1, first)
    with Backend(tls=server) as backend:
        backend.headers = {"Connection": "close"}  # a connection that stands needs no new trust
        tls, trust = (f"{{ca_file: {mount}/ca.crt}}", "{}") if not everywhere else ("{}", f"{{ca_files: [{mount}/ca.crt]}}")
        with Role(tmp_path / "role", SENDING.format(port=port, backend=backend.port, tls=tls, trust=trust)) as role:

            def blocked() -> str:
                return str(role.get("/status")[1])

            url = f"http://127.0.0.1:{port}/v1/logs"
            assert post(url, log_batch("one").payload) == 200
            wait_until(lambda: backend.bodies() == ["one"], what="delivered under the first authority")
            second.issue_cert("127.0.0.1").configure_cert(server)
            with ThreadPoolExecutor(1) as client:
                answer = client.submit(post, url, log_batch("two").payload)
                wait_until(lambda: "was not accepted" in blocked(), what="the new certificate's issuer is not trusted")
                assert "issued by" in blocked() and backend.bodies() == ["one"]
                put_authority(2, second)
                assert answer.result(20) == 200
            assert backend.bodies() == ["one", "two"]
