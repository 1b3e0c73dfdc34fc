"""What a group has committed, asked from outside of it."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

__all__ = ["committed"]


def committed(
    consumer: Consumer, places: Sequence[TopicPartition], timeout_s: float
) -> list[TopicPartition]:
    """The group's offsets and metadata, by a consumer that reads nothing. Raises KafkaException.

    librdkafka (2.16) looks for a coordinator that it is refused until the time is over, and calls
    that a time-out; why is an error among the records that it would have.
    """
    try:
        found = consumer.committed(list(places), timeout=timeout_s)
    except KafkaException as late:
        if late.args[0].code() == KafkaError._TIMED_OUT:
            for message in consumer.consume(10, 0):
                why = message.error()
                if why is not None and why.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    raise KafkaException(why) from late
        raise
    for place in found:
        if place.error is not None:
            raise KafkaException(place.error)
    # A refusal before this answer is over, and no reason for what is not answered later.
    consumer.consume(10, 0)
    return list(found)
