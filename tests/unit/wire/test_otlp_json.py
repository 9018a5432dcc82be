"""OTLP/JSON against the specification's example, protobuf and what clients send by mistake."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support.otlp_requests import requests

from lockgate.batch import Signal, message_type
from lockgate.wire.otlp_json import decode, encode
from lockgate.wire.protobuf import DecodeError


@settings(max_examples=200, deadline=None)
@given(requests())
def test_decoding_what_was_encoded_gives_the_same_message(request_of: tuple[Signal, Any]) -> None:
    _, message = request_of
    assert type(message).FromString(decode(encode(message), type(message))) == message


@settings(max_examples=300, deadline=None)
@given(requests(), st.integers(0, 2000), st.integers(0, 5), st.binary(max_size=3))
def test_damaged_json_gives_bytes_or_a_decode_error(request_of: tuple[Signal, Any], at: int, cut: int, new: bytes) -> None:
    signal, message = request_of
    body = encode(message)
    at %= len(body) + 1
    try:
        payload = decode(body[:at] + new + body[at + cut :], type(message))
    except DecodeError as error:
        assert "JSON" in str(error)
    else:
        message_type(signal).FromString(payload)


json_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["resourceLogs", "scopeLogs", "logRecords", "body", "stringValue", "traceId", "resource"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(json_documents)
def test_any_json_document_gives_bytes_or_a_decode_error(document: Any) -> None:
    try:
        payload = decode(json.dumps(document).encode(), ExportLogsServiceRequest)
    except DecodeError:
        return
    assert isinstance(document, dict)
    ExportLogsServiceRequest.FromString(payload)


def test_ids_are_hex_enums_numbers_and_64_bit_integers_strings() -> None:
    span_document = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "eee19b7ec3c1b174",
        "parentSpanId": "EEE19B7EC3C1B173",
        "startTimeUnixNano": "1544712660000000000",
        "endTimeUnixNano": 1544712661000000000,
        "kind": 2,
        "unknown": {"traceId": "zz"},
        "attributes": [{"key": "n", "value": {"intValue": "-7"}}],
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"scope": {"name": "my.library"}, "spans": [span_document]}]}]}).encode()
    request = ExportTraceServiceRequest.FromString(decode(body, ExportTraceServiceRequest))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1544712660000000000, 1544712661000000000)
    assert (span.kind, span.attributes[0].value.int_value) == (2, -7)
    encoded = json.loads(encode(request))["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert encoded["traceId"] == "5b8efff798038103d269b633813fc60c"
    assert encoded["kind"] == 2
    assert encoded["startTimeUnixNano"] == "1544712660000000000"


def log_of(**fields: Any) -> bytes:
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [fields]}]}]}).encode()


def test_names_of_enums_original_field_names_and_null_are_read() -> None:
    body = b'{"resource_logs":[{"scopeLogs":[{"log_records":[{"severityNumber":"SEVERITY_NUMBER_INFO","body":null}]}]}]}'
    request = ExportLogsServiceRequest.FromString(decode(body, ExportLogsServiceRequest))
    assert request.resource_logs[0].scope_logs[0].log_records[0].severity_number == 9


def test_bytes_are_base64() -> None:
    payload = decode(log_of(body={"bytesValue": base64.b64encode(b"\xff\x00").decode()}), ExportLogsServiceRequest)
    assert ExportLogsServiceRequest.FromString(payload).resource_logs[0].scope_logs[0].log_records[0].body.bytes_value == b"\xff\x00"


def test_a_response_is_written_as_clients_read_it() -> None:
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = 3
    response.partial_success.error_message = "no"
    assert json.loads(encode(response)) == {"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "no"}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"[]", "must be an object", id="array"),
        pytest.param(b'"x"', "must be an object", id="string"),
        pytest.param(b"\xff", "malformed", id="not-utf8"),
        pytest.param(b"[" * 100_000, "nests deeper", id="deep"),
        pytest.param(b'{"resourceLogs":3}', "resourceLogs|must be an object", id="number-for-a-list"),
        pytest.param(b'{"resourceLogs":[null]}', "must be an object", id="null-in-a-list"),
        pytest.param(b'{"resourceLogs":[{"resource":[]}]}', "must be an object", id="list-for-an-object"),
        pytest.param(log_of(traceId="abc"), "trace_id is not a string of hex digits: 'abc'", id="odd-hex"),
        pytest.param(log_of(traceId="ab"), "has 1 bytes instead of 16", id="short-id"),
        pytest.param(log_of(spanId=7), "span_id is not a string of hex digits", id="number-for-an-id"),
        pytest.param(log_of(timeUnixNano="99999999999999999999"), "timeUnixNano", id="more-than-64-bits"),
        pytest.param(log_of(severityText=5), "severityText", id="number-for-text"),
        pytest.param(log_of(body={"bytesValue": "!"}), "not a string of base64", id="not-base64"),
        pytest.param(log_of(body={"stringValue": "a", "intValue": 1}), "oneof", id="two-values"),
    ],
)
def test_a_refusal_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(body, ExportLogsServiceRequest)


PEAK = """
import re, sys
from pathlib import Path
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from lockgate.wire import otlp_json

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

otlp_json.decode(b'{"resourceLogs":[{}]}', ExportLogsServiceRequest)
body = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + sys.argv[1].encode() * int(sys.argv[2]) + b'{}]}]}]}'
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = status("VmRSS")
otlp_json.decode(body, ExportLogsServiceRequest)
print(status("VmHWM") - before, otlp_json.needed_bytes(body), len(body))
"""


@pytest.mark.parametrize(
    "record",
    [
        "{},",
        '{"attributes":[{},{},{},{}]},',
        '{"body":{"arrayValue":{"values":[{},{}]}}},',
        '{"body":{"stringValue":"some text of a line"}},',
    ],
)
def test_decoding_takes_no_more_memory_than_is_foretold(record: str) -> None:
    command = [sys.executable, "-c", PEAK, record, str(1_500_000 // len(record))]
    peak, foretold, size = map(int, subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.split())
    assert peak < foretold + (8 << 20)
    assert foretold < 80 * size
