"""Whom this machine and this service trust: the system's certificate authorities, and what `service.trust` says for every component.

A component's own `tls` wins over the service's. The service's reaches each client in its settings (`under`), so that needs, and with them
policies and the sandbox, follow from the settings alone; the alternative, an object that clients ask at run time, would hide it from them.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import PrivateAttr, field_validator, model_validator
from yarl import URL

from lockgate.kit.settings import Secret, Settings
from lockgate.net.proxy import parse_proxy, proxy_for
from lockgate.pipeline.needs import ComponentSettings, Need, Read, followed

# Where Linux distributions keep the bundle, then the directory (Go: crypto/x509 root_linux.go names the same places).
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_DIRECTORIES = ("/etc/ssl/certs", "/etc/pki/tls/certs")
_LOCAL = "/usr/local/share/ca-certificates"
"""Where Debian and Alpine take an administrator's own authorities from (update-ca-certificates(8): all *.crt below it)."""

T = TypeVar("T")


class ClientCertificateSettings(Settings):
    """The certificate that clients present to servers that ask for one."""

    cert_file: str
    """PEM file with the certificate, followed by its intermediates."""
    key_file: str
    """PEM file with its private key, not encrypted."""


class ProxySettings(Settings):
    """The proxy of every client."""

    url: Secret = Secret("")
    """`http://host:3128`, with `user:password@` before the host where it asks for them. Empty leaves it to HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY in the environment."""
    no_proxy: tuple[str, ...] = (".svc", ".cluster.local")
    """Hosts that are reached directly, as in NO_PROXY: names with the names below them, addresses, networks. Names without a dot are always
    reached directly: they are in the cluster."""

    @field_validator("url")
    @classmethod
    def _url_is_a_proxy(cls, value: Secret) -> Secret:
        if text := value.get_secret_value():
            parse_proxy(text)
        return value


class MutualTlsSettings(Settings):
    """TLS with certificates on both sides, between roles of one's own."""

    directory: str = ""
    """A directory with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager writes a Secret. It switches mutual TLS on; empty is off."""
    components: dict[str, bool] = {}
    """Whose connections it secures, such as `receivers/otlp: true` and `exporters/otlphttp: true`; `false` takes one out again. They may
    have no `tls` of their own; their `http://` becomes `https://`. The presets name what connects one role to the next."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.directory and not any(self.components.values()):
            raise ValueError("names a directory and no components; name those that connect your roles, such as exporters/otlphttp: true")
        return self


class TrustSettings(Settings):
    """What clients of every component trust and present, and what they go through, where they have no such setting of their own."""

    ca_files: tuple[str, ...] = ()
    """PEM files with authorities to trust as well: a company's own, or that of a proxy which inspects TLS."""
    include_system: bool = True
    """Trust the system's authorities; `false` leaves `ca_files` alone."""
    client_certificate: ClientCertificateSettings | None = None
    """Presented to every server that asks for one, but to no Kubernetes API, where it would be an identity."""
    proxy: ProxySettings = ProxySettings()
    """The proxy. The Kubernetes API is reached without it."""
    mutual_tls: MutualTlsSettings = MutualTlsSettings()
    """Mutual TLS between roles."""

    @model_validator(mode="after")
    def _trusts_somebody(self) -> Self:
        if not self.include_system and not self.ca_files:
            raise ValueError("include_system is false and ca_files is empty: nobody would be trusted; name a file")
        return self

    def files(self) -> list[tuple[str, str]]:
        """(key, path) of each CA file that everybody trusts, and that must be usable."""
        return [(f"service.trust.ca_files.{index}", path) for index, path in enumerate(self.ca_files)]

    def system_files(self) -> list[str]:
        """The system's CA files as they are now."""
        return system_files() if self.include_system else []

    def needs(self) -> Iterator[Need]:
        """What reading all these, now and as they change, takes."""
        for key, path in self.files():
            yield from followed(path, f"{key}, followed as it changes")
        if self.include_system:
            yield from system_needs()

    def proxy_for(self, url: URL) -> URL | None:
        """The proxy for this request; None for none. Raises ValueError for one in the environment that cannot be one."""
        if not (proxy := self.proxy.url.get_secret_value()):
            return proxy_for(url, os.environ)
        if "." not in (host := url.host or "") and ":" not in host:
            return None
        names = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), proxy)
        return proxy_for(url, {**names, "NO_PROXY": ",".join(self.proxy.no_proxy)})


