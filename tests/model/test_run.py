"""The run loop against a list: whatever happens, every good record lands once, in order.

Up to three inserters share a group, in a simulation (tests/simulation.py): their threads take turns
as a seed says, and time is virtual. They are killed at any point, stopped and woken up when others
have their partitions, expelled, asked to leave; partitions move; Kafka, the destination and the
dead-letter topic go away and come back. All along, and not only at the end:

- no record is there twice
- a position is never ahead of what landed: below it every good record is there, in order, and every
  bad one is among the dead letters
- in a Store, which is what the contract means, nothing is there from the position on

ClickHouse's protocol, with its intents in Kafka's offsets, is the one that chance can break; so its
sink is told the same stories, with a ClickHouse in memory.

At the end, when all is well again: everything has landed, dead letters are the bad records and no
others, and whoever is asked to leave does so within ten seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
from fake_clickhouse import FakeClickHouse
from fake_log import LOOP, FakeKafka, FakeLetters, FakeSource, steps
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ledger_truth import hash_of
from simulation import Killed, Lock, Process, Simulation
from sinks_under_test import batch_of

from consumers.batch import Batch, Partition
from consumers.errors import Rejected, Unavailable
from consumers.ledger import owed
from consumers.ledger.tally import Entry
from consumers.limits import Limits
from consumers.run import Runner
from consumers.sinks import Log, Sink, clickhouse, clickhouse_recovery
from consumers.sinks.clickhouse import ClickHouseSink
from consumers.sinks.memory import MemorySink, Store
from ingest.streams import BUILT_IN, Stream

STREAM = BUILT_IN["device_state"]
GOOD, BAD, REFUSED, NAMED, GAP = "good", "bad", "refused", "named", "gap"
# Whose clock is the simulated one.
CLICKHOUSE = (clickhouse, clickhouse_recovery)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few batches some are written into ClickHouse's ledger, and some are owed."""
    monkeypatch.setattr(owed, "BATCHES", 3)


def payload(name: str, kind: str) -> bytes:
    """A record; `status` says what the destination thinks of it."""
    if kind == BAD:
        return b"\xff\xff\xff" + name.encode()
    message = STREAM.message()
    message.timestamp.seconds = 1_750_000_000  # type: ignore[attr-defined]
    message.device_id, message.status = name, kind  # type: ignore[attr-defined]
    data: bytes = message.SerializeToString()
    return data


@dataclass(frozen=True)
class Event:
    """Something that happens `after` so many passes of the baton since the one before."""

    after: int
    what: str
    who: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Story:
    """All that chance decides."""

    seed: int
    # For each partition, kinds of records; those of `late` come while the inserters run.
    early: list[list[str]]
    late: list[list[str]]
    events: list[Event]
    runners: int
    lanes: int
    max_rows: int
    # Of a thousand points, at how many the process is killed or stopped, or the destination away.
    kills: int
    stops: int
    outages: int

    @property
    def max_partitions(self) -> int | None:
        """What the destination takes at once."""
        return (None, 1, 2)[self.seed % 3]


KINDS = st.sampled_from([GOOD] * 12 + [BAD, REFUSED, NAMED, GAP, GAP])
WHAT = (
    "kill", "freeze", "expel", "stop", "start", "rebalance", "produce",
    "kafka away", "destination away", "letters away",
)  # fmt: skip
STORIES = st.builds(
    Story,
    seed=st.integers(0, 2**32),
    early=st.lists(st.lists(KINDS, min_size=5, max_size=40), min_size=1, max_size=4),
    late=st.lists(st.lists(KINDS, max_size=20), min_size=4, max_size=4),
    events=st.lists(
        st.builds(
            Event,
            after=st.integers(0, 150),
            what=st.sampled_from(WHAT),
            who=st.integers(0, 2),
            seconds=st.sampled_from([0.5, 5.0, 50.0, 4000.0]),
        ),
        min_size=2,
        max_size=12,
    ),
    runners=st.integers(1, 3),
    lanes=st.integers(1, 2),
    max_rows=st.integers(1, 12),
    kills=st.sampled_from([0, 0, 5, 20]),
    stops=st.sampled_from([0, 0, 10, 30]),
    outages=st.sampled_from([0, 0, 20, 100]),
)


