"""One run of a benchmark, in a process of its own; prints one JSON object.

    consume    bare consume(), with the settings found best                       (limit c)
    discard    the project's own consume, decode, encode; the bytes are thrown away  (limit b)
    insert     the inserter, as `headrace insert --drain` sets it up; also as if it kept no ledger
    in-turns   the same, into ClickHouse with and without its ledger in turns
    copy       one COPY of rows that were encoded before, one connection                (limit a)
    upsert     COPY into a temporary table and INSERT … ON CONFLICT, 50,000 rows at a time
    arrow      inserts of ready Arrow into chDB, with the client and batch size of the inserter

Rows a second are counted from the first record read to the last commit: what a process does once,
importing and joining its group, is not in it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
from confluent_kafka import Consumer, Message, TopicPartition

from consumers.batch import Batch, Chunk, Partition
from consumers.deadletters import DeadLetters
from consumers.decode import Decoder
from consumers.destinations import destination
from consumers.fetch import calm_gc
from consumers.group import GroupSource
from consumers.limits import Limits
from consumers.run import Runner
from consumers.sinks import Log, Sink
from consumers.source import Listener, Runs
from headrace.config import load
from ingest.streams import Stream

# The best that was found for bare consume(), bench/consume.py's rows.
BEST = {
    "queued.min.messages": 400_000,
    "queued.max.messages.kbytes": 262_144,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 10,
}
BATCH_ROWS = 50_000


def consume(
    kafka: str, topic: str, rows: int, slice_: int, settings: dict[str, Any]
) -> Iterator[list[Message]]:
    """All records of a topic by `assign`, in slices."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "bench",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **settings,
        }
    )
    numbers = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, n, 0) for n in numbers])
    got = 0
    while got < rows:
        messages = consumer.consume(slice_, 1.0)
        got += len(messages)
        if messages:
            yield messages
    consumer.close()


class Clock:
    """From the first record read to the last commit."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def rate(self, rows: int) -> float:
        return rows / (self.last - self.first)


class Discard:
    """Encodes as PostgresSink does, and throws the bytes away."""

    def __init__(self, stream: Stream, log: Log) -> None:
        from consumers.sinks.postgres_types import Encoder

        self._encoder = Encoder(stream, Decoder(stream).schema)
        self._log = log

    def resume(self, known: Any) -> dict[Partition, int]:
        return {partition: k.earliest for partition, k in known.items()}

    def write(self, batch: Batch) -> None:
        for _ in self._encoder.encode(chunk.rows for chunk in batch.chunks):
            pass
        self._log.report({partition: span.end for partition, span in batch.spans.items()})

    def close(self) -> None:
        pass


def drain(
    kafka: str, stream: Stream, kind: str, limits: Limits, open_sink: Callable[[Log], Sink]
) -> dict[str, Any]:
    """Run the inserter to the end of the topic, timed."""
    clock = Clock()

    def join(listener: Listener) -> GroupSource:
        source = GroupSource(
            {"bootstrap.servers": kafka}, f"bench-{time.time_ns()}", [stream.topic], listener
        )
        poll = source.poll

        def timed(n: int, timeout_s: float) -> Runs:
            runs = poll(n, timeout_s)
            if runs and not clock.first:
                clock.first = time.monotonic()
            return runs

        source.poll = timed  # type: ignore[method-assign]
        return source

    def opened(log: Log) -> Sink:
        sink = open_sink(log)
        write = sink.write

        def timed(batch: Batch) -> None:
            write(batch)
            clock.last = time.monotonic()

        sink.write = timed  # type: ignore[method-assign]
        return sink

    calm_gc()
    totals = Runner(
        join,
        DeadLetters({"bootstrap.servers": kafka}, "bench"),
        [stream],
        opened,
        destination=kind,
        limits=limits,
    ).run(drain=True)
    return {"rows": totals.rows, "batches": totals.batches, "rate": clock.rate(totals.rows)}


def encoded(kafka: str, stream: Stream, rows: int, rows_each: int) -> list[list[bytes]]:
    """The topic as binary COPYs of so many rows each."""
    from consumers.sinks.postgres_types import Encoder

    decoder = Decoder(stream)
    encoder = Encoder(stream, decoder.schema)
    found: list[list[bytes]] = []
    chunks: list[Any] = []
    for messages in consume(kafka, stream.topic, rows, 1000, BEST):
        chunks.append(decoder.decode([m.value() for m in messages]).rows)
        if sum(chunk.num_rows for chunk in chunks) >= rows_each:
            found.append(list(encoder.encode(chunks)))
            chunks = []
    if chunks:
        found.append(list(encoder.encode(chunks)))
    return found


@click.group()
def cli() -> None:
    """See the module's comment."""


@cli.command("consume")
@click.argument("kafka")
@click.argument("topic")
@click.argument("rows", type=int)
@click.option("--slice", "slice_", default=500)
@click.option("--settings", default=json.dumps(BEST))
def consume_(kafka: str, topic: str, rows: int, slice_: int, settings: str) -> None:
    got, first = 0, 0.0
    for messages in consume(kafka, topic, rows, slice_, json.loads(settings)):
        first = first or time.monotonic()
        got += len(messages)
    say(rate=got / (time.monotonic() - first), rows=got)


