"""`--drain` ends when all has landed, by what the destination says and not by the group's offsets.

Those follow behind a database's own positions. They are ahead of them where the database was
restored, was made anew, or its table was given another name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pytest
from fake_log import LOOP, FakeKafka, FakeLetters
from simulation import Process, Simulation

from consumers.batch import Batch, Partition
from consumers.errors import Unavailable
from consumers.limits import Limits
from consumers.run import Runner
from consumers.sinks.memory import MemorySink, Store
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
RECORDS = 20


@dataclass
class World:
    """A topic of two partitions, and the destination."""

    sim: Simulation
    kafka: FakeKafka = field(init=False)
    store: Store = field(default_factory=Store)
    # How many questions fail, and how long a batch takes.
    failing: int = 0
    slow_s: float = 0.0

    def __post_init__(self) -> None:
        self.kafka = FakeKafka(self.sim)
        partitions = self.kafka.create(STREAM.topic, 2)
        message = STREAM.message()
        message.timestamp.seconds = 1_750_000_000  # type: ignore[attr-defined]
        message.device_id = "d"  # type: ignore[attr-defined]
        for n in range(RECORDS):
            self.kafka.produce(partitions[n % 2], message.SerializeToString())

    def ahead(self) -> None:
        """The group has been told that all has landed."""
        for partition in self.kafka.records:
            self.kafka.committed[partition] = (self.kafka.end(partition), "")

    @property
    def rows(self) -> int:
        return sum(map(len, self.store.rows.values()))

    def landed(self, _partitions: Collection[Partition]) -> Mapping[Partition, int]:
        if self.failing:
            self.failing -= 1
            raise Unavailable("the database is away (by the test)")
        return {partition: at for partition, (_, at) in self.store.positions.items()}

    def start(self, name: str) -> Process:
        world = self

        class Sink(MemorySink):
            def write(self, batch: Batch) -> None:
                world.sim.block(lambda: False, world.slow_s)
                super().write(batch)

        def main() -> None:
            Runner(
                self.kafka.join,
                FakeLetters(self.sim),
                [STREAM],
                lambda _log: Sink(self.store),
                destination="memory",
                limits=Limits(max_rows=3),
                landed=self.landed,
            ).run(drain=True)
            assert self.rows == RECORDS, f"{name} has ended before all had landed"

        return self.sim.process(name, main)

    def all_end(self, *processes: Process) -> None:
        self.sim.run(lambda: all(process.ended for process in processes), 600)
        for process in processes:
            if process.error is not None:
                raise process.error
        assert self.rows == RECORDS


@pytest.mark.parametrize("seed", range(10))
def test_a_database_behind_the_groups_offsets_is_filled(seed: int) -> None:
    world = World(Simulation(seed), failing=seed % 3)
    with world.sim.patched(*LOOP):
        world.ahead()
        world.all_end(world.start("one"))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ahead", [False, True])
def test_all_that_drain_together_end_also_those_without_a_partition(seed: int, ahead: bool) -> None:
    """Three processes and two partitions; none ends while another one is at it."""
    world = World(Simulation(seed), slow_s=3.0)
    with world.sim.patched(*LOOP):
        if ahead:
            world.ahead()
        world.all_end(*(world.start(str(n)) for n in range(3)))
        # Where all has landed one that comes later has nothing to do.
        world.all_end(world.start("late"))
