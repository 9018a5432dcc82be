"""What a user writes under `receivers.opencensus`."""

from pydantic import Field, field_validator

from lockgate.kit.units import Duration
from lockgate.net.grpc_server_settings import GrpcServerSettings


class OpenCensusReceiverSettings(GrpcServerSettings):
    """Where to receive OpenCensus. Over gRPC alone: the collector's takes HTTP/JSON on the same port too."""

    endpoint: str = "localhost:55678"
    """`host:port` to listen on; without a host, on every address."""
    cors_allowed_origins: list[str] = []
    """Must be empty: it is for the collector's HTTP/JSON, which is not served here. Browsers can send OTLP to an `otlp` receiver."""
    ack_timeout: Duration = Field(25.0, gt=0)
    """A message that is not acknowledged after so long is broken off here, and tried again. Not one of the collector's keys."""
    retry_timeout: Duration = Field(300.0, ge=0)
    """How long a message is tried again while the next owner cannot take it; then it is given up, and counted. Its stream is not read
    meanwhile, so that the client keeps what follows. OpenCensus has no acknowledgement: nobody sends again what was given up. 0 is for
    ever. Not one of the collector's keys."""

    @field_validator("cors_allowed_origins")
    @classmethod
    def _has_no_http(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("HTTP/JSON is not served here, only gRPC; remove it, and let browsers send OTLP to an otlp receiver")
        return value
