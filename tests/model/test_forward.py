"""Forwarding and replays against a vendor's shelf: whatever happens, every event has its receipt.

Up to three processes share a group, in a simulation (tests/simulation.py), with the run loop and the
vendor's sink as they are. They are killed at any point, stopped and woken up when others have their
partitions, expelled; partitions move; Kafka, the vendor and the receipts' topic go away and come
back; requests and answers are lost. All along, and not only at the end:

- a receipt that says accepted is of an event that the vendor has, one that says rejected of an
  event that it refused
- the group's position is never ahead of the receipts: below it each event that is meant has one
- an event leaves unmarked once at most: whatever may be with the vendor twice says so; in a replay
  none leaves unmarked

At the end, when all is well again: each event has the receipt that it should have, and no other. A
replay does so with the events of its range of time, whatever the order in which they were published,
and with no others.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from fake_log import LOOP, FakeKafka, FakeLetters, FakeSource, steps
from simulation import Killed, Process, Simulation

from consumers import bounds
from consumers.batch import Partition, Span
from consumers.errors import Fenced, Unavailable
from consumers.forward.delivery import Delivery, Terms
from consumers.forward.lines import Unit
from consumers.forward.sink import VendorSink
from consumers.limits import Limits
from consumers.replay import ranges
from consumers.replay.select import Selection
from consumers.replay.source import RangeSource
from consumers.run import Runner
from consumers.sinks import Log, Sink
from consumers.source import Listener, Source
from consumers.trace.allowlist import from_table
from consumers.trace.event import Event
from consumers.trace.gate import Gate
from consumers.vendors import Code, Reason
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["raw_events"]
# What becomes of an event of this name; `secret` is not listed.
FATES = {"seen": "accepted", "strange": "rejected", "secret": "dropped"}
NAMES = ["seen"] * 6 + ["strange", "secret"]
TRACE = from_table({"events": {"seen": {}, "strange": {}}}, ["shelf"])
# FakeKafka publishes one record a millisecond.
FIRST_MS = 1_750_000_000_000
# How late and how early an event is published at most, in milliseconds.
LATE_MS, EARLY_MS = 12, 3
WHAT = (
    "kill", "freeze", "expel", "rebalance", "produce", "start",
    "kafka away", "vendor away", "receipts away", "stop",
)  # fmt: skip

Place = tuple[Partition, int]


@dataclass
class Shelf:
    """The vendor: what it was sent, each time marked as a repetition or not, and what it keeps."""

    sent: defaultdict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    kept: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def take(self, event: Event, repeated: bool) -> bool:
        self.sent[event.event_id].append(repeated)
        taken = event.name == "seen"
        (self.kept if taken else self.refused).add(event.event_id)
        return taken


@dataclass(eq=False)
class Forwarder:
    """One process, its engine and its receipts."""

    world: World
    process: Process = field(init=False)
    source: FakeSource | None = None
    runner: Runner | None = None
    stopped: bool = False

    def main(self) -> None:
        world = self.world

        def join(listener: Listener) -> Source:
            self.source = world.kafka.join(listener, self.at)
            return world.source_of(self.source)

        self.runner = Runner(
            join,
            FakeLetters(world.sim),
            [STREAM],
            lambda log: world.sink_of(self, log),
            destination="shelf",
            limits=Limits(max_rows=1 + world.seed % 9, lanes=1 + world.seed % 2),
            select=world.meant,
        )
        self.runner.run(drain=world.meant is not None)

    def at(self, point: str) -> None:
        """The process may end or stop here, or what it asks be away."""
        world, chance = self.world, self.world.sim.rng.randrange(1000)
        world.sim.point()
        if chance < world.kills:
            self.process.kill()
            raise Killed
        if chance < world.kills + world.stops:
            self.process.freeze(60)
            world.sim.point()
        if chance >= 1000 - world.outages:
            raise Unavailable(f"away at {point} (by the test)")

    # consumers.forward.sink.Sender: the engine's promise, one event a request

    def deliver(self, delivery: Delivery) -> None:
        if not delivery.begun:
            delivery.begun = True
            for events, repeated in ((delivery.repeated, True), (delivery.fresh, False)):
                for event in events:
                    delivery.lines.add(Unit([event], Counter([event.key]), repeated=repeated))
        while (unit := delivery.lines.take(0.0)) is not None:
            if self.stopped:
                raise Fenced("it was told to stop")
            try:
                self._ask(delivery, unit)
            except Unavailable:
                delivery.lines.put_back(unit, 0.0)
                raise
            delivery.lines.done(unit)

    def _ask(self, delivery: Delivery, unit: Unit) -> None:
        self.at("request leaves")
        if self.world.vendor_away:
            raise Unavailable("the vendor is away (by the test)")
        unit.attempts += 1
        (event,) = unit.events
        repeated, unit.repeated = unit.repeated, True
        taken = self.world.shelf.take(event, repeated)
        self.at("answer comes")
        if taken:
            delivery.accept(unit, [event], 1)
        else:
            delivery.refuse(unit, event, Reason(Code.REJECTED, ""), 1)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None: ...

    # consumers.forward.sink.ReceiptLog

    def send(self, receipts: Sequence[Receipt]) -> None:
        self.at("receipts leave")
        receipts = list(receipts)
        if self.world.receipts_away:
            self.world.receive(receipts[: self.world.sim.rng.randint(0, len(receipts))])
            raise Unavailable("receipts are not acknowledged (by the test)")
        self.world.receive(receipts)
        self.at("receipts acknowledged")


class World:
    """What outlives the processes. With `meant`, they are those of the replay of just that."""

    def __init__(self, seed: int, meant: Selection | None = None) -> None:
        self.seed = seed
        self.meant = meant
        self.sim = Simulation(seed)
        self.kafka = FakeKafka(self.sim)
        self.shelf = Shelf()
        self.receipts: defaultdict[Place, list[Receipt]] = defaultdict(list)
        self.vendor_away = self.receipts_away = False
        # Of a thousand points, at how many a process is killed or stopped, or something is away.
        self.kills, self.stops, self.outages = (self.sim.rng.choice([0, 5, 15]) for _ in range(3))
        self.partitions = self.kafka.create(STREAM.topic, self.sim.rng.randint(1, 3))
        # By its place: an event's name, and the time at which a collector took it.
        self.events: dict[Place, tuple[str, int]] = {}
        self.forwarders: list[Forwarder] = []
        self.spans: dict[Partition, Span] = {}

    def produce(self, most: int) -> None:
        rng = self.sim.rng
        for partition in self.partitions:
            for _ in range(rng.randint(0, most)):
                if rng.random() < 0.1:
                    self.kafka.marker(partition)
                    continue
                offset, name = self.kafka.end(partition), rng.choice(NAMES)
                took_ms = FIRST_MS + offset - rng.choice([-EARLY_MS, 0, 1, 5, LATE_MS])
                raw = RawEvent(event_id=f"{partition.number}-{offset}")
                raw.content_type, raw.data = "application/json", f'{{"event": "{name}"}}'
                raw.received_at.FromMilliseconds(took_ms)
                self.kafka.produce(partition, raw.SerializeToString())
                self.events[partition, offset] = name, took_ms * 1000

    def source_of(self, source: FakeSource) -> Source:
        if self.meant is None:
            return source
        skim = self.meant.skim if self.meant.event else None
        topic_id = self.kafka.ids[STREAM.topic]
        return RangeSource(source, self.spans, topic_id, repeated=True, skim=skim)

    def sink_of(self, forwarder: Forwarder, log: Log) -> Sink:
        forwarder.at("open")
        return VendorSink(
            "shelf", Gate(TRACE, "shelf"), forwarder, forwarder, log, steps(forwarder.at),
            terms=Terms(backfill=self.meant is not None),
        )  # fmt: skip

    def receive(self, receipts: Sequence[Receipt]) -> None:
        for one in receipts:
            at = Partition(one.source_topic, one.source_partition), one.source_offset
            self.receipts[at].append(one)
            expected = FATES[self.events[at][0]]
            assert one.status == expected, f"{at}: {one.status} instead of {expected}"
            there = {"accepted": self.shelf.kept, "rejected": self.shelf.refused}
            assert one.event_id in there.get(one.status, {one.event_id}), (
                f"{at} is {one.status} by its receipt, and the vendor has not said so"
            )

    def wanted(self, place: Place) -> bool:
        (name, took_us), meant = self.events[place], self.meant
        return meant is None or (
            meant.begin_us <= took_us < meant.end_us and meant.event in (None, name)
        )

    # -- what happens ------------------------------------------------------------------------------

    def tell(self) -> None:
        """Let things happen, then mend everything, and see that all is receipted."""
        rng = self.sim.rng
        if self.meant is None:
            self.produce(30)
        with self.sim.patched(*LOOP):
            self.sim.on_step = self.step
            for _ in range(rng.randint(1, 3)):
                self.start()
            for _ in range(rng.randint(2, 10)):
                due, until = self.sim.steps + rng.randint(0, 150), self.sim.now + 150
                self.sim.run(lambda d=due, u=until: self.sim.steps >= d or self.sim.now >= u, 9e9)  # type: ignore[misc]
                self.happen(rng.choice(WHAT))
            self.kills = self.stops = self.outages = 0
            self.kafka.away = self.vendor_away = self.receipts_away = False
            self.start()
            self.sim.run(self.done, 900)
            self.sim.run(lambda: all(f.runner for f in self.running), 120)
            for forwarder in self.running:
                if forwarder.runner is not None:
                    forwarder.runner.stop()
            self.sim.run(lambda: not self.running, 120)
        self.check()
        received = {place for place, receipts in self.receipts.items() if receipts}
        assert received == {place for place in self.events if self.wanted(place)}

    @property
    def running(self) -> list[Forwarder]:
        return [f for f in self.forwarders if f.process.running]

    def start(self) -> None:
        forwarder = Forwarder(self)
        forwarder.process = self.sim.process(f"forwarder-{len(self.forwarders)}", forwarder.main)
        self.forwarders.append(forwarder)

    def happen(self, what: str) -> None:
        who = self.sim.rng.choice(self.running or [None])
        match what:
            case "start" if len(self.running) < 3:
                self.start()
            case "rebalance":
                self.kafka.rebalance()
            case "produce" if self.meant is None:
                self.produce(10)
            case "kafka away":
                self.kafka.away = not self.kafka.away
            case "vendor away":
                self.vendor_away = not self.vendor_away
            case "receipts away":
                self.receipts_away = not self.receipts_away
            case "kill" if who:
                who.process.kill()
            case "stop" if who and who.runner:
                who.runner.stop()
            case "freeze" if who:
                who.process.freeze(60)
            case "expel" if who and who.source in self.kafka.members:
                self.kafka.expel(who.source)

    def step(self) -> None:
        """At every pass of the baton."""
        for forwarder in self.forwarders:
            process, source = forwarder.process, forwarder.source
            if source is None or source not in self.kafka.members:
                continue
            if not process.running:
                source.leave()
            elif process.frozen_until > self.sim.now + 45 and not source.expelled:
                self.kafka.expel(source)
        self.check()

    def done(self) -> bool:
        for forwarder in self.forwarders:
            if forwarder.process.error is not None:
                raise forwarder.process.error
        if self.meant is not None:
            return not self.running
        return all(self.kafka.committed.get(p, (0, ""))[0] == self.kafka.end(p)
                   for p in self.partitions)  # fmt: skip

    # -- what holds --------------------------------------------------------------------------------

    def check(self) -> None:
        for partition, (position, _) in self.kafka.committed.items():
            for offset in range(position):
                place = partition, offset
                if place in self.events and self.wanted(place):
                    assert self.receipts[place], f"{partition} is at {position}, {offset} has none"
        for event_id, marks in self.shelf.sent.items():
            unmarked = marks.count(False)
            assert unmarked <= (self.meant is None), f"{event_id} left {unmarked} times unmarked"


@pytest.mark.parametrize("seed", range(40))
def test_every_event_has_its_receipt_and_none_too_early_whatever_happens(seed: int) -> None:
    World(seed).tell()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_event_has_its_receipt_in_many_more_stories() -> None:
    for seed in range(40, 3000):
        World(seed).tell()


class Times:
    """A Consumer that is only asked where times are, of a FakeKafka."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    def list_topics(self, topic: str, _timeout: float) -> Any:
        numbers = [p.number for p in self._kafka.records if p.topic == topic]
        known = SimpleNamespace(error=None, partitions=dict.fromkeys(numbers))
        return SimpleNamespace(topics={topic: known})

    def offsets_for_times(
        self, asked: list[TopicPartition], _timeout: float
    ) -> list[TopicPartition]:
        found = []
        for one in asked:
            partition = Partition(one.topic, one.partition)
            log = self._kafka.records[partition]
            later = [m.offset() for m in log.messages if m and m.timestamp()[1] >= one.offset]
            at = min(later, default=-1)
            if one.offset < 0:
                at = log.first if one.offset == OFFSET_BEGINNING else self._kafka.end(partition)
            found.append(TopicPartition(one.topic, one.partition, at))
        return found

    def close(self) -> None: ...


def replay(seed: int, monkeypatch: pytest.MonkeyPatch) -> World:
    """A range of time of what was published, out of order; records before and behind it.

    Of every third only events of one name.
    """
    world = World(seed, Selection(0, 0))
    world.produce(60)
    begin_ms = FIRST_MS + world.sim.rng.randint(-5, 20)
    end_ms = begin_ms + world.sim.rng.randint(1, 20)
    name = NAMES[-1 - seed % 2] if seed % 3 == 0 else None
    world.meant = Selection(begin_ms * 1000, end_ms * 1000, name)
    monkeypatch.setattr(bounds, "Consumer", lambda _config: Times(world.kafka))
    monkeypatch.setattr(ranges, "AHEAD_MS", EARLY_MS)
    found = ranges.find({}, STREAM.topic, world.meant.begin_us, world.meant.end_us, LATE_MS / 1000)
    world.spans = {Partition(STREAM.topic, n): span for n, span in found.spans.items()}
    return world


@pytest.mark.parametrize("seed", range(40))
def test_a_replay_is_its_range_of_time_marked_and_receipted_whatever_happens(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(seed, monkeypatch).tell()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_replay_is_its_range_of_time_in_many_more_stories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(40, 3000):
        replay(seed, monkeypatch).tell()
