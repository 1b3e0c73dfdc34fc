"""Replays into PostgreSQL: what is missing comes back, and what is there stays there once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from inserter import Inserter
from running import Scene
from targets import PostgresTarget

from headrace.stack import Endpoints

_RANGE = ["--from", "2025-06-16T00:02:00Z", "--until", "2025-06-16T00:06:00Z"]
_WITHIN = "timestamp >= '2025-06-16T00:02Z' AND timestamp < '2025-06-16T00:06Z'"


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """The topic device_state of this test."""
    with Scene.open(tmp_path, endpoints.kafka, unique("putback"), 2) as scene:
        yield scene


def replay(scene: Scene, target: PostgresTarget, *args: str) -> Inserter:
    """Start a process; its records are older by a year than Kafka's timestamps of them."""
    argv = ["replay", "--to", target.url, "--stream", "device_state", *_RANGE,
            "--lateness", "9999d", "--config", str(scene.config), "--kafka", scene.kafka,
            *args]  # fmt: skip
    log = scene.folder / f"replay-{len(scene.inserters)}.log"
    scene.inserters.append(Inserter(scene._start(argv, log), log, argv))
    return scene.inserters[-1]


def change(target: PostgresTarget, statement: str) -> int:
    """Run it; how many rows it was about."""
    with psycopg.connect(target.database) as connection:
        return connection.execute(statement).rowcount  # type: ignore[call-overload, no-any-return]


def differs(target: PostgresTarget, where: str = "true") -> tuple[int, ...]:
    """Rows that are there too seldom, and too often, compared with the table `before`."""
    two = [f"SELECT * FROM {t} WHERE {where}" for t in ("before", "device_state")]
    return target.ask(
        f"SELECT (SELECT count(*) FROM ({two[0]} EXCEPT ALL {two[1]}) AS a), "
        f"(SELECT count(*) FROM ({two[1]} EXCEPT ALL {two[0]}) AS b)"
    )


@pytest.mark.parametrize(
    "dedupe",
    [(), pytest.param(("device_id", "account_id", "timestamp"), marks=pytest.mark.slow)],
)
def test_a_range_that_is_replayed_twice_leaves_one_copy(
    scene: Scene, database: str, dedupe: tuple[str, ...]
) -> None:
    scene.configure(stream={"dedupe": list(dedupe)})
    target = PostgresTarget(database)
    scene.migrate(target)
    said = replay(scene, target)
    assert said.wait() == 1
    assert "land it with `headrace insert`" in said.output, "nothing has landed yet"
    records = scene.records(30_000)
    # The same record twice is two rows, unless the stream says otherwise.
    scene.publish([*records, *records[8000:8010], *records[29_000:29_010]])
    scene.inserter(target, "--drain").finish()
    assert target.rows("device_state") == 30_020 - 20 * bool(dedupe)
    change(target, "CREATE TABLE before AS SELECT * FROM device_state")
    gone = change(target, f"DELETE FROM device_state WHERE {_WITHIN} AND device_id LIKE '%7%'")
    change(target, "DELETE FROM device_state WHERE timestamp >= '2025-06-16T00:09Z'")
    outside = differs(target, f"NOT ({_WITHIN})")
    assert gone > 500
    assert outside[0] > 500
    # These have not landed, and are no part of a replay.
    scene.publish([(key, value) for key, value in records[9000:9100]])
    missing = differs(target, _WITHIN)[0]
    said = replay(scene, target, "--dry-run").finish()
    assert re.search(rf"^all +[\d,]+ +[\d,]+ +{missing:,}$", said, re.MULTILINE), said
    assert differs(target, _WITHIN)[0] == missing, "nothing is done"
    back = f": {missing:,} rows put back, the others were there"
    assert back in replay(scene, target).finish()
    assert differs(target, _WITHIN) == (0, 0)
    assert differs(target, f"NOT ({_WITHIN})") == outside, "what is not meant is as it was"
    assert ": 0 rows put back" in replay(scene, target).finish()
    assert differs(target, _WITHIN) == (0, 0), "a second time changes nothing"
    rows = target.rows("device_state")
    scene.inserter(target, "--drain").finish()
    assert target.rows("device_state") == rows + 100 * (not dedupe)


@pytest.mark.slow
def test_a_replay_that_is_killed_puts_back_all_and_nothing_twice(
    scene: Scene, database: str
) -> None:
    target = PostgresTarget(database)
    scene.migrate(target)
    scene.load(30_000)
    scene.inserter(target, "--drain").finish()
    change(target, "CREATE TABLE before AS SELECT * FROM device_state")
    change(target, f"DELETE FROM device_state WHERE {_WITHIN}")
    for share in (0.1, 0.35, 0.6):
        process = replay(scene, target, "--rate", "2500/s")
        least = max(20_000 + share * 10_000, target.rows("device_state"))
        scene.until(
            lambda n=least: target.rows("device_state") > n,
            "rows that are back",
        )
        process.kill()
        assert differs(target)[0] > 0, "some are missing yet"
    replay(scene, target).finish()
    assert differs(target) == (0, 0)


def test_a_replay_shows_and_keeps_no_password(scene: Scene, database: str) -> None:
    target = PostgresTarget(database)
    scene.migrate(target)
    scene.load(100)
    scene.inserter(target, "--drain").finish()
    user, at, rest = database.partition("://")[2].partition("@")
    name, colon, password = user.partition(":")
    assert (at, colon) == ("@", ":"), database
    said = replay(scene, target).finish()
    told = scene.headrace("replay", "ls", "--all")
    assert f"postgresql://{name}@{rest}" in told
    assert password not in told + said
