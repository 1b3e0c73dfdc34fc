"""The destination goes away in the middle, for real: connections are cut, answers are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from chdb_door import Door
from fake_log import nothing, steps
from scene import Crash, Scene
from sinks_under_test import ClickHouseSubject, PostgresSubject
from tcp_proxy import Proxy

from consumers.batch import Span
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.sinks import Sink
from consumers.sinks.clickhouse import ClickHouseSink
from consumers.sinks.clickhouse_client import connect


@pytest.fixture
def proxy(postgres: str) -> Iterator[Proxy]:
    """Between a sink and PostgreSQL."""
    parts = urlsplit(postgres)
    with Proxy(parts.hostname or "", parts.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def by_proxy(postgres: str, proxy: Proxy, tmp_path: Path) -> Iterator[Scene]:
    """A scene in PostgreSQL; its writers go through the proxy."""
    parts = urlsplit(postgres)
    through = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}"))
    subject = PostgresSubject(tmp_path, postgres, through.geturl())
    with Scene(subject) as scene:
        scene.fill(0, 9)
        scene.fill(1, 3)
        yield scene
    subject.close()


def cut_idle(proxy: Proxy) -> None:
    proxy.cut_all()


CUTS: dict[str, Callable[[Proxy], None]] = {
    "idle": cut_idle,
    "before COPY": lambda proxy: proxy.cut_before(b"COPY"),
    "after COPY began": lambda proxy: proxy.cut_after(b"COPY"),
    "within COPY": lambda proxy: proxy.after_bytes(600, "up"),
    "before UPDATE": lambda proxy: proxy.cut_before(b"UPDATE headrace_offsets"),
    "after UPDATE": lambda proxy: proxy.cut_after(b"UPDATE headrace_offsets"),
    "before COMMIT": lambda proxy: proxy.cut_before(b"COMMIT"),
    "after COMMIT": lambda proxy: proxy.cut_after(b"COMMIT"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_connection_that_breaks_in_the_middle_lands_the_batch_once(
    by_proxy: Scene, proxy: Proxy, cut: str
) -> None:
    writer = by_proxy.writer()
    writer.resume()
    batch = writer.batch((0, 0, 7), (1, 0, 3))
    CUTS[cut](proxy)
    with pytest.raises(Unavailable):
        writer.sink.write(batch)
    by_proxy.check(*([(0, 0, 7), (1, 0, 3)] if cut == "after COMMIT" else [(0, 0, 0)]))
    writer.sink.write(batch)
    by_proxy.check((0, 0, 7), (1, 0, 3))
    by_proxy.finish(writer=writer)
    by_proxy.check()


def test_a_commit_whose_answer_was_lost_is_found_by_whoever_comes_next(
    by_proxy: Scene, proxy: Proxy
) -> None:
    writer = by_proxy.writer()
    writer.resume()
    proxy.cut_after(b"COMMIT")
    with pytest.raises(Unavailable):
        writer.write((0, 0, 7))
    by_proxy.finish()
    by_proxy.check()


def test_a_batch_after_an_unanswered_one_that_was_given_up_lands(
    by_proxy: Scene, proxy: Proxy
) -> None:
    """The next batch is not taken for the one before, whatever became of that."""
    writer = by_proxy.writer()
    writer.resume()
    at = 0
    for cut in (proxy.cut_after, proxy.cut_before):
        cut(b"COMMIT")
        with pytest.raises(Unavailable):
            writer.write((0, at, at + 2))
        other = by_proxy.writer()
        start = other.resume()[0]
        other.write((0, start, start + 1))
        writer.resume()
        writer.write((0, start + 1, start + 2))
        at = start + 2
    by_proxy.finish(writer=writer)
    by_proxy.check()


def test_postgres_is_away_while_a_sink_is_opened_or_asked(by_proxy: Scene, proxy: Proxy) -> None:
    writer = by_proxy.writer()
    proxy.refuse()
    proxy.cut_all()
    with pytest.raises(Unavailable):
        writer.resume()
    with pytest.raises(Unavailable):
        by_proxy.writer()
    proxy.refuse(False)
    assert writer.resume() == {0: 0, 1: 0}
    by_proxy.finish(writer=writer)
    by_proxy.check()


def test_an_unanswered_batch_of_which_others_have_landed_a_part_is_not_taken_for_landed(
    by_proxy: Scene, proxy: Proxy
) -> None:
    by_proxy.fill(0, 4)
    by_proxy.fill(1, 4)
    writer = by_proxy.writer()
    writer.resume()
    proxy.cut_before(b"COMMIT")
    with pytest.raises(Unavailable):
        writer.write((0, 0, 2), (1, 0, 2))
    other = by_proxy.writer()
    assert other.resume(0) == {0: 0}
    other.write((0, 0, 2))
    with pytest.raises(Fenced):
        writer.write((0, 0, 2), (1, 0, 2))
    by_proxy.finish()
    by_proxy.check()


# -- ClickHouse over HTTP --------------------------------------------------------------------------


@pytest.fixture
def http(door: Door, tmp_path: Path) -> Iterator[Scene]:
    """A scene in ClickHouse, over HTTP."""
    subject = ClickHouseSubject("clickhouse", tmp_path, f"clickhouse://127.0.0.1:{door.port}")
    with Scene(subject) as scene:
        scene.fill(0, 9)
        scene.fill(1, 3)
        yield scene
    door.cut("before", times=0)
    subject.close()


def test_what_another_writer_has_landed_is_not_refused_by_an_index_of_the_users_own(
    by_proxy: Scene, postgres: str
) -> None:
    """Whoever comes late, such as behind a COMMIT that was cut off, would bury good records."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE UNIQUE INDEX ON {by_proxy.stream.table} (id)")
    slow, fast = by_proxy.writer(), by_proxy.writer()
    slow.resume()
    fast.resume()
    fast.write((0, 0, 4))
    with pytest.raises(Fenced):
        slow.write((0, 0, 4))
    by_proxy.check((0, 0, 4))


