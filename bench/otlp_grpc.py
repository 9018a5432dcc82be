"""CPU of gRPC's both sides against grpcio's, in one run: `python bench/otlp_grpc.py [seconds per cell]`.

Each cell is a server process and a client process that sends OTLP logs of one size; the figure is CPU milliseconds per uncompressed MB of
either process. Our server is measured against grpcio's client and our client against grpcio's server, with grpcio against itself as the
measure. What differs from a real receiver: nothing parses the messages.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
SIZES = {"64 KB": 64_000, "1 MB": 1_000_000}
PAIRS = [("grpcio", "grpcio"), ("ours", "grpcio"), ("grpcio", "ours"), ("ours", "ours")]


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def payload(size: int) -> bytes:
    """Logs as applications write them: about a tenth of their size when compressed."""
    import random

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    source, request = random.Random(1), ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    while request.ByteSize() < size - 200:
        for _ in range(20):
            record = scope.log_records.add(time_unix_nano=1_700_000_000_000_000_000 + source.randrange(10**9))
            path = source.choice(["cart", "pay", "items", "login"])
            record.body.string_value = (
                f"10.2.{source.randrange(256)}.{source.randrange(256)} GET /api/v1/{path}/{source.randrange(10**6)} "
                f'200 {source.randrange(10**5)} "Mozilla/5.0 (X11; Linux x86_64)" took {source.randrange(9999)} us'
            )
    return request.SerializeToString()[:size]


def context() -> Any:
    import logging
    from concurrent.futures import ThreadPoolExecutor

    from lockgate.kit.clock import SystemClock
    from lockgate.kit.metrics import Metrics
    from lockgate.pipeline.contract import Context, Kind, Status

    class Host:
        executor = ThreadPoolExecutor(4)

    clock = SystemClock()
    return Context("bench", Kind.RECEIVER, Host(), logging.getLogger("bench"), Metrics(), clock, Status(clock))  # type: ignore[arg-type]


async def serve(library: str) -> None:
    """Prints its port; at the end of its input, its CPU seconds since the first message."""
    started: list[float] = []

    def seen() -> None:
        if not started:
            started.append(cpu())

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)))
    if library == "ours":
        from lockgate.net.grpc_server import Call, GrpcServer, GrpcServerSettings, unary

        async def take(message: bytes, call: Call) -> bytes:
            seen()
            return b""

        async with GrpcServer(GrpcServerSettings(endpoint="127.0.0.1:0"), {METHOD: unary(take)}, context()) as server:
            print(server.port, flush=True)
            await ended.wait()
    else:
        import grpc

        async def answer(message: bytes, call: Any) -> bytes:
            seen()
            return b""

        aio = grpc.aio.server(options=[("grpc.max_receive_message_length", 20 << 20)])
        handler = grpc.unary_unary_rpc_method_handler(answer)
        aio.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD.split("/")[1], {"Export": handler}),))
        print(aio.add_insecure_port("127.0.0.1:0"), flush=True)
        await aio.start()
        await ended.wait()
        await aio.stop(0)
    print(json.dumps({"cpu": cpu() - started[0], "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}), flush=True)


async def send(library: str, port: int, size: int, gzip: bool, seconds: float, under_way: int) -> None:
    body, calls = payload(size), 0
    if library == "ours":
        from lockgate.net.grpc_client import GrpcClient, GrpcClientSettings

        tls = {"insecure": True}
        settings = GrpcClientSettings.model_validate(
            {"endpoint": f"127.0.0.1:{port}", "tls": tls, "compression": "gzip" if gzip else "none"}
        )
        manager: Any = GrpcClient(settings, context())
        client = await manager.__aenter__()

        async def call() -> None:
            await client.call(METHOD, body, 20)
    else:
        import grpc

        manager = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])
        method = manager.unary_unary(METHOD)
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression

        async def call() -> None:
            await method(body, compression=compression, timeout=20)

    await call()
    before, start = cpu(), time.monotonic()

    async def work() -> None:
        nonlocal calls
        while time.monotonic() - start < seconds:
            await call()
            calls += 1

    await asyncio.gather(*(work() for _ in range(under_way)))
    elapsed = time.monotonic() - start
    print(json.dumps({"cpu": cpu() - before, "mb": calls * len(body) / 1e6, "mb_s": calls * len(body) / 1e6 / elapsed}), flush=True)
    await manager.__aexit__(None, None, None)


def cell(server: str, client: str, size: int, gzip: bool, seconds: float) -> tuple[float, float, float, float]:
    """CPU ms per MB of the server and of the client, MB/s, and the server's largest RSS in MB."""
    own = [sys.executable, __file__]
    environment = os.environ | {"GRPC_VERBOSITY": "NONE"}
    with subprocess.Popen([*own, "serve", server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as serving:
        assert serving.stdin is not None
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        arguments = [*own, "send", client, port, str(size), str(int(gzip)), str(seconds), "8"]
        sent = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout)
        serving.stdin.close()
        served = json.loads(serving.stdout.read())
    return served["cpu"] / sent["mb"] * 1e3, sent["cpu"] / sent["mb"] * 1e3, sent["mb_s"], served["rss_mb"]


def main(seconds: float) -> None:
    print(f"{'size':6} {'':6} {'server':7} {'client':7} | server ms/MB  (ratio) | client ms/MB  (ratio) |  MB/s | server RSS MB")
    for label, size in SIZES.items():
        for gzip in (False, True):
            base = None
            for server, client in PAIRS:
                served, sent, rate, rss = cell(server, client, size, gzip, seconds)
                base = base or (served, sent)
                print(
                    f"{label:6} {'gzip' if gzip else 'plain':6} {server:7} {client:7} | {served:12.2f} {served / base[0]:8.2f} | "
                    f"{sent:12.2f} {sent / base[1]:8.2f} | {rate:5.0f} | {rss:5.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", library]:
            asyncio.run(serve(library))
        case ["send", library, port, size, gzip, seconds, under_way]:
            asyncio.run(send(library, int(port), int(size), gzip == "1", float(seconds), int(under_way)))
        case arguments:
            main(float(arguments[0]) if arguments else 3.0)
