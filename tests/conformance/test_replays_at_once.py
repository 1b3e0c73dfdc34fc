"""Two replays into one table of PostgreSQL at the same time: each row is there once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fake_log import FakeKafka
from simulation import Simulation
from sinks_under_test import PostgresSubject, batch_of, encode

from consumers.batch import Batch, Partition, Span
from consumers.replay.postgres import PostgresReplay


@pytest.fixture(params=["read committed", "repeatable read", "serializable"])
def isolation(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """What sessions of this database have unless they say otherwise."""
    name: str = request.param
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE conformance SET default_transaction_isolation = '{name}'"
        )
        yield name
        connection.execute("ALTER DATABASE conformance RESET default_transaction_isolation")


def test_of_two_replays_that_overlap_the_second_sees_what_the_first_has_put_back(
    tmp_path: Path, postgres: str, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the first one's lock; what it looks at must not be from before."""
    subject = PostgresSubject(tmp_path, postgres)
    stream = subject.stream()
    kafka = FakeKafka(Simulation(1))
    kafka.create(stream.topic, 1)
    for n in range(5):
        kafka.produce(Partition(stream.topic, 0), encode(stream, f"{stream.topic}/0/{n}"))
    batch = batch_of(stream, kafka, [(0, 0, 5)])
    spans = {Partition(stream.topic, 0): Span(0, 5)}
    first, second = (PostgresReplay(postgres, stream, spans, kafka.join()) for _ in range(2))
    other = threading.Thread(target=second.write, args=(batch,))
    put_back = first._put_back

    def while_the_other_waits(connection: psycopg.Connection, batch: Batch) -> tuple[int, int]:
        found = put_back(connection, batch)
        other.start()
        with psycopg.connect(postgres, autocommit=True) as eye:
            while not eye.execute(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ).fetchall():
                assert other.is_alive()
        return found

    monkeypatch.setattr(first, "_put_back", while_the_other_waits)
    first.write(batch)
    other.join(30)
    assert subject.landed(stream) == sorted(f"{stream.topic}/0/{n}" for n in range(5))
    for closed in (first, second, subject):
        closed.close()
