"""Fluent Forward messages -> OTLP log records (https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1).

A record becomes what the collector's fluentforward receiver makes of it: the key `log` or `message` is the body (of both the last), every
other key an attribute, `fluent.tag` the tag. Values are walked in the stream and never built as objects: a byte of msgpack may be an empty
map, which as a Python object takes sixty. What comes out is given in pieces, because the tag is repeated in every record: 3 bytes in may be
1,000 out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from lockgate.wire.protobuf import DecodeError, delimited, varint

MAX_DEPTH = 20
"""Lists and maps in each other. Protobuf readers end at 100 messages, and a level takes up to 3."""
_MAX_TAG_BYTES = 1024
_MAX_OPTIONS_BYTES = 64 << 10
_MAX_CHUNK_BYTES = 1024
_MAX_KEYS = 65536

_TO_THE_END, _BARE = -1, -2
_BODIES = (b"log", b"message")
_EMPTY_RESOURCE = b"\x0a\x00"
_MAX_TIME = 2**64 // 10**9


class _Extension(NamedTuple):
    code: int
    data: bytes


class Framer:
    """Cuts a stream of bytes into whole msgpack messages; holds at most `max_bytes` of an unfinished one."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._buffer = bytearray()
        self._cut = 0
        """Where in the stream the buffer begins."""
        # It holds the unfinished string beside us, and never more than that: it skips as far as it can.
        self._scanner = msgpack.Unpacker(max_buffer_size=2 * max_bytes + (1 << 20))

    @property
    def unfinished(self) -> int:
        """Bytes of a message whose end has not come yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that these bytes complete. Raises DecodeError for what is no message, or too long a one, behind those before it."""
        self._buffer += data
        self._scanner.feed(data)
        while self._buffer:
            if not _is_array(self._buffer[0]):
                raise DecodeError(f"a message begins with the byte 0x{self._buffer[0]:02x}, which opens no array")
            try:
                self._scanner.skip()
            except msgpack.OutOfData:
                break
            except (ValueError, msgpack.UnpackException) as error:
                raise DecodeError(f"not msgpack: {error or type(error).__name__}") from error
            length = self._scanner.tell() - self._cut
            self._cut += length
            if length > self._max:
                break
            message = bytes(self._buffer[:length])
            del self._buffer[:length]
            yield message
        if len(self._buffer) > self._max:
            raise DecodeError(f"a message has more than the {self._max} bytes that are accepted")


@dataclass(frozen=True, slots=True)
class Message:
    """One message, its envelope read, its entries not."""

    tag: bytes
    entries: bytes
    """What holds the entries; still compressed where `compressed`."""
    start: int
    """Where they begin in it."""
    count: int
    """How many there are; _TO_THE_END where they end with the bytes, _BARE for one that stands without an array (Message mode)."""
    compressed: bool
    chunk: bytes
    """What to acknowledge; empty for nothing."""


def read_message(raw: bytes) -> Message:
    """The envelope of one message. Raises DecodeError."""
    reader = _reader(raw)
    try:
        length = reader.read_array_header()
        tag = _string(reader, raw, "tag")
        if len(tag) > _MAX_TAG_BYTES:
            raise DecodeError(f"the tag has {len(tag)} bytes; at most {_MAX_TAG_BYTES} are accepted")
        start = reader.tell()
        kind, entries, count, most = raw[start], raw, _BARE, 3
        if _is_array(kind):
            count = reader.read_array_header()
            start = reader.tell()
            for _ in range(count):
                reader.skip()
        elif _is_bytes(kind):
            entries, start, count = reader.unpack(), 0, _TO_THE_END
        else:
            reader.skip()
            reader.skip()
            most = 4
        if not most - 1 <= length <= most:
            raise DecodeError(f"a message of {length} items, where {most - 1} or {most} belong")
        options: Any = {}
        if length == most:
            if len(raw) - reader.tell() > _MAX_OPTIONS_BYTES:
                raise DecodeError(f"the options have more than {_MAX_OPTIONS_BYTES} bytes")
            options = reader.unpack() or {}
    except DecodeError:
        raise
    except (ValueError, IndexError, RecursionError, TypeError, msgpack.UnpackException) as error:
        raise DecodeError(f"no Fluent Forward message: {error or type(error).__name__}") from error
    if not isinstance(options, dict):
        raise DecodeError("the options are no map")
    if options.get(b"fluent_signal", 0) not in (0, None):
        raise DecodeError("Fluent Bit's metrics and traces are not accepted here, only logs; match logs alone in its forward output")
    chunk, compression = options.get(b"chunk", b""), options.get(b"compressed", b"")
    if not isinstance(chunk, bytes) or len(chunk) > _MAX_CHUNK_BYTES:
        raise DecodeError(f"the option chunk is no string of at most {_MAX_CHUNK_BYTES} bytes")
    if compression not in (b"", b"text", b"gzip"):
        raise DecodeError(f"entries compressed by {compression!r}; gzip is accepted")
    return Message(tag, entries, start, count, compression == b"gzip" and count == _TO_THE_END, chunk)


