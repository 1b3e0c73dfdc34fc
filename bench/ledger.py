"""What the ledger costs an inserter, and how long an audit of a billion events takes.

Into PostgreSQL the inserter lands ROWS device logs in turn with and without it. Two runs into chDB differ by more than
the 2 % that are asked for; so there each batch of a run of IN_TURNS logs is with it or without. One batch takes 20 %
more or less than the next by chance, so a run of 128 of them is wrong by 3.5 % and a round is RUNS of them. Merges come
on top of that, up to 15 % for either side: the logs' table is not merged meanwhile. The audit is of 30 days of a stream with 4 partitions at five destinations, each with its
ledger as a month of batches leaves it: four PostgreSQL databases, and a ClickHouse one with a row for each second and
partition.
"""  # noqa: E501

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import psycopg
from _measure import ROUNDS, Row, compare, in_turn, report, run, stack
from confluent_kafka import Consumer, Producer, TopicPartition
from insert import empty, landed, publish

from consumers.destinations import destination, inserter_group
from consumers.intent import Intent
from consumers.ledger.accepted import Book
from consumers.sinks.clickhouse_client import connect
from headrace.config import load
from ingest.topics import ensure, topic_ids

ROWS = int(os.environ.get("ROWS", "1000000"))
IN_TURNS = 36_000_000
RUNS = 5
UNMERGED = (
    "ALTER TABLE device_state MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, "
    "max_bytes_to_merge_at_min_space_in_pool = 1"
)
PARTITIONS, HOURS, SECONDS = 4, 720, 3600
# A billion events in all, evenly: less five in a thousand.
A_SPAN = 1_000_000_000 // (HOURS * SECONDS * PARTITIONS)
FIRST_HOUR = 486_120
ENDS = A_SPAN * HOURS * SECONDS


def main() -> None:
    """Measure, print, write."""
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temp:
        plain = Path(temp) / "plain.toml"
        plain.write_text("[streams.device_state]\n")
        publish(ends.kafka, ROWS)
        chdb = Path(temp) / "chdb"
        seeds = itertools.count()
        without = 0.0

        def into_postgres(*how: str) -> float:
            empty(ends.postgres, plain, ("CREATE INDEX ON device_state (account_id, timestamp)",))
            rate: float = run("insert", ends.kafka, str(plain), ends.postgres, *how)["rate"]
            assert landed(ends.postgres) == ROWS
            return rate

        def into_chdb() -> float:
            nonlocal without
            url = f"chdb:{chdb}"
            rows, took = [0, 0], [0.0, 0.0]
            for seed in itertools.islice(seeds, RUNS):
                shutil.rmtree(chdb, ignore_errors=True)
                run("migrate", str(plain), url)
                client = connect(url)
                client.command(UNMERGED)
                client.close()
                found = run("in-turns", ends.kafka, str(plain), url, str(seed))
                rows = [a + b for a, b in zip(rows, found["rows"], strict=True)]
                took = [a + b for a, b in zip(took, found["took"], strict=True)]
            without = rows[1] / took[1]
            return rows[0] / took[0]

        samples = in_turn(
            {"PostgreSQL without": lambda: into_postgres("--no-ledger"),
             "PostgreSQL with": into_postgres},
            4 * ROUNDS, back_and_forth=True,
        )  # fmt: skip
        publish(ends.kafka, IN_TURNS - ROWS)
        samples |= in_turn({"chDB with": into_chdb, "chDB without": lambda: without}, 2 * ROUNDS)
        shutil.rmtree(chdb)
        month = [audit_of_a_month(ends.kafka, ends.postgres, Path(temp)) for _ in range(3)]
    report("ledger", [
        compare("insert into PostgreSQL, with a ledger", samples, "PostgreSQL with",
                "PostgreSQL without", target=0.98),
        compare("insert into chDB, with a ledger", samples, "chDB with", "chDB without",
                target=0.98),
        Row("audit of 30 days, 5 destinations", sorted(month)[1], None, "", None, 5, "s", month, (),
            lower_is_better=True),
    ])  # fmt: skip


