"""Settings of what answers on loopback to whoever can read its token: loopback is shared by all users of a machine, its answers are not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from lockgate.net.access import default_state_directory
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Write


class LoopbackSettings(ComponentSettings):
    """Where it answers, and where it leaves its token."""

    PURPOSE: ClassVar[str] = "questions"

    endpoint: str
    """host:port on loopback; port 0 takes a free one (clients find it through the state directory)."""
    state_directory: str = ""
    """Where the address and the token are left for Lockgate's own commands; empty is $LOCKGATE_STATE, or .lockgate in the working
    directory."""

    @field_validator("endpoint")
    @classmethod
    def _is_loopback(cls, endpoint: str) -> str:
        host, _, port = endpoint.rpartition(":")
        name = host.strip("[]")
        try:
            loopback = name == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            loopback = False
        if not (loopback and port.isdigit() and int(port) < 65536):
            raise ValueError(f"{endpoint} is no host:port on loopback; {cls.PURPOSE} are not encrypted: use 127.0.0.1:PORT")
        return endpoint

    @property
    def directory(self) -> Path:
        """The state directory."""
        return Path(self.state_directory) if self.state_directory else default_state_directory()

    def needs(self) -> Iterator[Need]:
        host, _, port = self.endpoint.rpartition(":")
        yield Listen(host.strip("[]"), int(port), self.PURPOSE)
        yield Write(str(self.directory), f"address and token of the {self.PURPOSE}", 0o700)
