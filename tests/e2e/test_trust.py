"""Trust: through a real proxy that intercepts TLS, by each way to name its authority; and mutual TLS between two roles, one key."""

import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from support import helm
from support.backend import Backend, GrpcBackend, bodies_of
from support.kubernetes import sample_in_thread
from support.mitmproxy import MitmProxy
from support.nginx import Nginx, needs_nginx
from support.process import Role, free_port, lockgate, wait_until

from lockgate.kit.clock import SystemClock
from lockgate.sample.kubernetes_store import ObjectStore

EXPORTERS = {"otlphttp", "otlp"}
CONFIG = """
receivers: {{filelog: {{include: ["{directory}/app.log"], start_at: beginning, storage: file_storage}}}}
exporters:
  otlphttp: &sending
    endpoint: "https://backend.invalid:{port}"
    retry_on_failure: {{initial_interval: 100ms, max_interval: 200ms}}
  otlp: *sending
extensions: {{health_check: {{}}, file_storage: {{directory: "{directory}/state", create_directory: true}}}}
service:
  extensions: [health_check, file_storage]
  shutdown_timeout: 2s
  trust: {{ca_files: {ca_files}, proxy: {{url: "http://127.0.0.1:{proxy}"}}}}
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp, otlp]}}}}
"""
needs_mount_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="mount namespaces need root's rights",
)


@dataclass
class Site:
    """A backend behind nginx behind mitmproxy; each test has a role of its own."""

    nginx: Nginx
    proxy: MitmProxy
    http: Backend
    grpc: GrpcBackend

    def role(self, directory: Path, *ca_files: Path, mounts: tuple[tuple[Path, str], ...] = ()) -> Role:
        """A role with the line "hello DIRECTORY" to deliver, which sees these directories where they are mounted."""
        (directory / "app.log").write_text(f"hello {directory}\n")
        config = CONFIG.format(directory=directory, port=self.nginx.port, proxy=self.proxy.port, ca_files=[str(file) for file in ca_files])
        shell = "".join(f"mount --bind '{source}' '{target}' && " for source, target in mounts) + 'exec "$@"'
        prefix = ["env", "-u", "SSL_CERT_FILE", "-u", "SSL_CERT_DIR", *(["unshare", "--mount", "sh", "-c", shell, "sh"] * bool(mounts))]
        return Role(directory / "role", config, expect_ready=False, prefix=prefix)

    def arrived(self, directory: Path) -> set[str]:
        """Which exporters have delivered the line."""
        line = f"hello {directory}"
        over_http = any(line in bodies_of(message) for _, _, message in list(self.http.requests))
        over_grpc = any(line in bodies_of(message) for message in list(self.grpc.messages))
        return {name for name, has in (("otlphttp", over_http), ("otlp", over_grpc)) if has}

    def delivers(self, role: Role, directory: Path) -> None:
        with role:
            wait_until(lambda: self.arrived(directory) == EXPORTERS, what=f"delivery: {self.arrived(directory)}; {reasons(role)}")
            wait_until(lambda: not reasons(role), what="nothing is blocked")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with (
        Backend(free_port()) as http,
        GrpcBackend(free_port()) as grpc,
        Nginx(directory / "nginx", http=http.port, grpc=grpc.port) as nginx,
    ):
        (directory / "nginx-ca.pem").write_bytes(nginx.ca_pem)
        with MitmProxy(directory / "proxy", nginx.port, directory / "nginx-ca.pem") as proxy:
            yield Site(nginx, proxy, http, grpc)


def reasons(role: Role) -> dict[str, str]:
    """Why each exporter is blocked, by its name."""
    blocked: list[dict[str, Any]] = role.get("/status")[1]["blocked"]
    return {entry["component"].removeprefix("exporters/"): entry["reason"] for entry in blocked}


def secret(directory: Path, **files: bytes) -> Path:
    """A directory as the kubelet writes a Secret's: each file a link through ..data, which a rename replaces. Again: a newer version."""
    directory.mkdir(exist_ok=True)
    version = directory / f"..version_{len(list(directory.glob('..version_*')))}"
    version.mkdir()
    for name, content in files.items():
        (version / name.replace("_", ".")).write_bytes(content)
        if not (link := directory / name.replace("_", ".")).is_symlink():
            link.symlink_to(Path("..data") / link.name)
    (directory / "..data_tmp").symlink_to(version.name)
    (directory / "..data_tmp").rename(directory / "..data")
    return directory


