"""A PostgreSQL table against Kafka, row by row.

Its tables do not keep where a row came from, so both sides are compared by their values: what Kafka has is
copied into a temporary table, numbered in the order in which it was read, and each value is paired with
itself as often as it is there. With `dedupe` only its columns count, and one row of each.

A row without a record is not one too many: the record may have expired (of a clock that was ahead), or be
of an older topic of this name. So it is held against the ledger, which knows how many rows have landed in
an hour from all of them. Only as many are too many as there are more than that, where the ledger knows of
all that Kafka has of the hour. And a command that deletes is only for one more of what Kafka has: of any
other row nobody can say here whose it is.

Nor are a row and a record that differ in their values, but have one key and time, one too many and one that
is missing: the message has been changed since it landed, or somebody has changed the row.
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
from consumers.ledger.tally import Bucket, Entry
from consumers.sinks import postgres_ledger as ledger
from consumers.sinks import postgres_positions as positions
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_copy import copy_in, temporary
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import Encoder
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["compare"]

_COPIED = "headrace_audit"
# In the transaction in which it is made, and gone with the session.
_NUMBER = "ALTER TABLE {copied} ADD _n bigint GENERATED ALWAYS AS IDENTITY"
_UNPAIRED = "headrace_unpaired"
_MAKE_UNPAIRED = """
CREATE TEMP TABLE {unpaired} (
    id bigint GENERATED ALWAYS AS IDENTITY, _n bigint, tid text, r text, hour bigint,
    at timestamptz, name text, known boolean NOT NULL DEFAULT false
) ON COMMIT DROP"""
_COMPARE = """
WITH kafka AS (
    SELECT r, _n, at, name, row_number() OVER (PARTITION BY r ORDER BY _n) AS i
    FROM (SELECT ({values})::text AS r, _n, {time} AS at, {name}::text AS name
          FROM {copied}) AS k
), there AS (
    SELECT r, tid, at, name, row_number() OVER (PARTITION BY r ORDER BY tid) AS i
    FROM (SELECT ({values})::text AS r, {time} AS at, {name}::text AS name,
                 tableoid::bigint || ' ' || {ctid} AS tid
          FROM {table} WHERE {time} >= %s AND {time} < %s) AS t
)
INSERT INTO {unpaired} (_n, tid, r, hour, at, name)
SELECT _n, tid, there.r, floor(extract(epoch FROM coalesce(kafka.at, there.at)) / 3600)::bigint,
       coalesce(kafka.at, there.at), coalesce(kafka.name, there.name)