@cli.command()
@click.argument("kafka")
@click.argument("config")
def discard(kafka: str, config: str) -> None:
    stream = stream_of(config)
    say(**drain(kafka, stream, "discard", Limits(), lambda log: Discard(stream, log)))


@cli.command()
@click.argument("kafka")
@click.argument("config")
@click.argument("url")
@click.option("--no-ledger", is_flag=True)
def insert(kafka: str, config: str, url: str, no_ledger: bool) -> None:
    if no_ledger:
        from consumers.sinks import postgres

        if not url.startswith("postgres"):
            raise click.UsageError("without a ledger there is only PostgreSQL; see in-turns")
        # What it would cost not to keep one; there is no such setting.
        postgres.entries_of = lambda *_: {}  # type: ignore[attr-defined]
    stream = stream_of(config)
    target = destination(url)
    say(**drain(kafka, stream, target.kind, target.limits, lambda log: target.open([stream], log)))


@cli.command("in-turns")
@click.argument("kafka")
@click.argument("config")
@click.argument("url")
@click.argument("seed", type=int)
def in_turns(kafka: str, config: str, url: str, seed: int) -> None:
    """The inserter into ClickHouse, in turns with its ledger and without: rows of each, and seconds."""  # noqa: E501
    # Of ClickHouse's client the other runs are to know nothing: their memory is measured.
    from _turns import Turns

    turns = Turns(seed)
    stream = stream_of(config)
    target = destination(url)
    drain(
        kafka, stream, target.kind, target.limits,
        lambda log: turns.timed(target.open([stream], log)),
    )  # fmt: skip
    say(rows=[turns.rows[True], turns.rows[False]], took=[turns.took[True], turns.took[False]])


@cli.command()
@click.argument("config")
@click.argument("url")
def migrate(config: str, url: str) -> None:
    destination(url).migrate([stream_of(config)])
    say()


@cli.command()
@click.argument("kafka")
@click.argument("config")
@click.argument("url")
@click.argument("rows", type=int)
@click.option("--staged", is_flag=True)
def copy(kafka: str, config: str, url: str, rows: int, staged: bool) -> None:
    stream = stream_of(config)
    batches = encoded(kafka, stream, rows, BATCH_ROWS if staged else rows)
    names = ", ".join(f'"{field.name}"' for field in stream.descriptor.fields)
    table = f'"{stream.table}"'
    with psycopg.connect(url) as connection:
        if staged:
            connection.execute(f"CREATE TEMP TABLE stage (LIKE {table}) ON COMMIT DELETE ROWS")
            connection.commit()
        target = "stage" if staged else table
        began = time.monotonic()
        for pieces in batches:
            with connection.cursor().copy(
                f"COPY {target} ({names}) FROM STDIN (FORMAT binary)"
            ) as stdin:
                for piece in pieces:
                    stdin.write(piece)
            if staged:
                connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} FROM stage "
                    "ON CONFLICT DO NOTHING"
                )
            connection.commit()
        say(rate=rows / (time.monotonic() - began), rows=rows)


@cli.command()
@click.argument("kafka")
@click.argument("config")
@click.argument("url")
@click.argument("rows", type=int)
def arrow(kafka: str, config: str, url: str, rows: int) -> None:
    from consumers.sinks.clickhouse_client import connect
    from consumers.sinks.clickhouse_table import INSERT_SETTINGS
    from consumers.sinks.clickhouse_types import ArrowStream, column_types, quote

    stream = stream_of(config)
    decoder = Decoder(stream)
    step = destination(url).limits.max_rows
    stream_of_rows = ArrowStream()
    chunks: list[Chunk] = []
    ready: list[bytes] = []
    for messages in consume(kafka, stream.topic, rows, 1000, BEST):
        found = decoder.decode([m.value() for m in messages]).rows
        offsets = [m.offset() or 0 for m in messages]
        chunks.append(Chunk(Partition(stream.topic, 0), offsets, found))
        if sum(chunk.rows.num_rows for chunk in chunks) >= step:
            ready.append(bytes(stream_of_rows(chunks, "bench")))
            chunks = []
    if chunks:
        ready.append(bytes(stream_of_rows(chunks, "bench")))
    client = connect(url)
    began = time.monotonic()
    for body in ready:
        client.raw_insert(
            quote(stream.table),
            list(column_types(stream)),
            body,
            settings=INSERT_SETTINGS,
            fmt="ArrowStream",
        )
    say(rate=rows / (time.monotonic() - began), rows=rows)
    client.close()


def stream_of(config: str) -> Stream:
    """The one stream that a configuration is about."""
    return load(Path(config), environ={}, need_kafka=False).stream("device_state")


def say(**found: Any) -> None:
    """The answer; `rss_mib` is the most memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1024 if sys.platform == "linux" else 1024 * 1024
    print(json.dumps({**found, "rss_mib": peak / scale}), flush=True)


if __name__ == "__main__":
    cli()