@needs_nginx
def test_an_intercepting_proxy_is_refused_by_name_and_what_was_trusted_is_said(site: Site, tmp_path: Path) -> None:
    with site.role(tmp_path) as role:
        wait_until(lambda: reasons(role).keys() == EXPORTERS, what="both are blocked")
        for reason in reasons(role).values():
            assert f"backend.invalid:{site.nginx.port} behind the proxy 127.0.0.1:{site.proxy.port} was not accepted" in reason
            assert "(subject '" in reason, reason
            assert "issued by 'CN=mitmproxy, O=mitmproxy'" in reason
            assert "trusted is what is in /etc/" in reason
            assert "service.trust.ca_files" in reason
            assert reason.removeprefix("delivery: ") in role.log.read_text()
        assert site.arrived(tmp_path) == set()


@needs_nginx
def test_one_key_trusts_it_for_every_component(site: Site, tmp_path: Path) -> None:
    site.delivers(site.role(tmp_path, site.proxy.ca_file), tmp_path)


@needs_nginx
@needs_mount_namespaces
def test_a_certificate_that_is_only_copied_into_the_image_suffices(site: Site, tmp_path: Path) -> None:
    image = tmp_path / "ca-certificates"
    image.mkdir()
    shutil.copy(site.proxy.ca_file, image / "cert.crt")
    site.delivers(site.role(tmp_path, mounts=((image, "/usr/local/share/ca-certificates"),)), tmp_path)


@needs_nginx
@needs_mount_namespaces
@pytest.mark.parametrize("line_end", ["", "\n"], ids=["as-it-is", "bundle-without-its-last-line-end"])
def test_an_init_container_that_appends_to_the_bundle_suffices(site: Site, tmp_path: Path, line_end: str) -> None:
    certs, root_ca = tmp_path / "certs", tmp_path / "root-ca"
    certs.mkdir()
    root_ca.mkdir()
    shutil.copy(site.proxy.ca_file, root_ca / "cert.pem")
    script = "cp /etc/ssl/certs/ca-certificates.crt {0}/ca-certificates.crt; {2} cat {1}/cert.pem >> {0}/ca-certificates.crt"
    cut = "truncate -s -1 {0}/ca-certificates.crt;" if line_end else ""
    subprocess.run(["sh", "-ec", script.format(certs, root_ca, cut.format(certs))], check=True)
    site.delivers(site.role(tmp_path, mounts=((certs, "/etc/ssl/certs"),)), tmp_path)


@needs_nginx
@needs_mount_namespaces
@pytest.mark.parametrize(
    ("directory", "name"),
    [
        pytest.param("/etc/ssl/certs", "cert_pem", id="over-the-systems"),
        pytest.param("/usr/local/share/ca-certificates", "cert_crt", id="beside-the-systems"),
    ],
)
def test_a_secret_where_the_systems_authorities_are_suffices_and_is_followed(site: Site, tmp_path: Path, directory: str, name: str) -> None:
    certs = secret(tmp_path / "certs", **{name: trustme.CA(organization_name="Yesterday's").cert_pem.bytes()})
    with site.role(tmp_path, mounts=((certs, directory),)) as role:
        wait_until(lambda: reasons(role).keys() == EXPORTERS, what="both are blocked")
        assert f"{directory}/{name.replace('_', '.')}" in reasons(role)["otlp"].partition("trusted is what is in ")[2]
        secret(certs, **{name: site.proxy.ca_file.read_bytes()})
        wait_until(lambda: site.arrived(tmp_path) == EXPORTERS, what=f"delivery: {reasons(role)}")


METADATA = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}, grpc: {{endpoint: "127.0.0.1:{grpc}"}}}}}}}}
exporters: {{otlphttp: {{endpoint: "http://127.0.0.1:{backend}"}}}}
extensions: {{health_check: {{}}}}
service:
  extensions: [health_check]
  shutdown_timeout: 2s
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}
  trust: {{mutual_tls: {{directory: "${{env:LOCKGATE_MUTUAL_TLS:-}}", components: {{receivers/otlp: true}}}}}}
