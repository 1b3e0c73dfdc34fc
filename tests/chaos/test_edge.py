"""The edge under kills and without Kafka; `make edge-chaos` is the same, long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.edge import TOPIC, Collector, Ledger, away, check, storm

from headrace.stack import Endpoints, Stack
from ingest.topics import ensure


@pytest.fixture
def collector(endpoints: Endpoints, tmp_path: Path) -> Iterator[Collector]:
    ensure({"bootstrap.servers": endpoints.kafka}, {TOPIC: 4})
    found = Collector(endpoints.kafka, tmp_path)
    yield found
    found.stop()


def test_every_acknowledged_event_is_in_the_topic_once_whoever_is_killed(
    stack: Stack, collector: Collector, unique: Callable[[str], str], tmp_path: Path
) -> None:
    ledger, run = Ledger(tmp_path / "acknowledged"), unique("storm")
    before = collector.audit()
    chance = random.Random(run)
    figures = asyncio.run(
        storm(stack, collector, ledger, run=run, kills=3, kafka_kills=1, chance=chance)
    )
    # Kills hit requests under way: otherwise this shows nothing of retries.
    assert figures.retries > 0
    assert check(collector.kafka, ledger, run) == figures.acknowledged
    assert collector.audit() - before == figures.acknowledged


def test_kafka_away_nothing_is_refused_memory_is_flat_and_all_of_it_arrives(
    stack: Stack, collector: Collector, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """How fast the gap closes is asked by `make edge-chaos`, on a machine of its own."""
    seconds, per_second = 6, 2000
    ledger, run = Ledger(tmp_path / "acknowledged"), unique("away")
    figures = asyncio.run(
        away(stack, collector, ledger, run=run, seconds=seconds, per_second=per_second)
    )
    assert figures.backlog > seconds * per_second / 2
    assert figures.memory_late - figures.memory_early < 16 * 1024**2
    assert check(collector.kafka, ledger, run) == figures.acknowledged
