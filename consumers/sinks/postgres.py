"""PostgreSQL and TimescaleDB, exactly once: rows and positions in one transaction.

`headrace_offsets` holds, for each table, topic and partition, the offset up to which everything has
landed. `write` moves it by compare-and-set in the transaction that copies the rows, so that of two
writers that believe to own a partition only one commits.

Rules:
- The position is moved *after* the rows are copied. A writer that is stopped in the middle of its
  COPY then holds no lock that its successor would wait for; one that is stopped between the move and
  the COMMIT is ended by the server after `idle_in_transaction_session_timeout`.
- A connection that breaks during COMMIT leaves the outcome unknown. The same batch is then written
  again, and first of all asks for the position: at `end` it had been committed.
- Nobody else's rows are touched: a plain COPY, or with `dedupe` a COPY into a temporary table and
  `INSERT … ON CONFLICT DO NOTHING`.
"""  # noqa: E501

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors, sql

from consumers.batch import Batch, Partition
from consumers.columns import Column, Kind, columns
from consumers.decode import Decoder
from consumers.errors import Fenced, Rejected, Systemic, Unavailable
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log
from consumers.sinks.postgres_types import Encoder, column_types
from ingest.streams import Stream

__all__ = ["PostgresSink", "check_tables", "connect", "explain", "where"]

log = logging.getLogger(__name__)

# For our session: a stopped writer gives its lock back, a dead peer is noticed, and no statement of
# ours waits for a lock for ever (somebody's ALTER TABLE): it is retried instead.
_SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "30s",
    # A role's own would end each COPY that takes longer, for ever.
    "statement_timeout": "0",
    "application_name": "headrace",
    "TimeZone": "UTC",
}
_CONNECT_TIMEOUT_S = 10
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

# SQLSTATE -> what to do about it. Classes by their first two characters.
# 54: too large for an index or for jsonb; P0, 38, 39, 44: a trigger, function or view refuses it.
_ROWS_AT_FAULT = ("22", "23", "54", "P0", "38", "39", "44")
_PERSON_NEEDED = {
    "28": "check user and password",
    "3D": "create the database, or correct its name in the URL",
    "42501": "grant INSERT on the table, and SELECT, INSERT and UPDATE on headrace_offsets",
    "42P01": "create it with `headrace migrate`",
    "42703": "compare the table with `headrace schema sql`",
    "42804": "compare the table with `headrace schema sql`",
    "22P04": "compare the table with `headrace schema sql`",
    "22P03": "compare the table with `headrace schema sql`",
    "25006": "connect to the primary: this server is read-only",
    "0A": "see what the server says",
    "42": "see what the server says",
}

# What libpq says of a connection that no retry will open.
_REFUSED = (
    "no pg_hba.conf entry",
    "permission denied for database",
    "not permitted to log in",
    "unsupported startup parameter",
)

_READ = """
SELECT topic, partition, topic_id, next_offset FROM headrace_offsets
WHERE table_name = %s AND topic = ANY(%s)"""
_BEGIN_AT = """
INSERT INTO headrace_offsets (table_name, topic, partition, topic_id, next_offset)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (table_name, topic, partition)
DO UPDATE SET topic_id = excluded.topic_id, next_offset = excluded.next_offset, updated_at = now()
WHERE headrace_offsets.topic_id <> excluded.topic_id"""
_MOVE = """
UPDATE headrace_offsets AS o SET next_offset = m.stop, updated_at = now()
FROM unnest(%s::text[], %s::int[], %s::text[], %s::bigint[], %s::bigint[])
     AS m (topic, partition, topic_id, start, stop)
WHERE o.table_name = %s AND o.topic = m.topic AND o.partition = m.partition
  AND o.topic_id = m.topic_id AND o.next_offset = m.start"""


