"""Stories of ClickHouse's ledger that chance hardly tells, at the sink itself.

What it is owed stands in the metadata of offsets; rows for it are written late, by several writers,
and the commits of none of them may move what others have done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from fake_clickhouse import FakeClickHouse
from fake_log import FakeKafka, FakeSource, nothing, steps
from ledger_truth import hash_of
from simulation import Simulation
from sinks_under_test import batch_of

from consumers.batch import Batch, Span
from consumers.errors import Rejected, Systemic, Unavailable
from consumers.intent import Intent, Newest
from consumers.ledger import owed
from consumers.ledger.tally import Sum
from consumers.sinks.clickhouse import ClickHouseSink
from consumers.sinks.clickhouse_newest import table_tag
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
REFUSED = "refused"
HOUR = 3600
UNKNOWN_TABLE, OVERLOADED = 60, 202


class Gone(BaseException):
    """The process goes no further."""


class Place:
    """A topic, its group and the table; `table` is ClickHouse."""

    def __init__(self, partitions: int = 1) -> None:
        self.kafka = FakeKafka(Simulation(0))
        self.partitions = self.kafka.create(STREAM.topic, partitions)
        self.table = FakeClickHouse(self.kafka.sim, STREAM, {REFUSED})

    def fill(self, count: int, number: int = 0, kind: str = "good", apart_s: int = 0) -> None:
        partition = self.partitions[number]
        for _ in range(count):
            message: Any = STREAM.message()
            offset = self.kafka.end(partition)
            message.timestamp.seconds = 1_750_000_000 + offset * apart_s
            message.device_id, message.status = f"{number}-{offset}", kind
            self.kafka.produce(partition, message.SerializeToString())

    def writer(self, at: Callable[[str], None] = nothing) -> Writer:
        return Writer(self, at)

    def batch(self, *spans: tuple[int, int, int]) -> Batch:
        return batch_of(STREAM, self.kafka, spans)

    def landed(self, number: int = 0) -> list[int]:
        return sorted(offset for p, offset, _ in self.table.rows if p.number == number)

    def ledger(self, number: int = 0) -> tuple[Sum, Sum]:
        """What the audit would count, of rows and of dead letters."""
        partition = self.partitions[number]
        committed = self.kafka.committed.get(partition, (0, ""))
        total = self.table.accounted(partition, *committed)
        return total.rows, total.dead

    def written(self) -> list[tuple[int, int]]:
        """The spans that the table has rows of."""
        return sorted((start, row["stop"]) for (_, start), row in self.table.ledger.items())


class Writer:
    """A process's sink, and its member of the group: the one that has come last has all."""

    def __init__(self, place: Place, at: Callable[[str], None]) -> None:
        self.place = place
        for member in list(place.kafka.members):
            member.leave()
        self.log: FakeSource = place.kafka.join(at=at)
        with place.table.connected(at):
            self.sink = ClickHouseSink("clickhouse://fake", [STREAM], self.log, steps(at))

    def resume(self) -> list[int]:
        known = self.log.known(self.place.partitions)
        return list(self.sink.resume(known).values())

    def write(self, *spans: tuple[int, int, int], dead: bool = False) -> None:
        """One batch; if `dead`, its only row is among the dead letters."""
        batch = self.place.batch(*spans)
        self.sink.write(batch.without([0]) if dead else batch)


def rows(*offsets: int) -> Sum:
    return Sum(len(offsets), hash_of(offsets))


