"""Sums say how many and which; the equation holds only where they do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_truth import hash_of, truth

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from consumers.bounds import Bounds
from consumers.client import Settings
from consumers.errors import Unavailable
from consumers.intent import Intent
from consumers.ledger import accepted, account, scan, tally
from consumers.ledger.accepted import Book, Overtaken, Read
from consumers.ledger.account import Account, positions_of
from consumers.ledger.audit import Line, audit, equation
from consumers.ledger.finding import Finding, Question
from consumers.ledger.tally import NOTHING, Bucket, Entry, Sum, entries_of
from consumers.ledger.truncated import Overwritten, Truncated
from consumers.sinks import Known
from ingest.streams import BUILT_IN
from ingest.units import HOUR_US

STREAM = BUILT_IN["device_state"]
P = Partition(STREAM.topic, 1)
HOUR = 486_120


def sum_of(*offsets: int) -> Sum:
    return Sum(len(offsets), hash_of(offsets))


@settings(deadline=None, derandomize=True)
@given(
    st.integers(0, 2**62),
    st.lists(
        st.tuples(
            # Runs of offsets, and gaps between them.
            st.sampled_from([1, 1, 1, 1, 2, 5]),
            # The earliest and the latest that a stream takes, and the edges of hours.
            st.sampled_from([HOUR * HOUR_US] * 3 + [-HOUR_US - 1, -HOUR_US, -1, 0, HOUR_US - 1])
            | st.integers(-2_208_988_800_000_000, 10_413_791_999_999_999),
        ),
        min_size=1,
        max_size=30,
    ),
    st.booleans(),
    st.sampled_from([1, 2, 8]),
)
def test_sums_are_those_of_one_record_after_the_other(
    first: int, records: list[tuple[int, int]], known: bool, run: int
) -> None:
    offsets = list(accumulate((step for step, _ in records), initial=first - 1))[1:]
    times = [at for _, at in records]
    whole = batch(times, offsets)
    if known:
        (chunk,) = whole.chunks
        chunk = replace(chunk, times_us=(min(times), max(times)))
        whole = replace(whole, chunks=(chunk,))
    with mock.patch.object(tally, "_RUN", run):
        found = {(0, bucket.hour): tuple(e.rows) for bucket, e in entries_of(whole).items()}
    assert found == truth((0, o, at // 1_000_000) for o, at in zip(offsets, times, strict=True))


def test_a_chunk_of_one_hour_is_summed_up_without_a_look_at_its_rows() -> None:
    at = HOUR * HOUR_US
    chunk = Chunk(P, range(7, 5007), pa.record_batch({"nothing": []}), (at, at + HOUR_US - 1))
    found = entries_of(Batch(STREAM, {P: Span(0, 5007)}, (chunk,)))
    assert found == {Bucket(P, HOUR): Entry(sum_of(*range(7, 5007)))}


def test_chunks_of_one_hour_that_follow_each_other_are_summed_up_as_one() -> None:
    other, empty = Partition(STREAM.topic, 2), pa.record_batch({"nothing": []})

    def chunk(partition: Partition, hour: int, *offsets: int) -> Chunk:
        at = hour * HOUR_US
        return Chunk(partition, offsets, empty, (at, at + HOUR_US - 1))

    chunks = (
        chunk(P, HOUR, 3, 4), chunk(other, HOUR, 5), chunk(P, HOUR, 5, 6), chunk(P, HOUR, 8),
        chunk(P, HOUR, 9, 11), chunk(P, HOUR, 12), chunk(other, HOUR, 6, 7),
        chunk(P, HOUR + 1, 13), chunk(P, HOUR, 14),
    )  # fmt: skip
    found = entries_of(Batch(STREAM, {P: Span(0, 15), other: Span(0, 8)}, chunks))
    assert found == {
        Bucket(P, HOUR): Entry(sum_of(3, 4, 5, 6, 8, 9, 11, 12, 14)),
        Bucket(P, HOUR + 1): Entry(sum_of(13)),
        Bucket(other, HOUR): Entry(sum_of(5, 6, 7)),
    }


def test_sums_are_added_and_taken_away() -> None:
    assert sum_of(3, 1, 2) == sum_of(1).plus(sum_of(2, 3))
    assert sum_of(1, 2, 3).minus(sum_of(2)) == sum_of(3, 1)
    assert sum_of(7).minus(sum_of(7)) == NOTHING


def test_one_for_another_is_another_sum() -> None:
    assert sum_of(1, 2, 3).records == sum_of(1, 2, 2).records
    assert sum_of(1, 2, 3) != sum_of(1, 2, 2)
    # What a plain sum of offsets, or of their squares, would not tell apart.
    assert sum_of(0, 3, 5, 6) != sum_of(1, 2, 4, 7)


def batch(times_us: list[int], offsets: list[int], dead: tuple[Dead, ...] = ()) -> Batch:
    times = pa.array(times_us, pa.timestamp("us", "UTC"))
    rows = pa.record_batch([times], names=["timestamp"])
    return Batch(STREAM, {P: Span(0, 100)}, (Chunk(P, offsets, rows),), dead)


def test_a_batch_is_accounted_for_by_the_hour_dead_letters_by_theirs() -> None:
    at = HOUR * HOUR_US
    found = entries_of(batch([at, at + 1, at - 1], [4, 5, 9], (Dead(P, 6, at), Dead(P, 7, 0))))
    assert found == {
        Bucket(P, HOUR): Entry(sum_of(4, 5), 0, sum_of(6)),
        Bucket(P, HOUR - 1): Entry(sum_of(9)),
        Bucket(P, 0): Entry(dead=sum_of(7)),
    }
    assert found[Bucket(P, HOUR)].settled == sum_of(4, 5, 6)


def test_rows_that_were_there_already_are_dropped_not_landed() -> None:
    at = HOUR * HOUR_US
    found = entries_of(batch([at, at, at], [1, 2, 3]), {HOUR: 2})
    (entry,) = found.values()
    assert (entry.landed, entry.dropped, entry.settled) == (2, 1, sum_of(1, 2, 3))


WHOLE = Entry(sum_of(1, 2, 3), 1, sum_of(4))
AHEAD = sum_of(5)


def line(entry: Entry = WHOLE, accepted: Sum | None = None, since_us: int = 0) -> Line:
    bucket = Bucket(P, HOUR)
    (found,) = equation(
        STREAM, "there", Account({P: 5}, {bucket: entry}),
        {bucket: accepted or sum_of(1, 2, 3, 4, 5)}, {bucket: AHEAD}, {P: Read(6, since_us)},
    )  # fmt: skip
    return found


def test_the_equation_holds_where_every_record_is_accounted_for_once() -> None:
    found = line()
    assert found.holds
    assert (found.accepted, found.landed, found.dropped, found.dead, found.in_flight) == (
        5, 2, 1, 1, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "difference"),
    [
        (replace(WHOLE, rows=sum_of(1, 2)), 1),
        (replace(WHOLE, rows=sum_of(1, 2, 3, 3)), -1),
        (replace(WHOLE, dead=NOTHING), 1),
        (replace(WHOLE, rows=sum_of(1, 2, 2)), 0),
    ],
    ids=["one is missing", "one is there twice", "a dead letter is missing", "one for another"],
)
def test_it_does_not_hold_otherwise_also_where_the_numbers_do(
    entry: Entry, difference: int
) -> None:
    found = line(entry)
    assert (found.holds, found.difference, found.differing) == (False, difference, (P,))


def test_the_same_records_in_other_hours_are_told_apart_from_others() -> None:
    """As when a stream's time is another field between what counts them and what lands them."""
    entries = {Bucket(P, HOUR): Entry(sum_of(1, 2)), Bucket(P, HOUR + 2): Entry(sum_of(3, 4))}
    for offsets, moved in (((1, 2, 3, 4), True), ((1, 2, 3, 5), False)):
        totals = {Bucket(P, HOUR): sum_of(*offsets)}
        lines = equation(STREAM, "db", Account({P: 9}, entries), totals, {}, {})
        assert [(one.difference, one.moved, one.holds) for one in lines] == [
            (2, moved, False), (-2, moved, False),
        ]  # fmt: skip


