"""Where the Kubernetes API is and how to be let in: the service account of a pod, an explicitly named context, or an explicit address.

No ambient configuration: `KUBECONFIG` is never read, and a kubeconfig file's current-context is never followed. A shell that happens to
point at production must not decide which cluster a collector talks to.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import model_validator

from lockgate.kit.settings import Secret
from lockgate.net.tls import TlsClientSettings, unusable_authorities
from lockgate.net.trust import Trusting, TrustSettings, under
from lockgate.pipeline.needs import Connect, Need, Read, Unusable, followed

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet puts a pod's token, CA and namespace (client-go, rest.InClusterConfig)."""


class AccessError(OSError):
    """There is no way to the API server from here; says why and what would help."""


@dataclass(frozen=True, slots=True)
class Access:
    """An API server's address and credentials. Hashable, so that components with equal access share one client and its caches.

    Files are read again when they change: kubelets rotate a service account's token about hourly, and its CA now and then.
    """

    url: str
    """Scheme, host and port, without a slash at the end."""
    token_file: str = ""
    token: str = field(default="", repr=False)
    tls: TlsClientSettings = field(default_factory=TlsClientSettings)
    proxy: str = ""
    """Instead of the environment's."""

    def bearer(self) -> str:
        """The token as it is now, "" where there is none. Raises AccessError."""
        if not self.token_file:
            return self.token
        try:
            return Path(self.token_file).read_text().strip()
        except OSError as error:
            raise AccessError(
                f"cannot read the service account's token {self.token_file}: {error.strerror}; "
                "set automountServiceAccountToken: true, or auth_type: none where the API server asks for no token"
            ) from error

    def needs(self, reason: str) -> Iterator[Need]:
        """What asking this server opens and reads."""
        parts = urlsplit(self.url)
        yield Connect(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), reason)
        if self.token_file:
            yield from followed(self.token_file, "the token for the Kubernetes API")
        if parts.scheme == "https":
            yield from self.tls.needs()


class KubernetesClientSettings(Trusting):
    """How a component reaches the Kubernetes API."""

    auth_type: Literal["none", "serviceAccount", "kubeConfig"] = "serviceAccount"
    """`serviceAccount` uses the pod's own token and CA; `kubeConfig` the context named here, never a current one; `none` sends no
    credentials (the server's certificate is checked all the same)."""
    context: str = ""
    """With `auth_type: kubeConfig`, the context to use; there is no default."""
    kubeconfig: str = "~/.kube/config"
    """With `auth_type: kubeConfig`, the file that holds the context. The environment variable KUBECONFIG is not read."""
    api_server: str = ""
    """The API server's URL. By default that of the cluster this pod runs in (KUBERNETES_SERVICE_HOST and _PORT)."""
    token_file: str = f"{SERVICE_ACCOUNT}/token"
    """With `auth_type: serviceAccount`, the file that holds the bearer token; read again for each request, because it rotates."""
    ca_file: str = ""
    """PEM file of the CAs that may sign the API server's certificate. By default the service account's `ca.crt`, or the system's CAs and
    those of `service.trust` where that does not exist."""

    @model_validator(mode="after")
    def _complete(self) -> KubernetesClientSettings:
        if self.auth_type == "kubeConfig" and not self.context:
            raise ValueError("auth_type kubeConfig needs context: name it; the current context is never used")
        if self.auth_type != "kubeConfig" and self.context:
            raise ValueError("context is only used with auth_type: kubeConfig; set that, or remove context")
        if self.api_server and urlsplit(self.api_server).scheme not in ("http", "https"):
            raise ValueError("api_server must be a URL such as https://10.0.0.1:6443")
        return self

    def access(self, environment: Mapping[str, str] | None = None) -> Access:
        """The access that these settings describe, here and now. Raises AccessError."""
        if self.auth_type == "kubeConfig":
            return from_kubeconfig(Path(self.kubeconfig).expanduser(), self.context)
        token_file = self.token_file if self.auth_type == "serviceAccount" else ""
        url = self.api_server.rstrip("/") or in_cluster_url(os.environ if environment is None else environment)
        own_ca = f"{SERVICE_ACCOUNT}/ca.crt"
        tls = TlsClientSettings(ca_file=self.ca_file or (own_ca if Path(own_ca).exists() else ""))
        # Of the service's trust its authorities alone: its certificate would be an identity here, and its proxy leads out of the cluster.
        authorities = TrustSettings(ca_files=self._service.ca_files, include_system=self._service.include_system)
        return Access(url, token_file, tls=under(tls, authorities))

    def api_needs(self, reason: str) -> Iterator[Need]:
        """What reaching the API opens and reads, whatever is then asked of it."""
        if self.auth_type == "kubeConfig":
            yield Read(str(Path(self.kubeconfig).expanduser().resolve()), "the kubeconfig")
        try:
            yield from self.access().needs(reason)
        except AccessError:
            # Outside a cluster the address is not known yet; inside, every pod finds it at this name.
            yield Connect("kubernetes.default.svc", 443, reason)
            yield Read(SERVICE_ACCOUNT, "token and CA for the Kubernetes API")

    def unusable(self) -> Iterator[Unusable]:
        if self.auth_type != "kubeConfig" and not self.api_server.startswith("http:"):
            yield from unusable_authorities(self.ca_file, ("ca_file",))

    def needs(self) -> Iterator[Need]:
        """None by itself: whoever holds these settings knows whether the API is used at all, and asks `api_needs`."""
        yield from ()


