"""Replay without Kafka: what is meant, what is missing, what a job's record says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.bounds import _bound
from consumers.collect import Collector
from consumers.decode import Decoder
from consumers.errors import Systemic
from consumers.fetch import by_partition
from consumers.intent import Intent
from consumers.limits import Limits
from consumers.placing import Placing
from consumers.replay import missing
from consumers.replay.job import Job, Origin, State
from consumers.replay.legs import legs
from consumers.replay.missing import MOST_OFFSETS, Accepted
from consumers.replay.run import selection_of
from consumers.replay.select import Selection
from consumers.replay.source import RangeSource
from consumers.replay.table import number_at
from consumers.sinks import Known
from consumers.source import Runs
from consumers.work import Cursor, Work
from headrace.words import without_password
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN

RAW = BUILT_IN["raw_events"]
P = Partition("raw_events", 0)
RANGE = Span(10, 15)
# Made once: the first one takes longer than an example may.
DECODER = Decoder(RAW)


def raw(n: int, time_us: int, name: str = "checkout") -> bytes:
    event = RawEvent(
        event_id=f"e{n}", content_type="application/json", data=f'{{"event": "{name}"}}'
    )
    event.received_at.FromMicroseconds(time_us)
    return event.SerializeToString()


def batch_of(values: Sequence[bytes], offsets: Sequence[int]) -> Batch:
    rows, bad = DECODER.decode(list(values))
    assert not bad
    chunk = Chunk(P, offsets, rows, DECODER.times_us)
    return Batch(RAW, {P: Span(0, max(offsets, default=0) + 1)}, (chunk,))


def rows_of(batch: Batch) -> list[tuple[int, str]]:
    return [
        (offset, event_id)
        for chunk in batch.chunks
        for offset, event_id in zip(
            chunk.offsets, chunk.rows.column("event_id").to_pylist(), strict=True
        )
    ]


# The first example compiles what reads JSON.
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b"])), min_size=1, max_size=40),
    st.integers(0, 31), st.integers(0, 31), st.sampled_from([None, "a", "b", "c"]), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_a_selection_keeps_exactly_what_is_meant_and_the_spans(
    events: list[tuple[int, str]],
    begin: int,
    end: int,
    name: str | None,
    times_are_known: bool,
    outside: bool,
) -> None:
    offsets = [2 * n for n in range(len(events))]
    batch = batch_of([raw(n, at, called) for n, (at, called) in enumerate(events)], offsets)
    if not times_are_known:
        unknown = [replace(chunk, times_us=None) for chunk in batch.chunks]
        batch = replace(batch, chunks=tuple(unknown))
    wanted = [
        (offsets[n], f"e{n}")
        for n, (at, called) in enumerate(events)
        if (begin <= at < end) != outside and name in (None, called) and n % 3
    ]
    selection = Selection(begin, end, name, lambda _p, offset, _id: bool(offset // 2 % 3), outside)
    found = selection.of(batch)
    assert rows_of(found) == wanted
    assert found.spans == batch.spans


def test_rows_that_are_not_meant_fill_no_batch_and_are_passed_over() -> None:
    collector = Collector([RAW], Limits(max_rows=2), Selection(5, 9))
    cursor = Cursor(P, RAW, 0, next=0)
    values = [raw(n, at) for n, at in enumerate([1, 1, 5, 1, 5, 1])]
    messages = [
        Message(topic=P.topic, partition=0, offset=n, value=value) for n, value in enumerate(values)
    ]
    size = sum(map(len, values))
    assert collector.add(cursor, messages[:4], size) is None
    full = collector.add(cursor, messages[4:], size)
    assert full is not None
    work = collector.close(full)
    assert work.batch is not None
    assert rows_of(work.batch) == [(2, "e2"), (4, "e4")]
    assert work.batch.spans == {P: Span(0, 6)}


def test_an_event_that_cannot_be_read_has_no_name() -> None:
    event = RawEvent(event_id="e", content_type="application/json", data="[1")
    event.received_at.FromMicroseconds(1)
    batch = batch_of([event.SerializeToString()], [0])
    assert not Selection(0, 9, "checkout").of(batch).chunks
    assert Selection(0, 9).of(batch).count == 1


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("application/json", '{"event": "a/b"}'),
        ("application/json", r'{"event": "a\/b"}'),
        ("application/json", r'{"event": "\u0061/b"}'),
        ("application/json", '{"type": "a/b"}'),
        ("application/json; segment=a/b", "{}"),
    ],
)
def test_a_name_is_found_however_it_is_written(content_type: str, data: str) -> None:
    event = RawEvent(event_id="e", content_type=content_type, data=data)
    event.received_at.FromMicroseconds(1)
    payloads = [event.SerializeToString(), raw(1, 1), event.SerializeToString(), None]
    batch = batch_of([event.SerializeToString()], [0])
    assert list(Selection(0, 9, "a/b").skim(payloads)) == [0, 2]
    assert Selection(0, 9, "a/b").of(batch).count == 1
    assert Selection(0, 9, "a").of(batch).count == 0


@given(st.lists(st.text("ab\\", max_size=4).map(str.encode)), st.text("ab", min_size=1, max_size=3))
def test_a_skim_misses_nothing(payloads: list[bytes], name: str) -> None:
    """It may take one more, where the name begins in one and ends in the next."""
    found = Selection(0, 9, name).skim(payloads)
    meant = [n for n, p in enumerate(payloads) if name.encode() in p or b"\\" in p]
    assert set(meant) <= set(found)
    assert list(found) == sorted(set(found))
    for every in (None, ""):
        assert list(Selection(0, 9, every).skim(payloads)) == list(range(len(payloads)))


@given(st.integers(-1, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_bound_is_within_what_kafka_has_and_the_live_end_is_never_meant(
    offset: int, low: int, count: int
) -> None:
    high = low + count
    found = _bound(offset, low, high)
    assert low <= found <= high
    assert found == (high if offset == -1 else min(max(offset, low), high))


# -- what is missing -------------------------------------------------------------------------------


def receipt(offset: int, event_id: str, vendor: str = "heap", status: str = "accepted") -> Receipt:
    return Receipt(
        vendor=vendor, event_id=event_id, status=status,
        source_topic=P.topic, source_partition=P.number, source_offset=offset,
    )  # fmt: skip


def test_only_an_accepted_receipt_of_this_vendor_for_this_very_event_counts() -> None:
    accepted = Accepted({P: Span(10, 20)})
    accepted.add(
        "heap",
        [
            receipt(10, "a"),
            receipt(11, "b", status="rejected"),
            receipt(12, "c", vendor="ga4"),
            receipt(13, "of a topic that is gone"),
            receipt(9, "below"),
            receipt(20, "behind"),
            receipt(14, "e"),
            # An earlier yes stays one.
            receipt(14, "e", status="expired"),
            # Both topics have one, and receipts of several partitions are read in any order.
            receipt(15, "of a topic that is gone"),
            receipt(15, "f"),
            receipt(16, "g"),
            receipt(16, "of a topic that is gone"),
        ],
    )
    lacking = {offset: accepted.lacks(P, offset, i) for offset, i in enumerate("abcdefghij", 10)}
    assert [offset for offset, lacks in lacking.items() if not lacks] == [10, 14, 15, 16]
    assert accepted.lacks(P, 9, "below")
    assert accepted.lacks(Partition("other", 0), 10, "a")


def test_a_receipt_of_a_row_counts_for_its_event_wherever_that_is_in_kafka() -> None:
    """The table gives also what Kafka still has, and a later replay would send that again."""
    accepted = Accepted({P: Span(10, 20)})
    number = number_at(1_750_000_000_000_000)
    rows = [
        receipt(number, "a"),
        receipt(number + 1, "b", status="rejected"),
        receipt(number + 2, "c", vendor="ga4"),
        receipt(number_at(1_750_000_000_001_000), "d"),
    ]
    rows[0].source_partition = 7
    elsewhere = receipt(number + 3, "e")
    elsewhere.source_topic = "other"
    accepted.add("heap", [*rows, elsewhere])
    assert [i for i in "abcde" if not accepted.lacks(P, 15, i)] == ["a", "d"]


def test_of_rows_only_those_of_the_range_of_time_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be years of them."""
    at_us = 1_750_000_000_000_000
    rows = [receipt(number_at(at_us + 1000 * n), f"e{n}") for n in range(6)]
    monkeypatch.setattr(missing, "receipts_between", lambda *_: rows)
    accepted = Accepted({P: Span(10, 20)})
    accepted.load({}, "receipts", "heap", at_us + 1000, at_us + 3001)
    assert [n for n in range(6) if not accepted.lacks(P, 15, f"e{n}")] == [1, 2, 3]


