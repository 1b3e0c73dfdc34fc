"""An hour out of a day of events, replayed: exactly that hour, whatever is killed meanwhile.

REPLAY_EVENTS is how many the day has; `REPLAY_EVENTS=10000000` is the long form, for which 4 GB of
disk and half an hour are needed.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random

import pytest
from confluent_kafka import Producer
from replaying import Replaying

from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.units import DAY_US, HOUR_US

COUNT = int(os.environ.get("REPLAY_EVENTS", "200000"))
LATE_US = 600_000_000
# Deadlines, in seconds: 2,000 events a second is slow.
PATIENCE_S = 120 + COUNT / 24 / 2000


@pytest.fixture
def scene(replaying: Replaying) -> Replaying:
    return replaying


def key(n: int) -> str:
    return f"{n:08x}-5eed-4000-8000-00000000da11"


def time_of(begin_us: int, n: int) -> int:
    return begin_us + n * DAY_US // COUNT


def order() -> Iterator[int]:
    """The day's events as they were published: one in a hundred up to ten minutes off its place."""
    random = Random(COUNT)
    window = LATE_US * COUNT // DAY_US
    displaced = sorted((n + random.randint(-window, window), n) for n in range(50, COUNT, 100))
    regular = ((n, n) for n in range(COUNT) if n % 100 != 50)
    return (n for _, n in heapq.merge(regular, displaced))


def publish(scene: Replaying, begin_us: int) -> None:
    """All of them, each with its own time as Kafka's."""
    producer = Producer(
        {
            "bootstrap.servers": scene.kafka, "enable.idempotence": True, "linger.ms": 20,
            "compression.type": "lz4", "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failed.append(error),
        }
    )  # fmt: skip
    failed: list[object] = []
    event = RawEvent(content_type="application/json")
    for n in order():
        at_us = time_of(begin_us, n)
        event.event_id = key(n)
        event.received_at.FromMicroseconds(at_us)
        event.data = (
            f'{{"event":"checkout","userId":"user-{n % 9973}","properties":{{"step":{n}}}}}'
        )
        while True:
            try:
                producer.produce(
                    scene.topic, event.SerializeToString(), key(n), timestamp=at_us // 1000
                )
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(120) == 0
    assert not failed


def hour_of(begin_us: int, first: float) -> tuple[list[str], list[str]]:
    """--from and --until of an hour, and the keys of its events."""
    since = begin_us + round(first * HOUR_US)
    until = since + HOUR_US
    about = (since - begin_us) * COUNT // DAY_US
    near = range(max(0, about - 2), min(COUNT, about + COUNT // 24 + 4))
    texts = [
        datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="microseconds")
        for us in (since, until)
    ]
    wanted = [key(n) for n in near if since <= time_of(begin_us, n) < until]
    return ["--from", texts[0], "--until", texts[1]], wanted


@pytest.mark.slow
@pytest.mark.timeout(600 + COUNT // 2000)
def test_an_hour_of_a_day_is_replayed_exactly_though_it_is_killed_ten_times(
    scene: Replaying,
) -> None:
    begin_us = time.time_ns() // 1000 - DAY_US - 2 * HOUR_US
    publish(scene, begin_us)
    span, wanted = hour_of(begin_us, 11.3)
    assert len(wanted) in (COUNT // 24, COUNT // 24 + 1)
    said = scene.replay("--to", "mixpanel", *span, "--dry-run").finish(PATIENCE_S)
    total = f"{len(wanted):,}"
    assert re.search(rf"^all +{total} +0 +{total} +0$", said, re.MULTILINE), said

    # Slow enough for ten kills.
    command = ["--to", "mixpanel", *span, "--rate", f"{max(500, len(wanted) // 40)}/s"]
    before, random = 0, Random(10)
    for n in range(10):
        process = scene.replay(*command)
        least = max(before, len(wanted) * n // 12)
        scene.until(
            lambda m=least: scene.vendors.stored("mixpanel")["keys"] > m, "more events", PATIENCE_S
        )
        moment = time.monotonic() + random.uniform(0, 0.5)
        scene.until(lambda m=moment: time.monotonic() >= m, "the moment of the kill")
        assert process.alive, process.output
        process.kill()
        before = scene.vendors.stored("mixpanel")["keys"]
    assert before < len(wanted)
    said = scene.replay(*command).finish(PATIENCE_S)
    assert int(said.split("replayed ")[1].split()[0].replace(",", "")) < len(wanted)
    assert sorted(scene.vendors.keys("mixpanel")) == wanted

    # Another hour, of which the vendor loses 2 % with a yes.
    span, wanted = hour_of(begin_us, 20)
    scene.vendors.forget("mixpanel")
    scene.vendors.break_("mixpanel", drop=0.02, seed=3)
    scene.replay("--to", "mixpanel", *span).finish(PATIENCE_S)
    had = scene.vendors.keys("mixpanel")
    lost = sorted(set(wanted) - set(had))
    assert 0.01 * len(wanted) < len(lost) < 0.03 * len(wanted)
    export = scene.folder / "export.json"
    export.write_text("".join(f"{json.dumps({'properties': {'$insert_id': k}})}\n" for k in had))
    scene.vendors.mend("mixpanel")
    scene.vendors.forget("mixpanel")
    command = ["--to", "mixpanel", *span, "--only-missing"]
    said = scene.replay(*command).finish(PATIENCE_S)
    assert "replayed 0 records" in said, "receipts know nothing of it"
    command += ["--against", str(export)]
    said = scene.replay(*command, "--dry-run").finish(PATIENCE_S)
    total = f"{len(wanted):,}"
    assert re.search(rf"^all +{total} +{total} +{len(lost):,} +0$", said, re.MULTILINE), said
    scene.replay(*command).finish(PATIENCE_S)
    assert sorted(scene.vendors.keys("mixpanel")) == lost
