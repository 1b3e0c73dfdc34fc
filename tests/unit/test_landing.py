"""What a lane does with rows that are refused, and with a batch that it has to drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.deadletters import DeadLetter
from consumers.decode import Decoder
from consumers.errors import Fenced, Rejected, Systemic
from consumers.landing import _PIECE, Landing, _pieces
from consumers.limits import Limits
from consumers.work import Cursor, Work
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState
from ingest.streams import BUILT_IN, Stream

STREAM = BUILT_IN["device_state"]
P = Partition(STREAM.topic, 0)
DECODER = Decoder(STREAM)


class World:
    """A sink, the log behind it, and the dead letters."""

    def __init__(self, **limits: Any) -> None:
        self.reads: list[Span] = []
        # What Kafka no longer has.
        self.gone: set[int] = set()
        self.letters: list[DeadLetter] = []
        self.write: Callable[[Batch], None] = lambda _: None
        self.attempts: Any = SimpleNamespace(
            until_done=lambda _work, act: act(self), wait=lambda _: None
        )
        self.landing = Landing(self.attempts, self, self, Limits(**limits))  # type: ignore[arg-type] # as much as it needs

    def unchanged(self, _: object) -> None: ...

    def read(self, partition: Partition, span: Span) -> list[Message]:
        assert span.end - span.start <= _PIECE, "the lane must not hold all that is between"
        self.reads.append(span)
        there = [n for n in range(*span) if n not in self.gone]
        return [Message(topic=partition.topic, partition=0, offset=n) for n in there]

    def send(self, _stream: Stream, letters: Sequence[DeadLetter]) -> None:
        self.letters += letters

    def land(self, offsets: Sequence[int], bad: Sequence[int] = ()) -> None:
        record = DeviceState(device_id="a")
        record.timestamp.FromSeconds(1_750_000_000)
        rows, undecodable = DECODER.decode([record.SerializeToString()] * len(offsets))
        assert not undecodable
        batch = Batch(STREAM, {P: Span(0, max(offsets) + 1)}, (Chunk(P, offsets, rows),))
        letters = [
            DeadLetter(Message(topic=P.topic, partition=0, offset=n), "undecodable", "why")
            for n in bad
        ]
        work = Work(0, {Cursor(P, STREAM, 0): 0}, batch, letters, len(offsets) + len(bad))
        self.landing.land(work, batch)


def refuse(*offsets: int) -> Callable[[Batch], None]:
    """A sink that says which rows it does not take."""

    def write(batch: Batch) -> None:
        at = {n: i for i, (_, n) in enumerate(batch.coordinates(list(range(batch.count))))}
        if refused := {at[n]: f"row {n}" for n in offsets if n in at}:
            raise Rejected("", refused)

    return write


def test_of_refused_rows_that_are_far_apart_little_more_is_read_again() -> None:
    world = World()
    world.write = refuse(3, 5, 499_999)
    world.land([*range(10), 499_999])
    assert [(letter.message.offset(), letter.reason) for letter in world.letters] == [
        (3, "row 3"), (5, "row 5"), (499_999, "row 499999"),
    ]  # fmt: skip
    assert sum(end - start for start, end in world.reads) == 4


@given(st.sets(st.integers(0, 5 * _PIECE), min_size=1))
def test_each_refused_row_is_read_again_once(offsets: set[int]) -> None:
    spans = list(_pieces(sorted(offsets)))
    assert all({start, end - 1} <= offsets and end - start <= _PIECE for start, end in spans)
    assert all(one.end <= next_.start for one, next_ in pairwise(spans))
    assert all(any(start <= n < end for start, end in spans) for n in offsets)


@pytest.mark.parametrize("refused", [False, True])
def test_a_batch_that_is_dropped_and_read_again_counts_once(refused: bool) -> None:
    """Its partitions move, or another writer is first: that must not stop a stream."""
    world = World(max_dead_share=0.1, dead_window=100)

    def fenced(batch: Batch) -> None:
        if refused:
            refuse(*range(6))(batch)
        raise Fenced("another writer was first, by the test")

    good, bad = (range(10), ()) if refused else (range(6, 10), range(6))
    for _ in range(5):
        world.write = fenced
        with pytest.raises(Fenced):
            world.land(good, bad)
    world.write = refuse(*range(6)) if refused else lambda _: None
    world.land(good, bad)
    with pytest.raises(Systemic, match="12 of the last 20 records"):
        world.land(good, bad)


def test_undecodable_and_refused_records_of_a_batch_count_together() -> None:
    world = World(max_dead_share=0.1, dead_window=100)
    world.write = refuse(*range(6))
    with pytest.raises(Systemic, match=r"11 of the last 15 records .* The last 6 of them"):
        world.land(range(10), range(10, 15))
    assert len(world.letters) == 5


def test_what_was_redriven_and_fails_again_stops_nothing() -> None:
    """It was counted when it first failed."""
    world = World(max_dead_share=0.1, dead_window=100)
    old = [
        DeadLetter(
            Message(topic=P.topic, partition=0, offset=n, headers=[("headrace.redriven", b"1")]),
            "undecodable", "why",
        )
        for n in range(50)
    ]  # fmt: skip
    batch = Batch(STREAM, {P: Span(0, 50)}, ())
    for _ in range(3):
        world.landing.land(Work(0, {Cursor(P, STREAM, 0): 0}, batch, old, 50), batch)
    assert len(world.letters) == 150


def test_a_refused_record_that_is_no_longer_in_kafka_stops_it() -> None:
    """A dead letter is a copy of it, and there is nothing to copy."""
    world = World(max_dead_share=1.0)
    world.write = refuse(2, 3)
    world.gone = {3}
    with pytest.raises(Systemic, match="1 rejected records are no longer in Kafka"):
        world.land(range(5))
    assert not world.letters


def test_parts_of_a_batch_do_not_wait_for_each_other() -> None:
    """While one waited out its second the lane landed nothing: with 40 streams of more partitions
    than one write takes, records were 40 s old. Batches wait, and what is tried again in halves."""
    world = World(max_partitions=1, min_interval_s=1.0, max_dead_share=1.0)
    done: list[str] = []
    world.attempts.wait = lambda _: done.append("waited")
    spans = {P: Span(0, 1), Partition(STREAM.topic, 1): Span(0, 1)}
    batch = Batch(STREAM, spans, ())
    world.write = lambda _: done.append("written")
    world.landing.land(Work(0, {}, batch, [], 0), batch)
    assert done == ["written", "written"]
    world.landing.land(Work(0, {}, batch, [], 0), batch)
    assert done[2:] == ["waited", "written", "written"]
    done.clear()
    world.write = refuse(1)
    world.land(range(2))
    assert done == ["waited", "waited"]
