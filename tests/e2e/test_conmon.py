"""The real writer's format on disk, as the container kernel must read it."""

import asyncio
import os
import re
from pathlib import Path

from support.conmon import needs_conmon, running_container

pytestmark = needs_conmon

RECORD = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d) (stdout|stderr) ([PF]) (.*)\n")


def records(log: Path) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, content) of each line of a log in which each is well-formed."""
    lines = log.read_bytes().splitlines(keepends=True)
    matches = [RECORD.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [(match[2], match[3], match[4]) for match in matches if match]


def joined(log: Path, stream: bytes = b"stdout") -> bytes:
    return b"".join(content + (b"\n" if tag == b"F" else b"") for of, tag, content in records(log) if of == stream)


async def test_each_line_is_a_full_record_with_time_and_stream(tmp_path: Path) -> None:
    async with running_container(tmp_path / "0.log", tmp_path / "bundle") as container:
        container.stdout.write(b"one\n\n  two \xff\r\n")
        container.stderr.write(b"three\n")
        await container.exit()
    stdout = [(tag, content) for stream, tag, content in records(tmp_path / "0.log") if stream == b"stdout"]
    assert stdout == [(b"F", b"one"), (b"F", b""), (b"F", b"  two \xff\r")]
    assert (b"stderr", b"F", b"three") in records(tmp_path / "0.log")


async def test_a_long_line_is_parts_of_at_most_8_kib_closed_by_a_full_record(tmp_path: Path) -> None:
    text = b"x" * 20_000 + b"\n" + b"next\n"
    async with running_container(tmp_path / "0.log", tmp_path / "bundle") as container:
        container.stdout.write(text)
        await container.exit()
    parts = records(tmp_path / "0.log")
    first_full = [tag for _, tag, _ in parts].index(b"F")
    assert first_full >= 2
    assert max(len(content) for _, _, content in parts) <= 8192
    assert joined(tmp_path / "0.log") == text
    assert parts[-1] == (b"stdout", b"F", b"next")


async def test_output_without_a_newline_ends_as_a_part_that_nothing_closes(tmp_path: Path) -> None:
    async with running_container(tmp_path / "0.log", tmp_path / "bundle") as container:
        container.stdout.write(b"whole\nunfinished")
        await container.exit()
    assert records(tmp_path / "0.log")[-1] == (b"stdout", b"P", b"unfinished")


async def test_rotation_in_the_middle_of_a_line_puts_its_end_in_the_next_file(tmp_path: Path) -> None:
    log, rotated = tmp_path / "0.log", tmp_path / "0.log.20260102-030405"
    async with running_container(log, tmp_path / "bundle") as container:
        container.stdout.write(b"a" * 100_000)
        while log.stat().st_size < 50_000:  # the rest is read after the rotation
            await asyncio.sleep(0.005)
        await container.rotate(rotated)
        container.stdout.write(b"b\nlast\n")
        await container.exit()
    assert {tag for _, tag, _ in records(rotated)} == {b"P"}
    assert joined(rotated) + joined(log) == b"a" * 100_000 + b"b\nlast\n"
    assert records(log)[-1] == (b"stdout", b"F", b"last")


async def test_a_log_past_its_maximum_size_starts_anew_and_the_old_one_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    async with running_container(log, tmp_path / "bundle", log_max_size_bytes=10_000) as container:
        with log.open("rb") as first:
            for number in range(500):
                container.stdout.write(b"line %d\n" % number)
            await container.exit()
            assert os.fstat(first.fileno()).st_nlink == 0
    contents = [content for _, _, content in records(log)]
    assert 0 < log.stat().st_size <= 10_000
    assert contents == [b"line %d" % number for number in range(500 - len(contents), 500)]
