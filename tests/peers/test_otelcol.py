"""Files read by us and by the real OpenTelemetry Collector: the same records. And each as the other's neighbour."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.backend import Backend
from support.otelcol import needs_otelcol, running_otelcol
from support.process import Role, free_port, wait_until

pytestmark = [pytest.mark.peers, needs_otelcol]

Object = dict[str, Any]
START = r"^\d{4}-"
T = "2026-01-02T03:04:05"


def cri(text: str, tag: str = "F", stream: str = "stdout", time: str = f"{T}.123456789Z") -> bytes:
    return f"{time} {stream} {tag} {text}\n".encode()


def docker(text: str, stream: str = "stdout", time: str = f"{T}.5Z", **more: Any) -> bytes:
    return json.dumps({"log": text, "stream": stream, "time": time} | more).encode() + b"\n"


INPUTS: dict[str, list[bytes]] = {
    "containerd": [cri("one"), cri("two", stream="stderr"), cri(""), cri("  spaces  "), cri("žluť \N{PILE OF POO}"), cri("last")],
    "containerd-partials": [
        *(cri("a", "P"), cri("b", "P"), cri("c"), cri("out", "P"), cri("put"), cri("err", "P", "stderr"), cri("or", stream="stderr")),
        *(cri("x" * 16384, "P"), cri("y" * 16384, "P"), cri("z"), cri("open", "P"), cri("")),
    ],
    "crio-offsets": [
        cri("one", time=f"{T}.123456789+02:00"),
        cri("two", time=f"{T}.000000001-07:30", stream="stderr"),
        cri("three", time=f"{T}.5+00:00"),
        cri("a", "P", time=f"{T}.1+02:00"),
        cri("b", time=f"{T}.2+02:00"),
    ],
    "carriage-returns": [cri("windows\r"), cri("last")],
}
OTHERWISE: dict[str, tuple[list[bytes], list[str], list[str]]] = {
    "streams-whose-parts-alternate": (
        [cri("out", "P"), cri("err", "P", "stderr"), cri("put"), cri("or", stream="stderr"), cri("next")],
        ["output", "error", "next"],
        ["outerrput", "or", "next"],
    ),
    "tags-of-more-than-a-letter": ([cri("one", "F:more"), cri("two")], ["one", "two"], ["onetwo"]),
    "docker": ([docker("one\n"), docker('esc "\\ \t\u0001 \u00e9\n')], ["one", 'esc "\\ \t\u0001 é'], ["one\n", 'esc "\\ \t\u0001 é\n']),
    "docker-partials": ([docker("a, "), docker("b\n"), docker("c\n")], ["a, b", "c"], ["a, ", "b\n", "c\n"]),
}
"""What is joined otherwise: lines, our bodies, the collector's. Rows of docs/differences.md."""


