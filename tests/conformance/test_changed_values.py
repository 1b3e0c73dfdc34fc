"""PostgreSQL, where rows have other values than their records give now: replay and comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fake_log import FakeKafka
from simulation import Simulation
from sinks_under_test import PostgresSubject, batch_of, encode

from consumers.batch import Batch, Partition, Span
from consumers.errors import Systemic
from consumers.ledger.finding import Finding, Question
from consumers.replay.postgres import PostgresReplay
from consumers.sinks import postgres_ledger as ledger
from consumers.sinks.postgres_compare import compare
from ingest.streams import Stream

_RECORDS = 20


class Table:
    """A table in which 20 records have landed, by its ledger, and a replay of all of them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.subject = PostgresSubject(folder, url)
        self.stream: Stream = self.subject.stream()
        self.name = f'"{self.stream.table}"'
        self.partition = Partition(self.stream.topic, 0)
        self.land([(f"{self.stream.topic}/0/{n:02}", f"text {n}") for n in range(_RECORDS)])

    def land(self, records: Sequence[tuple[str, str]]) -> None:
        """These, and nothing else."""
        self.kafka = FakeKafka(Simulation(1))
        self.kafka.create(self.stream.topic, 1)
        self.log = self.kafka.join()
        for name, text in records:
            self.kafka.produce(self.partition, encode(self.stream, name, text=text))
        self.run(f"DELETE FROM {self.name}")
        self.run("DELETE FROM headrace_ledger")
        self.run("DELETE FROM headrace_offsets")
        self.run(
            "INSERT INTO headrace_ledger VALUES (%s, %s, 'id', 0, "
            "date_bin('1 hour', to_timestamp(1750000000), 'epoch'), %s, 0, 0, 0, 0)",
            self.stream.table, self.stream.topic, str(_RECORDS),
        )  # fmt: skip
        self.run(
            "INSERT INTO headrace_offsets VALUES (%s, %s, 0, 'id', %s)",
            self.stream.table, self.stream.topic, str(_RECORDS),
        )  # fmt: skip
        assert self.replay() == (_RECORDS, 0)

    def run(self, statement: str, *values: str) -> int:
        """How many rows it was about."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement.encode(), values).rowcount

    def replay(self, *, dry: bool = False) -> tuple[int, int]:
        """How many rows were put back, or would be, and how many left; in batches of five."""
        told: list[tuple[int, int]] = []
        spans = {self.partition: Span(0, _RECORDS)}
        sink = PostgresReplay(
            self.url, self.stream, spans, self.log, on_back=lambda *rows: told.append(rows)
        )
        lacking = 0
        for start in range(0, _RECORDS, 5):
            batch = batch_of(self.stream, self.kafka, [(0, start, start + 5)])
            if dry:
                lacking += sink.lacking(batch).total()
            else:
                sink.write(batch)
        sink.close()
        return lacking + sum(back for back, _ in told), sum(left for _, left in told)

    def compared(self) -> list[Finding]:
        """What the audit's look at the rows finds."""
        with psycopg.connect(self.url) as connection:
            entries = ledger.read(connection, self.stream.table, self.stream.topic, "id")

        def read(spans: Mapping[Partition, Span]) -> Iterator[Batch]:
            yield batch_of(self.stream, self.kafka, [(p.number, *s) for p, s in spans.items()])

        at = {self.partition: _RECORDS}
        asked = Question(
            self.stream, "id", 0, 2**52, at, entries, {self.partition: 0}, read, set[Any]
        )
        return compare(self.url, asked)

    def some(self, low: int, end: int) -> str:
        """Those of these numbers."""
        return f"right(id, 2)::int >= {low} AND right(id, 2)::int < {end}"


@pytest.fixture
def table(tmp_path: Path, postgres: str) -> Iterator[Table]:
    table = Table(tmp_path, postgres)
    yield table
    table.subject.close()


@pytest.mark.parametrize("before", ["text = NULL", "text = ''", "score = 0", "counts = '{}'"])
def test_rows_of_before_a_change_of_the_message_are_left_and_said(
    table: Table, before: str
) -> None:
    """And what is missing beside them comes back."""
    table.run(f"UPDATE {table.name} SET {before} WHERE {table.some(2, 20)}")
    assert table.replay(dry=True) == (0, 18)
    assert table.replay() == (0, 18)
    # Whichever batch they are of: the first one's must not get the room of the last one's.
    table.run(f"DELETE FROM {table.name} WHERE {table.some(0, 4)} OR {table.some(17, 20)}")
    assert table.replay(dry=True) == (7, 13)
    assert table.replay() == (7, 13)
    assert table.replay() == (0, 13)
    assert len(set(table.subject.landed(table.stream))) == _RECORDS
    # An hour of which nothing is there is landed as its records are now.
    table.run(f"DELETE FROM {table.name}")
    assert table.replay() == (20, 0)
    assert table.replay() == (0, 0)


def test_in_an_hour_in_which_all_is_there_nothing_is_put_back(table: Table) -> None:
    """Whatever its values are."""
    table.run(f"UPDATE {table.name} SET text = 'another' WHERE {table.some(2, 20)}")
    assert table.replay(dry=True) == (0, 18)
    assert table.replay() == (0, 18)
    table.run(f"DELETE FROM {table.name} WHERE {table.some(0, 4)}")
    assert table.replay() == (4, 16)
    assert table.run(f"SELECT FROM {table.name}") == _RECORDS


def test_a_row_whose_key_was_another_column_is_left(table: Table) -> None:
    """A key that was renamed: the column that has its new name is null in the rows of before."""
    table.run(f"ALTER TABLE {table.name} ALTER id DROP NOT NULL")
    table.run(f"UPDATE {table.name} SET id = NULL")
    assert table.replay() == (0, 20)


