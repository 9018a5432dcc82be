"""Delivery through a real nginx that ends TLS in front of the backend, as in most clusters: over HTTP, to Sumo Logic, and over gRPC."""

import base64
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.backend import Backend, GrpcBackend, bodies_of
from support.nginx import Nginx, needs_nginx
from support.process import Role, free_port, lockgate, wait_until
from support.proxy import Proxy

pytestmark = needs_nginx

EXPORTERS = ("otlphttp", "sumologic", "otlp")
CONFIG = """
receivers: {{filelog: {{include: ["{directory}/app.log"], start_at: beginning, storage: file_storage}}}}
exporters:
  otlphttp: &sending
    endpoint: "https://{host}:{port}"
    tls: {{ca_file: "{directory}/trust/ca.pem"}}
    retry_on_failure: {{initial_interval: 100ms, max_interval: 200ms}}
  sumologic: *sending
  otlp: *sending
extensions: {{health_check: {{}}, file_storage: {{directory: "{directory}/state", create_directory: true}}}}
service:
  extensions: [health_check, file_storage]
  shutdown_timeout: 2s
  pipelines: {{logs: {{receivers: [filelog], exporters: [otlphttp, sumologic, otlp]}}}}
"""


class Site:
    """A role with three exporters, its log file, nginx, and the two backends behind it, which can go and come."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports = free_port(), free_port()
        self._requests: list[tuple[str, dict[str, str], Any]] = []
        self._messages: list[Any] = []
        self._backends = ExitStack()
        self.nginx = Nginx(directory / "nginx", http=self._ports[0], grpc=self._ports[1])
        self.trust(self.nginx.ca_pem)
        (directory / "app.log").touch()

    def start_backends(self) -> None:
        http = self._backends.enter_context(Backend(self._ports[0]))
        grpc = self._backends.enter_context(GrpcBackend(self._ports[1]))
        http.requests, grpc.messages = self._requests, self._messages

    def stop_backends(self) -> None:
        self._backends.close()

    def trust(self, *authorities: bytes) -> None:
        """Replaces the CA file as the kubelet replaces a Secret's: by a rename."""
        (self.directory / "trust").mkdir(exist_ok=True)
        (self.directory / "trust" / "new").write_bytes(b"".join(authorities))
        (self.directory / "trust" / "new").rename(self.directory / "trust" / "ca.pem")

    def write(self, *lines: str) -> None:
        with (self.directory / "app.log").open("a") as log:
            log.write("".join(f"{line}\n" for line in lines))

    def role(self, host: str = "127.0.0.1", environment: dict[str, str] | None = None) -> Role:
        text = CONFIG.format(directory=self.directory, host=host, port=self.nginx.port)
        return Role(self.directory / "role", text, environment, expect_ready=False)

    def arrived(self) -> dict[str, list[str]]:
        """What each exporter has delivered, sorted."""
        found: dict[str, list[str]] = {name: [] for name in EXPORTERS}
        for _, headers, message in list(self._requests):
            found["sumologic" if "x-sumo-client" in headers else "otlphttp"] += bodies_of(message)
        for message in list(self._messages):
            found["otlp"] += bodies_of(message)
        return {name: sorted(bodies) for name, bodies in found.items()}

    def has(self, *lines: str) -> bool:
        """Whether exactly these have arrived from each exporter, each once."""
        return self.arrived() == dict.fromkeys(EXPORTERS, sorted(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    it = Site(tmp_path)
    with it.nginx:
        it.start_backends()
        yield it
        it.stop_backends()


def reasons(role: Role) -> dict[str, str]:
    """Why each exporter is blocked, by its name."""
    blocked: list[dict[str, Any]] = role.get("/status")[1]["blocked"]
    return {entry["component"].removeprefix("exporters/"): entry["reason"] for entry in blocked}


def test_a_wrong_authority_is_named_and_replacing_its_file_delivers_everything(site: Site) -> None:
    site.trust(trustme.CA(organization_name="Somebody else").cert_pem.bytes())
    site.write("one", "two")
    with site.role() as role:
        wait_until(lambda: reasons(role).keys() == set(EXPORTERS), what="all are blocked")
        for reason in reasons(role).values():
            assert f"the certificate of 127.0.0.1:{site.nginx.port} was not accepted" in reason
            assert "issued by 'O=Lockgate's tests" in reason.replace('"', "'")
            assert "set tls.ca_file to the certificate of that issuer" in reason
        site.write("three")
        assert site.has()
        site.trust(site.nginx.ca_pem)
        wait_until(lambda: site.has("one", "two", "three"), what=f"delivery: {site.arrived()}")
        wait_until(lambda: not reasons(role), what="nothing is blocked")


def test_a_certificate_that_nginx_renews_is_taken_from_a_trusted_authority_alone(site: Site) -> None:
    renewed = trustme.CA(organization_name="Next year's")
    with site.role() as role:
        site.write("old")
        wait_until(lambda: site.has("old"))
        former = site.nginx.ca_pem
        site.nginx.present(renewed)
        site.nginx.reload()
        site.write("new")
        wait_until(lambda: reasons(role).keys() == set(EXPORTERS), what="none trusts it yet")
        assert all("Next year's" in reason for reason in reasons(role).values())
        site.trust(former, site.nginx.ca_pem)
        wait_until(lambda: site.has("old", "new"))
        assert "send_failed" not in "".join(name for name, value in role.metrics().items() if value)


def test_nothing_is_lost_while_nginx_answers_for_a_backend_that_is_gone(site: Site) -> None:
    written: list[str] = []
    with site.role() as role:
        for status in (502, 503, 429):
            site.stop_backends()
            answer = f"error_page 502 = @down; location @down {{ add_header Retry-After 1 always; return {status}; }}"
            site.nginx.reload("" if status == 502 else answer)
            written += [f"{status} a", f"{status} b"]
            site.write(*written[-2:])
            wait_until(lambda: reasons(role).keys() == set(EXPORTERS), what=f"{status} blocks all")
            said = reasons(role)
            assert f"answered {status}" in said["otlphttp"] and f"answered {status}" in said["sumologic"], said
            assert f"HTTP status {status}" in said["otlp"], said
            site.start_backends()
            wait_until(lambda: site.has(*written), what=f"delivery after {status}: {site.arrived()}")  # noqa: B023
        wait_until(lambda: not reasons(role), what="nothing is blocked")


def test_a_body_that_nginx_refuses_is_counted_with_the_reason_and_holds_up_nothing(site: Site) -> None:
    site.nginx.reload("client_max_body_size 64k;")
    with site.role() as role:
        site.write(secrets.token_hex(450_000), secrets.token_hex(450_000))
        wait_until(lambda: role.metrics().get("otelcol_exporter_send_failed_log_records") == 2 * len(EXPORTERS), what="refused")
        site.write("small")
        wait_until(lambda: site.has("small"), what="the next one")
        log = role.log.read_text()
    for name in EXPORTERS:
        assert re.search(rf"exporters.{name}\b.*2 log_records were refused for good.*413", log), (name, log)


def test_the_environments_proxy_is_the_way_out_and_its_password_a_secret(site: Site) -> None:
    with Proxy("Basic " + base64.b64encode(b"user:s3cret").decode()) as proxy:
        environment = {"HTTPS_PROXY": f"http://user:s3cret@127.0.0.1:{proxy.port}"}
        site.trust(trustme.CA().cert_pem.bytes())
        with site.role("backend.invalid", environment) as role:
            site.write("through")
            wait_until(lambda: reasons(role).keys() == set(EXPORTERS), what="none trusts it")
            assert all(f"behind the proxy 127.0.0.1:{proxy.port} was not accepted" in reason for reason in reasons(role).values())
            site.trust(site.nginx.ca_pem)
            wait_until(lambda: site.has("through"), what=f"delivery through {proxy.asked}")
            assert set(proxy.asked) == {f"CONNECT backend.invalid:{site.nginx.port} HTTP/1.1"}
            needs = lockgate("needs", *role.configs, environment=environment).stdout
        assert f"127.0.0.1:{proxy.port}/tcp" in needs
        assert "DNS" not in needs
        assert "s3cret" not in role.log.read_text() + needs

        asked = len(proxy.asked)
        with site.role("backend.invalid", environment | {"NO_PROXY": ".svc,.invalid"}) as role:
            site.write("direct")
            wait_until(lambda: reasons(role).keys() == set(EXPORTERS), what="all look for the name themselves")
            assert all("does not resolve" in reason for reason in reasons(role).values())
        assert len(proxy.asked) == asked
