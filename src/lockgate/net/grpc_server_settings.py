"""What a user writes about a gRPC listener. Apart from `grpc_server`, so that a configuration is checked without importing HTTP/2."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lockgate.kit.units import Duration, Size
from lockgate.net.address import split_endpoint
from lockgate.net.auth import AuthSettings
from lockgate.net.tls import TlsServerSettings
from lockgate.pipeline.needs import ComponentSettings, Listen, Need


class KeepaliveServerParameters(ComponentSettings):
    """When connections end, and how dead ones are found. Zero is never."""

    max_connection_idle: Duration = 0.0
    """Close a connection that had no request for this long."""
    max_connection_age: Duration = 0.0
    """Close a connection that is this old (± 10 %), gently: clients then connect anew, and spread over new replicas."""
    max_connection_age_grace: Duration = 0.0
    """How long requests may still take on a connection that has reached its age; zero is without end."""
    time: Duration = 7200.0
    """Ask a client whether it is still there after this long."""
    timeout: Duration = 20.0
    """Close the connection when it has not answered that for so long."""


class KeepaliveEnforcementPolicy(ComponentSettings):
    """How often a client may ask whether this server is still there."""

    min_time: Duration = 300.0
    """A client whose PINGs come closer together than this, three times, is disconnected."""
    permit_without_stream: bool = False
    """Whether it may ask while it has no request open."""


class KeepaliveServerSettings(ComponentSettings):
    """Ages of connections, and PINGs."""

    server_parameters: KeepaliveServerParameters = KeepaliveServerParameters()
    """What this server does."""
    enforcement_policy: KeepaliveEnforcementPolicy | None = None
    """What it demands of its clients. Without it nothing: PINGs cost little, and are answered no faster than the client reads."""


class GrpcServerSettings(ComponentSettings):
    """A gRPC listener, under the collector's `configgrpc` keys."""

    endpoint: str
    """`host:port` to listen on; without a host, on every address."""
    transport: Literal["tcp", "tcp4", "tcp6"] = "tcp"
    """`tcp4` and `tcp6` listen on that family alone."""
    tls: TlsServerSettings | None = None
    """Without it connections are plain text."""
    auth: AuthSettings | None = None
    """Ask this extension about every request, by its metadata, before its message is read."""
    max_recv_msg_size_mib: int = Field(20, ge=1, le=1024)
    """Largest message, before and after decompression, in MiB. (The collector's default of 4 is what its users run into.)"""
    max_concurrent_streams: int = Field(100, ge=0)
    """Requests that one connection may have open; 0 is this default as well."""
    max_bytes_in_flight: Size = Field(128 << 20, gt=0)
    """Bytes of all messages that are being read or wait for their acknowledgement; beyond it, clients wait before their message is read.
    Not one of the collector's keys."""
    max_connections: int = Field(1024, gt=0)
    """Connections at the same time; further ones are closed. Not one of the collector's keys."""
    read_timeout: Duration = 60.0
    """How long a message may take to arrive once its budget is reserved. Not one of the collector's keys."""
    keepalive: KeepaliveServerSettings = KeepaliveServerSettings()
    """Ages of connections, and PINGs."""
    read_buffer_size: int = Field(0, ge=0)
    """Accepted for the collector's sake: asyncio reads what there is, up to 256 KiB, without a buffer of each connection's own."""
    write_buffer_size: int = Field(0, ge=0)
    """Bytes of answers to hold for a client that does not read before nothing more is read from it; 0 is 64 KiB."""
    include_metadata: bool = False
    """Accepted for the collector's sake: no component here reads a client's metadata."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_a_port(cls, value: str) -> str:
        split_endpoint(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # An inflated message is held beside the one it was.
        if self.max_bytes_in_flight < 2 * self.max_recv_msg_size_mib << 20:
            raise ValueError("max_bytes_in_flight is less than twice max_recv_msg_size_mib: the largest message could never be inflated")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host (empty for all) and port."""
        return split_endpoint(self.endpoint)

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        host, port = self.address
        yield Listen(host, port, "gRPC clients")

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.include_metadata:
            yield "include_metadata has no effect: no component here reads a client's metadata"
        if self.read_buffer_size:
            yield "read_buffer_size has no effect: connections have no read buffer of their own here"
