"""Where to go on with partitions that are given to a ClickHouse sink, and what is settled before.

clickhouse.py says how an insert that was announced is brought to its end. Where the group has
forgotten its position, the table says how far it is; what the ledger lacks of it is counted anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Rejected
from consumers.intent import Intent
from consumers.ledger.owed import Owed, owed_of
from consumers.metrics import Step
from consumers.sinks import Known, Log
from consumers.sinks.clickhouse_newest import LookBack, newest_of
from consumers.sinks.clickhouse_screen import screen
from consumers.sinks.clickhouse_table import Tables
from ingest.streams import Stream

__all__ = ["Recovery"]

log = logging.getLogger(__name__)

# Offsets: what BATCHES full batches have. More was landed by something that kept no ledger.
_MOST_OWED = 16_000_000
# Read again at once.
_PIECE = 100_000


class Recovery:
    """It may insert; it commits nothing, and writes no ledger: that is for the sink to do."""

    def __init__(
        self,
        kafka: Log,
        streams: Mapping[str, Stream],
        tables: Tables,
        back: LookBack,
        step: Step,
    ) -> None:
        self._log = kafka
        self._streams = streams
        self._decoders = {topic: Decoder(stream) for topic, stream in streams.items()}
        self._tables = tables
        self._back = back
        self._step = step

    def places(self, known: Mapping[Partition, Known]) -> dict[Partition, tuple[int, Intent]]:
        """Where to go on with partitions of one topic, and what is said of those positions."""
        topic_id = next(iter(known.values())).topic_id
        said = {p: self._said(p, k) for p, k in known.items()}
        self._back.look(topic_id, {p: i.newest if i else None for p, (_, i) in said.items()})
        starts = {
            p: start
            for p, (start, intent) in said.items()
            if intent is None or p not in intent.spans
        }
        stand = {p: Span(starts[p], at) for p, at in self._tables.after(topic_id, starts).items()}
        # What an intent announced, read once for all of its partitions.
        fetched: dict[str, dict[Partition, Batch]] = {}
        return {p: self._place(p, k, said[p][1], stand, fetched) for p, k in known.items()}

    def _said(self, partition: Partition, k: Known) -> tuple[int, Intent | None]:
        """Where the group goes on, and what its metadata says of just this topic."""
        if k.committed is None:
            return k.earliest, None
        intent = Intent.read(k.note)
        if intent is not None and intent.topic_id != k.topic_id:
            log.warning("the topic %s was deleted and made anew: beginning at its start",
                        partition.topic)  # fmt: skip
            return k.earliest, None
        return k.committed, intent

    def _place(
        self,
        partition: Partition,
        k: Known,
        intent: Intent | None,
        stand: Mapping[Partition, Span],
        fetched: dict[str, dict[Partition, Batch]],
    ) -> tuple[int, Intent]:
        """Where to go on with one partition; what its ledger is owed, and what the table has.

        Where nothing is announced, `stand` is from where the group goes on to behind what the table
        has.
        """
        owed = intent.owed if intent is not None else None
        newest = intent.newest if intent is not None else None
        span = intent.spans.get(partition) if intent is not None else None
        if intent is None or span is None:
            start, position = stand[partition]
            if intent is None or position > start:
                # The group has forgotten what it knew, or that is old.
                owed = self._forgotten(partition, k, owed, position)
            return position, Intent.at_rest(k.topic_id, owed, newest)
        rest = Intent.at_rest(k.topic_id, owed, newest)
        expired = Span(span.start, min(k.earliest, span.end))
        if expired.start < expired.end and not self._present(partition, expired, k.topic_id):
            # A part of it can't be read any more: it is for the lane to say, or to skip.
            return self._after(partition, k.topic_id, span.start), rest
        with self._step("settle"):
            if intent.token not in fetched:
                fetched[intent.token] = {p: self._fetch(p, s) for p, s in intent.spans.items()}
            batches = fetched[intent.token]
            if not self._settle(partition, intent, batches):
                return span.start, rest
        became = owed_of(batches[partition])
        more = became[partition]
        owed = owed.then(more) if owed else more
        newest = newest_of(batches[partition], became).get(partition, newest)
        return span.end, Intent.at_rest(k.topic_id, owed, newest)

    def _settle(
        self, partition: Partition, intent: Intent, fetched: Mapping[Partition, Batch]
    ) -> bool:
        """Bring an announced insert to its end; whether its rows are in the table now."""
        stream = self._streams[partition.topic]
        own = [c for c in fetched[partition].chunks if c.rows.num_rows]
        everything = [c for batch in fetched.values() for c in batch.chunks if c.rows.num_rows]
        span = {partition: intent.spans[partition]}
        try:
            # Whole and under its own token, so that a stopped writer's late insert is recognised;
            # unless something of it is there, which the token would not keep from landing twice, or
            # it is old: then retention may have taken a part of another partition, and what is left
            # of that is not ours to land.
            if intent.fresh(time.time()) and (
                _rows(self._tables.missing(everything, intent.spans, intent.topic_id))
                == _rows(everything)
            ):
                self._tables.insert(stream, everything, intent.topic_id, intent.token)
            missing = self._tables.missing(own, span, intent.topic_id)
            if missing:
                # Too old for its token, or only a part of it is there.
                token = f"{intent.token}-{partition.number}"
                self._tables.insert(stream, missing, intent.topic_id, token)
        except Rejected:
            # It was refused then, too: nothing of it landed, and it is read again.
            return False
        log.info("settled an insert that was announced for %s: %s", partition, span[partition])
        return True

    def _forgotten(
        self, partition: Partition, k: Known, owed: Owed | None, position: int
    ) -> Owed | None:
        """What the ledger lacks of what has landed below a position; as far as Kafka has it."""
        if owed is None and position <= k.earliest:
            return None  # nothing has landed of what Kafka has
        end = self._tables.accounted(partition, k.topic_id)
        if owed is not None and end > owed.span.start:
            owed = None
        begin = max(owed.span.end if owed else end, k.earliest)
        until = min(position, self._after(partition, k.topic_id, begin))
        if until - begin > _MOST_OWED:
            log.warning("the ledger says nothing of %s from %d to %d", partition, begin, until)
            return owed
        for start in range(begin, until, _PIECE):
            span = Span(start, min(start + _PIECE, until))
            batch = self._fetch(partition, span)
            if not batch.stream.dedupe:
                # What is not there may have been skipped by hand: that is for the audit to say.
                there = self._present(partition, span, k.topic_id)
                stay = [[i for i, o in enumerate(c.offsets) if o in there] for c in batch.chunks]
                chunks = [c.only(rows) for c, rows in zip(batch.chunks, stay, strict=True) if rows]
                batch = replace(batch, chunks=tuple(chunks))
            more = owed_of(batch)[partition]
            owed = owed.then(more) if owed else more
        return owed

    def _present(self, partition: Partition, span: Span, topic_id: str) -> set[int]:
        return self._tables.present({partition: span}, topic_id)[partition]

    def _after(self, partition: Partition, topic_id: str, start: int) -> int:
        return self._tables.after(topic_id, {partition: start})[partition]

    def _fetch(self, partition: Partition, span: Span) -> Batch:
        """A span as it was first decoded; its dead letters had been sent before."""
        stream = self._streams[partition.topic]
        messages = self._log.read(partition, span)
        if not messages:
            return Batch(stream, {partition: span}, ())
        rows, bad = self._decoders[partition.topic].decode([m.value() for m in messages])
        offsets = [m.offset() or 0 for i, m in enumerate(messages) if i not in bad]
        chunk = Chunk(partition, offsets, rows)
        dead = tuple(Dead.of(messages[i]) for i in bad)
        whole = Batch(stream, {partition: span}, (chunk,) if offsets else (), dead)
        return whole.without(list(screen(whole)))


def _rows(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.rows.num_rows for chunk in chunks)
