"""The newest rows of a partition: whether a table still has what it has acknowledged last.

Positions are Kafka's, so a table that goes back does not take them with it: one that was restored
from a backup, a replica that takes over and was behind, a server that lost power before its disk
had the rows. What is above the position would go on landing, and nobody would read again what is
gone. So the metadata of a position names the last batch that had rows. An insert is all or nothing:
of that batch the table has something, or it has gone back.

With `dedupe` a copy replaces a row, maybe one of another partition; so there it is the last row of
the ledger. Of what has landed since that was written nothing is known.

Whoever names another `table`, or another `dedupe`, begins there with what lands from then on; so
the metadata says of which it speaks.

Nothing is said of rows that a TTL may have removed, or that are older than the stream's retention.
Rows that were taken out by hand stop nobody, as long as it was not all of a batch.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Mapping

from clickhouse_connect.driver.client import Client

from consumers.batch import Batch, Partition, Span
from consumers.errors import Systemic, Unavailable
from consumers.intent import Newest
from consumers.ledger.owed import Owed
from consumers.sinks.clickhouse_types import keeps_retention, quote, ttl_of
from ingest.streams import Stream

__all__ = [
    "AT_ONCE", "LookBack", "accounted", "gone", "gone_back", "newest_of", "of_partition",
    "table_tag", "within",
]  # fmt: skip

# Rows that were acknowledged may be missing for so long: of a replica that has not got them yet,
# and while a replay puts back one row for several.
_CATCH_UP_S = 30.0

# So many partitions of a topic are asked for and committed at once: ClickHouse refuses a statement
# of more than 256 KiB, and Kafka a commit of more than 1 MiB, some 4,000 notes.
AT_ONCE = 1000

# Done when something of each is found.
_ROWS = """\
SELECT DISTINCT _partition FROM {table} WHERE _topic = {topic:String} AND _topic_id = {id:String}
  AND {spans}
LIMIT {count}"""
_LEDGER = """\
SELECT DISTINCT partition FROM headrace_ledger WHERE table_name = {table:String}
  AND topic = {topic:String} AND topic_id = {id:String} AND (partition, start) IN ({starts})"""


def table_tag(stream: Stream) -> int:
    """A number for the table, and for which of the two is asked of it."""
    return zlib.crc32("\0".join((stream.table, *stream.dedupe)).encode())


def newest_of(batch: Batch, became: Mapping[Partition, Owed]) -> dict[Partition, Newest]:
    """Of each partition of which a batch has rows; `became` is what became of its records."""
    found: dict[Partition, Newest] = {}
    for chunk in () if batch.stream.dedupe else batch.chunks:
        partition, offsets = chunk.partition, chunk.offsets
        if not offsets:
            continue
        entries = became[partition].entries.items()
        hour = max(hour for hour, entry in entries if entry.rows.records)
        first = found[partition].span.start if partition in found else offsets[0]
        found[partition] = Newest(Span(first, offsets[-1] + 1), hour, table_tag(batch.stream))
    return found


def accounted(stream: Stream, owed: Owed | None, newest: Newest | None) -> Newest | None:
    """What is the newest once the ledger has got what it is owed."""
    if stream.dedupe and owed and owed.entries:
        return Newest(owed.span, 0, table_tag(stream))
    return newest


def of_partition(values: Mapping[Partition, int], other: int) -> str:
    """The value of a row's partition as SQL; `other` of one that has none."""
    numbers = [partition.number for partition in values]
    return (
        f"transform(_partition, CAST({numbers}, 'Array(Int32)'), "
        f"CAST({list(values.values())}, 'Array(Int64)'), toInt64({other}))"
    )


def within(spans: Mapping[Partition, Span]) -> str:
    """The condition that a row is of one of these spans, as SQL.

    The outer bounds are for the skip index on `_offset`. A condition for each partition would be
    tried on each row: for 1,300 of them, and 20 million rows, that took a minute, and not a second.
    """
    starts = of_partition({p: span.start for p, span in spans.items()}, 2**63 - 1)
    ends = of_partition({p: span.end for p, span in spans.items()}, 0)
    least = min(span.start for span in spans.values())
    most = max(span.end for span in spans.values())
    return f"_offset >= {least} AND _offset < {most} AND _offset >= {starts} AND _offset < {ends}"


