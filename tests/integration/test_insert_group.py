"""Inserters that share a group: they come, go, fall asleep and wake up; every record lands once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from inserter import Inserter
from running import Scene
from targets import ClickHouseTarget, PostgresTarget, Target
from tcp_proxy import Proxy
from waiting import until

from ingest.topics import topic_ids

SMALL = ("--max-rows", "1000")


def finish(scene: Scene, target: Target) -> None:
    """Take in the rest, and compare."""
    for inserter in scene.inserters:
        if inserter.alive:
            inserter.terminate()
            inserter.finish()
    scene.inserter(target, "--drain").finish()
    scene.exactly_once(target)


def shared_by(scene: Scene, n: int) -> Callable[[], bool]:
    """Whether `n` members have all partitions between them, and none has nothing."""

    def shared() -> bool:
        parts = list(scene.members().values())
        return len(parts) == n and all(parts) and sum(parts) == scene.partitions

    return shared


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_storm_of_rebalances_neither_loses_nor_doubles(
    scene: Scene, postgres: PostgresTarget, rounds: int
) -> None:
    scene.migrate(postgres)
    running = [scene.inserter(postgres, *SMALL)]
    with scene.flowing(10_000):
        for _ in range(rounds):
            scene.until(shared_by(scene, 1), "one owner of everything")
            running += [scene.inserter(postgres, *SMALL) for _ in range(2)]
            scene.until(shared_by(scene, 3), "three owners")
            running.pop(0).terminate()
            scene.until(shared_by(scene, 2), "two owners")
            running.pop(0).terminate()
    finish(scene, postgres)
    assert sum(i.output.count('"given ') for i in scene.inserters) >= 3 * rounds
    # Nobody takes a rebalance for an answer of Kafka's that was lost: that would be so each time.
    # One that is late by more than a second, on a machine that stood still, may be taken for it.
    assert sum(i.output.count("joining anew") for i in scene.inserters) < 2


def sleep_through_a_takeover(
    scene: Scene, target: Target, sleeper: Inserter, expected: int
) -> Inserter:
    """Stop an inserter until another one has its partitions and has landed everything."""
    sleeper.pause()
    successor = scene.inserter(target)
    scene.until(lambda: successor.says("given "), "partitions for the successor")
    scene.landed(target, expected)
    return successor


@pytest.mark.parametrize("nap", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_zombie_that_wakes_up_adds_nothing_to_postgres(
    scene: Scene, postgres: PostgresTarget, nap: int
) -> None:
    """It is stopped while its COPY is under way; the copy ends only when it has been replaced."""
    scene.migrate(postgres)
    host, port = postgres.database.split("@")[1].split("/")[0].split(":")
    with Proxy(host, int(port)) as proxy:
        through = PostgresTarget(
            postgres.database,
            postgres.database.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}"),
        )
        sleeper = scene.inserter(through, *SMALL, "--lanes", "1")
        for _ in range(nap):
            scene.load(20_000)
            scene.until(lambda: sleeper.says("given "), "partitions for the first one")
            proxy.hold_at(b"COPY ")
            scene.load(5_000)
            scene.until(lambda: proxy.held, "a COPY that is under way")
            successor = sleep_through_a_takeover(scene, postgres, sleeper, scene.loaded)
            proxy.release()
            sleeper.resume()
            before = sleeper.output.count("given ")
            scene.until(
                lambda n=before: sleeper.output.count("given ") > n,
                "partitions for the one that woke up",
            )
            scene.load(2_000)
            scene.landed(postgres, scene.loaded)
            scene.exactly_once(postgres)
            successor.terminate()
            successor.finish()
    finish(scene, postgres)


def test_a_zombie_between_insert_and_answer_adds_nothing_to_clickhouse(
    scene: Scene, clickhouse: ClickHouseTarget
) -> None:
    """Its insert is announced, sent, and arrives only when another one has made good for it."""
    scene.migrate(clickhouse)
    with Proxy("127.0.0.1", clickhouse.port) as proxy:
        sleeper = scene.inserter(ClickHouseTarget(proxy.port))
        scene.load(3_000)
        scene.landed(clickhouse, 1)
        proxy.hold_at(b"INSERT")
        scene.load(3_000)
        scene.until(lambda: proxy.held, "an insert that is under way")
        successor = sleep_through_a_takeover(scene, clickhouse, sleeper, scene.loaded)
        scene.until(lambda: successor.says("settled an insert"), "an insert that is made good for")
        # The insert passes while its sender still sleeps: nothing but the token can stop it.
        proxy.release()
        sleeper.resume()
        before = sleeper.output.count("given ")
        scene.until(
            lambda: sleeper.output.count("given ") > before, "partitions for the one that woke up"
        )
        scene.load(3_000)
        scene.landed(clickhouse, scene.loaded)
        finish(scene, clickhouse)


def test_the_classic_protocol_moves_only_the_partitions_that_change_hands(
    scene: Scene, postgres: PostgresTarget
) -> None:
    # A member hears with a heartbeat that others came and went: every 3 s by default.
    scene.configure(kafka={"group.protocol": "classic", "heartbeat.interval.ms": 300})
    scene.migrate(postgres)
    first = scene.inserter(postgres, *SMALL)
    with scene.flowing(5_000):
        scene.until(shared_by(scene, 1), "one owner of everything")
        second = scene.inserter(postgres, *SMALL)
        scene.until(shared_by(scene, 2), "two owners")
        scene.until(lambda: second.says("given "), "partitions for the second")
        # Cooperative: it has kept the other two all the while.
        given_back = [line for line in first.output.splitlines() if "gave back" in line]
        assert len(given_back) == 1
        runs = re.findall(r"\[(\d+)(?:-(\d+))?\]", given_back[0])
        assert sum(int(last or first) - int(first) + 1 for first, last in runs) == 2
        first.terminate()
        first.finish()
        scene.until(shared_by(scene, 1), "one owner again")
    finish(scene, postgres)


@pytest.mark.parametrize(
    ("kind", "running"),
    [
        pytest.param("postgres", True, id="postgres-running"),
        pytest.param("postgres", False, id="postgres-stopped", marks=pytest.mark.slow),
        pytest.param("clickhouse", True, id="clickhouse-running", marks=pytest.mark.slow),
        pytest.param("clickhouse", False, id="clickhouse-stopped", marks=pytest.mark.slow),
    ],
)
def test_a_topic_that_was_made_anew_lands_from_its_start(
    scene: Scene, request: pytest.FixtureRequest, kind: str, running: bool
) -> None:
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    scene.load(4_000)
    inserter = scene.inserter(target, *(() if running else ("--drain",)))
    if running:
        scene.landed(target, scene.loaded)
    else:
        inserter.finish()
    old = topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic])[scene.topic]
    admin = scene.admin
    admin.delete_topics([scene.topic])[scene.topic].result(20)

    def made_anew() -> bool:
        scene.migrate()
        return topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic]).get(
            scene.topic, old
        ) != old  # fmt: skip

    until(made_anew, "the topic, made anew")
    # More than before: the old positions lie within the new topic.
    scene.load(8_000)
    if running:
        # It may say that the topic is gone and stop; started again it goes on. It may not skip.
        scene.until(
            lambda: not inserter.alive or target.rows(scene.table) >= scene.loaded,
            "an end, or all rows",
        )
        if not inserter.alive:
            assert inserter.wait() == 1
            assert inserter.says("does not exist")
        else:
            inserter.terminate()
            inserter.finish()
    scene.inserter(target, "--drain").finish()
    scene.exactly_once(target)
