"""After an outage live events leap to the end; nothing between is lost, at whatever step it dies.

The world is Kafka's offsets and the topic of jobs; a sink is what may crash. What a job would send
is counted as sent by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from forward_world import STREAM, TRACE, Crash, crashing
from forward_world import World as Vendor

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Fenced, Moved, Unavailable
from consumers.forward.delivery import Delivery
from consumers.forward.gap import Gap, Gaps
from consumers.forward.sink import VendorSink
from consumers.intent import Intent
from consumers.sinks import Known, Notes
from consumers.trace.gate import Gate
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

OUTAGE_S = 60.0
TOPIC = STREAM.topic
PARTITIONS = [Partition(TOPIC, n) for n in range(3)]
A, B, C = PARTITIONS
END = 40


class World(Vendor):
    """Three partitions with records up to `end`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        # How long the vendor takes for a batch.
        self.takes_s = 0.0
        self.end = dict.fromkeys(PARTITIONS, END)
        self.mine = set(PARTITIONS)
        self.jobs: dict[str, Gap] = {}
        self.jobs_away = self.fenced = False
        # Partitions of which receipts say that the vendor has had events.
        self.had: set[Partition] = set()

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        if self.fenced or not positions.keys() <= self.mine:
            raise Fenced("given away")
        assert isinstance(notes, str)
        assert len(notes) <= 4096
        super().commit(positions, notes)

    def deliver(self, delivery: Delivery) -> None:
        super().deliver(delivery)
        self.now += self.takes_s

    def owned(self) -> set[Partition]:
        return set(self.mine)

    def all_ends(self) -> dict[Partition, int]:
        return dict(self.end)

    def keep(self, gap: Gap) -> None:
        if self.jobs_away:
            raise Unavailable("no jobs")
        self.jobs.setdefault(gap.job_id, gap)

    def sent_before(self, spans: Mapping[Partition, Span]) -> set[Partition]:
        return self.had & spans.keys()

    def known_of(self, *partitions: Partition) -> dict[Partition, Known]:
        found = {}
        for p in partitions:
            at, note = self.committed.get(p, (None, ""))
            found[p] = Known(self.id, 0, self.end[p], at, note)
        return found

    def open(self, *partitions: Partition, step: Callable[[str], Any] | None = None) -> VendorSink:
        """A process that is given these."""
        gaps = Gaps(self, OUTAGE_S, self.keep, lambda: self.now, self.sent_before)  # type: ignore[arg-type] # as much as it needs
        more = {} if step is None else {"step": step}
        sink = VendorSink("heap", Gate(TRACE, "heap"), self, self, self, gaps=gaps, **more)
        sink.resume(self.known_of(*partitions))
        return sink

    def away_for(self, sink: VendorSink, batch: Batch, seconds: float) -> None:
        """The vendor does not answer this batch, for so long, and then does."""
        self.away = True
        for wait in (0.0, seconds):
            self.now += wait
            with pytest.raises(Unavailable):
                sink.write(batch)
        self.away = False

    def settle(self, *partitions: Partition) -> None:
        """What the loop does then, on until the end: each is placed, and read to where it ends."""
        self.away = False
        sink = self.open(*partitions)
        at = sink.resume(self.known_of(*partitions))
        left = {p: Span(start, self.end[p]) for p, start in at.items() if start < self.end[p]}
        if left:
            sink.write(batch(left))

    def check(self) -> None:
        """Every event is live's or a job's, and nobody's twice unless it was marked."""
        final = Counter(r.event_id for r in self.receipts)
        jobs = Counter(
            name(p, offset)
            for gap in self.jobs.values()
            for p, span in gap.spans.items()
            for offset in range(*span)
        )
        wanted = {name(p, offset) for p in PARTITIONS for offset in range(self.end[p])}
        assert final.keys() | jobs.keys() == wanted
        assert not jobs or max(jobs.values()) == 1
        assert not final.keys() & jobs.keys(), "one owner of each range"


def name(partition: Partition, offset: int) -> str:
    return f"{partition.number}-{offset:034}"


def batch(spans: Mapping[Partition, Span]) -> Batch:
    """All events of these spans."""
    chunks = []
    for partition, span in spans.items():
        payloads = []
        for offset in range(*span):
            raw = RawEvent(
                event_id=name(partition, offset), content_type="application/json",
                data='{"event": "seen", "userId": "u"}',
            )  # fmt: skip
            raw.received_at.FromMicroseconds(1_700_000_000_000_000 + offset)
            payloads.append(raw.SerializeToString())
        rows, bad = Decoder(STREAM).decode(payloads)
        assert not bad
        chunks.append(Chunk(partition, range(*span), rows))
    return Batch(STREAM, dict(spans), tuple(chunks))


