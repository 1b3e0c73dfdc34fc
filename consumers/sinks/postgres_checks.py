"""Whether tables are as their streams need them. A person is told what differs, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from consumers.errors import Systemic
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import column_types
from ingest.streams import Stream

__all__ = ["check", "check_tables"]


def check(url: str, streams: Sequence[Stream]) -> None:
    """See consumers.destinations.Destination."""
    try:
        with connect(url) as connection:
            check_tables(connection, streams)
    except psycopg.Error as error:
        raise explain(error, url) from error


def check_tables(connection: psycopg.Connection, streams: Sequence[Stream]) -> None:
    """Compare the tables with what the streams need. Raises Systemic, saying what to do."""
    for stream in streams:
        rows = connection.execute(
            """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped""",
            (sql.Identifier(stream.table).as_string(),),
        ).fetchall()
        found: dict[str, str] = dict(rows)
        if not found:
            raise Systemic(
                f"the table {stream.table} does not exist; create it with "
                f"`headrace migrate --to URL --stream {stream.name}`"
            )
        for name, wanted in column_types(stream).items():
            plain = wanted.replace("timestamptz", "timestamp with time zone")
            plain = plain.replace("numeric(20)", "numeric(20,0)")
            if name not in found:
                raise Systemic(
                    f"the table {stream.table} has no column {name}; add it: "
                    f'ALTER TABLE {stream.table} ADD COLUMN "{name}" {wanted};'
                )
            if found[name] != plain:
                raise Systemic(
                    f"the column {stream.table}.{name} is {found[name]} and must be {plain}; "
                    f"see `headrace schema sql {stream.name} --for postgres`"
                )
        if stream.dedupe:
            _check_unique(connection, stream)
    for table in ("headrace_offsets", "headrace_ledger"):
        present = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
        if present is None or present[0] is None:
            raise Systemic(
                f"the table {table} does not exist; create it with `headrace migrate --to URL`"
            )
    connection.rollback()


def _check_unique(connection: psycopg.Connection, stream: Stream) -> None:
    rows = connection.execute(
        """SELECT array_agg(a.attname::text) FROM pg_index i
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
           WHERE i.indrelid = to_regclass(%s) AND i.indisunique GROUP BY i.indexrelid""",
        (sql.Identifier(stream.table).as_string(),),
    ).fetchall()
    if not any(set(names) == set(map(stream.column, stream.dedupe)) for (names,) in rows):
        raise Systemic(
            f"the stream {stream.name} has dedupe = {list(stream.dedupe)}, but the table "
            f"{stream.table} has no unique index on just these columns; create it with "
            f"`headrace migrate --to URL --stream {stream.name}`"
        )
