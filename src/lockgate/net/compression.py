"""Content-Encoding both ways: gzip (isal), zstd, deflate and snappy, with a bound on what a body may grow to.

A bound that is checked while inflating, not after: a body of 1 MB can hold 1 GB. What takes long runs in a thread: isal, zstd and
cramjam release the interpreter lock.
"""

import asyncio
import zlib
from concurrent.futures import Executor
from typing import Literal

from backports import zstd
from isal import isal_zlib
from isal.igzip_lib import IsalError

OFFLOAD_BYTES = 4096
"""Bodies larger than this are compressed and inflated in a thread; for smaller ones the hand-over costs more than the work."""

Encoding = Literal["gzip", "zstd", "deflate", "zlib", "snappy", "none", ""]
"""What a body may be encoded with, in the collector's words; `none` and empty for as it is."""

DECODABLE = frozenset({"", "identity", "gzip", "x-gzip", "zstd", "deflate", "zlib", "snappy", "x-snappy-framed"})

_SNAPPY_MAGIC = b"\xff\x06\x00\x00sNaPpY"
_ZSTD_WINDOW_LOG = 23
"""A window of 8 MB, RFC 9659's limit for the zstd content coding: a larger one is memory that a few bytes of header ask for."""


class CorruptBody(ValueError):
    """This body is not what its Content-Encoding says."""


class TooLarge(Exception):
    """This body is larger, inflated, than it may be."""


def compress(body: bytes, encoding: str, level: int | None = None) -> bytes:
    """The body in this encoding; without a level, the fastest."""
    match encoding:
        case "" | "none":
            return body
        case "gzip":
            # isal's levels end at 3; beyond it the user wants size, and gets it from zlib.
            module = isal_zlib if level is None or level <= 3 else zlib
            return bytes(module.compress(body, 1 if level is None else level, 31))
        case "deflate" | "zlib":
            return (
                zlib.compress(body, level)
                if level is not None and level > 3
                else bytes(isal_zlib.compress(body, 1 if level is None else level, 15))
            )
        case "zstd":
            return zstd.compress(body, 1 if level is None else level)
        case "snappy":
            import cramjam  # here and below: 1.5 MB that few need

            return bytes(cramjam.snappy.compress(body))
    raise ValueError(f"unknown encoding {encoding!r}")


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """What this body holds, of at most `limit` bytes; raises TooLarge or CorruptBody."""
    match encoding:
        case "" | "none" | "identity":
            if len(body) > limit:
                raise TooLarge
            return body
        case "gzip" | "x-gzip":
            return _inflate(body, limit, 31)
        case "deflate" | "zlib":
            # "deflate" means the zlib format (RFC 9110, 8.4.1.2), but some clients send it bare; the header's check bits tell.
            is_zlib = len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
            return _inflate(body, limit, 15 if is_zlib else -15)
        case "zstd":
            return _unzstd(body, limit)
        case "snappy" | "x-snappy-framed":
            return _unsnappy(body, limit)
    raise ValueError(f"unknown encoding {encoding!r}")


async def compress_off_loop(executor: Executor, body: bytes, encoding: str, level: int | None = None) -> bytes:
    """`compress`, in a thread where the body is not small."""
    if len(body) <= OFFLOAD_BYTES or encoding in ("", "none"):
        return compress(body, encoding, level)
    return await asyncio.get_running_loop().run_in_executor(executor, compress, body, encoding, level)


def _inflate(body: bytes, limit: int, window_bits: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        member = isal_zlib.decompressobj(window_bits)
        try:
            piece = member.decompress(body, limit - size + 1)
        except (IsalError, ValueError) as error:  # type: ignore[misc]  # the stub declares the class as an instance
            raise CorruptBody(f"not valid gzip or deflate: {error}") from error
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLarge
        if not member.eof:
            raise CorruptBody("the compressed body ends early")
        body = member.unused_data
        # Several members in a row are one body (RFC 1952, 2.2); zero padding after the last is as common as harmless.
        if not body.strip(b"\0"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unzstd(body: bytes, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while body:
        frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
        try:
            piece = frame.decompress(body, limit - size + 1)
        except zstd.ZstdError as error:
            raise CorruptBody(f"not valid zstd: {error}") from error
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLarge
        if not frame.eof:
            raise CorruptBody("the compressed body ends early")
        body = frame.unused_data
    if not pieces:
        raise CorruptBody("the compressed body is empty")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unsnappy(body: bytes, limit: int) -> bytes:
    """Framed or block format, told apart by the framed one's first ten bytes, as the collector does. The lengths are checked first."""
    import cramjam

    try:
        if not body.startswith(_SNAPPY_MAGIC):
            if _varint(body, 0) > limit:
                raise TooLarge
            return bytes(cramjam.snappy.decompress_raw(body))
        position = size = 0
        while position < len(body):
            kind, length = body[position], int.from_bytes(body[position + 1 : position + 4], "little")
            # Snappy framing format: 0 is compressed data, 1 is plain data, each behind a checksum of four bytes.
            size += _varint(body, position + 8) if kind == 0 else length - 4 if kind == 1 else 0
            if size > limit:
                raise TooLarge
            position += 4 + length
        return bytes(cramjam.snappy.decompress(body))
    except (cramjam.DecompressionError, IndexError, ValueError) as error:
        raise CorruptBody(f"not valid snappy: {error}") from error


def _varint(body: bytes, position: int) -> int:
    value = shift = 0
    while shift < 35:
        byte = body[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        position, shift = position + 1, shift + 7
    raise ValueError("a length is longer than five bytes")
