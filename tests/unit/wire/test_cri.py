"""The CRI kernel against a twin that says the same with regular expressions and upb messages."""

from __future__ import annotations

import re
import shutil
from array import array
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from lockgate.wire import cri, lines
from lockgate.wire.parsed import Left, Parsed
from lockgate.wire.protobuf import key_values

RESOURCE = Resource(attributes=[KeyValue(key="k8s.pod.name", value=AnyValue(string_value="web-0"))])
ATTRIBUTES = (
    key_values(6, [("log.file.path", "/p/0.log"), ("log.iostream", "stdout")]),
    key_values(6, [("log.file.path", "/p/0.log"), ("log.iostream", "stderr")]),
    key_values(6, [("log.file.path", "/p/0.log")]),
)
OBSERVED = 1_700_000_000_000_000_001

# --- The twin ---------------------------------------------------------------------------------------------------------------------------

TIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))")
HEADER = re.compile(rb"(?P<time>[^ ]+) (?P<stream>stdout|stderr) (?P<tag>[FP](?::[!-~]*)?)(?: (?P<body>.*))?", re.DOTALL)
STRING = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"')
NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
SPACE = re.compile(rb"[ \t\r]*")
ESCAPE = re.compile(rb"\\(?:u(?P<high>[dD][89abAB]..)\\u(?P<low>[dD][c-fC-F]..)|u(?P<hex>....)|(?P<char>.))", re.DOTALL)


def twin_time(text: bytes) -> int | None:
    found = TIME.fullmatch(text)
    if not found:
        return None
    year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
    try:
        offset = timedelta(hours=int(found[9] or 0), minutes=int(found[10] or 0))
        if int(found[9] or 0) > 23 or int(found[10] or 0) > 59:
            return None
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    seconds += int(offset.total_seconds()) * (1 if found[8] == b"-" else -1)
    nanoseconds = seconds * 10**9 + int((found[7] or b"0").ljust(9, b"0"))
    return nanoseconds if 0 <= nanoseconds < 2**63 else None


def json_value(text: bytes, position: int, depth: int = 0) -> int:
    """The end of the JSON value there; ValueError where there is none."""
    if found := STRING.match(text, position) or NUMBER.match(text, position):
        return found.end()
    if text[position : position + 1] not in (b"{", b"[") or depth >= 32:
        raise ValueError
    close = b"}" if text[position : position + 1] == b"{" else b"]"
    position = skip(text, position + 1)
    if text[position : position + 1] == close:
        return position + 1
    while True:
        if close == b"}":
            found = STRING.match(text, position)
            if not found:
                raise ValueError
            position = skip(text, found.end())
            if text[position : position + 1] != b":":
                raise ValueError
            position = skip(text, position + 1)
        position = skip(text, json_value(text, position, depth + 1))
        mark = text[position : position + 1]
        if mark == close:
            return position + 1
        if mark != b",":
            raise ValueError
        position = skip(text, position + 1)


def skip(text: bytes, position: int) -> int:
    found = SPACE.match(text, position)
    assert found
    return found.end()


def unescape(text: bytes) -> bytes:
    def one(found: re.Match[bytes]) -> bytes:
        if found["char"]:
            return {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}.get(found["char"], found["char"])
        if found["hex"]:
            code = int(found["hex"], 16)
            return b"\xef\xbf\xbd" if 0xD800 <= code < 0xE000 else chr(code).encode()
        return (bytes.fromhex((found["high"] + found["low"]).decode())).decode("utf-16-be").encode()

    return ESCAPE.sub(one, text)


@dataclass
class Line:
    time: int
    stream: int
    partial: bool
    body: bytes
    tag: str = ""


