"""What is in Kafka, counted once: totals and how far they go, in the compacted topic `headrace_ledger`.

    key    ["total", topic, topic id, partition, hour]     value  [records, hash]
    key    ["read", topic, topic id, partition]            value  [next offset, since when, in µs, last record, its epoch]

and beside them whatever else an audit keeps (`kept`, `keep`): edge.py's records.
Records of one transaction change together. One process counts at a time: whoever opens the book fences
the one before, and reads what that has committed.
"""  # noqa: E501

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer

from consumers.batch import Partition, Span
from consumers.bounds import bounds, read
from consumers.client import QUIET, Settings, text
from consumers.errors import Systemic, Unavailable
from consumers.ledger.scan import epochs, marks, scan
from consumers.ledger.tally import NOTHING, Bucket, Sum, entries_of
from consumers.ledger.truncated import Overwritten, Truncated
from ingest.streams import Stream
from ingest.topics import TopicError, ensure, topic_ids

__all__ = ["EDGE_KINDS", "Book", "Key", "Overtaken", "Read"]

_TOPIC = "headrace_ledger"
# Kafka compacts only segments that are full, of 1 GiB by default: an audit a minute of a thousand
# partitions writes four million records a day, and who opens the book reads all that there are.
# Confluent Cloud takes no less than 50 MiB, and MSK Serverless none.
_BETTER = [{"segment.bytes": str(n * 1024 * 1024)} for n in (1, 50)]
# Of edge.py.
EDGE_KINDS = frozenset({"sent", "entered", "crossed", "node", "gap", "heard"})
_PATIENCE_S = 30.0
# A transaction holds what so many records have changed.
_COMMIT_EVERY = 500_000

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
}


class Overtaken(Unavailable):
    """Another process has opened the book since; what is in this one is behind."""


class Read(NamedTuple):
    """How far a partition is counted; hours that began before `since_us` may lack records.

    The last record of it, and the epoch of the leader that took it; -1 where that is not known.
    """

    next: int
    since_us: int
    last_offset: int = -1
    last_epoch: int = -1


# What a record of the book is about: the rest of its key behind its kind.
Key = tuple[str | int, ...]


