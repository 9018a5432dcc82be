"""The embedded backend as a process of its own: what it acknowledged survives kill -9, and the commands ask it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
from support.otlp import log_batch, span_batch
from support.process import free_port
from support.programs import running

CONFIGURATION = """
receivers:
  sumologic: {{endpoint: "127.0.0.1:{receiver}"}}
exporters:
  store: {{directory: {folder}/store}}
extensions:
  query: {{endpoint: "127.0.0.1:0", state_directory: {folder}}}
service:
  extensions: [query]
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [sumologic], exporters: [store]}}
    traces: {{receivers: [sumologic], exporters: [store]}}
"""
PROTOBUF = {"Content-Type": "application/x-protobuf"}


async def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a `lockgate` command that asks the store in this state directory."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lockgate.cli.main", *arguments, "--state", str(folder), stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_what_a_client_was_told_is_stored_survives_kill_9_and_is_stored_once(tmp_path: Path) -> None:
    receiver = free_port()
    configuration = CONFIGURATION.format(folder=tmp_path, receiver=receiver)
    url = f"http://127.0.0.1:{receiver}/receiver/v1/logs"
    acknowledged: set[str] = set()
    batches = [log_batch(*(f"{number}/{row}" for row in range(20)), id=f"b{number}") for number in range(300)]

    async def deliver(session: aiohttp.ClientSession, numbers: range) -> None:
        for number in numbers:
            headers = PROTOBUF | {"X-Lockgate-Batch-Id": batches[number].id}
            async with session.post(url, data=batches[number].payload, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
            acknowledged.add(batches[number].id)

    async with aiohttp.ClientSession() as session:
        async with running(configuration, tmp_path) as process:
            senders = [asyncio.ensure_future(deliver(session, range(start, 300, 4))) for start in range(4)]
            async with asyncio.timeout(20):
                while len(acknowledged) < 60:
                    await asyncio.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*senders, return_exceptions=True)
        assert 60 <= len(acknowledged) < 300, "it was killed in the middle"
        async with running(configuration, tmp_path):
            status, out, err = await command(tmp_path, "query", "SELECT id FROM batches", "--format", "json", "--max-rows", "10000")
            assert status == 0, err
            assert {json.loads(line)["id"] for line in out.splitlines()} >= acknowledged
            # The client does not know about the last ones, so it sends all again.
            await asyncio.gather(*(deliver(session, range(start, 300, 4)) for start in range(4)))
            _, out, _ = await command(tmp_path, "query", "SELECT count(*) AS n, count(DISTINCT body) AS d FROM logs", "--format", "csv")
            assert out == "n,d\n6000,6000\n"


async def test_the_commands_show_lines_tables_and_reasons(tmp_path: Path) -> None:
    receiver = free_port()
    url = f"http://127.0.0.1:{receiver}/receiver/v1"
    status, _, err = await command(tmp_path, "logs")
    assert (status, "no store is running here" in err, "Traceback" in err) == (2, True, False)
    configuration = CONFIGURATION.format(folder=tmp_path, receiver=receiver)
    async with running(configuration, tmp_path), aiohttp.ClientSession(headers=PROTOBUF) as session:
        resource = {"k8s.namespace.name": "shop", "k8s.pod.name": "cart-1", "k8s.container.name": "app"}
        await session.post(f"{url}/logs", data=log_batch("paid", "sh\x1b[31mipped", resource=resource).payload)
        await session.post(f"{url}/traces", data=span_batch("GET /").payload)
        _, out, _ = await command(tmp_path, "logs", "--namespace", "shop", "--grep", "paid")
        assert out == "2023-11-14 22:13:20 shop/cart-1/app paid\n"
        _, out, _ = await command(tmp_path, "query", "SELECT name, duration_nano FROM traces")
        assert [line.split() for line in out.splitlines()] == [["name", "duration_nano"], ["GET", "/", "5000000"]]
        status, _, err = await command(tmp_path, "query", "SELECT * FROM read_csv('/etc/passwd')")
        assert (status, "disabled by configuration" in err) == (1, True)

        following = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockgate.cli.main", "logs", "--follow", "--pod", "cart-*", "--output", "json"),
            *("--state", str(tmp_path)),
            stdout=-1,
        )
        assert following.stdout is not None
        async with asyncio.timeout(20):
            first = [json.loads(await following.stdout.readline())["body"] for _ in range(2)]
            await session.post(f"{url}/logs", data=log_batch("new", resource=resource).payload)
            newest = json.loads(await following.stdout.readline())["body"]
        following.send_signal(signal.SIGINT)
        assert await following.wait() == 0
        assert (first, newest) == (["paid", "sh\x1b[31mipped"], "new")
