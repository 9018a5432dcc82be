"""Every encoding there and back, and every way a body can be wrong."""

import contextlib
import gzip
import zlib

import cramjam
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from lockgate.net.compression import DECODABLE, CorruptBody, TooLarge, compress, decompress

ENCODINGS = ["gzip", "zstd", "deflate", "zlib", "snappy", "none", ""]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("level", [None, 0, 1, 5, 9])
def test_a_body_survives_there_and_back(encoding: str, level: int | None) -> None:
    body = b"some text, " * 500
    packed = compress(body, encoding, level)
    assert decompress(packed, encoding, len(body)) == body
    with pytest.raises(TooLarge):
        decompress(packed, encoding, len(body) - 1)


@given(body=st.binary(max_size=300), encoding=st.sampled_from(sorted(DECODABLE)), limit=st.integers(0, 2000))
def test_any_bytes_give_a_body_within_the_limit_or_a_refusal(body: bytes, encoding: str, limit: int) -> None:
    with contextlib.suppress(CorruptBody, TooLarge):
        assert len(decompress(body, encoding, limit)) <= limit


@given(body=st.binary(min_size=1, max_size=300), encoding=st.sampled_from(["gzip", "zstd", "deflate", "snappy"]), data=st.data())
def test_a_changed_byte_gives_a_body_within_the_limit_or_a_refusal(body: bytes, encoding: str, data: st.DataObject) -> None:
    packed = bytearray(compress(body, encoding))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptBody, TooLarge):
        assert len(decompress(bytes(packed), encoding, 1000)) <= 1000


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        pytest.param(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", id="two-gzip-members"),
        pytest.param(gzip.compress(b"ab") + b"\0" * 9, "gzip", id="zero-padding"),
        pytest.param(zstd.compress(b"a") + zstd.compress(b"b"), "zstd", id="two-zstd-frames"),
        pytest.param(zlib.compress(b"ab")[2:-4], "deflate", id="bare-deflate"),
        pytest.param(bytes(cramjam.snappy.compress_raw(b"ab")), "snappy", id="block-snappy"),
    ],
)
def test_what_peers_really_send_is_read(packed: bytes, encoding: str) -> None:
    assert decompress(packed, encoding, 10) == b"ab"


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "snappy"])
def test_a_bomb_in_parts_is_stopped_too(encoding: str) -> None:
    with pytest.raises(TooLarge):
        decompress(compress(bytes(1 << 20), encoding) * (1 if encoding == "snappy" else 50), encoding, 1 << 19)


def test_a_zstd_window_that_asks_for_much_memory_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(bytes(1 << 20)) + packer.flush()
    with pytest.raises(CorruptBody, match="zstd"):
        decompress(packed, "zstd", 1 << 30)
