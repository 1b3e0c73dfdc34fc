"""`headrace migrate` on tables that are there, and what databases make of its statements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from declared import EVERYTHING_PROTO, declare

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.columns import columns
from consumers.decode import Decoder
from consumers.errors import Systemic
from consumers.sinks import postgres_migrate
from consumers.sinks.clickhouse_types import ddl
from consumers.sinks.postgres_checks import check
from consumers.sinks.postgres_copy import copy_in
from consumers.sinks.postgres_migrate import migrate
from consumers.sinks.postgres_types import Encoder
from ingest.streams import BUILT_IN

TEXT = (
    'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '
    "message M { string id = 1; google.protobuf.Timestamp seen_at = 2; string a = 3; "
    "string a_b = 4; string b_c = 5; string c = 6; string key = 7; }"
)

# chDB takes one path per process, and that one is not the test's.
_RUN_CHDB = """
import sys
from chdb.session import Session
session = Session(sys.argv[1])
for query in sys.argv[2:]:
    print(session.query(query, "TabSeparated"), end="")
"""


def indexed(database: str, table: str) -> set[str]:
    """The columns of each of its indexes."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = %s", (table,)
        ).fetchall()
    found = [definition.split("USING btree ")[1] for (definition,) in rows]
    assert len(found) == len(set(found))
    return set(found)


def test_every_index_of_a_stream_is_made_and_none_twice(database: str) -> None:
    for table in ("t", "t" * 60, "t" * 63):
        stream = declare(
            TEXT, "M", topic=table, table=table, dedupe=("id", "seen_at"),
            indexes=(("a_b", "c"), ("a", "b_c"), ("key",), ("id", "c"), ("id", "a")),
        )  # fmt: skip
        assert migrate(database, [stream]) == [f"table {table}"]
        assert migrate(database, [stream]) == []
        assert indexed(database, table) == {
            "(id, seen_at)", "(a_b, c)", "(a, b_c)", "(key)", "(id, c)", "(id, a)",
        }  # fmt: skip


