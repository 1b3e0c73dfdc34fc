"""Whether tables are as their streams need them. A person is told what differs, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from consumers.columns import columns
from consumers.errors import Systemic
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import column_types, default
from ingest.streams import Stream

__all__ = ["check", "check_logged", "check_tables", "has_unique"]


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
        table = sql.Identifier(stream.table).as_string()
        rows = connection.execute(
            """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped""",
            (table,),
        ).fetchall()
        found: dict[str, str] = dict(rows)
        if not found:
            raise Systemic(
                f"the table {stream.table} does not exist; create it with "
                f"`headrace migrate --to URL --stream {stream.name}`"
            )
        types = column_types(stream)
        for column in columns(stream):
            name, wanted = column.name, types[column.name]
            plain = wanted.replace("timestamptz", "timestamp with time zone")
            plain = plain.replace("numeric(20)", "numeric(20,0)")
            if name not in found:
                unset = default(stream, column)
                raise Systemic(
                    f"the table {stream.table} has no column {name}; add it: "
                    f"ALTER TABLE {table} ADD COLUMN {sql.Identifier(name).as_string()} {wanted}"
                    f"{'' if unset is None else f' DEFAULT {unset}'};"
                )
            if found[name] != plain:
                raise Systemic(
                    f"the column {stream.table}.{name} is {found[name]} and must be {plain}; "
                    f"see `headrace schema sql {stream.name} --for postgres`"
                )
        _check_others(connection, stream)
        if stream.dedupe and not has_unique(connection, stream):
            raise Systemic(
                f"the stream {stream.name} has dedupe = {list(stream.dedupe)}, but the table "
                f"{stream.table} has no unique index on just these columns; create it with "
                f"`headrace migrate --to URL --stream {stream.name}`"
            )
    ours = ("headrace_offsets", "headrace_ledger")
    for table in ours:
        present = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
        if present is None or present[0] is None:
            raise Systemic(
                f"the table {table} does not exist; create it with `headrace migrate --to URL`"
            )
    check_logged(connection, [*ours, *(stream.table for stream in streams)])
    connection.rollback()


def check_logged(connection: psycopg.Connection, tables: Sequence[str]) -> None:
    """Of rows and their positions a crash must not take one and leave the other.

    A partitioned table has no rows itself, and before PostgreSQL 18 it may be called UNLOGGED for
    good.
    """
    row = connection.execute(
        """WITH RECURSIVE meant AS (
               SELECT to_regclass(quote_ident(name))::oid AS oid FROM unnest(%s::text[]) AS name
               UNION SELECT inhrelid FROM pg_inherits JOIN meant ON inhparent = oid)
           SELECT oid::regclass::text FROM pg_class JOIN meant USING (oid)
           WHERE relpersistence = 'u' AND relkind <> 'p' LIMIT 1""",
        (list(tables),),
    ).fetchone()
    if row is not None:
        raise Systemic(
            f"the table {row[0]} is UNLOGGED: PostgreSQL empties it after a crash, and what had "
            f"landed would not come again; run: ALTER TABLE {row[0]} SET LOGGED;"
        )


def _check_others(connection: psycopg.Connection, stream: Stream) -> None:
    """A column that nobody fills would make each row a dead letter.

    A domain's default and a trigger of the user's do fill it; ts_insert_blocker is TimescaleDB's.
    Partitions may have triggers of their own, so of a partitioned table nothing is said.
    """
    rows = connection.execute(
        """SELECT a.attname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
           WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL
           AND a.attname <> ALL(%(ours)s)
           AND (SELECT relkind FROM pg_class c WHERE c.oid = a.attrelid) <> 'p'
           AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = a.attrelid
               AND g.tgtype & 7 = 7 AND g.tgenabled <> 'D' AND g.tgname <> 'ts_insert_blocker')
           ORDER BY a.attnum""",
        {
            "table": sql.Identifier(stream.table).as_string(),
            "ours": list(column_types(stream)),
        },
    ).fetchall()
    for (name,) in rows:
        drop = sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL;").format(
            sql.Identifier(stream.table), sql.Identifier(name)
        )
        raise Systemic(
            f"the column {stream.table}.{name} is NOT NULL without a default, and the stream "
            f"{stream.name} does not fill it: every row would be refused; give it a default, or "
            f"run: {drop.as_string()}"
        )


def has_unique(connection: psycopg.Connection, stream: Stream) -> bool:
    """Whether a whole unique index is on just the columns of `dedupe`; none that is deferrable."""
    rows = connection.execute(
        # What an index only carries along (INCLUDE) stands behind its own columns.
        """SELECT array_agg(a.attname::text) FROM pg_index i
           CROSS JOIN unnest(i.indkey) WITH ORDINALITY k (number, at)
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
           WHERE k.at <= i.indnkeyatts AND i.indrelid = to_regclass(%s)
           AND i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid""",
        (sql.Identifier(stream.table).as_string(),),
    ).fetchall()
    return any(set(names) == set(map(stream.column, stream.dedupe)) for (names,) in rows)
