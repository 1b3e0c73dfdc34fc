"""A spool against a plain list: whatever crashes where, every record reaches Kafka once, in order.

A story is a list of events. Clients append records; what they get no answer for they send again
under the same id before they send anything else of that key, as SDKs do; records without an id are
not sent again. The relay moves a batch at a time. The process dies at named steps:

    before the fsync, between fsync and answer, between produce and Kafka's commit, between that
    commit and the deletion, after it, and during recovery, before and after it has fenced

All along: what was acknowledged is in Kafka or on disk, nothing is in Kafka twice, and nothing below
the position is missing there. What the ledger says was sent is what is there, and its numbers follow
each other. At the end Kafka holds exactly the list, each key in its order.
"""  # noqa: E501

from __future__ import annotations

import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from spool_kafka import Crash, FakeKafka, FakeProducer, Source

from ingest.spool import relay as relay_module
from ingest.spool.entry import RelaySum
from ingest.spool.errors import SpoolFull
from ingest.spool.frames import Record
from ingest.spool.reader import Reader
from ingest.spool.relay import Relay
from ingest.spool.store import Limits, Store
from ingest.spool.transactions import Aborted, Broken, Fenced

APPEND_CRASHES = ("before fsync", "between fsync and answer")
RELAY_TROUBLE = {
    "before send": ("crash", "break", "fail"),
    "after send": ("crash", "break", "fail"),
    "before commit": ("crash", "abort", "break", "time out", "fail"),
    "after commit": ("crash", "break", "fail"),
    "before deletion": ("crash",),
    "after deletion": ("crash",),
    "before open": ("crash", "break", "fail"),
    "after open": ("crash", "break", "time out", "fail"),
}
# Memory where there is: thousands of syncs are not what this test is about.
SHM = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def in_kafka(records: Sequence[Record]) -> list[Record]:
    """What Kafka has of them: ids stay in the spool, and each value is another one anyway."""
    return [record._replace(id=None, source="") for record in records]


def source_of(key: int) -> str:
    return f"s{key % 2}"


class Dying(list[Any]):
    """A batch in the middle of which the process dies."""

    def __iter__(self) -> Iterator[Any]:
        raise Crash("before fsync")


@dataclass
class World:
    """The disk, Kafka, the clients, and the process while it lives."""

    folder: Path
    kafka: FakeKafka = field(default_factory=FakeKafka)
    # The plain list: everything that a client has sent for good.
    sent: list[Record] = field(default_factory=list)
    acknowledged: list[Record] = field(default_factory=list)
    # Sent, and nobody knows whether they are there; without an id, so nobody asks again.
    doubtful: list[Record] = field(default_factory=list)
    numbers: int = 0
    limits: Limits = field(default_factory=lambda: Limits(max_bytes=20_000))
    store: Store | None = None
    reader: Reader | None = None
    relay: Relay | None = None
    plan: dict[str, str] = field(default_factory=dict)
    fresh: bool = False

    def start(self) -> None:
        self.store = Store(self.folder, self.limits)
        self.plan = {}
        source = Source(self.store, self.plan)
        self.reader = source.contents()
        self.relay = Relay(source, self.reader, FakeProducer(self.kafka, self.plan))
        self.fresh = True

    def die(self) -> None:
        """SQLite's files stay as they are: what is not committed is forgotten."""
        assert self.reader is not None and self.store is not None
        self.reader.close()
        self.store.close()

    def restart(self) -> None:
        self.die()
        self.start()

    def append(self, keys: Sequence[int], *, ids: bool, crash: str) -> None:
        """A client appends one batch, and again until it is answered where it has ids."""
        batch = []
        for key in keys:
            self.numbers += 1
            name = f"id-{self.numbers}" if ids else None
            batch.append(Record("t", b"%d" % key, b"%d" % self.numbers, name, source_of(key)))
        for attempt in range(3):
            assert self.store is not None
            try:
                if crash == "before fsync" and attempt == 0:
                    self.store.append([batch, Dying()])
                (answer,) = self.store.append([batch])
                if crash == "between fsync and answer" and attempt == 0:
                    raise Crash(crash)
            except Crash:
                self.restart()
                if not ids:
                    self.doubtful += in_kafka(batch)
                    return
                continue
            if isinstance(answer, SpoolFull):
                # Refused whole: the client drops it here, and it may be nowhere.
                return
            assert ids or answer == len(batch)
            self.sent += in_kafka(batch)
            self.acknowledged += in_kafka(batch)
            return
        raise AssertionError("no answer after a crash")

    def move(self, step: str, what: str) -> None:
        """The relay moves a batch, with trouble planned for a step."""
        assert self.relay is not None
        if step:
            self.plan[step] = what
        try:
            if self.fresh:
                self.relay.recover()
                self.fresh = False
            self.relay.step()
        except Crash:
            self.restart()
        except Aborted:
            pass
        except (Broken, Fenced, RuntimeError):
            self.fresh = True
        self.plan.clear()

    def check(self) -> None:
        assert self.store is not None and self.reader is not None
        times = Counter(self.kafka.log)
        assert max(times.values(), default=1) == 1, "nothing is in Kafka twice"
        state = self.store.state
        assert state.position <= (self.kafka.committed.position if self.kafka.committed else 0)
        below = self.kafka.committed.position if self.kafka.committed else 0
        waiting = {Record(r.topic, r.key, r.value) for r in self.reader.read(below, 10**6, 10**9)}
        for record in self.acknowledged:
            assert (record in times) != (record in waiting), record

        self.check_ledger()

    def check_ledger(self) -> None:
        """Each record that is in Kafka is in one entry, under its source."""
        following = 0
        found = {source_of(key): RelaySum(0, 0) for key in (0, 1)}
        for entry in self.kafka.entries:
            assert entry.first == following, "a number is in no entry, or in two"
            following = entry.end
            assert entry.end - entry.first == sum(one.records for one in entry.sums.values())
            assert entry.end <= entry.stored
            for (_, source), one in entry.sums.items():
                found[source] = found[source].plus(one)
        for source, one in found.items():
            mine = [r.value for r in self.kafka.log if source_of(int(r.key or b"")) == source]
            assert one == RelaySum(len(mine), sum(map(zlib.crc32, mine)))

    def finish(self) -> None:
        self.restart()
        assert self.relay is not None and self.store is not None
        self.relay.recover()
        while self.relay.step():
            pass
        self.check()
        log = self.kafka.log
        assert set(self.sent) <= set(log) <= set(self.sent) | set(self.doubtful)
        for key in {r.key for r in self.sent}:
            wanted = [r for r in self.sent if r.key == key]
            assert [r for r in log if r.key == key and r not in self.doubtful] == wanted
        assert self.store.state.bytes == 0
        assert self.store.state.position == self.store.state.next_seq


