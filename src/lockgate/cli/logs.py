"""`lockgate logs`: log lines from a running store, as `kubectl logs` would show them, but of many pods, and of pods that are gone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from lockgate.cli.asking import Refused, asking, lines, visible


def logs(
    *,
    namespace: str = "",
    pod: str = "",
    container: str = "",
    since: str = "",
    grep: str = "",
    limit: int = 1000,
    follow: bool = False,
    output: Literal["text", "json"] = "text",
    state: Path | None = None,
) -> int:
    """Show log lines from a running store, the newest last.

    Parameters
    ----------
    namespace
        Only this namespace; * and ? match anything and any character.
    pod
        Only these pods; * and ? as above: cart-*.
    container
        Only these containers; * and ? as above.
    since
        Only lines of the last 10m, 2h, ...
    grep
        Only lines that match this regular expression (RE2).
    limit
        How many of the newest lines to show at first.
    follow
        Go on with new lines as they arrive, until Ctrl-C.
    output
        Text, or one JSON object a line.
    state
        The state directory of the store; $LOCKGATE_STATE, or .lockgate here.
    """
    chosen = {"namespace": namespace, "pod": pod, "container": container, "since": since, "grep": grep}
    parameters = {key: value for key, value in chosen.items() if value} | {"limit": str(limit), "follow": "true" if follow else "false"}
    try:
        with asking(state, "GET", "/logs", parameters) as answer:
            for row in lines(answer):
                print(_text(row) if output == "text" else json.dumps(row, ensure_ascii=False), flush=follow)
    except Refused as error:
        print(f"lockgate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # how following ends
    return 0


def _text(row: dict[str, object]) -> str:
    where = "/".join(str(row[key]) for key in ("namespace", "pod", "container") if row.get(key))
    severity = f" {row['severity']}" if row.get("severity") else ""
    body = row.get("body")
    return visible(f"{row.get('time') or row.get('received')} {where or '-'}{severity} {'' if body is None else body}")