@pytest.fixture(params=INPUTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filelog(pattern: str, **more: Any) -> Object:
    return {"include": [pattern], "include_file_path": True, "include_file_name": False, "start_at": "beginning", **more}


def agent(receiver: Object, backend: str, exporter: str = "otlphttp") -> Object:
    """Understood by both."""
    return {
        "receivers": {"filelog": receiver},
        "exporters": {exporter: {"endpoint": backend, "compression": "gzip"}},
        "service": {"pipelines": {"logs": {"receivers": ["filelog"], "exporters": [exporter]}}},
    }


def value(any_value: Any) -> Any:
    which = any_value.WhichOneof("value")
    if which == "kvlist_value":
        return {each.key: value(each.value) for each in any_value.kvlist_value.values}
    return getattr(any_value, which) if which else None


def records(backend: Backend) -> list[Object]:
    """All that a record carries but when it was observed, in order of arrival."""
    return [
        {
            "resource": {each.key: value(each.value) for each in resource.resource.attributes},
            "attributes": {each.key: value(each.value) for each in record.attributes},
            "body": value(record.body),
            "time": record.time_unix_nano,
            "severity": (record.severity_number, record.severity_text),
        }
        for _, _, message in list(backend.requests)
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


@contextmanager
def both(directory: Path, receiver: Object) -> Iterator[tuple[Backend, Backend]]:
    """Ours and theirs, reading."""
    with (
        Backend() as ours,
        Backend() as theirs,
        as_role(directory / "role", agent(receiver, ours.url)),
        running_otelcol(directory / "otelcol", agent(receiver, theirs.url)),
    ):
        yield ours, theirs


def by_stream(found: list[Object]) -> dict[str, list[Object]]:
    """Two streams of a file may overtake each other where one of them is joined; within one the order holds."""
    streams: dict[str, list[Object]] = {}
    for record in found:
        streams.setdefault(str(record["attributes"].get("log.iostream")), []).append(record)
    return streams


@contextmanager
def container_log(directory: Path, content: list[bytes]) -> Iterator[Object]:
    """The settings that follow a container's log with this content."""
    log = directory / "pods" / "shop_web-0_5f0c0d1e-1111-2222-3333-444455556666" / "main" / "2.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(content))
    yield filelog(f"{directory}/pods/*/*/*.log", operators=[{"type": "container"}])


def test_container_files_give_the_collectors_records(tmp_path: Path, name: str) -> None:
    with container_log(tmp_path, INPUTS[name]) as receiver, both(tmp_path, receiver) as (ours, theirs):
        wait_until(lambda: len(records(ours)) >= len(records(theirs)) > 0 and quiet(theirs), 30, "as many records as theirs")
        assert by_stream(records(ours)) == by_stream(records(theirs))


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_is_joined_otherwise_is_what_the_documentation_says(tmp_path: Path, case: str) -> None:
    content, our_bodies, their_bodies = OTHERWISE[case]
    with container_log(tmp_path, content) as receiver, both(tmp_path, receiver) as (ours, theirs):
        wait_until(lambda: len(records(ours)) >= len(our_bodies) and len(records(theirs)) >= len(their_bodies), 20, "all records")
        assert (sorted(ours.bodies()), sorted(theirs.bodies())) == (sorted(our_bodies), sorted(their_bodies))
        assert [record["resource"] for record in records(ours)] == [records(theirs)[0]["resource"]] * len(our_bodies)


def test_a_malformed_line_keeps_its_place_and_its_pod(tmp_path: Path) -> None:
    with (
        container_log(tmp_path, [cri("before"), b"no format at all\n", cri("after")]) as receiver,
        both(tmp_path, receiver) as (ours, theirs),
    ):
        for backend in (ours, theirs):
            wait_until(lambda backend=backend: len(records(backend)) == 3, 20, "all records")
        assert ours.bodies() == ["before", "no format at all", "after"]
        assert {record["resource"].get("k8s.pod.name") for record in records(ours)} == {"web-0"}
        assert {record["body"]: record["resource"].get("k8s.pod.name") for record in records(theirs)} == {
            "before": "web-0", "no format at all": None, "after": "web-0"
        }  # fmt: skip


def quiet(backend: Backend, seconds: float = 1.5) -> bool:
    """Whether nothing arrives for a while: the collector's own flush of what it joins is timed as well."""
    before = backend.seen
    time.sleep(seconds)
    return backend.seen == before


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        pytest.param({"multiline": {"line_start_pattern": START}}, b"2026- one\n  more\n\n2026- two\n2026- three\nend\n", id="line-start"),
        pytest.param({"multiline": {"line_end_pattern": r";$"}}, b"one\nmore;\ntwo;\nthree;\n", id="line-end"),
        pytest.param({"multiline": {"line_end_pattern": r";", "omit_pattern": True}}, b"a\nb;c;d;", id="omit-pattern"),
        pytest.param({}, b"one\n\n  two  \r\n\t\nthree", id="plain"),
        pytest.param(
            {"preserve_leading_whitespaces": True, "preserve_trailing_whitespaces": True}, b"  one  \n \ntwo\t\n", id="white-space"
        ),
        pytest.param(
            {"attributes": {"a": "b"}, "resource": {"r": "s"}, "include_file_name": True, "include_file_path_resolved": True},
            b"one\ntwo\n",
            id="attributes",
        ),
    ],
)
def test_plain_files_give_the_collectors_records(tmp_path: Path, settings: Object, content: bytes) -> None:
    (tmp_path / "app.log").write_bytes(content)
    with both(tmp_path, filelog(f"{tmp_path}/*.log", **settings)) as (ours, theirs):
        wait_until(lambda: len(records(ours)) >= len(records(theirs)) > 0 and quiet(theirs), 30, "as many records as theirs")
        got, expected = records(ours), records(theirs)
    assert got == expected


