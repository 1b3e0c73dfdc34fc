"""Rows of the table of raw events, and the numbers by which they are found again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.replay.table import Reader, Row, number_at
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent


class Table:
    """Raw events in memory, in the order that a database gives them."""

    def __init__(self, events: Iterable[tuple[int, str]]) -> None:
        self.events = sorted(events)

    def page(self, time_us: int, event_id: str, end_us: int, n: int) -> list[RawEvent]:
        found = [e for e in self.events if e >= (time_us, event_id) and e[0] < end_us][:n]
        return [raw_event(at, called) for at, called in found]

    def accepted(self, _vendor: str, _ids: Sequence[str]) -> set[str]:
        return set()

    def close(self) -> None: ...


def raw_event(at: int, called: str) -> RawEvent:
    event = RawEvent(event_id=called)
    event.received_at.FromMicroseconds(at)
    return event


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 999), st.sampled_from("abc")), max_size=40
    ),
    st.integers(0, 41), st.integers(1, 7), st.integers(1, 9),
)  # fmt: skip
def test_rows_have_the_same_numbers_wherever_reading_begins(
    events: list[tuple[int, int, str]], start: int, page: int, slice_: int
) -> None:
    """Also where many are of the same time and id, and a page ends among them."""
    table = Table((ms * 1000 + us, called) for ms, us, called in events)
    with mock.patch("consumers.replay.table._PAGE", page):
        whole = list(_rows(Reader(table, 4000), slice_))
        assert [(r.event.received_at.ToMicroseconds(), r.event.event_id) for r in whole] == (
            table.events
        )
        numbers = [r.number for r in whole]
        assert numbers == sorted(set(numbers))
        for row in whole:
            at = row.event.received_at.ToMicroseconds()
            assert number_at(at) <= row.number < number_at(at + 1000)
        at = numbers[start] if start < len(numbers) else (numbers or [0])[-1] + 1
        reader = Reader(table, 4000)
        reader.seek(at)
        assert list(_rows(reader, slice_)) == [r for r in whole if r.number >= at]


def _rows(reader: Reader, n: int) -> Iterable[Row]:
    while rows := reader.next(n):
        assert len(rows) <= n
        yield from rows
