"""Which CA files are found where, what reaches which component, and what a component's own settings keep."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError
from support import VirtualClock, context
from yarl import URL

from lockgate.components.exporters.otlp import OtlpExporterSettings
from lockgate.components.exporters.otlphttp import OtlpHttpExporterSettings
from lockgate.components.receivers.otlp.settings import OtlpReceiverSettings
from lockgate.kube.access import KubernetesClientSettings
from lockgate.net import trust
from lockgate.net.mutual_tls import secured
from lockgate.net.tls import TlsClientSettings, TlsError, TlsServerSettings
from lockgate.net.trust import MutualTlsSettings, TrustSettings, under
from lockgate.pipeline.needs import Need, Read


def pem(organization: str = "One") -> bytes:
    return trustme.CA(organization_name=organization).cert_pem.bytes()


def trusted(tls: TlsClientSettings) -> set[str]:
    """The organizations that this client trusts."""
    authorities: Any = tls.follow(context()).context().get_ca_certs()
    return {dict(part[0] for part in ca["subject"])["organizationName"] for ca in authorities}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system in this directory: certs (with a bundle, if a test writes one), local."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "certs").mkdir()
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(trust, "_BUNDLES", (str(tmp_path / "certs/ca-certificates.crt"),))
    monkeypatch.setattr(trust, "_DIRECTORIES", (str(tmp_path / "certs"),))
    monkeypatch.setattr(trust, "_LOCAL", str(tmp_path / "local"))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: type("Paths", (), {"openssl_cafile": "/none"}))
    return tmp_path


def test_the_bundle_what_stands_beside_it_and_local_certificates_are_trusted(system: Path) -> None:
    (system / "certs/ca-certificates.crt").write_bytes(pem("Bundle"))
    (system / "certs/mounted.pem").write_bytes(pem("Mounted"))
    (system / "certs/0a1b2c3d.0").symlink_to("mounted.pem")
    (system / "certs/Root.pem").symlink_to("/usr/share/ca-certificates/mozilla/Root.crt")
    (system / "local/team").mkdir()
    (system / "local/team/cert.crt").write_bytes(pem("Local"))
    (system / "local/notes.txt").write_bytes(pem("Notes"))
    assert trust.system_files() == [
        str(system / name) for name in ("certs/ca-certificates.crt", "certs/mounted.pem", "local/team/cert.crt")
    ]
    assert trusted(TlsClientSettings()) == {"Bundle", "Mounted", "Local"}
    assert {need.path for need in trust.system_needs()} == {str(system / name) for name in ("certs", "local", "local/team")}


def test_the_environment_takes_the_bundles_and_the_directories_place(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "certs/ca-certificates.crt").write_bytes(pem("Bundle"))
    (system / "local/cert.crt").write_bytes(pem("Local"))
    (system / "own").mkdir()
    (system / "own/ca").write_bytes(pem("Own"))
    (system / "file.pem").write_bytes(pem("File"))
    monkeypatch.setenv("SSL_CERT_FILE", str(system / "file.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(system / "own"))
    assert trusted(TlsClientSettings()) == {"File", "Own", "Local"}


def test_one_bad_certificate_takes_nothing_from_those_beside_it_and_is_said(system: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    (system / "certs/ca-certificates.crt").write_bytes(pem("First").rstrip() + broken + pem("Second"))
    (system / "local/der.crt").write_bytes(b"\x30\x82")
    assert trusted(TlsClientSettings()) == {"First", "Second"}
    assert "ca-certificates.crt is not used as it is" in caplog.text
    assert "2 certificates in it are" in caplog.text
    assert "der.crt is not used as it is: no PEM certificate is in it; 0 certificates" in caplog.text


async def test_a_certificate_that_is_added_later_is_trusted_without_restart(system: Path) -> None:
    clock = VirtualClock()
    followed = TlsClientSettings().follow(context(clock=clock))
    assert followed.context().get_ca_certs() == []
    (system / "local/new.crt").write_bytes(pem())
    await clock.advance(2)
    assert len(followed.context().get_ca_certs()) == 1


def test_the_services_files_are_trusted_where_a_component_has_none_of_its_own(system: Path) -> None:
    (system / "local/cert.crt").write_bytes(pem("Local"))
    for name in ("service", "own"):
        (system / f"{name}.pem").write_bytes(pem(name))
    service = TrustSettings(ca_files=(str(system / "service.pem"),))
    own = {"ca_file": str(system / "own.pem")}
    assert trusted(under(TlsClientSettings(), service)) == {"Local", "service"}
    assert trusted(under(TlsClientSettings(), service.model_copy(update={"include_system": False}))) == {"service"}
    assert trusted(under(TlsClientSettings.model_validate(own), service)) == {"own"}
    both = under(TlsClientSettings.model_validate({**own, "include_system_ca_certs_pool": True}), service)
    assert trusted(both) == {"own", "service", "Local"}


def test_it_reaches_clients_wherever_they_are_nested_and_leaves_what_was_given_alone(system: Path) -> None:
    service = TrustSettings(ca_files=("/ca/file.pem",))
    given = OtlpHttpExporterSettings(endpoint="https://host")
    assert Read("/ca", "service.trust.ca_files.0, followed as it changes") in list(under(given, service).needs())
    assert not any(isinstance(need, Read) and need.path == "/ca" for need in given.needs())
    assert under([{"a": given}], service)[0]["a"].tls.service is service
    plain = under(OtlpHttpExporterSettings(endpoint="http://host"), service)
    assert not any(isinstance(need, Read) for need in plain.needs())
    assert not list(plain.warnings())


def test_a_kubernetes_api_gets_the_authorities_and_neither_certificate_nor_proxy(system: Path) -> None:
    service = TrustSettings.model_validate(
        {
            "ca_files": ["/ca/file.pem"],
            "client_certificate": {"cert_file": "/id/a", "key_file": "/id/b"},
            "proxy": {"url": "http://proxy:3128"},
        }
    )
    access = under(KubernetesClientSettings(api_server="https://api.example.com"), service).access()
    needs: list[Need] = list(access.needs("test"))
    assert {need.path for need in needs if isinstance(need, Read)} >= {"/ca"}
    assert "/id" not in {need.path for need in needs if isinstance(need, Read)}
    assert access.proxy == ""
    assert hash(access) == hash(under(KubernetesClientSettings(api_server="https://api.example.com"), service).access())


async def test_the_client_certificate_is_presented_by_whom_has_no_own(system: Path) -> None:
    ca = trustme.CA()
    (system / "ca.pem").write_bytes(ca.cert_pem.bytes())
    for name in ("service", "own"):
        leaf = ca.issue_cert(f"{name}@example.com")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(system / f"{name}.pem"))
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(system / "server.pem"))
    own_file = str(system / "server.pem")
    server = TlsServerSettings(cert_file=own_file, key_file=own_file, client_ca_file=str(system / "ca.pem"))
    met: list[str] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer.get_extra_info("peercert")["subjectAltName"][0][1])
        writer.close()

    files = {"cert_file": str(system / "service.pem"), "key_file": str(system / "service.pem")}
    service = TrustSettings.model_validate({"ca_files": [str(system / "ca.pem")], "client_certificate": files})
    own = TlsClientSettings.model_validate(
        {"cert_file": str(system / "own.pem"), "key_file": str(system / "own.pem"), "min_version": "1.3", "ca_file": str(system / "ca.pem")}
    )
    async with await asyncio.start_server(note, "127.0.0.1", 0, ssl=server.follow(context()).server_context()) as listener:
        port = listener.sockets[0].getsockname()[1]
        for tls in (TlsClientSettings(), own):
            client = under(tls, service).follow(context()).context()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
            assert await reader.read() == b""
            writer.close()
    assert met == ["service@example.com", "own@example.com"]


def test_a_file_that_is_no_certificate_is_an_error_that_names_the_key(system: Path) -> None:
    (system / "bad.pem").write_text("no certificate")
    with pytest.raises(TlsError, match=r"service\.trust\.ca_files\.0 .*bad\.pem: no PEM certificate is in it"):
        under(TlsClientSettings(), TrustSettings(ca_files=(str(system / "bad.pem"),))).follow(context())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"include_system": False}, "nobody would be trusted"),
        ({"proxy": {"url": "ftp://proxy"}}, "proxy scheme ftp is not supported"),
        ({"mutual_tls": {"directory": "/tls"}}, "a directory and no components"),
        ({"client_certificate": {"cert_file": "/a"}}, "key_file"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrustSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("https://backend.example.com", True),
        ("https://10.1.2.3", True),
        ("https://[2001:db8::1]", True),
        ("http://logs-metadata:4318", False),
        ("http://logs-metadata.sumo.svc:4318", False),
        ("http://logs-metadata.sumo.svc.cluster.local:4318", False),
        ("https://localhost", False),
    ],
)
def test_the_services_proxy_is_for_what_is_outside_the_cluster(url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://environment:1")
    monkeypatch.setenv("NO_PROXY", "*")
    service = TrustSettings.model_validate({"proxy": {"url": "http://proxy:3128"}})
    assert service.proxy_for(URL(url)) == (URL("http://proxy:3128") if proxied else None)


def test_a_components_own_proxy_wins_and_without_the_services_the_environments_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://environment:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    service = TrustSettings.model_validate({"proxy": {"url": "http://proxy:3128"}})
    target = "https://backend.example.com"
    assert under(OtlpHttpExporterSettings(endpoint=target, proxy_url="http://own:1"), service).proxy(URL(target)) == URL("http://own:1")
    assert under(OtlpExporterSettings(endpoint=target), service).proxy == URL("http://proxy:3128")
    assert under(OtlpExporterSettings(endpoint=target), TrustSettings()).proxy == URL("http://environment:1")


MUTUAL = MutualTlsSettings(directory="/mtls", components={"x": True})


def test_mutual_tls_secures_every_listener_and_client_of_a_component() -> None:
    receiver = secured(OtlpReceiverSettings.model_validate({"protocols": {"http": None, "grpc": None}}), MUTUAL)
    assert isinstance(receiver, OtlpReceiverSettings)
    for server in (receiver.protocols.http, receiver.protocols.grpc):
        assert server is not None and server.tls is not None
        assert (server.tls.cert_file, server.tls.key_file, server.tls.client_ca_file) == ("/mtls/tls.crt", "/mtls/tls.key", "/mtls/ca.crt")
    exporter = secured(OtlpHttpExporterSettings(endpoint="http://a:4318", logs_endpoint="http://b:1/x"), MUTUAL)
    assert isinstance(exporter, OtlpHttpExporterSettings)
    assert (exporter.endpoint, exporter.logs_endpoint) == ("https://a:4318", "https://b:1/x")
    assert (exporter.tls.ca_file, exporter.tls.cert_file, exporter.tls.key_file) == ("/mtls/ca.crt", "/mtls/tls.crt", "/mtls/tls.key")
    grpc = secured(OtlpExporterSettings(endpoint="http://a:4317"), MUTUAL)
    assert isinstance(grpc, OtlpExporterSettings)
    assert grpc.secure


def test_mutual_tls_does_not_undo_a_components_own_tls() -> None:
    with pytest.raises(ValueError, match="has a tls of its own"):
        secured(OtlpExporterSettings.model_validate({"endpoint": "a:1", "tls": {"insecure": True}}), MUTUAL)
