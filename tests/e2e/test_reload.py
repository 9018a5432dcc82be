"""SIGHUP: the configuration changes under load, and no line, request or connection notices."""

import http.client
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.backend import Backend
from support.otlp import log_batch
from support.process import Role, free_port, wait_until

from lockgate.batch import Signal
from lockgate.net.otlp_grpc import METHODS


class Configured:
    """A configuration in a file, changed key by key."""

    def __init__(self, tmp_path: Path, url: str, **queue: Any) -> None:
        self.http, self.grpc = free_port(), free_port()
        self.document: dict[str, Any] = {
            "receivers": {
                "filelog": {"include": [f"{tmp_path}/*.log"], "start_at": "beginning", "poll_interval": "50ms"},
                "otlp": {
                    "protocols": {
                        "http": {"endpoint": f"127.0.0.1:{self.http}"},
                        "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"},
                    }
                },
            },
            "processors": {"resource": {"attributes": [{"action": "upsert", "key": "generation", "value": 0}]}, "batch": {}},
            "exporters": {
                "otlphttp": {
                    "endpoint": url,
                    "sending_queue": queue,
                    "retry_on_failure": {"initial_interval": "50ms", "max_interval": "100ms"},
                }
            },
            "extensions": {"health_check": {}, "file_storage": {"directory": str(tmp_path / "state"), "create_directory": True}},
            "service": {
                "extensions": ["health_check", "file_storage"],
                "shutdown_timeout": "3s",
                "pipelines": {"logs": {"receivers": ["filelog", "otlp"], "processors": ["resource", "batch"], "exporters": ["otlphttp"]}},
            },
        }
        self.role = Role(tmp_path / "role", json.dumps(self.document))
        self.path = tmp_path / "role" / "config.yaml"

    def reload(self, text: str = "") -> dict[str, Any]:
        """Writes the document, or this text, and signals; what /status says of it."""
        before = self.last()
        self.path.write_text(text or json.dumps(self.document))
        self.role.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.last() != before, what=f"the reload\n{self.role.log.read_text()[-3000:]}")
        return self.last()

    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = self.role.get("/status")[1].get("reload", {})
        return found


@contextmanager
def repeated(work: Callable[[int], None]) -> Iterator[list[Exception]]:
    """Calls `work(0)`, `work(1)`, ... in a thread; the errors."""
    errors: list[Exception] = []
    stopping = threading.Event()

    def run() -> None:
        for number in itertools.count():
            if stopping.is_set():
                return
            try:
                work(number)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        stopping.set()
        thread.join()


