"""A ClickHouse table against Kafka: by sums first, then, where those differ, record by record."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from clickhouse_connect.driver.client import Client

from consumers.batch import Partition
from consumers.ledger.finding import MOST, Finding, Question, label
from consumers.ledger.tally import HOUR_US, MIX_SQL, NOTHING, Bucket, Sum, entries_of
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_types import quote

__all__ = ["compare"]

_WITHIN = Template("""
WHERE _topic = {topic:String} AND _topic_id = {id:String}
  AND toUnixTimestamp64Micro($time) >= {begin:Int64}
  AND toUnixTimestamp64Micro($time) < {end:Int64}
  AND _offset >= transform(_partition, {numbers:Array(Int32)}, {starts:Array(Int64)}, toInt64(0))
  AND _offset < transform(_partition, {numbers:Array(Int32)}, {ends:Array(Int64)}, toInt64(0))""")
# Hours since 1970, rounded down also before that.
_SUMS = Template("""
WITH $mix
SELECT _partition, intDiv(toUnixTimestamp64Micro($time) + 3600000000000000, 3600000000) - 1000000,
       count(), sum(mixed)
FROM $table $within GROUP BY ALL""")
_ROWS = Template("""
SELECT _offset, count() FROM $table $within AND _partition = {number:Int32} GROUP BY _offset""")

_REMOVAL = Template(
    "DELETE FROM $table WHERE _topic_id = '$id' AND _partition = $n AND _offset = $offset"
)


def compare(url: str, asked: Question) -> list[Finding]:
    """Records that are missing or there more than once. Raises Unavailable, Systemic.

    Streams with `dedupe` are not compared: ClickHouse merges their rows when it likes.
    """
    if asked.stream.dedupe:
        return []
    require_chdb(url)
    client = connect(url)
    try:
        with talking(url):
            return _named(client, asked, _differing(client, asked))
    finally:
        client.close()


def _differing(client: Client, asked: Question) -> list[Bucket]:
    """Where Kafka's records are not those of the table and those that the table refused."""
    expected: dict[Bucket, Sum] = {}
    for batch in asked.meant(asked.spans(asked.positions)):
        for bucket, entry in entries_of(batch).items():
            expected[bucket] = expected.get(bucket, NOTHING).plus(entry.rows)
    found = {
        Bucket(Partition(asked.stream.topic, number), hour): Sum(count, hash_)
        for number, hour, count, hash_ in _ask(client, asked, _SUMS, {})
    }
    return sorted(
        bucket
        for bucket in {**expected, **found}
        if expected.get(bucket, NOTHING) != found.get(bucket, NOTHING)
    )


def _named(client: Client, asked: Question, differing: list[Bucket]) -> list[Finding]:
    """Which records, and how many rows of each; a record among the dead letters is not missing."""
    if not differing:
        return []
    names: dict[Bucket, dict[int, str]] = {bucket: {} for bucket in differing}
    for batch in asked.meant(asked.spans(asked.positions)):
        for chunk in batch.chunks:
            times = chunk.rows.column(asked.stream.column(asked.stream.time)).view("int64")
            called = chunk.rows.column(label(asked.stream))
            for row, (offset, at) in enumerate(zip(chunk.offsets, times.to_pylist(), strict=True)):
                known = names.get(Bucket(chunk.partition, at // HOUR_US))
                if known is not None:
                    known[offset] = f"{label(asked.stream)} {called[row].as_py()}"
    refused = asked.refused()
    findings: list[Finding] = []
    for (partition, hour), known in names.items():
        within = {
            "number": partition.number,
            "begin": max(asked.begin_us, hour * HOUR_US),
            "end": min(asked.end_us, (hour + 1) * HOUR_US),
        }
        there = dict(_ask(client, asked, _ROWS, within))
        for offset in sorted(known.keys() | there.keys()):
            surplus = there.get(offset, 0) - (offset in known)
            if surplus and (partition, offset) not in refused:
                name = known.get(offset, "a record that Kafka does not have there")
                removal = "" if offset in known else _removal(asked, partition, offset)
                findings.append(Finding(hour, surplus, name, (partition, offset), removal))
                if len(findings) == MOST:
                    return findings
    return findings


def _removal(asked: Question, partition: Partition, offset: int) -> str:
    """For a person to run."""
    return _REMOVAL.substitute(
        table=quote(asked.stream.table), id=asked.topic_id, n=partition.number, offset=offset
    )


def _ask(client: Client, asked: Question, query: Template, more: Mapping[str, Any]) -> Any:
    time, spans = quote(asked.stream.column(asked.stream.time)), asked.spans(asked.positions)
    return client.query(
        query.substitute(
            table=quote(asked.stream.table),
            time=time,
            mix=MIX_SQL,
            within=_WITHIN.substitute(time=time),
        ),
        parameters={
            "topic": asked.stream.topic,
            "id": asked.topic_id,
            "begin": asked.begin_us,
            "end": asked.end_us,
            "numbers": [partition.number for partition in spans],
            "starts": [span.start for span in spans.values()],
            "ends": [span.end for span in spans.values()],
            **more,
        },
    ).result_rows
