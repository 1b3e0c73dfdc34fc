"""What a replay to a database would do, without doing it: which rows are there, and which are not."""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Rejected
from consumers.replay.select import Selection
from consumers.sinks import Notes
from ingest.streams import Stream

__all__ = ["Lacking", "NoKafka", "RowFigures", "dry_run_rows", "hours"]

# How many rows of a batch are not in the table, by the beginning of their hour in microseconds.
# Raises Rejected, Unavailable, Systemic.
Lacking = Callable[[Batch], Counter[int]]


@dataclass(slots=True)
class RowFigures:
    """By the beginning of an hour (microseconds since 1970): rows, and those that are missing."""

    rows: Counter[int] = field(default_factory=Counter)
    missing: Counter[int] = field(default_factory=Counter)
    # Of those that are there: with other values than their records give now.
    left: int = 0
    # What was never in the table, and can't be.
    refused: int = 0
    undecodable: int = 0

    def count_left(self, _rows: int, left: int) -> None:
        """Add to `left`; a dry run puts no rows back."""
        self.left += left


class NoKafka:
    """What a sink may ask of Kafka (consumers.sinks.Log), where nothing is committed."""

    def __init__(self, topic_id: str) -> None:
        self._topic_id = topic_id

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None: ...

    def report(self, positions: Mapping[Partition, int]) -> None: ...

    def read(self, partition: Partition, span: Span) -> Sequence[Message]:
        raise NotImplementedError("nothing is read again")

    def topic_id(self, partition: Partition) -> str:
        return self._topic_id


def dry_run_rows(
    stream: Stream,
    records: Iterable[tuple[Partition, Sequence[Message]]],
    meant: Selection,
    lacking: Lacking,
    most: int,
    figures: RowFigures,
) -> None:
    """Add to the figures what these records are; `most` is how many are asked about together.

    Raises what `records` and `lacking` do, but for Rejected.
    """
    decoder = Decoder(stream)
    chunks: list[Chunk] = []

    def take() -> None:
        spans: dict[Partition, Span] = {}
        for c in chunks:
            start = spans[c.partition].start if c.partition in spans else c.offsets[0]
            spans[c.partition] = Span(start, c.offsets[-1] + 1)
        batch = meant.of(Batch(stream, spans, tuple(chunks)))
        chunks.clear()
        if batch.count:
            _count(batch, figures)
            _ask(batch, lacking, figures)

    for partition, run in records:
        rows, bad = decoder.decode([m.value() for m in run])
        figures.undecodable += len(bad)
        offsets = [int(m.offset() or 0) for i, m in enumerate(run) if i not in bad]
        if offsets:
            chunks.append(Chunk(partition, offsets, rows))
        if sum(chunk.rows.num_rows for chunk in chunks) >= most:
            take()
    take()


def _count(batch: Batch, figures: RowFigures) -> None:
    name = batch.stream.column(batch.stream.time)
    for chunk in batch.chunks:
        figures.rows += hours(chunk.rows.column(name))


def hours(times: pa.Array) -> Counter[int]:
    """How many are in each hour, by its beginning in microseconds."""
    found = pc.value_counts(pc.floor_temporal(times, unit="hour").view(pa.int64()))
    return Counter({pair["values"]: pair["counts"] for pair in found.to_pylist()})


def _ask(batch: Batch, lacking: Lacking, figures: RowFigures) -> None:
    try:
        figures.missing += lacking(batch)
    except Rejected as error:
        halves = batch.halves()
        if error.rows:
            figures.refused += len(error.rows)
            rest = batch.without(list(error.rows))
            if rest.count:
                _ask(rest, lacking, figures)
        elif halves is None:
            figures.refused += batch.count
        else:
            for half in halves:
                _ask(half, lacking, figures)
