"""Replays of what Kafka no longer has: the table of raw events gives it, then Kafka goes on."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from replaying import Replaying
from targets import ClickHouseTarget, PostgresTarget, Target


@pytest.fixture
def scene(replaying: Replaying) -> Replaying:
    return replaying


def land(scene: Replaying, target: Target) -> None:
    """All raw events and receipts, into the table; replays know of it from now on."""
    streams = ["--stream", "raw_events", "--stream", "receipts"]
    common = ["--to", target.url, *streams, "--config", str(scene.config), "--kafka", scene.kafka]
    scene.headrace("migrate", *common)
    scene.headrace("insert", *common, "--drain")
    if "[replay]" not in scene.config.read_text():
        with scene.config.open("a") as file:
            file.write(f"[replay]\nraw = {json.dumps(target.url)}\n")


def expire(scene: Replaying, share: float) -> None:
    """Retention: so much of each partition is gone."""
    client: Any = AdminClient({"bootstrap.servers": scene.kafka})
    ends = Counter(int(m.partition() or 0) for m in scene.read(scene.topic))
    gone = [TopicPartition(scene.topic, n, int(count * share)) for n, count in ends.items()]
    for done in client.delete_records(gone).values():
        done.result(30)


@pytest.mark.parametrize(
    "database_kind", ["postgres", pytest.param("clickhouse", marks=pytest.mark.slow)]
)
def test_what_kafka_no_longer_has_comes_from_the_table(
    scene: Replaying, database_kind: str, request: pytest.FixtureRequest
) -> None:
    scene.past(6000, hours=8)
    land(scene, request.getfixturevalue(database_kind))
    expire(scene, 0.4)
    wanted = scene.within(1, 6)
    command = ["--to", "amplitude", *scene.hour(1, 6)]
    said = scene.replay(*command, "--dry-run").finish()
    sums = re.search(r"^all +([\d,]+) +0 +([\d,]+) +0$", said, re.MULTILINE)
    assert sums is not None, said
    said = scene.replay(*command).finish()
    assert sorted(scene.vendors.keys("amplitude")) == sorted(wanted)
    assert f"replayed {len(wanted):,} records" in said
    assert "comes from the table" in said
    assert {int(n.replace(",", "")) for n in sums.groups()} == {len(wanted)}
    assert {r.status for r in scene.statuses("amplitude").values()} == {"accepted"}


@pytest.mark.slow
def test_only_what_is_missing_by_the_receipts_of_the_table_is_sent(
    scene: Replaying, postgres: PostgresTarget
) -> None:
    scene.past(4000, hours=8)
    land(scene, postgres)
    expire(scene, 0.4)
    scene.replay("--to", "heap", *scene.hour(1, 1)).finish()
    land(scene, postgres)
    command = ["--to", "heap", *scene.hour(1, 6), "--only-missing"]
    said = scene.replay(*command, "--dry-run").finish()
    all_, had = len(scene.within(1, 6)), len(scene.within(1, 1))
    assert re.search(rf"^all +{all_:,} +{had:,} +{all_ - had:,} +0$", said, re.MULTILINE), said
    assert f"replayed {all_ - had:,} records" in scene.replay(*command).finish()
    assert sorted(scene.vendors.keys("heap")) == sorted(scene.within(1, 6))


@pytest.mark.slow
@pytest.mark.parametrize("database_kind", ["postgres", "clickhouse"])
def test_a_replay_that_is_killed_at_the_table_goes_on_where_it_was(
    scene: Replaying, database_kind: str, request: pytest.FixtureRequest
) -> None:
    scene.past(9000, hours=8)
    land(scene, request.getfixturevalue(database_kind))
    expire(scene, 0.5)
    wanted = scene.within(1, 6)
    command = ["--to", "mixpanel", *scene.hour(1, 6), "--rate", "1500/s"]
    before = 0
    for n in range(4):
        process = scene.replay(*command)
        least = max(before, len(wanted) * (n + 1) // 6)
        scene.until(lambda m=least: scene.vendors.stored("mixpanel")["keys"] > m, "more events", 90)
        process.kill()
        before = scene.vendors.stored("mixpanel")["keys"]
    said = scene.replay(*command).finish(120)
    assert sorted(scene.vendors.keys("mixpanel")) == sorted(wanted)
    last = int(said.split("replayed ")[1].split()[0].replace(",", ""))
    assert last < len(wanted) - before + 3000, "it did not begin anew"


@pytest.mark.slow
def test_what_one_database_lost_comes_from_the_other(
    scene: Replaying, postgres: PostgresTarget, clickhouse: ClickHouseTarget
) -> None:
    scene.past(6000, hours=8)
    land(scene, postgres)
    land(scene, clickhouse)
    text = scene.config.read_text()
    expire(scene, 0.5)
    for target, other in ((clickhouse, postgres), (postgres, clickhouse)):
        scene.config.write_text(text.replace(postgres.url, other.url))
        assert target.rows("raw") == 6000
        _delete(target)
        assert target.rows("raw") < 4000
        for _ in range(2):
            command = ["--to", target.url, "--stream", "raw_events", *scene.hour(0, 8)]
            scene.replay(*command).finish()
            assert target.rows("raw") == 6000
            assert target.ask("SELECT count(DISTINCT event_id) FROM raw") == (6000,)


def _delete(target: Target) -> None:
    if isinstance(target, ClickHouseTarget):
        target.ask(
            "ALTER TABLE raw DELETE WHERE cityHash64(event_id) % 2 = 0 SETTINGS mutations_sync = 2"
        )
        return
    import psycopg

    with psycopg.connect(target.url) as connection:
        connection.execute("DELETE FROM raw WHERE hashtext(event_id) % 2 = 0")