def test_more_offsets_than_fit_in_memory_are_refused() -> None:
    with pytest.raises(Systemic, match="take a shorter one"):
        Accepted({P: Span(0, MOST_OFFSETS), Partition("raw_events", 1): Span(5, 6)})


# -- jobs ------------------------------------------------------------------------------------------


def job(**changes: Any) -> Job:
    known: dict[str, Any] = {
        "id": "3f9c01d2", "to": "heap", "stream": "raw_events", "topic_id": "t", "begin_us": 1,
        "end_us": 9, "lateness_s": 3600.0, "spans": {0: Span(3, 7), 2: Span(0, 0)},
        "created_us": 11,
    }  # fmt: skip
    return Job(**known | changes)


def test_a_job_is_what_its_record_says() -> None:
    for one in (job(), job(event="x", only_missing=True, rate=5.0, state=State.PAUSED)):
        assert Job.read(one.value()) == one


def test_a_job_with_a_line_has_two_legs_and_nothing_between_them() -> None:
    line = 5_000
    first, last = legs(job(begin_us=1_500, end_us=9_000, table_until_us=line, only_missing=True))
    assert first is not None
    assert (first.begin_us, first.end_us, last.begin_us, last.end_us) == (1_500, line, line, 9_000)
    assert first.spans == {0: Span(number_at(1_500), number_at(line))}
    assert first.group != last.group
    assert last.spans == job().spans
    assert legs(job()) == (None, job())


