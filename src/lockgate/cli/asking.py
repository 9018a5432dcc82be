"""Asking a running program over loopback, with the token that its state directory holds. Standard library alone: a command starts fast."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from lockgate.net.access import Access, NotRunning, default_state_directory, find


class Refused(Exception):
    """It answered, but not the question; the text is its reason."""


@contextmanager
def asking(
    state: Path | None, method: str, path: str, parameters: dict[str, str] | None = None, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The store's answer to one request; raises NotRunning, or Refused with the reason."""
    with asked(find(state or default_state_directory()), method, path, parameters, body) as answer:
        yield answer


@contextmanager
def asked(
    access: Access, method: str, path: str, parameters: dict[str, str] | None = None, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer of what is reached so; raises NotRunning, or Refused with the reason."""
    host, _, port = access.address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port))
    target = f"{path}?{urlencode(parameters)}" if parameters else path
    try:
        try:
            connection.request(method, target, body, {"Authorization": f"Bearer {access.token}"})
            answer = connection.getresponse()
        except OSError as error:
            raise NotRunning(f"what should answer at {access.address} does not: {error}; see its log") from None
        if answer.status != 200:
            text = answer.read().decode("utf-8", "replace")
            try:
                raise Refused(json.loads(text)["error"])
            except (ValueError, KeyError, TypeError):
                raise Refused(f"status {answer.status}: {text[:500]}") from None
        yield answer
    finally:
        connection.close()


def lines(answer: http.client.HTTPResponse) -> Iterator[dict[str, object]]:
    """The objects of an NDJSON answer as they come; raises Refused where the last one says why it ends."""
    for line in answer:
        row = json.loads(line)
        if set(row) == {"error"}:
            raise Refused(row["error"])
        yield row


_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if code not in (0x09, 0x0A)}


def visible(text: str) -> str:
    """The text for a terminal: control characters as \\xNN, because a log line is whatever a pod wrote, escape sequences included."""
    return text.translate(_VISIBLE) if sys.stdout.isatty() else text
