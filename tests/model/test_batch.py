"""Batches against a list: however they are cut, they hold the same rows and move the same spans."""

from __future__ import annotations

from random import Random

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from ingest.streams import BUILT_IN
from ingest.units import MINUTE_US

Rows = list[tuple[Partition, int, str]]

CHEAP = settings(max_examples=200, deadline=None, database=None, derandomize=True)

# Records are so far apart in event time.


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Partitions in turn, gaps before, between and after rows, and partitions without rows."""
    spans: dict[Partition, Span] = {}
    ends: dict[Partition, int] = {}
    for number in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, 9))
        spans[Partition("t", number)] = Span(start, start)
        ends[Partition("t", number)] = start
    chunks = []
    for partition in draw(st.lists(st.sampled_from(sorted(spans)), max_size=6)):
        gaps = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
        offsets = []
        for gap in gaps:
            offsets.append(ends[partition] + gap)
            ends[partition] = offsets[-1] + 1
        ids = pa.array([f"{partition.number}-{offset}" for offset in offsets])
        dense = offsets == list(range(offsets[0], offsets[-1] + 1))
        chunks.append(
            Chunk(
                partition,
                range(offsets[0], offsets[-1] + 1) if dense else offsets,
                pa.record_batch([ids, _times(offsets)], names=["id", "timestamp"]),
            )
        )
    for partition, end in ends.items():
        tail = draw(st.integers(0, 2))
        spans[partition] = Span(spans[partition].start, end + tail)
    moved = {p: span for p, span in spans.items() if span.end > span.start}
    # A gap may be a dead letter.
    full = {(chunk.partition, offset) for chunk in chunks for offset in chunk.offsets}
    dead = tuple(
        Dead(partition, offset, offset * MINUTE_US)
        for partition, span in moved.items()
        for offset in range(*span)
        if (partition, offset) not in full and draw(st.booleans())
    )
    return Batch(BUILT_IN["device_state"], moved, tuple(chunks), dead)


def _times(offsets: list[int]) -> pa.Array:
    return pa.array([n * MINUTE_US for n in offsets], pa.timestamp("us", "UTC"))


def rows_of(batch: Batch) -> Rows:
    return [
        (chunk.partition, offset, name)
        for chunk in batch.chunks
        for offset, name in zip(chunk.offsets, chunk.rows.column("id").to_pylist(), strict=True)
    ]


def apply(positions: dict[Partition, int], batch: Batch) -> None:
    """Move positions as a sink does, which fences what does not start where the last one ended."""
    for dead in batch.dead:
        assert batch.spans[dead.partition].start <= dead.offset < batch.spans[dead.partition].end
    for partition, (start, end) in batch.spans.items():
        assert positions[partition] == start
        assert end > start
        positions[partition] = end
    for partition, offset, _ in rows_of(batch):
        assert batch.spans[partition].start <= offset < batch.spans[partition].end


@CHEAP
@given(batches())
def test_halves_one_after_the_other_are_the_whole(batch: Batch) -> None:
    halves = batch.halves()
    if halves is None:
        assert batch.count < 2
        return
    left, right = halves
    assert rows_of(left) + rows_of(right) == rows_of(batch)
    assert sorted(left.dead + right.dead) == sorted(batch.dead)
    assert left.count == batch.count // 2
    positions = {partition: span.start for partition, span in batch.spans.items()}
    apply(positions, left)
    apply(positions, right)
    assert positions == {partition: span.end for partition, span in batch.spans.items()}


@CHEAP
@given(batches())
def test_halving_down_to_single_rows_is_the_whole(batch: Batch) -> None:
    positions = {partition: span.start for partition, span in batch.spans.items()}
    rows: Rows = []
    todo = [batch]
    while todo:
        part = todo.pop()
        halves = part.halves()
        if halves is None:
            apply(positions, part)
            rows += rows_of(part)
        else:
            todo += [halves[1], halves[0]]
    assert rows == rows_of(batch)
    assert positions == {partition: span.end for partition, span in batch.spans.items()}


@CHEAP
@given(batches(), st.data())
def test_a_batch_without_some_rows_has_the_others_and_the_same_spans(
    batch: Batch, data: st.DataObject
) -> None:
    indexes = list(range(batch.count))
    gone = data.draw(st.lists(st.sampled_from(indexes), unique=True) if indexes else st.just([]))
    rest = batch.without(gone)
    assert rest.spans == batch.spans
    assert rows_of(rest) == [row for i, row in enumerate(rows_of(batch)) if i not in set(gone)]
    assert rest.count == batch.count - len(gone)
    assert all(chunk.rows.num_rows for chunk in rest.chunks)
    assert batch.coordinates(gone) == [rows_of(batch)[i][:2] for i in gone]
    buried = {Dead(p, o, o * MINUTE_US) for p, o, _ in (rows_of(batch)[i] for i in gone)}
    assert set(rest.dead) == buried | set(batch.dead)


@CHEAP
@given(batches(), st.integers(1, 3), st.randoms())
def test_parts_of_few_partitions_in_any_order_are_the_whole(
    batch: Batch, most: int, chance: Random
) -> None:
    parts = batch.of_partitions(most)
    assert all(len(part.spans) <= most for part in parts)
    assert sorted(dead for part in parts for dead in part.dead) == sorted(batch.dead)
    chance.shuffle(parts)
    positions = {partition: span.start for partition, span in batch.spans.items()}
    for part in parts:
        apply(positions, part)
    assert positions == {partition: span.end for partition, span in batch.spans.items()}
    # In the order that they had within their partition.
    rows = [row for part in parts for row in rows_of(part)]
    for partition in batch.spans:
        own = [row for row in rows_of(batch) if row[0] == partition]
        assert [row for row in rows if row[0] == partition] == own
    assert len(rows) == batch.count
    assert batch.of_partitions(None) == [batch]


@CHEAP
@given(batches(), st.data())
def test_what_is_at_or_behind_positions_is_just_that(batch: Batch, data: st.DataObject) -> None:
    at = {p: data.draw(st.integers(0, 30)) for p in batch.spans if data.draw(st.booleans())}
    rest = batch.since(at)
    far = 10**6
    assert rows_of(rest) == [row for row in rows_of(batch) if row[1] >= at.get(row[0], far)]
    assert rest.dead == tuple(d for d in batch.dead if d.offset >= at.get(d.partition, far))
    for partition, span in rest.spans.items():
        assert span == Span(max(at[partition], batch.spans[partition].start), span.end)
        assert span.start < span.end == batch.spans[partition].end
