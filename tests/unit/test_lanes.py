"""A Publisher's lanes where threads share it."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from waiting import until

from headrace import Publisher, PublishError
from ingest import lane as lane_module
from ingest import lanes
from ingest.lane import KafkaLane
from ingest.settings import SettingError

PATIENCE_S = 30.0
STATE = {"timestamp": "2026-11-30T20:00:00Z", "accountId": "a", "deviceId": "d"}


class Slow:
    """In KafkaLane's place: the first lane of ready bytes opens once a second thread has come."""

    def __init__(self) -> None:
        self.bulk: list[Any] = []
        self.opening, self.come = threading.Event(), threading.Event()
        slow = self

        class Lane:
            def __init__(self, config: dict[str, Any]) -> None:
                self.closed = False
                if "delivery.report.only.error" in config:
                    slow.bulk.append(self)
                    slow.opening.set()
                    if len(slow.bulk) > 1:
                        slow.come.set()
                    assert slow.come.wait(PATIENCE_S)

            def close(self, _timeout_s: float | None, _since: float | None = None) -> None:
                self.closed = True

        self.lane = Lane


class Lock:
    """Tells when a thread has to wait for it."""

    def __init__(self, come: threading.Event) -> None:
        self._lock, self._come = threading.Lock(), come

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._come.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    found = Slow()
    monkeypatch.setattr(lanes, "KafkaLane", found.lane)
    return found


@pytest.fixture
def shared(slow: Slow) -> Any:
    found: Any = lanes.Lanes("127.0.0.1:1", {}, None, None)
    found._opening = Lock(slow.come)
    return found


def test_threads_that_ask_at_once_share_the_lane_of_ready_bytes(slow: Slow, shared: Any) -> None:
    """Else flush() and close() would not wait for the records in the others."""
    with ThreadPoolExecutor(2) as pool:
        got = [job.result() for job in [pool.submit(shared.bulk) for _ in range(2)]]
    assert got == slow.bulk * 2


def test_a_lane_that_opens_while_the_publisher_is_closed_is_closed_too(
    slow: Slow, shared: Any
) -> None:
    def close() -> None:
        shared.close(None)
        slow.come.set()

    with ThreadPoolExecutor(2) as pool:
        opened = pool.submit(shared.bulk)
        assert slow.opening.wait(PATIENCE_S)
        pool.submit(close).result()
        opened.result()
    assert slow.bulk[0].closed


class Clock:
    """In time's place."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Producer:
    """librdkafka's, with a record that nobody acknowledges. It waits on the clock."""

    def __init__(self, config: dict[str, Any], clock: Clock) -> None:
        self._clock, self._held = clock, 1

    def __len__(self) -> int:
        return self._held

    def poll(self, timeout_s: float) -> int:
        return 0

    def flush(self, timeout_s: float) -> int:
        self._clock.now += timeout_s if self._held else 0.0
        return 0

    def purge(self) -> None:
        self._held = 0

    def produce(self, *_: Any) -> None:
        pass

    produce_batch = produce


@pytest.mark.parametrize("what", ["flush", "close"])
def test_both_lanes_have_one_time(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Else flush(1.0) waits for two seconds; each says that its time was one."""
    clock = Clock()
    for module in (lanes, lane_module):
        monkeypatch.setattr(module, "time", clock, raising=False)
    monkeypatch.setattr(lane_module, "Producer", lambda config: Producer(config, clock))
    publishers = lanes.Lanes("127.0.0.1:1", {}, None, None)
    for lane in (publishers.first, publishers.bulk()):
        assert isinstance(lane, KafkaLane)
        lane.queued = 1
    with pytest.raises(PublishError) as raised:
        getattr(publishers, what)(1.0)
    assert str(raised.value).count("1 of 1 records are not acknowledged") == 2
    assert str(raised.value).count("after 1 s") == 2
    assert clock.now - 1_000.0 == pytest.approx(1.0)


# A program's own variable is let go only when its threads are gone.
FORGOTTEN = """
import sys
from headrace import Publisher
address, spool = sys.argv[1:]
publisher = Publisher(address, spool=spool or None)
"""


@pytest.mark.parametrize("kind", ["kafka", "spool", "socket"])
def test_a_program_ends_although_its_publisher_was_not_closed(tmp_path: Path, kind: str) -> None:
    """Since Python 3.13 to join a thread then is to wait for ever."""
    address = f"unix:{tmp_path / 'no.sock'}" if kind == "socket" else "127.0.0.1:1"
    spool = str(tmp_path / "spool") if kind == "spool" else ""
    program = [sys.executable, "-c", FORGOTTEN, address, spool]
    done = subprocess.run(program, timeout=PATIENCE_S, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


class Powerless:
    """librdkafka's, of somebody who may write to no topic: it raises that once, and purges."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._left: list[Any] = []
        self._raised = False

    def __len__(self) -> int:
        return len(self._left)

    def produce(self, topic: str, _value: bytes, _key: bytes, _at: int, report: Any) -> None:
        self._left.append(report)

    def poll(self, _timeout_s: float) -> int:
        if self._left and not self._raised:
            self._raised = True
            raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, fatal=True))
        for report in self._left:
            report(KafkaError(KafkaError._PURGE_QUEUE), Message(topic="device_state"))
        self._left.clear()
        return 0

    flush = poll
    produce_batch = None


