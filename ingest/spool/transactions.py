"""Kafka's side of a spool: records, their entry in the ledger and the position in one transaction.

The position of a spool is the offset of a group in a topic of one partition that holds nothing, the
*marker* (the idea of KIP-618, where Kafka Connect keeps a source's position). Group and
transactional id are named after the node. So Kafka commits both or neither, and whoever comes up
under the same node fences the one before.

What can go wrong, as three exceptions, because each has another answer:

    Aborted   nothing of the transaction counts; the same batch again
    Broken    this producer is of no use any more, or nobody knows whether the transaction counts:
              open() again, which settles it, and ask for the position
    Fenced    another producer has this node's id. Or the coordinator gave up on a transaction of
              ours that took too long: the answer is the same, and look() tells them apart

A time-out of commit is never followed by abort: the commit may be under way (KAFKA-17754).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from ingest.committed import committed
from ingest.settings import SettingError, Settings, refused
from ingest.spool.batch import Batch
from ingest.spool.entry import EDGE, RelayEntry
from ingest.spool.patience import Hung, within
from ingest.topics import TopicError, ensure

__all__ = [
    "FRAMING_BYTES", "MARKER", "Aborted", "Broken", "Committed", "Fenced", "TransactionalProducer",
    "Transactions", "ids_of",
]  # fmt: skip

MARKER = "headrace_spool"
# What message.max.bytes must hold beside a record's value and key. librdkafka adds 36 bytes; a
# broker counts the batch's header too, against a topic's max.message.bytes.
FRAMING_BYTES = 1024
# librdkafka's own default, and the largest that it takes.
_MESSAGE_BYTES, _LARGEST_MESSAGE_BYTES = 1_000_000, 1_000_000_000
_BATCH_BYTES = 1_000_000
# A dead node's open transaction holds back every read_committed reader for so long, in ms.
_TRANSACTION_MS = 10_000
# One call into librdkafka, so that stop is heard; what is not done by then is called again.
_CALL_S = 2.0
# How long commit or abort may take, in all, before a new producer settles it.
_SETTLE_S = 30.0
# When a call that has not heard of its time-out is left alone: the coordinator has given up, too.
_HUNG_S = _TRANSACTION_MS / 1000

_FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}
_ACLS = {
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "WRITE on the transactional id {}",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on the consumer group {}",
    # It does not say which of them.
    KafkaError.TOPIC_AUTHORIZATION_FAILED: (
        f"WRITE on the streams' topics and on {EDGE}, and READ on {MARKER}"
    ),
}
# A Publisher's own settings that a transactional producer must not have.
_DROPPED = {
    "delivery.timeout.ms", "message.timeout.ms", "transactional.id", "enable.gapless.guarantee",
    "delivery.report.only.error",
}  # fmt: skip


class Aborted(Exception):
    """Nothing of this transaction counts; try the same records again."""


class Broken(Exception):
    """A new producer is needed, and the position is to be asked for."""


class Fenced(Exception):
    """Another producer has the id, or a transaction of ours took too long."""


class Committed(NamedTuple):
    """The position in Kafka, and the note that was committed with it."""

    position: int
    note: str


class TransactionalProducer(Protocol):
    """What a relay needs of Kafka. All calls raise Broken and Fenced, commit also Aborted."""

    def open(self) -> Committed | None:
        """Fence whoever was there, settle its transaction; the position, None without one.

        Waits for Kafka only so long that the caller can look whether it is to stop: Broken.
        """
        ...

    def look(self) -> Committed | None:
        """The position, fencing nobody."""
        ...

    def send(self, batch: Batch, stored: int) -> None:
        """Begin a transaction, queue the records and their entry; they are on their way then.

        `stored` is the spool's next number. A batch without records has its entry all the same.
        Raises Aborted, too.
        """
        ...

    def commit(self, position: int, note: str) -> None:
        """Commit what was sent, and the position with it. Without send: the position alone."""
        ...

    def close(self) -> None:
        """Let go; what is not committed does not count."""
        ...


def ids_of(node: str) -> str:
    """Transactional id and group of a node."""
    return f"headrace-spool-{node}"


class Transactions:
    """The TransactionalProducer of a real Kafka.

    `kafka` is librdkafka's settings. Raises SettingError.
    """

    def __init__(
        self,
        kafka: Settings,
        node: str,
        *,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kafka = {k: v for k, v in kafka.items() if k not in _DROPPED}
        self._node = node
        self._id = ids_of(node)
        self._stopping = stopping
        self._producer: Producer | None = None
        self._begun = False
        # Whether each record has a report. The commit says that one failed, but not which and why:
        # then they are watched. A report takes the interpreter's lock, for each record.
        self._watching = False
        self._topics_are_there = False
        self._group: Any = None
        self._failure: KafkaError | None = None
        self._trouble = ""

    def open(self) -> Committed | None:
        """See TransactionalProducer."""
        self.close()
        self._producer = self._make_producer()
        self._retrying(self._producer.init_transactions, "to begin")
        if not self._topics_are_there:
            try:
                ensure(self._kafka, {MARKER: 1, EDGE: 1})
            except TopicError as error:
                raise Broken(str(error)) from error
            self._topics_are_there = True
        return self.look()

    def look(self) -> Committed | None:
        """See TransactionalProducer.

        Waits for a transaction that is being committed (read_committed).
        """
        consumer = Consumer(
            {
                "log_level": 2,
                # All of it may be needed to connect. What is a producer's it passes over; but that
                # one must not be too small for its fetches, of which there are none.
                **{k: v for k, v in self._kafka.items() if k != "receive.message.max.bytes"},
                "group.id": self._id,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        try:
            (found,) = committed(consumer, [TopicPartition(MARKER, 0)], 10.0)
            self._group = consumer.consumer_group_metadata()
        except KafkaException as error:
            why: KafkaError = error.args[0]
            raise Broken(f"the position can't be read: {why.str()}{self._needed(why)}") from error
        finally:
            consumer.close()
        return Committed(found.offset, found.metadata or "") if found.offset >= 0 else None

    def send(self, batch: Batch, stored: int) -> None:
        """See TransactionalProducer."""
        producer = self._begin()
        hour = _hour()
        entry = RelayEntry(self._node, batch.first, batch.end, stored, hour, batch.sums)
        # First, so that its partition joins the transaction together with theirs: a request for
        # itself costs a transaction 2 ms. Order matters only within a topic.
        self._queue(producer, EDGE, [{"value": entry.pack(), "key": self._node}])
        for topic, rows in batch.rows.items():
            self._queue(producer, topic, rows)
        if _hour() != hour:
            # librdkafka has dated them while they were queued, some in this hour, some in that.
            self._abort()
            raise Aborted("an hour ended while they were sent")

    def commit(self, position: int, note: str) -> None:
        """See TransactionalProducer."""
        producer = self._begin()
        place = TopicPartition(MARKER, 0, position, note)
        group = self._group
        try:
            self._retrying(
                lambda timeout: within(
                    _HUNG_S,
                    lambda: producer.send_offsets_to_transaction([place], group, timeout),
                    self._stopping,
                ),
                "to take the position",
            )
        except Hung as hung:
            raise Broken(f"Kafka does not take the position: {hung}") from hung
        self._retrying(producer.commit_transaction, "to commit")
        self._begun = self._watching = False

    def close(self) -> None:
        """See TransactionalProducer."""
        producer, self._producer, self._begun = self._producer, None, False
        if producer is not None:
            with contextlib.suppress(KafkaException):
                producer.purge()
                producer.poll(0)

    # -- inside

    def _queue(self, producer: Producer, topic: str, rows: list[dict[str, Any]]) -> None:
        # The audit reads one partition of entries: somebody may have made the topic with more.
        partition = 0 if topic == EDGE else -1
        while rows:
            queued = (
                producer.produce_batch(topic, rows, partition, self._report)
                if self._watching
                else producer.produce_batch(topic, rows, partition)
            )
            if queued == len(rows):
                break
            rows = [row for row in rows if self._not_queued(topic, row)]
            producer.poll(0.1)

    def _make_producer(self) -> Producer:
        most = self._bytes("message.max.bytes", _MESSAGE_BYTES)
        try:
            return Producer(
                {
                    "compression.type": "lz4",
                    "partitioner": "murmur2_random",
                    "linger.ms": 5,
                    "queue.buffering.max.messages": 100_000,
                    "queue.buffering.max.kbytes": 65_536,
                    "topic.metadata.propagation.max.ms": 10_000,
                    # What an id that is refused makes it print, it prints with each attempt.
                    "log_level": 0,
                    **self._kafka,
                    # A record that was taken without room for its framing goes out all the same, by
                    # itself; batches are as large as ever.
                    "message.max.bytes": min(most + FRAMING_BYTES, _LARGEST_MESSAGE_BYTES),
                    "batch.size": min(most, self._bytes("batch.size", _BATCH_BYTES)),
                    "transactional.id": self._id,
                    "transaction.timeout.ms": _TRANSACTION_MS,
                    "delivery.report.only.error": True,
                    "error_cb": self._on_error,
                }
            )
        except KafkaException as error:
            raise refused(error) from error

    def _bytes(self, name: str, default: int) -> int:
        value = self._kafka.get(name, default)
        try:
            return int(value)
        except (TypeError, ValueError):
            raise SettingError(f"{name} = {value!r} must be a whole number of bytes") from None

    def _begin(self) -> Producer:
        producer = self._producer
        if producer is None:
            raise Broken("there is no producer")
        if not self._begun:
            self._failure = None
            self._retrying(lambda _timeout: producer.begin_transaction(), "to begin")
            self._begun = True
        return producer

    def _retrying(self, call: Callable[[float], Any], what: str) -> None:
        """Call until it succeeds, or says what the answer is."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            try:
                call(_CALL_S)
            except KafkaException as raised:
                error: KafkaError = raised.args[0]
                if error.code() in _FENCED:
                    raise Fenced(error.str()) from raised
                if error.txn_requires_abort():
                    self._abort()
                    raise Aborted(self._reason(error)) from raised
                if error.fatal() or not error.retriable():
                    raise Broken(self._reason(error)) from raised
                if self._stopping() or time.monotonic() > deadline:
                    raise Broken(f"Kafka takes too long {what}: {self._reason(error)}") from raised
            else:
                return

    def _abort(self) -> None:
        """Abort, or raise Broken where that can't be done soon."""
        self._begun, self._watching = False, True
        producer = self._producer
        if producer is not None:
            # Its time-outs are retriable, and here they need no second attempt: open() does it.
            try:
                producer.abort_transaction(_CALL_S)
            except KafkaException as raised:
                if raised.args[0].code() in _FENCED:
                    raise Fenced(raised.args[0].str()) from raised
                raise Broken(f"could not abort: {self._reason(raised.args[0])}") from raised

    def _report(self, error: KafkaError | None, message: Any) -> None:
        if error is not None and (
            self._failure is None or self._failure.code() == KafkaError._PURGE_QUEUE
        ):
            self._failure = error
            if error.code() != KafkaError._PURGE_QUEUE:  # which is of another's failure
                self._trouble = f"{error.str()} (topic {message.topic()!r})"

    def _not_queued(self, topic: str, row: dict[str, Any]) -> bool:
        error: KafkaError | None = row.pop("_error", None)
        if error is None:
            return False
        if error.code() != KafkaError._QUEUE_FULL:
            self._abort()
            raise Aborted(f"{error.str()} (topic {topic!r})")
        return True

    def _on_error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error.str()

    def _reason(self, error: KafkaError) -> str:
        """What librdkafka says, and what it said before that explains it."""
        if self._producer is not None:
            try:
                self._producer.poll(0)
            except KafkaException as fatal:  # the client raises that, once, from any call
                error = fatal.args[0]
        trouble = f" ({self._trouble})" if self._trouble else ""
        return f"{error.str()}{trouble}{self._needed(error)}"

    def _needed(self, error: KafkaError) -> str:
        """The ACL that is missing, if one is."""
        acl = _ACLS.get(error.code())
        return "" if acl is None else f"; this needs {acl.format(self._id)}"


def _hour() -> int:
    return int(time.time() // 3600)