def twin_docker(text: bytes) -> Line | None:
    start = skip(text, 0)
    try:
        end = json_value(text, start)
    except ValueError:
        return None
    if text[start : start + 1] != b"{" or skip(text, end) != len(text):
        return None
    position, fields = skip(text, start + 1), {}
    while text[position : position + 1] != b"}":
        key = STRING.match(text, position)
        assert key
        position = skip(text, skip(text, key.end()) + 1)
        end = json_value(text, position, 0)
        if key[1] in (b"log", b"stream", b"time"):
            value = STRING.match(text, position)
            if not value or (key[1] == b"stream" and value[1] not in (b"stdout", b"stderr")):
                return None
            fields[key[1]] = value[1]
        position = skip(text, end)
        position = skip(text, position + 1) if text[position : position + 1] == b"," else position
    time = twin_time(fields.get(b"time", b""))
    if time is None or len(fields) != 3:
        return None
    body = unescape(fields[b"log"])
    return Line(time, fields[b"stream"] == b"stderr", not body.endswith(b"\n"), body.removesuffix(b"\n"))


def twin_cri(text: bytes) -> Line | None:
    found = HEADER.fullmatch(text.removesuffix(b"\r"))
    if not found or len(found["tag"]) > 64:
        return None
    time = twin_time(found["time"])
    if time is None:
        return None
    partial = found["tag"].startswith(b"P")
    body = found["body"]
    if partial and body is not None and text.endswith(b"\r"):
        body += b"\r"
    return Line(time, found["stream"] == b"stderr", partial, body or b"", found["tag"].decode())


@dataclass
class Ledger:
    log_records: list[LogRecord] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0] * 7)


NAMES = ["records", "lines", "joined", "empty", "malformed", "truncated", "partial"]


def twin(chunk: bytes, max_records: int, max_record_bytes: int, line_format: int, flags: int) -> Parsed:
    """What `parse` says, from its documentation."""
    records: list[LogRecord] = []
    count = dict.fromkeys(NAMES, 0)
    groups: dict[int, tuple[int, list[Line]]] = {}
    saved: tuple[int, int, dict[str, int]] = (0, 0, {})
    position, left, pending = 0, Left.NOTHING, 0

    def emit(line: Line | None, body: bytes, attributes: bytes, flagged: bool = False) -> None:
        record = LogRecord.FromString(attributes)
        record.observed_time_unix_nano = OBSERVED
        if line:
            record.time_unix_nano = line.time
            if line.tag:
                record.attributes.add(key="logtag").value.string_value = line.tag
        if len(body) > max_record_bytes:
            keep = max_record_bytes
            while keep > max(0, max_record_bytes - 3) and 0x80 <= body[keep] < 0xC0:
                keep -= 1
            body, flagged = body[:keep], True
            count["truncated"] += 1
        try:
            record.body.string_value = body.decode()
        except UnicodeDecodeError:
            record.body.bytes_value = body
        if flagged:
            record.attributes.add(key=cri.TRUNCATED_ATTRIBUTE).value.bool_value = True
        records.append(record)
        count["records"] += 1

    while position < len(chunk):
        if count["records"] >= max_records and not groups:
            left = Left.LIMIT
            break
        end = chunk.find(b"\n", position)
        if end < 0 and not flags & cri.FLUSH_LINE:
            left = Left.LINE
            break
        text = chunk[position:end] if end >= 0 else chunk[position:]
        start, position = position, end + 1 if end >= 0 else len(chunk)
        count["lines"] += 1
        if line_format == cri.PLAIN:
            body = text.removesuffix(b"\r")
            body = body.lstrip(b" \t\r\n") if flags & cri.TRIM_LEADING else body
            body = body.rstrip(b" \t\r\n") if flags & cri.TRIM_TRAILING else body
            if body:
                emit(None, body, ATTRIBUTES[2])
            else:
                count["empty"] += 1
            continue
        if not text.removesuffix(b"\r"):
            count["empty"] += 1
            continue
        docker = line_format == cri.DOCKER or (line_format == cri.AUTO and text.startswith(b"{"))
        line = twin_docker(text) if docker else twin_cri(text)
        if line is None:
            count["malformed"] += 1
            emit(None, text, ATTRIBUTES[2])
            continue
        if flags & cri.TRIM_TRAILING and not docker and not line.partial:
            line.body = line.body.rstrip(b" \t\r\n")
        if line.partial:
            if not groups:
                saved = (start, len(records), {**count, "lines": count["lines"] - 1})
            groups.setdefault(line.stream, (start, []))[1].append(line)
            continue
        parts = [*groups.pop(line.stream, (0, []))[1], line]
        emit(parts[0], b"".join(part.body for part in parts), ATTRIBUTES[line.stream])
        count["joined"] += len(parts) - 1
    if groups and flags & cri.FLUSH_GROUPS:
        for _, parts in sorted(groups.values(), key=lambda group: group[0]):
            emit(parts[0], b"".join(part.body for part in parts), ATTRIBUTES[parts[0].stream], flagged=True)
            count["joined"] += len(parts) - 1
            count["partial"] += 1
    elif groups:
        pending = count["lines"] - count["empty"]
        position, kept, count = saved
        pending -= count["lines"] - count["empty"]
        del records[kept:]
        left = Left.GROUP
    request = ExportLogsServiceRequest()
    if records:
        request.resource_logs.add(resource=RESOURCE).scope_logs.add(log_records=records)
    return Parsed(payload=request.SerializeToString(), **count, consumed=position, left=left, pending=pending)


