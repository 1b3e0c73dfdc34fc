"""Real `headrace insert` processes for tests: started, killed, stopped, and always gone at the end.

    with Scene.open(...) as scene:             # the fixture `scene` of tests/integration/conftest.py
        target = PostgresTarget(database)
        scene.migrate(target)
        scene.load(200_000)                    # device_state records, each unique
        process = scene.inserter(target, "--max-rows", "2000")
        scene.until(lambda: target.rows() > 0, "the first rows")
        process.kill()

A scene is one stream (device_state with a topic and a table of its own), one consumer group, and the
headrace.toml that says so. Every wait has a deadline and says what it waited for.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from inserter import Inserter, free_port
from targets import ChdbTarget, Target
from waiting import DEADLINE_S, until

from consumers.destinations import destination
from headrace.config import load
from headrace.simulate import Fleet
from ingest.topics import ensure

__all__ = ["Scene"]

# A child of a test dies with it, also when the test is killed and the child stopped.
_MAIN = """
import ctypes, os, signal
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass  # not Linux
from headrace.cli import main
main()
"""

# 2025-06-16 00:00 UTC
_START_US = 1_750_032_000_000_000


@dataclass
class Scene:
    """One stream, one group, one headrace.toml."""

    folder: Path
    kafka: str
    topic: str
    table: str
    group: str
    partitions: int = 4
    inserters: list[Inserter] = field(default_factory=list)
    _records: Iterator[tuple[bytes, bytes]] | None = None
    loaded: int = 0

    @classmethod
    @contextmanager
    def open(cls, folder: Path, kafka: str, name: str, partitions: int = 4) -> Iterator[Scene]:
        """A scene; its processes are gone afterwards."""
        scene = cls(folder, kafka, name, "device_state", name, partitions)
        scene.configure()
        try:
            yield scene
        finally:
            scene.close()

    def close(self) -> None:
        for inserter in self.inserters:
            if inserter.alive:
                inserter.kill()

    @property
    def dlq(self) -> str:
        return f"{self.topic}.dlq"

    @property
    def config(self) -> Path:
        return self.folder / "headrace.toml"

    def configure(
        self, kafka: Mapping[str, object] | None = None, stream: Mapping[str, object] | None = None
    ) -> None:
        """Write headrace.toml: settings of librdkafka, and of the stream beside its topic."""
        settings = {"topic": self.topic, "partitions": self.partitions, **(stream or {})}
        lines = ["[kafka]", *(f'"{k}" = {json.dumps(v)}' for k, v in (kafka or {}).items())]
        lines += [
            "[streams.device_state]",
            *(f"{k} = {json.dumps(v)}" for k, v in settings.items()),
        ]
        self.config.write_text("\n".join(lines) + "\n")

    # -- commands ----------------------------------------------------------------------------------

    def _start(self, argv: Sequence[str], log: Path, stdin: Any = subprocess.DEVNULL) -> Any:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        env |= {"HEADRACE_STATE": str(self.folder / "no-stack"), "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", _MAIN, *argv],
                stdin=stdin, stdout=out, stderr=subprocess.STDOUT, cwd=self.folder, env=env,
            )  # fmt: skip

    def headrace(self, *args: str, code: int = 0) -> str:
        """Run a command to its end; its output."""
        log = self.folder / f"{args[0]}.log"
        argv = [*args, "--config", str(self.config), "--kafka", self.kafka]
        done = Inserter(self._start(argv, log), log, argv)
        self.inserters.append(done)
        found = done.wait()
        assert found == code, f"headrace {' '.join(argv)} ended with {found}:\n{done.output}"
        return done.output

    def migrate(self, target: Target | None = None, **config: str) -> None:
        """The topic with these settings of its own, its dead letters' topic, and the table."""
        stream = load(self.config, kafka=self.kafka, environ={}).stream("device_state")
        settings = {"bootstrap.servers": self.kafka}
        ensure(settings, {stream.topic: self.partitions}, config)
        ensure(settings, {stream.dlq: 1}, {"max.message.bytes": str(9 * 1024 * 1024)})
        if isinstance(target, ChdbTarget):
            # Its path belongs to one process at a time, and that must not become this one.
            self.headrace("migrate", "--to", target.url, "--stream", "device_state")
        elif target is not None:
            destination(target.url).migrate([stream])

    def inserter(
        self, target: Target | str, *args: str, kafka: str | None = None, metrics: bool = False
    ) -> Inserter:
        """Start a process; does not wait for it."""
        url = target if isinstance(target, str) else target.url
        argv = ["insert", "--to", url, "--stream", "device_state", "--group", self.group,
                "--config", str(self.config), "--kafka", kafka or self.kafka, *args]  # fmt: skip
        port = free_port() if metrics else None
        if port is not None:
            argv += ["--metrics", f"127.0.0.1:{port}"]
        log = self.folder / f"insert-{len(self.inserters)}.log"
        self.inserters.append(Inserter(self._start(argv, log), log, argv, port))
        return self.inserters[-1]

    # -- records -----------------------------------------------------------------------------------

    def _stream(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of simulated reports; no two have the same device and time."""
        fleet = Fleet(5000, 120, _START_US, _START_US + 10**13)
        for batch in fleet.batches(10_000):
            yield from zip(batch.keys, batch.values, strict=True)

    def records(self, n: int) -> list[tuple[bytes, bytes]]:
        """The next `n` records, key and value; for a test to publish by itself."""
        if self._records is None:
            self._records = self._stream()
        return list(islice(self._records, n))

    def load(self, n: int, *, padding: int = 0, deadline_s: float = DEADLINE_S) -> None:
        """Publish the next `n` records; returns when all are acknowledged.

        `padding`: so many bytes more in each, in a field that the message does not have: they cost
        memory until they are decoded, and nothing in the database.
        """
        # Each of its own: what is alike would be compressed, and a fetch is as large as its bytes
        # on the wire, not in memory.
        head, chance = bytes((15 << 3 | 2,)) + _varint(padding), Random(self.loaded)
        failed: list[Any] = []
        producer = Producer(
            {"bootstrap.servers": self.kafka, "acks": "all", "enable.idempotence": True,
             "linger.ms": 5, "compression.type": "lz4", "log_level": 0,
             "delivery.report.only.error": True,
             "on_delivery": lambda error, _message: failed.append(error)}
        )  # fmt: skip
        left = n
        give_up = time.monotonic() + deadline_s
        while left:
            records = self.records(min(left, 10_000))
            if padding:
                records = [(k, v + head + chance.randbytes(padding)) for k, v in records]
            batch = [{"key": k, "value": v} for k, v in records]
            left -= len(batch)
            while batch:
                producer.produce_batch(self.topic, batch)
                batch = [{"key": r["key"], "value": r["value"]} for r in batch if "_error" in r]
                assert time.monotonic() < give_up, f"Kafka takes no records for {deadline_s:g} s"
                if batch:
                    producer.poll(0.05)
        assert producer.flush(deadline_s) == 0, f"not acknowledged after {deadline_s:g} s"
        assert not failed, failed[0]
        self.loaded += n

    @contextmanager
    def flowing(self, a_second: int, seconds: float = 0.1) -> Iterator[None]:
        """Records are published all the while the block runs, a portion every `seconds`."""
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(seconds):
                self.load(max(1, int(a_second * seconds)))

        with ThreadPoolExecutor(1, "flow") as pool:
            done = pool.submit(publish)
            try:
                yield
            finally:
                stop.set()
            done.result(DEADLINE_S)

    def publish(
        self,
        records: Iterable[tuple[bytes | None, bytes | None]],
        *,
        headers: list[tuple[str, bytes]] | None = None,
        topic: str | None = None,
    ) -> list[tuple[int, int]]:
        """Publish these, of any content; where each one is: (partition, offset), in order."""
        producer = Producer(
            {"bootstrap.servers": self.kafka, "acks": "all", "message.max.bytes": 20_000_000}
        )
        places: dict[int, tuple[int, int]] = {}

        def note(i: int) -> Callable[[Any, Message], None]:
            def delivered(error: Any, message: Message) -> None:
                assert error is None, error
                places[i] = (message.partition(), message.offset())

            return delivered

        for i, (key, value) in enumerate(records):
            producer.produce(
                topic or self.topic, value, key, headers=headers or [], on_delivery=note(i)
            )
            producer.poll(0)
        assert producer.flush(60) == 0
        return [places[i] for i in sorted(places)]

    def read(self, topic: str) -> list[Message]:
        """All that is in a topic now."""
        consumer = Consumer(
            {"bootstrap.servers": self.kafka, "group.id": f"{self.group}-look",
             "enable.auto.commit": False, "enable.partition.eof": True,
             "isolation.level": "read_committed"}
        )  # fmt: skip
        found: list[Message] = []
        try:
            parts = consumer.list_topics(topic, timeout=15).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in parts])
            ended: set[int] = set()
            give_up = time.monotonic() + 30
            while len(ended) < len(parts):
                for message in consumer.consume(10_000, 0.2):
                    error = message.error()
                    if error is None:
                        found.append(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add(message.partition())
                assert time.monotonic() < give_up, f"{topic} can't be read"
        finally:
            consumer.close()
        return found

    # -- what Kafka says ---------------------------------------------------------------------------

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.kafka, "log_level": 0})

    def members(self) -> dict[str, int]:
        """The group's members by id, with the number of partitions that each one has.

        Empty while there is no such group, and while its coordinator can't say.
        """
        answers = self.admin.describe_consumer_groups([self.group], request_timeout=15)
        try:
            group = answers[self.group].result(20)
        except KafkaException:
            return {}
        return {m.member_id: len(m.assignment.topic_partitions) for m in group.members}

    def committed(self) -> dict[int, int]:
        """The group's position in each partition, -1 where it has none."""
        at = [TopicPartition(self.topic, number) for number in range(self.partitions)]
        asker = Consumer({"bootstrap.servers": self.kafka, "group.id": self.group})
        try:
            return {c.partition: max(c.offset, -1) for c in asker.committed(at, timeout=15)}
        finally:
            asker.close()

    # -- waiting -----------------------------------------------------------------------------------

    def until(
        self, condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S
    ) -> None:
        """Return once it holds; fail with what all processes have written after the deadline."""
        try:
            until(condition, what, deadline_s)
        except AssertionError as error:
            logs = "\n".join(
                f"--- {i.log.name}, {'runs' if i.alive else i.process.returncode}\n{i.output[-4000:]}"  # noqa: E501
                for i in self.inserters[-4:]
            )
            raise AssertionError(f"{error}\n{logs}") from None

    def landed(self, target: Target, n: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until a table has `n` rows at least."""
        self.until(lambda: target.rows(self.table) >= n, f"{n:,} rows", deadline_s)

    def exactly_once(self, target: Target) -> None:
        """Every record that was loaded is there, and none is there twice."""
        assert target.distinct(self.table) == (self.loaded, self.loaded)


def _varint(number: int) -> bytes:
    """As protobuf writes it."""
    low, rest = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))