EVENTS = st.one_of(
    st.tuples(
        st.just("append"),
        st.lists(st.integers(0, 3), min_size=1, max_size=12),
        st.booleans(),
        st.sampled_from(["", "", "", *APPEND_CRASHES]),
    ),
    st.tuples(
        st.just("move"),
        st.sampled_from(["", "", *RELAY_TROUBLE]),
        st.integers(0, 4),
    ),
    st.tuples(st.just("restart")),
)


def steps_of(step: str, number: int) -> str:
    kinds = RELAY_TROUBLE.get(step, ("",))
    return kinds[number % len(kinds)]


def play(events: Sequence[Any], batch: int) -> None:
    with (
        tempfile.TemporaryDirectory(dir=SHM) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Small transactions, so that a backlog is several of them.
        patch.setattr(relay_module, "_BATCH_RECORDS", batch)
        world = World(Path(folder))
        world.start()
        try:
            for event in events:
                if event[0] == "append":
                    world.append(event[1], ids=event[2], crash=event[3])
                elif event[0] == "move":
                    world.move(event[1], steps_of(event[1], event[2]))
                else:
                    world.restart()
                world.check()
            world.finish()
        finally:
            world.die()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENTS, min_size=1, max_size=30), batch=st.integers(1, 20))
@example(events=[("append", [0, 0], True, APPEND_CRASHES[1]), ("move", "", 0)], batch=10)
def test_whatever_crashes_where_kafka_gets_the_list_once_and_in_order(
    events: list[Any], batch: int
) -> None:
    play(events, batch)


@pytest.mark.parametrize("crash", APPEND_CRASHES)
def test_a_crash_while_a_record_is_stored(crash: str) -> None:
    """Before the fsync nothing is there; behind it all is; its sender's retry is stored once."""
    play([("append", [0, 1, 0], True, crash), ("append", [0], True, ""), ("move", "", 0)], 10)


@pytest.mark.parametrize(
    ("step", "number"), [(s, n) for s, kinds in RELAY_TROUBLE.items() for n in range(len(kinds))]
)
def test_trouble_at_a_step_of_the_relay(step: str, number: int) -> None:
    """Between produce and commit, between commit and deletion, during recovery."""
    first = [("append", [0, 1, 0], True, ""), ("move", "", 0), ("append", [1, 0], False, "")]
    play([*first, ("move", step, number), ("append", [0], True, ""), ("move", "", 0)], 10)
    play([*first, ("restart",), ("move", step, number), ("move", step, number)], 10)
    play([*first, ("restart",), ("move", step, number), ("restart",), ("move", step, number)], 2)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENTS, min_size=1, max_size=60), batch=st.integers(1, 20))
def test_long_stories_end_the_same(events: list[Any], batch: int) -> None:
    play(events, batch)
