"""From a range of time to ranges of offsets.

Kafka finds offsets by the time at which a record was published; a replay is by event time, the
stream's time field (of raw events: when the collector took them; a client's own clock may say
anything). The two are related like this, and so the bounds are safe:

- Published before it happened: only by clocks that differ. Reading begins _AHEAD before the range.
- Published after it happened: as late as a spool was cut off, or a record overtaken. Reading ends
  at the first record that was published `lateness_s` after the range. What came later still is not
  found. A record with a publishing time ahead of the clock ends reading that much earlier.

Kafka answers -1 for a time beyond the last record, and -1 is also the live end of the partition: it
stands for the end as it was when the range was looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from consumers.batch import Span
from consumers.client import QUIET, Settings, text, unknown_topic
from consumers.errors import Systemic, Unavailable

__all__ = ["Found", "find"]

_ASK_S = 10.0
# How far clocks may differ, in milliseconds.
_AHEAD_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What to read, by the partition's number."""

    spans: dict[int, Span]
    # Partitions of which Kafka's retention has removed the beginning: older records of the range
    # may have been among it.
    cut: tuple[int, ...]


def find(kafka: Settings, topic: str, begin_us: int, end_us: int, lateness_s: float) -> Found:
    """Where the records of [begin_us, end_us) are. Raises Unavailable, Systemic."""
    consumer = Consumer(
        # librdkafka wants a group; nothing is committed to it.
        {**QUIET, **kafka, "group.id": "headrace-replay-look", "enable.auto.commit": False}
    )
    try:
        listed = consumer.list_topics(topic, _ASK_S).topics[topic]
        if listed.error is not None or not listed.partitions:
            raise Systemic(unknown_topic(topic))
        numbers = sorted(listed.partitions)
        # Asked for first: what is written from now on is no part of it.
        marks = {
            n: consumer.get_watermark_offsets(TopicPartition(topic, n), _ASK_S) for n in numbers
        }
        starts = _at(consumer, topic, numbers, begin_us // 1000 - _AHEAD_MS)
        ends = _at(consumer, topic, numbers, -(-end_us // 1000) + round(lateness_s * 1000))
    except KafkaException as error:
        raise Unavailable(f"Kafka does not say where {topic} is read: {text(error)}") from error
    finally:
        consumer.close()
    spans = {}
    for n, (low, high) in marks.items():
        start, end = _bound(starts[n], low, high), _bound(ends[n], low, high)
        spans[n] = Span(start, max(start, end))
    cut = tuple(n for n, (low, _) in marks.items() if low > 0 and spans[n].start == low)
    return Found(spans, cut)


def _at(consumer: Consumer, topic: str, numbers: list[int], at_ms: int) -> dict[int, int]:
    """The first offset of each partition that was published then or later; -1 without one."""
    # Milliseconds go in as offsets. Below 0 they would mean something else.
    asked = [TopicPartition(topic, n, max(at_ms, 0)) for n in numbers]
    found = {}
    for place in consumer.offsets_for_times(asked, _ASK_S):
        if place.error is not None:
            raise KafkaException(place.error)
        found[place.partition] = int(place.offset)
    return found


def _bound(offset: int, low: int, high: int) -> int:
    return high if offset < 0 else min(max(offset, low), high)
