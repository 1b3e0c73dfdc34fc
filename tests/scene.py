"""One stream, its Kafka in memory, and the writers that come and go; for the conformance suite.

with Scene(subject) as scene:
    scene.fill(0, 5)                          # five records in partition 0
    writer = scene.writer(points.at)
    writer.resume()
    writer.write((0, 0, 3))                   # partition 0, offsets 0 to 3
    scene.finish()                            # a new writer lands the rest
    scene.check()                             # everything once
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from confluent_kafka import Message
from fake_log import FakeKafka, FakeSource, nothing, steps
from google.protobuf.message import DecodeError
from ledger_truth import truth
from simulation import Simulation
from sinks_under_test import Subject, batch_of, encode

from consumers.batch import Batch, Partition, Span
from consumers.sinks import Sink

__all__ = ["Crash", "Points", "Scene", "Writer"]


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Points:
    """Notes every point that is passed, and does something at the one of number `target`."""

    target: int = -1
    act: Callable[[str], None] = nothing
    seen: list[str] = field(default_factory=list)

    def at(self, point: str) -> None:
        self.seen.append(point)
        if len(self.seen) - 1 == self.target:
            self.act(point)

    @property
    def reached(self) -> bool:
        """Whether the target was passed: a loop over targets ends where it is not."""
        return len(self.seen) > self.target


def crash(point: str) -> None:
    """For `Points.act`."""
    raise Crash(point)


class Writer:
    """A process's sink and its member of the group."""

    def __init__(self, scene: Scene, at: Callable[[str], None]) -> None:
        self._scene = scene
        self.log: FakeSource = scene.kafka.join(at=at)
        self.sink: Sink = scene.subject.open([scene.stream], self.log, steps(at))

    def resume(self, *numbers: int) -> dict[int, int]:
        """Ask where to go on with these partitions, or all."""
        wanted = [p for p in self._scene.partitions if not numbers or p.number in numbers]
        found = self.sink.resume(self.log.known(wanted))
        assert found.keys() == set(wanted)
        return {partition.number: offset for partition, offset in found.items()}

    def batch(self, *spans: tuple[int, int, int]) -> Batch:
        return batch_of(self._scene.stream, self._scene.kafka, spans)

    def write(self, *spans: tuple[int, int, int]) -> None:
        self.sink.write(self.batch(*spans))

    def crash(self) -> None:
        """Be gone; the group notices."""
        self.log.leave()
        self.sink.close()

    def expel(self) -> None:
        """The group gives its partitions to others, which it does not know yet."""
        self._scene.kafka.expel(self.log)


class Scene:
    """See the module's comment."""

    def __init__(self, subject: Subject, partitions: int = 2, **settings: Any) -> None:
        self.subject = subject
        self.kafka = FakeKafka(Simulation(0))
        self.stream = subject.stream(**settings)
        self.partitions: list[Partition] = self.kafka.create(self.stream.topic, partitions)
        self._writers: list[Writer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.sink.close()

    def name(self, number: int, offset: int) -> str:
        """The id of a record, unless a test says otherwise."""
        return f"{self.stream.topic}/{self.kafka.ids[self.stream.topic]}/{number}/{offset:04}"

    def fill(self, number: int, count: int, **fields: Any) -> None:
        """Append records to a partition."""
        partition = self.partitions[number]
        for _ in range(count):
            name = self.name(number, self.kafka.end(partition))
            self.kafka.produce(partition, encode(self.stream, name, **fields), name.encode())

    def gap(self, number: int, offsets: int = 1) -> None:
        """Offsets without records."""
        self.kafka.marker(self.partitions[number], offsets)

    def writer(self, at: Callable[[str], None] = nothing) -> Writer:
        writer = Writer(self, at)
        self._writers.append(writer)
        return writer

    def finish(self, *numbers: int, writer: Writer | None = None) -> None:
        """Land all that is left, by a new writer, in two batches; it stays as it is."""
        writer = writer or self.writer()
        at = writer.resume(*numbers)
        ends = {n: self.kafka.end(self.partitions[n]) for n in at}
        middles = {n: (start + ends[n]) // 2 for n, start in at.items()}
        for spans in (
            [(n, at[n], middles[n]) for n in at if at[n] < middles[n]],
            [(n, middles[n], ends[n]) for n in at if middles[n] < ends[n]],
        ):
            if spans:
                writer.write(*spans)
        assert writer.resume(*numbers) == ends

    def state(self) -> object:
        """What is durable, in a form that scenes of the same story share."""
        committed = [self.kafka.committed.get(p, (None, "")) for p in self.partitions]
        positions = [(offset, bool(note)) for offset, note in committed]
        return len(self.subject.landed(self.stream)), positions

    def expected(self, spans: Iterable[tuple[int, int, int]] | None = None) -> list[str]:
        """Ids of the records of these spans, or of all."""
        spans = spans if spans is not None else [(p.number, 0, 1_000_000) for p in self.partitions]
        return sorted(
            self.name(number, offset)
            for number, start, end in spans
            for offset, message in enumerate(self.kafka.records[self.partitions[number]].messages)
            if message is not None and start <= offset < end
        )

    def check(self, *spans: tuple[int, int, int]) -> None:
        """Everything, or what these spans hold, has landed once, and nothing else."""
        assert self.subject.landed(self.stream) == self.expected(spans or None)
        if not spans:
            self.check_ledger()

    def check_ledger(self, dead: Collection[tuple[int, int]] = ()) -> None:
        """It says what landed, and of these (partition, offset) that they are dead letters."""
        wanted: dict[bool, list[tuple[int, int, float]]] = {True: [], False: []}
        for partition in self.partitions:
            for message in self.kafka.read(partition, Span(0, self.kafka.end(partition))):
                at = (partition.number, int(message.offset() or 0))
                wanted[at in dead].append((*at, self._seconds(message)))
        found = self.subject.ledger(self.stream, self.kafka)
        for is_dead, records in wanted.items():
            sums = {(b.partition.number, b.hour): e.dead if is_dead else e.rows
                    for b, e in found.items()}  # fmt: skip
            assert {at: one for at, one in sums.items() if one.records} == truth(records)

    def _seconds(self, message: Message) -> float:
        """Its event time, or Kafka's where it has none."""
        with suppress(DecodeError):
            event: Any = self.stream.message.FromString(message.value() or b"")
            if event.at.seconds:
                return float(event.at.seconds)
        return message.timestamp()[1] / 1000
