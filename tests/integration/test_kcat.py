"""kcat, which many people look at a topic with, reads what a collector sends: `raw_events`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from collecting import event_collector
from confluent_kafka import Producer

from headrace.stack import Endpoints

COUNT = 250


def test_kcat_reads_each_event_once_and_none_that_was_not_committed(
    tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    kcat = shutil.which("kcat")
    if kcat is None:
        pytest.skip("there is no kcat")
    topic = unique("raw_events")
    with event_collector(
        tmp_path, endpoints.kafka, topic=topic, origin="https://example.com"
    ) as sources:
        source = next(sources)
        for first in range(0, COUNT, 50):
            events = [{"event": "n", "deviceId": f"d{n}"} for n in range(first, first + 50)]
            answer = source.collector.client.post(
                source.url + "/v1/events", json=events, auth=(source.key, "")
            )
            assert answer.status_code == 202
        source.collector.until_sent()
    given_up(endpoints.kafka, topic)
    done = subprocess.run(
        [kcat, "-C", "-b", endpoints.kafka, "-t", topic, "-o", "beginning", "-e", "-q",
         "-X", "isolation.level=read_committed", "-f", "%k\\n"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(f"d{n}" for n in range(COUNT))


def given_up(kafka: str, topic: str) -> None:
    """Records in the topic of a transaction that was aborted."""
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(10):
        producer.produce(topic, b"x", f"aborted{number}")
    assert producer.flush(30) == 0
    producer.abort_transaction(30)
