"""Inserters are killed with SIGKILL at random moments of a load: every record lands exactly once.

The moments are drawn from a seed. A process is killed only once partitions were given to it and
there is something to do, so that no kill is wasted on a process that was still starting. Most of
the time goes by until Kafka gives a dead member's partitions away (6 s): so the short runs, one for
each destination, go on at the same time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psycopg
import pytest
from chdb_door import running_door
from running import Scene
from targets import ChdbTarget, ClickHouseTarget, PostgresTarget, Target

from headrace.stack import Endpoints, Stack


@dataclass(frozen=True)
class Load:
    """How much, and how often it is disturbed."""

    records: int
    kills: int
    seed: int = 3


LONG = Load(1_000_000, 20)
slow = (pytest.mark.slow, pytest.mark.timeout(1200))


def kill_during(scene: Scene, target: Target, load: Load, processes: int) -> None:
    """Publish `load.records`, portion by portion, and kill an inserter during each portion."""
    scene.migrate(target)
    random = Random(load.seed)
    portion = load.records // load.kills
    # Small batches: more moments between steps that a kill can hit.
    arguments = ("--max-rows", str(max(1000, portion // 20)))
    running = [scene.inserter(target, *arguments) for _ in range(processes)]
    for _ in range(load.kills):
        scene.load(portion)
        victim = random.randrange(processes)
        owner = running[victim]
        scene.until(lambda o=owner: o.says("given "), "partitions for the next victim")
        moment = time.monotonic() + random.uniform(0, 1.5)
        scene.until(lambda m=moment: time.monotonic() >= m, "the moment of the kill")
        assert owner.alive, owner.output
        owner.kill()
        running[victim] = scene.inserter(target, *arguments)
    for inserter in running:
        inserter.terminate()
    for inserter in running:
        # A signal in its first second finds a process that does not handle it yet.
        inserter.wait()
    scene.inserter(target, "--drain").finish(120)
    scene.exactly_once(target)
    assert scene.loaded == load.records


def in_postgres(endpoints: Endpoints, folder: Path, name: str, load: Load) -> None:
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    target = PostgresTarget(f"{endpoints.postgres.rsplit('/', 1)[0]}/{name}")
    with Scene.open(folder, endpoints.kafka, name) as scene:
        kill_during(scene, target, load, processes=2)
        # Nothing in the table could have refused a second copy.
        unique = "SELECT count(*) FROM pg_indexes WHERE tablename = '{}' AND indexdef ~ 'UNIQUE'"
        assert target.ask(unique.format(scene.table)) == (0,)
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def in_chdb(endpoints: Endpoints, folder: Path, name: str, load: Load) -> None:
    with Scene.open(folder, endpoints.kafka, name) as scene:
        kill_during(scene, ChdbTarget(folder / "chdb"), load, processes=1)


def in_clickhouse(endpoints: Endpoints, folder: Path, name: str, load: Load) -> None:
    with (
        running_door(folder / "chdb") as door,
        Scene.open(folder, endpoints.kafka, name) as scene,
    ):
        kill_during(scene, ClickHouseTarget(door.port), load, processes=2)


RUNS = {"postgres": in_postgres, "chdb": in_chdb, "clickhouse": in_clickhouse}
SHORT = {"postgres": Load(90_000, 3), "chdb": Load(40_000, 2), "clickhouse": Load(40_000, 2)}


@pytest.fixture(scope="module")
def short_runs(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """All of SHORT, side by side."""
    endpoints = stack.up(progress=False)
    with ThreadPoolExecutor(len(SHORT)) as pool:
        yield {
            kind: pool.submit(
                RUNS[kind], endpoints, tmp_path_factory.mktemp(kind),
                f"killed_{kind}_{os.getpid()}", load,
            )
            for kind, load in SHORT.items()
        }  # fmt: skip


@pytest.mark.parametrize("kind", SHORT)
def test_kills_neither_lose_nor_double(short_runs: dict[str, Future[None]], kind: str) -> None:
    short_runs[kind].result(200)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow) for kind in RUNS])
def test_twenty_kills_neither_lose_nor_double_any_of_a_million(
    endpoints: Endpoints, tmp_path: Path, unique: Callable[[str], str], kind: str
) -> None:
    RUNS[kind](endpoints, tmp_path, unique("killed"), LONG)
