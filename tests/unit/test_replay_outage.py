"""Jobs that outages make: noted once, known from others, the oldest first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.bounds import Bounds
from consumers.decode import Decoder
from consumers.errors import Systemic, Unavailable
from consumers.forward import engine, live
from consumers.forward.gap import Gap
from consumers.forward.settings import from_tables
from consumers.lanes import Totals
from consumers.replay import beside, legs, outage
from consumers.replay.beside import Beside
from consumers.replay.job import Job, Origin, State
from consumers.replay.keeper import Keeper
from consumers.replay.missing import Accepted
from consumers.replay.outage import Board, Filling, Raw
from consumers.replay.run import selection_of
from consumers.replay.select import Selection
from consumers.replay.table import number_at
from consumers.replay.target import vendor_target
from consumers.trace.allowlist import from_table
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN
from ingest.units import HOUR_MS

STREAM = BUILT_IN["raw_events"]
P = Partition("raw_events", 2)
GAP = Gap("3f9c01d2", "topic", {P: Span(5, 9)}, 1000, 61_000, begun=True)
# Made once: the first one takes longer than an example may.
DECODER = Decoder(STREAM)


class Topic:
    """The topic of jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.puts = 0

    def readable(self) -> dict[str, Job]:
        return dict(self.jobs)

    def ids(self) -> set[str]:
        return set(self.jobs)

    def get(self, job_id: str) -> Job:
        return self.jobs[job_id]

    def go_on(self, job: Job) -> int | None:
        return None if self.jobs[job.id].state.over else self.put(job)

    def put(self, job: Job) -> int:
        self.jobs[job.id] = job
        self.puts += 1
        return 0


def keep(topic: Any, gap: Gap = GAP, since_ms: int = 1000) -> Job:
    def since(spans: Mapping[int, Span]) -> int:
        assert spans == {p.number: span for p, span in gap.spans.items()}
        return since_ms

    Keeper(topic, "heap", STREAM, since)(gap)
    job: Job = topic.jobs[gap.job_id]
    return job


def test_a_gap_is_a_job_with_its_ranges_and_the_times_of_the_outage() -> None:
    job = keep(Topic())
    assert (job.to, job.stream, job.topic_id, job.spans) == (
        "heap", "raw_events", "topic", {2: Span(5, 9)},
    )  # fmt: skip
    assert (job.begin_us, job.end_us) == (1_000_000, 61_000_000)
    assert (job.origin, job.repeated, job.state) == (Origin.OUTAGE, True, State.OPEN)
    assert Job.read(job.value()) == job


def test_a_job_of_a_forgotten_position_sends_what_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = keep(Topic(), replace(GAP, only_missing=True))
    assert job.only_missing
    assert Job.read(job.value()) == job
    asked: list[tuple[object, ...]] = []

    def load(accepted: Accepted, *of: object) -> None:
        asked.append(of)
        accepted.add("heap", [Receipt(
            vendor="heap", status="accepted", event_id="e7", source_topic="raw_events",
            source_partition=2, source_offset=7,
        )])  # fmt: skip

    monkeypatch.setattr(Accepted, "load", load)
    for one in (job, replace(job, begin_us=6, table_until_us=8)):
        selection = selection_of({}, BUILT_IN, one)
        taken = batch([5] * 10, range(5, 9))
        assert [n for c in selection.of(taken).chunks for n in c.offsets] == [5, 6, 8]
    assert [of[3:] for of in asked] == [(job.begin_us, None), (6, None)]


def test_a_forgotten_position_that_is_too_long_for_receipts_is_told_with_what_to_do() -> None:
    long = replace(GAP, spans={P: Span(5, 2**26 + 6)}, only_missing=True)
    with pytest.raises(Systemic, match=r"cancel 3f9c01d2.*--to heap --from TIME --until TIME"):
        selection_of({}, BUILT_IN, keep(Topic(), long))


def test_a_job_begins_when_the_first_of_it_was_published_if_that_was_before_the_outage() -> None:
    """The process that leaps may have been started days after the vendor went away."""
    assert keep(Topic(), since_ms=400).begin_us == 400_000
    assert keep(Topic(), since_ms=5000).begin_us == 1_000_000
    assert keep(Topic(), since_ms=0).begin_us == 0, "nobody knows"


def test_a_job_is_not_noted_before_it_is_known_when_it_begins() -> None:
    def away(_: Mapping[int, Span]) -> int:
        raise Unavailable("away, by the test")

    topic: Any = Topic()
    keeper = Keeper(topic, "heap", STREAM, away)
    for _ in range(2):
        with pytest.raises(Unavailable):
            keeper(GAP)
    assert not topic.jobs