def run(
    form: ModuleType, chunk: bytes, max_records: int = 10**6, limit: int = 10**6, line_format: int = cri.AUTO, flags: int = 0
) -> Parsed:
    parsed: Parsed = form.parse(chunk, RESOURCE.SerializeToString(), ATTRIBUTES, OBSERVED, max_records, limit, line_format, flags)
    return parsed


# --- Generated chunks -------------------------------------------------------------------------------------------------------------------

good_times = st.builds(
    lambda moment, digits, fraction, zone: (
        moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0").encode()
        + (b"." + str(fraction).zfill(9)[:digits].encode() if digits else b"")
        + zone
    ),
    st.datetimes(datetime(1969, 12, 31), datetime(2262, 4, 13)),  # noqa: DTZ001
    st.integers(0, 9),
    st.integers(0, 10**9 - 1),
    st.sampled_from([b"Z", b"+00:00", b"-10:00", b"+05:30", b"+23:59", b"-23:59"]),
)
bad_times = st.sampled_from(
    [
        b"2023-02-29T00:00:00Z",
        b"2024-02-30T00:00:00Z",
        b"2024-13-01T00:00:00Z",
        b"2024-00-01T00:00:00Z",
        b"2024-01-00T00:00:00Z",
        b"2024-04-31T00:00:00Z",
        b"2024-01-01T24:00:00Z",
        b"2024-01-01T00:60:00Z",
        b"2024-01-01T00:00:60Z",
        b"2024-01-01t00:00:00Z",
        b"2024-01-01T00:00:00z",
        b"2024-01-01T00:00:00",
        b"2024-01-01T00:00:00.Z",
        b"2024-01-01T00:00:00.0123456789Z",
        b"2024-01-01T00:00:00+24:00",
        b"2024-01-01T00:00:00+00:60",
        b"2024-01-01T00:00:00+0000",
        b"1969-12-31T23:59:59Z",
        b"1970-01-01T00:00:00+00:01",
        b"2262-04-11T23:47:16.854775808Z",
        b"9999-01-01T00:00:00Z",
        b"202x-01-01T00:00:00Z",
        b"",
    ]
)
bodies = st.sampled_from(
    [b"", b"x", b"hello  world ", "h\u00e9llo \u20ac \U0001f600".encode(), b"\x00\x01", b"\xff\xfe", b"\xe2\x82", b"\xac", b"a\r", b" "]
) | st.binary(max_size=40).map(lambda body: body.replace(b"\n", b"?"))
streams = st.sampled_from([b"stdout", b"stderr"] * 6 + [b"stdin", b"stdouT", b""])
tags = st.sampled_from([b"F", b"P"] * 6 + [b"F:x", b"P:y:z", b"P:" + b"t" * 62, b"F:" + b"t" * 63, b"X", b"", b"FP", b"F:\xe9"])
valid_cri_lines = st.builds(
    lambda time, stream, tag, body: time + b" " + stream + b" " + tag + body,
    good_times | st.just(b"2024-04-13T07:59:37.505201169Z"),
    st.sampled_from([b"stdout", b"stderr"]),
    st.sampled_from([b"F", b"P", b"F:x", b"P:y:z"]),
    bodies.map(lambda body: b" " + body) | st.just(b""),
)
cri_lines = st.builds(
    lambda time, stream, tag, body: time + b" " + stream + b" " + tag + body,
    good_times | bad_times,
    streams,
    tags,
    bodies.map(lambda body: b" " + body) | bodies,
)
escaped = st.lists(
    st.sampled_from(
        [b"a", b"bc ", b"\\n", b"\\t", b'\\"', b"\\\\", b"\\/", b"\\u00e9", b"\\u20AC", b"\\ud83d\\ude00", b"\\ud83d", b"\\ude00"]
    )
    | st.sampled_from([b"\\u0000", b"\\u000a", b"\xc3\xa9", b"\xff", b"\\r", b"\\b\\f"]),
    max_size=8,
).map(b"".join)
right_json = [b'"x"', b"1", b"-0.5e+3", b"true", b"false", b"null", b"{}", b"[ ]", b'{"a":[1,{"b":"\\n"}]}', b"[" * 32 + b"]" * 32]
wrong_json = [
    b"01",
    b"+1",
    b"tru",
    b"nul",
    b"[1,]",
    b'{"a"}',
    b"{a:1}",
    b"[" * 33 + b"]" * 33,
    b"1.",
    b"1e",
    b"-",
    b"",
    b'"\\x"',
    b'"\\u12g4"',
]
json_values = st.sampled_from(right_json) | st.sampled_from(wrong_json)


