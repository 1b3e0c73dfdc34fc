"""The relay's decisions: when it goes on, when it stops for good, what it tells whom."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from spool_kafka import Crash, FakeKafka, FakeProducer, Source

from consumers.ledger.sent import folded
from ingest.settings import SettingError, refused
from ingest.spool import Record, SpoolError, SpoolTaken
from ingest.spool import relay as relay_module
from ingest.spool.batch import Batch
from ingest.spool.errors import SpoolDamaged
from ingest.spool.reader import State
from ingest.spool.relay import Relay
from ingest.spool.store import Store
from ingest.spool.transactions import Aborted, Broken, Committed, Fenced

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

    def relay(self, **plan: str) -> tuple[Relay, FakeProducer]:
        producer = FakeProducer(self.kafka, {k.replace("_", " "): v for k, v in plan.items()})
        return Relay(self.source, self.reader, producer), producer

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
    monkeypatch.setattr(relay_module, "_LONGEST_DOUBT_S", 0.01)
    monkeypatch.setattr(relay_module, "_IDLE_S", 0.01)


@pytest.mark.parametrize("what", ["abort", "break", "time out"])
def test_trouble_that_passes_is_tried_again_and_doubles_nothing(node: Node, what: str) -> None:
    node.add(5)
    relay, producer = node.relay(before_commit="", after_send="")
    producer.plan |= {"before commit": what}
    run(relay, 5)
    assert values(node.kafka) == [0, 1, 2, 3, 4]
    assert relay.error is None
    assert relay.trouble == ""
    assert node.store.state.position == 5


def test_a_commit_without_an_answer_is_settled_by_the_position(node: Node) -> None:
    """It took effect, and nobody said so."""
    node.add(3)
    relay, producer = node.relay()
    relay.recover()
    producer.plan["after commit"] = "break"
    with pytest.raises(Broken):
        relay.step()
    assert values(node.kafka) == [0, 1, 2]
    run(relay, 3)
    assert values(node.kafka) == [0, 1, 2]
    assert "open" in "".join(producer.steps)


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
    second, second_producer = node.relay()
    second_producer.open()
    with pytest.raises(Fenced):
        first.step()
    first._stop_if_taken()
    run(first, 2)
    node.add(1)
    with pytest.raises(Fenced):
        second_producer.commit(2, second._note(0))
    with pytest.raises(SpoolTaken):
        second._stop_if_taken()
    assert values(node.kafka) == [0, 1]


def test_a_process_says_who_it_is_before_it_sends_anything(node: Node) -> None:
    relay, producer = node.relay()
    relay.recover()
    assert node.kafka.committed is not None
    assert node.kafka.committed.note.startswith(relay._token)
    assert producer.steps[-2:] == ["before commit", "after commit"]


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


def test_an_older_copy_is_noticed_also_behind_a_start_that_sent_nothing(
    node: Node, tmp_path: Path
) -> None:
    node.add(3)
    first, _ = node.relay()
    run(first, 3)
    again, _ = node.relay()
    again.recover()
    # The copy of before has taken another record under the last number.
    (tmp_path / "copy").mkdir()
    with closing(Node(tmp_path / "copy", node.kafka)) as copy:
        copy.count = 100
        copy.add(3)
        old, _ = copy.relay()
        with pytest.raises(SpoolError, match="older copy"):
            old.recover()
        assert len(copy.reader.read(0, 100, 10**6)) == 3


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


@pytest.mark.parametrize("committed", [True, False])
def test_a_position_of_the_spools_own_above_what_it_still_has_is_not_believed(
    node: Node, *, committed: bool
) -> None:
    """What lies below its position is deleted when it moves; a wrong one would delete the rest."""
    node.add(3)
    relay, _ = node.relay()
    run(relay, 3)
    for _ in range(3):
        node.add(1)
    if not committed:
        node.kafka.committed = None
    node.store._db.execute("UPDATE state SET position = 6")
    again, _ = node.relay()
    with pytest.raises(SpoolDamaged, match=r"record 3 was never deleted.*fsck"):
        again.recover()
    assert len(node.reader.read(0, 100, 10**6)) == 3


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


@pytest.mark.parametrize("cut", [(0,), (2,), (0, 2)])
def test_the_ledger_is_told_of_numbers_that_fsck_cut_out_wherever_they_were(
    node: Node, cut: tuple[int, ...]
) -> None:
    """Of a node that nobody has heard of, too: its first records may be all that it had."""
    node.add(2)
    node.add(2)
    for first in cut:
        node.store._db.execute("DELETE FROM blocks WHERE first = ?", (first,))
    relay, _ = node.relay()
    run(relay, 4)
    gaps = folded(node.kafka.entries, {}, {}, {}, {})["gap"]
    assert [list(gap) for gap in gaps.values()] == [[2 * len(cut), 0]]


def test_a_record_that_fsck_cut_out_below_kafkas_position_stops_nothing(node: Node) -> None:
    """The position is not the spool's yet, and what its note is about is not there any more."""
    node.add(2)
    relay, _ = node.relay()
    relay.recover()
    # Killed behind the commit, before the deletion.
    node.source._plan["before deletion"] = "crash"
    with pytest.raises(Crash):
        relay.step()
    node.store._db.execute("DELETE FROM blocks WHERE first = 0")
    node.add(2)
    again, _ = node.relay()
    run(again, 4)
    assert again.error is None
    assert values(node.kafka) == [0, 1, 2, 3]


