"""A consumer group as a source.

`GroupSource` hides seven of librdkafka's habits from the run loop:
- Callbacks must never raise (the messages of that call would be lost): what a listener raises is
  kept, and raised by the next `poll`.
- A partition that has just been given to us is not read until `seek` says from where: positions
  belong to the sink, not to the group. Until then it is paused.
- While one thread is in `consume()`, every other call on the same Consumer waits. So the group's
  member is used by the polling thread only: `commit` and `report` queue for it, to be served by
  `poll` and `serve` (commits.py); questions go through a second client (lookup.py).
- `consume()` returns errors and ends of partitions among the messages; `poll` sorts them out.
- A partition whose next offset Kafka has removed is not fetched any more, wherever one seeks:
  `seek` gives it to the client anew.
- A rebalance that is served within `close()` may wait for its answer for ever, and hold the
  interpreter's lock (librdkafka 4527 and 4884): we leave the group first, and close then.
- It may lose touch with its group, or with Kafka, for good (membership.py): we leave the group and
  join it anew.

It joins with `group.protocol=consumer` (KIP-848: only the partitions that move stop) and, where the
broker has no such thing, with the classic protocol and cooperative-sticky assignment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.batch import Partition, Span
from consumers.client import (
    DENIED,
    NOT_SUPPORTED,
    OUT_OF_REACH,
    QUIET,
    TUNING,
    Reach,
    Settings,
    denied,
    read_span,
    unknown_topic,
)
from consumers.commits import Commits
from consumers.errors import Systemic
from consumers.fetch import by_partition
from consumers.lookup import Lookup
from consumers.membership import EVERY_S, Membership
from consumers.sinks import Known, Notes
from consumers.source import Listener, Runs

__all__ = ["GroupSource"]

log = logging.getLogger(__name__)

# What is final for librdkafka, but not for us (membership.py); its own code is `_FATAL`.
_PASSING = [KafkaError(c).str() for c in (KafkaError.GROUP_ID_NOT_FOUND, KafkaError.UNKNOWN)]
# How long a member is kept at least, in seconds.
_KEPT_S = 1.0
# How long giving everything back may take before we close all the same, in seconds.
_LEAVE_S = 5.0


class GroupSource:
    """The partitions that a group gives to this process; what a method does, Source says."""

    def __init__(
        self,
        kafka: Settings,
        group: str,
        topics: Sequence[str],
        listener: Listener,
    ) -> None:
        self._kafka = dict(kafka)
        self._group = group
        self._topics = list(topics)
        self._topic = topics[0] if len(topics) == 1 else None
        self._listener = listener
        self._raised: BaseException | None = None
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        self._commits = Commits()
        self._lookup = Lookup(kafka, group, topics)
        self._reach = Reach()
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
            "statistics.interval.ms": int(EVERY_S * 1000),
            "stats_cb": self._on_statistics,
        }
        self._consumer = self._join()

    @property
    def _classic(self) -> bool:
        return self._settings["group.protocol"] == "classic"

    def _join(self) -> Consumer:
        if self._classic:
            self._settings.setdefault("partition.assignment.strategy", "cooperative-sticky")
        self._joined_at = time.monotonic()
        self._membership = Membership(said_once=not self._classic)
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
        self._membership.fenced()
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

    def _join_anew(self) -> None:
        log.warning("%s: leaving the group, and joining anew", self._membership.trouble)
        self._leave()
        self._consumer.close()
        self._consumer = self._join()

    # -- reading ---------------------------------------------------------------------------------

    def poll(self, n: int, timeout_s: float) -> Runs:
        self.serve()
        if self._membership.trouble and time.monotonic() - self._joined_at > _KEPT_S:
            self._join_anew()
        messages: list[Message] = self._consumer.consume(n, timeout_s)
        if messages:
            self._reach.heard()
        if self._raised is not None:
            raise self._raised
        if any(map(Message.error, messages)):
            messages = self._good(messages)
        return by_partition(messages, self._topic)

    def _good(self, messages: Sequence[Message]) -> list[Message]:
        """The records among them."""
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
        if code in NOT_SUPPORTED and not self._classic:
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
            raise denied(error, str(message.topic()), group=self._group)
        # What comes as a message does not carry the flag.
        elif code == KafkaError._FATAL or error.fatal():
            if not any(passing in error.str() for passing in _PASSING):
                raise Systemic(f"Kafka's client can't go on: {error.str()}")
            self._membership.ended(f"Kafka's client can't go on ({error.str()})")
        else:
            log.warning("Kafka: %s", error.str())

    def _on_statistics(self, statistics: str) -> None:
        self._membership.told(statistics)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in DENIED:
            self._raised = self._raised or denied(error, group=self._group)
        elif error.code() in OUT_OF_REACH:
            self._reach.lost(error)
        else:
            log.warning("Kafka: %s", error.str())

    @property
    def away(self) -> bool:
        return self._reach.away

    def seek(self, partition: Partition, offset: int) -> bool:
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
        self._consumer.pause([TopicPartition(*p) for p in partitions])

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._consumer.resume([TopicPartition(*p) for p in partitions])

    def latest(self, partition: Partition) -> int:
        _low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return int(high)

    # -- from any thread: commits, and questions ---------------------------------------------------

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        self._commits.commit(positions, notes)

    def report(self, positions: Mapping[Partition, int]) -> None:
        self._commits.report(positions)

    def read(self, partition: Partition, span: Span) -> list[Message]:
        return read_span(self._kafka, partition, span)

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        turns = self._commits.turns(partitions)
        found = self._lookup.known(partitions)
        self._commits.found(turns)
        return found

    def topic_id(self, partition: Partition) -> str:
        return self._lookup.topic_id(partition)

    def unchanged(self, partitions: Collection[Partition]) -> None:
        self._lookup.unchanged(partitions)

    def all_ends(self) -> dict[Partition, int]:
        return self._lookup.all_ends()

    def owned(self) -> set[Partition]:
        return self._commits.owned()

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return self._lookup.committed(partitions)

    # -- for the polling thread --------------------------------------------------------------------

    def serve(self) -> None:
        self._commits.serve(self._consumer)

    def close(self) -> None:
        """Leave the group."""
        self.serve()
        self._leave()
        self._consumer.close()
        self._lookup.close()

    def _leave(self) -> None:
        """Give everything back, also what was given to us and is not yet known here."""
        deadline = time.monotonic() + _LEAVE_S
        with suppress(KafkaException):  # of one that has failed for good
            self._consumer.unsubscribe()
            while time.monotonic() < deadline:
                self._consumer.consume(1, 0.02)
                if not self._consumer.assignment():
                    break