def audit_of_a_month(kafka: str, postgres: str, folder: Path) -> float:
    """Seconds that `headrace audit` takes; the ledgers are made once."""
    config = folder / "month.toml"
    urls = [f"{postgres.rsplit('/', 1)[0]}/month_{n}" for n in range(4)]
    chdb = f"chdb:{folder / 'month'}"
    if not config.exists():
        config.write_text('[streams.device_state]\ntopic = "month"\n')
        make(kafka, postgres, config, urls, chdb)
    to = [word for url in (*urls, chdb) for word in ("--to", url)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from headrace.cli import main; main()", "audit", "--json",
         "--stream", "device_state", "--config", str(config), "--kafka", kafka, *to],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    took = time.monotonic() - began
    lines = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(lines) == HOURS * 5
    assert sum(line["accepted"] for line in lines) == ENDS * PARTITIONS * 5
    return took


def make(kafka: str, postgres: str, config: Path, urls: list[str], chdb: str) -> None:
    """The ledgers of a month; hashes are those of nothing, which is as much work."""
    settings = {"bootstrap.servers": kafka}
    ensure(settings, {"month": PARTITIONS})
    topic_id = topic_ids(settings, ["month"])["month"]
    Book(settings)
    producer = Producer({**settings, "linger.ms": 5})
    for number in range(PARTITIONS):
        producer.produce(
            "headrace_ledger", orjson.dumps([str(ENDS), "0"]),
            orjson.dumps(["read", "month", topic_id, number]),
        )  # fmt: skip
        for hour in range(FIRST_HOUR, FIRST_HOUR + HOURS):
            producer.produce(
                "headrace_ledger", orjson.dumps([str(A_SPAN * SECONDS), "0"]),
                orjson.dumps(["total", "month", topic_id, number, hour]),
            )  # fmt: skip
    producer.flush()
    stream = load(config, environ={}, need_kafka=False).stream("device_state")
    for url in urls:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {url.rsplit('/', 1)[1]}")
        destination(url).migrate([stream])
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO headrace_offsets SELECT 'device_state', 'month', n, %s, %s "
                "FROM generate_series(0, %s) AS n", (topic_id, ENDS, PARTITIONS - 1),
            )  # fmt: skip
            connection.execute(
                "INSERT INTO headrace_ledger SELECT 'device_state', 'month', %s, n, "
                "to_timestamp(h * 3600::bigint), %s, 0, 0, 0, 0 "
                "FROM generate_series(0, %s) AS n, generate_series(%s, %s) AS h",
                (topic_id, A_SPAN * SECONDS, PARTITIONS - 1, FIRST_HOUR, FIRST_HOUR + HOURS - 1),
            )
    destination(chdb).migrate([stream])
    group = Consumer({**settings, "group.id": inserter_group(destination(chdb))})
    group.commit(
        offsets=[
            TopicPartition("month", n, ENDS, Intent.at_rest(topic_id).note())
            for n in range(PARTITIONS)
        ],
        asynchronous=False,
    )
    group.close()
    client = connect(chdb)
    client.command(
        "INSERT INTO headrace_ledger SELECT 'device_state', 'month', {id:String}, "
        "number % {n:Int32}, "
        "intDiv(number, {n:Int32}) * {each:Int64}, (intDiv(number, {n:Int32}) + 1) * {each:Int64}, "
        "[toDateTime64(intDiv(intDiv(number, {n:Int32}), 3600) * 3600 + {first:Int64} * 3600, 0)], "
        "[{each:UInt64}], [0], [0], [0] FROM numbers({spans:UInt64})",
        parameters={"id": topic_id, "n": PARTITIONS, "each": A_SPAN, "first": FIRST_HOUR,
                    "spans": HOURS * SECONDS * PARTITIONS},
    )  # fmt: skip
    client.close()


if __name__ == "__main__":
    main()