@pytest.mark.parametrize(
    ("settings", "content", "our_bodies", "their_bodies"),
    [
        pytest.param(
            {"multiline": {"line_start_pattern": "BEGIN ", "omit_pattern": True}},
            b"BEGIN a\nb\nBEGIN c\nBEGIN d\n",
            ["a\nb", "c", "d"],
            ["a\nb", "c", "BEGIN d"],
            id="omit-pattern-of-a-record-that-time-ends",
        ),
        pytest.param(
            {"max_log_size": 1024},
            b"x" * 3000 + b"\nnext\n",
            ["x" * 1024, "next"],
            ["x" * 1024, "x" * 1024, "x" * 952, "next"],
            id="a-line-over-max_log_size",
        ),
        pytest.param({}, b"\xff\xfe\nnext\n", [b"\xff\xfe", "next"], ["\ufffd\ufffd", "next"], id="text-that-is-not-utf8"),
    ],
)
def test_plain_lines_that_differ_are_those_of_the_documentation(
    tmp_path: Path, settings: Object, content: bytes, our_bodies: list[Any], their_bodies: list[Any]
) -> None:
    (tmp_path / "app.log").write_bytes(content)
    with both(tmp_path, filelog(f"{tmp_path}/*.log", **settings)) as (ours, theirs):
        wait_until(lambda: len(records(ours)) >= len(our_bodies) and len(records(theirs)) >= len(their_bodies), 20, "all records")
        assert [record["body"] for record in records(ours)] == our_bodies
        assert [record["body"] for record in records(theirs)] == their_bodies


def test_dockers_attrs_are_left_out(tmp_path: Path) -> None:
    with container_log(tmp_path, [docker("one\n", attrs={"tag": "x"})]) as receiver, both(tmp_path, receiver) as (ours, theirs):
        wait_until(lambda: records(ours) and records(theirs), 20, "all records")
        assert records(theirs)[0]["attributes"].keys() - records(ours)[0]["attributes"].keys() == {"attrs"}


def otlp(port: int, backend: str) -> Object:
    """Passes logs on; understood by both."""
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"otlphttp": {"endpoint": backend, "compression": "gzip"}},
        "service": {"pipelines": {"logs": {"receivers": ["otlp"], "exporters": ["otlphttp"]}}},
    }


def as_role(directory: Path, config: Object) -> Role:
    return Role(directory, yaml.safe_dump(config).replace("service:", "service:\n  extensions: [health_check]"))


def test_the_collector_as_agent_delivers_the_same_through_our_role(tmp_path: Path) -> None:
    port, lines = free_port(), [line for content in INPUTS.values() for line in content]
    with (
        container_log(tmp_path, lines) as receiver,
        Backend() as direct,
        Backend() as through,
        as_role(tmp_path / "role", otlp(port, through.url)) as role,
        running_otelcol(tmp_path / "one", agent(receiver, direct.url)),
        running_otelcol(tmp_path / "two", agent(receiver, f"http://127.0.0.1:{port}")),
    ):
        wait_until(lambda: len(records(through)) == len(records(direct)) > 0 and quiet(direct), 30, "all records")
        assert by_stream(records(through)) == by_stream(records(direct))
        assert role.metrics()["otelcol_receiver_accepted_log_records"] == len(records(direct))


def test_our_agent_delivers_the_same_through_the_collector(tmp_path: Path) -> None:
    port, lines = free_port(), [line for content in INPUTS.values() for line in content]
    with (
        container_log(tmp_path, lines) as receiver,
        Backend() as direct,
        Backend() as through,
        running_otelcol(tmp_path / "otelcol", otlp(port, through.url)),
        as_role(tmp_path / "one", agent(receiver, direct.url)),
        as_role(tmp_path / "two", agent(receiver, f"http://127.0.0.1:{port}")),
    ):
        wait_until(lambda: len(records(through)) == len(records(direct)) > 0 and quiet(direct), 30, "all records")
        assert by_stream(records(through)) == by_stream(records(direct))