def docker_line(fields: list[tuple[bytes, bytes]], gap: bytes, tail: bytes) -> bytes:
    return b"{" + gap + (gap + b"," + gap).join(b'"' + key + b'"' + gap + b":" + gap + value for key, value in fields) + gap + b"}" + tail


docker_lines = st.builds(
    docker_line,
    st.tuples(
        (escaped | escaped.map(lambda body: body + b"\\n")).map(lambda body: (b"log", b'"' + body + b'"')),
        st.sampled_from([b"stdout", b"stderr"] * 4 + [b"stdin"]).map(lambda stream: (b"stream", b'"' + stream + b'"')),
        (good_times | bad_times).map(lambda time: (b"time", b'"' + time + b'"')),
    ).flatmap(
        lambda three: (
            st.permutations([*three])
            | st.tuples(st.sampled_from([b"attrs", b"log", b"strea", b"\\u006cog"]), json_values).map(lambda extra: [*three, extra])
        )
    ),
    st.sampled_from([b"", b"", b" ", b"\t \r"]),
    st.sampled_from([b"", b"", b"", b" ", b"x", b"}"]),
)
valid_docker_lines = st.builds(
    lambda body, stream, time: b'{"log":"' + body + b'","stream":"' + stream + b'","time":"' + time + b'"}',
    escaped | escaped.map(lambda body: body + b"\\n"),
    st.sampled_from([b"stdout", b"stderr"]),
    good_times,
)
valid_lines = valid_cri_lines | valid_docker_lines
mangled = st.builds(
    lambda line, at, byte, cut: (line[: at % (len(line) + 1)] + bytes([byte]) + line[at % (len(line) + 1) + cut :]).replace(b"\n", b"?"),
    cri_lines | docker_lines,
    st.integers(0, 200),
    st.integers(0, 255),
    st.integers(0, 3),
)
line_ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n"])


def chunks_of(some_lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda parts, tail: b"".join(line + end for line, end in parts) + tail,
        st.lists(st.tuples(some_lines, line_ends), min_size=2, max_size=12),
        some_lines | st.just(b""),
    )


