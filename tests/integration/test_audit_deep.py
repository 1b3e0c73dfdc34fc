"""A look at the rows themselves: what may be called missing or too many, and what mends it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition
from running import Scene
from targets import ChdbTarget, PostgresTarget
from waiting import until

from consumers.batch import Partition, Span
from consumers.bounds import firsts
from consumers.destinations import destination, inserter_group
from consumers.errors import Unavailable
from consumers.ledger import accepted
from consumers.ledger.accepted import Book
from consumers.ledger.account import Account, PlaceUnknown
from consumers.ledger.audit import audit
from consumers.ledger.scan import marks
from consumers.sinks.clickhouse_client import connect
from headrace.config import load
from headrace.stack import Endpoints
from ingest.topics import topic_ids

OPERATING = (Path(__file__).parents[2] / "docs/operating.md").read_text(encoding="utf-8")


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """The topic device_state of this test."""
    with Scene.open(tmp_path, endpoints.kafka, unique("deep"), 2) as scene:
        yield scene


def deep(scene: Scene, *to: str, code: int) -> str:
    """What `headrace audit --deep` says of these destinations."""
    named = [word for name in to for word in ("--to", name)]
    group = f"{scene.group}-2"  # of ClickHouse: its positions are its group's
    asked = ["audit", "--stream", "device_state", "--group", group, *named, "--deep"]
    return scene.headrace(*asked, code=code)


def repairs(said: str) -> list[list[str]]:
    """The commands in it, as a shell reads them."""
    return [
        shlex.split(line.removeprefix("repair: "))
        for line in said.splitlines()
        if line.startswith("repair: ")
    ]


def put_back(scene: Scene, database: str) -> None:
    """Run the one command that is printed; then all is well."""
    (repair,) = repairs(deep(scene, database, code=1))
    # What is printed has no password in it.
    scene.headrace(*(database if word.startswith("postgres") else word for word in repair[1:]))
    assert "accounted for once" in deep(scene, database, code=0)


def at(record: tuple[bytes, bytes], scene: Scene, seconds: int) -> tuple[bytes, bytes]:
    """The record with another time."""
    message = load(scene.config, kafka=scene.kafka, environ={}).stream("device_state").message
    state = message.FromString(record[1])
    state.timestamp.FromSeconds(seconds)
    return record[0], state.SerializeToString()


def make_anew(scene: Scene) -> None:
    """Delete the topic, and make it again."""
    old = topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic])[scene.topic]
    scene.admin.delete_topics([scene.topic])[scene.topic].result(20)

    def made() -> bool:
        scene.migrate()
        found = topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic])
        return found.get(scene.topic, old) != old

    until(made, "the topic, made anew")


def test_rows_of_an_older_topic_of_this_name_are_not_too_many(scene: Scene, database: str) -> None:
    """They have landed, by the ledger; Kafka has nothing of them any more."""
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    scene.load(500)
    scene.inserter(postgres, "--drain").finish()
    make_anew(scene)
    # Of the same hour as the older ones.
    scene.load(500)
    scene.inserter(postgres, "--drain").finish()
    said = deep(scene, database, code=0)
    assert "accounted for once" in said
    assert not repairs(said)
    # One row more than ever landed, and it looks like an older one: no command may guess.
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO device_state SELECT * FROM device_state ORDER BY "
                           "device_id, timestamp LIMIT 1")  # fmt: skip
    said = deep(scene, database, code=1)
    assert "1 row too many; it can't be told which" in said
    assert not repairs(said)


def test_a_record_of_a_clock_that_was_ahead_may_expire_before_its_hour(
    scene: Scene, database: str
) -> None:
    """Its row stays, and is neither too many nor is there one missing."""
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    first, second, *rest = scene.records(50)
    in_2099 = 4_080_000_000
    partition, offset = scene.publish([at(first, scene, in_2099)])[0]
    scene.publish(rest)
    scene.inserter(postgres, "--drain").finish()
    assert "accounted for once" in deep(scene, database, code=0)
    expired = TopicPartition(scene.topic, partition, offset + 1)
    scene.admin.delete_records([expired])[expired].result(30)
    # Another one of that hour, which Kafka has.
    scene.publish([at(second, scene, in_2099 + 1)])
    scene.inserter(postgres, "--drain").finish()
    said = deep(scene, database, code=0)
    assert not repairs(said)


def test_what_another_destination_has_refused_is_missing_all_the_same(
    scene: Scene, database: str, tmp_path: Path
) -> None:
    """PostgreSQL takes no NUL. ClickHouse does, and has lost it."""
    postgres, chdb = PostgresTarget(database), ChdbTarget(tmp_path / "chdb")
    for target in (postgres, chdb):
        scene.migrate(target)
    records = scene.records(300)
    nul = (b"k", records[0][1].replace(b"connected", b"connec\0ed", 1))
    refused, *_ = scene.publish([nul, *records])
    scene.inserter(postgres, "--drain").finish()
    scene.inserter(chdb, "--drain", "--group", f"{scene.group}-2").finish()
    assert "accounted for once" in deep(scene, database, chdb.url, code=0)
    partition, offset = refused
    client = connect(chdb.url)
    try:
        gone = f"DELETE WHERE _partition = {partition} AND _offset = {offset}"
        client.command(f"ALTER TABLE device_state {gone}", settings={"mutations_sync": 2})
    finally:
        client.close()
    said = deep(scene, database, chdb.url, code=1)
    assert f"is not in {chdb.url}; last seen in Kafka, {scene.topic}[{partition}]" in said
    (repair,) = repairs(said)
    scene.headrace(*repair[1:])
    assert "accounted for once" in deep(scene, database, chdb.url, code=0)


def test_what_happened_ahead_of_its_publishing_is_put_back_by_what_is_printed(
    scene: Scene, database: str
) -> None:
    """A replay reads from when records were published on, whatever they say of their own time."""
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    first, *rest = scene.records(50)
    scene.publish([at(first, scene, 4_080_000_000), *rest])
    scene.inserter(postgres, "--drain").finish()
    with psycopg.connect(database) as connection:
        gone = connection.execute("DELETE FROM device_state WHERE timestamp > '2098-01-01'")
        assert gone.rowcount == 1
    put_back(scene, database)
    assert postgres.rows("device_state") == 50


def test_rows_in_the_columnstore_have_no_place_and_are_compared_all_the_same(
    scene: Scene, database: str
) -> None:
    """TimescaleDB refuses a ctid of compressed chunks. It says itself which tables have them, in
    whatever schema of the search_path."""
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    scene.load(200)
    scene.inserter(postgres, "--drain").finish()
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA timescaledb_information")
        connection.execute(
            "CREATE TABLE timescaledb_information.hypertables AS SELECT current_schema() AS "
            "hypertable_schema, 'device_state' AS hypertable_name, true AS compression_enabled"
        )
        connection.execute("INSERT INTO device_state SELECT * FROM device_state LIMIT 1")
        connection.execute("CREATE SCHEMA first")
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET search_path = first, public")
    said = deep(scene, database, code=1)
    assert "once more than in Kafka; no command can take it out of the columnstore" in said
    assert not repairs(said)


@pytest.mark.parametrize("dedupe", [True, False], ids=["dedupe", "plain"])
def test_a_table_may_have_columns_of_its_own(scene: Scene, database: str, dedupe: bool) -> None:
    """They are filled by its defaults: when rows land, are put back, and are compared."""
    postgres = PostgresTarget(database)
    if dedupe:
        scene.configure(stream={"dedupe": ["device_id", "account_id", "timestamp"]})
    scene.migrate(postgres)
    with psycopg.connect(database) as connection:
        connection.execute(
            "ALTER TABLE device_state ADD landed_at timestamptz NOT NULL DEFAULT now(), "
            "ADD number bigint GENERATED ALWAYS AS IDENTITY"
        )
    scene.load(300)
    scene.inserter(postgres, "--drain").finish()
    assert postgres.rows("device_state") == 300
    assert "accounted for once" in deep(scene, database, code=0)
    with psycopg.connect(database) as connection:
        connection.execute("DELETE FROM device_state WHERE number < 4")
    put_back(scene, database)
    assert postgres.rows("device_state") == 300


def test_a_destination_that_can_not_be_judged_is_not_left_out_in_silence(
    scene: Scene, tmp_path: Path
) -> None:
    """Its readers' group is another one, or forgotten: its table has something, and no position."""
    chdb = ChdbTarget(tmp_path / "chdb")
    scene.migrate(chdb)
    scene.load(200)
    asked = ["audit", "--to", chdb.url, "--group", scene.group]
    assert "has nothing of these streams" in scene.headrace(*asked, code=1)
    scene.inserter(chdb, "--drain").finish()
    assert "accounted for once" in scene.headrace(*asked)
    asked[-1] = "somebody-else"
    said = scene.headrace(*asked, code=1)
    assert f"has records of {scene.topic}, and the consumer group somebody-else no position" in said
    assert "nothing has landed" not in said


