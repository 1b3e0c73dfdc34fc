"""A spool on real Kafka: what publish() returned from is in the topic, once, each key in its order.

Publishing processes are killed, Kafka is killed and frozen, a node's spool is sent from elsewhere.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from spool_kafka import begin
from tcp_proxy import Proxy
from waiting import until

from headrace.cli import cli
from headrace.stack import Endpoints, Stack
from ingest.publisher import Coordinates, Publisher, PublishError, Refused
from ingest.spool import Record, Spool, SpoolInUse, SpoolTaken, transactions
from ingest.spool import relay as relay_module
from ingest.spool.relay import Relay
from ingest.spool.transactions import Aborted, Broken, Fenced, Transactions
from ingest.streams import BUILT_IN, Stream
from ingest.topics import ensure

PATIENCE_S = 60.0
TIME = "2025-06-16T22:50:12.226Z"
KEYS = 4

# Publishes numbers under four keys in four threads, and writes down each that publish() returned
# from. Its numbers begin with the number of its run, so that they grow from run to run.
PROGRAM = """
import ctypes, os, signal, sys, threading
from dataclasses import replace
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with the test
except (AttributeError, OSError):
    pass  # not Linux
from ingest.publisher import Publisher, PublishError
from ingest.streams import BUILT_IN
kafka, folder, topic, run, log = sys.argv[1:]
stream = replace(BUILT_IN["device_state"], topic=topic)
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
publisher = Publisher(kafka, spool=folder)
def publish(key):
    try:
        for n in range(1_000_000):
            number = int(run) * 1_000_000 + n
            publisher.publish(stream, {"deviceId": key, "timestamp": "TIME", "colo": str(number)})
            os.write(out, f"{key} {number}\\n".encode())
    except PublishError as error:
        os.write(out, f"error {error}\\n".encode())
threads = [threading.Thread(target=publish, args=(f"d{k}",)) for k in range(KEYS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""".replace("TIME", TIME).replace("KEYS", str(KEYS))


def state(number: int, device: str = "d") -> dict[str, Any]:
    return {"deviceId": device, "timestamp": TIME, "colo": str(number)}


def ends(kafka: str, topic: str, level: IsolationLevel) -> list[int]:
    """The end of each partition; of committed records, or of all."""
    admin = AdminClient({"bootstrap.servers": kafka})
    numbers = admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
    asked = {TopicPartition(topic, n): OffsetSpec.latest() for n in numbers}
    answers = admin.list_offsets(asked, isolation_level=level)
    return [answer.result(PATIENCE_S).offset for answer in answers.values()]


def read(kafka: str, topic: str) -> list[tuple[int, str, int]]:
    """All that is committed: partition, key, number."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "look", "isolation.level": "read_committed",
         "auto.offset.reset": "earliest", "enable.partition.eof": True}
    )  # fmt: skip
    found = []
    try:
        numbers = consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, n, 0) for n in numbers])
        open_ = set(numbers)
        give_up = time.monotonic() + PATIENCE_S
        while open_:
            assert time.monotonic() < give_up
            for message in consumer.consume(1000, 0.5):
                if message.error():
                    open_.discard(message.partition())
                    continue
                parsed: Any = BUILT_IN["device_state"].message.FromString(message.value())
                found.append((message.partition(), message.key().decode(), int(parsed.colo)))
    finally:
        consumer.close()
    return found


def check(found: list[tuple[int, str, int]], acknowledged: set[tuple[str, int]]) -> None:
    """Every acknowledged record is there, none is there twice, each key is in its order."""
    times = Counter((key, number) for _, key, number in found)
    assert acknowledged <= set(times), sorted(acknowledged - set(times))[:10]
    assert set(times.values()) <= {1}, [t for t in times.items() if t[1] > 1][:10]
    for key in {key for _, key, _ in found}:
        mine = [(p, number) for p, k, number in found if k == key]
        assert len({p for p, _ in mine}) == 1
        assert [n for _, n in mine] == sorted(n for _, n in mine)


