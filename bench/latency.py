"""From `publish()` to a row that another connection sees: p50 and p99 at 2,000 events a second.

A publisher with default settings, `headrace insert` with default settings, PostgreSQL with its
index. Event time is the moment before `publish()`. The looker deletes what it sees, every 5 ms and
in a transaction of its own, so each row is timed once, by the snapshot that first holds it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
from _measure import ROUNDS, Row, report, stack

from headrace import Publisher
from headrace.stack import Endpoints
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState

RATE = 2_000
SECONDS = float(os.environ.get("SECONDS_EACH", "30"))
# The first seconds are those of a group that is still being joined.
WARM_UP_S = 5.0


def publish(kafka: str, seconds: float, warm_up_s: float) -> int:
    """Publish at an even rate; how many after the warm-up."""
    counted = 0
    began = time.time()
    with Publisher(kafka) as publisher:
        for number in range(int((warm_up_s + seconds) * RATE)):
            early = began + number / RATE - time.time()
            if early > 0:
                time.sleep(early)
            now = time.time()
            log = DeviceState(
                account_id="live" if now - began >= warm_up_s else "warm-up",
                device_id=f"device-{number % 5000}",
                status="connected",
            )
            log.timestamp.FromNanoseconds(int(now * 1e9))
            counted += log.account_id == "live"
            publisher.publish("device_state", log)
    return counted


def look(url: str, seen: list[float], done: threading.Event) -> None:
    """Take rows as they become visible; `seen` gets the seconds that each one took."""
    with psycopg.connect(url, autocommit=True) as connection:
        while not done.is_set():
            # clock_timestamp() would be later for each row: the snapshot is that of the statement.
            for account, took in connection.execute(
                "DELETE FROM device_state RETURNING account_id, "
                "extract(epoch FROM statement_timestamp() - timestamp)::float8"
            ).fetchall():
                if account == "live":
                    seen.append(took)
            done.wait(0.005)


def once(ends: Endpoints, folder: Path) -> list[float]:
    """Seconds for each event of one run."""
    argv = [sys.executable, "-c", "from headrace.cli import main; main()"]
    where = ["--kafka", ends.kafka, "--config", str(folder / "headrace.toml")]
    to = ["--to", ends.postgres, "--stream", "device_state"]
    subprocess.run([*argv, "migrate", *to, *where], check=True, stdout=subprocess.DEVNULL)
    with (folder / "insert.log").open("wb") as log:
        inserter = subprocess.Popen([*argv, "insert", *to, *where], stdout=log, stderr=log)
    seen: list[float] = []
    done = threading.Event()
    looker = threading.Thread(target=look, args=(ends.postgres, seen, done))
    looker.start()
    try:
        wanted = publish(ends.kafka, SECONDS, WARM_UP_S)
        deadline = time.monotonic() + 30
        while len(seen) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(seen) == wanted, f"{len(seen)} of {wanted} rows were seen"
    finally:
        done.set()
        looker.join()
        inserter.terminate()
        inserter.wait(20)
    return sorted(seen)


def main() -> None:
    """Measure, print, write."""
    runs = []
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temp:
        folder = Path(temp)
        (folder / "headrace.toml").write_text("[streams.device_state]\n")
        for number in range(min(ROUNDS, 3)):
            runs.append(once(ends, folder))
            print(f"  round {number + 1}: {len(runs[-1]):,} events", file=sys.stderr)
    rows = []
    for name, share, target in (("p50", 0.5, None), ("p99", 0.99, 2000.0)):
        samples = [1000 * run[int(len(run) * share)] for run in runs]
        rows.append(
            Row(
                name=f"{name} at {RATE:,} events/s",
                value=statistics.median(samples),
                limit=None,
                limit_name="",
                ratio=None,
                target=target,
                unit="ms",
                samples=samples,
                ratios=[],
                lower_is_better=True,
            )
        )
    report("latency", rows)


if __name__ == "__main__":
    main()
