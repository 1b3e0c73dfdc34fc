"""The SQL of tables, for PostgreSQL, TimescaleDB and ClickHouse."""

from __future__ import annotations

import dataclasses
import re

import pytest
from declared import declare, everything

from consumers.errors import Systemic
from consumers.sinks import clickhouse_ledger, postgres_ledger, raw_normalized
from consumers.sinks import clickhouse_types as clickhouse
from consumers.sinks import postgres_types as postgres
from ingest.streams import BUILT_IN, Stream

STATE = BUILT_IN["device_state"]
HEAD = 'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '
PLAIN = HEAD + "message M { string id = 1; google.protobuf.Timestamp seen_at = 2; "


def odd(**settings: object) -> Stream:
    """A stream whose names are words of SQL."""
    text = PLAIN + "string order = 3; string Group = 4; }"
    return declare(text, "M", table="select", **settings)


def test_the_device_state_table_is_that_of_the_post() -> None:
    assert postgres.ddl(STATE, timescale=False) == (
        'CREATE TABLE IF NOT EXISTS "device_state" (\n'
        '    "timestamp"       timestamptz NOT NULL,\n'
        '    "account_id"      text,\n'
        '    "device_id"       text NOT NULL,\n'
        '    "colo"            text,\n'
        '    "status"          text,\n'
        '    "mode"            text,\n'
        '    "client_version"  text,\n'
        '    "client_platform" text\n'
        ");\n"
        'CREATE INDEX IF NOT EXISTS "device_state_account_id_timestamp" ON "device_state" '
        '("account_id", "timestamp");\n'
    )


def test_timescale_adds_a_hypertable_and_what_the_stream_names_of_columnstore_and_retention() -> (
    None
):
    stream = declare(PLAIN + "}", "M", chunk_interval="12 hours")
    sql = postgres.ddl(stream, timescale=True)
    assert "create_hypertable('\"test\"', by_range('seen_at', INTERVAL '12 hours')" in sql
    assert "columnstore" not in sql
    assert "retention" not in sql
    stream = declare(PLAIN + "}", "M", segment_by="id", retention="7 days")
    sql = postgres.ddl(stream, timescale=True)
    assert "timescaledb.segmentby = '\"id\"'" in sql
    assert "timescaledb.orderby = '\"seen_at\" DESC'" in sql
    assert "after => 2 * INTERVAL '1 day'" in sql
    assert "add_retention_policy('\"test\"', INTERVAL '7 days', if_not_exists => true)" in sql
    assert "create_hypertable" not in postgres.ddl(stream, timescale=False)


def test_every_statement_may_be_run_again() -> None:
    stream = odd(dedupe=("id", "seen_at"), indexes=(("order",),), segment_by="id",
                 retention="7 days")  # fmt: skip
    sql = postgres.OFFSETS_DDL + postgres_ledger.LEDGER_DDL + postgres.ddl(stream, timescale=True)
    sql += clickhouse_ledger.LEDGER_DDL + clickhouse.ddl(stream)
    for statement in re.findall(r"(?:CREATE|SELECT|CALL)[^;]*;", sql):
        assert "IF NOT EXISTS" in statement or "if_not_exists => true" in statement


def test_dedupe_is_a_unique_index_whose_columns_are_never_null() -> None:
    stream = odd(dedupe=("order", "seen_at"))
    sql = postgres.ddl(stream, timescale=False)
    assert 'CREATE UNIQUE INDEX IF NOT EXISTS "select_key" ON "select" ("order", "seen_at")' in sql
    assert re.search(r'"order" +text NOT NULL', sql)
    assert re.search(r'"Group" +text,?\n', sql)


def index_names(stream: Stream) -> list[str]:
    """The names of its indexes, in order."""
    return re.findall(r'INDEX IF NOT EXISTS "(\w+)"', postgres.ddl(stream, timescale=False))


def test_each_index_has_a_name_of_its_own_that_postgresql_does_not_cut() -> None:
    text = PLAIN + "string a = 3; string a_b = 4; string b_c = 5; string c = 6; string key = 7; }"
    both = declare(text, "M", dedupe=("id", "seen_at"),
                   indexes=(("a_b", "c"), ("a", "b_c"), ("key",), ("key",)))  # fmt: skip
    unique, first, second, key = index_names(both)
    # The names of those that were made before stay.
    assert (unique, first) == ("test_key", "test_a_b_c")
    assert re.fullmatch(r"test_a_b_c_[0-9a-f]{8}", second)
    assert re.fullmatch(r"test_key_[0-9a-f]{8}", key)
    seen: set[str] = set()
    for n in range(52, 64):
        table = "t" * n
        long = declare(text, "M", table=table, dedupe=("id", "seen_at"),
                       indexes=(("id", "seen_at"), ("id", "seen_at", "a")))  # fmt: skip
        names = index_names(long)
        assert len({table, *names}) == 4
        assert max(map(len, names)) <= 63
        assert (names[0] == f"{table}_key") == (n <= 59)
        assert names == index_names(long)
        assert not seen.intersection(names)
        seen.update(names)


