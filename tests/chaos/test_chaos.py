"""Chaos over the whole path, short; `make chaos` is the long run. And: whether it can fail."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from chaos.checker import Ledger, check
from chaos.run import Outcome, play, shrink
from chaos.schedule import KINDS, Schedule, draw
from chaos.world import World

from headrace.stack import Stack


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World.open(stack, tmp_path_factory.mktemp("world")) as world:
        yield world


def short(seed: int) -> Schedule:
    """Two seconds and five faults."""
    return draw(seed, seconds=2.0, faults=5, twins=False)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_cut_and_broken_all_of_it_arrives_once(
    world: World, seed: int, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    outcome = play(world, short(seed), tmp_path / "run", unique("chaos"))
    assert not outcome.problems, f"{outcome.schedule}\n" + "\n".join(outcome.problems)
    assert outcome.acked > 0 and outcome.faults


def test_what_is_missing_double_or_made_up_is_found_and_named(
    world: World, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    name = unique("chaos")
    outcome = play(world, short(3), tmp_path / "run", name)
    assert not outcome.problems, f"{outcome.schedule}\n" + "\n".join(outcome.problems)
    ledger = Ledger.read(tmp_path / "run" / "ledger")
    gone, twice, *_ = sorted(ledger.acked - ledger.poison)
    with psycopg.connect(world.postgres) as connection:
        connection.execute(f"DELETE FROM {name} WHERE event_id = %s", [gone])
        connection.execute(f"INSERT INTO {name} SELECT * FROM {name} WHERE event_id = %s", [twice])
    for query in (
        f"INSERT INTO {name} SELECT * FROM {name} WHERE event_id = '{twice}'",
        f"ALTER TABLE {name} DELETE WHERE event_id = '{gone}' SETTINGS mutations_sync = 1",
    ):
        url = f"http://127.0.0.1:{world.clickhouse.port}/?user=default"
        urllib.request.urlopen(url, query.encode(), timeout=30).close()
    world.vendors.forget("webhook")
    first = min(ledger.order.values(), key=len)
    first.reverse()
    ledger.acked.add("promised")
    found = check(ledger, outcome.places)
    assert f"postgres: 2 lost: {gone}, promised" in found.problems
    assert f"postgres: 1 doubled: {twice}" in found.problems
    assert f"clickhouse: 2 lost: {gone}, promised" in found.problems
    assert f"clickhouse: 1 doubled: {twice}" in found.problems
    assert "kafka: 1 lost: promised" in found.problems
    assert found.figures["kafka"]["reordered"] > 0
    assert found.figures["webhook"]["lost"] == outcome.verdict.figures["webhook"]["there"]
    ledger.sent.discard(gone)
    assert f"kafka: 1 invented: {gone}" in check(ledger, outcome.places).problems


def test_the_checker_has_no_code_of_the_product() -> None:
    code = "import json, sys; import chaos.checker; print(json.dumps(list(sys.modules)))"
    tests = Path(__file__).parents[1]
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True
    ).stdout
    roots = {name.partition(".")[0] for name in json.loads(said)}
    assert "chaos" in roots
    assert not roots & {"headrace", "ingest", "consumers"}


def test_a_seed_is_a_schedule_and_all_kinds_of_faults_are_drawn() -> None:
    assert draw(7) == draw(7) != draw(8)
    assert {f.kind for seed in range(50) for f in draw(seed).faults} == set(KINDS)


def test_a_failure_shrinks_to_the_faults_that_it_needs() -> None:
    plays = []

    def again(schedule: Schedule) -> Outcome:
        plays.append(schedule)
        outcome = Outcome(schedule)
        if {2, 9} <= {fault.number for fault in schedule.faults}:
            outcome.problems.append("lost")
        return outcome

    least = shrink(again, again(draw(5)), most=40)
    assert [fault.number for fault in least.schedule.faults] == [2, 9]
    assert least.schedule == replace(draw(5), faults=least.schedule.faults)
    assert len(plays) <= 41