class Trusting(ComponentSettings):
    """Settings for which the service's trust stands in where they say nothing themselves."""

    _service: TrustSettings = PrivateAttr(default_factory=TrustSettings)


def under(settings: T, service: TrustSettings) -> T:
    """These settings, or this collection of them, with the service's trust in every client among them. What was given stays as it is."""
    if isinstance(settings, ComponentSettings):
        changed = {name: new for name, value in settings.__dict__.items() if (new := under(value, service)) is not value}
        if not changed and not isinstance(settings, Trusting):
            return settings
        copy = settings.model_copy()
        copy.__dict__.update(changed)  # not by model_copy, which would count them as set by the user
        if isinstance(copy, Trusting):
            copy._service = service
        return copy
    items: Any = settings
    if isinstance(items, dict):
        fresh: Any = {key: under(item, service) for key, item in items.items()}
        return fresh if any(fresh[key] is not items[key] for key in items) else settings
    if type(items) in (list, tuple):
        fresh = type(items)(under(item, service) for item in items)
        return fresh if any(new is not old for new, old in zip(fresh, items, strict=True)) else settings
    return settings


def system_files() -> list[str]:
    """The system's CA files, found anew at each call.

    The distribution's bundle; the files in the directories of certificates that are not in it already (OpenSSL itself looks there by hash
    links alone, which a Secret mounted over the directory, or a file mounted into it, has not); and what an administrator put aside for
    `update-ca-certificates`, which needs a shell. SSL_CERT_FILE takes the bundle's place, SSL_CERT_DIR the directories', as in Go.
    """
    files, directories, local = _places()
    in_bundle = ("/usr/share/ca-certificates/", local) if files else (local,)
    for directory in directories:
        files += sorted(_listed(directory, in_bundle))
    # In a mounted Secret each file is there twice: as a link, and in the hidden directory that a rename replaces.
    files += sorted(str(path) for path in Path(local).rglob("*.crt") if path.is_file() and "/.." not in str(path))
    return list(dict.fromkeys(files))


def system_needs() -> Iterator[Read]:
    """What it takes to read the system's CA files, also those that are put there later."""
    for path in system_files():
        yield from followed(path, _WHY)
    _, directories, local = _places()
    for directory in (*directories, local):
        yield Read(str(Path(directory).absolute()), _WHY, optional=directory == local)


_WHY = "the system's certificate authorities"


def _places() -> tuple[list[str], list[str], str]:
    """The bundle, if there is one; directories of which the files are read; the directory below which every *.crt is."""
    named, directory = os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", "")
    bundles = [named] if named else [path for path in (*_BUNDLES, ssl.get_default_verify_paths().openssl_cafile) if Path(path).is_file()]
    directories = [path for path in directory.split(":") if path] or [path for path in _DIRECTORIES if Path(path).is_dir()]
    return bundles[:1], directories, _LOCAL


def _listed(directory: str, in_bundle: tuple[str, ...]) -> Iterator[str]:
    """The files in this directory, without the links that a distribution puts there for what is read elsewhere."""
    with suppress(OSError):  # not there, or not for us: those who need it are told what is trusted
        for path in Path(directory).iterdir():
            if path.is_symlink() and (_HASH.fullmatch(path.name) or str(path.readlink()).startswith(in_bundle)):
                continue
            if path.is_file():
                yield str(path)


_HASH = re.compile(r"[0-9a-f]{8}\.\d+")
"""OpenSSL's name for a certificate in a directory, made by c_rehash."""