FROM kafka FULL JOIN there USING (r, i)
WHERE (kafka.r IS NULL OR there.r IS NULL) AND i <= {most}"""
_KNOWN = """
UPDATE {unpaired} SET known = true WHERE r IN (SELECT ({values})::text FROM {copied})"""
_CHANGED = """
WITH numbered AS (
    SELECT id, tid, at, name,
           row_number() OVER (PARTITION BY tid IS NULL, at, name ORDER BY id) AS i
    FROM {unpaired} WHERE NOT known
), pairs AS (
    SELECT record.id AS record, line.id AS line
    FROM numbered AS record JOIN numbered AS line USING (at, name, i)
    WHERE record.tid IS NULL AND line.tid IS NOT NULL
), gone AS (
    DELETE FROM {unpaired} WHERE id IN (SELECT record FROM pairs UNION ALL SELECT line FROM pairs)
    RETURNING hour, tid
)
SELECT hour, count(tid) FROM gone GROUP BY hour"""
_HOURS = "SELECT hour, count(_n), count(tid) FROM {unpaired} GROUP BY hour"
# In order for each partition, as they were read.
_MISSING = "SELECT _n FROM {unpaired} WHERE tid IS NULL AND hour = %s ORDER BY _n LIMIT %s"
_EXCUSE = "DELETE FROM {unpaired} WHERE tid IS NULL AND _n = ANY(%s)"
_THERE = "SELECT count(*) FROM {table} WHERE {time} >= %s AND {time} < %s"
_RECORDS = "SELECT count(*) FROM {copied} WHERE {time} >= %s AND {time} < %s"
_LANDED = """
SELECT coalesce(sum(landed), 0)::bigint FROM headrace_ledger
WHERE table_name = %s AND hour >= %s AND hour < %s"""
_NAMED = """
SELECT _n, tid, hour, name, known FROM {unpaired} WHERE tid IS NULL OR hour = ANY(%s)
ORDER BY hour, _n, tid LIMIT %s"""
# Rows of a chunk in the columnstore have no place that could be named.
_COLUMNSTORE = """
SELECT 1 FROM timescaledb_information.hypertables, pg_class c, pg_namespace n
WHERE c.oid = to_regclass(%s) AND n.oid = c.relnamespace
AND hypertable_schema = n.nspname AND hypertable_name = c.relname AND compression_enabled"""

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
        with connect(url, sees_all=True) as connection:
            # Nobody waits for this session, and a long while may pass without a record to copy.
            connection.execute("SET idle_in_transaction_session_timeout = 0")
            connection.commit()
            # Rows, positions and ledger are of one moment; inserters go on meanwhile.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            stored = positions.read(connection, asked.stream.table, [asked.stream.topic])
            at = {p: offset for p, (known, offset) in stored.items() if known == asked.topic_id}
            places = _copy(connection, asked, asked.spans(at))
            return _differences(connection, asked, places)
    except psycopg.Error as error:
        raise explain(error, url) from error


def _copy(
    connection: psycopg.Connection, asked: Question, spans: Mapping[Partition, Span]
) -> _Places:
    stream = asked.stream
    connection.execute(temporary(_COPIED, stream))
    connection.execute(sql.SQL(_NUMBER).format(copied=sql.Identifier(_COPIED)))
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


def _differences(connection: psycopg.Connection, asked: Question, places: _Places) -> list[Finding]:
    stream = asked.stream
    names = {
        "copied": sql.Identifier(_COPIED),
        "unpaired": sql.Identifier(_UNPAIRED),
        "table": sql.Identifier(stream.table),
        "time": sql.Identifier(stream.column(stream.time)),
    }
    keys = [stream.column(f) for f in stream.dedupe] or [c.name for c in columns(stream)]
    has_places = not _in_columnstore(connection, stream)
    connection.execute(sql.SQL(_MAKE_UNPAIRED).format(**names))
    values = sql.SQL("ROW({})").format(sql.SQL(", ").join(map(sql.Identifier, keys)))
    query = sql.SQL(_COMPARE).format(
        **names,
        values=values,
        name=sql.Identifier(label(stream)),
        ctid=sql.SQL("ctid::text" if has_places else "''"),
        most=sql.Literal(1 if stream.dedupe else 2**40),
    )
    connection.execute(query, (_moment(asked.begin_us), _moment(asked.end_us)))
    connection.execute(sql.SQL(_KNOWN).format(values=values, **names))
    findings: list[Finding] = []
    if not stream.dedupe:  # there the key of both would be the same
        changed = connection.execute(sql.SQL(_CHANGED).format(**names)).fetchall()
        findings += [Finding(hour, 0, "", None, changed=rows) for hour, rows in changed]
    hours = connection.execute(sql.SQL(_HOURS).format(**names)).fetchall()
    entries = ledger.read(connection, stream.table, stream.topic, asked.topic_id)
    sure: list[int] = []
    for hour, missing, surplus in hours:
        excused = _excuse(connection, asked, places, hour, entries, names) if missing else 0
        if not surplus:
            continue
        within = (_moment(hour * HOUR_US), _moment((hour + 1) * HOUR_US))
        there = _count(connection, sql.SQL(_THERE).format(**names), within)
        landed = _count(connection, sql.SQL(_LANDED), (stream.table, *within))
        records = _count(connection, sql.SQL(_RECORDS).format(**names), within)
        settled = sum(e.settled.records for b, e in entries.items() if b.hour == hour)
        extra = there - landed + missing - excused
        # Where it knows of less it has counted in other hours: the stream's time was another field.
        if extra >= surplus and records <= settled:
            sure.append(hour)
        elif extra > 0:
            findings.append(Finding(hour, extra, "", None))
    for number, tid, hour, name, known in connection.execute(
        sql.SQL(_NAMED).format(**names), (sure, MOST)
    ):
        called = f"{label(stream)} {name}"
        if tid is None:
            findings.append(Finding(hour, -1, called, places.find(number)))
        else:
            oid, _, place = tid.partition(" ")
            removal = ""
            if place and known:
                removal = _REMOVAL.substitute(table=stream.table, oid=oid, place=place)
            findings.append(Finding(hour, 1, called, None, removal, known=known))
    return sorted(findings, key=lambda one: one.hour)


def _in_columnstore(connection: psycopg.Connection, stream: Stream) -> bool:
    """Whether some of its rows may be there, of TimescaleDB's hypertables."""
    if not _count(
        connection, sql.SQL("SELECT (to_regclass(%s) IS NOT NULL)::int"),
        ("timescaledb_information.hypertables",),
    ):  # fmt: skip
        return False
    table = sql.Identifier(stream.table).as_string()
    return connection.execute(_COLUMNSTORE, (table,)).fetchone() is not None


def _count(
    connection: psycopg.Connection, query: sql.SQL | sql.Composed, values: tuple[str, ...]
) -> int:
    found = connection.execute(query, values).fetchone()
    return int(found[0]) if found else 0


def _excuse(
    connection: psycopg.Connection,
    asked: Question,
    places: _Places,
    hour: int,
    entries: Mapping[Bucket, Entry],
    names: Mapping[str, sql.Identifier],
) -> int:
    """Take out what the table has refused: a constraint of it, that the temporary one has not."""
    refused = sum(e.dead.records for bucket, e in entries.items() if bucket.hour == hour)
    if not refused:
        return 0
    numbers: dict[Bucket, list[int]] = {}
    # As many as are shown, behind those that it may have refused.
    for (number,) in connection.execute(
        sql.SQL(_MISSING).format(**names), (hour, MOST + refused + 1)
    ):
        numbers.setdefault(Bucket(places.find(number)[0], hour), []).append(number)
    missing = {b: [places.find(n)[1] for n in some] for b, some in numbers.items()}
    excused = asked.excused(missing, entries)
    gone = [n for some in numbers.values() for n in some if places.find(n) in excused]
    connection.execute(sql.SQL(_EXCUSE).format(**names), (gone,))
    return len(gone)


def _moment(us: int) -> str:
    """As PostgreSQL reads it, for any time at all."""
    seconds, micros = divmod(us, 1_000_000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=micros)
    return moment.isoformat()
