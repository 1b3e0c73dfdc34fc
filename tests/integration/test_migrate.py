"""`headrace migrate` on tables that are there, and what databases make of its statements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from declared import declare

from consumers.sinks import postgres_migrate
from consumers.sinks.clickhouse_types import ddl
from consumers.sinks.postgres_migrate import migrate
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
