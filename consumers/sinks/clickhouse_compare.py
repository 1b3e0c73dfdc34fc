"""A ClickHouse table against Kafka: by sums first, then, where those differ, record by record.

With `dedupe` by keys: what Kafka has of them is copied into a temporary table beside it.

The sums are of splitmix64(offset) modulo 2^64, which ClickHouse and Arrow add up alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import Template
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from consumers.batch import Chunk, Partition
from consumers.ledger.finding import MOST, Finding, Question, label
from consumers.ledger.tally import Bucket
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_types import quote
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["compare"]

_WORD = 2**64
# The constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
# ClickHouse's UInt64 wraps, as Arrow's does.
_MIX = (
    f"toUInt64(_offset) + toUInt64('{_GAMMA}') AS m0, "
    f"bitXor(m0, bitShiftRight(m0, 30)) * toUInt64('{_ROUNDS[0][1]}') AS m1, "
    f"bitXor(m1, bitShiftRight(m1, 27)) * toUInt64('{_ROUNDS[1][1]}') AS m2, "
    "bitXor(m2, bitShiftRight(m2, 31)) AS mixed"
)

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

# What Kafka has, for streams with `dedupe`: of copies the last one stays, and its time is its own.
_COPIED = "headrace_audit"
_MAKE = Template("""
CREATE TEMPORARY TABLE $copied ENGINE = MergeTree ORDER BY tuple() AS
SELECT $keys, toInt32(0) AS _n, toInt64(0) AS _at, toInt64(0) AS _us, '' AS _name
FROM $table LIMIT 0""")
_MISSING = Template("""
SELECT intDiv(min(_us) + 3600000000000000, 3600000000) - 1000000 AS hour, any(_name),
       groupArray((_n, _at))
FROM $copied WHERE ($keys) NOT IN (
    SELECT $keys FROM $table WHERE ($keys) IN (SELECT $keys FROM $copied))
GROUP BY $keys ORDER BY hour LIMIT $most SETTINGS transform_null_in = 1""")
_SURPLUS = Template("""
SELECT intDiv(toUnixTimestamp64Micro($time) + 3600000000000000, 3600000000) - 1000000 AS hour,
       toString($name), [$texts], _partition, _offset
FROM $table $within AND ($keys) NOT IN (SELECT $keys FROM $copied)
ORDER BY hour LIMIT $most SETTINGS transform_null_in = 1""")

_REMOVAL = Template(
    "DELETE FROM $table WHERE _topic_id = '$id' AND _partition = $n AND _offset = $offset"
)


def compare(url: str, asked: Question) -> list[Finding]:
    """Records that are missing or there more than once. Raises Unavailable, Systemic.

    With `dedupe` it is keys that are missing or too many: a copy may be there or merged away.
    """
    require_chdb(url)
    client = connect(url, session=bool(asked.stream.dedupe))
    try:
        with talking(url):
            if asked.stream.dedupe:
                return list(_by_key(client, asked))
            return _named(client, asked, _differing(client, asked))
    finally:
        client.close()


def _differing(client: Client, asked: Question) -> list[Bucket]:
    """Where Kafka's records are not those of the table and those that the table refused."""
    expected: dict[Bucket, tuple[int, int]] = {}
    time = asked.stream.column(asked.stream.time)
    for batch in asked.meant(asked.spans(asked.positions)):
        for chunk in batch.chunks:
            for hour, (count, mixed) in _sums(chunk, time):
                bucket = Bucket(chunk.partition, hour)
                known = expected.get(bucket, (0, 0))
                expected[bucket] = (known[0] + count, (known[1] + mixed) % _WORD)
    found = {
        Bucket(Partition(asked.stream.topic, number), hour): (count, mixed)
        for number, hour, count, mixed in _ask(client, asked, _SUMS, {})
    }
    return sorted(
        bucket for bucket in {**expected, **found} if expected.get(bucket) != found.get(bucket)
    )