FIRST = batch({A: Span(0, 10)})


def test_after_an_outage_the_rest_is_a_jobs_also_of_partitions_without_rows() -> None:
    world = World()
    world.end[C] = 0
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    assert {p: at for p, (at, _) in world.committed.items()} == {A: END, B: END}
    assert not world.jobs, "before somebody goes on behind the gap there need be no job"
    with pytest.raises(Moved):
        sink.write(batch({A: Span(10, 20)}))
    assert sink.resume(world.known_of(A)) == {A: END}
    (job,) = world.jobs.values()
    assert job.spans == {A: Span(10, END), B: Span(0, END)}
    assert (job.until_ms - job.since_ms, job.begun) == (60_000, False)
    world.end[A] += 5
    sink.write(batch({A: Span(END, END + 5)}))
    with pytest.raises(Moved):
        sink.write(batch({B: Span(0, 5)}))
    assert sink.resume(world.known_of(B, C)) == {B: END, C: 0}
    assert len(world.jobs) == 1
    world.check()


@pytest.mark.parametrize("seconds", [0.0, OUTAGE_S - 1])
def test_a_short_outage_is_caught_up_with_in_turn(seconds: float) -> None:
    world = World()
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, seconds)
    world.takes_s = OUTAGE_S
    sink.write(FIRST)
    assert world.committed[A][0] == 10
    sink.write(batch({A: Span(10, END), B: Span(0, END), C: Span(0, END)}))
    world.check()
    assert not world.jobs


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", ["gate", "intent", "send", "receipts", "commit"])
def test_a_crash_at_any_step_loses_no_event_and_no_job(at: str, after: bool) -> None:
    world = World()
    with pytest.raises(Crash):
        crash_in_an_outage(world, crashing_second(at, after=after))
    world.settle(*PARTITIONS)
    world.check()
    assert bool(world.jobs) == ((at, after) == ("commit", True))


def crash_in_an_outage(world: World, step: Callable[[str], Any]) -> None:
    sink = world.open(*PARTITIONS, step=step)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)


def crashing_second(at: str, *, after: bool) -> Callable[[str], Any]:
    """As `crashing`; not while the vendor is away, which two writes find it to be."""
    seen = Counter[str]()
    crash = crashing(at, after=after)
    spared = {"gate": 0, "intent": 2, "send": 2}.get(at, 0)

    @contextmanager
    def step(one: str) -> Iterator[None]:
        seen[one] += 1
        if one != at or seen[one] <= spared:
            yield
            return
        with crash(one):
            yield

    return step


def test_a_crash_between_the_leap_and_the_job_is_made_good_by_whoever_comes_next() -> None:
    """And one who can't write the job goes nowhere."""
    world = World()
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    world.jobs_away = True
    with pytest.raises(Unavailable):
        sink.resume(world.known_of(A))
    with pytest.raises(Moved):
        sink.write(batch({A: Span(10, 20)}))
    world.jobs_away = False
    world.settle(B)
    world.settle(A, C)
    world.check()
    assert len(world.jobs) == 1


def test_a_zombie_does_not_leap() -> None:
    world = World()
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    world.fenced = True
    with pytest.raises(Fenced):
        sink.write(FIRST)
    world.fenced = False
    assert world.committed[A] == (0, world.committed[A][1])
    assert Gap.read(world.committed[A][1]) is None
    world.settle(*PARTITIONS)
    assert not world.jobs
    world.check()


def test_partitions_that_were_given_back_are_left_alone_and_new_ones_are_not() -> None:
    world = World()
    sink = world.open(A, B)
    world.away_for(sink, FIRST, OUTAGE_S)
    world.mine = {A, C}
    sink.resume(world.known_of(A, C))
    sink.write(FIRST)
    assert B not in world.committed
    assert sink.resume(world.known_of(C)) == {C: END}
    (job,) = world.jobs.values()
    assert job.spans.keys() == {A, C}
    assert not job.begun, "what was begun is in the batch that is done"
    world.mine = {B}
    world.settle(B)
    world.check()


def test_what_a_dead_one_had_begun_is_marked_in_the_job() -> None:
    world = World()
    with pytest.raises(Crash):
        world.open(*PARTITIONS, step=crashing("send", after=True)).write(batch({B: Span(0, 5)}))
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    sink.resume(world.known_of(*PARTITIONS))
    (job,) = world.jobs.values()
    assert job.spans[B] == Span(0, END)
    assert job.begun


