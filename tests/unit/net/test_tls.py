"""TLS over real loopback connections, with authorities made here."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from pydantic import ValidationError
from support import VirtualClock, context

from lockgate.net.tls import ReloadingContext, TlsClientSettings, TlsError, TlsServerSettings, _openssl_cipher
from lockgate.pipeline.needs import Read


class Files:
    """PEM files of one authority and one certificate in a directory, replaceable by those of another authority."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca_file, self.cert_file, self.key_file = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        self.ca = self.issue()

    def issue(self, name: str = "localhost") -> trustme.CA:
        ca = trustme.CA(organization_name="Test Authority")
        self.trust(ca)
        self.present(ca, name)
        return ca

    def trust(self, ca: trustme.CA) -> None:
        self._replace(self.ca_file, ca.cert_pem.bytes())

    def present(self, ca: trustme.CA, name: str = "localhost") -> None:
        leaf = ca.issue_cert(name)
        self._replace(self.cert_file, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self._replace(self.key_file, leaf.private_key_pem.bytes())

    def server(self, **more: object) -> TlsServerSettings:
        return TlsServerSettings.model_validate({"cert_file": self.cert_file, "key_file": self.key_file, **more})

    def client(self, **more: object) -> TlsClientSettings:
        return TlsClientSettings.model_validate({"ca_file": self.ca_file, **more})

    def _replace(self, path: str, content: bytes) -> None:
        Path(path + ".new").write_bytes(content)
        Path(path + ".new").replace(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(tls: ReloadingContext) -> AsyncIterator[int]:
    """A server that answers b"hello" and closes; gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
            writer.write(b"hello")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    # asyncio itself logs a refused handshake as an error of the loop; here that refusal is what is tested.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.server_context())
    async with server:
        yield server.sockets[0].getsockname()[1]


async def talk(port: int, tls: ReloadingContext) -> bytes:
    """What the server answers; raises what the handshake, or the refusal after it, raises."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.context(), server_hostname="localhost")
    try:
        writer.write(b"?")
        answer = await reader.read()
        if not answer:
            raise ConnectionResetError("closed without an answer")
        return answer
    finally:
        writer.transport.abort()


async def test_a_client_trusts_the_authority_in_ca_file_and_no_other(files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Files(tmp_path / "other")
    async with serving(files.server().follow(context())) as port:
        assert await talk(port, files.client().follow(context())) == b"hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk(port, stranger.client().follow(context()))


async def test_new_connections_use_a_server_certificate_that_was_replaced(files: Files) -> None:
    clock = VirtualClock()
    async with serving(files.server().follow(context(clock=clock))) as port:
        client = files.client().follow(context(clock=clock))
        assert await talk(port, client) == b"hello"
        files.issue()
        await clock.advance(2)
        assert await talk(port, client) == b"hello"


async def test_a_client_follows_its_ca_file(files: Files) -> None:
    clock = VirtualClock()
    server = files.server().follow(context())
    client = files.client().follow(context(clock=clock))
    files.trust(trustme.CA())
    await clock.advance(2)
    async with serving(server) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk(port, client)
        files.trust(files.ca)
        await clock.advance(2)
        assert await talk(port, client) == b"hello"


async def test_a_server_refuses_clients_without_a_certificate_of_its_authority(files: Files) -> None:
    async with serving(files.server(client_ca_file=files.ca_file).follow(context())) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await talk(port, files.client().follow(context()))
        known = files.client(cert_file=files.cert_file, key_file=files.key_file)
        assert await talk(port, known.follow(context())) == b"hello"


async def test_a_handshake_that_fails_is_counted_and_told_but_not_each_time(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    of = context()
    async with serving(files.server(client_ca_file=files.ca_file).follow(of)) as port:
        for _ in range(3):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await talk(port, files.client().follow(context()))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            while of.metrics.value("lockgate_tls_failed_handshakes") < 4:
                await asyncio.sleep(0.01)
        writer.transport.abort()
    said = [record.message for record in caplog.records if "handshake failed" in record.message]
    assert said == [
        "a client's TLS handshake failed: peer did not return a certificate",
        "a client's TLS handshake failed: http request",
    ]


async def test_a_server_follows_its_client_ca_file(files: Files) -> None:
    clock = VirtualClock()
    clients = trustme.CA()
    client_ca = files.directory / "clients.pem"
    client_ca.write_bytes(clients.cert_pem.bytes())
    leaf = clients.issue_cert("client@example.com")
    client = files.client(cert_pem=leaf.cert_chain_pems[0].bytes().decode(), key_pem=leaf.private_key_pem.bytes().decode()).follow(
        context()
    )
    async with serving(files.server(client_ca_file=str(client_ca)).follow(context(clock=clock))) as port:
        assert await talk(port, client) == b"hello"
        client_ca.write_bytes(trustme.CA().cert_pem.bytes())
        await clock.advance(2)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await talk(port, client)


async def test_a_broken_new_file_keeps_the_old_context_and_shows_in_status(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    of = context(clock=clock)
    async with serving(files.server().follow(of)) as port:
        client = files.client().follow(context())
        Path(files.cert_file).write_text("no certificate")
        await clock.advance(2)
        assert await talk(port, client) == b"hello"
        assert files.cert_file in of.status.blocked["tls"][0]
        assert "cannot use TLS certificate" in caplog.text
        files.present(files.ca)
        await clock.advance(2)
        assert await talk(port, client) == b"hello"
        assert not of.status.blocked


async def test_a_failed_verification_names_the_issuer_and_the_mend(files: Files) -> None:
    async with serving(files.server().follow(context())) as port:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await talk(port, TlsClientSettings().follow(context()))
        text = await TlsClientSettings(server_name_override="localhost").explain(caught.value, "127.0.0.1", port)
    assert text is not None
    assert "Test Authority" in text
    assert "ca_file" in text


async def test_an_error_that_is_no_verification_is_not_explained() -> None:
    assert await TlsClientSettings().explain(ConnectionResetError(), "127.0.0.1", 1) is None


async def test_server_name_override_is_for_the_caller_and_skip_verify_accepts_anyone(files: Files) -> None:
    async with serving(files.server().follow(context())) as port:
        anyone = TlsClientSettings(insecure_skip_verify=True)
        assert await talk(port, anyone.follow(context())) == b"hello"
        assert any("insecure_skip_verify" in warning for warning in anyone.warnings())


async def test_versions_that_do_not_meet_refuse_the_handshake(files: Files) -> None:
    async with serving(files.server(min_version="1.3").follow(context())) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await talk(port, files.client(max_version="1.2").follow(context()))


def test_a_missing_file_is_an_error_that_names_it(files: Files) -> None:
    with pytest.raises(TlsError, match=r"/none/ca\.pem: No such file"):
        TlsClientSettings(ca_file="/none/ca.pem").follow(context())


def test_a_key_of_another_certificate_is_named_as_such(files: Files) -> None:
    key = trustme.CA().issue_cert("x").private_key_pem.bytes()
    Path(files.key_file).write_bytes(key)
    with pytest.raises(TlsError, match="the key does not belong to the certificate"):
        files.server().follow(context())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        pytest.param({"cert_file": "a"}, "without its key", id="certificate-without-key"),
        pytest.param({"ca_file": "a", "ca_pem": "b"}, "keep one", id="two-authorities"),
        pytest.param({"min_version": "1.3", "max_version": "1.2"}, "older than", id="versions-crossed"),
        pytest.param({"cipher_suites": ["TLS_NO_SUCH"]}, "none that this OpenSSL offers", id="unknown-cipher"),
        pytest.param({"min_version": "1.4"}, "min_version", id="unknown-version"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TlsClientSettings.model_validate(settings)


def test_a_server_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs cert_file"):
        TlsServerSettings()


@pytest.mark.parametrize(
    ("iana", "openssl"),
    [
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("TLS_RSA_WITH_AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "ECDHE-RSA-AES128-SHA"),
    ],
)
def test_cipher_names_are_translated(iana: str, openssl: str) -> None:
    assert _openssl_cipher(iana) == openssl
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(openssl)


def test_needs_are_the_directories_of_the_files(files: Files) -> None:
    directories = {need.path for need in files.server(client_ca_file=files.ca_file).needs() if isinstance(need, Read)}
    assert directories == {str(files.directory)}
