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
- The ledger is added to in the same transaction, behind the move for the same reason.
- Nobody else's rows are touched: a plain COPY, or with `dedupe` a COPY into a temporary table and
  `INSERT … ON CONFLICT (…) DO NOTHING`.
"""  # noqa: E501

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psycopg

from consumers.batch import Batch, Partition
from consumers.decode import Decoder
from consumers.errors import Fenced, Rejected, Unavailable
from consumers.ledger.tally import entries_of
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log
from consumers.sinks import postgres_ledger as ledger
from consumers.sinks import postgres_positions as positions
from consumers.sinks.postgres_checks import check_tables
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_copy import copy_in
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_types import Encoder
from ingest.streams import Stream

__all__ = ["PostgresSink"]

log = logging.getLogger(__name__)

# Ids do not come back: mostly the topic was deleted between two questions.
_OLDER = (
    "Kafka says that {} has the id {}, of which the table {} had records before those of the id "
    "{}. Either that answer is old, which passes; or this is another Kafka than the last one, or a "
    "restored one, and then this table can't go on with it"
)


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
        try:
            with self._talking() as connection:
                check_tables(connection, streams)
        except BaseException:
            self._drop()
            raise

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """Positions as the database has them; a partition that is new to it begins at the oldest.

        Raises Unavailable for what Kafka has said of an older topic of this name.
        """
        found: dict[Partition, int] = {}
        with self._talking() as connection:
            for topic in {partition.topic for partition in known}:
                table = self._streams[topic].table
                stored = positions.read(connection, table, [topic])
                for partition, k in known.items():
                    if partition.topic != topic:
                        continue
                    topic_id, position = stored.get(partition) or (k.topic_id, None)
                    if topic_id != k.topic_id:
                        if ledger.knows(connection, table, partition, k.topic_id):
                            raise Unavailable(_OLDER.format(topic, k.topic_id, table, topic_id))
                        log.warning(
                            "the topic %s was deleted and made anew (its id is another): beginning "
                            "at its start, %d; before, %s had landed up to %s",
                            topic, k.earliest, partition, position,
                        )  # fmt: skip
                        position = None
                    if position is None:
                        position = k.earliest
                        positions.begin(connection, table, partition, k.topic_id, position)
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
        4. `account`: what became of the records, into the ledger
        5. `commit`
        6. `report` the position to the consumer group, for others to see
        """
        try:
            with self._talking() as connection:
                landed = False
                if self._unsure:
                    with self._step("settle"):
                        landed = self._settle(connection, batch)
                if not landed:
                    self._unsure = True
                    new = None
                    if batch.chunks:
                        with self._step("copy"):
                            encoder = self._encoders[batch.stream.name]
                            new = copy_in(connection, batch, encoder)
                    with self._step("move"):
                        topic_ids = {p: self._log.topic_id(p) for p in batch.spans}
                        positions.move(connection, batch.stream.table, batch.spans, topic_ids)
                    with self._step("account"):
                        entries = entries_of(batch, new)
                        ledger.add(connection, batch.stream.table, entries, topic_ids)
                    with self._step("commit"):
                        connection.commit()
                self._unsure = False
        except (Rejected, Fenced) as error:
            # Rolled back for certain.
            self._unsure = False
            if isinstance(error, Rejected) and not self._at_its_start(batch):
                # A unique index of the user's own refuses what has landed already.
                raise Fenced("another writer has moved on from where these rows are") from error
            raise
        with self._step("report"):
            self._log.report({partition: span.end for partition, span in batch.spans.items()})

    def _settle(self, connection: psycopg.Connection, batch: Batch) -> bool:
        """Whether the batch whose outcome is unknown was committed."""
        topics = {partition.topic for partition in batch.spans}
        stored = positions.read(connection, batch.stream.table, topics)
        # No transaction stays open behind it: the server would end the session for being idle.
        connection.rollback()
        return all(p in stored and stored[p][1] == s.end for p, s in batch.spans.items())

    def _at_its_start(self, batch: Batch) -> bool:
        """Whether nobody has landed anything of a batch."""
        with self._talking() as connection:
            topics = {partition.topic for partition in batch.spans}
            stored = positions.read(connection, batch.stream.table, topics)
            connection.rollback()
        return all(p in stored and stored[p][1] == s.start for p, s in batch.spans.items())

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
