"""A replay into a PostgreSQL table: what is missing there is put back, what is there stays once.

The positions of a table say what has landed, and a replay never moves them. It is cut off where
they are: what is behind them the inserter will land, and would land a second time.

PostgreSQL's tables do not keep where a row came from, so a row that is there is known by its values:
each batch is copied into a temporary table, and of it goes into the table what that does not hold
yet, as many times as it is missing (EXCEPT ALL over all columns, within the batch's time). A stream
with `dedupe` has its unique index for that. So a batch may be written any number of times, and the
job's position follows behind in Kafka.

Two limits, because values are all there is: records that are equal in every column and stand in
different batches come back as one row, and what landed before its message was changed has other
values than its record gives now. Such rows are told apart by the ledger, and by key and time: see
postgres_missing.py.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import LiteralString

import psycopg
import pyarrow.compute as pc
from psycopg import sql

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.columns import columns
from consumers.decode import Decoder
from consumers.errors import Systemic
from consumers.replay.postgres_missing import find
from consumers.sinks import Known, Log
from consumers.sinks import postgres_positions as positions
from consumers.sinks.postgres_checks import check_tables
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_copy import copy_in, temporary
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import Encoder
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["PostgresReplay", "landed"]

_MISSING = """
SELECT floor(extract(epoch FROM {time}) / 3600)::bigint, count(*) FROM {missing} GROUP BY 1"""
_LACKING = """
SELECT floor(extract(epoch FROM {time}) / 3600)::bigint, count(*) FROM (
    SELECT {keys} FROM {copied} EXCEPT
    SELECT {keys} FROM {table} WHERE {time} BETWEEN %s AND %s) AS missing GROUP BY 1"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7236459103))"


def landed(url: str, stream: Stream, topic_id: str, spans: Mapping[int, Span]) -> dict[int, Span]:
    """The part of the ranges that has landed in the table once.

    Raises Unavailable, and Systemic where nothing has.
    """
    try:
        with connect(url) as connection:
            check_tables(connection, [stream])
            at = _positions(connection, stream, topic_id)
    except psycopg.Error as error:
        raise explain(error, url) from error
    if not at:
        raise Systemic(
            f"nothing of {stream.topic} has landed in the table {stream.table}: land it with "
            "`headrace insert`, which begins at the topic's start"
        )
    return {
        n: Span(start, max(start, min(end, at.get(Partition(stream.topic, n), start))))
        for n, (start, end) in spans.items()
    }


