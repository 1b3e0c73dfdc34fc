"""The relay's decisions: when it goes on, when it stops for good, what it tells whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from spool_kafka import FakeDoor, FakeKafka, Source

from ingest.spool import Record, SpoolError, SpoolTaken
from ingest.spool import relay as relay_module
from ingest.spool.errors import SpoolDamaged
from ingest.spool.relay import Relay
from ingest.spool.store import Store
from ingest.spool.transactions import Broken, Committed, Fenced

PATIENCE_S = 30.0


class Node:
    """A spool's directory, and processes that send it."""

    def __init__(self, folder: Path, kafka: FakeKafka) -> None:
        self.store = Store(folder)
        self.kafka = kafka
        self.source = Source(self.store, {})
        self.reader = self.source.contents()
        self.count = 0

    def add(self, count: int) -> None:
        self.store.append([[Record("t", None, b"%d" % (self.count + n)) for n in range(count)]])
        self.count += count

    def relay(self, **plan: str) -> tuple[Relay, FakeDoor]:
        door = FakeDoor(self.kafka, {k.replace("_", " "): v for k, v in plan.items()})
        return Relay(self.source, self.reader, door), door

    def close(self) -> None:
        self.reader.close()
        self.store.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with closing(Node(tmp_path, FakeKafka())) as node:
        yield node


def values(kafka: FakeKafka) -> list[int]:
    return [int(r.value) for r in kafka.log]