def gone(
    client: Client, stream: Stream, topic_id: str, newest: Mapping[Partition, Newest]
) -> set[Partition]:
    """Of which partitions of one topic there is nothing of it any more, though there should be.

    Asked for many in a statement, for each costs milliseconds, and they may be a thousand.
    """
    spans = {p: one.span for p, one in newest.items() if one.table == table_tag(stream)}
    asked = list(spans)
    lacking: set[Partition] = set()
    for i in range(0, len(asked), AT_ONCE):
        some = {p: spans[p] for p in asked[i : i + AT_ONCE]}
        there = _there(client, stream, topic_id, some)
        lacking |= {p for p in some if p.number not in there}
    if stream.dedupe:
        return lacking
    return {p for p in lacking if not _removes(client, stream, newest[p].hour)}


def _there(
    client: Client, stream: Stream, topic_id: str, spans: Mapping[Partition, Span]
) -> set[int]:
    """The numbers of the partitions of which there is something of these spans."""
    place = {"topic": next(iter(spans)).topic, "id": topic_id}
    if stream.dedupe:
        starts = ", ".join(f"({p.number}, {span.start})" for p, span in spans.items())
        asked = _LEDGER.replace("{starts}", starts)
        rows = client.query(asked, parameters={**place, "table": stream.table}).result_rows
    else:
        asked = _ROWS.replace("{table}", quote(stream.table)).replace("{spans}", within(spans))
        rows = client.query(asked.replace("{count}", str(len(spans))), parameters=place).result_rows
    return {number for (number,) in rows}


def _removes(client: Client, stream: Stream, hour: int) -> bool:
    """Whether rows of this hour may be gone as they should be, as far as that can be known."""
    rows = client.query(
        "SELECT engine_full FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String}",
        parameters={"table": stream.table},
    ).result_rows
    engine = str(rows[0][0]) if rows else ""
    if not re.match(r"\w*MergeTree\b", engine):
        return True  # a Null, a Buffer: what is there is not for us to say
    ttl = ttl_of(engine)
    if ttl and not keeps_retention(ttl, stream):
        return True
    return bool(stream.retention) and bool(
        client.query(
            f"SELECT toDateTime64({hour * 3600}, 0, 'UTC') + INTERVAL {stream.retention} < now()"
        ).result_rows[0][0]
    )


class LookBack:
    """Asks for the newest rows before anything lands above them; `gone` is that of Tables."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        gone: Callable[[str, Mapping[Partition, Newest]], set[Partition]],
    ) -> None:
        self._streams = streams
        self._gone = gone
        # Since when they are missing, on the monotonic clock.
        self.lacking: dict[Partition, float] = {}

    def look(self, topic_id: str, newest: Mapping[Partition, Newest | None]) -> None:
        """They are there. Raises Unavailable, and Systemic once it has waited for them."""
        known = {partition: one for partition, one in newest.items() if one is not None}
        gone = self._gone(topic_id, known)
        for partition in newest.keys() - gone:
            self.lacking.pop(partition, None)
        now = time.monotonic()
        for partition in sorted(gone):
            self.lacking.setdefault(partition, now)
        if gone:
            first = min(sorted(gone), key=self.lacking.__getitem__)
            stream = self._streams[first.topic]
            said = gone_back(stream, first, known[first], "headrace-insert-…")
            if now - self.lacking[first] < _CATCH_UP_S:
                raise Unavailable(said)
            raise Systemic(said)


def gone_back(stream: Stream, partition: Partition, newest: Newest, group: str) -> str:
    """For a person."""
    start, end = newest.span
    return (
        f"the table {stream.table} has gone back: what landed of {partition} from {start} to {end} "
        "is not there any more. Was it restored from a backup or made anew, or is it a replica "
        "that was behind? Nothing lands behind it. What Kafka still has comes again in this order: "
        "stop all inserters, `kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete "
        f"--group {group}`, start them. If it was taken out on purpose, or inserters have gone on "
        "since, see Back up in docs/operating.md"
    )
