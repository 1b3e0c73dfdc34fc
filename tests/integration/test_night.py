"""What an operator types at night: `headrace lag` and `headrace doctor`, on their own stack."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from running import Scene
from targets import PostgresTarget
from waiting import until

from consumers.batch import Partition, Span
from consumers.behind import Waiting, waiting
from consumers.held import held
from consumers.intent import Intent
from consumers.replay.job import Job, State
from consumers.replay.jobs import Jobs
from headrace.cli import cli
from headrace.doctor import kafka as kafka_checks
from headrace.stack import Endpoints, Stack
from headrace.words import without_password
from ingest import topics
from ingest.spool.writer import Spool
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


def said(scene: Scene, *args: str, code: int = 0, kafka: str | None = None) -> str:
    """What a command prints."""
    line = [*args, "--config", str(scene.config), "--kafka", kafka or scene.kafka]
    env = {"HEADRACE_STATE": str(scene.folder / "no-stack")}
    done = CliRunner().invoke(cli, line, env=env, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def asked(
    scene: Scene, *args: str, code: int = 0, kafka: str | None = None
) -> list[dict[str, Any]]:
    """The same as JSON."""
    lines = said(scene, *args, "--json", code=code, kafka=kafka).splitlines()
    return [json.loads(line) for line in lines]


def lag(scene: Scene, *args: str, code: int = 0) -> list[dict[str, Any]]:
    return asked(scene, "lag", "--stream", "device_state", "--group", scene.group, *args, code=code)


@pytest.mark.slow
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
    producer.begin_transaction()
    producer.produce(topic, b"x")
    producer.flush(20)
    assert at(1).there.end == 2505, "what is in an open transaction can't be read yet"
    assert held(kafka, [topic], 0.1) == {Partition(topic, 0): 1}
    producer.abort_transaction(20)
    assert held(kafka, [topic], 20) == {}
    (bounded,) = waiting(kafka, topic, {Partition(topic, 0): 1}, {Partition(topic, 0): 2503})
    assert bounded.behind == 0, "a replay's end is not the topic's"


def test_what_groups_know_of_a_vendor_and_of_a_database_that_is_not_named(scene: Scene) -> None:
    kafka, topic = {"bootstrap.servers": scene.kafka}, scene.topic
    former = f"{topic}-former"
    ensure(kafka, {topic: 1, former: 1})
    scene.config.write_text(
        f'[streams.raw_events]\ntopic = "{topic}"\n[vendors.amplitude]\napi_key_env = "NOT_SET"\n'
        "[trace.events.checkout]\n"
    )
    scene.publish([(b"k", b"v")] * 5, topic=topic)

    scene.publish([(b"k", b"v")] * 3, topic=former)

    def commit(
        offset: int, topic_id: str, group: str = "headrace-forward-amplitude", topic: str = topic
    ) -> None:
        def committed() -> bool:
            try:
                committer.commit(offsets=at, asynchronous=False)
            except KafkaException as error:
                # The coordinator of a fresh Kafka is still loading.
                assert error.args[0].code() == KafkaError.COORDINATOR_LOAD_IN_PROGRESS
                return False
            return True

        at = [TopicPartition(topic, 0, offset, Intent.at_rest(topic_id).note())]
        committer = Consumer({**kafka, "group.id": group})
        until(committed, "a coordinator")
        committer.close()

    commit(3, topic_ids(kafka, [topic])[topic])
    (row,) = asked(scene, "lag", "--to", "amplitude")
    assert (row["position"], row["behind"], row["members"]) == (3, 2, 0)
    assert row["note"].startswith("nobody reads, type: headrace forward --vendor amplitude --")
    commit(4, "of a topic that was deleted")
    (row,) = asked(scene, "lag", "--to", "amplitude", "--stream", "raw_events")
    assert (row["position"], row["behind"]) == (None, 5)
    inserters = "headrace-insert-clickhouse:ch1:8123/logs"
    commit(0, "any", inserters)
    commit(1, "any", inserters, former)
    checks = asked(scene, "doctor", code=1)
    assert any(c["do"].endswith(f" --config {scene.config} --kafka {scene.kafka}") for c in checks)
    sick = [(c["name"], typed(c)) for c in checks if c["verdict"] != "OK"]
    assert sick == [
        ("topics", "headrace migrate --stream raw_events"),
        ("clickhouse:ch1:8123/logs", "headrace doctor --to URL    # as its inserters have it"),
        (
            f"topic {former}",
            "headrace insert --to URL --stream NAME --drain    # where a stream has it",
        ),
        ("amplitude", "export NOT_SET=…"),
        ("amplitude", "headrace forward --vendor amplitude"),
    ]
    (left,) = [c for c in checks if c["name"] == f"topic {former}"]
    assert left["text"].startswith("no stream has it, 2 offsets wait for clickhouse:ch1:8123/logs")
    scene.admin.delete_consumer_groups([inserters])[inserters].result(20)


def typed(check: dict[str, Any]) -> str:
    """What it says to type, without the options that say which installation is meant."""
    return re.sub(r" --(config|kafka|group) \S+", "", check["do"])


class Ward:
    """A scene, its database, and what `headrace doctor` says of them."""

    def __init__(self, scene: Scene, url: str) -> None:
        self.scene, self.url = scene, url

    def sick(self, *args: str, code: int, kafka: str | None = None) -> dict[str, dict[str, Any]]:
        """The checks that are not OK, by name; each says what to type and what is safe."""
        to = args or ("--to", self.url, "--group", self.scene.group)
        checks = asked(self.scene, "doctor", *to, code=code, kafka=kafka)
        found = {check["name"]: check for check in checks if check["verdict"] != "OK"}
        assert all(check["do"] and check["safe"] for check in found.values())
        assert not any(check["lost"] for check in found.values())
        return found


def test_a_healthy_installation_is_well_and_what_breaks_is_named(
    scene: Scene, postgres: PostgresTarget
) -> None:
    ward, name, to = Ward(scene, postgres.url), without_password(postgres.url), postgres.url
    scene.config.write_text(scene.config.read_text() + '[collect]\nspool = "spool"\n')
    scene.migrate(postgres)
    scene.load(1000)
    (row,) = lag(scene, "--to", to)
    assert (row["position"], row["behind"], row["members"]) == (None, 1000, 0), "nobody has begun"
    with Spool(scene.folder / "spool" / "0"):
        inserter = scene.inserter(postgres)
        scene.landed(postgres, 1000)
        scene.until(lambda: lag(scene, "--to", to)[0]["members"], "a member")
        text = said(scene, "doctor", "--to", to, "--group", scene.group)
        assert "WARN" not in text
        assert "FAIL" not in text
        assert re.search(r"^OK +spool 0: nothing waits", text, re.MULTILINE)
        assert f"{name} device_state: nothing waits; 1 process reads" in text
        assert text.splitlines()[-1].startswith("all 9 checks are well")
        # A database need not take every stream; which it does not, is said.
        other = f"{scene.topic}-other"
        ensure({"bootstrap.servers": scene.kafka}, {other: 1, f"{other}.dlq": 1})
        scene.config.write_text(
            scene.config.read_text() + f'[streams.http_test]\ntopic = "{other}"\n'
        )
        scene.publish([(b"k", b"v")], topic=other)
        text = said(scene, "doctor", "--to", to, "--group", scene.group)
        assert f"OK    {name}: not landed here, though Kafka has records: http_test." in text
        assert text.splitlines()[-1].startswith("all 10 checks are well")
    (row,) = lag(scene, "--to", to)
    assert (row["position"], row["behind"], row["oldest_s"], row["note"]) == (1000, 0, None, None)
    # One record that nobody can decode, a replay that somebody has paused, no collector.
    scene.publish([(b"k", b"\xff\xff")])
    scene.until(lambda: scene.read(scene.dlq), "a dead letter")
    scene.until(lambda: not lag(scene, "--to", to)[0]["behind"], "all is read")
    jobs, job = Jobs({"bootstrap.servers": scene.kafka}), paused(scene)
    jobs.put(job)
    found = ward.sick(code=0)
    assert found.keys() == {
        "spool 0", "dead letters device_state", "replay 5a1f00d5 to postgres",
    }  # fmt: skip
    assert found["dead letters device_state"]["text"].startswith("1 record could not land")
    assert typed(found["replay 5a1f00d5 to postgres"]) == "headrace replay resume 5a1f00d5"
    assert typed(found["spool 0"]) == "headrace collect"
    jobs.put(job.moved(State.CANCELLED))
    # The inserter is gone, and then its table.
    inserter.terminate()
    inserter.wait()
    scene.load(500)
    away = "postgres://headrace:secret@127.0.0.1:1/nothing"
    first, *rows = lag(scene, "--to", away, "--to", to, "--partitions", code=1)
    assert "Connection refused" in first["note"]
    assert "secret" not in json.dumps(first)
    assert [row["partition"] for row in rows] == [0, 1]
    assert (sum(r["position"] for r in rows), sum(r["behind"] for r in rows)) == (1001, 500)
    for row in rows:
        assert row["oldest_s"] < 60
        assert f"headrace insert --to {name} --stream device_state" in row["note"]
    check = ward.sick(code=1)[f"{name} device_state"]
    assert check["text"].startswith("500 offsets wait")
    assert check["text"].endswith("and nobody reads")
    with psycopg.connect(to, autocommit=True) as connection:
        connection.execute("DROP TABLE device_state")
    check = ward.sick(code=1)[name]
    assert "the table device_state does not exist" in check["text"]
    assert typed(check) == f"headrace migrate --to {name} --stream device_state"
    wrong = re.sub(r":[^:@/]+@", ":wrong-secret@", to)
    check = ward.sick("--to", wrong, code=1)[name]
    assert "password authentication failed" in check["text"]
    assert "wrong-secret" not in json.dumps(check)


@pytest.mark.parametrize("most", [50_000, 0])
def test_the_time_that_is_left_of_dead_letters_is_said(
    scene: Scene, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are too many to look through."""
    monkeypatch.setattr(kafka_checks, "_MOST_LETTERS", most)
    kafka, day_ms = {"bootstrap.servers": scene.kafka}, 24 * 3_600_000
    limits = {"retention.ms": str(30 * day_ms), "retention.bytes": str(2**30)}
    ensure(kafka, {scene.topic: 1})
    ensure(kafka, {scene.dlq: 3}, limits)
    producer, now_ms = Producer(kafka), int(time.time() * 1000)

    def letter(partition: int, days: float) -> None:
        failed_ms = now_ms - int(days * day_ms)
        headers = {
            "topic": scene.topic, "partition": 0, "offset": partition, "timestamp_ms": failed_ms,
            "kind": "undecodable", "reason": "r", "attempted_ms": failed_ms,
        }  # fmt: skip
        producer.produce(
            scene.dlq, b"v", partition=partition, timestamp=failed_ms,
            headers=[(f"headrace.{name}", str(value).encode()) for name, value in headers.items()],
        )  # fmt: skip
        assert producer.flush(20) == 0

    def safe(code: int) -> str:
        checks = asked(scene, "doctor", code=code)
        (found,) = (c["safe"] for c in checks if c["name"] == "dead letters device_state")
        return str(found)

    sooner = "(or less, by retention.bytes)"
    letter(0, 1)
    letter(1, 21.5)
    assert safe(0) == f"yes, whole in {scene.dlq}, for 8 d more {sooner}; all else lands"
    letter(2, 24.5)
    unless = "" if most else ", unless it has been redriven"
    assert safe(1) == f"for 5 d {sooner}; then not{unless}"


def paused(scene: Scene) -> Job:
    """A replay of all that there is."""
    topic_id = topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic])[scene.topic]
    return Job(
        "5a1f00d5", "postgres", "device_state", topic_id, 0, 1, 0.0, {0: Span(0, 9)}, 0,
        state=State.PAUSED,
    )  # fmt: skip


def test_what_can_not_be_asked_is_said_and_the_rest_is_asked(
    scene: Scene, postgres: PostgresTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.5)
    ward = Ward(scene, postgres.url)
    found = ward.sick(code=1, kafka="127.0.0.1:1")
    assert found.keys() == {"kafka", without_password(postgres.url)}
    assert "does not answer" in found["kafka"]["text"]
    assert "headrace_offsets does not exist" in found[without_password(postgres.url)]["text"]
    text = said(scene, "doctor", "--to", postgres.url, code=1, kafka="127.0.0.1:1")
    assert text.splitlines()[-1] == "2 problems; what lies behind could not be asked"
    scene.config.write_text("[kafka\n")
    assert ward.sick(code=1).keys() == {"configuration"}