chunks = chunks_of(valid_lines) | chunks_of(valid_cri_lines) | chunks_of(valid_lines | cri_lines | docker_lines | mangled | bodies)
every_flag = st.integers(0, 15)
every_format = st.sampled_from([cri.AUTO, cri.AUTO, cri.AUTO, cri.DOCKER, cri.CRI, cri.PLAIN])


@settings(max_examples=600, deadline=None)
@given(chunks, st.sampled_from([1, 2, 5, 10**6]), st.sampled_from([1, 2, 3, 7, 20, 10**6, 2**62]), every_format, every_flag)
@example(b"2024-01-01T00:00:00Z stdout F", 1, 1, cri.AUTO, cri.FLUSH_LINE)
@example(b"", 1, 1, cri.AUTO, 0)
@example(b'{"log":"","stream":"stdout","time":"1997-09-07T23:33:19Z","attrs":' + b"[" * 31 + b"]" * 31 + b"}\n", 1, 9, cri.AUTO, 1)
@example(b'{"log":"","stream":"stdout","time":"1997-09-07T23:33:19Z","attrs":' + b"[" * 32 + b"]" * 32 + b"}\n", 1, 9, cri.AUTO, 1)
def test_twin_uncompiled_and_installed_agree(
    cri_forms: list[ModuleType], chunk: bytes, most: int, limit: int, line_format: int, flags: int
) -> None:
    expected = twin(chunk, most, limit, line_format, flags)
    for form in cri_forms:
        assert run(form, chunk, most, limit, line_format, flags) == expected
    assert expected.lines == expected.records + expected.joined + expected.empty


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), every_format, every_flag)
def test_any_bytes_give_the_same_in_every_form(cri_forms: list[ModuleType], chunk: bytes, line_format: int, flags: int) -> None:
    for form in cri_forms:
        assert run(form, chunk, 3, 5, line_format, flags) == twin(chunk, 3, 5, line_format, flags)