"""


def pair(directory: Path, ca: trustme.CA, *trusted: trustme.CA) -> Path:
    """tls.crt, tls.key and ca.crt of one role, as cert-manager writes them."""
    leaf = ca.issue_cert("localhost", "127.0.0.1")
    chain, authorities = (b"".join(pem.bytes() for pem in pems) for pems in (leaf.cert_chain_pems, [c.cert_pem for c in trusted or (ca,)]))
    return secret(directory, tls_crt=chain, tls_key=leaf.private_key_pem.bytes(), ca_crt=authorities)


def test_one_key_makes_two_roles_speak_mutual_tls_and_certificates_rotate_without_restart(tmp_path: Path) -> None:
    ours, next_one, stranger = trustme.CA(), trustme.CA(), trustme.CA()
    sender_files, receiver_files = pair(tmp_path / "sender-tls", stranger, ours), pair(tmp_path / "receiver-tls", ours)
    (tmp_path / "pods/ns_pod_uid/app").mkdir(parents=True)
    log = tmp_path / "pods/ns_pod_uid/app/0.log"
    port, grpc = free_port(), free_port()

    def write(text: str) -> None:
        with log.open("a") as file:
            file.write(f"2026-01-01T00:00:00.000000000Z stdout F {text}\n")

    with Backend(free_port()) as backend:
        receiver = Role(
            tmp_path / "receiver",
            METADATA.format(port=port, grpc=grpc, backend=backend.port),
            {"LOCKGATE_MUTUAL_TLS": str(receiver_files)},
        )
        sender = Role(
            tmp_path / "sender",
            "exporters: {otlphttp: {disable_keep_alives: true}}",
            environment={
                "LOCKGATE_LOG_ROOT": str(tmp_path / "pods"),
                "LOCKGATE_STATE": str(tmp_path / "state"),
                "LOCKGATE_LOGS_METADATA_URL": f"http://127.0.0.1:{port}",
                "LOCKGATE_MUTUAL_TLS": str(sender_files),
            },
            preset="logs_collector",
            expect_ready=False,
        )

        def arrived() -> list[str]:
            return [body for _, _, message in list(backend.requests) for body in bodies_of(message)]

        write("one")
        with receiver, sender:
            wait_until(lambda: "otlphttp" in reasons(sender), what="the receiver does not know the sender's authority")
            assert arrived() == []
            pair(sender_files, ours)
            wait_until(lambda: arrived() == ["one"], what=f"delivery: {reasons(sender)}")
            # To another authority: first both are trusted on both sides, then each presents a new certificate, then the old one goes.
            for files in (sender_files, receiver_files):
                pair(files, ours, ours, next_one)
            write("two")
            wait_until(lambda: arrived() == ["one", "two"], what=f"delivery: {reasons(sender)}")
            for files in (sender_files, receiver_files):
                pair(files, next_one, next_one)
            write("three")
            wait_until(lambda: arrived() == ["one", "two", "three"], what=f"delivery: {reasons(sender)}")
            wait_until(lambda: presents(port, next_one) and presents(grpc, next_one), what="the receiver presents its new certificate")
            write("four")
            wait_until(lambda: arrived() == ["one", "two", "three", "four"], what=f"delivery: {reasons(sender)}")
            for protocol in (port, grpc):
                assert answer_to_anybody(protocol, next_one) == b"", "who presents no certificate gets no answer"


@pytest.mark.skipif(bool(helm.missing), reason=helm.missing)
def test_one_key_of_the_chart_makes_its_roles_speak_mutual_tls(tmp_path: Path) -> None:
    ca, port, log = trustme.CA(), free_port(), tmp_path / "pods/ns_pod_uid/app/0.log"
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01T00:00:00.000000000Z stdout F in TLS\n")
    with Backend() as backend, sample_in_thread(ObjectStore(SystemClock())) as api:
        # What a pod's network and volumes would bring; the rest is as rendered.
        own: dict[str, Any] = {
            role: {"extensions": {"file_storage": {"directory": str(tmp_path / role)}, "ledger": {"state_directory": str(tmp_path / role)}}}
            for role in ("logs-collector", "logs-metadata")
        }
        own["logs-collector"] |= {
            "receivers": {"filelog": {"include": [f"{tmp_path}/pods/*/*/*.log"], "symlink_roots": [str(tmp_path)]}},
            "exporters": {"otlphttp": {"endpoint": f"http://127.0.0.1:{port}"}},
        }
        own["logs-metadata"] |= {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
            "processors": {"k8sattributes": {"auth_type": "none", "api_server": api}},
        }
        objects = helm.render(
            {
                "mutualTls": {"enabled": True},
                "backend": {"url": backend.url},
                "otellogs": {"config": {"merge": own["logs-collector"]}},
                "metadata": {"logs": {"config": {"merge": own["logs-metadata"]}}},
                "listeners": {"logsCollector": {"ledger": free_port()}, "logs": {"ledger": free_port()}},
            }
        )

        def role(name: str) -> Role:
            spec = helm.pod(helm.workloads(objects)[name])
            [container] = spec["containers"]
            maps = {each["metadata"]["name"]: each["data"]["lockgate.yaml"] for each in helm.of_kind(objects, "ConfigMap")}
            [directory] = [each["value"] for each in container["env"] if each["name"] == "LOCKGATE_MUTUAL_TLS"]
            [volume] = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == directory]
            assert {"name": volume, "secret": {"secretName": "lockgate-mutual-tls"}} in spec["volumes"]
            files = pair(tmp_path / f"{name}-tls", ca)
            return Role(
                tmp_path / f"{name}-role", maps[f"r-lockgate-{name}"], {"LOCKGATE_MUTUAL_TLS": str(files), "LOCKGATE_NODE": "node-1"}
            )

        with role("logs-metadata"), role("logs-collector") as collector:
            wait_until(lambda: backend.bodies() == ["in TLS"], what=f"delivery: {reasons(collector)}")
            assert answer_to_anybody(port, ca) == b"", "who presents no certificate gets no answer"
            with pytest.raises(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/logs", b"", timeout=10):
                pass


def answer_to_anybody(port: int, ca: trustme.CA) -> bytes:
    """What a client without a certificate gets from a server with one of this authority. Raises ssl.SSLCertVerificationError."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(client)
    with socket.create_connection(("127.0.0.1", port), 10) as plain, client.wrap_socket(plain, server_hostname="localhost") as secured:
        with suppress(ssl.SSLError, ConnectionError):  # in TLS 1.3 a server's refusal comes after the client's handshake
            secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return secured.recv(100)
        return b""


