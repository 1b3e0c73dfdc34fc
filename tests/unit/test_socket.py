"""The unix socket and its Publisher: acknowledged is on disk, once, in order, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from ingest import socket_lane as lane_module
from ingest.collector.acks import Acks
from ingest.collector.judge import Limits
from ingest.collector.settings import CollectError
from ingest.collector.unix import UnixDoor
from ingest.collector.unix_connection import Connection
from ingest.collector.unix_file import SocketFile
from ingest.collector.unix_judge import Judge
from ingest.publisher import Coordinates, Delivery, Publisher, PublishError, Refused
from ingest.settings import SettingError
from ingest.socket_outbox import Outbox
from ingest.socket_protocol import Ack, Answers, Frame, Goodbye, Hello, Refusal, Welcome, encode
from ingest.spool.errors import SpoolError, SpoolFull
from ingest.spool.frames import Record
from ingest.spool.writer import Spool
from ingest.streams import BUILT_IN

PATIENCE_S = 20.0
TIME = "2025-06-16T22:50:12.226Z"
STREAM = BUILT_IN["device_state"]


def state(number: int, device: str = "d") -> dict[str, Any]:
    return {"deviceId": device, "timestamp": TIME, "colo": str(number)}


def ready(number: int, device: str = "d") -> bytes:
    return STREAM.message(device_id=device, timestamp=_time(), colo=str(number)).SerializeToString()


def _time() -> Any:
    return STREAM.message.DESCRIPTOR.fields_by_name["timestamp"].message_type._concrete_class(
        seconds=1_750_000_000
    )


class Disk:
    """A spool for Acks whose answers a test may hold back or make errors."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder)
        self.open = threading.Event()
        self.open.set()
        self.full = False
        self.tried = 0

    @property
    def state(self) -> Any:
        return self.spool.state

    def append(self, records: Sequence[Record], on_done: Any = None) -> Any:
        self.tried += 1
        if self.full:
            raise SpoolFull("the spool is at its limit")

        def gated(ticket: Any) -> None:
            assert self.open.wait(PATIENCE_S)
            on_done(ticket)

        return self.spool.append(records, gated)

    def append_now(self, records: Sequence[Record]) -> int | None:
        """Never: what a test holds back is the writer's."""
        return None

    def records(self) -> list[tuple[str, int]]:
        """Key and number of all that is stored, in its order."""
        reader = self.spool.reader()
        try:
            found = reader.read(0, 1_000_000, 1 << 30)
        finally:
            reader.close()
        parse: Any = STREAM.message.FromString
        return [((r.key or b"").decode(), int(parse(r.value).colo)) for r in found]


class Collector:
    """A socket with an event loop of its own; `path` and the disk outlive it."""

    def __init__(self, path: Path, disk: Disk, **settings: Any) -> None:
        self.path, self.disk, self._settings = path, disk, settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.door = self._do(self._open())
        except BaseException:
            self._end()
            raise

    async def _open(self) -> UnixDoor:
        acks = Acks(self.disk, asyncio.get_running_loop())
        door = UnixDoor(self.path, acks, {"device_state": STREAM}, **self._settings)
        await door.start()
        return door

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def cut(self) -> None:
        """Break every connection, as it is."""

        async def abort() -> None:
            for connection in list(self.door.connections):
                connection.abort()

        self._do(abort())

    def close(self, grace_s: float = 5.0) -> None:
        if self._thread.is_alive():
            self._do(self.door.close(grace_s))
            # For connections that were aborted to be gone.
            self._do(asyncio.sleep(0))
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "spool")
    yield found
    found.open.set()
    found.spool.close()


@pytest.fixture
def collect(tmp_path: Path, disk: Disk) -> Iterator[Callable[..., Collector]]:
    """Starts collectors, all at one path and with one disk; closed at the end."""
    made: list[Collector] = []

    def collect(**settings: Any) -> Collector:
        made.append(Collector(tmp_path / "s", disk, **settings))
        return made[-1]

    yield collect
    disk.open.set()
    for collector in made:
        collector.close(0)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Publisher]]:
    """Makes publishers for that path; closed at the end."""
    made: list[Publisher] = []

    def connect(**settings: Any) -> Publisher:
        made.append(Publisher(f"unix:{tmp_path / 's'}", **settings))
        return made[-1]

    yield connect
    for publisher in made:
        with contextlib.suppress(PublishError):
            publisher.close(0)


