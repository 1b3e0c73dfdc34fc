"""How an inserter ends: by a signal within 10 s, or with --drain when all that was there is in."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from inserter import Inserter
from running import Scene
from targets import PostgresTarget, Target
from tcp_proxy import Proxy

from headrace.cli import signals

KINDS = ["postgres", pytest.param("clickhouse", marks=pytest.mark.slow)]
SIGNALS = [signal.SIGTERM, signal.SIGINT]
# What the manual promises.
LEAVES_S = 10.0


def leave(inserter: Inserter, number: signal.Signals) -> None:
    """It ends with 0, in time."""
    began = time.monotonic()
    inserter.process.send_signal(number)
    inserter.finish(LEAVES_S * 2)
    took = time.monotonic() - began
    # The process sees to it; what is above is this machine's to end it.
    assert signals._MOST_S < LEAVES_S
    assert took < LEAVES_S + 2, f"{took:.1f} s after {number.name}:\n{inserter.output}"


@pytest.fixture
def proxy(postgres: PostgresTarget) -> Iterator[Proxy]:
    """Between inserters and PostgreSQL."""
    address = postgres.database.split("@")[1].split("/")[0]
    host, port = address.split(":")
    with Proxy(host, int(port)) as proxy:
        postgres.through = postgres.database.replace(address, f"127.0.0.1:{proxy.port}")
        yield proxy


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_ends_a_load_in_time_and_the_next_process_goes_on(
    scene: Scene, request: pytest.FixtureRequest, kind: str
) -> None:
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    for number in SIGNALS:
        with scene.flowing(10_000):
            landed = target.rows(scene.table)
            inserter = scene.inserter(target, "--max-rows", "2000")
            scene.landed(target, landed + 1)
            leave(inserter, number)
            # What it had finished is committed: the group has it, and the table no more.
            committed = sum(at for at in scene.committed().values() if at > 0)
            assert committed == target.rows(scene.table) >= landed + 1
    scene.inserter(target, "--drain").finish()
    scene.exactly_once(target)


def refuses(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut_all()


@pytest.mark.parametrize(
    "away",
    [
        pytest.param(refuses, id="refuses", marks=pytest.mark.slow),
        pytest.param(
            Proxy.hold,
            id="does-not-answer",
        ),
    ],
)
def test_a_signal_ends_an_inserter_in_time_while_its_database_is_away(
    scene: Scene, postgres: PostgresTarget, proxy: Proxy, away: Callable[[Proxy], None]
) -> None:
    scene.migrate(postgres)
    inserter = scene.inserter(postgres, "--max-rows", "1000")
    scene.load(5_000)
    scene.landed(postgres, scene.loaded)
    away(proxy)
    scene.load(20_000)
    busy = f"SELECT count(*) FROM {scene.table}"
    before = postgres.ask(busy)
    # A refusal is logged; silence is not, so there a batch has twice its time to close.
    until = time.monotonic() + 2
    scene.until(
        lambda: inserter.says("waits, trying again") or time.monotonic() > until,
        "records that can't land",
    )
    leave(inserter, signal.SIGTERM)
    assert postgres.ask(busy) == before
    proxy.refuse(False)
    proxy.release()
    scene.inserter(postgres, "--drain").finish()
    scene.exactly_once(postgres)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drain_ends_behind_transactions_and_aborted_records_do_not_land(
    scene: Scene, request: pytest.FixtureRequest, kind: str
) -> None:
    """A partition then ends with a marker, which is an offset without a record."""
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    producer = Producer(
        {"bootstrap.servers": scene.kafka, "transactional.id": scene.topic,
         "enable.idempotence": True, "log_level": 0}
    )  # fmt: skip
    producer.init_transactions(30)

    def transaction(commit: bool) -> None:
        producer.begin_transaction()
        records = scene.records(500)
        for n, (key, value) in enumerate(records):
            # To every partition, so that each one ends with a marker.
            producer.produce(scene.topic, value, key, partition=n % scene.partitions)
        producer.flush(30)
        if commit:
            producer.commit_transaction(30)
            scene.loaded += len(records)
        else:
            producer.abort_transaction(30)

    for commit in (True, False, True, False):
        transaction(commit)
    scene.inserter(target, "--drain").finish()
    scene.exactly_once(target)
    transaction(True)
    # Nothing but an aborted transaction, and nothing at all.
    for _ in range(2):
        scene.inserter(target, "--drain").finish()
        scene.exactly_once(target)
        transaction(False)


def test_a_drain_takes_what_was_there_and_does_not_wait_for_what_comes_later(
    scene: Scene, postgres: PostgresTarget
) -> None:
    scene.migrate(postgres)
    scene.load(20_000)
    with scene.flowing(2_000):
        scene.inserter(postgres, "--drain").finish()
        assert postgres.rows(scene.table) >= 20_000
    scene.inserter(postgres, "--drain").finish()
    scene.exactly_once(postgres)


def test_drains_fill_a_database_that_has_forgotten_what_had_landed(
    scene: Scene, postgres: PostgresTarget
) -> None:
    """A backup was restored, or it was made anew: the group's offsets are ahead of it."""
    scene.migrate(postgres)
    scene.load(5_000)
    scene.inserter(postgres, "--drain").finish()
    with psycopg.connect(postgres.database, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {scene.table}, headrace_offsets, headrace_ledger")
    # More than there are partitions: also who gets none waits for the others, and ends.
    together = [scene.inserter(postgres, "--drain") for _ in range(scene.partitions + 1)]
    for inserter in together:
        inserter.finish()
        scene.exactly_once(postgres)


@pytest.mark.parametrize("kind", KINDS)
def test_records_that_retention_removed_before_they_landed_are_named_and_never_skipped_unasked(
    scene: Scene, request: pytest.FixtureRequest, kind: str
) -> None:
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    scene.load(2_000)
    scene.inserter(target, "--drain").finish()
    begins = scene.committed()
    scene.load(4_000)
    # Half of what has not landed is gone, in one partition.
    end = {m.partition(): m.offset() + 1 for m in scene.read(scene.topic)}
    cut = (begins[0] + end[0]) // 2
    at = TopicPartition(scene.topic, 0, cut)
    [removed] = scene.admin.delete_records([at]).values()
    removed.result(20)
    landed = target.rows(scene.table)

    stopped = scene.inserter(target, "--drain")
    assert stopped.wait() == 1, stopped.output
    for words in (f"{scene.topic}[0]", str(begins[0]), str(cut), "--skip-lost"):
        assert stopped.says(words), stopped.output
    assert "Traceback" not in stopped.output
    assert scene.committed()[0] == begins[0]

    scene.inserter(target, "--drain", "--skip-lost").finish()
    lost = cut - begins[0]
    rows = scene.loaded - lost
    assert landed < rows
    assert target.distinct(scene.table) == (rows, rows)
    # And once only: nothing is lost any more.
    again = scene.inserter(target, "--drain")
    again.finish()
    assert not again.says("--skip-lost")
