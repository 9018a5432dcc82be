"""Fuzzes the compiled kernels against their uncompiled forms: `make soak` does it with sanitized builds.

`python tests/soak/kernels.py DIRECTORY SECONDS [SEED]`; DIRECTORY is where `setup.py build_ext --build-lib` put the kernels. Ends with an
AssertionError (or the sanitizer's abort) on the first difference; the seed is printed, and gives the same inputs again.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.jaeger import datagram, post_spans, posted, varied_batch  # found there

import lockgate.wire
from lockgate.wire.protobuf import DecodeError, delimited, key_values

TIMES = [b"2024-04-13T07:59:37.505201169Z", b"2024-04-13T07:59:37Z", b"1969-12-31T20:00:00-23:59", b"2262-04-11T23:47:16.854775807Z", b""]
PIECES = [
    b" stdout ",
    b" stderr ",
    b"F",
    b"P",
    b"F:x",
    b" ",
    b"\n",
    b"\r\n",
    b"h\xc3\xa9llo",
    b"\xe2\x82",
    b"\xff",
    b"x" * 40,
    b"{",
    b"}",
    b",",
]
PIECES += [
    b'"log"',
    b'"stream"',
    b'"time"',
    b":",
    b'"stdout"',
    b'"a\\n"',
    b"\\u000a",
    b"\\ud83d\\ude00",
    b'"attrs"',
    b"[" * 31,
    b"]" * 31,
    b"-1.5e9",
]
LINE = b'%s stdout P part\n%s stderr F whole\n{"log":"a\\u00e9\\n","stream":"stdout","time":"%s"}\n'
PAIR = key_values(6, [("k", "v"), ("n", 7), ("f", 0.5), ("b", b"\xff"), ("t", True)])
RECORD = b"\x09" + bytes(8) + delimited(5, b"\x0a\x01x") + PAIR + delimited(9, b"t" * 16) + delimited(10, b"s" * 8)
OTHER = b"\x09" + bytes(8) + key_values(6, [("n", 8), ("k", "v"), ("absent", "")])
LABELS = ((b"__name__", b"up_total"), (b"job", b"j"), (b"instance", b"i"), (b"pod", b"h\xc3\xa9"), (b"empty", b""))
SAMPLES = delimited(2, b"\x09" + bytes(8) + b"\x10\x80\x01") + delimited(2, b"\x09\x02" + bytes(5) + b"\xf0\x7f\x10\x05\x18\x01")
NAMED = b"".join(delimited(1, delimited(1, key) + delimited(2, text)) for key, text in LABELS)
WRITES = (
    delimited(1, NAMED + SAMPLES) * 2 + delimited(1, NAMED[:20] + delimited(3, b"")) + delimited(3, b"\x08\x01" + delimited(2, b"up")),
    b"".join(delimited(4, text) for text in (b"", *(text for pair in LABELS for text in pair)))
    + delimited(5, delimited(1, bytes(range(1, 11))) + SAMPLES + delimited(5, b"\x08\x01\x18\x02\x20\x03"))
    + delimited(5, b"\x08\x01\x08\x02" + SAMPLES + b"\x30\x07" + delimited(3, b"")),
)
"""Of remote write 1.0 and 2.0."""
REQUEST = delimited(1, delimited(1, key_values(1, [("service.name", "x")])) + delimited(2, delimited(2, RECORD) * 3 + delimited(2, OTHER)))


def kernel(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name == "lockgate.wire.thrift":
        sys.modules[name] = module  # with which jaeger reads
    spec.loader.exec_module(module)
    return module


def mutated(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at, size = chance.randint(0, len(data)), chance.choice([0, 0, 1, 2, 20])
        data = data[:at] + chance.choice([chance.randbytes(chance.randint(0, 3)), *PIECES]) + data[at + size :]
    return data


def chunk(chance: random.Random) -> bytes:
    lines = b"".join(LINE % (chance.choice(TIMES), chance.choice(TIMES), chance.choice(TIMES)) for _ in range(chance.randint(0, 3)))
    return mutated(chance, lines if chance.random() < 0.7 else b"".join(chance.choices(PIECES + TIMES, k=chance.randint(0, 20))))


def outcome(work: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except (DecodeError, ValueError) as error:
        return str(error)


def regrouped(records: ModuleType, payload: bytes, keys: list[bytes], shift: int) -> Any:
    """All that the kernel says of the payload, and its records dealt out to homes, some of them to none."""
    found = records.index(payload, keys)
    if found is None:
        return None
    homes = [(number + shift) % 4 - 1 for number in range(len(found.groups))]
    frames = [(b"", [(b"", home)]) for home in sorted(set(homes) - {-1})]
    return found.entries, found.scopes, found.groups, [records.gather(found, homes, frames, remove) for remove in (False, True)]


def columned(columns: ModuleType, payload: bytes) -> Any:
    """All that the kernel makes of the payload, where the caller describes what is left to it as a text that says nothing."""
    row = columns.Row(1, None, (b"x", None, b"{}", None, None, None))
    found = columns.log_columns(payload, lambda encoded: row)
    return found and (*found[:-1], [(text.valid, bytes(text.ends), bytes(text.data)) for text in found.texts])


def translated(jaeger: ModuleType, batch: bytes, binary: bytes, compact: bytes, message: bytes) -> list[Any]:
    """What the kernel makes of each of Jaeger's encodings."""
    agent = [outcome(jaeger.from_agent, binary, False), outcome(jaeger.from_agent, compact, True)]
    return [outcome(jaeger.from_thrift, batch), *agent, outcome(jaeger.from_protobuf, message)]