def run(relay: Relay, until: int) -> None:
    """Let it run in a thread until all below a number is in Kafka."""
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        assert relay.wait(until, PATIENCE_S)
    finally:
        relay.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(relay_module, "_LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(relay_module, "_IDLE_S", 0.01)


@pytest.mark.parametrize("what", ["abort", "break", "time out"])
def test_trouble_that_passes_is_tried_again_and_doubles_nothing(node: Node, what: str) -> None:
    node.add(5)
    relay, door = node.relay(before_commit="", after_send="")
    door.plan |= {"before commit": what}
    run(relay, 5)
    assert values(node.kafka) == [0, 1, 2, 3, 4]
    assert relay.error is None
    assert relay.trouble == ""
    assert node.store.state.position == 5


def test_a_commit_without_an_answer_is_settled_by_the_position(node: Node) -> None:
    """It took effect, and nobody said so."""
    node.add(3)
    relay, door = node.relay()
    relay.recover()
    door.plan["after commit"] = "break"
    with pytest.raises(Broken):
        relay.step()
    assert values(node.kafka) == [0, 1, 2]
    run(relay, 3)
    assert values(node.kafka) == [0, 1, 2]
    assert "open" in "".join(door.steps)


def test_who_is_fenced_by_another_process_stops_for_good(node: Node) -> None:
    node.add(2)
    first, _ = node.relay()
    thread = threading.Thread(target=first.run)
    thread.start()
    give_up = time.monotonic() + PATIENCE_S
    while node.store.state.position < 2:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    second, _ = node.relay()
    second.recover()
    node.add(2)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert isinstance(first.error, SpoolTaken)
    assert "another process has taken over" in str(first.error)
    with pytest.raises(SpoolTaken):
        first.wait(4, 0)
    run(second, 4)
    assert values(node.kafka) == [0, 1, 2, 3]


def test_of_two_that_fence_each_other_one_goes_on(node: Node) -> None:
    """The second has fenced, but not said who it is, when the first looks who that was."""
    node.add(2)
    first, _ = node.relay()
    first.recover()
    second, second_door = node.relay()
    second_door.open()
    with pytest.raises(Fenced):
        first.step()
    first._stop_if_taken()
    run(first, 2)
    node.add(1)
    with pytest.raises(Fenced):
        second_door.commit(2, second._note(0))
    with pytest.raises(SpoolTaken):
        second._stop_if_taken()
    assert values(node.kafka) == [0, 1]


def test_a_process_says_who_it_is_before_it_sends_anything(node: Node) -> None:
    relay, door = node.relay()
    relay.recover()
    assert node.kafka.committed is not None
    assert node.kafka.committed.note.startswith(relay._token)
    assert door.steps[-2:] == ["before commit", "after commit"]


def test_an_older_copy_of_the_directory_is_noticed_and_nothing_deleted(
    node: Node, tmp_path: Path
) -> None:
    """Kafka is ahead of all that this copy ever held."""
    node.add(3)
    node.kafka.committed = Committed(10, "somebody 00000001")
    relay, _ = node.relay()
    relay.run()
    assert "older copy" in str(relay.error)
    assert len(node.reader.read(0, 100, 10**6)) == 3


def test_other_records_under_numbers_that_were_sent_are_noticed(node: Node, tmp_path: Path) -> None:
    """An older copy has taken new records under old numbers before Kafka was there."""
    node.add(3)
    node.kafka.committed = Committed(2, "somebody 0badcafe")
    relay, _ = node.relay()
    relay.run()
    assert "older copy" in str(relay.error)
    assert node.kafka.log == []
    assert len(node.reader.read(0, 100, 10**6)) == 3


def test_the_spools_own_position_counts_where_kafka_has_forgotten(node: Node) -> None:
    node.add(4)
    relay, _ = node.relay()
    run(relay, 4)
    node.kafka.committed = None
    node.add(1)
    again, _ = node.relay()
    run(again, 5)
    assert values(node.kafka) == [0, 1, 2, 3, 4]


def test_whoever_waits_for_kafka_hears_each_position_behind_its_commit(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that a start reads back; and what it raises is not the relay's trouble."""
    monkeypatch.setattr(relay_module, "_BATCH_RECORDS", 2)
    heard: list[tuple[int, int]] = []
    for _ in range(3):
        node.add(2)

    def hear(position: int) -> None:
        heard.append((position, len(node.kafka.log)))
        raise RuntimeError("not the relay's trouble")

    first, _ = node.relay()
    first.on_moved = hear
    run(first, 6)
    assert heard == [(0, 0), (2, 2), (4, 4), (6, 6)]
    heard.clear()
    second, _ = node.relay()
    second.on_moved = hear
    run(second, 6)
    assert heard == [(6, 6)]
    assert (first.error, second.error) == (None, None)


def test_damage_stops_it_behind_what_is_sound(node: Node) -> None:
    node.add(2)
    node.add(2)
    node.store._db.execute("UPDATE blocks SET data = zeroblob(50) WHERE first = 2")
    relay, _ = node.relay()
    relay.run()
    assert isinstance(relay.error, SpoolDamaged)
    assert values(node.kafka) == [0, 1]


def test_what_was_cut_out_at_the_end_is_passed_by(node: Node) -> None:
    """fsck has taken the last records away: there is nothing to send, and nothing to wait for."""
    node.add(2)
    node.add(2)
    node.store._db.execute("DELETE FROM blocks WHERE first = 2")
    relay, _ = node.relay()
    run(relay, 4)
    assert values(node.kafka) == [0, 1]
    # The same when the process dies between that commit and the deletion.
    node.store._db.execute("UPDATE state SET position = 2")
    node.store.state = node.store.state._replace(position=2)
    again, _ = node.relay()
    run(again, 4)
    assert again.error is None


def test_what_is_not_known_of_ends_it_with_a_reason_and_not_in_silence(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, door = node.relay()

    def fail() -> None:
        raise RuntimeError("never seen before")

    monkeypatch.setattr(door, "open", fail)
    relay.run()
    assert isinstance(relay.error, SpoolError)
    assert "never seen before" in str(relay.error)


def test_while_kafka_is_away_attempts_get_rarer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(relay_module, "_FIRST_WAIT_S", 0.1)
    monkeypatch.setattr(relay_module, "_LONGEST_WAIT_S", 10.0)
    relay, door = node.relay()

    def away() -> None:
        raise Broken("away")

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 20:
            relay.stop()
        return False

    monkeypatch.setattr(door, "open", away)
    monkeypatch.setattr(relay._stop, "wait", wait)
    relay.run()
    assert 0.05 <= waits[0] <= 0.1
    assert all(w <= 10.0 for w in waits)
    assert min(waits[8:]) >= 5.0
    assert len(set(waits)) == 20  # jitter
    assert relay.trouble == "away"
