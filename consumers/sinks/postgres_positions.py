"""Positions in `headrace_offsets`: for each table, topic and partition the offset to read next.

Everything below has landed in the table, exactly once. Of two writers that believe to own a partition
only one moves it: by compare-and-set, in the transaction that holds the rows.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Mapping

import psycopg

from consumers.batch import Partition, Span
from consumers.errors import Fenced
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from ingest.streams import Stream

__all__ = ["begin", "move", "positions", "read"]

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


def read(
    connection: psycopg.Connection, table: str, topics: Collection[str]
) -> dict[Partition, tuple[str, int]]:
    """Where this table is with these topics: topic id and offset, of the partitions it knows."""
    rows = connection.execute(_READ, (table, list(topics))).fetchall()
    return {Partition(topic, number): (topic_id, at) for topic, number, topic_id, at in rows}


def positions(url: str, stream: Stream, topic_id: str) -> dict[Partition, int]:
    """See consumers.destinations.Destination."""
    try:
        with connect(url) as connection:
            found = read(connection, stream.table, [stream.topic])
    except psycopg.Error as error:
        raise explain(error, url) from error
    return {partition: at for partition, (known, at) in found.items() if known == topic_id}


def begin(
    connection: psycopg.Connection, table: str, partition: Partition, topic_id: str, at: int
) -> None:
    """Put a partition of this topic id at an offset, unless another writer has done so."""
    connection.execute(_BEGIN_AT, (table, partition.topic, partition.number, topic_id, at))


def move(
    connection: psycopg.Connection,
    table: str,
    spans: Mapping[Partition, Span],
    topic_ids: Mapping[Partition, str],
) -> None:
    """From each span's start to its end. Raises Fenced where one is not at its start."""
    moved = connection.execute(
        _MOVE,
        (
            [p.topic for p in spans],
            [p.number for p in spans],
            [topic_ids[p] for p in spans],
            [span.start for span in spans.values()],
            [span.end for span in spans.values()],
            table,
        ),
    ).rowcount
    if moved != len(spans):
        raise Fenced(
            f"of the positions of {', '.join(map(str, spans))} only {moved} are where "
            "this writer left them"
        )
