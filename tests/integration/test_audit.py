"""The audit: it accounts for whatever may become of a record, and it can say no."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from forwarding import Forwarding
from inserter import Inserter, free_port
from running import Scene
from targets import ChdbTarget, ClickHouseTarget, PostgresTarget, Target

from consumers.batch import Partition, Span
from consumers.errors import Unavailable
from consumers.forward.gap import Gap
from consumers.intent import Intent
from consumers.ledger import accepted
from consumers.ledger.accepted import Book
from consumers.ledger.scan import marks, scan
from consumers.ledger.tally import NOTHING, Bucket, Sum, entries_of
from consumers.sinks.clickhouse_client import connect
from headrace.config import load
from headrace.stack import Endpoints
from headrace.vendors.client import Vendors
from headrace.vendors.place import WEBHOOK_SECRET
from ingest.topics import topic_ids


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """The topic device_state of this test."""
    with Scene.open(tmp_path, endpoints.kafka, unique("audit"), 2) as scene:
        yield scene


def audited(scene: Scene, *args: str, code: int = 0) -> list[dict[str, Any]]:
    """What `headrace audit --json` says."""
    said = scene.headrace(
        "audit",
        "--stream",
        "device_state",
        "--group",
        f"{scene.group}-2",
        "--json",
        *args,
        code=code,
    )
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def total(lines: list[dict[str, Any]], destination: str) -> dict[str, int]:
    terms = ("accepted", "landed", "dropped", "dead", "in_flight", "difference")
    return {
        term: sum(line[term] for line in lines if line["destination"] == destination)
        for term in terms
    }


@pytest.mark.slow
def test_every_record_is_landed_dropped_dead_or_in_flight(
    scene: Scene, database: str, tmp_path: Path
) -> None:
    postgres, chdb = PostgresTarget(database), ChdbTarget(tmp_path / "chdb")
    scene.configure(stream={"dedupe": ["device_id", "account_id", "timestamp"]})
    for target in (postgres, chdb):
        scene.migrate(target)
    records = scene.records(20_000)
    # Some twice, some that nobody can decode, one that only PostgreSQL refuses.
    scene.publish([*records, *records[:30], *((b"k", b"\xff\xff") for _ in range(5))])
    scene.publish([(b"k", records[0][1].replace(b"connected", b"connec\0ed", 1))])
    to = ["--to", postgres.url, "--to", chdb.url]
    assert total(audited(scene, *to), chdb.url)["in_flight"] == 20_036, "nothing has landed"
    scene.inserter(postgres, "--drain").finish()
    # Positions of ClickHouse are the group's, so it has one of its own.
    scene.inserter(chdb, "--drain", "--group", f"{scene.group}-2").finish()
    lines = audited(scene, *to)
    assert all(line["holds"] for line in lines)
    names = sorted({line["destination"] for line in lines})
    assert names == sorted([chdb.url, postgres_name(database)])
    # ClickHouse takes the copies, and forgets them when it merges.
    assert total(lines, chdb.url) == {
        "accepted": 20_036, "landed": 20_031, "dropped": 0, "dead": 5, "in_flight": 0,
        "difference": 0,
    }  # fmt: skip
    assert total(lines, postgres_name(database)) == {
        "accepted": 20_036, "landed": 20_000, "dropped": 30, "dead": 6, "in_flight": 0,
        "difference": 0,
    }  # fmt: skip
    # A transaction that is open when the audit looks, and what nobody has taken yet.
    scene.load(500)
    later = audited(scene, *to)
    assert total(later, chdb.url)["in_flight"] == 500
    assert total(later, postgres_name(database))["accepted"] == 20_536


def test_what_a_killed_inserter_had_not_written_into_its_ledger_is_counted_all_the_same(
    scene: Scene, tmp_path: Path
) -> None:
    """ClickHouse's ledger gets a row for several batches; until then the group's offsets say it."""
    chdb = ChdbTarget(tmp_path / "chdb")
    scene.migrate(chdb)
    group = f"{scene.group}-2"
    written = "SELECT sum(arraySum(landed)) + sum(arraySum(dead)) FROM headrace_ledger FINAL"
    scene.publish([(b"k", b"\xff\xff"), *scene.records(3_000)])
    inserter = scene.inserter(chdb, "--group", group, metrics=True)
    scene.until(lambda: inserter.metric("headrace_rows_total") == 3_000, "all rows, committed")
    inserter.kill()
    assert chdb.ask(written) == (0,)
    accounted = {"accepted": 3_001, "landed": 3_000, "dropped": 0, "dead": 1, "in_flight": 0,
                 "difference": 0}  # fmt: skip
    assert total(audited(scene, "--to", chdb.url), chdb.url) == accounted
    # Who comes next writes it, and what he lands himself when he leaves.
    scene.load(500)
    scene.inserter(chdb, "--drain", "--group", group).finish()
    assert chdb.ask(written) == (3_501,)
    assert total(audited(scene, "--to", chdb.url), chdb.url)["landed"] == 3_500


def test_rows_that_were_tampered_with_are_named_and_mended_by_what_the_audit_prints(
    scene: Scene, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres, chdb = PostgresTarget(database), ChdbTarget(tmp_path / "chdb")
    group = f"{scene.group}-2"
    for target in (postgres, chdb):
        scene.migrate(target)
    scene.load(20_000)
    scene.publish([(b"k", b"\xff\xff")])
    scene.inserter(postgres, "--drain").finish()
    scene.inserter(chdb, "--drain", "--group", group).finish()
    # What is printed has no password in it.
    user = database.removeprefix("postgresql://").partition("@")[0]
    monkeypatch.setenv("PGPASSWORD", user.partition(":")[2])
    to = ["--to", postgres_name(database), "--to", chdb.url]

    def deep(code: int) -> str:
        asked = ["audit", "--stream", "device_state", "--group", group, *to, "--deep"]
        return scene.headrace(*asked, code=code)

    assert "accounted for once" in deep(0)
    with psycopg.connect(database) as connection:
        pick = "SELECT ctid FROM device_state ORDER BY device_id, timestamp OFFSET %s LIMIT 1"
        (gone,) = connection.execute(
            f"DELETE FROM device_state WHERE ctid = ({pick}) RETURNING device_id", (77,)
        ).fetchall()[0]
        (twice,) = connection.execute(
            f"INSERT INTO device_state SELECT * FROM device_state WHERE ctid = ({pick}) "
            "RETURNING device_id", (999,),
        ).fetchall()[0]  # fmt: skip
    # One row for another: the numbers are as they were.
    _tell(chdb, "ALTER TABLE device_state DELETE WHERE _partition = 0 AND _offset = 77")
    _tell(chdb, "INSERT INTO device_state SELECT * FROM device_state WHERE _partition = 0 AND "
                   "_offset = 99")  # fmt: skip
    assert all(line["holds"] for line in audited(scene, *to)), "the ledger is about what was done"
    said = deep(1)
    assert f"device_id {gone} is not in {to[1]}; last seen in Kafka, {scene.topic}[" in said
    assert f"device_id {twice} is in {to[1]} once more than in Kafka" in said
    assert f"is not in {chdb.url}; last seen in Kafka, {scene.topic}[0] at 77" in said
    assert f"is in {chdb.url} 1 time too often; it stands in Kafka, {scene.topic}[0] at 99" in said
    commands = [line.removeprefix("repair: ") for line in said.splitlines() if "repair: " in line]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        if words[0] == "psql":
            with psycopg.connect(database) as connection:
                assert connection.execute(words[3]).rowcount == 1
        else:
            scene.headrace(*words[1:])
    assert "accounted for once" in deep(0)
    assert postgres.rows("device_state") == chdb.rows("device_state") == 20_000


@pytest.mark.parametrize("kind", ["chdb", "clickhouse"])
def test_with_dedupe_clickhouse_is_held_against_kafka_by_keys(
    scene: Scene, clickhouse: ClickHouseTarget, tmp_path: Path, kind: str
) -> None:
    """A copy may be there, or merged away; which one stays is ClickHouse's affair."""
    target: Target = clickhouse if kind == "clickhouse" else ChdbTarget(tmp_path / "own")
    scene.configure(stream={"dedupe": ["device_id", "account_id", "timestamp"]})
    scene.migrate(target)
    records = scene.records(5_000)
    scene.publish([*records, *records[:30], (b"k", b"\xff\xff")])
    scene.inserter(target, "--drain", "--group", f"{scene.group}-2").finish()
    asked = ["audit", "--stream", "device_state", "--group", f"{scene.group}-2", "--deep"]

    def deep(code: int) -> str:
        return scene.headrace(*asked, "--to", target.url, code=code)

    assert "accounted for once" in deep(0)
    _tell(target, "OPTIMIZE TABLE device_state FINAL")
    assert target.rows("device_state") == 5_000
    assert "accounted for once" in deep(0)
    _tell(target, "DELETE FROM device_state WHERE _partition = 0 AND _offset = 77")
    _tell(target, "INSERT INTO device_state SELECT * REPLACE ('nobody' AS device_id) "
                  "FROM device_state WHERE _partition = 1 AND _offset = 99")  # fmt: skip
    said = deep(1)
    assert f"last seen in Kafka, {scene.topic}[0] at 77" in said
    assert f"device_id nobody is in {target.url} once more than in Kafka" in said
    missing, surplus = sorted(
        line.removeprefix("repair: ") for line in said.splitlines() if "repair: " in line
    )
    assert missing.startswith("headrace ")
    scene.headrace(*shlex.split(missing)[1:])
    _tell(target, surplus.removeprefix(f"in {target.url}: "))
    assert "accounted for once" in deep(0)