class PickySink(MemorySink):
    """A MemorySink that refuses what it is told to, saying which row it was or not."""

    def write(self, batch: Batch) -> None:
        kinds = [kind for c in batch.chunks for kind in c.rows.column("status").to_pylist()]
        if REFUSED in kinds:
            raise Rejected("refused")
        named = {i: "refused by name" for i, kind in enumerate(kinds) if kind == NAMED}
        if named:
            raise Rejected("refused", named)
        super().write(batch)


class Place(Protocol):
    """A destination, as the model looks at it."""

    @property
    def rows(self) -> list[tuple[Partition, int, dict[str, Any]]]: ...

    def position(self, partition: Partition) -> int:
        """Everything below has landed."""
        ...

    def ledger(self, partition: Partition) -> tuple[tuple[int, int], tuple[int, int]]:
        """Count and hash: of what landed below the position, and of the dead letters."""
        ...

    @property
    def locked(self) -> bool:
        """Whether nobody else can write now."""
        ...

    def open(self, log: Log, at: Callable[[str], None]) -> Sink: ...


class MemoryPlace:
    """A Store."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._store = Store()
        self._lock = Lock(kafka.sim)
        self._store.lock = self._lock  # type: ignore[assignment]

    @property
    def rows(self) -> list[tuple[Partition, int, dict[str, Any]]]:
        return self._store.rows.get(STREAM.table, [])

    def position(self, partition: Partition) -> int:
        return self._store.positions.get(partition, ("", 0))[1]

    def ledger(self, partition: Partition) -> tuple[tuple[int, int], tuple[int, int]]:
        total = Entry()
        for bucket, entry in self._store.ledger.items():
            total = total.plus(entry if bucket.partition == partition else Entry())
        return total.rows, total.dead

    @property
    def locked(self) -> bool:
        return self._lock.held

    def open(self, log: Log, at: Callable[[str], None]) -> Sink:
        return PickySink(self._store, steps(at))


class ClickHousePlace:
    """A ClickHouse in memory; its positions are Kafka's."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self._table = FakeClickHouse(kafka.sim, STREAM, {REFUSED, NAMED})

    @property
    def rows(self) -> list[tuple[Partition, int, dict[str, Any]]]:
        return self._table.rows

    def position(self, partition: Partition) -> int:
        return self._kafka.committed.get(partition, (0, ""))[0]

    def ledger(self, partition: Partition) -> tuple[tuple[int, int], tuple[int, int]]:
        total = self._table.accounted(partition, *self._kafka.committed.get(partition, (0, "")))
        return total.rows, total.dead

    @property
    def locked(self) -> bool:
        return False

    def open(self, log: Log, at: Callable[[str], None]) -> Sink:
        with self._table.connected(at):
            return ClickHouseSink("clickhouse://fake", [STREAM], log, steps(at))


@dataclass(eq=False)
class Inserter:
    """One process: a Runner, and the hands of chance on it."""

    world: World
    process: Process = field(init=False)
    source: FakeSource = field(init=False)
    runner: Runner | None = None

    def main(self) -> None:
        world = self.world

        def join(listener: Any) -> FakeSource:
            self.source = world.kafka.join(listener, self.at)
            return self.source

        self.runner = Runner(
            join,
            self,
            [STREAM],
            lambda log: world.open_sink(log, self.at),
            destination="model",
            limits=Limits(
                max_rows=world.story.max_rows,
                max_partitions=world.story.max_partitions,
                lanes=world.story.lanes,
                max_dead_share=1.0,
            ),
            skip_lost=True,
        )
        self.runner.run()

    def send(self, stream: Stream, letters: Any) -> None:
        """consumers.deadletters.Letters"""
        self.world.letters.send(stream, letters, self.at)

    def at(self, point: str) -> None:
        """A point of a lane's work: its process may end here, or find the destination away."""
        world = self.world
        world.hook(self, point)
        world.sim.point()
        chance = world.sim.rng.randrange(1000)
        if chance < world.kills:
            self.process.kill()
            raise Killed
        if chance < world.kills + world.stops:
            # Its session ends, and maybe all that anybody remembers of its insert.
            self.process.freeze(world.sim.rng.choice([60, 60, 4000]))
            world.sim.point()
        if world.destination_away or chance >= 1000 - world.outages:
            raise Unavailable("away (by the test)")

    def stop(self) -> None:
        if self.runner is not None:
            self.runner.stop()