def test_a_plain_table_stays_one_when_timescaledb_comes_later(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it has not come: its functions are missing, so that to call one fails."""
    stream = BUILT_IN["device_state"]
    migrate(database, [stream])
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO device_state (timestamp, device_id) VALUES (now(), 'd')")
        connection.execute("CREATE SCHEMA timescaledb_information")
        connection.execute(
            "CREATE TABLE timescaledb_information.hypertables AS"
            " SELECT 'elsewhere' AS hypertable_schema, 'device_state' AS hypertable_name"
        )
    monkeypatch.setattr(postgres_migrate, "_has_timescale", lambda _connection: True)
    assert migrate(database, [stream]) == []
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE timescaledb_information.hypertables SET hypertable_schema ="
                           " current_schema()")  # fmt: skip
    # Of one that is a hypertable the statements are run again.
    with pytest.raises(Exception, match="by_range"):
        migrate(database, [stream])


def run(database: str, *statements: str) -> None:
    with psycopg.connect(database) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_the_indexes_of_two_streams_are_all_made_whatever_they_would_be_called(
    database: str,
) -> None:
    one = declare(TEXT, "M", table="t", indexes=(("a_b", "c"),), dedupe=("id", "seen_at"))
    other = declare(TEXT, "M", topic="other", table="t_a", indexes=(("b_c",), ("c",)))
    third = declare(TEXT, "M", topic="third", table="t_a_b_c", indexes=(("c",),))
    run(database, "CREATE TABLE t_key (x integer)")
    # t_a_b_c is an index of the first, the table of the third, and what an index of the second
    # would be called.
    for stream in (other, one):
        migrate(database, [stream])
    with pytest.raises(Systemic, match="t_a_b_c"):
        migrate(database, [third])
    check(database, [one, other])
    assert indexed(database, "t") == {"(id, seen_at)", "(a_b, c)"}
    assert indexed(database, "t_a") == {"(b_c)", "(c)"}
    # Nor are they made again when the name is free.
    run(database, "DROP TABLE t_a, t_key")
    assert migrate(database, [one]) == []
    assert indexed(database, "t") == {"(id, seen_at)", "(a_b, c)"}


def test_an_index_that_a_table_did_not_have_is_made_and_said(database: str) -> None:
    migrate(database, [declare(TEXT, "M", indexes=(("a_b", "c"),))])
    # The name of the first is that of an index on other columns.
    more = declare(TEXT, "M", indexes=(("a", "b_c"), ("id",)), dedupe=("id", "seen_at"))
    first, *rest = sorted(migrate(database, [more]))
    assert first.startswith("index test_a_b_c_")
    assert rest == ["index test_id", "index test_key"]
    assert indexed(database, "test") == {"(a_b, c)", "(a, b_c)", "(id)", "(id, seen_at)"}
    assert migrate(database, [more]) == []


def test_an_index_of_a_former_dedupe_is_named_with_its_end(database: str) -> None:
    migrate(database, [declare(TEXT, "M", dedupe=("id", "seen_at"))])
    assert migrate(database, [declare(TEXT, "M", dedupe=("seen_at", "id"))]) == []
    now = declare(TEXT, "M", dedupe=("a", "seen_at"))
    with pytest.raises(Systemic, match=r'\(id, seen_at\).*: DROP INDEX "test_key";$') as said:
        migrate(database, [now])
    run(database, str(said.value).rsplit(": ", 1)[1], "UPDATE test SET a = id WHERE a IS NULL")
    assert migrate(database, [now]) == ["index test_key"]


def test_what_looks_like_the_index_of_a_dedupe_is_looked_at(database: str) -> None:
    stream = declare(TEXT, "M", dedupe=("id", "seen_at"))
    migrate(database, [declare(TEXT, "M")])
    run(
        database,
        "CREATE UNIQUE INDEX own ON test (seen_at, id)",
        "CREATE UNIQUE INDEX test_key ON test (id, seen_at, a)",
    )
    # One serves; the other is its owner's.
    assert migrate(database, [stream]) == []
    run(
        database,
        "DROP INDEX own, test_key",
        "CREATE UNIQUE INDEX test_key ON test (id, seen_at) WHERE a = 'x'",
    )
    with pytest.raises(Systemic, match="no unique index on just these columns"):
        check(database, [stream])
    (made,) = migrate(database, [stream])
    assert made.startswith("index test_key_")
    check(database, [stream])


def test_a_trigger_of_a_partition_may_fill_what_the_stream_does_not(database: str) -> None:
    stream = declare(TEXT, "M")
    migrate(database, [stream])
    run(
        database,
        "CREATE TABLE parts (LIKE test) PARTITION BY RANGE (seen_at)",
        "ALTER TABLE parts ADD tenant text NOT NULL",
    )
    check(database, [declare(TEXT, "M", table="parts")])


def test_copies_in_a_table_that_gets_a_dedupe_are_found_by_the_statement_that_is_said(
    database: str,
) -> None:
    migrate(database, [declare(TEXT, "M", table="order")])
    run(
        database,
        """INSERT INTO "order" (id, seen_at) VALUES ('a', '2025-01-01'),
        ('a', '2025-01-01'), ('b', '2025-01-01')""",
    )
    stream = declare(TEXT, "M", table="order", dedupe=("id", "seen_at"))
    with pytest.raises(Systemic, match=r"holds copies") as said:
        migrate(database, [stream])
    with psycopg.connect(database) as connection:
        rows = connection.execute(str(said.value).rsplit(": ", 1)[1].encode()).fetchall()
    assert [(row[0], row[2]) for row in rows] == [("a", 2)]


def test_a_column_of_the_users_own_that_nobody_fills_is_said_with_what_to_run(
    database: str,
) -> None:
    stream = declare(TEXT, "M", table="Orders")
    migrate(database, [stream])
    run(
        database,
        "CREATE DOMAIN house AS text DEFAULT 'n'",
        """ALTER TABLE "Orders" ADD one integer NOT NULL DEFAULT 1,
            ADD two integer GENERATED ALWAYS AS IDENTITY, ADD three house NOT NULL,
            ADD four integer NOT NULL GENERATED ALWAYS AS (length(id)) STORED, ADD five text""",
    )
    check(database, [stream])
    run(database, 'ALTER TABLE "Orders" ADD "Site" text NOT NULL')
    with pytest.raises(Systemic, match=r"Orders\.Site is NOT NULL without a default") as said:
        check(database, [stream])
    with pytest.raises(Systemic, match=r"Orders\.Site is NOT NULL"):
        migrate(database, [stream])
    drop = str(said.value).rsplit("run: ", 1)[1]
    assert drop == 'ALTER TABLE "Orders" ALTER COLUMN "Site" DROP NOT NULL;'
    run(
        database,
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
        """$$ BEGIN NEW."Site" = 's'; RETURN NEW; END $$""",
        'CREATE TRIGGER fill BEFORE INSERT ON "Orders" FOR EACH ROW EXECUTE FUNCTION fill()',
    )
    check(database, [stream])
    run(database, 'DROP TRIGGER fill ON "Orders"', drop)
    check(database, [stream])


def test_a_missing_column_is_added_by_the_statement_that_is_said(database: str) -> None:
    stream = declare(TEXT, "M", table="order")
    migrate(database, [stream])
    run(database, 'ALTER TABLE "order" DROP COLUMN c')
    with pytest.raises(Systemic, match="has no column c; add it: ") as said:
        check(database, [stream])
    run(database, str(said.value).rsplit("add it: ", 1)[1])
    check(database, [stream])


def test_rows_from_before_a_column_are_as_their_records_read_now(database: str) -> None:
    """Of every kind of field: a default is what the decoder gives for one that is not set."""
    more = (
        "Node tree = 90; map<string, google.protobuf.Struct> by_name = 92; "
        "enum Twice { option allow_alias = true; ZERO = 0; NOUGHT = 0; } Twice twice = 93;"
    )
    text = EVERYTHING_PROTO.read_text().replace("Node tree = 90;", more)
    stream = declare(text, "test.v1.Everything")
    run(database, "CREATE TABLE test (id text NOT NULL, seen_at timestamptz NOT NULL)")
    run(database, "INSERT INTO test VALUES ('a', '1970-01-01T00:00:01Z')")
    migrate(database, [declare(TEXT, "M", table="other")])
    for _ in columns(stream)[2:]:
        with pytest.raises(Systemic, match="; add it: ") as said:
            check(database, [stream])
        run(database, str(said.value).rsplit("add it: ", 1)[1])
    check(database, [stream])
    record = stream.message(id="a")
    record.seen_at.FromSeconds(1)
    decoder, partition = Decoder(stream), Partition("test", 0)
    chunk = Chunk(partition, [0], decoder.decode([record.SerializeToString()]).rows)
    with psycopg.connect(database) as connection:
        batch = Batch(stream, {partition: Span(0, 1)}, (chunk,))
        copy_in(connection, batch, Encoder(stream, decoder.schema))
        rows = connection.execute("SELECT * FROM test").fetchall()
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_a_role_that_may_not_make_tables_is_told_what_it_needs(database: str) -> None:
    stream = declare(TEXT, "M")
    login = database.split("//")[1].split("@")[1]
    run(database, "CREATE ROLE \"Mi-grant\" LOGIN PASSWORD 'x'")
    try:
        role = f"postgresql://Mi-grant:x@{login}"
        with pytest.raises(Systemic, match="permission denied for schema public") as said:
            migrate(role, [stream])
        assert "INSERT" not in str(said.value)
        grant = str(said.value).rsplit("it needs: ", 1)[1].split(";")[0]
        assert grant == 'GRANT CREATE ON SCHEMA "public" TO "Mi-grant"'
        run(database, grant)
        assert migrate(role, [stream]) == ["table test"]
    finally:
        run(database, 'DROP OWNED BY "Mi-grant"', 'DROP ROLE "Mi-grant"')


def test_a_database_without_a_schema_to_make_tables_in_is_for_a_person(database: str) -> None:
    run(database, "DROP SCHEMA public CASCADE")
    with pytest.raises(Systemic, match="create the schema, or correct the role's search_path"):
        migrate(database, [declare(TEXT, "M")])


def test_a_constraint_that_is_checked_later_does_not_serve_dedupe(database: str) -> None:
    """PostgreSQL refuses each insert by it, and in words that read as an outage."""
    migrate(database, [declare(TEXT, "M")])
    run(database, "ALTER TABLE test ADD CONSTRAINT theirs UNIQUE (id, seen_at) DEFERRABLE")
    stream = declare(TEXT, "M", dedupe=("id", "seen_at"))
    with pytest.raises(Systemic, match="has no unique index on just these columns"):
        check(database, [stream])
    assert migrate(database, [stream]) == ["index test_key"]
    check(database, [stream])


def test_what_an_index_only_carries_along_is_none_of_its_columns(database: str) -> None:
    """PostgreSQL finds no index for ON CONFLICT, so an inserter stopped at its first row."""
    migrate(database, [declare(TEXT, "M")])
    run(database, "CREATE UNIQUE INDEX theirs ON test (seen_at) INCLUDE (id)")
    stream = declare(TEXT, "M", dedupe=("id", "seen_at"))
    with pytest.raises(Systemic, match="has no unique index on just these columns"):
        check(database, [stream])
    run(database, "DROP INDEX theirs", "CREATE UNIQUE INDEX ON test (seen_at, id) INCLUDE (a)")
    check(database, [stream])


def test_no_table_is_made_in_front_of_one_that_is_there(database: str) -> None:
    """A schema of the role's name, which comes first, was made after the tables were."""
    stream = declare(TEXT, "M")
    migrate(database, [stream])
    run(database, "CREATE SCHEMA tools")
    both = database + "?options=-csearch_path%3Dtools,public"
    with pytest.raises(Systemic, match=r"is in the schema public, but the first .* is tools"):
        migrate(both, [stream])
    with psycopg.connect(both) as connection:
        found = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'tools'::regnamespace"
        )
        assert found.fetchall() == []
    assert migrate(database + "?options=-csearch_path%3Dtools", [stream]) == ["table test"]
    assert migrate(both, [stream]) == []