@settings(max_examples=200, deadline=None)
@given(chunks, st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_reading_in_chunks_of_any_size_gives_the_same_records(chunk: bytes, sizes: list[int]) -> None:
    whole = run(cri, chunk, flags=cri.FLUSH_GROUPS)
    records: list[LogRecord] = []
    position, size, turn = 0, sizes[0], 0
    while True:
        last = position + size >= len(chunk)
        parsed = run(cri, chunk[position : position + size], flags=cri.FLUSH_GROUPS if last else 0)
        records += [
            record
            for part in ExportLogsServiceRequest.FromString(parsed.payload).resource_logs
            for record in part.scope_logs[0].log_records
        ]
        position += parsed.consumed
        if last and parsed.left in (Left.NOTHING, Left.LINE):
            break
        turn += 1
        size = sizes[turn % len(sizes)] if parsed.consumed else size * 2
    expected = ExportLogsServiceRequest.FromString(whole.payload)
    assert position == whole.consumed
    assert records == [record for part in expected.resource_logs for record in part.scope_logs[0].log_records]


# --- Statements -------------------------------------------------------------------------------------------------------------------------

T = b"2024-04-13T07:59:37.5Z"


def bodies_of(parsed: Parsed) -> list[Any]:
    request = ExportLogsServiceRequest.FromString(parsed.payload)
    return [
        record.body.string_value if record.body.HasField("string_value") else record.body.bytes_value
        for part in request.resource_logs
        for record in part.scope_logs[0].log_records
    ]


@pytest.mark.parametrize(
    ("chunk", "flags", "expected", "counts"),
    [
        pytest.param(T + b" stdout F hello\n", 0, ["hello"], {"records": 1, "lines": 1}, id="complete"),
        pytest.param(T + b" stdout P a\n" + T + b" stdout F b\n", 0, ["ab"], {"records": 1, "joined": 1}, id="joined"),
        pytest.param(
            T + b" stdout P a\n" + T + b" stderr P x\n" + T + b" stdout F b\n" + T + b" stderr F y\n",
            0,
            ["ab", "xy"],
            {"records": 2, "joined": 2, "lines": 4},
            id="interleaved-streams-are-joined-apart",
        ),
        pytest.param(
            T + b" stderr F 0\n" + T + b" stdout P a\n" + T + b" stderr P x\n" + T + b" stdout F b\n",
            0,
            ["0"],
            {"records": 1, "lines": 1, "consumed": len(T) + 12, "left": Left.GROUP},
            id="overlapping-groups-are-cut-back-together",
        ),
        pytest.param(T + b" stdout P a\n", cri.FLUSH_GROUPS, ["a"], {"partial": 1, "records": 1}, id="flushed-group"),
        pytest.param(T + b" stdout F torn", 0, [], {"consumed": 0, "left": Left.LINE}, id="torn-line-stays"),
        pytest.param(T + b" stdout F torn", cri.FLUSH_LINE, ["torn"], {"left": Left.NOTHING, "lines": 1}, id="torn-line-flushed"),
        pytest.param(b"nonsense\n", 0, ["nonsense"], {"malformed": 1, "records": 1}, id="malformed-is-kept"),
        pytest.param(T + b" stdout F \xff\x00\n", 0, [b"\xff\x00"], {"malformed": 0}, id="not-utf8-becomes-bytes"),
        pytest.param(T + b" stdout P \xe2\x82\n" + T + b" stdout F \xac\n", 0, ["€"], {"joined": 1}, id="character-split-over-parts"),
        pytest.param(T + b" stdout F crlf\r\n", 0, ["crlf"], {}, id="carriage-return-is-taken-off"),
        pytest.param(T + b" stdout F\n", 0, [""], {"malformed": 0, "empty": 0}, id="no-message"),
        pytest.param(b"\n\r\n", 0, [], {"empty": 2, "lines": 2}, id="empty-lines-give-no-record"),
        pytest.param(
            b'{"log":"a\\u20ac\\n","stream":"stdout","time":"2024-01-01T00:00:00Z"}\n', 0, ["a€"], {"malformed": 0}, id="docker-complete"
        ),
        pytest.param(
            b'{"log":"a","stream":"stdout","time":"2024-01-01T00:00:00Z"}\n{"log":"b\\n","stream":"stdout","time":"2024-01-01T00:00:01Z"}\n',
            0,
            ["ab"],
            {"joined": 1},
            id="docker-without-newline-is-partial",
        ),
    ],
)
def test_lines_become(cri_forms: list[ModuleType], chunk: bytes, flags: int, expected: list[Any], counts: dict[str, int]) -> None:
    for form in cri_forms:
        parsed = run(form, chunk, flags=flags)
        assert bodies_of(parsed) == expected
        assert {name: getattr(parsed, name) for name in counts} == counts


def test_a_joined_record_has_the_time_and_tag_of_its_first_part() -> None:
    parsed = run(cri, b"2024-01-01T00:00:01Z stdout P a\n2024-01-01T00:00:02Z stdout F b\n")
    (record,) = ExportLogsServiceRequest.FromString(parsed.payload).resource_logs[0].scope_logs[0].log_records
    assert record.time_unix_nano == 1_704_067_201_000_000_000
    assert {a.key: a.value.string_value for a in record.attributes}["logtag"] == "P"


def test_a_record_over_the_limit_is_cut_and_the_next_one_intact() -> None:
    parsed = run(cri, T + b" stdout F " + b"x" * 100 + b"\n" + T + b" stdout F next\n", limit=10)
    assert bodies_of(parsed) == ["x" * 10, "next"]
    assert parsed.truncated == 1
    flags = [
        [a.value.bool_value for a in record.attributes if a.key == cri.TRUNCATED_ATTRIBUTE]
        for record in ExportLogsServiceRequest.FromString(parsed.payload).resource_logs[0].scope_logs[0].log_records
    ]
    assert flags == [[True], []]


def test_payloads_concatenate_into_one_request() -> None:
    parsed = run(cri, T + b" stdout F a\n").payload + run(cri, T + b" stdout F b\n").payload
    assert len(ExportLogsServiceRequest.FromString(parsed).resource_logs) == 2


def test_a_limit_below_one_is_refused(cri_forms: list[ModuleType]) -> None:
    for form in cri_forms:
        with pytest.raises(ValueError, match="must be positive"):
            run(form, b"x\n", max_records=0)
        with pytest.raises(ValueError, match="must be positive"):
            run(form, b"x\n", limit=0)


def test_kernels_are_compiled_where_there_is_a_compiler() -> None:
    assert cri.compiled or not shutil.which("cc")


# --- Plain lines and spans --------------------------------------------------------------------------------------------------------------


def test_plain_lines_carry_no_time_and_the_given_attributes() -> None:
    parsed = lines.parse(b"a\r\n\nb\ntorn", RESOURCE.SerializeToString(), ATTRIBUTES[2], OBSERVED, 10, 10)
    assert (bodies_of(parsed), parsed.lines, parsed.empty, parsed.consumed, parsed.left) == (["a", "b"], 3, 1, 6, Left.LINE)
    record = ExportLogsServiceRequest.FromString(parsed.payload).resource_logs[0].scope_logs[0].log_records[0]
    assert (record.time_unix_nano, record.observed_time_unix_nano, record.attributes[0].key) == (0, OBSERVED, "log.file.path")


def twin_spans(chunk: bytes, spans: list[int], max_records: int, limit: int, flags: int) -> Parsed:
    request = ExportLogsServiceRequest()
    records: list[LogRecord] = []
    used, empty, truncated, consumed, left = 0, 0, 0, 0, Left.NOTHING
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        if len(records) >= max_records:
            left = Left.LIMIT
            break
        used, consumed, body = used + 1, end, chunk[start:end]
        body = body.lstrip(b" \t\r\n") if flags & cri.TRIM_LEADING else body
        body = body.rstrip(b" \t\r\n") if flags & cri.TRIM_TRAILING else body
        if not body:
            empty += 1
            continue
        record = LogRecord.FromString(ATTRIBUTES[2])
        record.observed_time_unix_nano = OBSERVED
        cut = body[:limit]
        while len(body) > limit and len(cut) > max(0, limit - 3) and 0x80 <= body[len(cut)] < 0xC0:
            cut = cut[:-1]
        truncated += len(body) > limit
        try:
            record.body.string_value = cut.decode()
        except UnicodeDecodeError:
            record.body.bytes_value = cut
        if len(body) > limit:
            record.attributes.add(key=cri.TRUNCATED_ATTRIBUTE).value.bool_value = True
        records.append(record)
    if records:
        request.resource_logs.add(resource=RESOURCE).scope_logs.add(log_records=records)
    return Parsed(request.SerializeToString(), len(records), used, 0, empty, 0, truncated, 0, consumed, left)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(bodies | st.just(b"\n"), max_size=10)
    .map(b"".join)
    .flatmap(
        lambda chunk: st.tuples(
            st.just(chunk), st.lists(st.integers(0, len(chunk)), max_size=12).map(lambda cuts: sorted(cuts)[: len(cuts) // 2 * 2])
        )
    ),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([1, 4, 100]),
    st.sampled_from([0, 4, 8, 12]),
)
def test_spans_become_records_in_every_form(
    cri_forms: list[ModuleType], case: tuple[bytes, list[int]], most: int, limit: int, flags: int
) -> None:
    chunk, spans = case
    for form in cri_forms:
        parsed = form.parse_spans(chunk, array("q", spans), RESOURCE.SerializeToString(), ATTRIBUTES[2], OBSERVED, most, limit, flags)
        assert parsed == twin_spans(chunk, spans, most, limit, flags)


@pytest.mark.parametrize("spans", [[0, 4], [2, 1], [-1, 1], [0, 2, 1, 3]], ids=["past-the-end", "backwards", "negative", "overlapping"])
def test_wrong_spans_are_refused(cri_forms: list[ModuleType], spans: list[int]) -> None:
    for form in cri_forms:
        with pytest.raises(ValueError, match="is not within"):
            form.parse_spans(b"abc", array("q", spans), b"", b"", OBSERVED, 10, 10)