class Book:
    """Opening it makes the topic, and ends whoever has it open. Raises Unavailable, Systemic."""

    def __init__(self, kafka: Settings) -> None:
        self._kafka = kafka
        self._totals: dict[str, dict[Bucket, Sum]] = {}
        self._read: dict[str, dict[Partition, Read]] = {}
        self._kept: dict[str, dict[Key, Sequence[int]]] = {}
        # One for all of its hours, of which there are many: a third of the memory.
        self._partitions: dict[tuple[str, int], Partition] = {}
        try:
            ensure(kafka, {_TOPIC: 1}, {"cleanup.policy": "compact"}, better=_BETTER)
            self._id = topic_ids(kafka, [_TOPIC]).get(_TOPIC)
        except TopicError as error:
            raise Unavailable(str(error)) from error
        self._producer = Producer(
            {
                **QUIET,
                "compression.type": "lz4",
                **kafka,
                "transactional.id": "headrace-ledger",
                "transaction.timeout.ms": 10_000,
                "delivery.timeout.ms": 10_000,
            }
        )
        try:
            self._producer.init_transactions(_PATIENCE_S)
            self._load()
        except KafkaException as error:
            raise _explained(error) from error

    def stands(self) -> bool:
        """Whether its topic is the one that was read. Raises TopicError.

        Whether somebody else has gone on in it shows with the next record that is put there.
        """
        return topic_ids(self._kafka, [_TOPIC]).get(_TOPIC) == self._id

    def totals(self, topic_id: str) -> Mapping[Bucket, Sum]:
        """What has been accepted, as far as it is counted."""
        return self._totals.get(topic_id, {})

    def read(self, topic_id: str) -> Mapping[Partition, Read]:
        """How far that is."""
        return self._read.get(topic_id, {})

    def count(self, stream: Stream, topic_id: str) -> dict[Partition, Span]:
        """Count on to the end; answers what retention removed before it was counted.

        Raises Unavailable, Systemic, Truncated.
        """
        spans, lost = {}, {}
        moved: dict[Partition, Read] = {}
        there = marks(self._kafka, stream.topic)
        for partition, (low, high) in there.items():
            at = self.read(topic_id).get(partition)
            if at is not None and at.next > high:
                raise Truncated(partition, at.next, high)
            start = low if at is None else max(at.next, low)
            if at is not None and at.next < low:
                lost[partition] = Span(at.next, low)
            spans[partition] = Span(start, max(start, high))
            if start == high > 0 and (at is None or at.next < low):
                # Nothing is left that could say since when: all that there was has expired by now.
                moved[partition] = Read(low, _since_us(low, -1))
        changed: dict[Bucket, Sum] = {}
        records = 0
        for batch, first_ms, last in scan(self._kafka, stream, spans):
            for bucket, entry in entries_of(batch).items():
                changed[bucket] = changed.get(bucket, NOTHING).plus(entry.settled)
                records += entry.settled.records
            for partition, span in batch.spans.items():
                read = moved.get(partition) or self.read(topic_id).get(partition)
                if read is None or read.next < span.start:
                    read = Read(span.start, _since_us(span.start, first_ms))
                if last.offset >= 0:
                    read = read._replace(last_offset=last.offset, last_epoch=last.epoch)
                moved[partition] = read._replace(next=span.end)
            if records >= _COMMIT_EVERY:
                self._stand(topic_id, there, moved)
                self._commit(topic_id, changed, moved)
                changed, moved, records = {}, {}, 0
        self._stand(topic_id, there, moved)
        self._commit(topic_id, changed, moved)
        return lost

    def kept(self, kind: str) -> Mapping[Key, Sequence[int]]:
        """What was kept under this kind."""
        return self._kept.get(kind, {})

    def keep(self, changed: Mapping[str, Mapping[Key, Sequence[int]]]) -> None:
        """Put records of some kinds into the book together. Raises Unavailable."""
        self._write(
            [([kind, *key], v) for kind, some in changed.items() for key, v in some.items()]
        )
        for kind, some in changed.items():
            self._kept.setdefault(kind, {}).update(some)

    # -- inside

    def _stand(
        self, topic_id: str, there: Mapping[Partition, Span], moved: Mapping[Partition, Read]
    ) -> None:
        """Ask whether what was counted last is still there, where another leader has written since.

        Only then can it be another record. Raises Overwritten, Unavailable.
        """
        before = self.read(topic_id)
        asked = {
            p: before[p]
            for p, now in moved.items()
            if p in before and there[p].start <= before[p].last_offset
            and 0 <= before[p].last_epoch < now.last_epoch
        }  # fmt: skip
        if not asked:
            return
        topic = next(iter(asked)).topic
        found = epochs(self._kafka, topic, {p.number: one.last_offset for p, one in asked.items()})
        for partition, one in asked.items():
            if found.get(partition.number) != one.last_epoch:
                raise Overwritten(partition, one.next, one.last_offset)

    def _commit(
        self, topic_id: str, changed: Mapping[Bucket, Sum], moved: Mapping[Partition, Read]
    ) -> None:
        """Put sums and positions into the book together."""
        if not moved:
            return
        totals = dict(self._totals.get(topic_id, {}))
        for bucket, one in changed.items():
            totals[bucket] = totals.get(bucket, NOTHING).plus(one)
        records: list[tuple[list[object], Iterable[int]]] = [
            *((["total", b.partition.topic, topic_id, b.partition.number, b.hour], totals[b])
              for b in changed),
            *((["read", p.topic, topic_id, p.number], read) for p, read in moved.items()),
        ]  # fmt: skip
        self._write(records)
        self._totals[topic_id] = totals
        self._read.setdefault(topic_id, {}).update(moved)

    def _write(self, records: Sequence[tuple[Sequence[object], Iterable[int]]]) -> None:
        if not records:
            return
        try:
            self._producer.begin_transaction()
            self._put(records)
            self._producer.commit_transaction(_PATIENCE_S)
        except KafkaException as error:
            raise _explained(self._why(error)) from error

    def _why(self, error: KafkaException) -> KafkaException:
        """What it is that is fatal: `produce` does not say, and the next poll raises it, once."""
        if error.args[0].code() == KafkaError._FATAL:
            try:
                self._producer.poll(0)
            except KafkaException as why:
                return why
        return error

    def _put(self, records: Iterable[tuple[Sequence[object], Iterable[int]]]) -> None:
        for key, value in records:
            while True:
                try:
                    body = orjson.dumps([str(n) for n in value])
                    self._producer.produce(_TOPIC, body, orjson.dumps(key))
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)

    def _load(self) -> None:
        """Read all that is committed."""
        for _, run in read(self._kafka, _TOPIC, bounds(self._kafka, _TOPIC).spans):
            for message in run:
                self._take(message.key() or b"", message.value() or b"")

    def _take(self, key: bytes, value: bytes) -> None:
        try:
            found = [int(n) for n in orjson.loads(value)]
            match orjson.loads(key):
                case ["total", str(topic), str(topic_id), int(number), int(hour)]:
                    partition = self._partitions.setdefault(
                        (topic, number), Partition(topic, number)
                    )
                    self._totals.setdefault(topic_id, {})[Bucket(partition, hour)] = Sum(*found)
                case ["read", str(topic), str(topic_id), int(number)]:
                    self._read.setdefault(topic_id, {})[Partition(topic, number)] = Read(*found)
                case [str(kind), *rest] if kind in EDGE_KINDS:
                    self._kept.setdefault(kind, {})[tuple(rest)] = found
                case _:
                    raise ValueError
        except (ValueError, TypeError) as error:
            raise Systemic(
                f"the topic {_TOPIC} holds a record that is not the audit's: {key[:80]!r}; was it "
                "written by a newer headrace?"
            ) from error


def _since_us(start: int, first_ms: int) -> int:
    """From when on nothing is missing of a partition whose first counted offset is `start`."""
    if start == 0:
        return 0
    return first_ms * 1000 if first_ms >= 0 else time.time_ns() // 1000


def _explained(error: KafkaException) -> Exception:
    if error.args[0].code() in _FENCED:
        return Overtaken(
            "another `headrace audit` has begun to count what is in Kafka, and ended this one's "
            "transaction: one at a time, so try again"
        )
    return Unavailable(f"what is in Kafka can't be counted: {text(error)}")
