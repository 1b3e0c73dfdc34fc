"""Rows a second of one inserter, against what limits it, into PostgreSQL and chDB.

1,000,000 device logs in 4 partitions, all there before the start. Limits, measured in turn with the
inserter (bench/_runs.py says what each run does):

    (a) one bare COPY of the same rows, encoded before, on one connection into the same table
    (b) the project's own consume -> decode -> encode with a sink that throws the bytes away
    (c) bare consume() with the best settings found
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
from _measure import Row, compare, in_turn, report, run, stack

from consumers.destinations import destination
from headrace.config import load
from headrace.simulate import Fleet
from ingest.publisher import Publisher
from ingest.topics import ensure

ROWS = int(os.environ.get("ROWS", "1000000"))
# 2025-06-16 00:00 UTC, 120 s apart
START_US = 1_750_032_000_000_000
TOPIC = "device_state"
INDEXES = {
    "no index": (),
    "one index": ("CREATE INDEX ON device_state (account_id, timestamp)",),
    "unique + second index": (
        "CREATE UNIQUE INDEX ON device_state (device_id, account_id, timestamp)",
        "CREATE INDEX ON device_state (account_id, timestamp)",
    ),
}
DEDUPE = 'dedupe = ["device_id", "account_id", "timestamp"]\n'


def publish(kafka: str, rows: int) -> None:
    """`rows` logs of a fleet that reports every two minutes."""
    ensure({"bootstrap.servers": kafka}, {TOPIC: 4, f"{TOPIC}.dlq": 1})
    devices = 30_000
    fleet = Fleet(devices, 120, START_US, START_US + (rows // devices + 1) * 120_000_000)
    left = rows
    with Publisher(kafka) as publisher:
        for batch in fleet.batches(10_000):
            publisher.publish_many(TOPIC, batch.values[:left], batch.keys[:left])
            left -= min(left, len(batch.values))
            if not left:
                break
    assert publisher.acknowledged == rows


def empty(url: str, config: Path, indexes: tuple[str, ...]) -> None:
    """The table anew, with just these indexes."""
    stream = load(config, environ={}, need_kafka=False).stream(TOPIC)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS device_state, headrace_offsets, headrace_ledger")
        destination(url).migrate([stream])
        for (name,) in connection.execute(
            "SELECT indexname FROM pg_indexes WHERE tablename = 'device_state'"
        ).fetchall():
            connection.execute(f'DROP INDEX "{name}"')
        for index in indexes:
            connection.execute(index)
        # What the last run left to be written is not this one's.
        connection.execute("CHECKPOINT")


def landed(url: str) -> int:
    """Rows in the table."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM device_state").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    """Measure, print, write."""
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temp:
        folder = Path(temp)
        plain, dedupe = folder / "plain.toml", folder / "dedupe.toml"
        plain.write_text("[streams.device_state]\n")
        dedupe.write_text("[streams.device_state]\n" + DEDUPE)
        publish(ends.kafka, ROWS)
        chdb = folder / "chdb"
        runs: dict[str, Callable[[], float]] = {
            "bare consume()": lambda: run("consume", ends.kafka, TOPIC, str(ROWS))["rate"],
        }

        def into_postgres(config: Path, indexes: tuple[str, ...], *how: str) -> float:
            empty(ends.postgres, config, indexes)
            rate: float = run(how[0], ends.kafka, str(config), ends.postgres, *how[1:])["rate"]
            assert (n := landed(ends.postgres)) == ROWS, n
            return rate

        def into_chdb(how: str, *more: str) -> float:
            url = f"chdb:{chdb}"
            shutil.rmtree(chdb, ignore_errors=True)
            run("migrate", str(plain), url)
            rate: float = run(how, ends.kafka, str(plain), url, *more)["rate"]
            return rate

        for name, indexes in INDEXES.items():
            runs[f"bare COPY, {name}"] = lambda i=indexes: into_postgres(
                plain, i, "copy", str(ROWS)
            )
            if not indexes:
                # Right before what is compared with it: the machine drifts.
                runs["sink that discards"] = lambda: run("discard", ends.kafka, str(plain))["rate"]
            runs[f"insert, {name}"] = lambda i=indexes: into_postgres(plain, i, "insert")
        both = INDEXES["unique + second index"]
        runs["bare staged upsert"] = lambda: into_postgres(
            dedupe, both, "copy", str(ROWS), "--staged"
        )
        runs["insert, dedupe"] = lambda: into_postgres(dedupe, both, "insert")
        runs["bare Arrow insert"] = lambda: into_chdb("arrow", str(ROWS))
        runs["insert, chDB"] = lambda: into_chdb("insert")
        samples = in_turn(runs)
    lower = [
        min(pair)
        for pair in zip(samples["bare Arrow insert"], samples["sink that discards"], strict=True)
    ]
    samples["lower of bare Arrow insert and (b)"] = lower
    report("insert", rows_of(samples))


def rows_of(samples: dict[str, list[float]]) -> list[Row]:
    """The table of the issue."""
    return [
        compare("(b) consume, decode, encode, discard", samples, "sink that discards",
                "bare consume()", target=0.35),
        compare("PostgreSQL, no index", samples, "insert, no index", "sink that discards",
                target=0.9),
        compare("PostgreSQL, one index", samples, "insert, one index", "bare COPY, one index",
                target=1.0),
        compare("PostgreSQL, unique + second index", samples, "insert, unique + second index",
                "bare COPY, unique + second index", target=1.0),
        compare("PostgreSQL, dedupe", samples, "insert, dedupe", "bare staged upsert", target=0.9),
        compare("chDB", samples, "insert, chDB", "lower of bare Arrow insert and (b)", target=0.8),
        compare("PostgreSQL, no index, for comparison", samples, "insert, no index",
                "bare COPY, no index", target=None),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
