"""Kafka in memory, as the run loop and the sinks see it: the contract of consumers/source.py.

    kafka = FakeKafka(sim)
    kafka.create("events", partitions=2)
    kafka.produce("events", 0, b"…"); kafka.marker("events", 0)     # a marker takes an offset
    source = kafka.join(listener)                 # consumers.source.Source, and so consumers.sinks.Log

What it does as Kafka and GroupSource do, because things went wrong there:

- Partitions move inside `poll` and `close` only. A new owner is told when the old one has given
  them back or was expelled; an expelled member hears `on_lost` at its next poll, and is in again.
- Commits are done by the polling thread, for partitions that are ours in the same turn in which
  `known` was asked; a partition that went and came back is in another turn (consumers/commits.py).
- A partition that was assigned is not read before `seek`, which may have to be repeated.
- What was on its way when a partition was paused may still come.
- A topic that is deleted takes the group's positions with it, unless a member commits once more.

A topic's records are a list; an offset that holds None is a transaction marker or was compacted.
`at` is called at every point where a process may be killed or told that Kafka is away.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from confluent_kafka import Message
from simulation import Killed, Simulation

from consumers import assignment, attempts, collect, drain, lag, landing, lane, lanes, run
from consumers.batch import Partition, Span
from consumers.deadletters import DeadLetter
from consumers.errors import Fenced, Unavailable
from consumers.fetch import by_partition
from consumers.sinks import Known, Notes
from consumers.source import Listener, Runs
from ingest.streams import Stream

__all__ = ["LOOP", "FakeKafka", "FakeLetters", "FakeSource", "steps"]

# The run loop's modules that wait, start threads or look at the clock: for Simulation.patched.
LOOP = (assignment, attempts, collect, drain, lag, landing, lane, lanes, run)

# As GroupSource: how long a commit waits for the polling thread, in seconds.
_ASK_S = 10.0
# Bytes, of one offset: offset.metadata.max.bytes.
_MOST_METADATA = 4096
# Records that a poll brings, so that a few dozen are many.
_MOST = 12

At = Callable[[str], None]


def nothing(_point: str) -> None:
    """No fault."""


def steps(at: At) -> Callable[[str], AbstractContextManager[None]]:
    """What a sink takes as `step`: two points for each, before it begins and after it has ended."""

    @contextmanager
    def step(name: str) -> Iterator[None]:
        at(f"{name} begins")
        yield
        at(f"{name} ended")

    return step


@dataclass(slots=True)
class _Records:
    """One partition. `first` is the offset that retention has reached."""

    messages: list[Message | None] = field(default_factory=list)
    first: int = 0


@dataclass(slots=True, eq=False)
class _Request:
    positions: dict[Partition, int]
    turns: dict[Partition, int]
    notes: dict[Partition, str]
    done: bool = False
    error: Exception | None = None


class FakeKafka:
    """A broker with one consumer group."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.records: dict[Partition, _Records] = {}
        self.ids: dict[str, str] = {}
        self.committed: dict[Partition, tuple[int, str]] = {}
        self.away = False
        self.members: list[FakeSource] = []
        self.owners: dict[Partition, FakeSource] = {}
        self._wanted: dict[Partition, FakeSource] = {}
        self._made = 0

    def create(self, topic: str, partitions: int = 1) -> list[Partition]:
        """Make a topic; once more: delete it and make it anew, with another id."""
        self._made += 1
        self.ids[topic] = f"id-{self._made}"
        for partition in [p for p in self.records if p.topic == topic]:
            del self.records[partition]
            self.committed.pop(partition, None)
        made = [Partition(topic, number) for number in range(partitions)]
        self.records.update({partition: _Records() for partition in made})
        return made

    def produce(
        self,
        partition: Partition,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> int:
        """Append a record; answers its offset."""
        messages = self.records[partition].messages
        messages.append(
            Message(
                topic=partition.topic,
                partition=partition.number,
                offset=len(messages),
                value=value,
                key=key,
                headers=list(headers),
                timestamp=(1, 1_750_000_000_000 + len(messages)),
            )
        )
        return len(messages) - 1

    def marker(self, partition: Partition, offsets: int = 1) -> None:
        """Use up offsets without records."""
        self.records[partition].messages += [None] * offsets

    def expire(self, partition: Partition, first: int) -> None:
        """Retention: what is below `first` is gone."""
        self.records[partition].first = first

    def end(self, partition: Partition) -> int:
        return len(self.records[partition].messages)

    def read(self, partition: Partition, span: Span) -> list[Message]:
        records = self.records[partition]
        found = records.messages[max(span.start, records.first) : span.end]
        return [message for message in found if message is not None]

    def join(self, listener: Listener | None = None, at: At = nothing) -> FakeSource:
        """A member of the group; without a listener it is given nothing, but may commit."""
        return FakeSource(self, listener, at)

    def rebalance(self) -> None:
        """Decide anew, by chance, who shall own what."""
        able = [m for m in self.members if not m.expelled and m.listener is not None]
        if able:
            self.sim.rng.shuffle(able)
            self._wanted = {p: able[i % len(able)] for i, p in enumerate(self.records)}
        else:
            self._wanted = {}

    def expel(self, member: FakeSource) -> None:
        """Its session is over: what it owned may go to others at once."""
        member.expelled = True
        for partition in member.holds:
            del self.owners[partition]
        self.rebalance()

    def leaving(self, member: FakeSource) -> list[Partition]:
        return [p for p in member.holds if self._wanted.get(p) is not member]

    def arriving(self, member: FakeSource) -> list[Partition]:
        return [p for p, m in self._wanted.items() if m is member and p not in self.owners]

    def check(self) -> None:
        if self.away:
            raise Unavailable("Kafka is away (by the test)")


class FakeSource:
    """A member of the group: consumers.source.Source."""

    def __init__(self, kafka: FakeKafka, listener: Listener | None, at: At) -> None:
        self.kafka, self.listener, self._at = kafka, listener, at
        self._sim = kafka.sim
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        self.expelled = False
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        # Paused, with records that are on their way.
        self._slipping: set[Partition] = set()
        # How many of those did come.
        self.slipped = 0
        self._assigned: list[Partition] = []
        # In which turn each of our partitions is ours, and in which `known` was asked of it.
        self._turn = 0
        self._turns: dict[Partition, int] = {}
        self._found_in: dict[Partition, int] = {}
        self._told_end: set[Partition] = set()
        self._ids: dict[Partition, str] = {}
        self._requests: list[_Request] = []
        self._process = self._sim.here
        kafka.members.append(self)
        kafka.rebalance()

    @property
    def holds(self) -> list[Partition]:
        """What Kafka takes to be ours."""
        return [p for p, member in self.kafka.owners.items() if member is self]

    def _alive(self) -> None:
        if self._process is not None and not self._process.alive:
            raise Killed

    # -- reading -----------------------------------------------------------------------------------

    def poll(self, n: int, timeout_s: float) -> Runs:
        self._alive()
        self.serve()
        self._rebalance()
        found = self._fetch(n)
        if not found:
            self._sim.block(self._anything, timeout_s)
            self._rebalance()
            found = self._fetch(n)
        return by_partition(found)

    def _anything(self) -> bool:
        """Whether a poll need not wait any longer."""
        if self.kafka.away:
            return False
        return self._pending() or any(map(self._left, self._readable()))

    def _pending(self) -> bool:
        return bool(self.expelled or self.kafka.leaving(self) or self.kafka.arriving(self))

    def _left(self, partition: Partition) -> bool:
        records = self.kafka.records[partition]
        if self._positions[partition] < len(records.messages):
            return True
        return partition not in self._told_end

    def _readable(self) -> list[Partition]:
        stopped = self._paused - self._slipping
        return [p for p in self._assigned if p in self._positions and p not in stopped]

    def _rebalance(self) -> None:
        if self.kafka.away or not self._pending():
            return
        assert self.listener is not None
        if self.expelled:
            lost = self._forget(self._assigned)
            self.expelled = False
            self.kafka.rebalance()
            self.listener.on_lost(lost)
        leaving = self.kafka.leaving(self)
        if leaving:
            self._give_back(leaving)
        if self.expelled:
            return
        arriving = self.kafka.arriving(self)
        for partition in arriving:
            self.kafka.owners[partition] = self
        self._assigned += arriving
        self._turn += 1
        self._turns.update(dict.fromkeys(arriving, self._turn))
        self._paused |= set(arriving)
        self.listener.on_assigned(arriving)

    def _give_back(self, partitions: list[Partition]) -> None:
        assert self.listener is not None
        for partition in partitions:
            self.ends.pop(partition, None)
            self.replace.discard(partition)
        self.listener.on_revoked(partitions)
        self._alive()
        self._forget(partitions)
        for partition in partitions:
            # It may have been expelled meanwhile.
            if self.kafka.owners.get(partition) is self:
                del self.kafka.owners[partition]

    def _forget(self, partitions: Iterable[Partition]) -> list[Partition]:
        gone = list(partitions)
        for partition in gone:
            self.ends.pop(partition, None)
            self.replace.discard(partition)
            self._positions.pop(partition, None)
            self._paused.discard(partition)
            self._slipping.discard(partition)
            self._turns.pop(partition, None)
        self._assigned = [p for p in self._assigned if p not in gone]
        return gone

    def _fetch(self, n: int) -> list[Message]:
        """Records and ends of partitions, as they come: a few, by chance less than there is."""
        n = min(n, _MOST)
        found: list[Message] = []
        if self.kafka.away:
            return found
        rng = self._sim.rng
        partitions = self._readable()
        self._slipping.clear()
        rng.shuffle(partitions)
        for partition in partitions:
            records = self.kafka.records[partition]
            position = self._positions[partition]
            if position < records.first or position > len(records.messages):
                self._positions.pop(partition)
                self.replace.add(partition)
                continue
            room = rng.randint(0, max(n - len(found), 0))
            while position < len(records.messages) and room:
                message = records.messages[position]
                position += 1
                if message is not None:
                    found.append(message)
                    room -= 1
                    self.slipped += partition in self._paused
            # Markers that follow are skipped with the record before them, or are not yet there.
            self._positions[partition] = position
            if position == len(records.messages):
                self.ends[partition] = position
                self._told_end.add(partition)
            else:
                self._told_end.discard(partition)
        return found

    def seek(self, partition: Partition, offset: int) -> bool:
        self._alive()
        assert partition in self._assigned, f"{partition} is not ours to seek"
        if self._sim.rng.random() < 0.1:
            return False
        self._positions[partition] = offset
        self._told_end.discard(partition)
        self._paused.discard(partition)
        self._slipping.discard(partition)
        self.ends.pop(partition, None)
        return True

    def pause(self, partitions: Iterable[Partition]) -> None:
        wanted = set(partitions)
        assert wanted <= set(self._assigned), "only what is ours can be paused"
        self._slipping |= {
            p
            for p in wanted - self._paused
            if p in self._positions and self._sim.rng.random() < 0.5
        }
        self._paused |= wanted

    def resume(self, partitions: Iterable[Partition]) -> None:
        wanted = set(partitions)
        assert wanted <= set(self._assigned), "only what is ours can be resumed"
        self._paused -= wanted
        self._slipping -= wanted

    # -- what a sink may ask -----------------------------------------------------------------------

    @property
    def away(self) -> bool:
        return False

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        turns = {p: self._turns[p] for p in partitions if p in self._turns}
        self._at("known begins")
        self.kafka.check()
        self._found_in.update(turns)
        self._ids.update({p: self.kafka.ids[p.topic] for p in partitions})
        found = {}
        for partition in partitions:
            offset, note = self.kafka.committed.get(partition, (None, ""))
            found[partition] = Known(
                topic_id=self.kafka.ids[partition.topic],
                earliest=self.kafka.records[partition].first,
                latest=self.kafka.end(partition),
                committed=offset,
                note=note,
            )
        return found

    def owned(self) -> set[Partition]:
        return {p for p, turn in self._turns.items() if self._found_in.get(p) == turn}

    def unchanged(self, partitions: Collection[Partition]) -> None:
        self._at("topic asked for")
        self.kafka.check()
        for partition in partitions:
            if self.kafka.ids.get(partition.topic) != self._ids.get(partition):
                raise Fenced(f"the topic {partition.topic} was deleted")

    def topic_id(self, partition: Partition) -> str:
        return self._ids[partition]

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        self._at("kafka commit begins")
        each = dict.fromkeys(positions, notes) if isinstance(notes, str) else dict(notes)
        request = _Request(dict(positions), dict(self._found_in), each)
        self._requests.append(request)
        if self._sim.here is None or self.listener is None:
            self.serve()
        if not request.done and not self._sim.block(lambda: request.done, _ASK_S):
            self._requests.remove(request)
            raise Unavailable("the polling thread does not come round to commit")
        if request.error is not None:
            raise request.error
        self._at("kafka commit ended")

    def report(self, positions: Mapping[Partition, int]) -> None:
        self._alive()
        self._requests.append(_Request(dict(positions), dict(self._found_in), {}))

    def serve(self) -> None:
        self._alive()
        while self._requests:
            request = self._requests.pop(0)
            foreign = self.listener is not None and any(
                p not in self._turns or self._turns[p] != request.turns.get(p)
                for p in request.positions
            )
            if self.expelled or foreign:
                request.error = Fenced("the group has given the partitions away")
            elif any(len(note) > _MOST_METADATA for note in request.notes.values()):
                request.error = Unavailable("Kafka does not take a commit: too much metadata")
            elif self.kafka.away:
                request.error = Unavailable("Kafka is away (by the test)")
            else:
                for partition, offset in request.positions.items():
                    self.kafka.committed[partition] = (offset, request.notes.get(partition, ""))
            request.done = True

    def read(self, partition: Partition, span: Span) -> list[Message]:
        self._at("read begins")
        self.kafka.check()
        return self.kafka.read(partition, span)

    def position(self, partition: Partition) -> int:
        """The offset that is fetched next; for tests."""
        return self._positions[partition]

    def latest(self, partition: Partition) -> int:
        return self.kafka.end(partition)

    def all_ends(self) -> dict[Partition, int]:
        self.kafka.check()
        return {partition: self.kafka.end(partition) for partition in self.kafka.records}

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        self.kafka.check()
        return {p: self.kafka.committed.get(p, (-1, ""))[0] for p in partitions}

    def close(self) -> None:
        self.serve()
        if self._assigned and self.listener is not None and not self.expelled:
            self._give_back(list(self._assigned))
        self.leave()

    def leave(self) -> None:
        """Be gone, also when the process was killed."""
        if self in self.kafka.members:
            self.kafka.members.remove(self)
            self.kafka.expel(self)


class FakeLetters:
    """The dead-letter topics. `away` makes them fail, by chance after some were sent."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.away = False
        self.sent: list[DeadLetter] = []

    def send(self, stream: Stream, letters: Sequence[DeadLetter], at: At = nothing) -> None:
        at("letters begins")
        if self.away:
            self.sent += letters[: self._sim.rng.randint(0, len(letters))]
            raise Unavailable("dead letters are not acknowledged (by the test)")
        self.sent += letters
        at("letters ended")

    def coordinates(self) -> set[tuple[Partition, int]]:
        """Which records are there."""
        return {(Partition(m.topic(), m.partition()), m.offset()) for m, _, _ in self.sent}
