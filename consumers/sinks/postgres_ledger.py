"""The ledger of a PostgreSQL database: `headrace_ledger`, for each table, partition and hour.

It is added to in the transaction that holds the rows and the position, behind the compare-and-set: so it
says neither more nor less than the table got, and no two writers wait for each other's rows of it.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from consumers.batch import Partition
from consumers.ledger.account import Account
from consumers.ledger.tally import Bucket, Entry, Sum
from consumers.sinks import postgres_positions as positions
from consumers.sinks.postgres_checks import check_tables
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from ingest.streams import Stream

__all__ = ["LEDGER_DDL", "account", "add", "knows", "read"]

LEDGER_DDL = """\
CREATE TABLE IF NOT EXISTS headrace_ledger (
    table_name text        NOT NULL,
    topic      text        NOT NULL,
    topic_id   text        NOT NULL,
    partition  integer     NOT NULL,
    hour       timestamptz NOT NULL,  -- of event time
    landed     bigint      NOT NULL,
    dropped    bigint      NOT NULL,  -- were there already: dedupe
    dead       bigint      NOT NULL,  -- went to the dead letters
    row_hash   bigint      NOT NULL,  -- of landed and dropped: see consumers/ledger/tally.py
    dead_hash  bigint      NOT NULL,
    PRIMARY KEY (table_name, topic, topic_id, partition, hour)
) WITH (fillfactor = 50);
"""

# Rows are locked in one order.
_ADD = """
INSERT INTO headrace_ledger AS l
SELECT %s, n.topic, n.topic_id, n.partition, to_timestamp(n.hour * 3600), n.landed, n.dropped, n.dead,
       n.row_hash, n.dead_hash
FROM unnest(%s::text[], %s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
            %s::bigint[], %s::bigint[])
     AS n (topic, topic_id, partition, hour, landed, dropped, dead, row_hash, dead_hash)
ORDER BY n.topic, n.partition, n.hour
ON CONFLICT (table_name, topic, topic_id, partition, hour) DO UPDATE SET
    landed = l.landed + excluded.landed,
    dropped = l.dropped + excluded.dropped,
    dead = l.dead + excluded.dead,
    row_hash = mod(l.row_hash + excluded.row_hash, 2305843009213693951),
    dead_hash = mod(l.dead_hash + excluded.dead_hash, 2305843009213693951)"""  # noqa: E501
_KNOWS = """
SELECT 1 FROM headrace_ledger
WHERE table_name = %s AND topic = %s AND topic_id = %s AND partition = %s LIMIT 1"""
_READ = """
SELECT partition, floor(extract(epoch FROM hour) / 3600)::bigint, landed, dropped, dead, row_hash, dead_hash
FROM headrace_ledger WHERE table_name = %s AND topic = %s AND topic_id = %s"""  # noqa: E501


def add(
    connection: psycopg.Connection,
    table: str,
    entries: Mapping[Bucket, Entry],
    topic_ids: Mapping[Partition, str],
) -> None:
    """Add what a batch did, within the transaction that is open."""
    if not entries:
        return
    connection.execute(
        _ADD,
        (
            table,
            [bucket.partition.topic for bucket in entries],
            [topic_ids[bucket.partition] for bucket in entries],
            [bucket.partition.number for bucket in entries],
            [bucket.hour for bucket in entries],
            [entry.landed for entry in entries.values()],
            [entry.dropped for entry in entries.values()],
            [entry.dead.records for entry in entries.values()],
            [entry.rows.hash for entry in entries.values()],
            [entry.dead.hash for entry in entries.values()],
        ),
    )


def read(
    connection: psycopg.Connection, table: str, topic: str, topic_id: str
) -> dict[Bucket, Entry]:
    """All that is known of a topic in a table."""
    found = {}
    for number, hour, landed, dropped, dead, row_hash, dead_hash in connection.execute(
        _READ, (table, topic, topic_id)
    ):
        found[Bucket(Partition(topic, number), hour)] = Entry(
            Sum(landed + dropped, row_hash), dropped, Sum(dead, dead_hash)
        )
    return found


def knows(connection: psycopg.Connection, table: str, partition: Partition, topic_id: str) -> bool:
    """Whether records of this topic have landed in a table."""
    found = connection.execute(_KNOWS, (table, partition.topic, topic_id, partition.number))
    return found.fetchone() is not None


def account(url: str, stream: Stream, topic_id: str) -> Account | None:
    """See consumers.destinations.Destination. Positions and ledger are of one snapshot."""
    try:
        with connect(url) as connection:
            check_tables(connection, [stream])
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            stored = positions.read(connection, stream.table, [stream.topic])
            at = {p: offset for p, (known, offset) in stored.items() if known == topic_id}
            if not stored:
                return None
            # Without a position, of an older topic of this name: all of this one is to come.
            return Account(at, read(connection, stream.table, stream.topic, topic_id))
    except psycopg.Error as error:
        raise explain(error, url) from error