def post(port: int, body: str) -> None:
    """One request over a connection of its own; raises unless it is answered 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/logs", log_batch(body).payload, {"Content-Type": "application/x-protobuf"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
    finally:
        connection.close()


def call(port: int, body: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(METHODS[Signal.LOGS])(log_batch(body).payload, timeout=30)


def generations(backend: Backend) -> set[str]:
    return {
        str(attribute.value.int_value)
        for _, _, message in list(backend.requests)
        for entry in message.resource_logs
        for attribute in entry.resource.attributes
        if attribute.key == "generation"
    }


def changes(configured: Configured) -> list[Callable[[], Any]]:
    """Good ones, that touch each kind of component alone, and all at once."""
    document = configured.document
    filelog, otlp = document["receivers"]["filelog"], document["receivers"]["otlp"]["protocols"]
    resource, exporter = document["processors"]["resource"]["attributes"][0], document["exporters"]["otlphttp"]

    def everything() -> None:
        for change in single:
            change()

    def generation() -> None:
        resource["value"] += 1

    single: list[Callable[[], Any]] = [
        generation,
        lambda: filelog.update(poll_interval="40ms" if filelog["poll_interval"] == "50ms" else "50ms"),
        lambda: exporter.update(timeout=f"{4 + resource['value']}s"),
        lambda: otlp["http"].update(max_connections=500 + resource["value"]),
        lambda: otlp["grpc"].update(max_connections=500 + resource["value"]),
        lambda: document["extensions"]["file_storage"].update(timeout=f"{2 + resource['value']}s"),
        lambda: document["extensions"]["health_check"].update(response_body={"healthy": f"fine {resource['value']}"}),
    ]
    return [*single, everything]


@pytest.mark.parametrize(("durable", "times"), [(False, 2), (True, 1)], ids=["memory", "durable"])
def test_under_load_every_line_arrives_once_and_no_client_notices(tmp_path: Path, durable: bool, times: int) -> None:
    log = tmp_path / "app.log"
    log.touch()
    with Backend() as backend:
        configured = Configured(tmp_path, backend.url, **({"storage": "file_storage"} if durable else {}))
        written = itertools.count()

        def write(_: int) -> None:
            with log.open("a") as file:
                file.writelines(f"line {next(written)}\n" for _ in range(50))
            time.sleep(0.005)

        with configured.role as role:
            pid = role.process.pid
            with (
                repeated(write) as unwritten,
                repeated(lambda number: post(configured.http, f"http {number}")) as refused,
                repeated(lambda number: call(configured.grpc, f"grpc {number}")) as failed,
            ):
                for change in changes(configured) * times:
                    change()
                    told = configured.reload()
                    assert told["outcome"] == "applied", told
                    good = json.dumps(configured.document)
                    assert configured.reload("receivers: {otlp: {protocls: {}}}\nservice: {}")["outcome"] == "wrong"
                    assert configured.reload(good.replace(f":{configured.http}", f":{free_port()}"))["outcome"] == "refused"
            total = next(written)
            wait_until(lambda: sum(body.startswith("line") for body in backend.bodies()) >= total, what="the last line")
            metrics = role.metrics()
            assert configured.reload()["outcome"] == "unchanged"
            assert role.process.pid == pid
        assert (unwritten, refused, failed) == ([], [], [])
        arrived = Counter(backend.bodies())
        assert {body: count for body, count in arrived.items() if count != 1} == {}
        assert sum(body.startswith("line") for body in arrived) == total
        assert sum(body.startswith("http") for body in arrived) > 20
        assert sum(body.startswith("grpc") for body in arrived) > 20
        assert generations(backend) == {str(number) for number in range(2 * times + 1)}
    assert metrics["lockgate_reloads"] == 24 * times


@pytest.mark.parametrize("all_of_it", [False, True], ids=["the-receiver", "everything"])
def test_while_the_backend_is_down_a_reload_loses_and_repeats_nothing(tmp_path: Path, all_of_it: bool) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    with Backend() as backend:
        backend.status = 503
        configured = Configured(tmp_path, backend.url)
        configured.document["service"]["shutdown_timeout"] = "500ms"
        configured.path.write_text(json.dumps(configured.document))
        configured.role.expect_ready = False
        with configured.role:
            wait_until(lambda: backend.seen > 2, what="attempts")
            configured.document["receivers"]["filelog"]["poll_interval"] = "40ms"
            assert configured.reload()["outcome"] == "applied"
            with log.open("a") as file:
                file.writelines(f"line {number}\n" for number in range(100, 200))
            for change in changes(configured) if all_of_it else ():
                change()
                assert configured.reload()["outcome"] == "applied"
            backend.status = 200
            wait_until(lambda: len(backend.bodies()) >= 200, what="every line")
        assert sorted(backend.bodies()) == sorted(f"line {number}" for number in range(200))


def test_a_new_configuration_that_cannot_be_started_brings_the_old_one_back(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("one\n")
    with Backend() as backend:
        configured = Configured(tmp_path, backend.url, storage="file_storage")
        with configured.role as role:
            wait_until(lambda: backend.bodies() == ["one"])
            good = json.dumps(configured.document)
            storage = configured.document["extensions"]["file_storage"]
            storage.update(create_directory=False, directory=storage["directory"] + "/missing")
            configured.document["processors"]["resource"]["attributes"][0]["value"] = 7
            configured.document["receivers"]["filelog"]["poll_interval"] = "40ms"
            told = configured.reload()
            assert told["outcome"] == "failed"
            assert "it does not exist" in told["reasons"][0]
            with log.open("a") as file:
                file.write("two\n")
            wait_until(lambda: backend.bodies() == ["one", "two"])
            assert generations(backend) == {"0"}
            post(configured.http, "three")
            assert role.get("/ready")[0] == 200
            assert configured.reload(good)["outcome"] == "unchanged"
            assert "restart required" not in role.log.read_text()
        assert backend.bodies() == ["one", "two", "three"]


def test_sigterm_during_a_reload_ends_the_program_and_keeps_the_position(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("one\n")
    with Backend() as backend:
        backend.hold.clear()
        configured = Configured(tmp_path, backend.url)
        filelog = configured.document["receivers"]["filelog"]
        filelog["storage"] = "file_storage"
        configured.path.write_text(json.dumps(configured.document))
        with configured.role as role:
            wait_until(lambda: backend.seen, what="the first request")
            filelog["poll_interval"] = "40ms"
            configured.path.write_text(json.dumps(configured.document))
            role.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "stopping receivers/filelog" in role.log.read_text(), what="the reload waits for the drain")
            role.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # the signal is there before the drain is over
            backend.hold.set()
            assert role.process.wait(10) == 0
        log.write_text("one\ntwo\n")
        with Role(tmp_path / "role", json.dumps(configured.document)):
            wait_until(lambda: len(backend.bodies()) >= 2)
        assert backend.bodies() == ["one", "two"]


def test_what_the_service_section_says_of_the_log_is_applied(tmp_path: Path) -> None:
    with Backend() as backend:
        configured = Configured(tmp_path, backend.url)
        with configured.role as role:
            configured.document["service"]["telemetry"] = {"logs": {"encoding": "json", "initial_fields": {"cluster": "blue"}}}
            assert configured.reload()["outcome"] == "applied"
            line = json.loads(role.log.read_text().splitlines()[-1])
            assert (line["cluster"], line["component"]) == ("blue", "service")
            assert "stopping nothing; starting nothing" in role.log.read_text()


def test_a_change_of_a_mounted_file_is_found_without_a_signal_where_that_is_configured(tmp_path: Path) -> None:
    with Backend() as backend:
        configured = Configured(tmp_path, backend.url)
        mount = tmp_path / "mount"

        def bring(version: str) -> None:
            """As a kubelet does: a new directory, and a link to it that is replaced by a rename."""
            (mount / version).mkdir(parents=True)
            (mount / version / "config.yaml").write_text(json.dumps(configured.document))
            (mount / "..new").symlink_to(version)
            (mount / "..new").rename(mount / "..data")

        configured.document["service"]["reload"] = "on_change"
        bring("..1")
        (mount / "config.yaml").symlink_to("..data/config.yaml")
        configured.role.configs[1] = str(mount / "config.yaml")
        with configured.role:
            configured.document["processors"]["resource"]["attributes"][0]["value"] = 1
            bring("..2")
            wait_until(lambda: configured.last().get("outcome") == "applied")
            post(configured.http, "one")
        assert generations(backend) == {"1"}
