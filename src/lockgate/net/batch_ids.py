"""How batches' ids cross a hop: two headers of HTTP, in gRPC the same as metadata.

An id is fixed when a batch becomes durable, and equal ids are the same records, so whoever stores or forwards them takes a batch that is
sent again, after a lost answer or a kill, once. A merged batch lists its parts, because the same parts may come in another company.
"""

from __future__ import annotations

import re

from lockgate.batch import Batch, Part

ID_HEADER, PARTS_HEADER = "X-Lockgate-Batch-Id", "X-Lockgate-Batch-Parts"
MAX_PARTS_BYTES = 8000
"""A longer list is not sent: servers refuse headers of more than 8 KiB (aiohttp's and nginx's defaults)."""

_ID = re.compile(r"[0-9A-Za-z_.:#-]{1,128}")


def headers_of(batch: Batch) -> dict[str, str]:
    """The headers that a request with this batch's payload, as it is, carries."""
    parts = ",".join(f"{part.id};{part.size}" for part in batch.parts)
    return {ID_HEADER: batch.id} | ({PARTS_HEADER: parts} if 0 < len(parts) <= MAX_PARTS_BYTES else {})


def is_id(text: str) -> bool:
    """Whether this may be taken for an id. It goes into logs and queues, so only what our own exporters would send is."""
    return _ID.fullmatch(text) is not None


def parts_in(header: str, size: int) -> list[Part]:
    """The parts of a payload of so many bytes; none where the header is not about such a one."""
    parts = []
    for item in header.split(",") if header else []:
        id, _, length = item.partition(";")
        if not is_id(id) or not length.isascii() or not length.isdigit() or len(length) > 10 or not int(length):
            return []
        parts.append(Part(id, int(length)))
    return parts if sum(part.size for part in parts) == size else []
