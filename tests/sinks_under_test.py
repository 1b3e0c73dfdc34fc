"""Every sink as the conformance suite sees it: a destination, and what can be asked of it.

    subject = Subject(...)                # memory, postgres, chdb, clickhouse (HTTP)
    stream = subject.stream()             # a topic of its own; all share one table
    sink = subject.open([stream], source, step)
    subject.landed(stream)                # ids of its rows, sorted, as often as they are there

The message is a user's own, compiled here. Every test record has an id of its own, so that rows can
be counted without asking the sink how it does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from unittest import mock

import psycopg
from fake_log import FakeKafka
from google.protobuf.message import Message
from ledger_truth import owed_in

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Rejected
from consumers.ledger.tally import Bucket, Entry, Sum
from consumers.metrics import Step
from consumers.sinks import (
    Log,
    Sink,
    clickhouse,
    clickhouse_ledger,
    clickhouse_migrate,
    postgres_ledger,
    postgres_migrate,
)
from consumers.sinks.clickhouse import ClickHouseSink
from consumers.sinks.clickhouse_client import connect
from consumers.sinks.memory import MemorySink, Store
from consumers.sinks.postgres import PostgresSink
from ingest.stream_settings import from_table
from ingest.streams import Stream

__all__ = [
    "ClickHouseSubject", "MemorySubject", "PostgresSubject", "Subject", "batch_of", "encode",
]  # fmt: skip

PROTO = """
syntax = "proto3";
package conformance;
import "google/protobuf/timestamp.proto";
message Hop {
  string address = 1;
  repeated double rtts = 2;
  google.protobuf.Timestamp at = 3;
}
message Event {
  google.protobuf.Timestamp at = 1;
  string id = 2;
  string text = 3;
  google.protobuf.Timestamp seen = 4;
  repeated Hop hops = 5;
  map<string, int64> counts = 6;
  optional double score = 7;
  repeated google.protobuf.Timestamp tries = 8;
  map<string, Hop> by_name = 9;
}
"""
_SECONDS = 1_750_000_000
# A row that the table's own constraint refuses; the server does not say which row it was.
POISON = "poison"

_numbers = itertools.count()


def encode(stream: Stream, name: str, **fields: Any) -> bytes:
    """A record. `fields`: text, seconds; times in seconds: seen, tries, hop, by_name."""
    event: Message = stream.message()
    event.id = name
    event.text = fields.get("text", f"text of {name}")
    event.at.seconds = fields.get("seconds", _SECONDS)
    event.seen.seconds = fields.get("seen", _SECONDS)
    event.hops.add(address="10.0.0.1", rtts=[1.5, 2.5]).at.seconds = fields.get("hop", _SECONDS)
    event.hops.add(address="10.0.0.2")
    event.counts["n"] = len(name)
    for seconds in (_SECONDS, fields.get("tries", _SECONDS)):
        event.tries.add(seconds=seconds)
    event.by_name["first"].address = "10.0.0.1"
    event.by_name["last"].at.seconds = fields.get("by_name", _SECONDS)
    payload: bytes = event.SerializeToString()
    return payload


def batch_of(
    stream: Stream, kafka: FakeKafka, spans: Iterable[tuple[int, int, int]], chunk: int = 3
) -> Batch:
    """The batch that the run loop would make of these (partition, start, end); all decodable."""
    decoder = Decoder(stream)
    chunks = []
    covered = {}
    for number, start, end in spans:
        partition = Partition(stream.topic, number)
        covered[partition] = Span(start, end)
        messages = kafka.read(partition, Span(start, end))
        for i in range(0, len(messages), chunk):
            some = messages[i : i + chunk]
            rows, bad = decoder.decode([m.value() for m in some])
            assert not bad
            chunks.append(Chunk(partition, [m.offset() for m in some], rows))
    return Batch(stream, covered, tuple(chunks))


class Subject(Protocol):
    """A destination under test."""

    name: str
    # What it refuses: the fields for `encode`, and whether it says which row it was.
    poisons: Sequence[tuple[dict[str, Any], bool]]
    # Whether `dedupe` means something to it.
    dedupes: bool

    def stream(self, **settings: Any) -> Stream:
        """A stream with a topic of its own."""
        ...

    def open(self, streams: Sequence[Stream], kafka: Log, step: Step) -> Sink: ...

    def landed(self, stream: Stream) -> list[str]: ...

    def ledger(self, stream: Stream, kafka: FakeKafka) -> dict[Bucket, Entry]: ...

    def stoppable(self) -> bool:
        """Whether another writer can go on while one stands where this is asked."""
        ...

    def close(self) -> None: ...


class _Streams:
    """One message, compiled once, and streams of it."""

    def __init__(self, folder: Path) -> None:
        (folder / "event.proto").write_text(PROTO)
        given = {"proto": "event.proto", "message": "conformance.Event", "key": "id", "time": "at"}
        self._first = from_table("events", given, folder)

    def make(self, prefix: str, table: str, **settings: Any) -> Stream:
        topic = f"{prefix}.{next(_numbers)}"
        return replace(self._first, name=topic, topic=topic, table=table, **settings)


class _PickyMemorySink(MemorySink):
    """Refuses what a constraint would, and says which rows or not."""

    def write(self, batch: Batch) -> None:
        texts = [text for c in batch.chunks for text in c.rows.column("text").to_pylist()]
        if POISON in texts:
            raise Rejected("the table's constraint is violated")
        named = {i: "text with a NUL character" for i, text in enumerate(texts) if "\0" in text}
        if named:
            raise Rejected("a NUL", named)
        super().write(batch)


class MemorySubject:
    """A Store. It takes everything, so here a subclass refuses."""

    name = "memory"
    poisons = (({"text": POISON}, False), ({"text": "a\0b"}, True))
    dedupes = False

    def __init__(self, folder: Path) -> None:
        self._streams = _Streams(folder)
        self._store = Store()

    def stream(self, **settings: Any) -> Stream:
        # A Store keeps one position for a partition, whatever the table.
        return self._streams.make("memory", "events", **settings)

    def open(self, streams: Sequence[Stream], kafka: Log, step: Step) -> Sink:
        return _PickyMemorySink(self._store, step)

    def landed(self, stream: Stream) -> list[str]:
        rows = self._store.rows.get(stream.table, [])
        return sorted(row["id"] for p, _, row in rows if p.topic == stream.topic)

    def ledger(self, stream: Stream, kafka: FakeKafka) -> dict[Bucket, Entry]:
        return {b: e for b, e in self._store.ledger.items() if b.partition.topic == stream.topic}

    def stoppable(self) -> bool:
        return not self._store.lock.locked()

    def close(self) -> None:
        pass


class _Tables:
    """Tables that are made when a stream first needs them, each with a constraint."""

    def __init__(self) -> None:
        self._ready: dict[tuple[str, ...], str] = {}

    def name(self, settings: dict[str, Any]) -> tuple[str, bool]:
        key = tuple(settings.get("dedupe", ()))
        new = key not in self._ready
        return self._ready.setdefault(key, f"events_{next(_numbers)}"), new


class PostgresSubject:
    """A PostgreSQL database; `through` is where sinks find it (a proxy)."""

    name = "postgres"
    poisons = (({"text": POISON}, False), ({"text": "a\0b"}, True))
    dedupes = True

    def __init__(self, folder: Path, url: str, through: str | None = None) -> None:
        self._streams = _Streams(folder)
        self._tables = _Tables()
        self._through = through or url
        self._url = url
        self._eye = psycopg.connect(url, autocommit=True)

    def stream(self, **settings: Any) -> Stream:
        table, new = self._tables.name(settings)
        stream = self._streams.make("postgres", table, **settings)
        if new:
            postgres_migrate.migrate(self._url, [stream])
            self._eye.execute(f"ALTER TABLE {table} ADD CHECK (text <> '{POISON}')")
        return stream

    def open(self, streams: Sequence[Stream], kafka: Log, step: Step) -> Sink:
        return PostgresSink(self._through, streams, kafka, step)

    def landed(self, stream: Stream) -> list[str]:
        rows = self._eye.execute(
            f"SELECT id FROM {stream.table} WHERE starts_with(id, %s) ORDER BY id",
            (stream.topic + "/",),
        )
        return [name for (name,) in rows]

    def ledger(self, stream: Stream, kafka: FakeKafka) -> dict[Bucket, Entry]:
        topic_id = kafka.ids[stream.topic]
        return postgres_ledger.read(self._eye, stream.table, stream.topic, topic_id)

    def stoppable(self) -> bool:
        return True

    def close(self) -> None:
        self._eye.close()


class ClickHouseSubject:
    """ClickHouse, or its engine in this process."""

    # Times of the year 8307, which it would store as others: in columns and below them.
    poisons = (
        ({"text": POISON}, False),
        *(({name: 200_000_000_000}, True) for name in ("seen", "tries", "hop", "by_name")),
    )
    dedupes = True

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.name = name
        self._streams = _Streams(folder)
        self._tables = _Tables()
        self.url = url
        self._eye = connect(url)

    def stream(self, **settings: Any) -> Stream:
        table, new = self._tables.name(settings)
        stream = self._streams.make("clickhouse", table, **settings)
        if new:
            clickhouse_migrate.migrate(self.url, [stream])
            self._eye.command(
                f"ALTER TABLE {table} ADD CONSTRAINT no_poison CHECK text != '{POISON}'"
            )
        return stream

    def command(self, text: str) -> object:
        """Ask or change something in the database."""
        return self._eye.command(text)

    def open(self, streams: Sequence[Stream], kafka: Log, step: Step) -> Sink:
        # A client of its own for each of a thousand writers would ask for all the server's settings
        # each time, a tenth of a second; it holds no state, so they share one, which stays open.
        client = SimpleNamespace(
            command=self._eye.command,
            query=self._eye.query,
            raw_insert=self._eye.raw_insert,
            close=lambda: None,
        )
        with mock.patch.object(clickhouse, "connect", lambda _url: client):
            return ClickHouseSink(self.url, streams, kafka, step)

    def landed(self, stream: Stream) -> list[str]:
        final = "FINAL" if stream.dedupe else ""
        rows = self._eye.query(
            f"SELECT id FROM {stream.table} {final} WHERE startsWith(id, {{id:String}}) "
            "ORDER BY id",
            parameters={"id": stream.topic + "/"},
        ).result_rows
        return [name for (name,) in rows]

    def ledger(self, stream: Stream, kafka: FakeKafka) -> dict[Bucket, Entry]:
        committed = {p: at for p, at in kafka.committed.items() if p.topic == stream.topic}
        owed = {p: owed_in(note) for p, (_, note) in committed.items()}
        until = {
            p: offset if owed[p][0] is None else owed[p][0] for p, (offset, _) in committed.items()
        }
        topic_id = kafka.ids[stream.topic]
        found = clickhouse_ledger.read(self._eye, stream.table, stream.topic, topic_id, until)
        for partition, (_, hours) in owed.items():
            for hour, rows, dead in hours:
                at = Bucket(partition, hour)
                entry = Entry(Sum(*rows), 0, Sum(*dead))
                found[at] = found.get(at, Entry()).plus(entry)
        return found

    def stoppable(self) -> bool:
        return True

    def close(self) -> None:
        # chDB lets go of its path with its last client.
        self._eye.close()
