"""Records of a topic, counted: as sums by bucket, without keeping any of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from consumers.client import QUIET, TUNING, Settings, text, unknown_topic
from consumers.decode import Decoder
from consumers.errors import Systemic, Unavailable
from consumers.fetch import by_partition
from ingest.streams import Stream

__all__ = ["Piece", "consumer_of", "marks", "scan", "whole_from_us"]

_ASK_S = 10.0
_PATIENCE_S = 60.0
_SLICE = 4000


class Piece(NamedTuple):
    """Some records as a batch of their own; its spans end where reading goes on."""

    batch: Batch
    # Kafka's timestamps of the first and of the newest of them; -1 without records.
    first_ms: int
    newest_ms: int


def marks(kafka: Settings, topic: str) -> dict[Partition, Span]:
    """What there is of each partition now. Raises Unavailable, Systemic."""
    consumer = consumer_of(kafka)
    try:
        listed = consumer.list_topics(topic, _ASK_S).topics[topic]
        if listed.error is not None or not listed.partitions:
            raise Systemic(unknown_topic(topic))
        places = [TopicPartition(topic, number) for number in sorted(listed.partitions)]
        return {
            Partition(topic, place.partition): Span(*consumer.get_watermark_offsets(place, _ASK_S))
            for place in places
        }
    except KafkaException as error:
        raise Unavailable(f"Kafka does not say what {topic} holds: {text(error)}") from error
    finally:
        consumer.close()


def whole_from_us(kafka: Settings, stream: Stream) -> int:
    """Since when Kafka has all records of a topic, by when they were published; 0: all there were.

    Raises Unavailable, Systemic.
    """
    cut = {p: span for p, span in marks(kafka, stream.topic).items() if span.start > 0}
    oldest_ms = {p: time.time_ns() // 1_000_000 for p in cut}
    left = set(cut)
    for batch, first_ms, _ in scan(kafka, stream, cut):
        for partition in batch.spans:
            if partition in left and first_ms >= 0:
                oldest_ms[partition] = first_ms
                left.remove(partition)
        if not left:
            break
    return max(oldest_ms.values(), default=0) * 1000


def scan(kafka: Settings, stream: Stream, spans: Mapping[Partition, Span]) -> Iterator[Piece]:
    """The committed records of these spans, decoded; undecodable ones are `dead`.

    An open transaction ends a partition early, where it begins. Raises Unavailable.
    """
    decoder = Decoder(stream)
    left = {p: span for p, span in spans.items() if span.start < span.end}
    if not left:
        return
    consumer = consumer_of(kafka)
    try:
        consumer.assign([TopicPartition(*p, span.start) for p, span in left.items()])
        deadline = time.monotonic() + _PATIENCE_S
        while left:
            if messages := consumer.consume(_SLICE, 0.2):
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise Unavailable(f"{stream.topic} can't be read: no answer for a minute")
            for partition, run, end in _sorted(messages):
                span = left.get(partition)
                if span is None:
                    continue
                reached = min(end, span.end)
                if reached > span.start:
                    wanted = [m for m in run if int(m.offset() or 0) < reached]
                    yield _piece(decoder, stream, partition, Span(span.start, reached), wanted)
                left[partition] = Span(reached, span.end)
                # Without a run it is the end of what is there.
                if reached == span.end or not run:
                    del left[partition]
    except KafkaException as error:
        raise Unavailable(f"{stream.topic} can't be read: {text(error)}") from error
    finally:
        consumer.close()


def _sorted(messages: Sequence[Message]) -> Iterator[tuple[Partition, Sequence[Message], int]]:
    """Records of each partition and where they end; then, without any, ends of partitions."""
    good: list[Message] = []
    ends: list[tuple[Partition, Sequence[Message], int]] = []
    for message in messages:
        error = message.error()
        if error is None:
            good.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            at = Partition(str(message.topic()), int(message.partition() or 0))
            ends.append((at, (), int(message.offset() or 0)))
        else:
            raise KafkaException(error)
    for partition, run in by_partition(good):
        yield partition, run, int(run[-1].offset() or 0) + 1
    yield from ends


def _piece(
    decoder: Decoder, stream: Stream, partition: Partition, span: Span, run: Sequence[Message]
) -> Piece:
    rows, bad = decoder.decode([m.value() for m in run])
    offsets = [int(m.offset() or 0) for i, m in enumerate(run) if i not in bad]
    chunks = (Chunk(partition, offsets, rows, decoder.times_us),) if offsets else ()
    dead = tuple(Dead.of(run[i]) for i in bad)
    times = [int(m.timestamp()[1]) for m in run]
    return Piece(
        Batch(stream, {partition: span}, chunks, dead),
        times[0] if times else -1,
        max(times, default=-1),
    )


def consumer_of(kafka: Settings) -> Consumer:
    return Consumer(
        {
            **TUNING,
            **QUIET,
            **kafka,
            "group.id": "headrace-audit",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