def test_an_hour_of_which_some_had_expired_is_judged_neither_way() -> None:
    accepted = sum_of(3, 4, 5)
    assert not line(accepted=accepted).holds
    assert line(accepted=accepted, since_us=HOUR * HOUR_US + 1).partial
    assert line(accepted=accepted, since_us=HOUR * HOUR_US + 1).holds
    # A clock that is ahead has put one into the next hour.
    assert line(accepted=accepted, since_us=HOUR * HOUR_US).partial
    assert not line(accepted=accepted, since_us=HOUR * HOUR_US - 600_000_000).holds


@pytest.mark.parametrize(
    "accepted",
    [sum_of(1, 2, 3, 4, 5, 6), sum_of(1, 2, 3, 4, 6)],
    ids=["more than there is", "as many, and others"],
)
def test_what_expired_uncounted_excuses_no_loss(accepted: Sum) -> None:
    """It can only be lacking among what was accepted."""
    found = line(accepted=accepted, since_us=HOUR * HOUR_US + 1)
    assert (found.holds, found.partial, found.differing) == (False, False, (P,))


def test_a_vendor_that_has_done_more_than_was_accepted_is_not_excused_by_what_has_expired() -> None:
    """Of its account what Kafka has no more is lacking, and nothing else."""

    def vendor(accepted: Sum) -> Line:
        bucket, late = Bucket(P, HOUR), {P: HOUR * HOUR_US + 1}
        account = Account({P: 5}, {bucket: WHOLE}, since_us=late)
        (found,) = equation(STREAM, "there", account, {bucket: accepted}, {}, {P: Read(6, 0)})
        return found

    assert vendor(sum_of(1, 2, 3, 4, 5)).partial
    assert not vendor(sum_of(2, 3, 4)).holds


