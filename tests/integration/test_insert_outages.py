"""Databases and Kafka go away and come back in the middle of a load: inserters go on by themselves.

Nobody restarts a process here: each test also asserts that its inserter is still the same one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chdb_door import Door
from inserter import Inserter
from running import Scene
from targets import ClickHouseTarget, PostgresTarget, Target
from tcp_proxy import Proxy

from headrace.stack import Stack

KINDS = ["postgres", pytest.param("clickhouse", marks=pytest.mark.slow)]
SMALL = ("--max-rows", "1000")


def end(scene: Scene, target: Target, inserter: Inserter) -> None:
    """All that was loaded has landed through this one process, once."""
    scene.landed(target, scene.loaded)
    assert inserter.alive, inserter.output
    inserter.terminate()
    inserter.finish()
    scene.exactly_once(target)
    assert sum(scene.committed().values()) == scene.loaded


@pytest.fixture
def proxy(postgres: PostgresTarget) -> Iterator[Proxy]:
    """Between inserters and PostgreSQL: `postgres.through` goes here."""
    address = postgres.database.split("@")[1].split("/")[0]
    host, port = address.split(":")
    with Proxy(host, int(port)) as proxy:
        postgres.through = postgres.database.replace(address, f"127.0.0.1:{proxy.port}")
        yield proxy


# -- PostgreSQL ------------------------------------------------------------------------------------


def test_a_crash_of_postgres_during_a_load_costs_and_doubles_nothing(
    scene: Scene, postgres: PostgresTarget, stack: Stack
) -> None:
    scene.migrate(postgres)
    inserter = scene.inserter(postgres, *SMALL)
    with scene.flowing(10_000):
        for _ in range(2):
            scene.landed(postgres, postgres.rows(scene.table) + 1)
            stack.postgres.stop("immediate")
            stack.postgres.start()
        scene.landed(postgres, postgres.rows(scene.table) + 1)
    end(scene, postgres, inserter)


def test_while_postgres_is_away_an_inserter_waits_in_its_group_and_does_not_grow(
    scene: Scene, postgres: PostgresTarget, proxy: Proxy
) -> None:
    scene.migrate(postgres)
    inserter = scene.inserter(postgres, *SMALL, metrics=True)
    scene.load(1_000)
    scene.landed(postgres, scene.loaded)
    scene.until(lambda: inserter.ready() == 200, "a ready inserter")
    members = scene.members()
    assert len(members) == 1

    def is_member() -> bool:
        """Under whatever id: behind a late answer of Kafka's it joins anew."""
        return list(scene.members().values()) == list(members.values())

    proxy.refuse()
    proxy.cut_all()
    # 60 MB: more than its batches and librdkafka's queue of 32 MB hold.
    scene.load(30_000, padding=2_000)
    scene.until(lambda: inserter.ready() == 503, "/readyz that says so")
    scene.until(lambda: inserter.says("waits, trying again"), "a line in the log")
    # More than the patience of a full lane; from then on its partitions are paused.
    full = inserter.full(still_s=5)
    for _ in range(3):
        scene.load(10_000, padding=2_000)
        scene.until(is_member, "its membership")
        assert inserter.ready() == 503
    # Of 60 MB more it takes nothing. What the allocator may still do is less than one queue.
    assert inserter.full(still_s=1) < full + 16 * 2**20
    proxy.refuse(False)
    scene.until(lambda: inserter.ready() == 200, "/readyz that is well again")
    scene.until(lambda: inserter.says("goes on after"), "a line in the log")
    scene.until(is_member, "its membership")
    end(scene, postgres, inserter)


def test_a_connection_that_breaks_neither_loses_nor_doubles(
    scene: Scene, postgres: PostgresTarget, proxy: Proxy
) -> None:
    """In the middle of a COPY, before a COMMIT, and between a COMMIT and its answer."""
    scene.migrate(postgres)
    inserter = scene.inserter(postgres, *SMALL)
    with scene.flowing(10_000):
        scene.landed(postgres, 1)
        for _ in range(3):
            for break_it in (
                lambda: proxy.after_bytes(20_000, "up"),
                lambda: proxy.cut_before(b"COMMIT"),
                lambda: proxy.cut_after(b"COMMIT"),
            ):
                before = proxy.cuts
                break_it()
                scene.until(lambda n=before: proxy.cuts > n, "a connection that breaks")
    end(scene, postgres, inserter)


# -- ClickHouse ------------------------------------------------------------------------------------


def test_lost_answers_and_outages_of_clickhouse_neither_lose_nor_double(
    scene: Scene, door: Door, clickhouse: ClickHouseTarget
) -> None:
    scene.migrate(clickhouse)
    inserter = scene.inserter(clickhouse, metrics=True)
    with scene.flowing(5_000):
        scene.landed(clickhouse, 1)
        for where in ("after", "before", "error", "after"):
            retries = inserter.metric("headrace_retries_total")
            # Twice: the client itself tries once more.
            door.cut(where, match="INSERT INTO", times=2)
            scene.until(
                lambda n=retries: inserter.metric("headrace_retries_total") > n,
                f"an attempt that failed ({where})",
            )
        door.kill()
        scene.until(lambda: inserter.ready() == 503, "/readyz that says so")
        door.start()
        scene.until(lambda: inserter.ready() == 200, "/readyz that is well again")
    end(scene, clickhouse, inserter)


# -- Kafka -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_of_kafka_during_a_load_costs_and_doubles_nothing(
    scene: Scene, stack: Stack, request: pytest.FixtureRequest, kind: str
) -> None:
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    inserter = scene.inserter(target, "--max-rows", "2000")
    with scene.flowing(5_000):
        scene.landed(target, 1)
        stack.kafka.kill()
        stack.kafka.start()
        # What is published after the crash.
        loaded = scene.loaded
        scene.until(lambda: scene.loaded > loaded, "a publisher that goes on")
    scene.landed(target, scene.loaded)
    end(scene, target, inserter)