class PostgresReplay:
    """One connection, for one stream and the ranges of one job. See the module's comment."""

    def __init__(
        self,
        url: str,
        stream: Stream,
        spans: Mapping[Partition, Span],
        kafka: Log,
        *,
        on_back: Callable[[int, int], object] | None = None,
    ) -> None:
        self._url = url
        self._stream = stream
        self._spans = dict(spans)
        self._log = kafka
        self._on_back = on_back
        self._encoder = Encoder(stream, Decoder(stream).schema)
        self._copied = replace(stream, table=f"headrace_replay_{stream.table}"[:63], dedupe=())
        self._missing = f"headrace_missing_{stream.table}"[:63]
        # What was written or asked about before.
        self._before: tuple[Chunk, ...] = ()
        self._connection: psycopg.Connection | None = None
        with self._talking() as connection:
            check_tables(connection, [stream])
            _check_times(connection, stream)

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """The job's positions. Raises Systemic where the table's are not behind its ranges."""
        with self._talking() as connection:
            for partition, k in known.items():
                span = self._spans.get(partition)
                if span is None or span.start == span.end:
                    continue
                at = _positions(connection, self._stream, k.topic_id).get(partition, -1)
                if at < span.end:
                    raise Systemic(
                        f"the table {self._stream.table} has gone back since this replay was "
                        f"started (a restored backup?): {partition} is at {at}, and the replay "
                        f"reads up to {span.end}. Cancel it; `headrace insert` lands the rest"
                    )
            connection.rollback()
        return {p: k.earliest if k.committed is None else k.committed for p, k in known.items()}

    def write(self, batch: Batch) -> None:
        """In commit order:

        1. `lock`: two replays into one table, one after the other
        2. `copy`: rows into a temporary table, and what is missing from there
        3. `commit`
        4. the job's position, in Kafka
        """
        if batch.chunks:
            with self._talking() as connection:
                connection.execute(_LOCK, (self._stream.table,))  # 1
                rows, left = self._put_back(connection, batch)  # 2
                connection.commit()  # 3
            self._before = batch.chunks
            if self._on_back is not None:
                self._on_back(rows, left)
        self._log.commit({partition: span.end for partition, span in batch.spans.items()})  # 4

    def lacking(self, batch: Batch) -> Counter[int]:
        """How many of these rows are not there, by their hour in microseconds."""
        stream, left = self._stream, 0
        query: LiteralString
        values: Sequence[datetime]
        with self._talking() as connection:
            if stream.dedupe:
                self._copy(connection, batch)
                query, values = _LACKING, self._bounds(batch)
            else:
                left = self._find(connection, batch)
                query, values = _MISSING, ()
            found = connection.execute(sql.SQL(query).format(**self._names()), values).fetchall()
            connection.rollback()
        self._before = batch.chunks
        if self._on_back is not None:
            self._on_back(0, left)
        return Counter({hour * HOUR_US: count for hour, count in found})

    def _put_back(self, connection: psycopg.Connection, batch: Batch) -> tuple[int, int]:
        """Add what is missing; how many rows that is, and how many there are with other values."""
        if self._stream.dedupe:
            new = copy_in(connection, batch, self._encoder)
            return sum((new or {}).values()), 0
        left = self._find(connection, batch)
        rows = connection.execute(
            sql.SQL("INSERT INTO {table} ({names}) SELECT {names} FROM {missing}").format(
                **self._names()
            )
        ).rowcount
        return rows, left

    def _find(self, connection: psycopg.Connection, batch: Batch) -> int:
        """Fill the table of what is missing; how many rows there are with other values."""
        self._copy(connection, batch)
        before = replace(batch, chunks=self._before)
        return find(
            connection,
            self._stream,
            self._copied.table,
            self._missing,
            self._bounds(batch),
            lambda: self._copy(connection, before),
        )

    def _copy(self, connection: psycopg.Connection, batch: Batch) -> None:
        """Rows into the temporary table."""
        connection.execute(temporary(self._copied.table, self._stream))
        copy_in(connection, Batch(self._copied, batch.spans, batch.chunks), self._encoder)

    def _names(self) -> dict[str, sql.Composable]:
        stream = self._stream
        return {
            "table": sql.Identifier(stream.table),
            "copied": sql.Identifier(self._copied.table),
            "missing": sql.Identifier(self._missing),
            "time": sql.Identifier(stream.column(stream.time)),
            "names": _list(column.name for column in columns(stream)),
            "keys": _list(map(stream.column, stream.dedupe)),
        }

    def _bounds(self, batch: Batch) -> tuple[datetime, datetime]:
        """The batch's span of time, both ends in it."""
        name = self._stream.column(self._stream.time)
        bounds = [pc.min_max(chunk.rows.column(name)).as_py() for chunk in batch.chunks]
        return min(b["min"] for b in bounds), max(b["max"] for b in bounds)

    @contextmanager
    def _talking(self) -> Iterator[psycopg.Connection]:
        """A connection; turns the driver's errors into the four kinds, and rolls back."""
        try:
            if self._connection is None:
                self._connection = connect(self._url, sees_all=True)
            yield self._connection
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg.Error):
                raise explain(error, self._url) from error
            raise

    def close(self) -> None:
        """Close the connection, and with it what is not committed."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def _list(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _check_times(connection: psycopg.Connection, stream: Stream) -> None:
    """Rows without a time are in no batch's span: a replay would double them.

    Raises Systemic. Such a table is none of `headrace migrate`: its time is never null.
    """
    names = {
        "table": sql.Identifier(stream.table),
        "time": sql.Identifier(stream.column(stream.time)),
    }
    query = sql.SQL("SELECT FROM {table} WHERE {time} IS NULL LIMIT 1").format(**names)
    if connection.execute(query).rowcount:
        raise Systemic(
            f"the table {stream.table} has rows whose {stream.column(stream.time)} is null, which "
            f"is their time by the stream {stream.name}, so a replay can't see which are there. "
            "Was the field renamed? Then fill it from the former column, or name another `table`"
        )


def _positions(
    connection: psycopg.Connection, stream: Stream, topic_id: str
) -> dict[Partition, int]:
    """Up to where each partition of just this topic has landed."""
    stored = positions.read(connection, stream.table, [stream.topic])
    return {p: at for p, (known_id, at) in stored.items() if known_id == topic_id}
