"""Rows into a PostgreSQL table by binary COPY; and which of them were at fault when it refuses."""

from __future__ import annotations

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from consumers.batch import Batch
from consumers.columns import Column, Kind, columns
from consumers.errors import Rejected, Systemic
from consumers.sinks.postgres_errors import person_needed, refusal
from consumers.sinks.postgres_types import Encoder, short
from ingest.streams import Stream

__all__ = ["copy_in", "temporary"]


def temporary(name: str, stream: Stream) -> sql.Composed:
    """What makes a temporary table of this name like a stream's, empty behind each transaction.

    With the stream's own columns: others that the table has, and their defaults, are its affair.
    """
    return sql.SQL(
        "CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA"
    ).format(sql.Identifier(name), _names(stream), sql.Identifier(stream.table))


def copy_in(
    connection: psycopg.Connection, batch: Batch, encoder: Encoder
) -> dict[int, int] | None:
    """Add the batch's rows to its table, within the transaction that is open.

    With `dedupe` answers how many were new to it, by the hour of their time (since 1970); None
    means all of them. Raises Rejected, naming rows where it knows them, or psycopg.Error.
    """
    stream = batch.stream
    table = sql.Identifier(stream.table)
    names = _names(stream)
    target: sql.Composable = table
    if stream.dedupe:
        name = short(f"headrace_{stream.table}")
        target = sql.Identifier("pg_temp", name)
        connection.execute(temporary(name, stream))
    copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, names)
    try:
        cursor = connection.cursor()
        with cursor.copy(copy) as stdin:
            for piece in encoder.encode(c.rows for c in batch.chunks):
                stdin.write(piece)
        if not stream.dedupe:
            if cursor.rowcount < batch.count:
                _require_all(connection, stream, batch.count - cursor.rowcount)
            return None
        time = sql.Identifier(stream.column(stream.time))
        keys = sql.SQL(", ").join(sql.Identifier(stream.column(f)) for f in stream.dedupe)
        return dict(
            connection.execute(
                sql.SQL(
                    "WITH new AS (INSERT INTO {} ({names}) SELECT {names} FROM {} "
                    # Of these columns alone: what another index refuses is no copy.
                    "ON CONFLICT ({keys}) DO NOTHING RETURNING {time} AS at) "
                    "SELECT floor(extract(epoch FROM at) / 3600)::bigint AS hour, count(*) "
                    "FROM new GROUP BY hour"
                ).format(table, target, names=names, keys=keys, time=time)
            ).fetchall()
        )
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if person_needed(error):
            raise
        raise Rejected(refusal(error), _at_fault(batch, encoder)) from error
    except ValueError as error:
        raise Rejected(str(error)) from error


def _require_all(connection: psycopg.Connection, stream: Stream, lacking: int) -> None:
    """Raises Systemic: the ledger would say of rows that are nowhere that they have landed.

    Not of a table that has children: a trigger of an old kind moves rows into them.
    """
    table = sql.Identifier(stream.table).as_string()
    children = connection.execute(
        """SELECT FROM pg_class c JOIN pg_inherits i ON i.inhparent = c.oid
           WHERE c.oid = to_regclass(%s) AND c.relkind = 'r' LIMIT 1""",
        (table,),
    )
    if not children.rowcount:
        raise Systemic(
            f"the table {stream.table} has skipped {lacking} rows of a batch: a trigger returns "
            "NULL for them, and they would be taken for landed. Let it keep all rows, and leave "
            "out in a view what you do not want; nothing of the batch is committed"
        )


def _names(stream: Stream) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(c.name) for c in columns(stream))


def _at_fault(batch: Batch, encoder: Encoder) -> dict[int, str]:
    """Rows that hold what PostgreSQL never takes, found column by column; maybe none."""
    found: dict[int, str] = {}
    base = 0
    for chunk in batch.chunks:
        try:
            rows = encoder.flat(chunk.rows)
        except ValueError:
            return {}  # to be found by halving
        for i, column in enumerate(columns(batch.stream)):
            for row in _refused(column, rows.column(i)):
                found.setdefault(base + row, f"{column.name}: text with a NUL character")
        base += rows.num_rows
    return found


def _refused(column: Column, values: pa.Array) -> list[int]:
    """Rows of a column that hold a NUL character in text, or its escape in JSON."""
    if column.kind in (Kind.MESSAGE, Kind.MAP, Kind.JSON):
        needle = "\\u0000"
    elif column.kind in (Kind.STRING, Kind.ENUM):
        needle = "\0"
    else:
        return []
    if column.repeated and needle == "\0":
        return [
            i for i, items in enumerate(values.to_pylist()) if any("\0" in item for item in items)
        ]
    # A backslash that is itself escaped begins no escape: "\\\\u0000" is six letters of text.
    pattern = r"(^|[^\\])(\\\\)*\\u0000" if needle != "\0" else "\0"
    hits = pc.fill_null(pc.match_substring_regex(values, pattern), False)
    rows: list[int] = pc.indices_nonzero(hits).to_pylist()
    return rows