class World:
    """A story, told."""

    def __init__(self, story: Story, place: Callable[[FakeKafka], Place]) -> None:
        self.story = story
        self.sim = Simulation(story.seed)
        self.kafka = FakeKafka(self.sim)
        self.letters = FakeLetters(self.sim)
        self.place = place(self.kafka)
        self.kills, self.stops, self.outages = story.kills, story.stops, story.outages
        self.destination_away = False
        # Told of every point that an inserter passes.
        self.hook: Callable[[Inserter, str], None] = lambda _inserter, _point: None
        self.partitions = self.kafka.create(STREAM.topic, len(story.early))
        self.kinds: dict[tuple[Partition, int], str] = {}
        self.inserters: list[Inserter] = []
        self._checked: list[int] = []
        self._late = list(story.late)
        self._heal: list[tuple[float, Callable[[], None]]] = []

    def open_sink(self, log: Log, at: Callable[[str], None]) -> Sink:
        at("open")
        return self.place.open(log, at)

    def produce(self, records: list[list[str]]) -> None:
        for partition, kinds in zip(self.partitions, records, strict=False):
            for kind in kinds:
                if kind == GAP:
                    self.kafka.marker(partition)
                    continue
                at = self.kafka.end(partition)
                self.kinds[partition, at] = kind
                self.kafka.produce(partition, payload(f"{partition.number}-{at}", kind))

    def start(self) -> Inserter:
        inserter = Inserter(self)
        inserter.process = self.sim.process(f"inserter-{len(self.inserters)}", inserter.main)
        self.inserters.append(inserter)
        return inserter

    @property
    def running(self) -> list[Inserter]:
        return [i for i in self.inserters if i.process.running]

    # -- what happens ------------------------------------------------------------------------------

    def tell(self) -> None:
        """Let the story happen, then mend everything, and see that all lands."""
        self.produce(self.story.early)
        with self.sim.patched(*LOOP, *CLICKHOUSE):
            for _ in range(self.story.runners):
                self.start()
            self.sim.on_step = self.step
            for event in self.story.events:
                due = self.sim.steps + event.after
                until = self.sim.now + event.after
                self.sim.run(lambda d=due, u=until: self.sim.steps >= d or self.sim.now >= u, 9e9)  # type: ignore[misc]
                self.happen(event)
            self.mend()
            self.sim.run(self.all_landed, 900)
            self.leave()
        self.check(final=True)

    def happen(self, event: Event) -> None:
        running = self.running
        who = running[event.who % len(running)] if running else None
        match event.what:
            case "start" if len(running) < 3:
                self.start()
            case "rebalance":
                self.kafka.rebalance()
            case "produce" if self._late:
                self.produce([self._late.pop()] * len(self.partitions))
            case "kafka away":
                self.kafka.away = True
                self.later(event, lambda: setattr(self.kafka, "away", False))
            case "destination away":
                self.destination_away = True
                self.later(event, lambda: setattr(self, "destination_away", False))
            case "letters away":
                self.letters.away = True
                self.later(event, lambda: setattr(self.letters, "away", False))
            case "kill" if who:
                who.process.kill()
            case "stop" if who:
                who.stop()
            case "freeze" if who:
                who.process.freeze(event.seconds)
            case "expel" if who and hasattr(who, "source"):
                self.kafka.expel(who.source)

    def later(self, event: Event, act: Callable[[], None]) -> None:
        self._heal.append((self.sim.now + event.seconds, act))

    def step(self) -> None:
        """At every pass of the baton."""
        for at, act in list(self._heal):
            if at <= self.sim.now:
                self._heal.remove((at, act))
                act()
        for inserter in self.inserters:
            process, source = inserter.process, getattr(inserter, "source", None)
            if source is None or source not in self.kafka.members:
                continue
            if not process.alive or process.ended:
                source.leave()
            elif process.frozen_until > self.sim.now + 45 and not source.expelled:
                # Its session ends long before it wakes up.
                self.kafka.expel(source)
        self.check()

    def mend(self) -> None:
        self.kills = self.stops = self.outages = 0
        for _, act in self._heal:
            act()
        self._heal.clear()
        self.produce([kinds for kinds in self._late[-1:] for _ in self.partitions])
        self.start()
        for inserter in self.inserters:
            if inserter.process.frozen_until > self.sim.now + 100:
                inserter.process.frozen_until = self.sim.now + 100

    def all_landed(self) -> bool:
        failed = [i.process.error for i in self.inserters if i.process.error is not None]
        if failed:
            raise failed[0]
        return all(self.place.position(p) == self.kafka.end(p) for p in self.partitions)

    def leave(self) -> None:
        """Whoever is asked to leave does so in time."""
        left = self.running
        self.sim.run(lambda: all(i.process.frozen_until <= self.sim.now for i in left), 9000)
        self.sim.run(lambda: all(i.runner is not None for i in left), 60)
        for inserter in left:
            inserter.stop()
        self.sim.run(lambda: not self.running, 10)
        for inserter in self.inserters:
            if inserter.process.error is not None:
                raise inserter.process.error

    # -- what holds --------------------------------------------------------------------------------

    def check(self, final: bool = False) -> None:
        rows = self.place.rows
        positions = {p: self.place.position(p) for p in self.partitions}
        progress = [len(rows), *positions.values()]
        if progress == self._checked and not final:
            return
        self._checked = progress
        dead = self.letters.coordinates()
        for partition, position in positions.items():
            landed = [offset for p, offset, _ in rows if p == partition]
            kinds = {o: kind for (p, o), kind in self.kinds.items() if p == partition}
            good = [offset for offset, kind in kinds.items() if kind == GOOD]
            assert landed == good[: len(landed)], f"{partition}: not each once, in order"
            must = sum(offset < position for offset in good)
            assert len(landed) >= must, f"{partition} is at {position}, not all below has landed"
            if isinstance(self.place, MemoryPlace):
                assert len(landed) == must, f"{partition} is at {position}, more has landed"
            bad = {(partition, o) for o, kind in kinds.items() if kind != GOOD and o < position}
            assert bad <= dead, f"{partition} is at {position}, no dead letter of {bad - dead}"
            wanted = tuple(
                (len(offsets), hash_of(offsets))
                for offsets in ([o for o in good if o < position], [o for _, o in bad])
            )
            assert self.place.ledger(partition) == wanted, f"the ledger of {partition} is wrong"
        assert all(row["device_id"] == f"{p.number}-{offset}" for p, offset, row in rows)
        wrong = {where for where in dead if self.kinds[where] == GOOD}
        assert not wrong, f"dead letters of good records: {wrong}"


