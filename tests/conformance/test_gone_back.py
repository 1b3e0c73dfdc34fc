"""A table that has gone back, restored from a backup say, behind positions that are Kafka's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from scene import Scene, Writer
from sinks_under_test import ClickHouseSubject

from consumers.batch import Partition
from consumers.errors import Systemic, Unavailable
from consumers.ledger.account import CantBeJudged
from consumers.sinks import Known, clickhouse_ledger, clickhouse_newest
from consumers.sinks.clickhouse import ClickHouseSink
from consumers.sinks.clickhouse_table import Tables
from consumers.sinks.clickhouse_types import ttl

# Over HTTP it is the same code.
pytestmark = pytest.mark.parametrize("subject", ["chdb"], indirect=True)

NewScene = Callable[..., Scene]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is not waited for."""
    monkeypatch.setattr(clickhouse_newest, "_CATCH_UP_S", 0.0)
    monkeypatch.setattr(clickhouse_ledger, "_CATCH_UP_S", 0.0)


def clickhouse_of(scene: Scene) -> ClickHouseSubject:
    assert isinstance(scene.subject, ClickHouseSubject)
    return scene.subject


def tables(writer: Writer) -> Tables:
    assert isinstance(writer.sink, ClickHouseSink)
    return writer.sink._tables


@contextmanager
def backup(scene: Scene) -> Iterator[None]:
    """What lands while this is entered is gone behind it, and from the ledger too."""
    subject = clickhouse_of(scene)
    backed_up = (scene.stream.table, "headrace_ledger")
    for table in backed_up:
        subject.command(f"CREATE TABLE kept_{table} AS {table}")
        subject.command(f"INSERT INTO kept_{table} SELECT * FROM {table}")
    yield
    for table in backed_up:
        subject.command(f"DROP TABLE {table} SYNC")
        subject.command(f"RENAME TABLE kept_{table} TO {table}")


def account(scene: Scene) -> None:
    """What the audit asks for."""
    committed = {
        partition: Known(scene.kafka.ids[scene.stream.topic], 0, 99, *said)
        for partition, said in scene.kafka.committed.items()
    }
    subject = clickhouse_of(scene)
    with mock.patch.object(clickhouse_ledger, "known_of", lambda *_: committed):
        topic_id = scene.kafka.ids[scene.stream.topic]
        clickhouse_ledger.account(subject.url, {}, "the-group", scene.stream, topic_id)


def landed_twice(new_scene: NewScene, **settings: Any) -> Scene:
    """The second batch of partition 0 is not in the table any more."""
    scene = new_scene(**settings)
    scene.fill(0, 9, seconds=int(time.time()))
    scene.fill(1, 3, seconds=int(time.time()))
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 5), (1, 0, 3))
    # What was owed is in the ledger then.
    scene.writer().resume()
    with backup(scene):
        writer = scene.writer()
        writer.resume()
        writer.write((0, 5, 7))
        scene.writer().resume()
    return scene


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dedupe", [(), ("id", "at")])
def test_nothing_lands_behind_what_is_gone_until_a_person_has_acted(
    new_scene: NewScene, dedupe: tuple[str, ...]
) -> None:
    """The group is deleted, as the message says; then everything is there once, and accounted."""
    scene = landed_twice(new_scene, dedupe=dedupe)
    committed = dict(scene.kafka.committed)
    with pytest.raises(Systemic, match=r"has gone back: what landed of .*\[0\] from 5 to 7 is not"):
        scene.writer().resume()
    assert scene.kafka.committed == committed
    with pytest.raises(CantBeJudged, match=r"gone back: .* --delete --group the-group`"):
        account(scene)
    scene.kafka.committed.clear()
    assert scene.writer().resume() == {0: 5, 1: 3}
    scene.finish()
    scene.check()
    account(scene)


def test_a_replica_that_is_behind_is_waited_for(new_scene: NewScene) -> None:
    scene = landed_twice(new_scene)
    writer = scene.writer()
    with pytest.raises(Unavailable, match="has gone back"):
        writer.resume()
    late = writer.batch((0, 5, 7)).chunks
    topic_id = scene.kafka.ids[scene.stream.topic]
    tables(writer).insert(scene.stream, late, topic_id, "from the other replica")
    assert writer.resume() == {0: 7, 1: 3}


