"""What the sink asks of its tables: which offsets are there, and to take rows under a token.

The token makes an insert that comes twice count once; it is forgotten after an hour, or 10,000
inserts. The columns of where a row came from are never forgotten, so recovery asks those first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clickhouse_connect.driver.client import Client

from consumers.batch import Chunk, Partition, Span
from consumers.intent import Newest
from consumers.ledger.owed import Owed
from consumers.sinks import clickhouse_ledger as ledger
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_newest import gone, of_partition, within
from consumers.sinks.clickhouse_types import ArrowStream, column_types, quote
from ingest.streams import Stream

__all__ = ["INSERT_SETTINGS", "Tables"]

INSERT_SETTINGS = {
    # One insert, one block, one part: all or nothing. Batches are bounded, blocks need not be.
    "min_insert_block_size_rows": 100_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 100_000_000,
    # In tables that others have partitioned.
    "max_partitions_per_insert_block": 0,
    # The answer means stored, and the token counts.
    "async_insert": 0,
    "insert_deduplicate": 1,
    # Of a Distributed table: stored by its shards.
    "distributed_foreground_insert": 1,
    "input_format_null_as_default": 0,
    "input_format_import_nested_json": 0,
    # 1.14 M rows/s against 0.75 M/s with more (chDB, 2 cores).
    "max_insert_threads": 1,
}

# How many offsets one statement names: they stand in its URL, and a server takes 128 KiB of one
# parameter there, comma and 19 digits being 22 bytes (%2C).
_OFFSETS = 5000

_PLACE = "_topic = {topic:String} AND _topic_id = {id:String} AND _partition = {n:Int32}"
# All partitions of a topic in one statement: each costs milliseconds, and they may be a thousand.
# They stand in its text, where there is more room than for parameters.
_PRESENT = """\
SELECT _partition, _offset FROM {table} WHERE _topic = {topic:String} AND _topic_id = {id:String}
  AND {spans}"""
_AFTER = """\
SELECT _partition, max(_offset) FROM {table} WHERE _topic = {topic:String}
  AND _topic_id = {id:String} AND _offset >= {least} AND _offset >= {starts}
GROUP BY _partition"""


class Tables:
    """The tables of these streams, by their topics. The client stays the caller's to close.

    Every method raises Rejected, Unavailable or Systemic, as ClickHouse's error says.
    """

    def __init__(self, client: Client, url: str, streams: Mapping[str, Stream]) -> None:
        self._client = client
        self._url = url
        self._streams = streams
        self._stream = ArrowStream()

    def insert(self, stream: Stream, chunks: Sequence[Chunk], topic_id: str, token: str) -> None:
        """All of these rows or none, unless the token has been seen; nothing without rows."""
        if not chunks:
            return
        with talking(self._url):
            self._client.raw_insert(
                quote(stream.table),
                list(column_types(stream)),
                # It takes what is like bytes, in both of its ways to ClickHouse.
                self._stream(chunks, topic_id),  # type: ignore[arg-type]
                settings={**INSERT_SETTINGS, "insert_deduplication_token": token},
                fmt="ArrowStream",
            )

    def account(self, stream: Stream, topic_id: str, owed: Mapping[Partition, Owed]) -> None:
        """What became of a stream's records, into the ledger; a second time changes nothing."""
        with talking(self._url):
            ledger.add(self._client, stream.table, topic_id, owed)

    def accounted(self, partition: Partition, topic_id: str) -> int:
        """Behind the last span of a partition that the ledger says something of; 0 without any."""
        with talking(self._url):
            return ledger.end(
                self._client, self._streams[partition.topic].table, partition, topic_id
            )

    def take_out(self, stream: Stream, chunks: Sequence[Chunk], topic_id: str) -> None:
        """Remove all rows of those of these records that the table has more than once."""
        meant: dict[Partition, set[int]] = {}
        for chunk in chunks:
            meant.setdefault(chunk.partition, set()).update(chunk.offsets)
        for partition, offsets in meant.items():
            rows = self._ask(
                partition,
                "SELECT _offset FROM {table} WHERE {place} AND _offset BETWEEN {start:Int64} AND "
                "{end:Int64} GROUP BY _offset HAVING count() > 1",
                {"id": topic_id, "start": min(offsets), "end": max(offsets)},
            )
            twice = sorted({row[0] for row in rows} & offsets)
            for i in range(0, len(twice), _OFFSETS):
                with talking(self._url):
                    self._client.command(
                        _filled(
                            "DELETE FROM {table} WHERE {place} "
                            "AND _offset IN {offsets:Array(Int64)}",
                            stream,
                        ),
                        parameters={"topic": partition.topic, "n": partition.number,
                                    "id": topic_id, "offsets": twice[i : i + _OFFSETS]},
                        settings={"lightweight_deletes_sync": 2},
                    )  # fmt: skip

    def missing(
        self, chunks: Sequence[Chunk], spans: Mapping[Partition, Span], topic_id: str
    ) -> list[Chunk]:
        """What of these rows the table does not have."""
        present = self.present(spans, topic_id)
        missing = []
        for chunk in chunks:
            there = present[chunk.partition]
            stay = [i for i, offset in enumerate(chunk.offsets) if offset not in there]
            if len(stay) == len(chunk.offsets):
                missing.append(chunk)
            elif stay:
                missing.append(chunk.only(stay))
        return missing

    def present(self, spans: Mapping[Partition, Span], topic_id: str) -> dict[Partition, set[int]]:
        """The offsets of some spans of one topic that the table has."""
        found: dict[Partition, set[int]] = {partition: set() for partition in spans}
        if not spans:
            return found
        topic = next(iter(spans)).topic
        asked = _PRESENT.replace("{spans}", within(spans))
        for number, offset in self._ask_of(topic, topic_id, asked):
            found[Partition(topic, number)].add(offset)
        return found

    def gone(self, topic_id: str, newest: Mapping[Partition, Newest]) -> set[Partition]:
        """Of which partitions of one topic the table has none of these rows any more."""
        if not newest:
            return set()
        stream = self._streams[next(iter(newest)).topic]
        with talking(self._url):
            return gone(self._client, stream, topic_id, newest)

    def after(self, topic_id: str, starts: Mapping[Partition, int]) -> dict[Partition, int]:
        """The first offset from these on that is above all that the table has, for each partition
        of one topic.

        The group's offsets expire a week after its last member has left, and another group may have
        written here; the table remembers.
        """
        found = dict(starts)
        if not starts:
            return found
        topic = next(iter(starts)).topic
        asked = _AFTER.replace("{least}", str(min(starts.values())))
        asked = asked.replace("{starts}", of_partition(starts, 2**63 - 1))
        rows = self._ask_of(topic, topic_id, asked)
        return found | {Partition(topic, number): int(most) + 1 for number, most in rows}

    def _ask_of(self, topic: str, topic_id: str, query: str) -> Sequence[Sequence[Any]]:
        with talking(self._url):
            return self._client.query(
                _filled(query, self._streams[topic]), parameters={"topic": topic, "id": topic_id}
            ).result_rows

    def _ask(
        self, partition: Partition, query: str, parameters: dict[str, Any]
    ) -> Sequence[Sequence[Any]]:
        with talking(self._url):
            return self._client.query(
                _filled(query, self._streams[partition.topic]),
                parameters={"topic": partition.topic, "n": partition.number, **parameters},
            ).result_rows


def _filled(query: str, stream: Stream) -> str:
    return query.replace("{table}", quote(stream.table)).replace("{place}", _PLACE)