def presents(port: int, ca: trustme.CA) -> bool:
    try:
        answer_to_anybody(port, ca)
    except ssl.SSLCertVerificationError:
        return False
    return True


@pytest.mark.parametrize(
    ("tls", "trust", "said"),
    [
        pytest.param("{ca_file: FILE}", "{}", "cannot use TLS ca_file FILE: no PEM certificate is in it", id="ca_file"),
        pytest.param(
            "{}",
            "{ca_files: [FILE]}",
            "cannot use TLS service.trust.ca_files.0 FILE: no PEM certificate is in it",
            id="trust",
        ),
        pytest.param("{cert_file: FILE, key_file: FILE}", "{}", "cannot use TLS certificate FILE with key FILE", id="own"),
    ],
)
def test_a_file_that_is_no_certificate_ends_the_start_with_component_key_and_path(tmp_path: Path, tls: str, trust: str, said: str) -> None:
    file, config = tmp_path / "ca.pem", tmp_path / "config.yaml"
    file.write_text("no certificate")
    text = f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{free_port()}"}}}}}}}}
exporters: {{otlphttp: {{endpoint: "https://127.0.0.1:9", tls: {tls}}}}}
service: {{trust: {trust}, pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}}}
"""
    config.write_text(text.replace("FILE", str(file)))
    ended = lockgate("run", "--config", str(config))
    assert ended.returncode == 1 and f"ended: exporters/otlphttp; {said.replace('FILE', str(file))}" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
