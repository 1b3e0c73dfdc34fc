"""Reading a topic between two bounds, past any group: for looking, so nothing is committed.

Bounds are offsets. Kafka finds them by the time at which a record was published. It answers -1 for
a time beyond the last record, and -1 is also the live end of the partition: it stands for the end
as it was when it was asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.batch import Partition, Span
from consumers.client import QUIET, TUNING, Settings, text, unknown_topic
from consumers.errors import Systemic, Unavailable
from consumers.fetch import by_partition

__all__ = ["Bounds", "bounds", "read"]

_ASK_S = 10.0
_PATIENCE_S = 60.0
# Records asked for at once.
_SLICE = 4000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What to read, by the partition's number."""

    spans: dict[int, Span]
    # Partitions of which the beginning is no longer in Kafka: older records may have been there.
    cut: tuple[int, ...]


def bounds(
    kafka: Settings, topic: str, begin_ms: int | None = None, end_ms: int | None = None
) -> Bounds:
    """From the first record published at `begin_ms` or later to before the first at `end_ms`.

    Without them from the beginning, and to what is the end now. Raises Unavailable, Systemic.
    """
    consumer = Consumer({**QUIET, **kafka, **_ALONE})
    try:
        listed = consumer.list_topics(topic, _ASK_S).topics[topic]
        if listed.error is not None or not listed.partitions:
            raise Systemic(unknown_topic(topic))
        numbers = sorted(listed.partitions)
        # Asked for first: what is written from now on is no part of it.
        marks = {
            n: consumer.get_watermark_offsets(TopicPartition(topic, n), _ASK_S) for n in numbers
        }
        starts = {n: low for n, (low, _) in marks.items()}
        ends = {n: high for n, (_, high) in marks.items()}
        if begin_ms is not None:
            starts = _at(consumer, topic, marks, begin_ms)
        if end_ms is not None:
            ends = _at(consumer, topic, marks, end_ms)
    except KafkaException as error:
        raise Unavailable(f"Kafka does not say where {topic} is read: {text(error)}") from error
    finally:
        consumer.close()
    spans = {n: Span(starts[n], max(starts[n], ends[n])) for n in numbers}
    cut = tuple(n for n, (low, _) in marks.items() if low > 0 and starts[n] == low)
    return Bounds(spans, cut)


def read(
    kafka: Settings, topic: str, spans: Mapping[int, Span]
) -> Iterator[tuple[Partition, list[Message]]]:
    """The committed records of these spans, in order for each partition. Raises Unavailable."""
    left = {Partition(topic, n): s.end for n, s in spans.items() if s.start < s.end}
    if not left:
        return
    consumer = Consumer({**TUNING, **QUIET, **kafka, **_ALONE})
    try:
        consumer.assign([TopicPartition(*p, spans[p.number].start) for p in left])
        deadline = time.monotonic() + _PATIENCE_S
        while left:
            messages = consumer.consume(_SLICE, 0.1)
            if messages:
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise Unavailable(f"{topic} can't be read: no answer for a minute")
            for partition, run in by_partition(messages):
                end = left.get(partition, -1)
                for message in run:
                    error = message.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                found = [m for m in run if m.error() is None and int(m.offset() or 0) < end]
                if found:
                    yield partition, found
                # What stands before the end may be a transaction's marker, which is no record: then
                # one behind it says so, or the end of the partition.
                last = run[-1]
                if int(last.offset() or 0) >= (end if last.error() is not None else end - 1):
                    left.pop(partition, None)
                    consumer.pause([TopicPartition(*partition)])
    except KafkaException as error:
        raise Unavailable(f"{topic} can't be read: {text(error)}") from error
    finally:
        consumer.close()


_ALONE: Settings = {
    "group.id": "headrace-read",  # librdkafka wants one; nothing is committed to it
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
}


def _at(
    consumer: Consumer, topic: str, marks: Mapping[int, tuple[int, int]], at_ms: int
) -> dict[int, int]:
    """The first offset of each partition that was published then or later, within its marks."""
    # Milliseconds go in as offsets. Below 0 they would mean something else.
    asked = [TopicPartition(topic, n, max(at_ms, 0)) for n in marks]
    found = {}
    for place in consumer.offsets_for_times(asked, _ASK_S):
        if place.error is not None:
            raise KafkaException(place.error)
        found[place.partition] = _bound(int(place.offset), *marks[place.partition])
    return found


def _bound(offset: int, low: int, high: int) -> int:
    """An answer to a time as an offset that is there: -1 stands for the end."""
    return high if offset < 0 else min(max(offset, low), high)
