"""Columns of log records, handed to DuckDB as an Arrow stream: it reads them where they are, and parses nothing.

Arrow's C stream interface needs no library on DuckDB's side; nanoarrow (3 MB, against pyarrow's 170) makes it of our buffers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import nanoarrow as na
from nanoarrow.c_array_stream import CArrayStream

from lockgate.wire.columns import TEXTS, LogColumns

_SCHEMA = na.struct(
    {"time_unix_nano": na.int64(), "severity_number": na.uint8(), "resource": na.uint64()} | dict.fromkeys(TEXTS, na.string())
)


class LogStream:
    """These columns, one Arrow array for each, with the resources' ids beside. May be read again and again."""

    def __init__(self, several: Iterable[tuple[LogColumns, Sequence[int]]]) -> None:
        self._schema = na.c_schema(_SCHEMA)
        self._arrays = [self._array(columns, ids) for columns, ids in several if columns.records]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return CArrayStream.from_c_arrays(self._arrays, self._schema, move=False).__arrow_c_stream__(requested_schema)

    def _array(self, columns: LogColumns, ids: Sequence[int]) -> na.c_array.CArray:
        """`ids`: of each of the columns' resources."""
        records = columns.records
        resources = array("Q")
        for id, (_, count) in zip(ids, columns.resources, strict=True):
            resources += array("Q", [id]) * count
        children = [
            na.c_array_from_buffers(na.int64(), records, [None, columns.time_unix_nano]),
            na.c_array_from_buffers(na.uint8(), records, [columns.severity_number_valid, columns.severity_number]),
            na.c_array_from_buffers(na.uint64(), records, [None, resources]),
            *(na.c_array_from_buffers(na.string(), records, [text.valid, text.ends, text.data]) for text in columns.texts),
        ]
        return na.c_array_from_buffers(self._schema, records, [None], children=children)
