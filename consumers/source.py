"""Where records come from: a consumer group.

`GroupSource` hides four of librdkafka's habits from the run loop:
- Callbacks must never raise (the messages of that call would be lost): what a listener raises is
  kept, and raised by the next `poll`.
- A partition that has just been given to us is not read until `seek` says from where: positions
  belong to the sink, not to the group. Until then it is paused.
- While one thread is in `consume()`, every other call on the same Consumer waits. So the group's
  member is used by the polling thread only: `commit` and `report` queue for it, to be served by
  `poll` and `serve`; questions go through a second client that never joins.
- `consume()` returns errors and ends of partitions among the messages; `poll` sorts them out.

It joins with `group.protocol=consumer` (KIP-848: only the partitions that move stop) and, where the
broker has no such thing, with the classic protocol and cooperative-sticky assignment.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from consumers.batch import Partition, Span
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.sinks import Known, Log
from ingest.topics import TopicError, topic_ids

__all__ = ["GroupSource", "Listener", "Source"]

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

_OWNERSHIP_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._FENCED,
}
_NOT_SUPPORTED = {KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "READ on the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "access to the cluster",
    KafkaError.SASL_AUTHENTICATION_FAILED: "a valid user and password (sasl.username, …)",
    KafkaError._AUTHENTICATION: "a valid user and password (sasl.username, …)",
}

_OUT_OF_REACH = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}
# librdkafka tells of a broker that is away at each attempt, every 10 s at most: how long after the
# last word Kafka counts as away, and how often that is worth a line, in seconds.
_AWAY_S = 15.0
_AWAY_LINE_EVERY_S = 30.0
# librdkafka's own lines on stderr would break up JSON logs; what matters comes through error_cb.
_QUIET = {"log_level": 2}

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
    def latest(self, partition: Partition) -> int: ...
    def all_ends(self) -> dict[Partition, int]: ...
    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """Positions to commit; `done` is None when nobody waits for it."""

    positions: Mapping[Partition, int]
    note: str
    done: Future[None] | None


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
        self._ids: dict[str, str] = {}
        # Partition -> offset at which its end was seen; cleared when a record follows.
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        # Kafka asks of a commit only whether the member is in the group, not whether the partition
        # is its own.
        self._owned: set[Partition] = set()
        # On the monotonic clock: when Kafka was last heard to be out of reach, and when we said so.
        self._away_at = self._said_away_at = float("-inf")
        self._settings: dict[str, object] = {
            **TUNING,
            **_QUIET,
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
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._asker = Consumer({**_QUIET, **kafka, "group.id": group, "enable.auto.commit": False})

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
        self._owned.update(given)
        self._listener.on_assigned(given)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = self._forget(partitions)
        try:
            self._listener.on_revoked(gone)
        finally:
            self._owned.difference_update(gone)
            consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = self._forget(partitions)
        self._owned.difference_update(gone)
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
        if code in _NOT_SUPPORTED and self._settings["group.protocol"] == "consumer":
            log.warning("the broker has no group.protocol=consumer; joining with classic")
            self._settings["group.protocol"] = "classic"
            self._consumer.close()
            self._consumer = self._join()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if message.topic() is not None:
                self.replace.add(Partition(message.topic(), message.partition()))
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise Systemic(unknown_topic(str(message.topic())))
        elif code in _DENIED:
            raise Systemic(f"Kafka refuses: {error.str()}. This needs {_DENIED[code]}.")
        elif error.fatal():
            raise Systemic(f"Kafka's client can't go on: {error.str()}")
        else:
            log.warning("Kafka: %s", error.str())

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in _DENIED:
            self._raised = self._raised or Systemic(
                f"Kafka refuses: {error.str()}. This needs {_DENIED[error.code()]}."
            )
        elif error.code() in _OUT_OF_REACH:
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
            self._consumer.seek(where)
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
        """What Kafka knows of these partitions. Raises Unavailable, Systemic."""
        try:
            self._ids.update(topic_ids(self._kafka, {p.topic for p in partitions}))
            with self._asking:
                committed = self._asker.committed([TopicPartition(*p) for p in partitions], _ASK_S)
            found = {}
            for p, c in zip(partitions, committed, strict=True):
                if p.topic not in self._ids:
                    raise Systemic(unknown_topic(p.topic))
                if c.error is not None:
                    raise KafkaException(c.error)
                earliest, latest = self._watermarks(p)
                found[p] = Known(
                    topic_id=self._ids[p.topic],
                    earliest=earliest,
                    latest=latest,
                    committed=c.offset if c.offset >= 0 else None,
                    note=c.metadata or "",
                )
        except (KafkaException, TopicError) as error:
            raise Unavailable(f"Kafka does not say where to go on: {_text(error)}") from error
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
            raise Unavailable(f"Kafka does not answer: {_text(error)}") from error

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The group's committed positions, whoever owns them; -1 where there is none."""
        asked = [TopicPartition(*p) for p in partitions]
        try:
            with self._asking:
                answer = self._asker.committed(asked, _ASK_S)
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {_text(error)}") from error
        return {Partition(c.topic, c.partition): max(c.offset, -1) for c in answer}

    def topic_id(self, topic: str) -> str:
        """The topic's id as `known` last saw it."""
        return self._ids[topic]

    def commit(self, positions: Mapping[Partition, int], note: str = "") -> None:
        """Commit positions with metadata, durably; from any thread. Raises Fenced, Unavailable.

        When it raises, the commit is not under way any more.
        """
        done: Future[None] = Future()
        self._requests.put(_Request(positions, note, done))
        try:
            done.result(_ASK_S)
        except TimeoutError:
            if done.cancel():
                raise Unavailable("the polling thread does not come round to commit") from None
            done.result()

    def report(self, positions: Mapping[Partition, int]) -> None:
        """Commit positions in the background, for others to see; from any thread, never raises."""
        self._requests.put(_Request(positions, "", None))

    def serve(self) -> None:
        """Do what other threads have queued; for the polling thread, also within callbacks."""
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return
            foreign = request.positions.keys() - self._owned
            wanted = [
                TopicPartition(p.topic, p.number, offset, metadata=request.note)
                for p, offset in request.positions.items()
                if p not in foreign
            ]
            if request.done is None:
                try:
                    if wanted:
                        self._consumer.commit(offsets=wanted, asynchronous=True)
                except KafkaException as error:
                    log.debug("positions not reported: %s", _text(error))
            elif request.done.set_running_or_notify_cancel():
                try:
                    if foreign:
                        raise Fenced(f"{next(iter(foreign))} was given back")
                    self._commit(wanted)
                    request.done.set_result(None)
                except (Fenced, Unavailable) as error:
                    request.done.set_exception(error)

    def _commit(self, wanted: list[TopicPartition]) -> None:
        try:
            answer = self._consumer.commit(offsets=wanted, asynchronous=False)
            errors = [c.error for c in answer if c.error is not None]
        except KafkaException as error:
            errors = [error.args[0]]
        if any(error.code() in _OWNERSHIP_LOST for error in errors):
            raise Fenced(f"the group has given the partitions away: {errors[0].str()}")
        if errors:
            raise Unavailable(f"Kafka does not take a commit: {errors[0].str()}")

    def read(self, partition: Partition, span: Span) -> list[Message]:
        """The records of a span that are still there. Raises Unavailable."""
        return read_span(self._kafka, partition, span)

    def close(self) -> None:
        """Leave the group."""
        self.serve()
        self._consumer.close()
        self._asker.close()


def read_span(kafka: Settings, partition: Partition, span: Span) -> list[Message]:
    """Read `[start, end)` of one partition with a consumer of its own."""
    consumer = Consumer(
        {
            **TUNING,
            **_QUIET,
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
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise Unavailable(f"{partition} can't be read: {error.str()}")
                if error is not None or message.offset() >= span.end:
                    return found
                found.append(message)
            if found and found[-1].offset() >= span.end - 1:
                return found
    except KafkaException as error:
        raise Unavailable(f"{partition} can't be read: {_text(error)}") from error
    finally:
        consumer.close()
    raise Unavailable(f"{partition} can't be read up to {span.end}: no answer for a minute")


def unknown_topic(topic: str) -> str:
    """What to say of a topic that does not exist."""
    return (
        f"the topic {topic} does not exist in Kafka; create what is missing with `headrace migrate`"
    )


def _text(error: Exception) -> str:
    if isinstance(error, KafkaException):
        return str(error.args[0].str())
    return str(error)