def test_what_is_missing_comes_back_also_where_others_have_filled_the_hour(table: Table) -> None:
    """Rows of a user's own, and of before there was a ledger, are no rows of these records."""
    table.run(f"INSERT INTO {table.name} (id, at) SELECT 'own' || n, at FROM {table.name}, "
              "generate_series(1, 3) AS n")  # fmt: skip
    table.run(f"DELETE FROM {table.name} WHERE starts_with(id, %s) AND {table.some(0, 8)}",
              table.stream.topic)  # fmt: skip
    assert table.replay() == (8, 0)
    table.run("DELETE FROM headrace_ledger")
    table.run(f"DELETE FROM {table.name} WHERE starts_with(id, %s) AND {table.some(0, 8)}",
              table.stream.topic)  # fmt: skip
    assert table.replay() == (8, 0)


def test_of_one_key_and_time_what_is_missing_comes_back_in_any_batch(table: Table) -> None:
    """The table has rows of other batches then, and the ledger says whether there is room."""
    table.land([("all", f"text {n}") for n in range(_RECORDS)])
    table.run(f"DELETE FROM {table.name} WHERE right(text, 1) = '7'")
    assert table.replay() == (2, 0)
    table.run(f"UPDATE {table.name} SET text = 'as it was' || right(text, 2)")
    assert table.replay() == (0, 20)


def test_what_differs_in_a_message_alone_comes_back_in_the_next_batch(table: Table) -> None:
    """Two clicks of a user in one second: of an hour that was lost one batch has put the first
    back, and the second, in the next one, is not what the first was before."""
    table.kafka = FakeKafka(Simulation(1))
    table.kafka.create(table.stream.topic, 1)
    table.log = table.kafka.join()
    for n in range(_RECORDS):
        payload = encode(table.stream, f"user {n // 10}", text="text", by_name=1_750_000_000 + n)
        table.kafka.produce(table.partition, payload)
    table.run(f"DELETE FROM {table.name}")
    assert table.replay() == (_RECORDS, 0)


def test_many_rows_of_one_time_are_no_more_work_than_others(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour's figures, dated by its beginning: each row held against each other takes 30 s."""
    table.run(
        f"INSERT INTO {table.name} (id, at) SELECT 'other' || n, at FROM {table.name}, "
        "generate_series(1, 1000) AS n"
    )
    for n in range(_RECORDS, 20_000):
        table.kafka.produce(table.partition, encode(table.stream, f"{table.stream.topic}/0/{n}"))
    impatient = psycopg.connect(table.url, options="-c statement_timeout=10s")
    monkeypatch.setattr("consumers.replay.postgres.connect", lambda _, **_how: impatient)
    sink = PostgresReplay(table.url, table.stream, {table.partition: Span(0, 20_000)}, table.log)
    batch = batch_of(table.stream, table.kafka, [(0, 0, 20_000)], chunk=20_000)
    assert sink.lacking(batch).total() == 20_000 - _RECORDS
    sink.close()


def test_a_table_with_rows_that_have_no_time_is_not_replayed(table: Table) -> None:
    """A time that was renamed, or taken from a new field: rows of before are in no span."""
    table.run(f"ALTER TABLE {table.name} ALTER at DROP NOT NULL")
    assert table.replay() == (0, 0)
    table.run(f"UPDATE {table.name} SET at = NULL WHERE {table.some(0, 1)}")
    with pytest.raises(Systemic, match="Was the field renamed"):
        table.replay()


def test_rows_of_other_values_are_neither_missing_nor_too_many(table: Table) -> None:
    """So nothing is printed that deletes them, or puts them back beside themselves."""
    assert table.compared() == []
    table.run(f"UPDATE {table.name} SET text = '' WHERE {table.some(5, 20)}")
    (found,) = table.compared()
    assert (found.changed, found.surplus, found.place, found.removal) == (15, 0, None, "")
    # What is missing, and what is double, is found beside them as ever.
    table.run(f"DELETE FROM {table.name} WHERE {table.some(0, 2)} OR {table.some(10, 11)}")
    table.run(f"INSERT INTO {table.name} SELECT * FROM {table.name} WHERE {table.some(3, 4)}")
    found, *others, double = sorted(table.compared(), key=lambda one: (one.surplus == 1, one.name))
    assert found.changed == 14
    assert [one.place for one in others] == [(table.partition, at) for at in (0, 1, 10)]
    assert double.name.endswith("/03")
    assert table.run(double.removal) == 1
    table.replay()
    assert table.run(f"SELECT FROM {table.name}") == _RECORDS


def test_no_command_deletes_a_row_that_may_be_anothers(table: Table) -> None:
    """Of another topic in the same table, or a user's own: Kafka has nothing to say of it."""
    table.run(f"INSERT INTO {table.name} (id, at) SELECT 'own', at FROM {table.name} LIMIT 1")
    (found,) = table.compared()
    assert (found.name, found.surplus, found.known, found.removal) == ("id own", 1, False, "")


def test_where_the_ledger_has_counted_in_other_hours_it_is_not_said_which_are_too_many(
    table: Table,
) -> None:
    """The stream's time was another field then. Each of two may have landed, from two topics."""
    table.run("UPDATE headrace_ledger SET hour = hour - interval '2 hours', landed = 21")
    table.run(f"INSERT INTO {table.name} SELECT * FROM {table.name} WHERE {table.some(0, 1)}")
    (found,) = table.compared()
    assert (found.name, found.removal) == ("", "")
