"""Reading a topic between two bounds, past any group: for looking, so nothing is committed.

Bounds are offsets. Kafka finds them by the time at which a record was published. It answers -1 for
a time beyond the last record, and -1 is also the live end of the partition: it stands for the end
as it was when it was asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.batch import Partition, Span
from consumers.client import (
    DENIED,
    QUIET,
    TUNING,
    Settings,
    consumed,
    denied,
    text,
    unknown_topic,
    watermarks,
)
from consumers.errors import Systemic, Unavailable
from consumers.fetch import by_partition

__all__ = ["Bounds", "bounds", "firsts", "pieces", "read"]

_ASK_S = 10.0
_PATIENCE_S = 60.0
# Records asked for at once.
_SLICE = 4000
# Offsets that are looked through first for a record, since markers and aborted ones are none.
_FIRST = 1000

_EXPIRED = "retention removed records of {} while they were read: run it again"


class _Expired(Unavailable):
    """Retention has removed the beginning of what was to be read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What to read, by the partition's number."""

    spans: dict[int, Span]
    # Partitions of which the beginning is no longer in Kafka: older records may have been there.
    cut: tuple[int, ...]


def bounds(
    kafka: Settings,
    topic: str,
    begin_ms: int | None = None,
    end_ms: int | None = None,
    *,
    uncommitted: bool = False,
) -> Bounds:
    """From the first record published at `begin_ms` or later to before the first at `end_ms`.

    Without them from the beginning, and to what is the end now: where the first transaction that
    is open begins, or with `uncommitted` behind all of them. Raises Unavailable, Systemic.
    """
    level = "read_uncommitted" if uncommitted else "read_committed"
    consumer = Consumer({**TUNING, **QUIET, **kafka, **_ALONE, "isolation.level": level})
    try:
        listed = consumer.list_topics(topic, _ASK_S).topics[topic]
        if listed.error is not None and listed.error.code() in DENIED:
            raise denied(listed.error, topic, act="DESCRIBE")
        if listed.error is not None or not listed.partitions:
            raise Systemic(unknown_topic(topic))
        numbers = sorted(listed.partitions)
        # Asked for first: what is written from now on is no part of it.
        found = watermarks(consumer, [Partition(topic, n) for n in numbers], _ASK_S)
        marks = {n: found[Partition(topic, n)] for n in numbers}
        starts = {n: low for n, (low, _) in marks.items()}
        ends = {n: high for n, (_, high) in marks.items()}
        if begin_ms is not None:
            starts = _at(consumer, topic, marks, begin_ms)
        if end_ms is not None:
            ends = _at(consumer, topic, marks, end_ms)
    except KafkaException as error:
        raise Unavailable(f"Kafka does not say where {topic} is read: {text(error)}") from error
    finally:
        consumer.close()
    spans = {n: Span(starts[n], max(starts[n], ends[n])) for n in numbers}
    cut = tuple(n for n, (low, _) in marks.items() if low > 0 and starts[n] == low)
    return Bounds(spans, cut)


def read(
    kafka: Settings, topic: str, spans: Mapping[int, Span]
) -> Iterator[tuple[Partition, list[Message]]]:
    """The committed records of these spans, in order for each partition.

    Raises Unavailable, Systemic.
    """
    for partition, run, _ in pieces(kafka, topic, spans):
        if run:
            yield partition, run


def firsts(kafka: Settings, topic: str, spans: Mapping[int, Span]) -> dict[int, int]:
    """When the first record of each span was published (Unix ms), where there is one.

    Of one whose beginning Kafka has removed, the first that is left. Raises Unavailable.
    """
    found: dict[int, int] = {}
    left, size = {n: span for n, span in spans.items() if span.start < span.end}, _FIRST
    while left:
        pieces = {n: Span(start, min(start + size, end)) for n, (start, end) in left.items()}
        try:
            for partition, run in read(kafka, topic, pieces):
                found.setdefault(partition.number, int(run[0].timestamp()[1]))
        except _Expired:
            there = _within(left.keys() - found.keys(), left, bounds(kafka, topic).spans)
            if there == left:
                raise
            left = there
            continue
        left = {
            n: Span(pieces[n].end, end)
            for n, (_, end) in left.items()
            if n not in found and pieces[n].end < end
        }
        size *= 10
    return found


