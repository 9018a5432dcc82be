"""`lockgate query`: SQL to a running store."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, Literal

from lockgate.cli.asking import Refused, asking, visible


def query(sql: str, /, *, format: Literal["table", "json", "csv"] = "table", max_rows: int = 1000, state: Path | None = None) -> int:
    """Ask a running store in SQL (DuckDB's dialect): the views are logs, metrics and traces. Nothing can be changed.

    Parameters
    ----------
    sql
        One SELECT, such as "SELECT namespace, pod, count(*) FROM logs GROUP BY ALL"; "DESCRIBE logs" names the columns.
    format
        A table for people, JSON (one object a line) or CSV for programs.
    max_rows
        How many rows to show at most; the store has a bound of its own.
    state
        The state directory of the store; $LOCKGATE_STATE, or .lockgate here.
    """
    body = json.dumps({"sql": sql, "max_rows": max_rows}).encode()
    try:
        with asking(state, "POST", "/query", body=body) as answer:
            result = json.loads(answer.read())
    except Refused as error:
        print(f"lockgate: {error}", file=sys.stderr)
        return 1
    columns, rows = result["columns"], result["rows"]
    match format:
        case "json":
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
        case "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(row[column]) for column in columns] for row in rows)
        case "table":
            _table(columns, rows)
    if result["truncated"]:
        print(f"lockgate: {result['truncated']}; ask for less, or raise --max-rows", file=sys.stderr)
    return 0


LEAST_WIDTH = 12
"""Characters that a folded column needs to be read; where columns have less, each row stands upright."""


def _table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[Text(visible(_cell(row[column]))) for column in columns] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_number = any(isinstance(row[column], int | float) and not isinstance(row[column], bool) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    width = Measurement.get(console, console.options.update(max_width=1 << 30), table).maximum
    if console.is_terminal and width > console.width and len(columns) * LEAST_WIDTH > console.width:
        for number, row in enumerate(cells, 1):
            upright = Table(box=None, pad_edge=False, show_header=False, title=f"row {number}", title_justify="left")
            upright.add_column(style="bold", no_wrap=True)
            upright.add_column(overflow="fold")
            for column, cell in zip(columns, row, strict=True):
                upright.add_row(column, cell)
            console.print(upright)
    elif console.is_terminal:
        console.print(table)
    else:  # what reads a pipe finds a row in a line
        Console(width=max(width, 1)).print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)