def test_what_expired_in_one_partition_excuses_no_other() -> None:
    bucket, other = Bucket(P, HOUR), Bucket(P._replace(number=2), HOUR)
    late = HOUR * HOUR_US + 1
    (found,) = equation(
        STREAM, "there", Account({}, {bucket: Entry(sum_of(1)), other: Entry(sum_of(1))}),
        {bucket: sum_of(1, 2)}, {}, {P: Read(3, 0), other.partition: Read(3, late)},
    )  # fmt: skip
    assert (found.holds, found.partial, found.differing) == (False, False, (P,))


def test_rows_that_differ_are_not_excused_by_what_has_expired() -> None:
    found = line(accepted=sum_of(3, 4, 5), since_us=HOUR * HOUR_US + 1)
    assert found.partial
    assert not replace(found, findings=(Finding(HOUR, -1, "e1", (P, 4)),)).holds


def test_no_more_is_excused_than_a_destination_has_refused() -> None:
    bucket = Bucket(P, HOUR)
    letters = {(P, 4), (P, 6)}
    question = Question(STREAM, "id", 0, 1, {}, {}, {}, lambda _: iter(()), lambda: letters)

    def excused(*missing: int, dead: Sum) -> set[int]:
        found = question.excused({bucket: list(missing)}, {bucket: Entry(dead=dead)})
        return {offset for _, offset in found}

    assert excused(4, 6, dead=sum_of(4, 6)) == {4, 6}
    assert excused(4, 5, dead=sum_of(4)) == {4}
    assert excused(4, 6, dead=sum_of(4)) == set(), "which of the two nobody knows"
    assert excused(4, 6, dead=NOTHING) == set(), "another destination's letters"
    assert excused(5, dead=sum_of(4)) == set()