def test_two_long_tables_do_not_share_a_temporary_one(database: str) -> None:
    """Their streams have other columns, so that the second could not be copied into the first's."""
    other = TEXT.replace("string b_c = 5;", "int64 b_c = 5;")
    with psycopg.connect(database) as connection:
        for text, tail in ((TEXT, "one"), (other, "two")):
            stream = declare(text, "M", table="t" * 59 + tail, dedupe=("id", "seen_at"))
            migrate(database, [stream])
            message: Any = stream.message(id="k")
            message.seen_at.seconds = 5
            decoder = Decoder(stream)
            rows, _ = decoder.decode([message.SerializeToString()])
            partition = Partition("test", 0)
            chunk = Chunk(partition, [0], rows)
            batch = Batch(stream, {partition: Span(0, 1)}, (chunk,))
            assert copy_in(connection, batch, Encoder(stream, decoder.schema)) == {0: 1}
            connection.commit()


@pytest.mark.parametrize(
    ("kept", "retention", "said"),
    [
        ("7 days", "168 hours", None),
        (
            "7 days",
            "9 days",
            "has retention = '9 days', but rows of the hypertable Test go after 7",
        ),
        ("7 days", None, "has no retention, but rows of the hypertable Test go after 7 days"),
        (None, "9 days", None),
    ],
)
def test_a_hypertable_with_another_retention_is_warned_of(
    database: str, caplog: pytest.LogCaptureFixture, kept: str | None, retention: str | None,
    said: str | None,
) -> None:  # fmt: skip
    """What TimescaleDB says of its policies, in tables of the same columns."""
    stream = declare(TEXT, "M", table="Test", retention=retention)
    migrate(database, [stream])
    run(
        database,
        "CREATE SCHEMA timescaledb_information",
        "CREATE TABLE timescaledb_information.jobs AS SELECT 'public' AS hypertable_schema, "
        "'Test' AS hypertable_name, 'policy_retention' AS proc_name, "
        """'{"drop_after": "%s", "hypertable_id": 1}'::jsonb AS config""" % (kept or "9 days"),
    )
    with psycopg.connect(database) as connection:
        postgres_migrate._say_retention(connection, stream)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (said is not None)
    if said is not None:
        assert said in lines[0]
        assert "remove_retention_policy('\"Test\"')" in lines[0]


@pytest.mark.parametrize("retention", ["7 days", "200 years"])
def test_a_row_goes_when_its_retention_ends_whatever_a_clock_says(
    chdb_path: Path, retention: str
) -> None:
    stream = declare(TEXT, "M", retention=retention)
    times = ["1900-01-01", "1969-12-31", "2020-01-01", "2106-02-01", "2106-02-08", "2110-01-01",
             "2170-01-01", "2299-12-31"]  # fmt: skip
    rows = ", ".join(f"('k', '{day} 12:00:00')" for day in times)
    queries = [
        ddl(stream).rstrip(";\n"),
        f"INSERT INTO test (id, seen_at) VALUES {rows}",
        "OPTIMIZE TABLE test FINAL",
        "SELECT toDate32(seen_at) FROM test ORDER BY seen_at",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_CHDB, str(chdb_path), *queries],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == (times[3:] if retention == "7 days" else times)
