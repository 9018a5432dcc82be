"""The real Fluent Bit sends to the fluentforward receiver."""

import asyncio
from pathlib import Path

import pytest
from support import Sink, context
from support.kube_apiserver import PEERS

from lockgate.batch import Signal
from lockgate.components.receivers.fluentforward import FluentForwardReceiver, FluentForwardSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Retryable

BINARY = PEERS / "bin" / "fluent-bit"
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not BINARY.exists(), reason="no fluent-bit: `make peers` has not built it")]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="forward"),
        pytest.param({"require_ack_response": "true"}, id="acknowledged"),
        pytest.param({"require_ack_response": "true", "compress": "gzip"}, id="compressed"),
        pytest.param({"time_as_integer": "true"}, id="whole-seconds"),
        pytest.param({"retain_metadata_in_forward_mode": "true"}, id="with-metadata"),
    ],
)
async def test_every_line_of_a_file_arrives_once(options: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {number}\n" for number in range(500)))
    # A refusal first: what is acknowledged is sent again by Fluent Bit, what is not is tried again by the receiver.
    sink = Sink(Retryable("busy"))
    receiver = FluentForwardReceiver(FluentForwardSettings(endpoint="127.0.0.1:0"), context("fluentforward", Kind.RECEIVER))
    receiver.outputs = {Signal.LOGS: sink}
    async with receiver:
        properties = {"host": "127.0.0.1", "port": str(receiver.port), "retry_limit": "false"} | options
        command = [
            str(BINARY),
            "-f",
            "0.2",
            "-i",
            "tail",
            "-p",
            f"path={log}",
            "-p",
            "read_from_head=true",
            "-t",
            "app",
            "-o",
            "forward",
            "-m",
            "*",
        ]
        command += [word for key, value in properties.items() for word in ("-p", f"{key}={value}")]
        with (tmp_path / "output").open("wb") as output:
            process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        try:
            await sink.wait_for(500, 20)
        finally:
            process.terminate()
            await process.wait()
    assert sorted(sink.bodies()) == sorted(f"line {number}" for number in range(500)), (tmp_path / "output").read_text()
    record = sink.batches[0].message.resource_logs[0].scope_logs[0].log_records[0]
    assert record.time_unix_nano > 1_600_000_000 * 10**9
    assert {attribute.key: attribute.value.string_value for attribute in record.attributes}["fluent.tag"] == "app"
