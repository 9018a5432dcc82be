"""Receives traces and metrics from OpenCensus' libraries and agents, over gRPC.

`settings` is what a user writes, `receiver` what becomes of a stream; what a message means is `wire.opencensus`.
"""

from lockgate.components.receivers.opencensus.receiver import OpenCensusReceiver

__all__ = ["OpenCensusReceiver"]