def profile(examples: int, *phases: Phase, **how: Any) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, *phases],
        suppress_health_check=list(HealthCheck),
        **how,
    )


@pytest.mark.parametrize("place", [MemoryPlace, ClickHousePlace])
@profile(30, derandomize=True)
@given(story=STORIES)
def test_every_record_lands_once_or_is_a_dead_letter_whatever_happens(
    place: Callable[[FakeKafka], Place], story: Story
) -> None:
    World(story, place).tell()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", [MemoryPlace, ClickHousePlace])
@profile(int(os.environ.get("MODEL_EXAMPLES", "3000")), Phase.shrink, print_blob=True)
@given(story=STORIES)
def test_every_record_lands_once_or_is_a_dead_letter_in_many_more_stories(
    place: Callable[[FakeKafka], Place], story: Story
) -> None:
    World(story, place).tell()


@pytest.mark.parametrize("place", [MemoryPlace, ClickHousePlace])
def test_an_attempt_from_before_its_partitions_went_and_came_back_lands_nothing_twice(
    place: Callable[[FakeKafka], Place],
) -> None:
    """It stands still at any point; meanwhile another one has landed more, and has gone."""

    def come_back(world: World, inserter: Inserter) -> None:
        assert world.sim.block(lambda: bool(inserter.source.holds), 60)

    stand_still_at_every_point(place, come_back)


@pytest.mark.parametrize("place", [MemoryPlace, ClickHousePlace])
@pytest.mark.parametrize("seconds", [60.0, 4000.0])
def test_an_attempt_that_goes_on_when_nobody_remembers_it_lands_nothing_twice(
    place: Callable[[FakeKafka], Place], seconds: float
) -> None:
    """ClickHouse forgets an insert's token after an hour."""

    def sleep(world: World, inserter: Inserter) -> None:
        inserter.process.freeze(seconds)
        world.sim.point()

    stand_still_at_every_point(place, sleep)


