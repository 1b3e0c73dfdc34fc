"""Forwarders of one vendor that goes away again and again, whatever else happens: see test_run.py.

All along, of each partition: below its position every event has a receipt, or belongs to a job that
is noted or that the position's own note tells of; and no event belongs to two jobs. At the end all
is well again, and only a job that says so has what was sent before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_log import LOOP, FakeKafka, FakeSource, steps
from forward_world import STREAM, TRACE
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from simulation import Killed, Process, Simulation

from consumers.batch import Partition
from consumers.errors import Unavailable
from consumers.forward.delivery import Delivery, Final, Status
from consumers.forward.gap import Gap, Gaps
from consumers.forward.lines import Lines
from consumers.forward.sink import VendorSink
from consumers.limits import Limits
from consumers.run import Runner
from consumers.trace.gate import Gate
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt

OUTAGE_S = 60.0


@dataclass(frozen=True)
class Event:
    """Something that happens so many seconds after the one before."""

    after_s: float
    what: str
    who: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Story:
    """All that chance decides."""

    seed: int
    events: list[Event]
    runners: int
    partitions: int
    max_rows: int
    # Of a thousand points, at how many the process is killed or stopped.
    kills: int
    stops: int


WHAT = ("away", "away", "kill", "freeze", "expel", "start", "rebalance", "jobs away", "kafka away")
STORIES = st.builds(
    Story,
    seed=st.integers(0, 2**32),
    events=st.lists(
        st.builds(
            Event,
            after_s=st.sampled_from([0.01, 0.3, 2.0, 20.0, 90.0]),
            what=st.sampled_from(WHAT),
            who=st.integers(0, 2),
            seconds=st.sampled_from([2.0, 30.0, 70.0, 200.0]),
        ),
        min_size=2,
        max_size=12,
    ),
    runners=st.integers(1, 3),
    partitions=st.integers(1, 5),
    max_rows=st.integers(1, 12),
    kills=st.sampled_from([0, 0, 5, 20]),
    stops=st.sampled_from([0, 0, 10]),
)


@dataclass(eq=False)
class Forwarder:
    """One process, and what its sink needs: the vendor, and the topic of receipts."""

    world: World
    process: Process = field(init=False)
    source: FakeSource | None = None

    def main(self) -> None:
        world = self.world

        def join(listener: Any) -> FakeSource:
            self.source = world.kafka.join(listener, self.at)
            return self.source

        def sink(source: Any) -> VendorSink:
            gaps = Gaps(source, OUTAGE_S, self.keep, lambda: world.sim.now)
            gate = Gate(TRACE, "heap")
            return VendorSink("heap", gate, self, self, source, steps(self.at), gaps=gaps)

        limits = Limits(max_rows=world.story.max_rows, max_partitions=3, max_backoff_s=2.0)
        Runner(join, world, [STREAM], sink, destination="model", limits=limits).run()  # type: ignore[arg-type] # no dead letters

    def at(self, _point: str) -> None:
        """The process may end here, or stand still until others have its partitions."""
        world = self.world
        world.sim.point()
        chance = world.sim.rng.randrange(1000)
        if chance < world.kills:
            self.process.kill()
            raise Killed
        if chance < world.kills + world.stops:
            self.process.freeze(100)
            world.sim.point()

    def deliver(self, delivery: Delivery) -> None:
        self.at("deliver")
        if self.world.away:
            raise Unavailable("the vendor is away")
        delivery.begun = True
        events = [*delivery.repeated, *delivery.fresh]
        delivery.finals += [Final(e, Status.ACCEPTED, None, 1, 5, 6, False) for e in events]
        delivery.lines = Lines()

    def send(self, receipts: Sequence[Receipt]) -> None:
        self.at("receipts")
        for one in receipts:
            partition = Partition(one.source_topic, one.source_partition)
            self.world.final[partition, one.source_offset] += 1
        self.at("receipts are there")

    def keep(self, gap: Gap) -> None:
        self.at("job")
        if self.world.jobs_away:
            raise Unavailable("the jobs are away")
        self.world.jobs[gap.job_id] = gap
        self.at("job is there")

    def stop(self) -> None: ...

    def close(self) -> None: ...


class World:
    """A story, told."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.sim = Simulation(story.seed)
        self.kafka = FakeKafka(self.sim)
        self.partitions = self.kafka.create(STREAM.topic, story.partitions)
        self.kills, self.stops = story.kills, story.stops
        self.away = self.jobs_away = False
        self.jobs: dict[str, Gap] = {}
        self.final: Counter[tuple[Partition, int]] = Counter()
        self.forwarders: list[Forwarder] = []
        self._heal: list[tuple[float, Callable[[], None]]] = []

    def send(self, *_: object) -> None:
        raise AssertionError("there are no dead letters")

    def produce(self, count: int) -> None:
        for n in range(count):
            partition = self.partitions[self.sim.rng.randrange(len(self.partitions))]
            raw = RawEvent(
                event_id=f"{self.sim.rng.getrandbits(64):036}", content_type="application/json",
                data='{"event": "seen", "userId": "u"}',
            )  # fmt: skip
            raw.received_at.FromMicroseconds(1_700_000_000_000_000 + n)
            self.kafka.produce(partition, raw.SerializeToString())

    def start(self) -> None:
        one = Forwarder(self)
        one.process = self.sim.process(f"forwarder-{len(self.forwarders)}", one.main)
        self.forwarders.append(one)

    def tell(self) -> None:
        """Let the story happen, then mend everything, and see that nothing is missing."""
        self.produce(30)
        with self.sim.patched(*LOOP):
            for _ in range(self.story.runners):
                self.start()
            self.sim.on_step = self.step
            for event in self.story.events:
                self.happen(event)
                until = self.sim.now + event.after_s
                self.sim.run(lambda u=until: self.sim.now >= u, 9e9)  # type: ignore[misc]
                self.produce(10)
            self.mend()
            self.sim.run(self.over, 900)
        self.check(final=True)

    def happen(self, event: Event) -> None:
        running = [f for f in self.forwarders if f.process.running]
        who = running[event.who % len(running)] if running else None
        match event.what:
            case "start" if len(running) < 3:
                self.start()
            case "rebalance":
                self.kafka.rebalance()
            case "away" | "jobs away" | "kafka away":
                where = self.kafka if event.what == "kafka away" else self
                name = {"jobs away": "jobs_away"}.get(event.what, "away")
                setattr(where, name, True)
                self._heal.append(
                    (self.sim.now + event.seconds, lambda: setattr(where, name, False))
                )
            case "kill" if who:
                who.process.kill()
            case "freeze" if who:
                who.process.freeze(event.seconds)
            case "expel" if who and who.source is not None:
                self.kafka.expel(who.source)

    def step(self) -> None:
        for at, act in list(self._heal):
            if at <= self.sim.now:
                self._heal.remove((at, act))
                act()
        for one in self.forwarders:
            if one.source is None or one.source not in self.kafka.members:
                continue
            if not one.process.running:
                one.source.leave()
            elif one.process.frozen_until > self.sim.now + 45 and not one.source.expelled:
                self.kafka.expel(one.source)
        self.check()

    def mend(self) -> None:
        self.kills = self.stops = 0
        for _, act in self._heal:
            act()
        self._heal.clear()
        self.start()

    def over(self) -> bool:
        for one in self.forwarders:
            if one.process.error is not None:
                raise one.process.error
        committed = self.kafka.committed
        return all(committed.get(p, (0, ""))[0] == self.kafka.end(p) for p in self.partitions)

    def check(self, final: bool = False) -> None:
        for partition in self.partitions:
            position, note = self.kafka.committed.get(partition, (0, ""))
            spans = [g.spans[partition] for g in self.jobs.values() if partition in g.spans]
            told = Gap.read(note)
            if told is not None and told.job_id not in self.jobs:
                spans.append(told.spans[partition])
            theirs = [offset for span in spans for offset in range(*span)]
            assert len(theirs) == len(set(theirs)), f"{partition}: in two jobs"
            mine = {offset for p, offset in self.final if p == partition}
            missing = set(range(position)) - mine - set(theirs)
            assert not missing, f"{partition} is at {position}, and nobody has {missing}"
        if final:
            self.check_jobs()

    def check_jobs(self) -> None:
        for gap in self.jobs.values():
            sent = [(p, o) for p, span in gap.spans.items() for o in range(*span)
                    if (p, o) in self.final]  # fmt: skip
            assert gap.begun or not sent, f"the job {gap.job_id} has what was sent: {sent}"


def profile(examples: int, *phases: Phase, **how: Any) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, *phases],
        suppress_health_check=list(HealthCheck),
        **how,
    )


@profile(20, derandomize=True)
@given(story=STORIES)
def test_no_event_and_no_job_is_lost_whatever_happens(story: Story) -> None:
    World(story).tell()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@profile(int(os.environ.get("MODEL_EXAMPLES", "1000")), Phase.shrink, print_blob=True)
@given(story=STORIES)
def test_no_event_and_no_job_is_lost_in_many_more_stories(story: Story) -> None:
    World(story).tell()


def test_in_a_quiet_story_there_is_a_job_for_each_outage() -> None:
    """So that the stories are about something."""
    events = [Event(200.0, "away", seconds=100.0), Event(200.0, "away", seconds=100.0)]
    world = World(Story(1, events, runners=1, partitions=3, max_rows=5, kills=0, stops=0))
    world.tell()
    assert len(world.jobs) == 2
