"""The `otlp` receiver: OTLP over HTTP and gRPC, all three signals.

`settings` is what a user writes; the transports are `net.otlp_http` and what both do with a request `net.intake`.
"""

from lockgate.components.receivers.otlp.receiver import OtlpReceiver

__all__ = ["OtlpReceiver"]
