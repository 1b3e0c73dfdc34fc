"""What a spool costs over bare SQLite commits, and its relay over bare Kafka transactions.

Each figure is a ratio of two loops that take turns in one run, five times:

    append, 100 a commit     spool.append(100).result()   against  BEGIN, executemany, COMMIT of the
                             same records by the same SQLite, WAL and FULL, no ids looked up
    the same with ids        random UUIDs, each looked up among all before it
    relay                    a filled spool to Kafka      against  produce_batch of ready dicts in
                             transactions of the same size, with an offset in each

What waits is what comes in ten minutes at 2,000 records/s. Both send to a topic of 4 partitions of
a real Kafka with the same librdkafka settings.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from _measure import bare_commits, compare, in_turn, report, stack
from confluent_kafka import Consumer, TopicPartition

from ingest.spool import Record, Spool
from ingest.spool.relay import Relay
from ingest.spool.transactions import Transactions
from ingest.topics import ensure

APPENDS = 100_000
EACH = 100
SENT = 1_200_000
# As in ingest/spool/relay.py.
TRANSACTION = 50_000
VALUE_BYTES = 131
TOPIC = "bench"


def records(count: int, *, ids: bool) -> list[Record]:
    """So many for one topic."""
    return [
        Record(TOPIC, b"device-%06d" % (i % 5000), os.urandom(VALUE_BYTES),
               str(uuid.uuid4()) if ids else None)
        for i in range(count)
    ]  # fmt: skip


def append(records: Sequence[Record]) -> float:
    """Records a second into a new spool, EACH at a time."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, Spool(folder) as spool:
        start = time.perf_counter()
        for at in range(0, len(records), EACH):
            spool.append(records[at : at + EACH]).result()
        return len(records) / (time.perf_counter() - start)


def bare_transactions(kafka: str, records: Sequence[Record]) -> float:
    """Records a second in Kafka transactions, with nothing else around them."""
    door = Transactions({"bootstrap.servers": kafka}, "bare")
    producer = door._make_producer()
    producer.init_transactions(30.0)
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "bare"})
    group = consumer.consumer_group_metadata()
    start = time.perf_counter()
    for at in range(0, len(records), TRANSACTION):
        producer.begin_transaction()
        rows = [{"value": r.value, "key": r.key} for r in records[at : at + TRANSACTION]]
        assert producer.produce_batch(TOPIC, rows) == len(rows)
        place = TopicPartition("headrace_spool", 0, at + len(rows))
        producer.send_offsets_to_transaction([place], group, 30.0)
        producer.commit_transaction(30.0)
    took = time.perf_counter() - start
    consumer.close()
    return len(records) / took


def filled(folder: Path, count: int) -> Path:
    """A closed spool with so many records in it."""
    with Spool(folder) as spool:
        for _ in range(0, count, 1000):
            spool.append(records(1000, ids=False)).result()
    return folder


def relay(kafka: str, backlog: Path, count: int) -> float:
    """Records a second from a copy of that spool to Kafka."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        copy = Path(folder) / "spool"
        shutil.copytree(backlog, copy)
        with Spool(copy) as spool:
            # Another node each time: Kafka knows the position of this one.
            door = Transactions({"bootstrap.servers": kafka}, f"bench-{time.time_ns()}")
            reader = spool.reader()
            sender = Relay(spool, reader, door)
            thread = threading.Thread(target=sender.run)
            thread.start()
            assert sender.wait(0, 60)  # it has asked Kafka where to begin
            begun, start = sender.position, time.perf_counter()
            assert sender.wait(count, 120)
            took = time.perf_counter() - start
            sender.stop()
            spool.wake()
            thread.join()
            reader.close()
    return (count - begun) / took


def _timed(loop: Callable[[], float]) -> Callable[[], float]:
    def measure() -> float:
        gc.collect()
        return loop()

    return measure


def main() -> None:
    """Measure, print, write."""
    plain, named = records(APPENDS, ids=False), records(APPENDS, ids=True)
    sent = records(SENT, ids=False)
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        kafka = ends.kafka
        ensure({"bootstrap.servers": kafka}, {TOPIC: 4, "headrace_spool": 1})
        backlog = filled(Path(folder) / "filled", SENT)
        loops: dict[str, Callable[[], float]] = {
            "bare commits": lambda: bare_commits(plain, EACH),
            "append": lambda: append(plain),
            "bare commits with ids": lambda: bare_commits(named, EACH),
            "append with ids": lambda: append(named),
            "bare transactions": lambda: bare_transactions(kafka, sent),
            "relay": lambda: relay(kafka, backlog, SENT),
        }
        # A broker that has just started gets three times as fast while its code is compiled.
        for _ in range(3):
            bare_transactions(kafka, sent)
        samples = in_turn({name: _timed(loop) for name, loop in loops.items()})
    report(
        "spool",
        [
            compare("append, 100 a commit", samples, "append", "bare commits", target=0.4,
                    unit="records/s"),
            compare("append with ids, 100 a commit", samples, "append with ids",
                    "bare commits with ids", target=0.4, unit="records/s"),
            compare("relay to Kafka", samples, "relay", "bare transactions", target=0.7,
                    unit="records/s"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
