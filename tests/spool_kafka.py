"""Kafka as a spool's relay sees it, in memory: a log, a position with its note, who is fenced.

A FakeProducer can be told to crash at a named step, to abort, to break with the outcome unknown,
to be away, or to fail as nobody has foreseen; what the Kafka holds outlives it, as the real one
outlives a process. `begin` is for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from waiting import until

from ingest.spool.batch import Batch
from ingest.spool.entry import RelayEntry
from ingest.spool.frames import Record
from ingest.spool.reader import Reader, State
from ingest.spool.relay import Relay
from ingest.spool.store import Store
from ingest.spool.transactions import Aborted, Broken, Committed, Fenced

__all__ = ["Crash", "FakeKafka", "FakeProducer", "Source", "begin"]


class Crash(BaseException):
    """The process is gone."""


@dataclass
class FakeKafka:
    """What outlives the processes."""

    log: list[Record] = field(default_factory=list)
    entries: list[RelayEntry] = field(default_factory=list)
    committed: Committed | None = None
    epoch: int = 0


@dataclass
class FakeProducer:
    """One process's producer. `plan` says for a step what happens there, once."""

    kafka: FakeKafka
    plan: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    _epoch: int = -1
    _pending: list[Record] = field(default_factory=list)
    _entry: RelayEntry | None = None

    def open(self) -> Committed | None:
        self._at("before open")
        self.kafka.epoch += 1
        self._epoch, self._pending, self._entry = self.kafka.epoch, [], None
        self._at("after open")
        return self.kafka.committed

    def look(self) -> Committed | None:
        self._at("look")
        return self.kafka.committed

    def send(self, batch: Batch, stored: int) -> None:
        self._mine()
        self._at("before send")
        self._pending = [
            Record(topic, row["key"], row["value"])
            for topic, rows in batch.rows.items()
            for row in rows
        ]
        self._entry = RelayEntry("n", batch.first, batch.end, stored, 0, batch.sums)
        self._at("after send")

    def commit(self, position: int, note: str) -> None:
        self._mine()
        self._at("before commit")
        self.kafka.log += self._pending
        if self._entry is not None:
            self.kafka.entries.append(self._entry)
        self._pending, self._entry = [], None
        self.kafka.committed = Committed(position, note)
        self._at("after commit")

    def close(self) -> None:
        self._epoch, self._pending, self._entry = -1, [], None

    def _mine(self) -> None:
        if self._epoch < 0:
            raise Broken("not open")
        if self._epoch != self.kafka.epoch:
            raise Fenced("another producer has the id")

    def _at(self, step: str) -> None:
        self.steps.append(step)
        what = self.plan.pop(step, "")
        if what == "crash":
            raise Crash(step)
        if what == "abort":
            self._pending, self._entry = [], None
            raise Aborted(step)
        if what == "break":
            self._epoch, self._pending, self._entry = -1, [], None
            raise Broken(step)
        if what == "time out":  # the coordinator's answer to a transaction that took too long
            self._pending, self._entry = [], None
            self.kafka.epoch += 1
            raise Fenced(step)
        if what == "fail":  # what was sent stays open
            raise RuntimeError(step)


class Source:
    """A Store as a relay's source, without a writer's thread; dies with the process."""

    def __init__(self, store: Store, plan: dict[str, str]) -> None:
        self._store = store
        self._plan = plan
        self.node = store.state.node

    @property
    def state(self) -> State:
        return self._store.state

    def release(self, position: int) -> None:
        if self._plan.pop("before deletion", "") == "crash":
            raise Crash("before deletion")
        self._store.release(position)
        if self._plan.pop("after deletion", "") == "crash":
            raise Crash("after deletion")

    def wait(self, seq: int, timeout_s: float) -> bool:
        return self._store.state.next_seq > seq

    def contents(self) -> Reader:
        return Reader(self._store.path.parent)


def begin(relay: Relay) -> None:
    """recover(), again while a Kafka that has just started loads its groups, as run() does."""

    def recovered() -> bool:
        try:
            relay.recover()
        except Broken:
            return False
        return True

    until(recovered, "a position", 60.0)