def test_a_publisher_that_may_write_to_no_topic_says_which_acl_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client raised it through flush() and result(), and ended the thread that serves reports,
    whose records had no answer then."""
    monkeypatch.setattr(lane_module, "Producer", Powerless)
    publisher = Publisher("127.0.0.1:1")
    found = publisher.publish("device_state", STATE)
    needs = "needs WRITE on the topic 'device_state'"
    with pytest.raises(PublishError, match=needs):
        found.result(PATIENCE_S)
    with pytest.raises(PublishError, match=needs):
        publisher.close()


def test_the_acl_is_said_too_of_what_librdkafka_takes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long before the first poll, of each 256th record, the reason that was given was: unknown."""
    fatal = KafkaError(KafkaError._FATAL)

    class Refusing(Powerless):
        def produce(self, *_: Any) -> None:
            self._left.append(lambda *_: None)  # one that was taken before
            raise KafkaException(fatal)

        def produce_batch(self, _topic: str, rows: list[dict[str, Any]], *_: Any) -> int:  # type: ignore[override]
            self._left.append(lambda *_: None)
            for row in rows:
                row["_error"] = fatal
            return 0

    monkeypatch.setattr(lane_module, "Producer", Refusing)
    needs = "needs WRITE on the topic 'device_state'"
    with pytest.raises(PublishError, match=needs):
        Publisher("127.0.0.1:1").publish("device_state", STATE)
    with pytest.raises(PublishError, match=needs):
        Publisher("127.0.0.1:1").publish_many("device_state", [b""], [b"d"])


def test_a_callback_that_ends_its_thread_does_not_take_the_others_answers_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SystemExit in a thread ends that without a word: no callback of an idle Publisher came."""
    publisher = Publisher("127.0.0.1:1")
    called: list[int] = []

    def back(number: int) -> None:
        called.append(number)
        if number < 2:
            raise SystemExit(number)

    for number in range(3):
        publisher.publish("device_state", STATE, on_delivery=lambda _, number=number: back(number))
    lane = publisher._lanes.first
    assert isinstance(lane, KafkaLane)
    assert lane._producer is not None
    lane._producer.purge()  # which is an answer
    until(lambda: called == [0, 1, 2], "all callbacks")
    assert "raised what ends a program" in caplog.text
    with pytest.raises(PublishError):
        publisher.close(0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "unix:PATH"])
def test_threads_that_are_greenlets_are_refused_where_they_would_all_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """While Kafka was away a service under gevent stood still; under eventlet nothing was sent."""

    def start_new_thread(*_: Any) -> None:
        raise AssertionError("a thread")

    start_new_thread.__module__ = "gevent.thread"
    monkeypatch.setattr(lanes._thread, "start_new_thread", start_new_thread)
    monkeypatch.delattr(lanes.select, "poll")
    spool = None if address.startswith("unix:") else tmp_path / "spool"
    with pytest.raises(SettingError, match=r"threads are those of gevent\.thread, and .* gthread"):
        Publisher(address.replace("PATH", str(tmp_path / "s")), spool=spool)
    assert not list(tmp_path.iterdir())


def test_a_streams_name_may_be_a_member_of_an_enum() -> None:
    """Each record had a route made for it, with classes of its own: a fifteenth of the speed."""
    names = StrEnum("names", {"STATE": "device_state"})  # type: ignore[misc]
    publisher = Publisher("127.0.0.1:1")
    first = publisher.publish(names.STATE, STATE)  # type: ignore[attr-defined]
    assert type(publisher.publish("device_state", STATE)) is type(first)
    assert type(publisher.publish(names.STATE, STATE)) is type(first)  # type: ignore[attr-defined]
    with pytest.raises(PublishError):
        publisher.close(0)
