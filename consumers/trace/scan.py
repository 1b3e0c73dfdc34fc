"""Raw events of a range of time, straight from Kafka: for looking, so nothing is committed.

By the time at which the collector took them. A record's own time in Kafka is near it, earlier or
later: reading begins at the first record of that time less SLACK, and ends in each partition at the
first beyond its end plus SLACK, or at what was its end when the scan began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from google.protobuf.message import DecodeError

from consumers.client import QUIET, TUNING, Settings, text
from consumers.errors import Unavailable
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["SLACK_MS", "scan"]

SLACK_MS = 10 * 60 * 1000
_PATIENCE_S = 60


def scan(kafka: Settings, topic: str, begin_us: int, end_us: int) -> Iterator[RawEvent]:
    """Events taken in [begin_us, end_us). Raises Unavailable when Kafka does not answer."""
    consumer = Consumer(
        {
            **TUNING,
            **QUIET,
            **kafka,
            "group.id": "headrace-scan",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    try:
        yield from _read(consumer, topic, begin_us, end_us)
    except KafkaException as error:
        raise Unavailable(f"{topic} can't be read: {text(error)}") from error
    finally:
        consumer.close()


def _read(consumer: Consumer, topic: str, begin_us: int, end_us: int) -> Iterator[RawEvent]:
    numbers = consumer.list_topics(topic, 10).topics[topic].partitions
    # offset → time, in and out. A time beyond the last record is answered with OFFSET_END, which
    # would begin at whatever comes next: there is nothing to read then.
    asked = [TopicPartition(topic, n, max(0, begin_us // 1000 - SLACK_MS)) for n in numbers]
    ends = {}
    places = []
    for place in consumer.offsets_for_times(asked, 10):
        if place.error is not None:
            raise KafkaException(place.error)
        _, ends[place.partition] = consumer.get_watermark_offsets(place, 10)
        if place.offset not in (OFFSET_END, ends[place.partition]):
            places.append(place)
    left = {place.partition for place in places}
    if not left:
        return
    consumer.assign(places)
    deadline = time.monotonic() + _PATIENCE_S
    while left:
        for message in consumer.consume(1000, 0.2):
            deadline = time.monotonic() + _PATIENCE_S
            number, error = message.partition(), message.error()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                left.discard(number)
                continue
            if number not in left or message.offset() >= ends[number]:
                left.discard(number)
                continue
            if message.timestamp()[1] > end_us // 1000 + SLACK_MS:
                left.discard(number)
                continue
            raw = _parsed(message.value())
            if raw is not None and begin_us <= raw.received_at.ToMicroseconds() < end_us:
                yield raw
        if time.monotonic() > deadline:
            raise Unavailable(f"{topic} can't be read: no answer for a minute")


def _parsed(value: bytes | None) -> RawEvent | None:
    try:
        return RawEvent.FromString(value or b"")
    except DecodeError:
        return None