@pytest.fixture
def stream(endpoints: Endpoints, unique: Callable[[str], str]) -> Stream:
    """device_state with a topic of two partitions of the test's own."""
    found = replace(BUILT_IN["device_state"], topic=unique("states"))
    ensure({"bootstrap.servers": endpoints.kafka}, {found.topic: 2})
    return found


@contextmanager
def frozen(stack: Stack) -> Iterator[None]:
    """Kafka answers nobody."""
    kafka = psutil.Process(stack.status().kafka.pid)
    kafka.suspend()
    try:
        yield
    finally:
        kafka.resume()


class Runs:
    """Processes that publish through one spool, one after the other."""

    def __init__(self, kafka: str, topic: str, folder: Path) -> None:
        self.kafka, self.topic, self.spool = kafka, topic, folder / "spool"
        self.log = folder / "acknowledged"
        self.errors = folder / "stderr"
        self.number = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.number += 1
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, self.kafka, str(self.spool), self.topic,
                 str(self.number), str(self.log)], stderr=errors,
            )  # fmt: skip

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_S)

    def lines(self) -> list[list[str]]:
        if not self.log.exists():
            return []
        # The last line of a killed process may be torn.
        whole = self.log.read_text().rpartition("\n")[0]
        return [line.split(maxsplit=1) for line in whole.splitlines()]

    def acknowledged(self) -> set[tuple[str, int]]:
        return {(key, int(rest)) for key, rest in self.lines() if key != "error"}

    def more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        before = self.count()
        until(lambda: self.count() >= before + count, f"{count} more: {self.said()}")

    def count(self) -> int:
        """How many lines, asked for again and again while the file grows."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def said(self) -> str:
        return self.errors.read_text()[-2000:]


@pytest.fixture
def runs(endpoints: Endpoints, stream: Stream, tmp_path: Path) -> Iterator[Runs]:
    found = Runs(endpoints.kafka, stream.topic, tmp_path)
    yield found
    found.kill()


def drain(folder: Path, kafka: str) -> str:
    done = CliRunner().invoke(cli, ["spool", "drain", str(folder), "--kafka", kafka])
    if done.exception is not None:
        raise done.exception
    return done.output


# -- crashes


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_every_acknowledged_record_is_there_once_whoever_is_killed(
    stack: Stack, endpoints: Endpoints, stream: Stream, runs: Runs, kills: int
) -> None:
    """The publishing process is killed at any moment, again and again, and Kafka once in ten."""
    chance = random.Random(kills)
    for number in range(kills):
        runs.start()
        runs.more(100)
        if number % 10 == 2:
            os.kill(stack.status().kafka.pid or 0, signal.SIGKILL)
            runs.more(100)  # Kafka is away
            assert stack.up(progress=False) == endpoints
            runs.more(100)
        # Anywhere in the rhythm of commits and transactions.
        time.sleep(chance.random() * 0.2)
        runs.kill()
    said = drain(runs.spool, endpoints.kafka)
    assert "is in Kafka" in said
    acknowledged = runs.acknowledged()
    assert len(acknowledged) >= 100 * kills
    found = read(endpoints.kafka, stream.topic)
    check(found, acknowledged)
    # One record a thread and run may be there without an answer, and no others.
    assert len(found) <= len(acknowledged) + KEYS * kills
    assert drain(runs.spool, endpoints.kafka).startswith("sent 0 records")


def test_a_dead_nodes_spool_is_sent_from_a_copy_and_fences_it_where_it_lives(
    endpoints: Endpoints, stream: Stream, runs: Runs, tmp_path: Path
) -> None:
    runs.start()
    runs.more(100)
    # Before it has said who it is, it would not be fenced, but begin behind the other.
    committed = IsolationLevel.READ_COMMITTED
    until(lambda: sum(ends(endpoints.kafka, stream.topic, committed)), "records in Kafka")
    assert runs.process is not None
    node = psutil.Process(runs.process.pid)
    node.suspend()
    with pytest.raises(SpoolInUse, match=f"in use by process {node.pid}"):
        drain(runs.spool, endpoints.kafka)
    shutil.copytree(runs.spool, tmp_path / "copy")
    drain(tmp_path / "copy", endpoints.kafka)
    before = runs.acknowledged()
    check(read(endpoints.kafka, stream.topic), before)
    node.resume()
    runs.process.wait(PATIENCE_S)
    errors = [rest for key, rest in runs.lines() if key == "error"]
    assert len(errors) == KEYS
    assert all("another process has taken over" in error for error in errors)
    # What it took meanwhile is on its disk, and goes on from there.
    drain(runs.spool, endpoints.kafka)
    check(read(endpoints.kafka, stream.topic), runs.acknowledged())


def test_a_transaction_that_took_too_long_is_not_taken_for_another_process(
    endpoints: Endpoints, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator aborts it and fences us; we find our own token, and go on."""
    monkeypatch.setattr(transactions, "_TRANSACTION_MS", 1000)
    kafka = endpoints.kafka
    with Spool(tmp_path) as spool, closing(spool.reader()) as reader:
        message: Any = stream.message(device_id="d", colo="7")
        spool.append([Record(stream.topic, b"d", message.SerializeToString())]).result()
        door = Transactions({"bootstrap.servers": kafka}, spool.node)
        relay = Relay(spool, reader, door)
        begin(relay)
        batch = reader.batch(0, 10, 1000)
        assert batch is not None
        door.send(batch, 1)

        def open_for_others() -> bool:
            committed = ends(kafka, stream.topic, IsolationLevel.READ_COMMITTED)
            everything = ends(kafka, stream.topic, IsolationLevel.READ_UNCOMMITTED)
            # The record and the marker of its abort.
            return sum(everything) == 2 and committed == everything

        until(open_for_others, "the coordinator's patience to end")
        with pytest.raises((Fenced, Aborted)):
            door.commit(1, relay._note(0))
        relay._stop_if_taken()
        relay.recover()
        assert relay.step()
        door.close()
        assert read(kafka, stream.topic) == [(read(kafka, stream.topic)[0][0], "d", 7)]
        assert relay.position == 1