def test_names_that_are_words_of_sql_are_quoted_everywhere() -> None:
    stream = odd(indexes=(("order", "Group"),), dedupe=("order", "seen_at"))
    sql = postgres.ddl(stream, timescale=True)
    assert 'ON "select" ("order", "Group")' in sql
    assert "`order`" in clickhouse.ddl(stream)
    assert "CREATE TABLE IF NOT EXISTS `select`" in clickhouse.ddl(stream)


def test_clickhouse_sorts_by_the_first_index_else_by_key_and_time() -> None:
    assert "ENGINE = MergeTree\nORDER BY (`id`, `seen_at`)\n" in clickhouse.ddl(odd())
    assert "ORDER BY (`order`)\n" in clickhouse.ddl(odd(indexes=(("order",), ("id",))))
    sql = clickhouse.ddl(odd(dedupe=("order", "seen_at"), retention="7 days"))
    assert "ENGINE = ReplacingMergeTree\nORDER BY (`order`, `seen_at`)\n" in sql
    assert "\nTTL toDateTime(least(greatest(`seen_at`, " in sql
    assert " + INTERVAL 7 days, " in sql
    assert "TTL" not in clickhouse.ddl(odd())


def test_clickhouse_remembers_inserts_by_their_token_and_rows_by_where_they_came_from() -> None:
    sql = clickhouse.ddl(STATE)
    assert sql.endswith("SETTINGS non_replicated_deduplication_window = 10000;\n")
    assert "INDEX _offset_range _offset TYPE minmax GRANULARITY 1" in sql
    assert list(clickhouse.column_types(STATE))[-4:] == [
        "_topic", "_topic_id", "_partition", "_offset",
    ]  # fmt: skip


def test_both_tables_have_the_columns_of_the_message_in_its_order() -> None:
    names = [field.name for field in everything().descriptor.fields]
    assert list(postgres.column_types(everything())) == names
    assert list(clickhouse.column_types(everything()))[:-4] == names


def test_columns_go_by_their_own_names_everywhere() -> None:
    stream = declare(
        PLAIN + "string order = 3; }", "M", indexes=(("order", "seen_at"),),
        dedupe=("order", "seen_at"), segment_by="order", retention="7 days",
        columns=(("seen_at", "time"), ("order", "number")),
    )  # fmt: skip
    sql = postgres.ddl(stream, timescale=True) + clickhouse.ddl(stream)
    assert "seen_at" not in sql
    assert 'order"' not in sql
    assert re.search(r'"time" +timestamptz NOT NULL', sql)
    assert re.search(r'"number" +text NOT NULL', sql)
    assert "by_range('time'" in sql
    assert 'CREATE INDEX IF NOT EXISTS "test_number_time" ON "test" ("number", "time")' in sql
    assert "ORDER BY (`number`, `time`)\nTTL toDateTime(least(greatest(`time`, " in sql
    assert re.search(r"`time` +DateTime64\(6, 'UTC'\)", sql)


def test_the_view_comes_with_raw_events_alone_and_follows_its_names() -> None:
    assert raw_normalized.postgres(STATE) is None
    assert raw_normalized.clickhouse(STATE) is None
    raw = BUILT_IN["raw_events"]
    mine = dataclasses.replace(
        raw, table="x" * 60, columns=(("received_at", "at"), ("data", "json"))
    )
    for make in (raw_normalized.postgres, raw_normalized.clickhouse):
        view, other = make(raw), make(mine)
        assert view is not None
        assert other is not None
        assert view.name == "raw_normalized"
        assert view.comment != other.comment
        assert len(other.name) == 63
        assert re.search(r"raw\.[\"`]at[\"`] AS timestamp", other.sql)
        assert not re.search(r"[\"`]data[\"`]|:[a-z]+_?[a-z]*\b(?<!:jsonb)", other.sql)


def test_key_and_time_are_never_null() -> None:
    stream = declare(PLAIN.replace("string id", "optional string id") + "}", "M")
    assert clickhouse.column_types(stream)["id"] == "String"
    assert clickhouse.column_types(stream)["seen_at"] == "DateTime64(6, 'UTC')"
    assert postgres.ddl(stream, timescale=False).count("NOT NULL") == 2


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("String", "LowCardinality(String)", True),
        ("LowCardinality(String)", "String", True),
        ("LowCardinality(Nullable(String))", "Nullable(String)", True),
        ("Array(LowCardinality(String))", "Array(String)", True),
        ("Tuple(a String, b UInt32)", "Tuple(`a` String, `b` UInt32)", True),
        ("Nullable(String)", "String", False),
        ("Int64", "Int32", False),
        ("Tuple(b UInt32, a String)", "Tuple(`a` String, `b` UInt32)", False),
    ],
)
def test_low_cardinality_is_the_tables_own_affair(found: str, wanted: str, fits: bool) -> None:
    assert clickhouse.fits(found, wanted) is fits


def test_what_is_no_identifier_gets_into_no_statement() -> None:
    for name in ("a`b", "a b", "", "1a", "ü"):
        with pytest.raises(Systemic, match="can't be a name in ClickHouse"):
            clickhouse.quote(name)