def acknowledgement(chunk: bytes) -> bytes:
    """The answer to a message with this chunk."""
    return b"\x81\xa3ack" + msgpack.packb(chunk.decode("utf-8", "surrogateescape"), unicode_errors="surrogateescape")


def requests(messages: list[Message], observed_unix_nano: int, max_bytes: int) -> Iterator[bytes]:
    """The records of these messages (inflated) as export requests of about `max_bytes` each, in order. Raises DecodeError, behind those of
    the messages before the faulty one."""
    keys: dict[bytes, bytes] = {}
    observed = b"\x59" + struct.pack("<Q", observed_unix_nano)
    held: list[bytes] = []
    size = 0
    for message in messages:
        complete = len(held)  # records of messages before this one
        tag = b"\x32" + _length(_key(b"fluent.tag", keys) + _delimited(b"\x12", _text(message.tag)))
        try:
            for record in _records(message, keys):
                fields = record + tag + observed
                held.append(_delimited(b"\x12", fields))
                size += len(fields)
                if size >= max_bytes:
                    yield _request(held)
                    held, size, complete = [], 0, 0
        except (ValueError, IndexError, struct.error, msgpack.UnpackException) as error:
            if complete:
                yield _request(held[:complete])
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"malformed entries: {error or type(error).__name__}") from error
    if held:
        yield _request(held)


def _request(records: list[bytes]) -> bytes:
    return delimited(1, _EMPTY_RESOURCE + delimited(2, b"".join(records)))


def _records(message: Message, keys: dict[bytes, bytes]) -> Iterator[bytes]:
    """The fields of each record."""
    raw = message.entries
    reader = _reader(raw)
    reader.read_bytes(message.start)
    if message.count == _BARE:
        yield _record(reader, raw, keys)
        return
    number = 0
    while number != message.count and not (message.count == _TO_THE_END and reader.tell() == len(raw)):
        if (length := reader.read_array_header()) != 2:
            raise DecodeError(f"an entry of {length} items, where time and record belong")
        yield _record(reader, raw, keys)
        number += 1


def _record(reader: Any, raw: bytes, keys: dict[bytes, bytes]) -> bytes:
    metadata = b""
    if _is_array(raw[reader.tell()]):  # Fluent Bit's own form: [time, metadata]
        if reader.read_array_header() != 2:
            raise DecodeError("a time with metadata has not two items")
        time = _time(reader, raw)
        value = _value(reader, raw, keys, 0)
        metadata = b"" if value == b"\x32\x00" else b"\x32" + _length(_key(b"fluent.metadata", keys) + _delimited(b"\x12", value))
    else:
        time = _time(reader, raw)
    body, named = b"", b""
    attributes: dict[bytes, bytes] = {}
    if (size := reader.read_map_header()) > _MAX_KEYS:
        raise DecodeError(f"a record of {size} keys; at most {_MAX_KEYS} are accepted")
    for _ in range(size):
        key = _string(reader, raw, "key")
        value = _value(reader, raw, keys, 1)
        if key in _BODIES:
            if named not in (b"", key):  # the last one is the body, the other stays what it was
                attributes[named] = b"\x32" + _length(_key(named, keys) + _delimited(b"\x12", body))
            body, named = value, key
        elif key != b"fluent.tag":
            attributes[key] = b"\x32" + _length(_key(key, keys) + _delimited(b"\x12", value))
    return time + _delimited(b"\x2a", body) + b"".join(attributes.values()) + metadata