class Hanging:
    """A producer whose first position does not come back until it is let go (librdkafka 5456)."""

    def __init__(self, producer: Any, gate: threading.Event) -> None:
        self._producer, self._gate = producer, gate
        self.late: list[Exception | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def send_offsets_to_transaction(self, *args: Any) -> None:
        if self._gate.is_set():
            self._producer.send_offsets_to_transaction(*args)
            return
        self._gate.wait(PATIENCE_S)
        try:
            self._producer.send_offsets_to_transaction(*args)
            self._producer.commit_transaction(PATIENCE_S)
        except Exception as error:
            self.late.append(error)
        else:
            self.late.append(None)


def test_a_call_that_does_not_come_back_is_left_behind_and_fenced(
    endpoints: Endpoints, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new producer sends the batch again; what the old one does when it wakes does not count."""
    kafka, gate = endpoints.kafka, threading.Event()
    with Spool(tmp_path) as spool, closing(spool.reader()) as reader:
        door = Transactions({"bootstrap.servers": kafka}, spool.node)
        relay = Relay(spool, reader, door)
        gate.set()
        begin(relay)
        gate.clear()
        hanging = Hanging(door._producer, gate)
        monkeypatch.setattr(door, "_producer", hanging)
        message: Any = stream.message(device_id="d", colo="7")
        spool.append([Record(stream.topic, b"d", message.SerializeToString())]).result()
        with monkeypatch.context() as short:
            short.setattr(transactions, "_HUNG_S", 0.5)
            with pytest.raises(Broken, match="does not take the position"):
                relay.step()
        relay.recover()
        assert relay.step()
        gate.set()
        until(lambda: hanging.late, "the old call's end")
        assert hanging.late != [None]
        door.close()
    assert [n for _, _, n in read(kafka, stream.topic)] == [7]


def test_what_nobody_has_foreseen_behind_the_sending_leaves_one_of_each_record(
    endpoints: Endpoints, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread, with the transaction open: it is aborted, and its records are sent again."""
    kafka, failed = endpoints.kafka, threading.Event()
    beside = relay_module.beside

    def fail_once(call: Callable[[], Any]) -> Callable[[], Any]:
        if failed.is_set():
            return beside(call)
        # On their way, and in the log.
        until(lambda: sum(ends(kafka, stream.topic, IsolationLevel.READ_UNCOMMITTED)), "records")
        failed.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(relay_module, "beside", fail_once)
    with Spool(tmp_path) as spool, closing(spool.reader()) as reader:
        message: Any = stream.message(device_id="d")
        for number in range(3):
            message.colo = str(number)
            spool.append([Record(stream.topic, b"d", message.SerializeToString())]).result()
        relay = Relay(spool, reader, Transactions({"bootstrap.servers": kafka}, spool.node))
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            assert relay.wait(3, PATIENCE_S), relay.trouble
        finally:
            relay.stop()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert failed.is_set()
        assert relay.error is None
    assert [n for _, _, n in read(kafka, stream.topic)] == [0, 1, 2]


# -- a slow line


def through(proxy: Proxy, kafka: str) -> str:
    """Kafka's address behind a proxy that also puts its own in Kafka's answers."""
    host, _, port = kafka.rpartition(":")
    # A broker's address in the protocol: the host, and behind it the port in four bytes.
    proxy.rewrite(host.encode() + struct.pack(">i", int(port)),
                  host.encode() + struct.pack(">i", proxy.port))  # fmt: skip
    return f"{host}:{proxy.port}"


@pytest.mark.slow
@pytest.mark.parametrize(("first_bytes", "most_s"), [(relay_module._FIRST_BYTES, 45), (2**22, 90)])
def test_a_line_too_slow_for_a_whole_batch_gets_it_in_parts(
    endpoints: Endpoints,
    stream: Stream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_bytes: int,
    most_s: float,
) -> None:
    """3 MB that can't be compressed, at 1 Mbit/s: 24 s, and a transaction has 10 s.

    It begins small; or it had been fast before, and finds by failing what the line carries.
    """
    monkeypatch.setattr(relay_module, "_FIRST_BYTES", first_bytes)
    host, _, port = endpoints.kafka.rpartition(":")
    chance, count = random.Random(7), 3000
    # The rest is a field 15 of 1,000 bytes, which the message does not have.
    values = [
        stream.message(device_id="d", colo=str(n)).SerializeToString()
        + b"\x7a\xe8\x07"
        + chance.randbytes(1000)
        for n in range(count)
    ]
    with Proxy(host, int(port)) as proxy, Spool(tmp_path) as spool:
        kafka = through(proxy, endpoints.kafka)
        spool.append([Record(stream.topic, b"d", value) for value in values]).result()
        with closing(spool.reader()) as reader:
            relay = Relay(spool, reader, Transactions({"bootstrap.servers": kafka}, spool.node))
            proxy.slow(125_000, "up")
            thread = threading.Thread(target=relay.run)
            thread.start()
            try:
                assert relay.wait(count, most_s), relay.trouble
            finally:
                relay.stop()
                thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert proxy.passed["up"] > sum(map(len, values))
    assert [n for _, _, n in read(endpoints.kafka, stream.topic)] == list(range(count))


# -- Publisher(spool=DIR)


def test_publish_returns_with_kafka_away_and_the_next_process_sends_it(
    stack: Stack, endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    seen: list[Coordinates] = []
    with frozen(stack):
        publisher = Publisher(endpoints.kafka, spool=tmp_path)
        for i in range(20):
            delivery = publisher.publish(
                stream, state(i), on_delivery=lambda d: seen.append(d.result(0))
            )
            assert delivery.done()
            assert delivery.exception() is None
            assert delivery.result() == Coordinates(stream.topic, -1, -1)
        values = [stream.message(device_id="d", colo=str(i)).SerializeToString()
                  for i in range(20, 3000)]  # fmt: skip
        publisher.publish_many(stream, values, [b"d"] * len(values))
        with pytest.raises(PublishError, match=r"3,000 records wait in the spool.*after 0.2 s"):
            publisher.flush(0.2)
        assert (publisher.published, publisher.acknowledged, publisher.failed) == (3000, 0, 0)
        began = time.monotonic()
        publisher.close(0.1)
        assert time.monotonic() - began < 20
        with pytest.raises(PublishError, match="closed"):
            publisher.publish(stream, state(0))
    assert len(seen) == 20
    assert read(endpoints.kafka, stream.topic) == []
    with Publisher(endpoints.kafka, spool=tmp_path) as publisher:
        publisher.publish(stream, state(3000))
        publisher.flush(PATIENCE_S)
        assert publisher.acknowledged == 1
    found = read(endpoints.kafka, stream.topic)
    assert [n for _, _, n in found] == list(range(3001))


def test_leaving_the_block_sends_what_kafka_takes_in_time(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with Publisher(endpoints.kafka, spool=tmp_path) as publisher:
        for i in range(10):
            publisher.publish(stream, state(i))
    assert [n for _, _, n in read(endpoints.kafka, stream.topic)] == list(range(10))


def test_a_key_goes_where_it_goes_without_a_spool(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with Publisher(endpoints.kafka, spool=tmp_path) as spooled, Publisher(endpoints.kafka) as bare:
        for i in range(20):
            spooled.publish(stream, state(i, f"d{i}"))
            bare.publish(stream, state(100 + i, f"d{i}"))
    places: dict[str, set[int]] = {}
    for partition, key, _ in read(endpoints.kafka, stream.topic):
        places.setdefault(key, set()).add(partition)
    assert len(places) == 20
    assert all(len(found) == 1 for found in places.values())


def test_what_is_too_large_is_refused_before_it_is_stored(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    config = {"message.max.bytes": 10_000}
    with Publisher(endpoints.kafka, spool=tmp_path, config=config) as publisher:
        with pytest.raises(Refused, match=r"message\.max\.bytes"):
            publisher.publish(stream, state(0) | {"mode": "x" * 20_000})
        large = stream.message(device_id="d", mode="x" * 20_000).SerializeToString()
        small = stream.message(device_id="d", colo="1").SerializeToString()
        publisher.publish_many(stream, [small, large, small], [b"d"] * 3)
        with pytest.raises(PublishError, match="1 records not stored"):
            publisher.flush(PATIENCE_S)
        assert publisher.failed == 1
    assert len(read(endpoints.kafka, stream.topic)) == 2


def test_a_topic_that_is_not_there_holds_everything_and_says_so(
    endpoints: Endpoints, stream: Stream, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    missing = replace(stream, topic=unique("later"))
    config = {"topic.metadata.propagation.max.ms": 500}
    with Publisher(endpoints.kafka, spool=tmp_path, config=config) as publisher:
        publisher.publish(missing, state(1))
        until(lambda: missing.topic in _trouble(publisher), "the trouble, with its topic")
        ensure({"bootstrap.servers": endpoints.kafka}, {missing.topic: 1})
        publisher.flush(PATIENCE_S)
    assert [n for _, _, n in read(endpoints.kafka, missing.topic)] == [1]


def _trouble(publisher: Publisher) -> str:
    lane: Any = publisher._lanes.first
    return str(lane.relay.trouble)


def test_two_publishers_on_one_directory_are_one_too_many(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with (
        Publisher(endpoints.kafka, spool=tmp_path),
        pytest.raises(SpoolInUse, match="in use by process"),
    ):
        Publisher(endpoints.kafka, spool=tmp_path)


def test_taken_over_is_an_error_that_a_publisher_raises() -> None:
    """Whoever catches PublishError catches it."""
    assert issubclass(SpoolTaken, PublishError)
