"""What hostile clients cost the server in memory: measured on a process of its own."""

import asyncio
import random
import struct
import subprocess
import sys
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection

METHOD = "/test.Service/Export"
SERVER = """
import asyncio, sys
from lockgate.net.grpc_server import GrpcServer, unary
from lockgate.net.grpc_server_settings import GrpcServerSettings
from support import context
async def main():
    async def take(message, call): return b""
    settings = GrpcServerSettings(endpoint="127.0.0.1:0", max_bytes_in_flight=8 << 20, max_recv_msg_size_mib=4)
    async with GrpcServer(settings, {"/test.Service/Export": unary(take)}, context()) as server:
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


def resident(pid: int) -> int:
    """KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def hold(port: int, streams: int, source: random.Random) -> asyncio.StreamWriter:
    """A connection with so many requests that each announce 4 MB and send what they may of it, in frames of any size."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    h2 = H2Connection(H2Configuration(client_side=True))
    h2.initiate_connection()
    writer.write(h2.data_to_send())
    while h2.outbound_flow_control_window < streams * 65_535:  # until the server has opened the connection's window
        h2.receive_data(await asyncio.wait_for(reader.read(65536), 5))
    for _ in range(streams):
        stream = h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", "x"), ("content-type", "application/grpc")]
        h2.send_headers(stream, headers)
        h2.send_data(stream, b"\0" + struct.pack(">I", 4_000_000))
        while (window := h2.local_flow_control_window(stream)) > 0:
            h2.send_data(stream, bytes(min(window, source.choice([1, 100, 5000, 16384]))))
        writer.write(h2.data_to_send())
    await writer.drain()
    return writer


async def test_clients_that_open_much_and_finish_nothing_cost_a_bounded_amount(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        command = [sys.executable, "-c", SERVER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment)
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        source = random.Random(3)
        before = resident(process.pid)
        writers = [await hold(port, 50, source) for _ in range(40)]
        await asyncio.sleep(0.3)
        grown = resident(process.pid) - before
        for writer in writers:
            writer.transport.abort()
        # 1024 open requests with a window each are 64 MiB, the budget 8 MiB; unbounded, 2000 announced messages were 8 GB.
        assert grown < 140 * 1024
        assert process.poll() is None
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert "a bug" not in errors.read_text()