NONE = rows()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the ledger speaks for two batches."""
    monkeypatch.setattr(owed, "BATCHES", 2)


def unanswered(writer: Writer, code: int) -> Any:
    """Has ClickHouse answer a sink with an error, as long as this is entered."""
    error = DatabaseError(f"Code: {code}. (by the test)")
    error.code = code
    client = writer.sink._tables._client
    return mock.patch.object(client, "query", mock.Mock(side_effect=error))


def second_commit(writer: Writer, raised: BaseException, *, taken: bool) -> Any:
    """Has the second commit raise this, as long as this is entered; Kafka may have taken it."""
    commit, count = writer.log.commit, 0

    def counted(*args: Any) -> None:
        nonlocal count
        count += 1
        if count != 2 or taken:
            commit(*args)
        if count == 2:
            raise raised

    return mock.patch.object(writer.log, "commit", counted)


def test_a_row_is_written_for_what_commits_have_said_and_the_rest_when_the_process_ends() -> None:
    place = Place()
    place.fill(9)
    writer = place.writer()
    assert writer.resume() == [0]
    for start in (0, 2, 4):
        writer.write((0, start, start + 2))
        assert place.ledger() == (rows(*range(start + 2)), NONE)
    assert place.written() == [(0, 4)]
    committed = dict(place.kafka.committed)
    writer.sink.close()
    assert place.written() == [(0, 4), (4, 6)]
    assert place.kafka.committed == committed, "who leaves moves nothing"
    assert place.ledger() == (rows(*range(6)), NONE)


def test_a_batch_of_more_hours_than_metadata_takes_is_written_at_once() -> None:
    place = Place()
    place.fill(3, apart_s=HOUR)
    place.fill(40, apart_s=HOUR)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 3))
    writer.write((0, 3, 40))
    assert place.written() == [(0, 3), (3, 40)]
    writer.write((0, 40, 43))
    assert place.ledger() == (rows(*range(43)), NONE)
    assert place.written() == [(0, 3), (3, 40)]


@pytest.mark.parametrize("code", [UNKNOWN_TABLE, OVERLOADED])
def test_who_leaves_moves_nothing_in_a_topic_that_was_made_anew(code: int) -> None:
    """Topic and table were dropped to start over, under one that owes its ledger something."""
    place = Place()
    place.fill(10)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 5))
    place.partitions = place.kafka.create(STREAM.topic, 1)
    place.fill(10)
    place.table.rows.clear()
    with unanswered(writer, code), pytest.raises((Systemic, Unavailable)):
        writer.resume()
    writer.sink.close()
    after = place.writer()
    assert after.resume() == [0]
    after.write((0, 0, 10))
    assert place.landed() == list(range(10))
    assert place.ledger() == (rows(*range(10)), NONE)


def test_who_leaves_does_not_write_what_was_owed_before_a_commit_without_an_answer() -> None:
    """Kafka took it; the next one has found more owed from the same start on, and written that."""
    place = Place()
    place.fill(8)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 2))
    with second_commit(writer, Unavailable("no answer"), taken=True), pytest.raises(Unavailable):
        writer.write((0, 2, 4))
    after = place.writer()
    assert after.resume() == [4]
    assert place.written() == [(0, 4)]
    writer.sink.close()
    assert place.written() == [(0, 4)]
    assert place.ledger() == (rows(*range(4)), NONE)


def test_an_old_row_that_arrives_late_says_nothing_else_than_the_next_ones_do() -> None:
    """It was about to be written when its process stood still; the record behind it is refused,
    and is a dead letter of the next one."""
    place = Place()
    place.fill(2)
    place.fill(1, kind=REFUSED)
    place.fill(3)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 1))
    writer.write((0, 1, 2))
    account, late = writer.sink._tables.account, []

    def stand_still(*args: Any) -> None:
        late.append(args)
        raise Gone

    with mock.patch.object(writer.sink._tables, "account", stand_still), pytest.raises(Gone):
        writer.write((0, 2, 3), dead=True)
    after = place.writer()
    assert after.resume() == [2]
    with pytest.raises(Rejected):
        after.write((0, 2, 3))
    after.write((0, 2, 3), dead=True)
    after.write((0, 3, 6))
    account(*late[0])
    assert place.ledger() == (rows(0, 1, 3, 4, 5), rows(2))


def test_what_was_written_for_a_batch_is_not_owed_again_when_it_is_refused_and_halved() -> None:
    """The first statement for it had no answer, and arrives long after the second."""
    place = Place(2)
    place.fill(3)
    place.fill(2, number=1)
    place.fill(1, number=1, kind=REFUSED)
    place.fill(2, number=1)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 1))
    writer.write((0, 1, 2), (1, 0, 1))
    account, late = writer.sink._tables.account, []

    def unanswered_at_first(*args: Any) -> None:
        if not late:
            late.append(args)
            raise Unavailable("no answer")
        account(*args)

    with mock.patch.object(writer.sink._tables, "account", unanswered_at_first):
        with pytest.raises(Unavailable):
            writer.write((0, 2, 3), (1, 1, 3))
        with pytest.raises(Rejected):
            writer.write((0, 2, 3), (1, 1, 3))
        writer.write((0, 2, 3))
        with pytest.raises(Rejected):
            writer.write((1, 1, 3))
        writer.write((1, 1, 2))
        with pytest.raises(Rejected):
            writer.write((1, 2, 3))
        writer.write((1, 2, 3), dead=True)
        writer.write((1, 3, 4))
        writer.write((1, 4, 5))
    account(*late[0])
    assert place.ledger() == (rows(0, 1, 2), NONE)
    assert place.ledger(1) == (rows(0, 1, 3, 4), rows(2))


def test_a_dead_letter_behind_offsets_without_records_is_counted_once() -> None:
    place = Place(2)
    place.kafka.marker(place.partitions[0], 2)
    place.fill(1, kind=REFUSED)
    place.fill(2)
    place.fill(6, number=1)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 1), (1, 0, 1))
    writer.write((0, 1, 2), (1, 1, 2))
    with second_commit(writer, Gone(), taken=False), pytest.raises(Gone):
        writer.write((0, 2, 3), dead=True)
    after = place.writer()
    assert after.resume() == [2, 2]
    after.write((0, 2, 3), dead=True)
    after.write((0, 3, 5))
    assert place.ledger() == (rows(3, 4), rows(2))
    assert place.ledger(1) == (rows(0, 1), NONE)


@pytest.mark.parametrize("position", [4, 6])
def test_what_a_reset_of_the_groups_offsets_took_is_counted_anew(position: int) -> None:
    """To where it was, or beyond, so that records are left out; they count for nothing."""
    place = Place()
    place.fill(9)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 4))
    place.kafka.committed[place.partitions[0]] = (position, "")
    after = place.writer()
    assert after.resume() == [position]
    after.write((0, position, 9))
    wanted = rows(*range(4), *range(position, 9)), NONE
    assert place.ledger() == wanted
    # And where the group is forgotten then: what is not in the table has not landed.
    place.kafka.committed.clear()
    assert place.writer().resume() == [9]
    assert place.ledger() == wanted


def test_what_metadata_says_counts_also_where_the_table_is_ahead_and_kafka_has_it_no_more() -> None:
    place = Place()
    place.fill(8)
    writer = place.writer()
    writer.resume()
    writer.write((0, 0, 4))
    old = dict(place.kafka.committed)
    writer.write((0, 4, 6))
    place.kafka.committed.update(old)
    place.kafka.expire(place.partitions[0], 4)
    after = place.writer()
    assert after.resume() == [6]
    after.write((0, 6, 8))
    assert place.ledger() == (rows(*range(8)), NONE)


def test_what_the_ledger_has_is_not_counted_anew() -> None:
    """Kafka has forgotten the group, but not the records."""
    place = Place()
    place.fill(9)
    writer = place.writer()
    writer.resume()
    for start in (0, 2, 4):
        writer.write((0, start, start + 2))
    place.kafka.committed.clear()
    assert place.written() == [(0, 4)]
    after = place.writer()
    assert after.resume() == [6]
    assert place.written() == [(0, 4), (4, 6)]
    assert place.ledger() == (rows(*range(6)), NONE)


def test_each_owner_lands_its_own_rows_of_an_old_insert(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, under tokens of their own: the second is no repetition of the first."""

    def dies(point: str) -> None:
        if point == "insert arrives":
            raise Gone

    place = Place(2)
    place.fill(4)
    place.fill(3, number=1)
    writer = place.writer(dies)
    writer.resume()
    with pytest.raises(Gone):
        writer.write((0, 0, 4), (1, 0, 3))
    monkeypatch.setattr("consumers.intent.FRESH_S", 0.0)
    assert place.writer().resume() == [4, 3]
    assert (place.landed(), place.landed(1)) == ([0, 1, 2, 3], [0, 1, 2])


