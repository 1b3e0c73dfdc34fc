"""What an acknowledgement at the edge costs: a collector beside an empty server and bare commits.

All take turns, and all send the same events with an id each, over HTTP/1.1 with keep-alive:

    single      one event a request, 64 connections       against  the same server, same settings,
                                                                   answering 202 without any work
    half load   half as many, at even times                        p50 and p99 of the answers
    batches     100 events a request, 16 connections      against  BEGIN, executemany, COMMIT of the
                                                                   same records, 100 at a time, by
                                                                   the same SQLite, WAL and FULL
    relayed     single, with Kafka on the same machine and the relay at work

Kafka is away but for the last: these are what accepting costs. An answer is sent behind an fsync.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _load import requests
from _measure import HERE, ROUNDS, Row, bare_commits, compare, in_turn, report, stack

from ingest.collector import sparrow
from ingest.collector.judge import Caller, Limits
from ingest.spool import Record
from ingest.topics import ensure

CONNECTIONS = 64
BATCH_CONNECTIONS = 16
EACH = 100
SECONDS = float(os.environ.get("SECONDS", "3"))
WARM_S = 1.0
COMMITTED = 100_000
PATIENCE_S = 30.0
# Nobody listens there.
NOWHERE = "127.0.0.1:9"

# The collector's own server, with an application that does nothing.
EMPTY = """
import sys
from pathlib import Path
from ingest.collector.server import serve
from ingest.collector.settings import CollectSettings

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"28")]
START = {"type": "http.response.start", "status": 202, "headers": HEADERS}
BODY = {"type": "http.response.body", "body": b'{"accepted":1,"refused":[]}\\n'}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send(START)
    await send(BODY)

serve(CollectSettings(spool=Path(sys.argv[1])), ("127.0.0.1", int(sys.argv[2])), lambda _: app)
"""
COLLECT = "from headrace.cli import main; main()"


@contextmanager
def server(program: str, port: int, folder: str, *argv: str) -> Iterator[None]:
    """A server in a process of its own; listening inside the block."""
    with Path(folder, "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *argv], stdout=log, stderr=log, cwd=folder
        )
    try:
        give_up = time.monotonic() + PATIENCE_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"bench: no server: {Path(folder, 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def empty() -> Iterator[int]:
    """The empty server's port."""
    port = _free_port()
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        server(EMPTY, port, folder, f"{folder}/spool", str(port)),
    ):
        yield port


@contextmanager
def collector(kafka: str = NOWHERE, program: str = COLLECT) -> Iterator[int]:
    """A collector's port; its spool is new."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        # At the end nobody waits for Kafka.
        Path(folder, "headrace.toml").write_text("[collect]\nstop_timeout_s = 0.1\n")
        argv = (
            "collect", "--spool", f"{folder}/spool", "--listen", f"127.0.0.1:{port}",
            "--kafka", kafka,
        )  # fmt: skip
        with server(program, port, folder, *argv):
            yield port


def load(
    port: int,
    *,
    connections: int,
    each: int = 1,
    rate: float = 0,
    seconds: float = SECONDS,
    warm_s: float = WARM_S,
) -> dict[str, float]:
    """One run of bench/_load.py."""
    done = subprocess.run(
        [sys.executable, str(HERE / "_load.py"), "--port", str(port), "--connections",
         str(connections), "--each", str(each), "--rate", str(rate), "--seconds", str(seconds),
         "--warm", str(warm_s)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _records() -> list[Record]:
    """What a collector makes of the load's events."""
    make = requests(time.time_ns(), EACH)
    records: list[Record] = []
    while len(records) < COMMITTED:
        body = make().partition(b"\r\n\r\n")[2]
        judged = sparrow.judge(
            body, "application/json", Caller("local"), Limits(), time.time_ns() // 1000
        )
        assert len(judged.records) == EACH
        records += judged.records
    return records


def _fsync_ms() -> tuple[float, float]:
    """p50 and p99 of writing 4 KiB and fdatasync, where the spools are."""
    times = []
    with tempfile.TemporaryFile(prefix="headrace-bench-") as file:
        for _ in range(300):
            begun = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return times[150], times[297]


class Times:
    """p50 and p99 of the answers of each round, by run."""

    def __init__(self) -> None:
        self.p50: dict[str, list[float]] = {}
        self.p99: dict[str, list[float]] = {}

    def keep(self, name: str, found: dict[str, float]) -> float:
        """Events a second."""
        self.p50.setdefault(name, []).append(found["p50_ms"])
        self.p99.setdefault(name, []).append(found["p99_ms"])
        return found["events_per_s"]

    def row(self, name: str, what: str, *, target: float | None = None) -> Row:
        """p99 as a row."""
        samples = self.p99[name]
        return Row(what, statistics.median(samples), None, "", None, target, "ms", samples, [],
                   lower_is_better=True)  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    records = _records()
    times = Times()
    with stack() as ends:
        ensure({"bootstrap.servers": ends.kafka}, {"raw_events": 4})

        def run_empty() -> float:
            with empty() as port:
                return times.keep("empty", load(port, connections=CONNECTIONS))

        def run_single() -> float:
            with collector() as port:
                found = times.keep("single", load(port, connections=CONNECTIONS))
                times.keep("half", load(port, connections=CONNECTIONS, rate=found / 2))
            return found

        def run_batches() -> float:
            with collector() as port:
                return times.keep("batches", load(port, connections=BATCH_CONNECTIONS, each=EACH))

        def run_relayed() -> float:
            with collector(ends.kafka) as port:
                return times.keep("relayed", load(port, connections=CONNECTIONS))

        samples = in_turn(
            {
                "empty server": run_empty,
                "single events": run_single,
                "bare commits of 100": lambda: bare_commits(records, EACH),
                "batches of 100": run_batches,
                "with the relay at work": run_relayed,
            }
        )
    fsync = _fsync_ms()
    rows: list[Row] = [
        compare("single events, 64 connections", samples, "single events", "empty server",
                target=0.5, unit="events/s"),
        compare("batches of 100, 16 connections", samples, "batches of 100", "bare commits of 100",
                target=0.4, unit="events/s"),
        compare("single events, with the relay at work", samples, "with the relay at work",
                "single events", target=None, unit="events/s"),
        times.row("half", "p99 of single events at half load", target=10),
        times.row("single", "p99 of single events at full load"),
        times.row("batches", "p99 of batches at full load"),
        times.row("empty", "p99 of the empty server"),
    ]  # fmt: skip
    notes: dict[str, Any] = {
        "p50_ms": {name: statistics.median(found) for name, found in times.p50.items()},
        "fdatasync_of_4_KiB_ms": {"p50": fsync[0], "p99": fsync[1]},
        "rounds": ROUNDS,
    }
    report("edge", rows, notes)


if __name__ == "__main__":
    main()