def _tell(target: Target, statement: str) -> None:
    client = connect(target.url)
    try:
        client.command(statement, settings={"mutations_sync": 2})
    finally:
        client.close()


def postgres_name(url: str) -> str:
    user, _, rest = url.removeprefix("postgresql://").partition("@")
    return f"postgresql://{user.partition(':')[0]}@{rest}"


@pytest.mark.slow
def test_an_event_without_a_receipt_is_named_and_sent_by_what_the_audit_prints(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    stand_ins: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_KEY", WEBHOOK_SECRET)
    with Forwarding.start(
        tmp_path, endpoints.kafka, unique("raw"), stand_ins, ["amplitude"]
    ) as scene:
        scene.send(600, others=60)
        scene.publish([(b"k", b"\xff\xff")])
        scene.forward("--drain").finish()
        scene.send(40)
        asked = ["audit", "--stream", "raw_events", "--to", "amplitude"]

        def found(code: int) -> dict[str, int]:
            said = scene.headrace(*asked, "--json", code=code)
            return total([json.loads(line) for line in said.splitlines()], "amplitude")

        assert found(0) == {
            "accepted": 701, "landed": 600, "dropped": 60, "dead": 1, "in_flight": 40,
            "difference": 0,
        }  # fmt: skip
        mover = Consumer(
            {"bootstrap.servers": scene.kafka, "group.id": "headrace-forward-amplitude"}
        )
        places = [TopicPartition(scene.topic, number) for number in range(4)]
        at = [place.offset for place in mover.committed(places, 10)]
        ends = [mover.get_watermark_offsets(place)[1] for place in places]
        # It has leapt over an outage, and died before it noted the replay of it.
        spans = {
            Partition(scene.topic, number): Span(*span)
            for number, span in enumerate(zip(at, ends, strict=True))
        }
        topic_id = topic_ids({"bootstrap.servers": scene.kafka}, [scene.topic])[scene.topic]
        note = Gap("0123abcd", topic_id, spans, 1, 2, begun=False).note()
        for metadata in (note, Intent.at_rest(topic_id).note()):
            mover.commit(
                offsets=[
                    TopicPartition(scene.topic, number, end, metadata)
                    for number, end in enumerate(ends)
                ],
                asynchronous=False,
            )
            if metadata == note:
                assert found(0)["in_flight"] == 40
        mover.close()
        # As though it had moved on without having sent them.
        assert found(1)["difference"] == 40
        said = scene.headrace(*asked, "--explain", code=1)
        assert all(f"event_id {name} is not in amplitude" in said for name in scene.allowed[600:])
        (repair,) = [line for line in said.splitlines() if line.startswith("repair: ")]
        scene.headrace(*shlex.split(repair)[2:])
        assert found(0)["landed"] == 640
        scene.once("amplitude")
        # It has lost one, by its own export, and never said so.
        *held, lost = scene.vendors.keys("amplitude")
        export = tmp_path / "export.json"
        export.write_text("".join(f'{{"$insert_id": "{key}"}}\n' for key in held))
        said = scene.headrace(*asked, "--against", str(export), code=1)
        assert f"event_id {lost} was accepted by amplitude, and its export does not hold" in said
        assert re.search(r"checkout +640 +639 +1", said)
        (repair,) = [line for line in said.splitlines() if line.startswith("repair: ")]
        stand_ins.forget("amplitude")
        scene.headrace(*shlex.split(repair)[2:])
        assert scene.vendors.keys("amplitude") == [lost], "just this one was sent again"
        export.write_text(f"{export.read_text()}{lost}\n")
        assert "accounted for once" in scene.headrace(*asked, "--against", str(export))


@pytest.mark.slow
def test_what_expired_before_it_was_counted_is_said_and_judged_neither_way(
    scene: Scene, database: str
) -> None:
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    scene.load(5000)
    scene.inserter(postgres, "--drain").finish()
    admin = AdminClient({"bootstrap.servers": scene.kafka})
    expired = TopicPartition(scene.topic, 0, 100)
    for done in admin.delete_records([expired]).values():
        done.result(30)
    lines = audited(scene, "--to", postgres.url)
    assert [line["partial"] for line in lines] == [True]
    assert lines[0]["difference"] == -100
    said = scene.headrace("audit", "--stream", "device_state", "--to", postgres.url, "--deep")
    assert "expired before it was counted" in said
    assert "rows are compared with Kafka's records from 20" in said
    # Counted, and expired then: it is known.
    scene.load(1000)
    scene.inserter(postgres, "--drain").finish()
    audited(scene, "--to", postgres.url)
    expired.offset = 200
    for done in admin.delete_records([expired]).values():
        done.result(30)
    assert total(audited(scene, "--to", postgres.url), postgres_name(database)) == {
        "accepted": 5900, "landed": 6000, "dropped": 0, "dead": 0, "in_flight": 0,
        "difference": -100,
    }  # fmt: skip


@pytest.mark.slow
def test_a_watch_audits_again_and_says_what_it_found_as_metrics(
    scene: Scene, database: str
) -> None:
    postgres = PostgresTarget(database)
    scene.migrate(postgres)
    scene.load(1000)
    scene.inserter(postgres, "--drain").finish()
    port = free_port()
    argv = ["audit", "--watch", "--every", "100ms", "--to", postgres.url, "--stream",
            "device_state", "--metrics", f"127.0.0.1:{port}", "--config", str(scene.config),
            "--kafka", scene.kafka]  # fmt: skip
    log = scene.folder / "watch.log"
    watch = Inserter(scene._start(argv, log), log, argv, port)
    scene.inserters.append(watch)
    scene.until(lambda: watch.says("1,000 records accepted"), "the first audit")
    assert watch.metric("headrace_audit_differing_hours") == 0
    # What the ledger does not know is not accounted for.
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE headrace_ledger SET landed = landed - 1 WHERE partition = 0")
    scene.until(lambda: watch.metric("headrace_audit_differing_hours") == 1, "the difference")
    watch.terminate()
    assert watch.wait() == 1, "the last audit did not add up"


class _Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_count_that_is_killed_at_any_point_counts_every_record_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.migrate()
    settings = {"bootstrap.servers": scene.kafka}
    stream = load(scene.config, kafka=scene.kafka, environ={}).stream("device_state")
    topic_id = topic_ids(settings, [stream.topic])[stream.topic]
    monkeypatch.setattr(accepted, "_COMMIT_EVERY", 500)
    for point in ("begin_transaction", "produce", "commit_transaction"):
        for behind in (False, True):
            scene.load(2000)
            book = Book(settings)
            book._producer = _Dying(book._producer, point, behind)  # type: ignore[assignment]
            with pytest.raises(_Killed):
                book.count(stream, topic_id)
    book = Book(settings)
    book.count(stream, topic_id)
    wanted: dict[Bucket, Sum] = {}
    for batch, *_ in scan(settings, stream, marks(settings, stream.topic)):
        for bucket, entry in entries_of(batch).items():
            wanted[bucket] = wanted.get(bucket, NOTHING).plus(entry.rows)
    assert book.totals(topic_id) == wanted
    assert sum(one.records for one in wanted.values()) == 12_000
    assert Book(settings).totals(topic_id) == wanted, "as it was written, too"
    # The last one has the book now.
    scene.load(10)
    with pytest.raises(Unavailable, match="another `headrace audit` has begun to count"):
        book.count(stream, topic_id)


class _Dying:
    """A producer whose process ends at the second call of a method, or right behind it."""

    def __init__(self, producer: Any, point: str, behind: bool) -> None:
        self._producer = producer
        self._point, self._behind = point, behind
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._producer, name)
        if name != self._point:
            return method

        def call(*args: Any) -> None:
            self._calls += 1
            if self._calls == 2 and not self._behind:
                raise _Killed
            method(*args)
            if self._calls == 2:
                raise _Killed

        return call
