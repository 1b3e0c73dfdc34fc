"""Records of a topic, counted: as sums by bucket, without keeping any of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import Message

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from consumers.bounds import bounds, firsts, pieces
from consumers.client import Settings
from consumers.decode import Decoder
from ingest.streams import Stream

__all__ = ["Mark", "Piece", "Whole", "epochs", "marks", "scan", "whole_since"]


class Mark(NamedTuple):
    """A record, and the epoch of the leader that took it: a later one may have put another there.

    -1 where there is none, or Kafka says none.
    """

    offset: int = -1
    epoch: int = -1


class Piece(NamedTuple):
    """Some records as a batch of their own; its spans end where reading goes on."""

    batch: Batch
    # Kafka's timestamp of the first of them; -1 without records.
    first_ms: int
    # The last of them.
    last: Mark = Mark()


class Whole(NamedTuple):
    """Since when Kafka has all records of a topic, by when they were published; 0: all it got."""

    since_us: int = 0
    # That is now, for of a partition, or of all, nothing is left.
    emptied: bool = False


def marks(kafka: Settings, topic: str) -> dict[Partition, Span]:
    """What there is of each partition now. Raises Unavailable, Systemic."""
    return {Partition(topic, n): span for n, span in bounds(kafka, topic).spans.items()}


def whole_since(kafka: Settings, stream: Stream, *, each: bool = False) -> Whole:
    """What Kafka has of a topic without a gap.

    A partition that retention has emptied does not count, for there is no record of it to look for
    among the rows, unless all are; with `each`, unless one is. Markers and aborted records are
    nothing that is left. Raises Unavailable, Systemic.
    """
    had = bounds(kafka, stream.topic)
    published_ms = firsts(kafka, stream.topic, {n: had.spans[n] for n in had.cut})
    gone = set(had.cut) - published_ms.keys()
    empty = gone | {n for n, (start, end) in had.spans.items() if start == end}
    if gone and (each or len(empty) == len(had.spans)):
        return Whole(time.time_ns() // 1000, emptied=True)
    return Whole(max(published_ms.values(), default=0) * 1000)


def epochs(kafka: Settings, topic: str, offsets: Mapping[int, int]) -> dict[int, int]:
    """The leader's epoch of one record of a partition, where there is one. Raises Unavailable."""
    spans = {number: Span(offset, offset + 1) for number, offset in offsets.items()}
    return {p.number: _mark(run[0]).epoch for p, run, _ in pieces(kafka, topic, spans) if run}


def scan(kafka: Settings, stream: Stream, spans: Mapping[Partition, Span]) -> Iterator[Piece]:
    """The committed records of these spans, decoded; undecodable ones are `dead`.

    An open transaction ends a partition early, where it begins. Raises Unavailable.
    """
    decoder = Decoder(stream)
    numbers = {partition.number: span for partition, span in spans.items()}
    for partition, run, span in pieces(kafka, stream.topic, numbers):
        yield _piece(decoder, stream, partition, span, run)


def _piece(
    decoder: Decoder, stream: Stream, partition: Partition, span: Span, run: Sequence[Message]
) -> Piece:
    rows, bad = decoder.decode([m.value() for m in run])
    offsets = [int(m.offset() or 0) for i, m in enumerate(run) if i not in bad]
    chunks = (Chunk(partition, offsets, rows, decoder.times_us),) if offsets else ()
    dead = tuple(Dead.of(run[i]) for i in bad)
    first_ms = int(run[0].timestamp()[1]) if run else -1
    last = _mark(run[-1]) if run else Mark()
    return Piece(Batch(stream, {partition: span}, chunks, dead), first_ms, last)


def _mark(message: Message) -> Mark:
    epoch = message.leader_epoch()
    return Mark(int(message.offset() or 0), -1 if epoch is None else int(epoch))