def _value(reader: Any, raw: bytes, keys: dict[bytes, bytes], depth: int) -> bytes:
    """The next value as the content of an AnyValue."""
    kind = raw[reader.tell()]
    is_map = _is_map(kind)
    if not is_map and not _is_array(kind):
        return _scalar(reader.unpack())
    if depth >= MAX_DEPTH:
        raise DecodeError(f"lists and maps are nested more than {MAX_DEPTH} deep")
    items = bytearray()  # not a list: each of its small entries would take fifty bytes
    if is_map:
        for _ in range(reader.read_map_header()):
            key = _string(reader, raw, "key")
            items += _delimited(b"\x0a", _key(key, keys) + _delimited(b"\x12", _value(reader, raw, keys, depth + 1)))
        return _delimited(b"\x32", bytes(items))
    for _ in range(reader.read_array_header()):
        items += _delimited(b"\x0a", _value(reader, raw, keys, depth + 1))
    return _delimited(b"\x2a", bytes(items))


def _scalar(value: Any) -> bytes:
    match value:
        case bytes():
            return _text(value)
        case None:
            return b""
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            # More than a signed 64-bit integer holds becomes text, as in the collector.
            return b"\x18" + varint(value & (1 << 64) - 1) if value < 1 << 63 else _text(b"%d" % value)
        case float():
            return b"\x21" + struct.pack("<d", value)
        case _Extension():
            return _delimited(b"\x3a", value.data)
        case msgpack.Timestamp():
            return _delimited(b"\x3a", value.to_bytes())
    raise DecodeError(f"a value of type {type(value).__name__}")


def _text(value: bytes) -> bytes:
    """A string, where it is one; else bytes, which lose nothing."""
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError:
            return _delimited(b"\x3a", value)
    return _delimited(b"\x0a", value)


def _time(reader: Any, raw: bytes) -> bytes:
    """time_unix_nano of a record; none where there is no such time."""
    kind = raw[reader.tell()]
    value = None if _is_map(kind) or _is_array(kind) else reader.unpack()
    match value:
        case _Extension(0, data) if len(data) == 8:  # EventTime
            seconds, nanoseconds = struct.unpack(">II", data)
            time = seconds * 10**9 + nanoseconds
        case bool():
            raise DecodeError("a time that is no time")
        case int():
            time = value * 10**9
        case float() if 0 <= value < _MAX_TIME:
            time = int(value * 1e9)
        case float():
            time = 0
        case _:
            raise DecodeError("a time that is neither a number nor an EventTime")
    return b"\x09" + struct.pack("<Q", time) if 0 < time < 1 << 64 else b""


def _string(reader: Any, raw: bytes, what: str) -> bytes:
    # Looked at before it is made: a key may be a list of a million lists.
    if not _is_bytes(raw[reader.tell()]):
        raise DecodeError(f"a {what} that is no string")
    return bytes(reader.unpack())


def _key(key: bytes, keys: dict[bytes, bytes]) -> bytes:
    """The key field of a KeyValue, remembered."""
    found = keys.get(key)
    if found is None:
        text = key if key.isascii() else key.decode("utf-8", "replace").encode()
        found = _delimited(b"\x0a", text)
        if len(keys) < 1024 and len(key) < 256:
            keys[key] = found
    return found


def _length(content: bytes) -> bytes:
    size = len(content)
    return (bytes((size,)) if size < 128 else varint(size)) + content


def _delimited(tag: bytes, content: bytes) -> bytes:
    size = len(content)
    return tag + (bytes((size,)) if size < 128 else varint(size)) + content


def _is_array(kind: int) -> bool:
    return 0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD)


def _is_map(kind: int) -> bool:
    return 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF)


def _is_bytes(kind: int) -> bool:
    return 0xA0 <= kind <= 0xBF or 0xC4 <= kind <= 0xC6 or 0xD9 <= kind <= 0xDB


def _reader(raw: bytes) -> Any:
    reader = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=max(len(raw), 1), ext_hook=_Extension)
    reader.feed(raw)
    return reader