def _sums(chunk: Chunk, time: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """Of a chunk's rows by their hours: how many, and which."""
    # Division rounds towards 0, so hours are counted from long before every event.
    early = pa.scalar(1_000_000 * HOUR_US, pa.int64())
    times = pc.add(chunk.rows.column(time).view(pa.int64()), early)
    z = pc.add(pa.array(chunk.offsets, pa.uint64()), _number(_GAMMA))
    for shift, factor in _ROUNDS:
        z = pc.multiply(pc.bit_wise_xor(z, pc.shift_right(z, _number(shift))), _number(factor))
    mixed = pc.bit_wise_xor(z, pc.shift_right(z, _number(31)))
    hours = pc.divide(times, pa.scalar(HOUR_US, pa.int64()))
    found = pa.table({"hour": hours, "mixed": mixed}).group_by("hour", use_threads=False)
    for row in found.aggregate([("mixed", "count"), ("mixed", "sum")]).to_pylist():
        yield row["hour"] - 1_000_000, (row["mixed_count"], row["mixed_sum"])


def _number(value: int) -> pa.Scalar:
    return pa.scalar(value, pa.uint64())


def _named(client: Client, asked: Question, differing: list[Bucket]) -> list[Finding]:
    """Which records, and how many rows of each; one that the table has refused is not missing."""
    if not differing:
        return []
    key = label(asked.stream)
    there = {bucket: _rows(client, asked, bucket) for bucket in differing}
    missing: dict[Bucket, list[int]] = {bucket: [] for bucket in differing}
    names: dict[tuple[Partition, int], str] = {}
    findings: list[Finding] = []
    for batch in asked.meant(asked.spans(asked.positions)):
        for chunk in batch.chunks:
            times = chunk.rows.column(asked.stream.column(asked.stream.time)).view("int64")
            called = chunk.rows.column(key)
            for row, (offset, at) in enumerate(zip(chunk.offsets, times.to_pylist(), strict=True)):
                bucket = Bucket(chunk.partition, at // HOUR_US)
                if bucket not in there:
                    continue
                rows = there[bucket].pop(offset, 0)
                if rows == 1:
                    continue
                place, name = (chunk.partition, offset), f"{key} {called[row].as_py()}"
                if rows:
                    findings.append(Finding(bucket.hour, rows - 1, name, place))
                # As many as are shown, behind those that it may have refused.
                elif len(missing[bucket]) <= MOST + asked.dead(bucket):
                    missing[bucket].append(offset)
                    names[place] = name
    findings += _not_in_kafka(asked, there)
    excused = asked.excused(missing, asked.entries)
    for bucket, offsets in missing.items():
        for offset in offsets:
            place = (bucket.partition, offset)
            if place not in excused:
                findings.append(Finding(bucket.hour, -1, names[place], place))
    return sorted(findings, key=lambda one: (one.hour, one.place or ()))[:MOST]


def _not_in_kafka(asked: Question, there: Mapping[Bucket, Mapping[int, int]]) -> Iterator[Finding]:
    """Of what is left of the table's rows."""
    for bucket, left in there.items():
        for offset, rows in sorted(left.items())[:MOST]:
            place = (bucket.partition, offset)
            name = "a record that Kafka does not have there"
            yield Finding(bucket.hour, rows, name, place, _removal(asked, *place))


def _rows(client: Client, asked: Question, bucket: Bucket) -> dict[int, int]:
    """How many rows the table has of each offset."""
    within = {
        "number": bucket.partition.number,
        "begin": max(asked.begin_us, bucket.hour * HOUR_US),
        "end": min(asked.end_us, (bucket.hour + 1) * HOUR_US),
    }
    return dict(_ask(client, asked, _ROWS, within))


def _by_key(client: Client, asked: Question) -> Iterator[Finding]:
    stream = asked.stream
    client.command(_filled(_MAKE, stream))
    for batch in asked.meant(asked.spans(asked.positions)):
        for chunk in batch.chunks:
            client.insert_arrow(_COPIED, _copied(chunk, stream))
    lacking = [
        (hour, name, sorted((Partition(stream.topic, number), offset) for number, offset in places))
        for hour, name, places in _ask(client, asked, _MISSING, {})
    ]
    missing: dict[Bucket, list[int]] = {}
    for hour, _, places in lacking:
        for partition, offset in places:
            missing.setdefault(Bucket(partition, hour), []).append(offset)
    excused = asked.excused({b: sorted(offsets) for b, offsets in missing.items()}, asked.entries)
    for hour, name, places in lacking:
        if not excused.issuperset(places):
            yield Finding(hour, -1, f"{label(stream)} {name}", places[0])
    for hour, name, texts, number, offset in _ask(client, asked, _SURPLUS, {}):
        removal = _removal(asked, Partition(stream.topic, number), offset)
        # Not by its place alone: it may be a copy of one that is right there, made by hand.
        for column, text in zip(_key(stream), texts, strict=True):
            found = "IS NULL" if text is None else f"= {_literal(text)}"
            removal += f" AND toString({quote(column)}) {found}"
        yield Finding(hour, 1, f"{label(stream)} {name}", None, removal)


def _key(stream: Stream) -> list[str]:
    return [stream.column(field) for field in stream.dedupe]


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _copied(chunk: Chunk, stream: Stream) -> pa.Table:
    """A chunk's rows as the temporary table has them."""
    rows = chunk.rows
    columns = {name: rows.column(name) for name in _key(stream)}
    columns["_n"] = pa.array([chunk.partition.number] * rows.num_rows, pa.int32())
    columns["_at"] = pa.array(chunk.offsets, pa.int64())
    columns["_us"] = rows.column(stream.column(stream.time)).view(pa.int64())
    columns["_name"] = rows.column(label(stream)).cast(pa.string())
    return pa.table(columns)


def _removal(asked: Question, partition: Partition, offset: int) -> str:
    """For a person to run."""
    return _REMOVAL.substitute(
        table=quote(asked.stream.table), id=asked.topic_id, n=partition.number, offset=offset
    )


def _ask(client: Client, asked: Question, query: Template, more: Mapping[str, Any]) -> Any:
    spans = asked.spans(asked.positions)
    return client.query(
        _filled(query, asked.stream),
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


def _filled(query: Template, stream: Stream) -> str:
    time = quote(stream.column(stream.time))
    return query.substitute(
        table=quote(stream.table),
        copied=_COPIED,
        keys=", ".join(map(quote, _key(stream))),
        texts=", ".join(f"toString({quote(column)})" for column in _key(stream)),
        time=time,
        name=quote(label(stream)),
        within=_WITHIN.substitute(time=time),
        mix=_MIX,
        most=MOST,
    )