def test_a_database_that_has_lost_all_is_not_left_out(scene: Scene, database: str) -> None:
    """Made anew, it knows of nothing; the group of its inserters does."""
    postgres = PostgresTarget(database)
    stream = load(scene.config, kafka=scene.kafka, environ={}).stream("device_state")
    settings = {"bootstrap.servers": scene.kafka}
    scene.migrate(postgres)
    place = destination(database)
    topic_id = topic_ids(settings, [scene.topic])[scene.topic]
    assert place.account(settings, stream, topic_id) is None, "nothing was ever inserted"
    scene.load(50)
    scene.inserter(postgres, "--drain", "--group", inserter_group(place)).finish()
    with psycopg.connect(database) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    scene.migrate(postgres)
    # However it is asked: by default too a destination is left out only where this says None.
    with pytest.raises(PlaceUnknown, match=f"has nothing of {scene.topic}, where its inserters'"):
        place.account(settings, stream, topic_id)
    said = scene.headrace("audit", "--stream", "device_state", "--to", database, code=1)
    assert "it was lost, or made anew" in said
    assert "nothing has landed" not in said


def test_of_a_topic_that_was_made_anew_all_is_to_come(
    scene: Scene, database: str, tmp_path: Path
) -> None:
    """Whoever had something of the older one is not left out until his inserter looks."""
    postgres, chdb = PostgresTarget(database), ChdbTarget(tmp_path / "chdb")
    group = f"{scene.group}-2"
    for target in (postgres, chdb):
        scene.migrate(target)
    scene.load(50)
    scene.inserter(postgres, "--drain").finish()
    scene.inserter(chdb, "--drain", "--group", group).finish()
    make_anew(scene)
    scene.load(30)
    asked = ["audit", "--stream", "device_state", "--group", group, "--to", database]
    said = scene.headrace(*asked, "--to", chdb.url, "--json", "--deep")
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert sum(line["in_flight"] for line in lines) == 60
    assert not any(line["landed"] for line in lines)