def test_an_audit_waits_for_a_replica_that_is_behind_too(new_scene: NewScene) -> None:
    """The newest rows of a busy stream are a second old: each audit of one was red."""
    scene = new_scene()
    scene.fill(0, 5)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 5))
    lacking = [{Partition(scene.stream.topic, 0)}] * 2 + [set()]
    with mock.patch.object(clickhouse_ledger, "gone", side_effect=lacking) as asked:
        account(scene)
    assert asked.call_count == 3


@pytest.mark.usefixtures("at_once")
def test_who_was_running_looks_back_when_the_destination_has_been_away(new_scene: NewScene) -> None:
    """Nor does it write into the ledger what was owed of what is gone; and who comes next finds the
    insert that it had announced, and looks back as well."""
    scene = new_scene()
    scene.fill(0, 9)
    scene.fill(1, 6)
    writer = scene.writer()
    writer.resume()
    away = mock.patch.object(tables(writer), "insert", side_effect=Unavailable("away"))
    with backup(scene):
        writer.write((1, 0, 1))
        writer.resume()
        writer.write((0, 0, 5), (1, 1, 6))
        with away, pytest.raises(Unavailable, match="away"):
            writer.write((0, 5, 9))
    with pytest.raises(Systemic, match="from 0 to 5 is not there any more"):
        writer.write((0, 5, 9))
    writer.sink.close()
    with pytest.raises(Systemic, match=r"\[0\] from 0 to 5 is not there any more"):
        scene.writer().resume()
    scene.kafka.committed.clear()
    scene.finish()
    scene.check()


@pytest.mark.usefixtures("at_once")
def test_what_the_table_removes_by_its_retention_is_not_missed(new_scene: NewScene) -> None:
    scene = new_scene(retention="7 days")
    subject, table = clickhouse_of(scene), scene.stream.table
    scene.fill(0, 5)
    scene.fill(0, 5, seconds=int(time.time()))
    subject.command(f"ALTER TABLE {table} MODIFY TTL {ttl(scene.stream)}")
    try:
        writer = scene.writer()
        writer.resume()
        writer.write((0, 0, 5))
        subject.command(f"OPTIMIZE TABLE {table} FINAL")
        assert subject.landed(scene.stream) == []
        assert scene.writer().resume() == {0: 5, 1: 0}
        account(scene)
        writer = scene.writer()
        writer.resume()
        writer.write((0, 5, 10))
        subject.command(f"DELETE FROM {table} WHERE _topic = '{scene.stream.topic}'")
        with pytest.raises(Systemic, match="from 5 to 10 is not there any more"):
            scene.writer().resume()
    finally:
        subject.command(f"ALTER TABLE {table} REMOVE TTL")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("dedupe", "then"), [((), ("id", "at")), (("id", "at"), ()), (("id", "at"), ("id", "at"))]
)
def test_another_table_has_not_gone_back(
    new_scene: NewScene, dedupe: tuple[str, ...], then: tuple[str, ...]
) -> None:
    """As docs/streams.md says to change `dedupe`: what has landed stays in the old one."""
    scene = new_scene(dedupe=dedupe)
    scene.fill(0, 9, seconds=int(time.time()))
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 3))
    scene.writer().resume()
    subject = clickhouse_of(scene)
    if dedupe == then:
        other = f"other_{scene.stream.table}"
        subject.command(f"CREATE TABLE {other} AS {scene.stream.table}")
    else:
        other = subject.stream(dedupe=then).table
    scene.stream = replace(scene.stream, table=other, dedupe=then)
    writer = scene.writer()
    assert writer.resume() == {0: 3, 1: 0}
    account(scene)
    writer.write((0, 3, 9))
    assert scene.writer().resume() == {0: 9, 1: 0}
    subject.command(f"TRUNCATE TABLE {other}")
    subject.command(f"DELETE FROM headrace_ledger WHERE table_name = '{other}'")
    with pytest.raises(Systemic, match="from 3 to 9 is not there any more"):
        scene.writer().resume()