def stand_still_at_every_point(
    place: Callable[[FakeKafka], Place], then: Callable[[World, Inserter], None]
) -> None:
    """An inserter, and at one of its points another one that lands more than it was about to."""
    quiet = Story(
        seed=0, early=[[GOOD] * 9], late=[], events=[], runners=1, lanes=1, max_rows=3,
        kills=0, stops=0, outages=0,
    )  # fmt: skip
    for target in range(1000):
        world = World(quiet, place)
        points = 0

        def stand_still(inserter: Inserter, _point: str, w: World = world, t: int = target) -> None:
            nonlocal points
            points += 1
            if points - 1 != t or not inserter.source.holds or w.place.locked or w.all_landed():
                return
            w.kafka.expel(inserter.source)
            log = w.kafka.join()
            other = w.place.open(log, lambda _point: None)
            (at,) = other.resume(log.known(w.partitions)).values()
            end = min(at + 5, w.kafka.end(w.partitions[0]))
            if at < end:
                other.write(batch_of(STREAM, w.kafka, [(0, at, end)]))
            log.leave()
            then(w, inserter)

        world.hook = stand_still
        world.produce(quiet.early)
        with world.sim.patched(*LOOP, *CLICKHOUSE):
            world.sim.on_step = world.step
            world.start()
            world.sim.run(world.all_landed, 9000)
            world.leave()
        world.check(final=True)
        if points <= target:
            assert target > 5
            return


def test_records_that_come_while_a_full_lane_is_waited_for_are_not_lost() -> None:
    """The consumer is paused then and polled all the same; what was on its way may come."""
    came = 0
    for seed in range(4):
        story = Story(
            seed=seed, early=[[GOOD] * 60] * 2, late=[], runners=1, lanes=1, max_rows=3,
            events=[
                Event(after=100, what="destination away", seconds=50.0),
                Event(after=3000, what="produce"),
            ],
            kills=0, stops=0, outages=0,
        )  # fmt: skip
        world = World(story, MemoryPlace)
        world.tell()
        came += sum(inserter.source.slipped for inserter in world.inserters)
    assert came, "not one came: this test tests nothing"


def quiet_world(seed: int, records: int) -> World:
    """One inserter, one partition, and nothing that happens by chance."""
    story = Story(
        seed=seed, early=[[GOOD] * records], late=[], events=[], runners=1, lanes=1, max_rows=3,
        kills=0, stops=0, outages=0,
    )  # fmt: skip
    world = World(story, MemoryPlace)
    world.produce(story.early)
    return world


def test_what_was_fetched_before_retention_removed_it_still_lands() -> None:
    """Kafka says that the next offset is gone while batches before it wait for the destination."""
    waited = sum(map(retention_overtakes, range(4)))
    assert waited, "nothing waited: this test tests nothing"


def retention_overtakes(seed: int) -> int:
    """All that was not fetched yet goes, and five more; how many records waited then."""
    world = quiet_world(seed, 60)
    (partition,) = world.partitions
    away = False

    def refuse(_inserter: Inserter, point: str) -> None:
        if away and point == "copy begins":
            raise Unavailable("away (by the test)")

    world.hook = refuse
    with world.sim.patched(*LOOP, *CLICKHOUSE):
        world.sim.on_step = world.step
        inserter = world.start()
        world.sim.run(lambda: len(world.place.rows) >= 3, 60)
        away = True
        soon, later = world.sim.now + 1, world.sim.now + 60
        world.sim.run(lambda: world.sim.now > soon, 60)
        fetched = inserter.source.position(partition)
        first = min(fetched + 5, world.kafka.end(partition))
        world.kafka.expire(partition, first)
        for offset in range(fetched, first):
            del world.kinds[partition, offset]
        landed = len(world.place.rows)
        # It reads on, and hears of it.
        world.sim.run(lambda: world.sim.now > later, 90)
        away = False
        world.sim.run(world.all_landed, 900)
        world.leave()
    world.check(final=True)
    assert len(world.place.rows) == 60 - (first - fetched)
    return fetched - landed


def test_a_destination_that_hangs_is_reported_after_a_few_seconds_and_until_it_answers() -> None:
    """Also without an error: a server that is stopped, or a network that swallows everything."""
    world = quiet_world(0, 3)
    seen: list[tuple[float, str | None]] = []

    def hang(inserter: Inserter, point: str) -> None:
        if point != "copy begins" or seen:
            return
        began = world.sim.now
        for _ in range(8):
            world.sim.block(lambda: False, 1.0)
            assert inserter.runner is not None
            seen.append((world.sim.now - began, inserter.runner.problem))

    world.hook = hang
    with world.sim.patched(*LOOP, *CLICKHOUSE):
        inserter = world.start()
        world.sim.run(world.all_landed, 60)
        world.sim.run(lambda: not inserter.runner or inserter.runner.problem is None, 60)
        world.leave()
    assert all(problem is None for after_s, problem in seen if after_s < 4)
    late = [problem for after_s, problem in seen if after_s > 6]
    assert late
    assert all(problem and "has not answered" in problem for problem in late)
