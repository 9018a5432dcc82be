"""What a user writes under `receivers.otlp`."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from lockgate.batch import Signal
from lockgate.kit.units import Duration
from lockgate.net.grpc_server_settings import GrpcServerSettings
from lockgate.net.http_server import HttpServerSettings
from lockgate.net.protocols import NamedProtocols
from lockgate.pipeline.needs import ComponentSettings


class OtlpHttpSettings(HttpServerSettings):
    """OTLP over HTTP: protobuf and JSON."""

    endpoint: str = "localhost:4318"
    """`host:port` to listen on; without a host, on every address."""
    traces_url_path: str = "/v1/traces"
    """The path for traces."""
    metrics_url_path: str = "/v1/metrics"
    """The path for metrics."""
    logs_url_path: str = "/v1/logs"
    """The path for logs."""

    @field_validator("traces_url_path", "metrics_url_path", "logs_url_path")
    @classmethod
    def _starts_with_a_slash(cls, value: str) -> str:
        return value if value.startswith("/") else f"/{value}"

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        if len(self.paths()) < len(Signal):
            raise ValueError("two signals have the same path; give each its own")
        return self

    def paths(self) -> dict[str, Signal]:
        """The signal behind each path."""
        return {self.traces_url_path: Signal.TRACES, self.metrics_url_path: Signal.METRICS, self.logs_url_path: Signal.LOGS}


class OtlpGrpcSettings(GrpcServerSettings):
    """OTLP over gRPC."""

    endpoint: str = "localhost:4317"
    """`host:port` to listen on; without a host, on every address."""


class ProtocolsSettings(NamedProtocols):
    """The transports to serve; a transport that is named without anything below it is served with its defaults."""

    http: OtlpHttpSettings | None = None
    """OTLP over HTTP, on port 4318."""
    grpc: OtlpGrpcSettings | None = None
    """OTLP over gRPC, on port 4317."""


class OtlpReceiverSettings(ComponentSettings):
    """Receives OTLP."""

    protocols: ProtocolsSettings
    """The transports to serve."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A client that still waits for its acknowledgement after so long is asked to try again (503, UNAVAILABLE), and its batch is given up
    here. A client that hangs up earlier and sends the same id again (X-Lockgate-Batch-Id) joins what is under way."""