def _within(
    numbers: Iterable[int], spans: Mapping[int, Span], there: Mapping[int, Span]
) -> dict[int, Span]:
    """What of these partitions' spans Kafka has, where it has any of it."""
    found = {
        n: Span(max(spans[n].start, there[n].start), min(spans[n].end, there[n].end))
        for n in numbers
        if n in there
    }
    return {n: span for n, span in found.items() if span.start < span.end}


def pieces(
    kafka: Settings, topic: str, spans: Mapping[int, Span]
) -> Iterator[tuple[Partition, list[Message], Span]]:
    """The same, each with the offsets that it covers, markers of transactions included.

    A transaction that is still open ends a partition early, where it begins. Raises Unavailable,
    also where retention has removed what is to be read: nothing is left out in silence.
    """
    left = {Partition(topic, n): s for n, s in spans.items() if s.start < s.end}
    if not left:
        return
    consumer = _alone(kafka)
    try:
        consumer.assign([TopicPartition(*p, span.start) for p, span in left.items()])
        deadline = time.monotonic() + _PATIENCE_S
        while left:
            if messages := consumed(consumer, _SLICE, 0.1):
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise Unavailable(f"{topic} can't be read: no answer for a minute")
            for partition, run in by_partition(messages, topic).items():
                span = left.get(partition)
                if span is None:
                    continue
                good = _good(run)
                at_its_end = run[-1].error() is not None
                behind = int(run[-1].offset() or 0) + (0 if at_its_end else 1)
                covered = Span(span.start, min(behind, span.end))
                if covered.start < covered.end:
                    yield partition, [m for m in good if int(m.offset() or 0) < span.end], covered
                if at_its_end or covered.end == span.end:
                    del left[partition]
                    consumer.pause([TopicPartition(*partition)])
                else:
                    left[partition] = Span(covered.end, span.end)
    except KafkaException as error:
        raise _unread(topic, error) from error
    finally:
        consumer.close()


def _unread(topic: str, error: KafkaException) -> Exception:
    """What to raise for what ends the reading."""
    code = error.args[0].code()
    if code == KafkaError._AUTO_OFFSET_RESET:
        return _Expired(_EXPIRED.format(topic))
    if code in DENIED:
        return denied(error.args[0], topic)
    return Unavailable(f"{topic} can't be read: {text(error)}")


def _good(run: Sequence[Message]) -> list[Message]:
    """The records among them. Raises KafkaException for what is neither record nor end."""
    good = []
    for message in run:
        error = message.error()
        if error is None:
            good.append(message)
        elif error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    return good


def _alone(kafka: Settings) -> Consumer:
    """A consumer that is in no group, sees what is committed and hears of ends."""
    return Consumer({**TUNING, **QUIET, **kafka, **_ALONE})


_ALONE: Settings = {
    "group.id": "headrace-read",  # librdkafka wants one; nothing is committed to it
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
}


def _at(consumer: Consumer, topic: str, marks: Mapping[int, Span], at_ms: int) -> dict[int, int]:
    """The first offset of each partition that was published then or later, within its marks."""
    # Milliseconds go in as offsets. Below 0 they would mean something else.
    asked = [TopicPartition(topic, n, max(at_ms, 0)) for n in marks]
    found = {}
    for place in consumer.offsets_for_times(asked, _ASK_S):
        if place.error is not None:
            raise KafkaException(place.error)
        found[place.partition] = _bound(int(place.offset), *marks[place.partition])
    return found


def _bound(offset: int, low: int, high: int) -> int:
    """An answer to a time as an offset that is there: -1 stands for the end."""
    return high if offset < 0 else min(max(offset, low), high)
