"""The `otlp` receiver: OTLP over HTTP and gRPC, all three signals.

`settings` is what a user writes, `intake` what both transports do with a request, `http`, `grpc` and `receiver` the rest.
"""

from lockgate.components.receivers.otlp.receiver import OtlpReceiver

__all__ = ["OtlpReceiver"]