def test_what_expires_while_it_is_read_is_no_hole_that_counts_as_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question where a log begins and the first fetch."""
    scene.migrate()
    ((partition, first), *_) = scene.publish(scene.records(1) * 20)
    settings = {"bootstrap.servers": scene.kafka}
    stream = load(scene.config, kafka=scene.kafka, environ={}).stream("device_state")
    topic_id = topic_ids(settings, [scene.topic])[scene.topic]
    book = Book(settings)

    def moved(*args: Any) -> dict[Partition, Span]:
        found = marks(*args)
        expired = TopicPartition(scene.topic, partition, first + 10)
        scene.admin.delete_records([expired])[expired].result(30)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(accepted, "marks", moved)
        with pytest.raises(Unavailable, match=r"retention removed records of .+: run it again"):
            book.count(stream, topic_id)
    # Who asks only for the first record is told of the first that is left.
    asked = {partition: Span(first, first + 11), partition + 1: Span(0, 0)}
    assert firsts(settings, scene.topic, asked).keys() == {partition}
    # Of what is gone nothing is in flight any more, to whoever has nothing yet.
    lines, _ = audit(settings, book, stream, topic_id, {"there": Account({}, {})})
    assert [(line.accepted, line.in_flight) for line in lines] == [(10, 10)]


def test_who_has_begun_again_in_postgres_as_the_documents_say_adds_up(
    scene: Scene, database: str
) -> None:
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    scene.load(100)
    scene.inserter(postgres, "--drain").finish()
    (recipe,) = re.findall(r"^```sql\n(BEGIN;.*?)^```", OPERATING, re.MULTILINE | re.DOTALL)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(recipe)
    assert postgres.rows("device_state") == 0
    scene.inserter(postgres, "--drain").finish()
    assert "accounted for once" in deep(scene, database, code=0)


def test_who_has_begun_again_in_clickhouse_as_the_documents_say_adds_up(
    scene: Scene, tmp_path: Path
) -> None:
    chdb = ChdbTarget(tmp_path / "chdb")
    scene.migrate(chdb)
    # Spans that a new beginning cuts otherwise.
    for number in (30, 10):
        scene.load(number)
        scene.inserter(chdb, "--drain", "--group", f"{scene.group}-1").finish()
    (delete,) = re.findall(r"`(DELETE FROM headrace_ledger\s[^`]+)`", OPERATING)
    client = connect(chdb.url)
    try:
        client.command("DROP TABLE device_state SYNC")
        client.command(delete)
    finally:
        client.close()
    scene.migrate(chdb)
    # In one, and then on from there.
    for number in (0, 5):
        scene.load(number)
        scene.inserter(chdb, "--drain", "--group", f"{scene.group}-2").finish()
    assert chdb.rows("device_state") == 45
    assert "accounted for once" in deep(scene, chdb.url, code=0)


def test_a_range_of_nothing_and_a_topic_that_is_not_there_are_no_proof(scene: Scene) -> None:
    asked = ["audit", "--stream", "device_state"]
    assert "does not exist" in scene.headrace(*asked, "--to", "kafka", code=1)
    said = scene.headrace(*asked, "--from", "2026-01-02", "--until", "2026-01-01", code=2)
    assert "--until is not behind --from" in said
