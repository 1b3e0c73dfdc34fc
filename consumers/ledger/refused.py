"""Where the dead letters of a stream stood in it, read from `<topic>.dlq`."""

from __future__ import annotations

import time
from contextlib import suppress

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from consumers.batch import Partition
from consumers.client import Settings, text
from consumers.errors import Unavailable
from consumers.ledger.scan import consumer_of, marks
from ingest.streams import Stream

__all__ = ["refused"]

_PATIENCE_S = 60.0


def refused(kafka: Settings, stream: Stream) -> set[tuple[Partition, int]]:
    """Each once, however often it was sent there. Raises Unavailable, Systemic."""
    left = {p.number for p, span in marks(kafka, stream.dlq).items() if span.start < span.end}
    found: set[tuple[Partition, int]] = set()
    if not left:
        return found
    consumer = consumer_of(kafka)
    try:
        consumer.assign([TopicPartition(stream.dlq, number, 0) for number in left])
        deadline = time.monotonic() + _PATIENCE_S
        while left and time.monotonic() < deadline:
            for message in consumer.consume(1000, 0.2):
                deadline = time.monotonic() + _PATIENCE_S
                error = message.error()
                if error is None:
                    found.update(_place(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(int(message.partition() or 0))
                else:
                    raise KafkaException(error)
    except KafkaException as error:
        raise Unavailable(f"{stream.dlq} can't be read: {text(error)}") from error
    finally:
        consumer.close()
    if left:
        raise Unavailable(f"{stream.dlq} can't be read: no answer for a minute")
    return found


def _place(message: Message) -> list[tuple[Partition, int]]:
    """Nothing for a record that somebody else has put there."""
    headers = dict(message.headers() or ())
    with suppress(KeyError, ValueError, AttributeError):
        topic = headers["headrace.topic"].decode()
        partition = int(headers["headrace.partition"])
        return [(Partition(topic, partition), int(headers["headrace.offset"]))]
    return []