def test_what_a_group_has_committed_of_a_topic_that_was_made_anew_is_no_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it says which topic it was; what others commit has no note."""
    partitions = [Partition(STREAM.topic, number) for number in range(4)]
    notes = [Intent(topic, {}, 0).note() for topic in ("before", "now")]
    known = {
        p: Known("now", 0, 9, committed, note)
        for p, committed, note in zip(partitions, (4, 5, 6, None), [*notes, "", ""], strict=True)
    }
    lookup = SimpleNamespace(all_ends=lambda: known, known=lambda _: known, close=lambda: None)
    monkeypatch.setattr(account, "Lookup", lambda *_: lookup)
    assert positions_of({}, "g", STREAM, "now") == {partitions[1]: 5, partitions[2]: 6}


def test_a_kafka_that_has_had_no_group_yet_is_given_the_time_to_make_a_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [KafkaError.NOT_COORDINATOR, None, KafkaError._TRANSPORT]

    def known(_: object) -> dict[Partition, Known]:
        code = answers.pop(0)
        if code is not None:
            raise Unavailable("") from KafkaException(KafkaError(code))
        return {P: Known("now", 0, 9, 4, "")}

    lookup = SimpleNamespace(all_ends=list, known=known, close=lambda: None)
    monkeypatch.setattr(account, "Lookup", lambda *_: lookup)
    monkeypatch.setattr(account, "_AGAIN_S", 0.0)
    assert positions_of({}, "g", STREAM, "now") == {P: 4}
    with pytest.raises(Unavailable):
        positions_of({}, "g", STREAM, "now")


# -- what Kafka has no more when it is counted -----------------------------------------------------


class Log:
    """Partition P as a book sees it: records without a value from `low` to `high`."""

    def __init__(self) -> None:
        self.low = self.high = 0
        # From which offset on records are of a leader.
        self.leaders = {0: 0}

    def bounds(self, _kafka: Settings, topic: str) -> Bounds:
        spans = {P.number: Span(self.low, self.high)} if topic == P.topic else {}
        return Bounds(spans, ())

    def pieces(
        self, _kafka: Settings, _topic: str, spans: Mapping[int, Span]
    ) -> Iterator[tuple[Partition, list[Message], Span]]:
        for start, end in spans.values():
            run = [
                Message(
                    topic=P.topic, partition=P.number, offset=offset, value=b"",
                    timestamp=(1, HOUR * HOUR_US // 1000),
                    leader_epoch=max(e for at, e in self.leaders.items() if at <= offset),
                )
                for offset in range(start, end)
            ]  # fmt: skip
            if run:
                yield P, run, Span(start, end)

    def count(self) -> tuple[Read | None, dict[Partition, Span]]:
        """By whoever opens the book next: how far he is then, and what was lost."""
        lost = Book({}).count(STREAM, "id")
        return Book({}).read("id").get(P), lost


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    written: list[Message] = []

    def produce(topic: str, value: bytes, key: bytes) -> None:
        written.append(Message(topic=topic, value=value, key=key))

    producer = mock.Mock(produce=produce)
    monkeypatch.setattr(accepted, "Producer", lambda _settings: producer)
    monkeypatch.setattr(accepted, "ensure", lambda *_, **__: None)
    monkeypatch.setattr(accepted, "topic_ids", lambda *_: {})
    monkeypatch.setattr(accepted, "bounds", log.bounds)
    monkeypatch.setattr(accepted, "read", lambda *_: [(P, written)])
    monkeypatch.setattr(scan, "bounds", log.bounds)
    monkeypatch.setattr(scan, "pieces", log.pieces)
    return log


def test_that_another_audit_is_why_a_producer_is_fatal_is_asked_of_the_next_poll(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a book with many records to put it was only "Fatal error"."""
    fenced = KafkaException(KafkaError(KafkaError._FENCED, fatal=True))
    producer = mock.Mock()
    producer.produce.side_effect = KafkaException(KafkaError(KafkaError._FATAL))
    producer.poll.side_effect = [fenced]
    monkeypatch.setattr(accepted, "Producer", lambda _settings: producer)
    with pytest.raises(Overtaken, match="another `headrace audit` has begun"):
        Book({}).keep({"node": {("n",): [1]}})


def test_of_a_partition_that_retention_has_emptied_no_hour_is_judged(log: Log) -> None:
    """A first look at a stream that rests; and one that has got records, which expired at once."""
    for low, lost in ((70, {}), (90, {P: Span(70, 90)})):
        log.low = log.high = low
        before_us = time.time_ns() // 1000
        read, said = log.count()
        assert said == lost
        assert read is not None
        assert read.next == low
        assert before_us <= read.since_us <= time.time_ns() // 1000
        # What has landed was never counted.
        bucket = Bucket(P, HOUR)
        account = Account({P: low}, {bucket: Entry(sum_of(1, 2))})
        (found,) = equation(STREAM, "there", account, {}, {}, {P: read})
        assert (found.difference, found.holds, found.partial) == (-2, True, True)
        # And it stays so, as long as nothing comes and expires.
        assert log.count() == (read, {})


def test_a_partition_that_was_counted_to_its_end_may_expire_and_is_judged(log: Log) -> None:
    assert log.count() == (None, {}), "nothing was ever there"
    log.high = 50
    assert log.count() == (Read(50, 0, 49, 0), {})
    log.low = 50
    assert log.count() == (Read(50, 0, 49, 0), {})
    log.high = 60
    assert log.count() == (Read(60, 0, 59, 0), {})