class Behind(Source):
    """What its file holds is more than it knows: the writer's thread has not run since COMMIT."""

    knows: State | None = None

    @property
    def state(self) -> State:
        return self.knows or super().state

    def release(self, position: int) -> None:
        """The writer's, which is behind, too."""


@pytest.fixture
def behind(node: Node) -> Behind:
    """The node's source with two records, and one more on disk."""
    source = node.source = Behind(node.store, {})
    node.add(2)
    source.knows = node.store.state
    node.add(1)
    return source


def test_what_is_on_disk_before_the_spool_says_so_is_sent_once(node: Node, behind: Behind) -> None:
    relay, _ = node.relay()
    relay.recover()
    assert [relay.step(), relay.step(), relay.step()] == [True, False, False]
    assert relay.position == 3
    behind.knows = None
    node.add(1)
    assert relay.step()
    assert values(node.kafka) == [0, 1, 2, 3]


def test_a_commit_of_what_the_spool_does_not_know_yet_is_settled(
    node: Node, behind: Behind
) -> None:
    """It would be taken for an older copy."""
    relay, producer = node.relay()
    relay.recover()
    producer.plan["after commit"] = "break"
    with pytest.raises(Broken):
        relay.step()
    assert behind.state.next_seq == 2
    relay.recover()
    assert relay.position == 3
    assert values(node.kafka) == [0, 1, 2]


STEPS = ("before open", "after open", "before send", "after send", "before commit", "after commit")


@pytest.mark.parametrize("step", STEPS)
def test_what_nobody_has_foreseen_is_taken_as_a_crash_and_doubles_nothing(
    node: Node, step: str
) -> None:
    node.add(3)
    relay, producer = node.relay()
    if step.endswith("open"):
        producer.plan[step] = "fail"
    else:
        # Behind the first recovery, whose commit has the same steps.
        planned = iter([{step: "fail"}])
        relay.on_moved = lambda _: producer.plan.update(next(planned, {}))
    run(relay, 3)
    assert values(node.kafka) == [0, 1, 2]
    assert producer.steps.count("before open") == 2
    assert relay.error is None


def test_a_thread_that_can_not_be_started_for_a_moment_ends_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent is open in Kafka then, and must not count beside what is sent again."""
    node.add(2)
    relay, _ = node.relay()
    start = threading.Thread.start
    failed: list[str] = []

    def start_but_once(thread: threading.Thread) -> None:
        if thread.name == "headrace-relay-reads" and not failed:
            failed.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_once)
    with caplog.at_level(logging.WARNING):
        run(relay, 2)
    assert failed
    assert values(node.kafka) == [0, 1]
    assert (relay.error, relay.trouble) == (None, "")
    said, again = caplog.records
    assert "up to 2 records wait" in said.message
    assert "is sent to Kafka again" in again.message
    assert 'RuntimeError("can\'t start new thread")' in said.message
    assert said.exc_info


@pytest.mark.parametrize("call", ["batch", "state", "read"])
def test_a_disk_that_can_not_be_read_for_a_moment_ends_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    node.add(2)
    first, producer = node.relay()
    first.recover()
    producer.plan["after commit"] = "fail"
    with pytest.raises(RuntimeError):
        first.step()
    node.add(2)
    relay, _ = node.relay()
    real: Callable[..., Any] = getattr(node.reader, call)
    left = 3

    def fail(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise SpoolError("spool.db can't be used: disk I/O error (SQLITE_IOERR_READ)")
        return real(*given)

    monkeypatch.setattr(node.reader, call, fail)
    with caplog.at_level(logging.WARNING):
        run(relay, 4)
    assert left < 0
    assert values(node.kafka) == [0, 1, 2, 3]
    assert (relay.error, relay.trouble) == (None, "")
    said, _again = caplog.records
    assert "SQLITE_IOERR_READ" in said.message
    assert not said.exc_info, "the text says it all"


def test_what_fails_while_it_is_read_ahead_does_not_touch_the_commit_beside_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(2)
    node.add(2)
    monkeypatch.setattr(relay_module, "_BATCH_RECORDS", 2)
    relay, producer = node.relay()
    relay.recover()
    batch = node.reader.batch

    def fail(start: int, max_records: int, max_bytes: int) -> Batch | None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return batch(start, max_records, max_bytes)

    monkeypatch.setattr(node.reader, "batch", fail)
    assert relay.step()
    assert relay.position == 2
    assert relay.step()
    assert values(node.kafka) == [0, 1, 2, 3]
    assert producer.steps.count("before open") == 1


def test_who_is_fenced_and_can_not_look_by_whom_looks_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(2)
    relay, producer = node.relay()
    producer.plan["before commit"] = "time out"
    producer.plan["look"] = "fail"
    run(relay, 2)
    assert values(node.kafka) == [0, 1]
    assert "look" in producer.steps
    assert relay.error is None


def unset(code: int) -> SettingError:
    """As Transactions raises it."""
    cause = KafkaException(KafkaError(code, "Failed to create producer"))
    error = refused(cause)
    error.__cause__ = cause
    return error


def test_settings_that_librdkafka_refuses_end_it_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but another start mends them, and whoever waits is to hear it."""
    relay, producer = node.relay()

    def fail() -> None:
        raise unset(KafkaError._INVALID_ARG)

    monkeypatch.setattr(producer, "open", fail)
    relay.run()
    assert str(relay.error).startswith("librdkafka refuses a setting: ")


