"""A replay into a ClickHouse or chDB table: what is missing there is put back, by its offset.

The tables keep where each row came from, so a row that is there is known by topic, partition and
offset. Of a batch only what is missing is inserted. An insert that outlives its writer must not
double what the next one puts back; so, as in the sink:

1. `intent`  the spans of the batch are committed as metadata of the job's offsets, which stay at
             the batch's start
2. `insert`  what is missing, under a token that is made of the intent; a record that is there more
             than once is taken out first
3. `commit`  the job's offsets move to the batch's end

Whoever goes on after a crash settles an intent first: the same spans once more, under its token, of
which ClickHouse takes one insert. No two intents have a token in common, or a later replay of the
same range would put nothing back.

Rows that come from another database's table (`of_rows`) have no offset: what is there is known by
event_id and time, and they are kept under the number that they had there (table.py), and no topic's
id, so that no inserter takes it for an offset of its own.

What an inserter has not landed is none of ours, nor what it has announced and may not have landed.
Two replays into one table would not know of each other: `headrace replay` starts no second one.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.client import Settings
from consumers.decode import Decoder
from consumers.destinations import destination, inserter_group
from consumers.errors import Fenced, Rejected, Systemic
from consumers.intent import Intent
from consumers.lookup import Lookup
from consumers.replay.dry_rows import hours
from consumers.replay.select import Selection
from consumers.sinks import Known, Log
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_screen import screen
from consumers.sinks.clickhouse_table import Tables
from consumers.sinks.clickhouse_types import quote
from ingest.streams import Stream

__all__ = ["ClickHouseReplay", "landed"]

_KEYS = (
    "SELECT {id}, toUnixTimestamp64Micro({time}) FROM {table} "
    "WHERE {time} >= fromUnixTimestamp64Micro({{a:Int64}}, 'UTC') "
    "AND {time} <= fromUnixTimestamp64Micro({{z:Int64}}, 'UTC')"
)


def landed(
    kafka: Settings, url: str, stream: Stream, topic_id: str, spans: Mapping[int, Span]
) -> dict[int, Span]:
    """The part of the ranges that has landed in the table once.

    Raises Unavailable, and Systemic where nothing has.
    """
    group = inserter_group(destination(url))
    lookup = Lookup(kafka, group, [stream.topic])
    try:
        known = lookup.known([Partition(stream.topic, n) for n in spans])
    finally:
        lookup.close()
    require_chdb(url)
    client = connect(url)
    try:
        with talking(url):
            check_tables(client, [stream])
        tables = Tables(client, url, {stream.topic: stream})
        at = {p.number: _landed(tables, p, k) for p, k in known.items() if k.topic_id == topic_id}
    finally:
        client.close()
    if not any(at.values()):
        raise Systemic(
            f"nothing of {stream.topic} has landed in the table {stream.table}: land it with "
            "`headrace insert`, which begins at the topic's start"
        )
    return {
        n: Span(start, max(start, min(end, at.get(n, start)))) for n, (start, end) in spans.items()
    }


def _landed(tables: Tables, partition: Partition, known: Known) -> int:
    """Up to where a partition has landed, by the inserters' group and by the table."""
    intent = Intent.read(known.note) if known.committed is not None else None
    if known.committed is None or intent is None or intent.topic_id != known.topic_id:
        return tables.after(known.topic_id, {partition: 0})[partition]
    if partition in intent.spans:
        return known.committed
    return tables.after(known.topic_id, {partition: known.committed})[partition]


