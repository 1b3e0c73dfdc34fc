"""Raw events of a range of time, straight from Kafka.

By the time at which the collector took them. A record's own time in Kafka is near it, earlier or
later: reading begins at the first record of that time less SLACK, and ends in each partition at the
first beyond its end plus SLACK, or at what was its end when the scan began.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from consumers.bounds import bounds, read
from consumers.client import Settings
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["SLACK_MS", "scan"]

SLACK_MS = 10 * 60 * 1000


def scan(kafka: Settings, topic: str, begin_us: int, end_us: int) -> Iterator[RawEvent]:
    """Events taken in [begin_us, end_us). Raises Unavailable when Kafka does not answer."""
    found = bounds(kafka, topic, begin_us // 1000 - SLACK_MS, end_us // 1000 + SLACK_MS + 1)
    for _, run in read(kafka, topic, found.spans):
        for message in run:
            try:
                raw = RawEvent.FromString(message.value() or b"")
            except DecodeError:
                continue
            if begin_us <= raw.received_at.ToMicroseconds() < end_us:
                yield raw
