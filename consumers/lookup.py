"""Questions to Kafka: where logs begin and end, what the group has committed, which topic it is.

They go through a client of their own that never joins the group, so that they do not wait for the
thread that polls, nor it for them. From any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from consumers.batch import Partition, Span
from consumers.client import (
    DENIED,
    OUT_OF_REACH,
    QUIET,
    Settings,
    denied,
    text,
    unknown_topic,
    watermarks,
)
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.sinks import Known
from ingest.committed import committed
from ingest.settings import refused
from ingest.topics import TopicError, TopicIds

__all__ = ["Lookup"]

# How long one question may take, in seconds.
_ASK_S = 10.0


class Lookup:
    """`consumers.source.Source` says what each method answers and raises."""

    def __init__(self, kafka: Settings, group: str, topics: Sequence[str]) -> None:
        self._group = group
        self._topics = list(topics)
        self._ask_ids = TopicIds(kafka)  # which makes a client of its own only when asked
        # Per partition: each is placed in its own time.
        self._ids: dict[Partition, str] = {}
        self._asking = threading.Lock()
        self._settings = {**QUIET, **kafka, "group.id": group, "enable.auto.commit": False}
        try:
            self._client = Consumer(self._settings)
        except KafkaException as error:
            raise refused(error) from error

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        """Ids, watermarks and the group's commits with their metadata."""
        try:
            ids = self._ask_ids({p.topic for p in partitions})
            with self._asking:
                places = [TopicPartition(*p) for p in partitions]
                at = committed(self._client, places, _ASK_S)
            for p in partitions:
                if p.topic not in ids:
                    raise Systemic(unknown_topic(p.topic))
            marks = self._watermarks(partitions)
            found = {}
            for p, c in zip(partitions, at, strict=True):
                found[p] = Known(
                    topic_id=ids[p.topic],
                    earliest=marks[p].start,
                    latest=marks[p].end,
                    committed=c.offset if c.offset >= 0 else None,
                    note=c.metadata or "",
                )
        except (KafkaException, TopicError) as error:
            raise self._failed(error, "Kafka does not say where to go on") from error
        self._ids.update({p: k.topic_id for p, k in found.items()})
        return found

    def topic_id(self, partition: Partition) -> str:
        """The id of the partition's topic as `known` last saw it."""
        return self._ids[partition]

    def unchanged(self, partitions: Collection[Partition]) -> None:
        """Their topics are still those that `known` last saw."""
        try:
            now = self._ask_ids({p.topic for p in partitions})
        except TopicError as error:
            raise (Systemic if error.denied else Unavailable)(str(error)) from error
        for partition in partitions:
            if now.get(partition.topic) != self._ids.get(partition):
                raise Fenced(f"the topic {partition.topic} was deleted")

    def all_ends(self) -> dict[Partition, int]:
        """The last stable offset of every partition of the topics: below it all is decided."""
        try:
            with self._asking:
                listed = self._client.list_topics(timeout=_ASK_S).topics
            for topic in self._topics:
                if topic not in listed:
                    raise self._unlisted(topic)
            asked = [Partition(t, number) for t in self._topics for number in listed[t].partitions]
            return {partition: span.end for partition, span in self._watermarks(asked).items()}
        except KafkaException as error:
            raise self._failed(error, "Kafka does not answer") from error

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The group's positions."""
        asked = [TopicPartition(*p) for p in partitions]
        try:
            with self._asking:
                answer = committed(self._client, asked, _ASK_S)
        except KafkaException as error:
            raise self._failed(error, "Kafka does not answer") from error
        return {Partition(c.topic, c.partition): max(c.offset, -1) for c in answer}

    def _watermarks(self, partitions: Collection[Partition]) -> dict[Partition, Span]:
        with self._asking:
            return watermarks(self._client, partitions, _ASK_S)

    def _unlisted(self, topic: str) -> Systemic:
        """What to raise for a topic that is not among all: there is none, or we may not see it."""
        with self._asking:
            why = self._client.list_topics(topic, timeout=_ASK_S).topics[topic].error
        if why is not None and why.code() in DENIED:
            return denied(why, topic, act="DESCRIBE")
        return Systemic(unknown_topic(topic))

    def _failed(self, error: KafkaException | TopicError, what: str) -> Exception:
        """What to raise for it."""
        self._begin_anew(error)
        if isinstance(error, TopicError) and error.denied:
            return Systemic(str(error))
        if isinstance(error, KafkaException) and error.args[0].code() in DENIED:
            topics = ", ".join(self._topics)
            return denied(error.args[0], topics, group=self._group, act="DESCRIBE")
        return Unavailable(f"{what}: {text(error)}")

    def _begin_anew(self, error: KafkaException | TopicError) -> None:
        """A client that can't reach Kafka may have forgotten where it is (membership.py)."""
        if isinstance(error, KafkaException) and error.args[0].code() in OUT_OF_REACH:
            with self._asking:
                self._client.close()
                self._client = Consumer(self._settings)

    def close(self) -> None:
        """Close the client."""
        self._client.close()
