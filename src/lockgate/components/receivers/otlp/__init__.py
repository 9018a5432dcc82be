"""Receives OTLP over HTTP and gRPC.

`settings` is what a user writes; the transports are `net.otlp_http` and `grpc`, what both do with a request is `net.intake`.
"""

from lockgate.components.receivers.otlp.receiver import OtlpReceiver

__all__ = ["OtlpReceiver"]
