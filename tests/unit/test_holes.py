"""Behind a hole nothing lands: a batch that was dropped is read again before what follows it."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message

from consumers.assignment import Assignment
from consumers.batch import Batch, Partition, Span
from consumers.collect import Collector
from consumers.lane import Lane
from consumers.limits import Limits
from consumers.work import Cursor, Dropped, Landed, Outcome, Place, Placed, Work
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["raw_events"]
X, Y = Partition(STREAM.topic, 0), Partition(STREAM.topic, 1)


class OneLane:
    """The run loop's side of one lane that does nothing by itself."""

    def __init__(self) -> None:
        self.asked: list[Work] = []

    def of(self, _partition: Partition) -> int:
        return 0

    def submit(self, work: Work) -> None:
        self.asked.append(work)


def record(partition: Partition, offset: int) -> Message:
    event = STREAM.message(event_id=f"e{offset}", content_type="application/json", data="{}")
    event.received_at.FromSeconds(1_750_000_000)
    return Message(topic=partition.topic, partition=partition.number, offset=offset,
                   value=event.SerializeToString(), timestamp=(1, 0))  # fmt: skip


def test_who_is_asked_about_has_no_open_batch_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane raises an epoch whenever it likes: here just behind the look for stale batches."""
    lanes: Any = OneLane()
    source: Any = SimpleNamespace(
        replace=set(), pause=lambda _partitions: None, seek=lambda _partition, _offset: True
    )
    collector = Collector([STREAM], Limits())
    assignment = Assignment([STREAM], source, collector, lanes)
    assignment.on_assigned([X, Y])
    x, y = assignment.cursors[X], assignment.cursors[Y]

    def placed_at(cursor: Cursor, offset: int) -> None:
        cursor.answer = (cursor.epoch, Place(offset, offset))
        assignment.place()

    assignment.place()
    placed_at(x, 0)
    placed_at(y, 0)
    collector.add(y, [record(Y, offset) for offset in range(7)], 1000)
    look = collector.forget_stale

    def forget_stale() -> None:
        look()
        monkeypatch.setattr(collector, "forget_stale", look)
        y.epoch += 1

    monkeypatch.setattr(collector, "forget_stale", forget_stale)
    assignment.read_again([X])
    assignment.place()
    # Whatever it was asked about is answered, and read on.
    for _ in range(3):
        for cursor in (x, y):
            if cursor.asked == cursor.epoch != cursor.placed:
                placed_at(cursor, 0)
        assignment.place()
    assert y.reading
    collector.add(y, [record(Y, 0)], 1000)
    (key,) = collector.of([y])
    work = collector.close(key)
    assert not work.void
    assert work.batch is not None
    assert work.batch.spans[Y] == Span(0, 1)


@contextmanager
def a_lane(landed: list[Batch]) -> Iterator[tuple[Lane, queue.SimpleQueue[Outcome]]]:
    """Of a sink that places everything at 5, and takes all."""

    def place(work: Work) -> Placed:
        return Placed(work, {cursor.partition: Place(5, 5) for cursor in work.claims})

    def land(work: Work, batch: Batch) -> Landed:
        landed.append(batch)
        return Landed(work, 0, 0)

    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    attempts: Any = SimpleNamespace(
        stop=lambda: None, close=lambda: None, stopped=False, away_since=None
    )
    placing: Any = SimpleNamespace(place=place)
    landing: Any = SimpleNamespace(land=land)
    lane = Lane(0, attempts, placing, landing, outcomes, destination="test")
    try:
        yield lane, outcomes
    finally:
        lane.stop()


def batch_of(*spans: Span) -> Batch:
    return Batch(STREAM, dict(zip((X, Y), spans, strict=False)), ())


@pytest.mark.parametrize("begins", [4, 6, 8])
def test_a_batch_that_does_not_begin_where_the_last_one_ended_does_not_land(begins: int) -> None:
    landed: list[Batch] = []
    cursor = Cursor(X, STREAM, 0)

    def outcomes_of(lane: Lane, answers: Any, works: Sequence[Work]) -> list[Outcome]:
        for work in works:
            lane.submit(work)
        return [answers.get(timeout=10) for _ in works]

    with a_lane(landed) as (lane, answers):
        placed, first = outcomes_of(
            lane, answers, [Work(0, {cursor: 0}), Work(0, {cursor: 0}, batch_of(Span(5, 7)))]
        )
        assert isinstance(placed, Placed)
        assert isinstance(first, Landed)
        (hole,) = outcomes_of(lane, answers, [Work(0, {cursor: 0}, batch_of(Span(begins, 9)))])
        assert isinstance(hole, Dropped)
        assert cursor.epoch == 1, "it is placed anew"
        assert landed == [batch_of(Span(5, 7))]
        # In an epoch of which nobody has said where it begins, nothing lands either.
        (early,) = outcomes_of(lane, answers, [Work(0, {cursor: 1}, batch_of(Span(7, 9)))])
        assert isinstance(early, Dropped)
        *_, last = outcomes_of(
            lane, answers, [Work(0, {cursor: 2}), Work(0, {cursor: 2}, batch_of(Span(5, 9)))]
        )
        assert isinstance(last, Landed)


def test_a_rebalance_of_a_thousand_partitions_is_a_short_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One by one, 2,000 were more than the 16 KiB at which Docker cuts a line of JSON in two."""
    source: Any = SimpleNamespace()
    lanes: Any = SimpleNamespace(of=lambda _: 0, wake=lambda _: None, finish=lambda *_: None,
                                 settle=lambda *_: None)  # fmt: skip
    assignment = Assignment([STREAM], source, Collector([STREAM], Limits()), lanes)
    some = [Partition(STREAM.topic, n) for n in (9, *range(5), 7)]
    with caplog.at_level("INFO"):
        assignment.on_assigned(some)
        assignment.on_revoked(some)
    listed = "raw_events[0-4], raw_events[7], raw_events[9]"
    assert caplog.messages == [f"given {listed}", f"gave back {listed}"]
