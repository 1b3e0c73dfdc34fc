"""Records as bytes: they come back as they were, and damage stays where it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.spool.batch import Batch, head
from ingest.spool.frames import HEADER_BYTES, Stored, front, salvage, unpack

RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "raw_events"]),
        st.none() | st.binary(max_size=20),
        st.binary(max_size=60),
        st.none() | st.text(max_size=10),
    ),
    min_size=1,
    max_size=8,
)


def frames(rows: list[tuple[str, bytes | None, bytes, str | None]], first: int) -> list[bytes]:
    return [
        front(first + i, 5, topic.encode(), key, value, None if name is None else name.encode())
        + value
        for i, (topic, key, value, name) in enumerate(rows)
    ]


def plain(records: list[Stored]) -> list[tuple[str, bytes | None, bytes, str | None]]:
    return [(r.topic, r.key, r.value, r.id) for r in records]


@given(rows=RECORDS, first=st.integers(0, 2**40))
def test_a_block_comes_back_as_it_was(
    rows: list[tuple[str, bytes | None, bytes, str | None]], first: int
) -> None:
    found = unpack(b"".join(frames(rows, first)), first, len(rows))
    assert found is not None
    assert plain(found) == rows
    assert [r.seq for r in found] == list(range(first, first + len(rows)))


@given(rows=RECORDS, data=st.data())
def test_one_wrong_byte_costs_the_record_it_is_in_and_no_other(
    rows: list[tuple[str, bytes | None, bytes, str | None]], data: st.DataObject
) -> None:
    parts = frames(rows, 7)
    victim = data.draw(st.integers(0, len(parts) - 1))
    at = data.draw(st.integers(0, len(parts[victim]) - 1))
    wrong = bytearray(parts[victim])
    wrong[at] ^= data.draw(st.integers(1, 255))
    whole = b"".join([*parts[:victim], bytes(wrong), *parts[victim + 1 :]])
    assert unpack(whole, 7, len(rows)) is None
    good, damaged = salvage(whole, 7, len(rows))
    assert plain(good) == rows[:victim] + rows[victim + 1 :]
    assert [(d.first, d.last, d.data) for d in damaged] == [(7 + victim, 7 + victim, bytes(wrong))]


@given(rows=RECORDS, cut=st.integers(1, 400))
def test_a_torn_end_costs_what_was_there(
    rows: list[tuple[str, bytes | None, bytes, str | None]], cut: int
) -> None:
    whole = b"".join(frames(rows, 0))
    torn = whole[: -min(cut, len(whole))]
    good, damaged = salvage(torn, 0, len(rows))
    assert plain(good) == rows[: len(good)]
    assert [(d.first, d.last) for d in damaged] == [(len(good), len(rows) - 1)]


@given(data=st.binary(max_size=300), count=st.integers(1, 4))
def test_rubbish_is_damage_and_never_an_error(data: bytes, count: int) -> None:
    good, damaged = salvage(data, 0, count)
    assert not good
    assert damaged[0][:2] == (0, count - 1)


@given(blocks=st.lists(RECORDS, min_size=1, max_size=3), data=st.data())
def test_a_batch_for_kafka_holds_what_unpacking_finds(
    blocks: list[list[tuple[str, bytes | None, bytes, str | None]]], data: st.DataObject
) -> None:
    """From any record of the first block on, each topic in order; no block changes nothing."""
    batch = Batch(3)
    first, found = 3, []
    start = first + data.draw(st.integers(0, len(blocks[0]) - 1))
    for rows in blocks:
        whole = b"".join(frames(rows, first))
        records = unpack(whole, first, len(rows), start)
        assert records is not None
        before = (dict(batch.rows), batch.records, batch.size, batch.end, batch.crc)
        assert not batch.add(whole, first + 1, len(rows), start)
        assert not batch.add(whole + b"x", first, len(rows), start)
        assert not batch.add(whole[:-1], first, len(rows), start)
        assert (dict(batch.rows), batch.records, batch.size, batch.end, batch.crc) == before
        assert batch.add(whole, first, len(rows), start)
        found += records
        first += len(rows)
    assert len(batch) == len(found)
    assert (batch.end, batch.crc) == (found[-1].seq + 1, found[-1].crc)
    for topic in {r.topic for r in found}:
        mine = [(r.key, r.value) for r in found if r.topic == topic]
        assert [(row["key"], row["value"]) for row in batch.rows[topic]] == mine


@given(rows=RECORDS, max_records=st.integers(1, 8), max_bytes=st.integers(1, 400), data=st.data())
def test_a_block_is_cut_to_its_records_that_fit_and_never_to_none(
    rows: list[tuple[str, bytes | None, bytes, str | None]],
    max_records: int,
    max_bytes: int,
    data: st.DataObject,
) -> None:
    skipped = data.draw(st.integers(0, len(rows) - 1))
    sizes = [len(frame) for frame in frames(rows, 5)]
    fit = 1
    while (
        skipped + fit < len(rows)
        and fit < max_records
        and sum(sizes[skipped : skipped + fit + 1]) <= max_bytes
    ):
        fit += 1
    whole = b"".join(frames(rows, 5))
    count, front = head(whole, 5, len(rows), 5 + skipped, max_records, max_bytes)
    batch = Batch(5)
    assert batch.add(front, 5, count, 5 + skipped)
    assert (batch.records, batch.end) == (fit, 5 + skipped + fit)
    assert batch.size == sum(sizes[skipped : skipped + fit])


def test_reading_may_begin_in_the_middle_of_a_block() -> None:
    rows: list[tuple[str, bytes | None, bytes, str | None]] = [
        ("t", None, b"%d" % i, None) for i in range(5)
    ]
    found = unpack(b"".join(frames(rows, 10)), 10, 5, start=13)
    assert found is not None
    assert [r.seq for r in found] == [13, 14]


@pytest.mark.parametrize("key", [None, b""])
def test_no_key_and_an_empty_key_are_two_things(key: bytes | None) -> None:
    found = unpack(front(0, 0, b"t", key, b"", None), 0, 1)
    assert found is not None
    assert found[0].key == key


def test_a_record_costs_its_fields_and_36_bytes() -> None:
    assert HEADER_BYTES == 36
    assert len(front(0, 0, b"topic", b"key", b"value", b"id")) == 36 + 5 + 3 + 2
