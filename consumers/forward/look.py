"""Receipts of a range of time, straight from Kafka.

By when they were answered. A receipt is produced when its whole batch is final, so reading begins
where records of that time do and ends, in each partition, at what was its end when it began.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from consumers.bounds import bounds, read
from consumers.client import Settings
from ingest.gen.headrace.v1.receipt_pb2 import Receipt

__all__ = ["receipts_between"]


def receipts_between(kafka: Settings, topic: str, begin_us: int, end_us: int) -> Iterator[Receipt]:
    """Receipts answered in [begin_us, end_us), in order for each event.

    Raises Unavailable when Kafka does not answer.
    """
    for _, run in read(kafka, topic, bounds(kafka, topic, begin_us // 1000).spans):
        for message in run:
            try:
                receipt = Receipt.FromString(message.value() or b"")
            except DecodeError:
                continue
            if begin_us <= receipt.answered_at.ToMicroseconds() < end_us:
                yield receipt
