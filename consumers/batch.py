"""What travels from Kafka to a sink: decoded rows, and the offsets that they stand for.

    Chunk   decoded rows of one partition, each with its offset
    Batch   chunks of one stream, and for each partition the span [start, end) that it covers
    Dead    a record of a span that is among the dead letters instead

"Offset" always means *next to read*: a batch that has landed moves its partitions from `start` to
`end`. A span may cover more than its rows: dead letters, transaction markers and compaction leave
gaps. So rows are counted, and offsets are never subtracted to count them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from confluent_kafka import Message

from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream

__all__ = ["Batch", "Chunk", "Dead", "Partition", "Span"]


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Span(NamedTuple):
    """Offsets `start` (included) to `end` (excluded)."""

    start: int
    end: int


class Dead(NamedTuple):
    """A record that went to the dead letters; its event time, or Kafka's where it can't be read."""

    partition: Partition
    offset: int
    time_us: int

    @classmethod
    def of(cls, message: Message) -> Dead:
        """A record that can't be decoded. Its producer may have set any time."""
        partition = Partition(str(message.topic()), int(message.partition() or 0))
        time_us = min(max(message.timestamp()[1] * 1000, MIN_TIME_US), MAX_TIME_US)
        return cls(partition, int(message.offset() or 0), time_us)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Decoded rows of one partition; `offsets[i]` is the offset of row i, ascending.

    `times_us`: all rows lie between these event times; None where that is not known.
    """

    partition: Partition
    offsets: Sequence[int]
    rows: pa.RecordBatch
    times_us: tuple[int, int] | None = None

    def only(self, stay: Sequence[int]) -> Chunk:
        """These rows of it, by their indices."""
        offsets = [self.offsets[i] for i in stay]
        rows = self.rows.take(pa.array(stay, pa.int64()))
        return Chunk(self.partition, offsets, rows, self.times_us)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one stream that land together, and the span of every partition they come from.

    `dead` are the records of the spans that are dead letters: who moves over them accounts for them.
    """  # noqa: E501

    stream: Stream
    spans: dict[Partition, Span]
    chunks: tuple[Chunk, ...]
    dead: tuple[Dead, ...] = ()

    @property
    def count(self) -> int:
        """How many rows."""
        return sum(chunk.rows.num_rows for chunk in self.chunks)

    def halves(self) -> tuple[Batch, Batch] | None:
        """Two batches that one after the other land the same; None for a batch of one row or less.

        Cut at a row: the left half ends, for each partition, where the right one starts.
        """
        total = self.count
        if total < 2:
            return None
        left: list[Chunk] = []
        right: list[Chunk] = []
        room = total // 2
        for chunk in self.chunks:
            n = chunk.rows.num_rows
            take = min(room, n)
            room -= take
            if take:
                left.append(_cut(chunk, 0, take))
            if take < n:
                right.append(_cut(chunk, take, n))
        ends = {chunk.partition: chunk.offsets[-1] + 1 for chunk in left}
        later = {chunk.partition for chunk in right}
        first, second = {}, {}
        for partition, (start, end) in self.spans.items():
            if partition not in later:
                first[partition] = Span(start, end)
            elif partition in ends:
                first[partition] = Span(start, ends[partition])
                second[partition] = Span(ends[partition], end)
            else:
                second[partition] = Span(start, end)
        return (
            Batch(self.stream, first, tuple(left), self._dead_of(first)),
            Batch(self.stream, second, tuple(right), self._dead_of(second)),
        )

    def _dead_of(self, spans: Mapping[Partition, Span]) -> tuple[Dead, ...]:
        nowhere = Span(0, 0)
        return tuple(
            d
            for d in self.dead
            if (span := spans.get(d.partition, nowhere)).start <= d.offset < span.end
        )

    def of_partitions(self, most: int | None) -> list[Batch]:
        """Batches of `most` partitions at most that together, in any order, land the same."""
        if most is None or len(self.spans) <= most:
            return [self]
        partitions = sorted(self.spans)
        parts = []
        for i in range(0, len(partitions), most):
            spans = {p: self.spans[p] for p in partitions[i : i + most]}
            chunks = tuple(c for c in self.chunks if c.partition in spans)
            parts.append(Batch(self.stream, spans, chunks, self._dead_of(spans)))
        return parts

    def since(self, positions: Mapping[Partition, int]) -> Batch:
        """What of it is at or behind these positions; partitions without one are left out."""
        spans = {
            p: Span(max(start, positions[p]), end)
            for p, (start, end) in self.spans.items()
            if positions.get(p, end) < end
        }
        chunks = []
        for chunk in self.chunks:
            if chunk.partition in spans:
                n = bisect_left(chunk.offsets, spans[chunk.partition].start)
                if n < chunk.rows.num_rows:
                    chunks.append(_cut(chunk, n, chunk.rows.num_rows))
        return Batch(self.stream, spans, tuple(chunks), self._dead_of(spans))

    def without(self, rows: Sequence[int]) -> Batch:
        """The same spans without these rows, given by their index in the batch: they are dead."""
        gone = set(rows)
        kept = []
        dead = list(self.dead)
        base = 0
        for chunk in self.chunks:
            n = chunk.rows.num_rows
            stay = [i for i in range(n) if base + i not in gone]
            if len(stay) == n:
                kept.append(chunk)
            else:
                dead += self._buried(chunk, [i for i in range(n) if base + i in gone])
                if stay:
                    kept.append(chunk.only(stay))
            base += n
        return Batch(self.stream, self.spans, tuple(kept), tuple(dead))

    def _buried(self, chunk: Chunk, rows: Sequence[int]) -> Iterator[Dead]:
        times = chunk.rows.column(self.stream.column(self.stream.time)).view(pa.int64())
        for i in rows:
            yield Dead(chunk.partition, chunk.offsets[i], times[i].as_py())

    def coordinates(self, rows: Sequence[int]) -> list[tuple[Partition, int]]:
        """Partition and offset of these rows."""
        flat = [(c.partition, offset) for c in self.chunks for offset in c.offsets]
        return [flat[i] for i in rows]


def _cut(chunk: Chunk, start: int, end: int) -> Chunk:
    return Chunk(chunk.partition, chunk.offsets[start:end], chunk.rows[start:end], chunk.times_us)
