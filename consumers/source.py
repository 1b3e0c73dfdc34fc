"""Where records come from: a consumer group.

`GroupSource` hides five of librdkafka's habits from the run loop:
- Callbacks must never raise (the messages of that call would be lost): what a listener raises is
  kept, and raised by the next `poll`.
- A partition that has just been given to us is not read until `seek` says from where: positions
  belong to the sink, not to the group. Until then it is paused.
- While one thread is in `consume()`, every other call on the same Consumer waits. So the group's
  member is used by the polling thread only: `commit` and `report` queue for it, to be served by
  `poll` and `serve`; questions go through a second client that never joins.
- `consume()` returns errors and ends of partitions among the messages; `poll` sorts them out.
- A partition whose next offset Kafka has removed is not fetched any more, wherever one seeks:
  `seek` gives it to the client anew.

It joins with `group.protocol=consumer` (KIP-848: only the partitions that move stop) and, where the
broker has no such thing, with the classic protocol and cooperative-sticky assignment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from consumers.batch import Partition, Span
from consumers.client import (
    DENIED,
    NOT_SUPPORTED,
    OUT_OF_REACH,
    QUIET,
    TUNING,
    Settings,
    read_span,
    text,
    unknown_topic,
)
from consumers.commits import Commits
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.sinks import Known, Log
from ingest.topics import TopicError, TopicIds

__all__ = ["GroupSource", "Listener", "Source"]

log = logging.getLogger(__name__)

# librdkafka tells of a broker that is away at each attempt, every 10 s at most: how long after the
# last word Kafka counts as away, and how often that is worth a line, in seconds.
_AWAY_S = 15.0
_AWAY_LINE_EVERY_S = 30.0

# How long one question to Kafka may take, in seconds.
_ASK_S = 10.0


class Listener(Protocol):
    """Told of rebalances from within `poll`."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None: ...

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is under way for them: they move when this returns."""
        ...

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """They have moved already: drop what is under way."""
        ...


class Source(Log, Protocol):
    """Where the run loop reads; `GroupSource` says what each method does."""

    ends: dict[Partition, int]
    replace: set[Partition]

    @property
    def away(self) -> bool: ...
    def poll(self, n: int, timeout_s: float) -> list[Message]: ...
    def seek(self, partition: Partition, offset: int) -> bool: ...
    def pause(self, partitions: Iterable[Partition]) -> None: ...
    def resume(self, partitions: Iterable[Partition]) -> None: ...
    def serve(self) -> None: ...
    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]: ...
    def unchanged(self, partitions: Collection[Partition]) -> None: ...
    def latest(self, partition: Partition) -> int: ...
    def all_ends(self) -> dict[Partition, int]: ...
    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]: ...
    def close(self) -> None: ...


class GroupSource:
    """The partitions that a consumer group gives to this process."""

    def __init__(
        self,
        kafka: Settings,
        group: str,
        topics: Sequence[str],
        listener: Listener,
    ) -> None:
        self._kafka = dict(kafka)
        self._topics = list(topics)
        self._listener = listener
        self._raised: BaseException | None = None
        # Per partition: each is placed in its own time.
        self._ids: dict[Partition, str] = {}
        self._ask_ids = TopicIds(kafka)
        # Partition -> offset at which its end was last seen; older than what is read since.
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        self._commits = Commits()
        # On the monotonic clock: when Kafka was last heard to be out of reach, and when we said so.
        self._away_at = self._said_away_at = float("-inf")
        self._settings: dict[str, object] = {
            **TUNING,
            **QUIET,
            "group.protocol": "consumer",
            **kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            # A position that Kafka no longer has is for a person to judge, never skipped.
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "error_cb": self._on_error,
        }
        self._consumer = self._join()
        self._asking = threading.Lock()
        self._asker = Consumer({**QUIET, **kafka, "group.id": group, "enable.auto.commit": False})

    def _join(self) -> Consumer:
        if self._settings["group.protocol"] == "classic":
            self._settings.setdefault("partition.assignment.strategy", "cooperative-sticky")
        consumer = Consumer(self._settings)
        consumer.subscribe(
            self._topics,
            on_assign=self._guard(self._assigned),
            on_revoke=self._guard(self._revoked),
            on_lost=self._guard(self._lost),
        )
        return consumer

    # -- rebalances ------------------------------------------------------------------------------

    def _guard(
        self, handle: Callable[[Consumer, list[TopicPartition]], None]
    ) -> Callable[[Consumer, list[TopicPartition]], None]:
        def callback(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                handle(consumer, partitions)
            except BaseException as error:
                self._raised = self._raised or error

        return callback

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            p.offset = 0  # anywhere: nothing is read before seek()
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)
        given = [Partition(p.topic, p.partition) for p in partitions]
        self._commits.given(given)
        self._listener.on_assigned(given)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = self._forget(partitions)
        try:
            self._listener.on_revoked(gone)
        finally:
            self._commits.gone(gone)
            consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = self._forget(partitions)
        self._commits.gone(gone)
        try:
            self._listener.on_lost(gone)
        finally:
            consumer.incremental_unassign(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> list[Partition]:
        gone = [Partition(p.topic, p.partition) for p in partitions]
        for partition in gone:
            self.ends.pop(partition, None)
            self.replace.discard(partition)
        return gone

    # -- reading ---------------------------------------------------------------------------------

    def poll(self, n: int, timeout_s: float) -> list[Message]:
        """Up to `n` records, in order for each partition; serves rebalances.

        Raises what a listener raised, and Systemic for what a person has to mend. Partitions whose
        position Kafka no longer has are added to `replace`.
        """
        self.serve()
        messages: list[Message] = self._consumer.consume(n, timeout_s)
        if messages:
            self._away_at = float("-inf")
        if self._raised is not None:
            raise self._raised
        if not any(map(Message.error, messages)):
            return messages
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ends[Partition(message.topic(), message.partition())] = message.offset()
            else:
                self._judge(message, error)
        return good

    def _judge(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        if code in NOT_SUPPORTED and self._settings["group.protocol"] == "consumer":
            log.warning("the broker has no group.protocol=consumer; joining with classic")
            self._settings["group.protocol"] = "classic"
            self._consumer.close()
            self._consumer = self._join()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if message.topic() is not None:
                self.replace.add(Partition(message.topic(), message.partition()))
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise Systemic(unknown_topic(str(message.topic())))
        elif code in DENIED:
            raise Systemic(f"Kafka refuses: {error.str()}. This needs {DENIED[code]}.")
        # What comes as a message does not carry the flag.
        elif code == KafkaError._FATAL or error.fatal():
            raise Systemic(f"Kafka's client can't go on: {error.str()}")
        else:
            log.warning("Kafka: %s", error.str())

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in DENIED:
            self._raised = self._raised or Systemic(
                f"Kafka refuses: {error.str()}. This needs {DENIED[error.code()]}."
            )
        elif error.code() in OUT_OF_REACH:
            now = self._away_at = time.monotonic()
            if now - self._said_away_at > _AWAY_LINE_EVERY_S:
                self._said_away_at = now
                log.warning("Kafka is out of reach, trying on: %s", error.str())
        elif error.code() != KafkaError._PARTITION_EOF:
            log.warning("Kafka: %s", error.str())

    @property
    def away(self) -> bool:
        """Whether Kafka has been out of reach for all that we have heard lately."""
        return time.monotonic() - self._away_at < _AWAY_S

    def seek(self, partition: Partition, offset: int) -> bool:
        """Read this partition from here on; False when it is not ready yet, then call again."""
        where = TopicPartition(partition.topic, partition.number, offset)
        try:
            try:
                self._consumer.seek(where)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:
                    raise
                # It is not being fetched. An offset that Kafka has not got ends fetching for good,
                # also the offset of a fetch that left just before the pause at its assignment. That
                # error may be lost in a pause, so it is not waited for.
                self._consumer.incremental_unassign([where])
                self._consumer.incremental_assign([where])
            self._consumer.resume([where])
        except KafkaException as error:
            if error.args[0].code() in (KafkaError._STATE, KafkaError._TIMED_OUT):
                return False
            raise
        self.ends.pop(partition, None)
        return True

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read nothing of them until `resume`."""
        self._consumer.pause([TopicPartition(*p) for p in partitions])

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Go on where `pause` stopped."""
        self._consumer.resume([TopicPartition(*p) for p in partitions])

    # -- what a sink may ask: consumers.sinks.Log, and the runner ---------------------------------

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        """What Kafka knows of these partitions. Raises Unavailable, Systemic.

        Positions that follow from the answer are committed only as long as the partition stays
        ours; what was found before it went and came back is Fenced.
        """
        turns = self._commits.turns(partitions)
        try:
            ids = self._ask_ids({p.topic for p in partitions})
            with self._asking:
                committed = self._asker.committed([TopicPartition(*p) for p in partitions], _ASK_S)
            found = {}
            for p, c in zip(partitions, committed, strict=True):
                if p.topic not in ids:
                    raise Systemic(unknown_topic(p.topic))
                if c.error is not None:
                    raise KafkaException(c.error)
                earliest, latest = self._watermarks(p)
                found[p] = Known(
                    topic_id=ids[p.topic],
                    earliest=earliest,
                    latest=latest,
                    committed=c.offset if c.offset >= 0 else None,
                    note=c.metadata or "",
                )
        except (KafkaException, TopicError) as error:
            raise Unavailable(f"Kafka does not say where to go on: {text(error)}") from error
        self._ids.update({p: k.topic_id for p, k in found.items()})
        self._commits.found(turns)
        return found

    def _watermarks(self, partition: Partition) -> tuple[int, int]:
        with self._asking:
            found: tuple[int, int] = self._asker.get_watermark_offsets(
                TopicPartition(*partition), timeout=_ASK_S
            )
        return found

    def latest(self, partition: Partition) -> int:
        """The end of the partition as of the last fetch, -1 if not yet known; does not block."""
        _low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return int(high)

    def all_ends(self) -> dict[Partition, int]:
        """The end of every partition of our topics, asked now. Raises Unavailable, Systemic."""
        try:
            with self._asking:
                listed = self._asker.list_topics(timeout=_ASK_S).topics
            for topic in self._topics:
                if topic not in listed:
                    raise Systemic(unknown_topic(topic))
            return {
                (p := Partition(topic, number)): self._watermarks(p)[1]
                for topic in self._topics
                for number in listed[topic].partitions
            }
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {text(error)}") from error

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The group's committed positions, whoever owns them; -1 where there is none."""
        asked = [TopicPartition(*p) for p in partitions]
        try:
            with self._asking:
                answer = self._asker.committed(asked, _ASK_S)
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {text(error)}") from error
        return {Partition(c.topic, c.partition): max(c.offset, -1) for c in answer}

    def unchanged(self, partitions: Collection[Partition]) -> None:
        """The topics are those that they were when the partitions were last placed by `known`.

        What was read before this returns is then of that topic, too: ids do not come back. Raises
        Fenced when it has been deleted since, whether or not it was made anew; Unavailable.
        """
        try:
            now = self._ask_ids({p.topic for p in partitions})
        except TopicError as error:
            raise Unavailable(str(error)) from error
        for partition in partitions:
            if now.get(partition.topic) != self._ids.get(partition):
                raise Fenced(f"the topic {partition.topic} was deleted")

    def topic_id(self, partition: Partition) -> str:
        """The id of the partition's topic as `known` last saw it."""
        return self._ids[partition]

    def commit(self, positions: Mapping[Partition, int], note: str = "") -> None:
        """Commit positions with metadata, durably; from any thread. Raises Fenced, Unavailable.

        When it raises, the commit is not under way any more.
        """
        self._commits.commit(positions, note)

    def report(self, positions: Mapping[Partition, int]) -> None:
        """Commit positions in the background, for others to see; from any thread, never raises."""
        self._commits.report(positions)

    def serve(self) -> None:
        """Do what other threads have queued; for the polling thread, also within callbacks."""
        self._commits.serve(self._consumer)

    def read(self, partition: Partition, span: Span) -> list[Message]:
        """The records of a span that are still there. Raises Unavailable."""
        return read_span(self._kafka, partition, span)

    def close(self) -> None:
        """Leave the group."""
        self.serve()
        self._consumer.close()
        self._asker.close()