def test_a_partition_that_has_lost_a_part_is_judged_from_the_first_record_on(log: Log) -> None:
    log.low, log.high = 70, 80
    assert log.count() == (Read(80, HOUR * HOUR_US, 79, 0), {})
    log.low = log.high = 80
    assert log.count() == (Read(80, HOUR * HOUR_US, 79, 0), {})


def test_a_log_that_ends_below_what_was_counted_of_it_can_not_be_counted_on(log: Log) -> None:
    """A restored Kafka: what comes next has numbers that were counted already."""
    log.high = 50
    assert log.count() == (Read(50, 0, 49, 0), {})
    log.high = 49
    with pytest.raises(Truncated, match=r"was counted up to 50, but its log ends at 49"):
        log.count()
    assert Book({}).read("id") == {P: Read(50, 0, 49, 0)}, "it stays so"


def test_records_in_the_place_of_what_was_counted_are_not_counted_on(log: Log) -> None:
    """After an unclean election the log had grown past its old end again, and no end told of it."""
    log.high = 50
    log.count()
    log.high, log.leaders[50] = 60, 1
    assert log.count() == (Read(60, 0, 59, 1), {}), "another leader is nothing bad"
    log.high, log.leaders[55] = 70, 3
    for _ in range(2):
        with pytest.raises(Overwritten, match=r"counted up to 60, but what is at 59 now"):
            log.count()
    assert Book({}).read("id") == {P: Read(60, 0, 59, 1)}
    # And --deep says of what was counted how it is now.
    asked: Any = ({}, Book({}), STREAM, "id", {"there": Account({P: 60}, {})})
    with pytest.raises(Overwritten):
        audit(*asked, recount=True)
    (line,), _ = audit(*asked, recount=True, as_counted=True)
    assert line.accepted == 60


def test_who_else_writes_behind_what_has_expired_has_overwritten_nothing(log: Log) -> None:
    log.high = 50
    log.count()
    log.low, log.high, log.leaders[50] = 55, 60, 1
    assert log.count() == (Read(60, HOUR * HOUR_US, 59, 1), {P: Span(50, 55)})


@pytest.mark.parametrize(
    ("spans", "since_ms"),
    [
        ({0: (0, 9), 1: (0, 9)}, 0),
        ({0: (4, 9), 1: (2, 9)}, 40),
        ({0: (4, 9), 1: (7, 7)}, 40),
        ({0: (0, 9), 1: (7, 7)}, 0),
        ({0: (7, 7), 1: (7, 7)}, None),
        ({0: (4, 9), 1: (7, 8)}, 40),
        ({0: (7, 8), 1: (7, 7)}, None),
    ],
    ids=[
        "all is there",
        "the latest beginning",
        "one is empty",
        "whole beside it",
        "nothing",
        "a marker is no record",
        "nothing but a marker",
    ],
)
def test_rows_are_compared_whatever_rests_beside_them(
    monkeypatch: pytest.MonkeyPatch, spans: dict[int, tuple[int, int]], since_ms: int | None
) -> None:
    """A partition that retention has emptied has nothing to compare, and hides no other."""
    had = {n: Span(*span) for n, span in spans.items()}
    cut = tuple(n for n, span in had.items() if span.start)
    monkeypatch.setattr(scan, "bounds", lambda *_: Bounds(had, cut))

    def firsts(_kafka: Settings, _topic: str, asked: Mapping[int, Span]) -> dict[int, int]:
        # Offset 7 is the marker of a transaction whose records have gone.
        return {n: start * 10 for n, (start, end) in asked.items() if start < min(end, 7)}

    monkeypatch.setattr(scan, "firsts", firsts)
    before_us = time.time_ns() // 1000
    since_us, emptied = scan.whole_since({}, STREAM)
    assert emptied == (since_ms is None)
    assert since_us >= before_us if since_ms is None else since_us == since_ms * 1000
    # Of receipts one may have been any's, so there the empty one counts.
    if any(span.start == 7 for span in had.values()):
        since_us, emptied = scan.whole_since({}, STREAM, each=True)
        assert emptied and since_us >= before_us