def test_of_an_outages_job_kafka_gives_what_was_taken_before_and_behind_what_the_table_gives() -> (
    None
):
    outage = job(begin_us=1_000, end_us=9_000, table_until_us=9_000, origin=Origin.OUTAGE)
    first, last = legs(outage)
    assert first is not None
    assert (first.begin_us, first.end_us) == (1_000, 9_000)
    assert (last.spans, last.group) == (outage.spans, outage.group)
    times = [0, 999, 1_000, 8_999, 9_000, 99_000]
    batch = batch_of([raw(n, at) for n, at in enumerate(times)], range(len(times)))
    whole = job(origin=Origin.OUTAGE)
    kept = [
        [offset for offset, _ in rows_of(selection_of({}, {}, leg).of(batch))]
        for leg in (whole, first, last)
    ]
    assert kept == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 4, 5]]


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"v": 2}', b'{"v": 1}', b"\xff"])
def test_a_record_that_is_no_job_stops_with_a_sentence(value: bytes) -> None:
    with pytest.raises(Systemic, match="no replay"):
        Job.read(value)


def test_what_is_over_stays_over() -> None:
    for state in State:
        assert job().moved(state).state is state
    for over in (State.DONE, State.CANCELLED):
        for state in State:
            if state is over:
                assert job(state=over).moved(state).state is over
            else:
                with pytest.raises(Systemic, match="final"):
                    job(state=over).moved(state)


def test_the_rate_is_no_part_of_what_was_asked_but_the_rest_is() -> None:
    assert job().asks_the_same(job(id="other", rate=9.0, created_us=99, spans={}))
    for change in ({"to": "ga4"}, {"begin_us": 2}, {"end_us": 8}, {"event": "x"},
                   {"only_missing": True}, {"against": "/f"}, {"topic_id": "u"},
                   {"allow_redate": True}):  # fmt: skip
        assert not job().asks_the_same(job(**change))


# -- the source ------------------------------------------------------------------------------------


def record(partition: Partition, offset: int) -> Message:
    return Message(topic=partition.topic, partition=partition.number, offset=offset)


