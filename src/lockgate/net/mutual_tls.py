"""Mutual TLS between roles, switched on by one key: what `service.trust.mutual_tls` makes of a component's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockgate.net.tls import TlsClientSettings, TlsServerSettings
from lockgate.net.trust import MutualTlsSettings
from lockgate.pipeline.needs import ComponentSettings


def secured(settings: ComponentSettings, mutual: MutualTlsSettings) -> ComponentSettings | None:
    """These settings with mutual TLS in every listener and client among them, and `https://` for `http://`; None where there is none.

    Raises ValueError where a `tls` of their own says otherwise.
    """
    changed: dict[str, Any] = {}
    for name, value in settings.__dict__.items():
        if name == "tls":
            if value is not None and value.model_fields_set:
                raise ValueError("has a tls of its own; remove that, or take the component out of service.trust.mutual_tls.components")
            changed[name] = _server(mutual) if value is None else _client(mutual)
        elif isinstance(value, ComponentSettings) and (inner := secured(value, mutual)) is not None:
            changed[name] = inner
    if isinstance(changed.get("tls"), TlsClientSettings):
        for name, value in settings.__dict__.items():
            if name.endswith("endpoint") and isinstance(value, str) and value.startswith("http://"):
                changed[name] = value.replace("http://", "https://", 1)
    if not changed:
        return None
    copy = settings.model_copy()
    copy.__dict__.update(changed)
    return copy


def _files(mutual: MutualTlsSettings) -> dict[str, str]:
    directory = Path(mutual.directory)
    return {"cert_file": str(directory / "tls.crt"), "key_file": str(directory / "tls.key")}


def _server(mutual: MutualTlsSettings) -> TlsServerSettings:
    return TlsServerSettings(**_files(mutual), client_ca_file=str(Path(mutual.directory) / "ca.crt"))


def _client(mutual: MutualTlsSettings) -> TlsClientSettings:
    return TlsClientSettings(**_files(mutual), ca_file=str(Path(mutual.directory) / "ca.crt"))
