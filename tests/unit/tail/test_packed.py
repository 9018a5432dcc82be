"""A gzip file's content by position."""

import gzip
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockgate.tail.packed import Unpacked

CONTENT = b"".join(b"line %d of what was logged\n" % number for number in range(30_000))


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Callable[[bytes], Unpacked]]:
    descriptors: list[int] = []

    def make(stored: bytes) -> Unpacked:
        (tmp_path / "x.gz").write_bytes(stored)
        descriptors.append(os.open(tmp_path / "x.gz", os.O_RDONLY))
        return Unpacked(descriptors[-1])

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


def everything(unpacked: Unpacked, size: int = 50_000) -> bytes:
    content = b""
    while piece := unpacked.pread(size, len(content)):
        content += piece
    return content


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(gzip.compress(CONTENT), id="one-member"),
        pytest.param(b"".join(gzip.compress(CONTENT[i : i + 100_000]) for i in range(0, len(CONTENT), 100_000)), id="many-members"),
        pytest.param(gzip.compress(CONTENT) + gzip.compress(b""), id="an-empty-member"),
        pytest.param(gzip.compress(CONTENT) + bytes(100_000), id="padded"),
    ],
)
@pytest.mark.parametrize("size", [7000, 1 << 20])
def test_every_byte_comes_once(unpacked: Callable[[bytes], Unpacked], stored: bytes, size: int) -> None:
    reader = unpacked(stored)
    assert everything(reader, size) == CONTENT
    assert (reader.ended, reader.error, reader.end) == (True, "", len(CONTENT))


def test_any_position_gives_what_stands_there(unpacked: Callable[[bytes], Unpacked]) -> None:
    reader, choice = unpacked(gzip.compress(CONTENT)), random.Random(1)
    for _ in range(30):
        position, size = choice.randrange(len(CONTENT) + 1000), choice.randrange(100_000)
        assert reader.pread(size, position) == CONTENT[position : position + size]
        if choice.random() < 0.3:
            reader.pause()
        else:
            reader.forget(position)


@pytest.mark.parametrize(
    ("stored", "least"),
    [
        pytest.param(gzip.compress(CONTENT)[:-4], len(CONTENT) - 100, id="without-its-end"),
        pytest.param(gzip.compress(CONTENT)[:30_000], 100_000, id="half"),
        pytest.param(gzip.compress(CONTENT)[:30_000] + b"\xff" * 20 + gzip.compress(CONTENT)[30_020:], 100_000, id="damaged"),
        pytest.param(gzip.compress(CONTENT) + b"junk behind", len(CONTENT), id="junk-behind"),
        pytest.param(b"this is no gzip at all", 0, id="no-gzip"),
        pytest.param(b"", 0, id="empty"),
        pytest.param(b"\x1f\x8b", 0, id="two-bytes"),
    ],
)
def test_of_a_broken_file_what_is_good_is_given_and_the_reason_for_the_rest(
    unpacked: Callable[[bytes], Unpacked], stored: bytes, least: int
) -> None:
    reader = unpacked(stored)
    content = everything(reader)
    assert len(content) >= least
    assert CONTENT.startswith(content[:30_000])
    assert reader.ended
    assert reader.error


def test_10_mib_are_read_in_bounded_memory(unpacked: Callable[[bytes], Unpacked]) -> None:
    content = random.Random(1).randbytes(5 << 20).hex().encode()
    reader, position, size = unpacked(gzip.compress(content, 1)), 0, 1 << 20
    del content
    tracemalloc.start()
    try:
        assert reader.pread(10, 9 << 20)  # skipping keeps nothing
        reader.pause()
        while piece := reader.pread(size, position):
            position += len(piece)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert position == 10 << 20