# -- a publisher


def test_what_is_acknowledged_is_on_disk_in_its_order(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    collect()
    publisher = connect()

    def publish(device: str) -> None:
        for i in range(2000):
            publisher.publish("device_state", state(i, device))

    threads = [threading.Thread(target=publish, args=(f"d{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publisher.publish_many("device_state", [ready(i, "m") for i in range(3000)], [b"m"] * 3000)
    publisher.flush(PATIENCE_S)
    assert (publisher.published, publisher.acknowledged, publisher.failed) == (9000, 9000, 0)
    found = disk.records()
    for device, count in (("d0", 2000), ("d1", 2000), ("d2", 2000), ("m", 3000)):
        assert [number for key, number in found if key == device] == list(range(count))


def test_a_delivery_is_done_only_when_the_disk_has_the_record(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    collect()
    publisher = connect()
    disk.open.clear()
    delivery = publisher.publish("device_state", state(1))
    until(disk.records, "the record")
    assert not delivery.done()
    with pytest.raises(TimeoutError):
        delivery.result(0.01)
    with pytest.raises(PublishError, match="1 of 1 records are not acknowledged by the collector"):
        publisher.flush(0.01)
    disk.open.set()
    assert delivery.result(PATIENCE_S) == Coordinates("device_state", -1, -1)
    assert delivery.done()
    assert delivery.exception() is None


def test_a_lost_connection_doubles_nothing_and_keeps_the_order(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    """Cut again and again while records are on their way, and once the collector is gone."""
    collector = collect()
    publisher = connect(config={"queue.buffering.max.messages": 1000})
    done = threading.Event()

    def cut() -> None:
        nonlocal collector
        for round_ in range(12):
            seen = disk.state.next_seq
            until(lambda seen=seen: disk.state.next_seq > seen or done.is_set(), "progress")
            if round_ % 4 == 3:
                collector.close(0)
                collector = collect()
            else:
                collector.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    count = 0
    while cutter.is_alive():
        publisher.publish("device_state", state(count))
        count += 1
    done.set()
    cutter.join()
    publisher.flush(PATIENCE_S)
    assert publisher.acknowledged == count
    assert disk.records() == [("d", n) for n in range(count)]


def test_a_collector_may_come_later_than_its_publisher(
    collect: Callable[..., Collector],
    connect: Callable[..., Publisher],
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher = connect()
    delivery = publisher.publish("device_state", state(1))
    until(lambda: caplog.records, "a word about it")
    assert "nobody listens there" in caplog.text
    with pytest.raises(PublishError, match="nobody listens there"):
        publisher.flush(0)
    collect()
    assert delivery.result(PATIENCE_S)
    assert disk.records() == [("d", 1)]


_WITH_MANY_FILES = """
import os, resource, sys, time
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (1500, most))
kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
from ingest.publisher import Publisher
publisher = Publisher(sys.argv[1])
publisher.publish("device_state", {"deviceId": "d", "timestamp": sys.argv[2], "colo": "1"})
while "nobody listens" not in publisher._lanes.first._link.trouble:
    time.sleep(0.001)
print("it waits", flush=True)
publisher.close(20)
"""


@pytest.mark.skipif(
    0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1500, reason="not so many files"
)
def test_a_process_with_many_files_waits_for_its_collector_too(
    collect: Callable[..., Collector], disk: Disk, tmp_path: Path
) -> None:
    """More than the 1,024 that select() knows."""
    command = [sys.executable, "-c", _WITH_MANY_FILES, f"unix:{tmp_path / 's'}", TIME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "it waits\n"
            collect()
            assert process.wait(PATIENCE_S + 10) == 0
        finally:
            process.kill()
    assert disk.records() == [("d", 1)]


def test_what_ends_the_thread_fails_whoever_waits_for_it(
    connect: Callable[..., Publisher],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = threading.Event()

    def fail(_: Outbox) -> None:
        gate.wait(PATIENCE_S)
        raise ZeroDivisionError("never seen before")

    monkeypatch.setattr(Outbox, "again", fail)
    publisher = connect(config={"queue.buffering.max.messages": 3})
    told: list[Delivery] = []
    deliveries = [
        publisher.publish("device_state", state(i), on_delivery=told.append) for i in range(3)
    ]
    raised: list[str] = []

    def wait(call: Callable[[], object]) -> None:
        with pytest.raises(PublishError, match="failed for good") as e:
            call()
        raised.append(str(e.value))

    calls: list[Callable[[], object]] = [
        lambda: publisher.publish("device_state", state(3)),
        lambda: publisher.publish_many("device_state", [ready(4)], [b"d"]),
        publisher.flush,
        deliveries[0].result,
    ]
    threads = [threading.Thread(target=wait, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    lane: Any = publisher._lanes.first
    until(lambda: lane._waiters == len(calls), "all to wait")
    gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(raised) == len(calls)
    assert all("ZeroDivisionError('never seen before')" in text for text in raised)
    assert "nothing more is sent to the collector" in caplog.text
    # Who only has a callback hears of it as well, once.
    until(lambda: len(told) == 3, "callbacks")
    assert all(delivery.done() for delivery in deliveries)
    # Who comes later does not wait either, and the end counts what is lost.
    for call in (*calls, publisher.close):
        wait(call)
    assert (publisher.acknowledged, publisher.failed, len(told)) == (0, 3, 3)
    publisher.close()


def test_publish_blocks_when_the_queue_is_full_and_goes_on_when_there_is_room(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    publisher = connect(config={"queue.buffering.max.messages": 50})
    published = 0

    def publish() -> None:
        nonlocal published
        for i in range(100):
            publisher.publish("device_state", state(i))
            published += 1
        publisher.publish_many("device_state", [ready(i) for i in range(100, 300)], [b"d"] * 200)

    thread = threading.Thread(target=publish)
    thread.start()
    until(lambda: published == 50, "a full queue")
    thread.join(0.05)
    assert published == 50
    collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    publisher.flush(PATIENCE_S)
    assert disk.records() == [("d", n) for n in range(300)]


def test_the_queue_is_bounded_by_its_bytes_too(connect: Callable[..., Publisher]) -> None:
    publisher = connect(config={"queue.buffering.max.kbytes": 1})
    thread = threading.Thread(
        target=lambda: [publisher.publish("device_state", state(i)) for i in range(1000)],
        daemon=True,
    )
    with pytest.raises(PublishError, match="are not acknowledged"):
        thread.start()
        until(publisher._lanes.first.outbox.full, "a full queue")
        publisher.flush(0.05)
    assert 5 < publisher.published < 60
    with pytest.raises(PublishError), pytest.MonkeyPatch.context() as patch:
        # What the thread says when it is let go.
        patch.setattr(threading, "excepthook", lambda args: None)
        try:
            publisher.close(0)
        finally:
            thread.join(PATIENCE_S)


def test_callbacks_come_once_and_in_order_though_nobody_polls(
    collect: Callable[..., Collector], connect: Callable[..., Publisher]
) -> None:
    collect()
    publisher = connect(config={"queue.buffering.max.messages": 10})
    called: list[int] = []
    again: list[Delivery] = []

    def back(delivery: Delivery, number: int) -> None:
        assert delivery.done()
        called.append(number)
        if number == 3:
            # A callback may publish, and wait.
            again.extend(publisher.publish("device_state", state(100 + i)) for i in range(20))
            again[-1].result(PATIENCE_S)

    for i in range(30):
        publisher.publish("device_state", state(i), on_delivery=lambda d, i=i: back(d, i))
    until(lambda: len(called) == 30, "all callbacks")
    assert called == list(range(30))
    assert all(delivery.done() for delivery in again)


def test_a_callback_that_ends_its_thread_does_not_take_the_others_along(
    collect: Callable[..., Collector], connect: Callable[..., Publisher]
) -> None:
    """SystemExit in a thread ends that without a word."""
    collect()
    publisher = connect()
    called: list[int] = []

    def back(number: int) -> None:
        called.append(number)
        raise SystemExit(number)

    for i in range(3):
        publisher.publish("device_state", state(i), on_delivery=lambda d, i=i: back(i))
    until(lambda: called == [0, 1, 2], "all callbacks")


def test_that_it_waits_is_said_without_a_lock_that_a_logging_handler_may_need(
    connect: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that publishes has a lock itself, which another thread may hold, waiting for room: the
    collector came back, and nobody heard it."""
    monkeypatch.setattr(lane_module, "WARN_EVERY_S", 0.01)
    publisher = connect()
    publisher.publish("device_state", state(1))
    lane = publisher._lanes.first
    is_free: list[bool] = []

    def warning(*_: object) -> None:
        other = threading.Thread(target=lane.wait_until, args=(lambda: True, None), daemon=True)
        other.start()
        other.join(1.0)
        is_free.append(not other.is_alive())

    monkeypatch.setattr(lane_module._log, "warning", warning)
    with pytest.raises(PublishError, match="are not acknowledged"):
        publisher.flush(0.1)
    assert all(is_free)
    assert is_free


def test_what_the_collector_refuses_fails_alone(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    collect(limits=Limits(record_bytes=1000))
    other = replace(BUILT_IN["http_test"], name="unheard_of")
    publisher = connect()
    test = {"deviceId": "d", "timestamp": TIME}
    good = publisher.publish("device_state", state(1))
    unknown = publisher.publish(other, test)
    large = publisher.publish("device_state", {**state(2), "mode": "x" * 2000})
    last = publisher.publish("device_state", state(3))
    assert last.result(PATIENCE_S)
    assert good.result(0)
    with pytest.raises(PublishError, match="no stream 'unheard_of'; it has: device_state"):
        unknown.result(0)
    assert "1,000 are taken" in str(large.exception())
    publisher.publish_many("device_state", [b"\x07", ready(4)], [b"", b"d"])
    with pytest.raises(PublishError, match="3 of 6 records not acknowledged: 1: ") as e:
        publisher.flush(PATIENCE_S)
    assert "the bytes are not a headrace.v1.DeviceState" in str(e.value)
    assert (publisher.acknowledged, publisher.failed) == (3, 3)
    publisher.flush(PATIENCE_S)
    assert disk.records() == [("d", 1), ("d", 3), ("d", 4)]


def test_nobody_sends_a_product_event_ready_made() -> None:
    """Who sent it and when it came is the collector's word: raw_events is no stream of logs."""
    judge = Judge(BUILT_IN, 900_000)
    forged = BUILT_IN["raw_events"].message(event_id="e", source="web", received_at=_time())
    found = judge.judge(Frame(1, "raw_events", forged.SerializeToString()), "unix:", None)
    assert isinstance(found, Refusal)
    assert (found.seq, found.code) == (1, "not_logs")
    assert "send the event over HTTP, with Sparrow or to /v1/events" in found.reason
    unknown = judge.judge(Frame(2, "none", b""), "unix:", None)
    assert isinstance(unknown, Refusal)
    assert "has: device_state, http_test, traceroute_test" in unknown.reason
    good = judge.judge(Frame(3, "device_state", ready(3)), "unix:", None)
    assert good == Record("device_state", b"d", ready(3), "unix:3", "unix")


def test_what_no_stream_could_hold_is_refused_before_it_is_sent(
    connect: Callable[..., Publisher],
) -> None:
    publisher = connect()
    with pytest.raises(Refused, match="key must be set"):
        publisher.publish("device_state", {"timestamp": TIME})
    with pytest.raises(Refused, match=r"message\.max\.bytes is 1,000,000"):
        publisher.publish("device_state", {**state(1), "mode": "x" * 1_000_000})
    assert publisher.published == 0


@pytest.mark.parametrize(("value", "key"), [("text", b"d"), (b"1", "text")])
def test_what_is_no_bytes_is_the_callers_mistake_and_ends_nothing(
    collect: Callable[..., Collector],
    connect: Callable[..., Publisher],
    disk: Disk,
    value: Any,
    key: Any,
) -> None:
    """Once queued it could not be sent, nor anything behind it."""
    collect()
    publisher = connect()
    publisher.publish_many("device_state", [ready(1)], [b"d"])
    with pytest.raises(TypeError, match=r"bytes, not str"):
        publisher.publish_many("device_state", [ready(7), value], [b"d", key])
    publisher.publish_many("device_state", [ready(2)], [b"d"])
    publisher.flush(PATIENCE_S)
    assert disk.records() == [("d", 1), ("d", 2)]
    assert (publisher.published, publisher.acknowledged) == (2, 2)


def test_a_full_spool_makes_the_client_wait_and_nothing_is_lost(
    collect: Callable[..., Collector],
    connect: Callable[..., Publisher],
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    collect()
    publisher = connect()
    disk.full = True
    for i in range(5000):
        publisher.publish("device_state", state(i))
    until(lambda: disk.tried > 2, "attempts")
    assert publisher.acknowledged == 0
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    disk.full = False
    publisher.flush(PATIENCE_S)
    assert disk.records() == [("d", n) for n in range(5000)]


def test_a_relay_that_has_stopped_for_good_stops_the_socket(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    stalled: list[SpoolError] = [SpoolError("another process has taken over")]
    collect(stalled=lambda: stalled[0] if stalled else None)
    publisher = connect()
    delivery = publisher.publish("device_state", state(1))
    with pytest.raises(TimeoutError):
        delivery.result(0.2)
    assert disk.records() == []
    stalled.clear()
    assert delivery.result(PATIENCE_S)


def test_what_waits_in_a_collector_is_bounded(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk
) -> None:
    """A client that sends 30 MB to a disk that hangs is not read on."""
    collector = collect()
    disk.open.clear()
    publisher = connect()
    large = STREAM.message(device_id="d", timestamp=_time(), colo="0", mode="x" * 30_000)
    thread = threading.Thread(
        target=lambda: [publisher.publish("device_state", large) for _ in range(1000)]
    )
    thread.start()
    thread.join()
    until(lambda: any(not c._reading for c in collector.door.connections), "a pause")
    (connection,) = collector.door.connections
    assert connection._bytes < 2_000_000
    disk.open.set()
    publisher.flush(PATIENCE_S)
    assert len(disk.records()) == 1000


# -- keys, and the end


class Only:
    """A key for some streams."""

    source = "web"

    def __init__(self, *streams: str) -> None:
        self._streams = streams

    def allows_stream(self, stream: str) -> bool:
        return stream in self._streams


def test_a_key_narrows_the_streams_and_an_unknown_one_is_shown_the_door(
    collect: Callable[..., Collector],
    connect: Callable[..., Publisher],
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = {"good": Only("device_state"), "other": Only("http_test")}
    collect(find_key=keys.get)
    assert connect(key="good").publish("device_state", state(1)).result(PATIENCE_S)
    assert connect().publish("device_state", state(2)).result(PATIENCE_S)
    refused = connect(key="other").publish("device_state", state(3))
    with pytest.raises(PublishError, match="the key is not for stream device_state"):
        refused.result(PATIENCE_S)
    unknown = connect(key="sesame")
    unknown.publish("device_state", state(4))
    until(lambda: "does not know this key" in caplog.text, "a word about the key")
    assert "sesame" not in caplog.text
    assert [number for _, number in disk.records()] == [1, 2]


def test_a_key_that_is_revoked_ends_the_connection_that_it_opened(
    collect: Callable[..., Collector],
    connect: Callable[..., Publisher],
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = {"good": Only("device_state")}
    collect(find_key=keys.get)
    publisher = connect(key="good")
    assert publisher.publish("device_state", state(1)).result(PATIENCE_S)
    keys.clear()
    publisher.publish("device_state", state(2))
    until(lambda: "it was revoked" in caplog.text, "a word about the key")
    assert [number for _, number in disk.records()] == [1]


def test_a_collector_that_stops_answers_what_it_has_stored(
    collect: Callable[..., Collector], connect: Callable[..., Publisher], disk: Disk, tmp_path: Path
) -> None:
    collector = collect()
    publisher = connect()
    disk.open.clear()
    delivery = publisher.publish("device_state", state(1))
    until(disk.records, "the record")
    closing = threading.Thread(target=collector.close)
    closing.start()
    until(lambda: not (tmp_path / "s").exists(), "the file's end")
    disk.open.set()
    closing.join()
    until(delivery.done, "the answer, once the publisher's thread has read it")
    assert not collector.door.connections


def test_closing_answers_whoever_holds_a_delivery(connect: Callable[..., Publisher]) -> None:
    publisher = connect()
    called: list[Delivery] = []
    delivery = publisher.publish("device_state", state(1), on_delivery=called.append)
    with pytest.raises(PublishError, match="1 of 1 records are not acknowledged"):
        publisher.close(0.01)
    assert called == [delivery]
    with pytest.raises(PublishError, match="closed before the collector answered"):
        delivery.result(0)
    assert (publisher.acknowledged, publisher.failed) == (0, 1)
    with pytest.raises(PublishError, match="the publisher is closed"):
        publisher.publish("device_state", state(2))
    publisher.close()


def test_a_publisher_that_is_forgotten_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(f"unix:{tmp_path / 's'}")
    publisher.publish("device_state", state(1))
    with pytest.warns(ResourceWarning, match="1 records may be lost"):
        del publisher
        gc.collect()


def test_settings_that_mean_nothing_on_a_socket_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"linger\.ms is a setting for Kafka"):
        Publisher("unix:/x", config={"linger.ms": 5})
    with pytest.raises(SettingError, match="spool= goes with Kafka's address"):
        Publisher("unix:/x", spool=tmp_path)
    with pytest.raises(SettingError, match="a key is a collector's"):
        Publisher("localhost:9092", key="k")
    with pytest.raises(SettingError, match="names no socket"):
        Publisher("unix:")
    with pytest.raises(SettingError, match=r"message\.max\.bytes=3000000 is more than"):
        Publisher("unix:/x", config={"message.max.bytes": 3_000_000})


# -- any client


class Raw:
    """A client that says what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))

    def say(self, *said: bytes) -> None:
        self.socket.sendall(b"".join(said))

    def hear(self) -> list[Any]:
        """All up to the end of the connection."""
        answers, found = Answers(), []
        with self.socket:
            try:
                while data := self.socket.recv(4096):
                    found += answers.receive(data)
            except ConnectionResetError:
                pass
        return found


def test_a_client_may_shut_its_side_and_hear_the_rest(
    collect: Callable[..., Collector], disk: Disk, tmp_path: Path
) -> None:
    collector = collect()
    client = Raw(tmp_path / "s")
    client.say(
        encode(Hello(bytes(16))),
        encode(Frame(7, "device_state", ready(7))),
        encode(Frame(9, "nothing", b"")),
    )
    client.socket.shutdown(socket.SHUT_WR)
    heard = client.hear()
    assert heard[0] == Welcome(collector.door.largest)
    assert heard[-1] == Ack(9)
    assert [(r.seq, r.code) for r in heard if isinstance(r, Refusal)] == [(9, "unknown_stream")]
    assert disk.records() == [("d", 7)]
    until(lambda: not collector.door.connections, "the end of the connection")


@pytest.mark.parametrize(
    "rubbish", [b"\0\0\0\0", b"\xff" * 50, encode(Frame(1, "device_state", b""))[:9]]
)
def test_rubbish_ends_a_connection_with_a_word_behind_what_was_good(
    collect: Callable[..., Collector], disk: Disk, tmp_path: Path, rubbish: bytes
) -> None:
    collect()
    client = Raw(tmp_path / "s")
    client.say(encode(Hello(bytes(16))), encode(Frame(3, "device_state", ready(3))), rubbish)
    client.socket.shutdown(socket.SHUT_WR)
    heard = client.hear()
    assert heard[1] == Ack(3)
    assert isinstance(heard[-1], Goodbye)
    assert heard[-1].code == "protocol"
    assert disk.records() == [("d", 3)]


def test_another_protocol_is_told_what_this_is(
    collect: Callable[..., Collector], tmp_path: Path
) -> None:
    collect()
    client = Raw(tmp_path / "s")
    client.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    (heard,) = client.hear()
    assert heard == Goodbye("protocol", "this is a socket of Headrace's own protocol; it begins "
                            "with HDRC")  # fmt: skip


def test_frames_that_are_sent_again_are_acknowledged_and_stored_once(
    collect: Callable[..., Collector], disk: Disk, tmp_path: Path
) -> None:
    collect()
    for session, end in ((b"a" * 16, 3), (b"a" * 16, 5), (b"b" * 16, 2)):
        client = Raw(tmp_path / "s")
        sent = [encode(Frame(i, "device_state", ready(i))) for i in range(1, end)]
        client.say(encode(Hello(session)), *sent)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.hear()[-1] == Ack(end - 1)
    assert [number for _, number in disk.records()] == [1, 2, 3, 4, 1]


def test_a_session_has_one_connection_the_newest(
    collect: Callable[..., Collector], tmp_path: Path
) -> None:
    collect()
    first, second = Raw(tmp_path / "s"), Raw(tmp_path / "s")
    first.say(encode(Hello(bytes(16))))
    assert first.socket.recv(4096)
    second.say(encode(Hello(bytes(16))))
    assert first.hear() == []  # and it ends
    second.socket.shutdown(socket.SHUT_WR)
    assert len(second.hear()) == 1


def test_more_connections_than_there_may_be_are_told_so(
    collect: Callable[..., Collector], tmp_path: Path
) -> None:
    collect(max_connections=1)
    first = Raw(tmp_path / "s")
    first.say(encode(Hello(bytes(16))))
    assert first.socket.recv(4096)
    (heard,) = Raw(tmp_path / "s").hear()
    assert heard.code == "busy"
    first.socket.close()


# -- the file


def test_the_file_is_for_the_group_and_gone_at_the_end(
    collect: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = collect()
    mode = (tmp_path / "s").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
    collector.close()
    assert not (tmp_path / "s").exists()


def test_a_file_that_nobody_listens_at_is_replaced_and_no_other(
    collect: Callable[..., Collector], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    collector = collect()
    with pytest.raises(CollectError, match="somebody listens at"):
        SocketFile(path)
    # It asked; and asyncio leaks a connection that is accepted while its server is closed.
    client = Raw(path)
    client.say(b"hello?")
    assert client.hear()
    collector.close()
    path.write_text("mine")
    with pytest.raises(CollectError, match="is no socket"):
        collect()
    assert path.read_text() == "mine"
    with pytest.raises(CollectError, match="can't be made"):
        SocketFile(tmp_path / "nowhere" / "s")


def test_a_file_that_another_has_put_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    mine = SocketFile(path)
    os.replace(path, tmp_path / "moved")  # noqa: PTH105 (a name for a rename)
    with SocketFile(path).socket, mine.socket:
        mine.remove()
        assert path.exists()


logging.getLogger("asyncio").setLevel(logging.ERROR)


def test_a_connection_that_was_replaced_stores_nothing_more_not_even_what_it_had_to_try_again(
    tmp_path: Path,
) -> None:
    """Its client sends all that again; in between, it would come out of its order."""
    stored: list[list[Record]] = []

    class Full:
        def store(self, records: list[Record]) -> asyncio.Future[int]:
            stored.append(records)
            done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            done.set_exception(SpoolFull("the spool is at its limit"))
            return done

    class Transport:
        """One that tells its end when it is asked to, and not before."""

        def write(self, data: bytes) -> None: ...
        def abort(self) -> None: ...

    async def test() -> None:
        door = UnixDoor(tmp_path / "s", Full(), BUILT_IN)
        connection = Connection(door)
        connection.connection_made(Transport())  # type: ignore[arg-type]  # what is needed of one
        sent = encode(Hello(bytes(16))) + encode(Frame(1, "device_state", ready(1)))
        connection.get_buffer(0)[: len(sent)] = sent
        connection.buffer_updated(len(sent))
        for _ in range(3):  # turns: the answer is there, and a time is set to try again
            await asyncio.sleep(0)
        assert len(stored) == 1
        connection.abort()
        await asyncio.sleep(0.2)
        assert len(stored) == 1
        connection.connection_lost(None)
        assert not door.connections

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))
