"""What an OTLP server says beside a status (OTLP 1.5, "Partial Success" and "Failures"), in protobuf and JSON.

protobuf is imported when there is an answer to read: most are empty, and a role that reads files and sends them on does without it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lockgate.batch import Signal
from lockgate.sending.exporter import Rejected

_REJECTED = {Signal.LOGS: "rejectedLogRecords", Signal.METRICS: "rejectedDataPoints", Signal.TRACES: "rejectedSpans"}


def partial_success(signal: Signal, body: bytes, *, json: bool = False) -> Rejected | None:
    """What a server took but not whole; None where it took everything, or its remark cannot be read: that undoes nothing."""
    if not body:
        return None
    records, reason = _from_json(signal, body) if json else _from_protobuf(body)
    if not records and not reason:
        return None
    return Rejected(max(records, 0), f"the server took the request but not all of it: {reason or 'no reason given'}")


def _from_json(signal: Signal, body: bytes) -> tuple[int, str]:
    try:
        said: Any = msgspec.json.decode(body)
        partial = said.get("partialSuccess") or said.get("partial_success") or {}
        return int(partial.get(_REJECTED[signal], 0)), str(partial.get("errorMessage", ""))
    except (msgspec.DecodeError, ValueError, AttributeError, TypeError):
        return 0, ""


def _from_protobuf(body: bytes) -> tuple[int, str]:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    try:
        # The three signals' responses are the same on the wire; only their fields' names differ.
        partial = ExportLogsServiceResponse.FromString(body).partial_success
    except DecodeError:
        return 0, ""
    return partial.rejected_log_records, partial.error_message


def failure(body: bytes, *, json: bool = False) -> str | None:
    """The message of the google.rpc.Status in a failure's body; None where there is none to read."""
    if json:
        try:
            said = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return None
        message = said.get("message") if isinstance(said, dict) else None
        return message if isinstance(message, str) else None
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    try:
        return str(Status.FromString(body).message)
    except DecodeError:
        return None
