"""Receipts of a range of time, straight from Kafka: for looking, so nothing is committed.

By when they were answered. A receipt is produced when its whole batch is final, so reading begins
where records of that time do and ends, in each partition, at what was its end when it began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from google.protobuf.message import DecodeError

from consumers.client import QUIET, TUNING, Settings, text
from consumers.errors import Unavailable
from ingest.gen.headrace.v1.receipt_pb2 import Receipt

__all__ = ["receipts_between"]

_PATIENCE_S = 60
_ASK_S = 10


def receipts_between(kafka: Settings, topic: str, begin_us: int, end_us: int) -> Iterator[Receipt]:
    """Receipts answered in [begin_us, end_us), in order for each event.

    Raises Unavailable when Kafka does not answer.
    """
    consumer = Consumer(
        {
            **TUNING,
            **QUIET,
            **kafka,
            "group.id": "headrace-receipts",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        for receipt in _read(consumer, topic, begin_us):
            if begin_us <= receipt.answered_at.ToMicroseconds() < end_us:
                yield receipt
    except KafkaException as error:
        raise Unavailable(f"{topic} can't be read: {text(error)}") from error
    finally:
        consumer.close()


def _read(consumer: Consumer, topic: str, begin_us: int) -> Iterator[Receipt]:
    numbers = consumer.list_topics(topic, _ASK_S).topics[topic].partitions
    # offset → time, in and out. OFFSET_END is the answer for a time behind the last record.
    asked = [TopicPartition(topic, n, max(0, begin_us // 1000)) for n in numbers]
    left: dict[int, int] = {}
    places = []
    for place in consumer.offsets_for_times(asked, _ASK_S):
        if place.error is not None:
            raise KafkaException(place.error)
        _, end = consumer.get_watermark_offsets(place, _ASK_S)
        if place.offset != OFFSET_END and place.offset < end:
            left[place.partition] = end
            places.append(place)
    if not places:
        return
    consumer.assign(places)
    deadline = time.monotonic() + _PATIENCE_S
    while left:
        for message in consumer.consume(1000, 0.2):
            deadline = time.monotonic() + _PATIENCE_S
            number, error = message.partition(), message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            end = left.get(number, 0)
            if error is None and message.offset() < end and (found := _parsed(message.value())):
                yield found
            # What stands before the end may be a marker of a transaction, so its end counts too.
            if message.offset() >= end - 1 or error is not None:
                left.pop(number, None)
        if time.monotonic() > deadline:
            raise Unavailable(f"{topic} can't be read: no answer for a minute")


def _parsed(value: bytes | None) -> Receipt | None:
    try:
        return Receipt.FromString(value or b"")
    except DecodeError:
        return None
