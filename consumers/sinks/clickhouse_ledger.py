"""The ledger of a ClickHouse database: `headrace_ledger`, a row for some batches of a partition.

There is no transaction that could hold it and the rows, but the commit of a position has metadata: what
became of the last batches stands there first (consumers/ledger/owed.py), and a row of all of them is written
before it is taken out of there. A row is known by where its span starts; so one that is written once
more, by whoever comes next, replaces itself as a whole. Rows from there on do not count yet, since the
metadata says what they say.
"""  # noqa: E501

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import orjson
from clickhouse_connect.driver.client import Client

from consumers.batch import Partition
from consumers.client import Settings
from consumers.intent import Intent
from consumers.ledger.account import Account, CantBeJudged, PlaceUnknown, known_of
from consumers.ledger.owed import Owed
from consumers.ledger.tally import Bucket, Entry, Sum
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect, is_there, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_newest import gone, gone_back
from ingest.streams import Stream

__all__ = ["LEDGER_DDL", "account", "add", "end", "read"]

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
# The newest rows may be missing for so long: of a replica that has not got them yet, and while a
# replay puts back one row for several. (Inserters wait for longer, for theirs is to stop.)
_CATCH_UP_S = 5.0
_AGAIN_S = 0.2

_READ = """
SELECT partition, intDiv(toInt64(toUnixTimestamp64Second(hour)), 3600) AS h,
       sum(l), toUInt64(sum(toUInt128(lh)) % 2305843009213693951),
       sum(d), toUInt64(sum(toUInt128(dh)) % 2305843009213693951)
FROM headrace_ledger FINAL
ARRAY JOIN hours AS hour, landed AS l, row_hash AS lh, dead AS d, dead_hash AS dh
WHERE table_name = {table:String} AND topic = {topic:String} AND topic_id = {id:String}
  AND start < transform(partition, {numbers:Array(Int32)}, {positions:Array(Int64)}, toInt64(0))
GROUP BY partition, h"""


def add(client: Client, table: str, topic_id: str, owed: Mapping[Partition, Owed]) -> None:
    """Write what became of records of one topic; a second time changes nothing."""
    lines = [
        orjson.dumps(
            {
                "table_name": table,
                "topic": partition.topic,
                "topic_id": topic_id,
                "partition": partition.number,
                "start": one.span.start,
                "stop": one.span.end,
                "hours": [f"{_EPOCH + timedelta(hours=h):%Y-%m-%d %H:%M:%S}" for h in one.entries],
                "landed": [entry.rows.records for entry in one.entries.values()],
                "dead": [entry.dead.records for entry in one.entries.values()],
                "row_hash": [entry.rows.hash for entry in one.entries.values()],
                "dead_hash": [entry.dead.hash for entry in one.entries.values()],
            }
        )
        for partition, one in owed.items()
        if one.entries
    ]
    if lines:
        client.raw_insert(
            "headrace_ledger", _COLUMNS, b"\n".join(lines), settings=_SETTINGS, fmt="JSONEachRow"
        )


def read(
    client: Client, table: str, topic: str, topic_id: str, positions: Mapping[Partition, int]
) -> dict[Bucket, Entry]:
    """All that the table says of a topic, below these positions."""
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


def end(client: Client, table: str, partition: Partition, topic_id: str) -> int:
    """Behind the last span of a partition in the table; 0 without any."""
    rows = client.query(
        "SELECT max(stop) FROM headrace_ledger WHERE table_name = {table:String} "
        "AND topic = {topic:String} AND topic_id = {id:String} AND partition = {n:Int32}",
        parameters={"table": table, "topic": partition.topic, "id": topic_id,
                    "n": partition.number},
    ).result_rows  # fmt: skip
    return int(rows[0][0])


def account(url: str, kafka: Settings, group: str, stream: Stream, topic_id: str) -> Account | None:
    """See consumers.destinations.Destination. Metadata first: rows behind it don't count.

    Raises PlaceUnknown where there is something that the group does not know of, and CantBeJudged
    where the table has gone back: metadata and ledger then say what was true once.
    """
    known = known_of(kafka, group, stream, topic_id)
    if not known:
        ids = _topic_ids(url, stream)
        if topic_id not in ids:
            # Of an older topic of this name, all of this one is to come.
            return Account({}, {}) if ids else None
        raise PlaceUnknown(
            stream.topic,
            group,
            "Name it with --group, if its inserters have another one; or start `headrace insert`",
        )
    at = {partition: k.committed or 0 for partition, k in known.items()}
    notes = {p: Intent.read(k.note) for p, k in known.items()}
    owed = {p: intent.owed for p, intent in notes.items() if intent and intent.owed}
    newest = {p: intent.newest for p, intent in notes.items() if intent and intent.newest}
    written = {p: owed[p].span.start if p in owed else position for p, position in at.items()}
    require_chdb(url)
    client = connect(url)
    try:
        with talking(url):
            check_tables(client, [stream])
            give_up = time.monotonic() + _CATCH_UP_S
            while lacking := sorted(gone(client, stream, topic_id, newest)):
                if time.monotonic() >= give_up:
                    said = gone_back(stream, lacking[0], newest[lacking[0]], group)
                    raise CantBeJudged(f"can't be judged: {said}")
                time.sleep(_AGAIN_S)
            entries = read(client, stream.table, stream.topic, topic_id, written)
    finally:
        client.close()
    for partition, one in owed.items():
        for hour, entry in one.entries.items():
            bucket = Bucket(partition, hour)
            entries[bucket] = entries.get(bucket, Entry()).plus(entry)
    return Account(at, entries)


def _topic_ids(url: str, stream: Stream) -> set[str]:
    """Of which topics of this name its ledger says anything; none where there is no ledger."""
    if not is_there(url):
        return set()
    client = connect(url)
    try:
        with talking(url):
            if not client.command("EXISTS TABLE headrace_ledger"):
                return set()
            rows = client.query(
                "SELECT DISTINCT toString(topic_id) FROM headrace_ledger "
                "WHERE table_name = {table:String} AND topic = {topic:String}",
                parameters={"table": stream.table, "topic": stream.topic},
            ).result_rows
    finally:
        client.close()
    return {topic_id for (topic_id,) in rows}
