"""`headrace trace suggest` on a real Kafka: events of the time that was asked for, all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import Producer

from consumers.errors import Unavailable
from consumers.trace.scan import scan
from headrace.stack import Endpoints
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.topics import ensure
from ingest.units import SECOND_US


def produce(kafka: str, topic: str, ages_s: dict[str, float], now_us: int) -> None:
    """Events by name, each taken so long ago; they reach Kafka now, out of order."""
    producer = Producer({"bootstrap.servers": kafka, "log_level": 0})
    for name, age_s in ages_s.items():
        raw = RawEvent(event_id=name, data=json.dumps({"event": name, "properties": {"p": 1}}))
        raw.received_at.FromMicroseconds(now_us - int(age_s * SECOND_US))
        producer.produce(topic, raw.SerializeToString(), name)
    producer.produce(topic, b"\xff", "rubbish")
    assert producer.flush(30) == 0


def test_a_scan_finds_the_events_of_the_time_and_no_others(
    endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    kafka, topic = {"bootstrap.servers": endpoints.kafka}, unique("raw")
    ensure(kafka, {topic: 3})
    now_us = time.time_ns() // 1000
    ages_s = {f"e{i}": float(i) for i in range(100)}
    produce(endpoints.kafka, topic, ages_s, now_us)
    begin_us, end_us = now_us - 50 * SECOND_US, now_us - 10 * SECOND_US
    found = sorted(raw.event_id for raw in scan(kafka, topic, begin_us, end_us))
    assert found == sorted(f"e{i}" for i in range(11, 51))
    hour_us = 3600 * SECOND_US
    assert list(scan(kafka, topic, now_us + hour_us, now_us + 2 * hour_us)) == []


def test_a_scan_of_an_empty_topic_ends(endpoints: Endpoints, unique: Callable[[str], str]) -> None:
    kafka, topic = {"bootstrap.servers": endpoints.kafka}, unique("raw")
    ensure(kafka, {topic: 2})
    deadline = time.monotonic() + 30
    while True:
        try:
            found = list(scan(kafka, topic, 0, time.time_ns() // 1000))
            break
        except Unavailable:
            # A topic that has just been made may have no leader yet.
            assert time.monotonic() < deadline
    assert found == []


def test_the_command_proposes_what_it_found(
    endpoints: Endpoints, unique: Callable[[str], str], tmp_path: Path
) -> None:
    topic = unique("raw")
    ensure({"bootstrap.servers": endpoints.kafka}, {topic: 2})
    produce(endpoints.kafka, topic, {"seen": 5.0, "long ago": 7200.0}, time.time_ns() // 1000)
    (tmp_path / "headrace.toml").write_text(
        f'[streams.raw_events]\ntopic = "{topic}"\n', encoding="utf-8"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    done = subprocess.run(
        [sys.executable, "-c", "from headrace.cli import main; main()",
         "trace", "suggest", "--from", "-1h", "--kafka", endpoints.kafka],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout) == {
        "trace": {"events": {"seen": {"properties": {"p": "integer"}}}}
    }
