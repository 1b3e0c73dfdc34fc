"""Where the dead letters of a stream stood in it, read from `<topic>.dlq`."""

from __future__ import annotations

from contextlib import suppress

from confluent_kafka import Message

from consumers.batch import Partition
from consumers.bounds import bounds, read
from consumers.client import Settings
from ingest.streams import Stream

__all__ = ["refused"]


def refused(kafka: Settings, stream: Stream) -> set[tuple[Partition, int]]:
    """Each once, however often it was sent there. Raises Unavailable, Systemic."""
    runs = read(kafka, stream.dlq, bounds(kafka, stream.dlq).spans)
    return {place for _, run in runs for message in run for place in _place(message)}


def _place(message: Message) -> list[tuple[Partition, int]]:
    """Nothing for a record that somebody else has put there."""
    headers = dict(message.headers() or ())
    with suppress(KeyError, ValueError, AttributeError):
        topic = headers["headrace.topic"].decode()
        partition = int(headers["headrace.partition"])
        return [(Partition(topic, partition), int(headers["headrace.offset"]))]
    return []
