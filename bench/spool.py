"""What a spool costs over bare SQLite commits, and its relay over bare Kafka transactions.

Each figure is a ratio of two loops that take turns in one run, five times:

    append, 100 a commit     spool.append(100).result()   against  BEGIN, executemany, COMMIT of the
                             same records by the same SQLite, WAL and FULL, no ids looked up
    the same with ids        random UUIDs, each looked up among all before it
    relay                    a filled spool to Kafka      against  produce_batch of ready dicts in
                             transactions of the same size, with an offset in each
    relay with the ledger    the relay                    against  itself, with what is done for the
                             ledger taken out of it: nothing is added up, no entry is sent

All relays send to a topic of 4 partitions of a real Kafka with the same librdkafka settings.
"""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from _measure import bare_commits, compare, in_turn, report, stack
from confluent_kafka import Consumer, TopicPartition

from ingest.spool import Record, Spool, batch
from ingest.spool.entry import EDGE
from ingest.spool.relay import Relay
from ingest.spool.transactions import Transactions
from ingest.topics import ensure

APPENDS = 100_000
EACH = 100
SENT = 300_000
# As in ingest/spool/relay.py.
TRANSACTION = 20_000
VALUE_BYTES = 131
TOPIC = "bench"


def _records(count: int, *, ids: bool) -> list[Record]:
    return [
        Record(TOPIC, b"device-%06d" % (i % 5000), os.urandom(VALUE_BYTES),
               str(uuid.uuid4()) if ids else None)
        for i in range(count)
    ]  # fmt: skip


def _appends(records: Sequence[Record]) -> float:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, Spool(folder) as spool:
        start = time.perf_counter()
        for at in range(0, len(records), EACH):
            spool.append(records[at : at + EACH]).result()
        return len(records) / (time.perf_counter() - start)


def _bare_transactions(kafka: str, records: Sequence[Record]) -> float:
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


def _relay(kafka: str, filled: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        copy = Path(folder) / "spool"
        shutil.copytree(filled, copy)
        with Spool(copy) as spool:
            # Another node each time: Kafka knows the position of this one.
            door = Transactions({"bootstrap.servers": kafka}, f"bench-{time.time_ns()}")
            reader = spool.reader()
            relay = Relay(spool, reader, door)
            thread = threading.Thread(target=relay.run)
            thread.start()
            assert relay.wait(0, 60)  # it has asked Kafka where to begin
            begun, start = relay.position, time.perf_counter()
            assert relay.wait(SENT, 120)
            took = time.perf_counter() - start
            relay.stop()
            spool.wake()
            thread.join()
            reader.close()
    return (SENT - begun) / took


@contextmanager
def _no_ledger() -> Iterator[None]:
    """The relay without what it does for the ledger."""
    text, adds = textwrap.dedent(inspect.getsource(batch.Batch.add)), "hashed += summed"
    assert adds in text
    names: dict[str, Any] = {}
    exec(text.replace(adds, "pass"), vars(batch), names)
    queue = Transactions._queue

    def queued(door: Transactions, producer: Any, topic: str, rows: Any) -> None:
        if topic != EDGE:
            queue(door, producer, topic, rows)

    with (
        mock.patch.object(batch.Batch, "add", names["add"]),
        mock.patch.object(Transactions, "_queue", queued),
    ):
        yield


def _timed(loop: Callable[[], float]) -> Callable[[], float]:
    def measure() -> float:
        gc.collect()
        return loop()

    return measure


def main() -> None:
    """Measure, print, write."""
    plain, named = _records(APPENDS, ids=False), _records(APPENDS, ids=True)
    sent = _records(SENT, ids=False)
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        kafka = ends.kafka
        ensure({"bootstrap.servers": kafka}, {TOPIC: 4, "headrace_spool": 1})
        filled = Path(folder) / "filled"
        with Spool(filled) as spool:
            for at in range(0, SENT, 1000):
                spool.append(sent[at : at + 1000]).result()
        loops: dict[str, Callable[[], float]] = {
            "bare commits": lambda: bare_commits(plain, EACH),
            "append": lambda: _appends(plain),
            "bare commits with ids": lambda: bare_commits(named, EACH),
            "append with ids": lambda: _appends(named),
            "bare transactions": lambda: _bare_transactions(kafka, sent),
            "relay": lambda: _relay(kafka, filled),
            "relay without the ledger": _no_ledger()(lambda: _relay(kafka, filled)),
        }
        # A broker that has just started gets three times as fast while its code is compiled.
        for _ in range(3):
            _bare_transactions(kafka, sent)
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
            compare("relay with the ledger", samples, "relay", "relay without the ledger",
                    target=0.98, unit="records/s"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
