"""Replays into ClickHouse and chDB: what is missing comes back, and what is there stays there once."""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inserter import Inserter
from running import Scene
from targets import ChdbTarget, ClickHouseTarget, Target

from consumers.destinations import destination, inserter_group
from headrace.stack import Endpoints

_RANGE = ["--from", "2025-06-16T00:02:00Z", "--until", "2025-06-16T00:06:00Z"]
_WITHIN = "timestamp >= '2025-06-16 00:02:00' AND timestamp < '2025-06-16 00:06:00'"
_SYNC = "SETTINGS mutations_sync = 2"


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """The topic device_state of this test."""
    with Scene.open(tmp_path, endpoints.kafka, unique("putback"), 2) as scene:
        yield scene


def replay(scene: Scene, target: Target, *args: str) -> Inserter:
    """Start a process; its records are older by a year than Kafka's timestamps of them."""
    argv = ["replay", "--to", target.url, "--stream", "device_state", *_RANGE,
            "--lateness", "9999d", "--config", str(scene.config), "--kafka", scene.kafka,
            *args]  # fmt: skip
    log = scene.folder / f"replay-{len(scene.inserters)}.log"
    scene.inserters.append(Inserter(scene._start(argv, log), log, argv))
    return scene.inserters[-1]


def landed(scene: Scene, target: Target) -> None:
    """All that is in Kafka, by the group of the table's own inserters."""
    scene.inserter(target, "--drain", "--group", inserter_group(destination(target.url))).finish()


def sums(target: Target, where: str = "true") -> tuple[int, ...]:
    """Rows, and a sum over all of their values, by which one copy is told from another set."""
    return target.ask(
        "SELECT count(), uniqExact(_partition, _offset), sum(cityHash64(*)) "
        f"FROM device_state WHERE {where}"
    )


def test_a_range_that_is_replayed_twice_leaves_one_copy(
    scene: Scene, clickhouse: ClickHouseTarget
) -> None:
    target = clickhouse
    scene.migrate(target)
    records = scene.records(30_000)
    # The same record twice is two rows.
    scene.publish([*records, *records[8000:8010]])
    landed(scene, target)
    before, outside = sums(target), sums(target, f"NOT ({_WITHIN})")
    # The newest rows as well: up to where all has landed, the table does not say any more.
    target.ask(f"ALTER TABLE device_state DELETE WHERE {_WITHIN} AND device_id LIKE '%7%' {_SYNC}")
    target.ask(f"ALTER TABLE device_state DELETE WHERE timestamp >= '2025-06-16 00:05:00' {_SYNC}")
    gone = before[0] - sums(target)[0]
    assert gone > 1000
    rest = sums(target, f"NOT ({_WITHIN})")
    assert rest != outside
    # These have not landed, and are no part of a replay.
    scene.publish([(key, value) for key, value in records[9000:9100]])
    there, most = sums(target, _WITHIN)[0], before[0] - outside[0]
    said = replay(scene, target, "--dry-run").finish()
    assert re.search(rf"^all +{most:,} +{there:,} +{most - there:,}$", said, re.MULTILINE), said
    assert sums(target, _WITHIN)[0] == there, "nothing is done"
    back = f": {most - there:,} rows put back, the others were there"
    assert back in replay(scene, target).finish()
    whole = sums(target, _WITHIN)
    assert whole[0] == whole[1] == before[0] - outside[0]
    assert whole[2] == (before[2] - outside[2]) % 2**64, "they are what they were"
    assert sums(target, f"NOT ({_WITHIN})") == rest, "what is not meant is as it was"
    assert ": 0 rows put back" in replay(scene, target).finish()
    assert sums(target, _WITHIN) == whole, "a second time changes nothing"


@pytest.mark.slow
def test_a_replay_and_an_inserter_leave_each_other_what_is_theirs(
    scene: Scene, clickhouse: ClickHouseTarget
) -> None:
    target = clickhouse
    scene.migrate(target)
    scene.load(20_000)
    said = replay(scene, target)
    assert said.wait() == 1
    assert "land it with `headrace insert`" in said.output, "nothing has landed yet"
    landed(scene, target)
    before = sums(target)
    scene.load(10_000)
    for _ in range(2):  # what was deleted again comes back again
        target.ask(f"ALTER TABLE device_state DELETE WHERE {_WITHIN} {_SYNC}")
        assert sums(target)[0] < before[0]
        replay(scene, target).finish()
        assert sums(target) == before
    landed(scene, target)
    assert sums(target)[:2] == (30_000, 30_000)


@pytest.mark.slow
def test_a_replay_that_is_killed_puts_back_all_and_nothing_twice(
    scene: Scene, clickhouse: ClickHouseTarget
) -> None:
    target = clickhouse
    scene.migrate(target)
    scene.load(30_000)
    landed(scene, target)
    before = sums(target)
    target.ask(f"ALTER TABLE device_state DELETE WHERE {_WITHIN} {_SYNC}")
    for share in (0.1, 0.35, 0.6):
        process = replay(scene, target, "--rate", "2500/s")
        least = max(20_000 + share * 10_000, target.rows("device_state"))
        scene.until(lambda n=least: target.rows("device_state") > n, "rows that are back")
        process.kill()
        assert target.rows("device_state") < before[0], "some are missing yet"
    # Another one would not know of it.
    other = replay(scene, target, "--until", "2025-06-16T00:05:00Z")
    assert other.wait() == 1
    assert "is not over" in other.output
    replay(scene, target).finish()
    assert sums(target) == before


@pytest.mark.slow
def test_to_chdb_and_never_beside_another_process(scene: Scene, chdb_path: Path) -> None:
    target = ChdbTarget(chdb_path)
    scene.migrate(target)
    scene.load(10_000)
    landed(scene, target)
    before = sums(target)
    target.ask(f"ALTER TABLE device_state DELETE WHERE {_WITHIN} {_SYNC}")
    assert sums(target)[0] < before[0]
    live = scene.inserter(target)
    scene.until(lambda: "given" in live.output, "the inserter")
    refused = replay(scene, target)
    assert refused.wait() == 1
    assert "chDB takes one process a directory" in refused.output
    live.terminate()
    live.finish()
    replay(scene, target).finish()
    assert sums(target) == before
