"""librdkafka as the consumers use it: settings, what its errors mean, and reading a span."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from consumers.batch import Partition, Span
from consumers.errors import Systemic, Unavailable

__all__ = [
    "DENIED", "NOT_SUPPORTED", "OUT_OF_REACH", "OWNERSHIP_LOST", "QUIET", "TUNING", "Reach",
    "Settings", "consumed", "denied", "read_span", "text", "unknown_topic", "watermarks",
]  # fmt: skip

log = logging.getLogger(__name__)

Settings = Mapping[str, str | int | float | bool]

# Found with bench/consume.py: small slices stay in cache, and a queue that is only as long as two
# batches keeps memory flat. librdkafka's default back-off of one second, each time its queue is
# full, makes a fast reader wait most of the time.
TUNING: Settings = {
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 32 * 1024,
}

OWNERSHIP_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._FENCED,
}
NOT_SUPPORTED = {KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "READ on the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "access to the cluster",
    KafkaError.SASL_AUTHENTICATION_FAILED: "a valid user and password (sasl.username, …)",
    KafkaError._AUTHENTICATION: "a valid user and password (sasl.username, …)",
}

OUT_OF_REACH = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}
# Where a partition gets another leader, or this client has heard less of its topic than there is.
_PASSES = {
    # Also where none has one: a single broker that stood still, until it is registered again.
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REQUEST_TIMED_OUT,
}
_AGAIN_S = 0.1
# librdkafka's own lines on stderr would break up JSON logs; what matters comes through error_cb.
QUIET = {"log_level": 2}

# librdkafka tells of a broker that is away at each attempt, every 10 s at most: how long after the
# last word Kafka counts as away, and how often that is worth a line, in seconds.
_AWAY_S = 15.0
_AWAY_LINE_EVERY_S = 30.0


class Reach:
    """Whether Kafka can be reached, by what a client hears of it."""

    def __init__(self) -> None:
        # On the monotonic clock: when Kafka was last heard to be out of reach, and when we said so.
        self._lost_at = self._said_at = float("-inf")

    def heard(self) -> None:
        """Something came from it."""
        self._lost_at = float("-inf")

    def lost(self, error: KafkaError) -> None:
        """It is out of reach, by an error_cb."""
        now = self._lost_at = time.monotonic()
        if now - self._said_at > _AWAY_LINE_EVERY_S:
            self._said_at = now
            log.warning("Kafka is out of reach, trying on: %s", error.str())

    @property
    def away(self) -> bool:
        """Whether that is so now."""
        return time.monotonic() - self._lost_at < _AWAY_S


def consumed(consumer: Consumer, n: int, timeout_s: float) -> list[Message]:
    """What a consumer that is in no group has been given: records, errors, ends of partitions.

    librdkafka looks for the coordinator of its `group.id` all the same, and tells once, without a
    topic and as if of partition 0, where Kafka does not let us see such a group. Nothing is read
    any worse for it.
    """
    return [
        message
        for message in consumer.consume(n, timeout_s)
        if (error := message.error()) is None
        or error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED
    ]


def read_span(kafka: Settings, partition: Partition, span: Span) -> list[Message]:
    """Read `[start, end)` of one partition with a consumer of its own."""
    consumer = Consumer(
        {
            **TUNING,
            **QUIET,
            **kafka,
            "group.id": "headrace-read",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    found: list[Message] = []
    deadline = time.monotonic() + 60
    try:
        consumer.assign([TopicPartition(partition.topic, partition.number, span.start)])
        while time.monotonic() < deadline:
            # It waits for as many as are asked for.
            left = span.end - (int(found[-1].offset() or 0) + 1 if found else span.start)
            for message in consumed(consumer, min(left, 10_000), 0.1):
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise Unavailable(f"{partition} can't be read: {error.str()}")
                if message.offset() >= span.end:
                    return found
                if error is not None:
                    raise Unavailable(f"{partition} ends at {message.offset()}, below {span.end}")
                if message.offset() >= span.start:
                    found.append(message)
                    deadline = time.monotonic() + 60
            if found and found[-1].offset() >= span.end - 1:
                return found
    except KafkaException as error:
        raise Unavailable(f"{partition} can't be read: {text(error)}") from error
    finally:
        consumer.close()
    raise Unavailable(f"{partition} can't be read up to {span.end}: no answer for a minute")


def watermarks(
    client: Consumer, partitions: Collection[Partition], timeout_s: float
) -> dict[Partition, Span]:
    """From the first record of each log to its end, by the client's isolation level.

    `get_watermark_offsets` waits for an answer for each partition, and a process may have a
    thousand: over 20 ms that is half a minute. The times that stand for beginning and end are asked
    for all at once. Raises KafkaException.
    """
    starts = _until_known(client, partitions, OFFSET_BEGINNING, timeout_s)
    ends = _until_known(client, partitions, OFFSET_END, timeout_s)
    return {p: Span(start, ends[p]) for p, start in starts.items()}


def _until_known(
    client: Consumer, partitions: Collection[Partition], which: int, timeout_s: float
) -> dict[Partition, int]:
    """As _ends. What passes by itself is asked for again, as long as an answer may take: librdkafka
    (2.16) tries again, and answers what the first attempt has said."""
    give_up = time.monotonic() + timeout_s
    topics = {partition.topic for partition in partitions}
    while True:
        try:
            return _ends(client, partitions, which, timeout_s)
        except KafkaException as error:
            code = error.args[0].code()
            if code not in _PASSES:
                raise
            if time.monotonic() > give_up:
                if code != KafkaError._UNKNOWN_PARTITION:
                    raise
                why = f"no partition that was asked of {', '.join(sorted(topics))} has a leader"
                raise KafkaException(KafkaError(code, why)) from error
        # A partition that had no leader when this client looked has none for it until it looks
        # again: it sends no question, and of itself it looks minutes later.
        for topic in topics:
            client.list_topics(topic, timeout=timeout_s)
        time.sleep(_AGAIN_S)


def _ends(
    client: Consumer, partitions: Collection[Partition], which: int, timeout_s: float
) -> dict[Partition, int]:
    if not partitions:
        return {}
    found = {}
    for place in client.offsets_for_times(
        [TopicPartition(*p, which) for p in partitions], timeout_s
    ):
        if place.error is not None:
            raise KafkaException(place.error)
        if place.offset < 0:  # what was asked: it has not been answered
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        found[Partition(place.topic, place.partition)] = int(place.offset)
    return found


def denied(error: KafkaError, topic: str = "", *, group: str = "", act: str = "READ") -> Systemic:
    """What to raise for a code that is in DENIED, of `act` on a topic or in a group.

    A producer of whom no topic may be written to is told of the cluster, not of its topic.
    """
    code = error.code()
    needs = DENIED[code]
    if topic and (
        code == KafkaError.TOPIC_AUTHORIZATION_FAILED
        or (code == KafkaError.CLUSTER_AUTHORIZATION_FAILED and act == "WRITE")
    ):
        needs = f"{act} on the topic {topic}"
    elif group and code == KafkaError.GROUP_AUTHORIZATION_FAILED:
        needs = f"{act} on the consumer group {group}"
    return Systemic(f"Kafka refuses: {error.str().rstrip('.')}. This needs {needs}.")


def unknown_topic(topic: str) -> str:
    """What to say of a topic that does not exist."""
    return (
        f"the topic {topic} does not exist in Kafka; create what is missing with `headrace migrate`"
    )


def text(error: Exception) -> str:
    """What an error says."""
    if isinstance(error, KafkaException):
        return str(error.args[0].str())
    return str(error)
