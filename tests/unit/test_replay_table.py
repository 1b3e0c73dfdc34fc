"""Rows of the table of raw events, their numbers, and that table as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batch import Partition, Span
from consumers.bounds import Bounds
from consumers.errors import Unavailable
from consumers.limits import Limits
from consumers.replay import run
from consumers.replay.job import Job, Origin
from consumers.replay.run import OpenTable, runner, selection_of
from consumers.replay.table import RawTable, Reader, Row, number_at
from consumers.replay.table_source import TableSource
from consumers.replay.target import Target
from consumers.sinks import Known
from consumers.source import Runs
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.streams import BUILT_IN, Stream


class Table:
    """Raw events in memory, in the order that a database gives them."""

    url = "postgres://db/prod"
    receipts = BUILT_IN["receipts"]

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


# -- as a source -----------------------------------------------------------------------------------

P, OTHER = Partition("raw_events", 0), Partition("raw_events", 1)
END = number_at(10_000)


class Group:
    """The group: a member that reads nothing."""

    away = False

    def poll(self, _n: int, _timeout_s: float) -> Runs:
        return {}

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        return {p: Known("t", 7, 99, None, "") for p in partitions}

    def close(self) -> None: ...


class Listener:
    """Whoever it is."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None: ...
    def on_revoked(self, partitions: Sequence[Partition]) -> None: ...
    def on_lost(self, partitions: Sequence[Partition]) -> None: ...


def source(
    table: Table, lacking: str | None = None, ready: Callable[[RawTable], None] | None = None
) -> TableSource:
    return TableSource(
        lambda _: Group(),  # type: ignore[arg-type, return-value] # as much as it needs
        Listener(), lambda: table, P.topic, Span(0, END), 10_000, lacking, ready=ready,
    )  # fmt: skip


def ids(found: Runs) -> list[str]:
    return [RawEvent.FromString(m.value() or b"").event_id for run in found.values() for m in run]


def table() -> Table:
    return Table((n * 1000, f"e{n}") for n in range(10))


def test_the_table_is_read_from_where_the_partition_is_to_its_end() -> None:
    found = source(table())
    assert not found.poll(5, 0.0), "it is not ours yet"
    found.on_assigned([P, OTHER])
    assert not found.poll(5, 0.0), "nobody has said from where"
    assert found.seek(OTHER, 0)
    assert found.seek(P, number_at(3000))
    runs = found.poll(5, 0.0)
    assert ids(runs) == ["e3", "e4", "e5", "e6", "e7"]
    assert [m.offset() for m in runs[P]] == [number_at(n * 1000) for n in range(3, 8)]
    assert {Partition(m.topic() or "", m.partition() or 0) for m in runs[P]} == set(runs)
    found.pause([OTHER, P])
    assert not found.poll(5, 0.0)
    found.resume([P])
    assert ids(found.poll(5, 0.0)) == ["e8", "e9"]
    assert not found.ends
    assert not found.poll(5, 0.0)
    assert found.ends == {P: END}
    assert found.seek(P, number_at(9000)), "it goes back where it was not committed"
    assert ids(found.poll(5, 0.0)) == ["e9"]
    found.on_revoked([P])
    assert not found.poll(5, 0.0)
    assert not found.ends


def test_what_the_group_says_of_the_topic_is_not_said_of_the_table() -> None:
    known = source(table()).known([P, OTHER])
    assert (known[P].earliest, known[P].latest, known[P].committed) == (0, END, None)
    assert (known[OTHER].latest, known[OTHER].committed) == (0, 0)
    assert source(table()).all_ends() == {P: END}


def test_a_database_that_is_away_is_asked_again_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    whole = table()
    found = source(whole)
    found.seek(P, 0)
    page, closed = whole.page, []
    with mock.patch("consumers.replay.table._PAGE", 4):
        assert ids(found.poll(4, 0.0)) == ["e0", "e1", "e2", "e3"]

        def fail(*_: object) -> list[RawEvent]:
            raise Unavailable("away, by the test")

        monkeypatch.setattr(whole, "page", fail)
        monkeypatch.setattr(whole, "close", lambda: closed.append(now[0]))
        assert not found.poll(4, 0.0)
        assert found.away
        assert closed == [100.0]
        monkeypatch.setattr(whole, "page", page)
        assert not found.poll(4, 0.0), "not at once"
        now[0] += 10
        assert ids(found.poll(3, 0.0)) == ["e4", "e5", "e6"]
        assert not found.away


def test_what_the_vendor_has_accepted_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table()
    monkeypatch.setattr(whole, "accepted", lambda vendor, ids: {vendor, *ids[1::2]})
    found = source(whole, lacking="heap")
    found.seek(P, 0)
    assert ids(found.poll(5, 0.0)) == ["e0", "e2", "e4"]
    assert ids(found.poll(50, 0.0)) == ["e5", "e7", "e9"]
    assert not found.poll(5, 0.0)
    assert found.ends == {P: END}