class ClickHouseReplay:
    """One client, for one stream. See the module's comment; `selection` is what is meant.

    Raises Unavailable when the server is away, Systemic when a person has to act.
    """

    def __init__(
        self,
        url: str,
        stream: Stream,
        selection: Selection,
        kafka: Log,
        *,
        of_rows: bool = False,
        on_back: Callable[[int, int], object] | None = None,
    ) -> None:
        self._url = url
        self._stream = stream
        self._selection = selection
        self._log = kafka
        self._of_rows = of_rows
        self._on_back = on_back
        self._decoder = Decoder(stream)
        # What was announced for the batch that is being tried.
        self._announced: Intent | None = None
        require_chdb(url)
        self._client = connect(url)
        try:
            with talking(url):
                check_tables(self._client, [stream])
        except BaseException:
            self._client.close()
            raise
        self._tables = Tables(self._client, url, {stream.topic: stream})

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """The job's positions, once what was begun there is settled."""
        self._announced = None
        settled: dict[str, bool] = {}
        found = {}
        for partition, k in known.items():
            at = k.earliest if k.committed is None else k.committed
            intent = Intent.read(k.note) if k.committed is not None else None
            span = intent.spans.get(partition) if intent is not None else None
            # What Kafka has lost of it meanwhile is for the lane to say, or to skip.
            if intent is not None and span is not None and span.start >= k.earliest:
                token = _token(intent)
                if token not in settled:
                    settled[token] = self._settle(intent)
                if settled[token]:
                    at = span.end
                    self._log.commit({partition: at}, Intent.at_rest(k.topic_id).note())
            found[partition] = at
        return found

    def write(self, batch: Batch) -> None:
        """In commit order; see the module's comment."""
        topic_id = self._log.topic_id(next(iter(batch.spans)))
        if batch.chunks:
            refused = screen(batch)
            if refused:
                raise Rejected("out of range", refused)
            intent = self._announced
            if intent is None or intent.spans != batch.spans or not intent.fresh(time.time()):
                intent = Intent(topic_id, batch.spans, int(time.time() * 1000))
                self._log.commit({p: s.start for p, s in batch.spans.items()}, intent.note())  # 1
                self._announced = intent
            if not intent.fresh(time.time()):
                raise Fenced("stopped for too long between intent and insert")
            self._put_back(intent, batch.chunks)  # 2
        ends = {partition: span.end for partition, span in batch.spans.items()}
        self._log.commit(ends, Intent.at_rest(topic_id).note())  # 3
        self._announced = None

    def lacking(self, batch: Batch) -> Counter[int]:
        """How many of these rows are not there, by their hour (microseconds)."""
        refused = screen(batch)
        if refused:
            raise Rejected("out of range", refused)
        topic_id = self._log.topic_id(next(iter(batch.spans)))
        found: Counter[int] = Counter()
        for chunk in self._missing(batch.chunks, batch.spans, topic_id):
            found += hours(chunk.rows.column(self._stream.column(self._stream.time)))
        return found

    def _put_back(self, intent: Intent, chunks: Sequence[Chunk]) -> None:
        if not self._of_rows:
            # Of a record that is there more than once nothing stays, and one row is put back.
            self._tables.take_out(self._stream, chunks, intent.topic_id)
        missing = self._missing(chunks, intent.spans, intent.topic_id)
        topic_id = "" if self._of_rows else intent.topic_id
        self._tables.insert(self._stream, missing, topic_id, _token(intent))
        if self._on_back is not None:
            self._on_back(sum(chunk.rows.num_rows for chunk in missing), 0)

    def _missing(
        self, chunks: Sequence[Chunk], spans: Mapping[Partition, Span], topic_id: str
    ) -> Sequence[Chunk]:
        if not self._of_rows:
            return self._tables.missing(chunks, spans, topic_id)
        missing = self._tables.missing(chunks, spans, "")
        return self._unknown(Batch(self._stream, dict(spans), tuple(missing))) if missing else ()

    def _unknown(self, batch: Batch) -> Sequence[Chunk]:
        """What of these rows is not there by event_id and time."""
        event_id, time_at = (self._stream.column(f) for f in ("event_id", self._stream.time))
        keys = [
            key
            for chunk in batch.chunks
            for key in zip(
                chunk.rows.column(event_id).to_pylist(),
                chunk.rows.column(time_at).view(pa.int64()).to_pylist(),
                strict=True,
            )
        ]
        times = [at for _, at in keys]
        with talking(self._url):
            there = self._client.query(
                _KEYS.format(
                    id=quote(event_id), time=quote(time_at), table=quote(self._stream.table)
                ),
                parameters={"a": min(times), "z": max(times)},
            ).result_rows
        known = set(map(tuple, there))
        return batch.without([i for i, key in enumerate(keys) if key in known]).chunks

    def _settle(self, intent: Intent) -> bool:
        """Bring an announced insert to its end; whether all of its rows are in the table now.

        Whole, under its own token: one that comes late is then recognised. One that is old may
        have landed, and been deleted since: it is read again.
        """
        if not intent.fresh(time.time()):
            return False
        chunks = [c for p, span in intent.spans.items() for c in self._fetch(p, span)]
        try:
            self._put_back(intent, chunks)
        except Rejected:
            # It was refused then, too: nothing of it landed.
            return False
        return True

    def _fetch(self, partition: Partition, span: Span) -> Sequence[Chunk]:
        """What is meant of a span."""
        messages = self._log.read(partition, span)
        rows, bad = self._decoder.decode([m.value() for m in messages])
        offsets = [int(m.offset() or 0) for i, m in enumerate(messages) if i not in bad]
        if not offsets:
            return ()
        whole = Batch(self._stream, {partition: span}, (Chunk(partition, offsets, rows),))
        meant = self._selection.of(whole)
        return meant.without(list(screen(meant))).chunks

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def _token(intent: Intent) -> str:
    return "headrace-replay-" + hashlib.sha256(intent.note().encode()).hexdigest()
