"""Receives what Jaeger's clients and agents send: protobuf over gRPC, Thrift over HTTP and over UDP.

`settings` is what a user writes; each transport has a file, the formats are `wire.jaeger`.
"""

from lockgate.components.receivers.jaeger.receiver import JaegerReceiver

__all__ = ["JaegerReceiver"]
