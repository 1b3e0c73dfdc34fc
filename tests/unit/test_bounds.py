"""Reading a topic between two bounds: just what lies between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from consumers import bounds, client
from consumers.batch import Partition, Span
from consumers.client import watermarks
from consumers.errors import Unavailable


def record(offset: int) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=b"x", timestamp=(1, 1))


def test_what_was_published_behind_the_end_is_not_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [[record(n) for n in range(2)], [record(n) for n in range(2, 6)]]
    client = SimpleNamespace(
        assign=lambda _: None, pause=lambda _: None, close=lambda: None,
        consume=lambda _n, _s: runs.pop(0),
    )  # fmt: skip
    monkeypatch.setattr(bounds, "_alone", lambda _: client)
    found = [
        ([message.offset() for message in run], span)
        for _, run, span in bounds.pieces({}, "t", {0: Span(0, 4)})
    ]
    assert found == [([0, 1], Span(0, 2)), ([2, 3], Span(2, 4))]


class _Log:
    """A client of a topic whose partitions have these offsets; `reset` is an error to it."""

    def __init__(self, there: dict[int, Span]) -> None:
        self.there = there
        self._at: dict[int, int] = {}

    def assign(self, places: list[TopicPartition]) -> None:
        self._at = {place.partition: place.offset for place in places}

    def consume(self, _n: int, _s: float) -> list[Message]:
        found = []
        for n, at in self._at.items():
            low, high = self.there[n]
            gone = not low <= at <= high
            code = KafkaError._AUTO_OFFSET_RESET if gone else KafkaError._PARTITION_EOF
            error = None if low <= at < high else KafkaError(code)
            found.append(Message("t", n, at, error=error, value=b"x", timestamp=(1, 1000 * n + at)))
            self._at[n] += error is None
        return found

    def pause(self, places: list[TopicPartition]) -> None:
        for place in places:
            del self._at[place.partition]

    def close(self) -> None: ...


def test_of_a_span_that_kafka_has_lost_the_beginning_of_the_first_record_left_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before a forwarder goes on after an outage that was longer than the retention."""
    there = {0: Span(0, 10), 1: Span(40, 50), 2: Span(7, 7), 3: Span(0, 5)}
    monkeypatch.setattr(bounds, "_alone", lambda _: _Log(there))
    monkeypatch.setattr(bounds, "bounds", lambda *_: bounds.Bounds(there, ()))
    spans = {0: Span(3, 9), 1: Span(5, 45), 2: Span(1, 7), 3: Span(9, 12), 4: Span(0, 0)}
    assert bounds.firsts({}, "t", spans) == {0: 3, 1: 1040}
    with pytest.raises(Unavailable, match="retention removed records of t while"):
        list(bounds.read({}, "t", {1: Span(5, 45)}))


@pytest.mark.parametrize("read", ["pieces", "read_span"])
def test_that_the_group_is_refused_is_nothing_to_who_reads_past_any_group(
    read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka tells of it as of partition 0. A forwarder, and whoever settled an insert of
    ClickHouse, tried again for ever where nobody had allowed `headrace-read`."""
    refused = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
    runs = [[Message(error=refused, partition=0)], [record(0), record(1)]]
    reader = SimpleNamespace(
        assign=lambda _: None, pause=lambda _: None, close=lambda: None,
        consume=lambda _n, _s: runs.pop(0),
    )  # fmt: skip
    monkeypatch.setattr(bounds, "_alone", lambda _: reader)
    monkeypatch.setattr(client, "Consumer", lambda _: reader)
    if read == "pieces":
        found = [one for _, run in bounds.read({}, "t", {0: Span(0, 2)}) for one in run]
    else:
        found = client.read_span({}, Partition("t", 0), Span(0, 2))
    assert [message.offset() for message in found] == [0, 1]


def test_where_logs_begin_and_end_is_asked_for_all_partitions_at_once() -> None:
    """One by one, 1,300 of them took as many round trips. What is not answered is no offset."""
    asked: list[int] = []
    # What stands for the beginning is -2, for the end -1.
    there = {Partition("t", n): Span(n, n + 5) for n in range(1300)}

    def offsets_for_times(places: list[TopicPartition], _s: float) -> list[TopicPartition]:
        asked.append(len(places))
        ends = [there[Partition(p.topic, p.partition)][p.offset + 2] for p in places]
        return [
            TopicPartition(p.topic, p.partition, at) for p, at in zip(places, ends, strict=True)
        ]

    client: Any = SimpleNamespace(offsets_for_times=offsets_for_times)
    assert watermarks(client, list(there), 1.0) == there
    assert asked == [1300, 1300]
    assert watermarks(client, [], 1.0) == {}
    client.offsets_for_times = lambda places, _s: places
    with pytest.raises(KafkaException, match="_TIMED_OUT"):
        watermarks(client, list(there), 1.0)


def test_a_leader_that_moves_while_it_is_asked_where_a_log_ends_is_no_failure() -> None:
    """librdkafka asks once more, and answers what was said first: an audit ended with that."""
    answers: list[list[Any]] = []

    def offsets_for_times(_places: object, _s: float) -> list[Any]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    client: Any = SimpleNamespace(offsets_for_times=offsets_for_times, list_topics=Mock())
    for code in (KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION):
        first = SimpleNamespace(topic="t", partition=0, offset=-2, error=KafkaError(code))
        answers[:] = [[first], [TopicPartition("t", 0, 3)], [first], [TopicPartition("t", 0, 9)]]
        assert watermarks(client, [Partition("t", 0)], 1.0) == {Partition("t", 0): Span(3, 9)}
        answers[:] = [[first]]
        with pytest.raises(KafkaException):
            watermarks(client, [Partition("t", 0)], 0.0)


@pytest.mark.parametrize("none", [False, True])
def test_a_partition_that_had_no_leader_is_looked_for_again_until_it_has_one(none: bool) -> None:
    """librdkafka said so from what it remembered, for minutes, while the inserter waited.

    Where none of them has one it says that they are unknown: an audit ended with that.
    """
    looks = 0

    def list_topics(_topic: str, *, timeout: float) -> None:
        nonlocal looks
        looks += 1

    def offsets_for_times(places: list[TopicPartition], _s: float) -> list[Any]:
        if none and looks < 3:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        why = None if looks else KafkaError(KafkaError.LEADER_NOT_AVAILABLE)
        return [SimpleNamespace(topic=p.topic, partition=0, offset=7, error=why) for p in places]

    client: Any = SimpleNamespace(offsets_for_times=offsets_for_times, list_topics=list_topics)
    if none:
        with pytest.raises(KafkaException, match="no partition that was asked of t has a leader"):
            watermarks(client, [Partition("t", 0)], 0.0)
    assert watermarks(client, [Partition("t", 0)], 1.0) == {Partition("t", 0): Span(7, 7)}