def skipped(thrift: ModuleType, data: bytes, compact: int) -> int:
    """Where a struct ends."""
    reader = thrift.Reader(data, bool(compact))
    reader.skip(thrift.STRUCT)
    return int(reader.at)


def written(series: ModuleType, payload: bytes, version: int, limit: int) -> Any:
    """All that the kernel says of the payload, and its samples, every other series left out."""
    found = series.scan(payload, version)
    told = (found.resources, found.metrics, found.metadata, found.refused, found.first_refused, found.first_reason, list(found.rows))
    is_sum = bytes(number % 2 for number in range(len(found.metrics)))
    skip = bytes(number % 3 == 2 for number in range(found.series))
    heads = [b"\x0a\x01r"] * len(found.resources), [b"\x0a\x01m"] * len(found.metrics)
    attributes = [found.attributes(number, 9, 1 << 20) for number in range(found.series) if found.rows[8 * number + 4] >= 0]
    try:
        return told, attributes, series.write(found, *heads, is_sum, skip, limit)
    except series.TooLarge:
        return told, attributes, None


def main() -> None:
    directory, seconds = Path(sys.argv[1]), float(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns()
    print("seed", seed, flush=True)
    source = Path(lockgate.wire.__file__).parent
    names = ("columns", "cri", "otlp", "records", "resources", "series", "thrift", "jaeger")
    assert set(names) == {path.name.partition(".")[0] for path in directory.rglob("*.so")}, "a kernel that is not fuzzed here"
    compiled = [kernel(f"lockgate.wire.{name}", next(directory.rglob(f"{name}.*.so"))) for name in names]
    plain = [kernel(f"plain_{name}", source / f"{name}.py") for name in names]
    assert all(module.compiled for module in compiled) and not any(module.compiled for module in plain)
    columns, cri, otlp, records, resources, series, thrift, jaeger = compiled
    plain_columns, plain_cri, plain_otlp, plain_records, plain_resources, plain_series, plain_thrift, plain_jaeger = plain
    sent = varied_batch()
    batches = (posted(sent), datagram(sent, compact=False), datagram(sent, compact=True), bytes(post_spans(sent).SerializeToString()))
    chance, end, runs = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data, resource, most = chunk(chance), chance.randbytes(chance.choice([0, 1, 200])), chance.choice([1, 2, 1000])
        limit, line_format, flags = chance.choice([1, 2, 5, 30, 2**62]), chance.randint(0, 3), chance.randint(0, 15)
        spans = array("q", sorted(chance.randint(0, len(data)) for _ in range(2 * chance.randint(0, 4))))
        lines = (data, resource, (PAIR, b"", b"other"), chance.choice([0, 1, 2**64 - 1]), most, limit, line_format, flags)
        assert outcome(cri.parse, *lines) == outcome(plain_cri.parse, *lines), lines
        parts = (data, spans, resource, PAIR, 1, most, limit, flags)
        assert outcome(cri.parse_spans, *parts) == outcome(plain_cri.parse_spans, *parts), parts
        request = (mutated(chance, REQUEST), chance.randint(0, 2))
        assert outcome(otlp.validate, *request) == outcome(plain_otlp.validate, *request), request
        assert outcome(resources.locate, request[0]) == outcome(plain_resources.locate, request[0]), request
        assert columned(columns, request[0]) == columned(plain_columns, request[0]), request
        keys, shift = chance.sample([b"k", b"n", b"f", b"t", b"absent"], chance.randint(0, 5)), chance.randint(0, 3)
        assert regrouped(records, request[0], keys, shift) == regrouped(plain_records, request[0], keys, shift), (request, keys, shift)
        version = chance.choice([1, 2])
        writes = (mutated(chance, chance.choice([WRITES[version - 1], *WRITES])), version, chance.choice([0, 100, 1 << 20]))
        assert outcome(written, series, *writes) == outcome(written, plain_series, *writes), writes
        damaged = [mutated(chance, each) for each in batches]
        assert [translated(jaeger, *damaged)] == [translated(plain_jaeger, *damaged)], damaged
        for compact, each in enumerate((damaged[0], damaged[2][14:])):
            assert outcome(skipped, thrift, each, compact) == outcome(skipped, plain_thrift, each, compact), each
        runs += 1
    print(runs, "rounds, no difference")


if __name__ == "__main__":
    main()