@pytest.mark.parametrize("where", ["before", "after", "error"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_insert_without_an_answer_lands_once(
    http: Scene, door: Door, where: str, times: int
) -> None:
    writer = http.writer()
    writer.resume()
    writer.write((0, 0, 2))
    batch = writer.batch((0, 2, 7), (1, 0, 3))
    # 252 is TOO_MANY_PARTS: slow down. The client repeats only `bytes` by itself; ours are not.
    door.cut(where, match="INSERT INTO", times=times, code=252)
    with pytest.raises(Unavailable):
        writer.sink.write(batch)
    if where != "after":
        http.check((0, 0, 2))
        for _ in range(times - 1):
            with pytest.raises(Unavailable):
                writer.sink.write(batch)
    # After a lost answer the table is asked, and there is nothing left to insert.
    writer.sink.write(batch)
    http.check((0, 0, 7), (1, 0, 3))
    door.cut(where, times=0)
    http.finish()
    http.check()


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_insert_without_an_answer_is_settled_by_whoever_comes_next(
    http: Scene, door: Door, where: str
) -> None:
    writer = http.writer()
    writer.resume()
    door.cut(where, match="INSERT INTO", times=2)
    with pytest.raises(Unavailable):
        writer.write((0, 0, 7), (1, 0, 2))
    writer.crash()
    # An answer is lost once more, while it is settled.
    door.cut(where, match="INSERT INTO", times=2)
    for _ in range(3):
        try:
            http.writer().resume()
            break
        except Unavailable:
            continue
    door.cut(where, times=0)
    http.finish()
    http.check()


def test_clickhouse_is_killed_and_comes_back(http: Scene, door: Door) -> None:
    writer = http.writer()
    writer.resume()
    writer.write((0, 0, 2))
    door.kill()
    for attempt in (lambda: writer.write((0, 2, 7)), writer.resume):
        with pytest.raises(Unavailable):
            attempt()
    with pytest.raises(Unavailable):
        ClickHouseSink(f"clickhouse://127.0.0.1:{door.port}", [http.stream], writer.log)
    door.start()
    writer.write((0, 2, 7))
    http.finish(writer=writer)
    http.check()


def test_a_sink_opens_a_client_of_its_own_and_closes_it(http: Scene, door: Door) -> None:
    """The other tests share one."""
    log = http.kafka.join()
    sink: Sink = ClickHouseSink(
        f"clickhouse://127.0.0.1:{door.port}", [http.stream], log, steps(nothing)
    )
    sink.resume(log.known(http.partitions))
    sink.write(http.writer().batch((0, 0, 5)))
    sink.close()
    http.check((0, 0, 5))


def test_another_programs_metadata_in_the_group_is_not_overwritten(http: Scene) -> None:
    http.kafka.committed[http.partitions[0]] = (4, "somebody else's note")
    with pytest.raises(Systemic, match="--group"):
        http.writer().resume()
    assert http.kafka.committed[http.partitions[0]] == (4, "somebody else's note")


def test_what_the_table_has_is_not_inserted_again_when_its_token_is_forgotten(
    http: Scene,
) -> None:
    """Kafka was away when the batch was to be committed, and for longer than tokens are kept."""
    subject = http.subject
    assert isinstance(subject, ClickHouseSubject)
    away = False

    def at(point: str) -> None:
        if away and point == "commit begins":
            raise Unavailable(point)

    writer, other = http.writer(at), http.writer()
    writer.resume(0)
    other.resume(1)
    subject.command(
        f"ALTER TABLE {http.stream.table} MODIFY SETTING non_replicated_deduplication_window = 1"
    )
    away = True
    with pytest.raises(Unavailable):
        writer.write((0, 0, 7))
    http.check((0, 0, 7))
    away = False
    for offset in range(3):
        other.write((1, offset, offset + 1))
    writer.write((0, 0, 7))
    http.check((0, 0, 7), (1, 0, 3))


def test_rows_that_were_landed_otherwise_are_not_landed_again_with_their_old_neighbours(
    http: Scene,
) -> None:
    """An insert of two partitions was refused because of one of them. The other one is landed by its
    new owner alone; then the table takes what it refused."""  # noqa: E501
    subject = http.subject
    assert isinstance(subject, ClickHouseSubject)
    http.fill(1, 1, text="poison")

    def crash_at_insert(point: str) -> None:
        if point == "insert begins":
            raise Crash(point)

    writer = http.writer(crash_at_insert)
    writer.resume()
    with pytest.raises(Crash):
        writer.write((0, 0, 5), (1, 0, 4))
    writer.crash()
    first, second = http.writer(), http.writer()
    assert first.resume(0) == {0: 0}
    first.write((0, 0, 5))
    subject.command(f"ALTER TABLE {http.stream.table} DROP CONSTRAINT no_poison")
    second.resume(1)
    http.finish()
    http.check()


def test_rows_on_which_a_materialized_view_fails_stop_the_writer_and_land_once(
    http: Scene,
) -> None:
    """The table has them by then: as rejected rows they would land again in halves, and be dead."""
    subject = http.subject
    assert isinstance(subject, ClickHouseSubject)
    subject.command("CREATE TABLE numbers_of (n UInt32) ENGINE = MergeTree ORDER BY n")
    subject.command(
        f"CREATE MATERIALIZED VIEW picky TO numbers_of AS SELECT toUInt32(text) AS n "
        f"FROM {http.stream.table} WHERE startsWith(id, '{http.stream.topic}/')"
    )
    try:
        writer = http.writer()
        writer.resume()
        with pytest.raises(Systemic, match=r"default\.picky, a materialized view, fails .* mend"):
            writer.write((0, 0, 7), (1, 0, 3))
    finally:
        subject.command("DROP VIEW picky")
        subject.command("DROP TABLE numbers_of")
    writer.crash()
    http.finish()
    http.check()


def test_what_a_users_profile_says_of_answers_and_tokens_does_not_count(
    http: Scene, door: Door
) -> None:
    """Rows that an answer leaves out would be put in again, and tokens are what keeps them once."""
    assert isinstance(http.subject, ClickHouseSubject)
    writer = http.writer()
    writer.resume()
    assert isinstance(writer.sink, ClickHouseSink)
    tables, batch = writer.sink._tables, writer.batch((0, 0, 7))
    topic_id = http.kafka.ids[http.stream.topic]
    place = http.partitions[0]
    asked = {place: Span(0, 7)}
    door.profile(
        use_query_cache="1",
        limit="1",
        deduplicate_insert="disable",
        skip_unavailable_shards="1",
        distinct_overflow_mode="break",
    )
    try:
        query = "SELECT getSetting('skip_unavailable_shards'), getSetting('distinct_overflow_mode')"
        assert tables._client.query(query).result_rows == [(False, "throw")]
        assert tables.present(asked, topic_id) == {place: set()}
        for _ in range(2):
            tables.insert(http.stream, batch.chunks, topic_id, "a token")
        assert tables.present(asked, topic_id) == {place: set(range(7))}
        door.profile(max_result_rows="3", result_overflow_mode="break", max_block_size="1")
        with pytest.raises(Systemic, match="change the settings profile of this user"):
            tables.present(asked, topic_id)
        # Who may read and set nothing may audit all the same, and whatever the defaults once were.
        door.profile(compatibility="25.8", readonly="1")
        client = connect(http.subject.url)
        assert client.query("SELECT 1").result_rows == [(1,)]
        client.close()
    finally:
        door.profile()
    http.check((0, 0, 7))
