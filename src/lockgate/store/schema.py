"""The tables, and the columns that each signal's rows fill.

A row names its resource by a hash; the attributes of a resource, and the columns promoted from them, are kept once in `resources`. That
keeps a row narrow: with resource attributes in every row the write-ahead log was several times the telemetry. The views `logs`, `metrics`
and `traces` join them again, and are what users query.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockgate.batch import Signal

PROMOTED = {
    "namespace": ("k8s.namespace.name", "namespace"),
    "pod": ("k8s.pod.name", "pod"),
    "container": ("k8s.container.name", "container"),
    "node": ("k8s.node.name", "node"),
    "service": ("service.name", "service"),
    "source_category": ("_sourceCategory",),
}
"""Columns of `resources`, and the resource attributes that fill them: the first that is there. OpenTelemetry's names, then Sumo Logic's."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where a signal's rows go. `columns`: name -> type; a row is a JSON object with these keys (absent ones are NULL), or
    what columns of these names hold."""

    name: str
    view: str
    columns: dict[str, str]

    @property
    def create(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        return f"CREATE TABLE IF NOT EXISTS {self.name} (received TIMESTAMP, time TIMESTAMP, {columns})"

    @property
    def create_view(self) -> str:
        """Column order is what `SELECT *` shows: when, where, what, then the rest."""
        own = ", ".join(f"r.{name}" for name in self.columns if name != "resource")
        promoted = ", ".join(f"s.{name}" for name in PROMOTED)
        return (
            f"CREATE OR REPLACE VIEW {self.view} AS SELECT r.time, {promoted}, {own}, s.attributes AS resource, r.received "
            f"FROM {self.name} r LEFT JOIN resources s ON r.resource = s.id"
        )

    @property
    def insert(self) -> str:
        """Takes the rows as one JSON array, and when they were received in microseconds since 1970.

        DuckDB's JSON reader makes vectors of it: 0.4 M rows per CPU second, against 0.18 M for Python lists as parameters.
        """
        structure = ", ".join(f'"{name}": "{kind}"' for name, kind in self.columns.items())
        return (
            f"INSERT INTO {self.name} SELECT make_timestamp($received), make_timestamp(d.time_unix_nano // 1000), d.* "
            f"FROM (SELECT unnest(from_json($rows::VARCHAR, '[{{{structure}}}]')) AS d)"
        )

    @property
    def insert_columns(self) -> str:
        """Takes the rows from the columns that are registered as `arriving`; `received` as for `insert`. 0.4 to 0.7 M rows per CPU second,
        compression and checkpoints included, where rows as JSON made 0.1 M."""
        columns = ", ".join(self.columns)
        return (
            f"INSERT INTO {self.name} (received, time, {columns}) "
            f"SELECT make_timestamp($received), make_timestamp(time_unix_nano // 1000), {columns} FROM arriving"
        )


TABLES = {
    Signal.LOGS: Table(
        "log_records",
        "logs",
        {
            "severity": "VARCHAR",
            "body": "VARCHAR",
            "attributes": "JSON",
            "trace_id": "VARCHAR",
            "span_id": "VARCHAR",
            "severity_number": "UTINYINT",
            "scope": "VARCHAR",
            "event_name": "VARCHAR",
            "time_unix_nano": "BIGINT",
            "resource": "UBIGINT",
        },
    ),
    Signal.METRICS: Table(
        "metric_points",
        "metrics",
        {
            "name": "VARCHAR",
            "value": "DOUBLE",
            "attributes": "JSON",
            "kind": "VARCHAR",
            "unit": "VARCHAR",
            "temporality": "VARCHAR",
            "monotonic": "BOOLEAN",
            "count": "UBIGINT",
            "sum": "DOUBLE",
            "detail": "JSON",
            "scope": "VARCHAR",
            "start_unix_nano": "BIGINT",
            "time_unix_nano": "BIGINT",
            "resource": "UBIGINT",
        },
    ),
    Signal.TRACES: Table(
        "span_records",
        "traces",
        {
            "name": "VARCHAR",
            "duration_nano": "BIGINT",
            "status": "VARCHAR",
            "kind": "VARCHAR",
            "trace_id": "VARCHAR",
            "span_id": "VARCHAR",
            "parent_span_id": "VARCHAR",
            "status_message": "VARCHAR",
            "attributes": "JSON",
            "events": "JSON",
            "links": "JSON",
            "scope": "VARCHAR",
            "time_unix_nano": "BIGINT",
            "resource": "UBIGINT",
        },
    ),
}

_promoted_columns = ", ".join(f"{name} VARCHAR" for name in PROMOTED)

CREATE = [
    f"CREATE TABLE IF NOT EXISTS resources (id UBIGINT, {_promoted_columns}, attributes JSON)",
    # Ids of what is stored: the last word on whether a batch that is sent again is new.
    "CREATE TABLE IF NOT EXISTS batches (received TIMESTAMP, id VARCHAR)",
    *(table.create for table in TABLES.values()),
    *(table.create_view for table in TABLES.values()),
]

INSERT_RESOURCES = (
    "INSERT INTO resources SELECT d.* FROM (SELECT unnest(from_json($rows::VARCHAR, '[{"
    + ", ".join(['"id": "UBIGINT"', *(f'"{name}": "VARCHAR"' for name in PROMOTED), '"attributes": "JSON"'])
    + "}]')) AS d)"
)