@pytest.mark.parametrize("served", [False, True])
def test_settings_are_not_blamed_for_a_want_of_threads_nor_where_they_have_served(
    node: Node, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    node.add(2)
    relay, producer = node.relay()
    if served:
        relay.recover()
    real = producer.open
    left = 2

    def fail() -> Committed | None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise unset(KafkaError._INVALID_ARG if served else KafkaError._CRIT_SYS_RESOURCE)
        return real()

    monkeypatch.setattr(producer, "open", fail)
    run(relay, 2)
    assert values(node.kafka) == [0, 1]
    assert relay.error is None


def test_a_fault_that_comes_each_time_is_said_and_does_not_spin(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(relay_module, "_FIRST_WAIT_S", 0.1)
    monkeypatch.setattr(relay_module, "_LONGEST_DOUBT_S", 30.0)
    node.add(2)
    relay, _ = node.relay()
    heard: list[tuple[str, SpoolError | None]] = []

    def wait(seconds: float) -> bool:
        heard.append((relay.trouble, relay.error))
        waits.append(seconds)
        if len(waits) == 20:
            relay.stop()
        return False

    def fail(*_: int) -> None:
        raise RuntimeError("never seen before")

    monkeypatch.setattr(node.reader, "batch", fail)
    monkeypatch.setattr(relay._stop, "wait", wait)
    with caplog.at_level(logging.WARNING):
        relay.run()
    fault = "the relay has failed and begins anew: RuntimeError('never seen before')"
    assert heard == [(fault, None)] * 20
    assert 0.05 <= waits[0] <= 0.1
    assert 15.0 <= min(waits[10:]) <= max(waits) <= 30.0
    assert len(caplog.records) == 1
    assert "never seen before" in caplog.text and "Traceback" in caplog.text


def test_an_end_that_is_no_error_is_not_in_silence_either(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, producer = node.relay()

    def leave() -> None:
        raise SystemExit

    monkeypatch.setattr(producer, "open", leave)
    relay.run()
    assert isinstance(relay.error, SpoolError)
    assert "SystemExit" in str(relay.error)


def test_while_kafka_is_away_attempts_get_rarer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(relay_module, "_FIRST_WAIT_S", 0.1)
    monkeypatch.setattr(relay_module, "_LONGEST_WAIT_S", 10.0)
    relay, producer = node.relay()

    def away() -> None:
        raise Broken("away")

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 20:
            relay.stop()
        return False

    monkeypatch.setattr(producer, "open", away)
    monkeypatch.setattr(relay._stop, "wait", wait)
    relay.run()
    assert 0.05 <= waits[0] <= 0.1
    assert all(w <= 10.0 for w in waits)
    assert min(waits[8:]) >= 5.0
    assert len(set(waits)) == 20  # jitter
    assert relay.trouble == "away"


# -- a slow line


@dataclass
class Narrow(FakeProducer):
    """A line that carries so many bytes of values in the time that a transaction has."""

    room: int = 10**9
    trouble: str = "time out"
    # What each transaction with records was: records, bytes, whether it was committed.
    tried: list[tuple[int, int, bool]] = field(default_factory=list)
    _held: int = 0

    def send(self, batch: Batch, stored: int) -> None:
        super().send(batch, stored)
        self._held = len(self._pending)

    def commit(self, position: int, note: str) -> None:
        size = sum(len(r.value) for r in self._pending)
        fits = size <= self.room
        if self._held:
            self.tried.append((self._held, size, fits))
        self._held = 0
        if not fits:
            self.plan["before commit"] = self.trouble
        super().commit(position, note)


def narrow(node: Node, room: int, trouble: str = "time out") -> tuple[Relay, Narrow]:
    producer = Narrow(node.kafka, room=room, trouble=trouble)
    return Relay(node.source, node.reader, producer), producer


def attempt(relay: Relay) -> bool:
    """One step, and what run() does behind it when it fails."""
    try:
        return relay.step()
    except Aborted as aborted:
        relay._say(str(aborted))
    except (Broken, Fenced) as lost:
        relay._say(str(lost))
        relay.recover()
    return True


def drain(relay: Relay) -> None:
    """Until nothing waits; 200 attempts are enough for that."""
    assert not all(attempt(relay) for _ in range(200)), relay.trouble


@pytest.mark.parametrize("trouble", ["abort", "break", "time out"])
@pytest.mark.parametrize("blocks", [(100,), (1,) * 100, (40, 3, 1, 50, 6)])
def test_whatever_a_line_carries_in_a_transactions_time_everything_gets_there(
    node: Node, trouble: str, blocks: tuple[int, ...]
) -> None:
    """Down to one record, which always fits; also where one block of the disk is too much."""
    for count in blocks:
        node.add(count)
    relay, producer = narrow(node, 2, trouble)
    run(relay, 100)
    assert values(node.kafka) == list(range(100))
    # A failure is followed by half of what failed at most.
    for (records, _, ok), (following, _, _) in zip(
        producer.tried, producer.tried[1:], strict=False
    ):
        assert ok or following <= max(1, records // 2)
    assert node.store.state.position == 100
    assert node.store.state.bytes == 0


def test_batches_grow_again_once_the_line_carries_more(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_BATCH_RECORDS", 500)
    node.add(1000)
    node.add(5000)
    relay, producer = narrow(node, 10)
    relay.recover()
    for _ in range(50):
        attempt(relay)
    assert 0 < relay.position < 1000
    producer.room, producer.tried = 10**9, []
    drain(relay)
    assert values(node.kafka) == list(range(6000))
    assert all(ok for _, _, ok in producer.tried)
    sizes = [records for records, _, _ in producer.tried]
    assert max(sizes) == 500
    # Each at most twice of what has been possible; a block's end may make one smaller.
    assert all(size <= 2 * max(sizes[:n]) for n, size in enumerate(sizes) if n)
    assert len(sizes) < 40


def test_a_commit_that_took_much_of_its_time_is_not_followed_by_a_larger_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1000)
    relay, producer = narrow(node, 1000)
    relay.recover()
    attempt(relay)
    monkeypatch.setattr(relay_module, "_QUICK_S", -1.0)
    drain(relay)
    assert values(node.kafka) == list(range(1000))
    assert [ok for _, _, ok in producer.tried].count(False) == 2
    # A quarter of 1,000, by their number or by their bytes.
    assert max(records for records, _, ok in producer.tried if ok) == 250


def test_small_batches_say_nothing_about_large_ones(node: Node) -> None:
    """A trickle gets through in no time, and a backlog behind it does not fail all over again."""
    node.add(1000)
    relay, producer = narrow(node, 500)
    relay.recover()
    drain(relay)
    for _ in range(20):
        node.add(1)
        attempt(relay)
    limit = max(records for records, _, ok in producer.tried if ok)
    producer.tried.clear()
    node.add(1000)
    attempt(relay)
    assert producer.tried[0][0] <= 2 * limit


def test_trouble_lasts_until_records_have_moved(node: Node) -> None:
    """That a new producer could begin says nothing: its transaction may take too long as well."""
    node.add(4)
    relay, _ = narrow(node, 2)
    relay.recover()
    attempt(relay)
    assert relay.trouble == "before commit"
    assert relay.position == 0
    attempt(relay)
    assert relay.position == 2
    assert relay.trouble == ""


def test_trouble_is_over_where_nothing_waits(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    relay, producer = node.relay()
    producer.plan["before open"] = "break"
    with pytest.raises(Broken):
        relay.recover()
    relay._say("away")
    relay.recover()
    assert relay.trouble == "away"
    for _ in range(2):
        assert not relay.step()
    assert relay.trouble == ""
    # And whoever reads the log hears of both, once.
    assert [r.getMessage()[:33] for r in caplog.records[-2:]] == [
        "up to 0 records wait in the spool", "the spool is sent to Kafka again,",
    ]  # fmt: skip


def test_an_outage_without_a_batch_under_way_makes_none_smaller(node: Node) -> None:
    node.add(100)
    relay, producer = narrow(node, 10**9)
    for _ in range(5):
        producer.plan["before open"] = "break"
        with pytest.raises(Broken):
            relay.recover()
    run(relay, 100)
    assert [records for records, _, _ in producer.tried] == [100]
