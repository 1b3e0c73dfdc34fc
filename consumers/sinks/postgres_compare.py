"""A PostgreSQL table against Kafka, row by row.

Its tables do not keep where a row came from, so both sides are compared by their values: what Kafka has is
copied into a temporary table, numbered in the order in which it was read, and each value is paired with
itself as often as it is there. With `dedupe` only its columns count, and one row of each.
"""  # noqa: E501

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from string import Template

import psycopg
from psycopg import sql

from consumers.batch import Batch, Partition, Span
from consumers.columns import columns
from consumers.decode import Decoder
from consumers.errors import Rejected
from consumers.ledger.finding import MOST, Finding, Question, label
from consumers.sinks import postgres_positions as positions
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_copy import copy_in
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import Encoder

__all__ = ["compare"]

_COPIED = "headrace_audit"
_MAKE = """
CREATE TEMP TABLE {copied} (LIKE {table}, _n bigint GENERATED ALWAYS AS IDENTITY) ON COMMIT DROP"""
_COMPARE = """
WITH kafka AS (
    SELECT r, _n, at, name, row_number() OVER (PARTITION BY r ORDER BY _n) AS i
    FROM (SELECT ({values})::text AS r, _n, {time} AS at, {name}::text AS name
          FROM {copied}) AS k
), there AS (
    SELECT r, tid, at, name, row_number() OVER (PARTITION BY r ORDER BY tid) AS i
    FROM (SELECT ({values})::text AS r, {time} AS at, {name}::text AS name,
                 tableoid::bigint || ' ' || ctid::text AS tid
          FROM {table} WHERE {time} >= %s AND {time} < %s) AS t
)
SELECT _n, tid, floor(extract(epoch FROM coalesce(kafka.at, there.at)) / 3600)::bigint,
       coalesce(kafka.name, there.name)
FROM kafka FULL JOIN there USING (r, i)
WHERE (kafka.r IS NULL OR there.r IS NULL) AND i <= {most}
ORDER BY 3 LIMIT %s"""

# For a person to run.
_REMOVAL = Template("DELETE FROM \"$table\" WHERE tableoid = $oid AND ctid = '$place'")


class _Places:
    """Where the rows of the temporary table came from, by their numbers."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._runs: list[tuple[Partition, Sequence[int]]] = []

    def add(self, first: int, batch: Batch) -> None:
        for chunk in batch.chunks:
            self._firsts.append(first)
            self._runs.append((chunk.partition, chunk.offsets))
            first += chunk.rows.num_rows

    def find(self, number: int) -> tuple[Partition, int]:
        at = bisect_right(self._firsts, number) - 1
        partition, offsets = self._runs[at]
        return partition, offsets[number - self._firsts[at]]


def compare(url: str, asked: Question) -> list[Finding]:
    """Rows that are missing or too many. Raises Unavailable, Systemic."""
    try:
        with connect(url) as connection:
            # Rows and positions are of one moment; inserters go on meanwhile.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            stored = positions.read(connection, asked.stream.table, [asked.stream.topic])
            at = {p: offset for p, (known, offset) in stored.items() if known == asked.topic_id}
            places = _copy(connection, asked, asked.spans(at))
            return list(_differences(connection, asked, places))
    except psycopg.Error as error:
        raise explain(error, url) from error


def _copy(
    connection: psycopg.Connection, asked: Question, spans: Mapping[Partition, Span]
) -> _Places:
    stream = asked.stream
    connection.execute(
        sql.SQL(_MAKE).format(copied=sql.Identifier(_COPIED), table=sql.Identifier(stream.table))
    )
    copied = replace(stream, table=_COPIED, dedupe=())
    encoder = Encoder(copied, Decoder(copied).schema)
    places = _Places()
    for batch in asked.meant(spans):
        for part in _acceptable(connection, Batch(copied, batch.spans, batch.chunks), encoder):
            places.add(_next(connection) - part.count, part)
    return places


def _acceptable(connection: psycopg.Connection, batch: Batch, encoder: Encoder) -> Iterator[Batch]:
    """Copy what PostgreSQL takes of it; a record that it refuses is not missing from the table."""
    todo = [batch]
    while todo:
        part = todo.pop()
        if not part.count:
            continue
        try:
            with connection.transaction():
                copy_in(connection, part, encoder)
            yield part
        except Rejected as refused:
            halves = None if refused.rows else part.halves()
            if halves is not None:
                todo += reversed(halves)
            else:
                todo.append(part.without(list(refused.rows or {0: ""})))


def _next(connection: psycopg.Connection) -> int:
    """The number of the row that is copied next."""
    found: list[tuple[int]] = connection.execute(
        "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(%s, '_n')::regclass), 0)",
        (f"pg_temp.{_COPIED}",),
    ).fetchall()
    return found[0][0] + 1


def _differences(
    connection: psycopg.Connection, asked: Question, places: _Places
) -> Iterator[Finding]:
    stream = asked.stream
    names = [stream.column(f) for f in stream.dedupe] or [c.name for c in columns(stream)]
    values = sql.SQL("ROW({})").format(sql.SQL(", ").join(map(sql.Identifier, names)))
    query = sql.SQL(_COMPARE).format(
        values=values,
        copied=sql.Identifier(_COPIED),
        table=sql.Identifier(stream.table),
        time=sql.Identifier(stream.column(stream.time)),
        name=sql.Identifier(label(stream)),
        most=sql.Literal(1 if stream.dedupe else 2**40),
    )
    begin, end = _moment(asked.begin_us), _moment(asked.end_us)
    rows = connection.execute(query, (begin, end, MOST)).fetchall()
    # A constraint of the table may have refused what the temporary one has taken.
    refused = asked.refused() if any(tid is None for _, tid, _, _ in rows) else ()
    for number, tid, hour, name in rows:
        called = f"{label(stream)} {name}"
        if tid is None:
            at = places.find(number)
            if at not in refused:
                yield Finding(hour, -1, called, at)
        else:
            table, place = tid.split(" ", 1)
            removal = _REMOVAL.substitute(table=stream.table, oid=table, place=place)
            yield Finding(hour, 1, called, None, removal)


def _moment(us: int) -> str:
    """As PostgreSQL reads it, for any time at all."""
    seconds, micros = divmod(us, 1_000_000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=micros)
    return moment.isoformat()
