"""What a user writes under `receivers.jaeger`: the collector's keys, but for those that are said to be our own."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from lockgate.kit.units import Duration, Size
from lockgate.net.address import split_endpoint
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.net.http_server import HttpServerSettings
from lockgate.net.protocols import NamedProtocols
from lockgate.pipeline.needs import ComponentSettings, Listen, Need


class JaegerGrpcSettings(GrpcServerSettings):
    """Jaeger's protobuf (api_v2) over gRPC."""

    endpoint: str = "localhost:14250"
    """`host:port` to listen on; without a host, on every address."""


class ThriftHttpSettings(HttpServerSettings):
    """Jaeger's Thrift in HTTP requests, to `/api/traces`."""

    endpoint: str = "localhost:14268"
    """`host:port` to listen on; without a host, on every address."""

    @property
    def purpose(self) -> str:
        return "Jaeger's Thrift"


class ThriftUdpSettings(ComponentSettings):
    """Jaeger's Thrift in datagrams, as clients send it to an agent. Nobody answers them: what is dropped is counted here, and is lost."""

    endpoint: str
    """`host:port` to listen on; without a host, on every address."""
    queue_size: int = Field(1000, ge=1)
    """Datagrams held here at the same time, until their spans are delivered, or durable; further ones are dropped, and counted."""
    max_packet_size: int = Field(65000, ge=1)
    """Bytes of one datagram; longer ones are dropped, and counted."""
    workers: int = Field(10, ge=1)
    """Accepted for the collector's sake: no worker is held up by its datagram here, all that are held are handed on side by side."""
    socket_buffer_size: Size = Field(0, ge=0)
    """Bytes that the kernel keeps of datagrams that were not read yet; 0 is its own default. What it grants is said in the log where
    that is less (net.core.rmem_max)."""
    max_bytes_in_flight: Size = Field(32 << 20, gt=0)
    """Bytes of all datagrams held here; further ones are dropped, and counted. Not one of the collector's keys."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_a_port(cls, value: str) -> str:
        split_endpoint(value)
        return value

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        host, port = split_endpoint(self.endpoint)
        yield Listen(host, port, "Jaeger's Thrift in datagrams", "udp")

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if "workers" in self.model_fields_set:
            yield "workers has no effect: as many datagrams as queue_size allows are handed on side by side"


class ThriftCompactSettings(ThriftUdpSettings):
    """Thrift's compact encoding in datagrams, which most clients send to an agent."""

    endpoint: str = "localhost:6831"
    """`host:port` to listen on; without a host, on every address."""


class ThriftBinarySettings(ThriftUdpSettings):
    """Thrift's binary encoding in datagrams, which clients for Node.js send to an agent."""

    endpoint: str = "localhost:6832"
    """`host:port` to listen on; without a host, on every address."""


class JaegerProtocolsSettings(NamedProtocols):
    """The transports to serve; a transport that is named without anything below it is served with its defaults."""

    grpc: JaegerGrpcSettings | None = None
    """Protobuf over gRPC, on port 14250."""
    thrift_http: ThriftHttpSettings | None = None
    """Thrift over HTTP, on port 14268."""
    thrift_compact: ThriftCompactSettings | None = None
    """Thrift's compact encoding over UDP, on port 6831."""
    thrift_binary: ThriftBinarySettings | None = None
    """Thrift's binary encoding over UDP, on port 6832."""


class JaegerReceiverSettings(ComponentSettings):
    """Receives Jaeger's spans."""

    protocols: JaegerProtocolsSettings
    """The transports to serve."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A client (of gRPC or HTTP) that still waits for its acknowledgement after so long is asked to try again (503, UNAVAILABLE), and its
    batch is given up here. Not one of the collector's keys."""

    @model_validator(mode="before")
    @classmethod
    def _without_remote_sampling(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("remote_sampling") is not None:
            raise ValueError("remote_sampling is no part of this receiver, as of the collector's; use the extension jaegerremotesampling")
        return value

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self.protocols.thrift_compact or self.protocols.thrift_binary:
            yield (
                "clients that send by UDP are not told of what is lost on the way, dropped here, or in memory when this process is killed; "
                "where they can, have them send to thrift_http, grpc or an otlp receiver"
            )
