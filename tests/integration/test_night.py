"""What an operator types at night: `headrace lag` says how far behind each destination is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from running import Scene
from targets import PostgresTarget

from consumers.batch import Partition
from consumers.behind import Waiting, waiting
from consumers.sinks.clickhouse_intent import at_rest
from headrace.cli import cli
from headrace.cli.places import without_password
from headrace.stack import Endpoints, Stack
from ingest.topics import ensure, topic_ids


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of this file's own: nobody else's topics, groups and replays are in it."""
    with Stack(tmp_path_factory.mktemp("night") / "state") as running:
        yield running


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """A stream with 2 partitions."""
    with Scene.open(tmp_path, endpoints.kafka, unique("night"), 2) as scene:
        yield scene


def asked(scene: Scene, *args: str, code: int = 0) -> list[dict[str, Any]]:
    """What a command says as JSON."""
    line = [*args, "--json", "--config", str(scene.config), "--kafka", scene.kafka]
    env = {"HEADRACE_STATE": str(scene.folder / "no-stack")}
    done = CliRunner().invoke(cli, line, env=env, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def lag(scene: Scene, *args: str, code: int = 0) -> list[dict[str, Any]]:
    return asked(scene, "lag", "--stream", "device_state", "--group", scene.group, *args, code=code)


def test_an_inserter_that_is_gone_is_seen_by_what_waits_and_by_nobody_reading(
    scene: Scene, postgres: PostgresTarget
) -> None:
    scene.migrate(postgres)
    scene.load(3000)
    assert lag(scene, "--to", postgres.url)[0] | {"oldest_s": 0, "note": ""} == {
        "destination": without_password(postgres.url), "stream": "device_state", "replay": None,
        "partition": None, "position": None, "end": 3000, "behind": 3000, "oldest_s": 0,
        "members": 0, "note": "",
    }  # fmt: skip
    inserter = scene.inserter(postgres)
    scene.landed(postgres, 3000)
    scene.until(lambda: lag(scene, "--to", postgres.url)[0]["members"] == 1, "a member")
    (row,) = lag(scene, "--to", postgres.url)
    assert (row["position"], row["behind"], row["oldest_s"], row["note"]) == (3000, 0, None, None)
    inserter.terminate()
    inserter.wait()
    scene.load(500)
    rows = lag(scene, "--to", postgres.url, "--partitions")
    assert [row["partition"] for row in rows] == [0, 1]
    assert sum(row["behind"] for row in rows) == 500
    assert sum(row["position"] for row in rows) == 3000
    for row in rows:
        assert row["oldest_s"] < 60
        assert row["members"] == 0
        assert f"headrace insert --to {row['destination']} --stream device_state" in row["note"]
    away = "postgres://headrace:secret@127.0.0.1:1/nothing"
    rows = lag(scene, "--to", away, "--to", postgres.url, code=1)
    assert "Connection refused" in rows[0]["note"]
    assert "secret" not in json.dumps(rows)
    assert rows[1]["behind"] == 500, "one that is away keeps nobody from being asked"


def test_what_no_reader_will_ever_see_is_not_waiting(scene: Scene) -> None:
    """An aborted transaction that is longer than the first look, and markers."""
    kafka, topic = {"bootstrap.servers": scene.kafka}, scene.topic
    ensure(kafka, {topic: 1})
    producer = Producer({**kafka, "transactional.id": topic})
    producer.init_transactions(20)
    for records, end in ((1, producer.commit_transaction), (2500, producer.abort_transaction)):
        producer.begin_transaction()
        for _ in range(records):
            producer.produce(topic, b"x")
        producer.flush(20)
        end(20)

    def at(position: int) -> Waiting:
        (found,) = waiting(kafka, topic, {Partition(topic, 0): position})
        return found

    assert at(0).behind == 2503
    assert (at(1).behind, at(1).oldest_ms) == (0, None)
    assert at(9999).beyond == 9999 - 2503
    producer.begin_transaction()
    producer.produce(topic, b"x", timestamp=1_750_032_000_000)
    producer.commit_transaction(20)
    assert (at(1).behind, at(1).oldest_ms) == (2504, 1_750_032_000_000)
    (bounded,) = waiting(kafka, topic, {Partition(topic, 0): 1}, {Partition(topic, 0): 2503})
    assert bounded.behind == 0, "a replay's end is not the topic's"


def test_a_vendor_is_where_its_group_is_in_this_topic(scene: Scene) -> None:
    kafka, topic = {"bootstrap.servers": scene.kafka}, scene.topic
    ensure(kafka, {topic: 1})
    scene.config.write_text(
        f'[streams.raw_events]\ntopic = "{topic}"\n[vendors.amplitude]\napi_key_env = "NOT_SET"\n'
        "[trace.events.checkout]\n"
    )
    scene.publish([(b"k", b"v")] * 5, topic=topic)
    committer = Consumer({**kafka, "group.id": "headrace-forward-amplitude"})

    def commit(offset: int, topic_id: str) -> None:
        committer.commit(
            offsets=[TopicPartition(topic, 0, offset, at_rest(topic_id))], asynchronous=False
        )

    commit(3, topic_ids(kafka, [topic])[topic])
    (row,) = asked(scene, "lag", "--to", "amplitude")
    assert (row["position"], row["behind"], row["members"]) == (3, 2, 0)
    assert row["note"] == "nobody reads: start `headrace forward --vendor amplitude`"
    commit(4, "of a topic that was deleted")
    committer.close()
    (row,) = asked(scene, "lag", "--to", "amplitude", "--stream", "raw_events")
    assert (row["position"], row["behind"]) == (None, 5)