class Inner:
    """A source that hands out what it was given."""

    def __init__(
        self, runs: Iterable[list[Message]], committed: int | None = None, earliest: int = 0
    ) -> None:
        self.runs = list(runs)
        self.committed_at = committed
        self.earliest = earliest
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        self.paused: list[Partition] = []

    def poll(self, _n: int, _timeout_s: float) -> Runs:
        return by_partition(self.runs.pop(0)) if self.runs else {}

    def pause(self, partitions: Collection[Partition]) -> None:
        self.paused += partitions

    def seek(self, _partition: Partition, _offset: int) -> bool:
        return True

    def known(self, partitions: Sequence[Partition]) -> Mapping[Partition, Known]:
        return {p: Known("t", self.earliest, 100, self.committed_at, "") for p in partitions}


def source(inner: Inner, span: Span = RANGE, topic_id: str = "t") -> RangeSource:
    return RangeSource(inner, {P: span}, topic_id, repeated=True)  # type: ignore[arg-type] # as much as it needs


def offsets(found: Runs) -> list[int]:
    return [int(m.offset() or 0) for run in found.values() for m in run]


@given(st.lists(st.integers(1, 6), max_size=8), st.sets(st.integers(10, 30)))
def test_a_range_gives_out_what_is_below_its_end_and_then_rests(
    sizes: list[int], gaps: set[int]
) -> None:
    there = [n for n in range(10, 31) if n not in gaps]
    runs: list[list[Message]] = []
    left = list(there)
    for size in sizes:
        runs.append([record(P, n) for n in left[:size]])
        left = left[size:]
    runs.append([record(P, n) for n in left])
    inner = Inner(runs)
    found = source(inner, Span(10, 20))
    seen: list[int] = []
    for _ in range(len(runs)):
        seen += offsets(found.poll(500, 0.0))
    assert seen == [n for n in there if n < 20]
    beyond = any(n >= 20 for n in there)
    assert (found.ends.get(P) == 20) == beyond
    assert (P in inner.paused) == beyond


