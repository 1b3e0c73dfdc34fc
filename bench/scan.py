"""What reading a range for a replay costs, beside bare consume() of the same offsets.

A topic of raw events with 80 minutes in it, 1 % of them published up to ten minutes late; the hour
in the middle is replayed to a sink that throws it away. Reading it takes all of the topic. The runs
take turns, each in a process of its own:

    bare consume     consume() of the offsets, with the settings found best          (limit)
    by time          a job's run loop: a group, the range, Arrow, event time, commits
    by name          the same, and only events of a name that one in a hundred has

Records read a second, from the first one to the last commit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from _measure import compare, in_turn, report, stack
from _runs import BEST, Clock
from confluent_kafka import Consumer, Producer, TopicPartition

from consumers.batch import Batch
from consumers.fetch import calm_gc
from consumers.forward.live import limits_of
from consumers.forward.settings import from_tables
from consumers.group import GroupSource
from consumers.replay.job import Job
from consumers.replay.ranges import find
from consumers.replay.run import runner, selection_of
from consumers.replay.standing import Standing
from consumers.replay.target import Target
from consumers.sinks import Log
from consumers.source import Runs
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.streams import BUILT_IN
from ingest.topics import ensure, topic_ids
from ingest.units import MINUTE_US

COUNT = 2_000_000
STREAM = BUILT_IN["raw_events"]
# A vendor that states no rate: its batches are the largest.
TO = "ga4"
RARE = "purchase product"
SPAN_US = 80 * MINUTE_US
LATENESS_S = 600.0


def publish(kafka: str, begin_us: int) -> None:
    """The events, published at even times."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "compression.type": "lz4"})
    for n in range(COUNT):
        published_us = begin_us + n * SPAN_US // COUNT
        late_us = n % 1009 * MINUTE_US // 101 if n % 100 == 1 else 0
        taken_us = published_us - late_us
        data = {
            "event": "page_seen" if n % 100 else RARE,
            "deviceId": f"device-{n % 20_000:06}",
            "timestamp": taken_us / 1e6,
            "properties": {
                "path": f"/shop/{n % 2000}", "title": f"Product {n % 2000}", "step": n % 7,
                "referrer": "https://example.com/",
            },
        }  # fmt: skip
        raw = RawEvent(event_id=str(uuid.uuid4()), source="web", content_type="application/json",
                       data=json.dumps(data))  # fmt: skip
        raw.received_at.FromMicroseconds(taken_us)
        producer.produce(STREAM.topic, raw.SerializeToString(), raw.event_id.encode(),
                         timestamp=published_us // 1000)  # fmt: skip
        while len(producer) > 50_000:
            producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0


def job_of(kafka: str, begin_us: int, event: str | None) -> Job:
    """The hour in the middle."""
    settings = {"bootstrap.servers": kafka}
    begin_us, end_us = begin_us + 10 * MINUTE_US, begin_us + 70 * MINUTE_US
    spans = find(settings, STREAM.topic, begin_us, end_us, LATENESS_S).spans
    topic_id = topic_ids(settings, [STREAM.topic])[STREAM.topic]
    return Job(
        uuid.uuid4().hex, TO, STREAM.name, topic_id, begin_us, end_us, LATENESS_S, spans,
        time.time_ns() // 1000, event,
    )  # fmt: skip


class Discard:
    """A sink that commits, and counts what it was given."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock

    def resume(self, known: Any) -> dict[Any, int]:
        return {p: k.earliest if k.committed is None else k.committed for p, k in known.items()}

    def write(self, batch: Batch) -> None:
        self._log.commit({partition: span.end for partition, span in batch.spans.items()})
        self._clock.last = time.monotonic()

    def close(self) -> None: ...


# -- runs, each in a process of its own ------------------------------------------------------------


def bare(kafka: str, begin_us: str) -> dict[str, float]:
    """Until there were as many as the range has: a partition's records beyond it are none here."""
    job = job_of(kafka, int(begin_us), None)
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "bench", "enable.auto.commit": False, **BEST}
    )
    consumer.assign([TopicPartition(STREAM.topic, n, s.start) for n, s in job.spans.items()])
    got, first = 0, 0.0
    while got < job.offsets:
        messages = consumer.consume(500, 1.0)
        first = first or time.monotonic()
        got += len(messages)
    took = time.monotonic() - first
    consumer.close()
    return {"rate": got / took, "meant": 0}


def scan(kafka: str, begin_us: str, event: str = "") -> dict[str, float]:
    """As `headrace replay` sets it up."""
    settings = {"bootstrap.servers": kafka}
    job = job_of(kafka, int(begin_us), event or None)
    clock, meant = Clock(), 0
    poll = GroupSource.poll

    def timed(source: GroupSource, n: int, timeout_s: float) -> Runs:
        runs = poll(source, n, timeout_s)
        if runs and not clock.first:
            clock.first = time.monotonic()
        return runs

    GroupSource.poll = timed  # type: ignore[method-assign, assignment] # to see when the first record comes

    def count(rows: int) -> None:
        nonlocal meant
        meant += rows

    vendor = from_tables({TO: {"api_secret_env": "KEY", "measurement_id": "G-1"}}, {"KEY": "k"})
    loop = runner(
        settings, STREAM, job, selection_of(settings, BUILT_IN, job),
        Target(TO, limits_of(vendor[TO].vendor()), lambda log: Discard(log, clock)),
        count=count, look=Standing(job, STREAM, dict.fromkeys(job.spans_of(STREAM.topic), 0)),
    )  # fmt: skip
    calm_gc()
    loop.run(drain=True)
    return {"rate": clock.rate(job.offsets), "meant": meant}


def run(*argv: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *argv], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print, write."""
    begin_us = time.time_ns() // 1000 - 3 * SPAN_US
    with stack() as ends:
        ensure({"bootstrap.servers": ends.kafka}, {STREAM.topic: 4})
        publish(ends.kafka, begin_us)

        def scanned(meant: range, *event: str) -> float:
            found = run("scan", ends.kafka, str(begin_us), *event)
            assert found["meant"] in meant, found
            return found["rate"]

        hour = COUNT * 60 // 80
        samples = in_turn(
            {
                "bare consume": lambda: run("bare", ends.kafka, str(begin_us))["rate"],
                "by time": lambda: scanned(range(hour * 99 // 100, hour * 101 // 100)),
                "by name": lambda: scanned(range(hour // 100, hour // 100 + 1), RARE),
            }
        )
    report(
        "scan",
        [
            compare(f"scan {what}", samples, what, "bare consume", target=0.7, unit="records/s")
            for what in ("by time", "by name")
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, *rest = sys.argv[1:]
        print(json.dumps({"scan": scan, "bare": bare}[kind](*rest)))
    else:
        main()
