"""TLS of clients and servers, under the collector's `configtls` keys, with trust and certificates that follow their files.

The collector reads its files at start and, where `reload_interval` is set, some of them again. Here all of them are followed always: a
context is rebuilt when a file behind it has changed, and new connections use it. A new file that cannot be used keeps the old context in
use, is logged once and is shown in the component's status. Rotation of a Secret therefore needs no restart.
"""

import contextlib
import os
import re
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from logging import Logger
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from yarl import URL

from lockgate.kit.document import Path as KeyPath
from lockgate.kit.settings import Secret
from lockgate.kit.sometimes import Sometimes
from lockgate.kit.units import Duration
from lockgate.net.proxy import proxy_credentials
from lockgate.net.trust import Trusting, TrustSettings
from lockgate.pipeline.contract import Context
from lockgate.pipeline.needs import ComponentSettings, Need, Unusable, elsewhere, followed

Version = Literal["1.0", "1.1", "1.2", "1.3"]
_VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_CHECK_SECONDS = 1.0
"""Files are looked at no more often than this, however many connections are made: a stat is cheap, not free."""


class TlsError(OSError):
    """A certificate, key or CA cannot be used: which, where it was read from, why, and how to mend it."""


class _TlsSettings(ComponentSettings):
    ca_file: str = ""
    """PEM file with the certificates of the authorities to trust, instead of the system's and those of `service.trust`."""
    ca_pem: str = ""
    """The same, written here."""
    include_system_ca_certs_pool: bool = False
    """Trust the system's authorities, and those of `service.trust`, as well as those in `ca_file` or `ca_pem`. Without either, they are
    trusted anyway."""
    cert_file: str = ""
    """PEM file with the certificate to present, followed by its intermediates."""
    cert_pem: str = ""
    """The same, written here."""
    key_file: str = ""
    """PEM file with the certificate's private key, not encrypted."""
    key_pem: Secret = Secret("")
    """The same, written here."""
    min_version: Version = "1.2"
    """The oldest TLS version to speak."""
    max_version: Version | Literal[""] = ""
    """The newest TLS version to speak; empty for the newest there is."""
    cipher_suites: tuple[str, ...] = ()
    """Cipher suites for TLS 1.2 and older, by their IANA names (`TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`); those of TLS 1.3 are fixed.
    Empty for OpenSSL's choice."""
    reload_interval: Duration = 0.0
    """The files are looked at when a connection is made, at most once per this time (and at most once a second)."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for kind in ("ca", "cert", "key"):
            if getattr(self, f"{kind}_file") and self._pem(kind):
                raise ValueError(f"has both {kind}_file and {kind}_pem; keep one")
        if bool(self.cert_file or self.cert_pem) != bool(self.key_file or self._pem("key")):
            raise ValueError("has a certificate without its key, or a key without its certificate; give both cert_file and key_file")
        if self.max_version and _VERSIONS[self.max_version] < _VERSIONS[self.min_version]:
            raise ValueError(f"max_version {self.max_version} is older than min_version {self.min_version}")
        if self.cipher_suites:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(_openssl_ciphers(self.cipher_suites))
            except ssl.SSLError:
                raise ValueError("cipher_suites names none that this OpenSSL offers; see `openssl ciphers -stdname`") from None
        return self

    def _pem(self, kind: str) -> str:
        value = getattr(self, f"{kind}_pem")
        return str(value.get_secret_value()) if isinstance(value, Secret) else str(value)

    def _files(self) -> list[tuple[str, str]]:
        return [(key, path) for key in ("ca_file", "cert_file", "key_file") if (path := getattr(self, key))]

    def needs(self) -> Iterator[Need]:
        # The directory, not the file: a mounted Secret is replaced by a rename inside it.
        for key, path in self._files():
            yield from followed(path, f"TLS {key}, followed as it changes")

    def unusable(self) -> Iterator[Unusable]:
        if self.cert_file or self.cert_pem:
            with _as_file(self.cert_file, self.cert_pem) as certificate, _as_file(self.key_file, self._pem("key")) as key:
                names = ("cert_file" if self.cert_file else "cert_pem", "key_file" if self.key_file else "key_pem")
                yield from unusable_certificate(certificate, key, (names[0],), (names[1],))

    def _new(self, protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = _VERSIONS[self.min_version]
        context.maximum_version = _VERSIONS[self.max_version] if self.max_version else ssl.TLSVersion.MAXIMUM_SUPPORTED
        if self.cipher_suites:
            context.set_ciphers(_openssl_ciphers(self.cipher_suites))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if self.cert_file or self.cert_pem:
            with _as_file(self.cert_file, self.cert_pem) as certificate, _as_file(self.key_file, self._pem("key")) as key:
                _present(context, certificate, key, f"{self.cert_file or 'cert_pem'} with key {self.key_file or 'key_pem'}")
        return context


def _trust(context: ssl.SSLContext, key: str, path: str, pem: str = "") -> None:
    try:
        context.load_verify_locations(path or None, cadata=pem or None)
    except (OSError, ValueError) as error:
        raise TlsError(f"cannot use TLS {key} {path}: {_cause(error)}".replace(" :", ":")) from error


def unusable_authorities(path: str, where: KeyPath, pem: str = "") -> Iterator[Unusable]:
    """What start would say of these authorities, and where none of them is valid now; nothing where there are none."""
    if not path and not pem:
        return
    if path and (found := elsewhere(where, path)):
        yield found
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        _trust(context, str(where[-1]) if isinstance(where[-1], str) else ".".join(map(str, where)), path, pem)
    except TlsError as error:
        yield Unusable(where, str(error))
        return
    reasons = [_invalid(certificate) for certificate in context.get_ca_certs()]
    if reasons and all(reasons):
        yield Unusable(where, f"every certificate in {path or where[-1]} is of no use now: the first {reasons[0]}", False)


def unusable_certificate(certificate: str, key: str, where: KeyPath, where_key: KeyPath) -> Iterator[Unusable]:
    """What start would say of this certificate and its key, and whether the certificate is valid now."""
    absent = [found for path, place in ((certificate, where), (key, where_key)) if (found := elsewhere(place, path))]
    if absent:
        yield from absent
        return
    try:
        # There is no public way to look at a certificate without a connection.
        seen = ssl._ssl._test_decode_cert(certificate)  # type: ignore[attr-defined]
    except OSError:
        seen = None
    try:
        _present(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key, f"{certificate} with key {key}")
    except TlsError as error:
        yield Unusable(where_key if seen else where, str(error))
    if seen and (reason := _invalid(seen)):
        yield Unusable(where, f"the certificate {certificate} {reason}: peers refuse it", False)


def _invalid(certificate: Any) -> str:
    """Why this certificate, as `ssl` decodes it, is not valid at this moment; empty where it is."""
    now = time.time()
    if now > ssl.cert_time_to_seconds(certificate["notAfter"]):
        return f"expired on {certificate['notAfter']}"
    return f"is valid from {certificate['notBefore']} on" if now < ssl.cert_time_to_seconds(certificate["notBefore"]) else ""


class TlsClientSettings(_TlsSettings, Trusting):
    """TLS of a client: whom to trust, and what to present. What it leaves open, `service.trust` may say."""

    insecure: bool = False
    """For gRPC: speak without TLS. Over HTTP the endpoint's scheme decides and this changes nothing, as in the collector."""
    insecure_skip_verify: bool = False
    """Accept any certificate: the connection is encrypted, to whoever answers."""
    server_name_override: str = ""
    """The name to ask for and to expect in the server's certificate, where it is not the endpoint's host."""

    @property
    def service(self) -> TrustSettings:
        """What the service trusts, presents and goes through where these settings say nothing."""
        return self._service

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        for key, path in self._service_certificate():
            yield from followed(path, f"{key}, followed as it changes")
        if not self.insecure_skip_verify and not self.insecure and self._trusts_service:
            yield from self._service.needs()

    def unusable(self) -> Iterator[Unusable]:
        yield from super().unusable()
        if not self.insecure_skip_verify:
            yield from unusable_authorities(self.ca_file, ("ca_file" if self.ca_file else "ca_pem",), self.ca_pem)

    def warnings(self) -> Iterator[str]:
        if self.insecure_skip_verify:
            yield "insecure_skip_verify accepts any certificate, so whoever sits between can read and change what is sent; set ca_file"

    def follow(self, context: Context, alpn: Sequence[str] = ()) -> "ReloadingContext":
        """The client's TLS context for this component, followed as its files change. Raises TlsError."""
        return ReloadingContext(lambda: self._build(alpn, context.logger), self._watched, context, self.reload_interval)

    async def explain(self, error: BaseException, host: str, port: int, proxy: URL | None = None) -> str | None:
        """What a failed verification met, what was trusted, and how to mend it; None where the error is no failed verification.

        Connects to host:port once more, unverified, sends nothing, and reads who issued the certificate there: an issuer's name says at
        once that a proxy, or a private authority, stands in between.
        """
        failure = _verification_failure(error)
        if failure is None:
            return None
        where = f"{host}:{port}" + (f" behind the proxy {proxy.host}:{proxy.port}" if proxy else "")
        met = await _presented(host, port, self.server_name_override or host, proxy)
        issued = f" (subject {met[0]}, issued by {met[1]})" if met else ""
        if failure.verify_code in (62, 63, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, .._EMAIL_MISMATCH, .._IP_ADDRESS_MISMATCH
            mend = "set server_name_override to a name that the certificate has"
        elif failure.verify_code in (9, 10):  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
            mend = "renew the server's certificate, or set this machine's clock"
        else:
            own = [self.ca_file or "ca_pem"] if self.ca_file or self.ca_pem else []
            mend = f"trusted is what is in {_enumerated(own + self._service_files())}; set tls.ca_file to the certificate of that issuer"
            mend += ", or service.trust.ca_files for every component"
            mend += ": it is the proxy's own where the proxy inspects TLS" if proxy else ""
        return f"the certificate of {where} was not accepted: {failure.verify_message}{issued}; {mend}"

    @property
    def _trusts_service(self) -> bool:
        return self.include_system_ca_certs_pool or not (self.ca_file or self.ca_pem)

    def _service_files(self) -> list[str]:
        return [path for _, path in self._service.files()] + self._service.system_files() if self._trusts_service else []

    def _service_certificate(self) -> list[tuple[str, str]]:
        certificate = self._service.client_certificate
        if certificate is None or self.cert_file or self.cert_pem or self.insecure:
            return []
        where = "service.trust.client_certificate"
        return [(f"{where}.cert_file", certificate.cert_file), (f"{where}.key_file", certificate.key_file)]

    def _watched(self) -> list[str]:
        return [path for _, path in (*self._files(), *self._service_certificate())] + self._service_files()

    def _build(self, alpn: Sequence[str], logger: Logger) -> ssl.SSLContext:
        context = self._new(ssl.PROTOCOL_TLS_CLIENT, alpn)
        if certificate := self._service_certificate():
            (_, file), (_, key) = certificate
            _present(context, file, key, f"service.trust.client_certificate {file} with key {key}")
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if self.ca_file or self.ca_pem:
            _trust(context, "ca_file" if self.ca_file else "ca_pem", self.ca_file, self.ca_pem)
        if self._trusts_service:
            for key, path in self._service.files():
                _trust(context, key, path)
            for path in self._service.system_files():
                _trust_system(context, path, logger)
        return context


class TlsServerSettings(_TlsSettings):
    """TLS of a server: its certificate, and whose clients it accepts."""

    client_ca_file: str = ""
    """PEM file with the authorities whose clients are accepted; with it, a client without a certificate from them is refused (mTLS)."""
    client_ca_file_reload: bool = True
    """Follow `client_ca_file` as it changes. It is always followed; `false` gives a warning."""

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if not (self.cert_file or self.cert_pem):
            raise ValueError("a server needs cert_file and key_file (or cert_pem and key_pem)")
        return self

    def unusable(self) -> Iterator[Unusable]:
        yield from super().unusable()
        yield from unusable_authorities(self.client_ca_file, ("client_ca_file",))

    def warnings(self) -> Iterator[str]:
        if not self.client_ca_file_reload:
            yield "client_ca_file is followed as it changes all the same; remove client_ca_file_reload"
        if self.ca_file or self.ca_pem:
            yield "ca_file is a client's key and says nothing about a server's clients; client_ca_file does"

    def _files(self) -> list[tuple[str, str]]:
        return super()._files() + ([("client_ca_file", self.client_ca_file)] if self.client_ca_file else [])

    def follow(self, context: Context, alpn: Sequence[str] = ()) -> "ReloadingContext":
        """The server's TLS context for this component; hand `server_context()` to the listener. Raises TlsError."""
        return ReloadingContext(lambda: self._build(alpn), lambda: [path for _, path in self._files()], context, self.reload_interval)

    def _build(self, alpn: Sequence[str]) -> ssl.SSLContext:
        context = self._new(ssl.PROTOCOL_TLS_SERVER, alpn)
        if self.client_ca_file:
            _trust(context, "client_ca_file", self.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session is not verified again: it would outlive the removal of its authority from the file.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        return context


class ReloadingContext:
    """An `ssl.SSLContext` that is rebuilt when a file behind it has changed. Raises TlsError when the first one cannot be built."""

    def __init__(
        self, build: Callable[[], ssl.SSLContext], watched: Callable[[], Iterable[str]], component: Context, interval_seconds: float
    ) -> None:
        self._build, self._watched, self._component = build, watched, component
        self._interval = max(interval_seconds, _CHECK_SECONDS)
        self._seen = self._signature()
        self._context = build()
        self._checked = component.clock.monotonic()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Costs some stats, at most once per interval."""
        now = self._component.clock.monotonic()
        if now - self._checked < self._interval:
            return self._context
        self._checked = now
        if (signature := self._signature()) == self._seen:
            return self._context
        self._seen = signature
        try:
            self._context = self._build()
        except TlsError as error:
            # Looked at again when the files change again: half of a rotation (the certificate without its key) mends itself so.
            self._component.logger.error("%s; new connections go on with the files as they were before", error)
            self._component.status.block(f"{error}; using the files as they were before", "tls")
        else:
            self._component.logger.info("TLS files have changed; new connections use them")
            self._component.status.clear("tls")
        return self._context

    def server_context(self) -> ssl.SSLContext:
        """A context for a listener, whose every handshake is done with what `context()` gives at that moment."""
        listener = self._build()
        # Called for every ClientHello, with a server name or without; certificate and trust are taken from the context set here.
        listener.sni_callback = self._switch
        listener.sslobject_class = self._telling()
        return listener

    def _telling(self) -> type[ssl.SSLObject]:
        """A connection's TLS that counts and tells why a handshake failed: asyncio closes such a connection without a word."""
        component, sometimes = self._component, Sometimes(self._component.clock)
        failures = component.metrics.counter(
            "lockgate_tls_failed_handshakes", "connections that ended in their TLS handshake", component=component.id
        )

        class Telling(ssl.SSLObject):
            def do_handshake(self) -> None:
                try:
                    super().do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise
                except ssl.SSLError as error:
                    failures.add()
                    reason = getattr(error, "verify_message", "") or (error.reason or str(error)).lower().replace("_", " ")
                    if (kept_back := sometimes.now(reason)) is not None:
                        more = f" ({kept_back} more like this were not logged)" if kept_back else ""
                        component.logger.warning("a client's TLS handshake failed: %s%s", reason, more)
                    raise

        return Telling

    def _switch(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _listener: ssl.SSLContext) -> None:
        connection.context = self.context()

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        return tuple(_stat(path) for path in self._watched())


def _verification_failure(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        # aiohttp's own error is a SSLCertVerificationError as well, but an empty one: the real one is inside.
        inner = getattr(error, "certificate_error", None) or error.__cause__ or error.__context__
        if isinstance(error, ssl.SSLCertVerificationError) and hasattr(error, "verify_code"):
            return error
        error = inner if isinstance(inner, BaseException) else None
    return None


async def _presented(host: str, port: int, server_name: str, proxy: URL | None) -> tuple[str, str] | None:
    """(subject, issuer) of the certificate there; through a plain HTTP proxy's tunnel where there is one."""
    import asyncio

    if proxy is not None and proxy.scheme == "https":
        return None  # whose certificate may be the very one that is not trusted, and whose password is not for strangers
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    writer = None
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(*((proxy.host, proxy.port) if proxy else (host, port)))
            if proxy is not None:
                target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                head = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(f"{k}: {v}" for k, v in proxy_credentials(proxy).items())]
                writer.write("\r\n".join([*head, "", ""]).encode())
                if (await reader.readuntil(b"\r\n\r\n")).split()[1:2] != [b"200"]:
                    return None
            await writer.start_tls(context, server_hostname=server_name)
        # Public as SSLObject.get_unverified_chain from Python 3.13 on; there in its C part since 3.10.
        connection = writer.get_extra_info("ssl_object")
        chain = getattr(connection, "_sslobj", connection).get_unverified_chain()
        information = chain[0].get_info()
        return _name(information.get("subject", ())), _name(information.get("issuer", ()))
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, AttributeError, LookupError, TypeError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


def _name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    text = ", ".join(f"{short.get(key, key)}={value}" for part in parts for key, value in part)
    return repr(text or "nobody")


def _enumerated(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 5} more files" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more if paths else "no file at all"


def _trust_system(context: ssl.SSLContext, path: str, logger: Logger) -> None:
    """Adds what is usable in this file: one bad file of the system's (a README, a dangling link) takes nothing from the others.

    Nor does one bad certificate from those beside it. OpenSSL alone would then take none of the file: a bundle to which an init container
    has appended a certificate without a line's end before it would leave nobody trusted.
    """
    try:
        context.load_verify_locations(path)
        return
    except OSError as error:  # ssl.SSLError is one
        reason = error
    usable = 0
    with contextlib.suppress(OSError):
        for block in _CERTIFICATE.findall(Path(path).read_bytes()):
            with contextlib.suppress(ssl.SSLError, ValueError):
                context.load_verify_locations(cadata=block.decode("ascii"))
                usable += 1
    if path.endswith((".crt", ".pem")) or usable:
        logger.warning("CA file %s is not used as it is: %s; %d certificates in it are", path, _cause(reason), usable)


_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


def _present(context: ssl.SSLContext, certificate: str, key: str, where: str) -> None:
    try:
        context.load_cert_chain(certificate, key, _refuse_password)
    except (OSError, ValueError) as error:
        raise TlsError(f"cannot use TLS certificate {where}: {_cause(error)}") from error


def _stat(path: str) -> tuple[str, int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return path, 0, 0, 0
    return path, found.st_ino, found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def _as_file(path: str, content: str) -> Iterator[str]:
    """A path that OpenSSL can read this from: it takes no certificate or key from memory."""
    if path:
        yield path
    elif hasattr(os, "memfd_create"):
        # No disk: the root file system may be read-only, and a key has no business on it.
        descriptor = os.memfd_create("tls")
        try:
            with open(descriptor, "w", closefd=False) as file:
                file.write(content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile("w") as named:
            named.write(content)
            named.flush()
            yield named.name


def _refuse_password(*_: Any) -> str:
    raise ValueError("the private key is encrypted; give one that is not")


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reasons = {
            "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
            "NO_CERTIFICATE_OR_CRL_FOUND": "no PEM certificate is in it",
            "NO_START_LINE": "no PEM certificate is in it",
        }
        return reasons.get(error.reason or "", str(error))
    if isinstance(error, OSError):
        # ssl gives an OSError without a file name; strerror alone is what a reader needs.
        return error.strerror or str(error)
    return str(error)


def _openssl_ciphers(names: Sequence[str]) -> str:
    """IANA names (`TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`) as OpenSSL's (`ECDHE-RSA-AES128-GCM-SHA256`)."""
    return ":".join(map(_openssl_cipher, names))


def _openssl_cipher(name: str) -> str:
    if not name.startswith("TLS_") or "_WITH_" not in name:
        return name
    exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
    prefix = "" if exchange == "RSA" else exchange.replace("_", "-") + "-"
    cipher = (
        cipher.replace("AES_128", "AES128")
        .replace("AES_256", "AES256")
        .replace("_CBC", "")
        .removesuffix("_SHA256" if "POLY1305" in cipher else "\0")
    )
    return prefix + cipher.replace("_", "-")