def test_a_job_that_there_is_already_is_left_as_it_is() -> None:
    topic = Topic()
    topic.jobs[GAP.job_id] = done = keep(topic).moved(State.DONE)
    assert keep(topic) == done
    assert topic.puts == 1


def test_a_job_of_an_older_record_came_of_a_command() -> None:
    value = keep(Topic()).value().replace(b',"origin":"outage","repeated":true', b"")
    assert b"origin" not in value
    job = Job.read(value)
    assert (job.origin, job.repeated) == (Origin.COMMAND, True)


@pytest.mark.parametrize("origin", Origin)
def test_only_what_an_outage_left_out_is_sent_as_what_the_vendor_has_never_refused(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it refuses most of that, it is a setting: nothing of it must be rejected for good.

    The table gives what was refused in the hour before, all at its beginning: at each resume.
    """
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(engine, "Engine", lambda *_, **said: made.append(said))
    monkeypatch.setattr(live, "Receipts", lambda *_: None)
    tables = {"heap": {"app_id_env": "K"}}
    whole = replace(keep(Topic()), origin=origin)
    of_table, of_kafka = legs.legs(replace(whole, table_until_us=whole.end_us))
    assert of_table is not None
    # What has no yes may have had a no before.
    lacking = replace(whole, only_missing=True)
    for job in (whole, of_table, of_kafka, lacking):
        target = vendor_target(
            {}, BUILT_IN, from_table({"events": {"seen": {}}}, tables),
            from_tables(tables, {"K": "k"})["heap"], job,
        )  # fmt: skip
        target.open(SimpleNamespace())  # type: ignore[arg-type] # it is not asked
    assert all(said["backfill"] for said in made)
    of_an_outage = origin is Origin.OUTAGE
    assert [said["unjudged"] for said in made] == [of_an_outage, False, of_an_outage, False]


def test_outages_jobs_come_oldest_first_and_commands_jobs_are_others_business() -> None:
    first = keep(Topic())
    later = replace(first, id="later", begin_us=first.begin_us + 1)
    paused = replace(first, id="paused", begin_us=first.begin_us + 2, state=State.PAUSED)
    others = [
        replace(first, id="command", origin=Origin.COMMAND),
        replace(first, id="other", to="ga4"),
        first.moved(State.CANCELLED),
    ]
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    for job in (paused, later, replace(first, id="first"), *others):
        board.tell(job)
    assert [job.id for job in board.of("heap")] == ["first", "later", "paused"]


def test_a_job_goes_on_as_long_as_nobody_notes_it_otherwise() -> None:
    job = keep(Topic())
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    assert board.stands(job), "nothing else is known"
    board.tell(Job.read(job.value()))
    assert board.stands(job), "noted once more"
    board.tell(replace(job, rate=100.0))
    assert not board.stands(job)
    board.tell(job.moved(State.PAUSED))
    assert not board.stands(job)


def test_a_job_that_is_noted_once_more_is_news_and_one_that_is_only_read_is_not() -> None:
    topic = Topic()
    job = keep(topic)
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    topic.jobs[job.id] = again = Job.read(job.value())
    board.read()
    assert board.of("heap")[0] is job
    board.tell(again)
    assert board.of("heap")[0] is again


@pytest.mark.parametrize("over", [State.DONE, State.CANCELLED])
def test_what_is_over_is_not_begun_again_for_a_record_that_came_too_late(over: State) -> None:
    job = keep(Topic())
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    board.tell(job.moved(over))
    board.tell(job)
    assert not board.of("heap")


def test_a_cancel_that_comes_while_all_jobs_are_read_is_not_undone_by_them() -> None:
    """With --drain, which reads them again before it ends."""
    topic = Topic()
    job = keep(topic)

    def readable() -> dict[str, Job]:
        board.tell(job.moved(State.CANCELLED))
        return {job.id: job}

    board = Board(SimpleNamespace(readable=readable))  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    board.read()
    assert not board.of("heap")
    assert not board.stands(job)


def told_of() -> tuple[Job, Board, Filling]:
    """A job, a board that has been told of it, and who is to run it."""
    topic = Topic()
    job = keep(topic)
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    filling = Filling({}, BUILT_IN, "heap", topic, board, None)  # type: ignore[arg-type] # the same
    return job, board, filling


@pytest.mark.parametrize("state", [State.PAUSED, State.CANCELLED])
def test_a_replay_under_way_stops_when_somebody_says_so(state: State) -> None:
    job, board, filling = told_of()
    stopped, over = threading.Event(), threading.Event()
    loop: Any = SimpleNamespace(stop=stopped.set)
    watching = threading.Thread(target=filling._watch, args=(job, loop, over))
    watching.start()
    try:
        assert not stopped.wait(0.05)
        board.tell(job.moved(state))
        assert stopped.wait(10)
    finally:
        over.set()
        watching.join(10)


def test_a_loop_that_was_stopped_is_over_before_its_job_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else two engines send the same events at once."""
    job = keep(Topic())
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    filling = Filling({}, BUILT_IN, "heap", Topic(), board, Mock())  # type: ignore[arg-type] # the same
    left = [False, False, True]

    class Loop:
        def run(self, *, drain: bool) -> None:
            assert drain

        def stop(self) -> None: ...

        @property
        def ended(self) -> bool:
            return left.pop(0)

    monkeypatch.setattr(outage, "passed", lambda *_: {P: 0})
    monkeypatch.setattr(outage, "_SETTLE_S", 0.001)
    monkeypatch.setattr(outage, "runner", lambda *_, **__: Loop())
    filling._run(job, job)
    assert not left
    left = [False]
    filling.stop()
    filling._run(job, job)
    assert not left, "a process that ends takes it along"


# -- those that can't go on ------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [State.DONE, State.PAUSED, State.CANCELLED])
def test_a_job_that_was_stuck_is_an_error_until_it_goes_on_or_is_open_no_more(
    monkeypatch: pytest.MonkeyPatch, elsewhere: State
) -> None:
    job, board, filling = told_of()
    monkeypatch.setattr(outage, "conclude", lambda *_: State.OPEN)
    ends: list[Systemic | None] = []

    def run(*_: object, **__: object) -> bool:
        if (error := ends.pop(0)) is not None:
            raise error
        return True

    def fill(*how: Systemic | None) -> None:
        for end in how:
            board.tell(again := Job.read(job.value()))
            assert filling._next() is again, "noted once more, it is tried again"
            ends.append(end)
            filling._fill(again)

    monkeypatch.setattr(filling, "_run", run)
    refused = Systemic("refused, by the test")
    fill(refused)
    assert filling.error is refused
    assert filling._next() is None
    fill(None)
    assert filling.error is None
    fill(refused)
    assert filling.error is refused
    board.tell(job.moved(elsewhere))
    assert filling.error is None


def test_a_job_that_a_newer_headrace_has_noted_meanwhile_leaves_the_other_replays_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a rolling upgrade: the board has it as it was, and its end can't be noted."""
    filling = told_of()[2]
    newer = Systemic("written by a newer headrace, by the test")
    monkeypatch.setattr(filling, "_run", lambda *_, **__: True)
    monkeypatch.setattr(outage, "conclude", Mock(side_effect=newer))
    filling.finish()
    filling.run()
    assert filling.error is newer


# -- by way of the table ---------------------------------------------------------------------------


def around(
    monkeypatch: pytest.MonkeyPatch,
    job: Job,
    *,
    done: int = 0,
    low: int = 7,
    skip_lost: bool = False,
) -> tuple[Job, Topic]:
    """The job as it is to be run where Kafka has the range from `low` on, and the topic of jobs."""
    topic = Topic()
    topic.jobs[job.id] = job
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    monkeypatch.setattr(outage, "passed", lambda *_: {P: done})
    monkeypatch.setattr(outage, "bounds", lambda *_: Bounds({2: Span(low, 9)}, ()))
    monkeypatch.setattr(legs, "not_landed", lambda *_: [])
    raw = Raw("postgres://db/prod", None)  # type: ignore[arg-type] # it is not opened
    filling = Filling(
        {}, BUILT_IN, "heap", topic, board, None, skip_lost=skip_lost, raw=raw  # type: ignore[arg-type] # the same
    )  # fmt: skip
    return filling._around_the_lost(job), topic


def test_a_job_goes_by_way_of_the_table_as_soon_as_a_part_of_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = replace(keep(Topic()), begin_us=5 * HOUR_MS * 1000, end_us=9 * HOUR_MS * 1000)
    assert around(monkeypatch, job, low=5)[0] is job
    assert around(monkeypatch, job, done=2)[0] is job, "what is lost was sent before"
    found, topic = around(monkeypatch, job)
    assert (found.begin_us, found.table_until_us) == (4 * HOUR_MS * 1000, job.end_us)
    assert (found.skip_lost, found.repeated) == (True, True)
    assert topic.jobs == {job.id: found}
    assert around(monkeypatch, found)[0] is found, "once"


def test_where_nobody_knows_how_far_back_to_ask_the_table_a_person_has_to_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = keep(Topic(), since_ms=0)
    with pytest.raises(
        Systemic, match=r"--to heap --from TIME --only-missing.*3f9c01d2 --skip-lost"
    ):
        around(monkeypatch, job)
    assert around(monkeypatch, job, low=5)[0] is job, "as long as all of it is there"
    for told in (replace(job, skip_lost=True), job):
        found, topic = around(monkeypatch, told, skip_lost=told is job)
        assert found is told
        assert not topic.puts


@settings(deadline=None)
@given(st.data())
def test_table_and_kafka_together_give_each_event_that_is_lacking_once(data: st.DataObject) -> None:
    """Whatever Kafka has lost, and however long ago the gap begins.

    But what was taken more than an hour before the range was published, and is lost, is no more.
    """
    minutes = st.integers(0, 1000)
    published = sorted(data.draw(st.lists(minutes, min_size=1, max_size=25)))
    # Of some the collector's spool was cut off, and of one or the other for very long.
    delays = [data.draw(st.sampled_from([0, 0, 0, 30, 59, 200])) for _ in published]
    taken_us = [
        (10_000 + at - late) * 60_000_000 for at, late in zip(published, delays, strict=True)
    ]
    start = data.draw(st.integers(0, len(published) - 1))
    low = data.draw(st.integers(start, len(published)))
    accepted = data.draw(st.sets(st.integers(0, len(published))))
    since_ms = (10_000 + data.draw(minutes)) * 60_000
    gap = replace(
        GAP, spans={P: Span(start, len(published))}, since_ms=since_ms, until_ms=12_000 * 60_000
    )
    job = keep(Topic(), gap, (10_000 + published[start]) * 60_000)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(legs, "not_landed", lambda *_: [])
        if low > start:
            job = legs.from_table({}, "postgres://db/prod", STREAM, job)
    first, last = legs.legs(job)

    # The table has them all, and leaves out what has been accepted.
    of_table = []
    if first is not None:
        begin, end = first.spans[0]
        of_table = [
            n
            for n, at in enumerate(taken_us)
            if begin <= number_at(at) < end and at < first.end_us and n not in accepted
        ]
    there = range(max(start, low), len(published))
    selection = selection_of({}, {}, last)
    of_kafka = [n for c in selection.of(batch(taken_us, there)).chunks for n in c.offsets]

    assert not set(of_table) & set(of_kafka), "twice"
    wanted = set(range(start, len(published))) - (accepted if low > start else set())
    too_old = {n for n in range(start, low) if taken_us[n] < job.begin_us}
    assert all(published[start] - published[n] + delays[n] > 60 for n in too_old)
    assert wanted - too_old <= {*of_table, *of_kafka}


def batch(taken_us: list[int], offsets: range) -> Batch:
    """Events, each of which is called by its offset."""
    payloads = []
    for n in offsets:
        event = RawEvent(event_id=f"e{n}", content_type="application/json", data="{}")
        event.received_at.FromMicroseconds(taken_us[n])
        payloads.append(event.SerializeToString())
    if not payloads:
        return Batch(STREAM, {}, ())
    rows, bad = DECODER.decode(payloads)
    assert not bad
    return Batch(
        STREAM, {P: Span(offsets.start, offsets.stop)},
        (Chunk(P, offsets, rows, DECODER.times_us),),
    )  # fmt: skip


@pytest.mark.parametrize("behind", [False, True])
def test_a_job_that_is_cancelled_while_the_table_is_looked_at_stays_so(
    monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """Also where the board is behind, as for seconds where its connection was lost."""
    job = replace(keep(Topic()), begin_us=5 * HOUR_MS * 1000, end_us=9 * HOUR_MS * 1000)
    topic = Topic()
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    monkeypatch.setattr(outage, "passed", lambda *_: {P: 0})
    monkeypatch.setattr(outage, "bounds", lambda *_: Bounds({2: Span(7, 9)}, ()))

    def cancelled(*_: object) -> list[int]:
        topic.jobs[job.id] = job.moved(State.CANCELLED)
        if not behind:
            board.tell(topic.jobs[job.id])
        return []

    monkeypatch.setattr(legs, "not_landed", cancelled)
    raw = Raw("postgres://db/prod", None)  # type: ignore[arg-type] # it is not opened
    filling = Filling({}, BUILT_IN, "heap", topic, board, None, raw=raw)  # type: ignore[arg-type] # the same
    assert filling._around_the_lost(job) is job
    assert not topic.puts
    assert not board.stands(job), "so that its watch ends it at once"


def test_what_kafka_has_of_a_job_waits_until_the_table_has_given_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = Topic()
    job = replace(keep(topic), begin_us=5, end_us=9, table_until_us=9)
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    filling = Filling({}, BUILT_IN, "heap", topic, board, None)  # type: ignore[arg-type] # the same
    monkeypatch.setattr(outage, "conclude", lambda *_: State.OPEN)
    ran: list[str] = []
    for done, wanted in ((False, [f"{job.id}-table"]), (True, [f"{job.id}-table", job.id])):
        ran.clear()

        def run(_job: Job, leg: Job, *, of_table: bool = False, done: bool = done) -> bool:
            ran.append(leg.id)
            return done

        monkeypatch.setattr(filling, "_run", run)
        filling._fill(job)
        assert ran == wanted


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("days", [5, 7])
def test_a_job_that_kafka_may_have_forgotten_sends_only_what_is_not_accepted_yet(
    days: int, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it was sent, then it was paused for a week: it would begin anew, and unmarked."""
    topic = Topic()
    job = replace(keep(topic, replace(GAP, begun=False)), created_us=time.time_ns() // 1000)
    job = replace(job, created_us=job.created_us - days * 24 * HOUR_MS * 1000)
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    filling = Filling({}, BUILT_IN, "heap", topic, board, lambda leg: leg)  # type: ignore[arg-type,return-value] # the same
    monkeypatch.setattr(outage, "passed", lambda *_: {P: done})
    monkeypatch.setattr(Accepted, "load", lambda *_: None)
    ran: list[tuple[Job, bool]] = []

    def runner(_kafka: Any, _stream: Any, leg: Job, meant: Selection, _to: Any, **_: Any) -> Any:
        ran.append((leg, meant.wanted is not None))
        return SimpleNamespace(run=lambda **_: None, stop=lambda: None, ended=True)

    monkeypatch.setattr(outage, "runner", runner)
    filling._run(job, job)
    anew = days > 6 and not done
    assert ran == [(replace(job, only_missing=anew), anew)]


# -- beside what is live ---------------------------------------------------------------------------


class Live:
    """A vendor's live loop that is well, until it is stopped."""

    away_s = 0.0
    problem = None

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def stop(self) -> None: ...

    def run(self, *, drain: bool) -> Totals:
        self.meanwhile()
        return Totals()


class Broken:
    """Replays that a bug, or a job that can't be read, has ended."""

    rows = 0
    error = None

    def __init__(self) -> None:
        self.ended = threading.Event()

    def run(self) -> None:
        self.ended.set()
        raise RuntimeError("the topic is gone")

    def finish(self) -> None: ...


def test_replays_that_have_ended_by_themselves_are_a_problem_that_readyz_shows() -> None:
    filling, seen = Broken(), []

    def meanwhile() -> None:
        deadline = time.monotonic() + 10
        while both.problem is None and time.monotonic() < deadline:
            filling.ended.wait(0.01)
        seen.append(both.problem)

    both = Beside("heap", Live(meanwhile), filling, Looked())  # type: ignore[arg-type] # as much as it needs
    both.run()
    assert seen == ["its replays have stopped, start the forwarder again: the topic is gone"]


def test_a_stop_does_not_wait_for_a_replay_that_reads_receipts_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "_STOP_S", 0.1)
    monkeypatch.setattr(beside, "_JOIN_S", 0.01)
    read = threading.Event()
    filling = SimpleNamespace(
        run=lambda: read.wait(20), stop=lambda: None, finish=lambda: None, rows=0, error=None
    )

    def meanwhile() -> None:
        both.stop()

    both = Beside("heap", Live(meanwhile), filling, Looked())  # type: ignore[arg-type] # as much as it needs
    began = time.monotonic()
    both.run()
    assert time.monotonic() - began < 10
    read.set()


class Looked:
    """What dates the vendor's positions; at first Kafka is away, and then there is a bug."""

    def __init__(self) -> None:
        self.looks = 0
        self.well = threading.Event()

    def look(self) -> None:
        self.looks += 1
        if self.looks == 1:
            raise Unavailable("away, by the test")
        if self.looks == 2:
            raise RuntimeError("a bug, by the test")
        self.well.set()


def test_while_the_vendor_is_away_it_is_noted_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "_LOOK_S", 0.001)
    looked = Looked()

    def meanwhile() -> None:
        time.sleep(0.02)
        assert not looked.looks, "it is well"
        live.away_s = 3.0
        assert looked.well.wait(10), "until it is noted"
        time.sleep(0.02)
        assert looked.looks == 3, "and not again and again"

    live = Live(meanwhile)
    Beside("heap", live, Broken(), looked).run()  # type: ignore[arg-type] # as much as it needs