def test_rows_whose_receipts_could_not_be_asked_for_are_given_out_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    asked: list[Sequence[str]] = []

    def accepted(_vendor: str, ids: Sequence[str]) -> set[str]:
        asked.append(ids)
        if len(asked) == 2:
            raise Unavailable("away, by the test")
        return set()

    whole = table()
    monkeypatch.setattr(whole, "accepted", accepted)
    found = source(whole, lacking="heap")
    found.seek(P, 0)
    seen = []
    while not found.ends:
        seen += ids(found.poll(4, 0.0))
        now[0] += 10
    assert seen == [f"e{n}" for n in range(10)]


# -- receipts that have not landed yet -------------------------------------------------------------


class Receipts:
    """The topic of receipts, and up to where the table has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: int) -> None:
        self.ends = list(ends)
        self.landed = [0] * len(ends)
        monkeypatch.setattr(run, "bounds", self._bounds)
        monkeypatch.setattr(run, "topic_ids", lambda _, names: dict.fromkeys(names, "an id"))
        monkeypatch.setattr("consumers.replay.target.landed", self._landed)

    def _bounds(self, _kafka: object, topic: str) -> Bounds:
        assert topic == BUILT_IN["receipts"].topic
        return Bounds({n: Span(0, end) for n, end in enumerate(self.ends)}, ())

    def _landed(
        self, _kafka: object, url: str, stream: Stream, topic_id: str, spans: Mapping[int, Span]
    ) -> dict[int, Span]:
        assert (url, stream.name, topic_id) == (Table.url, "receipts", "an id")
        return {n: Span(0, min(self.landed[n], span.end)) for n, span in spans.items()}


def test_a_table_is_ready_when_it_has_the_receipts_that_there_were_when_it_was_first_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a topic that goes on it never has all."""
    receipts = Receipts(monkeypatch, 5, 9, 0)
    ready = run.ReceiptsLanded({})
    with pytest.raises(Unavailable, match=r"partition 0 of receipts"):
        ready(table())
    receipts.ends = [50, 90, 10]
    receipts.landed = [5, 8, 0]
    with pytest.raises(Unavailable, match=r"partition 1 of receipts"):
        ready(table())
    receipts.landed = [5, 9, 0]
    ready(table())


def test_where_there_are_no_receipts_none_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Receipts(monkeypatch, 0, 0)
    monkeypatch.setattr("consumers.replay.target.landed", None)
    run.ReceiptsLanded({})(table())


def test_nothing_comes_from_a_table_that_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    behind = [True, True, False]
    closed: list[float] = []

    def ready(asked: RawTable) -> None:
        assert asked is whole
        if behind.pop(0):
            raise Unavailable("not yet, by the test")

    whole = table()
    monkeypatch.setattr(whole, "close", lambda: closed.append(now[0]))
    found = source(whole, lacking="heap", ready=ready)
    found.seek(P, 0)
    for left in (2, 2, 1):
        assert not found.poll(5, 0.0)
        assert found.away
        assert len(behind) == left
        now[0] += 1.5
    now[0] += 1.5
    assert ids(found.poll(5, 0.0)) == ["e0", "e1", "e2", "e3", "e4"]
    assert closed == [100.0, 103.0], "chDB takes one process: meanwhile it is the inserter's"
    found.seek(P, 0)
    assert len(ids(found.poll(50, 0.0))) == 10, "it is asked no more"


@pytest.mark.parametrize("lacking", [None, "heap"])
def test_a_leg_that_leaves_out_what_is_accepted_waits_for_the_receipts(
    monkeypatch: pytest.MonkeyPatch, lacking: str | None
) -> None:
    """An outage's, and a command's with --only-missing."""
    made: list[dict[str, Any]] = []

    def keep(*_: object, **how: Any) -> TableSource:
        made.append(how)
        return source(table())

    monkeypatch.setattr(run, "TableSource", keep)
    monkeypatch.setattr(run, "DeadLetters", lambda *_: None)
    spans = {0: Span(0, END)}
    leg = Job("id-table", "heap", "raw_events", "t", 0, 10, 0.0, spans, 1, origin=Origin.OUTAGE)
    stream = BUILT_IN["raw_events"]
    target = Target("heap", Limits(lanes=0), lambda _: None)  # type: ignore[arg-type, return-value] # it is not opened
    runner(
        {}, stream, leg, selection_of({}, {}, leg), target, count=lambda _: None,
        look=None, table=OpenTable(table, lacking),  # type: ignore[arg-type] # the same
    )  # fmt: skip
    (how,) = made
    assert isinstance(how["ready"], run.ReceiptsLanded) == (lacking is not None)


def test_a_span_is_read_again_without_moving() -> None:
    found = source(table())
    found.seek(P, 0)
    again = found.read(P, Span(number_at(2000), number_at(4000) + 1))
    assert ids({P: again}) == ["e2", "e3", "e4"]
    assert ids(found.poll(2, 0.0)) == ["e0", "e1"]
