"""The compacted topic of replays, read: all of it, or what comes behind an offset."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.client import DENIED, QUIET, Settings, consumed, denied, text
from consumers.errors import Unavailable

__all__ = ["TOPIC", "JobsTopic"]

TOPIC = "headrace_replays"
_ASK_S = 10.0
_AGAIN_S = 0.1
_PATIENCE_S = 30.0
# How often a follower looks whether Kafka answers it, in seconds.
_LOOK_EVERY_S = 10.0


class JobsTopic:
    """The topic's records from the start."""

    def __init__(self, kafka: Settings) -> None:
        self._consumer = Consumer(
            {
                **QUIET,
                **kafka,
                "group.id": "headrace-replays",  # librdkafka wants one; nothing is committed to it
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )

    def __enter__(self) -> JobsTopic:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def end(self) -> int:
        """Behind the last record; 0 without a topic."""
        give_up = time.monotonic() + _ASK_S
        while True:
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(TOPIC, 0), _ASK_S)
                return int(end)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise Unavailable(f"{TOPIC} can't be read: {text(error)}") from error
            if not self._is_there():
                return 0
            if time.monotonic() > give_up:
                raise Unavailable(f"{TOPIC} can't be read: its partition has no leader")
            time.sleep(_AGAIN_S)

    def _is_there(self) -> bool:
        """Whether there is a topic: librdkafka says the same of one that is not there, that we may
        not see, and of which the partition has no leader at the moment."""
        try:
            why = self._consumer.list_topics(TOPIC, _ASK_S).topics[TOPIC].error
        except KafkaException as error:
            raise Unavailable(f"{TOPIC} can't be read: {text(error)}") from error
        if why is not None and why.code() in DENIED:
            raise denied(why, TOPIC)
        return why is None or why.code() != KafkaError.UNKNOWN_TOPIC_OR_PART

    def until(self, end: int) -> Iterator[Message]:
        """Records below it."""
        if end <= 0:
            return
        self._consumer.assign([TopicPartition(TOPIC, 0, 0)])
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            for message in consumed(self._consumer, 500, 0.1):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() in DENIED:
                    raise denied(error, TOPIC)
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise Unavailable(f"{TOPIC} can't be read: {error.str()}")
                if int(message.offset() or 0) >= (end if error is not None else end - 1):
                    return
        raise Unavailable(f"{TOPIC} can't be read: no answer for half a minute")

    def behind(self, offset: int, over: threading.Event) -> Iterator[Message]:
        """Records that come behind an offset, until it is over.

        Raises Unavailable when Kafka does not answer: this client may never hear of it again then
        (membership.py), and says nothing of that by itself.
        """
        self._consumer.assign([TopicPartition(TOPIC, 0, offset + 1)])
        look_at = 0.0
        while not over.is_set():
            if time.monotonic() >= look_at:
                self.end()
                look_at = time.monotonic() + _LOOK_EVERY_S
            for message in consumed(self._consumer, 500, 0.2):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() in DENIED:
                    raise denied(error, TOPIC)