def in_cluster_url(environment: Mapping[str, str]) -> str:
    """The API server of the cluster that this pod runs in. Raises AccessError where there is none."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise AccessError(
            "not in a Kubernetes pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; set api_server, or auth_type: "
            "kubeConfig with a context"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def from_kubeconfig(path: Path, context: str) -> Access:
    """The access that this file's context describes. Raises AccessError for what is missing, and for what Lockgate will not do."""
    try:
        text = path.read_text()
    except OSError as error:
        raise AccessError(f"cannot read the kubeconfig {path}: {error.strerror}") from error
    try:
        content = yaml.safe_load(text) or {}
        entry = _named(content, "contexts", "context", context, path)
        cluster = _named(content, "clusters", "cluster", entry["cluster"], path)
        user = _named(content, "users", "user", entry["user"], path)
        url = str(cluster["server"]).rstrip("/")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise AccessError(f"the kubeconfig {path} cannot be used for context {context}: {error}") from error
    if refused := [key for key in ("exec", "auth-provider", "username") if key in user]:
        raise AccessError(
            f"the kubeconfig {path} uses {', '.join(refused)} for context {context}, which Lockgate does not; "
            "use a token or a client certificate"
        )

    def file(holder: Mapping[str, Any], key: str) -> str:
        return str(path.parent / holder[key]) if holder.get(key) else ""

    def data(holder: Mapping[str, Any], key: str) -> str:
        return base64.b64decode(holder.get(key, "")).decode()

    try:
        tls = TlsClientSettings(
            ca_file=file(cluster, "certificate-authority"),
            ca_pem=data(cluster, "certificate-authority-data"),
            cert_file=file(user, "client-certificate"),
            cert_pem=data(user, "client-certificate-data"),
            key_file=file(user, "client-key"),
            key_pem=Secret(data(user, "client-key-data")),
            insecure_skip_verify=bool(cluster.get("insecure-skip-tls-verify")),
            server_name_override=str(cluster.get("tls-server-name", "")),
        )
    except ValueError as error:
        raise AccessError(f"the kubeconfig {path} cannot be used for context {context}: {error}") from error
    return Access(url, file(user, "tokenFile"), str(user.get("token", "")), tls, str(cluster.get("proxy-url", "")))


def _named(content: Mapping[str, Any], section: str, key: str, name: str, path: Path) -> dict[str, Any]:
    entries = {entry["name"]: entry.get(key) or {} for entry in content.get(section) or []}
    if name not in entries:
        raise AccessError(f"the kubeconfig {path} has no {key} {name!r}; known: {', '.join(sorted(entries)) or 'none'}")
    return dict(entries[name])