def test_another_outage_does_not_take_what_the_first_job_has() -> None:
    world = World()
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    sink.resume(world.known_of(A))
    # B and C have not come round yet.
    world.end = dict.fromkeys(PARTITIONS, END + 20)
    second = batch({A: Span(END, END + 5)})
    world.away_for(sink, second, OUTAGE_S)
    sink.write(second)
    world.settle(*PARTITIONS)
    world.check()
    assert len(world.jobs) == 2


def test_many_partitions_are_several_jobs_each_of_which_fits_into_a_note() -> None:
    world = World()
    many = [Partition("t" * 200, n) for n in range(10_000, 10_150)]
    world.end = dict.fromkeys(many, 10**15)
    world.mine = set(many)
    gaps = Gaps(world, OUTAGE_S, world.keep, lambda: world.now)  # type: ignore[arg-type] # as much as it needs
    gaps.placed(dict.fromkeys(many, 10**14))
    gaps.away()
    world.now += OUTAGE_S
    gaps.asked()
    found = gaps.after({}, "x" * 22, {})
    assert [len(gap.spans) for gap in found] == [60, 60, 30]
    assert all(len(gap.note()) < 4096 for gap in found)
    assert [Gap.read(gap.note()) for gap in found] == found
    assert len({gap.job_id for gap in found}) == 3


def test_a_plain_intent_tells_of_no_gap() -> None:
    assert Gap.read("") is None
    assert Gap.read(Intent("t", {A: Span(1, 2)}, 3).note()) is None


def test_a_gap_of_a_topic_that_was_made_anew_is_nobodys() -> None:
    world = World()
    sink = world.open(*PARTITIONS)
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    world.id = "topic-2"
    assert world.open(A).resume(world.known_of(A)) == {A: 0}
    assert not world.jobs


def test_an_outage_is_over_with_the_leap() -> None:
    """What comes right behind it is not left out as well."""
    world = World()
    sink = world.open(A)
    world.mine = {A}
    world.away_for(sink, FIRST, OUTAGE_S)
    sink.write(FIRST)
    sink.resume(world.known_of(A))
    world.end[A] = END + 20
    sink.write(batch({A: Span(END, END + 5)}))
    assert world.committed[A][0] == END + 5
    assert len(world.jobs) == 1


# -- a position that Kafka has forgotten -----------------------------------------------------------


def test_what_a_forgotten_position_had_behind_it_is_a_job_of_what_is_not_accepted_yet() -> None:
    """A week without a forwarder. A vendor that knows no keys would hold all of it twice."""
    world = World()
    world.had = {A, B}
    sink = world.open()
    assert sink.resume(world.known_of(*PARTITIONS)) == {A: END, B: END, C: 0}
    (job,) = world.jobs.values()
    assert job.spans == {A: Span(0, END), B: Span(0, END)}
    assert (job.begun, job.only_missing) == (True, True)
    assert Gap.read(world.committed[A][1]) == job
    # What comes then is fresh; and of C, of which it has had nothing, all is.
    world.end[A] += 5
    sink.write(batch({A: Span(END, END + 5), C: Span(0, END)}))
    assert not any(repeated for _, repeated in world.sent)
    assert sink.resume(world.known_of(A, B)) == {A: END + 5, B: END}
    assert len(world.jobs) == 1
    world.check()


@pytest.mark.parametrize("jobs_away", [False, True])
def test_a_crash_behind_the_commit_of_a_forgotten_position_loses_no_job(jobs_away: bool) -> None:
    world = World()
    world.had = set(PARTITIONS)
    sink = world.open()
    world.jobs_away = jobs_away
    world.fenced = not jobs_away
    with pytest.raises((Unavailable, Fenced)):
        sink.resume(world.known_of(*PARTITIONS))
    assert not world.jobs
    world.jobs_away = world.fenced = False
    world.settle(*PARTITIONS)
    assert len(world.jobs) == 1
    world.check()


def test_nobody_is_asked_of_a_partition_that_is_empty_or_has_a_position() -> None:
    """It costs reading all receipts, at each rebalance."""
    world = World()
    world.end[B] = 0
    world.committed[A] = (7, "")
    asked: list[object] = []
    world.sent_before = lambda spans: asked.append(spans) or set()  # type: ignore[method-assign,func-returns-value] # to see
    assert world.open().resume(world.known_of(A, B)) == {A: 7, B: 0}
    assert not asked


def test_a_gap_is_in_the_note_as_it_was() -> None:
    gap = Gap("3f9c01d2", "topic-1", {A: Span(1, 2)}, 3, 4, begun=True)
    assert Gap.read(gap.note()) == gap
    assert "only_missing" not in gap.note(), "which an older headrace reads"
    assert Gap.read(replace(gap, only_missing=True).note()) == replace(gap, only_missing=True)