@given(st.lists(st.sampled_from("ab"), max_size=60), st.integers(1, 9))
def test_a_skimmed_range_gives_out_what_may_be_meant_and_passes_only_the_rest(
    names: list[str], n: int
) -> None:
    left = [
        Message(topic=P.topic, partition=0, offset=at, value=name.encode())
        for at, name in enumerate(names)
    ]

    class Log(Inner):
        def poll(self, n: int, _timeout_s: float) -> Runs:
            taken, left[:n] = left[:n], []
            return by_partition(taken)

    span = Span(0, len(names) - len(names) // 4)
    found = RangeSource(Log([]), {P: span}, "t", skim=Selection(0, 9, "a").skim)  # type: ignore[arg-type] # as much as it needs
    meant = [at for at, name in enumerate(names[: span.end]) if name == "a"]
    seen: list[int] = []
    while left:
        given_out = offsets(found.poll(n, 0.0))
        assert len(given_out) <= n
        seen += given_out
        assert seen == meant[: len(seen)]
        assert found.ends.get(P, 0) <= (meant[len(seen)] if len(seen) < len(meant) else span.end)
    assert seen == meant
    # As the run loop moves: to behind what was given out, and to where there is nothing more.
    assert max([at + 1 for at in seen[-1:]] + [found.ends.get(P, 0)]) == span.end


def test_the_end_of_the_log_is_the_end_of_a_range_and_never_behind_it() -> None:
    inner = Inner([[record(P, 12)], []])
    found = source(inner)
    inner.ends[P] = 13
    assert offsets(found.poll(9, 0.0)) == [12]
    assert found.ends == {P: 13}
    inner.ends[P] = 40
    found.poll(9, 0.0)
    assert found.ends == {P: 15}


def test_a_range_of_which_retention_took_all_that_was_left_is_at_its_end() -> None:
    """Else its replay would wait for ever for what Kafka no longer has."""
    inner = Inner([])
    found = source(inner)
    assert found.seek(P, 99), "where Kafka begins now"
    assert not found.poll(9, 0.0)
    assert found.ends == {P: 15}
    assert inner.paused == [P]
    assert found.seek(P, 12)
    assert not found.ends


def test_of_a_partition_that_was_made_after_the_job_nothing_comes() -> None:
    later = Partition("raw_events", 1)
    inner = Inner([[record(P, 11)], [record(later, 0), record(P, 12)], [record(later, 1)]])
    found = source(inner)
    found.seek(later, 0)
    assert [offsets(found.poll(9, 0.0)) for _ in range(3)] == [[11], [12], []]


def test_without_a_position_a_range_begins_at_its_start_and_all_of_it_is_repeated() -> None:
    for committed, at in ((None, 10), (13, 13)):
        known = source(Inner([], committed)).known([P])[P]
        intent = Intent.read(known.note)
        assert known.committed == at
        assert intent is not None
        assert intent.spans == {P: Span(at, 15)}


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(
    ("span", "committed", "lost"),
    [
        (RANGE, 15, False), (Span(10, 10), None, False), (RANGE, 30, False),
        (RANGE, 12, True), (RANGE, None, True),
    ],
)  # fmt: skip
def test_what_retention_removes_behind_the_end_of_a_range_is_not_missed(
    span: Span, committed: int | None, lost: bool, repeated: bool
) -> None:
    """Where a part of the range itself is gone, a person has to say so."""
    found = RangeSource(Inner([], committed, earliest=40), {P: span}, "t", repeated=repeated)  # type: ignore[arg-type] # as much as it needs
    sink: Any = SimpleNamespace(resume=lambda known: {p: k.committed for p, k in known.items()})
    attempts: Any = SimpleNamespace(until_done=lambda _work, act: act(sink))
    placing = Placing(attempts, found, destination="heap", skip_lost=False)
    work = Work(0, {Cursor(P, RAW, 0): 0})
    if lost:
        with pytest.raises(Systemic, match="--skip-lost"):
            placing.place(work)
        return
    place = placing.place(work).places[P]
    assert found.seek(P, place.read)
    assert place == (40, 40), "of nothing below Kafka's start it is asked to read"
    assert found.ends == {P: span.end}


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize(("committed", "at"), [(None, 10), (12, 12)])
def test_of_a_position_that_may_be_forgotten_all_counts_as_sent_before(
    committed: int | None, at: int, forgotten: bool
) -> None:
    """It was half done, and rested for a week; where there is a position nothing was forgotten."""
    found = RangeSource(Inner([], committed), {P: RANGE}, "t", forgotten=forgotten)  # type: ignore[arg-type] # as much as it needs
    known = found.known([P])[P]
    assert known.committed == at
    intent = Intent.read(known.note)
    said = {} if intent is None else intent.spans
    assert said == ({P: RANGE} if forgotten and committed is None else {})


def test_a_topic_that_was_made_anew_stops_a_replay() -> None:
    with pytest.raises(Systemic, match="other records now"):
        source(Inner([]), topic_id="u").known([P])


def test_a_partition_without_a_range_is_at_its_end_and_rests() -> None:
    other = Partition("raw_events", 9)
    inner = Inner([[record(other, 3)]])
    found = source(inner)
    assert found.known([other])[other].committed == 100
    assert found.seek(other, 100)
    assert inner.paused == [other]
    assert offsets(found.poll(9, 0.0)) == []
    assert found.all_ends() == {P: 15}


def test_with_a_rate_no_more_comes_than_it_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    inner = Inner([[record(P, n)] for n in range(10, 14)])
    inner.serve = lambda: None  # type: ignore[attr-defined] # as much as it needs
    found = RangeSource(inner, {P: Span(10, 15)}, "t", 2.0)  # type: ignore[arg-type] # the same
    came = []
    while len(came) < 4:
        came += [(now[0], o) for o in offsets(found.poll(500, 0.1))]
    assert [o for _, o in came] == [10, 11, 12, 13]
    assert came[-1][0] == pytest.approx(1.5)


# -- where to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgres://me:pw@db:5432/prod", "postgres://me@db:5432/prod"),
        ("postgres://me:p%40w@db/prod?sslmode=require", "postgres://me@db/prod?sslmode=require"),
        ("postgres://db/prod?password=pw&user=me", "postgres://db/prod?user=me"),
        ("postgres://db/prod", "postgres://db/prod"),
    ],
)
def test_a_url_is_kept_without_its_password(url: str, kept: str) -> None:
    assert without_password(url) == kept