def test_all_partitions_of_a_topic_are_asked_for_and_committed_at_once() -> None:
    """One by one, 1,300 of them kept an inserter from landing anything for half a minute, at each
    start and whenever they moved: who was killed leaves intents as well."""
    place = Place(partitions=40)
    spans = [(number, 0, 3) for number in range(40)]
    for number in range(40):
        place.fill(6, number)

    def questions() -> int:
        writer = place.writer()
        client = writer.sink._tables._client
        asked = mock.Mock(side_effect=client.query)
        commit = mock.Mock(side_effect=writer.log.commit)
        with (
            mock.patch.object(client, "query", asked),
            mock.patch.object(writer.log, "commit", commit),
        ):
            writer.resume()
            assert commit.call_count == 1
        return int(asked.call_count)

    assert questions() == 1
    writer = place.writer()
    writer.resume()
    writer.write(*spans)
    assert questions() == 2
    writer = place.writer()
    writer.resume()
    with (
        mock.patch.object(writer.sink._tables, "insert", mock.Mock(side_effect=Gone)),
        pytest.raises(Gone),
    ):
        writer.write(*((number, 3, 6) for number in range(40)))
    assert questions() < 3 * 40
    assert all(place.landed(number) == list(range(6)) for number in range(40))


def test_of_thousands_of_partitions_no_statement_and_no_commit_is_more_than_is_taken() -> None:
    """ClickHouse takes 256 KiB, Kafka 1 MiB: both refusals read as outages, at each start."""
    place = Place(4000)
    topic_id = place.kafka.ids[STREAM.topic]
    newest = Newest(Span(10**9, 10**9 + 1), 400_000, table_tag(STREAM))
    note = Intent.at_rest(topic_id, None, newest).note()
    place.kafka.committed = dict.fromkeys(place.partitions, (10**9 + 1, note))
    place.table.rows = [(p, 10**9, {"_topic_id": topic_id}) for p in place.partitions]
    after = place.writer()
    query = mock.Mock(side_effect=after.sink._tables._client.query)
    commit = mock.Mock(side_effect=after.log.commit)
    with (
        mock.patch.object(after.sink._tables._client, "query", query),
        mock.patch.object(after.log, "commit", commit),
    ):
        assert after.resume() == [10**9 + 1] * 4000
    assert max(len(call.args[0]) for call in query.call_args_list) < 2**17
    assert max(sum(map(len, call.args[1].values())) for call in commit.call_args_list) < 2**18
