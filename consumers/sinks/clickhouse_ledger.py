"""The ledger of a ClickHouse database: `headrace_ledger`, a row for each span that landed.

There is no transaction that could hold it and the rows. A row is known by where its span starts: an insert
that was begun is brought to an end over just its span by whoever comes next, and what was refused is
tried again from the same start; so a row that is written once more replaces itself, as a whole. It is
written before the position moves; those from the position on do not count yet.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import orjson
from clickhouse_connect.driver.client import Client

from consumers.batch import Batch, Partition
from consumers.client import Settings
from consumers.ledger.account import Account, positions_of
from consumers.ledger.tally import Bucket, Entry, Sum, entries_of
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from ingest.streams import Stream

__all__ = ["LEDGER_DDL", "account", "add", "read"]

LEDGER_DDL = """\
CREATE TABLE IF NOT EXISTS headrace_ledger (
    table_name LowCardinality(String),
    topic      LowCardinality(String),
    topic_id   LowCardinality(String),
    partition  Int32,
    start      Int64,                       -- the span's offsets
    stop       Int64,
    hours      Array(DateTime64(0, 'UTC')), -- of event time; in each of them:
    landed     Array(UInt64),
    dead       Array(UInt64),               -- went to the dead letters
    row_hash   Array(UInt64),               -- see consumers/ledger/tally.py
    dead_hash  Array(UInt64)
)
ENGINE = ReplacingMergeTree
ORDER BY (table_name, topic, topic_id, partition, start);
"""
_COLUMNS = [
    "table_name", "topic", "topic_id", "partition", "start", "stop", "hours", "landed",
    "dead", "row_hash", "dead_hash",
]  # fmt: skip
_SETTINGS = {"async_insert": 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_READ = """
SELECT partition, intDiv(toInt64(toUnixTimestamp64Second(hour)), 3600) AS h,
       sum(l), toUInt64(sum(toUInt128(lh)) % 2305843009213693951),
       sum(d), toUInt64(sum(toUInt128(dh)) % 2305843009213693951)
FROM headrace_ledger FINAL
ARRAY JOIN hours AS hour, landed AS l, row_hash AS lh, dead AS d, dead_hash AS dh
WHERE table_name = {table:String} AND topic = {topic:String} AND topic_id = {id:String}
  AND start < transform(partition, {numbers:Array(Int32)}, {positions:Array(Int64)}, toInt64(0))
GROUP BY partition, h"""


def add(client: Client, batch: Batch, topic_id: str) -> None:
    """Write what a batch did; a second time changes nothing."""
    found: dict[Partition, list[tuple[int, Entry]]] = {}
    for (partition, hour), entry in entries_of(batch).items():
        found.setdefault(partition, []).append((hour, entry))
    lines = [
        orjson.dumps(
            {
                "table_name": batch.stream.table,
                "topic": partition.topic,
                "topic_id": topic_id,
                "partition": partition.number,
                "start": batch.spans[partition].start,
                "stop": batch.spans[partition].end,
                "hours": [f"{_EPOCH + timedelta(hours=h):%Y-%m-%d %H:%M:%S}" for h, _ in entries],
                "landed": [entry.rows.records for _, entry in entries],
                "dead": [entry.dead.records for _, entry in entries],
                "row_hash": [entry.rows.hash for _, entry in entries],
                "dead_hash": [entry.dead.hash for _, entry in entries],
            }
        )
        for partition, entries in found.items()
    ]
    if lines:
        client.raw_insert(
            "headrace_ledger", _COLUMNS, b"\n".join(lines), settings=_SETTINGS, fmt="JSONEachRow"
        )


def read(
    client: Client, table: str, topic: str, topic_id: str, positions: Mapping[Partition, int]
) -> dict[Bucket, Entry]:
    """All that is known of a topic in a table, below these positions."""
    rows = client.query(
        _READ,
        parameters={
            "table": table,
            "topic": topic,
            "id": topic_id,
            "numbers": [partition.number for partition in positions],
            "positions": list(positions.values()),
        },
    ).result_rows
    return {
        Bucket(Partition(topic, number), hour): Entry(
            Sum(landed, row_hash), 0, Sum(dead, dead_hash)
        )
        for number, hour, landed, row_hash, dead, dead_hash in rows
    }


def account(url: str, kafka: Settings, group: str, stream: Stream, topic_id: str) -> Account | None:
    """See consumers.destinations.Destination. Positions first: rows behind them don't count."""
    at = positions_of(kafka, group, stream, topic_id)
    if not at:
        return None
    require_chdb(url)
    client = connect(url)
    try:
        with talking(url):
            check_tables(client, [stream])
            return Account(at, read(client, stream.table, stream.topic, topic_id, at))
    finally:
        client.close()
