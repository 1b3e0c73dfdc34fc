"""`headrace migrate` and the checks on ClickHouse tables that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from chdb_door import Door, running_door
from declared import declare
from targets import ClickHouseTarget

from consumers.errors import Systemic
from consumers.sinks.clickhouse_checks import _check_engine, check
from consumers.sinks.clickhouse_client import connect
from consumers.sinks.clickhouse_migrate import migrate
from consumers.sinks.clickhouse_types import ddl
from ingest.streams import Stream

TEXT = (
    'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '
    "message M { string id = 1; google.protobuf.Timestamp seen_at = 2; string order = 3; }"
)
DEDUPE = ("id", "seen_at")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One for all tests here: nothing is cut, and an engine takes a second to start."""
    with running_door(tmp_path_factory.mktemp("door") / "chdb") as door:
        yield door


@pytest.fixture
def clickhouse(door: Door, unique: Callable[[str], str]) -> ClickHouseTarget:
    """An empty database of the test's own."""
    name = unique("migrate")
    ClickHouseTarget(door.port).ask(f"CREATE DATABASE {name}")
    return ClickHouseTarget(door.port, name)


def stream(**settings: Any) -> Stream:
    return declare(TEXT, "M", **settings)


def make(url: str, engine: str, key: str) -> None:
    """The table with an engine and a key of somebody's own."""
    head, _ = ddl(stream()).split("ENGINE = ")
    settings = "SETTINGS non_replicated_deduplication_window = 100"
    client = connect(url)
    try:
        client.command(f"{head}ENGINE = {engine} ORDER BY {key} {settings}")
    finally:
        client.close()


@pytest.mark.parametrize("before", [{}, {"dedupe": DEDUPE}, {"dedupe": ("order", "seen_at")}])
@pytest.mark.parametrize("now", [{}, {"dedupe": DEDUPE}, {"dedupe": ("seen_at", "id")}])
def test_a_change_of_dedupe_is_noticed(
    clickhouse: ClickHouseTarget, before: dict[str, Any], now: dict[str, Any]
) -> None:
    migrate(clickhouse.url, [stream(**before)])
    if set(before.get("dedupe", ())) == set(now.get("dedupe", ())):
        assert migrate(clickhouse.url, [stream(**now)]) == []
        return
    for look in (check, migrate):
        with pytest.raises(Systemic, match=r"^the table test is .*name another `table` under"):
            look(clickhouse.url, [stream(**now)])


@pytest.mark.parametrize(
    ("engine", "key", "dedupe", "serves"),
    [
        ("ReplacingMergeTree", "(toDate(seen_at), id, seen_at)", DEDUPE, True),
        ("ReplacingMergeTree(_offset)", "(seen_at, id)", DEDUPE, True),
        # Copies stay where a key says more, and others than copies go where it says less.
        ("ReplacingMergeTree", "(id, seen_at, _offset)", DEDUPE, False),
        ("ReplacingMergeTree", "(id, toDate(seen_at))", DEDUPE, False),
        ("ReplacingMergeTree", "seen_at", DEDUPE, False),
        ("MergeTree", "(id, seen_at)", DEDUPE, False),
        ("MergeTree", "(`order`, toDate(seen_at))", (), True),
        ("MergeTree", "tuple()", (), True),
        ("ReplacingMergeTree", "(_topic, _topic_id, _partition, _offset)", (), True),
        ("ReplacingMergeTree", "(_partition, _offset)", (), False),
        ("SummingMergeTree", "(id, seen_at)", (), False),
        ("CoalescingMergeTree", "(_topic, _topic_id, _partition, _offset)", (), False),
        ("ReplacingMergeTree", "(id, intDiv(_partition, 2), _offset)", (), False),
    ],
)  # fmt: skip
def test_a_table_of_somebodys_own_serves_if_just_copies_merge_in_it(
    clickhouse: ClickHouseTarget, engine: str, key: str, dedupe: tuple[str, ...], serves: bool
) -> None:
    migrate(clickhouse.url, [])
    make(clickhouse.url, engine, key)
    if serves:
        check(clickhouse.url, [stream(dedupe=dedupe)])
        return
    with pytest.raises(Systemic, match=r"^the table test is ") as said:
        check(clickhouse.url, [stream(dedupe=dedupe)])
    assert f"is {engine.partition('(')[0]} ORDER BY (" in str(said.value)


@pytest.mark.parametrize("now", [None, "7 days", "1 week", "9 days"])
@pytest.mark.parametrize("before", [None, "7 days"])
def test_another_retention_is_warned_of_until_the_statement_has_been_run(
    clickhouse: ClickHouseTarget, caplog: pytest.LogCaptureFixture, before: str | None,
    now: str | None,
) -> None:  # fmt: skip
    def warnings() -> list[str]:
        caplog.clear()
        assert migrate(clickhouse.url, [stream(retention=now)]) == []
        found = [r for r in caplog.records if r.name == "consumers.sinks.clickhouse_migrate"]
        return [record.getMessage() for record in found]

    migrate(clickhouse.url, [stream(retention=before)])
    lines = warnings()
    assert len(lines) == (before != now)
    client = connect(clickhouse.url)
    try:
        for line in lines:
            client.command("ALTER TABLE " + line.rsplit("ALTER TABLE ", 1)[1])
    finally:
        client.close()
    assert warnings() == []


def test_a_ttl_of_somebodys_own_is_left_alone(
    clickhouse: ClickHouseTarget, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(clickhouse.url, [stream()])
    client = connect(clickhouse.url)
    try:
        client.command(
            "ALTER TABLE test MODIFY TTL "
            "toDateTime(seen_at) + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD)"
        )
    finally:
        client.close()
    migrate(clickhouse.url, [stream()])
    assert not [r for r in caplog.records if r.name == "consumers.sinks.clickhouse_migrate"]


@pytest.mark.parametrize(
    ("engine", "settings", "remembers"),
    [
        ("MergeTree", "index_granularity = 8192", False),
        ("MergeTree", "replicated_deduplication_window = 100", False),
        ("MergeTree", "non_replicated_deduplication_window = 100", True),
        ("ReplicatedMergeTree", "index_granularity = 8192", True),
        ("ReplicatedMergeTree", "replicated_deduplication_window = 0", False),
    ],
)
def test_a_table_that_forgets_tokens_is_refused(
    engine: str, settings: str, remembers: bool
) -> None:
    """chDB has no replicated tables; this is what a server says of them."""
    said = Mock(result_rows=[(engine, f"CREATE TABLE t … SETTINGS {settings}", "id, seen_at")])
    client = Mock(query=Mock(return_value=said))
    if remembers:
        _check_engine(client, stream(), {"id", "seen_at"})
        return
    setting = f"{'' if engine.startswith('R') else 'non_'}replicated_deduplication_window"
    with pytest.raises(Systemic, match=rf"does not remember inserts.* {setting} = 10000$"):
        _check_engine(client, stream(), {"id", "seen_at"})