class PostgresSink:
    """One connection. Opening it checks that the tables are as the streams need them.

    `url` is what libpq takes: `postgresql://user:password@host:port/database`. Raises Unavailable
    when the server is away, Systemic when a person has to act.
    """

    def __init__(
        self, url: str, streams: Sequence[Stream], kafka: Log, step: Step = step_timer
    ) -> None:
        self._url = url
        self._log = kafka
        self._step = step
        self._streams = {stream.topic: stream for stream in streams}
        self._encoders = {s.name: Encoder(s, Decoder(s).schema) for s in streams}
        self._connection: psycopg.Connection | None = None
        # Set while it is unknown whether the last batch was committed.
        self._unsure = False
        with self._talking() as connection:
            check_tables(connection, streams)

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """Positions as the database has them; a partition that is new to it begins at the oldest."""  # noqa: E501
        found: dict[Partition, int] = {}
        with self._talking() as connection:
            for topic in {partition.topic for partition in known}:
                table = self._streams[topic].table
                rows = connection.execute(_READ, (table, [topic])).fetchall()
                stored = {Partition(t, n): (topic_id, at) for t, n, topic_id, at in rows}
                for partition, k in known.items():
                    if partition.topic != topic:
                        continue
                    topic_id, position = stored.get(partition, (k.topic_id, None))
                    if topic_id != k.topic_id:
                        log.warning(
                            "the topic %s was deleted and made anew (its id is another): beginning "
                            "at its start, %d; before, %s had landed up to %s",
                            topic, k.earliest, partition, position,
                        )  # fmt: skip
                        position = None
                    if position is None:
                        position = k.earliest
                        connection.execute(
                            _BEGIN_AT, (table, topic, partition.number, k.topic_id, position)
                        )
                    found[partition] = position
            connection.commit()
        # Also where nothing is left to land: a drain in another process waits for it.
        self._log.report(found)
        return found

    def write(self, batch: Batch) -> None:
        """In commit order:

        1. `settle`: only after a lost connection, was this batch committed after all?
        2. `copy`: rows into the table (with `dedupe` by way of a temporary one)
        3. `move`: compare-and-set of every partition's position
        4. `commit`
        5. `report` the position to the consumer group, for others to see
        """
        try:
            with self._talking() as connection:
                if self._unsure:
                    with self._step("settle"):
                        landed = self._settle(connection, batch)
                    self._unsure = False
                else:
                    landed = False
                if not landed:
                    self._unsure = True
                    self._transact(connection, batch)
                    self._unsure = False
        except (Rejected, Fenced):
            # Rolled back for certain.
            self._unsure = False
            raise
        with self._step("report"):
            self._log.report({partition: span.end for partition, span in batch.spans.items()})

    def _transact(self, connection: psycopg.Connection, batch: Batch) -> None:
        if batch.chunks:
            with self._step("copy"):
                self._copy(connection, batch)
        with self._step("move"):
            self._move(connection, batch)
        with self._step("commit"):
            connection.commit()

    def _copy(self, connection: psycopg.Connection, batch: Batch) -> None:
        stream = batch.stream
        table = sql.Identifier(stream.table)
        names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns(stream))
        target: sql.Composable = table
        if stream.dedupe:
            target = sql.Identifier("pg_temp", f"headrace_{stream.table}"[:63])
            connection.execute(
                sql.SQL(
                    "CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS"
                ).format(sql.Identifier(f"headrace_{stream.table}"[:63]), table)
            )
        copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, names)
        try:
            with connection.cursor().copy(copy) as stdin:
                for piece in self._encoders[stream.name].encode(c.rows for c in batch.chunks):
                    stdin.write(piece)
            if stream.dedupe:
                connection.execute(
                    sql.SQL(
                        "INSERT INTO {} ({names}) SELECT {names} FROM {} ON CONFLICT DO NOTHING"
                    ).format(table, target, names=names)
                )
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if error.sqlstate in _PERSON_NEEDED:
                raise
            raise Rejected(_first_line(error), self._at_fault(batch)) from error
        except ValueError as error:
            raise Rejected(str(error)) from error

    def _move(self, connection: psycopg.Connection, batch: Batch) -> None:
        spans = batch.spans.items()
        moved = connection.execute(
            _MOVE,
            (
                [p.topic for p, _ in spans],
                [p.number for p, _ in spans],
                [self._log.topic_id(p) for p, _ in spans],
                [span.start for _, span in spans],
                [span.end for _, span in spans],
                batch.stream.table,
            ),
        ).rowcount
        if moved != len(batch.spans):
            raise Fenced(
                f"of the positions of {', '.join(map(str, batch.spans))} only {moved} are where "
                "this writer left them"
            )

    def _settle(self, connection: psycopg.Connection, batch: Batch) -> bool:
        topics = list({partition.topic for partition in batch.spans})
        rows = connection.execute(_READ, (batch.stream.table, topics)).fetchall()
        stored = {Partition(topic, number): at for topic, number, _id, at in rows}
        return all(stored.get(partition) == span.end for partition, span in batch.spans.items())

    def _at_fault(self, batch: Batch) -> dict[int, str]:
        """Rows that hold what PostgreSQL never takes, found column by column; maybe none."""
        found: dict[int, str] = {}
        base = 0
        encoder = self._encoders[batch.stream.name]
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

    @contextmanager
    def _talking(self) -> Iterator[psycopg.Connection]:
        """A connection; turns the driver's errors into the four kinds, and rolls back."""
        try:
            if self._connection is None:
                self._connection = connect(self._url)
            yield self._connection
        except BaseException as error:
            if self._connection is not None:
                with suppress(psycopg.Error):
                    self._connection.rollback()
                if self._connection.broken or self._connection.closed:
                    self._drop()
            if isinstance(error, psycopg.Error):
                raise explain(error, self._url) from error
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection."""
        self._drop()


def connect(url: str) -> psycopg.Connection:
    """A connection with our session settings. Raises psycopg.Error."""
    options = " ".join(f"-c {k}={v}" for k, v in _SESSION.items() if k != "application_name")
    return psycopg.connect(
        url,
        connect_timeout=_CONNECT_TIMEOUT_S,
        options=options,
        application_name=_SESSION["application_name"],
        prepare_threshold=0,
        **_KEEPALIVE,
    )


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
    present = connection.execute("SELECT to_regclass('headrace_offsets')").fetchone()
    connection.rollback()
    if present is None or present[0] is None:
        raise Systemic(
            "the table headrace_offsets does not exist; create it with `headrace migrate --to URL`"
        )


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


def explain(error: psycopg.Error, url: str) -> Exception:
    """The driver's error as one of the kinds of failure."""
    state = error.sqlstate or ""
    said = _first_line(error)
    place = where(url)
    for code in (state, state[:2]):
        if code in _PERSON_NEEDED:
            return Systemic(f"PostgreSQL at {place}: {said}; {_PERSON_NEEDED[code]}")
    if state[:2] in _ROWS_AT_FAULT:
        return Rejected(said)
    if isinstance(error, errors.OperationalError) and not state:
        # libpq gives no SQLSTATE for what happens while connecting.
        if "password authentication failed" in said or "no password supplied" in said:
            return Systemic(f"PostgreSQL at {place}: {said}; {_PERSON_NEEDED['28']}")
        if "does not exist" in said:
            return Systemic(f"PostgreSQL at {place}: {said}; {_PERSON_NEEDED['3D']}")
    refused = any(words in said for words in _REFUSED)
    if not state and (refused or isinstance(error, psycopg.ProgrammingError)):
        return Systemic(f"PostgreSQL at {place}: {said}")
    return Unavailable(f"PostgreSQL at {place}: {said}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def where(url: str) -> str:
    """Host, port and database, without the password."""
    parts: dict[str, Any] = {}
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        ports = str(parts.get("port", "5432"))
    except psycopg.Error:
        ports = ""
    if not ports.replace(",", "").isdigit() or "@" in str(parts.get("host", "")):
        # What libpq says of it may hold a part of the password.
        raise Systemic(
            "the URL of PostgreSQL can't be used: write postgres://user:password@host:5432/name, "
            "with what is special in the password as %2F (/), %40 (@), %3A (:)"
        ) from None
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


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
