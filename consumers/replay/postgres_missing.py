"""Which rows of a batch are not in a PostgreSQL table: those that may be put back.

A row is known by its values there, and the values of what has landed may not be those that its
record gives now: the message got a field, a number of an enum its name. To put such a row back
would double it. So a record is left where a row that is none of this batch's, or of the one before,
has its key and time, and either

- no other value: what differs is null or unset there, or null here, or it is an enum or a message
- or the hour has no room for what is missing: the ledger says how many rows have landed in it, and
  so many are there

What has no such row is missing, whoever else has filled the hour: a user, a replay from another
database's table, an inserter from before there was a ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import psycopg
from psycopg import sql

from consumers.columns import Kind, columns
from consumers.ledger.finding import label
from consumers.sinks.postgres_copy import temporary
from consumers.sinks.postgres_types import default
from ingest.streams import Stream

__all__ = ["find"]

# What a new name, or a new field in it, changes in all records.
_MAY_CHANGE = (Kind.ENUM, Kind.MESSAGE, Kind.MAP, Kind.JSON)
_MISSING = """
INSERT INTO {missing} ({names}) (SELECT {names} FROM {copied} EXCEPT ALL
    SELECT {names} FROM {table} WHERE {time} BETWEEN %s AND %s)"""
# A row without a key is of before the field that is the key now: no record lacks it. Joined apart:
# with both in one condition there would be no key to join by, and each row of a time, which may be
# that of all, would be held against each other.
_LEAVE = """
WITH others AS MATERIALIZED (
    SELECT {names} FROM {table} WHERE {time} BETWEEN %s AND %s
    EXCEPT ALL SELECT {names} FROM {copied}
), lacking AS (
    SELECT date_bin('1 hour', {time}, 'epoch') AS hour, count(*) AS many
    FROM {missing} GROUP BY 1
), there AS (
    SELECT date_bin('1 hour', {time}, 'epoch') AS hour, count(*) AS many FROM {table}
    WHERE {time} >= (SELECT min(hour) FROM lacking)
    AND {time} < (SELECT max(hour) + '1 hour' FROM lacking) GROUP BY 1
), ledger AS (
    SELECT hour, sum(landed) AS many FROM headrace_ledger WHERE table_name = %s GROUP BY 1
), filled AS MATERIALIZED (
    SELECT hour FROM lacking LEFT JOIN there USING (hour) LEFT JOIN ledger USING (hour)
    WHERE lacking.many > coalesce(ledger.many, 0) - coalesce(there.many, 0)
)
DELETE FROM {missing} WHERE ctid IN (
    SELECT m.ctid FROM {missing} AS m JOIN others AS o
    ON o.{time} = m.{time} AND o.{label} = m.{label}
    WHERE {same} OR date_bin('1 hour', m.{time}, 'epoch') IN (SELECT hour FROM filled)
    UNION ALL
    SELECT m.ctid FROM {missing} AS m JOIN others AS o
    ON o.{time} = m.{time} AND o.{label} IS NULL
    WHERE {same} OR date_bin('1 hour', m.{time}, 'epoch') IN (SELECT hour FROM filled))"""
_SAME = """
(o.{column} = m.{column} OR o.{column} IS NULL OR m.{column} IS NULL OR o.{column} = {unset})"""


def find(
    connection: psycopg.Connection,
    stream: Stream,
    copied: str,
    missing: str,
    bounds: tuple[datetime, datetime],
    copy_before: Callable[[], object],
) -> int:
    """Fill the temporary table `missing` from `copied`, within the transaction that is open.

    Both `bounds` of time are in it. `copy_before` adds the rows of the batch before to `copied`:
    those of the same key and time are none of before a change. Answers how many rows are left, for
    they are there with other values.
    """
    names = {
        "table": sql.Identifier(stream.table),
        "copied": sql.Identifier(copied),
        "missing": sql.Identifier(missing),
        "time": sql.Identifier(stream.column(stream.time)),
        "label": sql.Identifier(label(stream)),
        "names": sql.SQL(", ").join(sql.Identifier(c.name) for c in columns(stream)),
        "same": _same(stream),
    }
    connection.execute(temporary(missing, stream))
    if not connection.execute(sql.SQL(_MISSING).format(**names), bounds).rowcount:
        return 0
    copy_before()
    values = (*bounds, stream.table)
    return connection.execute(sql.SQL(_LEAVE).format(**names), values).rowcount


def _same(stream: Stream) -> sql.Composable:
    """Whether a change of the message would explain all that the rows o and m differ in."""
    known = {stream.column(stream.time), label(stream)}
    pairs = [
        sql.SQL(_SAME).format(
            column=sql.Identifier(column.name), unset=sql.SQL(default(stream, column) or "NULL")
        )
        for column in columns(stream)
        if column.name not in known and column.kind not in _MAY_CHANGE
    ]
    return sql.SQL(" AND ").join([sql.SQL("true"), *pairs])
